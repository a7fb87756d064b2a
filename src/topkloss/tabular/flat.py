r"""Whether no weights at all are as good as it gets: a proof that they are, or a model that beats it.

At w = 0 the optimum is one of the linearised losses, and a matter of the shares alone: 0 is optimal where some p of the
capped simplex has :math:`X^T \theta = 0` (with an l1 penalty: at most c in size). The nearest such p to equal shares is
the solution of one smoothed problem that is so sharp that w is next to nothing; where there is none its w grows until
the objective is better than at 0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from topkloss.tabular.directions import Direction, LimitedMemory
from topkloss.tabular.losses import Array
from topkloss.tabular.problem import Certificate, Problem
from topkloss.tabular.smoothed import Point, Smoothed

__all__ = ["ROUNDING", "Decision", "decide", "zero_model"]

# Smaller gaps, relative to the objective, are below what float64 can tell.
ROUNDING = 4e-15

# How sharp the smoothed problem is, in units of cap / loss.
SHARP = 1e6

# Steps of Newton, and of L-BFGS, until nothing is decided.
STEPS, MORE_STEPS = 25, 200


@dataclass(frozen=True, eq=False)
class Decision:
    """What is known of the zero model.

    Attributes:
        optimal: Whether it is optimal; None where that was not decided.
        smoothed: The problem in which it was searched.
        point: Where the search ended.
        steps: Taken.
        model: It and its certificate, where it is optimal.
    """

    optimal: bool | None
    smoothed: Smoothed
    point: Point
    steps: int
    model: tuple[Array, Certificate] | None = None


def decide(
    problem: Problem, constant: Array, direction: Direction, *, tol: float, start: Array | None = None
) -> Decision:
    """Whether the zero model is optimal.

    Args:
        problem: The problem.
        constant: Its best model without weights, shape of the coefficients.
        direction: One of `topkloss.tabular.directions`.
        tol: See `topkloss.tabular.proximal.solve`.
        start: Where this ended for a part of the rows.
    """
    design = problem.design
    here = constant if start is None else np.vstack([start[: design.columns], constant[design.columns :]])
    nothing = problem.objective(constant)
    norms = design.squared_norms()
    scale = max(nothing, 1e-8 * problem.objective(np.zeros_like(constant), np.zeros((design.rows, problem.outputs))))
    sigma = SHARP * problem.cap / (scale or 1.0)
    centre = np.zeros(design.rows) if problem.loss.signed else np.full(design.rows, 1.0 / problem.mass.sum())
    length = math.sqrt(float(norms.mean()) / max(1, design.columns))
    smoothed = Smoothed(problem, centre, sigma, np.zeros(problem.shape), problem.l1 * length * sigma / problem.cap)
    outputs = design.outputs(here)
    level = max(float(problem.mass @ problem.loss.value(outputs, problem.targets)) / float(problem.mass.sum()), 0.0)
    point = smoothed.at(here, smoothed.look(outputs, level))
    most = MORE_STEPS if isinstance(direction, LimitedMemory) else STEPS
    for steps in range(most):
        model = zero_model(problem, point, constant, tol, norms)
        if model is not None:
            return Decision(True, smoothed, point, steps, model)
        if problem.objective(point.coefficients, point.outputs) < nothing * (1 - 1e-12):
            return Decision(False, smoothed, point, steps)
        step = direction(smoothed, point)
        far, look = smoothed.search(point, step)
        point = smoothed.at(point.coefficients + far * step, look)
    return Decision(None, smoothed, point, most)


def zero_model(
    problem: Problem, point: Point, constant: Array, tol: float, norms: Array
) -> tuple[Array, Certificate] | None:
    """A model without weights and its certificate, where the shares of a point prove that nothing is better.

    The optimum then is no farther from 0 than a small part of what slopes of random directions would add up to, and no
    better than by a small part of the objective.

    Args:
        problem: The problem.
        point: Any.
        constant: The model without weights, shape of the coefficients.
        tol: The small part.
        norms: Squares of the lengths of the rows of the features.
    """
    columns, penalised = problem.design.columns, problem.design.intercept and problem.penalised
    slopes = (problem.mass * point.shares) ** 2 * (point.slopes**2).sum(axis=1)
    chance = problem.strength * math.sqrt(float(slopes @ (norms + float(penalised))))
    pull = (point.gradient - problem.penalties * point.coefficients - point.holds)[:columns]
    excess = np.maximum(np.abs(pull) - problem.l1, 0.0)
    if problem.strength * float(np.linalg.norm(excess)) > 2 * tol * chance:
        return None
    outputs = np.zeros_like(point.outputs) + (constant[-1] if problem.design.intercept else 0.0)
    certificate = problem.certify(constant, outputs, point.shares)
    far = math.sqrt(2 * problem.strength * certificate.gap)
    if far > tol * chance or certificate.gap > max(tol**2, ROUNDING) * certificate.objective:
        return None
    return constant, certificate
