"""What runs record for a report, the seed of their split, and names that a spreadsheet must not take for formulas."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st

from tests.customers import write_customers, write_real
from topkloss.app.cli import main
from topkloss.app.data.dataset import read_table, split
from topkloss.app.report.inspection import inspect, text
from topkloss.app.runs.cells import name_in, name_of
from topkloss.app.runs.held_out import HELD_OUT, MODEL, PLAIN, HeldOut
from topkloss.app.runs.scores import contributions
from topkloss.app.tasks.images.evaluate import evaluate
from topkloss.app.tasks.images.fit import fit
from topkloss.app.tasks.images.records import RunRecord
from topkloss.app.tasks.images.run import load_run
from topkloss.app.tasks.tables.records import LOSSES, TableRecord
from topkloss.app.tasks.tables.text import numbers_of, rows_table

CUSTOMERS = ("--task", "classification", "--label-column", "churn", "--ignore", "id", "household", "mass")
QUICK = ("--fractions", "1", "0.7", "--C", "1", "--held-out", "0.25")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


# images


def test_a_run_records_what_evaluate_says_of_its_held_out_images(trained: Path) -> None:
    held, evaluation = HeldOut.read(trained), evaluate(load_run(trained))
    assert held is not None
    assert evaluation.said is not None
    assert (held.examples, held.labels, held.names) == (
        *(evaluation.said.examples, evaluation.said.labels, evaluation.said.names),
    )
    assert held.models[MODEL].predictions == evaluation.said.models[MODEL].predictions
    scores = {"accuracy": "accuracy", "balanced-accuracy": "balanced_accuracy", "f1": "f1", "auroc": "auroc"}
    for score, name in scores.items():
        parts = contributions(held, MODEL, score)
        assert parts is not None
        assert parts.sum() == pytest.approx(evaluation.metrics[name].value, abs=1e-6)
    losses = torch.tensor(held.models[MODEL].losses)
    assert losses.mean().item() == pytest.approx(RunRecord.read(trained).last.cross_entropy, abs=1e-5)


def test_evaluate_records_what_an_older_run_did_not(
    trained: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("one", "two"):
        shutil.copytree(trained, here / name)
        (here / name / "held_out.csv").unlink()
        (here / name / "losses.csv").unlink()
        metrics = json.loads((here / name / "metrics.json").read_text())
        del metrics["best_epoch"]  # which came later, too
        (here / name / "metrics.json").write_text(json.dumps(metrics))
    (here / "two" / "config.yaml").write_text(
        (here / "two" / "config.yaml").read_text().replace("batch-size: 9", "batch-size: 8")
    )
    assert main(["report", "one", "two"]) == 0
    assert "`topkloss evaluate`" in capsys.readouterr().out
    for name in ("one", "two"):
        assert main(["evaluate", name]) == 0
    assert (here / "one" / "held_out.csv").read_bytes() == (trained / "held_out.csv").read_bytes()
    capsys.readouterr()
    assert main(["report", "one", "two"]) == 0
    assert "Measured on the same 3 images" in capsys.readouterr().out
    assert main(["evaluate", "one", "--data", str(trained.parent / "data" / "pictures.csv"), "--out", "other"]) == 0
    assert [path.name for path in (here / "other").iterdir()] == ["evaluation.json"]


def test_other_pixels_under_the_same_names_are_other_images(trained: Path, here: Path) -> None:
    """Of the same size, even."""
    held = HeldOut.read(trained)
    assert held is not None
    shutil.copytree(trained.parent / "data", here / "data")
    table = read_table(here / "data" / "pictures.csv")
    places = split(table, 0, 0.1)[1]
    from topkloss.app.tasks.images.recording import held_out_of

    assert held_out_of(table, places, torch.zeros(len(places), 3).double()).examples == held.examples
    first = table.examples[places[0]].path
    first.write_bytes(first.read_bytes()[:-1] + b"\0")
    other = held_out_of(table, places, torch.zeros(len(places), 3).double()).examples
    assert [a == b for a, b in zip(other, held.examples, strict=True)] == [False, True, True]


def test_the_seed_of_the_split_is_apart_and_remembered(trained: Path, tmp_path: Path) -> None:
    config = RunRecord.read(trained).config
    runs = {
        name: fit(replace(config, out=str(tmp_path / name), seed=seed, split_seed=split_seed))
        for name, seed, split_seed in (("same", 1, 0), ("moved", 0, 1))
    }
    measured = RunRecord.read(trained).data["measured"]
    assert runs["same"].data["measured"] == measured != runs["moved"].data["measured"]
    assert yaml.safe_load((tmp_path / "same" / "config.yaml").read_text())["split-seed"] == 0
    assert evaluate(load_run(tmp_path / "same")).metrics["accuracy"].value == runs["same"].last.accuracy
    assert RunRecord.read(tmp_path / "same").config.split_seed == 0
    old, new = HeldOut.read(trained), HeldOut.read(tmp_path / "same")
    assert old is not None
    assert new is not None
    assert old.examples == new.examples


def test_without_a_seed_of_the_split_it_is_the_seed(trained: Path) -> None:
    config = RunRecord.read(trained).config
    assert config.split_seed is None
    assert (config.split, replace(config, seed=5).split, replace(config, seed=5, split_seed=0).split) == (0, 5, 0)


def test_strong_imbalance_is_said_before_training(
    trained: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = (trained.parent / "data" / "pictures.csv").read_text().splitlines()
    rare = [lines[0], *(line for line in lines[1:] if not line.endswith("blank")), *lines[-2:]]
    for place in range(30):
        shutil.copy(trained.parent / "data" / f"2-{place % 10}.png", here / f"more-{place}.png")
        rare.append(f"more-{place}.png,2")
    for picture in (trained.parent / "data").glob("*.png"):
        shutil.copy(picture, here / picture.name)
    Path("rare.csv").write_text("\n".join(rare))
    config = replace(RunRecord.read(trained).config, csv="rare.csv", out="run")
    fit(config)
    assert "accuracy hardly sees the rare class" in capsys.readouterr().out
    fit(replace(config, class_weights="balanced", out="weighted"))
    assert "accuracy hardly sees" not in capsys.readouterr().out


# tables


def test_a_run_on_a_table_records_both_models(here: Path) -> None:
    write_customers(here / "customers.csv")
    asked = ["train", "customers.csv", *CUSTOMERS, "--fractions", "0.7", "--C", "1", "--held-out", "0.25"]
    assert main([*asked, "--out", "run", "--score", "cross-entropy"]) == 0
    held, record = HeldOut.read(Path("run")), TableRecord.read(Path("run"))
    assert held is not None
    for name, model in ((MODEL, record.model), (PLAIN, record.plain)):
        for score, metric in (("balanced-accuracy", "balanced_accuracy"), ("auroc", "auroc"), ("accuracy", "accuracy")):
            parts = contributions(held, name, score)
            assert parts is not None
            assert parts.sum() == pytest.approx(model.metrics[metric], abs=1e-6)
    gain = contributions(held, MODEL, "cross-entropy"), contributions(held, PLAIN, "cross-entropy")
    assert gain[0] is not None
    assert gain[1] is not None
    assert record.judged == "cross-entropy"
    assert float((gain[0] - gain[1]).sum()) == pytest.approx(record.difference)
    whole, own = (
        text(inspect(Path("run", name), part=part)) for name, part in ((HELD_OUT, None), (LOSSES, "held_out"))
    )
    assert whole == own.replace(", held_out", "")  # of the model alone, not of both


def test_runs_on_tables_are_judged_by_what_they_were_chosen_by(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_customers(here / "customers.csv")
    for name, score in (("plain", "accuracy"), ("weighted", "balanced-accuracy")):
        assert main(["train", "customers.csv", *CUSTOMERS, *QUICK, "--score", score, "--out", name]) == 0
    capsys.readouterr()
    assert main(["report", "plain", "weighted"]) == 0
    text = capsys.readouterr().out
    assert "By accuracy (the larger the better)" in text
    assert "By balanced accuracy (the larger the better)" in text
    assert "Each p is Holm's, over these 2 comparisons" in text
    assert main(["report", "plain", "weighted", "--score", "auroc"]) == 0
    assert capsys.readouterr().out.count(", every pair:") == 1
    assert main(["report", "plain", "--score", "r2"]) == 2
    assert capsys.readouterr().err.startswith(
        "topkloss: `--score` must be one of accuracy, balanced-accuracy, f1, auroc, cross-entropy for classes; got r2."
    )


@pytest.mark.parametrize(("score", "words"), [("r2", "of R2"), ("absolute-error", "of mean absolute error")])
def test_numbers_are_chosen_and_judged_by_one_score(here: Path, score: str, words: str) -> None:
    write_real("diabetes", here / "diabetes.csv")
    asked = ["train", "diabetes.csv", "--task", "regression", "--label-column", "target", "--C", "1"]
    assert main([*asked, "--fractions", "0.5", "--score", score, "--out", "run"]) == 0
    record = TableRecord.read(Path("run"))
    metric, sign = ("r2", 1) if score == "r2" else ("mean_absolute_error", -1)
    model, plain = record.model.metrics[metric], record.plain.metrics[metric]
    assert model is not None
    assert plain is not None
    assert record.difference == pytest.approx(sign * (model - plain), abs=1e-9)
    assert f" {words} " in rows_table([record])
    metrics = json.loads(Path("run/metrics.json").read_text())
    del metrics["judged"]  # as an earlier version wrote it, which judged both by the absolute error
    Path("run/metrics.json").write_text(json.dumps(metrics))
    assert TableRecord.read(Path("run")).judged == "absolute-error"


def test_held_out_labels_that_are_all_the_same_have_no_r2(here: Path) -> None:
    lines = [
        f"{place},{place % 7},{place % 5 if place < 30 else 3},{'train' if place < 30 else 'held_out'}"
        for place in range(40)
    ]
    Path("t.csv").write_text("\n".join(["a,b,label,split", *lines]))
    assert main(["train", "t.csv", "--task", "regression", "--fractions", "0.8", "--C", "1", "--out", "run"]) == 0
    record = TableRecord.read(Path("run"))
    assert (record.judged, record.model.metrics["r2"]) == ("absolute-error", None)
    assert main(["report", "run", "run"]) == 0


def test_seeds_on_one_split_are_grouped(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_customers(here / "customers.csv")
    for seed in range(3):
        asked = ("--seed", str(seed), "--split-seed", "0", "--out", f"run-{seed}")
        assert main(["train", "customers.csv", *CUSTOMERS, *QUICK, *asked]) == 0
    assert len({TableRecord.read(Path(f"run-{seed}")).data["measured"] for seed in range(3)}) == 1
    assert main(["evaluate", "run-2"]) == 0
    capsys.readouterr()
    assert main(["report", "run-0", "run-1", "run-2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split()[0] == "seeds"
    assert {*lines[1].split()[1:]} == {"3"}
    assert "chosen against the plain average:" in lines


# spreadsheets


@given(st.text(max_size=12) | st.from_regex(r"'{0,3}[=+\-@\t\r]?[\w.'=+-]{0,6}", fullmatch=True))
def test_any_name_comes_back_and_no_cell_is_a_formula(name: str) -> None:
    cell = name_in(name)
    assert name_of(cell) == name
    assert cell[:1] not in tuple("=+-@\t\r\n") or float(cell) == float(name)


@pytest.mark.parametrize("number", ["-1", "+1", "-1.5e-3", "-.5", "+2."])
def test_a_number_stays_a_number(number: str) -> None:
    assert name_in(number) == number


@pytest.mark.parametrize(
    "name",
    ["=1+1", "+cmd|' /C calc'!A0", "-x.png", "@SUM(1)", "\t=1", "\r=1", "-1+2", "-", "\N{FULLWIDTH EQUALS SIGN}1"],
)
def test_a_formula_becomes_text(name: str) -> None:
    assert name_in(name) == f"'{name}"


def read(path: str) -> list[dict[str, str]]:
    with Path(path).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def renamed(old: str, new: str) -> Callable[[str], str]:
    return lambda line: line.removesuffix(old) + new if line.endswith(old) else line


def test_classes_that_are_formulas_are_harmless_in_all_that_is_written(here: Path) -> None:
    write_customers(here / "customers.csv")
    lines = (here / "customers.csv").read_text(encoding="utf-8").splitlines()
    lines = [renamed(",no", ",=1+1")(renamed(",yes", ",-1")(line)) for line in lines]
    (here / "customers.csv").write_text("\n".join(lines), encoding="utf-8")
    assert main(["train", "customers.csv", *CUSTOMERS, *QUICK, "--out", "run"]) == 0
    assert main(["predict", "run", "customers.csv", "--out", "out.csv"]) == 0
    for path, columns in (
        ("out.csv", ("prediction",)),
        ("run/losses.csv", ("label", "prediction", "plain_average")),
        ("run/held_out.csv", ("label", "prediction")),
    ):
        assert {row[column] for row in read(path) for column in columns} == {"'=1+1", "-1"}
    assert inspect(Path("run/losses.csv"), class_column="label").names == ("-1", "=1+1")
    assert HeldOut.read(Path("run")) is not None
    assert main(["report", "run", "--figure", "figure.png"]) == 0


def test_predicted_numbers_below_zero_stay_numbers(here: Path) -> None:
    rows = "\n".join(f"{place},{place - 20}" for place in range(40))
    Path("t.csv").write_text(f"a,label\n{rows}")
    assert main(["train", "t.csv", "--task", "regression", "--fractions", "1", "--C", "1", "--out", "run"]) == 0
    assert main(["predict", "run", "t.csv", "--out", "out.csv"]) == 0
    assert float(read("out.csv")[0]["prediction"]) < 0
    numbers = numbers_of([Path("run")])
    assert numbers is not None
    assert min(numbers.true) < 0


def test_images_that_are_formulas_are_harmless(trained: Path, here: Path) -> None:
    for name in ("=1.png", "-x.png", "plain.png"):
        shutil.copy(trained.parent / "data" / "2-0.png", here / name)
    Path("-broken.png").write_bytes(b"no image")
    names = ["=1.png", "-x.png", "plain.png", "-broken.png"]
    assert main(["predict", str(trained), "--out", "out.csv", "--", *names]) == 0
    assert [row["image"] for row in read("out.csv")] == ["'=1.png", "'-x.png", "plain.png", "'-broken.png"]
