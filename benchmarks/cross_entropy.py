"""Cross-entropy of the hardest elements, forward and backward, against plain ``F.cross_entropy`` and other packages.

    python -m benchmarks.cross_entropy --shape 2 19 512 1024

Every provider is judged against float64 before it is timed: its value, its gradient, and exactly 0 where a target is
ignored. All take turns in one process. ``--keep-pages`` runs under an allocator that returns no page to the system.
Rows go into `results.csv`. Left out: PaddleSeg, whose framework cannot share an environment with this one.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.ledger import LEDGER, Row, line, rows_of, take_turns, write
from benchmarks.measure import KEEPING_PAGES, mode, ran_under
from benchmarks.problem import SMALL, Problem, judge, peak, problem_of, seconds
from benchmarks.providers import (
    BASELINE,
    COMPILED,
    COPY,
    FRESH_COPY,
    KERNEL,
    Provider,
    in_kept_buffer,
    native_providers,
    providers,
)

__all__ = ["FRACTIONS", "check", "main", "measure"]

FRACTIONS = (0.1, 0.3, 0.7, 1.0)


def measure(
    problem: Problem, turns: int, *, compiles: bool = True, fractions: Sequence[float] = FRACTIONS
) -> list[Row]:
    """Checks, then times, every provider at every fraction, and the library at fraction 1."""
    rows = []
    known = providers(problem, compiles=compiles)
    for fraction in fractions:
        asked = known
        if fraction == 1:
            whole = (BASELINE, COMPILED, *native_providers())
            asked = {name: provider for name, provider in known.items() if name in whole}
        for name, provider in asked.items():
            check(name, provider, problem, fraction)
        ways = {name: seconds(provider.at(fraction), problem) for name, provider in asked.items()}
        if problem.logits.numel() > SMALL:
            ways |= _copies(problem)
        if native_providers():
            ways["native, gradient buffer kept"] = _seconds_in_kept_buffer(problem, fraction)
        times = take_turns(ways, turns)
        peaks = {}
        if problem.logits.numel() > SMALL:
            peaks = {name: peak(provider.at(fraction), problem) for name, provider in asked.items()}
        given = {"kernel": KERNEL, "mode": mode(), "input": problem.name, "size": problem.logits.numel()}
        rows += rows_of(times, baseline=BASELINE, fraction=fraction, peaks=peaks, **given)  # type: ignore[arg-type]
    return rows


def check(name: str, provider: Provider, problem: Problem, fraction: float) -> None:
    """See `judge`."""
    judge(name, provider.at(fraction), problem, provider.weights(problem, fraction))


def _seconds_in_kept_buffer(problem: Problem, fraction: float) -> Callable[[], float]:
    step = in_kept_buffer(problem, fraction)

    def run() -> float:
        logits = problem.logits.clone()
        start = time.perf_counter()
        step(logits)
        return time.perf_counter() - start

    return run


def _copies(problem: Problem) -> dict[str, Callable[[], float]]:
    """What the memory can do: the logits copied into a buffer that is there, and into a fresh one."""
    kept = problem.logits.clone()

    def timed(copy: Callable[[Tensor], Tensor]) -> float:
        logits = problem.logits.clone()
        start = time.perf_counter()
        fresh = copy(logits)
        took = time.perf_counter() - start
        del fresh
        return took

    return {COPY: lambda: timed(kept.copy_), FRESH_COPY: lambda: timed(torch.clone)}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, prints, and adds to the ledger."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--shape", type=int, nargs="+", default=[2, 19, 512, 1024], help="N C, or N C d1 ...")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--fractions", type=float, nargs="+", default=FRACTIONS)
    parser.add_argument("--turns", type=int, default=9)
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--keep-pages", action="store_true", help="in a process whose allocator keeps its pages")
    parser.add_argument("--ledger", type=Path, default=LEDGER)
    asked = parser.parse_args(arguments)
    if asked.keep_pages and ran_under(KEEPING_PAGES, "benchmarks.cross_entropy", arguments):
        return
    problem = problem_of(parser, asked.shape, getattr(torch, asked.dtype))
    for fraction in asked.fractions:
        rows = measure(problem, asked.turns, compiles=not asked.no_compile, fractions=[fraction])
        print("\n".join(line(row) for row in rows), flush=True)
        write(rows, asked.ledger)


if __name__ == "__main__":
    main()
