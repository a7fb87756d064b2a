"""The smallest fraction that gives a model at all: below it, nothing beats predicting the same for every example."""

from __future__ import annotations

from dataclasses import replace

from topkloss.tabular.flat import decide
from topkloss.tabular.problem import Problem
from topkloss.tabular.proximal import choose, constant, solve

__all__ = ["smallest_fraction"]

# The relative accuracy of the answer, and that of the models that are fitted on the way.
WIDTH, ACCURACY = 0.01, 3e-3

# A table with at least twice as many rows is sampled evenly to about this many: the answer is that of the sample.
ROWS = 10_000


def smallest_fraction(problem: Problem, *, max_iter: int = 200) -> float | None:
    """The smallest fraction of the mass at which the optimum is not the zero model, to 1 %; None if no fraction is.

    Bisection finds it: where the zero model is optimal, it is optimal for every smaller fraction too, because what is
    feasible for the dual at k is feasible for every smaller k.

    Args:
        problem: A problem whose optimum is the zero model.
        max_iter: Steps for each model on the way; where they do not suffice, the zero model counts as not proved.
    """
    step = problem.design.rows // ROWS
    if step > 1:
        mass = problem.mass[::step]
        k = problem.k * float(mass.sum()) / float(problem.mass.sum())
        problem = replace(problem, design=problem.design.every(step), targets=problem.targets[::step], mass=mass, k=k)
    total = float(problem.mass.sum())

    def is_zero(k: float) -> bool:
        one = replace(problem, k=k)
        found = decide(one, constant(one), choose(one, "auto"), tol=ACCURACY)
        if found.optimal is None:
            return solve(one, tol=ACCURACY, max_iter=max_iter).zero
        return found.optimal

    low, high = problem.k, total
    if is_zero(high):
        return None
    while high - low > WIDTH * high:
        middle = (low + high) / 2
        low, high = (middle, high) if is_zero(middle) else (low, middle)
    return high / total
