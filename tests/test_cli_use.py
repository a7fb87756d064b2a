"""The commands that use a run, as processes and on bad input: one sentence, exit code 2, nothing written."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.processes import run
from topkloss.app.cli import main
from topkloss.app.tasks.images.records import RunHeader


@pytest.fixture
def here(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder with a run, `run`, and its pictures, `data`, to spoil."""
    shutil.copytree(trained, tmp_path / "run")
    shutil.copytree(trained.parent / "data", tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_evaluate(here: Path) -> None:
    result = run("evaluate", "run", "--figure", "evaluation.png", cwd=here)
    assert (result.returncode, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert lines[0] == "run on 3 held-out images"
    assert lines[2].endswith("95 % interval")
    assert lines[3].startswith("accuracy, %  ")
    assert lines[-2:] == ["results: run/evaluation.json", "figure: evaluation.png"]
    assert (here / "evaluation.png").read_bytes().startswith(b"\x89PNG")
    record = json.loads((here / "run" / "evaluation.json").read_text())
    assert record["figures"]["accuracy"]["value"] == json.loads((here / "run" / "metrics.json").read_text())["accuracy"]


def test_evaluate_another_table(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ("--data", "data/pictures.csv", "--images", "data", "--batch-size", "7", "--workers", "1", "--out", "other")
    assert main(["evaluate", "run", *asked]) == 0
    output = capsys.readouterr().out
    assert output.startswith("run on 30 images of data/pictures.csv\n")
    assert output.endswith(f"results: {Path('other', 'evaluation.json')}\n")
    assert [path.name for path in (here / "other").iterdir()] == ["evaluation.json"]
    assert not (here / "run" / "evaluation.json").exists()


def test_predict_counts_what_is_bad(here: Path) -> None:
    (here / "data" / "2-3.png").write_text("no image")
    result = run("predict", "run", "data", "gone.png", "--out", "predictions.csv", cwd=here)
    assert result.returncode == 0
    assert result.stdout == "29 images predicted: predictions.csv\n"
    assert result.stderr == (
        "topkloss: 2 of 31 images are bad; the column `error` says why.\n"
        "topkloss: left out 1 file that is no image: 1 .csv.\n"
    )
    with (here / "predictions.csv").open(newline="") as file:
        rows = {row["image"]: row for row in csv.DictReader(file)}
    assert len(rows) == 31
    assert rows["data/2-3.png"]["error"] == "no known image format"
    assert rows["gone.png"]["error"] == "no such file"


def test_predictions_and_evaluation_agree(here: Path) -> None:
    """The same images, the same model, two ways."""
    assert main(["predict", "run", "data", "--out", "predictions.csv"]) == 0
    assert main(["evaluate", "run", "--data", "data/pictures.csv"]) == 0
    record = json.loads((here / "run" / "pictures" / "evaluation.json").read_text())
    with (here / "predictions.csv").open(newline="") as file:
        taken = [(Path(row["image"]).name.partition("-")[0], row["class"]) for row in csv.DictReader(file)]
    names = [one["name"] for one in record["classes"]]
    assert record["confusion"] == [[taken.count((label, other)) for other in names] for label in names]


@pytest.mark.parametrize("name", [pytest.param("model.onnx", marks=pytest.mark.slow), "model.pt2"])
def test_export(here: Path, name: str) -> None:
    result = run("export", "run", "--out", name, cwd=here)
    assert (result.returncode, result.stderr) == (0, "")
    first, second = result.stdout.splitlines()
    assert first.startswith("largest difference from the model on 3 random images: ")
    assert second == f"results: {name}"
    assert {path.name for path in here.iterdir()} == {"data", "run", name}


def test_an_export_that_does_not_fit_is_one_sentence(here: Path) -> None:
    """As on a full disk: no file may be larger than half of the weights."""
    most = (here / "run" / "model.safetensors").stat().st_size // 2
    script = (
        f"import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, ({most}, {most})); "
        "from topkloss.app.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", script, "export", "run", "--out", "model.pt2"]
    result = subprocess.run(command, cwd=here, capture_output=True, text=True, timeout=120, check=False)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == (
        "topkloss: `--out` must be a path that can be written; got model.pt2: File too large. Pass another.\n"
    )
    assert {path.name for path in here.iterdir()} == {"data", "run"}


@pytest.mark.parametrize("package", ["onnx", "onnxruntime", "onnxscript"])
def test_export_names_the_missing_extra(
    here: Path, package: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    assert main(["export", "run", "--out", "model.onnx"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert f"the package {package};" in error
    assert 'pip install "topkloss[export]"' in error
    assert {path.name for path in here.iterdir()} == {"data", "run"}


# Bad input


def change(path: str, old: str, new: str) -> Callable[[], object]:
    """Replaces text in a file."""
    return lambda: Path(path).write_text(Path(path).read_text().replace(old, new))


def nothing() -> None:
    """The arguments are bad enough."""


def spoil_weights() -> object:
    """What is said all the same was said before the work."""
    return Path("run/model.safetensors").rename("run/weights")


PREDICT = ("predict", "run", "data", "--out", "out.csv")
OTHER = ("evaluate", "run", "--data", "data/pictures.csv")

BAD: dict[str, tuple[Callable[[], object], tuple[str, ...], str]] = {
    "no run": (nothing, ("evaluate", "gone"), "gone must be the folder of a run"),
    "a file for a run": (nothing, ("predict", "data/2-0.png", "data", "--out", "out.csv"), "the folder of a run"),
    "a folder that is no run": (nothing, ("export", "data", "--out", "out.onnx"), "the folder of a run"),
    "a run that is not finished": (
        lambda: Path("run/metrics.json").unlink(),
        ("evaluate", "run"),
        "`topkloss train --resume run` finishes it.",
    ),
    "half a config": (
        lambda: os.truncate("run/config.yaml", 40),
        ("export", "run", "--out", "out.pt2"),
        "the folder of a run",
    ),
    "half a metrics file": (lambda: os.truncate("run/metrics.csv", 20), PREDICT, "of a finished run"),
    "another model": (change("run/config.yaml", "test_convnext", "resnet18"), PREDICT, "the weights of resnet18"),
    "weights cut off": (lambda: os.truncate("run/model.safetensors", 9000), PREDICT, "cannot be read as tensors"),
    "no weights": (lambda: Path("run/model.safetensors").unlink(), PREDICT, "got no such file."),
    "weights of nothing": (lambda: os.truncate("run/model.safetensors", 0), PREDICT, "model.safetensors must hold"),
    "a changed table": (
        lambda: (
            change("run/config.yaml", str(RunHeader.read(Path("run")).config.csv), "data/p.csv")(),
            Path("data/p.csv").write_text("image,label\n2-0.png,2\n2-1.png,2\n10-0.png,10\n10-1.png,10\n"),
        ),
        ("evaluate", "run"),
        "data/p.csv must be what run was trained on",
    ),
    "no table": (nothing, ("evaluate", "run", "--data", "gone.csv"), "gone.csv must be a CSV file in UTF-8"),
    "a table of another encoding": (
        lambda: Path("data/pictures.csv").write_bytes("image,label\n2-0.png,\xe9".encode("latin-1")),
        OTHER,
        "a table must be text in UTF-8",
    ),
    "another class": (change("data/pictures.csv", ",blank", ",full"), OTHER, "line 22: `label` must be a class of"),
    "an image that is gone": (lambda: Path("data/2-0.png").unlink(), OTHER, "line 2: there is no image"),
    "an image that is none": (lambda: Path("data/2-0.png").write_text("2"), OTHER, "line 2: cannot read the image"),
    "an image that is cut off": (lambda: os.truncate("data/2-0.png", 100), OTHER, "line 2: cannot read the image"),
    "no folder of images": (nothing, (*OTHER, "--images", "gone"), "`--images` must be a folder"),
    "other images than were trained on": (
        lambda: Path("data/2-1.png").write_bytes(Path("data/10-1.png").read_bytes()),
        ("evaluate", "run", "--images", "data"),
        "must hold the images that run was trained on; got files of other sizes",
    ),
    "a figure that is a folder": (
        lambda: (spoil_weights(), Path("data").rename("out.png")),
        ("evaluate", "run", "--figure", "out.png"),
        "`--figure` must be a path that can be written; got out.png, which is a folder. Pass out.png/out.png.",
    ),
    "a figure in no folder": (
        spoil_weights,
        ("evaluate", "run", "--figure", "gone/out.png"),
        "`--figure` must be a path that can be written; got gone/out.png, and there is no gone. Make it first.",
    ),
    "a report in no folder": (
        nothing,
        ("report", "run", "--figure", "gone/out.png"),
        "`--figure` must be a path that can be written; got gone/out.png, and there is no gone. Make it first.",
    ),
    "a file for a folder, before the work": (
        spoil_weights,
        ("evaluate", "run", "--out", "run/config.yaml"),
        "`--out` must be a folder that can be written to; got run/config.yaml: File exists. Pass another.",
    ),
    "a run that is not finished, in an odd folder": (
        lambda: Path("run").rename("my 'run'").joinpath("metrics.json").unlink(),
        ("evaluate", "my 'run'"),
        """`topkloss train --resume 'my '"'"'run'"'"''` finishes it.""",
    ),
    "a run that is there, in an odd folder": (
        lambda: Path("run").rename("my run"),
        ("train", "data/pictures.csv", "--out", "my run"),
        "/my run'.",
    ),
    "another kind of figure": (nothing, ("evaluate", "run", "--figure", "out.jpg"), "`--figure` must end in .png"),
    "a file for a folder": (nothing, (*OTHER, "--out", "data/2-0.png"), "`--out` must be a folder that can be written"),
    "batches of nothing": (nothing, (*PREDICT, "--batch-size", "0"), "`--batch-size` must be 1 or more; got 0."),
    "less than no process": (nothing, (*PREDICT, "--workers", "-1"), "`--workers` must be 0 or more; got -1."),
    "predictions of another kind": (nothing, (*PREDICT[:-1], "out.xlsx"), "`--out` must end in .csv"),
    "predictions into nowhere": (nothing, (*PREDICT[:-1], "gone/out.csv"), "`--out` must lie in a folder"),
    "nothing to predict": (
        lambda: Path("empty").mkdir(),
        ("predict", "run", "empty", "--out", "out.csv"),
        "`IMAGES` must be images or folders of images; got empty, with none in it.",
    ),
    "nothing but bad images": (
        nothing,
        ("predict", "run", "gone.png", "data/pictures.csv", "--out", "out.csv"),
        "got 2, none of which can, the first gone.png: no such file.",
    ),
    "another format": (nothing, ("export", "run", "--out", "out.tflite"), "`--out` must end in .onnx or .pt2"),
    "a folder for a file": (
        lambda: Path("out.onnx").mkdir(),
        ("export", "run", "--out", "out.onnx"),
        "`--out` must be a file; got out.onnx, which is a folder.",
    ),
    "export into nowhere": (nothing, ("export", "run", "--out", "gone/out.onnx"), "`--out` must lie in a folder"),
    "a name that is too long": (nothing, ("export", "run", "--out", f"{'x' * 250}.pt2"), "File name too long"),
}


def everything(folder: Path) -> dict[str, bytes | None]:
    """All files and what is in them."""
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


@pytest.mark.parametrize(("spoil", "arguments", "sentence"), BAD.values(), ids=BAD.keys())
def test_bad_input_is_one_sentence(
    here: Path,
    capsys: pytest.CaptureFixture[str],
    spoil: Callable[[], object],
    arguments: tuple[str, ...],
    sentence: str,
) -> None:
    spoil()
    before = everything(here)
    assert main(arguments) == 2
    output, error = capsys.readouterr()
    assert output == ""
    assert error.startswith("topkloss: ")
    assert error.count("\n") == 1
    assert sentence in error
    assert everything(here) == before


@pytest.mark.parametrize(
    "arguments", [["evaluate"], ["predict", "run"], ["predict", "run", "--out", "x.csv"], ["export", "run"]]
)
def test_what_is_needed_is_asked_for(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage: topkloss" in capsys.readouterr().err
