r"""The ranked range: the average of the k largest losses behind the `drop` largest, which are left out.

.. math:: F(w) = \min_v \mathrm{AT}_k\big(\ell(w);\ \text{masses } s - v\big) + \frac{|w|^2}{2A}, \qquad
    0 \le v_i \le s_i,\ \textstyle\sum_i v_i = m

Not convex in w. Choosing v for w (the largest losses) and w for v (a convex problem, certified) in turn never raises F,
and ends at a w that is optimal for its own v: where no two losses tie at the cut, a stationary point of F. Which one
depends on the start.

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

# Turns; each takes a few steps, and a handful of turns is usual.
TURNS = 100


def solve_ranked_range(
    problem: Problem, dropped: float, *, tol: float, max_iter: int, method: str = "auto", start: Array | None = None
) -> Solution:
    """A stationary point of the ranked range, never worse than the start.

    Args:
        problem: The problem without a drop; its k is the mass averaged behind the drop.
        dropped: m, the mass left out, > 0 and less than the whole.
        tol, max_iter, method: See `topkloss.tabular.proximal.solve`; max_iter is for each turn.
        start: Coefficients to begin from. Default: the optimum of the k + m largest, none left out, which is convex.

    Returns:
        The last convex problem's solution; its certificate is of that problem, whose v is fixed.
    """
    total = float(problem.mass.sum())
    iterations, converged = 0, False
    if start is None:
        whole = solve(replace(problem, k=min(problem.k + dropped, total)), tol=tol, max_iter=max_iter, method=method)
        start, iterations = whole.coefficients, whole.iterations
    around = _without_largest(problem, dropped, start)
    best, lowest = None, around.objective(start)
    for _ in range(TURNS):
        found = solve(around, tol=tol, max_iter=max_iter, method=method, start=start)
        iterations += found.iterations
        after = _without_largest(problem, dropped, found.coefficients)
        objective = after.objective(found.coefficients)
        if best is not None and objective >= lowest * (1 - 1e-12):
            converged = True
            break
        if objective > lowest:  # the start is already at least as good, to the accuracy asked for
            certificate = around.certify(start, around.design.outputs(start), found.shares)
            found = replace(found, coefficients=start, certificate=certificate)
            best, converged = found, found.converged
            break
        best, lowest, start = found, objective, found.coefficients
        if np.array_equal(after.mass, around.mass):
            converged = True
            break
        around = after
    assert best is not None
    return replace(best, iterations=iterations, converged=converged and best.converged)


def _without_largest(problem: Problem, dropped: float, coefficients: Array) -> Problem:
    """The problem of what is left behind the largest losses of a model."""
    losses = problem.loss.value(problem.design.outputs(coefficients), problem.targets)
    mass = np.maximum(problem.mass - largest(losses, problem.mass, dropped), 0.0)
    return replace(problem, mass=mass, k=min(problem.k, float(mass.sum())))
