"""The native kernels: a shared library with a C interface, opened by name. See README.md beside this file.

Where it was not built (no compiler), or the processor lacks what makes it fast, `is_available` is False and the
portable kernels serve.
"""

from __future__ import annotations

import ctypes
import importlib.util
import itertools
import math
import struct
from collections.abc import Sequence
from ctypes import POINTER, c_char_p, c_double, c_int, c_int64, c_void_p
from typing import NamedTuple

import torch
from torch import Tensor

from topkloss.base.arguments import illegal_probability, illegal_target
from topkloss.base.tensors import computing_dtype
from topkloss.kernels.layout import has_scores, laid_beside, laid_out, layout_of, losses_beside

TYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}


# Structures of the C interface, as they are packed: one call, where ctypes makes an object for each field.
LOGITS = struct.Struct("P7q4Pdq")
LINE = struct.Struct("PqPPqqq")
GROUPS = struct.Struct("Pqq")
INTERVAL = struct.Struct("5d")


class Line:
    """``topkloss_line``: elements side by side. What counts has a mass above 0 and, with a mask, a true one.

    Args:
        scores: float32 or float64, contiguous, as is all that stands beside them.
        mass: float32 or float64, shaped like them, 0 = not counted; None = 1 each.
        counts: Bool, shaped like them; None = all count.
    """

    __slots__ = ("packed", "tensors")

    def __init__(self, scores: Tensor, mass: Tensor | None = None, counts: Tensor | None = None) -> None:
        self.tensors = (scores, mass, counts)  # what the pointers point to
        self.packed = LINE.pack(
            scores.data_ptr(),
            TYPES[scores.dtype],
            0 if counts is None else counts.data_ptr(),
            0 if mass is None else mass.data_ptr(),
            0 if mass is None else TYPES[mass.dtype],
            scores.numel(),
            torch.get_num_threads(),
        )

    def __reduce__(self) -> tuple[object, ...]:
        return Line, self.tensors  # an address means nothing in a copy


class Groups:
    """``topkloss_groups``: which group each element of a line is in.

    Args:
        index: The group of each element, int64, contiguous, shaped like the scores; None = `number` groups of the same
            size, one after the other.
        first: The least number of a group.
        number: How many there are.
    """

    __slots__ = ("first", "index", "number", "packed")

    def __init__(self, index: Tensor | None = None, first: int = 0, number: int = 1) -> None:
        self.index, self.first, self.number = index, first, number
        self.packed = GROUPS.pack(0 if index is None else index.data_ptr(), first, number)

    def __reduce__(self) -> tuple[object, ...]:
        return Groups, (self.index, self.first, self.number)


ONE_GROUP = Groups()


