r"""The k largest losses by mass, and the projection onto the capped simplex: what the top-k does inside a solver.

.. math:: \max_p \Big\{ \sum_i s_i p_i \ell_i : 0 \le p_i \le 1/k,\ \sum_i s_i p_i \le 1 \Big\}

is the average top-k loss of losses that are at least 0. As everywhere in this package, `topkloss.ranking.selection`
decides which losses are the largest, and where the threshold lies.
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
    """The threshold: the loss at which the mass k is reached."""
    return float(topk_threshold(torch.from_numpy(losses), k=k, sample_weight=_mass(mass)))


def largest(losses: Array, mass: Array, k: float) -> Array:
    """The mass of each example that is among the k largest losses; ties share it in proportion to their mass."""
    if k <= 0:
        return np.zeros_like(losses)
    total = min(k, float(mass.sum()))
    taken = topk_select(torch.from_numpy(losses), k=k, sample_weight=_mass(mass)).weights.numpy() * total
    return np.minimum(taken, mass)


def _mass(mass: Array) -> torch.Tensor | None:
    """The masses as a tensor, or None where all are 1, which is faster."""
    return None if mass.min() == mass.max() == 1.0 else torch.from_numpy(mass)


def project(wanted: Array, mass: Array, cap: float, floor: float) -> float:
    r"""The smallest t >= floor for which the sum of mass times clip(wanted - t, 0, cap) is at most 1.

    Then clip(wanted - t, 0, cap) is the projection of `wanted` onto the capped simplex, in the norm that the masses
    weigh. The sum falls with t and is piecewise linear, so Newton's method finds t in a few steps.

    Args:
        wanted: Shape (n,), any sign; best shifted so that the answer is near 0, where floats are densest.
        mass: Shape (n,), >= 0.
        cap: The largest value of each, > 0.
        floor: The smallest answer.
    """
    # 1. Either floor is the answer, or it lies between floor and the largest of `wanted`, where the sum is 0.
    low, high = floor, max(float(wanted.max()), floor)
    if float(mass @ np.clip(wanted - floor, 0.0, cap)) <= 1.0:
        return floor
    # 2. Newton's steps from 0.
    here = min(max(0.0, low), high)
    for _ in range(200):
        shifted = wanted - here
        excess = float(mass @ np.clip(shifted, 0.0, cap)) - 1.0
        falling = float(mass @ ((shifted > 0) & (shifted < cap)))
        # 3. The sign of the excess says on which side of `here` the answer lies.
        if excess > 0:
            low = here
        else:
            high = here
        # 4. Where `falling` is the mass whose value moves with t, the sum falls by that much for each unit of t.
        guess = here + excess / falling if falling > 0 else np.inf
        if abs(excess) <= 1e-15 or guess == here or high - low <= 4e-16 * max(abs(low), abs(high)):
            break
        # 5. A step that leaves the bracket is replaced by half of the bracket.
        here = guess if low < guess < high else (low + high) / 2
    return here
