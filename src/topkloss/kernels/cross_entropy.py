r"""The average top-k cross-entropy in two passes over the logits, as operators of torch, on either kind of kernel.

Forward reads the logits and keeps one score for each element; the k-th largest of them settles the rule by which an
element weighs; backward reads the logits again, where something weighs, and writes one gradient. No log-probabilities
are kept. Formulas, layouts and tolerances are in README.md beside this file.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from topkloss.arguments import check_beside, check_class_weights, check_k, check_label_smoothing, check_word
from topkloss.counted import Counted, count
from topkloss.elements import class_mass, cross_entropy_elements
from topkloss.kernels import native, portable
from topkloss.losses import check_logits, cross_entropy, illegal_target
from topkloss.selection import LEAST, capacity, cut, ranked_weights, value_of
from topkloss.tensors import computing_dtype

__all__ = ["Backend", "average_top_k_cross_entropy", "check_backend"]

Backend = Literal["auto", "torch", "native"]

# Up to so many logits, what torch does in one piece costs no more; measured on the CPU.
SMALL = 2**14


def average_top_k_cross_entropy(
    outputs: Tensor,
    targets: Tensor,
    *,
    k: float | None = None,
    fraction: float | None = None,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    mask: Tensor | None = None,
    sample_weight: Tensor | None = None,
    backend: Backend = "auto",
    inplace: bool = False,
) -> Tensor:
    r"""Cross-entropy of the hardest elements: `average_top_k` of `topkloss.losses.cross_entropy`, faster and leaner.

    .. math:: \max \{ \langle w, \ell \rangle : 0 \le w_i \le s_i / k,\ \textstyle\sum_i w_i = 1 \}, \qquad
        \ell_i = -\log \mathrm{softmax}(x_i)_{y_i}

    Args:
        outputs: Logits x, shape (N, C) or (N, C, d1, ...), floating point. Half precision is computed in float32.
        targets: Class indices y in [0, C), shape (N,) or (N, d1, ...), any integer type.
        k: Mass of the elements averaged, k > 0, real. Above S it means all.
        fraction: `k` as a share of the counted mass S, 0 < fraction <= 1. Exactly one of the two.
        weight: Class weights, shape (C,), finite and >= 0: the mass s of the elements of each class.
        ignore_index: Target of the elements to leave out; it need not be a legal class.
        label_smoothing: Share of the target spread evenly over the classes, in [0, 1]; ranked is by the loss without.
        mask: Bool, shaped like `targets`; True = counts. Combined with `ignore_index`.
        sample_weight: Mass of each element, shaped like `targets`; multiplied with its class weight.
        backend: "native", the compiled kernels for the CPU; "torch", the portable ones, in chunks; or "auto": the native
            ones where they are there, and on small inputs, other devices and with `sample_weight` neither.
        inplace: Allows backward to overwrite the logits with their gradient, where the native kernels serve. They must
            be computed by the model, and are empty afterwards: a second use of them raises.

    Returns:
        See `average_top_k`.

    Raises:
        TypeError, ValueError: See `topk_threshold` and `topkloss.losses.cross_entropy`; also if `backend` is not there.
        RuntimeError: In backward, if the logits were changed or overwritten since.

    Example:
        >>> outputs = torch.tensor([[3.0, 0.0], [0.0, 0.0], [0.0, 2.0], [0.0, 9.0]])
        >>> average_top_k_cross_entropy(outputs, torch.tensor([0, 0, 0, -100]), fraction=0.5)
        tensor(1.6490)

    Cost: with a backend two reads of the logits (at most) and one write; memory for the gradient and one number for
        each element. Measured in docs/speed.md.
    Reference: see `average_top_k`.
    """
    check_k(k, fraction)
    check_label_smoothing(label_smoothing)
    check_class_weights(weight)
    check_backend(backend)
    check_logits(outputs, targets, weight)
    check_beside("targets", targets, mask=mask, sample_weight=sample_weight)
    if sample_weight is not None or not _serves(backend, outputs):
        given: dict[str, Any] = {"weight": weight, "ignore_index": ignore_index, "label_smoothing": label_smoothing}
        elements = cross_entropy_elements(outputs, targets, mask=mask, sample_weight=sample_weight, **given)
        losses, mask, mass, scores = elements[:4]
        counted = count(losses, mask=mask, sample_weight=mass, scores=scores)
        return value_of(counted, ranked_weights(counted, k=k, fraction=fraction)[0], losses)
    targets = targets.long()  # in uint8, -100 would be the class 156
    counts, mass = mask, None
    if weight is not None:
        mass = class_mass(targets, weight)
        counts = (mass != 0) if mask is None else (mass != 0) & mask
        mass = mass.masked_fill(~(counts & (targets != ignore_index)), 0)
    class_weight = None if weight is None else weight.detach().to(computing_dtype(outputs)).contiguous()
    use_native = backend != "torch" and native_serves(outputs)
    logits = _by_places(outputs)
    of_elements = [None if tensor is None else _like_places(tensor, logits) for tensor in (targets, counts, mass)]
    settings = (*of_elements, class_weight, k, fraction, ignore_index, float(label_smoothing), use_native)
    overwrites = inplace and use_native and not torch.compiler.is_compiling()
    value: Tensor
    if overwrites and torch.is_grad_enabled() and outputs.requires_grad:
        value = _Overwriting.apply(outputs, *settings)
    else:
        value, *_ = torch.ops.topkloss.top_k_cross_entropy(logits, *settings)
    return value


def check_backend(backend: str) -> None:
    """A word, and where it is "native" kernels that were built."""
    check_word("backend", backend, "auto", "torch", "native", way_out='To leave the choice to the size pass "auto".')
    if backend == "native" and not native.is_available():
        raise ValueError(
            '`backend` must be "auto" or "torch" where the native kernels are missing; got "native". '
            "`topkloss doctor` says why they are; install from source with a C++ compiler."
        )


def native_serves(outputs: Tensor) -> bool:
    """Whether the native kernels can compute with these logits."""
    return outputs.device.type == "cpu" and outputs.dtype in native.TYPES and native.is_available()


def _serves(backend: str, outputs: Tensor) -> bool:
    """Whether an operator is called: not inside of vmap and torch.func, which see through plain torch only."""
    if torch._C._are_functorch_transforms_active() or outputs.numel() == 0:
        return False
    return backend != "auto" or (native_serves(outputs) and outputs.numel() > SMALL)


def _by_places(outputs: Tensor) -> Tensor:
    """Logits as (samples, classes, places), one of the inner strides 1: a view wherever one does it."""
    view = outputs.flatten(2) if outputs.dim() > 2 else outputs.unsqueeze(2)
    if view.shape[2] == 1:
        view = view.squeeze(2).t().unsqueeze(0)
    dense = view.is_contiguous() or view.transpose(1, 2).is_contiguous()
    return view if dense else view.contiguous()


def _like_places(tensor: Tensor, logits: Tensor) -> Tensor:
    """One number for each element, as (samples, places)."""
    return tensor.reshape(logits.shape[0], logits.shape[2]).contiguous()


def _top_k_cross_entropy(
    logits: Tensor,
    targets: Tensor,
    counts: Tensor | None,
    mass: Tensor | None,
    class_weight: Tensor | None,
    k: float | None,
    fraction: float | None,
    ignore_index: int,
    smoothing: float,
    use_native: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The value; the scores, -inf where not counted; and the rule by which elements weigh (`portable.weights_by`)."""
    smoothed: dict[str, Any] = {"class_weight": class_weight, "smoothing": smoothing}
    if use_native:
        found = native.cross_entropy(logits, targets, counts=counts, ignore_index=ignore_index, **smoothed)
        if found.illegal >= 0:
            raise illegal_target(int(targets.view(-1)[found.illegal]), logits.shape[1])
        scores, losses = found.scores, found.losses
        total = torch.tensor(found.counted, dtype=torch.float64, device="cpu")
        poisoned = torch.tensor(found.nan, device="cpu")
    else:
        counts = targets != ignore_index if counts is None else (targets != ignore_index) & counts
        scores, losses = portable.cross_entropy(logits, targets, counts=counts, **smoothed)
        total = counts.sum().double()
        poisoned = scores.amax().isnan() | losses.amax().isnan()
    rule = _rule(scores, mass, total if mass is None else mass.sum(), poisoned, k, fraction)
    return _value(scores, losses, mass, rule, use_native), scores, rule


