"""Can batches of 8 reach the data set's own average top-k? A linear problem on which every answer is known exactly.

``python -m benchmarks.dual`` trains a line on a stream of small batches with the batch's average top-k, with the dual
form and with its smoothed version, at three learning rates each; then measures how far the average top-k of a batch
lies, on average, below that of the population. It writes ``benchmarks/dual.csv`` and ``docs/images/dual.png`` and
prints what docs/dataset.md states.

The population: y = x + e, where x is -1 or 1, and e is uniform on [0, 0.2] for 93 % and on [0.8, 1] for a rare 7 %,
whatever x is. The loss is the absolute error of ``slope * x + intercept``. Its distribution is a mixture of uniform
ones, so its average top-k is exact (`average_top_k_of`), and its minimiser is a formula (`optimum`).
"""

from __future__ import annotations

import argparse
import csv
import itertools
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from statistics import fmean, median, stdev

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from topkloss import AverageTopKLoss, DualAverageTopKLoss, average_top_k, average_top_k_dual

__all__ = ["LEDGER", "Row", "Runs", "main"]

ROOT = Path(__file__).resolve().parent.parent
LEDGER = ROOT / "benchmarks" / "dual.csv"
FIGURE = ROOT / "docs" / "images" / "dual.png"

RARE, WIDTH = 0.07, 0.2  # share of the rare group; width of the noise of each
BATCH = 8
FRACTIONS = (0.1, 0.3)
RATES = (0.01, 0.03, 0.1)
SIZES = tuple(2**power for power in range(11))
SMOOTHING = 0.01  # as in the paper on ST_k

Criterion = AverageTopKLoss | DualAverageTopKLoss
METHODS: dict[str, Callable[[float], Criterion]] = {
    "batch top-k": lambda fraction: AverageTopKLoss(nn.L1Loss(reduction="none"), fraction=fraction),
    "dual": lambda fraction: DualAverageTopKLoss(nn.L1Loss(reduction="none"), fraction=fraction),
    "smoothed dual": lambda fraction: DualAverageTopKLoss(
        nn.L1Loss(reduction="none"), fraction=fraction, smoothing=SMOOTHING
    ),
}
# Okabe and Ito: told apart by the colour-blind; the strokes tell them apart in grey.
LOOKS = {"batch top-k": ("#D55E00", "--"), "dual": ("#0072B2", "-"), "smoothed dual": ("#009E73", "-.")}

Pieces = list[tuple[float, float, float]]


@dataclass(frozen=True)
class Row:
    """One evaluation of one run, or one mean over batches at the optimum.

    Attributes:
        part: "training" or "estimate".
        method: A key of `METHODS`.
        fraction: Of the average top-k.
        batch: Elements in a batch.
        rate: Learning rate of the first step; 0 in an estimate.
        seed: Of the stream.
        step: Optimiser steps made; 0 in an estimate.
        slope: Of the averaged iterates; of the optimum in an estimate.
        intercept: As the slope.
        threshold: As the slope; NaN where the method has none.
        value: Average top-k of the population at that slope and intercept; in an estimate the mean over the batches.
    """

    part: str
    method: str
    fraction: float
    batch: int
    rate: float
    seed: int
    step: int
    slope: float
    intercept: float
    threshold: float
    value: float


Runs = list[Row]


def sample(count: int, chance: torch.Generator) -> tuple[Tensor, Tensor]:
    """Inputs and targets, of shape (count, 1)."""
    x = 2.0 * torch.randint(2, (count, 1), generator=chance) - 1
    noise = WIDTH * torch.rand(count, 1, generator=chance)
    rare = torch.rand(count, 1, generator=chance) < RARE
    return x, x + torch.where(rare, 1 - noise, noise)


def losses_of(slope: float, intercept: float) -> Pieces:
    """The distribution of the loss: mass, least and largest value of uniform pieces."""
    pieces = []
    for x in (-1, 1):
        shift = intercept + (slope - 1) * x
        for mass, low, high in (((1 - RARE) / 2, 0.0, WIDTH), (RARE / 2, 1 - WIDTH, 1.0)):
            low, high = low - shift, high - shift
            if low < 0 < high:
                pieces += [(-mass * low / (high - low), 0.0, -low), (mass * high / (high - low), 0.0, high)]
            else:
                pieces.append((mass, min(abs(low), abs(high)), max(abs(low), abs(high))))
    return pieces


def share_above(pieces: Pieces, threshold: float) -> float:
    """How much of the population has a loss above the threshold."""
    return sum(mass * min(max((high - threshold) / (high - low), 0.0), 1.0) for mass, low, high in pieces)


