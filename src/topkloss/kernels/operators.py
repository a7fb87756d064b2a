"""The average top-k cross-entropy in two passes over the logits, as operators of torch, on either kind of kernel.

Forward reads the logits and keeps one score for each element; the k-th largest of them settles the rule by which an
element weighs; backward reads the logits again, where something weighs, and writes one gradient. No log-probabilities
are kept. Formulas, layouts and tolerances are in README.md beside this file.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from topkloss.base.tensors import computing_dtype, memory_is_readable
from topkloss.kernels import native, portable, rule
from topkloss.losses.pointwise import cross_entropy, illegal_target
from topkloss.ranking.stretch import weighted_sum


def top_k_cross_entropy(
    outputs: Tensor,
    targets: Tensor,
    *,
    counts: Tensor | None,
    mass: Tensor | None,
    class_weight: Tensor | None,
    k: float | None,
    fraction: float | None,
    ignore_index: int,
    smoothing: float,
    use_native: bool,
    inplace: bool,
) -> Tensor:
    """The value, by the operators or, where nothing traces them, by the native kernels directly; all has been checked.

    Args:
        outputs, targets: Logits and classes in the caller's shapes; the targets int64.
        counts: Bool, shaped like the targets; None = by `ignore_index` alone.
        mass: float64, shaped like the targets, 0 where not counted; None = 1 each.
        class_weight: Of the smoothed part, in the dtype that is computed in.
        k, fraction, ignore_index, smoothing: See `topkloss.average_top_k_cross_entropy`.
        use_native: By the native kernels, which `native_serves` must allow.
        inplace: The gradient may take the place of the logits.
    """
    number = k if fraction is None else fraction
    assert number is not None
    settings = (k is None, ignore_index, smoothing)
    value: Tensor
    if use_native and memory_is_readable(outputs, targets, counts, mass):
        inplace = inplace and torch.is_grad_enabled() and outputs.requires_grad
        value = _Native.apply(outputs, targets, counts, mass, class_weight, float(number), *settings, inplace)
        return value
    logits = _by_places(outputs)
    of_elements = [None if tensor is None else _like_places(tensor, logits) for tensor in (targets, counts, mass)]
    # beside tensors of another device the portable ones fail, with torch's own words
    use_native = use_native and all(one is None or one.device == logits.device for one in of_elements)
    asked = torch.ones((), dtype=torch.float64, device="cpu") * float(number)  # a compiled graph then serves any k
    value, *_ = torch.ops.topkloss.top_k_cross_entropy(logits, *of_elements, class_weight, asked, *settings, use_native)
    return value


def native_serves(outputs: Tensor) -> bool:
    """Whether the native kernels can compute with these logits."""
    return outputs.device.type == "cpu" and outputs.dtype in native.TYPES and native.is_available()


def _by_places(outputs: Tensor) -> Tensor:
    """Logits as (samples, classes, places), one of the inner strides 1: a view wherever one does it."""
    outputs = outputs.resolve_neg()
    view = outputs.flatten(1).t().unsqueeze(0) if _one_place_each(outputs) else outputs.flatten(2)
    dense = view.is_contiguous() or view.transpose(1, 2).is_contiguous()
    return view if dense else view.contiguous()


def _like_outputs(gradient: Tensor, outputs: Tensor) -> Tensor:
    """The other way round."""
    if _one_place_each(outputs):
        return gradient.squeeze(0).t().view(outputs.shape)
    like: Tensor = gradient.unflatten(2, outputs.shape[2:])  # type: ignore[no-untyped-call]
    return like


def _one_place_each(outputs: Tensor) -> bool:
    """Whether a sample is one element; then the samples are the places."""
    return outputs.numel() == outputs.shape[0] * outputs.shape[1]


def _like_places(tensor: Tensor, logits: Tensor) -> Tensor:
    """One number for each element, as (samples, places)."""
    return tensor.reshape(logits.shape[0], logits.shape[2]).contiguous()


def _top_k_cross_entropy(
    logits: Tensor,
    targets: Tensor,
    counts: Tensor | None,
    mass: Tensor | None,
    class_weight: Tensor | None,
    asked: Tensor,
    is_fraction: bool,
    ignore_index: int,
    smoothing: float,
    use_native: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The value; the scores, -inf where not counted; and the rule by which elements weigh (`portable.weights_by`).

    `asked` is 0-dim, float64, on the CPU: the fraction, or k.
    """
    if use_native:
        given = (class_weight, asked.item(), is_fraction, ignore_index, smoothing)
        value, scores, stretch = _natively(logits, targets, counts, mass, *given)
        return scores.new_tensor(value), scores, _in_tensors(stretch)
    counts = targets != ignore_index if counts is None else (targets != ignore_index) & counts
    smoothed: dict[str, Any] = {"class_weight": class_weight, "smoothing": smoothing}
    scores, losses = portable.cross_entropy(logits, targets, counts=counts, **smoothed)
    total = counts.sum().double() if mass is None else mass.sum()
    poisoned = scores.amax().isnan()
    if smoothing:
        poisoned = poisoned | losses.amax().isnan()
    weighing = rule.in_tensors(scores, mass, total, poisoned, asked.item(), is_fraction)
    return portable.weighted_sum(weighing, scores, losses, mass), scores, weighing


