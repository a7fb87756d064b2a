"""Criteria: ``nn.Module`` = individual loss, then aggregate. They hold parameters and call functions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from topkloss.aggregate import average_ranked_range, average_top_k
from topkloss.arguments import (
    NanPolicy,
    check_beside,
    check_drop,
    check_k,
    check_nan_policy,
    check_tensors,
    real_number,
)
from topkloss.losses import check_logits, cross_entropy
from topkloss.tensors import computing_dtype

__all__ = ["AverageRankedRangeLoss", "AverageTopKCrossEntropyLoss", "AverageTopKLoss"]

Level = Literal["element", "sample"]


class AverageTopKLoss(nn.Module):
    """The average top-k of any loss that returns one number per element. See `average_top_k`.

    Args:
        loss: Called as ``loss(outputs, targets)``; returns one number per element, not reduced: for a torch
            loss, ``nn.L1Loss(reduction="none")``. It sees masked elements too: outputs there must be finite and
            targets legal.
        k: Mass of the elements averaged, k > 0, real.
        fraction: `k` as a share of the counted mass, 0 < fraction <= 1. Exactly one of the two.
        level: What is ranked: "element", each loss by itself, or "sample", the mean of each sample's counted
            losses (the first dimension is the batch).
        nan_policy: See `topk_weights`.

    Example:
        >>> criterion = AverageTopKLoss(nn.L1Loss(reduction="none"), fraction=0.5)
        >>> criterion(torch.tensor([1.0, 2.0, 3.0, 9.0]), torch.zeros(4))
        tensor(6.)
    """

    def __init__(
        self,
        loss: Callable[[Tensor, Tensor], Tensor],
        *,
        k: float | None = None,
        fraction: float | None = None,
        level: Level = "element",
        nan_policy: NanPolicy = "propagate",
    ) -> None:
        super().__init__()
        check_k(k, fraction)
        _check_level(level)
        check_nan_policy(nan_policy)
        self.loss = loss
        self.k = k
        self.fraction = fraction
        self.level = level
        self.nan_policy: NanPolicy = nan_policy

    def forward(
        self,
        outputs: Tensor,
        targets: Tensor,
        *,
        mask: Tensor | None = None,
        sample_weight: Tensor | None = None,
        scores: Tensor | None = None,
    ) -> Tensor:
        """The aggregate of this batch.

        Args:
            outputs: What the loss takes.
            targets: What the loss takes.
            mask: Bool, shaped like the losses; True = counts.
            sample_weight: Mass of what is ranked: shaped like the losses, or (N,) for ``level="sample"``.
            scores: What to rank by instead of the losses; shaped like `sample_weight`.

        Returns:
            See `average_top_k`.
        """
        losses, mask = _ranked(self.loss(outputs, targets), mask, self.level)
        return average_top_k(
            losses,
            k=self.k,
            fraction=self.fraction,
            mask=mask,
            sample_weight=sample_weight,
            scores=scores,
            nan_policy=self.nan_policy,
        )

    def extra_repr(self) -> str:
        """Parameters as they were given."""
        return _describe(k=self.k, fraction=self.fraction, level=self.level)


class AverageRankedRangeLoss(nn.Module):
    """The average of a ranked range of any per-element loss: hard, but not outliers. See `average_ranked_range`.

    Args:
        loss: See `AverageTopKLoss`.
        k: Mass of the elements averaged after dropping, k > 0, real.
        fraction: `k` as a share of the counted mass, 0 < fraction <= 1. Exactly one of the two.
        drop: Mass of the largest left out first, >= 0, real.
        drop_fraction: `drop` as a share of the counted mass, 0 <= drop_fraction < 1. Exactly one of the two.
        level: See `AverageTopKLoss`.
        nan_policy: See `topk_weights`.

    Example:
        >>> criterion = AverageRankedRangeLoss(nn.L1Loss(reduction="none"), k=2, drop=1)
        >>> criterion(torch.tensor([1.0, 2.0, 3.0, 900.0]), torch.zeros(4))
        tensor(2.5000)
    """

    def __init__(
        self,
        loss: Callable[[Tensor, Tensor], Tensor],
        *,
        k: float | None = None,
        fraction: float | None = None,
        drop: float | None = None,
        drop_fraction: float | None = None,
        level: Level = "element",
        nan_policy: NanPolicy = "propagate",
    ) -> None:
        super().__init__()
        check_k(k, fraction)
        check_drop(drop, drop_fraction, required=True)
        _check_level(level)
        check_nan_policy(nan_policy)
        self.loss = loss
        self.k = k
        self.fraction = fraction
        self.drop = drop
        self.drop_fraction = drop_fraction
        self.level = level
        self.nan_policy: NanPolicy = nan_policy

    def forward(
        self,
        outputs: Tensor,
        targets: Tensor,
        *,
        mask: Tensor | None = None,
        sample_weight: Tensor | None = None,
        scores: Tensor | None = None,
    ) -> Tensor:
        """The aggregate of this batch; see `AverageTopKLoss.forward`."""
        losses, mask = _ranked(self.loss(outputs, targets), mask, self.level)
        return average_ranked_range(
            losses,
            k=self.k,
            fraction=self.fraction,
            drop=self.drop,
            drop_fraction=self.drop_fraction,
            mask=mask,
            sample_weight=sample_weight,
            scores=scores,
            nan_policy=self.nan_policy,
        )

    def extra_repr(self) -> str:
        """Parameters as they were given."""
        return _describe(
            k=self.k, fraction=self.fraction, drop=self.drop, drop_fraction=self.drop_fraction, level=self.level
        )


class AverageTopKCrossEntropyLoss(nn.Module):
    """Cross-entropy of the hardest elements, in the place of ``nn.CrossEntropyLoss``. See `average_top_k`.

    At ``fraction=1`` it *is* ``nn.CrossEntropyLoss``: class weights and label smoothing included (but for classes of
    weight 0 under smoothing: torch adds the smoothed part of elements that it does not count). The ranking is by
    the unweighted, unsmoothed loss, since mining elements is not mining classes, and smoothing makes
    confidently right elements look hard; a class weight is the mass of the elements of that class, so `k` and
    `fraction` count it. An element that is ignored, or whose class has weight 0, is not counted at all.

    Args:
        k: Mass of the elements averaged, k > 0, real.
        fraction: `k` as a share of the counted mass, 0 < fraction <= 1. Exactly one of the two.
        weight: Class weights, shape (C,), finite and >= 0. Default: 1 each.
        ignore_index: Target of the elements to leave out; it need not be a legal class.
        label_smoothing: Share of the target spread evenly over the classes, in [0, 1].
        nan_policy: See `topk_weights`.

    Example:
        >>> criterion = AverageTopKCrossEntropyLoss(fraction=0.5)
        >>> outputs = torch.tensor([[3.0, 0.0], [0.0, 0.0], [0.0, 2.0], [0.0, 9.0]])
        >>> criterion(outputs, torch.tensor([0, 0, 0, -100]))  # 1.5 of the 3 labelled ones
        tensor(1.6490)
    """

    weight: Tensor | None

    def __init__(
        self,
        *,
        k: float | None = None,
        fraction: float | None = None,
        weight: Tensor | None = None,
        ignore_index: int = -100,
        label_smoothing: float = 0.0,
        nan_policy: NanPolicy = "propagate",
    ) -> None:
        super().__init__()
        check_k(k, fraction)
        if not 0 <= real_number("label_smoothing", label_smoothing) <= 1:
            raise ValueError(
                f"`label_smoothing` must satisfy 0 <= label_smoothing <= 1; got {label_smoothing}. "
                "A common choice is label_smoothing=0.1."
            )
        _check_class_weights(weight)
        check_nan_policy(nan_policy)
        self.register_buffer("weight", weight)
        self.k = k
        self.fraction = fraction
        self.ignore_index = ignore_index
        self.label_smoothing = label_smoothing
        self.nan_policy: NanPolicy = nan_policy

    def forward(
        self,
        outputs: Tensor,
        targets: Tensor,
        *,
        mask: Tensor | None = None,
        sample_weight: Tensor | None = None,
    ) -> Tensor:
        """The aggregate of this batch.

        Args:
            outputs: Logits, shape (N, C) or (N, C, d1, ...).
            targets: Class indices, shape (N,) or (N, d1, ...), any integer type.
            mask: Bool, shaped like `targets`; True = counts. Combined with `ignore_index`.
            sample_weight: Mass of each element, shaped like `targets`; multiplied with its class weight.

        Returns:
            See `average_top_k`.
        """
        check_logits(outputs, targets, self.weight)
        check_beside("targets", targets, mask=mask, sample_weight=sample_weight)
        targets = targets.long()  # in uint8, -100 would be the class 156
        counts = targets != self.ignore_index
        if mask is not None:
            counts = counts & mask
        mass = sample_weight
        if self.weight is not None:
            own = self._class_mass(targets)
            mass = own if mass is None else own * mass
        if mass is not None:
            counts = counts & (mass != 0)  # here already: the loss must not see what does not count
        losses, scores = cross_entropy(
            outputs, targets, mask=counts, weight=self.weight, label_smoothing=self.label_smoothing
        )
        return average_top_k(
            losses,
            k=self.k,
            fraction=self.fraction,
            mask=counts,
            sample_weight=mass,
            scores=scores,
            nan_policy=self.nan_policy,
        )

    def _class_mass(self, targets: Tensor) -> Tensor:
        """The class weight of each target, float64; 1 where the target is no class, which the loss then reports."""
        assert self.weight is not None
        legal = (targets >= 0) & (targets < self.weight.numel())
        return torch.where(legal, self.weight.detach().double()[targets.masked_fill(~legal, 0)], 1)

    def extra_repr(self) -> str:
        """Parameters as they were given."""
        return _describe(
            k=self.k,
            fraction=self.fraction,
            weight=None if self.weight is None else tuple(self.weight.shape),
            ignore_index=self.ignore_index,
            label_smoothing=self.label_smoothing,
        )


def _ranked(losses: Tensor, mask: Tensor | None, level: Level) -> tuple[Tensor, Tensor | None]:
    """What is ranked at this level, and which of it counts."""
    if level == "element":
        return losses, mask
    check_tensors(losses, mask=mask, sample_weight=None)
    losses = (losses.flatten(1) if losses.dim() > 1 else losses.unsqueeze(1)).to(computing_dtype(losses))
    mask = torch.ones_like(losses, dtype=torch.bool) if mask is None else mask.reshape(losses.shape)
    number = mask.sum(dim=1)
    return losses.masked_fill(~mask, 0).sum(dim=1) / number.clamp(min=1), number > 0


def _check_level(level: str) -> None:
    if level not in ("element", "sample"):
        raise ValueError(f'`level` must be "element" or "sample"; got {level!r}. To rank single losses pass "element".')


def _check_class_weights(weight: Tensor | None) -> None:
    if weight is None:
        return
    if not isinstance(weight, Tensor):
        raise TypeError(
            f"`weight` must be a tensor of class weights; got {type(weight).__name__}. Pass torch.tensor(weight)."
        )
    if weight.dim() != 1 or not bool(((weight >= 0) & weight.isfinite()).all()):
        raise ValueError(
            f"`weight` must be one finite number >= 0 per class, shape (C,); got {weight.tolist()}. "
            "To weigh elements rather than classes pass `sample_weight` to the call."
        )


def _describe(**parameters: object) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in parameters.items() if value is not None)
