"""The criterion of the dual form: the average top-k of the data set, through a learned threshold."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from topkloss.aggregates.dual import seen_from, weights_from
from topkloss.base.arguments import NanPolicy, check_k, check_smoothing, real_number
from topkloss.base.processes import ProcessGroup, ranks_of
from topkloss.base.tensors import is_traced, values_are_readable
from topkloss.criteria.criterion import Level, OfElements
from topkloss.losses.elements import Elements, IndividualLoss
from topkloss.ranking.selection import Selection, versions_now
from topkloss.ranking.tensor_ranking import TensorRanking, TensorWeights

__all__ = ["DualAverageTopKLoss"]


# So often an optimiser moves the model before a threshold that stays is warned of.
MOVES = 10


class ThresholdWatch:
    """Whether an optimiser moves the model and not the threshold: both count how often they are written to.

    So there is no false alarm where gradients are accumulated, the model or the threshold is frozen, or nothing is
    trained. A copy begins anew.
    """

    def __init__(self) -> None:
        self.done = False
        self.moves = 0
        self.weight: weakref.ref[Tensor] | None = None
        self.state: tuple[int, float] | None = None
        self.start: tuple[int, Tensor] | None = None

    def __reduce__(self) -> tuple[type[ThresholdWatch], tuple[()]]:
        return ThresholdWatch, ()

    def see(self, outputs: Any, threshold: Tensor) -> None:
        """One call of the criterion; a UserWarning if it is time."""
        if self.done or is_traced() or not isinstance(outputs, Tensor):
            return
        if not (outputs.requires_grad and threshold.requires_grad):
            return
        if self.start is None or self.start[0] != threshold._version:
            self.start, self.moves = (threshold._version, threshold.detach().clone()), 0
        weight = None if self.weight is None else self.weight()
        if weight is None:
            weight = weight_behind(outputs)
            if weight is None:
                return
            self.weight, self.state = weakref.ref(weight), state_of(weight)
        state, before = state_of(weight), self.state
        self.moves += state != before
        self.state = state
        if self.moves < MOVES:
            return
        self.done = True
        if torch.equal(threshold.detach(), self.start[1]):  # nor by an optimiser that writes to `data`
            warnings.warn(
                f"the threshold of DualAverageTopKLoss must be trained; got {threshold.item():g} still after {MOVES} "
                "steps of the model. Pass criterion.parameters() to the optimizer too, or, to keep it there, "
                "criterion.threshold.requires_grad_(False).",
                stacklevel=4,
            )


def state_of(weight: Tensor) -> tuple[int, float]:
    """What changes when an optimiser writes to it: its version, or a value where fused ones leave the version alone."""
    readable = values_are_readable(weight) and weight.numel() > 0
    return weight._version, weight.detach().flatten()[0].item() if readable else 0.0


def weight_behind(outputs: Tensor) -> Tensor | None:
    """The first parameter that the outputs were computed with."""
    if outputs.grad_fn is None:
        return outputs if isinstance(outputs, nn.Parameter) else None
    seen, waiting = set[Any](), [outputs.grad_fn]
    while waiting:
        node = waiting.pop()
        if node in seen:
            continue
        seen.add(node)
        variable = getattr(node, "variable", None)
        if isinstance(variable, nn.Parameter):
            return variable
        waiting.extend(one for one, _ in reversed(node.next_functions) if one is not None)
    return None


class DualAverageTopKLoss(OfElements):
    """The average top-k of the whole data set, through a learned threshold. See `average_top_k_dual`.

    Its one parameter, `threshold`, is trained with those of the model: pass ``criterion.parameters()`` to the optimiser
    too, and let its value settle before you judge. Where small batches make the top-k of a batch something else
    than that of the data set, this is the loss to take; in deep networks it is the harder one to train. A threshold
    that stays where it is while the model's weights move is warned of, once.

    Args:
        loss, level, nan_policy, process_group: See `OfElements`. The threshold gets its whole gradient in each process.
        fraction: Share of the data that is averaged, 0 < fraction <= 1.
        smoothing: Width of the rounded corner, in the unit of the losses, >= 0 (ST_k).
        threshold: Where it starts, in the unit of the losses.

    Example:
        >>> criterion = DualAverageTopKLoss(nn.L1Loss(reduction="none"), fraction=0.5, threshold=2.0)
        >>> criterion(torch.tensor([1.0, 2.0, 3.0, 9.0]), torch.zeros(4))
        tensor(6., grad_fn=<AddBackward0>)
    """

    def __init__(
        self,
        loss: IndividualLoss,
        *,
        fraction: float,
        smoothing: float = 0.0,
        threshold: float = 0.0,
        level: Level = "element",
        nan_policy: NanPolicy = "propagate",
        process_group: ProcessGroup | None = None,
    ) -> None:
        super().__init__(loss, level=level, nan_policy=nan_policy, process_group=process_group)
        check_k(None, fraction)
        check_smoothing(smoothing)
        self.fraction = fraction
        self.smoothing = smoothing
        self.threshold = nn.Parameter(torch.tensor(float(real_number("threshold", threshold))))
        self._watch = ThresholdWatch()

    def elements(self, outputs: Tensor, targets: Tensor, **given: Any) -> Elements:
        """What is ranked; see `OfElements.elements`."""
        self._watch.see(outputs, self.threshold)
        return super().elements(outputs, targets, **given)

    def forward(
        self, outputs: Tensor, targets: Tensor, *, mask: Tensor | None = None, sample_weight: Tensor | None = None
    ) -> Tensor:
        """The value at the threshold of now; see `Criterion.forward`."""
        elements = partial(self.elements, outputs, targets, mask=mask, sample_weight=sample_weight)
        (losses, *_), ranking = self._rank_by_torch(elements, "forward")
        return seen_from(ranking, losses, self.threshold, self.fraction, self.smoothing)

    def select(
        self,
        outputs: Tensor,
        targets: Tensor,
        *,
        mask: Tensor | None = None,
        sample_weight: Tensor | None = None,
        scale: float = 1.0,
    ) -> Selection:
        """What lies above the threshold in this batch; see `Criterion.select`.

        Returns:
            A `Selection`: `threshold` is the learned one, and `weights` are the gradient of `value` in the losses,
            whose sum comes to 1 as the threshold settles; with `smoothing` none of them is 0, so all are `kept`.
        """
        elements = partial(self.elements, outputs, targets, mask=mask, sample_weight=sample_weight, scale=scale)
        return self._selection(elements)

    def select_elements(self, elements: Elements) -> Selection:
        """See `Criterion.select_elements`."""
        return self._selection(lambda: elements)

    def _selection(self, elements: Callable[[], Elements]) -> Selection:
        (losses, *_), ranking = self._rank_by_torch(elements, "select")
        threshold = self.threshold.detach()
        weights = weights_from(ranking, losses.detach(), threshold, self.fraction, self.smoothing)
        return Selection(
            value=seen_from(ranking, losses, self.threshold, self.fraction, self.smoothing),
            average=ranking.dot(ranking.even(), losses.detach()),
            threshold=threshold.to(ranking.dtype),
            omitted=ranking.omitted,
            _weights=TensorWeights(weights, threshold),
            _rankings=ranking,
            _versions=versions_now(ranking),
        )

    def _rank_by_torch(self, elements: Callable[[], Elements], method: str) -> tuple[Elements, TensorRanking]:
        """The elements, and what counts of them: here, or on all processes."""
        ranks = ranks_of(self.process_group)
        if ranks is not None:
            return self._rank_together(lambda: (elements(), None), ranks, method)
        made = elements()
        return made, self._rank_alone(made, None)
