"""What may be done with a tensor: whether its values can be looked at, and in which precision it is computed with.

And arithmetic on one number, which is Python's where values are read and a 0-dim tensor where nothing waits for them:
a law of ranks is written once for both.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import forward_ad

Scalar = float | Tensor


def values_are_readable(tensor: Tensor) -> bool:
    """Whether Python may look at values here without waiting for a device or breaking a trace."""
    return (
        type(tensor) in (Tensor, torch.nn.Parameter)
        and tensor.is_cpu
        and not torch._C._are_functorch_transforms_active()
        and not torch.compiler.is_compiling()
        and not torch._C._is_tracing()
    )


def memory_is_readable(tensor: Tensor, *beside: Tensor | None) -> bool:
    """Whether a kernel may read them behind the back of torch: nobody follows the operations on them."""
    return (
        values_are_readable(tensor)
        and forward_ad._current_level < 0
        and torch._C._len_torch_dispatch_stack() == 0
        and not torch._C._functorch.is_legacy_batchedtensor(tensor)  # many slopes at once, in a backward pass
        and all(values_are_readable(other) for other in beside if other is not None)
    )


def computing_dtype(tensor: Tensor) -> torch.dtype:
    """float64 for float64, float32 for all else: 1/k of a million pixels is no float16 number."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


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
