"""What may be done with a tensor: whether its values can be looked at, and in which precision it is computed with."""

from __future__ import annotations

import torch
from torch import Tensor


def values_are_readable(tensor: Tensor) -> bool:
    """Whether Python may look at values here without waiting for a device or breaking a trace."""
    return (
        tensor.device.type == "cpu"
        and type(tensor) in (Tensor, torch.nn.Parameter)
        and not torch._C._are_functorch_transforms_active()
        and not torch.compiler.is_compiling()
    )


def computing_dtype(tensor: Tensor) -> torch.dtype:
    """float64 for float64, float32 for all else: 1/k of a million pixels is no float16 number."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32
