"""The command, as a process: output, exit codes, interruption, several processes, missing packages."""

from __future__ import annotations

import csv
import os
import re
import shlex
import signal
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest

import topkloss
from tests.pictures import write_pictures
from tests.processes import TORCHRUN, forked, run
from tests.test_report import AVERAGE
from topkloss.app.cli import main
from topkloss.app.tasks.images.config import TrainConfig
from topkloss.app.tasks.images.records import RunRecord

SMALL = ("--model", "test_resnet", "--image-size", "32", "--batch-size", "9", "--epochs", "1")


@pytest.fixture
def table(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    return write_pictures(tmp_path / "data")


def test_says_in_a_sentence_that_skipping_cannot_pay_and_what_was_skipped(table: Path, tmp_path: Path) -> None:
    result = forked("train", table, *SMALL, "--skip-easy", cwd=tmp_path)
    assert result.returncode == 0
    assert result.stderr.startswith("topkloss: `fraction` should be at most 0.6 for a selective step to save time; got")
    assert result.stderr.count("\n") == 1
    assert "about 100 % of the work of full steps.\n" in result.stdout


def test_train_then_report(table: Path, tmp_path: Path) -> None:
    mined = run("train", table, *SMALL, cwd=tmp_path)
    assert (mined.returncode, mined.stderr) == (0, "")
    lines = mined.stdout.splitlines()
    assert lines[0] == "27 images to train on, 3 held out; imbalance 1: 9 images of each class"
    assert lines[1].startswith("epoch 1/1  loss ")
    assert lines[2].endswith("% on 3 held-out images")
    assert lines[3] == "results: runs/pictures-top-k-0.7-seed0"
    average = forked("train", table, *SMALL, "--loss", "average", "--out", "mean", cwd=tmp_path)
    assert (average.returncode, average.stderr) == (0, "")
    report = run("report", "mean", "runs/pictures-top-k-0.7-seed0", "--figure", "both.png", cwd=tmp_path)
    assert (report.returncode, report.stderr) == (0, "")
    assert report.stdout.split("\n")[0].split() == ["average", "top-k", "0.7"]
    assert report.stdout.endswith("figure: both.png\n")
    assert (tmp_path / "both.png").read_bytes().startswith(b"\x89PNG")


LOSSES = "loss,label\n4,dog\n2,cat\n1,cat\n1,cat\n"


def test_inspect(tmp_path: Path) -> None:
    (tmp_path / "losses.csv").write_text(LOSSES)
    options = ("--class-column", "label", "--constant-loss", "3", "--fractions", "0.25", "0.5", "1")
    result = run("inspect", "losses.csv", *options, "--figure", "losses.png", cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert lines[0] == "4 losses: mean 2, from 1 to 4"
    assert "Below fraction 0.5 a constant model, of loss 3, has a smaller AT_k than this one." in lines
    assert "dog    25.0  100.0  50.0" in lines
    assert lines[-1] == "figure: losses.png"
    assert (tmp_path / "losses.png").read_bytes().startswith(b"\x89PNG")
    assert {path.name for path in tmp_path.iterdir()} == {"losses.csv", "losses.png"}


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "losses.csv must be a CSV file in UTF-8; got No such file or directory. "),
        ("", "losses.csv, line 1: there must be one column `loss`; got nothing. "),
        ("value\n1\n", "losses.csv, line 1: there must be one column `loss`; got value. "),
        ("loss\n1\ntwo\n", "losses.csv, line 3: `loss` must be a number; got two. "),
        ("loss\n1\nNaN\n", "losses.csv, line 3: `loss` must be a number; got NaN. "),
    ],
)
def test_inspect_refuses_a_bad_file(tmp_path: Path, content: str | None, sentence: str) -> None:
    if content is not None:
        (tmp_path / "losses.csv").write_text(content)
    before = set(tmp_path.iterdir())
    result = forked("inspect", "losses.csv", "--figure", "losses.svg", cwd=tmp_path)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith(f"topkloss: {sentence}")
    assert result.stderr.count("\n") == 1
    assert set(tmp_path.iterdir()) == before


def test_inspect_needs_no_extra_but_that_of_the_figure(tmp_path: Path) -> None:
    (tmp_path / "losses.csv").write_text(LOSSES)
    script = (
        "import sys\n"
        "for name in ('lightning', 'matplotlib', 'mlxtend', 'numpy', 'PIL', 'timm', 'torchmetrics', 'torchvision'):\n"
        "    sys.modules[name] = None\n"
        "from topkloss.app.cli import main\n"
        "words = ['inspect', 'losses.csv', '--class-column', 'label']\n"
        "print(main(words), main([*words, '--figure', 'x.png']))"
    )
    command = [sys.executable, "-W", "ignore", "-c", script]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=True)
    assert result.stdout.endswith("\n0 2\n")
    assert result.stdout.startswith("4 losses: ")
    assert result.stdout.count("4 losses: ") == 1
    assert 'pip install "topkloss[report]"' in result.stderr
    assert result.stderr.count("\n") == 1


