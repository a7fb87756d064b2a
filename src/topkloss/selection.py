r"""The maths of ranks: which losses are the largest, and how much each of them weighs.

Nothing here carries a gradient. At the optimum the weights *are* a subgradient of the aggregate
(Danskin), so an aggregate is the inner product of these weights with the losses and autograd does the rest.

One picture holds all of it. Lay the counted elements side by side from the largest score to the
smallest, each as wide as its mass (1, or its ``sample_weight``). The ``k`` largest are the first ``k``
units of that line. The score at its end is the threshold; an element before the end is selected whole,
the elements tied at the end share what is left of it in proportion to their mass.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from topkloss.arguments import NanPolicy, check_drop, check_k, check_nan_policy, check_tensors
from topkloss.kth_largest import SLACK, kth_largest
from topkloss.tensors import computing_dtype, values_are_readable

__all__ = ["Selection", "topk_select", "topk_threshold", "topk_weights"]

# A count within this relative distance of an integer is that integer: 0.29 * 100 selects 29.
SNAP = 1e-9

# Less than this share of the counted mass is as good as this share, which 1/k can still be computed of in float32;
# behind a dropped mass, which rounds, as good as more.
LEAST, LEAST_BEHIND_DROPPED = 1e-30, 1e-11


@dataclass(frozen=True, eq=False)
class Selection:
    """What a selection took: everything that a monitor reads, nothing that carries a gradient.

    Attributes:
        threshold: Scalar, the score at which the mass asked for is reached; -inf where nothing was counted.
        weights: Shaped like the losses; non-negative, of sum 1 (0 where nothing was counted).
        kept: Shaped like the losses, bool: True where the weight is not zero.
        value: Scalar, the sum of weights times losses: the aggregate, detached.
        counted_mass: Scalar float64, the mass S of all counted elements (their number without `sample_weight`).
        omitted: Scalar int64, how many elements ``nan_policy="omit"`` left out because they were NaN.
    """

    threshold: Tensor
    weights: Tensor
    kept: Tensor
    value: Tensor
    counted_mass: Tensor
    omitted: Tensor


class Counted(NamedTuple):
    """The elements that count, ready to be ranked. All tensors are detached; the caller's are never written to."""

    scores: Tensor  # float32 or float64, shaped like the losses; -inf where not counted
    mask: Tensor | None  # True = counted; None = all
    mass: Tensor | None  # float64, 0 where not counted; None = 1 each
    total: Tensor  # 0-dim float64: the counted mass S
    poisoned: Tensor  # 0-dim bool: a NaN is among the counted and must stay visible
    omitted: Tensor  # 0-dim int64
    dtype: torch.dtype  # of weights and value


def topk_threshold(
    losses: Tensor,
    *,
    k: float | None = None,
    fraction: float | None = None,
    mask: Tensor | None = None,
    sample_weight: Tensor | None = None,
) -> Tensor:
    r"""The k-th largest counted loss: the threshold above which an element is selected whole.

    .. math:: t = \max \{ t : \textstyle\sum_{i : \ell_i \ge t} s_i \ge k \}

    It minimises :math:`\lambda + \frac1k \sum_i s_i [\ell_i - \lambda]_+`, whose minimum is the average
    top-k loss.

    Args:
        losses: Floating point, any shape except 0-dim, any unit. Not modified.
        k: Mass of the elements selected, k > 0, real (2.5 gives the third largest). Above S it means all.
        fraction: `k` as a share of the counted mass S, 0 < fraction <= 1. Exactly one of the two.
        mask: Bool, shaped like `losses`; True = counts. Default: all count.
        sample_weight: Mass of each element, shaped like `losses`, finite and >= 0; 0 = not counted. Default: 1 each.

    Returns:
        0-dim tensor on the device of `losses`, float64 for float64 input and float32 otherwise, no gradient;
        -inf where nothing is counted, NaN where a counted loss is NaN.

    Raises:
        TypeError: If a tensor or number has the wrong type.
        ValueError: If `k` or `fraction` is out of range, shapes differ, `losses` is a scalar, or a readable
            `sample_weight` is negative, infinite or NaN (on other devices the result is NaN instead).

    Example:
        >>> topk_threshold(torch.tensor([3.0, 1.0, 2.0, 5.0]), k=2)
        tensor(3.)

    Cost: on the CPU about three reads of the losses; on an accelerator 32 (64 for float64), without a sort and
        without waiting for the device; under torch.compile on the CPU and under vmap, one sort.
    Reference: Fan, Lyu, Ying, Hu. Learning with Average Top-k Loss. NeurIPS 2017, Lemma 1.
    """
    check_k(k, fraction)
    counted = count(losses, mask=mask, sample_weight=sample_weight)
    return cut(counted, capacity(counted.total, k, fraction)).score


