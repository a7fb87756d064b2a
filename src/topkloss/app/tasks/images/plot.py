"""Ways of training side by side, as a picture: recall of each class, losses and accuracy over the epochs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from topkloss.app.alignment import width
from topkloss.app.report.arms import Arm
from topkloss.app.report.picture import COLOURS, LETTER, MOST_NAMES, end_of, save, start_of
from topkloss.app.tasks.images.records import EpochRecord, RunRecord
from topkloss.app.tasks.images.text import classes, groups

__all__ = ["draw"]

MARKERS = "os^Dvp"


def draw(records: Sequence[RunRecord], path: Path) -> None:
    """Writes the picture, as PNG or SVG.

    Args:
        records: Of the runs; those that differ in their seeds only are one row of dots and one curve, the mean, in a
            band from the least to the largest.
        path: Ends in ``.png`` or ``.svg``.

    Raises:
        InputError: If the path ends otherwise or cannot be written.
    """
    labels, arms = classes(records), groups(records)
    wide, longest = min(12.0, max(5.0, 0.2 * len(labels))), max((width(start_of(label)) for label in labels), default=0)
    upright = LETTER * longest > 0.8 * wide / max(len(labels), 1)
    figure = Figure(figsize=(wide + 9, 4.4 + (LETTER * longest if upright else 0)), layout="constrained")
    left, middle, right = figure.subplots(1, 3, gridspec_kw={"wspace": 0.08, "width_ratios": [wide, 4.5, 4.5]})
    _recalls(left, labels, arms, [[records[place] for place in arm.places] for arm in arms])
    _name_classes(left, labels, upright=upright)
    for number, arm in enumerate(arms):
        style = {"color": COLOURS[number % len(COLOURS)], "marker": MARKERS[number % len(MARKERS)], "markersize": 4}
        runs = [records[place] for place in arm.places]
        _curve(middle, runs, lambda epoch: epoch.cross_entropy, {**style, "label": end_of(arm.name)})
        _curve(middle, runs, lambda epoch: epoch.train_cross_entropy, {**style, "linestyle": ":", "alpha": 0.7})
        _curve(right, runs, lambda epoch: 100 * epoch.accuracy, style)
    middle.set(xlabel="epoch", ylabel="cross-entropy, nats")
    middle.set_title("loss: held out, dotted in training", loc="left", fontsize=10)
    heights = [
        height for record in records for epoch in record.epochs
        for height in (epoch.cross_entropy, epoch.train_cross_entropy) if math.isfinite(height)
    ]  # fmt: skip
    middle.set_ylim(0, 1.1 * max(heights, default=1.0) or 1.0)
    right.set(xlabel="epoch", ylabel="accuracy on held-out images, %", ylim=(0, 103))
    right.set_title("score", loc="left", fontsize=10)
    for text in middle.legend(frameon=False).get_texts():
        text.set_parse_math(False)  # a "$" is no formula
    for axes in (left, middle, right):
        axes.grid(axis="y", color="#dddddd")
        axes.spines[["top", "right"]].set_visible(False)
    for axes in (middle, right):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    figure.suptitle(_title(records, arms), fontsize=12, parse_math=False)
    save(figure, path)


def _title(records: Sequence[RunRecord], arms: Sequence[Arm]) -> str:
    counted = {record.data["held_out"] for record in records}
    images = " or ".join(map(str, sorted(counted)))
    seeds = sum(len(arm.trials) for arm in arms)
    runs = f"{seeds} run{'' if seeds == 1 else 's'}"
    if len(arms) == 1:
        return f"{end_of(arms[0].name)}: {runs}, measured on {images} held-out images"
    return f"{len(arms)} ways of training, {runs}, measured on {images} held-out images"


def _recalls(axes: Axes, labels: Sequence[str], arms: Sequence[Arm], runs: Sequence[Sequence[RunRecord]]) -> None:
    """A dot with a bar for each class and arm: of one run a 95 % interval, of several from the least to the largest."""
    apart = min(0.25, 0.8 / len(arms))
    ends: list[float] = []
    for number, of_arm in enumerate(runs):
        colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
        places = [place + apart * (number - (len(arms) - 1) / 2) for place in range(len(labels))]
        dots, low, high = zip(*(_recall(of_arm, label) for label in labels), strict=True)
        axes.vlines(places, low, high, color=colour, linewidth=1.2, alpha=0.6)
        axes.plot(places, dots, linestyle="none", color=colour, marker=marker)
        ends += [*low, *high]
    axes.set(xlabel="class", ylabel="recall on held-out images, %")
    axes.set_ylim(_around(ends))
    several = any(len(of_arm) > 1 for of_arm in runs)
    bars = "from the least to the largest of the seeds" if several else "95 % intervals over the images"
    axes.set_title(f"recall; bars: {bars}", loc="left", fontsize=10)


def _recall(runs: Sequence[RunRecord], label: str) -> tuple[float, float, float]:
    """In %, with the ends of its bar; of one run Wilson's interval. NaN where no run has the class."""
    known = [run.recall[label] for run in runs if label in run.recall]
    if not known:
        return math.nan, math.nan, math.nan
    mean, n = fmean(known), runs[0].support.get(label, 0)
    if len(runs) > 1 or not n:
        return 100 * mean, 100 * min(known), 100 * max(known)
    square = 1.96**2 / n
    middle = (mean + square / 2) / (1 + square)
    half = 1.96 * math.sqrt(mean * (1 - mean) / n + square / (4 * n)) / (1 + square)
    return 100 * mean, 100 * min(mean, middle - half), 100 * max(mean, middle + half)


def _curve(
    axes: Axes, runs: Sequence[RunRecord], height: Callable[[EpochRecord], float], style: dict[str, object]
) -> None:
    """The mean over the runs that came to an epoch, in a band from the least to the largest."""
    of_epoch: dict[int, list[float]] = {}
    for run in runs:
        for epoch in run.epochs:
            of_epoch.setdefault(epoch.epoch, []).append(height(epoch))
    epochs = sorted(of_epoch)
    axes.plot(epochs, [fmean(of_epoch[epoch]) for epoch in epochs], **style)  # type: ignore[arg-type]
    if len(runs) > 1:
        low, high = ([end(of_epoch[epoch]) for epoch in epochs] for end in (min, max))
        axes.fill_between(epochs, low, high, color=str(style["color"]), alpha=0.15, linewidth=0)


def _name_classes(axes: Axes, labels: Sequence[str], *, upright: bool) -> None:
    if len(labels) > MOST_NAMES:
        axes.set_xticks([])
        return
    shortened = [start_of(label) for label in labels]
    axes.set_xticks(range(len(labels)), shortened, rotation=90 if upright else 0, parse_math=False)


def _around(shares: Sequence[float]) -> tuple[float, float]:
    """The part of an axis in % that shows some shares, at least five points of it, and nothing that cannot be."""
    finite = [share for share in shares if math.isfinite(share)] or [0.0, 100.0]
    high = max(*finite, min(finite) + 5 if min(finite) < 95 else 100.0)
    low = min(*finite, high - 5)
    return low - 0.04 * (high - low), high + 0.04 * (high - low)