def test_bad_input_is_one_sentence_and_exit_code_2(table: Path, tmp_path: Path) -> None:
    table.write_text(table.read_text().replace("2-3.png", "gone.png"))
    result = forked("train", table, *SMALL, cwd=tmp_path)
    assert (result.returncode, result.stdout) == (2, "")
    gone = table.parent.resolve() / "gone.png"
    sentence = f"topkloss: {table}, line 5: there is no image {gone}. Correct the line or pass `--images`.\n"
    assert result.stderr == sentence
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    result = forked("train", "gone.csv", "--debug", cwd=tmp_path)
    assert result.returncode != 0
    assert "Traceback" in result.stderr


@pytest.fixture
def interruptible() -> Iterator[None]:
    """A job in the background is started with SIGINT ignored, and so would be what it starts."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_interruption_says_how_to_go_on(table: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "topkloss.app.cli", "train", str(table), *SMALL[:-1], "100000", "--out", "run"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("27 images to train on")
        assert process.stdout.readline().startswith("epoch 1/")
        process.send_signal(signal.SIGINT)
        try:
            rest, error = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 130
    epochs = len(rest.splitlines()) + 1
    expected = f"topkloss: interrupted; {epochs} epochs? saved; `topkloss train --resume run` continues.\n"
    assert re.fullmatch(expected, error)
    with (tmp_path / "run" / "metrics.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == epochs
    again = forked("train", "--resume", "run", "--epochs", "2", cwd=tmp_path)
    assert (again.returncode, again.stdout) == (2, "")
    assert again.stderr.startswith("topkloss: `--epochs` must be that of the run, 100000, ")


@pytest.mark.usefixtures("interruptible")
def test_interruption_while_torch_is_loaded_is_as_quiet(tmp_path: Path) -> None:
    """Through the script that pip writes; the interpreter says which modules of torch are in."""
    project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    module, _, function = project["scripts"]["topkloss"].partition(":")
    script = f"import sys; from {module} import {function}; sys.exit({function}())"
    command = [sys.executable, "-X", "importtime", "-c", script, "train", "gone.csv"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        while " torch." not in (line := process.stderr.readline()):
            assert line.startswith("import time:")
        process.send_signal(signal.SIGINT)
        try:
            output, error = process.communicate(timeout=60)
        finally:
            process.kill()
    said = [line for line in error.splitlines() if not line.startswith("import time:")]
    assert said == ["topkloss: interrupted; nothing was written."]
    assert (process.returncode, output) == (130, "")
    assert not re.search(r" topkloss\.app\.tasks\.images\.fit$", error, flags=re.MULTILINE), "loaded before the signal"


INTERRUPTED = """
import os, signal, threading
from topkloss.app.loading import loading
thread = threading.Thread(target=loading().__enter__)  # a signal is heard in the main thread only
thread.start()
thread.join()
with loading():
    pass
try:
    signal.raise_signal(signal.SIGINT)
except KeyboardInterrupt:
    print("an exception", flush=True)
signal.signal(signal.SIGINT, signal.SIG_IGN)
with loading():
    signal.raise_signal(signal.SIGINT)
print("ignored", flush=True)
signal.signal(signal.SIGINT, signal.default_int_handler)
with loading():
    try:
        signal.raise_signal(signal.SIGINT)
    except BaseException:
        print("taken by a library")
"""


@pytest.mark.usefixtures("interruptible")
def test_a_library_that_is_loaded_cannot_take_the_interruption() -> None:
    command = [sys.executable, "-c", INTERRUPTED]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (result.returncode, result.stdout) == (130, "an exception\nignored\n")
    assert result.stderr == "topkloss: interrupted; nothing was written.\n"


def test_a_reader_that_leaves_is_no_error(tmp_path: Path) -> None:
    AVERAGE.write(tmp_path)
    command = [sys.executable, "-m", "topkloss.app.cli", "report", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        error = process.stderr.read()
    assert (process.returncode, error) == (141, "")


def test_an_output_that_is_closed_from_the_start_is_no_error(tmp_path: Path) -> None:
    AVERAGE.write(tmp_path)
    command = f"{shlex.quote(sys.executable)} -m topkloss.app.cli report {shlex.quote(str(tmp_path))} >&-"
    result = subprocess.run(["/bin/sh", "-c", command], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.parametrize(
    "asked", [("--loss", "average"), ("--fraction", "0.3", "--skip-easy", "--model", "test_convnext")]
)
def test_torchrun_trains_and_writes_once(table: Path, tmp_path: Path, asked: tuple[str, ...]) -> None:
    result = forked("train", table, *SMALL, *asked, "--out", "run", cwd=tmp_path, processes=2)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("epoch 1/1") == 1
    assert result.stdout.count("results: run") == 1
    record = RunRecord.read(tmp_path / "run")
    assert record.data["held_out"] == sum(record.support.values()) == 3


@pytest.mark.parametrize(
    ("package", "arguments", "extra"),
    [("lightning", ["train"], "train"), ("timm", ["train"], "train"), ("matplotlib", ["report"], "report")],
)
def test_a_missing_package_names_the_extra(
    trained: Path, tmp_path: Path, package: str, arguments: list[str], extra: str
) -> None:
    if arguments == ["report"]:
        arguments = ["report", str(trained), "--figure", "x.png"]
    blocked = (
        f"import sys; sys.modules[{package!r}] = None; from topkloss.app.cli import main; sys.exit(main({arguments!r}))"
    )
    result = subprocess.run(
        [sys.executable, "-c", blocked], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
    )
    assert result.returncode == 2
    assert f'pip install "topkloss[{extra}]"' in result.stderr
    assert result.stderr.count("\n") == 1


LOADED = """
import sys
from topkloss.app.cli import main
try:
    code = main()
