"""The kernels as torch sees them: an unreduced cross-entropy, and the k-th largest, of whichever kernel serves.

Forward reads the logits and keeps one number for each element; no log-probabilities. Backward takes one number for each
element, and writes the gradient of the logits: zeros, without reading them, where the number is 0. What is selected
among the elements, and how it is weighed, is nothing to the kernel. Formulas, layouts and tolerances are in README.md
beside this file.

Where nothing is traced an autograd function calls the kernels: an operator costs more than a small batch. Under
torch.compile they are operators, and where torch must see through them (torch.func, forward mode) they are composed of
its own operations.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd import forward_ad

from topkloss.base.tensors import computing_dtype, memory_is_readable
from topkloss.kernels import native, portable

Backend = Literal["auto", "torch", "native"]


def cross_entropy(
    outputs: Tensor,
    targets: Tensor,
    *,
    counts: Tensor | None,
    class_weight: Tensor | None = None,
    smoothing: float = 0.0,
    backend: Backend = "auto",
    inplace: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """The cross-entropy of each element, 0 where not counted, and the score to rank it by; all has been checked.

    Args:
        outputs: Logits, (N, C) or (N, C, d1, ...), floating point.
        targets: int64, shaped like the outputs without their classes.
        counts: Bool, shaped like the targets; None = all count.
        class_weight: Of the smoothed part, (C,), in the dtype that is computed in; None = 1 each.
        smoothing: Share of the target that is spread over the classes.
        backend: "native", the compiled kernels for the CPU; "torch", the portable ones; "auto": the first that serves.
        inplace: The gradient may take the place of the logits, where the native kernels serve.

    Returns:
        Losses; and scores, the losses without smoothing, which carry no gradient: None where nothing is smoothed.
    """
    smoothed: tuple[Tensor | None, float] = (class_weight, smoothing)
    readable = memory_is_readable(outputs, targets, counts)
    served = _served(outputs, targets, counts, backend, readable)
    if served is None:
        composed = {"class_weight": class_weight, "smoothing": smoothing}
        losses, scores = portable.composed(outputs, targets, counts=counts, **composed)  # type: ignore[arg-type]
    elif readable:
        inplace = inplace and served and torch.is_grad_enabled() and outputs.requires_grad
        losses, scores = _CrossEntropy.apply(outputs, targets, counts, *smoothed, served, inplace)
    else:
        logits = by_positions(outputs)
        of_elements = [None if one is None else like_positions(one, logits) for one in (targets, counts)]
        losses, scores = (
            one.view(targets.shape) if one.numel() == targets.numel() else one
            for one in torch.ops.topkloss.cross_entropy(logits, *of_elements, *smoothed, served)
        )
    return losses, scores if smoothing else None


def native_serves(outputs: Tensor) -> bool:
    """Whether the native kernels can compute with these logits."""
    return outputs.device.type == "cpu" and outputs.dtype in native.TYPES and native.is_available()


def _served(outputs: Tensor, targets: Tensor, counts: Tensor | None, backend: Backend, readable: bool) -> bool | None:
    """By the native kernels (True), by the portable ones (False), or by neither: torch must see through it (None)."""
    if outputs.numel() == 0 or torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0:
        return None
    # beside tensors of another device the portable ones fail, with torch's own words
    here = targets.device == outputs.device and (counts is None or counts.device == outputs.device)
    if backend != "torch" and native_serves(outputs):
        return here
    return False if backend == "torch" or readable else None


def by_positions(outputs: Tensor) -> Tensor:
    """Logits as (samples, classes, positions), one of the inner strides 1: a view wherever one does it."""
    outputs = outputs.resolve_neg()
    view = outputs.flatten(1).t().unsqueeze(0) if _one_position_each(outputs) else outputs.flatten(2)
    dense = view.is_contiguous() or view.transpose(1, 2).is_contiguous()
    return view if dense else view.contiguous()


def _like_outputs(gradient: Tensor, outputs: Tensor) -> Tensor:
    """The gradient of logits by positions, in the shape of the outputs."""
    if _one_position_each(outputs):
        return gradient.squeeze(0).t().view(outputs.shape)
    like: Tensor = gradient.unflatten(2, outputs.shape[2:])  # type: ignore[no-untyped-call]
    return like


def _one_position_each(outputs: Tensor) -> bool:
    """Whether a sample is one element; then the samples are the positions."""
    return outputs.numel() == outputs.shape[0] * outputs.shape[1]


def like_positions(tensor: Tensor, logits: Tensor) -> Tensor:
    """One number for each element, as (samples, positions)."""
    return tensor.reshape(logits.shape[0], logits.shape[2]).contiguous()


class _CrossEntropy(torch.autograd.Function):
    """Losses and scores by the kernels, where nothing is traced: without what an operator costs in Python.

    In place, the gradient takes the storage of the logits; not where it will be differentiated itself.
    """

    @staticmethod
    def forward(
        ctx: Any,
        outputs: Tensor,
        targets: Tensor,
        counts: Tensor | None,
        class_weight: Tensor | None,
        smoothing: float,
        use_native: bool,
        inplace: bool,
    ) -> tuple[Tensor, Tensor | None]:
        if inplace and (outputs.is_leaf or (outputs._base is not None and outputs._base.is_leaf)):
            raise ValueError(
                "`outputs` must be computed by the model for inplace=True; got a leaf or a view of one, which its own "
                "gradient would overwrite. Pass inplace=False."
            )
        logits, shape = by_positions(outputs), targets.shape
        targets = like_positions(targets, logits)
        counts = None if counts is None else like_positions(counts, logits)
        losses, scores = _kernels(use_native).cross_entropy(
            logits, targets, counts=counts, class_weight=class_weight, smoothing=smoothing
        )
        ctx.save_for_backward(outputs, targets, counts, class_weight)
        ctx.settings = (smoothing, use_native)
        ctx.inplace = inplace
        if not smoothing:
            return losses.view(shape), None
        scores = scores.view(shape)
        ctx.mark_non_differentiable(scores)
        return losses.view(shape), scores

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        outputs, targets, counts, class_weight = ctx.saved_tensors  # raises where they were overwritten already
        logits, inplace = by_positions(outputs), ctx.inplace
        grad_output = like_positions(grad_output, logits)
        if torch.is_grad_enabled() or not memory_is_readable(grad_output):
            gradient = _backward(grad_output, logits, targets, counts, class_weight, *ctx.settings)
            return _like_outputs(gradient, outputs), *(None,) * 6
        out = logits.detach() if inplace else torch.empty_like(logits)
        smoothed = {"class_weight": class_weight, "smoothing": ctx.settings[0]}
        _kernels(ctx.settings[1]).gradient(grad_output, logits, targets, counts=counts, **smoothed, out=out)
        gradient = _like_outputs(out, outputs)
        if inplace:
            torch.autograd.graph.increment_version(outputs)
            outputs.data = outputs.new_empty(0)
        return gradient, *(None,) * 6


def _kernels(use_native: bool) -> Any:
    return native if use_native else portable


def _losses(
    logits: Tensor,
    targets: Tensor,
    counts: Tensor | None,
    class_weight: Tensor | None,
    smoothing: float,
    use_native: bool,
) -> tuple[Tensor, Tensor]:
    """Losses and scores of logits by positions; the scores empty where nothing is smoothed."""
    given = {"counts": counts, "class_weight": class_weight, "smoothing": smoothing}
    losses, scores = _kernels(use_native).cross_entropy(logits, targets, **given)
    return losses, scores if smoothing else losses.new_empty(0)


def _gradient(
    grad_output: Tensor,
    logits: Tensor,
    targets: Tensor,
    counts: Tensor | None,
    class_weight: Tensor | None,
    smoothing: float,
    use_native: bool,
) -> Tensor:
    """The gradient in the logits, in their strides."""
    out = torch.empty_like(logits)
    given = {"counts": counts, "class_weight": class_weight, "smoothing": smoothing, "out": out}
    _kernels(use_native).gradient(grad_output.contiguous(), logits, targets, **given)
    return out


def find_kth_largest(scores: Tensor, mass: Tensor | None, need: Tensor) -> Tensor:
    """The largest score such that what is at least as large holds the needed mass; the mass above it, and at it.

    float64, (3,); of flat scores on the CPU. See `native.kth_largest`; -inf and nothing where nothing is needed.
    """
    if not (scores.numel() > 0 and need.item() > 0):
        answer = (-torch.inf, 0.0, 0.0)
    else:
        mass = None if mass is None else mass.contiguous()
        answer = native.kth_largest(native.Line.of(scores.contiguous(), mass), need.item())
    return torch.tensor(answer, dtype=torch.float64, device="cpu")


_forward = torch.library.custom_op("topkloss::cross_entropy", _losses, mutates_args=())
_backward = torch.library.custom_op("topkloss::cross_entropy_backward", _gradient, mutates_args=())
kth_largest = torch.library.custom_op("topkloss::kth_largest", find_kth_largest, mutates_args=())


@_forward.register_fake
def _(
    logits: Tensor,
    targets: Tensor,
    counts: Tensor | None,
    class_weight: Tensor | None,
    smoothing: float,
    use_native: bool,
) -> tuple[Tensor, Tensor]:
    losses = torch.empty_like(targets, dtype=computing_dtype(logits))
    return losses, torch.empty_like(losses) if smoothing else losses.new_empty(0)


@_backward.register_fake
def _(grad_output: Tensor, logits: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(logits)


@kth_largest.register_fake
def _(scores: Tensor, *_: Any) -> Tensor:
    return scores.new_empty(3, dtype=torch.float64)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, smoothing, use_native = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors)
    ctx.settings = (smoothing, use_native)


def _differentiate(ctx: Any, grad_output: Tensor | None, _: Any) -> tuple[Tensor | None, ...]:
    if grad_output is None:
        return (None,) * 6
    return _backward(grad_output, *ctx.saved_tensors, *ctx.settings), *(None,) * 5


def _keep_again(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, smoothing, _ = inputs
    ctx.save_for_backward(*tensors)
    ctx.smoothing = smoothing


def _differentiate_again(ctx: Any, direction: Tensor) -> tuple[Tensor | None, ...]:
    """Second derivatives, by plain torch; in the logits exactly 0 where grad_output is."""
    grad_output, logits, targets, counts, class_weight = ctx.saved_tensors
    with torch.enable_grad():
        factors, x = (tensor.detach().requires_grad_() for tensor in (grad_output, logits))
        given: dict[str, Any] = {"counts": counts, "class_weight": class_weight, "smoothing": ctx.smoothing}
        losses, _ = portable.composed(x, targets, **given)
        (first,) = torch.autograd.grad(losses, x, factors, create_graph=True)
        of_factors, of_logits = torch.autograd.grad(first, (factors, x), direction)
    return of_factors, of_logits.masked_fill((grad_output == 0).unsqueeze(1), 0), *(None,) * 5


_forward.register_autograd(_differentiate, setup_context=_keep)
_backward.register_autograd(_differentiate_again, setup_context=_keep_again)
