"""A file of losses: what is read, what is refused, what the text and the picture say."""

from __future__ import annotations

import math
import re
from pathlib import Path

import matplotlib
import pytest

from tests.test_docs import DOCS, FENCE, read
from topkloss.app.cli import main
from topkloss.app.errors import InputError
from topkloss.app.report.inspection import MOST_CLASSES, Inspection, inspect, most_different, text
from topkloss.app.report.plot_inspection import draw_inspection

SMALL = "loss,label\n4,dog\n2,cat\n1,cat\n1,cat\n"

TEXT = """\
4 losses: mean 2, from 1 to 4

fraction  k  threshold  value (AT_k)  value / mean
    0.25  1          4             4             2
     0.5  2          2             3           1.5
       1  4          1             2             1

Below fraction 0.5 a constant model, of loss 3, has a smaller AT_k than this one.
Above fraction 0.667 = mean / 3 the bound k > n E* holds: E* is that or less.

Share of each class in all losses and in each fraction, %:
class   all   0.25   0.5
cat    75.0    0.0  50.0
dog    25.0  100.0  50.0"""


def write(folder: Path, content: str, name: str = "losses.csv") -> Path:
    path = folder / name
    path.write_text(content, encoding="utf-8")
    return path


def many(folder: Path, classes: int) -> Path:
    """Classes of ten losses each; the last ones are the hardest, and the very largest loss is of class 0."""
    lines = [f"{100 if n == 0 and i == 0 else n + i / 10},c{n}" for n in range(classes) for i in range(10)]
    return write(folder, "\n".join(["loss,label", *lines]))


def svg(inspection: Inspection, folder: Path) -> str:
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        draw_inspection(inspection, folder / "losses.svg")
    return (folder / "losses.svg").read_text()


def test_the_text(tmp_path: Path) -> None:
    path = write(tmp_path, SMALL)
    assert text(inspect(path, class_column="label", constant_loss=3, fractions=[0.25, 0.5, 1])) == TEXT


def test_without_classes_and_constant_only_the_table_is_left(tmp_path: Path) -> None:
    path = write(tmp_path, SMALL)
    assert text(inspect(path, fractions=[0.25, 0.5, 1])) == TEXT.partition("\n\nBelow")[0]


@pytest.mark.parametrize(
    ("constant", "sentence"),
    [
        (9, "No loss is above 9: a constant model with that loss has the smaller AT_k at no fraction."),
        (1.5, "A model whose loss is 1.5 everywhere has the smaller AT_k at every fraction: train longer."),
    ],
)
def test_a_constant_that_wins_nowhere_or_everywhere_is_said(tmp_path: Path, constant: float, sentence: str) -> None:
    assert sentence in text(inspect(write(tmp_path, SMALL), constant_loss=constant)).splitlines()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tabs.tsv", "label\tloss\ndog\t4\ncat\t2\ncat\t1\ncat\t1\n"),
        ("bom.csv", "\ufeff loss , label \r\n4, dog\r\n\r\n2,cat\r\n1,cat\r\n1,cat"),
        ("more.csv", 'id,"loss",label\na,4e0,dog\n"b,\n",2,cat\nc,1.0,cat\nd,1,cat,and more\n'),
    ],
)
def test_other_spellings_of_the_same_file(tmp_path: Path, name: str, content: str) -> None:
    path = tmp_path / name
    path.write_bytes(content.encode())
    assert text(inspect(path, class_column="label", constant_loss=3, fractions=[0.25, 0.5, 1])) == TEXT


BAD = [
    (None, "{path} must be a CSV file in UTF-8; got No such file or directory. Pass a file with the column loss."),
    ("", "{path}, line 1: there must be one column `loss`; got nothing. Pass its name as `--loss-column`."),
    ("a,b\n1,2\n", "{path}, line 1: there must be one column `loss`; got a, b. Pass its name as `--loss-column`."),
    (
        "loss,loss\n1,2\n",
        "{path}, line 1: there must be one column `loss`; got loss, loss. Pass its name as `--loss-column`.",
    ),
    ("loss\n1\n", "{path}, line 1: there must be one column `label`; got loss. Pass its name as `--class-column`."),
    ("loss,label\n", "{path}, line 2: there must be a loss; got the names of the columns only. Add losses."),
    ("loss,label\n1,a\nx,a\n", "{path}, line 3: `loss` must be a number; got x. Correct the line or remove it."),
    ("loss,label\n1,a\n,a\n", "{path}, line 3: `loss` must be a number; got nothing. Correct the line or remove it."),
    ("loss,label\n\n1,a\nnan,a\n", "{path}, line 4: `loss` must be a number; got nan. Correct the line or remove it."),
    ("label,loss\na\n", "{path}, line 2: `loss` must be a number; got nothing. Correct the line or remove it."),
    ("loss,label\n1,\n", "{path}, line 2: `label` must not be empty; got nothing. Fill it in or remove the line."),
]


@pytest.mark.parametrize(("content", "sentence"), BAD)
def test_a_bad_file_is_one_sentence(tmp_path: Path, content: str | None, sentence: str) -> None:
    path = tmp_path / "losses.csv"
    if content is not None:
        path.write_text(content)
    with pytest.raises(InputError) as caught:
        inspect(path, class_column="label")
    assert str(caught.value) == sentence.format(path=path)