def topk_weights(
    losses: Tensor,
    *,
    k: float | None = None,
    fraction: float | None = None,
    mask: Tensor | None = None,
    sample_weight: Tensor | None = None,
    scores: Tensor | None = None,
    nan_policy: NanPolicy = "propagate",
) -> Tensor:
    r"""Weights under which the weighted sum of the losses is their average top-k loss.

    .. math:: w \in \arg\max \{ \langle w, \ell \rangle : 0 \le w_i \le s_i / k,\ \textstyle\sum_i w_i = 1 \}

    Elements tied at the threshold share the remaining weight in proportion to their mass, so the weights
    are unique, the same on every device and every run, and permute with the losses; -0.0 ties with 0.0.

    Args:
        losses: See `topk_threshold`.
        k: See `topk_threshold`.
        fraction: See `topk_threshold`.
        mask: See `topk_threshold`.
        sample_weight: See `topk_threshold`.
        scores: What to rank by instead of the losses: floating point, shaped like them.
        nan_policy: What a NaN among the counted losses or scores does. "propagate": every counted weight is
            NaN; "raise": ValueError (waits for the device); "omit": such elements are not counted.

    Returns:
        Shaped like `losses`, on their device, float64 for float64 input and float32 otherwise, no gradient;
        all 0 where nothing is counted.

    Raises:
        TypeError: See `topk_threshold`.
        ValueError: See `topk_threshold`.

    Example:
        >>> topk_weights(torch.tensor([3.0, 1.0, 2.0, 2.0]), k=2)
        tensor([0.5000, 0.0000, 0.2500, 0.2500])

    Cost: that of `topk_threshold` and three reads more.
    Reference: See `topk_threshold`; the set of weights is the risk envelope of the conditional value at risk
        (Rockafellar, Uryasev. Optimization of conditional value-at-risk. 2000).
    """
    check_k(k, fraction)
    counted = count(losses, mask=mask, sample_weight=sample_weight, scores=scores, nan_policy=nan_policy)
    return ranked_weights(counted, k=k, fraction=fraction)[0]


def topk_select(
    losses: Tensor,
    *,
    k: float | None = None,
    fraction: float | None = None,
    drop: float | None = None,
    drop_fraction: float | None = None,
    mask: Tensor | None = None,
    sample_weight: Tensor | None = None,
    scores: Tensor | None = None,
    nan_policy: NanPolicy = "propagate",
) -> Selection:
    """The whole selection, for a monitor: threshold, weights, what was kept, counted mass, value.

    Args:
        losses: See `topk_threshold`.
        k: See `topk_threshold`; counted after `drop`.
        fraction: See `topk_threshold`.
        drop: Mass of the largest elements left out first, >= 0. At most one of the two; default none.
        drop_fraction: `drop` as a share of the counted mass, 0 <= drop_fraction < 1.
        mask: See `topk_threshold`.
        sample_weight: See `topk_threshold`.
        scores: See `topk_weights`.
        nan_policy: See `topk_weights`.

    Returns:
        A `Selection`.

    Raises:
        TypeError: See `topk_threshold`.
        ValueError: See `topk_threshold`; also if `drop` or `drop_fraction` is out of range.

    Example:
        >>> selection = topk_select(torch.tensor([3.0, 1.0, 2.0, 9.0]), k=2, drop=1)
        >>> selection.kept, selection.value
        (tensor([ True, False,  True, False]), tensor(2.5000))

    Cost: that of `topk_weights`; with a drop, that of two thresholds.
    Reference: See `topk_threshold`; for the drop, Hu, Ying, Wang, Lyu. Sum of Ranked Range Loss for Supervised
        Learning. JMLR 23(112), 2022.
    """
    check_k(k, fraction)
    check_drop(drop, drop_fraction)
    counted = count(losses, mask=mask, sample_weight=sample_weight, scores=scores, nan_policy=nan_policy)
    weights, lowest = ranked_weights(counted, k=k, fraction=fraction, drop=drop, drop_fraction=drop_fraction)
    return Selection(
        threshold=lowest,
        weights=weights,
        kept=weights != 0,
        value=weighted_sum(weights, losses.detach()),
        counted_mass=counted.total,
        omitted=counted.omitted,
    )


