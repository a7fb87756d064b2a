"""The exact k-th largest of n numbers against every way that torch and numpy have to find it.

    python -m benchmarks.kth_largest --sizes 1000 10000 100000 1000000
    python -m benchmarks.kth_largest --sizes 100000000 --providers torch.kthvalue --distributions random

On data of several distributions, since each way has one that it dislikes. All must give the same number before they
are timed, and take turns in one process. Rows go into `results.csv`.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.ledger import LEDGER, Row, line, rows_of, take_turns, write
from topkloss import topk_threshold

__all__ = ["BASELINE", "DISTRIBUTIONS", "FRACTIONS", "KERNEL", "main", "measure", "ways"]

KERNEL = "k-th largest"
BASELINE = "torch.topk"
OURS = "topkloss"
FRACTIONS = (0.01, 0.1, 0.5, 0.9)
PROVIDERS = ("torch.kthvalue", "numpy.partition", "torch.sort")

# Reversed, kthvalue takes time in proportion to the square of the size: beyond so many it is left out.
LONGEST_REVERSED = 10_000


def _random(n: int) -> Tensor:
    return torch.empty(n).exponential_(generator=torch.Generator().manual_seed(0))


DISTRIBUTIONS: dict[str, Callable[[int], Tensor]] = {
    "random": _random,
    "ties": lambda n: _random(n).mul_(8).round_(),
    "70 % zeros": lambda n: _random(n).sub_(1.2).clamp_(min=0),
    "sorted": lambda n: _random(n).sort().values,
    "reversed": lambda n: _random(n).sort(descending=True).values,
    "constant": lambda n: torch.full((n,), 0.5),
}


def ways(distribution: str, n: int) -> dict[str, Callable[[Tensor, int], float]]:
    """Who finds the k-th largest of n such numbers; the baseline first."""
    found: dict[str, Callable[[Tensor, int], float]] = {
        BASELINE: lambda x, k: float(torch.topk(x, k, sorted=False)[0].min()),
        OURS: lambda x, k: float(topk_threshold(x, k=k)),
        "torch.kthvalue": lambda x, k: float(x.kthvalue(n - k + 1).values),
        "numpy.partition": lambda x, k: float(np.partition(x.numpy(), n - k)[n - k]),
        "torch.sort": lambda x, k: float(x.sort(descending=True).values[k - 1]),
    }
    if distribution == "reversed" and n > LONGEST_REVERSED:
        del found["torch.kthvalue"]
    return found


def measure(
    distribution: str,
    n: int,
    turns: int,
    fractions: Sequence[float] = FRACTIONS,
    providers: Sequence[str] = PROVIDERS,
) -> list[Row]:
    """Checks, then times, the baseline, ours and these others at every fraction."""
    numbers = DISTRIBUTIONS[distribution](n)
    ordered = np.sort(numbers.numpy())
    rows = []
    for fraction in fractions:
        k = max(1, round(fraction * n))
        timed = {}
        for name, way in ways(distribution, n).items():
            if name not in (BASELINE, OURS, *providers):
                continue
            assert way(numbers, k) == ordered[n - k], (name, distribution, n, k)
            timed[name] = _seconds(way, numbers, k)
        given = {"kernel": KERNEL, "mode": "value", "input": distribution, "size": n, "fraction": fraction}
        rows += rows_of(take_turns(timed, turns), baseline=BASELINE, peaks={}, **given)  # type: ignore[arg-type]
    return rows


def _seconds(way: Callable[[Tensor, int], float], numbers: Tensor, k: int) -> Callable[[], float]:
    def run() -> float:
        start = time.perf_counter()
        way(numbers, k)
        return time.perf_counter() - start

    return run


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, prints, and adds to the ledger."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1_000, 10_000, 100_000, 1_000_000])
    parser.add_argument("--distributions", nargs="+", choices=DISTRIBUTIONS, default=list(DISTRIBUTIONS))
    parser.add_argument("--fractions", type=float, nargs="+", default=FRACTIONS)
    parser.add_argument("--providers", nargs="*", choices=PROVIDERS, default=PROVIDERS)
    parser.add_argument("--turns", type=int, default=9)
    parser.add_argument("--ledger", type=Path, default=LEDGER)
    asked = parser.parse_args(arguments)
    for n in asked.sizes:
        for distribution in asked.distributions:
            rows = measure(distribution, n, asked.turns, asked.fractions, asked.providers)
            print("\n".join(line(row) for row in rows))
            write(rows, asked.ledger)


if __name__ == "__main__":
    main()
