r"""Aggregates without a selection: the average top-k loss through a learned threshold, and the tilted average.

The gradient of the first flows into its threshold too, which is how it knows more than one batch; the second
weighs every loss by its exponential.
"""

from __future__ import annotations

import torch
from torch import Tensor

from topkloss.base.arguments import (
    NanPolicy,
    check_k,
    check_nan_policy,
    check_smoothing,
    check_tensors,
    check_threshold,
    check_tilt,
)
from topkloss.ranking.tensor_ranking import TensorRanking, tensor_ranking, weighted_sum

__all__ = ["average_tilted", "average_top_k_dual"]

# Beyond so many widths the rounded corner is half a width below the corner, to the last digit.
WIDE = 1e9


def average_top_k_dual(
    losses: Tensor,
    threshold: Tensor,
    *,
    fraction: float,
    smoothing: float = 0.0,
    mask: Tensor | None = None,
    sample_weight: Tensor | None = None,
    nan_policy: NanPolicy = "propagate",
) -> Tensor:
    r"""The average top-k loss as seen from a threshold: minimised over the threshold too, it is that of all data.

    .. math:: \lambda + \frac{1}{f S} \sum_i s_i\, [\ell_i - \lambda]_+ , \qquad S = \sum_i s_i, \quad
        f = \mathrm{fraction}

    Never below the `average_top_k` of the batch; equal to it where :math:`\lambda` is its threshold. Its mean over
    batches is its value on all data, so gradient steps on (parameters, :math:`\lambda`) minimise the average top-k
    loss *of the data set*, however small the batches; the mean of the batches' own is smaller (they are biased down).
    Convex in both together where the losses are convex. With ``smoothing`` :math:`= \delta > 0` the corner is rounded
    off (ST_k):

    .. math:: [x]_+ \approx \tfrac12 \big(x + \sqrt{x^2 + \delta^2} - \delta\big)

    which is smaller than the corner by less than :math:`\delta / 2`.

    Args:
        losses: See `average_top_k`.
        threshold: :math:`\lambda`, 0-dim, floating point, in the unit of the losses; gets a gradient, of
            ``1 - (share of the batch above it) / fraction``.
        fraction: Share of the data that is averaged, 0 < fraction <= 1.
        smoothing: Width :math:`\delta` of the rounded corner, in the unit of the losses, >= 0.
        mask, sample_weight, nan_policy: See `average_top_k`.

    Returns:
        See `average_top_k`. Where nothing is counted, 0, and no gradient in the threshold either.

    Raises:
        TypeError, ValueError: See `topk_threshold`; also if `threshold` is no 0-dim floating-point tensor, or
            `smoothing` out of range.

    Example:
        >>> losses = torch.tensor([9.0, 7.0, 5.0, 3.0])
        >>> [average_top_k_dual(losses, torch.tensor(at), fraction=0.5).item() for at in (3.0, 5.0, 9.0)]
        [9.0, 8.0, 9.0]

    Cost: four reads of the losses.
    Reference: Fan et al. 2017, equations 2 to 4; Rockafellar, Uryasev 2000. With smoothing: Xia, Liu, Mao, on ST_k,
        NeurIPS 2024.
    """
    check_k(None, fraction)
    check_threshold(threshold)
    check_smoothing(smoothing)
    return seen_from(_rank(losses, mask, sample_weight, nan_policy), losses, threshold, fraction, smoothing)


def average_tilted(
    losses: Tensor,
    *,
    tilt: float,
    mask: Tensor | None = None,
    sample_weight: Tensor | None = None,
    nan_policy: NanPolicy = "propagate",
) -> Tensor:
    r"""The log-mean-exp of the losses: between the average (tilt to 0) and the maximum (tilt to infinity).

    .. math:: \frac1t \log \Big( \frac1S \sum_i s_i\, e^{t \ell_i} \Big), \qquad S = \sum_i s_i

    Every loss gets some gradient, in proportion to :math:`s_i e^{t \ell_i}`; a negative tilt favours the small ones.
    For t > 0 convex, and a bound on the tail: the average top-k loss is at most this :math:`+ \frac1t \log(S / k)`.

    Args:
        losses: See `average_top_k`.
        tilt: t, finite and not 0, in one over the unit of the losses.
        mask, sample_weight, nan_policy: See `average_top_k`.

    Returns:
        See `average_top_k`.

    Raises:
        TypeError, ValueError: See `topk_threshold`; also if `tilt` is 0 or not finite.

    Example:
        >>> average_tilted(torch.tensor([1.0, 2.0, 9.0]), tilt=1.0)
        tensor(7.9026)

    Cost: six reads of the losses.
    Reference: Li, Beirami, Sanjabi, Smith. Tilted Empirical Risk Minimization. ICLR 2021.
    """
    check_tilt(tilt)
    ranking = _rank(losses, mask, sample_weight, nan_policy)
    even = ranking.even().dense()
    if losses.numel() == 0:
        return losses.to(ranking.dtype).sum()
    counts = ranking.each_mass() > 0
    tilted_losses = torch.where(counts, losses.to(ranking.dtype) * tilt, -torch.inf)
    largest = tilted_losses.detach().amax()
    # inf - inf is no number: what ties with an infinite largest one shares the gradient, as in `maximum`
    distance = torch.where(tilted_losses == largest, 0, tilted_losses.detach() - largest)
    weights = even * distance.exp()
    weights = weights / weights.sum().clamp(min=torch.finfo(weights.dtype).tiny)
    linear = weighted_sum(torch.where(counts, weights, 0), losses)
    finite = largest.isfinite()
    level = torch.where(finite, largest, 0)
    powers = torch.where(finite, tilted_losses - level, 0).exp()
    mean = torch.where(finite, weighted_sum(even, powers), 1)
    return torch.where(finite, (level + mean.log()) / tilt, linear)