def count(
    losses: Tensor,
    *,
    mask: Tensor | None = None,
    sample_weight: Tensor | None = None,
    scores: Tensor | None = None,
    nan_policy: NanPolicy = "propagate",
) -> Counted:
    """Checks the inputs and settles which elements count, with which mass, ranked by which score."""
    check_tensors(losses, mask=mask, sample_weight=sample_weight, scores=scores)
    check_nan_policy(nan_policy)
    losses, mask = losses.detach(), None if mask is None else mask.detach()
    ranked = losses if scores is None else scores.detach()
    ranked = ranked.to(computing_dtype(ranked))
    poisoned = losses.new_zeros((), dtype=torch.bool)
    omitted = losses.new_zeros((), dtype=torch.int64)
    mass = None
    if sample_weight is not None:
        mass = sample_weight.detach().double()
        poisoned = _unusable(mass, mask)
        mask = mass > 0 if mask is None else mask & (mass > 0)
    if nan_policy == "omit":
        nan = losses.isnan() if scores is None else losses.isnan() | ranked.isnan()
        omitted = (nan if mask is None else nan & mask).sum()
        mask = ~nan if mask is None else mask & ~nan
    if mask is not None:
        ranked = _uncounted_last(ranked, mask)
    if nan_policy != "omit" and losses.numel() > 0:
        poisoned = poisoned | ranked.amax().isnan()
        if scores is not None:
            poisoned = poisoned | (losses if mask is None else losses.masked_fill(~mask, 0)).amax().isnan()
    if nan_policy == "raise" and bool(poisoned):
        raise ValueError(
            "`losses` (or `scores`) must not be NaN where counted; got NaN. "
            'Pass nan_policy="omit" to leave such elements out.'
        )
    if mask is None:
        total = torch.full((), losses.numel(), dtype=torch.float64, device=losses.device)
    elif mass is None:
        total = mask.sum().double()
    else:
        mass = mass.masked_fill(~mask, 0)
        total = mass.sum()
    return Counted(ranked, mask, mass, total, poisoned, omitted, computing_dtype(losses))


def _uncounted_last(scores: Tensor, mask: Tensor) -> Tensor:
    """The scores, -inf where not counted.

    Adding 0 or -inf, which is -huge * huge, is several times faster on the CPU than choosing by a mask. It differs
    where NaN or inf stands in a place that is not counted, which shows as a NaN.
    """
    if values_are_readable(scores) and scores.numel() > 0:
        huge = torch.finfo(scores.dtype).max
        counts = mask.view(torch.uint8).to(scores.dtype)
        ranked = counts.sub_(1).mul_(huge).mul_(huge).add_(scores)
        if not bool(ranked.amax().isnan()):
            return ranked
    return scores.masked_fill(~mask, -torch.inf)


def _unusable(mass: Tensor, mask: Tensor | None) -> Tensor:
    """Whether a counted mass is negative, infinite or NaN: an error where values may be read, NaN elsewhere."""
    wrong = ~((mass >= 0) & (mass < torch.inf))
    if mask is not None:
        wrong = wrong & mask
    if values_are_readable(mass) and bool(wrong.any()):
        raise ValueError(
            f"`sample_weight` must be finite and >= 0 where counted; got {mass[wrong][0].item():g}. "
            "To leave an element out give it weight 0 or mask=False."
        )
    return wrong.any() | (mass if mask is None else mass.masked_fill(~mask, 0)).sum().isinf()


def capacity(total: Tensor, count: float | None, fraction: float | None) -> Tensor:
    """The mass asked for, 0-dim float64: `count`, or `fraction` of the total; near-integers snapped; at most all."""
    if fraction is not None:
        wanted = total * float(fraction)
    else:
        assert count is not None
        wanted = torch.ones_like(total) * float(count)  # not torch.full: a compiled graph then serves every count
    nearest = wanted.round()
    snapped = torch.where((wanted - nearest).abs() <= SNAP * wanted, nearest, wanted)
    return torch.where(wanted < total, snapped, total).minimum(total)


