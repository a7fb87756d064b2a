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

import functools
import sys
import weakref
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd import forward_ad

from topkloss.base.tensors import computing_dtype, memory_is_readable
from topkloss.kernels import native, portable
from topkloss.kernels.layout import has_scores, laid_out, losses_beside

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
        targets: int64, shaped like the outputs without their classes; or probabilities, floating point, shaped like
            the outputs. Where they need a gradient torch's own operations serve.
        counts: Bool, shaped like the outputs without their classes; None = all count.
        class_weight: (C,), in the dtype that is computed in: of the smoothed part, or of the whole loss where the
            targets are probabilities; None = 1 each.
        smoothing: Share of the target that is spread over the classes.
        backend: "native", the compiled kernels for the CPU; "torch", the portable ones; "auto": the first that serves.
        inplace: The gradient may take the place of the logits, where the native kernels serve.

    Returns:
        Losses; and scores, which carry no gradient: the losses without smoothing, None where nothing is smoothed. Of
        probabilities, the losses without smoothing and class weights, less the targets' own entropy.
    """
    readable = memory_is_readable(outputs, targets, counts)
    served = _served(outputs, targets, counts, backend, readable)
    if served is None:
        losses, scores = portable.composed(
            outputs, targets, counts=counts, class_weight=class_weight, smoothing=smoothing
        )
    elif readable:
        inplace = inplace and served and torch.is_grad_enabled() and outputs.requires_grad
        losses, scores = _CrossEntropy.apply(outputs, targets, counts, class_weight, (smoothing, served, inplace))
    else:
        losses, scores = torch.ops.topkloss.cross_entropy(outputs, targets, counts, class_weight, smoothing, served)
    return losses, scores if has_scores(targets, smoothing) else None


def _served(outputs: Tensor, targets: Tensor, counts: Tensor | None, backend: Backend, readable: bool) -> bool | None:
    """By the native kernels (True), by the portable ones (False), or by neither: torch must see through it (None)."""
    if outputs.numel() == 0 or (targets.requires_grad and torch.is_grad_enabled()):
        return None
    native_serves = backend != "torch" and outputs.dtype in native.TYPES and native.is_available()
    if readable:  # on the CPU, all of it
        return native_serves
    if torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0:
        return None
    if native_serves and outputs.is_cpu:
        # beside tensors of another device the portable ones fail, with torch's own words
        return targets.is_cpu and (counts is None or counts.is_cpu)
    return False if backend == "torch" else None


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
        settings: tuple[float, bool, bool],
    ) -> tuple[Tensor, Tensor | None]:
        smoothing, use_native, inplace = settings
        if inplace and (outputs.is_leaf or (outputs._base is not None and outputs._base.is_leaf)):
            raise ValueError(
                "`outputs` must be computed by the model for inplace=True; got a leaf or a view of one, which its own "
                "gradient would overwrite. Pass inplace=False."
            )
        losses, scores = _kernels(use_native).cross_entropy(
            outputs, targets, counts=counts, class_weight=class_weight, smoothing=smoothing
        )
        kept: tuple[Tensor | None, ...] = (targets, counts, class_weight)
        if any(one is not None and one.is_inference() for one in kept):  # which autograd does not keep
            kept = tuple(None if one is None else one.clone() for one in kept)
        ctx.save_for_backward(outputs, *kept)
        ctx.settings, ctx.own = settings, weakref.ref(outputs)
        if not has_scores(targets, smoothing):
            return losses, None
        ctx.mark_non_differentiable(scores)
        return losses, scores

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        outputs, targets, counts, class_weight = ctx.saved_tensors  # raises where they were overwritten already
        smoothing, use_native, inplace = ctx.settings
        if torch.is_grad_enabled():
            return _composed_gradient(grad_output, outputs, targets, counts, class_weight, smoothing), *(None,) * 4
        if not memory_is_readable(grad_output):
            gradient = _backward(grad_output, outputs, targets, counts, class_weight, smoothing, use_native)
            return gradient, *(None,) * 4
        # what hooks of saved tensors return is another tensor, whose second use nothing would notice
        inplace = inplace and outputs is ctx.own() and not _is_held_elsewhere(outputs)
        logits = laid_out(outputs)
        gradient = _kernels(use_native).gradient(
            grad_output,
            logits,
            targets,
            counts=counts,
            class_weight=class_weight,
            smoothing=smoothing,
            out=logits.detach() if inplace else None,
        )
        if inplace:
            torch.autograd.graph.increment_version(outputs)
            outputs.data = outputs.new_empty(0)
        return gradient, *(None,) * 4


def _is_held_elsewhere(outputs: Tensor) -> bool:
    """Whether something else reads the storage of these: a detached tensor, a view, numpy, a base in a variable."""
    return any(now > alone for now, alone in zip(_holders(outputs), _of_nobody(outputs._base is not None), strict=True))


@functools.cache
def _of_nobody(is_view: bool) -> tuple[int, int, int]:
    """What holds a tensor that only this module knows, or that and its base."""
    with torch.inference_mode(False):
        if is_view:
            return _holders(torch.empty(2, device="cpu")[:1])
        return _holders(torch.empty(2, device="cpu"))


def _holders(outputs: Tensor) -> tuple[int, int, int]:
    """The tensors on a storage, the references to it in Python, and those to the base."""
    base, storage = outputs._base, outputs.untyped_storage()
    tensors = torch._C._storage_Use_Count(storage._cdata)
    return tensors, sys.getrefcount(storage), 0 if base is None else sys.getrefcount(base)


def _composed_gradient(
    grad_output: Tensor,
    outputs: Tensor,
    targets: Tensor,
    counts: Tensor | None,
    class_weight: Tensor | None,
    smoothing: float,
) -> Tensor:
    """The gradient in the logits by torch's own operations, to be differentiated itself, any number of times."""
    losses, _ = portable.composed(outputs, targets, counts=counts, class_weight=class_weight, smoothing=smoothing)
    (gradient,) = torch.autograd.grad(losses, outputs, grad_output, create_graph=True)
    unselected = (grad_output == 0).unsqueeze(1)
    return torch.where(unselected & ~gradient.isfinite(), 0, gradient)


