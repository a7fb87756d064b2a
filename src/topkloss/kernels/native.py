"""The native kernels: a shared library with a C interface, opened by name. See README.md beside this file.

Where it was not built (no compiler), or the processor lacks what makes it fast, `is_available` is False and the
portable kernels serve.
"""

from __future__ import annotations

import ctypes
import importlib.util
import itertools
import math
from collections.abc import Sequence
from ctypes import POINTER, c_char_p, c_double, c_int, c_int64, c_void_p
from typing import NamedTuple

import torch
from torch import Tensor

from topkloss.base.arguments import illegal_target
from topkloss.base.tensors import Versions, computing_dtype, versions_of

TYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}


class Logits(ctypes.Structure):
    """``topkloss_logits``."""

    _fields_ = (
        ("logits", c_void_p),
        ("type", c_int64),
        *((name, c_int64) for name in ("samples", "classes", "positions")),
        *((name, c_int64) for name in ("sample_stride", "class_stride", "position_stride")),
        ("targets", c_void_p),
        ("counts", c_void_p),
        ("class_weight", c_void_p),
        ("smoothing", c_double),
        ("threads", c_int64),
    )


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

    tensors: tuple[Tensor, Tensor | None, Tensor | None]  # what the pointers point to: scores, mass, counts
    versions: Versions  # of these

    @classmethod
    def of(cls, scores: Tensor, mass: Tensor | None = None, counts: Tensor | None = None) -> Line:
        """Tensors, as the kernels take them.

        Args:
            scores: float32 or float64, contiguous, as is all that stands beside them.
            mass: float32 or float64, shaped like them, 0 = not counted; None = 1 each.
            counts: Bool, shaped like them; None = all count.
        """
        line = cls(
            scores.data_ptr(),
            TYPES[scores.dtype],
            None if counts is None else counts.data_ptr(),
            None if mass is None else mass.data_ptr(),
            0 if mass is None else TYPES[mass.dtype],
            scores.numel(),
            torch.get_num_threads(),
        )
        line.tensors = (scores, mass, counts)
        line.versions = versions_of(scores, mass, counts)
        return line

    def __reduce__(self) -> tuple[object, ...]:
        return Line.of, self.tensors  # an address means nothing in a copy


class Counted(ctypes.Structure):
    """``topkloss_counted``."""

    _fields_ = (("mass", c_double), ("nan", c_int64), ("wrong", c_int64))


class Groups(ctypes.Structure):
    """``topkloss_groups``: so many of the same size, one after the other; or, by an index, those from `first` on."""

    _fields_ = (("index", c_void_p), ("first", c_int64), ("number", c_int64))

    tensor: Tensor | None  # what the pointer points to

    @classmethod
    def of(cls, index: Tensor | None = None, first: int = 0, number: int = 1) -> Groups:
        """Groups of a line, as the kernels take them.

        Args:
            index: The group of each element, int64, contiguous, shaped like the scores; None = `number` groups of the
                same size, one after the other.
            first: The least number of a group.
            number: How many there are.
        """
        groups = cls(None if index is None else index.data_ptr(), first, number)
        groups.tensor = index
        return groups

    def __reduce__(self) -> tuple[object, ...]:
        return Groups.of, (self.tensor, self.first, self.number)


ONE_GROUP = Groups.of()


class Bounds(ctypes.Structure):
    """``topkloss_interval``."""

    _fields_ = tuple((name, c_double) for name in ("end", "end_part", "scale", "start", "start_part"))


