"""The native kernels: a shared library with a C interface, opened by name. See README.md beside this file.

Where it was not built (no compiler), or the processor lacks what makes it fast, `is_available` is False and the
portable kernels serve.
"""

from __future__ import annotations

import ctypes
import importlib.util
from ctypes import POINTER, byref, c_char_p, c_double, c_int, c_int64, c_void_p
from typing import NamedTuple

import torch
from torch import Tensor

from topkloss.tensors import computing_dtype

TYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}


class Logits(ctypes.Structure):
    """``topkloss_logits``."""

    _fields_ = (
        ("logits", c_void_p),
        ("type", c_int64),
        *((name, c_int64) for name in ("samples", "classes", "places")),
        *((name, c_int64) for name in ("sample_stride", "class_stride", "place_stride")),
        ("targets", c_void_p),
        ("counts", c_void_p),
        ("ignore_index", c_int64),
        ("class_weight", c_void_p),
        ("smoothing", c_double),
        ("threads", c_int64),
    )


class Found(ctypes.Structure):
    """``topkloss_found``."""

    _fields_ = (("counted", c_int64), ("nan", c_int64), ("illegal", c_int64))


class Rule(ctypes.Structure):
    """``topkloss_rule``."""

    _fields_ = (("mass", c_void_p), ("threshold", c_double), ("part", c_double), ("scale", c_double))


class Scored(NamedTuple):
    """What a forward pass found."""

    scores: Tensor  # -inf where not counted
    losses: Tensor  # the scores, where nothing is smoothed
    counted: int
    nan: bool  # among what counts
    illegal: int  # the place of the first counted target that is no class; -1 = none


class Library(NamedTuple):
    """What was opened."""

    functions: ctypes.CDLL
    path: str
    vectors: str  # the instructions in use: "avx512", "avx2", "native"; "" where the processor lacks them
    shares_openmp: bool  # threads are those of torch's own runtime


def _open() -> Library | None:
    """The library; None where it was not built, or was built for another system and cannot be opened."""
    spec = importlib.util.find_spec("topkloss.kernels._native")
    if spec is None or spec.origin is None:
        return None
    try:
        functions = ctypes.CDLL(spec.origin)
    except OSError:
        return None
    functions.topkloss_vectors.restype = c_char_p
    functions.topkloss_shares_openmp.restype = c_int
    functions.topkloss_cross_entropy.argtypes = (POINTER(Logits), c_void_p, c_void_p, POINTER(Found))
    functions.topkloss_cross_entropy.restype = None
    functions.topkloss_cross_entropy_gradient.argtypes = (POINTER(Logits), c_void_p, POINTER(Rule), c_void_p)
    functions.topkloss_cross_entropy_gradient.restype = None
    functions.topkloss_weighted_sum.argtypes = (c_int64, c_void_p, c_void_p, c_int64, POINTER(Rule), c_int64)
    functions.topkloss_weighted_sum.restype = c_double
    functions.topkloss_kth_largest.argtypes = (c_int64, c_void_p, c_void_p, c_int64, c_double, c_int64, c_void_p)
    functions.topkloss_kth_largest.restype = None
    vectors = functions.topkloss_vectors().decode()
    return Library(functions, spec.origin, vectors, bool(functions.topkloss_shares_openmp()))


LIBRARY = _open()
SERVES = LIBRARY is not None and LIBRARY.vectors != ""


def is_available() -> bool:
    """Whether the kernels are there and worth their while on this processor."""
    return SERVES


def kth_largest(scores: Tensor, mass: Tensor | None, need: float) -> tuple[float, float, float]:
    """The largest score t such that what is >= t holds the needed mass, the mass above it, the mass at it.

    Args:
        scores: float32 or float64, contiguous, not empty; see `topkloss.threshold.kth_largest`.
        mass: float64, shaped like them, contiguous; None = 1 each.
        need: Above 0.
    """
    out = (c_double * 3)()
    _functions().topkloss_kth_largest(
        TYPES[scores.dtype], scores.data_ptr(), _pointer(mass), scores.numel(), need, torch.get_num_threads(), out
    )
    return out[0], out[1], out[2]


def cross_entropy(
    logits: Tensor,
    targets: Tensor,
    *,
    counts: Tensor | None,
    ignore_index: int,
    class_weight: Tensor | None,
    smoothing: float,
) -> Scored:
    """See `topkloss.kernels.portable.cross_entropy`; here what counts may also be said by `ignore_index` alone."""
    of = _logits(logits, targets, counts, ignore_index, class_weight, smoothing)
    scores = torch.empty(targets.shape, dtype=computing_dtype(logits))
    losses = torch.empty_like(scores) if smoothing else scores
    found = Found()
    _functions().topkloss_cross_entropy(
        byref(of), scores.data_ptr(), losses.data_ptr() if smoothing else None, byref(found)
    )
    return Scored(scores, losses, found.counted, bool(found.nan), found.illegal)


def gradient(
    logits: Tensor,
    targets: Tensor,
    scores: Tensor,
    *,
    class_weight: Tensor | None,
    smoothing: float,
    mass: Tensor | None,
    rule: tuple[float, float, float],
    out: Tensor,
) -> None:
    """Writes the gradient of `weighted_sum` in the logits to `out`, of their strides; it may be the logits themselves.

    Args:
        logits, targets, class_weight, smoothing: As `cross_entropy` took them.
        scores: What it returned.
        mass: float64, shaped like the targets; None = 1 each.
        rule: Threshold, part, scale; see `topkloss.kernels.portable.weights_by`.
        out: Of the dtype, shape and strides of the logits.
    """
    of = _logits(logits, targets, None, 0, class_weight, smoothing)
    weights = Rule(_pointer(mass), *rule)
    _functions().topkloss_cross_entropy_gradient(byref(of), scores.data_ptr(), byref(weights), out.data_ptr())


def weighted_sum(scores: Tensor, losses: Tensor, *, mass: Tensor | None, rule: tuple[float, float, float]) -> float:
    """The sum of weights times losses, the weights by the rule; see `topkloss.kernels.portable.weights_by`."""
    weights = Rule(_pointer(mass), *rule)
    answer: float = _functions().topkloss_weighted_sum(
        TYPES[scores.dtype],
        scores.data_ptr(),
        losses.data_ptr(),
        scores.numel(),
        byref(weights),
        torch.get_num_threads(),
    )
    return answer


def _functions() -> ctypes.CDLL:
    assert LIBRARY is not None
    return LIBRARY.functions


def _pointer(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _logits(
    logits: Tensor,
    targets: Tensor,
    counts: Tensor | None,
    ignore_index: int,
    class_weight: Tensor | None,
    smoothing: float,
) -> Logits:
    samples, classes, places = logits.shape
    return Logits(
        logits.data_ptr(),
        TYPES[logits.dtype],
        samples,
        classes,
        places,
        *logits.stride(),
        targets.data_ptr(),
        _pointer(counts),
        ignore_index,
        _pointer(class_weight),
        smoothing,
        torch.get_num_threads(),
    )
