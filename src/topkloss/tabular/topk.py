r"""The largest k losses by mass, and the point of the capped simplex: what the top-k does inside a solver.

.. math:: \max_p \Big\{ \sum_i s_i p_i \ell_i : 0 \le p_i \le 1/k,\ \sum_i s_i p_i \le 1 \Big\}

is the average top-k loss of losses that are at least 0. Which losses are the largest, and where the line is cut, is
settled by `topkloss.ranking.selection`, as everywhere in this package.
"""

from __future__ import annotations

import numpy as np
import torch

from topkloss.ranking.selection import topk_select, topk_threshold
from topkloss.tabular.losses import Array

__all__ = ["average_top", "largest", "level", "project"]


def average_top(losses: Array, mass: Array, k: float) -> float:
    """The average of the k largest losses by mass; infinite losses are losses."""
    return float(topk_select(torch.from_numpy(losses), k=k, sample_weight=torch.from_numpy(mass)).value)


def level(losses: Array, mass: Array, k: float) -> float:
    """The loss at which the mass k is reached."""
    return float(topk_threshold(torch.from_numpy(losses), k=k, sample_weight=_mass(mass)))


def largest(losses: Array, mass: Array, k: float) -> Array:
    """How much of the mass of each example is among the k largest losses; ties share it in proportion to their mass."""
    if k <= 0:
        return np.zeros_like(losses)
    total = min(k, float(mass.sum()))
    taken = topk_select(torch.from_numpy(losses), k=k, sample_weight=_mass(mass)).weights.numpy() * total
    return np.minimum(taken, mass)


def _mass(mass: Array) -> torch.Tensor | None:
    """Masses that are all one count as none given, which is faster."""
    return None if mass.min() == mass.max() == 1.0 else torch.from_numpy(mass)


def project(wanted: Array, mass: Array, cap: float, floor: float) -> float:
    r"""The least t >= floor with sum of mass times clip(wanted - t, 0, cap) at most 1.

    The sum falls with t and is piecewise linear: Newton's steps from 0, kept inside a bracket. Clipping `wanted - t` is
    the projection onto the capped simplex in the norm that the masses weigh.

    Args:
        wanted: Shape (n,), any sign; best shifted so that the answer is near 0, where the most digits are.
        mass: Shape (n,), >= 0.
        cap: The largest value of each, > 0.
        floor: The least answer.
    """
    low, high = floor, max(float(wanted.max()), floor)
    if float(mass @ np.clip(wanted - floor, 0.0, cap)) <= 1.0:
        return floor
    here = min(max(0.0, low), high)
    for _ in range(200):
        shifted = wanted - here
        excess = float(mass @ np.clip(shifted, 0.0, cap)) - 1.0
        falling = float(mass @ ((shifted > 0) & (shifted < cap)))
        if excess > 0:
            low = here
        else:
            high = here
        guess = here + excess / falling if falling > 0 else np.inf
        if abs(excess) <= 1e-15 or guess == here or high - low <= 4e-16 * max(abs(low), abs(high)):
            break
        here = guess if low < guess < high else (low + high) / 2
    return here
