"""Criteria made of criteria: a weighted sum of several, and one at several scales."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from topkloss.base.arguments import check_beside, check_weights_of_parts
from topkloss.base.processes import ranks_of
from topkloss.criteria.criterion import Criterion, OfElements

__all__ = ["CompoundLoss", "DeepSupervisionLoss"]


class CompoundLoss(nn.Module):
    r"""A weighted sum of criteria on the same outputs: mined cross-entropy and full Dice, say.

    .. math:: \sum_j a_j\, \mathrm{criterion}_j(\mathrm{outputs}, \mathrm{targets})

    Args:
        criteria: What is summed, criteria or sums of such; each selects by its own rule.
        weights: :math:`a_j`, one per criterion, finite and >= 0. Default: 1 each. One of weight 0 is not computed.

    Raises:
        TypeError: If a criterion is none of topkloss: of a plain loss, take ``AverageTopKLoss(loss, fraction=1)``.
        ValueError: If the weights do not fit the criteria, or none is above 0.

    Example:
        >>> from topkloss import AverageTopKCrossEntropyLoss, AverageTopKLoss, RegionLoss
        >>> from topkloss.losses import dice_loss
        >>> mined, dice = AverageTopKCrossEntropyLoss(fraction=0.1), AverageTopKLoss(RegionLoss(dice_loss), fraction=1)
        >>> criterion = CompoundLoss([mined, dice], weights=[1.0, 0.5])
        >>> outputs, targets = torch.zeros(1, 2, 4), torch.tensor([[0, 0, 0, 1]])
        >>> criterion(outputs, targets)
        tensor(0.9598)

    Cost: that of its parts.
    Reference: the sum of Dice and mined cross-entropy is that of nnU-Net's `DC_and_topk_loss`.
    """

    def __init__(
        self, criteria: Sequence[OfElements | CompoundLoss], *, weights: Sequence[float] | None = None
    ) -> None:
        super().__init__()
        self.weights = [1.0] * len(criteria) if weights is None else [float(weight) for weight in weights]
        check_weights_of_parts("criteria", len(criteria), self.weights)
        for one in criteria:
            _check_criterion("criteria", one)
        self.criteria = nn.ModuleList(criteria)

    def forward(self, outputs: Tensor, targets: Tensor, *, mask: Tensor | None = None) -> Tensor:
        """The sum.

        Args:
            outputs, targets: What each criterion takes.
            mask: Bool, shaped like the targets; True = counts.
        """
        return self.total(self.select(outputs, targets, mask=mask))

    def select(self, outputs: Tensor, targets: Tensor, *, mask: Tensor | None = None, scale: float = 1.0) -> list[Any]:
        """What each criterion selected, in their order: its own `Selection`; None where the weight is 0.

        Args:
            outputs, targets, mask: See `forward`.
            scale: See `Criterion.elements`.
        """
        return [part and part.select(outputs, targets, mask=mask, scale=scale) for part in self._computed()]

    def elements(
        self, outputs: Tensor, targets: Tensor, *, mask: Tensor | None = None, scale: float = 1.0
    ) -> list[Any]:
        """What each criterion ranks, in their order; see `Criterion.elements`."""
        return [part and part.elements(outputs, targets, mask=mask, scale=scale) for part in self._computed()]

    def select_elements(self, elements: Sequence[Any]) -> list[Any]:
        """What each criterion selects of what `elements` returned."""
        return [part and part.select_elements(own) for part, own in zip(self._computed(), elements, strict=True)]

    def total(self, selections: Sequence[Any]) -> Tensor:
        """The sum, of what `select` returned: to call ``backward()`` on, at no second pass."""
        parts = zip(self.weights, self.criteria, selections, strict=True)
        return sum_of([(weight, cast(Criterion, part).total(one)) for weight, part, one in parts if weight > 0])

    def _computed(self) -> list[Any]:
        """The criteria, None where the weight is 0."""
        return [part if weight > 0 else None for weight, part in zip(self.weights, self.criteria, strict=True)]

    def extra_repr(self) -> str:
        """Parameters as they were given."""
        return f"weights={self.weights}"


class DeepSupervisionLoss(nn.Module):
    r"""One criterion on outputs of several scales: their weighted mean, each scale ranked by itself.

    .. math:: \frac{\sum_j a_j\, \mathrm{criterion}(\mathrm{outputs}_j, \mathrm{targets}_j)}{\sum_j a_j}

    A `fraction` is the same at every scale. What is asked as a count (`k`, `drop`, `min_kept`) is meant at the first
    scale, the finest, and shrinks with the number of pixels. Targets are taken at the nearest pixel, so what is ignored
    stays ignored.

    Args:
        criterion: A criterion of pixels or regions, or a sum of such.
        weights: :math:`a_j`, one per scale, finite and >= 0. A scale of weight 0 is not computed.

    Raises:
        TypeError: If the criterion is none of topkloss.
        ValueError: If the weights do not fit the outputs, or none is above 0.

    Example:
        >>> from topkloss import AverageTopKCrossEntropyLoss
        >>> criterion = DeepSupervisionLoss(AverageTopKCrossEntropyLoss(fraction=0.5), weights=[1.0, 0.5, 0.0])
        >>> outputs = [torch.zeros(1, 2, side, side) for side in (4, 2, 1)]
        >>> criterion(outputs, torch.zeros(1, 4, 4, dtype=torch.long))
        tensor(0.6931)

    Cost: that of the criterion at each scale.
    Reference: Lee et al. Deeply-Supervised Nets. AISTATS 2015.
    """

    def __init__(self, criterion: OfElements | CompoundLoss, *, weights: Sequence[float]) -> None:
        super().__init__()
        self.weights = [float(weight) for weight in weights]
        check_weights_of_parts("weights", len(self.weights), self.weights)
        _check_criterion("criterion", criterion)
        self.criterion = criterion

    def forward(self, outputs: Sequence[Tensor], targets: Tensor, *, mask: Tensor | None = None) -> Tensor:
        """The weighted mean.

        Args:
            outputs: One tensor per scale, the finest first, shape (N, C, d1, ...) each.
            targets: Class indices at any scale, shape (N, D1, ...), any integer type.
            mask: Bool, shaped like `targets`; True = counts.
        """
        return self.total(self.select(outputs, targets, mask=mask))

    def select(self, outputs: Sequence[Tensor], targets: Tensor, *, mask: Tensor | None = None) -> list[Any]:
        """What the criterion selected at each scale; None where the weight is 0."""
        ranks = ranks_of(parts_of(self)[0].process_group)
        scales = partial(self._scales, outputs, targets, mask)
        every = scales() if ranks is None else ranks.together(scales, lambda own: f"{len(own)} scales")
        return [given and cast(Criterion, self.criterion).select(**given) for given in every]

    def elements(self, outputs: Sequence[Tensor], targets: Tensor, *, mask: Tensor | None = None) -> list[Any]:
        """What the criterion ranks at each scale; see `Criterion.elements`."""
        return [
            given and cast(Criterion, self.criterion).elements(**given)
            for given in self._scales(outputs, targets, mask)
        ]

    def select_elements(self, elements: Sequence[Any]) -> list[Any]:
        """What the criterion selects at each scale of what `elements` returned."""
        return [own and cast(Criterion, self.criterion).select_elements(own) for own in elements]

    def total(self, selections: Sequence[Any]) -> Tensor:
        """The weighted mean, of what `select` returned: to call ``backward()`` on, at no second pass."""
        parts = zip(self.weights, selections, strict=True)
        return sum_of([(weight, self.criterion.total(one)) for weight, one in parts if weight > 0]) / sum(self.weights)

    def _scales(self, outputs: Sequence[Tensor], targets: Tensor, mask: Tensor | None) -> list[dict[str, Any] | None]:
        """What the criterion is given at each scale, None where the weight is 0."""
        check_weights_of_parts("outputs", len(outputs), self.weights)
        check_beside("targets", targets, mask=mask)
        finest = max(math.prod(outputs[0].shape[2:]), 1)

        def given(scale: Tensor) -> dict[str, Any]:
            own_mask = None if mask is None else _at_scale(mask, scale)
            relative = math.prod(scale.shape[2:]) / finest
            return {"outputs": scale, "targets": _at_scale(targets, scale), "mask": own_mask, "scale": relative}

        return [given(scale) if weight > 0 else None for weight, scale in zip(self.weights, outputs, strict=True)]

    def extra_repr(self) -> str:
        """Parameters as they were given."""
        return f"weights={self.weights}"


def _check_criterion(name: str, criterion: object) -> None:
    """What can select and be summed."""
    if not isinstance(criterion, OfElements | CompoundLoss):
        raise TypeError(
            f"`{name}` must be of topkloss, like AverageTopKLoss; got {type(criterion).__name__}. For the plain mean "
            "of a loss that is not reduced pass AverageTopKLoss(loss, fraction=1)."
        )


def parts_of(criterion: OfElements | CompoundLoss | DeepSupervisionLoss) -> list[OfElements]:
    """The criteria that are computed: itself, or those of a sum whose weight is above 0."""
    if isinstance(criterion, CompoundLoss):
        return [part for one in criterion._computed() if one is not None for part in parts_of(one)]
    if isinstance(criterion, DeepSupervisionLoss):
        return parts_of(criterion.criterion)
    return [criterion]


def sum_of(parts: Sequence[tuple[float, Tensor]]) -> Tensor:
    """The weighted sum."""
    return torch.stack([weight * value for weight, value in parts]).sum()


def _at_scale(values: Tensor, outputs: Tensor) -> Tensor:
    """The values at the pixels of the outputs, its last dimensions, each from the nearest; exact for any type."""
    for dim, size in enumerate(outputs.shape[2:], start=values.dim() - outputs.dim() + 2):
        positions = torch.arange(size, device=values.device)
        values = values.index_select(dim, (2 * positions + 1) * values.shape[dim] // (2 * size))
    return values
