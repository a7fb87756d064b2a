"""The picture of a run on numbers: it says what the record says, of any numbers, and of several runs."""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest

from tests.customers import write_real
from tests.test_cli import LOADED
from topkloss.app.cli import main
from topkloss.app.report.plot_numbers import MOST_DOTS, draw_numbers
from topkloss.app.runs.metrics import Numbers
from topkloss.app.tasks.tables.config import TableConfig
from topkloss.app.tasks.tables.evaluate import evaluate_table, load_table_run
from topkloss.app.tasks.tables.fit import fit_table
from topkloss.app.tasks.tables.records import TableRecord
from topkloss.app.tasks.tables.text import rows_table

TRUE = (1.0, 2.0, 3.0, 4.0)
NUMBERS = Numbers(
    "price", "line", (12, 13, 14, 15), TRUE, {"average": (1.5, 2.5, 3.5, 4.5), "top-k 0.5": (0.0, 2, 3, 8)}
)


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three runs on numbers, the last on other rows; to be read only."""
    folder = tmp_path_factory.mktemp("fitted")
    write_real("diabetes", folder / "diabetes.csv")
    common: dict[str, Any] = {"task": "regression", "label_column": "target", "C": (1.0,), "held_out": 0.25}
    for name, seed, fraction in (("mined", 0, 0.5), ("mean", 0, 1.0), ("other", 1, 0.5)):
        table, out = str(folder / "diabetes.csv"), str(folder / name)
        fit_table(TableConfig(csv=table, out=out, seed=seed, fractions=(fraction,), **common))
    return folder


def svg(numbers: Numbers, folder: Path) -> str:
    """The picture with its words as words."""
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        draw_numbers(numbers, folder / "picture.svg")
    return (folder / "picture.svg").read_text()


def words(picture: str) -> list[str]:
    return re.findall(r">([^<>\n]+)</text>", picture)


def test_it_says_what_the_models_say(tmp_path: Path) -> None:
    said = words(svg(NUMBERS, tmp_path))
    for sentence in ("true value of price", "predicted price", "absolute error, in the unit of price", "top-k 0.5"):
        assert sentence in said
    assert "4 rows; rings: the largest errors, by line of the table" in said
    assert "mean 0.5, largest 0.5" in said
    assert "mean 1.25, largest 4" in said
    assert {"12", "13", "14", "15"} <= set(said)
    assert list(tmp_path.iterdir()) == [tmp_path / "picture.svg"]


def test_the_largest_errors_come_first() -> None:
    assert NUMBERS.largest("top-k 0.5", 2) == [3, 0]
    assert NUMBERS.errors("top-k 0.5") == [1.0, 0.0, 0.0, 4.0]


@pytest.mark.parametrize(
    "numbers",
    [
        replace(NUMBERS, places=(2,), true=(5.0,), predicted={"average": (5.0,)}),
        replace(NUMBERS, true=(0.0,) * 4, predicted={"average": (0.0,) * 4}),
        replace(NUMBERS, true=(1e300, -1e300, 0.0, 1.0)),
        replace(NUMBERS, true=(1e-300, 2e-300, 0.0, 0.0), predicted={"average": (0.0,) * 4}),
        replace(NUMBERS, label="$x_1$ <b>&" * 9, predicted={f"{'deep/' * 20}{n}: ^{{": TRUE for n in range(7)}),
    ],
    ids=["one row", "all the same", "huge", "tiny", "names"],
)
def test_any_numbers_can_be_drawn(numbers: Numbers, tmp_path: Path) -> None:
    draw_numbers(numbers, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")


def test_of_many_rows_some_are_drawn_and_the_largest_errors_are(tmp_path: Path) -> None:
    n = 10 * MOST_DOTS
    true = np.random.default_rng(0).normal(size=n)
    predicted = true.copy()
    rows = np.argsort(true)[n // 2 + 1 : n // 2 + 6]  # between two that are drawn anyway
    predicted[rows] += 9
    many = Numbers("y", "row", tuple(range(1, n + 1)), tuple(true.tolist()), {"average": tuple(predicted.tolist())})
    picture = svg(many, tmp_path)
    said = words(picture)
    drawn = next(int(found[1]) for word in said if (found := re.match(r"20000 rows, (\d+) of them drawn", word)))
    assert drawn == MOST_DOTS + 5
    assert {str(row + 1) for row in rows} <= set(said)
    assert len(picture) < 1_000_000


def test_a_run_is_drawn_with_the_plain_average(
    fitted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, record = load_table_run(fitted / "mined"), json.loads((fitted / "mined" / "metrics.json").read_text())
    evaluation = evaluate_table(run)
    assert evaluation.numbers is not None
    for name, model in (("average", "plain"), ("top-k 0.5", "model")):
        error = record[model]["figures"]["mean_absolute_error"]
        assert np.mean(evaluation.numbers.errors(name)) == pytest.approx(error)
    assert main(["evaluate", str(run.folder), "--out", str(tmp_path / "e"), "--figure", str(tmp_path / "e.png")]) == 0
    assert (tmp_path / "e.png").read_bytes().startswith(b"\x89PNG")
    assert "numbers" not in json.loads((tmp_path / "e" / "evaluation.json").read_text())
    lines = capsys.readouterr().out.splitlines()
    told = lines[lines.index("the largest errors:") + 1 :][:5]
    with (run.folder / "losses.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["part"] == "held_out"]
    rows.sort(key=lambda row: -float(row["loss"]))  # the squared error
    assert told == [f"line {row['line']}: {float(row['label']):.7g}, predicted {row['prediction']}" for row in rows[:5]]


def test_the_report_draws_runs_on_the_same_rows(fitted: Path, tmp_path: Path) -> None:
    one, three = tmp_path / "one.svg", tmp_path / "three.svg"
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        assert main(["report", str(fitted / "mined"), "--figure", str(one)]) == 0
        assert main(["report", str(fitted / "mined"), str(fitted / "mean"), "--figure", str(three)]) == 0
    alone, together = words(one.read_text()), words(three.read_text())
    assert {"average", "top-k 0.5", "losses of all rows, of those trained on too"} <= set(alone)
    assert [word for word in together if word.endswith((": average", ": top-k 0.5"))]
    assert "losses of all rows, of those trained on too" not in together
    plain = load_table_run(fitted / "mined").record.plain.metrics["mean_absolute_error"]
    assert [word for word in alone if word.startswith(f"mean {plain:.5g}, largest ")]


def test_a_gain_of_hundreds_is_no_power_of_ten(fitted: Path) -> None:
    record = TableRecord.read(fitted / "mined")
    far = rows_table([replace(record, difference=-1234.5, chance=231.7)])
    assert "is 1200 of R2 worse than the plain average" in far
    assert "more than the 230 that" in far
    near = rows_table([replace(record, difference=0.00012345, chance=0.5)])
    assert "is 0.00012 of R2 better than" in near


def test_runs_on_other_rows_are_not_drawn_together(
    fitted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = tmp_path / "both.png"
    assert main(["report", str(fitted / "mined"), str(fitted / "other"), "--figure", str(picture)]) == 2
    output, error = capsys.readouterr()
    assert output == ""
    assert "or with runs on numbers that were measured on the same rows; got 2 others. Draw them one by one." in error
    assert not picture.exists()


def test_the_text_of_a_report_loads_no_torch(fitted: Path) -> None:
    command = [sys.executable, "-c", LOADED, "report", "mined", "mean"]
    result = subprocess.run(command, cwd=fitted, capture_output=True, text=True, timeout=60, check=True)
    assert result.stderr == "0 ['numpy', 'scipy']\n"
    assert "mean absolute error" in result.stdout
