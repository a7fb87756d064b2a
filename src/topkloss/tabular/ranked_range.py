r"""The ranked range: the average of the k largest losses after the `drop` largest, which are left out.

.. math:: F(w) = \min_v \mathrm{AT}_k\big(\ell(w);\ \text{masses } s - v\big) + \frac{|w|^2}{2A}, \qquad
    0 \le v_i \le s_i,\ \textstyle\sum_i v_i = m

F is not convex in w. Two choices alternate: v for w (the largest losses), and w for v (a convex problem, certified).
Neither raises F, so they end at a w that is optimal for its own v. If no two losses tie at the threshold, that is a
stationary point of F. Which one it is depends on the start.

Reference: Hu, Ying, Wang, Lyu. Sum of Ranked Range Loss for Supervised Learning. JMLR 2022 (there by the difference of
convex functions).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from topkloss.tabular.losses import Array
from topkloss.tabular.problem import Problem
from topkloss.tabular.proximal import Solution, solve
from topkloss.tabular.topk import largest

__all__ = ["solve_ranked_range"]

# The most turns. Each takes a few steps, and a handful of turns is usual.
TURNS = 100


def solve_ranked_range(
    problem: Problem, dropped: float, *, tol: float, max_iter: int, method: str = "auto", start: Array | None = None
) -> Solution:
    """A stationary point of the ranked range, never worse than the start.

    Args:
        problem: The problem without a drop; its k is the mass that is averaged after the drop.
        dropped: m, the mass that is left out, > 0 and less than the mass of all examples.
        tol, max_iter, method: See `topkloss.tabular.proximal.solve`; max_iter is for each turn.
        start: Coefficients to start from. Default: the optimum of the average of the k + m largest, which is convex.

    Returns:
        The solution of the last convex problem. Its certificate is of that problem, whose v is fixed.
    """
    # 1. Without a start, the optimum of the k + m largest losses, none of which is left out.
    total = float(problem.mass.sum())
    iterations = 0
    if start is None:
        whole = solve(replace(problem, k=min(problem.k + dropped, total)), tol=tol, max_iter=max_iter, method=method)
        start, iterations = whole.coefficients, whole.iterations
    # 2. The first turn: v for the start, then w for this v. Where the start is as good, to the accuracy asked for, it
    #    is the answer, with a certificate of its own.
    around = _without_largest(problem, dropped, start)
    lowest = around.objective(start)
    best = solve(around, tol=tol, max_iter=max_iter, method=method, start=start)
    iterations += best.iterations
    after = _without_largest(problem, dropped, best.coefficients)
    objective = after.objective(best.coefficients)
    if objective > lowest:
        certificate = around.certify(start, around.design.outputs(start), best.shares)
        return replace(best, coefficients=start, certificate=certificate, iterations=iterations)
    # 3. More turns, until v does not change or F does not fall.
    converged = False
    for _ in range(TURNS - 1):
        if np.array_equal(after.mass, around.mass):
            break
        around, lowest = after, objective
        found = solve(around, tol=tol, max_iter=max_iter, method=method, start=best.coefficients)
        iterations += found.iterations
        after = _without_largest(problem, dropped, found.coefficients)
        objective = after.objective(found.coefficients)
        if objective >= lowest * (1 - 1e-12):
            converged = True
            break
        best = found
    converged = converged or np.array_equal(after.mass, around.mass)
    return replace(best, iterations=iterations, converged=converged and best.converged)


def _without_largest(problem: Problem, dropped: float, coefficients: Array) -> Problem:
    """The problem without the largest losses of a model: their mass is taken away."""
    losses = problem.loss.value(problem.design.outputs(coefficients), problem.targets)
    mass = np.maximum(problem.mass - largest(losses, problem.mass, dropped), 0.0)
    return replace(problem, mass=mass, k=min(problem.k, float(mass.sum())))
