"""Does skipping the backward pass of easy examples reach the same accuracy, and how much sooner?

``python -m benchmarks.skipping`` trains a small residual network on the embedded digits: with the mean, with the 30 %
hardest after a ramp, and with the same in a `SelectiveStep`, which skips as soon as that pays; with group
normalisation, and with batch normalisation, which couples the images of a batch. The three train side by side, a step
each in turn, so that whatever else the machine does slows all of them down alike; only their own steps are timed. It
writes ``benchmarks/skipping.csv`` and ``docs/images/skipping.png`` and prints what docs/selective.md states.
"""

from __future__ import annotations

import argparse
import csv
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from statistics import fmean, median

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.schedules import digits
from topkloss import AverageTopKCrossEntropyLoss, SelectiveStep
from topkloss.loop.schedule import LinearFraction

__all__ = ["LEDGER", "Row", "main"]

ROOT = Path(__file__).resolve().parent.parent
LEDGER = ROOT / "benchmarks" / "skipping.csv"
FIGURE = ROOT / "docs" / "images" / "skipping.png"

FRACTION, BATCH, RATE = 0.3, 128, 0.05
# Okabe and Ito: told apart by the colour-blind; the strokes tell them apart in grey.
LOOKS = {"mean": ("#555555", ":"), "top 30 %": ("#D55E00", "--"), "top 30 %, skipping": ("#0072B2", "-")}


@dataclass(frozen=True)
class Row:
    """One evaluation of one run: `seconds` spent in its own steps so far, accuracy on the 1000 held-out images."""

    norm: str
    way: str
    seed: int
    step: int
    seconds: float
    accuracy: float
    cross_entropy: float


NORMS: dict[str, Callable[[int], nn.Module]] = {"group": lambda width: nn.GroupNorm(4, width), "batch": nn.BatchNorm2d}


class Block(nn.Module):
    """Two convolutions with normalisation, and what goes past them."""

    def __init__(self, width: int, stride: int, norm: str) -> None:
        super().__init__()
        self.body = nn.Sequential(
            NORMS[norm](width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, stride, padding=1, bias=False),
            NORMS[norm](width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1, bias=False),
        )
        self.past = nn.AvgPool2d(stride, ceil_mode=True) if stride > 1 else nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        """The sum of both."""
        outputs: Tensor = self.body(images) + self.past(images)
        return outputs


def network(seed: int, norm: str = "group", *, width: int = 32) -> nn.Sequential:
    """A small residual network; with group normalisation no image is coupled with another."""
    torch.manual_seed(seed)
    blocks = [Block(width, stride, norm) for stride in (1, 2, 1, 2)]
    first, last = nn.Conv2d(1, width, 3, padding=1), nn.Linear(width, 10)
    return nn.Sequential(first, *blocks, NORMS[norm](width), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), last)