class Interval(NamedTuple):
    """An interval of a ranking, the largest first: an element in it weighs its mass times the scale.

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
    signatures: dict[str, tuple[object, tuple[object, ...]]] = {
        "cross_entropy": (c_int64, (POINTER(Logits), c_void_p, c_void_p)),
        "cross_entropy_gradient": (None, (POINTER(Logits), c_void_p, c_void_p)),
        "count": (None, (POINTER(Line), POINTER(Counted))),
        "above": (None, (POINTER(Line), c_double, c_void_p)),
        "kth_largest": (None, (POINTER(Line), c_double, c_void_p)),
        "find_groups": (None, (POINTER(Line), POINTER(Groups))),
        "partition": (None, (POINTER(Line), POINTER(Groups), c_void_p, c_void_p, c_void_p)),
        "weights": (None, (POINTER(Line), POINTER(Groups), POINTER(Bounds), c_int64, c_void_p)),
        "weighted_sum": (c_double, (POINTER(Line), POINTER(Groups), POINTER(Bounds), c_int64, c_void_p)),
    }
    for name, (answer, arguments) in signatures.items():
        function = getattr(functions, f"topkloss_{name}")
        function.argtypes, function.restype = arguments, answer
    vectors = functions.topkloss_vectors().decode()
    return Library(functions, spec.origin, vectors, bool(functions.topkloss_shares_openmp()))


LIBRARY = _open()
SERVES = LIBRARY is not None and LIBRARY.vectors != ""


def is_available() -> bool:
    """Whether the kernels are there and worth their while on this processor."""
    return SERVES


def count(line: Line) -> tuple[float, bool, int]:
    """The counted mass, whether something counted is NaN, and the first element whose mass is none (-1 = nowhere)."""
    found = Counted()
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


def groups_by(line: Line, index: Tensor) -> Groups:
    """The groups that an index names: those from the least to the largest that something counted is in.

    Where those are more than there are elements, their number is not the right one, but larger than that of these.

    Args:
        line: What is ranked.
        index: int64, contiguous, shaped like the scores.
    """
    groups = Groups.of(index)
    _functions().topkloss_find_groups(line, groups)
    return groups


def partition(line: Line, groups: Groups) -> list[Line]:
    """What counts in each group, which an index names: a line each, of copies.

    The order within a group is that of the line.
    """
    scores, mass, _ = line.tensors
    starts = (c_int64 * (groups.number + 1))()
    scores = torch.empty_like(scores.view(-1))
    mass = None if mass is None else torch.empty_like(mass.view(-1))
    _functions().topkloss_partition(line, groups, starts, scores.data_ptr(), _pointer(mass))
    ends = itertools.pairwise(starts)
    return [Line.of(scores[a:b], None if mass is None else mass[a:b]) for a, b in ends]


def weights(line: Line, intervals: Sequence[Interval], out: Tensor, groups: Groups = ONE_GROUP) -> None:
    """Writes what each element weighs, by the interval of its group.

    Args:
        line: What is ranked.
        intervals: One for each group.
        out: float32 or float64, shaped like the scores, contiguous.
        groups: Of the line; by default one.
    """
    _functions().topkloss_weights(line, groups, _bounds(intervals), TYPES[out.dtype], out.data_ptr())


def weighted_sum(line: Line, intervals: Sequence[Interval], losses: Tensor, groups: Groups = ONE_GROUP) -> float:
    """The sum of weights, see `weights`, times losses: float32 or float64, shaped like the scores, contiguous."""
    given = (line, groups, _bounds(intervals), TYPES[losses.dtype], losses.data_ptr())
    answer: float = _functions().topkloss_weighted_sum(*given)
    return answer


def cross_entropy(
    logits: Tensor, targets: Tensor, *, counts: Tensor | None, class_weight: Tensor | None, smoothing: float
) -> tuple[Tensor, Tensor]:
    """Losses and scores, as `topkloss.kernels.portable.cross_entropy` returns them."""
    losses = torch.empty_like(targets, dtype=computing_dtype(logits))
    scores = torch.empty_like(losses) if smoothing else losses
    of = _logits(logits, targets, counts, class_weight, smoothing)
    to = scores.data_ptr() if smoothing else None
    illegal = _functions().topkloss_cross_entropy(of, losses.data_ptr(), to)
    if illegal >= 0:
        raise illegal_target(int(targets.view(-1)[illegal]), logits.shape[1])
    return losses, scores


def gradient(
    grad_output: Tensor,
    logits: Tensor,
    targets: Tensor,
    *,
    counts: Tensor | None,
    class_weight: Tensor | None,
    smoothing: float,
    out: Tensor,
) -> None:
    """Writes the gradient in the logits of the sum of the losses times grad_output.

    Where that is 0 nothing is read but it, and zeros are written.

    Args:
        grad_output: In the dtype of the losses, shaped like the targets, contiguous.
        logits, targets, counts, class_weight, smoothing: As `cross_entropy` took them.
        out: Of the dtype, shape and strides of the logits; it may be the logits themselves.
    """
    of = _logits(logits, targets, counts, class_weight, smoothing)
    _functions().topkloss_cross_entropy_gradient(of, grad_output.data_ptr(), out.data_ptr())


def _functions() -> ctypes.CDLL:
    assert LIBRARY is not None
    return LIBRARY.functions


def _pointer(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _bounds(intervals: Sequence[Interval]) -> ctypes.Array[Bounds]:
    return (Bounds * len(intervals))(*intervals)  # type: ignore[misc]  # a tuple is taken as a structure


def _logits(
    logits: Tensor, targets: Tensor, counts: Tensor | None, class_weight: Tensor | None, smoothing: float
) -> Logits:
    return Logits(
        logits.data_ptr(),
        TYPES[logits.dtype],
        *logits.shape,
        *logits.stride(),
        targets.data_ptr(),
        _pointer(counts),
        _pointer(class_weight),
        smoothing,
        torch.get_num_threads(),
    )