def _rule(
    scores: Tensor, mass: Tensor | None, total: Tensor, poisoned: Tensor, k: float | None, fraction: float | None
) -> Tensor:
    """Threshold, part and scale, float64."""
    omitted = torch.zeros_like(total, dtype=torch.int64)
    counted = Counted(scores, None, mass, total, None, poisoned, omitted, scores.dtype)
    wanted = capacity(total, k, fraction).maximum(LEAST * total)
    end = cut(counted, wanted)
    some = total > 0
    threshold, part = torch.where(some, end.score.double(), torch.inf), torch.where(some, end.part, 0)
    return torch.stack([threshold, part, torch.where(some, 1 / wanted, 0)])


def _value(scores: Tensor, losses: Tensor, mass: Tensor | None, rule: Tensor, use_native: bool) -> Tensor:
    """The sum of weights times losses; what weighs nothing never matters."""
    if use_native:
        threshold, part, scale = rule.tolist()
        value = native.weighted_sum(scores, losses, mass=mass, threshold=threshold, part=part, scale=scale)
        return scores.new_tensor(value)
    weights = portable.weights_by(rule, scores, mass)
    return (weights * losses.masked_fill(weights == 0, 0)).sum()


def _gradient(
    slope: Tensor,
    logits: Tensor,
    targets: Tensor,
    mass: Tensor | None,
    class_weight: Tensor | None,
    scores: Tensor,
    rule: Tensor,
    smoothing: float,
    use_native: bool,
) -> Tensor:
    """The gradient in the logits, in their strides, of the value times a slope."""
    gradient = torch.empty_like(logits)
    smoothed: dict[str, Any] = {"class_weight": class_weight, "smoothing": smoothing}
    if use_native:
        _write_natively(gradient, slope, logits, targets, mass, scores, rule, **smoothed)
    else:
        weights = portable.weights_by(rule, scores, mass)
        weights = torch.where(weights == 0, 0, weights * slope.to(weights.dtype))
        portable.gradient(logits, targets, weights, **smoothed, out=gradient)
    return gradient


