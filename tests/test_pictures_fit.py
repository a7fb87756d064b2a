"""What the pictures say can be read: no word lies outside, or upon another, however long the names are."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

from tests.test_report import AVERAGE, MINED
from tests.test_report_numbers import NUMBERS
from tests.test_training_evaluate import EVALUATION
from topkloss.app.report.inspection import inspect
from topkloss.app.report.plot_evaluation import draw_evaluation
from topkloss.app.report.plot_inspection import draw_inspection
from topkloss.app.report.plot_numbers import draw_numbers
from topkloss.app.runs.metrics import ClassMetrics
from topkloss.app.tasks.images.plot import draw

NAMES = {
    "two": ("cat", "dog"),
    "a long one": ("cat", "<script>alert(1)</script>" * 3, "b"),
    "a few that are long": ("-dash", "<script>alert(1)</script>", "=SUM(A1)", "egret", "großer Brachvogel", "heron"),
    "one among short ones": ("dolichonyx oryzivo", *"abcdef"),
    "long ones": tuple(f"one of the species number {n:03}" for n in range(6)),
    "twenty": tuple(f"species {n}" for n in range(20)),
    "sixty": tuple(f"species {n}" for n in range(60)),
    "hundreds": tuple(f"c{n}" for n in range(300)),
    "no letters of the font": ("鳥", "鷺"),
}


def report(names: tuple[str, ...], path: Path) -> None:
    recall = {name: 1.0 for name in names}
    outs = [f"{'runs/deep/' * 5}{n}" for n in range(2)]
    runs = [replace(MINED, config=replace(MINED.config, out=out), recall=recall) for out in outs]
    draw([replace(AVERAGE, recall=recall), *runs], path)


def evaluation(names: tuple[str, ...], path: Path) -> None:
    classes = tuple(ClassMetrics(name, 1, 1, 1.0, 1.0, 1.0, 1.0) for name in names)
    confusion = tuple(tuple(int(row == column) for column in range(len(names))) for row in range(len(names)))
    draw_evaluation(replace(EVALUATION, classes=classes, confusion=confusion), path)


def inspection(names: tuple[str, ...], path: Path) -> None:
    losses = path.with_suffix(".csv")
    rows = [f"{0.1 + place},{name}" for place, name in enumerate(names)] * 3
    losses.write_text("\n".join(["loss,label", *rows]), encoding="utf-8")
    draw_inspection(inspect(losses, class_column="label", constant_loss=1.0), path)


def numbers(names: tuple[str, ...], path: Path) -> None:
    predicted = {name: tuple(true + place for true in NUMBERS.true) for place, name in enumerate(names[:4])}
    draw_numbers(replace(NUMBERS, label=names[-1], predicted=predicted), path)


@pytest.fixture
def saved(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The pictures that were written."""
    found: list[Figure] = []
    save = Figure.savefig

    def seen(figure: Figure, *arguments: Any, **options: Any) -> None:
        found.append(figure)
        save(figure, *arguments, **{**options, "dpi": 50})

    monkeypatch.setattr(Figure, "savefig", seen)
    return found


def words(figure: Figure) -> Iterator[tuple[str, Any]]:
    """Each word that is to be seen, and the box around it."""
    canvas = FigureCanvasAgg(figure)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph", UserWarning)
        canvas.draw()
    for axis in (axis for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)):
        low, high = sorted(axis.get_view_interval())
        for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks()):
            if not low <= tick.get_loc() <= high:  # matplotlib has them at hand, and does not draw them
                tick.label1.set_visible(False)
    for text in figure.findobj(Text):
        assert isinstance(text, Text)
        if text.get_visible() and text.get_text().strip():
            yield text.get_text(), text.get_window_extent(canvas.get_renderer())


@pytest.mark.filterwarnings("ignore:A font must have the letters:UserWarning")
@pytest.mark.parametrize("names", NAMES.values(), ids=NAMES.keys())
@pytest.mark.parametrize("picture", [report, evaluation, inspection, numbers])
def test_every_word_can_be_read(
    picture: Callable[[tuple[str, ...], Path], None], names: tuple[str, ...], tmp_path: Path, saved: list[Figure]
) -> None:
    picture(names, tmp_path / "picture.png")
    assert_readable(*saved)


def test_every_word_can_be_read_where_few_losses_are_far_larger(tmp_path: Path, saved: list[Figure]) -> None:
    """Below the curve of the threshold there is no room."""
    losses = [*(0.01 * place for place in range(300)), 3000, 4000]
    (tmp_path / "losses.csv").write_text("\n".join(["loss", *map(str, losses)]))
    draw_inspection(inspect(tmp_path / "losses.csv", constant_loss=1.0), tmp_path / "picture.png")
    assert_readable(*saved)
    axes = saved[0].axes[0]
    legend = axes.get_legend()
    assert legend is not None
    means = {
        text.get_text().partition(":")[0]: line.get_color()
        for text, line in zip(legend.get_texts(), legend.get_lines(), strict=True)
    }
    curves = [(line.get_color(), np.asarray(line.get_ydata())) for line in axes.lines]
    areas = {colour: heights.sum() for colour, heights in curves if len(heights) > 100}
    assert areas[means["value AT_k"]] > areas[means["threshold"]]


def assert_readable(figure: Figure) -> None:
    found = list(words(figure))
    wide, high = figure.bbox.width, figure.bbox.height
    outside = [word for word, box in found if box.x0 < -1 or box.y0 < -1 or box.x1 > wide + 1 or box.y1 > high + 1]
    assert outside == []
    upon = [
        (one, other)
        for (one, box), (other, beside) in itertools.combinations(found, 2)
        if min(box.x1, beside.x1) - max(box.x0, beside.x0) > 1 and min(box.y1, beside.y1) - max(box.y0, beside.y0) > 1
    ]
    assert upon == []


def test_no_recall_is_above_100(tmp_path: Path, saved: list[Figure]) -> None:
    for recall in ({"cat": 1.0, "dog": 1.0}, {"cat": 0.0, "dog": 0.0}, {"cat": 0.5, "dog": 1.0}):
        draw([replace(AVERAGE, recall=recall)], tmp_path / "runs.png")
        left, middle, right = saved.pop().axes
        low, high = left.get_ylim()
        assert low < 100 * min(recall.values()) <= 100 * max(recall.values()) < high < 103
        assert high - low >= 5
        assert not [tick for tick in left.get_yticks() if low <= tick <= high and not 0 <= tick <= 100]
        assert middle.get_ylim()[0] == 0
        assert middle.get_ylim()[1] > 1.05 * max(epoch.cross_entropy for epoch in AVERAGE.epochs)
        assert right.get_ylim() == (0, 103)
