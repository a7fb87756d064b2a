"""What may be done with a tensor: whether its values can be looked at, and in which precision it is computed with.

And arithmetic on one number, which is Python's where values are read and a 0-dim tensor where nothing waits for them:
a law of ranks is written once for both.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import forward_ad

Scalar = float | Tensor

# How often tensors have been written to; None where that is not known.
Versions = tuple[int | None, ...]


def values_are_readable(tensor: Tensor) -> bool:
    """Whether Python may look at values here without waiting for a device or breaking a trace."""
    return not is_traced() and _is_plain(tensor)


def memory_is_readable(*tensors: Tensor | None) -> bool:
    """Whether a kernel may read these behind the back of torch: nobody follows the operations on them."""
    if is_traced() or forward_ad._current_level >= 0 or torch._C._len_torch_dispatch_stack() > 0:
        return False
    for tensor in tensors:  # a loop: every call of a criterion comes here, and a generator costs as much as a check
        if tensor is None:
            continue
        if not _is_plain(tensor) or torch._C._functorch.is_legacy_batchedtensor(tensor):
            return False
    return True


def is_traced() -> bool:
    """Whether torch.compile, torch.func or torch.jit.trace follows what happens."""
    return torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active() or torch._C._is_tracing()


def _is_plain(tensor: Tensor) -> bool:
    return (type(tensor) is Tensor or type(tensor) is torch.nn.Parameter) and tensor.is_cpu


def computing_dtype(tensor: Tensor) -> torch.dtype:
    """float64 for float64, float32 for all else: 1/k of a million pixels is no float16 number."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def dense(tensor: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """The tensor as a kernel reads it: contiguous, detached, in the type that is computed in unless one is given."""
    dtype = dtype or computing_dtype(tensor)
    if tensor.requires_grad:
        tensor = tensor.detach()
    if tensor.dtype != dtype:
        tensor = tensor.to(dtype)
    return tensor.resolve_neg().contiguous()


def only_counted(outputs: Tensor, counts: Tensor) -> Tensor:
    """The outputs (N, C, ...), with 0 where not counted, unless all are finite.

    A finite logit is harmless there: its loss is dropped, and its gradient 0.
    """
    if values_are_readable(outputs) and bool(outputs.detach().sum().isfinite()):
        return outputs
    return outputs.masked_fill(~counts.unsqueeze(1), 0)


def versions_of(*tensors: Tensor | None) -> Versions:
    """How often each has been written to so far."""
    return tuple(None if one is None or one.is_inference() else one._version for one in tensors)


def check_unchanged(versions: Versions, *tensors: Tensor | None) -> None:
    """What is read late must be as it was.

    Raises:
        RuntimeError: If a tensor has been written to since.
    """
    if versions_of(*tensors) != versions:
        raise RuntimeError(
            "what was selected from must stay as it is until the selection is read; got losses, a mask, masses or "
            "groups that were changed in place. Read `weights`, `kept` and `mass` before, or change a copy."
        )


def larger(one: Scalar, other: Scalar) -> Scalar:
    """The larger of two numbers."""
    if isinstance(one, Tensor):
        return torch.maximum(one, other) if isinstance(other, Tensor) else one.clamp(min=other)
    return max(one, float(other))


def smaller(one: Scalar, other: Scalar) -> Scalar:
    """The smaller of two numbers."""
    if isinstance(one, Tensor):
        return torch.minimum(one, other) if isinstance(other, Tensor) else one.clamp(max=other)
    return min(one, float(other))


def choose(condition: bool | Tensor, one: Scalar, other: Scalar) -> Scalar:
    """The one where the condition holds, else the other."""
    if isinstance(condition, Tensor):
        return torch.where(condition, one, other)
    return one if condition else other


def part_of(part: Scalar, whole: Scalar) -> Scalar:
    """The quotient, in [0, 1]; of nothing NaN as a tensor, 0 as a number."""
    if isinstance(part, Tensor):
        return (part / whole).clamp(0, 1)
    return min(max(part / float(whole), 0.0), 1.0) if whole else 0.0


def part_before(scores: Tensor, score: Tensor, part: Tensor) -> Tensor:
    """1 above a score, this part at it (infinities too), 0 below, in the dtype of the part.

    Arithmetic on 1, 0 and -1 is several times faster on the CPU than masks are.
    """
    side = (scores - score).nan_to_num_(nan=0.0).sign_()
    return side.to(part.dtype).add_(part).clamp(0, 1)


def ordered_bits(scores: Tensor) -> Tensor:
    """Integer keys, ordered like the scores: the bits of a float, flipped below the sign for a negative one."""
    integer, sign_bit = (torch.int64, 63) if scores.dtype == torch.float64 else (torch.int32, 31)
    bits = scores.view(integer)
    return bits ^ ((bits >> sign_bit) & torch.iinfo(integer).max)


def score_of_bits(key: Tensor, dtype: torch.dtype) -> Tensor:
    """The scores whose keys these are."""
    integer, sign_bit = (torch.int64, 63) if dtype == torch.float64 else (torch.int32, 31)
    bits = key.to(integer)
    return (bits ^ ((bits >> sign_bit) & torch.iinfo(integer).max)).view(dtype)
