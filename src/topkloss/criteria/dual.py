"""The criterion of the dual form: the average top-k of the data set, through a learned threshold."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from topkloss.aggregates.dual import seen_from, weights_from
from topkloss.base.arguments import NanPolicy, check_k, check_smoothing, real_number
from topkloss.base.processes import ProcessGroup, ranks_of
from topkloss.criteria.criterion import Level, OfElements
from topkloss.losses.elements import Elements, IndividualLoss
from topkloss.ranking.selection import Selection, versions_now
from topkloss.ranking.tensor_ranking import TensorRanking, TensorWeights

__all__ = ["DualAverageTopKLoss"]


class DualAverageTopKLoss(OfElements):
    """The average top-k of the whole data set, through a learned threshold. See `average_top_k_dual`.

    Its one parameter, `threshold`, is trained with those of the model: pass ``criterion.parameters()`` to the optimiser
    too, and let its value settle before you judge. Where small batches make the top-k of a batch something else
    than that of the data set, this is the loss to take; in deep networks it is the harder one to train.

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
