r"""Aggregates: from one loss per element to one number, differentiable in the losses.

Lay the counted losses side by side, the largest first, each as wide as its mass. Every aggregate here chooses an
interval of that ranking and averages over it: from its beginning as far as `k` (`average_top_k`), as far as a threshold
(`average_above`), as far as the positives and so many negatives (`average_hard_negatives`), behind the outliers
(`average_ranked_range`), all of it (`average`), or one place (`maximum`, `kth_largest`). Each is the inner product of
the losses with weights that carry no gradient (see `topkloss.ranking.selection`), so its gradient is these weights.

With `groups`, each group is ranked by itself, and the value is the plain mean over the groups that count something.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from topkloss.base.arguments import (
    NanPolicy,
    check_drop,
    check_floor,
    check_k,
    check_positives,
    check_ratio,
    check_tensors,
)
from topkloss.ranking.rank import rank
from topkloss.ranking.selection import above, everything, hard_negatives, kth, largest, loss_of, positives_first, top_k

__all__ = [
    "average",
    "average_above",
    "average_hard_negatives",
    "average_ranked_range",
    "average_top_k",
    "kth_largest",
    "maximum",
]


def average(
    losses: Tensor,
    *,
    mask: Tensor | None = None,
    sample_weight: Tensor | None = None,
    groups: Tensor | None = None,
    nan_policy: NanPolicy = "propagate",
) -> Tensor:
    r"""The mean of the counted losses: the average top-k loss at ``fraction=1``.

    .. math:: \frac{1}{S} \sum_i s_i \ell_i, \qquad S = \sum_i s_i

    Args:
        losses: Floating point, any shape except 0-dim, any unit. Not modified.
        mask: Bool, shaped like `losses`; True = counts. Default: all count.
        sample_weight: Mass of each element, shaped like `losses`, finite and >= 0; 0 = not counted. Default: 1 each.
        groups: See `average_top_k`.
        nan_policy: See `topk_weights`.

    Returns:
        0-dim tensor in the unit of `losses`, float64 for float64 input and float32 otherwise; where nothing is
        counted, 0 with a gradient of exactly 0.

    Raises:
        TypeError, ValueError: See `topk_threshold`.

    Example:
        >>> average(torch.tensor([1.0, 2.0, 9.0]), mask=torch.tensor([True, True, False]))
        tensor(1.5000)

    Cost: two reads of the losses.
    Reference: the average aggregate of Fan, Lyu, Ying, Hu. Learning with Average Top-k Loss. NeurIPS 2017.
    """
    rankings = rank(losses, mask=mask, sample_weight=sample_weight, groups=groups, nan_policy=nan_policy)
    return rankings.by(everything).dot(losses)


def maximum(
    losses: Tensor,
    *,
    mask: Tensor | None = None,
    sample_weight: Tensor | None = None,
    groups: Tensor | None = None,
    nan_policy: NanPolicy = "propagate",
) -> Tensor:
    r"""The largest counted loss: the limit of the average top-k loss as k goes to 0.

    .. math:: \max_i \ell_i

    Tied maxima share the gradient in proportion to their mass.

    Args:
        losses, mask: See `average`.
        sample_weight: See `average`; decides only what counts and how ties share.
        groups: See `average_top_k`.
        nan_policy: See `topk_weights`.

    Returns:
        See `average`.

    Raises:
        TypeError, ValueError: See `topk_threshold`.

    Example:
        >>> maximum(torch.tensor([1.0, 2.0, 9.0]))
        tensor(9.)

    Cost: three reads of the losses.
    Reference: Shalev-Shwartz, Wexler. Minimizing the Maximal Loss: How and Why. ICML 2016.
    """
    rankings = rank(losses, mask=mask, sample_weight=sample_weight, groups=groups, nan_policy=nan_policy)
    return rankings.by(largest).dot(losses)


def average_top_k(
    losses: Tensor,
    *,
    k: float | None = None,
    fraction: float | None = None,
    mask: Tensor | None = None,
    sample_weight: Tensor | None = None,
    scores: Tensor | None = None,
    groups: Tensor | None = None,
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
        groups: Integers, shaped like `losses`: elements of one number are ranked among themselves, with `k`, `fraction`
            and S of their own, and the value is the plain mean over the groups that count something. Any numbers.
        nan_policy: What a NaN among the counted does: see `topk_weights`.

    Returns:
        0-dim tensor in the unit of `losses`, float64 for float64 input and float32 otherwise; where nothing is
        counted, 0 with a gradient of exactly 0 (connected to the graph, so no other rank waits for it).

    Raises:
        TypeError, ValueError: See `topk_threshold`.

    Example:
        >>> losses = torch.tensor([3.0, 1.0, 2.0, 9.0], requires_grad=True)
        >>> value = average_top_k(losses, fraction=0.5)
        >>> value.item()
        6.0
        >>> value.backward()
        >>> losses.grad
        tensor([0.5000, 0.0000, 0.0000, 0.5000])

    Cost: on the CPU that of `topk_threshold` and one read of the losses; the backward pass reads them again and
        writes one gradient. No weights are kept, so what is given must stay as it is until then (torch says so where
        it does not). Elsewhere that of `topk_weights`, and two reads. With groups, a few reads more where they are few
        or long on the CPU, else one sort, however many they are.
    Reference: Fan, Lyu, Ying, Hu. Learning with Average Top-k Loss. NeurIPS 2017, equations 1 and 2.
    """
    check_k(k, fraction)
    given: dict[str, Any] = {"mask": mask, "sample_weight": sample_weight, "scores": scores, "groups": groups}
    return rank(losses, **given, nan_policy=nan_policy).by(top_k(k, fraction)).dot(losses)


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
    groups: Tensor | None = None,
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
        mask, sample_weight, scores, groups, nan_policy: See `average_top_k`.

    Returns:
        See `average_top_k`.

    Raises:
        TypeError, ValueError: See `topk_threshold`; also without exactly one of `drop` and `drop_fraction`.

    Example:
        >>> average_ranked_range(torch.tensor([3.0, 1.0, 2.0, 900.0]), k=2, drop=1)
        tensor(2.5000)

    Cost: that of two average top-k losses.
    Reference: Hu, Ying, Wang, Lyu. Sum of Ranked Range Loss for Supervised Learning. JMLR 23(112), 2022 (AoRR).
    """
    check_k(k, fraction)
    check_drop(drop, drop_fraction, required=True)
    given: dict[str, Any] = {"mask": mask, "sample_weight": sample_weight, "scores": scores, "groups": groups}
    rankings = rank(losses, **given, nan_policy=nan_policy)
    return rankings.by(top_k(k, fraction, drop, drop_fraction)).dot(losses)


def kth_largest(
    losses: Tensor,
    *,
    k: float | None = None,
    fraction: float | None = None,
    mask: Tensor | None = None,
    sample_weight: Tensor | None = None,
    groups: Tensor | None = None,
    nan_policy: NanPolicy = "propagate",
) -> Tensor:
    r"""The k-th largest counted loss, with its gradient: the "top-k loss" of Shalev-Shwartz and Wexler.

    .. math:: \ell_{[k]} = k\,\mathrm{AT}_k - (k - 1)\,\mathrm{AT}_{k-1}

    A difference of convex functions and *not convex*: of (0, 4) and (4, 0) with k = 2 the value is 0, of their midpoint
    (2, 2) it is 2. One element (and what ties with it) gets the whole gradient; k = n/2 is the median loss.

    Args:
        losses: See `average_top_k`.
        k, fraction: See `topk_threshold`.
        mask, sample_weight, groups, nan_policy: See `average_top_k`.

    Returns:
        See `average_top_k`.

    Raises:
        TypeError, ValueError: See `topk_threshold`.

    Example:
        >>> kth_largest(torch.tensor([3.0, 1.0, 2.0, 9.0]), k=2)
        tensor(3.)

    Cost: that of `topk_weights`.
    Reference: Shalev-Shwartz, Wexler. Minimizing the Maximal Loss: How and Why. ICML 2016; Fan et al. 2017, section 1.
    """
    check_k(k, fraction)
    rankings = rank(losses, mask=mask, sample_weight=sample_weight, groups=groups, nan_policy=nan_policy)
    return rankings.by(kth(k, fraction)).dot(losses)


def average_above(
    losses: Tensor,
    *,
    threshold: float | None = None,
    probability: float | None = None,
    min_kept: float | None = None,
    min_fraction: float | None = None,
    mask: Tensor | None = None,
    sample_weight: Tensor | None = None,
    scores: Tensor | None = None,
    groups: Tensor | None = None,
    nan_policy: NanPolicy = "propagate",
) -> Tensor:
    r"""The average of the losses above a threshold, of the `min_kept` largest where those are fewer: classic OHEM.

    .. math:: \mathrm{AT}_{k}, \qquad k = \max \big( \textstyle\sum_{i : \ell_i > t} s_i,\ \mathrm{min\_kept} \big)

    How many are kept changes as the model learns, and the value jumps where a loss crosses the threshold: it is
    neither convex nor continuous, and can *fall* when a loss grows. `average_top_k` keeps a fixed share instead.

    Args:
        losses: See `average_top_k`.
        threshold: In the unit of the losses (of `scores`, where given), compared strictly.
        probability: p in (0, 1], in place of a threshold of -log p: the probability of the right class below which an
            element is hard, where the losses are cross-entropies in nats. Exactly one of the two.
        min_kept: Least mass that is kept, >= 0; above S it means all.
        min_fraction: `min_kept` as a share of the counted mass, 0 < min_fraction <= 1. At most one of the two; without
            them nothing may be kept, and the value is then 0 with gradient 0.
        mask, sample_weight, scores, groups, nan_policy: See `average_top_k`.

    Returns:
        See `average_top_k`.

    Raises:
        TypeError, ValueError: See `topk_threshold`; also if `threshold` is NaN or a floor is out of range.

    Example:
        >>> average_above(torch.tensor([3.0, 0.1, 0.2, 9.0]), threshold=0.36, min_kept=1)
        tensor(6.)

    Cost: that of `topk_weights`; without a floor, four reads of the losses.
    Reference: Shrivastava, Gupta, Girshick. Training Region-based Object Detectors with Online Hard Example Mining.
        CVPR 2016; for pixels, in this form, the `OhemCrossEntropy` of HRNet and the `OhemCELoss` of BiSeNet.
    """
    check_floor(threshold, probability, min_kept, min_fraction)
    given: dict[str, Any] = {"mask": mask, "sample_weight": sample_weight, "scores": scores, "groups": groups}
    rankings = rank(losses, **given, nan_policy=nan_policy)
    return rankings.by(above(loss_of(threshold, probability), min_kept, min_fraction)).dot(losses)


def average_hard_negatives(
    losses: Tensor,
    positives: Tensor,
    *,
    ratio: float = 3.0,
    min_negatives: float = 0.0,
    mask: Tensor | None = None,
    sample_weight: Tensor | None = None,
    scores: Tensor | None = None,
    groups: Tensor | None = None,
    nan_policy: NanPolicy = "propagate",
) -> Tensor:
    r"""The average over all positives and the hardest negatives, `ratio` of them for each positive.

    .. math:: \frac{1}{P + N} \Big( \sum_{i \in \text{positives}} s_i \ell_i + N\,\mathrm{AT}_N(\text{negatives})
        \Big), \qquad N = \max(\mathrm{ratio} \cdot P,\ \mathrm{min\_negatives})

    P is the mass of the counted positives; N at most all negatives. Where there is no positive, N is `min_negatives`:
    with 0 such an image adds nothing. SSD divides by P instead: its loss is this one times 1 + ratio where
    there are negatives enough.

    Args:
        losses: See `average_top_k`.
        positives: Bool, shaped like `losses`; True = positive.
        ratio: Negatives per positive, > 0, real.
        min_negatives: Least mass of negatives, >= 0.
        mask, sample_weight, nan_policy: See `average_top_k`.
        scores: See `average_top_k`; only the negatives are ranked.
        groups: See `average_top_k`; SSD mines within each image.

    Returns:
        See `average_top_k`.

    Raises:
        TypeError: See `topk_threshold`; also if `positives` is not bool.
        ValueError: See `topk_threshold`; also if `ratio` or `min_negatives` is out of range.

    Example:
        >>> losses, positives = torch.tensor([1.0, 0.5, 4.0, 2.0]), torch.tensor([True, False, False, False])
        >>> average_hard_negatives(losses, positives, ratio=2)  # (1 + 4 + 2) / 3
        tensor(2.3333)

    Cost: that of `topk_weights`.
    Reference: Liu et al. SSD: Single Shot MultiBox Detector. ECCV 2016, section 2.2 (hard negative mining).
    """
    check_ratio(ratio, min_negatives)
    check_tensors(losses, mask=mask, sample_weight=sample_weight, scores=scores, groups=groups)
    check_positives(losses, positives)
    scores = positives_first(losses if scores is None else scores, positives)
    given: dict[str, Any] = {"mask": mask, "sample_weight": sample_weight, "scores": scores, "groups": groups}
    return rank(losses, **given, nan_policy=nan_policy).by(hard_negatives(ratio, min_negatives)).dot(losses)
