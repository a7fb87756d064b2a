"""Bad tables of features and options that contradict: one sentence, exit code 2, nothing written."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from topkloss.app.cli import main

C, R = ("--task", "classification"), ("--task", "regression")


def table(rows: int = 40) -> list[list[str]]:
    chance = random.Random(1)
    body = [[f"{chance.gauss(0, 1):.3f}", f"{chance.random():.3f}", "xy"[row % 2], "no"] for row in range(rows)]
    for row in body[::3]:
        row[3] = "yes"
    return [["a", "b", "word", "label"], *body]


def cell(column: int, value: str, line: int = 5) -> bytes:
    """The table with another cell."""
    rows = table()
    rows[line - 1][column] = value
    return written(rows)


def column(place: int, value: Callable[[int], str], rows: int = 40) -> bytes:
    """The table with another column."""
    changed = table(rows)
    for number, row in enumerate(changed[1:]):
        row[place] = value(number)
    return written(changed)


def head(*names: str) -> bytes:
    return written([list(names), *table()[1:]])


def written(rows: list[list[str]]) -> bytes:
    return "".join(",".join(row) + "\n" for row in rows).encode()


GOOD = written(table())

BAD: dict[str, tuple[bytes, tuple[str, ...], str]] = {
    # rows
    "no label": (cell(3, ""), C, "t.csv, line 5: `label` must not be missing; got nothing. Fill it in or remove"),
    "a label that says nothing": (cell(3, "NA"), (*C, "--missing", "NA"), "line 5: `label` must not be missing; got "),
    "one class": (column(3, lambda row: "no"), C, "there must be 2 classes or more; got only 'no'."),
    "a class of one row": (cell(3, "maybe"), C, "line 5: a class must have 2 examples or more, one of them to be held"),
    "numbers for classes": (column(3, str), C, "got 40 in 40 rows. For numbers pass --task regression"),
    "many classes": (column(3, lambda row: f"{row // 2}", 300), C, "must have at most 100 classes, of 2 rows or more;"),
    "words for numbers": (GOOD, R, "line 2: `label` must be a finite number with --task regression; got 'yes'."),
    "an infinite label": (column(3, lambda row: "inf" if row else "1"), R, "line 3: `label` must be a finite number"),
    "a label on two lines": (cell(3, '"n\no"'), C, r"line 5: `label` must be printable text; got 'n\no'."),
    "a cell too many": (cell(3, "no,7"), C, "line 5: there must be as many cells as columns, 4; got 5."),
    "a row cut off": (GOOD + b"1.0\n", C, "line 42: `label` must not be missing; got nothing."),
    "an open quote": (GOOD + b'"1,2,x,no\n', C, "line 42: a row must be cells as CSV has them;"),
    "another encoding": (GOOD + b"1,2,\xe9,no\n", C, "line 42: a table must be text in UTF-8; got the byte 0xe9."),
    "nothing": (b"", C, "line 1: there must be one column `label`; got nothing. Pass its name as `--label-column`."),
    "names only": (b"a,label\n", C, "line 2: there must be a row; got the names of the columns only."),
    "two rows of numbers": (b"a,label\n1,2\n3,4\n", R, "A column must differ from row to row in training;"),
    "three rows of numbers": (b"a,label\n1,2\n3,4\n5,7\n", R, "Cross-validation must find 4 training rows; got 2."),
    "one training row of a class": (
        column(3, lambda row: "yes" if row < 2 else "no"),
        C,
        "Cross-validation must find 2 training rows of each class; got 1. Pass one --fractions and one --C, ",
    ),
    # columns
    "a column twice": (head("a", "a", "word", "label"), C, "line 1: a column must have a name of its own; got 'a' 2"),
    "a column without a name": (
        head("", "b", "word", "label"),
        C,
        'got column 1 without one. Name it, or pass --ignore "',
    ),
    "a name misspelt": (
        head("a", "b", "word", "lable"),
        C,
        "one column `label`; got a, b, word, lable. Did you mean la",
    ),
    "infinity": (cell(0, "-inf"), C, "line 5: `a` must be finite; got -inf. Correct the cell, or leave it empty."),
    "more than a float holds": (cell(0, "1e400"), C, "line 5: `a` must be finite; got 1e400."),
    "1e300": (cell(0, "1e300"), C, "`a` must hold numbers whose squares can be added up; got 1e+300. Divide them"),
    "a word among numbers": (cell(0, "NA"), C, "line 5: `a` must be numbers in each row or words in each; got 'NA' he"),
    "decimal commas": (
        column(0, lambda row: f'"{row},5"'),
        C,
        "line 2: `a` must have points in its numbers; got '0,5'.",
    ),
    "dates": (column(2, lambda row: f"2024-01-{row % 9 + 1:02}"), C, "got the date 2024-01-01. Pass --ignore 'word', "),
    "ids": (
        column(2, lambda row: f"id{row}"),
        C,
        "`word` must say the same in some rows; got another word in each of ",
    ),
    "free text": (column(2, lambda row: f"id{row // 2}", 300), C, "`word` must have at most 100 values, each of which"),
    "numbers as words": (column(0, str), (*C, "--categorical", "a"), "`a` must say the same in some rows;"),
    "no feature": (b"label\nyes\nno\n", C, "there must be a column that is a feature and differs from row to row; got"),
    "all ignored": (GOOD, (*C, "--ignore", "a", "b", "word"), "got none beside label. Add columns."),
    "nothing that differs": (column(2, lambda row: "x"), (*C, "--ignore", "a", "b"), "got none beside label. Add col"),
    # columns that options name
    "an unknown ignored one": (
        GOOD,
        (*C, "--ignore", "wrod"),
        "one column `wrod`; got a, b, word, label. Did you mean",
    ),
    "an unknown categorical one": (GOOD, (*C, "--categorical", "zip"), "Pass its name as `--categorical`."),
    "two things at once": (GOOD, (*C, "--group-by", "label"), "`--group-by` must name another column than `--label-c"),
    "a negative weight": (cell(1, "-1"), (*C, "--weight-column", "b"), "line 5: `b` must be a number >= 0; got '-1'."),
    "a missing weight": (cell(1, ""), (*C, "--weight-column", "b"), "line 5: `b` must not be missing; got nothing."),
    "no weight": (
        column(1, lambda row: "0"),
        (*C, "--weight-column", "b"),
        "there must be a row that counts; got none",
    ),
    "weight for one class": (
        column(1, lambda row: str(row % 3)),
        (*C, "--weight-column", "b"),
        "there must be 2 classes or more; got only 'no'.",
    ),
    "a group for one class": (
        column(2, lambda row: "xyz"[row % 3]),
        (*C, "--group-by", "word"),
        "a class must be in 2 groups or more, one of them to be held out; got 'yes' in 'x' only.",
    ),
    "too few groups": (GOOD, (*C, "--group-by", "word"), "must find each class in 2 training groups or more; got one."),
    "an unknown part": (
        head("a", "b", "split", "label"),
        C,
        "line 2: `split` must be train, held_out (or val) or test",
    ),
    # options
    "a share in %": (
        GOOD,
        (*C, "--fractions", "70"),
        "`--fractions`: `fraction` must satisfy 0 < fraction <= 1; got 70. For the 70 % hardest el",
    ),
    "one fraction": (
        GOOD,
        (*C, "--fraction", "0.7"),
        "`--fraction` must be left out with --task classification, which",
    ),
    "an option of images": (GOOD, (*C, "--model", "resnet18"), "`--model` must be left out with --task classification"),
    "an option of tables": (GOOD, ("--ignore", "a"), "`--ignore` must be left out with --task images, which takes no"),
    "a loss of batches": (GOOD, (*C, "--loss", "average"), "Pass --fractions 1 for the average, --row-loss for the l"),
    "the loss of another task": (
        GOOD,
        (*C, "--row-loss", "squared"),
        "`--row-loss` must be one of logistic, softmax, ",
    ),
    "no strength": (GOOD, (*C, "--C", "0"), "`--C` must satisfy 0 < C < inf; got 0."),
    "everything dropped": (
        GOOD,
        (*C, "--drop-fraction", "1"),
        "`--drop-fraction`: `drop_fraction` must satisfy 0 <= drop_fraction < 1; ",
    ),
    "classes of numbers": (
        GOOD,
        (*R, "--class-weights", "balanced"),
        "`--class-weights` must be none with --task regr",
    ),
    "a delta": (GOOD, (*C, "--delta", "1"), "`--delta` must be left out with --row-loss logistic, which takes none; g"),
    "a delta of nothing": (GOOD, (*R, "--row-loss", "huber", "--delta", "0"), "`--delta` must satisfy 0 < delta < inf"),
    "one fold": (GOOD, (*C, "--folds", "1"), "`--folds` must be 2 or more; got 1."),
    "a share held out in %": (GOOD, (*C, "--held-out", "20"), "For 20 % of each class pass --held-out 0.2."),
    "no probabilities": (GOOD, (*C, "--row-loss", "hinge", "--score", "cross-entropy"), "`--score` must need no proba"),
    "the score of another task": (
        GOOD,
        (*R, "--score", "accuracy"),
        "`--score` must be one of r2, absolute-error with",
    ),
}


@pytest.mark.parametrize(("content", "arguments", "sentence"), BAD.values(), ids=BAD.keys())
def test_a_bad_table_is_one_sentence(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    content: bytes,
    arguments: tuple[str, ...],
    sentence: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("t.csv").write_bytes(content)
    assert main(["train", "t.csv", *arguments, "--out", "runs/one"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("topkloss: ")
    assert error.count("\n") == 1
    assert sentence in error
    assert [path.name for path in tmp_path.iterdir()] == ["t.csv"]


def test_the_good_table_is_good(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the bad ones would prove nothing."""
    monkeypatch.chdir(tmp_path)
    Path("t.csv").write_bytes(GOOD)
    assert main(["train", "t.csv", *C, "--fractions", "1", "--C", "1", "--out", "runs/one"]) == 0
    assert {path.name for path in Path("runs/one").iterdir()} == {
        *("config.yaml", "held_out.csv", "losses.csv", "metrics.json", "model.json")
    }


