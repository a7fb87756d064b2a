"""Class names in any script: letters in figures, or a sentence; columns under each other on a terminal."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib import font_manager
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from tests.pictures import write_pictures
from topkloss.app.alignment import aligned, width
from topkloss.app.cli import main
from topkloss.app.report.picture import save

NAME = "苍鹭"


@pytest.fixture
def font(tmp_path: Path) -> Iterator[str]:
    """A font that has two letters of Chinese, each a filled square, is installed."""
    builder = FontBuilder(1000, isTTF=True)
    names = [".notdef", "first", "second"]
    pen = TTGlyphPen(None)
    pen.moveTo((0, 0))
    for point in ((0, 900), (900, 900), (900, 0)):
        pen.lineTo(point)
    pen.closePath()
    square = pen.glyph()
    builder.setupGlyphOrder(names)
    builder.setupCharacterMap({ord(letter): name for letter, name in zip(NAME, names[1:], strict=True)})
    builder.setupGlyf(dict.fromkeys(names, square))
    builder.setupHorizontalMetrics(dict.fromkeys(names, (1000, 0)))
    builder.setupHorizontalHeader(ascent=900, descent=-100)
    builder.setupNameTable({"familyName": "Two Herons Sans", "styleName": "Regular"})
    builder.setupOS2(sTypoAscender=900)
    builder.setupPost()
    builder.save(tmp_path / "herons.ttf")
    before = list(font_manager.fontManager.ttflist)
    font_manager.fontManager.addfont(str(tmp_path / "herons.ttf"))
    yield "Two Herons Sans"
    font_manager.fontManager.ttflist[:] = before


def drawn(name: str) -> Figure:
    figure = Figure()
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.set_xticks([0, 1], [name, "heron"])
    axes.set_title(f"{name} and others")
    return figure


@pytest.mark.parametrize("kind", ["png", "svg"])
def test_an_installed_font_has_the_letters(font: str, kind: str, tmp_path: Path) -> None:
    figure = drawn(NAME)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        save(figure, tmp_path / f"a.{kind}")
        figure.canvas.draw()
    assert font in figure.axes[0].title.get_fontfamily()
    assert font not in figure.axes[0].get_xticklabels()[1].get_fontfamily(), "what needs no other font keeps its own"


def test_letters_that_no_font_has_are_one_sentence(tmp_path: Path) -> None:
    with pytest.warns(
        UserWarning, match=rf"^A font must have the letters of the names; got none with [{NAME}]+: "
    ) as said:
        save(drawn(NAME), tmp_path / "a.png")
    assert len(said) == 1


def test_latin_letters_need_no_other_font(tmp_path: Path) -> None:
    figure = drawn("Löffelreiher, čáp")
    own = figure.axes[0].title.get_fontfamily()
    save(figure, tmp_path / "a.png")
    assert figure.axes[0].title.get_fontfamily() == own


@pytest.mark.parametrize(
    ("text", "cells"),
    [
        ("heron", 5),
        ("苍鹭", 4),
        ("アオサギ", 8),
        ("ｱｵｻｷﾞ", 5),
        ("왜가리", 6),
        ("cafe\N{COMBINING ACUTE ACCENT}", 4),
        ("\N{FULLWIDTH LATIN SMALL LETTER A}", 2),
    ],
)
def test_width_is_that_of_a_terminal(text: str, cells: int) -> None:
    assert width(text) == cells


def test_columns_stand_under_each_other_in_any_script() -> None:
    lines = aligned([["class", "train", "all"], ["苍鹭", "7", "8"], ["cafe\N{COMBINING ACUTE ACCENT}", "10", "100"]])
    assert {width(line) for line in lines} == {len("class  train  all")}


def test_check_pads_names_by_their_width(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = write_pictures(tmp_path)
    table.write_text(table.read_text().replace(",blank", ",苍鹭与白鹭"))
    assert main(["check", str(table), "--workers", "0"]) == 0
    lines = capsys.readouterr().out.partition("\n\n")[2].partition("\n\n")[0].splitlines()
    assert len(lines) == 5
    assert len({width(line) for line in lines}) == 1