def _natively(
    logits: Tensor,
    targets: Tensor,
    counts: Tensor | None,
    mass: Tensor | None,
    class_weight: Tensor | None,
    asked: float,
    is_fraction: bool,
    ignore_index: int,
    smoothing: float,
) -> tuple[float, Tensor, native.Stretch]:
    """The same by the native kernels, the value and the rule as numbers."""
    smoothed: dict[str, Any] = {"class_weight": class_weight, "smoothing": smoothing}
    found = native.cross_entropy(logits, targets, counts=counts, ignore_index=ignore_index, **smoothed)
    if found.illegal >= 0:
        raise illegal_target(int(targets.view(-1)[found.illegal]), logits.shape[1])
    total = float(found.counted) if mass is None else mass.sum().item()
    line = native.line(found.scores, mass)
    stretch = rule.in_numbers(line, total, found.nan, asked, is_fraction)
    return native.weighted_sum(line, stretch, found.losses), found.scores, stretch


def _gradient(
    slope: Tensor,
    logits: Tensor,
    targets: Tensor,
    mass: Tensor | None,
    class_weight: Tensor | None,
    scores: Tensor,
    weighing: Tensor,
    smoothing: float,
    use_native: bool,
) -> Tensor:
    """The gradient in the logits, in their strides, of the value times a slope."""
    gradient = torch.empty_like(logits)
    smoothed: dict[str, Any] = {"class_weight": class_weight, "smoothing": smoothing}
    if use_native:
        steeper = _times(slope, native.Stretch(*weighing.tolist()))
        native.gradient(logits, targets, native.line(scores, mass), steeper, **smoothed, out=gradient)
    else:
        portable.gradient(logits, targets, scores, mass=mass, rule=weighing, slope=slope, **smoothed, out=gradient)
    return gradient


def _times(slope: Tensor, stretch: native.Stretch) -> native.Stretch:
    return stretch._replace(scale=stretch.scale * slope.item())


def _in_tensors(stretch: native.Stretch) -> Tensor:
    return torch.tensor(stretch[:3], dtype=torch.float64, device="cpu")


FORWARD, BACKWARD = "topkloss::top_k_cross_entropy", "topkloss::top_k_cross_entropy_backward"
_forward = torch.library.custom_op(FORWARD, _top_k_cross_entropy, mutates_args=())
_backward = torch.library.custom_op(BACKWARD, _gradient, mutates_args=())


