"""The rule by which elements weigh: threshold, part, scale. Once in tensors, that no device waits for, once in numbers.

The native kernels take the numbers: a dozen operations of torch on one number each take longer than a small batch.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from topkloss.counted import Counted, Line
from topkloss.kernels import native
from topkloss.selection import LEAST
from topkloss.stretch import capacity, cut
from topkloss.tensors import Scalar, larger


class Rule(NamedTuple):
    """An element weighs the scale above the threshold, a part of it at the threshold, times its mass."""

    threshold: float
    part: float
    scale: float

    @property
    def stretch(self) -> native.Stretch:
        """The same as the stretch that is averaged."""
        return native.Stretch(self.threshold, self.part, math.nan if math.isnan(self.threshold) else self.scale)


NOTHING_COUNTED = Rule(math.inf, 0.0, 0.0)


def in_tensors(
    scores: Tensor, mass: Tensor | None, total: Tensor, poisoned: Tensor, asked: float, is_fraction: bool
) -> Tensor:
    """Float64, (3,).

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
    return torch.stack([threshold, part, torch.where(some, 1 / wanted, 0)])


def in_numbers(
    scores: Tensor, mass: Tensor | None, total: float, poisoned: bool, asked: float, is_fraction: bool
) -> Rule:
    """The same, with the native k-th largest."""
    if not total > 0:
        return NOTHING_COUNTED
    threshold, part, wanted = _end(Line(scores, None, mass, total, poisoned, 0, scores.dtype), asked, is_fraction)
    return Rule(float(threshold), math.nan if poisoned else float(part), 1 / float(wanted))


def _end(counted: Counted | Line, asked: float, is_fraction: bool) -> tuple[Scalar, Scalar, Scalar]:
    """Threshold and part, and the mass asked for."""
    wanted = capacity(counted.total, *((None, asked) if is_fraction else (asked, None)))
    wanted = larger(wanted, LEAST * counted.total)
    end = cut(counted, wanted)
    return end.score, end.part, wanted
