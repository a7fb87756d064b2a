"""The commands on a run on a table: as a process, on other tables, on what is spoiled."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.customers import write_customers, write_real
from tests.processes import run
from tests.test_cli_use import everything
from tests.test_report import AVERAGE
from topkloss.app.cli import main
from topkloss.app.tasks.tables.config import TableConfig
from topkloss.app.tasks.tables.evaluate import load_table_run
from topkloss.app.tasks.tables.fit import fit_table
from topkloss.tabular import AverageTopKClassifier

ASKED = ("--task", "classification", "--label-column", "churn", "--ignore", "id", "household", "mass")
SMALL = ("--fractions", "0.8", "--C", "1")


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with tables and two runs; to be read only."""
    folder = tmp_path_factory.mktemp("fitted")
    write_customers(folder / "customers.csv")
    write_real("diabetes", folder / "diabetes.csv")
    common: dict[str, Any] = {"fractions": (0.8,), "C": (1.0,), "held_out": 0.25}
    ignored = ("id", "household", "mass")
    common |= {"csv": str(folder / "customers.csv"), "out": str(folder / "run")}
    fit_table(TableConfig(label_column="churn", ignore=ignored, **common))
    common |= {"csv": str(folder / "diabetes.csv"), "out": str(folder / "numbers")}
    fit_table(TableConfig(task="regression", label_column="target", **common))
    return folder


