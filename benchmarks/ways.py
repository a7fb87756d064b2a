"""Every way to the cross-entropy of hard elements, forward and backward, against plain ``F.cross_entropy``.

    OMP_NUM_THREADS=1 python -m benchmarks.ways --shape 2 19 384 384

The same loss can be had of several criteria, and other losses of the same logits: what does each cost? All are judged
against a sort in float64, take turns in one process, and write a fresh gradient; where a criterion or `CrossEntropy`
takes ``inplace=True``, that too. Rows go into `results.csv`; their fraction is the share that has a weight.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.ledger import LEDGER, Row, line, rows_of, take_turns, write
from benchmarks.measure import FRESH_PAGES, KEEPING_PAGES, mode, ran_under
from benchmarks.problem import IGNORED, SMALL, Loss, Problem, Weights, judge, peak, problem_of, ranked, seconds
from benchmarks.providers import BASELINE, plain
from topkloss import (
    AverageRankedRangeLoss,
    AverageTopKCrossEntropyLoss,
    AverageTopKLoss,
    CompoundLoss,
    CrossEntropy,
    HardNegativeLoss,
    OHEMLoss,
)

__all__ = ["IN_PLACE", "KERNEL", "Way", "main", "measure", "ways"]

KERNEL = "every way to the cross-entropy"
IN_PLACE = ", in place"
FRACTION = 0.25
DROPPED = 0.02
THRESHOLD, FLOOR = -math.log(0.7), 1 / 16
RATIO = 3.0


@dataclass(frozen=True)
class Way:
    """A loss of the logits, and what it should be.

    Attributes:
        loss: From outputs and targets.
        right: The weight of each element's own loss.
    """

    loss: Loss
    right: Callable[[Problem], Weights]


def ways() -> dict[str, Way]:
    """All of them, the baseline first; those in place at the end."""
    found = {BASELINE: Way(plain, lambda problem: _top(problem, 1.0))}
    of_torch = AverageTopKLoss(nn.CrossEntropyLoss(reduction="none", ignore_index=IGNORED), fraction=FRACTION)
    found |= _of_criterion({}) | {"AverageTopKLoss(nn.CrossEntropyLoss())": Way(of_torch, _top)} | _of_elements({})
    last = _of_criterion({"inplace": True}) | _of_elements({"inplace": True})
    return found | {name + IN_PLACE: way for name, way in last.items()}


def _of_criterion(given: dict[str, Any]) -> dict[str, Way]:
    """`AverageTopKCrossEntropyLoss`: called, selecting, and as a part of a sum."""
    criterion = AverageTopKCrossEntropyLoss(fraction=FRACTION, ignore_index=IGNORED, **given)
    return {
        "AverageTopKCrossEntropyLoss": Way(criterion, _top),
        "AverageTopKCrossEntropyLoss.select().value": Way(lambda x, y: criterion.select(x, y).value, _top),
        "CompoundLoss([AverageTopKCrossEntropyLoss])": Way(CompoundLoss([criterion]), _top),
    }


def _of_elements(given: dict[str, Any]) -> dict[str, Way]:
    """Every criterion of `CrossEntropy`."""
    loss = CrossEntropy(ignore_index=IGNORED, **given)
    ohem = OHEMLoss(loss, threshold=THRESHOLD, min_fraction=FLOOR)
    ranked_range = AverageRankedRangeLoss(loss, fraction=FRACTION, drop_fraction=DROPPED)
    return {
        "AverageTopKLoss(CrossEntropy())": Way(AverageTopKLoss(loss, fraction=FRACTION), _top),
        "OHEMLoss(CrossEntropy())": Way(ohem, _above),
        "AverageRankedRangeLoss(CrossEntropy())": Way(ranked_range, _range),
        "HardNegativeLoss(CrossEntropy())": Way(HardNegativeLoss(loss, ratio=RATIO), _negatives),
        'AverageTopKLoss(CrossEntropy(), within="sample")': Way(
            AverageTopKLoss(loss, fraction=FRACTION, within="sample"),
            lambda problem: _grouped(problem, _samples(problem)),
        ),
        'AverageTopKLoss(CrossEntropy(), within="class")': Way(
            AverageTopKLoss(loss, fraction=FRACTION, within="class"), lambda problem: _grouped(problem, problem.targets)
        ),
    }


def _top(problem: Problem, fraction: float = FRACTION) -> Weights:
    return ranked(problem.losses, fraction * problem.counted, margin=problem.margin)


def _range(problem: Problem) -> Weights:
    start, stop = DROPPED * problem.counted, (DROPPED + FRACTION) * problem.counted
    return ranked(problem.losses, stop, start=start, margin=problem.margin)


def _above(problem: Problem) -> Weights:
    kept = max(float((problem.losses > THRESHOLD).sum()), FLOOR * problem.counted)
    return ranked(problem.losses, kept, margin=problem.margin)


def _negatives(problem: Problem) -> Weights:
    """All positives, whose class is above 0, and the hardest of the rest."""
    positive = problem.targets > 0
    positives = int(positive.sum())
    kept = min(RATIO * positives, problem.counted - positives)
    among = ranked(problem.losses.masked_fill(positive, -torch.inf), kept, margin=problem.margin)
    return Weights((kept * among.each + positive) / (kept + positives), among.sure | positive)


def _grouped(problem: Problem, groups: Tensor) -> Weights:
    """The mean over the groups of the top of each."""
    counted = problem.targets != IGNORED
    own = [counted & (groups == group) for group in groups[counted].unique()]
    each, sure = torch.zeros_like(problem.losses), torch.zeros_like(counted)
    for members in own:
        line = problem.losses[members]
        top = ranked(line, FRACTION * len(line), margin=problem.margin)
        each[members], sure[members] = top.each / len(own), top.sure
    return Weights(each, sure)


def _samples(problem: Problem) -> Tensor:
    number = torch.arange(len(problem.targets)).view(-1, *(1,) * (problem.targets.dim() - 1))
    return number.expand(problem.targets.shape)


def measure(problem: Problem, turns: int) -> list[Row]:
    """Judges, then times, every way."""
    every = ways()
    shares, peaks = {}, {}
    for name, way in every.items():
        right = way.right(problem)
        judge(name, way.loss, problem, right)
        shares[name] = round(float((right.each > 0).sum()) / problem.counted, 3)
        if problem.logits.numel() > SMALL:
            peaks[name] = peak(way.loss, problem)
    times = take_turns({name: seconds(way.loss, problem) for name, way in every.items()}, turns)
    given = {"kernel": KERNEL, "mode": mode(), "input": problem.name, "size": problem.logits.numel()}
    rows = rows_of(times, baseline=BASELINE, fraction=1.0, peaks=peaks, **given)  # type: ignore[arg-type]
    return [replace(row, fraction=shares[row.provider]) for row in rows]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, prints, and adds to the ledger."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--shape", type=int, nargs="+", default=[2, 19, 384, 384], help="N C, or N C d1 ...")
    parser.add_argument("--turns", type=int, default=31)
    parser.add_argument("--ledger", type=Path, default=LEDGER)
    parser.add_argument("--keep-pages", action="store_true", help="in a process whose allocator keeps its pages")
    asked = parser.parse_args(arguments)
    if ran_under(KEEPING_PAGES if asked.keep_pages else FRESH_PAGES, "benchmarks.ways", arguments):
        return
    rows = measure(problem_of(parser, asked.shape, torch.float32), asked.turns)
    print("\n".join(line(row) for row in rows))
    write(rows, asked.ledger)


if __name__ == "__main__":
    main()
