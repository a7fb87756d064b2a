"""Measuring a run: its own held-out images or another table, the record, the text, the picture, what is refused."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from topkloss.app.errors import InputError
from topkloss.app.report.evaluation import text
from topkloss.app.report.plot_evaluation import draw_evaluation
from topkloss.app.runs.metrics import Bin, ClassMetrics, Evaluation, Metric
from topkloss.app.tasks.images.evaluate import evaluate, write_evaluation
from topkloss.app.tasks.images.records import RunRecord
from topkloss.app.tasks.images.run import Run, load_run


@pytest.fixture(scope="module")
def run(trained: Path) -> Run:
    return load_run(trained)


@pytest.fixture
def table(trained: Path, tmp_path: Path) -> Path:
    """A copy of the pictures, to change."""
    return Path(shutil.copytree(trained.parent / "data", tmp_path / "data")) / "pictures.csv"


def spoil(table: Path, change: Callable[[str], str]) -> None:
    table.write_text(change(table.read_text()))


def test_the_held_out_images_are_those_of_the_trainer(run: Run) -> None:
    evaluation, record = evaluate(run), RunRecord.read(run.folder)
    assert evaluation.held_out
    assert evaluation.images == 3
    assert evaluation.digest == record.data["digest"]
    assert evaluation.metrics["accuracy"].value == record.last.accuracy
    assert evaluation.metrics["cross_entropy"].value == pytest.approx(record.last.cross_entropy, abs=1e-6)
    assert {one.name: one.recall for one in evaluation.classes} == record.recall
    assert {one.name: one.support for one in evaluation.classes} == record.support


@pytest.mark.parametrize(("batch_size", "workers"), [(64, 0), (7, 0), (1, 0), (7, 2)])
def test_batches_and_processes_change_nothing(run: Run, table: Path, batch_size: int, workers: int) -> None:
    evaluation = evaluate(run, csv=table, batch_size=batch_size, workers=workers)
    whole = evaluate(run, csv=table)
    assert evaluation.confusion == whole.confusion
    for name, metric in whole.metrics.items():
        assert evaluation.metrics[name].value == pytest.approx(metric.value, abs=1e-5)
    assert (evaluation.images, evaluation.held_out) == (30, False)


def test_a_table_may_lack_classes_and_have_one_image(run: Run, table: Path) -> None:
    spoil(table, lambda content: "\n".join(content.splitlines()[:2]))
    evaluation = evaluate(run, csv=table)
    assert evaluation.images == 1
    assert [one.support for one in evaluation.classes] == [1, 0, 0]
    assert [one.auroc for one in evaluation.classes] == [None, None, None]
    assert "No image of 10, blank: recall and AUROC are undefined there" in text(evaluation)


def test_a_table_of_numbers_keeps_the_order_of_the_run(run: Run, table: Path) -> None:
    """Labels are names, wherever they stand in the table."""
    plain = evaluate(run, csv=table)
    spoil(table, lambda content: "\n".join([*content.splitlines()[:1], *content.splitlines()[:0:-1]]))
    assert evaluate(run, csv=table).confusion == plain.confusion


def test_images_may_lie_elsewhere(run: Run, table: Path, tmp_path: Path) -> None:
    (tmp_path / "csv").mkdir()
    moved = table.rename(tmp_path / "csv" / "pictures.csv")
    assert evaluate(run, csv=moved, images=tmp_path / "data").images == 30


def test_the_folder_of_the_images_is_remembered(run: Run, table: Path, tmp_path: Path) -> None:
    """As training was given it; another one, given here, comes first."""
    (tmp_path / "csv").mkdir()
    moved = table.rename(tmp_path / "csv" / "pictures.csv")
    given = replace(run, config=replace(run.config, images=str(tmp_path / "data")))
    assert evaluate(given, csv=moved).images == 30
    with pytest.raises(InputError, match="there is no image"):
        evaluate(given, csv=moved, images=tmp_path / "csv")
    with pytest.raises(InputError, match="there is no image"):
        evaluate(run, csv=moved)


def test_the_digits_are_found_again(run: Run, table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("topkloss.app.data.digits.write_digits", lambda: table)
    assert evaluate(replace(run, config=replace(run.config, csv=None))).images == 3


# Refused


def test_a_changed_table_is_refused(run: Run, table: Path) -> None:
    spoil(table, lambda content: content.replace("2-0.png,2", "2-0.png,10"))
    moved = replace(run, config=replace(run.config, csv=str(table)))
    with pytest.raises(InputError) as caught:
        evaluate(moved)
    assert str(caught.value) == (
        f"{table} must be what {run.folder} was trained on; got another content, so nobody knows which images were "
        "held out. Restore it, or pass --data with images that the run has not seen."
    )


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            lambda content: content.replace("10-9.png,10", "10-9.png,11"),
            r", line 21: `label` must be a class of the model \(2, 10, blank\); got '11'\.",
        ),
        (lambda content: content.replace("2-3.png", "gone.png"), r", line 5: there is no image .*gone\.png\."),
        (lambda content: content.replace("2-3.png", "../../etc"), r", line 5: an image must lie inside "),
        (lambda content: "image,label\n", r", line 2: there must be an example"),
        (lambda content: content.replace("label", "name"), r", line 1: there must be one column `label`"),
    ],
)
def test_a_bad_table_is_refused(run: Run, table: Path, change: Callable[[str], str], sentence: str) -> None:
    spoil(table, change)
    with pytest.raises(InputError, match=f"^{re.escape(str(table))}{sentence}"):
        evaluate(run, csv=table)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_bad_image_is_refused_with_its_line(run: Run, table: Path, workers: int) -> None:
    broken = table.parent / "2-3.png"
    broken.write_bytes(broken.read_bytes()[:-60])
    with pytest.raises(InputError) as caught:
        evaluate(run, csv=table, workers=workers)
    assert str(caught.value).startswith(f"{table}, line 5: cannot read the image {broken}: ")
    assert "\n" not in str(caught.value)


def test_options_are_checked(run: Run) -> None:
    with pytest.raises(InputError, match=r"^`--batch-size` must be 1 or more; got 0\."):
        evaluate(run, batch_size=0)
    with pytest.raises(InputError, match=r"^`--workers` must be 0 or more; got -1\."):
        evaluate(run, workers=-1)


def test_the_held_out_images_may_have_moved(run: Run, trained: Path, table: Path) -> None:
    moved = shutil.move(table.parent, table.parent.with_name("elsewhere"))
    assert evaluate(run, images=moved) == evaluate(run)


def test_other_images_of_the_same_names_are_refused(run: Run, table: Path) -> None:
    (table.parent / "2-1.png").write_bytes((table.parent / "10-1.png").read_bytes())
    for images in (table.parent, None):
        with pytest.raises(InputError) as caught:
            evaluate(replace(run, config=replace(run.config, csv=str(table))), images=images)
        assert str(caught.value) == (
            f"{table.parent} must hold the images that {run.folder} was trained on; got files of other sizes, which it "
            "may have seen or not. Restore them, or pass --data with images that the run has not seen."
        )


def test_a_table_that_is_gone_is_said(run: Run) -> None:
    gone = replace(run, config=replace(run.config, csv="gone.csv"))
    with pytest.raises(InputError, match=r"was trained on gone\.csv, which must be there to find its held-out images"):
        evaluate(gone)


def test_a_model_that_overflows_is_said(run: Run, table: Path) -> None:
    class Overflowing(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(()))

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return torch.full((len(images), 3), math.inf)

    with pytest.raises(InputError, match=r"line 2: cannot read the image .*: the model's output is not finite"):
        evaluate(replace(run, model=Overflowing()), csv=table)


# The record, the text, the picture

EVALUATION = Evaluation(
    run="runs/mined",
    data="birds.csv",
    digest="abc",
    held_out=False,
    images=8,
    metrics={
        "accuracy": Metric(0.75, 0.5, 1.0),
        "balanced_accuracy": Metric(0.8, 0.5, 1.0),
        "f1": Metric(0.7333333, 0.4, 1.0),
        "auroc": Metric(0.9, 0.7, 1.0),
        "cross_entropy": Metric(0.51234, 0.3, 0.8),
        "calibration_error": Metric(0.123, 0.1, 0.2),
    },
    classes=(
        ClassMetrics("$heron_1$", 5, 4, 0.75, 0.6, 0.6666667, 0.9),
        ClassMetrics("egret", 3, 4, 0.75, 1.0, 0.8, 0.9),
        ClassMetrics("a\x1b[31mstork", 0, 0, None, None, None, None),
    ),
    confusion=((3, 1, 0), (0, 3, 0), (0, 0, 0)),
    bins=(Bin(0.0, 0.5, 0, None, None), Bin(0.5, 1.0, 8, 0.8, 0.75)),
    resamples=1000,
    seed=0,
)

TEXT = """\
runs/mined on 8 images of birds.csv

                                          95 % interval
