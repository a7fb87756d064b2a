r"""The proximal point method on the dual: a few smoothed problems, each started from the answer of the one before.

Each problem is smoothed around the shares p of the last, and less than the last (sigma grows), until the certificate
says that the model itself is accurate: |w - w*| <= `tol` |w|. A smoothed problem is solved only as far as its own error
matters, which is until the residual of its gradient is a small part of the gap.

Reference: Rockafellar. Augmented Lagrangians and applications of the proximal point algorithm in convex programming.
Mathematics of Operations Research, 1976.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from topkloss.tabular.design import Design
from topkloss.tabular.directions import Chord, Direction, LimitedMemory, Newton
from topkloss.tabular.flat import ROUNDING, decide, zero_model
from topkloss.tabular.losses import Array
from topkloss.tabular.problem import Certificate, Problem
from topkloss.tabular.smoothed import Point, Smoothed

__all__ = ["Solution", "choose", "constant", "solve"]

# With more unknowns than this, no square matrix of them is made.
MANY = 600

# With more rows times unknowns squared than this, the matrix costs more than many gradients.
COSTLY = 2e9

# With at least twice as many rows as this, about this many are solved first, for a start that is nearly right.
COARSE = 50_000

# The relative accuracy of that start: about as much as these rows tell about all rows.
START = 0.003

# The first problem of all rows is no sharper than this, in units of cap / loss: its gradients would jump about.
SHARP_START = 1e4

# In problems sharper than this, the shares drown in the rounding of the losses.
SHARPEST = 1e10


@dataclass(frozen=True, eq=False)
class Solution:
    """A model, and what is proved about it.

    Attributes:
        coefficients: Coefficients of the model, shape (d or d + 1, m), intercepts last.
        certificate: Its duality gap, objective and threshold.
        shares: The dual variables p that prove it, shape (n,).
        iterations: The steps taken in all smoothed problems together.
        converged: Whether the accuracy asked for was reached.
        sigma: How sharp the last smoothed problem was.
        zero: Whether the model is proved to be nothing but its intercept.
    """

    coefficients: Array
    certificate: Certificate
    shares: Array
    iterations: int
    converged: bool
    sigma: float
    zero: bool


def solve(
    problem: Problem,
    *,
    tol: float,
    max_iter: int,
    method: str = "auto",
    start: Array | None = None,
) -> Solution:
    """The model that minimises the objective of a problem, certified.

    Args:
        problem: What to minimise.
        tol: The accuracy of the weights: the largest relative error of w that the certificate may leave.
        max_iter: The most steps, over all smoothed problems together.
        method: "newton", "lbfgs", or "auto": Newton where the matrix of all unknowns is small.
        start: Coefficients to start from. Default: 0, or the model of some of the rows if there are many.
    """
    # 1. The start: no weights, equal shares, and a problem as sharp as the losses are large.
    design = problem.design
    coefficients = np.zeros(problem.shape) if start is None else start
    outputs = np.zeros((design.rows, problem.outputs)) if start is None else design.outputs(coefficients)
    shares = np.zeros(design.rows) if problem.loss.signed else np.full(design.rows, 1.0 / problem.mass.sum())
    direction = choose(problem, method)
    run = _Run(problem, tol, _scale(problem, outputs), direction.patience)
    sigma, least = problem.cap / run.scale, run.scale
    holds = problem.bounds * np.sign(coefficients)
    # 2. With many rows, some of them first. If the zero model is optimal for them, it nearly is for all rows, with the
    #    same curvature; otherwise their model is the start.
    if start is None and design.rows >= 2 * COARSE:
        sample = _part(problem)
        zero = decide(sample, constant(sample), choose(sample, method), tol=tol)
        if zero.optimal:
            kind = choose(sample, method)
            along = Chord(zero.smoothed, zero.point) if isinstance(kind, Newton) else kind
            zero = decide(problem, constant(problem), along, tol=tol, start=zero.point.coefficients)
            if zero.model is not None:
                return Solution(*zero.model, zero.point.shares, zero.steps, True, sigma, zero=True)
        near = solve(sample, tol=max(tol, START), max_iter=max_iter, method=method)
        sigma = min(near.sigma * sample.k / problem.k, SHARP_START * sigma) * direction.growth
        coefficients = near.coefficients
        outputs = design.outputs(coefficients)
        holds = problem.bounds * np.sign(coefficients)
        pieces = problem.loss.piece(outputs, problem.targets)
        shares, _, least = Smoothed(problem, shares, sigma, holds, 0.0).shares(pieces, least)
    # 3. Smoothed problems, each around the shares of the last.
    iterations = 0
    while True:
        grip = _grip(problem, coefficients, run.scale, sigma)
        smoothed = Smoothed(problem, shares, sigma, holds, grip)
        point = smoothed.at(coefficients, smoothed.look(outputs, least))
        run.begin(problem.cap / sigma)
        # 4. Steps in this problem, as far as its own error matters.
        while not run.judge(point) and iterations < max_iter:
            iterations += 1
            step = direction(smoothed, point)
            length, look = smoothed.search(point, step)
            point = smoothed.at(point.coefficients + length * step, look)
        coefficients, shares, holds, least = point.coefficients, point.shares, point.holds, point.level
        # 5. Stop with a certificate, or when nothing more can be gained; otherwise sharpen.
        if run.verdict or run.proves_zero(point) or run.stalled(point) or iterations >= max_iter:
            return run.solution(point, iterations, sigma)
        outputs = design.outputs(coefficients)  # computed again, because the rounding errors of the steps add up
        if run.slow and sigma < SHARPEST * problem.cap / run.scale:
            sigma *= direction.growth
        if isinstance(direction, LimitedMemory):
            direction.forget_last()


def _part(problem: Problem) -> Problem:
    """The problem for an even sample of the rows, with the same fraction."""
    step = max(2, problem.design.rows // COARSE)
    mass = problem.mass[::step]
    k = min(problem.k * float(mass.sum()) / float(problem.mass.sum()), float(mass.sum()))
    return replace(problem, design=problem.design.every(step), targets=problem.targets[::step], mass=mass, k=k)


def constant(problem: Problem) -> Array:
    """The best model without weights, shape of the coefficients: one example for each distinct target suffices."""
    found = np.zeros(problem.shape)
    if not problem.design.intercept:
        return found
    targets, which = np.unique(problem.targets, return_inverse=True)
    mass = np.bincount(which, weights=problem.mass).astype(np.float64, copy=False)
    design = Design(np.empty((len(targets), 0)), intercept=True)
    one = replace(problem, design=design, targets=targets, mass=mass, l1=problem.l1 * problem.penalised)
    found[-1] = solve(one, tol=1e-9, max_iter=1000, method="newton").coefficients[-1]
    return found


def choose(problem: Problem, method: str) -> Direction:
    """The direction for a problem: Newton's, or that of a limited memory."""
    unknowns = problem.shape[0] * problem.shape[1]
    small = unknowns <= MANY and problem.design.rows * unknowns**2 <= COSTLY
    return Newton() if method == "newton" or (method == "auto" and small) else LimitedMemory()


