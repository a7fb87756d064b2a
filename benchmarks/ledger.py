"""The ledger of speed, `results.csv`: one definition of its rows, of how they are read and written, and of a turn."""

from __future__ import annotations

import csv
import os
import platform
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch

from benchmarks.measure import commit, spread
from topkloss.kernels import native

__all__ = ["LEDGER", "Row", "device", "line", "read", "rows_of", "take_turns", "write"]

LEDGER = Path(__file__).with_name("results.csv")


@dataclass(frozen=True)
class Row:
    """A line of the ledger.

    Attributes:
        kernel: What is computed.
        provider: Who computes.
        mode: What is timed, and under which allocator.
        input: What it is computed of: a shape and a dtype, or a distribution.
        size: How many numbers that is.
        fraction: Share that is averaged, or that has a weight, or where the threshold lies.
        median, low, high: ms: median, first and last decile.
        ratio, ratio_low, ratio_high: To the baseline of the same turn.
        peak: MiB above the input; -1 where it was not followed.
        device: Processor, and the vector instructions of the native kernels.
        torch, threads, commit: Of what was measured.
    """

    kernel: str
    provider: str
    mode: str
    input: str
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

    @property
    def key(self) -> tuple[object, ...]:
        """What a newer row has in common with the one whose place it takes."""
        return self.kernel, self.provider, self.mode, self.input, self.size, self.fraction, self.device, self.threads


def take_turns(ways: Mapping[str, Callable[[], float]], turns: int) -> dict[str, list[float]]:
    """Seconds of each way, one after the other, so often: what disturbs one turn disturbs all of it."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(turns):
        for name, seconds in ways.items():
            times[name].append(seconds())
    return times


def rows_of(
    times: Mapping[str, list[float]],
    *,
    baseline: str,
    kernel: str,
    mode: str,
    input: str,
    size: int,
    fraction: float,
    peaks: Mapping[str, float],
) -> list[Row]:
    """A row for each way that took its turns."""
    rows = []
    for name, own in times.items():
        ratios = [mine / base for mine, base in zip(own, times[baseline], strict=True)]
        median, low, high = (round(1e3 * figure, 4) for figure in spread(own))
        ratio, ratio_low, ratio_high = (round(figure, 3) for figure in spread(ratios))
        peak = round(peaks.get(name, -1.0), 3)
        place = device(), str(torch.__version__), torch.get_num_threads(), commit()
        figures = (median, low, high, ratio, ratio_low, ratio_high, peak)
        rows.append(Row(kernel, name, mode, input, size, fraction, *figures, *place))
    return rows


def device() -> str:
    """The processor, and which of the native kernels serve."""
    vectors = native.LIBRARY.vectors if native.LIBRARY is not None and native.is_available() else "no native kernels"
    return f"{platform.machine()} {vectors}"


def line(row: Row) -> str:
    """What a benchmark prints of a row."""
    peak = "" if row.peak < 0 else f"{row.peak:8.1f} MiB"
    return (
        f"{row.input:<32} {row.fraction:4.0%}  {row.provider:<57} {row.median:9.3f} ms  {row.ratio:6.2f} x "
        f"[{row.ratio_low:.2f}, {row.ratio_high:.2f}] {peak}"
    )


def read(path: Path = LEDGER) -> list[Row]:
    """Its rows; none where it is not there."""
    if not path.exists():
        return []
    kinds = {field.name: {"int": int, "float": float}.get(str(field.type), str) for field in fields(Row)}
    with path.open(newline="", encoding="utf-8") as file:
        lines = csv.DictReader(file)
        return [Row(**{name: kinds[name](text) for name, text in line.items()}) for line in lines]


def write(rows: Sequence[Row], path: Path = LEDGER) -> None:
    """Add rows, or put them in the place of older ones with the same key: whole or not at all."""
    newest = {row.key: row for row in [*read(path), *rows]}
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Row)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(_in_order(newest.values()))
    os.replace(temporary, path)


def _in_order(rows: Iterable[Row]) -> list[dict[str, object]]:
    """By kernel and setting; providers stay as they were measured."""
    ordered = sorted(
        rows, key=lambda row: (row.kernel, row.device, row.mode, row.threads, row.size, row.input, row.fraction)
    )
    return [asdict(row) for row in ordered]
