"""The rule by which elements weigh: threshold, part, scale. Once in tensors, that no device waits for, once in numbers.

The native kernels take the numbers: a dozen operations of torch on one number each take longer than a small batch.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from topkloss.counted import Counted
from topkloss.kernels import native
from topkloss.selection import LEAST, SNAP, capacity, cut
from topkloss.threshold import needed


class Rule(NamedTuple):
    """An element weighs the scale above the threshold, a part of it at the threshold, times its mass."""

    threshold: float
    part: float
    scale: float


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
    wanted = capacity(total, *((None, asked) if is_fraction else (asked, None))).maximum(LEAST * total)
    end = cut(counted, wanted)
    some = total > 0
    threshold, part = torch.where(some, end.score.double(), torch.inf), torch.where(some, end.part, 0)
    return torch.stack([threshold, part, torch.where(some, 1 / wanted, 0)])


def in_numbers(
    scores: Tensor, mass: Tensor | None, total: float, poisoned: bool, asked: float, is_fraction: bool
) -> Rule:
    """The same, with the native k-th largest."""
    if not total > 0:
        return NOTHING_COUNTED
    wanted = max(_capacity(total, total * asked if is_fraction else asked), LEAST * total)
    if poisoned:
        return Rule(math.nan, math.nan, 1 / wanted)
    threshold, above, tied = native.kth_largest(scores, mass, needed(wanted, scores.numel()))
    if threshold == -math.inf:
        tied = total - above
    part = (wanted - above) / tied if tied > 0 else math.nan
    return Rule(threshold, min(max(part, 0.0), 1.0), 1 / wanted)


def _capacity(total: float, wanted: float) -> float:
    if not wanted < total:
        return total
    nearest = float(round(wanted))
    return min(nearest if abs(wanted - nearest) <= SNAP * wanted else wanted, total)