def _scale(problem: Problem, outputs: Array) -> float:
    """The mean loss of the start; if that is next to nothing, a small part of the mean loss at outputs of 0."""
    here, nothing = (problem.loss.value(one, problem.targets) for one in (outputs, np.zeros_like(outputs)))
    sizes = float(problem.mass @ here), 1e-8 * float(problem.mass @ nothing)
    return max(sizes) / float(problem.mass.sum()) or 1.0


def _grip(problem: Problem, coefficients: Array, scale: float, sigma: float) -> float:
    """How far h moves with the coefficients: in units of their size, as sharply as p in units of the losses."""
    if not problem.l1:
        return 0.0
    most = min(math.sqrt(2 * problem.strength * scale), scale / problem.l1)
    size = max(float(np.abs(coefficients[problem.bounds[:, 0] > 0]).mean()), 1e-3 * most)
    return problem.l1 / size * sigma * scale / problem.cap


def _rounding(problem: Problem, point: Point) -> float:
    """The gap that rounding of the outputs can cause: float64 cannot tell smaller gaps from 0."""
    sizes = np.abs(point.outputs)
    bend = problem.loss.curvature(point.outputs, problem.targets)
    bend = bend[:, None] if bend.ndim == 1 else np.einsum("icc->ic", bend)
    each = (sizes * np.abs(point.slopes) + bend * sizes**2).sum(axis=1)
    return ROUNDING * float((problem.mass * np.abs(point.shares)) @ each)


def _imbalance(problem: Problem, point: Point) -> float:
    """The sum of the duals for a free intercept, which should be 0, relative to the sum of their sizes."""
    sizes = float((problem.mass * np.abs(point.shares)) @ np.abs(point.slopes).sum(axis=1))
    return float(np.abs(point.gradient[-1]).sum()) / sizes if sizes > 0 else 0.0


