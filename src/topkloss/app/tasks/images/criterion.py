"""From the words of the command to a criterion of the core, in one table; and the focal loss, for comparison."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from topkloss.app.options.option import known
from topkloss.app.tasks.images.config import TrainConfig
from topkloss.base.processes import WORLD
from topkloss.criteria.average import AverageRankedRangeLoss, AverageTopKLoss
from topkloss.criteria.criterion import Criterion
from topkloss.criteria.cross_entropy import AverageTopKCrossEntropyLoss
from topkloss.criteria.mining import OHEMLoss
from topkloss.losses.elements import CrossEntropy, Elements

__all__ = ["CRITERIA", "FocalCrossEntropy", "create_criterion", "weights_of_classes"]


class FocalCrossEntropy(CrossEntropy):
    r"""Cross-entropy times :math:`(1 - p)^\gamma`, p the probability of the right class: easy images count less.

    torchvision has it for independent labels only. Class weights are mass, as everywhere here.

    Args:
        gamma: Exponent, >= 0; 0 is the cross-entropy.

    Example:
        >>> FocalCrossEntropy(gamma=2.0)(torch.zeros(1, 2), torch.tensor([0])).losses  # log(2) / 4
        tensor([0.1733])

    Reference: Lin et al. Focal Loss for Dense Object Detection. ICCV 2017, equation 4.
    """

    def __init__(self, *, gamma: float, weight: Tensor | None = None) -> None:
        super().__init__(weight=weight)
        self.gamma = gamma

    def forward(
        self, outputs: Tensor, targets: Tensor, *, mask: Tensor | None = None, sample_weight: Tensor | None = None
    ) -> Elements:
        """See `CrossEntropy.forward`."""
        elements = super().forward(outputs, targets, mask=mask, sample_weight=sample_weight)
        # 1 - p; bounded, for the slope of a power below 1 is infinite at 0
        wrong = (-torch.expm1(-elements.losses)).clamp(min=torch.finfo(elements.losses.dtype).tiny)
        return elements._replace(losses=elements.losses * wrong**self.gamma)


def _top_k(config: TrainConfig, given: dict[str, Any]) -> Criterion:
    return AverageTopKCrossEntropyLoss(fraction=config.share, process_group=WORLD, **given)


def _ranked_range(config: TrainConfig, given: dict[str, Any]) -> Criterion:
    return AverageRankedRangeLoss(
        CrossEntropy(**given), fraction=config.share, drop_fraction=config.drop_fraction, process_group=WORLD
    )


def _ohem(config: TrainConfig, given: dict[str, Any]) -> Criterion:
    return OHEMLoss(
        CrossEntropy(**given),
        threshold=known(config.threshold, "threshold"),
        min_fraction=config.fraction,
        process_group=WORLD,
    )


def _focal(config: TrainConfig, given: dict[str, Any]) -> Criterion:
    loss = FocalCrossEntropy(gamma=known(config.focal_gamma, "focal-gamma"), weight=given["weight"])
    return AverageTopKLoss(loss, fraction=1.0, process_group=WORLD)


CRITERIA: dict[str, Callable[[TrainConfig, dict[str, Any]], Criterion]] = {
    "average": _top_k,
    "top-k": _top_k,
    "ranked-range": _ranked_range,
    "ohem": _ohem,
    "focal": _focal,
}


def create_criterion(config: TrainConfig, counts: Sequence[int]) -> Criterion:
    """The criterion of a checked config: it ranks the batches of all processes together.

    Args:
        config: From `checked`.
        counts: Number of training images of each class.
    """
    weight = weights_of_classes(counts) if config.class_weights == "balanced" else None
    return CRITERIA[config.loss](config, {"weight": weight, "label_smoothing": config.label_smoothing})


def weights_of_classes(counts: Sequence[int]) -> Tensor:
    """N / (C n) for a class of n among N images of C classes: scikit-learn's "balanced".

    Example:
        >>> weights_of_classes([1, 3])
        tensor([2.0000, 0.6667])
    """
    numbers = torch.tensor(counts, dtype=torch.float64)
    return (numbers.sum() / (len(counts) * numbers)).float()
