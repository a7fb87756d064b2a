r"""Aggregates: from one loss per element to one number, differentiable in the losses.

Each is the inner product of the losses with weights that carry no gradient (see `topkloss.selection`), so its
gradient with respect to the losses is the weights themselves: a subgradient at ties, the gradient elsewhere.
"""

from __future__ import annotations

import torch
from torch import Tensor

from topkloss.arguments import NanPolicy, check_drop, check_k
from topkloss.selection import Cut, count, ranked_weights, share, spread, weighted_sum

__all__ = ["average", "average_ranked_range", "average_top_k", "maximum"]


def average(
    losses: Tensor,
    *,
    mask: Tensor | None = None,
    sample_weight: Tensor | None = None,
    nan_policy: NanPolicy = "propagate",
) -> Tensor:
    r"""The mean of the counted losses: the average top-k loss at ``fraction=1``.

    .. math:: \frac{1}{S} \sum_i s_i \ell_i, \qquad S = \sum_i s_i

    Args:
        losses: Floating point, any shape except 0-dim, any unit. Not modified.
        mask: Bool, shaped like `losses`; True = counts. Default: all count.
        sample_weight: Mass of each element, shaped like `losses`, finite and >= 0; 0 = not counted. Default: 1 each.
        nan_policy: See `topk_weights`.

    Returns:
        0-dim tensor in the unit of `losses`, float64 for float64 input and float32 otherwise; where nothing is
        counted, 0 with a gradient of exactly 0.

    Raises:
        TypeError: See `topk_threshold`.
        ValueError: See `topk_threshold`.

    Example:
        >>> average(torch.tensor([1.0, 2.0, 9.0]), mask=torch.tensor([True, True, False]))
        tensor(1.5000)

    Cost: two reads of the losses.
    Reference: the average aggregate of Fan, Lyu, Ying, Hu. Learning with Average Top-k Loss. NeurIPS 2017.
    """
    counted = count(losses, mask=mask, sample_weight=sample_weight, nan_policy=nan_policy)
    everything = torch.ones_like(counted.scores)
    return weighted_sum(spread(counted, everything, counted.total, everything.new_full((), -torch.inf)), losses)


def maximum(
    losses: Tensor,
    *,
    mask: Tensor | None = None,
    sample_weight: Tensor | None = None,
    nan_policy: NanPolicy = "propagate",
) -> Tensor:
    r"""The largest counted loss: the limit of the average top-k loss as k goes to 0.

    .. math:: \max_i \ell_i

    Tied maxima share the gradient in proportion to their mass.

    Args:
        losses: See `average`.
        mask: See `average`.
        sample_weight: See `average`; decides only what counts and how ties share.
        nan_policy: See `topk_weights`.

    Returns:
        See `average`.

    Raises:
        TypeError: See `topk_threshold`.
        ValueError: See `topk_threshold`.

    Example:
        >>> maximum(torch.tensor([1.0, 2.0, 9.0]))
        tensor(9.)

    Cost: three reads of the losses.
    Reference: Shalev-Shwartz, Wexler. Minimizing the Maximal Loss: How and Why. ICML 2016.
    """
    counted = count(losses, mask=mask, sample_weight=sample_weight, nan_policy=nan_policy)
    if losses.numel() == 0:
        return losses.to(counted.dtype).sum()
    largest = counted.scores.amax()
    all_of_it = torch.ones_like(counted.total)
    chosen = share(counted, Cut(largest, above=0 * all_of_it, tied=counted.total, part=all_of_it))
    tied = chosen.sum(dtype=torch.float64) if counted.mass is None else (counted.mass * chosen).sum()
    tied = torch.where(largest == -torch.inf, counted.total, tied)
    return weighted_sum(spread(counted, chosen, tied, largest), losses)


