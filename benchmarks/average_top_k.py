"""Time and memory of `average_top_k`, forward and backward, against ``torch.topk(...)[0].mean()``.

    python -m benchmarks.average_top_k

Each answer is checked before it is timed. All providers take turns in one process, so that what disturbs one
disturbs all; what counts is the ratio of each turn to the baseline's. Rows go into `results.csv`.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.cases import BASELINE, Case, cases
from benchmarks.ledger import LEDGER, Row, line, rows_of, take_turns, write
from benchmarks.measure import peak_of

__all__ = ["KERNEL", "main", "measure"]

KERNEL = "average_top_k"


def measure(n: int, turns: int) -> list[Row]:
    """Checks, then times, every case of n losses."""
    every = cases(n)
    for case in every:
        _check(case)
    rows = []
    for fraction in dict.fromkeys(case.fraction for case in every):
        group = {case.provider: case for case in every if case.fraction == fraction}
        times = take_turns({name: lambda case=case: _seconds(case) for name, case in group.items()}, turns)  # type: ignore[misc]
        given = {"kernel": KERNEL, "mode": "forward + backward", "input": "random", "size": n, "fraction": fraction}
        peaks = {name: _peak(case) for name, case in group.items()}
        rows += rows_of(times, baseline=BASELINE, peaks=peaks, **given)  # type: ignore[arg-type]
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, prints, and adds to the ledger."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--size", type=int, default=1_000_000)
    parser.add_argument("--turns", type=int, default=31)
    parser.add_argument("--ledger", type=Path, default=LEDGER)
    asked = parser.parse_args(arguments)
    rows = measure(asked.size, asked.turns)
    print("\n".join(line(row) for row in rows))
    write(rows, asked.ledger)


def _check(case: Case) -> None:
    leaf = case.losses.clone().requires_grad_()
    value = case.value(leaf)
    value.backward()
    assert abs(value.item() - case.expected) <= 1e-5 * case.expected, (case.provider, value.item(), case.expected)
    assert leaf.grad is not None
    assert abs(float(leaf.grad.double().sum()) - 1) < 1e-4, case.provider


def _seconds(case: Case) -> float:
    leaf = case.losses.clone().requires_grad_()
    start = time.perf_counter()
    case.value(leaf).backward()
    return time.perf_counter() - start


def _peak(case: Case) -> float:
    leaf = case.losses.clone().requires_grad_()
    return peak_of(lambda: case.value(leaf).backward()) / 2**20


if __name__ == "__main__":
    main()
