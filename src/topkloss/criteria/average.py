"""Criteria of a fixed fraction: the average top-k of any per-element loss, and the average of a ranked range."""

from __future__ import annotations

from topkloss.base.arguments import NanPolicy, check_drop, check_k
from topkloss.base.processes import ProcessGroup
from topkloss.criteria.criterion import Criterion, Level, Within
from topkloss.losses.elements import IndividualLoss, scaled
from topkloss.ranking.ranking import Rule
from topkloss.ranking.selection import top_k

__all__ = ["AverageRankedRangeLoss", "AverageTopKLoss"]


class AverageTopKLoss(Criterion):
    """The average top-k of any loss that returns one number per element. See `average_top_k`.

    Args:
        loss, level, within, nan_policy, process_group: See `Criterion`.
        k: Mass of the elements averaged, k > 0, real; of each sample or class, where `within` says so.
        fraction: `k` as a share of the counted mass, 0 < fraction <= 1. Exactly one of the two.

    Example:
        >>> criterion = AverageTopKLoss(nn.L1Loss(reduction="none"), fraction=0.5)
        >>> criterion(torch.tensor([1.0, 2.0, 3.0, 9.0]), torch.zeros(4))
        tensor(6.)
    """

    def __init__(
        self,
        loss: IndividualLoss | None,
        *,
        k: float | None = None,
        fraction: float | None = None,
        level: Level = "element",
        within: Within = "batch",
        nan_policy: NanPolicy = "propagate",
        process_group: ProcessGroup | None = None,
    ) -> None:
        super().__init__(loss, level=level, within=within, nan_policy=nan_policy, process_group=process_group)
        check_k(k, fraction)
        self.k = k
        self.fraction = fraction

    def _rule(self, scale: float) -> Rule:
        return top_k(scaled(self.k, scale), self.fraction)


class AverageRankedRangeLoss(Criterion):
    """The average of a ranked range of any per-element loss: hard, but not outliers. See `average_ranked_range`.

    Args:
        loss, level, within, nan_policy, process_group: See `Criterion`.
        k: Mass of the elements averaged after dropping, k > 0, real.
        fraction: `k` as a share of the counted mass, 0 < fraction <= 1. Exactly one of the two.
        drop: Mass of the largest left out first, >= 0, real.
        drop_fraction: `drop` as a share of the counted mass, 0 <= drop_fraction < 1. Exactly one of the two.

    Example:
        >>> criterion = AverageRankedRangeLoss(nn.L1Loss(reduction="none"), k=2, drop=1)
        >>> criterion(torch.tensor([1.0, 2.0, 3.0, 900.0]), torch.zeros(4))
        tensor(2.5000)
    """

    def __init__(
        self,
        loss: IndividualLoss,
        *,
        k: float | None = None,
        fraction: float | None = None,
        drop: float | None = None,
        drop_fraction: float | None = None,
        level: Level = "element",
        within: Within = "batch",
        nan_policy: NanPolicy = "propagate",
        process_group: ProcessGroup | None = None,
    ) -> None:
        super().__init__(loss, level=level, within=within, nan_policy=nan_policy, process_group=process_group)
        check_k(k, fraction)
        check_drop(drop, drop_fraction, required=True)
        self.k = k
        self.fraction = fraction
        self.drop = drop
        self.drop_fraction = drop_fraction

    def _rule(self, scale: float) -> Rule:
        return top_k(scaled(self.k, scale), self.fraction, scaled(self.drop, scale), self.drop_fraction)