def _write_natively(
    out: Tensor,
    slope: Tensor,
    logits: Tensor,
    targets: Tensor,
    mass: Tensor | None,
    scores: Tensor,
    rule: Tensor,
    *,
    class_weight: Tensor | None,
    smoothing: float,
) -> None:
    threshold, part, scale = rule.tolist()
    weights: dict[str, Any] = {"mass": mass, "threshold": threshold, "part": part, "scale": scale * float(slope)}
    native.gradient(logits, targets, scores, class_weight=class_weight, smoothing=smoothing, **weights, out=out)


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
    _, scores, rule = output
    ctx.mark_non_differentiable(scores, rule)
    ctx.save_for_backward(logits, targets, mass, class_weight, scores, rule)
    ctx.settings = (smoothing, use_native)


def _differentiate(ctx: Any, slope: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    return _backward(slope, *ctx.saved_tensors, *ctx.settings), *(None,) * 9


def _keep_again(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, smoothing, _ = inputs
    ctx.save_for_backward(*tensors)
    ctx.smoothing = smoothing


def _differentiate_again(ctx: Any, direction: Tensor) -> tuple[Tensor | None, ...]:
    """Second derivatives, by plain torch: at fixed weights the value is a sum of cross-entropies."""
    slope, logits, targets, mass, class_weight, scores, rule = ctx.saved_tensors
    with torch.enable_grad():
        slope, logits = (tensor.detach().requires_grad_() for tensor in (slope, logits))
        weights = portable.weights_by(rule, scores, mass)
        given: dict[str, Any] = {"weight": class_weight, "label_smoothing": ctx.smoothing}
        losses, _ = cross_entropy(logits, targets, mask=weights != 0, **given)
        value = (weights * losses.masked_fill(weights == 0, 0)).sum()
        (first,) = torch.autograd.grad(value, logits, create_graph=True)
        gradients = torch.autograd.grad(slope.to(first.dtype) * first, (slope, logits), direction)
    return *gradients, *(None,) * 7


_forward.register_autograd(_differentiate, setup_context=_keep)
_backward.register_autograd(_differentiate_again, setup_context=_keep_again)


class _Overwriting(torch.autograd.Function):
    """The same, whose gradient takes the place of the logits."""

    @staticmethod
    def forward(ctx: Any, outputs: Tensor, *settings: Any) -> Tensor:
        if outputs.is_leaf:
            raise ValueError(
                "`outputs` must be computed by the model for inplace=True; got a leaf, which its own gradient would "
                "overwrite. Pass inplace=False."
            )
        value, scores, rule = _top_k_cross_entropy(_by_places(outputs), *settings)
        targets, _, mass, class_weight, *_, smoothing, _ = settings
        ctx.save_for_backward(outputs, targets, mass, scores, rule)
        ctx.smoothed = {"class_weight": class_weight, "smoothing": smoothing}
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        outputs, *tensors = ctx.saved_tensors  # raises where they were overwritten already
        logits = _by_places(outputs.detach())
        _write_natively(logits, slope, logits, *tensors, **ctx.smoothed)
        gradient = logits.squeeze(0).t() if outputs.shape[1] != logits.shape[1] else logits
        torch.autograd.graph.increment_version(outputs)
        outputs.data = outputs.new_empty(0)
        return gradient, *(None,) * 9