def test_check_lists_all_that_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = table()
    rows[4][3], rows[6][0], rows[8][3] = "", "x", ""
    for number, row in enumerate(rows[1:]):
        row[2] = f"2024-02-{number % 9 + 1:02}"
    path = tmp_path / "t.csv"
    path.write_bytes(written(rows))
    assert main(["check", str(path), *C]) == 2
    output, error = capsys.readouterr()
    assert [line.partition(": `")[2].split("`")[0] for line in output.splitlines()] == ["a", "word", "label", "label"]
    assert error == f"topkloss: {path} must be free of problems; got 4 problems. Correct what is listed.\n"


def test_check_says_what_is_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = table()
    rows += [[*rows[1][:3], "no"], rows[2]]
    path = tmp_path / "t.csv"
    path.write_bytes(written(rows))
    assert main(["check", str(path), *C]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{path}: nothing is wrong"
    assert lines[2] == "38 rows to train on, 4 held out; imbalance 1.92: from 13 rows of yes to 25 of no"
    assert lines[3] == "4 features: 2 columns of numbers, 1 of words (word)"
    assert lines[5:8] == [
        "class     train  held out",
        "no           25         3",
        "yes          13         1",
    ]
    assert lines[9].startswith("2 rows have the features of another one; ")
    assert lines[10] == "1 times the same features have different labels: no model is right on both"