def test_a_file_that_is_no_text_is_said(tmp_path: Path) -> None:
    (tmp_path / "losses.csv").write_bytes(b"loss\n\xff\xfe\n")
    with pytest.raises(InputError, match="must be a CSV file in UTF-8; got 'utf-8' codec"):
        inspect(tmp_path / "losses.csv")
    with pytest.raises(InputError, match="must be a CSV file in UTF-8; got Is a directory"):
        inspect(tmp_path)


@pytest.mark.parametrize(
    ("fraction", "sentence"),
    [
        (
            70,
            "`--fractions`: `fraction` must satisfy 0 < fraction <= 1; got 70. "
            "For the 70 % hardest elements pass fraction=0.7.",
        ),
        (0, "got 0. For the 70 % hardest elements"),
    ],
)
def test_a_fraction_out_of_range_is_said(tmp_path: Path, fraction: float, sentence: str) -> None:
    with pytest.raises(InputError, match=re.escape(sentence)):
        inspect(write(tmp_path, SMALL), fractions=[0.5, fraction])


@pytest.mark.parametrize("constant", [0.0, -1.0, math.inf, math.nan])
def test_a_constant_loss_out_of_range_is_said(tmp_path: Path, constant: float) -> None:
    with pytest.raises(InputError, match="`--constant-loss` must satisfy 0 < loss < inf"):
        inspect(write(tmp_path, SMALL), constant_loss=constant)


def test_of_many_classes_the_most_different_are_shown_and_the_rest_counted(tmp_path: Path) -> None:
    inspection = inspect(many(tmp_path, 60), class_column="label", fractions=[0.002, 0.1, 0.5, 1])
    shown = [inspection.names[label] for label in most_different(inspection)]
    assert len(shown) == MOST_CLASSES
    assert {f"c{n}" for n in range(54, 60)} <= set(shown)
    lines = text(inspection).splitlines()
    assert lines[-1] == "and 40 other classes, nearer to what chance would select"
    assert [line.split()[0] for line in lines[-21:-1]] == shown
    picture = svg(inspection, tmp_path)
    assert "(the 20 classes of 60 farthest from chance)" in picture
    assert set(re.findall(r">(c\d+)<", picture)) == set(shown)


def test_classes_are_in_numerical_order(tmp_path: Path) -> None:
    path = write(tmp_path, "loss,label\n1,10\n1,nan\n1,9\n1,a\n")
    assert inspect(path, class_column="label").names == ("9", "10", "a", "nan")


def test_a_name_is_no_formula_and_commands_no_terminal(tmp_path: Path) -> None:
    path = write(tmp_path, 'loss,label\n1,$x_1$\n2,^{\n3,a<b>&\n4,"\x1b[31m\nred"\n5,漢字\n6,' + 40 * "long" + "\n")
    inspection = inspect(path, class_column="label", constant_loss=2)
    assert "\x1b" not in text(inspection)
    assert max(map(len, text(inspection).splitlines()[-6:])) < 100
    picture = svg(inspection, tmp_path)
    assert all(f">{name}<" in picture for name in ("$x_1$", "^{", "a&lt;b&gt;&amp;", "漢字"))


@pytest.mark.parametrize(("suffix", "start"), [(".png", b"\x89PNG"), (".svg", b"<?xml")])
def test_the_figure_is_written_whole(tmp_path: Path, suffix: str, start: bytes) -> None:
    losses, picture = write(tmp_path, SMALL), tmp_path / f"losses{suffix}"
    draw_inspection(inspect(losses, class_column="label", constant_loss=3), picture)
    assert picture.read_bytes().startswith(start)
    assert set(tmp_path.iterdir()) == {losses, picture}


def test_the_figure_says_what_the_text_says(tmp_path: Path) -> None:
    picture = svg(inspect(write(tmp_path, SMALL), class_column="label", constant_loss=3), tmp_path)
    for words in ("4 losses: how large", "value AT_k:", "threshold:", "below 0.5 a constant", "above 0.667 = mean"):
        assert words in picture
    assert ">100.0<" in picture


@pytest.mark.parametrize(
    "losses",
    [[1.0], [0.0, 0.0], [math.inf], [math.inf, 1.0], [-math.inf, math.inf], [-3.0, -2.0], [1e300, 1e300], [5e-324, 1]],
)
@pytest.mark.parametrize(
    ("constant", "fractions"), [(None, [1.0]), (1.0, [1e-9]), (1e-3, [n / 40 for n in range(1, 41)])]
)
def test_odd_losses_are_drawn(
    tmp_path: Path, losses: list[float], constant: float | None, fractions: list[float]
) -> None:
    path = write(tmp_path, "\n".join(["loss", *map(repr, losses)]))
    inspection = inspect(path, class_column="loss", constant_loss=constant, fractions=fractions)
    assert text(inspection)
    draw_inspection(inspection, tmp_path / "losses.svg")


def test_the_page_shows_what_the_command_prints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    blocks = {language: body for language, body in reversed(FENCE.findall(read(DOCS / "choosing.md")))}
    monkeypatch.chdir(tmp_path)
    exec(compile(blocks["python"], "choosing.md", "exec"), {})
    program, *arguments = blocks["sh"].split()
    assert (program, main(arguments)) == ("topkloss", 0)
    assert capsys.readouterr().out == blocks["text"]


def test_another_kind_of_figure_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"`--figure` must end in \.png or \.svg; got .*losses\.jpg\."):
        draw_inspection(inspect(write(tmp_path, SMALL)), tmp_path / "losses.jpg")
    assert [path.name for path in tmp_path.iterdir()] == ["losses.csv"]
