"""The portable kernels: a few places at a time, so that nothing as large as the logits is ever kept but the gradient.

They run wherever torch does, and are what the native ones are judged against. Logits have the form
(samples, classes, places); everything else, one number for each element, the form (samples, places).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from topkloss.base.tensors import computing_dtype, values_are_readable
from topkloss.losses.pointwise import cross_entropy as losses_and_scores
from topkloss.ranking.stretch import weighted_sum as sum_of

# Logits that are computed with at a time: copies of so many stay in the cache.
CHUNK = 2**18


def cross_entropy(
    logits: Tensor, targets: Tensor, *, counts: Tensor, class_weight: Tensor | None, smoothing: float
) -> tuple[Tensor, Tensor]:
    """Scores, -inf where not counted, and losses, 0 there: where nothing is smoothed, the scores themselves.

    Args:
        logits: Floating point, (samples, classes, places).
        targets: int64, (samples, places).
        counts: Bool, shaped like the targets.
        class_weight: Of the smoothed part, (classes,); None = 1 each.
        smoothing: Share of the target that is spread over the classes.

    Raises:
        ValueError: If a counted target is no class, where values can be read.
    """
    scores = torch.empty_like(targets, dtype=computing_dtype(logits))
    losses = torch.empty_like(scores) if smoothing else scores
    given: dict[str, Any] = {"weight": class_weight, "label_smoothing": smoothing}
    for sample, part in _chunks(logits):
        x, target, own = logits[sample, :, part], targets[sample, part], counts[sample, part]
        mask = None if values_are_readable(own) and bool(own.all()) else own
        if logits.stride(1) == 1:
            loss, score = losses_and_scores(x.t(), target, mask=mask, **given)
        else:
            mask = None if mask is None else mask[None]
            loss, score = (each[0] for each in losses_and_scores(x[None], target[None], mask=mask, **given))
        if smoothing:
            losses[sample, part] = loss if mask is None else loss.masked_fill(~own, 0)
        scores[sample, part] = score if mask is None else score.masked_fill(~own, -torch.inf)
    return scores, losses


def weights_by(rule: Tensor, scores: Tensor, mass: Tensor | None) -> Tensor:
    """What each element weighs: the scale above the threshold, a part of it at the threshold, times its mass.

    By arithmetic on 1 (above), 0 (at) and -1 (below), which is several times faster on the CPU than masks are.

    Args:
        rule: float64, (3,): threshold, part, scale. A scale of NaN makes all that counts NaN.
        scores: -inf where not counted.
        mass: float64; None = 1 each.
    """
    threshold, part, _ = rule.to(scores.dtype).unbind()
    scale = rule[2]  # in float64: masses may be tiny or huge
    weights = (scores - threshold).nan_to_num_(nan=0.0).sign_().add_(part).clamp_(0, 1)
    weights = weights.mul_(scale) if mass is None else (mass * weights).mul_(scale).to(scores.dtype)
    if values_are_readable(threshold) and bool(threshold > -torch.inf):  # what does not count lies below
        return weights
    return weights.masked_fill_(scores == -torch.inf, 0)


def weighted_sum(rule: Tensor, scores: Tensor, losses: Tensor, mass: Tensor | None) -> Tensor:
    """The sum of weights times losses, 0-dim, in their dtype."""
    total = rule.new_zeros(())
    scores, losses, mass = scores.view(-1), losses.view(-1), None if mass is None else mass.view(-1)
    for first in range(0, scores.numel(), CHUNK):
        part = slice(first, first + CHUNK)
        total += sum_of(weights_by(rule, scores[part], None if mass is None else mass[part]), losses[part])
    return total.to(losses.dtype)


def gradient(
    logits: Tensor,
    targets: Tensor,
    scores: Tensor,
    *,
    class_weight: Tensor | None,
    smoothing: float,
    mass: Tensor | None,
    rule: Tensor,
    slope: Tensor,
    out: Tensor,
) -> None:
    """The gradient of the slope times the weighted sum of the losses, written to `out`."""
    rows = logits.stride(1) == 1
    slope = slope.to(scores.dtype)
    for sample, part in _chunks(logits):
        x, to = (tensor[sample, :, part] for tensor in (logits, out))
        x, to, dim = (x.t(), to.t(), 1) if rows else (x, to, 0)
        weight = weights_by(rule, scores[sample, part], None if mass is None else mass[sample, part])
        weight = torch.where(weight == 0, weight, weight * slope).unsqueeze(dim)
        target = targets[sample, part].unsqueeze(dim).clamp(0, logits.shape[1] - 1)
        each = _slope(x.to(scores.dtype), target, weight, class_weight, smoothing, dim)
        if not _is_finite(each.select(dim, 0)):  # a NaN is in every class of its element, times a weight of 0 too
            each.masked_fill_(weight == 0, 0)
        to.copy_(each)


def _is_finite(numbers: Tensor) -> bool:
    """Whether they are known to be, where that costs no wait for a device."""
    return values_are_readable(numbers) and bool(numbers.sum().isfinite())


def _slope(
    x: Tensor, target: Tensor, weight: Tensor, class_weight: Tensor | None, smoothing: float, dim: int
) -> Tensor:
    """The weight times (softmax - target), the target smoothed; the classes are the dimension `dim`."""
    if smoothing == 0.0:
        return F.softmax(x, dim=dim).mul_(weight).scatter_add_(dim, target, -weight)
    classes = x.shape[dim]
    share = x.new_ones(classes) if class_weight is None else class_weight.to(x.dtype)
    own = share[target]
    relative = smoothing / classes / torch.where(own > 0, own, 1)
    slope = F.softmax(x, dim=dim).mul_(1 - smoothing + relative * share.sum())
    slope.sub_(relative * (share if dim == 1 else share.unsqueeze(1)))
    return slope.scatter_add_(dim, target, torch.full_like(own, smoothing - 1)).mul_(weight)


def _chunks(logits: Tensor) -> Iterator[tuple[int, slice]]:
    """Sample by sample, so many places that their logits stay in the cache."""
    samples, classes, places = logits.shape
    size = max(CHUNK // max(classes, 1), 1)
    for sample in range(samples):
        for first in range(0, places, size):
            yield sample, slice(first, first + size)
