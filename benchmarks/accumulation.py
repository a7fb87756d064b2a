"""What rules for gradient accumulation make of one batch: its loss, and its gradient beside that of the whole.

``python -m benchmarks.accumulation`` takes the network of `benchmarks.selective`, trained for a moment, and batches of
256 in micro-batches of 32, of which the hardest 10 % are averaged: drawn at random, and sorted by class, as frames of
a film or pages of a book come. It writes ``benchmarks/accumulation.csv`` and prints what docs/selective.md states.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import astuple, dataclass, fields
from functools import partial
from pathlib import Path
from statistics import fmean

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.selective import Problem, Setting
from topkloss import AverageTopKCrossEntropyLoss, SelectiveStep, average_top_k_dual, topk_threshold

__all__ = ["LEDGER", "Row", "main", "read", "summary"]

LEDGER = Path(__file__).with_name("accumulation.csv")
FRACTION, PIECES = 0.1, 8


@dataclass(frozen=True)
class Row:
    """One rule on one batch.

    Attributes:
        order: Of the images in the batch: "shuffled" or "by class".
        rule: How micro-batches are ranked.
        batch: Its number, from 0.
        loss: What the rule minimises, nats.
        exact: The loss of the whole batch.
        difference: Norm of the gradient's difference to that of the whole batch, relative to its norm.
        angle: Between the two, degrees.
    """

    order: str
    rule: str
    batch: int
    loss: float
    exact: float
    difference: float
    angle: float


def rules(problem: Problem, images: Tensor, labels: Tensor, before: Tensor) -> dict[str, Callable[[], Tensor]]:
    """Each adds the gradient and returns the loss; `before` is the threshold of the batch before."""
    criterion = AverageTopKCrossEntropyLoss(fraction=FRACTION)
    micro = torch.arange(len(labels)).chunk(PIECES)

    def losses(part: Tensor) -> Tensor:
        return F.cross_entropy(problem.model(images[part]), labels[part], reduction="none")

    def apart(part: Tensor) -> Tensor:
        return criterion(problem.model(images[part]), labels[part])  # type: ignore[no-any-return]

    def above(part: Tensor) -> Tensor:
        return average_top_k_dual(losses(part), before, fraction=FRACTION)

    return {
        "ranked first: SelectiveStep": lambda: (
            SelectiveStep(problem.model, criterion, micro_batch=len(micro[0]))(images, labels).loss
        ),
        "above the threshold of the batch before": lambda: _added(above(part) for part in micro),
        "each micro-batch ranked by itself": lambda: _added(apart(part) for part in micro),
    }


def _added(values: Iterable[Tensor]) -> Tensor:
    """The mean, and its gradient, one micro-batch after the other."""
    total = torch.zeros(())
    for value in values:
        (value / PIECES).backward()
        total += value.detach() / PIECES
    return total


def measure(setting: Setting, steps: int) -> list[Row]:
    """Every rule on every batch; the first only gives a threshold to carry over. Training goes on by the exact rule."""
    problem = Problem(setting, steps)
    rows: list[Row] = []
    before: Tensor | None = None
    for number, (images, labels) in enumerate(problem.batches):
        with torch.no_grad():
            losses = F.cross_entropy(problem.model(images), labels, reduction="none")
        if before is not None:
            for order, places in (("shuffled", torch.arange(len(labels))), ("by class", labels.argsort())):
                rows += _compared(problem, order, number, images[places], labels[places], before)
        problem.gradient(partial(problem.whole, AverageTopKCrossEntropyLoss(fraction=FRACTION), number))
        problem.optimizer.step()
        before = topk_threshold(losses, fraction=FRACTION)
    return rows


def _compared(
    problem: Problem, order: str, number: int, images: Tensor, labels: Tensor, before: Tensor
) -> Iterator[Row]:
    criterion = AverageTopKCrossEntropyLoss(fraction=FRACTION)
    expected = problem.gradient(partial(problem.whole, criterion, number))
    with torch.no_grad():
        exact = criterion(problem.model(images), labels).item()
    for rule, run in rules(problem, images, labels, before).items():
        gradient = problem.gradient(run)
        difference = float((gradient - expected).norm() / expected.norm())
        angle = float(torch.rad2deg(F.cosine_similarity(gradient, expected, dim=0).clamp(-1, 1).arccos()))
        figures = (run().item(), exact, difference, angle)
        yield Row(order, rule, number, *(round(figure, 6) for figure in figures))


def summary(rows: Sequence[Row]) -> str:
    """A line for each order and rule: means over the batches."""
    lines = [f"{'images':<11}{'rule':<42}{'loss':>6}{'of the exact':>15}{'gradient off by':>18}{'turned by':>12}"]
    for order, rule in dict.fromkeys((row.order, row.rule) for row in rows):
        own = [row for row in rows if (row.order, row.rule) == (order, rule)]
        loss, ratio = fmean(row.loss for row in own), fmean(row.loss / row.exact for row in own)
        difference, angle = fmean(row.difference for row in own), fmean(row.angle for row in own)
        lines.append(f"{order:<11}{rule:<42}{loss:6.3f}{ratio:13.2f} x{100 * difference:16.1f} %{angle:11.0f}°")
    return "\n".join(lines)


def read(ledger: Path) -> list[Row]:
    """The rows of a ledger."""
    with ledger.open(newline="", encoding="utf-8") as file:
        return [
            Row(
                one["order"],
                one["rule"],
                int(one["batch"]),
                float(one["loss"]),
                float(one["exact"]),
                float(one["difference"]),
                float(one["angle"]),
            )
            for one in csv.DictReader(file)
        ]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, writes, prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=Setting.batch)
    parser.add_argument("--width", type=int, default=Setting.width, help="channels of the network")
    parser.add_argument("--steps", type=int, default=40, help="of training before anything is measured")
    parser.add_argument("--ledger", type=Path, default=LEDGER)
    asked = parser.parse_args(arguments)
    rows = measure(Setting(batch=asked.batch, width=asked.width), asked.steps)
    with asked.ledger.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([field.name for field in fields(Row)])
        writer.writerows(astuple(row) for row in rows)
    print(summary(rows))


if __name__ == "__main__":
    main()