def backward_of(way: str, model: nn.Module, steps: int) -> Callable[[Tensor, Tensor], object]:
    """What adds the gradient of a batch; from all images to the target in the first half of training."""
    criterion = AverageTopKCrossEntropyLoss(fraction=1.0)
    ramp = LinearFraction(criterion, end=1.0 if way == "mean" else FRACTION, steps=max(1, steps // 2))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it cannot pay at the start of the ramp, where it makes plain steps
        selective = SelectiveStep(model, criterion, micro_batch=BATCH)

    def backward(images: Tensor, labels: Tensor) -> None:
        if way.endswith("skipping"):
            selective(images, labels)
        else:
            criterion(model(images), labels).backward()
        ramp.step()

    return backward


def train(norm: str, seed: int, steps: int, every: int, width: int) -> list[Row]:
    """The three ways side by side, on the same batches."""
    images, labels = digits()
    models = {way: network(seed, norm, width=width) for way in LOOKS}
    backward = {way: backward_of(way, model, steps) for way, model in models.items()}
    optimizers = {way: torch.optim.SGD(models[way].parameters(), lr=RATE, momentum=0.9) for way in LOOKS}
    schedules = [torch.optim.lr_scheduler.CosineAnnealingLR(one, T_max=steps) for one in optimizers.values()]
    chance = torch.Generator().manual_seed(seed)
    seconds = dict.fromkeys(LOOKS, 0.0)
    rows = []
    for step in range(steps + 1):
        if step % every == 0 or step == steps:
            for way, model in models.items():
                with torch.no_grad():
                    outputs = model.eval()(images[2])
                model.train()
                accuracy = (outputs.argmax(1) == labels[2]).double().mean().item()
                loss = round(F.cross_entropy(outputs, labels[2]).item(), 5)
                rows.append(Row(norm, way, seed, step, round(seconds[way], 3), accuracy, loss))
        batch = torch.randint(len(labels[0]), (BATCH,), generator=chance)
        for way, optimizer in optimizers.items():
            start = time.perf_counter()
            optimizer.zero_grad()
            backward[way](images[0][batch], labels[0][batch])
            optimizer.step()
            seconds[way] += time.perf_counter() - start
        for schedule in schedules:
            schedule.step()
    return rows


def summary(rows: list[Row]) -> str:
    """Of each way: accuracy and time at the end, and the time to 94 %; means over the seeds."""
    lines = [f"{'normalisation, way':<27}{'accuracy, %':<22}cross-entropy   seconds   seconds to 94 %"]
    for norm in NORMS:
        times = {}
        for way in LOOKS:
            own = [row for row in rows if (row.norm, row.way) == (norm, way)]
            ends = [row for row in own if row.step == max(row.step for row in rows)]
            times[way] = [row.seconds for row in ends]
            accuracies = [100 * row.accuracy for row in ends]
            accuracy = f"{fmean(accuracies):.1f} ({min(accuracies):.1f} to {max(accuracies):.1f})"
            lines.append(
                f"{norm:<7}{way:<20}{accuracy:<22}{fmean(row.cross_entropy for row in ends):13.3f}"
                f"{fmean(times[way]):10.1f}{fmean(_first(own, row.seed) for row in ends):18.1f}"
            )
        ratio = median(one / whole for one, whole in zip(times["top 30 %, skipping"], times["top 30 %"], strict=True))
        lines.append(f"{norm:<7}time with skipping, as a share of the time without: {ratio:.2f}")
    return "\n".join(lines)


def _first(rows: list[Row], seed: int) -> float:
    """Seconds until this seed was right on 94 % of the held-out images; NaN where it never was."""
    return min((row.seconds for row in rows if row.seed == seed and row.accuracy >= 0.94), default=float("nan"))


def draw(rows: list[Row], path: Path) -> None:
    """Accuracy over the time spent in steps, every seed."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    both: list[Axes] = list(figure.subplots(1, 2, sharey=True))
    for axes, norm in zip(both, NORMS, strict=True):
        for way, (colour, stroke) in LOOKS.items():
            for number, seed in enumerate(sorted({row.seed for row in rows})):
                own = [row for row in rows if (row.norm, row.way, row.seed) == (norm, way, seed)]
                label = None if number else way
                curve = [100 * row.accuracy for row in own]
                axes.plot([row.seconds for row in own], curve, stroke, color=colour, linewidth=1.2, label=label)
        axes.set(xlabel="seconds spent in training steps", title=f"{norm} normalisation", ylim=(80, 100))
        axes.grid(alpha=0.3)
    both[0].set_ylabel("accuracy on 1000 held-out digits, %")
    both[0].legend(frameon=False, loc="lower right")
    figure.savefig(path, dpi=150)


def read(ledger: Path) -> list[Row]:
    """The rows of a ledger."""
    with ledger.open(newline="") as file:
        return [
            Row(
                one["norm"],
                one["way"],
                int(one["seed"]),
                int(one["step"]),
                float(one["seconds"]),
                float(one["accuracy"]),
                float(one["cross_entropy"]),
            )
            for one in csv.DictReader(file)
        ]


def main(arguments: Sequence[str] | None = None) -> None:
    """Trains, writes, draws, prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--every", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--width", type=int, default=32, help="channels of the network")
    parser.add_argument("--ledger", type=Path, default=LEDGER)
    parser.add_argument("--figure", type=Path, default=FIGURE)
    asked = parser.parse_args(arguments)
    given = (asked.steps, asked.every, asked.width)
    rows = [row for norm in NORMS for seed in range(asked.seeds) for row in train(norm, seed, *given)]
    with asked.ledger.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([field.name for field in fields(Row)])
        writer.writerows(astuple(row) for row in rows)
    draw(rows, asked.figure)
    print(summary(rows))


if __name__ == "__main__":
    main()