def average_top_k(
    losses: Tensor,
    *,
    k: float | None = None,
    fraction: float | None = None,
    mask: Tensor | None = None,
    sample_weight: Tensor | None = None,
    scores: Tensor | None = None,
    nan_policy: NanPolicy = "propagate",
) -> Tensor:
    r"""The average of the k largest losses, AT_k; real k is exact (the conditional value at risk).

    .. math:: \frac1k \Big( \sum_{i \le \lfloor k \rfloor} \ell_{[i]} + (k - \lfloor k \rfloor)\,
        \ell_{[\lfloor k \rfloor + 1]} \Big) = \min_\lambda \lambda + \frac1k \sum_i [\ell_i - \lambda]_+

    k = 1 is the maximum, k = n the mean; it never increases in k. `k` and `fraction` count mass: with
    `sample_weight`, S is the sum of the counted weights and k = fraction * S, not rounded; above S it means all.

    Args:
        losses: Floating point, any shape except 0-dim, any unit. Not modified.
        k: Mass of the elements averaged, k > 0, real.
        fraction: `k` as a share of the counted mass, 0 < fraction <= 1. Exactly one of the two.
        mask: Bool, shaped like `losses`; True = counts. What stands elsewhere, NaN included, never matters.
        sample_weight: Mass of each element, shaped like `losses`, finite and >= 0; 0 = not counted. Default: 1 each.
        scores: What to rank by instead of the losses: floating point, shaped like them. Convexity and the
            formula above then no longer hold: the value is the average loss of the k elements of largest score.
        nan_policy: What a NaN among the counted does: see `topk_weights`.

    Returns:
        0-dim tensor in the unit of `losses`, float64 for float64 input and float32 otherwise; where nothing is
        counted, 0 with a gradient of exactly 0 (connected to the graph, so no other rank waits for it).

    Raises:
        TypeError: See `topk_threshold`.
        ValueError: See `topk_threshold`.

    Example:
        >>> losses = torch.tensor([3.0, 1.0, 2.0, 9.0], requires_grad=True)
        >>> value = average_top_k(losses, fraction=0.5)
        >>> value
        tensor(6., grad_fn=<SumBackward0>)
        >>> value.backward()
        >>> losses.grad
        tensor([0.5000, 0.0000, 0.0000, 0.5000])

    Cost: that of `topk_weights`, and two reads of the losses; the backward pass writes one gradient.
    Reference: Fan, Lyu, Ying, Hu. Learning with Average Top-k Loss. NeurIPS 2017, equations 1 and 2.
    """
    check_k(k, fraction)
    counted = count(losses, mask=mask, sample_weight=sample_weight, scores=scores, nan_policy=nan_policy)
    weights, _ = ranked_weights(counted, k=k, fraction=fraction)
    return weighted_sum(weights, losses)


def average_ranked_range(
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
) -> Tensor:
    r"""The average of the k largest losses after the largest `drop` are left out: hard, but not outliers.

    .. math:: \frac{(m + k)\,\mathrm{AT}_{m+k} - m\,\mathrm{AT}_m}{k}, \qquad m = \mathrm{drop}

    A difference of convex functions: not convex itself, and blind to how large the dropped losses are. Where
    m + k exceeds the counted mass it averages what is left; where nothing is left it is 0 with gradient 0.

    Args:
        losses: See `average_top_k`.
        k: Mass of the elements averaged *after* dropping, k > 0, real.
        fraction: `k` as a share of the counted mass (the dropped included), 0 < fraction <= 1. Exactly one of the two.
        drop: Mass of the largest elements left out first, >= 0, real.
        drop_fraction: `drop` as a share of the counted mass, 0 <= drop_fraction < 1. Exactly one of the two.
        mask: See `average_top_k`.
        sample_weight: See `average_top_k`.
        scores: See `average_top_k`.
        nan_policy: See `average_top_k`.

    Returns:
        See `average_top_k`.

    Raises:
        TypeError: See `topk_threshold`.
        ValueError: See `topk_threshold`; also without exactly one of `drop` and `drop_fraction`, or one out of range.

    Example:
        >>> average_ranked_range(torch.tensor([3.0, 1.0, 2.0, 900.0]), k=2, drop=1)
        tensor(2.5000)

    Cost: that of two average top-k losses.
    Reference: Hu, Ying, Wang, Lyu. Sum of Ranked Range Loss for Supervised Learning. JMLR 23(112), 2022 (AoRR).
    """
    check_k(k, fraction)
    check_drop(drop, drop_fraction, required=True)
    counted = count(losses, mask=mask, sample_weight=sample_weight, scores=scores, nan_policy=nan_policy)
    weights, _ = ranked_weights(counted, k=k, fraction=fraction, drop=drop, drop_fraction=drop_fraction)
    return weighted_sum(weights, losses)