def _kernels(use_native: bool) -> Any:
    return native if use_native else portable


def _losses(
    outputs: Tensor,
    targets: Tensor,
    counts: Tensor | None,
    class_weight: Tensor | None,
    smoothing: float,
    use_native: bool,
) -> tuple[Tensor, Tensor]:
    """Losses and scores; the scores empty where nothing is smoothed."""
    given = {"counts": counts, "class_weight": class_weight, "smoothing": smoothing}
    losses, scores = _kernels(use_native).cross_entropy(outputs, targets, **given)
    return losses, scores if has_scores(targets, smoothing) else losses.new_empty(0)


def _gradient(
    grad_output: Tensor,
    outputs: Tensor,
    targets: Tensor,
    counts: Tensor | None,
    class_weight: Tensor | None,
    smoothing: float,
    use_native: bool,
) -> Tensor:
    """The gradient in the logits."""
    given = {"counts": counts, "class_weight": class_weight, "smoothing": smoothing}
    gradient: Tensor = _kernels(use_native).gradient(grad_output, outputs, targets, **given)
    return gradient


def find_kth_largest(scores: Tensor, mass: Tensor | None, need: Tensor) -> Tensor:
    """The largest score such that what is at least as large holds the needed mass; the mass above it, and at it.

    float64, (3,); of flat scores on the CPU. See `native.kth_largest`; -inf and nothing where nothing is needed.
    """
    if not (scores.numel() > 0 and need.item() > 0):
        answer = (-torch.inf, 0.0, 0.0)
    else:
        mass = None if mass is None else mass.contiguous()
        answer = native.kth_largest(native.Line(scores.contiguous(), mass), need.item())
    return torch.tensor(answer, dtype=torch.float64, device="cpu")


_forward = torch.library.custom_op("topkloss::cross_entropy", _losses, mutates_args=())
_backward = torch.library.custom_op("topkloss::cross_entropy_backward", _gradient, mutates_args=())
kth_largest = torch.library.custom_op("topkloss::kth_largest", find_kth_largest, mutates_args=())


@_forward.register_fake
def _(
    outputs: Tensor,
    targets: Tensor,
    counts: Tensor | None,
    class_weight: Tensor | None,
    smoothing: float,
    use_native: bool,
) -> tuple[Tensor, Tensor]:
    losses = losses_beside(outputs, computing_dtype(outputs))
    return losses, torch.empty_like(losses) if has_scores(targets, smoothing) else losses.new_empty(0)


@_backward.register_fake
def _(grad_output: Tensor, outputs: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(laid_out(outputs))


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
    """Second derivatives, by plain torch; in the outputs exactly 0 where grad_output is."""
    if torch.is_grad_enabled():
        raise RuntimeError("an operator has two derivatives; for a third call the loss outside of torch.compile.")
    grad_output, outputs, targets, counts, class_weight = ctx.saved_tensors
    with torch.enable_grad():
        factors, x = (tensor.detach().requires_grad_() for tensor in (grad_output, outputs))
        given: dict[str, Any] = {"counts": counts, "class_weight": class_weight, "smoothing": ctx.smoothing}
        losses, _ = portable.composed(x, targets, **given)
        (first,) = torch.autograd.grad(losses, x, factors, create_graph=True)
        of_factors, of_outputs = torch.autograd.grad(first, (factors, x), direction)
    return of_factors, of_outputs.masked_fill((grad_output == 0).unsqueeze(1), 0), *(None,) * 5


_forward.register_autograd(_differentiate, setup_context=_keep)
_backward.register_autograd(_differentiate_again, setup_context=_keep_again)
