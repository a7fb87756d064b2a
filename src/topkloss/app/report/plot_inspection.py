"""A file of losses, as a picture: value and threshold at every fraction, and whose the hardest are."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from topkloss.app.report.inspection import Inspection, most_different, number_of
from topkloss.app.report.picture import COLOURS, save

__all__ = ["draw_curves", "draw_inspection"]

POINTS = 400
NAMES = {"threshold": "threshold:\nleast of the selected", "value": "value AT_k:\nmean of the selected"}
# With more cells in a row their numbers would not fit.
MOST_NUMBERS = 12
BEHIND_TEXT: dict[str, Any] = {"facecolor": "white", "alpha": 0.8, "edgecolor": "none", "pad": 1.5}


def draw_inspection(inspection: Inspection, path: Path) -> None:
    """Writes the picture, as PNG or SVG; classes beyond the most different are left out, and their number is said.

    Args:
        inspection: What to draw; infinite losses are not drawn.
        path: Ends in ``.png`` or ``.svg``.

    Raises:
        InputError: If the path ends otherwise or cannot be written.
    """
    shown = most_different(inspection)
    if shown:
        figure = Figure(figsize=(12, max(4.8, 1.6 + 0.26 * len(shown))), layout="constrained")
        left, right = figure.subplots(1, 2, gridspec_kw={"wspace": 0.06})
        _shares(right, inspection, shown)
    else:
        figure = Figure(figsize=(7, 4.8), layout="constrained")
        left = figure.subplots()
    draw_curves(left, inspection)
    save(figure, path)


def draw_curves(axes: Axes, inspection: Inspection) -> None:
    """Draws one panel: value and threshold of the losses at every fraction."""
    table = inspection.table
    places = [*(row.fraction for row in table.rows), table.crossing or 1.0]
    least = min(0.9, max(1 / len(inspection.losses), min(places) / 2))
    fractions, value, threshold = _points(inspection.losses, least)
    for column, curve, colour in (("threshold", threshold, COLOURS[1]), ("value", value, COLOURS[0])):
        label = NAMES[column].replace("\n", " ")
        axes.plot(fractions.tolist(), curve.tolist(), color=colour, linewidth=2, label=label)
        dots = [(row.fraction, getattr(row, column)) for row in table.rows if row.fraction >= least]
        finite = [dot for dot in dots if math.isfinite(dot[1])]
        axes.plot([x for x, _ in finite], [y for _, y in finite], "o", color=colour, markersize=5, clip_on=False)
    levels = [(table.average, "#555555", f"mean of all\n{table.average:.4g}")]
    if table.constant_loss is not None:
        levels.append((table.constant_loss, COLOURS[2], f"constant model\n{table.constant_loss:.4g}"))
    heights = [*value.tolist(), *threshold.tolist(), *(level for level, _, _ in levels)]
    finite_heights = [height for height in heights if math.isfinite(height)]
    low, high = min([0.0, *finite_heights]), max(finite_heights, default=1.0)
    axes.set_xscale("log")
    axes.set(xlim=(least, 1), ylim=(low, low + 1.5 * (high - low or 1.0)))
    axes.set(
        xlabel="fraction: which share of the losses is selected, the largest", ylabel="loss, in the unit of the file"
    )
    if len(table.rows) < MOST_NUMBERS:
        ticks = sorted({row.fraction for row in table.rows if row.fraction >= least})
        axes.set_xticks(ticks, [f"{fraction:g}" for fraction in ticks])
    axes.xaxis.set_minor_formatter("")
    _name_curves(axes, fractions, value, threshold)
    _bounds(axes, inspection)
    _levels(axes, levels)
    axes.grid(axis="y", color="#eeeeee")
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(f"{number_of(inspection)}: how large the hardest are", loc="left", fontsize=11)


def _points(losses: Tensor, least: float) -> tuple[Tensor, Tensor, Tensor]:
    """Fractions from `least`, evenly on a logarithmic axis, with value and threshold there; NaN where infinite."""
    ranked = losses.sort(descending=True).values
    n = len(ranked)
    k = torch.logspace(math.log10(least * n), math.log10(n), POINTS, dtype=torch.float64).ceil().long().clamp(1, n)
    k = torch.unique(k)
    value, threshold = ranked.cumsum(0)[k - 1] / k, ranked[k - 1]
    return k / n, *(curve.masked_fill(~curve.isfinite(), torch.nan) for curve in (value, threshold))


def _name_curves(axes: Axes, fractions: Tensor, value: Tensor, threshold: Tensor) -> None:
    """Names both curves in the middle, where they are farthest apart: above one and below the other there is room."""
    least = math.log(axes.get_xlim()[0])
    middle = (fractions.log() / least >= 0.3) & (fractions.log() / least <= 0.6) & value.isfinite()
    if not bool(middle.any()):
        middle = value.isfinite()
    if not bool(middle.any()):
        return
    at = int((value - threshold).masked_fill(~middle, -1.0).argmax())
    low, high = axes.get_ylim()
    if float(threshold[at]) - low < 0.16 * (high - low):  # no room below
        axes.legend(loc="center right", framealpha=0.8, edgecolor="none")
        return
    for curve, name, away, side, below in (
        (value, NAMES["value"], 8, "left", "bottom"),
        (threshold, NAMES["threshold"], -8, "right", "top"),
    ):
        axes.annotate(
            name, (float(fractions[at]), float(curve[at])), (away, away), textcoords="offset points", ha=side, va=below,
            color=COLOURS[0] if away > 0 else COLOURS[1], bbox=BEHIND_TEXT,
        )  # fmt: skip


def _levels(axes: Axes, levels: list[tuple[float, str, str]]) -> None:
    """Horizontal lines, named at the right margin; two names that would touch are moved apart."""
    levels = sorted(level for level in levels if math.isfinite(level[0]))
    for height, colour, _ in levels:
        axes.axhline(height, color=colour, linestyle="--", linewidth=1.2, zorder=1)
    low, high = axes.get_ylim()
    gap = 0.1 * (high - low)
    heights = [height for height, _, _ in levels]
    if len(heights) == 2 and heights[1] - heights[0] < gap:
        middle = sum(heights) / 2
        heights = [middle - gap / 2, middle + gap / 2]
    for height, (_, colour, name) in zip(heights, levels, strict=True):
        axes.annotate(
            name, (1, height), (6, 0), ("axes fraction", "data"), "offset points", color=colour, va="center", fontsize=9
        )


def _bounds(axes: Axes, inspection: Inspection) -> None:
    table = inspection.table
    if table.bound is None or table.crossing is None:
        return
    left, note = axes.get_xlim()[0], dict[str, Any](fontsize=9, va="top")
    if table.crossing > left:
        axes.axvspan(left, min(table.crossing, 1), color=COLOURS[2], alpha=0.12, linewidth=0)
        where = f"below {table.crossing:.3g}" if table.crossing <= 1 else "everywhere"
        says = f"{where} a constant model\nhas the smaller AT_k"
        axes.annotate(says, (0, 1), (6, -5), "axes fraction", "offset points", color=COLOURS[2], **note)
    if left < table.bound < 1:
        axes.axvline(table.bound, ymax=0.88, color="#555555", linestyle=":", linewidth=1.5)
        axes.annotate(
            f"above {table.bound:.3g} = mean / constant\nk > n E* holds", (table.bound, 0.88), (5, 0),
            ("data", "axes fraction"), "offset points", color="#555555", bbox=BEHIND_TEXT,
            ha="left" if math.log(table.bound) < 0.3 * math.log(left) else "right", **note,
        )  # fmt: skip


def _shares(axes: Axes, inspection: Inspection, shown: list[int]) -> None:
    """A row for each class, a column for each fraction: the share in %, coloured by its difference from the whole."""
    table, names = inspection.table, inspection.names
    rows = sorted((row for row in table.rows if row.fraction < 1), key=lambda row: row.fraction)
    cells = [[100 * row.shares[label] for row in rows] + [100 * table.shares[label]] for label in shown]
    differences = [[cell - line[-1] for cell in line] for line in cells]
    most = max(1.0, *(abs(cell) for line in differences for cell in line))
    axes.imshow(differences, cmap="PuOr_r", vmin=-most, vmax=most, aspect="auto")
    if len(rows) < MOST_NUMBERS:
        for down, line in enumerate(cells):
            for across, cell in enumerate(line):
                dark = abs(differences[down][across]) > 0.6 * most
                axes.text(
                    across,
                    down,
                    f"{cell:.1f}",
                    ha="center",
                    va="center",
                    fontsize=8.5,
                    color="white" if dark else "black",
                )
    axes.axvline(len(rows) - 0.5, color="white", linewidth=3)
    axes.set_xticks(range(len(rows) + 1), [*(f"{row.fraction:g}" for row in rows), "all"])
    axes.set_yticks(range(len(shown)), [names[label] for label in shown], parse_math=False)
    axes.set(xlabel="fraction (orange: more than in all losses, purple: less)", ylabel="class")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    which = f"\n(the {len(shown)} classes of {len(names)} farthest from chance)" if len(shown) < len(names) else ""
    axes.set_title(f"share of each class in the selected, %{which}", loc="left", fontsize=11)
