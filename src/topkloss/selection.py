r"""The maths of ranks: which losses are the largest, and how much each of them weighs.

Nothing here carries a gradient but the value of a `Selection`. At the optimum the weights *are* a subgradient of
the aggregate (Danskin), so an aggregate is the inner product of these weights with the losses and autograd does
the rest.

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

from topkloss.arguments import NanPolicy, check_drop, check_k
from topkloss.counted import Counted, count
from topkloss.tensors import values_are_readable
from topkloss.threshold import SLACK, kth_largest

__all__ = ["Selection", "topk_select", "topk_threshold", "topk_weights"]

# A count within this relative distance of an integer is that integer: 0.29 * 100 selects 29.
SNAP = 1e-9

# Less than this share of the counted mass is as good as this share, which 1/k can still be computed of in float32;
# behind a dropped mass, which rounds, as good as more.
LEAST, LEAST_BEHIND_DROPPED = 1e-30, 1e-11


@dataclass(frozen=True, eq=False)
class Selection:
    """What a selection took: everything that a monitor reads. Only `value` carries a gradient.

    Among several processes, what is shaped like the losses, and `omitted`, are this process's part of it.

    Attributes:
        value: Scalar, the sum of weights times losses: the aggregate itself, to call ``backward()`` on.
        average: Scalar, the plain mean of the counted losses: what `value` is to be watched beside.
        threshold: Scalar, the score at which the mass asked for is reached, with groups the lowest of theirs; -inf
            where nothing was counted.
        weights: Shaped like the losses; non-negative, of sum 1 (0 where nothing was counted).
        kept: Shaped like the losses, bool: True where the weight is not zero.
        mass: Shaped like the losses, float64: what each counted element counts, 0 where not counted.
        omitted: Scalar int64, how many elements ``nan_policy="omit"`` left out because they were NaN.
    """

    value: Tensor
    average: Tensor
    threshold: Tensor
    weights: Tensor
    kept: Tensor
    mass: Tensor
    omitted: Tensor

    @property
    def counted_mass(self) -> Tensor:
        """Scalar float64, the mass S of all counted elements (their number without `sample_weight`)."""
        return self.mass.sum()


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
        losses, k, fraction, mask, sample_weight: See `topk_threshold`.
        scores: What to rank by instead of the losses: floating point, shaped like them.
        nan_policy: What a NaN among the counted losses or scores does. "propagate": every counted weight is
            NaN; "raise": ValueError (waits for the device); "omit": such elements are not counted.

    Returns:
        Shaped like `losses`, on their device, float64 for float64 input and float32 otherwise, no gradient;
        all 0 where nothing is counted.

    Raises:
        TypeError, ValueError: See `topk_threshold`.

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
    groups: Tensor | None = None,
    nan_policy: NanPolicy = "propagate",
) -> Selection:
    """The whole selection, for a monitor: value, plain mean, threshold, weights, what was kept.

    Args:
        losses, fraction, mask, sample_weight: See `topk_threshold`.
        k: See `topk_threshold`; counted after `drop`.
        drop: Mass of the largest elements left out first, >= 0. At most one of the two; default none.
        drop_fraction: `drop` as a share of the counted mass, 0 <= drop_fraction < 1.
        scores, nan_policy: See `topk_weights`.
        groups: Integers, shaped like `losses`: each group is ranked by itself. See `average_top_k`.

    Returns:
        A `Selection`.

    Raises:
        TypeError, ValueError: See `topk_threshold`; also if `drop` or `drop_fraction` is out of range.

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
    counted = count(losses, mask=mask, sample_weight=sample_weight, scores=scores, groups=groups, nan_policy=nan_policy)
    weights, lowest = ranked_weights(counted, k=k, fraction=fraction, drop=drop, drop_fraction=drop_fraction)
    return selection_of(counted, losses, weights, lowest)


def selection_of(counted: Counted, losses: Tensor, weights: Tensor, lowest: Tensor) -> Selection:
    """What a monitor reads of these weights."""
    mass = counted.each_mass()
    return Selection(
        value=value_of(counted, weights, losses),
        average=value_of(counted, even_weights(counted), losses.detach()),
        threshold=lowest,
        weights=weights,
        kept=weights != 0,
        mass=mass,
        omitted=counted.omitted,
    )


def capacity(total: Tensor, count: float | None, fraction: float | None) -> Tensor:
    """The mass asked for, shaped like the total: `count`, or `fraction` of it; near-integers snapped; at most all."""
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
        return largest(counted, wanted.maximum(LEAST * counted.total))
    dropped = capacity(counted.total, drop, drop_fraction)
    left = counted.total - dropped
    left = torch.where(left > SLACK * counted.total, left, 0)
    selected = wanted.maximum(LEAST_BEHIND_DROPPED * counted.total).minimum(left)
    if counted.places is not None:
        return weights_of(counted, counted.places.within(dropped, selected))
    start, end = cut(counted, dropped), cut(counted, dropped + selected)
    # of the selected mass itself, not of its sum with the dropped one, which rounds
    part = (selected - (end.above - dropped).clamp(min=0)) / end.tied
    end = end._replace(part=part.clamp(0, 1))
    start = start._replace(part=torch.where(start.score == end.score, 0, start.part))
    return spread(counted, share(counted, end, start), selected, end.score), end.score