class Cut(NamedTuple):
    """Where a given mass of the largest ends."""

    score: Tensor  # elements above it lie before the end, those below it behind
    above: Tensor  # 0-dim float64: the mass of all elements above that score
    tied: Tensor  # 0-dim float64: the mass of all elements at it
    part: Tensor  # 0-dim float64: how much of each of them lies before the end; NaN where none counts


def cut(counted: Counted, wanted: Tensor) -> Cut:
    """Where the `wanted` mass ends; -inf where nothing counts, NaN where poisoned."""
    score, above, tied = kth_largest(counted.scores, counted.mass, wanted)
    score = torch.where(counted.total > 0, score, -torch.inf)
    tied = torch.where(score == -torch.inf, counted.total - above, tied)
    return Cut(torch.where(counted.poisoned, torch.nan, score), above, tied, ((wanted - above) / tied).clamp(0, 1))


def share(counted: Counted, end: Cut, start: Cut | None = None) -> Tensor:
    """How much of each element, in [0, 1], lies before the end and behind the start.

    By arithmetic on 1 (above), 0 (tied) and -1 (below), which is several times faster on the CPU than masks are.
    """
    before = _side(counted, end.score).add_(end.part.to(counted.dtype)).clamp(0, 1)
    if start is None:
        return before
    behind = _side(counted, start.score).neg_().add_((1 - start.part).to(counted.dtype)).clamp(0, 1)
    return torch.minimum(before, behind)


def _side(counted: Counted, score: Tensor) -> Tensor:
    """1 above the score, 0 at it (infinities too), -1 below."""
    return (counted.scores - score).nan_to_num_(nan=0.0).sign_().to(counted.dtype)


def ranked_weights(
    counted: Counted,
    *,
    k: float | None,
    fraction: float | None,
    drop: float | None = None,
    drop_fraction: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Weights of the mass that follows the dropped one, and its lowest score."""
    wanted = capacity(counted.total, k, fraction)
    if not drop and not drop_fraction:
        wanted = wanted.maximum(LEAST * counted.total)
        end = cut(counted, wanted)
        return spread(counted, share(counted, end), wanted, end.score), end.score
    dropped = capacity(counted.total, drop, drop_fraction)
    left = counted.total - dropped
    left = torch.where(left > SLACK * counted.total, left, 0)
    selected = wanted.maximum(LEAST_BEHIND_DROPPED * counted.total).minimum(left)
    start, end = cut(counted, dropped), cut(counted, dropped + selected)
    # of the selected mass itself, not of its sum with the dropped one, which rounds
    part = (selected - (end.above - dropped).clamp(min=0)) / end.tied
    end = end._replace(part=part.clamp(0, 1))
    start = start._replace(part=torch.where(start.score == end.score, 0, start.part))
    return spread(counted, share(counted, end, start), selected, end.score), end.score


def spread(counted: Counted, chosen: Tensor, selected_mass: Tensor, lowest: Tensor) -> Tensor:
    """Weights of sum 1 over the chosen shares; 0 where not counted, NaN on the counted where poisoned.

    Args:
        counted: What counts.
        chosen: The share of each element.
        selected_mass: The mass of all chosen shares.
        lowest: 0-dim, the lowest score chosen. Above -inf it leaves out by itself what is not counted.
    """
    scale = torch.where(selected_mass > 0, 1 / selected_mass, 0)
    scale = torch.where(counted.poisoned, torch.nan, scale)
    weights = (chosen if counted.mass is None else counted.mass * chosen).mul(scale).to(counted.dtype)
    if counted.mask is None or (values_are_readable(lowest) and bool(lowest > -torch.inf)):
        return weights
    return weights.masked_fill(~counted.mask, 0)


def weighted_sum(weights: Tensor, losses: Tensor) -> Tensor:
    """The sum of weights times losses; what stands where the weight is 0 never matters, nor does its gradient."""
    losses = losses.to(weights.dtype)
    if not (values_are_readable(losses) and bool(losses.detach().sum().isfinite())):
        losses = losses.masked_fill(weights == 0, 0)
    return (weights * losses).sum()
