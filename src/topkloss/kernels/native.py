"""The native kernels: a shared library with a C interface, opened by name. See README.md beside this file.

Where it was not built (no compiler), or the processor lacks what makes it fast, `is_available` is False and the
portable kernels serve.
"""

from __future__ import annotations

import ctypes
import importlib.util
import math
from ctypes import POINTER, c_char_p, c_double, c_int, c_int64, c_void_p
from typing import NamedTuple

import torch
from torch import Tensor

from topkloss.base.tensors import computing_dtype

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


class Line(ctypes.Structure):
    """``topkloss_line``: elements side by side. What counts has a mass above 0 and, with a mask, a true one."""

    _fields_ = (
        ("scores", c_void_p),
        ("type", c_int64),
        ("counts", c_void_p),
        ("mass", c_void_p),
        ("mass_type", c_int64),
        ("n", c_int64),
        ("threads", c_int64),
    )

    tensors: tuple[Tensor, Tensor | None, Tensor | None]  # what the pointers point to


class OnLine(ctypes.Structure):
    """``topkloss_counted``."""

    _fields_ = (("mass", c_double), ("nan", c_int64), ("wrong", c_int64))


class Bounds(ctypes.Structure):
    """``topkloss_stretch``."""

    _fields_ = tuple((name, c_double) for name in ("end", "end_part", "scale", "start", "start_part"))


class Scored(NamedTuple):
    """What a forward pass found."""

    scores: Tensor  # -inf where not counted
    losses: Tensor  # the scores, where nothing is smoothed
    counted: int
    nan: bool  # among what counts
    illegal: int  # the place of the first counted target that is no class; -1 = none


class Stretch(NamedTuple):
    """A stretch of what is ranked, the largest first: an element in it weighs its mass times the scale.

    At its start and at its end a part of that; 0 beyond, whatever the scale. By an end of NaN all that counts weighs
    NaN.
    """

    end: float
    end_part: float
    scale: float
    start: float = math.inf
    start_part: float = 1.0


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
    given = (POINTER(Logits), POINTER(Line), POINTER(Bounds), c_void_p)
    functions.topkloss_cross_entropy_gradient.argtypes = given
    functions.topkloss_cross_entropy_gradient.restype = None
    functions.topkloss_count.argtypes = (POINTER(Line), POINTER(OnLine))
    functions.topkloss_count.restype = None
    functions.topkloss_above.argtypes = (POINTER(Line), c_double, c_void_p)
    functions.topkloss_above.restype = None
    functions.topkloss_kth_largest.argtypes = (POINTER(Line), c_double, c_void_p)
    functions.topkloss_kth_largest.restype = None
    functions.topkloss_weights.argtypes = (POINTER(Line), POINTER(Bounds), c_int64, c_void_p)
    functions.topkloss_weights.restype = None
    functions.topkloss_weighted_sum.argtypes = (POINTER(Line), POINTER(Bounds), c_int64, c_void_p)
    functions.topkloss_weighted_sum.restype = c_double
    vectors = functions.topkloss_vectors().decode()
    return Library(functions, spec.origin, vectors, bool(functions.topkloss_shares_openmp()))


LIBRARY = _open()
SERVES = LIBRARY is not None and LIBRARY.vectors != ""


def is_available() -> bool:
    """Whether the kernels are there and worth their while on this processor."""
    return SERVES


def line(scores: Tensor, mass: Tensor | None = None, counts: Tensor | None = None) -> Line:
    """Tensors, as the kernels take them.

    Args:
        scores: float32 or float64, contiguous, as is all that stands beside them.
        mass: float32 or float64, shaped like them, 0 = not counted; None = 1 each.
        counts: Bool, shaped like them; None = all count.
    """
    of = Line(
        scores.data_ptr(),
        TYPES[scores.dtype],
        None if counts is None else counts.data_ptr(),
        None if mass is None else mass.data_ptr(),
        0 if mass is None else TYPES[mass.dtype],
        scores.numel(),
        torch.get_num_threads(),
    )
    of.tensors = (scores, mass, counts)
    return of


def count(line: Line) -> tuple[float, bool, int]:
    """The counted mass, whether something counted is NaN, and the first place whose mass is none (-1 = nowhere)."""
    found = OnLine()
    _functions().topkloss_count(line, found)
    return found.mass, found.nan != 0, found.wrong


def above(line: Line, score: float) -> tuple[float, float]:
    """The counted mass above a score, and the lowest score above it; inf where there is none."""
    out = (c_double * 2)()
    _functions().topkloss_above(line, score, out)
    return out[0], out[1]


def kth_largest(line: Line, need: float) -> tuple[float, float, float]:
    """The largest score t such that what is >= t holds the needed mass, more than 0; the mass above it, the mass at it.

    Where it is -inf and each mass is 1, the mass at it includes what does not count.
    """
    out = (c_double * 3)()
    _functions().topkloss_kth_largest(line, need, out)
    return out[0], out[1], out[2]


def weights(line: Line, stretch: Stretch, out: Tensor) -> None:
    """Writes what each element weighs to `out`: float32 or float64, shaped like the scores, contiguous."""
    _functions().topkloss_weights(line, Bounds(*stretch), TYPES[out.dtype], out.data_ptr())


def weighted_sum(line: Line, stretch: Stretch, losses: Tensor) -> float:
    """The sum of weights times losses: float32 or float64, shaped like the scores, contiguous."""
    given = (line, Bounds(*stretch), TYPES[losses.dtype], losses.data_ptr())
    answer: float = _functions().topkloss_weighted_sum(*given)
    return answer


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
    scores = torch.empty_like(targets, dtype=computing_dtype(logits))
    losses = torch.empty_like(scores) if smoothing else scores
    found = Found()
    _functions().topkloss_cross_entropy(of, scores.data_ptr(), losses.data_ptr() if smoothing else None, found)
    return Scored(scores, losses, found.counted, bool(found.nan), found.illegal)


def gradient(
    logits: Tensor,
    targets: Tensor,
    line: Line,
    stretch: Stretch,
    *,
    class_weight: Tensor | None,
    smoothing: float,
    out: Tensor,
) -> None:
    """Writes the gradient of `weighted_sum` in the logits to `out`, of their strides; it may be the logits themselves.

    Args:
        logits, targets, class_weight, smoothing: As `cross_entropy` took them.
        line: The scores that it returned, and their mass; without a mask.
        stretch: What is averaged.
        out: Of the dtype, shape and strides of the logits.
    """
    of = _logits(logits, targets, None, 0, class_weight, smoothing)
    _functions().topkloss_cross_entropy_gradient(of, line, Bounds(*stretch), out.data_ptr())


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
