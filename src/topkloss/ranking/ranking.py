"""What counts, ranked: the largest score first, each element as wide as its mass.

Lay what counts side by side, the largest score first, each element as wide as its mass (1, or its ``sample_weight``).
Every aggregate averages one interval of that ranking. A `Ranking` knows where a mass of the largest ends, and what each
element weighs by an interval. Who asks does not know which one answers:

- `NativeRanking`: one process, on the CPU, by the compiled kernels; numbers are Python's.
- `TensorRanking`: anywhere else, by torch's operations; numbers are 0-dim tensors, and nothing waits for a device.
- `NativeGroups` and `SortedGroups`: one ranking for each group. `SharedRanking`: over several processes.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from topkloss.base.processes import Ranks
from topkloss.base.tensors import Scalar, choose, larger, part_of

# A count within this relative distance of an integer is that integer: 0.29 * 100 selects 29.
SNAP = 1e-9

# Less than this fraction of the counted mass is as good as this fraction, of which float32 can still compute 1/k.
LEAST = 1e-30


class Cut(NamedTuple):
    """Where a mass of the largest ends."""

    score: Scalar  # elements above it lie before the end, those below it behind; NaN where a NaN counts
    above: Scalar  # float64: the mass of all elements above that score
    tied: Scalar  # float64: the mass of all elements at it
    part: Scalar  # float64: how much of each of them lies before the end; of any value where none counts


class Weights(ABC):
    """What each element weighs: non-negative, of sum 1, 0 where not counted; NaN on all that counts if one is NaN."""

    @property
    @abstractmethod
    def lowest(self) -> Tensor:
        """The lowest score that weighs anything, 0-dim; -inf where none does."""

    @abstractmethod
    def dense(self) -> Tensor:
        """One number for each element, shaped like the losses."""

    @abstractmethod
    def dot(self, losses: Tensor) -> Tensor:
        """The sum of weights times losses, with its gradient; a loss of weight 0 never matters, nor its gradient."""


class Rankings(ABC):
    """One ranking of all that counts, or one for each group.

    Attributes:
        scores: What is ranked by, shaped like the losses.
        has_nan: Whether a NaN counts, and must stay visible.
        omitted: How many elements are left out because they are NaN.
        dtype: Of weights and value.
        ranks: The processes that rank together; None = this one alone.
    """

    scores: Tensor
    has_nan: bool | Tensor
    omitted: int | Tensor
    dtype: torch.dtype
    ranks: Ranks | None = None

    @abstractmethod
    def by(self, rule: Rule) -> Weights:
        """The weights that a rule gives to each ranking; each group that counts something has the same say."""

    @abstractmethod
    def even(self) -> Weights:
        """Weights of the plain mean of all that counts, whatever its group."""

    @abstractmethod
    def inputs(self) -> tuple[Tensor | None, ...]:
        """What weights and masses are read of, some of it the caller's own: it must not change until then."""

    @abstractmethod
    def each_mass(self) -> Tensor:
        """What each element counts, float64, shaped like the losses; 0 where not counted."""

    def dot(self, weights: Weights, losses: Tensor) -> Tensor:
        """The sum of weights times losses, over all processes that rank together."""
        value = weights.dot(losses)
        return value if self.ranks is None else self.ranks.total(value)


class Ranking(Rankings):
    """What a rule asks of a ranking.

    Attributes:
        total: The counted mass S.
    """

    total: Scalar

    def by(self, rule: Rule) -> Weights:
        """See `Rankings`."""
        return rule(self)

    def cut(self, wanted: Scalar) -> Cut:
        """Where the `wanted` mass ends; its score is -inf where nothing counts."""
        score, above, tied = self._kth_largest(wanted)
        tied = choose(score == -math.inf, self.total - above, tied)
        return Cut(choose(self.has_nan, math.nan, score), above, tied, part_of(wanted - above, tied))

    def interval(self, start: Scalar | None, length: Scalar) -> Weights:
        """Weights of the mass `length` behind the mass `start`; None = from the largest on."""
        if start is None:
            return self._weigh(length, self.cut(length))
        first, end = self.cut(start), self.cut(start + length)
        # of the selected mass itself, not of its sum with the dropped one, which rounds
        end = end._replace(part=part_of(length - larger(end.above - start, 0.0), end.tied))
        return self._weigh(length, end, first._replace(part=choose(first.score == end.score, 0.0, first.part)))

    def threshold(self, wanted: Scalar) -> Tensor:
        """The score at which the `wanted` mass ends, 0-dim."""
        score = self.cut(wanted).score
        return score if isinstance(score, Tensor) else torch.scalar_tensor(score, dtype=self.scores.dtype, device="cpu")

    @abstractmethod
    def tied_at(self, wanted: Scalar) -> Weights:
        """Weights of what ties where the `wanted` mass ends."""

    @abstractmethod
    def largest(self) -> Weights:
        """Weights of the largest element, and of what ties with it."""

    @abstractmethod
    def above(self, threshold: float, floor: Scalar | None) -> Weights:
        """Weights of what lies above a threshold, or within the mass `floor` of the largest; one holds the other."""

    @abstractmethod
    def mass_above(self, score: float) -> Scalar:
        """The counted mass whose score is larger."""

    @abstractmethod
    def everything(self) -> Weights:
        """Weights of all that counts."""

    @abstractmethod
    def _kth_largest(self, wanted: Scalar) -> tuple[Scalar, Scalar, Scalar]:
        """The score at which the `wanted` mass ends, the mass above it and the mass at it."""

    @abstractmethod
    def _weigh(self, selected: Scalar, end: Cut, start: Cut | None = None) -> Weights:
        """Weights of what lies before the end and behind the start, a mass of `selected`."""


Rule = Callable[[Ranking], Weights]


def requested_mass(total: Scalar, count: float | None, fraction: float | None) -> Scalar:
    """The mass asked for, in the form of the total: `count`, or `fraction` of it; near-integers snapped."""
    asked = float(1.0 if count is None else count) if fraction is None else float(fraction)
    if isinstance(total, Tensor):
        # not torch.full: a compiled graph then serves every count
        wanted = (torch.ones_like(total) if fraction is None else total) * asked
        nearest = wanted.round()
        snapped = torch.where((wanted - nearest).abs() <= SNAP * wanted, nearest, wanted)
        return torch.where(wanted < total, snapped, total).minimum(total)
    wanted_number = asked if fraction is None else total * asked
    if not wanted_number < total:
        return total
    nearest_number = float(round(wanted_number))
    return min(nearest_number if abs(wanted_number - nearest_number) <= SNAP * wanted_number else wanted_number, total)


def not_a_mass(mass: Tensor) -> ValueError:
    """The error about a counted mass."""
    return ValueError(
        f"`sample_weight` must be finite and >= 0 where counted; got {mass.item():g}. "
        "To leave an element out give it weight 0 or mask=False."
    )


def refuse_nan(has_nan: bool) -> None:
    """Raises where a NaN counts that must not.

    Raises:
        ValueError: Then.
    """
    if has_nan:
        raise ValueError(
            "`losses` (or `scores`) must not be NaN where counted; got NaN. "
            'Pass nan_policy="omit" to leave such elements out.'
        )
