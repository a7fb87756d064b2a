"""Reports: what a table says, what it refuses to say, and the picture."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from matplotlib.axes import Axes
from scipy.stats import binomtest

from topkloss.app.errors import InputError
from topkloss.app.tasks.images.plot import _recall, draw
from topkloss.app.tasks.images.records import EpochRecord, RunRecord, TrainConfig
from topkloss.app.tasks.images.text import table

AVERAGE = RunRecord(
    config=TrainConfig(loss="average"),
    versions={"torch": "2.14.1"},
    threads=2,
    data={"digest": "abc", "measured": "def", "train": 900, "held_out": 100},
    epochs=(EpochRecord(1, 0.5, 0.5, 0.4, 0.8), EpochRecord(2, 0.3, 0.3, 0.25, 0.9)),
    recall={"cat": 0.95, "dog": 0.75},
    support={"cat": 75, "dog": 25},
    seconds=12.34,
)
MINED = replace(
    AVERAGE,
    config=TrainConfig(fraction=0.5),
    epochs=(EpochRecord(1, 0.9, 0.5, 0.4, 0.85), EpochRecord(2, 0.6, 0.3, 0.31, 0.93)),
    recall={"cat": 0.93, "dog": 0.93},
)

TABLE = """\
                     average  top-k 0.5
accuracy, %             90.0       93.0
mean recall, %          85.0       93.0
recall of cat, %        95.0       93.0
recall of dog, %        75.0       93.0
cross-entropy, nats   0.2500     0.3100
epochs                     2          2
seconds                   12         12

By accuracy (the larger the better), every pair:
average against top-k 0.5:
  -3.0 points of accuracy [-11.0, +5.0], p 0.46 by a z test of two samples: no difference that can be shown here;
  about 11 could have been.

