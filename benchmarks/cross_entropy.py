"""Cross-entropy of the hardest elements, forward and backward, against plain ``F.cross_entropy`` and other packages.

    python -m benchmarks.cross_entropy --shape 2 19 512 1024

Every provider is judged against float64 before it is timed: its value, its gradient, and exactly 0 where a target is
ignored. All take turns in one process. ``--keep-pages`` runs under an allocator that returns no page to the system.
Rows go into `results.csv`. Left out: PaddleSeg, whose framework cannot share an environment with this one.
"""

from __future__ import annotations

import argparse
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.ledger import LEDGER, Row, line, rows_of, take_turns, write
from benchmarks.measure import peak_of
from benchmarks.providers import (
    BASELINE,
    COMPILED,
    COPY,
    FRESH_COPY,
    IGNORED,
    KERNEL,
    SMALL,
    Problem,
    Provider,
    in_kept_buffer,
    native_providers,
    providers,
)

__all__ = ["FRACTIONS", "check", "main", "measure", "mode"]

FRACTIONS = (0.1, 0.3, 0.7, 1.0)

# glibc then takes memory from one growing heap, and never gives it back.
KEEPING_PAGES = "glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=1099511627776"


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
        ways = {name: _seconds(provider, problem, fraction) for name, provider in asked.items()}
        if problem.logits.numel() > SMALL:
            ways |= _copies(problem)
        if native_providers():
            ways["native, gradient buffer kept"] = _seconds_in_kept_buffer(problem, fraction)
        times = take_turns(ways, turns)
        peaks = {}
        if problem.logits.numel() > SMALL:
            peaks = {name: _peak(provider, problem, fraction) for name, provider in asked.items()}
        given = {"kernel": KERNEL, "mode": mode(), "input": problem.name, "size": problem.logits.numel()}
        rows += rows_of(times, baseline=BASELINE, fraction=fraction, peaks=peaks, **given)  # type: ignore[arg-type]
    return rows


def mode() -> str:
    """What is timed, and under which allocator."""
    keeping = "mmap_max=0" in os.environ.get("GLIBC_TUNABLES", "")
    return "forward + backward" + (", pages kept" if keeping else "")


def check(name: str, provider: Provider, problem: Problem, fraction: float) -> None:
    """The value and the gradient, but for elements as hard as the threshold, which rounding may put on either side."""
    outputs = problem.outputs()
    loss = provider.value(outputs, problem.targets, fraction)
    (gradient,) = torch.autograd.grad(loss, outputs)
    value = loss.item()
    expected, weights, sure = problem.expected(1.0 if provider.averages_all else fraction)
    expected, weights = expected * provider.scale(problem, fraction), weights * provider.scale(problem, fraction)
    precision = 1e-4 if problem.logits.dtype == torch.float32 else 2e-2
    assert abs(value - expected) <= precision * abs(expected), (name, value, expected)
    assert bool(gradient.isfinite().all()), f"{name}: a gradient that is not finite"
    ignored = (problem.targets == IGNORED).unsqueeze(1)
    assert not bool((gradient * ignored).any()), f"{name}: a gradient at an ignored target"
    off = torch.addcmul(gradient.float(), problem.slopes, weights.float().unsqueeze(1), value=-1).abs_().amax(1)
    assert float(off[sure].amax()) <= precision * float(weights.max()), f"{name}: another gradient"


def _seconds(provider: Provider, problem: Problem, fraction: float) -> Callable[[], float]:
    def run() -> float:
        outputs = problem.outputs()
        start = time.perf_counter()
        gradient = torch.autograd.grad(provider.value(outputs, problem.targets, fraction), outputs)
        seconds = time.perf_counter() - start
        del gradient
        return seconds

    return run


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
        seconds = time.perf_counter() - start
        del fresh
        return seconds

    return {COPY: lambda: timed(kept.copy_), FRESH_COPY: lambda: timed(torch.clone)}


def _peak(provider: Provider, problem: Problem, fraction: float) -> float:
    outputs = problem.outputs()
    return peak_of(lambda: torch.autograd.grad(provider.value(outputs, problem.targets, fraction), outputs)) / 2**20


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
    if asked.keep_pages and "pages kept" not in mode():
        command = [
            sys.executable,
            "-m",
            "benchmarks.cross_entropy",
            *(sys.argv[1:] if arguments is None else arguments),
        ]
        folder = Path(__file__).parent.parent
        subprocess.run(command, check=True, cwd=folder, env={**os.environ, "GLIBC_TUNABLES": KEEPING_PAGES})
        return
    if math.prod(asked.shape) // asked.shape[1] < 40:
        parser.error("argument --shape: 40 elements at least, so that every fraction is a whole number of them.")
    problem = Problem.of(asked.shape, getattr(torch, asked.dtype))
    for fraction in asked.fractions:
        rows = measure(problem, asked.turns, compiles=not asked.no_compile, fractions=[fraction])
        print("\n".join(line(row) for row in rows), flush=True)
        write(rows, asked.ledger)


if __name__ == "__main__":
    main()
