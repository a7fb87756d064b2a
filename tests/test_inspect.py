"""A file of losses: what is read, what is refused, what the text and the picture say."""

from __future__ import annotations

import csv
import json
import math
import os
import re
import shutil
from pathlib import Path
from typing import Any

import matplotlib
import pyarrow
import pytest
from pyarrow import parquet

from tests.test_docs import DOCS, FENCE, read
from topkloss.app.cli import main
from topkloss.app.errors import InputError
from topkloss.app.report.inspection import MOST_CLASSES, Inspection, inspect, most_different, text
from topkloss.app.report.plot_inspection import draw_inspection
from topkloss.app.tasks.dispatch import losses_at

SMALL = "loss,label\n4,dog\n2,cat\n1,cat\n1,cat\n"

TEXT = """\
4 losses: mean 2, from 1 to 4

fraction  k  threshold  value (AT_k)  value / mean
    0.25  1          4             4             2
     0.5  2          2             3           1.5
       1  4          1             2             1

Above fraction 0.667 = mean / 3 the bound k > n E* holds: E* is that or less.
Below fraction 0.5 a constant model, of loss 3, has a smaller AT_k than this one.

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
    assert text(inspect(path, fractions=[0.25, 0.5, 1])) == TEXT.partition("\n\nAbove")[0]


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
        ("more.csv", 'id,"loss",label,\na,4e0,dog\n"b,\n",2,cat\nc,1.0,cat\nd,1,cat,and more\n'),
        ("excel.csv", "\ufefflabel;loss\r\ndog;4,0\r\ncat;2\r\ncat;1,0\r\ncat;1\r\n"),
        ("said.csv", "sep=;\rlabel;loss\rdog;4\rcat;2\rcat;1\rcat;1\r"),
        ("BIG.TSV", "label\tloss\ndog\t4\ncat\t2\ncat\t1\ncat\t1\n"),
        ("no_tabs.tsv", "label;loss\ndog;4\ncat;2\ncat;1\ncat;1\n"),
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
    (
        "loss,label\n1,234,a\n",
        "{path}, line 2: there must be as many cells as columns, 2; got 3. "
        "Put a cell that holds a separator in quotes.",
    ),
    ("loss,label\n1_000,a\n", "{path}, line 2: `loss` must be a number; got 1_000. Correct the line or remove it."),
    ('loss,label\n"1,234.5",a\n', "{path}, line 2: `loss` must be a number; got 1,234.5. Write 1234.5 for 1,234.5."),
    (
        "loss;label\n1,5;a\n2.5;a\n",
        "{path}, line 3: a table with decimal commas must have no points in its numbers; got '2.5' in `loss`, and "
        "'1,5' in `loss`, line 2. Write all with one sign, without separators of thousands.",
    ),
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
    with pytest.raises(InputError, match=r"line 2: a table must be text in UTF-8; got the byte 0xff\."):
        inspect(tmp_path / "losses.csv")
    with pytest.raises(InputError, match="must be a CSV file in UTF-8; got Is a directory"):
        inspect(tmp_path)


@pytest.mark.parametrize("name", ["losses", "losses.csv", "losses.parquet"])
def test_a_pipe_is_refused_and_not_waited_for(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.mkfifo(tmp_path / name)
    assert main(["inspect", str(tmp_path / name)]) == 2
    assert f"{tmp_path / name} must be a file or a folder; got neither. Pass a CSV file." in capsys.readouterr().err


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


@pytest.mark.filterwarnings("ignore:A font must have the letters:UserWarning")  # not every machine has one
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


# Parts, and runs

PARTS = "loss,label,part\n4,dog,held_out\n2,cat,held_out\n1,cat,held_out\n1,cat,held_out\n9,cat,train\n0,dog,test\n"


def test_what_was_held_out_is_inspected_where_the_lines_say_that(tmp_path: Path) -> None:
    path = write(tmp_path, PARTS)
    asked: dict[str, Any] = {"class_column": "label", "constant_loss": 3, "fractions": [0.25, 0.5, 1]}
    expected = TEXT.replace("4 losses:", "4 losses, held_out:")
    assert text(inspect(path, **asked)) == text(inspect(path, part="held_out", **asked)) == expected
    assert text(inspect(path, part="train")).startswith("1 loss, train: mean 9, ")
    assert text(inspect(path, part="all")).startswith("6 losses: mean 2.833, from 0 to 9")
    with pytest.raises(
        InputError, match=r"`part` says of some lines; got val, and lines of held_out, test, train\. Pass"
    ):
        inspect(path, part="val")
    with pytest.raises(InputError, match=r"got held_out, and lines of train\. Pass one of them, or all\."):
        inspect(write(tmp_path, "loss,part\n1,train\n"))
    with pytest.raises(InputError, match=r"got train, and no such column\. Leave it out\."):
        inspect(write(tmp_path, SMALL), part="train")


def test_a_column_of_that_name_may_mean_something_else(tmp_path: Path) -> None:
    path = write(tmp_path, "loss,part\n1,train\n2,brake\n3,brake\n")
    assert text(inspect(path)).startswith("3 losses: mean 2, ")
    assert text(inspect(path, part="brake")).startswith("2 losses, brake: mean 2.5, ")


def test_a_run_is_inspected(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By its folder or its file; the mean of what was held out is what training measured."""
    measured = json.loads((trained / "metrics.json").read_text())["cross_entropy"]
    assert main(["inspect", str(trained)]) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"3 losses, held_out: mean {measured:.4g}, ")
    assert f" = mean / {math.log(3):.4g} the bound k > n E* holds" in said
    assert "Predicting the shares of the classes, always the same, costs 1.099 on average.\n" in said
    assert "\nclass   all " in said
    assert main(["inspect", str(trained / "losses.csv")]) == 0
    assert capsys.readouterr().out == said
    assert main(["inspect", str(trained), "--part", "all", "--constant-loss", "2"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("30 losses: ")
    assert " = mean / 2 the" in said
    shutil.copytree(trained, tmp_path / "run")
    (tmp_path / "run" / "losses.csv").unlink()
    assert main(["inspect", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert "must have losses.csv, as runs have; got none." in error
    assert "run `topkloss evaluate` on it, and pass its held_out.csv." in error
    (tmp_path / "run" / "metrics.json").unlink()
    assert main(["inspect", str(tmp_path / "run")]) == 2
    assert "finishes it" in capsys.readouterr().err
    (tmp_path / "other").mkdir()
    assert main(["inspect", str(tmp_path / "other")]) == 2
    for name in ("config.yaml", "metrics.json"):
        (tmp_path / "other" / name).write_text("a: stranger's")
    write(tmp_path / "other", SMALL)
    capsys.readouterr()
    assert main(["inspect", str(tmp_path / "other" / "losses.csv")]) == 0
    assert capsys.readouterr().out.startswith("4 losses: mean 2, ")


@pytest.mark.parametrize(
    ("loss", "labels", "zero"),
    [
        *(("logistic", "ab", math.log(2)), ("logistic", "abc", 3 * math.log(2)), ("softmax", "abc", math.log(3))),
        *(("hinge", "ab", 1.0), ("squared-hinge", "abc", 3.0), ("squared", "123456789", None)),
    ],
)
def test_the_constant_loss_of_a_run_on_a_table_is_that_of_the_zero_model(
    tmp_path: Path, loss: str, labels: str, zero: float | None
) -> None:
    """C so small that it is the zero model: its losses are then all that number."""
    rows = [f"{number},{labels[number % len(labels)]}" for number in range(30)]
    table = write(tmp_path, "\n".join(["x,label", *rows]), "table.csv")
    task = "classification" if zero else "regression"
    asked = ["--task", task, "--row-loss", loss, "--C", "1e-12", "--fractions", "1", "--folds", "2"]
    assert main(["train", str(table), *asked, "--out", str(tmp_path / "run")]) == 0
    found = losses_at(tmp_path / "run")
    assert found is not None
    assert found.zero_loss == zero
    if zero is not None:
        losses = inspect(found.path, part="all").losses
        assert losses.median().item() == pytest.approx(zero, rel=0.35)
    assert main(["inspect", str(tmp_path / "run")]) == 0


# What is no loss


@pytest.mark.parametrize(
    ("column", "cells", "sentence"),
    [
        (
            "probability",
            "0.9 1 0",
            "probabilities, by its name, and all of it lies in [0, 1]. Pass the losses, -log of",
        ),
        ("p_cat", "0.9 1 0", "probabilities, by its name"),
        ("Confidence", "0.5 0.5 0.5", "probabilities, by its name"),
        ("correct", "0 1 1", "probabilities, by its name"),
        (
            "log_prob",
            "-0.1 -3 0",
            "logarithms of probabilities, by its name, and none of it is above 0. Pass their neg",
        ),
        ("log-likelihood", "-0.1 -3 -9", "logarithms of probabilities, by its name"),
    ],
)
def test_probabilities_are_no_losses(tmp_path: Path, column: str, cells: str, sentence: str) -> None:
    path = write(tmp_path, "\n".join([column, *cells.split()]))
    with pytest.raises(
        InputError, match=re.escape(f"{path}: `{column}` must be losses, the largest of the hardest ex")
    ):
        inspect(path, loss_column=column)
    with pytest.raises(InputError, match=re.escape(sentence)):
        inspect(path, loss_column=column)


def test_columns_that_add_up_to_one_are_no_losses(tmp_path: Path) -> None:
    path = write(tmp_path, "image,loss,dog,bird\na,0.2,0.7,0.1\nb,0.5,0.25,0.25\nc,1,0,0\n")
    for column in ("loss", "dog"):
        with pytest.raises(InputError, match=f"`{column}` .* with columns beside it, it adds up to 1 in every line"):
            inspect(path, loss_column=column)


@pytest.mark.parametrize(
    "content",
    [
        "score\n0.5\n3\n",  # beyond any probability
        "loss\n0.5\n0.25\n",
        "loss,other\n0.5,0.5\n0.25,0.5\n",
        "loss,other\n0.5,0.5\n0.25,x\n",
        "loss\n1\n1\n",  # the 0-1 loss, of a column alone
        "log_prob\n-3\n1\n",
        "ll\n3\n1\n",
    ],
)
def test_losses_that_look_a_little_like_probabilities_are_losses(tmp_path: Path, content: str) -> None:
    inspect(write(tmp_path, content), loss_column=content.partition("\n")[0].partition(",")[0])


def test_predictions_are_not_taken_for_losses(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "predictions.csv"
    assert main(["predict", str(trained), str(trained.parent / "data"), "--out", str(out)]) == 0
    with out.open(newline="") as file:
        columns = next(csv.reader(file))
    for column in ("probability", *columns[4:]):
        assert main(["inspect", str(out), "--loss-column", column]) == 2
        assert "must be losses" in capsys.readouterr().err


def test_a_parquet_file_of_losses_is_inspected(tmp_path: Path) -> None:
    columns = {"label": ["dog", "cat", "cat", "cat"], "loss": [4.0, 2.0, 1.0, 1.0]}
    parquet.write_table(pyarrow.table(columns), tmp_path / "losses.parquet")
    path = tmp_path / "losses.parquet"
    assert text(inspect(path, class_column="label", constant_loss=3, fractions=[0.25, 0.5, 1])) == TEXT


def test_probabilities_with_decimal_commas_are_no_losses(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("heron;egret\n0,25;0,75\n0,5;0,5\n")
    with pytest.raises(InputError, match="with columns beside it, it adds up to 1"):
        inspect(tmp_path / "p.csv", loss_column="heron")