@pytest.fixture
def here(fitted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same, to spoil, as current folder; the runs still know where their tables were."""
    shutil.copytree(fitted, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_from_a_table_to_a_run(tmp_path: Path) -> None:
    """As a process: nothing on standard error, nothing left but what was asked for."""
    write_customers(tmp_path / "customers.csv")
    trained = run("train", "customers.csv", *ASKED, "--fractions", "1", "0.7", "--C", "1", "--out", "r", cwd=tmp_path)
    assert (trained.returncode, trained.stderr) == (0, "")
    lines = trained.stdout.splitlines()
    assert lines[0].startswith("216 rows to train on, 24 held out; imbalance ")
    assert lines[1] == "10 features: 3 columns of numbers, 2 of words (city, plan)"
    assert lines[-1] == "results: r"
    assert "average" in lines[4]
    assert {path.name for path in tmp_path.iterdir()} == {"customers.csv", "r"}
    assert {path.name for path in (tmp_path / "r").iterdir()} == {
        *("config.yaml", "held_out.csv", "losses.csv", "metrics.json", "model.json")
    }


def test_the_same_seed_is_the_same_run(here: Path) -> None:
    for name in ("one", "two"):
        assert main(["train", "customers.csv", *ASKED, *SMALL, "--seed", "3", "--out", name]) == 0
    for name in ("config.yaml", "losses.csv", "model.json"):
        assert Path("one", name).read_bytes() == Path("two", name).read_bytes()
    assert main(["train", "--config", "one/config.yaml", "--seed", "4", "--out", "other"]) == 0
    assert Path("one", "losses.csv").read_bytes() != Path("other", "losses.csv").read_bytes()


def test_a_parquet_is_the_same_table(here: Path) -> None:
    asked = ("--task", "classification", "--label-column", "target", *SMALL)
    for suffix in ("csv", "parquet"):
        write_real("cancer", here / f"cancer.{suffix}")
        assert main(["train", f"cancer.{suffix}", *asked, "--out", suffix]) == 0
    assert Path("csv/model.json").read_bytes() == Path("parquet/model.json").read_bytes()


def test_evaluation_and_predictions_and_the_run_agree(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "run"]) == 0
    assert capsys.readouterr().out.startswith("run on 60 held-out rows\n")
    record = json.loads(Path("run/evaluation.json").read_text())
    metrics = json.loads(Path("run/metrics.json").read_text())
    assert {name: figure["value"] for name, figure in record["figures"].items()} == metrics["model"]["figures"]
    assert main(["evaluate", "run", "--data", "customers.csv", "--out", "all", "--figure", "all.png"]) == 0
    assert Path("all.png").read_bytes().startswith(b"\x89PNG")
    whole = json.loads(Path("all/evaluation.json").read_text())
    assert main(["predict", "run", "customers.csv", "--out", "out.csv"]) == 0
    with Path("out.csv").open(newline="") as file, Path("customers.csv").open(newline="", encoding="utf-8") as table:
        rows = list(csv.DictReader(file))
        pairs = [
            (customer["churn"], row["prediction"]) for customer, row in zip(csv.DictReader(table), rows, strict=True)
        ]
    assert [row["line"] for row in rows] == [str(number) for number in range(2, 242)]
    names = ("no", "yes")
    assert whole["confusion"] == [[pairs.count((label, other)) for other in names] for label in names]
    with Path("run/losses.csv").open(newline="") as file:
        of_run = {row["line"]: row["prediction"] for row in csv.DictReader(file)}
    assert of_run == {row["line"]: row["prediction"] for row in rows}


def test_predictions_of_rows_that_are_bad_or_new(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = Path("customers.csv").read_text(encoding="utf-8").splitlines()
    Path("new.csv").write_text(
        "\n".join(
            [
                "plan,age,visits,city,income",  # another order, no label
                "M,40,3,Bonn,20000",
                "M,old,3,Bonn,20000",
                "XL,40,,Bonn,inf",
                "XL,40,,Paris,",
            ]
        )
    )
    assert main(["predict", "run", "new.csv", "--out", "new-out.csv"]) == 0
    output, error = capsys.readouterr()
    assert output == "2 rows predicted: new-out.csv\n"
    assert error.splitlines() == [
        "topkloss: 2 of 4 rows are bad; the column `error` says why.",
        "topkloss: words that training did not say count as none of its words: city in 1 row, plan in 1 row.",
        "topkloss: missing numbers became the median of training: income in 1 row, visits in 1 row.",
    ]
    with Path("new-out.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["line"] for row in rows] == ["2", "3", "4", "5"]
    assert [bool(row["prediction"]) for row in rows] == [True, False, False, True]
    assert rows[1]["error"] == "`age` must be a finite number; got 'old'. Correct it or leave it empty."
    assert float(rows[0]["p_no"]) + float(rows[0]["p_yes"]) == pytest.approx(1)
    assert len(lines) == 241


def test_numbers_are_evaluated_and_predicted(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "numbers"]) == 0
    assert "R2" in capsys.readouterr().out
    assert main(["predict", "numbers", "diabetes.csv", "--out", "out.csv"]) == 0
    model = load_table_run("numbers")
    with Path("out.csv").open(newline="") as file:
        predicted = [float(row["prediction"]) for row in csv.DictReader(file)]
    assert len(predicted) == 442
    assert 100 < sum(predicted) / 442 < 200
    assert model.record.model.metrics["r2"] == pytest.approx(
        json.loads(Path("numbers/evaluation.json").read_text())["figures"]["r2"]["value"]
    )


def test_the_report_says_what_is_proved_and_who_is_hard(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", "run", "--figure", "losses.png"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["average", "top-k", "0.8"]
    error = next(line.split()[-1] for line in lines if line.startswith("weights proved within, %"))
    assert 0 < float(error) <= 0.01
    assert any("the plain average, tuned as well:" in line for line in lines)
    hardest = lines[lines.index("the hardest held-out rows:") + 1 :][:5]
    with Path("run/losses.csv").open(newline="") as file:
        losses = sorted((float(row["loss"]) for row in csv.DictReader(file) if row["part"] == "held_out"), reverse=True)
    assert [float(line.rpartition(" ")[2]) for line in hardest] == pytest.approx(losses[:5], rel=1e-3)
    assert Path("losses.png").read_bytes().startswith(b"\x89PNG")
    assert main(["report", "run", "numbers"]) == 0
    output = capsys.readouterr().out
    assert "run: average" in output
    assert "Classes and numbers have no score in common: their figures do not compare." in output


def test_the_report_says_where_less_was_proved_than_asked(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "topkloss.app.tasks.tables.search.estimator", lambda _, **given: AverageTopKClassifier(max_iter=1, **given)
    )
    assert main(["train", "customers.csv", *ASKED, *SMALL, "--out", "new"]) == 0
    output, error = capsys.readouterr()
    assert re.search(r"The solver ended top-k 0\.8 with weights proved within \S+ %, not the 0\.01 % asked for", output)
    assert error == ""
    assert main(["report", "run"]) == 0
    assert "The solver ended" not in capsys.readouterr().out


def change(path: str, old: str, new: str) -> Callable[[], object]:
    """Replaces text in a file."""
    return lambda: Path(path).write_text(Path(path).read_text(encoding="utf-8").replace(old, new), encoding="utf-8")


def nothing() -> None:
    """The arguments are bad enough."""


MODEL: dict[str, Any] = {"row_loss": "logistic", "delta": None, "classes": ["no", "yes"], "coefficients": [[0.0]]}
PREDICT = ("predict", "run", "customers.csv", "--out", "out.csv")

BAD: dict[str, tuple[Callable[[], object], tuple[str, ...], str]] = {
    "half a model": (lambda: os.truncate("run/model.json", 300), PREDICT, "model.json must hold the model of a run"),
    "no model": (lambda: Path("run/model.json").unlink(), PREDICT, "No such file or directory. Copy the folder of the"),
    "other coefficients": (change("run/model.json", '"income"', '"wealth"'), PREDICT, "there must be one column `weal"),
    "no number": (change("run/model.json", '"mean": ', '"mean": "x'), PREDICT, "model.json must hold the model of a"),
    "weights of another model": (
        lambda: Path("run/model.json").write_text(
            json.dumps(
                json.loads(Path("run/model.json").read_text()) | {"model": {**MODEL, "intercepts": [float("inf")]}}
            )
        ),
        PREDICT,
        "got ValueError: coefficients of another shape than 1 x 10.",
    ),
    "no metrics": (lambda: Path("run/metrics.json").unlink(), ("evaluate", "run"), "run must be the folder of a finis"),
    "half of them": (lambda: os.truncate("run/metrics.json", 99), ("report", "run"), "run must be the folder of a fin"),
    "another config": (
        change("run/config.yaml", "folds: 5", "folds: x"),
        PREDICT,
        "`folds` must be a whole number; got",
    ),
    "the losses of another": (lambda: os.truncate("run/losses.csv", 0), ("report", "run"), "losses.csv must be what a"),
    "another task": (
        change("run/config.yaml", "task: classification", "task: regression"),
        PREDICT,
        "of its task, reg",
    ),
    "a changed table": (
        lambda: (
            change("customers.csv", "Bonn", "Ulm")(),
            Path("run/config.yaml").write_text(
                "\n".join(
                    "csv: customers.csv" if line.startswith("csv: ") else line
                    for line in Path("run/config.yaml").read_text().splitlines()
                )
            ),
        ),
        ("evaluate", "run"),
        "customers.csv must be what run was trained on; got another content, so nobody knows which rows were held out.",
    ),
    "another class": (
        change("customers.csv", ",yes", ",perhaps"),
        ("evaluate", "run", "--data", "customers.csv"),
        "`churn` must be a class of the model (no, yes); got 'perhaps'.",
    ),
    "a column that is gone": (change("customers.csv", "visits", "calls"), PREDICT, "there must be one column `visits`"),
    "no row": (
        lambda: Path("customers.csv").write_text("age,income,visits,city,plan\n"),
        PREDICT,
        "got the names of the",
    ),
    "bad rows only": (
        lambda: Path("customers.csv").write_text("age,income,visits,city,plan\nx,1,1,Bonn,S\n"),
        PREDICT,
        "got 1, none of which can. Line 2: `age` must be a finite number; got 'x'.",
    ),
    "two tables": (nothing, ("predict", "run", "a.csv", "b.csv", "--out", "out.csv"), "`IMAGES` must be one table for"),
    "a folder": (nothing, ("predict", "run", "numbers", "--out", "out.csv"), "`IMAGES` must be one table for a run on"),
    "a folder of images": (nothing, ("evaluate", "run", "--images", "."), "`--images` must be left out for a run on a"),
    "a picture of another kind": (nothing, ("report", "run", "--figure", "a.jpg"), "`--figure` must end in .png or .s"),
    "losses of no numbers": (
        change("numbers/losses.csv", "held_out,", "held_out,x"),
        ("report", "numbers", "--figure", "a.png"),
        "losses.csv must be what a run wrote; got ValueError: could not convert string to float",
    ),
    "a picture of two": (nothing, ("report", "run", "numbers", "--figure", "a.png"), "must come with one run on a tab"),
    "runs of two kinds": (lambda: AVERAGE.write(Path("numbers")), ("report", "run", "numbers"), "Report them apart."),
    "an export": (nothing, ("export", "run", "--out", "model.onnx"), "`RUN` must be a run on images; got run, on a ta"),
    "a finished run": (nothing, ("train", "--resume", "run"), "`--resume` must be a run on images; got run, on a tabl"),
    "a task that is none": (
        change("run/config.yaml", "task: classification", "task: sorting"),
        ("evaluate", "run"),
        "run/config.yaml: `task` must be one of images, classification, regression; got 'sorting'. Correct the line.",
    ),
    "a run of another task": (
        nothing,
        ("train", "--resume", "run", "--task", "images"),
        "`--task` must be classification with",
    ),
    "a run that is there": (
        nothing,
        ("train", "customers.csv", *ASKED, *SMALL, "--out", "run"),
        "`--out` must be a new or empty folder; got ",
    ),
    "a file in the way": (
        nothing,
        ("train", "customers.csv", *ASKED, *SMALL, "--out", "customers.csv/run"),
        "`--out` must be a folder that can be made; got ",
    ),
}


@pytest.mark.parametrize(("spoil", "arguments", "sentence"), BAD.values(), ids=BAD.keys())
def test_what_is_spoiled_is_one_sentence(
    here: Path,
    capsys: pytest.CaptureFixture[str],
    spoil: Callable[[], object],
    arguments: tuple[str, ...],
    sentence: str,
) -> None:
    spoil()
    before = everything(here)
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("topkloss: ")
    assert error.count("\n") == 1
    assert sentence in error
    assert everything(here) == before


def test_what_fails_in_the_middle_leaves_nothing(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    def stopped(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    before = everything(here)
    asked = ["train", "customers.csv", *ASKED, *SMALL, "--out", "runs/deep/new"]
    for name, failure, code in (("write_models", full, 2), ("search", stopped, 130)):
        monkeypatch.setattr(f"topkloss.app.tasks.tables.fit.{name}", failure)
        assert main(asked) == code
        assert everything(here) == before
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(asked) == 2
    assert everything(here) == before


def test_a_missing_package_names_the_extra(here: Path) -> None:
    blocked = (
        "import sys; sys.modules['sklearn'] = None; from topkloss.app.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", blocked, "train", "customers.csv", *ASKED, "--out", "new"]
    result = subprocess.run(command, cwd=here, capture_output=True, text=True, timeout=120, check=False)
    assert (result.returncode, result.stdout) == (2, "")
    assert 'the package sklearn; got an installation without it. pip install "topkloss[tabular]"' in result.stderr