class Counted(ctypes.Structure):
    """``topkloss_counted``."""

    _fields_ = (("mass", c_double), ("nan", c_int64), ("wrong", c_int64))


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
    packed, address = c_char_p, c_void_p
    signatures: dict[str, tuple[object, tuple[object, ...]]] = {
        "cross_entropy": (c_int64, (packed, address, address)),
        "cross_entropy_gradient": (None, (packed, address, address)),
        "count": (None, (packed, POINTER(Counted))),
        "above": (None, (packed, c_double, address)),
        "kth_largest": (None, (packed, c_double, address)),
        "find_groups": (None, (packed, address)),
        "partition": (None, (packed, packed, address, address, address)),
        "weights": (None, (packed, packed, packed, c_int64, address)),
        "weighted_sum": (c_double, (packed, packed, packed, c_int64, address)),
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
    _functions().topkloss_count(line.packed, found)
    return found.mass, found.nan != 0, found.wrong


def above(line: Line, score: float) -> tuple[float, float]:
    """The counted mass above a score, and the lowest score above it; inf where there is none."""
    out = (c_double * 2)()
    _functions().topkloss_above(line.packed, score, out)
    return out[0], out[1]


def kth_largest(line: Line, need: float) -> tuple[float, float, float]:
    """The largest score t such that what is >= t holds the needed mass, more than 0; the mass above it, the mass at it.

    Where it is -inf and each mass is 1, the mass at it includes what does not count.
    """
    out = (c_double * 3)()
    _functions().topkloss_kth_largest(line.packed, need, out)
    return out[0], out[1], out[2]


def groups_by(line: Line, index: Tensor) -> Groups:
    """The groups that an index names: those from the least to the largest that something counted is in.

    Where those are more than there are elements, their number is not the right one, but larger than that of these.

    Args:
        line: What is ranked.
        index: int64, contiguous, shaped like the scores.
    """
    found = (c_int64 * 3)(index.data_ptr(), 0, 0)
    _functions().topkloss_find_groups(line.packed, found)
    return Groups(index, found[1], found[2])


def partition(line: Line, groups: Groups) -> list[Line]:
    """What counts in each group, which an index names: a line each, of copies.

    The order within a group is that of the line.
    """
    scores, mass, _ = line.tensors
    starts = (c_int64 * (groups.number + 1))()
    scores = torch.empty_like(scores.view(-1))
    mass = None if mass is None else torch.empty_like(mass.view(-1))
    to = (scores.data_ptr(), None if mass is None else mass.data_ptr())
    _functions().topkloss_partition(line.packed, groups.packed, starts, *to)
    ends = itertools.pairwise(starts)
    return [Line(scores[a:b], None if mass is None else mass[a:b]) for a, b in ends]


def weights(
    line: Line, intervals: Sequence[Interval], out: Tensor, groups: Groups = ONE_GROUP, *, factor: float = 1.0
) -> None:
    """Writes what each element weighs, by the interval of its group, times a factor.

    Args:
        line: What is ranked.
        intervals: One for each group.
        out: float32 or float64, shaped like the scores, contiguous.
        groups: Of the line; by default one.
        factor: Any; what weighs nothing stays 0.
    """
    if factor != 1.0:
        intervals = [interval._replace(scale=interval.scale * factor) for interval in intervals]
    given = (line.packed, groups.packed, _packed(intervals), TYPES[out.dtype], out.data_ptr())
    _functions().topkloss_weights(*given)


def weighted_sum(line: Line, intervals: Sequence[Interval], losses: Tensor, groups: Groups = ONE_GROUP) -> float:
    """The sum of weights, see `weights`, times losses: float32 or float64, shaped like the scores, contiguous."""
    given = (line.packed, groups.packed, _packed(intervals), TYPES[losses.dtype], losses.data_ptr())
    answer: float = _functions().topkloss_weighted_sum(*given)
    return answer


def cross_entropy(
    outputs: Tensor, targets: Tensor, *, counts: Tensor | None, class_weight: Tensor | None, smoothing: float
) -> tuple[Tensor, Tensor]:
    """Losses and scores, as `topkloss.kernels.portable.cross_entropy` returns them."""
    outputs = laid_out(outputs)
    targets = _beside(targets, outputs)
    counts = None if counts is None else counts.contiguous()
    losses = losses_beside(outputs, computing_dtype(outputs))
    scored = has_scores(targets, smoothing)
    scores = torch.empty_like(losses) if scored else losses
    of = _logits(outputs, targets, counts, class_weight, smoothing)
    illegal = _functions().topkloss_cross_entropy(of, losses.data_ptr(), scores.data_ptr() if scored else None)
    if illegal >= 0 and targets.is_floating_point():
        raise illegal_probability(targets.movedim(1, -1).reshape(-1, outputs.shape[1])[illegal].amin().item())
    if illegal >= 0:
        raise illegal_target(int(targets.view(-1)[illegal]), outputs.shape[1])
    return losses, scores


def gradient(
    grad_output: Tensor,
    outputs: Tensor,
    targets: Tensor,
    *,
    counts: Tensor | None,
    class_weight: Tensor | None,
    smoothing: float,
    out: Tensor | None = None,
) -> Tensor:
    """The gradient in the logits, as `topkloss.kernels.portable.gradient` returns it.

    Where grad_output is 0 nothing is read but it, and zeros are written.
    """
    outputs, grad_output = laid_out(outputs), grad_output.contiguous()
    targets = _beside(targets, outputs)
    counts = None if counts is None else counts.contiguous()
    out = torch.empty_like(outputs) if out is None else out
    of = _logits(outputs, targets, counts, class_weight, smoothing)
    _functions().topkloss_cross_entropy_gradient(of, grad_output.data_ptr(), out.data_ptr())
    return out


def _beside(targets: Tensor, outputs: Tensor) -> Tensor:
    """Classes contiguous; probabilities as the logits lie, in the type that is computed in."""
    if targets.is_floating_point():
        return laid_beside(targets, outputs, computing_dtype(outputs))
    return targets.contiguous()


def _functions() -> ctypes.CDLL:
    if LIBRARY is None:
        raise RuntimeError("the native kernels were not built; ask `is_available` first.")
    return LIBRARY.functions


def _packed(intervals: Sequence[Interval]) -> bytes:
    """``topkloss_interval``, one after the other."""
    return b"".join([INTERVAL.pack(*interval) for interval in intervals])


def _logits(
    outputs: Tensor, targets: Tensor, counts: Tensor | None, class_weight: Tensor | None, smoothing: float
) -> bytes:
    """``topkloss_logits``."""
    return LOGITS.pack(
        outputs.data_ptr(),
        TYPES[outputs.dtype],
        *layout_of(outputs),
        *((0, targets.data_ptr()) if targets.is_floating_point() else (targets.data_ptr(), 0)),
        0 if counts is None else counts.data_ptr(),
        0 if class_weight is None else class_weight.data_ptr(),
        smoothing,
        torch.get_num_threads(),
    )
