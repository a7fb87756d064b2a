"""A run that is interrupted, killed or short of disk, and taken up again: nothing lost, the same weights to the bit."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import random
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from importlib.metadata import version
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.pictures import write_pictures
from tests.ranks import START
from topkloss.app.cli import main
from topkloss.app.errors import InputError
from topkloss.app.tasks.images.callbacks import Lines, is_over
from topkloss.app.tasks.images.checkpoints import CHECKPOINT, load
from topkloss.app.tasks.images.fit import fit, resume
from topkloss.app.tasks.images.models import create_model
from topkloss.app.tasks.images.records import EpochRecord, RunRecord, TrainConfig


class Interruption(Exception):
    """In the place of whatever ends a process."""


@pytest.fixture
def config(tmp_path: Path) -> TrainConfig:
    (tmp_path / "data").mkdir()
    table = write_pictures(tmp_path / "data")
    given: dict[str, Any] = {"csv": str(table), "out": str(tmp_path / "run"), "model": "test_convnext"}
    return TrainConfig(**given, image_size=32, epochs=3, batch_size=9, lr=3e-3)


def results(folder: Path) -> tuple[bytes, bytes]:
    return (folder / "model.safetensors").read_bytes(), (folder / "metrics.csv").read_bytes()


def fit_one_epoch(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Begins a run and ends it after the first epoch."""

    def interrupted(*_: object) -> None:
        raise Interruption

    with monkeypatch.context() as patch:
        patch.setattr(Lines, "on_train_epoch_end", interrupted)
        with pytest.raises(Interruption):
            fit(config)


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"model": "test_resnet"},
        {"model": "test_vit", "augment": "strong"},
        {"ema": 0.9, "accumulate": 2, "workers": 2, "augment": "light"},
        {"schedule": "linear", "schedule_epochs": 2, "skip_easy": True, "fraction": 0.4},
        {"schedule": "cosine", "opt": "sgd", "warmup_epochs": 1, "weight_decay": 0.05},
        {"precision": "bf16-mixed", "channels_last": True, "loss": "ranked-range", "class_weights": "balanced"},
        {"loss": "ohem", "opt": "adamw", "sched": "none", "label_smoothing": 0.1},
        {"loss": "focal", "early_stopping": 2},
    ],
    ids=str,
)
def test_resumed_is_uninterrupted_bit_for_bit(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any]
) -> None:
    whole, parted = replace(config, **change), replace(config, **change, out=str(tmp_path / "parted"))
    record = fit(whole)
    fit_one_epoch(parted, monkeypatch)
    again = resume(parted.folder)
    assert results(parted.folder) == results(whole.folder)
    assert (again.epochs, again.recall, again.gradient) == (record.epochs, record.recall, record.gradient)
    assert RunRecord.read(parted.folder) == again


