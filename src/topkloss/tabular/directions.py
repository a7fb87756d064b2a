"""Directions from a point of the smoothed problem: Newton's step, or the step of a limited memory of gradients."""

from __future__ import annotations

from collections import deque
from typing import Protocol

import numpy as np

from topkloss.tabular.design import Design
from topkloss.tabular.losses import Array
from topkloss.tabular.smoothed import Point, Smoothed

__all__ = ["Chord", "Direction", "LimitedMemory", "Newton", "blocks", "downhill"]


class Direction(Protocol):
    """A rule that proposes a step, shaped like the coefficients, along which the smoothed objective falls."""

    growth: float
    """How much sharper the next smoothed problem may be, a few steps away from the answer of the one before."""

    patience: int
    """How many steps may fail to halve the residual before a smoothed problem is left as it is."""

    def __call__(self, smoothed: Smoothed, point: Point) -> Array:
        """Returns the step from this point."""


class Newton:
    """Newton's direction: the step to the minimum of the local parabola, by a square matrix of all unknowns."""

    growth, patience = 10.0, 30

    def __call__(self, smoothed: Smoothed, point: Point) -> Array:
        """Returns the step to the minimum of the local parabola."""
        step = downhill(_hessian(smoothed, point), point.gradient.T.ravel())
        return step.reshape(point.gradient.T.shape).T


class Chord:
    """Newton's direction with a curvature from some of the rows: no matrix of all rows is made."""

    growth, patience = Newton.growth, Newton.patience

    def __init__(self, smoothed: Smoothed, point: Point) -> None:
        self.hessian = _hessian(smoothed, point)

    def __call__(self, smoothed: Smoothed, point: Point) -> Array:
        """Returns the step to the minimum of a parabola with this curvature."""
        step = downhill(self.hessian, point.gradient.T.ravel())
        return step.reshape(point.gradient.T.shape).T


class LimitedMemory:
    """The direction of L-BFGS: it knows the curvature along the last steps, and needs no matrix.

    Reference: Nocedal and Wright. Numerical Optimization. 2006, algorithm 7.4.
    """

    growth, patience = 3.0, 100

    def __init__(self, remembered: int = 40) -> None:
        self.pairs: deque[tuple[Array, Array, float]] = deque(maxlen=remembered)
        self.last: tuple[Array, Array] | None = None

    def __call__(self, smoothed: Smoothed, point: Point) -> Array:
        """Returns minus the gradient, corrected by the curvature along the last steps."""
        # 1. Remember how the gradient changed along the last step, if the objective bends upwards there.
        if self.last is not None:
            step, change = point.coefficients - self.last[0], point.gradient - self.last[1]
            curvature = float((step * change).sum())
            if curvature > 1e-14 * float(np.linalg.norm(step) * np.linalg.norm(change)):
                self.pairs.append((step, change, curvature))
        self.last = point.coefficients, point.gradient
        # 2. From the newest pair to the oldest, take out of the gradient what each pair explains.
        step = point.gradient.copy()
        factors = []
        for back, change, curvature in reversed(self.pairs):
            factor = float((back * step).sum()) / curvature
            step -= factor * change
            factors.append(factor)
        # 3. Scale the rest by the curvature along the newest pair.
        if self.pairs:
            _, change, curvature = self.pairs[-1]
            step *= curvature / float((change * change).sum())
        # 4. From the oldest pair to the newest, put back what each pair explains, divided by its curvature.
        for (back, change, curvature), factor in zip(self.pairs, reversed(factors), strict=True):
            step += (factor - float((change * step).sum()) / curvature) * back
        return -step

    def forget_last(self) -> None:
        """Forgets the last gradient, which belongs to another objective."""
        self.last = None


def downhill(hessian: Array, gradient: Array) -> Array:
    """The step to the minimum of a parabola; the least damping that makes it a parabola is added to its curvature."""
    size = len(hessian)
    damping = 1e-14 * max(float(np.trace(hessian)) / size, np.finfo(float).tiny)
    while True:
        try:
            factor = np.linalg.cholesky(hessian + damping * np.eye(size))
        except np.linalg.LinAlgError:
            damping *= 100
            continue
        step: Array = -np.linalg.solve(factor.T, np.linalg.solve(factor, gradient))
        return step


def blocks(design: Design, curvature: Array, weight: Array, moving: Array, slopes: Array) -> Array:
    """The second derivatives of a sum of losses with respect to the coefficients, output by output.

    Args:
        design: The features.
        curvature: Curvature of the pieces, shape (n,) or (n, m, m).
        weight: Factor of each curvature, shape (n,), >= 0.
        moving: Factor of the square of each slope, shape (n,), >= 0.
        slopes: Slopes of the pieces, shape (n, m).
    """
    outputs = slopes.shape[1]
    rows: list[list[Array]] = []
    for one in range(outputs):
        row: list[Array] = []
        for other in range(outputs):
            if other < one:
                row.append(rows[other][one].T)
            elif outputs == 1:
                row.append(design.gram(weight * curvature + moving * slopes[:, 0] ** 2))
            else:
                factor = curvature[:, one, other] * weight + moving * slopes[:, one] * slopes[:, other]
                row.append(design.gram(np.ones_like(factor) * (factor != 0), factor))
        rows.append(row)
    return np.block(rows)


def _hessian(smoothed: Smoothed, point: Point) -> Array:
    """The second derivatives of the smoothed objective, output by output."""
    problem, outputs = smoothed.problem, smoothed.problem.outputs
    size = problem.design.unknowns
    curvature = problem.loss.curvature(point.outputs, problem.targets)
    weight = problem.mass * np.abs(point.shares)
    moving = smoothed.sigma * problem.mass * point.moving
    hessian = blocks(problem.design, curvature, weight, moving, point.slopes)
    total = float(problem.mass @ point.moving)
    if point.level > 0 and total > 0:
        signs = np.sign(point.shares) if problem.loss.signed else 1.0
        pull = problem.design.adjoint((problem.mass * point.moving * signs)[:, None] * point.slopes).T.ravel()
        hessian -= np.outer(pull, pull) * (smoothed.sigma / total)
    hessian[np.diag_indices_from(hessian)] += (problem.penalties + smoothed.grip * point.held).T.ravel()
    if problem.free_intercept and hessian[-1, -1] <= 0 and outputs == 1:
        # Nothing bends along the intercept: it is bent as if the shares of all examples moved.
        hessian[-1, -1] = smoothed.sigma * float(problem.mass @ point.slopes[:, 0] ** 2)
    if outputs > 1 and problem.free_intercept:
        # Raising all outputs together changes nothing, so they are held where they are.
        last = np.arange(1, outputs + 1) * size - 1
        hessian[np.ix_(last, last)] += 1.0 / outputs
    return hessian
