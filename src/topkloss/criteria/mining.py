"""Criteria of hard example mining in its older forms: above a threshold, and so many negatives per positive."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor

from topkloss.base.arguments import NanPolicy, check_floor, check_positives, check_ratio, check_reach
from topkloss.base.processes import ProcessGroup
from topkloss.criteria.criterion import Criterion, Level, Within
from topkloss.losses import regions
from topkloss.losses.elements import Elements, IndividualLoss, RegionLoss, scaled
from topkloss.ranking.ranking import Rule
from topkloss.ranking.selection import above, hard_negatives, loss_of, positives_first

__all__ = ["HardNegativeLoss", "OHEMLoss"]


class OHEMLoss(Criterion):
    """Online hard example mining by a threshold, with a floor, over any per-element loss. See `average_above`.

    Args:
        loss, level, nan_policy, process_group: See `OfElements`.
        within: See `Criterion`.
        threshold: Losses above it are kept, in the unit of the losses: nats for a cross-entropy.
        probability: p in (0, 1]: losses above -log p are kept, which are the elements whose right class has a
            probability below p, if the loss is a cross-entropy. Exactly one of the two.
        min_kept: Least mass that is kept, >= 0.
        min_fraction: `min_kept` as a share of the counted mass, 0 < min_fraction <= 1. At most one of the two.

    Raises:
        ValueError: Also if a threshold is known to keep nothing of its loss, or everything: a Dice loss is at most 1, a
            cross-entropy at least 0, and nothing is above infinity.

    Example:
        >>> from topkloss import CrossEntropy
        >>> criterion = OHEMLoss(CrossEntropy(ignore_index=255), probability=0.7, min_fraction=1 / 16)
        >>> criterion(torch.tensor([[4.0, 0.0], [0.0, 1.0], [0.0, 0.0]]), torch.tensor([0, 0, 255]))
        tensor(1.3133)
    """

    def __init__(
        self,
        loss: IndividualLoss,
        *,
        threshold: float | None = None,
        probability: float | None = None,
        min_kept: float | None = None,
        min_fraction: float | None = None,
        level: Level = "element",
        within: Within = "batch",
        nan_policy: NanPolicy = "propagate",
        process_group: ProcessGroup | None = None,
    ) -> None:
        super().__init__(loss, level=level, within=within, nan_policy=nan_policy, process_group=process_group)
        check_floor(threshold, probability, min_kept, min_fraction)
        has_floor = min_kept or min_fraction
        check_reach(loss_of(threshold, probability), probability, *self._range(), has_floor=bool(has_floor))
        self.threshold = threshold
        self.probability = probability
        self.min_kept = min_kept
        self.min_fraction = min_fraction

    def _rule(self, scale: float) -> Rule:
        return above(loss_of(self.threshold, self.probability), scaled(self.min_kept, scale), self.min_fraction)

    def _range(self) -> tuple[str, float, float]:
        """What is known of the loss: its name, the least and the most that it can be."""
        if self._of_cross_entropy():
            return "a cross-entropy", 0.0, math.inf
        if isinstance(self.loss, RegionLoss):
            name = getattr(getattr(self.loss.loss, "func", self.loss.loss), "__name__", "")
            if name in regions.__all__:
                return name, 0.0, 1.0
        return type(self.loss).__name__, -math.inf, math.inf


class HardNegativeLoss(Criterion):
    """All positives and the hardest negatives, so many for each, of any per-element loss: SSD's 3:1.

    See `average_hard_negatives`. A class index above 0 is a positive; 0 is the background. Within samples, an image
    without positives and without `min_negatives` counts as 0 in the mean over the images.

    Args:
        loss, nan_policy, process_group: See `OfElements`.
        within: See `Criterion`. SSD mines within each "sample".
        ratio: Negatives per positive, > 0, real.
        min_negatives: Least mass of negatives, >= 0, also where there is no positive.
        positives: Called as ``positives(targets)``; bool, shaped like the losses. Default: ``targets > 0``.

    Example:
        >>> from topkloss import CrossEntropy
        >>> criterion = HardNegativeLoss(CrossEntropy(), ratio=1, within="sample")
        >>> outputs = torch.tensor([[[0.0, 0.0, 1.0], [2.0, -3.0, 1.0]]])
        >>> criterion(outputs, torch.tensor([[1, 0, 0]]))
        tensor(0.4100)
    """

    def __init__(
        self,
        loss: IndividualLoss,
        *,
        ratio: float = 3.0,
        min_negatives: float = 0.0,
        positives: Callable[[Tensor], Tensor] | None = None,
        within: Within = "batch",
        nan_policy: NanPolicy = "propagate",
        process_group: ProcessGroup | None = None,
    ) -> None:
        super().__init__(loss, level="element", within=within, nan_policy=nan_policy, process_group=process_group)
        check_ratio(ratio, min_negatives)
        self.ratio = ratio
        self.min_negatives = min_negatives
        self.positives = positives

    def _scores(self, elements: Elements, targets: Tensor) -> Tensor:
        losses, classes = elements.losses, elements.classes
        if self.positives is not None:
            positives = self.positives(targets)
            if positives.dim() == losses.dim() + 1 and positives.shape[1] == 1:  # of classes with a channel
                positives = positives.squeeze(1)
        elif classes is None and self._of_cross_entropy():
            raise ValueError(
                "`positives` must be given beside targets that are probabilities; got none. "
                "Pass e.g. positives=lambda targets: targets[:, 0] < 0.5."
            )
        else:
            targets = targets if classes is None or classes.shape != losses.shape else classes
            positives = (targets if targets.is_floating_point() else targets.long()) > 0  # uint16 cannot be compared
        check_positives(losses, positives)
        return positives_first(elements.losses if elements.scores is None else elements.scores, positives)

    def _rule(self, scale: float) -> Rule:
        return hard_negatives(self.ratio, self.min_negatives * scale)
