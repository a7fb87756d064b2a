"""Criteria made of criteria: a weighted sum of several, and one at several scales."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from topkloss.base.arguments import check_beside, check_weights_of_parts
from topkloss.base.processes import ProcessGroup, ranks_of
from topkloss.criteria.criterion import OfElements
from topkloss.criteria.parts import Selections, Sum, WholeLoss, computed, in_order, part_of_sum, total_of

__all__ = ["CompoundLoss", "DeepSupervisionLoss"]

Part: TypeAlias = "OfElements | CompoundLoss | Callable[..., Tensor]"


class CompoundLoss(Sum):
    r"""A weighted sum of criteria on the same outputs: mined cross-entropy and full Dice, say.

    .. math:: \sum_j a_j\, \mathrm{criterion}_j(\mathrm{outputs}, \mathrm{targets})

    Args:
        criteria: What is summed: criteria or sums of such, each selecting by its own rule; or any module or function
            that is called as ``loss(outputs, targets)`` and returns one number, of this process's batch.
        weights: :math:`a_j`, one per criterion, finite and >= 0. Default: 1 each. One of weight 0 is not computed.

    Raises:
        TypeError: If a loss is not reduced: of such a one, take ``AverageTopKLoss(loss, fraction=1)``. When called, if
            a mask is given and a loss of others has no argument ``mask``.
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

    def __init__(self, criteria: Sequence[Part], *, weights: Sequence[float] | None = None) -> None:
        super().__init__()
        self.weights = [1.0] * len(criteria) if weights is None else [float(weight) for weight in weights]
        check_weights_of_parts("criteria", len(criteria), self.weights)
        self.criteria = nn.ModuleList(part_of_sum("criteria", one) for one in criteria)

    def forward(self, outputs: Tensor, targets: Tensor, *, mask: Tensor | None = None) -> Tensor:
        """The sum.

        Args:
            outputs, targets: What each criterion takes.
            mask: Bool, shaped like the targets; True = counts.
        """
        return self.total(self.select(outputs, targets, mask=mask))

    def select(self, outputs: Tensor, targets: Tensor, *, mask: Tensor | None = None, scale: float = 1.0) -> Selections:
        """What each criterion selected, in their order: its own `Selection`.

        Of a loss that returns one number it is None, and the list keeps the number for `total`; where the weight is 0,
        None.

        Args:
            outputs, targets, mask: See `forward`.
            scale: See `Criterion.elements`.
        """
        given: dict[str, Any] = {"mask": mask, "scale": scale}
        return Selections(part and part.select(outputs, targets, **given) for part in self._computed())

    def elements(
        self, outputs: Tensor, targets: Tensor, *, mask: Tensor | None = None, scale: float = 1.0
    ) -> list[Any]:
        """What each criterion ranks, in their order; see `Criterion.elements`. One number where it is no more."""
        return [part and part.elements(outputs, targets, mask=mask, scale=scale) for part in self._computed()]

    def select_elements(self, elements: Sequence[Any]) -> Selections:
        """What each criterion selects of what `elements` returned."""
        return Selections(
            part and part.select_elements(own) for part, own in zip(self._computed(), elements, strict=True)
        )

    def total(self, selections: Sequence[Any]) -> Tensor:
        """The sum, of what `select` returned: to call ``backward()`` on, at no second pass."""
        return total_of(self.weights, self.criteria, selections)

    def _computed(self) -> list[Any]:
        """The criteria, None where the weight is 0."""
        return computed(self.weights, self.criteria)

    def extra_repr(self) -> str:
        """Parameters as they were given."""
        return f"weights={self.weights}"


