"""The fraction over training, in the manner of ``torch.optim.lr_scheduler``: all elements first, then the hardest.

A schedule sets `fraction` of its criterion when it is made and at each ``step()``: of the optimiser, or an epoch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from topkloss.base.arguments import in_range, is_whole

__all__ = ["AccuracyFraction", "ConstantFraction", "CosineFraction", "LinearFraction"]


class FractionSchedule:
    """What every schedule is: a criterion (anything with a number as `fraction`) and how many steps were made."""

    def __init__(self, criterion: Any) -> None:
        if getattr(criterion, "fraction", None) is None:
            raise TypeError(
                f"`criterion` must have a number as `fraction`; got {type(criterion).__name__} without one. "
                "Build it with fraction=, not k=; of several criteria pass the one that mines."
            )
        self.criterion, self.last_step = criterion, 0
        criterion.fraction = _fraction("fraction", criterion.fraction)

    def state_dict(self) -> dict[str, float]:
        """Where training stands, in plain numbers; neither the criterion nor the arguments."""
        return {"last_step": self.last_step, "fraction": self.criterion.fraction}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Goes on from the state of a schedule that had the same arguments; sets ``criterion.fraction`` too."""
        self.last_step, self.criterion.fraction = int(state["last_step"]), _fraction("fraction", state["fraction"])

    def _advance(self, fraction: float) -> None:
        self.last_step += 1
        self.criterion.fraction = fraction


class ConstantFraction(FractionSchedule):
    """The fraction that the criterion has, at every step: for a loop that always steps a schedule.

    Example:
        >>> ConstantFraction(AverageTopKLoss(nn.L1Loss(reduction="none"), fraction=0.5)).step()
    """

    def step(self) -> None:
        """Counts."""
        self._advance(self.criterion.fraction)


class LinearFraction(FractionSchedule):
    """From `start` to `end` in `steps` equal steps, then constant: ``hard_example_mining_step`` of DeepLab.

    Example:
        >>> schedule = LinearFraction(AverageTopKLoss(nn.L1Loss(reduction="none"), fraction=1), end=0.5, steps=2)
        >>> for _ in range(2):
        ...     schedule.step()  # after a step of training
        ...     print(schedule.criterion.fraction)
        0.75
        0.5
    """

    def __init__(self, criterion: Any, *, end: float, steps: int, start: float = 1.0) -> None:
        if not is_whole(steps) or steps < 1:
            raise ValueError(f"`steps` must be an integer >= 1; got {steps}. For no ramp use ConstantFraction.")
        super().__init__(criterion)
        self.end, self.steps, self.start = _fraction("end", end), int(steps), _fraction("start", start)
        criterion.fraction = self.start

    def step(self) -> None:
        """To the next value."""
        done = self._done(min(1.0, (self.last_step + 1) / self.steps))  # at 1 the next line is `end`, exactly
        self._advance(done * self.end + (1 - done) * self.start)

    def _done(self, time: float) -> float:
        return time


class CosineFraction(LinearFraction):
    """From `start` to `end` along half a cosine: slow at both ends. Arguments as in `LinearFraction`.

    Example:
        >>> schedule = CosineFraction(AverageTopKLoss(nn.L1Loss(reduction="none"), fraction=1), end=0.5, steps=4)
        >>> schedule.step()
        >>> round(schedule.criterion.fraction, 3)
        0.927
    """

    def _done(self, time: float) -> float:
        return (1 - math.cos(math.pi * time)) / 2


class AccuracyFraction(FractionSchedule):
    """Smaller at each `(accuracy, fraction)` of `levels` that training accuracy reaches; never larger again.

    The rule of Ordered SGD (https://arxiv.org/abs/1907.04371); its code halves the learning rate, too, at the last.

    Example:
        >>> schedule = AccuracyFraction(AverageTopKLoss(nn.L1Loss(reduction="none"), fraction=1))
        >>> schedule.step(0.91)
        >>> schedule.criterion.fraction
        0.25
    """

    def __init__(
        self,
        criterion: Any,
        *,
        levels: Sequence[tuple[float, float]] = ((0.8, 0.5), (0.9, 0.25), (0.95, 0.125), (0.995, 0.0625)),
        start: float = 1.0,
    ) -> None:
        self.levels = tuple(
            (_fraction("accuracy", level), _fraction("fraction", fraction)) for level, fraction in levels
        )
        super().__init__(criterion)
        criterion.fraction = _fraction("start", start)

    def step(self, accuracy: float) -> None:
        """To the fraction of this training accuracy, in [0, 1], if it is smaller than the one before."""
        accuracy = _fraction("accuracy", accuracy, "0 <=")
        self._advance(min([self.criterion.fraction, *(to for level, to in self.levels if accuracy >= level)]))


def _fraction(name: str, value: float, low: str = "0 <") -> float:
    return float(in_range(name, value, low, "<= 1", hint="For 80 % pass 0.8."))
