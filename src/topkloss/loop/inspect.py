r"""What each fraction would select, by the losses of a model at hand: a table to choose `k` from.

In units in which the zero model costs 1, :math:`\ell(0) = 1`, minimising AT_k gives the best classifier if
:math:`k > n E^*`, with :math:`E^*` the smallest average loss attainable (Theorem 1 of the paper: two classes, a convex
loss of the margin, differentiable at 0). Below that nothing is promised, and the zero model can win.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from topkloss.base.arguments import check_integers, check_k, check_tensors, in_range
from topkloss.ranking.ranking import requested_mass
from topkloss.ranking.selection import topk_select

__all__ = ["FractionRow", "FractionTable", "inspect_fractions"]

FRACTIONS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0)


@dataclass(frozen=True)
class FractionRow:
    """What one fraction selects: a row of `FractionTable`.

    Attributes:
        fraction: As asked for.
        k: The mass it stands for.
        threshold: The k-th largest loss.
        value: AT_k, the average of the k largest.
        shares: Of the selected mass, in each class; of sum 1. Empty without `classes`.

    Example:
        >>> inspect_fractions(torch.tensor([4.0, 2.0, 1.0, 1.0]), fractions=[0.5]).rows[0]
        FractionRow(fraction=0.5, k=2.0, threshold=2.0, value=3.0, shares={})
    """

    fraction: float
    k: float
    threshold: float
    value: float
    shares: dict[int, float]


@dataclass(frozen=True)
class FractionTable:
    """A row for each fraction, and what they are to be compared with.

    Attributes:
        rows: In the order asked for.
        mass: S, the mass of all counted losses (their number without `sample_weight`).
        average: Their plain mean.
        shares: Of the whole mass, in each class that counts; of sum 1. Empty without `classes`.
        constant_loss: As given.
        bound: ``average / constant_loss``, an upper estimate of :math:`E^*`: no model's average is below the smallest.
            A larger fraction meets the condition of the theorem; a smaller one may, which a better model would show.
            None without `constant_loss`.
        crossing: The smallest fraction at which AT_k is not above `constant_loss`. At a smaller one the constant model
            has the smaller objective of the two; a third model may still beat both. 0 where no loss is above
            `constant_loss`, inf where their average is; at most `bound` for losses >= 0. None without `constant_loss`.

    Example:
        >>> table = inspect_fractions(torch.tensor([4.0, 2.0, 1.0, 1.0]), constant_loss=3)
        >>> table.average, round(table.bound, 3), table.crossing  # (4 + 2) / 2 = 3
        (2.0, 0.667, 0.5)
    """

    rows: tuple[FractionRow, ...]
    mass: float
    average: float
    shares: dict[int, float]
    constant_loss: float | None
    bound: float | None
    crossing: float | None


def inspect_fractions(
    losses: Tensor,
    *,
    fractions: Sequence[float] = FRACTIONS,
    classes: Tensor | None = None,
    constant_loss: float | None = None,
    mask: Tensor | None = None,
    sample_weight: Tensor | None = None,
) -> FractionTable:
    r"""Threshold, value and class shares at every fraction, and the fractions at which a constant model would win.

    .. math:: \mathrm{crossing} = \min \{ \nu : \mathrm{AT}_{\nu S} \le c \} \le \mathrm{AT}_S / c = \mathrm{bound}

    Args:
        losses: One per example, of a trained or half-trained model, best on examples it has not seen. Floating point,
            any shape except 0-dim, any unit. Not modified.
        fractions: Each in (0, 1].
        classes: Integers, shaped like `losses`. Default: no shares.
        constant_loss: c, the loss that the zero model (outputs 0) has on every example, in the unit of `losses`, > 0:
            log(C) for the cross-entropy of C classes, 1 for the hinge.
        mask: See `topk_threshold`.
        sample_weight: See `topk_threshold`.

    Returns:
        Python floats, computed in float64 on the CPU.

    Raises:
        TypeError: If a tensor or number has the wrong type.
        ValueError: If a fraction or `constant_loss` is out of range, shapes differ, a counted loss is NaN, nothing is
            counted, or a `sample_weight` is negative, infinite or NaN.

    Example:
        >>> losses, classes = torch.tensor([4.0, 2.0, 1.0, 1.0]), torch.tensor([1, 0, 0, 0])
        >>> table = inspect_fractions(losses, fractions=[0.25, 0.5, 1], classes=classes)
        >>> [(row.threshold, row.value, row.shares[1]) for row in table.rows]
        [(4.0, 4.0, 1.0), (2.0, 3.0, 0.5), (1.0, 2.0, 0.25)]

    Cost: that of `topk_select` for each fraction; with `constant_loss`, a sort more.
    Reference: Fan, Lyu, Ying, Hu. Learning with Average Top-k Loss. NeurIPS 2017, Theorem 1. Where losses are >= 0,
        AT at the fraction v is at most the average over v, hence the inequality above.
    """
    check_tensors(losses, mask=mask, sample_weight=sample_weight)
    _check(losses, fractions, classes, constant_loss)
    losses, mask, sample_weight = losses.detach().cpu().double(), _here(mask), _here(sample_weight)
    everything = topk_select(losses, fraction=1.0, mask=mask, sample_weight=sample_weight, nan_policy="omit")
    nan, counts, total = int(everything.omitted), everything.mass > 0, everything.counted_mass
    if nan > 0:
        raise ValueError(f"`losses` must not be NaN where counted; got {nan} NaN. Pass mask=~losses.isnan().")
    if total == 0:
        raise ValueError("`losses` must have something that counts; got nothing. Pass losses, and a mask with a True.")
    losses, mass = losses[counts], everything.mass[counts]
    labels = torch.zeros(0) if classes is None else classes.detach().cpu()[counts]

    def row(fraction: float) -> FractionRow:
        taken = topk_select(losses, fraction=fraction, sample_weight=mass)
        k, shares = float(requested_mass(total, None, fraction)), _shares(labels, taken.weights)
        return FractionRow(float(fraction), k, float(taken.threshold), float(taken.value), shares)

    average, constant = float((mass * losses).sum() / total), None if constant_loss is None else float(constant_loss)
    return FractionTable(
        rows=tuple(row(fraction) for fraction in fractions),
        mass=float(total),
        average=average,
        shares=_shares(labels, mass),
        constant_loss=constant,
        bound=None if constant is None else average / constant,
        crossing=None if constant is None else _crossing(losses, mass, constant),
    )


def _crossing(losses: Tensor, mass: Tensor, constant: float) -> float:
    """Where k (AT_k - constant), which is 0 at k = 0, concave and piecewise linear, comes back to 0: as a fraction."""
    losses, order = losses.sort(descending=True)
    excess, mass = losses - constant, mass[order]
    if excess[0] <= 0:
        return 0.0
    left = (mass * excess).cumsum(0)
    spent = (left <= 0).nonzero()
    if len(spent) == 0:
        return math.inf
    at = int(spent[0])
    return float((mass[:at].sum() + left[at - 1] / -excess[at]) / mass.sum())


def _shares(labels: Tensor, weights: Tensor) -> dict[int, float]:
    if len(labels) == 0:
        return {}
    names, positions = torch.unique(labels, return_inverse=True)
    sums = weights.new_zeros(len(names)).index_add(0, positions, weights)
    return dict(zip(names.tolist(), (sums / sums.sum()).tolist(), strict=True))


def _here(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.detach().cpu()


def _check(losses: Tensor, fractions: Sequence[float], classes: Tensor | None, constant_loss: float | None) -> None:
    for fraction in fractions:
        check_k(None, fraction)
    if classes is not None:
        check_integers("classes", classes, "Number the classes, e.g. from 0.")
        if classes.shape != losses.shape:
            raise ValueError(
                f"`losses` and `classes` must have the same shape; got {tuple(losses.shape)} and "
                f"{tuple(classes.shape)}. Pass one class for each loss."
            )
    if constant_loss is not None:
        hint = "For the cross-entropy of C classes pass math.log(C)."
        in_range("constant_loss", constant_loss, "0 <", "< inf", hint=hint)
