"""Runs side by side, as a picture: recall of each class, and the held-out cross-entropy over the epochs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from topkloss.app.alignment import width
from topkloss.app.report.picture import COLOURS, LETTER, MOST_NAMES, end_of, save, start_of
from topkloss.app.tasks.images.records import RunRecord
from topkloss.app.tasks.images.text import classes, names

__all__ = ["draw"]

MARKERS = "os^Dvp"


def draw(records: Sequence[RunRecord], path: Path) -> None:
    """Writes the picture, as PNG or SVG.

    Args:
        records: One curve and one row of dots each.
        path: Ends in ``.png`` or ``.svg``.

    Raises:
        InputError: If the path ends otherwise or cannot be written.
    """
    labels, called = classes(records), names(records)
    wide, longest = min(12.0, max(5.0, 0.2 * len(labels))), max((width(start_of(label)) for label in labels), default=0)
    upright = LETTER * longest > 0.8 * wide / max(len(labels), 1)
    figure = Figure(figsize=(wide + 5, 4 + (LETTER * longest if upright else 0)), layout="constrained")
    left, right = figure.subplots(1, 2, gridspec_kw={"wspace": 0.08, "width_ratios": [wide, 5]})
    apart = min(0.25, 0.8 / len(records))
    for number, record in enumerate(records):
        colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
        places = [place + apart * (number - (len(records) - 1) / 2) for place in range(len(labels))]
        recall = [100 * record.recall.get(label, math.nan) for label in labels]
        left.plot(places, recall, linestyle="none", color=colour, marker=marker)
        epochs, losses = zip(*((epoch.epoch, epoch.cross_entropy) for epoch in record.epochs), strict=True)
        right.plot(epochs, losses, label=end_of(called[number]), color=colour, marker=marker)
    _name_classes(left, labels, upright=upright)
    left.set(xlabel="class", ylabel="recall on held-out images, %")
    left.set_ylim(_around([100 * recall for record in records for recall in record.recall.values()]))
    right.set(xlabel="epoch", ylabel="held-out cross-entropy, nats")
    heights = [epoch.cross_entropy for record in records for epoch in record.epochs]
    right.set_ylim(0, 1.1 * max((height for height in heights if math.isfinite(height)), default=1.0) or 1.0)
    right.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    for text in right.legend(frameon=False).get_texts():
        text.set_parse_math(False)  # a "$" is no formula
    for axes in (left, right):
        axes.grid(axis="y", color="#dddddd")
        axes.spines[["top", "right"]].set_visible(False)
    save(figure, path)


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
