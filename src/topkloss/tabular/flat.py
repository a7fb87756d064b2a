r"""The decision whether the zero model is optimal: a proof that it is, or a model that beats it.

At w = 0 only the linearised losses matter, so the optimum depends on the shares alone: 0 is optimal if some p of the
capped simplex has :math:`X^T \theta = 0` (with an l1 penalty: at most c in size). Of these, the p nearest to equal
shares solves one smoothed problem, which is so sharp that its w is next to nothing. If there is no such p, the w of
that problem grows until its objective is better than at 0.
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

# The most steps of Newton, and of L-BFGS; after them the question is left undecided.
STEPS, MORE_STEPS = 25, 200


@dataclass(frozen=True, eq=False)
class Decision:
    """What is known about the zero model.

    Attributes:
        optimal: Whether the zero model is optimal; None if that was not decided.
        smoothed: The smoothed problem in which the decision was sought.
        point: The point at which the search ended.
        steps: The number of steps that were taken.
        model: The zero model and its certificate, if it is optimal.
    """

    optimal: bool | None
    smoothed: Smoothed
    point: Point
    steps: int
    model: tuple[Array, Certificate] | None = None


def decide(
    problem: Problem, constant: Array, direction: Direction, *, tol: float, start: Array | None = None
) -> Decision:
    """Decides whether the zero model is optimal.

    Args:
        problem: The problem.
        constant: Its best model without weights, shape of the coefficients.
        direction: One of `topkloss.tabular.directions`.
        tol: See `topkloss.tabular.proximal.solve`.
        start: The coefficients at which the decision for some of the rows ended.
    """
    # 1. One smoothed problem, so sharp that its weights are next to nothing, around equal shares.
    design = problem.design
    here = constant if start is None else np.vstack([start[: design.columns], constant[design.columns :]])
    nothing = problem.objective(constant)
    norms = design.squared_norms()
    scale = max(nothing, 1e-8 * problem.objective(np.zeros_like(constant), np.zeros((design.rows, problem.outputs))))
    sigma = SHARP * problem.cap / (scale or 1.0)
    centre = np.zeros(design.rows) if problem.loss.signed else np.full(design.rows, 1.0 / problem.mass.sum())
    length = math.sqrt(float(norms.mean()) / max(1, design.columns))
    smoothed = Smoothed(problem, centre, sigma, np.zeros(problem.shape), problem.l1 * length * sigma / problem.cap)
    # 2. The point to start from, with the mean loss as a guess of its level.
    outputs = design.outputs(here)
    level = max(float(problem.mass @ problem.loss.value(outputs, problem.targets)) / float(problem.mass.sum()), 0.0)
    point = smoothed.at(here, smoothed.look(outputs, level))
    most = MORE_STEPS if isinstance(direction, LimitedMemory) else STEPS
    # 3. Step towards its minimum, until the shares prove that the zero model is optimal or the model beats it.
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
    """The zero model and its certificate, or None if the shares of a point do not prove that it is optimal.

    Proved means: the optimum is no farther from 0 than a small part of the length to which slopes in random directions
    would add up, and its objective is better by no more than a small part.

    Args:
        problem: The problem.
        point: Any point of a smoothed problem.
        constant: The model without weights, shape of the coefficients.
        tol: The small part.
        norms: The squared lengths of the rows of the features.
    """
    # 1. The length to which slopes in random directions would add up, as weights.
    columns, penalised = problem.design.columns, problem.design.intercept and problem.penalised
    slopes = (problem.mass * point.shares) ** 2 * (point.slopes**2).sum(axis=1)
    typical = problem.strength * math.sqrt(float(slopes @ (norms + float(penalised))))
    # 2. Cheap, and enough to say no: the weights that the gradient at 0, beyond what l1 holds, asks for.
    pull = (point.gradient - problem.penalties * point.coefficients - point.holds)[:columns]
    excess = np.maximum(np.abs(pull) - problem.l1, 0.0)
    if problem.strength * float(np.linalg.norm(excess)) > 2 * tol * typical:
        return None
    # 3. The certificate of the zero model with these shares bounds its distance to the optimum.
    outputs = np.zeros_like(point.outputs) + (constant[-1] if problem.design.intercept else 0.0)
    certificate = problem.certify(constant, outputs, point.shares)
    far = math.sqrt(2 * problem.strength * certificate.gap)
    if far > tol * typical or certificate.gap > max(tol**2, ROUNDING) * certificate.objective:
        return None
    return constant, certificate
