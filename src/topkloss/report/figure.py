"""Runs side by side, as a picture: recall of each class, and the held-out cross-entropy over the epochs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from topkloss.report.table import classes, names
from topkloss.training.errors import InputError
from topkloss.training.records import RunRecord, replacing

__all__ = ["COLOURS", "check", "draw", "save"]

# Okabe and Ito: told apart by the colour-blind; the markers tell them apart in grey.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = "os^Dvp"


def draw(records: Sequence[RunRecord], path: Path) -> None:
    """Writes the picture, as PNG or SVG.

    Args:
        records: One curve and one row of dots each.
        path: Ends in ``.png`` or ``.svg``.

    Raises:
        InputError: If the path ends otherwise or cannot be written.
    """
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2, gridspec_kw={"wspace": 0.08})
    labels, called = classes(records), names(records)
    apart = min(0.25, 0.8 / len(records))
    for number, record in enumerate(records):
        colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
        places = [place + apart * (number - (len(records) - 1) / 2) for place in range(len(labels))]
        recall = [100 * record.recall.get(label, math.nan) for label in labels]
        left.plot(places, recall, linestyle="none", color=colour, marker=marker)
        epochs, losses = zip(*((epoch.epoch, epoch.cross_entropy) for epoch in record.epochs), strict=True)
        right.plot(epochs, losses, label=called[number], color=colour, marker=marker)
    _name_classes(left, labels)
    left.set(xlabel="class", ylabel="recall on held-out images, %")
    right.set(xlabel="epoch", ylabel="held-out cross-entropy, nats", ylim=(0, None))
    right.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    for text in right.legend(frameon=False).get_texts():
        text.set_parse_math(False)  # a "$" is no formula
    for axes in (left, right):
        axes.grid(axis="y", color="#dddddd")
        axes.spines[["top", "right"]].set_visible(False)
    save(figure, path)


def check(path: Path) -> None:
    """What can be said of the path of a picture before there is one.

    Raises:
        InputError: If it ends otherwise than ``.png`` or ``.svg``.
    """
    if path.suffix not in (".png", ".svg"):
        raise InputError(f"`--figure` must end in .png or .svg; got {path}. Pass {path.with_suffix('.png')}.")


def save(figure: Figure, path: Path) -> None:
    """Writes a picture whole or not at all.

    Args:
        figure: The picture.
        path: See `draw`.

    Raises:
        InputError: See `draw`.
    """
    check(path)
    try:
        with replacing(path) as partial:
            figure.savefig(partial, dpi=150, format=path.suffix[1:])
    except OSError as error:
        raise InputError(
            f"`--figure` must be a path that can be written; got {path}: {error.strerror}. Pass another."
        ) from error


def _name_classes(axes: Axes, labels: Sequence[str]) -> None:
    crowded = sum(map(len, labels)) > 60
    axes.set_xticks(range(len(labels)), labels, rotation=90 if crowded else 0, parse_math=False)