def _rank(losses: Tensor, mask: Tensor | None, sample_weight: Tensor | None, nan_policy: NanPolicy) -> TensorRanking:
    check_tensors(losses, mask=mask, sample_weight=sample_weight)
    check_nan_policy(nan_policy)
    return tensor_ranking(losses, mask=mask, sample_weight=sample_weight, nan_policy=nan_policy)


def seen_from(ranking: TensorRanking, losses: Tensor, threshold: Tensor, fraction: float, smoothing: float) -> Tensor:
    """The dual form at this threshold."""
    threshold = threshold.to(ranking.dtype)
    shift = torch.where(ranking.total.sum() > 0, threshold, 0)
    if ranking.ranks is None:
        return shift + _excess(ranking, losses, threshold, fraction, smoothing)
    # the threshold is the criterion's own: nobody averages its gradient over the processes
    fixed = threshold.detach()
    selected = ranking.ranks.sum(weights_from(ranking, losses.detach(), fixed, fraction, smoothing).sum())
    excess = ranking.ranks.total(_excess(ranking, losses, fixed, fraction, smoothing))
    return shift + excess - selected * (threshold - fixed)


def _excess(ranking: TensorRanking, losses: Tensor, threshold: Tensor, fraction: float, smoothing: float) -> Tensor:
    """The mean of what lies above the threshold, over the fraction; this process's part of it."""
    losses = losses.to(ranking.dtype)
    above = _positive_part(losses - threshold.to(ranking.dtype), smoothing)
    above = torch.where(ranking.has_nan, losses, above)  # below the threshold a NaN shows as well
    return weighted_sum(ranking.even().dense(), above) / fraction


def weights_from(
    ranking: TensorRanking, losses: Tensor, threshold: Tensor, fraction: float, smoothing: float
) -> Tensor:
    r"""The gradient of the excess in the losses: what each would weigh; in the threshold it is minus their sum.

    With :math:`x = \ell - \lambda` and the corner rounded over :math:`\delta`, the derivative of the positive part is
    :math:`\tfrac12 (1 + x / \sqrt{x^2 + \delta^2})`; for x < 0 in the form that does not cancel.
    """
    x = losses.to(ranking.dtype) - threshold.to(ranking.dtype)
    derivative = (x > 0).to(x.dtype)
    if smoothing > 0:
        near = torch.where(x.abs() < WIDE * smoothing, x, 0)
        root = (near.square() + smoothing**2).sqrt()
        rounded = torch.where(near > 0, 1 + near / root, smoothing**2 / (root * (root - near.clamp(max=0)))) / 2
        derivative = torch.where(x.abs() < WIDE * smoothing, rounded, derivative)
    even = ranking.even().dense()
    return torch.where(even == 0, 0, even * derivative / fraction)


def _positive_part(x: Tensor, smoothing: float) -> Tensor:
    """[x]_+, its corner rounded off."""
    if smoothing == 0.0:
        return x.relu()
    near = x.abs() < WIDE * smoothing
    inside = torch.where(near, x, 0)
    behind = torch.where(inside > 0, 0, inside)  # where x + root would cancel
    doubled = torch.where(
        inside > 0,
        inside + (inside.square() + smoothing**2).sqrt(),
        smoothing**2 / ((behind.square() + smoothing**2).sqrt() - behind),
    )
    return (torch.where(near, doubled / 2, x.relu()) - smoothing / 2).to(x.dtype)
