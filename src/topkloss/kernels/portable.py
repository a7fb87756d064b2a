"""The portable kernels: a few positions at a time, so that nothing as large as the logits is kept but the gradient.

They run wherever torch does, and are what the native ones are judged against. Inside, logits have the form
(samples, classes, positions); everything else, one number for each element, the form (samples, positions).

And `composed`, the formula in torch's own operations, which autograd, torch.func and a compiler see through.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from topkloss.base.arguments import illegal_probability, illegal_target
from topkloss.base.tensors import computing_dtype, only_counted, values_are_readable
from topkloss.kernels.layout import has_scores, laid_beside, laid_out, layout_of, losses_beside

# Logits that are computed with at a time: copies of so many stay in the cache.
CHUNK = 2**18


def composed(
    outputs: Tensor, targets: Tensor, *, counts: Tensor | None, class_weight: Tensor | None, smoothing: float
) -> tuple[Tensor, Tensor]:
    """Losses and scores of each element, 0 where not counted; differentiable any number of times.

    Args:
        outputs: Logits, (N, C) or (N, C, d1, ...), floating point.
        targets: int64, shaped like the outputs without their classes; or probabilities, floating point, shaped like
            the outputs.
        counts: Bool, shaped like the outputs without their classes; None = all count.
        class_weight: (C,), of the smoothed part, or of the whole loss where the targets are probabilities; None = 1
            each.
        smoothing: Share of the target that is spread over the classes.

    Returns:
        See `cross_entropy`; the scores carry no gradient.

    Raises:
        ValueError: If a counted target is no class, or a probability below 0, where values can be read; elsewhere its
            loss is NaN.
    """
    classes = outputs.shape[1]
    outputs = outputs.to(computing_dtype(outputs))
    if targets.is_floating_point():
        return _of_probabilities(outputs, targets, counts, class_weight, smoothing)
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


def _of_probabilities(
    outputs: Tensor, targets: Tensor, counts: Tensor | None, class_weight: Tensor | None, smoothing: float
) -> tuple[Tensor, Tensor]:
    """(1 - smoothing) sum of w_c t_c (-log p_c) + smoothing / C * sum of w_c (-log p_c); the score has the first alone.

    Without its weights, and less the targets' own entropy.
    """
    targets = targets.to(outputs.dtype)
    if counts is not None:
        targets = targets.masked_fill(~counts.unsqueeze(1), 0)
        outputs = only_counted(outputs, counts)
    illegal = (targets < 0).any(dim=1)
    if values_are_readable(targets) and bool(illegal.any()):
        raise illegal_probability(targets.amin().item())
    log_probabilities = F.log_softmax(outputs, dim=1)
    # 0 of an infinite loss is 0; of a finite one it has a gradient in the targets
    of_targets = log_probabilities.masked_fill((targets == 0) & (log_probabilities == -torch.inf), 0)
    known = targets.detach()
    scores = -(known * of_targets.detach()).sum(dim=1) + torch.xlogy(known, known).sum(dim=1)
    if class_weight is not None:
        column = class_weight.detach().to(outputs.dtype).view(1, -1, *(1,) * (outputs.dim() - 2))
        of_targets, log_probabilities = of_targets * column, log_probabilities * column
    losses = -(targets * of_targets).sum(dim=1)
    if smoothing:
        losses = (1 - smoothing) * losses - smoothing / outputs.shape[1] * log_probabilities.sum(dim=1)
    losses = losses.masked_fill(illegal, torch.nan)
    if counts is not None:
        losses, scores = losses.masked_fill(~counts, 0), scores.masked_fill(~counts, 0)
    return losses, scores


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

    Of probabilities the scores are also without class weights, and less the targets' own entropy.

    Args:
        outputs, targets, counts, class_weight, smoothing: See `composed`; without gradient.

    Raises:
        ValueError: See `composed`.
    """
    outputs = laid_out(outputs)
    losses = losses_beside(outputs, computing_dtype(outputs))
    scored = has_scores(targets, smoothing)
    scores = torch.empty_like(losses) if scored else losses
    given: dict[str, Any] = {"class_weight": class_weight, "smoothing": smoothing}
    logits = layout_of(outputs).of(outputs)
    losses_to, scores_to = _by_positions(losses, logits), _by_positions(scores, logits)
    of_targets = _targets_of_parts(targets, outputs)
    counts = None if counts is None else _by_positions(counts, logits)
    for sample, part in _chunks(logits):
        x, target = logits[sample, :, part], of_targets(sample, part)
        own = None if counts is None else counts[sample, part]
        if own is not None and values_are_readable(own) and bool(own.all()):
            own = None
        if logits.stride(1) == 1:
            loss, score = composed(x.t(), target.t(), counts=own, **given)
        else:
            own = None if own is None else own[None]
            loss, score = (each[0] for each in composed(x[None], target[None], counts=own, **given))
        losses_to[sample, part] = loss
        if scored:
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
    weights, of_targets = _by_positions(grad_output, logits), _targets_of_parts(targets, outputs)
    of_probabilities = targets.is_floating_point()
    rows = logits.stride(1) == 1
    for sample, part in _chunks(logits):
        x, to = (tensor[sample, :, part] for tensor in (logits, into))
        x, to, dim = (x.t(), to.t(), 1) if rows else (x, to, 0)
        weight = weights[sample, part].unsqueeze(dim)
        x, target = x.to(weight.dtype), of_targets(sample, part)
        if of_probabilities:
            target = target.t() if rows else target
            each = _gradient_by(x, target.to(x.dtype), weight, class_weight, smoothing, dim)
        else:
            target = target.unsqueeze(dim).clamp(0, logits.shape[1] - 1)
            each = _gradient(x, target, weight, class_weight, smoothing, dim)
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


def _gradient_by(
    x: Tensor, targets: Tensor, weight: Tensor, class_weight: Tensor | None, smoothing: float, dim: int
) -> Tensor:
    """The same of probabilities: the weight times (softmax times the sum of the target - target)."""
    classes = x.shape[dim]
    if smoothing:
        targets = targets * (1 - smoothing) + smoothing / classes
    if class_weight is not None:
        targets = targets * (class_weight.to(x.dtype) if dim == 1 else class_weight.to(x.dtype).unsqueeze(1))
    total = targets.sum(dim=dim, keepdim=True)
    return F.softmax(x, dim=dim).mul_(weight * total).sub_(targets * weight)


def _targets_of_parts(targets: Tensor, outputs: Tensor) -> Callable[[int, slice], Tensor]:
    """What returns the targets of some positions of a sample: classes (positions,), or probabilities (C, positions)."""
    layout = layout_of(outputs)
    if targets.is_floating_point():
        probabilities = layout.of(laid_beside(targets, outputs, targets.dtype))
        return lambda sample, part: probabilities[sample, :, part]
    labels = targets.reshape(layout.samples, layout.positions)
    return lambda sample, part: labels[sample, part]


def _chunks(logits: Tensor) -> Iterator[tuple[int, slice]]:
    """Sample by sample, so many positions that their logits stay in the cache."""
    samples, classes, positions = logits.shape
    size = max(CHUNK // max(classes, 1), 1)
    for sample in range(samples):
        for first in range(0, positions, size):
            yield sample, slice(first, first + size)