Not paired, for runs/digits-average-seed0 has not recorded what it says of each of the images: `topkloss evaluate`
records it.
In brackets a 95 % interval.
Another seed moves every run: one run of each is no proof."""


def test_the_table_says_what_the_difference_is_worth() -> None:
    assert table([AVERAGE, MINED]) == TABLE


def test_a_large_difference_is_called_so() -> None:
    weak = replace(MINED, epochs=(EpochRecord(1, 0.9, 0.5, 0.4, 0.6),))
    assert "+30.0 points of accuracy" in table([AVERAGE, weak])
    assert "better, beyond what the choice of images explains." in " ".join(table([AVERAGE, weak]).split())


def test_runs_with_the_same_loss_are_called_by_their_folders() -> None:
    folders = [
        replace(MINED, config=replace(MINED.config, out=f"runs/{name}", image_size=size))
        for name, size in (("small", 32), ("large", 64))
    ]
    assert table(folders).split("\n")[0].split() == ["runs/small", "runs/large"]


def test_one_run_is_not_compared() -> None:
    assert table([AVERAGE]).endswith("Measured on 100 held-out images, with one seed.")


def test_runs_of_other_seeds_are_compared_one_by_one() -> None:
    assert "average against top-k 0.5" in table([AVERAGE, replace(MINED, config=replace(MINED.config, seed=1))])


def test_a_class_that_one_run_does_not_have_is_a_dash() -> None:
    assert "recall of bird, %          -       50.0" in table(
        [AVERAGE, replace(MINED, recall={"cat": 0.9, "bird": 0.5})]
    )


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    MINED.write(tmp_path)
    assert RunRecord.read(tmp_path) == replace(MINED, config=replace(MINED.config, out=str(tmp_path)))
    assert {path.name for path in tmp_path.iterdir()} == {"config.yaml", "metrics.csv", "metrics.json"}


@pytest.mark.parametrize("name", ["config.yaml", "metrics.csv", "metrics.json"])
@pytest.mark.parametrize("content", [None, "", "{}", "[]"])
def test_a_folder_that_is_no_run_is_said(tmp_path: Path, name: str, content: str | None) -> None:
    MINED.write(tmp_path)
    (tmp_path / name).unlink()
    if content is not None:
        (tmp_path / name).write_text(content)
    if name == "metrics.csv" and content is not None:
        content = None
        (tmp_path / name).write_text("epoch,loss\n1,x\n")
    if name == "config.yaml":
        way_out = "`topkloss train` makes one"
    elif name == "metrics.json" and content is None:
        way_out = "`topkloss train --resume .*` finishes it"
    else:
        way_out = "Copy it whole, or train again"
    with pytest.raises(InputError, match=rf"must be the folder of a (finished )?run.*{way_out}\.$"):
        RunRecord.read(tmp_path)


@pytest.mark.parametrize(("suffix", "start"), [(".png", b"\x89PNG"), (".svg", b"<?xml")])
def test_the_figure_is_written_whole(tmp_path: Path, suffix: str, start: bytes) -> None:
    path = tmp_path / f"runs{suffix}"
    draw([AVERAGE, MINED], path)
    assert path.read_bytes().startswith(start)
    assert list(tmp_path.iterdir()) == [path]


def test_the_figure_names_runs_and_classes(tmp_path: Path) -> None:
    import matplotlib

    with matplotlib.rc_context({"svg.fonttype": "none"}):
        draw([AVERAGE, MINED], tmp_path / "runs.svg")
    text = (tmp_path / "runs.svg").read_text()
    assert all(f">{word}<" in text for word in ("average", "top-k 0.5", "cat", "dog"))


def test_the_name_of_a_class_is_no_formula(tmp_path: Path) -> None:
    import matplotlib

    odd = replace(AVERAGE, recall={"$x_1$": 0.5, "^{": 0.5, "a<b>&": 0.5})
    other = replace(odd, config=replace(odd.config, lr=0.5, out="runs/$y_1$"))
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        draw([odd, other], tmp_path / "runs.svg")
    text = (tmp_path / "runs.svg").read_text()
    assert all(f">{word}<" in text for word in ("$x_1$", "^{", "a&lt;b&gt;&amp;", "runs/$y_1$"))


def test_an_epoch_is_a_whole_number(tmp_path: Path) -> None:
    import matplotlib

    with matplotlib.rc_context({"svg.fonttype": "none"}):
        draw([replace(AVERAGE, epochs=AVERAGE.epochs[:1])], tmp_path / "runs.svg")
    assert not re.search(r">\d\.\d{3}<", (tmp_path / "runs.svg").read_text())


def test_runs_with_other_classes_keep_their_dots_over_their_names(tmp_path: Path) -> None:
    drawn: list[list[float]] = []
    plot = Axes.plot

    def seen(axes: Axes, x: list[float], y: list[float], **style: Any) -> object:
        drawn.append(list(y))
        return plot(axes, x, y, **style)

    with mock.patch.object(Axes, "plot", seen):
        draw([AVERAGE, replace(MINED, recall={"bird": 0.5, "dog": 0.9})], tmp_path / "runs.png")
    assert drawn[0] == pytest.approx([95, 75, math.nan], nan_ok=True)
    assert drawn[1] == pytest.approx([math.nan, 90, 50], nan_ok=True)


def test_another_kind_of_figure_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"^`--figure` must end in \.png or \.svg; got .*runs\.jpg\. Pass .*runs\.png\.$"
    ):
        draw([AVERAGE], tmp_path / "runs.jpg")
    assert list(tmp_path.iterdir()) == []


def test_a_figure_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="must be a path that can be written"):
        draw([AVERAGE], tmp_path / "nowhere" / "runs.png")


def texts(folder: Path, records: list[RunRecord]) -> str:
    """The picture with its words as words."""
    import matplotlib

    with matplotlib.rc_context({"svg.fonttype": "none"}):
        draw(records, folder / "runs.svg")
    return (folder / "runs.svg").read_text()


def test_the_figure_has_a_title_and_says_what_its_bars_and_curves_are(tmp_path: Path) -> None:
    text = texts(tmp_path, [AVERAGE, MINED])
    for words in (
        "2 ways of training, 2 runs, measured on 100 held-out images",
        "recall; bars: 95 % intervals over the images",
        "loss: held out, dotted in training",
        "accuracy on held-out images, %",
    ):
        assert f">{words}<" in text


def test_the_curves_of_several_seeds_are_their_mean_in_their_range(tmp_path: Path) -> None:
    other = replace(
        AVERAGE,
        config=replace(AVERAGE.config, seed=1),
        epochs=(replace(AVERAGE.epochs[0], accuracy=0.6), replace(AVERAGE.epochs[1], accuracy=0.7)),
        recall={"cat": 0.85, "dog": 0.65},
    )
    drawn: list[list[float]] = []
    bands: list[tuple[list[float], list[float]]] = []
    bars: list[tuple[list[float], list[float]]] = []
    plot, fill, lines = Axes.plot, Axes.fill_between, Axes.vlines

    def plotted(axes: Axes, x: list[float], y: list[float], **style: Any) -> object:
        drawn.append(list(y))
        return plot(axes, x, y, **style)

    def filled(axes: Axes, x: list[float], low: list[float], high: list[float], **style: Any) -> object:
        bands.append((low, high))
        return fill(axes, x, low, high, **style)

    def lined(axes: Axes, x: list[float], low: list[float], high: list[float], **style: Any) -> object:
        bars.append((list(low), list(high)))
        return lines(axes, x, low, high, **style)

    with mock.patch.multiple(Axes, plot=plotted, fill_between=filled, vlines=lined):
        text = texts(tmp_path, [AVERAGE, other])
    assert "average: 2 runs, measured on 100 held-out images" in text
    assert drawn[0] == pytest.approx([90, 70])
    assert [*bars[0][0], *bars[0][1]] == pytest.approx([85, 65, 95, 75])
    assert drawn[-1] == pytest.approx([70, 80])
    assert [*bands[-1][0], *bands[-1][1]] == pytest.approx([60, 70, 80, 90])


def test_the_bar_of_one_run_is_wilsons() -> None:
    found = _recall([replace(AVERAGE, recall={"dog": 0.75}, support={"dog": 20})], "dog")
    ends = binomtest(15, 20).proportion_ci(method="wilson")
    assert found == pytest.approx((75, 100 * ends.low, 100 * ends.high), abs=0.01)
    assert _recall([replace(AVERAGE, recall={"dog": 1.0})], "dog")[2] == pytest.approx(100)