except SystemExit as end:
    code = end.code
heavy = {"lightning", "matplotlib", "numpy", "PIL", "scipy", "sklearn", "timm", "torch", "torchmetrics", "torchvision"}
print(code, sorted(heavy & set(sys.modules)), file=sys.stderr)
"""


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--version"], 0),
        (["--help"], 0),
        (["train", "--help"], 0),
        (["inspect", "--help"], 0),
        (["inspect", "gone.csv"], 2),
        (["inspect", "bad.csv"], 2),
        (["report", "run"], 0),
        (["report", "run", "run"], 0),
    ],
)
def test_loads_neither_torch_nor_a_trainer(arguments: list[str], code: int, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    AVERAGE.write(tmp_path / "run")
    (tmp_path / "bad.csv").write_text("loss\n1\ntwo\n")
    command = [sys.executable, "-c", LOADED, *arguments]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True)
    assert result.stderr.splitlines()[-1] == f"{code} []"
    assert bool(result.stdout) == (code == 0)
    if arguments == ["--version"]:
        assert result.stdout == f"topkloss {topkloss.__version__}\n"


@pytest.mark.parametrize(
    "arguments", [[], ["trian"], ["train", "--frac", "0.5"], ["train", "--epochs", "many"], ["inspect"]]
)
def test_misspelt_commands_are_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage: topkloss" in capsys.readouterr().err


def test_every_option_is_a_field_with_its_default(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    for one in fields(TrainConfig):
        assert one.name == "csv" or f"--{one.name.replace('_', '-')}" in text
        if one.default not in (None, False, ""):
            assert f"(default: {one.default})" in text


def test_options_from_a_file_and_from_the_command(table: Path, tmp_path: Path) -> None:
    asked = {"model": "test_resnet", "image-size": 32, "batch-size": 9, "epochs": 1, "lr": "2e-3", "skip-easy": True}
    (tmp_path / "run.yaml").write_text("\n".join(f"{name}: {value}" for name, value in asked.items()).lower())
    options = ["--config", str(tmp_path / "run.yaml"), "--no-skip-easy", "--fraction", "0.5"]
    assert main(["train", str(table), *options, "--out", str(tmp_path / "one")]) == 0
    record = RunRecord.read(tmp_path / "one")
    assert (record.config.lr, record.config.fraction, record.config.skip_easy) == (0.002, 0.5, False)
    assert main(["train", "--config", str(tmp_path / "one" / "config.yaml"), "--out", str(tmp_path / "two")]) == 0
    assert RunRecord.read(tmp_path / "two").epochs == record.epochs


def test_two_processes_are_one(table: Path, tmp_path: Path) -> None:
    """27 images in steps of 18: in the last step the second process repeats one, which does not count."""
    asked = ("--model", "test_convnext", "--image-size", "32", "--epochs", "2", "--loss", "top-k", "--fraction", "0.4")
    assert main(["train", str(table), *asked, "--batch-size", "18", "--out", str(tmp_path / "one")]) == 0
    two = run("train", table, *asked, "--batch-size", "9", "--out", "two", cwd=tmp_path, launcher=TORCHRUN)
    assert two.returncode == 0, two.stderr
    records = [RunRecord.read(tmp_path / name) for name in ("one", "two")]
    assert [record.processes for record in records] == [1, 2]
    for alone, together in zip(*(record.epochs for record in records), strict=True):
        assert vars(alone) == pytest.approx(vars(together), abs=1e-5, rel=1e-5)
    assert records[0].gradient == pytest.approx(records[1].gradient, abs=1e-5)
    assert records[0].recall == records[1].recall
