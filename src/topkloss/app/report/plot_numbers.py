"""What models say of numbers, as a picture: against the true values, and how large the errors are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from topkloss.app.report.evaluation import LARGEST
from topkloss.app.report.inspection import Inspection
from topkloss.app.report.picture import COLOURS, end_of, save
from topkloss.app.report.plot_inspection import draw_curves
from topkloss.app.runs.metrics import Numbers

__all__ = ["draw_numbers"]

# More dots are a blot: of more rows some are drawn, evenly along the true values, and those with the largest errors.
MOST_DOTS = 2000
MOST_POINTS = 400
# Width of what is drawn in a panel, in points.
PANEL = 285.0
STYLES = ("-", "--", "-.", ":")

Box = tuple[float, float, float, float]


def draw_numbers(numbers: Numbers, path: Path, inspection: Inspection | None = None) -> None:
    """Writes the picture, as PNG or SVG: a panel for each model, one of all their errors, and the curves of the losses.

    Args:
        numbers: What to draw.
        path: Ends in ``.png`` or ``.svg``.
        inspection: Of the losses that were minimised; None leaves their panel out.

    Raises:
        InputError: If the path ends otherwise or cannot be written.
    """
    count = len(numbers.predicted) + 1 + (inspection is not None)
    across = count if count <= 3 else 2 if count == 4 else 3
    down = -(-count // across)
    figure = Figure(figsize=(5.2 * across, 5.2 * down), layout="constrained")
    panels = list(figure.subplots(down, across, squeeze=False, gridspec_kw={"wspace": 0.06, "hspace": 0.06}).flat)
    for place, name in enumerate(numbers.predicted):
        _against(panels[place], numbers, name, COLOURS[place % len(COLOURS)])
    _sizes(panels[len(numbers.predicted)], numbers)
    if inspection is not None:
        draw_curves(panels[count - 1], inspection)
        panels[count - 1].set_title("losses of all rows, of those trained on too", loc="left", fontsize=10)
    for spare in panels[count:]:
        spare.set_axis_off()
    save(figure, path)


def _against(axes: Axes, numbers: Numbers, name: str, colour: str) -> None:
    """True values to the right, predicted ones upwards, on one scale in all panels; the largest errors are named."""
    predicted, drawn = numbers.predicted[name], _drawn(numbers, name)
    every = [*numbers.true, *(one for column in numbers.predicted.values() for one in column)]
    low, high = min(every), max(every)
    margin = 0.06 * (high - low) or abs(high) or 1.0
    low, high = low - margin, high + margin
    axes.plot([low, high], [low, high], color="#555555", linestyle="--", linewidth=1.2, zorder=1)
    alpha = 0.75 if len(drawn) <= 200 else 0.35
    axes.scatter(
        [numbers.true[row] for row in drawn], [predicted[row] for row in drawn], 22, color=colour, alpha=alpha,
        linewidths=0, zorder=2,
    )  # fmt: skip
    _rings(axes, numbers, name, drawn, PANEL / (high - low))
    label = end_of(numbers.label)
    axes.set(xlim=(low, high), ylim=(low, high), aspect="equal")
    axes.set_xlabel(f"true value of {label}", parse_math=False)
    axes.set_ylabel(f"predicted {label}", parse_math=False)
    some = f", {len(drawn)} of them drawn" if len(drawn) < len(predicted) else ""
    rings = f"rings: the largest errors, by {numbers.unit} of the table"
    title = f"{end_of(name)}\n{len(predicted)} rows{some}; {rings}"
    axes.set_title(title, loc="left", fontsize=10, parse_math=False)
    _clean(axes)


def _rings(axes: Axes, numbers: Numbers, name: str, drawn: Sequence[int], scale: float) -> None:
    """Rings around the largest errors, each with its place in the table, on the side where that hides least."""
    predicted = numbers.predicted[name]
    rows = numbers.largest(name, LARGEST)
    taken = [(scale * numbers.true[row], scale * predicted[row], 3.0, 3.0) for row in {*drawn, *rows}]
    taken += [(scale * numbers.true[row], scale * predicted[row], 5.0, 5.0) for row in rows]
    for row in rows:
        x, y, word = numbers.true[row], predicted[row], str(numbers.places[row])
        wide, high = 2.6 * len(word), 4.5
        sides = [(8 + wide, 0.0), (-8 - wide, 0.0), (0.0, 8 + high), (0.0, -8 - high)]
        boxes = [(scale * x + right, scale * y + up, wide, high) for right, up in sides]
        free = min(range(len(sides)), key=lambda side: sum(_overlap(boxes[side], other) for other in taken))
        taken.append(boxes[free])
        axes.plot(x, y, "o", markersize=8, markerfacecolor="none", markeredgecolor="black", zorder=3)
        axes.annotate(
            word, (x, y), sides[free], textcoords="offset points", fontsize=8, ha="center", va="center", zorder=4
        )


def _overlap(one: Box, other: Box) -> bool:
    """Whether two boxes overlap, each given by its middle and half its size."""
    return abs(one[0] - other[0]) < one[2] + other[2] and abs(one[1] - other[1]) < one[3] + other[3]


def _sizes(axes: Axes, numbers: Numbers) -> None:
    """Draws, for each share of the rows that are farthest off, the least of their absolute errors."""
    n = len(numbers.true)
    counts = sorted({round(n ** (step / MOST_POINTS)) for step in range(MOST_POINTS + 1)})
    for place, name in enumerate(numbers.predicted):
        errors = sorted(numbers.errors(name), reverse=True)
        axes.plot(
            [100 * count / n for count in counts], [errors[count - 1] for count in counts],
            color=COLOURS[place % len(COLOURS)], linestyle=STYLES[place % len(STYLES)], linewidth=2,
            drawstyle="steps-pre", label=f"{end_of(name)}\nmean {math.fsum(errors) / n:.5g}, largest {errors[0]:.5g}",
        )  # fmt: skip
    ticks = [share for share in (0.01, 0.1, 1, 10, 50, 100) if share >= 100 / n]
    axes.set_xscale("log")
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.xaxis.set_minor_formatter("")
    axes.set(ylim=(0, None), xlabel="share of the rows with at least this error, %")
    axes.set_ylabel(f"absolute error, in the unit of {end_of(numbers.label)}", parse_math=False)
    axes.set_title("how large the errors are", loc="left", fontsize=10)
    axes.set_box_aspect(1)
    for text in axes.legend(frameon=False, fontsize=9).get_texts():
        text.set_parse_math(False)
    _clean(axes)


def _drawn(numbers: Numbers, name: str) -> Sequence[int]:
    """The rows that have a dot."""
    n = len(numbers.true)
    if n <= MOST_DOTS:
        return range(n)
    ordered = sorted(range(n), key=lambda row: numbers.true[row])
    even = {ordered[place * n // MOST_DOTS] for place in range(MOST_DOTS)}
    return sorted(even | set(numbers.largest(name, LARGEST)))


def _clean(axes: Axes) -> None:
    axes.grid(color="#eeeeee")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
