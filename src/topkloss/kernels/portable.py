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

from topkloss.losses import cross_entropy as losses_and_scores
from topkloss.tensors import computing_dtype, values_are_readable

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
        if logits.stride(1) == 1:
            loss, score = losses_and_scores(x.t(), target, mask=own, **given)
        else:
            loss, score = (each[0] for each in losses_and_scores(x[None], target[None], mask=own[None], **given))
        losses[sample, part] = loss.masked_fill(~own, 0)
        scores[sample, part] = score.masked_fill(~own, -torch.inf)
    return scores, losses


def weights_by(rule: Tensor, scores: Tensor, mass: Tensor | None) -> Tensor:
    """What each element weighs: the scale above the threshold, a part of it at the threshold, times its mass.

    Args:
        rule: float64, (3,): threshold, part, scale. A threshold of NaN makes all that counts NaN.
        scores: -inf where not counted.
        mass: float64; None = 1 each.
    """
    threshold, part, scale = rule.unbind()
    threshold = threshold.to(scores.dtype)
    above, at = scale.to(scores.dtype), (scale * part).to(scores.dtype)
    counts = scores > -torch.inf
    weights = torch.where(scores > threshold, above, torch.where((scores == threshold) & counts, at, 0))
    if mass is not None:
        weights = (weights.double() * mass).to(scores.dtype)
    return torch.where(threshold.isnan() & (counts | scores.isnan()), torch.nan, weights)


def gradient(
    logits: Tensor, targets: Tensor, weights: Tensor, *, class_weight: Tensor | None, smoothing: float, out: Tensor
) -> None:
    """The gradient of the weighted sum of the losses, written to `out`."""
    rows = logits.stride(1) == 1
    for sample, part in _chunks(logits):
        x, to = (tensor[sample, :, part] for tensor in (logits, out))
        x, to, dim = (x.t(), to.t(), 1) if rows else (x, to, 0)
        weight = weights[sample, part].unsqueeze(dim)
        target = targets[sample, part].unsqueeze(dim).clamp(0, logits.shape[1] - 1)
        slope = _slope(x.to(weights.dtype), target, weight, class_weight, smoothing, dim)
        if not _is_finite(slope.select(dim, 0)):  # a NaN is in every class of its element, times a weight of 0 too
            slope.masked_fill_(weight == 0, 0)
        to.copy_(slope)


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
