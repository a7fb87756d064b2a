r"""The smoothed problem around a centre: what the proximal point method solves again and again.

.. math:: M(w) = \frac{|w|^2}{2A} + \max_p \sum_i s_i \Big( p_i e_i(w) - \frac{(p_i - c_i)^2}{2 \sigma} \Big), \qquad
    0 \le p_i \le \tfrac1k,\ \textstyle\sum_i s_i p_i \le 1

One p attains the maximum, the projection of c + sigma e, so M is differentiable, and p makes its gradient. The centre c
is the p of the problem before; where p equals it, M equals the objective. The corner of an l1 penalty is smoothed in
the same way, by its h.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from topkloss.tabular.losses import Array
from topkloss.tabular.problem import Problem
from topkloss.tabular.topk import project

__all__ = ["Point", "Smoothed"]


@dataclass(frozen=True, eq=False)
class Look:
    """Everything about a model that follows from its outputs, without a product with the features.

    Attributes:
        outputs: Outputs of the model, shape (n, m).
        pieces: Pieces of the losses, shape (n,).
        slopes: Slopes of the pieces, shape (n, m).
        shares: The best p, shape (n,).
        moving: True where p is neither 0 nor 1/k, and so moves with the outputs.
        level: The piece at which the mass of p is used up; 0 if it is not used up.
        duals: Masses times shares times slopes, shape (n, m).
    """

    outputs: Array
    pieces: Array
    slopes: Array
    shares: Array
    moving: NDArray[np.bool_]
    level: float
    duals: Array


@dataclass(frozen=True, eq=False)
class Point(Look):
    """A model, and the smoothed objective around it.

    Attributes:
        coefficients: Coefficients of the model, shape (d or d + 1, m).
        gradient: Gradient of M, shape of the coefficients.
        holds: The best h, shape of the coefficients.
        held: True where h is inside its bounds, so that the coefficient is held near 0.
    """

    coefficients: Array
    gradient: Array
    holds: Array
    held: NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Smoothed:
    """A problem, smoothed around a centre.

    Attributes:
        problem: The problem that is smoothed.
        centre: c, shape (n,).
        sigma: How far p moves with the losses.
        hold: The centre of h, shape of the coefficients.
        grip: How far h moves with the coefficients.
    """

    problem: Problem
    centre: Array
    sigma: float
    hold: Array
    grip: float

    def holds(self, coefficients: Array) -> Array:
        """The best h for these coefficients."""
        bounds = self.problem.bounds
        return np.clip(self.hold + self.grip * coefficients, -bounds, bounds)

    def shares(self, pieces: Array, guess: float) -> tuple[Array, NDArray[np.bool_], float]:
        """The best p for these pieces, where it moves, and the level: the piece at which the mass of p is used up.

        Args:
            pieces: Pieces of the losses, shape (n,).
            guess: A number near the level.
        """
        problem = self.problem
        # 1. c + sigma e, shifted by the guess, so that the rest of the shift is near 0, where floats are densest.
        if problem.loss.signed:
            wanted = self.centre + self.sigma * pieces
            sizes = np.abs(wanted) - self.sigma * guess
        else:
            wanted = sizes = self.centre + self.sigma * (pieces - guess)
        # 2. Its projection onto the capped simplex.
        shift = project(sizes, problem.mass, problem.cap, -self.sigma * guess)
        sizes = sizes - shift
        shares = np.clip(sizes, 0.0, problem.cap)
        # 3. Rounding must not make it infeasible.
        held = float(problem.mass @ shares)
        if held > 1.0:
            shares /= held
        moving = (sizes > 0) & (sizes < problem.cap)
        if problem.loss.signed:
            shares = np.copysign(shares, wanted)
        return shares, moving, guess + shift / self.sigma

    def look(self, outputs: Array, guess: float) -> Look:
        """The look at these outputs; `guess` is near its level."""
        problem = self.problem
        pieces = problem.loss.piece(outputs, problem.targets)
        slopes = problem.loss.slope(outputs, problem.targets)
        shares, moving, level = self.shares(pieces, guess)
        return Look(outputs, pieces, slopes, shares, moving, level, (problem.mass * shares)[:, None] * slopes)

    def at(self, coefficients: Array, look: Look) -> Point:
        """The point of a model, from the look at its outputs."""
        holds = self.holds(coefficients)
        gradient = self.problem.penalties * coefficients + holds + self.problem.design.adjoint(look.duals)
        held = np.abs(holds) < self.problem.bounds
        return Point(**vars(look), coefficients=coefficients, gradient=gradient, holds=holds, held=held)

    def search(self, point: Point, step: Array) -> tuple[float, Look]:
        """The length to go along the step, and the look at the outputs there.

        M is convex, so its slope along the step only rises. A length is accepted where the slope is near 0, on either
        side: values of M, whose digits run out first, are never compared. Costs one product with the features.
        """
        # 1. What does not depend on the length: the change of the outputs, and the penalty along the step.
        change = self.problem.design.outputs(step)
        pull, bend = _penalty_along(self.problem.penalties, point.coefficients, step)
        before = float((point.gradient * step).sum())
        low, high, below, above = 0.0, np.inf, before, np.inf
        length = 1.0
        for _ in range(60):
            # 2. The slope of M at this length.
            look = self.look(point.outputs + length * change, point.level)
            now = pull + length * bend + float((look.duals * change).sum())
            if self.problem.l1:
                now += float((self.holds(point.coefficients + length * step) * step).sum())
            if -0.7 * abs(before) <= now <= 0.1 * abs(before):
                break
            # 3. Its sign says on which side of this length the minimum lies. Without an upper end, go farther.
            if now > 0:
                high, above = length, now
            else:
                low, below = length, now
            if high == np.inf:
                length = 4 * low
                continue
            if high - low <= 1e-12 * high:
                return low, self.look(point.outputs + low * change, point.level)
            # 4. Between the ends, where a line through their slopes is 0; not too near to either end.
            middle = low - below * (high - low) / (above - below)
            length = min(max(middle, low + 0.05 * (high - low)), high - 0.05 * (high - low))
        else:
            look = self.look(point.outputs + length * change, point.level)
        return length, look


def _penalty_along(penalties: Array, coefficients: Array, step: Array) -> tuple[float, float]:
    """The slope at 0 and the curvature of the penalty along a step."""
    return float((penalties * coefficients * step).sum()), float((penalties * step * step).sum())