class DeepSupervisionLoss(nn.Module):
    r"""One criterion on outputs of several scales: their weighted mean, each scale ranked by itself.

    .. math:: \frac{\sum_j a_j\, \mathrm{criterion}(\mathrm{outputs}_j, \mathrm{targets}_j)}{\sum_j a_j}

    A `fraction` is the same at every scale. What is asked as a count (`k`, `drop`, `min_kept`) is meant at the first
    scale, the finest, and shrinks with the number of pixels. Targets are taken at the nearest pixel, so what is ignored
    stays ignored; or they are given for each scale, and used as they are.

    Args:
        criterion: A criterion of pixels or regions, a sum of such, or a loss that returns one number.
        weights: :math:`a_j`, one per scale, finite and >= 0; by name where the outputs are, as torchvision's "out" and
            "aux". A scale of weight 0 is not computed.

    Raises:
        TypeError: If the criterion is a loss that is not reduced; when called, if the outputs are one tensor.
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

    def __init__(self, criterion: Part, *, weights: Sequence[float] | Mapping[str, float]) -> None:
        super().__init__()
        self.names = list(weights) if isinstance(weights, Mapping) else None
        self.weights = [float(one) for one in (weights.values() if isinstance(weights, Mapping) else weights)]
        check_weights_of_parts("weights", len(self.weights), self.weights)
        self.criterion = part_of_sum("criterion", criterion)

    def forward(self, outputs: Any, targets: Any, *, mask: Any = None) -> Tensor:
        """The weighted mean.

        Args:
            outputs: One tensor per scale, the finest first, shape (N, C, d1, ...) each: a list, or a dict by name, in
                the order of the weights where those have no names.
            targets: Class indices at any scale, shape (N, D1, ...) or (N, 1, D1, ...), any integer type; or one such
                tensor per scale, in a list or by name as the outputs are, each used as it is.
            mask: Bool, shaped like `targets`; True = counts. One tensor, or one per scale.
        """
        return self.total(self.select(outputs, targets, mask=mask))

    def select(self, outputs: Any, targets: Any, *, mask: Any = None) -> Selections:
        """What the criterion selected at each scale, in the order of the weights; see `CompoundLoss.select`."""
        ranks = ranks_of(group_of(self))
        scales = partial(self._scales, outputs, targets, mask)
        every = scales() if ranks is None else ranks.together(scales, lambda own: f"{len(own)} scales")
        return Selections(given and self.criterion.select(**given) for given in every)

    def elements(self, outputs: Any, targets: Any, *, mask: Any = None) -> list[Any]:
        """What the criterion ranks at each scale; see `Criterion.elements`."""
        return [given and self.criterion.elements(**given) for given in self._scales(outputs, targets, mask)]

    def select_elements(self, elements: Sequence[Any]) -> Selections:
        """What the criterion selects at each scale of what `elements` returned."""
        return Selections(None if own is None else self.criterion.select_elements(own) for own in elements)

    def total(self, selections: Sequence[Any]) -> Tensor:
        """The weighted mean, of what `select` returned: to call ``backward()`` on, at no second pass."""
        return total_of(self.weights, [self.criterion] * len(self.weights), selections) / sum(self.weights)

    def _scales(self, outputs: Any, targets: Any, mask: Any) -> list[dict[str, Any] | None]:
        """What the criterion is given at each scale, None where the weight is 0."""
        every = in_order("outputs", outputs, self.names)
        check_weights_of_parts("outputs", len(every), self.weights)
        for one in every:
            if not isinstance(one, Tensor):
                raise TypeError(
                    f"`outputs` must be one tensor per scale; got {type(one).__name__} among them. Pass the logits "
                    "alone."
                )
        if isinstance(targets, Tensor) and (mask is None or isinstance(mask, Tensor)):
            check_beside("targets", targets, mask=mask)
        finest = max(math.prod(every[0].shape[2:]), 1)
        rows = zip(every, self._each("targets", targets, every), self._each("mask", mask, every), strict=True)
        given = [
            {"outputs": scale, "targets": own, "mask": beside, "scale": math.prod(scale.shape[2:]) / finest}
            for scale, own, beside in rows
        ]
        return computed(self.weights, given)

    def _each(self, name: str, given: Any, outputs: list[Tensor]) -> list[Any]:
        """The targets or the mask of each scale."""
        if given is None:
            return [None] * len(outputs)
        if isinstance(given, Tensor):
            parts = zip(self.weights, outputs, strict=True)
            return [_at_scale(given, scale) if weight > 0 else None for weight, scale in parts]
        every = in_order(name, given, self.names)
        check_weights_of_parts(name, len(every), self.weights)
        return every

    def extra_repr(self) -> str:
        """Parameters as they were given."""
        return f"weights={self.weights if self.names is None else dict(zip(self.names, self.weights, strict=True))}"


def parts_of(criterion: Any) -> list[OfElements]:
    """The criteria that select and are computed: itself, or those of a sum whose weight is above 0."""
    return [one for one in _computed_by(criterion) if isinstance(one, OfElements)]


def wholes_of(criterion: Any) -> list[WholeLoss]:
    """The losses of one number that are computed."""
    return [one for one in _computed_by(criterion) if isinstance(one, WholeLoss)]


def group_of(criterion: Any) -> ProcessGroup | None:
    """The processes that its criteria rank with."""
    return next((one.process_group for one in parts_of(criterion)), None)


def _computed_by(criterion: Any) -> list[Any]:
    if isinstance(criterion, CompoundLoss):
        return [part for one in criterion._computed() if one is not None for part in _computed_by(one)]
    if isinstance(criterion, DeepSupervisionLoss):
        return _computed_by(criterion.criterion)
    return [criterion]


def _at_scale(values: Tensor, outputs: Tensor) -> Tensor:
    """The values at the pixels of the outputs, each from the nearest; exact for any integer type."""
    pixels = outputs.shape[2:]
    first = values.dim() - len(pixels)
    if first not in (1, 2):
        return values  # its shape is refused by the criterion
    for dim, size in enumerate(pixels, start=first):
        positions = torch.arange(size, device=values.device)
        values = values.index_select(dim, (2 * positions + 1) * values.shape[dim] // (2 * size))
    return values