def test_dropout_draws_what_it_would_have_drawn(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The state of the process before an epoch does not matter; timm's models have no dropout by themselves."""

    def dropping(*arguments: Any, **rest: Any) -> Any:
        model: Any = create_model(*arguments, **rest)
        model.head.drop.p = 0.5
        return model

    monkeypatch.setattr("topkloss.app.tasks.images.fit.create_model", dropping)
    whole = replace(config, out=str(tmp_path / "whole"))
    fit(whole)
    fit_one_epoch(config, monkeypatch)
    torch.rand(7)
    resume(config.folder)
    assert results(config.folder) == results(whole.folder)


def test_the_number_of_workers_does_not_matter(config: TrainConfig, tmp_path: Path) -> None:
    """What is drawn depends on seed, epoch and place alone."""
    drawn = replace(config, augment="strong", epochs=2)
    fit(drawn)
    fit(replace(drawn, workers=2, out=str(tmp_path / "workers")))
    assert results(drawn.folder) == results(tmp_path / "workers")
    plain = replace(drawn, augment="none", out=str(tmp_path / "plain"))
    fit(plain)
    assert results(plain.folder) != results(drawn.folder)


def test_a_run_without_a_whole_epoch_begins_anew(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit(replace(config, out=str(tmp_path / "whole")))
    fit_one_epoch(config, monkeypatch)
    for name in ("last.ckpt", "metrics.csv"):
        (config.folder / name).unlink()
    (config.folder / ".partial-last.ckpt").write_bytes(b"half of it")
    resume(config.folder)
    assert results(config.folder) == results(tmp_path / "whole")
    assert not list(config.folder.glob(".partial-*"))


def test_a_run_that_was_only_to_be_finished_is_finished(config: TrainConfig) -> None:
    record = fit(config)
    before = results(config.folder)
    for name in ("metrics.json", "metrics.csv", "model.safetensors"):
        (config.folder / name).unlink()
    assert resume(config.folder) == record
    assert results(config.folder) == before


def test_a_finished_run_is_left_alone(config: TrainConfig, capsys: pytest.CaptureFixture[str]) -> None:
    record = fit(config)
    times = {path: path.stat().st_mtime_ns for path in config.folder.iterdir()}
    capsys.readouterr()
    assert resume(config.folder) == record
    assert capsys.readouterr().out == f"{config.folder} is a finished run: there is nothing to resume.\n"
    assert resume(config.folder, {"workers": 1, "log": "tensorboard", "csv": config.csv, "lr": config.lr}) == record
    assert "there is nothing to resume, and --workers and --log change nothing.\n" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in config.folder.iterdir()} == times
    with pytest.raises(InputError, match=r"^`--lr` must be that of the run"):  # as of one that is not finished
        resume(config.folder, {"lr": 0.5})


@pytest.mark.parametrize("change", [{"warmup_epochs": 1}, {"schedule": "linear", "ema": 0.9}], ids=str)
def test_a_finished_run_is_trained_on_to_what_more_epochs_would_have_given(
    config: TrainConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str], change: dict[str, Any]
) -> None:
    long = replace(config, sched="none", schedule_epochs=2 if "schedule" in change else None, **change)
    whole, parted = replace(long, epochs=4), replace(long, epochs=2, out=str(tmp_path / "parted"))
    fit(whole)
    fit(parted)
    (parted.folder / "evaluation.json").write_text("of the weights after two epochs")
    capsys.readouterr()
    resume(parted.folder)
    assert f"`topkloss train --resume {parted.folder} --epochs 4` trains it on." in capsys.readouterr().out
    again = resume(parted.folder, {"epochs": 4})
    assert results(parted.folder) == results(whole.folder)
    assert RunRecord.read(parted.folder) == again
    assert again.config.epochs == 4
    assert not (parted.folder / "evaluation.json").exists()


def test_a_finished_run_that_is_trained_on_can_be_interrupted(config: TrainConfig, monkeypatch: Any) -> None:
    parted = replace(config, sched="none", epochs=1)
    fit(parted)

    def interrupted(*_: object) -> None:
        raise Interruption

    with monkeypatch.context() as patch:
        patch.setattr(Lines, "on_train_epoch_end", interrupted)
        with pytest.raises(Interruption):
            resume(parted.folder, {"epochs": 3})
    with pytest.raises(InputError, match="must be the folder of a finished run"):
        RunRecord.read(parted.folder)
    assert len(resume(parted.folder).epochs) == 3


@pytest.mark.parametrize("finished", [True, False])
def test_a_length_that_would_have_changed_the_epochs_that_were_made_is_refused(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch, finished: bool
) -> None:
    if finished:
        fit(config)
    else:
        fit_one_epoch(config, monkeypatch)
    with pytest.raises(InputError) as caught:
        resume(config.folder, {"epochs": 8})
    assert str(caught.value) == (
        "`--epochs` must be that of the run, 3, by whose end --sched cosine brings the learning rate down; got 8. "
        "Leave it out, or begin anew with --sched none, which can be trained on."
    )
    with pytest.raises(InputError, match=r"^`--early-stopping` must be left out, as it was when .* got 1\."):
        resume(config.folder, {"early_stopping": 1})


def test_fewer_epochs_than_were_made_are_refused(config: TrainConfig) -> None:
    fit(replace(config, sched="none", epochs=2))
    with pytest.raises(InputError, match=r"^`--epochs` must be 2 or more, as many as .* has made; got 1\. Leave"):
        resume(config.folder, {"epochs": 1})
    (config.folder / "last.ckpt").unlink()
    with pytest.raises(InputError, match=r"must have its last\.ckpt to be trained on; got none\."):
        resume(config.folder, {"epochs": 3})


