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

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from topkloss.base.arguments import NanPolicy, check_drop, check_k
from topkloss.base.tensors import Scalar, choose, larger, part_of, smaller
from topkloss.kernels import native
from topkloss.ranking.ranking import Counted, Line, line
from topkloss.ranking.stretch import Cut, Weights, above, capacity, cut, in_full, share, spread, weigh, weighted_sum
from topkloss.ranking.threshold import SLACK

__all__ = ["Selection", "topk_select", "topk_threshold", "topk_weights"]

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

    Cost: on the CPU about two reads of the losses; on an accelerator 32 (64 for float64), without a sort and
        without waiting for the device; under torch.compile on the CPU and under vmap, one sort.
    Reference: Fan, Lyu, Ying, Hu. Learning with Average Top-k Loss. NeurIPS 2017, Lemma 1.
    """
    check_k(k, fraction)
    counted = line(losses, mask=mask, sample_weight=sample_weight)
    return _as_score(counted, cut(counted, capacity(counted.total, k, fraction)).score)


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

    Cost: that of `topk_threshold` and one read more; where the native kernels do not serve, four.
    Reference: See `topk_threshold`; the set of weights is the risk envelope of the conditional value at risk
        (Rockafellar, Uryasev. Optimization of conditional value-at-risk. 2000).
    """
    check_k(k, fraction)
    counted = line(losses, mask=mask, sample_weight=sample_weight, scores=scores, nan_policy=nan_policy)
    return in_full(ranked_weights(counted, k=k, fraction=fraction)[0])


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
    counted = line(losses, mask=mask, sample_weight=sample_weight, scores=scores, groups=groups, nan_policy=nan_policy)
    weights, lowest = ranked_weights(counted, k=k, fraction=fraction, drop=drop, drop_fraction=drop_fraction)
    return selection_of(counted, losses, weights, lowest)


def selection_of(counted: Counted | Line, losses: Tensor, weights: Weights, lowest: Scalar) -> Selection:
    """What a monitor reads of these weights."""
    everything, written = counted.in_tensors(), in_full(weights)
    return Selection(
        value=value_of(counted, weights, losses),
        average=value_of(everything, even_weights(everything), losses.detach()),
        threshold=_as_score(counted, lowest),
        weights=written,
        kept=written != 0,
        mass=everything.each_mass(),
        omitted=everything.omitted,
    )


def _as_score(counted: Counted | Line, score: Scalar) -> Tensor:
    return score if isinstance(score, Tensor) else torch.scalar_tensor(score, dtype=counted.scores.dtype, device="cpu")


def ranked_weights(
    counted: Counted | Line,
    *,
    k: float | None,
    fraction: float | None,
    drop: float | None = None,
    drop_fraction: float | None = None,
) -> tuple[Weights, Scalar]:
    """Weights of the mass that follows the dropped one, and its lowest score."""
    wanted = capacity(counted.total, k, fraction)
    if not drop and not drop_fraction:
        return largest(counted, larger(wanted, LEAST * counted.total))
    dropped = capacity(counted.total, drop, drop_fraction)
    left = counted.total - dropped
    left = choose(left > SLACK * counted.total, left, 0.0)
    selected = smaller(larger(wanted, LEAST_BEHIND_DROPPED * counted.total), left)
    if isinstance(counted, Counted) and counted.places is not None:
        return _within(counted, dropped, selected)
    start, end = cut(counted, dropped), cut(counted, dropped + selected)
    # of the selected mass itself, not of its sum with the dropped one, which rounds
    end = end._replace(part=part_of(selected - larger(end.above - dropped, 0.0), end.tied))
    start = start._replace(part=choose(start.score == end.score, 0.0, start.part))
    return weigh(counted, selected, end, start), end.score


def kth_weights(counted: Counted | Line, *, k: float | None, fraction: float | None) -> tuple[Weights, Scalar]:
    """Weights of what ties at the end of the mass asked for, and its score."""
    wanted = larger(capacity(counted.total, k, fraction), LEAST * counted.total)
    if isinstance(counted, Line):
        end = cut(counted, wanted)
        return weigh(counted, end.tied, end._replace(part=1.0), end._replace(part=0.0)), end.score
    if counted.places is None:
        return weights_of(counted, counted.scores == cut(counted, wanted).score)
    assert isinstance(wanted, Tensor)
    return weights_of(counted, counted.places.last(wanted))


def weights_above(
    counted: Counted | Line, *, threshold: float, min_kept: float | None, min_fraction: float | None
) -> tuple[Weights, Scalar]:
    """Weights of what lies above a threshold or within the least mass that is kept, and the lowest score of it."""
    floor = capacity(counted.total, min_kept, min_fraction) if min_kept or min_fraction else None
    if isinstance(counted, Line):
        return _weights_above(counted, threshold, 0.0 if floor is None else float(floor))
    chosen = counted.scores > float(threshold)
    if floor is None:
        return weights_of(counted, chosen)
    assert isinstance(floor, Tensor)
    return weights_of(counted, torch.maximum(chosen.to(counted.dtype), shares(counted, floor)))


def _weights_above(counted: Line, threshold: float, floor: float) -> tuple[Weights, Scalar]:
    """The same of a line, on which one of the two holds the other."""
    mass, lowest = native.above(counted.memory, threshold)
    if floor > mass or counted.poisoned:
        return largest(counted, floor)
    end = Cut(lowest if mass > 0 else -math.inf, above=0.0, tied=mass, part=1.0)
    return weigh(counted, mass, end), end.score


def hard_negative_weights(counted: Counted | Line, *, ratio: float, min_negatives: float) -> tuple[Weights, Scalar]:
    """Weights of all positives, which are ranked first, and of so many negatives for each; and their lowest score."""
    mass = above(counted, torch.finfo(counted.scores.dtype).max)
    return largest(counted, smaller(mass + larger(ratio * mass, min_negatives), counted.total))


def positives_first(scores: Tensor, positives: Tensor) -> Tensor:
    """Scores by which the negatives come in their own order, behind the positives, which alone are infinite."""
    scores = scores.detach()
    return torch.where(positives, torch.inf, scores.clamp(max=torch.finfo(scores.dtype).max))


def largest(counted: Counted | Line, wanted: Scalar) -> tuple[Weights, Scalar]:
    """Weights of the `wanted` mass of the largest, and the lowest score among them."""
    if isinstance(counted, Counted) and counted.places is not None:
        return _within(counted, None, wanted)
    end = cut(counted, wanted)
    return weigh(counted, wanted, end), end.score


def _within(counted: Counted, dropped: Scalar | None, selected: Scalar) -> tuple[Tensor, Tensor]:
    assert counted.places is not None
    assert not isinstance(dropped, float)
    assert isinstance(selected, Tensor)
    return weights_of(counted, counted.places.within(dropped, selected))


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


def value_of(counted: Counted | Line, weights: Weights, losses: Tensor) -> Tensor:
    """The sum of weights times losses, over all processes that rank together."""
    value = weighted_sum(weights, losses)
    return value if isinstance(counted, Line) or counted.ranks is None else counted.ranks.total(value)