@_forward.register_fake
def _(logits: Tensor, targets: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    scores = torch.empty_like(targets, dtype=computing_dtype(logits))
    return scores.new_empty(()), scores, scores.new_empty((3,), dtype=torch.float64)


@_backward.register_fake
def _(slope: Tensor, logits: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(logits)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    logits, targets, _, mass, class_weight, *_, smoothing, use_native = inputs
    _, scores, weighing = output
    ctx.mark_non_differentiable(scores, weighing)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(logits, targets, mass, class_weight, scores, weighing)
    ctx.settings = (smoothing, use_native)


def _differentiate(ctx: Any, slope: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    if slope is None:
        return (None,) * 10
    return _backward(slope, *ctx.saved_tensors, *ctx.settings), *(None,) * 9


def _keep_again(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, smoothing, _ = inputs
    ctx.save_for_backward(*tensors)
    ctx.smoothing = smoothing


def _differentiate_again(ctx: Any, direction: Tensor) -> tuple[Tensor | None, ...]:
    """Second derivatives, by plain torch: at fixed weights the value is a sum of cross-entropies."""
    slope, logits, targets, mass, class_weight, scores, weighing = ctx.saved_tensors
    with torch.enable_grad():
        slope, logits = (tensor.detach().requires_grad_() for tensor in (slope, logits))
        weights = portable.weights_by(weighing, scores, mass)
        given: dict[str, Any] = {"weight": class_weight, "label_smoothing": ctx.smoothing}
        losses, _ = cross_entropy(logits, targets, mask=weights != 0, **given)
        (first,) = torch.autograd.grad(weighted_sum(weights, losses), logits, create_graph=True)
        gradients = torch.autograd.grad(slope.to(first.dtype) * first, (slope, logits), direction)
    return *gradients, *(None,) * 7


_forward.register_autograd(_differentiate, setup_context=_keep)
_backward.register_autograd(_differentiate_again, setup_context=_keep_again)


class _Native(torch.autograd.Function):
    """The same by the native kernels, where nothing is traced: without what an operator costs in Python.

    In place, the gradient takes the storage of the logits; not where it will be differentiated itself.
    """

    @staticmethod
    def forward(
        ctx: Any,
        outputs: Tensor,
        targets: Tensor,
        counts: Tensor | None,
        mass: Tensor | None,
        class_weight: Tensor | None,
        asked: float,
        is_fraction: bool,
        ignore_index: int,
        smoothing: float,
        inplace: bool,
    ) -> Tensor:
        if inplace and (outputs.is_leaf or (outputs._base is not None and outputs._base.is_leaf)):
            raise ValueError(
                "`outputs` must be computed by the model for inplace=True; got a leaf or a view of one, which its own "
                "gradient would overwrite. Pass inplace=False."
            )
        logits = _by_places(outputs)
        targets = _like_places(targets, logits)
        counts, mass = (None if each is None else _like_places(each, logits) for each in (counts, mass))
        given = (class_weight, asked, is_fraction, ignore_index, smoothing)
        value, scores, stretch = _natively(logits, targets, counts, mass, *given)
        ctx.save_for_backward(outputs, targets, mass, class_weight, scores)
        ctx.settings = (stretch, smoothing, inplace)
        return scores.new_tensor(value)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        outputs, targets, mass, class_weight, scores = ctx.saved_tensors  # raises where they were overwritten already
        stretch, smoothing, inplace = ctx.settings
        logits = _by_places(outputs)
        if torch.is_grad_enabled() or not memory_is_readable(slope):
            weighing = _in_tensors(stretch)
            gradient = _backward(slope, logits, targets, mass, class_weight, scores, weighing, smoothing, True)
            return _like_outputs(gradient, outputs), *(None,) * 9
        out = logits.detach() if inplace else torch.empty_like(logits)
        smoothed: dict[str, Any] = {"class_weight": class_weight, "smoothing": smoothing}
        line = native.line(scores, mass)
        native.gradient(logits, targets, line, _times(slope, stretch), **smoothed, out=out)
        gradient = _like_outputs(out, outputs)
        if inplace:
            torch.autograd.graph.increment_version(outputs)
            outputs.data = outputs.new_empty(0)
        return gradient, *(None,) * 9
