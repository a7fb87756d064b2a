"""How logits lie in memory, as the kernels read them: samples, classes and positions, one of the inner strides 1."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Layout(NamedTuple):
    """Sizes and strides, in numbers: **planes**, positions contiguous, or **rows**, classes contiguous."""

    samples: int
    classes: int
    positions: int
    sample_stride: int
    class_stride: int
    position_stride: int

    def of(self, tensor: Tensor) -> Tensor:
        """A tensor that lies so, as (samples, classes, positions): a view."""
        return tensor.as_strided(self[:3], self[3:])


def laid_out(outputs: Tensor) -> Tensor:
    """Logits (N, C, ...) as a kernel can read them: as they are wherever their order in memory does, else a copy."""
    outputs = outputs.resolve_neg()
    dense = outputs.is_contiguous() or outputs.movedim(1, -1).is_contiguous()
    return outputs if dense else outputs.contiguous()


def laid_beside(tensor: Tensor, outputs: Tensor, dtype: torch.dtype) -> Tensor:
    """A tensor shaped like what `laid_out` returned, in this type and the same order in memory: itself, or a copy."""
    tensor = tensor.detach().resolve_neg()
    if tensor.dtype == dtype and tensor.stride() == outputs.stride():
        return tensor
    return torch.empty_like(outputs, dtype=dtype).copy_(tensor)


def losses_beside(outputs: Tensor, dtype: torch.dtype) -> Tensor:
    """Memory for one number of each element of the outputs (N, C, ...)."""
    return outputs.new_empty((outputs.shape[0], *outputs.shape[2:]), dtype=dtype)


def layout_of(outputs: Tensor) -> Layout:
    """The layout of what `laid_out` returned; where a sample is one element, the samples are the positions."""
    n, classes = outputs.shape[:2]
    positions = outputs.numel() // (n * classes)
    if positions == 1:
        return Layout(1, classes, n, n * classes, 1, classes)
    if outputs.is_contiguous():
        return Layout(n, classes, positions, classes * positions, positions, 1)
    return Layout(n, classes, positions, classes * positions, 1, classes)


def has_scores(targets: Tensor, smoothing: float) -> bool:
    """Whether an element is ranked by another number than its loss."""
    return bool(smoothing) or targets.is_floating_point()
