"""An evaluation, as a picture: who is taken for whom, and whether a probability is what it says."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from topkloss.app.alignment import width
from topkloss.app.report.picture import COLOURS, LETTER, MOST_NAMES, save, start_of
from topkloss.app.report.plot_numbers import draw_numbers
from topkloss.app.runs.metrics import Evaluation

__all__ = ["draw_evaluation"]

# More classes than these have no room for their numbers.
MOST_NUMBERS = 20


def draw_evaluation(evaluation: Evaluation, path: Path) -> None:
    """Writes the picture: the confusion matrix and, of probabilities, the reliability diagram; of numbers the errors.

    Args:
        evaluation: What to draw.
        path: Ends in ``.png`` or ``.svg``.

    Raises:
        InputError: If the path ends otherwise or cannot be written.
    """
    if evaluation.numbers is not None:
        draw_numbers(evaluation.numbers, path)
        return
    count = len(evaluation.classes)
    shown = [start_of(one.name) for one in evaluation.classes] if count <= MOST_NAMES else []
    room = LETTER * max(map(width, shown), default=0)
    side, below = min(14.0, max(4.2, 1.8 + 0.36 * count)), room if _upright(shown) else 0.0
    if evaluation.bins:
        figure = Figure(figsize=(side + room + 5.6, side + below + 0.4), layout="constrained")
        left, right = figure.subplots(1, 2, gridspec_kw={"wspace": 0.06, "width_ratios": [side + room, 5.0]})
        _reliability(right, evaluation)
    else:
        figure = Figure(figsize=(side + room + 1.0, side + below + 0.4), layout="constrained")
        left = figure.subplots()
    _confusion(left, evaluation)
    save(figure, path)


def _upright(names: Sequence[str]) -> bool:
    """Whether names have no room side by side."""
    return max(map(width, names), default=0) > 4


def _confusion(axes: Axes, evaluation: Evaluation) -> None:
    """Rows in % of the class, coloured; the cells say how many images."""
    names, matrix = [one.name for one in evaluation.classes], evaluation.confusion
    shares = [[100 * cell / sum(row) if sum(row) else 0.0 for cell in row] for row in matrix]
    drawn = axes.imshow(shares, cmap="Blues", vmin=0, vmax=100)
    axes.figure.colorbar(drawn, ax=axes, label=f"% of the {evaluation.unit} of the class", shrink=0.7)
    if len(names) <= MOST_NUMBERS:
        for down, row in enumerate(matrix):
            for across, cell in enumerate(row):
                colour = "white" if shares[down][across] > 60 else "black" if cell else "#999999"
                axes.text(across, down, str(cell), ha="center", va="center", fontsize=9, color=colour)
    if len(names) <= MOST_NAMES:
        size = 10 if len(names) <= MOST_NUMBERS else 7
        shown = [start_of(name) for name in names]
        upright = _upright(shown)
        axes.set_xticks(range(len(names)), shown, rotation=90 if upright else 0, fontsize=size, parse_math=False)
        axes.set_yticks(range(len(names)), shown, fontsize=size, parse_math=False)
    axes.tick_params(length=0)
    axes.set(xlabel="taken for", ylabel="class")
    axes.set_title(f"{evaluation.images} {evaluation.unit}: who is taken for whom", loc="left", fontsize=11)


def _reliability(axes: Axes, evaluation: Evaluation) -> None:
    """Dots larger with the images of their bins: on the diagonal a confidence is what it says."""
    filled = [one for one in evaluation.bins if one.confidence is not None and one.accuracy is not None]
    most = max(one.images for one in filled)
    axes.plot([0, 100], [0, 100], color="#555555", linestyle="--", linewidth=1.2)
    points = [(100 * (one.confidence or 0.0), 100 * (one.accuracy or 0.0)) for one in filled]
    confidence, accuracy = zip(*points, strict=True)
    axes.vlines(confidence, confidence, accuracy, color=COLOURS[1], linewidth=1.5, zorder=2)
    sizes = [20 + 160 * one.images / most for one in filled]
    axes.scatter(confidence, accuracy, sizes, color=COLOURS[0], zorder=3, clip_on=False)
    axes.set(xlim=(-3, 103), ylim=(-3, 103), aspect="equal")
    axes.set(xlabel="confidence: probability of what is predicted, %", ylabel="accuracy, %")
    error = evaluation.metrics["calibration_error"].value
    axes.grid(color="#eeeeee")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    title = (
        f"expected calibration error {100 * (error or 0.0):.1f} %\n"
        f"dots: {len(evaluation.bins)} bins, larger with more {evaluation.unit}\n"
        "above the line: less sure than right"
    )
    axes.set_title(title, loc="left", fontsize=11)