def kth_weights(counted: Counted, *, k: float | None, fraction: float | None) -> tuple[Tensor, Tensor]:
    """Weights of what ties at the end of the mass asked for, and its score."""
    wanted = capacity(counted.total, k, fraction).maximum(LEAST * counted.total)
    if counted.places is None:
        return weights_of(counted, counted.scores == cut(counted, wanted).score)
    return weights_of(counted, counted.places.last(wanted))


def weights_above(
    counted: Counted, *, threshold: float, min_kept: float | None, min_fraction: float | None
) -> tuple[Tensor, Tensor]:
    """Weights of what lies above a threshold or within the least mass that is kept, and the lowest score of it."""
    chosen = counted.scores > threshold
    if not min_kept and min_fraction is None:
        return weights_of(counted, chosen)
    floor = capacity(counted.total, min_kept, min_fraction)
    return weights_of(counted, torch.maximum(chosen.to(counted.dtype), shares(counted, floor)))


def hard_negative_weights(counted: Counted, *, ratio: float, min_negatives: float) -> tuple[Tensor, Tensor]:
    """Weights of all positives, which are ranked first, and of so many negatives for each; and their lowest score."""
    mass = counted.mass_of(counted.scores == torch.inf)
    return largest(counted, (mass + (ratio * mass).clamp(min=min_negatives)).minimum(counted.total))


def positives_first(scores: Tensor, positives: Tensor) -> Tensor:
    """Scores by which the negatives come in their own order, behind the positives, which alone are infinite."""
    scores = scores.detach()
    return torch.where(positives, torch.inf, scores.clamp(max=torch.finfo(scores.dtype).max))


def largest(counted: Counted, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Weights of the `wanted` mass of the largest, and the lowest score among them."""
    if counted.places is not None:
        return weights_of(counted, counted.places.within(None, wanted))
    end = cut(counted, wanted)
    return spread(counted, share(counted, end), wanted, end.score), end.score


def shares(counted: Counted, wanted: Tensor) -> Tensor:
    """How much of each element lies within the `wanted` mass of the largest."""
    if counted.places is not None:
        return counted.places.within(None, wanted).to(counted.dtype)
    return share(counted, cut(counted, wanted))


def weights_of(counted: Counted, chosen: Tensor) -> tuple[Tensor, Tensor]:
    """Weights of these shares of the elements, and the lowest score among them."""
    mass = counted.mass_of(chosen)
    lowest = _lowest(counted, chosen)
    return spread(counted, chosen.to(counted.dtype), mass, lowest), lowest


def _lowest(counted: Counted, chosen: Tensor) -> Tensor:
    chosen = chosen > 0 if counted.mask is None else (chosen > 0) & counted.mask
    scores = torch.where(chosen, counted.scores, torch.inf)
    lowest = scores.amin() if scores.numel() > 0 else scores.new_full((), torch.inf)
    some = chosen.any()
    if counted.ranks is not None:
        highest, some_rank = counted.ranks.max(torch.stack([-lowest, some.to(lowest.dtype)]))
        lowest, some = -highest, some_rank > 0
    return torch.where(some, lowest, -torch.inf).masked_fill(counted.poisoned, torch.nan)


def even_weights(counted: Counted) -> Tensor:
    """Weights of the plain mean of all that counts, whatever its group; NaN there where poisoned."""
    mass = counted.each_mass()
    total = mass.sum() if counted.ranks is None else counted.ranks.sum(mass.sum())
    share = torch.where(total > 0, mass / total, 0)
    return share.masked_fill(counted.poisoned & (mass > 0), torch.nan).to(counted.dtype)


def spread(counted: Counted, chosen: Tensor, selected_mass: Tensor, lowest: Tensor) -> Tensor:
    """Weights of sum 1 over the chosen shares; 0 where not counted, NaN on the counted where poisoned.

    Args:
        counted: What counts.
        chosen: The share of each element.
        selected_mass: The mass of all chosen shares; with groups, in the element's own.
        lowest: 0-dim, the lowest score chosen. Above -inf it leaves out by itself what is not counted.
    """
    scale = torch.where(selected_mass > 0, 1 / selected_mass, 0)
    if counted.places is not None:
        scale = counted.places.each(scale / counted.places.number)
    scale = torch.where(counted.poisoned, torch.nan, scale)
    weights = (chosen if counted.mass is None else counted.mass * chosen).mul(scale).to(counted.dtype)
    if counted.mask is None or (values_are_readable(lowest) and bool(lowest > -torch.inf)):
        return weights
    return weights.masked_fill(~counted.mask, 0)


def value_of(counted: Counted, weights: Tensor, losses: Tensor) -> Tensor:
    """The sum of weights times losses, over all processes that rank together."""
    value = weighted_sum(weights, losses)
    return value if counted.ranks is None else counted.ranks.total(value)


def weighted_sum(weights: Tensor, losses: Tensor) -> Tensor:
    """The sum of weights times losses; what stands where the weight is 0 never matters, nor does its gradient."""
    losses = losses.to(weights.dtype)
    if not (values_are_readable(losses) and bool(losses.detach().sum().isfinite())):
        losses = losses.masked_fill(weights == 0, 0)
    return (weights * losses).sum()
