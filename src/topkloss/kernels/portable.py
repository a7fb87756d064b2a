"""The portable kernels: a few positions at a time, so that nothing as large as the logits is kept but the gradient.

They run wherever torch does, and are what the native ones are judged against. Inside, logits have the form
(samples, classes, positions); everything else, one number for each element, the form (samples, positions).

And `composed`, the formula in torch's own operations, which autograd, torch.func and a compiler see through.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from topkloss.base.arguments import illegal_target
from topkloss.base.tensors import computing_dtype, only_counted, values_are_readable
from topkloss.kernels.layout import laid_out, layout_of

# Logits that are computed with at a time: copies of so many stay in the cache.
CHUNK = 2**18


def composed(
    outputs: Tensor, targets: Tensor, *, counts: Tensor | None, class_weight: Tensor | None, smoothing: float
) -> tuple[Tensor, Tensor]:
    """Losses and scores of each element, 0 where not counted; differentiable any number of times.

    Args:
        outputs: Logits, (N, C) or (N, C, d1, ...), floating point.
        targets: int64, shaped like the outputs without their classes.
        counts: Bool, shaped like the targets; None = all count.
        class_weight: Of the smoothed part, (C,); None = 1 each.
        smoothing: Share of the target that is spread over the classes.

    Returns:
        See `cross_entropy`; the scores carry no gradient.

    Raises:
        ValueError: If a counted target is no class, where values can be read; elsewhere its loss is NaN.
    """
    classes = outputs.shape[1]
    outputs = outputs.to(computing_dtype(outputs))
    if counts is not None:
        targets = targets.masked_fill(~counts, 0)
        outputs = only_counted(outputs, counts)
    illegal = None
    if not _are_classes(targets, classes):
        illegal = (targets < 0) | (targets >= classes)
        if values_are_readable(targets):
            raise illegal_target(int(targets[illegal][0]), classes)
        targets = targets.masked_fill(illegal, 0)
    losses, scores = _smoothed(outputs, targets, class_weight, smoothing)
    if illegal is not None:
        losses = losses.masked_fill(illegal, torch.nan)
    if counts is not None:
        losses = losses.masked_fill(~counts, 0)
        scores = scores.masked_fill(~counts, 0)
    return losses, scores if smoothing else losses.detach()


def _smoothed(outputs: Tensor, targets: Tensor, class_weight: Tensor | None, smoothing: float) -> tuple[Tensor, Tensor]:
    """(1 - smoothing) (-log p_y) + smoothing / C * sum of w_c / w_y (-log p_c); and the score, -log p_y."""
    if smoothing == 0.0:
        losses = F.cross_entropy(outputs, targets, reduction="none")
        return losses, losses.detach()
    log_probabilities = F.log_softmax(outputs, dim=1)
    nll = F.nll_loss(log_probabilities, targets, reduction="none")
    if class_weight is None:
        of_classes = -log_probabilities.sum(dim=1)
    else:
        class_weight = class_weight.detach().to(outputs.dtype)
        column = class_weight.view(1, -1, *(1,) * (outputs.dim() - 2))
        own = class_weight[targets]
        of_classes = -(log_probabilities * column).sum(dim=1) / torch.where(own > 0, own, 1)
    return (1 - smoothing) * nll + smoothing / outputs.shape[1] * of_classes, nll.detach()


def _are_classes(targets: Tensor, classes: int) -> bool:
    """Whether all are known to be, by one read of what can be read."""
    if not values_are_readable(targets):
        return False
    if targets.numel() == 0:
        return True
    least, most = torch.aminmax(targets)
    return bool(least >= 0) and bool(most < classes)


def cross_entropy(
    outputs: Tensor, targets: Tensor, *, counts: Tensor | None, class_weight: Tensor | None, smoothing: float
) -> tuple[Tensor, Tensor]:
    """Losses, 0 where not counted, and scores: the losses without smoothing (without any, the same tensor).

    Args:
        outputs, targets, counts, class_weight, smoothing: See `composed`; without gradient.

    Raises:
        ValueError: If a counted target is no class, where values can be read; elsewhere its loss is NaN.
    """
    outputs = laid_out(outputs)
    losses = torch.empty_like(targets, dtype=computing_dtype(outputs), memory_format=torch.contiguous_format)
    scores = torch.empty_like(losses) if smoothing else losses
    given: dict[str, Any] = {"class_weight": class_weight, "smoothing": smoothing}
    logits = layout_of(outputs).of(outputs)
    losses_to, scores_to, targets = (_by_positions(one, logits) for one in (losses, scores, targets))
    counts = None if counts is None else _by_positions(counts, logits)
    for sample, part in _chunks(logits):
        x, target = logits[sample, :, part], targets[sample, part]
        own = None if counts is None else counts[sample, part]
        if own is not None and values_are_readable(own) and bool(own.all()):
            own = None
        if logits.stride(1) == 1:
            loss, score = composed(x.t(), target, counts=own, **given)
        else:
            own = None if own is None else own[None]
            loss, score = (each[0] for each in composed(x[None], target[None], counts=own, **given))
        losses_to[sample, part] = loss
        if smoothing:
            scores_to[sample, part] = score
    return losses, scores


def gradient(
    grad_output: Tensor,
    outputs: Tensor,
    targets: Tensor,
    *,
    counts: Tensor | None,
    class_weight: Tensor | None,
    smoothing: float,
    out: Tensor | None = None,
) -> Tensor:
    """The gradient in the logits of the sum of the losses times grad_output; exactly 0 where that is.

    Args:
        grad_output: In the dtype of the losses, shaped like the targets.
        outputs, targets, counts, class_weight, smoothing: As `cross_entropy` took them.
        out: Memory for it, of the dtype and strides of what `laid_out` returns of the outputs, which it may be; None =
            new.
    """
    outputs = laid_out(outputs)
    out = torch.empty_like(outputs) if out is None else out
    if counts is not None:
        grad_output = grad_output.masked_fill(~counts, 0)
    layout = layout_of(outputs)
    logits, into = layout.of(outputs), layout.of(out)
    weights, targets = _by_positions(grad_output, logits), _by_positions(targets, logits)
    rows = logits.stride(1) == 1
    for sample, part in _chunks(logits):
        x, to = (tensor[sample, :, part] for tensor in (logits, into))
        x, to, dim = (x.t(), to.t(), 1) if rows else (x, to, 0)
        weight = weights[sample, part].unsqueeze(dim)
        target = targets[sample, part].unsqueeze(dim).clamp(0, logits.shape[1] - 1)
        each = _gradient(x.to(weight.dtype), target, weight, class_weight, smoothing, dim)
        if not _is_finite(each.select(dim, 0)):  # a NaN is in every class of its element, times a weight of 0 too
            each.masked_fill_(weight == 0, 0)
        to.copy_(each)
    return out


def _by_positions(numbers: Tensor, logits: Tensor) -> Tensor:
    """One number for each element, as (samples, positions); of contiguous ones a view."""
    return numbers.reshape(logits.shape[0], logits.shape[2])


def _is_finite(numbers: Tensor) -> bool:
    """Whether they are known to be, where that costs no wait for a device."""
    return values_are_readable(numbers) and bool(numbers.sum().isfinite())


def _gradient(
    x: Tensor, target: Tensor, weight: Tensor, class_weight: Tensor | None, smoothing: float, dim: int
) -> Tensor:
    """The weight times (softmax - target), the target smoothed; the classes are the dimension `dim`."""
    if smoothing == 0.0:
        return F.softmax(x, dim=dim).mul_(weight).scatter_add_(dim, target, -weight)
    classes = x.shape[dim]
    share = x.new_ones(classes) if class_weight is None else class_weight.to(x.dtype)
    own = share[target]
    relative = smoothing / classes / torch.where(own > 0, own, 1)
    gradient = F.softmax(x, dim=dim).mul_(1 - smoothing + relative * share.sum())
    gradient.sub_(relative * (share if dim == 1 else share.unsqueeze(1)))
    return gradient.scatter_add_(dim, target, torch.full_like(own, smoothing - 1)).mul_(weight)


def _chunks(logits: Tensor) -> Iterator[tuple[int, slice]]:
    """Sample by sample, so many positions that their logits stay in the cache."""
    samples, classes, positions = logits.shape
    size = max(CHUNK // max(classes, 1), 1)
    for sample in range(samples):
        for first in range(0, positions, size):
            yield sample, slice(first, first + size)
