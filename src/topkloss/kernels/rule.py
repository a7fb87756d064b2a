"""The stretch by which elements weigh: in tensors, for which no device waits, or in numbers, as native kernels take it.

A dozen operations of torch on one number each take longer than a small batch.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from topkloss.base.tensors import Scalar, larger
from topkloss.kernels import native
from topkloss.ranking.ranking import Counted, Line
from topkloss.ranking.selection import LEAST
from topkloss.ranking.stretch import capacity, cut

NOTHING_COUNTED = native.Stretch(math.inf, 0.0, 0.0)


def in_tensors(
    scores: Tensor, mass: Tensor | None, total: Tensor, poisoned: Tensor, asked: float, is_fraction: bool
) -> Tensor:
    """Threshold, part and scale: float64, (3,). The scale is NaN where poisoned.

    Args:
        scores: -inf where not counted.
        mass: float64, 0 where not counted; None = 1 each.
        total: The counted mass.
        poisoned: Whether something counted is NaN.
        asked: The fraction, or k.
        is_fraction: Which of them.
    """
    omitted = torch.zeros_like(total, dtype=torch.int64)
    counted = Counted(scores, None, mass, total, None, poisoned, omitted, scores.dtype)
    threshold, part, wanted = _end(counted, asked, is_fraction)
    assert isinstance(threshold, Tensor)
    some = total > 0
    threshold, part = torch.where(some, threshold.double(), torch.inf), torch.where(some, part, 0)
    scale = torch.where(poisoned, torch.nan, 1 / wanted)
    return torch.stack([threshold, part, torch.where(some, scale, 0)])


def in_numbers(line: native.Line, total: float, poisoned: bool, asked: float, is_fraction: bool) -> native.Stretch:
    """The same of scores and their mass on a line."""
    if not total > 0:
        return NOTHING_COUNTED
    counted = Line(line, total, poisoned, omitted=0, dtype=line.tensors[0].dtype)
    threshold, part, wanted = (float(number) for number in _end(counted, asked, is_fraction))
    return native.Stretch(threshold, *((math.nan, math.nan) if poisoned else (part, 1 / wanted)))


def _end(counted: Counted | Line, asked: float, is_fraction: bool) -> tuple[Scalar, Scalar, Scalar]:
    """Threshold and part, and the mass asked for."""
    wanted = capacity(counted.total, *((None, asked) if is_fraction else (asked, None)))
    wanted = larger(wanted, LEAST * counted.total)
    end = cut(counted, wanted)
    return end.score, end.part, wanted