def dual_of(pieces: Pieces, threshold: float, fraction: float) -> float:
    """The threshold + the mean excess over it / fraction, for the population."""
    excess = 0.0
    for mass, low, high in pieces:
        inside = (high - max(threshold, low)) ** 2 / (2 * (high - low)) if threshold < high else 0.0
        excess += mass * (inside + max(low - threshold, 0.0))
    return threshold + excess / fraction


def threshold_of(pieces: Pieces, fraction: float) -> float:
    """The loss that the given share of the population exceeds; its share is linear between two ends of pieces."""
    ends = sorted({end for _, low, high in pieces for end in (low, high)}, reverse=True)
    above, upper = 0.0, ends[0]
    for end in ends[1:]:
        share = share_above(pieces, end)
        if share >= fraction:
            return upper + (end - upper) * (fraction - above) / (share - above)
        above, upper = share, end
    return upper


def average_top_k_of(pieces: Pieces, fraction: float) -> float:
    """The average top-k of the population, exactly."""
    return dual_of(pieces, threshold_of(pieces, fraction), fraction)


def maximum_of(pieces: Pieces, batch: int) -> float:
    """The expected maximum of a batch, exactly: its average top-k where ``fraction * batch <= 1``."""
    ends = sorted({0.0, *(end for _, low, high in pieces for end in (low, high))})
    expected = ends[-1]
    for start, end in itertools.pairwise(ends):
        first, last = 1 - share_above(pieces, start), 1 - share_above(pieces, end)
        flat = last - first < 1e-9
        power = first**batch if flat else (last ** (batch + 1) - first ** (batch + 1)) / (batch + 1) / (last - first)
        expected -= (end - start) * power
    return expected


def optimum(fraction: float) -> tuple[float, float]:
    """Intercept and threshold that minimise the population's average top-k; the slope is 1.

    At the minimum half of the tail lies above the line, half below. Where ``fraction <= 2 * RARE`` the upper half is
    rare points only; the minimum is then ``1 / 4 + threshold / 2``. Otherwise it holds them all, and common points too.
    """
    common = 1 - RARE
    if fraction > 2 * RARE:
        return WIDTH / (2 * common), WIDTH * (1 - fraction) / (2 * common)
    above, below = WIDTH * fraction / (2 * RARE), WIDTH * fraction / (2 * common)
    return (1 - above + below) / 2, (1 - above - below) / 2


def minimum(fraction: float) -> float:
    """The least average top-k of the population."""
    return average_top_k_of(losses_of(1, optimum(fraction)[0]), fraction)


def intercept_of_maxima(batch: int) -> float:
    """The intercept that minimises the expected maximum of a batch, to 0.0005; the slope is 1."""
    return min((step / 2000 for step in range(2001)), key=lambda at: maximum_of(losses_of(1, at), batch))


def iterate_average(average: Tensor, now: Tensor, count: Tensor | int) -> Tensor:
    """Weights late iterates more: the n-th by about n cubed."""
    return average + (now - average) * 4 / (count + 4)


def train(method: str, fraction: float, rate: float, seed: int, steps: int, at: Sequence[int]) -> Runs:
    """One run from 0 with steps of rate / sqrt(1 + t / 100); the batches of a seed are the same for every method."""
    chance = torch.Generator().manual_seed(seed)
    criterion = METHODS[method](fraction)
    line = nn.Linear(1, 1)
    nn.init.zeros_(line.weight)
    nn.init.zeros_(line.bias)
    both = nn.ModuleList([line, criterion])
    averaged = AveragedModel(both, avg_fn=iterate_average)
    optimizer = torch.optim.SGD(both.parameters(), lr=rate)
    decay = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: (1 + step / 100) ** -0.5)
    rows: Runs = []
    for step in range(1, steps + 1):
        x, y = sample(BATCH, chance)
        optimizer.zero_grad()
        criterion(line(x), y).backward()
        optimizer.step()
        decay.step()
        averaged.update_parameters(both)
        if step in at:
            slope, intercept, *threshold = (parameter.item() for parameter in averaged.parameters())
            value = average_top_k_of(losses_of(slope, intercept), fraction)
            reached = (round(number, 7) for number in (slope, intercept, *(threshold or [float("nan")]), value))
            rows.append(Row("training", method, fraction, BATCH, rate, seed, step, *reached))
    return rows