def test_a_second_run_in_the_folder_neither_spoils_nor_removes_the_first(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both found it empty; the first has it, and no checkpoint yet."""
    monkeypatch.setattr("topkloss.app.tasks.images.checkpoints.SECONDS_TO_DIE", 0)
    config.folder.mkdir()
    place = os.open(config.folder, os.O_RDONLY)
    fcntl.flock(place, fcntl.LOCK_EX)
    with pytest.raises(InputError, match="must be trained by one process; got a second one"):
        fit(config)
    assert config.folder.is_dir()
    os.close(place)

    def quicker(folder: Path) -> Path:
        folder.mkdir(exist_ok=True)
        (folder / "config.yaml").write_text("of the first")
        return folder

    monkeypatch.setattr("topkloss.app.tasks.images.fit.created", lambda folder: quicker(folder))
    with pytest.raises(InputError, match="where another run was as quick"):
        fit(replace(config, out=str(config.folder / "new")))
    assert (config.folder / "new" / "config.yaml").read_text() == "of the first"


def test_early_stopping_is_decided_by_the_epochs() -> None:
    def epochs(*losses: float) -> list[EpochRecord]:
        return [EpochRecord(number, 0, 0, loss, 0) for number, loss in enumerate(losses, 1)]

    assert not is_over(epochs(3, 2, 1), 9, 2)
    assert not is_over(epochs(3, 2, 2), 9, 2)
    assert is_over(epochs(3, 2, 2, 2.5), 9, 2)
    assert not is_over(epochs(3, 2, 2, 1.9), 9, 2)
    assert not is_over(epochs(1, 2, 3), 9, None)
    assert is_over(epochs(1, 2, 3), 3, None)


def test_early_stopping_ends_a_run(config: TrainConfig) -> None:
    """A learning rate at which the first epoch is the best."""
    record = fit(replace(config, early_stopping=1, epochs=12, lr=0.3, opt="sgd", sched="none"))
    assert len(record.epochs) < 12
    assert is_over(record.epochs, 12, 1)
    assert not is_over(record.epochs[:-1], 12, 1)
    assert resume(config.folder) == record
    with pytest.raises(InputError, match=r"^`--early-stopping` must be more than 1, which ended .* got 20 for the lat"):
        resume(config.folder, {"epochs": 20})
    with pytest.raises(InputError, match=r"^`--early-stopping` must be that of the run, 1, or more; got none"):
        resume(config.folder, {"early_stopping": None})


@pytest.mark.parametrize("ema", [None, 0.5])
def test_early_stopping_keeps_the_best_epoch(
    config: TrainConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str], ema: float | None
) -> None:
    """The weights, to the bit, of a run that ends with that epoch."""
    given = replace(config, epochs=12, lr=0.3, opt="sgd", sched="none", ema=ema)
    record = fit(replace(given, early_stopping=2))
    losses = [epoch.cross_entropy for epoch in record.epochs]
    best = losses.index(min(losses)) + 1
    assert best < len(losses), "the last epoch is the best: nothing is tried"
    assert (record.best_epoch, record.last) == (best, record.epochs[best - 1])
    short = fit(replace(given, epochs=best, out=str(tmp_path / "short")))
    assert short.best_epoch is None
    assert results(config.folder)[0] == results(tmp_path / "short")[0]
    assert (record.recall, record.gradient) == (short.recall, short.gradient)
    metrics = json.loads((config.folder / "metrics.json").read_text())
    assert (metrics["best_epoch"], metrics["accuracy"]) == (best, short.last.accuracy)
    assert RunRecord.read(config.folder) == record
    capsys.readouterr()
    assert main(["train", "--resume", str(config.folder)]) == 0
    said = (
        f"the weights are those of epoch {best} of {len(losses)}, whose held-out cross-entropy, {min(losses):.4f}, is"
    )
    assert said in capsys.readouterr().out
    assert main(["evaluate", str(config.folder)]) == 0
    evaluated = json.loads((config.folder / "evaluation.json").read_text())["figures"]["cross_entropy"]["value"]
    assert evaluated == pytest.approx(min(losses), rel=1e-5)


def test_with_more_patience_a_stopped_run_goes_on_from_its_last_epoch(config: TrainConfig, tmp_path: Path) -> None:
    given = replace(config, epochs=6, lr=0.3, opt="sgd", early_stopping=1)
    assert len(fit(given).epochs) < 4
    fit(replace(given, early_stopping=4, out=str(tmp_path / "patient")))
    again = resume(config.folder, {"early_stopping": 4})
    assert results(config.folder) == results(tmp_path / "patient")
    assert again.best_epoch == RunRecord.read(tmp_path / "patient").best_epoch


def test_the_best_epoch_survives_an_interruption(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first is the best: its weights are in the checkpoint alone."""
    given = replace(config, epochs=3, lr=0.3, opt="sgd", sched="none", early_stopping=2)
    whole = fit(replace(given, out=str(tmp_path / "whole")))
    fit_one_epoch(given, monkeypatch)
    assert resume(given.folder).best_epoch == whole.best_epoch == 1
    assert results(given.folder) == results(tmp_path / "whole")


def test_a_best_epoch_of_an_earlier_version_has_no_weights_and_that_is_said(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """That version kept the last weights: what is recorded is of them."""
    given = replace(config, epochs=3, lr=0.3, opt="sgd", sched="none", early_stopping=2)
    fit_one_epoch(given, monkeypatch)
    checkpoint = torch.load(given.folder / CHECKPOINT, weights_only=True)
    del checkpoint["best"], checkpoint["progress"]["best_epoch"]
    torch.save(checkpoint, given.folder / CHECKPOINT)
    assert main(["train", "--resume", str(given.folder)]) == 0
    record = RunRecord.read(given.folder)
    assert (record.best_epoch, len(record.epochs)) == (None, 3)
    assert "the weights are those of the last epoch, 3: an earlier version" in capsys.readouterr().out
    right = sum(record.recall[name] * record.support[name] for name in record.classes)
    assert right / sum(record.support.values()) == pytest.approx(record.last.accuracy)


# Refused


def test_another_number_would_come_out(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    fit_one_epoch(config, monkeypatch)
    with pytest.raises(InputError) as caught:
        resume(config.folder, {"lr": 0.5})
    assert str(caught.value) == (
        "`--lr` must be that of the run, 0.003, for its numbers depend on it; got 0.5. "
        "Leave it out, or train anew with another --out."
    )
    assert resume(config.folder, {"lr": 0.003, "workers": 1}).config.workers == 1


def test_other_data_are_noticed(config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fit_one_epoch(config, monkeypatch)
    table = tmp_path / "data" / "pictures.csv"
    image = tmp_path / "data" / "2-3.png"
    content, pixels = table.read_text(), image.read_bytes()
    others = ((table, content.encode() + b"2-3.png,10\n", "digest"), (image, pixels + b"0", "images"))
    for path, changed, key in others:
        before = path.read_bytes()
        path.write_bytes(changed)
        with pytest.raises(InputError, match=f"^`--resume` must find the data of the run; got others.*'{key}'"):
            resume(config.folder)
        path.write_bytes(before)
    moved = (tmp_path / "data").rename(tmp_path / "moved")
    with pytest.raises(InputError, match=r"^`--images` must be a folder"):
        resume(config.folder)
    assert len(resume(config.folder, {"csv": str(moved / "pictures.csv")}).epochs) == 3


def test_another_number_of_processes_is_refused(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    fit_one_epoch(config, monkeypatch)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match=r"^`--resume` must run in 1 process, as the run did; got 2\. "):
        resume(config.folder)


def test_other_versions_and_threads_are_told(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fit_one_epoch(config, monkeypatch)
    path = config.folder / "config.yaml"
    path.write_text(path.read_text().replace(f"timm: {version('timm')}", "timm: 1.0.0"))
    resume(config.folder)
    assert "was begun with timm 1.0.0: the last digits may differ" in capsys.readouterr().err


def test_no_run_is_said(tmp_path: Path, config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"must be the folder of a run, with config\.yaml; got FileNotFoundError"):
        resume(tmp_path)
    fit_one_epoch(config, monkeypatch)
    (config.folder / "last.ckpt").write_bytes(b"no checkpoint")
    with pytest.raises(InputError, match=r"last\.ckpt must be the checkpoint of a run; got "):
        resume(config.folder)


def test_two_processes_do_not_train_in_one_folder(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    fit_one_epoch(config, monkeypatch)
    monkeypatch.setattr("topkloss.app.tasks.images.checkpoints.SECONDS_TO_DIE", 0)
    place = os.open(config.folder, os.O_RDONLY)
    fcntl.flock(place, fcntl.LOCK_EX)
    with pytest.raises(InputError, match="must be trained by one process; got a second one"):
        resume(config.folder)
    os.close(place)
    resume(config.folder)


# A full disk


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of a few MiB, in memory."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=100m", "tmpfs", str(folder)]
    mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    if mounted.returncode != 0:
        pytest.skip(f"a small disk needs the right to mount: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def resized(folder: Path, size: int) -> None:
    subprocess.run(["mount", "-o", f"remount,size={size}", str(folder)], check=True)


def test_a_full_disk_costs_one_epoch(
    config: TrainConfig, tmp_path: Path, small_disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fit(config)
    size = (config.folder / "last.ckpt").stat().st_size
    options = ["--model", "test_convnext", "--image-size", "32", "--epochs", "3", "--batch-size", "9", "--lr", "3e-3"]
    assert config.csv is not None
    resized(small_disk, int(1.5 * size))
    run = small_disk / "run"
    capsys.readouterr()
    assert main(["train", config.csv, *options, "--out", str(run)]) == 2
    told = capsys.readouterr()
    assert told.err == (
        f"topkloss: {run} must have room for epoch 2; got No space left on device. What was saved before is whole: "
        f"free some space, then `topkloss train --resume {run}`.\n"
    )
    assert told.out.splitlines()[1].startswith("epoch 1/3 ")
    assert told.out.count("\n") == 2
    assert {path.name for path in run.iterdir()} == {"config.yaml", "last.ckpt", "metrics.csv"}
    checkpoint = load(run)
    assert checkpoint is not None
    assert len(checkpoint["progress"]["epochs"]) == 1
    resized(small_disk, 10 * size)
    assert main(["train", "--resume", str(run)]) == 0
    assert results(run) == results(config.folder)


# kill -9


def train(arguments: list[str]) -> None:
    """The command, in a process of its own."""
    with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere):
        raise SystemExit(main(arguments))


def started(arguments: list[str]) -> BaseProcess:
    """From a process that has imported everything, so that the time until it is killed goes into the run."""
    process = START.Process(target=train, args=(arguments,))
    process.start()
    return process


def wait_until_begun(process: Any, folder: Path) -> None:
    """Starting Python takes longer than a small run: a kill before that would kill nothing."""
    while process.is_alive() and not (folder / "config.yaml").exists():
        process.join(0.005)


@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_at_random_moments(config: TrainConfig, tmp_path: Path, kills: int) -> None:
    """Each time taken up again; whenever a run is over another begins, until so many were killed."""
    assert config.csv is not None
    options = [config.csv, "--model", "test_resnet", "--image-size", "32", "--epochs", "4", "--batch-size", "3"]

    def fresh(name: str) -> list[str]:
        return ["train", *options, "--out", str(tmp_path / name)]

    started(fresh("warm")).join()
    whole = started(fresh("whole"))
    wait_until_begun(whole, tmp_path / "whole")
    begun = time.monotonic()
    whole.join()
    assert whole.exitcode == 0
    length = time.monotonic() - begun
    chance, killed, runs, epochs = random.Random(kills), 0, 1, set[int]()
    while True:
        folder = tmp_path / f"run{runs}"
        has_begun = (folder / "config.yaml").exists()
        process = started(["train", "--resume", str(folder)] if has_begun else fresh(folder.name))
        wait_until_begun(process, folder)
        process.join(chance.uniform(0, length) if killed < kills else None)
        if process.exitcode is None:
            assert process.pid is not None
            os.kill(process.pid, signal.SIGKILL)
            process.join()
            killed += process.exitcode == -signal.SIGKILL
            if folder.exists():
                checkpoint = load(folder)  # whole, whenever it was
                epochs.add(0 if checkpoint is None else len(checkpoint["progress"]["epochs"]))
        else:
            assert process.exitcode == 0
            assert results(folder) == results(tmp_path / "whole")
            if killed >= kills:
                break
            runs += 1
    assert killed == kills
    assert epochs
    assert not list(tmp_path.glob("run*/.partial-*"))


def test_a_checkpoint_is_replaced_whole(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """The moment between the old one and the new: what is renamed was written, and is on the disk."""
    calls: list[str] = []
    rename, sync = Path.replace, os.fsync

    def renamed(self: Path, target: Path) -> Path:
        calls.append(f"rename {Path(target).name}")
        return rename(self, target)

    def synced(place: int) -> None:
        calls.append("sync")
        sync(place)

    monkeypatch.setattr(Path, "replace", renamed)
    monkeypatch.setattr(os, "fsync", synced)
    fit(replace(config, epochs=1))
    text = " ".join(calls)
    assert re.findall(r"(sync )?rename (\S+)", text) == [
        ("sync ", name)
        for name in (
            "config.yaml",
            "last.ckpt",
            "metrics.csv",
            "model.safetensors",
            "losses.csv",
            "held_out.csv",
            "config.yaml",
            "metrics.csv",
        )
    ] + [("sync ", "metrics.json")]