class _Run:
    """A run of the solver: it certifies points, and decides when a problem, or all of them, are solved."""

    def __init__(self, problem: Problem, tol: float, scale: float, patience: int) -> None:
        self.problem, self.tol, self.scale, self.patience = problem, tol, scale, patience
        self.verdict = ""
        self.gap = self.last = self.best = math.inf
        self.idle = 0
        self.slow = True
        self.goal = 0.1
        self.squared_norms: Array | None = None
        self.zero: tuple[Array, Certificate] | None = None
        self.certified: tuple[Point, Array, Certificate] | None = None

    def begin(self, width: float) -> None:
        """Starts a new smoothed problem, in which the losses of the examples that move differ by `width`."""
        self.width = width
        self.residual, self.waited = math.inf, 0

    def judge(self, point: Point) -> bool:
        """Whether the smoothed problem is solved as far as it matters, or the whole problem is."""
        # 1. The gap: what the shares lose at this point, and the residual of the gradient.
        problem = self.problem
        excess, _ = problem.excess(point.pieces, point.shares, point.level)
        excess += problem.slack(point.coefficients, point.holds)
        weights = point.gradient[:-1] if problem.free_intercept else point.gradient
        residual = problem.strength / 2 * float((weights**2).sum())
        self.gap = excess + residual
        # 2. What it would cost to balance the duals of a free intercept: the examples that move can do it, whose losses
        #    differ by the width; without any, all examples must.
        unbalanced = 0.0
        if problem.free_intercept:
            width = min(self.width, self.scale) if point.moving.any() else self.scale
            unbalanced = _imbalance(problem, point) * width
        # 3. A certificate, which costs as much as a step, if it can succeed.
        hopeless = 0.1 * unbalanced if unbalanced > 1e-12 * self.scale else 0.0
        if self._accurate(point.coefficients, self.gap + hopeless):
            coefficients, certificate = self._certify(point)
            self.gap = certificate.gap
            if self._accurate(coefficients, self.gap):
                self.verdict = "accurate"
                return True
        # 4. Enough if the residual is a small part of what the shares lose, or has not halved for many steps.
        residual += unbalanced
        self.waited = 0 if residual < 0.5 * self.residual else self.waited + 1
        self.residual = min(residual, self.residual)
        return residual <= self.goal * excess or self.waited > (3 if residual <= 1e-12 * self.scale else self.patience)

    def _accurate(self, coefficients: Array, gap: float) -> bool:
        return math.sqrt(2 * self.problem.strength * gap) <= self.tol * self.problem.norm(coefficients)

    def _certify(self, point: Point) -> tuple[Array, Certificate]:
        """The model of a point and its certificate; coefficients that an l1 penalty holds near 0 are set to 0."""
        if self.certified is None or self.certified[0] is not point:
            coefficients, outputs = point.coefficients, point.outputs
            if point.held.any():
                coefficients = np.where(point.held, 0.0, coefficients)
                outputs = self.problem.design.outputs(coefficients)
            self.certified = point, coefficients, self.problem.certify(coefficients, outputs, point.shares)
        return self.certified[1:]

    def proves_zero(self, point: Point) -> bool:
        """Whether the shares of this point prove that the zero model is optimal."""
        if self.problem.penalty(point.coefficients) > 1e-2 * self.scale:
            return False
        if self.squared_norms is None:
            self.squared_norms = self.problem.design.squared_norms()
        constant = np.zeros_like(point.coefficients)
        if self.problem.free_intercept:
            constant[-1] = point.coefficients[-1]
        self.zero = zero_model(self.problem, point, constant, self.tol, self.squared_norms)
        if self.zero is not None:
            self.verdict = "zero"
        return self.zero is not None

    def stalled(self, point: Point) -> bool:
        """Whether the last smoothed problems gained nothing, or float64 cannot tell a smaller gap from 0."""
        self.slow = self.gap > 0.01 * self.last
        self.goal = max(0.1 * self.goal, 1e-6) if self.gap > 0.5 * self.last else 0.1
        self.idle = 0 if self.gap < 0.5 * self.best else self.idle + 1
        self.last, self.best = self.gap, min(self.best, self.gap)
        if self.idle > 0 and self.gap <= 1e-10 * self.scale:
            _, certificate = self._certify(point)
            if certificate.gap <= max(ROUNDING * certificate.objective, _rounding(self.problem, point)):
                self.verdict = "rounding"
        return bool(self.verdict) or self.idle > 12

    def solution(self, point: Point, iterations: int, sigma: float) -> Solution:
        """The solution that a point gives."""
        if self.zero is not None:
            return Solution(*self.zero, point.shares, iterations, True, sigma, zero=True)
        return Solution(*self._certify(point), point.shares, iterations, bool(self.verdict), sigma, zero=False)