def estimate(fraction: float, batch: int, seed: int, draws: int) -> Runs:
    """Means over batches of the top-k and of the dual form, at the optimum of line and threshold."""
    intercept, threshold = optimum(fraction)
    x, y = sample(max(draws // batch, 1) * batch, torch.Generator().manual_seed(1000 * batch + seed))
    losses = (y.double() - x.double() - intercept).abs().flatten()
    batches = torch.arange(len(losses)) // batch
    found = {
        "batch top-k": average_top_k(losses, fraction=fraction, groups=batches),
        # batches of one size: the mean of their values is the value of all
        "dual": average_top_k_dual(losses, torch.tensor(threshold, dtype=torch.float64), fraction=fraction),
    }
    return [
        Row("estimate", method, fraction, batch, 0.0, seed, 0, 1.0, intercept, threshold, round(value.item(), 7))
        for method, value in found.items()
    ]


def best_rates(rows: Runs, fraction: float) -> dict[str, float]:
    """For each method, the learning rate whose median run ends at the least average top-k of the population."""
    runs = [row for row in rows if (row.part, row.fraction) == ("training", fraction)]
    last, rates = max(row.step for row in runs), sorted({row.rate for row in runs})
    return {
        method: min(rates, key=lambda rate: median(_values(runs, method, rate, last)))  # type: ignore[arg-type, return-value]
        for method in METHODS
    }


def _values(runs: Runs, method: str, rate: float, step: int) -> list[float]:
    return [row.value for row in runs if (row.method, row.rate, row.step) == (method, rate, step)]


def bias(rows: Runs, method: str, fraction: float, batch: int) -> tuple[float, float]:
    """Mean estimate - truth, and its standard error."""
    asked = ("estimate", method, fraction, batch)
    found = [row.value for row in rows if (row.part, row.method, row.fraction, row.batch) == asked]
    return fmean(found) - minimum(fraction), stdev(found) / len(found) ** 0.5


def bound(fraction: float, batch: int) -> float:
    """Levy et al. 2020: the bias lies between 0 and this, for losses from 0 to the largest one at the optimum."""
    largest = max(high for _, _, high in losses_of(1, optimum(fraction)[0]))
    return float(largest * min(1.0, (fraction * batch) ** -0.5))


def summary(rows: Runs) -> str:
    """Where training ended, at each method's best rate; and the bias by batch size."""
    lines = [f"{'':24}{'rate':>6}{'population AT_k':>17}{'above the least':>25}{'slope':>8}{'intercept':>11}"]
    fractions = sorted({row.fraction for row in rows if row.part == "training"})
    for fraction in fractions:
        intercept, _ = optimum(fraction)
        least = minimum(fraction)
        lines.append(f"{f'{fraction:.0%}: least possible':24}{'':6}{least:17.4f}{'':25}{1:8.3f}{intercept:11.3f}")
        runs = [row for row in rows if (row.part, row.fraction) == ("training", fraction)]
        last = max(row.step for row in runs)
        for method, rate in best_rates(rows, fraction).items():
            ends = [row for row in runs if (row.method, row.rate, row.step) == (method, rate, last)]
            above = [100 * (row.value / least - 1) for row in ends]
            spread = f"{median(above):.2f} % ({min(above):.2f} to {max(above):.2f})"
            lines.append(
                f"{f'     {method}':24}{rate:6g}{median(row.value for row in ends):17.4f}{spread:>25}"
                f"{median(row.slope for row in ends):8.3f}{median(row.intercept for row in ends):11.3f}"
            )
    lines += ["", f"{'batch':>5}{'top-k too low by':>18}{'at most':>9}{'dual off by':>21}"]
    fraction = min(row.fraction for row in rows if row.part == "estimate")
    for batch in sorted({row.batch for row in rows if row.part == "estimate"}):
        (low, _), (off, error) = (bias(rows, method, fraction, batch) for method in ("batch top-k", "dual"))
        lines.append(f"{batch:5}{-low:18.4f}{bound(fraction, batch):9.4f}{f'{off:.4f} +- {error:.4f}':>21}")
    return "\n".join(lines)


def draw(rows: Runs, path: Path) -> None:
    """Left: the population's average top-k by step. Right: the bias of a batch's average top-k by its size."""
    fraction = min(row.fraction for row in rows)
    figure = Figure(figsize=(11, 4.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    _training(left, rows, fraction)
    _bias(right, rows, fraction)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="#eeeeee")
    figure.savefig(path, dpi=130)


def _training(axes: Axes, rows: Runs, fraction: float) -> None:
    """Median and range over the seeds, at each method's best rate; the minimum; where the batch must go."""
    runs = [row for row in rows if (row.part, row.fraction) == ("training", fraction)]
    steps, seeds = sorted({row.step for row in runs}), len({row.seed for row in runs})
    for method, rate in best_rates(rows, fraction).items():
        colour, stroke = LOOKS[method]
        values = [_values(runs, method, rate, step) for step in steps]
        label = f"{method} (rate {rate:g})"
        axes.plot(steps, [median(found) for found in values], stroke, color=colour, linewidth=2, label=label)
        axes.fill_between(steps, [min(v) for v in values], [max(v) for v in values], color=colour, alpha=0.15, lw=0)
    lines = (
        (minimum(fraction), "least possible", "top"),
        (
            average_top_k_of(losses_of(1, intercept_of_maxima(BATCH)), fraction),
            "where the batch's top-k is least",
            "bottom",
        ),
    )
    for value, words, side in lines:
        axes.axhline(value, color="#666666", linestyle=":", linewidth=1.2)
        offset = (4, 3 if side == "bottom" else -3)
        axes.annotate(f"{words}: {value:.3f}", (0, value), offset, ("axes fraction", "data"), "offset points",
                      color="#444444", va=side, fontsize=9)  # fmt: skip
    axes.set(xscale="log", ylim=(0.4, 1.0), xlabel=f"optimiser steps (batches of {BATCH})")
    axes.set_ylabel(f"population's average of the largest {fraction:.0%},\nin units of the target")
    axes.set_title(f"Training on batches of {BATCH}: median and range of {seeds} seeds", loc="left", fontsize=11)
    axes.legend(frameon=False, fontsize=9, loc="upper right")


def _bias(axes: Axes, rows: Runs, fraction: float) -> None:
    """Measured, and the bound; the dual form in words, for zero has no place on a logarithmic axis."""
    sizes = sorted({row.batch for row in rows if row.part == "estimate"})
    low = [-bias(rows, "batch top-k", fraction, size)[0] for size in sizes]
    most = max(abs(bias(rows, "dual", fraction, size)[0]) for size in sizes)
    axes.plot(sizes, [bound(fraction, size) for size in sizes], color="#666666", linewidth=1.5)
    axes.plot(sizes, low, "o--", color=LOOKS["batch top-k"][0], linewidth=2, markersize=5)
    axes.set(xscale="log", yscale="log", xlabel="batch size", ylabel="population's minus the mean of the batches'")
    axes.set_title(f"How far the top {fraction:.0%} of a batch are too low, at the optimum", loc="left", fontsize=11)
    middle = len(sizes) // 2
    notes: tuple[tuple[str, tuple[float, float], tuple[int, int], str], ...] = (
        ("bound (Levy et al. 2020)", (sizes[middle], bound(fraction, sizes[middle])), (6, 6), "#666666"),
        ("measured", (sizes[middle], low[middle]), (-8, -16), LOOKS["batch top-k"][0]),
    )
    for words, where, offset, colour in notes:
        side = "left" if offset[0] > 0 else "right"
        axes.annotate(words, where, offset, textcoords="offset points", color=colour, fontsize=9, ha=side)
    axes.text(0.03, 0.04, f"dual form at its threshold: off by {most:.4f} at most", transform=axes.transAxes,
              color=LOOKS["dual"][0], fontsize=9)  # fmt: skip


def read(ledger: Path) -> Runs:
    """What `main` wrote."""
    with ledger.open(newline="", encoding="utf-8") as file:
        found = csv.reader(file)
        next(found)
        return [
            Row(part, method, float(fraction), int(batch), float(rate), int(seed), int(step), *map(float, rest))
            for part, method, fraction, batch, rate, seed, step, *rest in found
        ]


def main(arguments: Sequence[str] | None = None) -> None:
    """Trains, measures, writes, draws, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=4000, help="optimiser steps of a run")
    parser.add_argument("--seeds", type=int, default=5, help="runs of each method, fraction and rate")
    parser.add_argument("--rates", type=float, nargs="+", default=list(RATES), help="learning rates")
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES), help="batch sizes of the estimates")
    parser.add_argument("--blocks", type=int, default=20, help="repetitions of each estimate, two or more")
    parser.add_argument("--draws", type=int, default=100_000, help="losses drawn for each repetition")
    parser.add_argument("--ledger", type=Path, default=LEDGER, help="the CSV")
    parser.add_argument("--figure", type=Path, default=FIGURE, help="the PNG")
    parser.add_argument("--draw-only", action="store_true", help="train nothing; read the CSV")
    asked = parser.parse_args(arguments)
    if not asked.draw_only:
        at = sorted({round(asked.steps ** (number / 40)) for number in range(41)})
        runs = [
            row
            for fraction in FRACTIONS
            for seed in range(asked.seeds)
            for rate in asked.rates
            for method in METHODS
            for row in train(method, fraction, rate, seed, asked.steps, at)
        ]
        for size in asked.sizes:
            for seed in range(asked.blocks):
                runs += estimate(FRACTIONS[0], size, seed, asked.draws)
        with asked.ledger.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow([field.name for field in fields(Row)])
            writer.writerows(astuple(row) for row in runs)
    rows = read(asked.ledger)
    draw(rows, asked.figure)
    print(summary(rows))


if __name__ == "__main__":
    main()
