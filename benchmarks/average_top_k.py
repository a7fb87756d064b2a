"""Time and memory of `average_top_k`, forward and backward, against ``torch.topk(...)[0].mean()``.

    python -m benchmarks.average_top_k

Each answer is checked before it is timed. All providers take turns in one process, so that what disturbs one
disturbs all; what counts is the ratio of each turn to the baseline's. Rows are added to `ledger.csv`.
"""

from __future__ import annotations

import argparse
import csv
import platform
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch

from benchmarks.cases import BASELINE, Case, cases
from benchmarks.measure import Memory, commit, spread

__all__ = ["LEDGER", "Row", "main", "measure"]

LEDGER = Path(__file__).with_name("ledger.csv")


@dataclass(frozen=True)
class Row:
    """A line of the ledger.

    Times in ms, ratios to the baseline of the same turn (median, first and last decile), memory in MiB above the input.
    """

    kernel: str
    provider: str
    mode: str
    size: int
    fraction: float
    median: float
    low: float
    high: float
    ratio: float
    ratio_low: float
    ratio_high: float
    peak: float
    device: str
    torch: str
    threads: int
    commit: str


def measure(n: int, turns: int) -> list[Row]:
    """Checks, then times, every case of n losses."""
    every = cases(n)
    for case in every:
        _check(case)
    rows = []
    for fraction in dict.fromkeys(case.fraction for case in every):
        group = [case for case in every if case.fraction == fraction]
        times: dict[str, list[float]] = {case.provider: [] for case in group}
        for _ in range(turns):
            for case in group:
                times[case.provider].append(_seconds(case))
        rows += [_row(case, times) for case in group]
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, prints, and adds to the ledger."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--size", type=int, default=1_000_000)
    parser.add_argument("--turns", type=int, default=31)
    parser.add_argument("--ledger", type=Path, default=LEDGER)
    options = parser.parse_args(arguments)
    rows = measure(options.size, options.turns)
    for row in rows:
        print(
            f"{row.fraction:4.0%}  {row.provider:<24} {row.median:7.2f} ms  {row.ratio:5.2f} x "
            f"[{row.ratio_low:.2f}, {row.ratio_high:.2f}]  {row.peak:6.1f} MiB"
        )
    new = not options.ledger.exists()
    with options.ledger.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Row)])
        if new:
            writer.writeheader()
        writer.writerows(asdict(row) for row in rows)


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


def _row(case: Case, times: dict[str, list[float]]) -> Row:
    own = times[case.provider]
    ratios = [mine / base for mine, base in zip(own, times[BASELINE], strict=True)]
    figures = [1e3 * figure for figure in spread(own)] + spread(ratios)
    median, low, high, ratio, ratio_low, ratio_high = (round(figure, 3) for figure in figures)
    return Row(
        kernel="average_top_k",
        provider=case.provider,
        mode="forward + backward",
        size=case.losses.numel(),
        fraction=case.fraction,
        median=median,
        low=low,
        high=high,
        ratio=ratio,
        ratio_low=ratio_low,
        ratio_high=ratio_high,
        peak=round(_peak(case), 3),
        device=platform.machine(),
        torch=torch.__version__,
        threads=torch.get_num_threads(),
        commit=commit(),
    )


def _peak(case: Case) -> float:
    leaf = case.losses.clone().requires_grad_()
    with Memory() as memory:
        memory.known.add(leaf.untyped_storage().data_ptr())
        case.value(leaf).backward()
    return float(memory.most) / 2**20


if __name__ == "__main__":
    main()