accuracy, %                      75.0     50.0 to 100.0
balanced accuracy, %             80.0     50.0 to 100.0
mean F1, %                       73.3     40.0 to 100.0
mean AUROC, %                    90.0     70.0 to 100.0
expected calibration error, %    12.3      10.0 to 20.0
cross-entropy, nats            0.5123  0.3000 to 0.8000

class        images  predicted  precision, %  recall, %  F1, %  AUROC, %
$heron_1$         5          4          75.0       60.0   66.7      90.0
egret             3          4          75.0      100.0   80.0      90.0
a\N{REPLACEMENT CHARACTER}[31mstork       0          0             -          -      -         -

No image of a\N{REPLACEMENT CHARACTER}[31mstork: recall and AUROC are undefined there, and the means leave them out.
A class that is never predicted has no precision."""


def test_the_text() -> None:
    assert text(EVALUATION) == TEXT


def test_no_error_is_not_called_certainty() -> None:
    perfect = replace(EVALUATION, metrics={**EVALUATION.metrics, "accuracy": Metric(1.0, 1.0, 1.0)}, images=300)
    assert text(perfect).endswith("No error on 300 images is compatible with an error rate of up to 1.0 %.")


def test_a_missing_interval_is_a_dash_and_said() -> None:
    unranked = replace(EVALUATION, metrics={**EVALUATION.metrics, "auroc": Metric(0.9)})
    assert re.search(r"mean AUROC, % +90\.0 +-\n", text(unranked))
    assert "The AUROC has no interval here" in text(unranked)


def test_of_many_classes_the_worst_are_shown() -> None:
    many = tuple(ClassMetrics(f"class {n}", 5, 5, 0.5, 0.5, n / 100, 0.9) for n in range(50))
    lines = text(replace(EVALUATION, classes=many)).splitlines()
    assert lines[-1] == "and 20 classes with a larger F1, in evaluation.json"
    assert sum(line.startswith("class ") for line in lines) == 31
    assert not any(line.startswith("class 30 ") for line in lines)


@pytest.mark.parametrize(
    ("error", "said"),
    [(7.3214e-06, "7.3214e-06"), (0.012345678, "0.012346"), (3691.2607, "3691.3"), (47780.2, "47780")],
)
def test_an_error_has_five_digits_whatever_its_unit(error: float, said: str) -> None:
    metrics = {name: Metric(error, error, error) for name in ("mean_absolute_error", "root_mean_square_error")}
    lines = text(replace(EVALUATION, metrics=metrics, classes=())).splitlines()
    for name in ("mean absolute error", "root mean square error"):
        assert next(line for line in lines if line.startswith(name)).split()[-4:] == [*(said, said, "to", said)]


def test_it_is_written_as_json(tmp_path: Path) -> None:
    path = write_evaluation(EVALUATION, tmp_path / "new" / "folder")
    assert [file.name for file in path.parent.iterdir()] == ["evaluation.json"]
    content = json.loads(path.read_text())
    assert content["figures"]["accuracy"] == {"value": 0.75, "low": 0.5, "high": 1.0}
    assert content["classes"][2]["precision"] is None
    assert content["confusion"] == [[3, 1, 0], [0, 3, 0], [0, 0, 0]]


def test_it_lies_in_the_run_but_apart_for_another_table(tmp_path: Path) -> None:
    of_run = replace(EVALUATION, run=str(tmp_path), held_out=True)
    assert write_evaluation(of_run, None) == tmp_path / "evaluation.json"
    assert write_evaluation(replace(of_run, held_out=False), None) == tmp_path / "birds" / "evaluation.json"


def test_a_folder_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"^`--out` must be a folder that can be written to; got .*file/x: "):
        write_evaluation(EVALUATION, tmp_path / "file" / "x")


@pytest.mark.parametrize(("suffix", "start"), [(".png", b"\x89PNG"), (".svg", b"<?xml")])
def test_the_figure_is_a_picture(tmp_path: Path, suffix: str, start: bytes) -> None:
    path = tmp_path / f"evaluation{suffix}"
    draw_evaluation(EVALUATION, path)
    assert path.read_bytes().startswith(start)
    assert list(tmp_path.iterdir()) == [path]


def test_the_figure_says_what_the_record_says(tmp_path: Path) -> None:
    import matplotlib

    with matplotlib.rc_context({"svg.fonttype": "none"}):
        draw_evaluation(EVALUATION, tmp_path / "evaluation.svg")
    content = (tmp_path / "evaluation.svg").read_text()
    for words in ("$heron_1$", "egret", "8 images: who is taken for whom", "expected calibration error 12.3 %"):
        assert f">{words}<" in content


@pytest.mark.parametrize("count", [2, 30, 100])
def test_any_number_of_classes_can_be_drawn(tmp_path: Path, count: int) -> None:
    classes = tuple(ClassMetrics(f"class {n}", 1, 1, 1.0, 1.0, 1.0, 1.0) for n in range(count))
    confusion = tuple(tuple(int(row == column) for column in range(count)) for row in range(count))
    draw_evaluation(replace(EVALUATION, classes=classes, confusion=confusion), tmp_path / "evaluation.png")
    assert (tmp_path / "evaluation.png").stat().st_size > 10_000
