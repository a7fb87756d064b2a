"""What a machine bears: processes that load images and end, devices that are there or not, workers that pay."""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import time
from dataclasses import replace
from multiprocessing.connection import Client
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import get_worker_info

from tests.pictures import write_pictures
from topkloss.app.cli import main
from topkloss.app.data.dataset import Images
from topkloss.app.errors import InputError, RunError
from topkloss.app.options.devices import device_named
from topkloss.app.options.workers import bearing, workers_that_pay
from topkloss.app.tasks.images.checkpoints import load
from topkloss.app.tasks.images.fit import fit, resume
from topkloss.app.tasks.images.records import TrainConfig


@pytest.fixture
def config(tmp_path: Path) -> TrainConfig:
    (tmp_path / "data").mkdir()
    table = write_pictures(tmp_path / "data")
    given: dict[str, Any] = {"csv": str(table), "out": str(tmp_path / "run"), "model": "test_convnext"}
    return TrainConfig(**given, image_size=32, epochs=2, batch_size=9, workers=1, augment="light")


def killed(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def without_room(*_: object) -> None:
    raise RuntimeError("unable to write to file </torch_1_2_3>: No space left on device (28)")


def without_memory(*_: object) -> None:
    raise MemoryError


def spoil(monkeypatch: pytest.MonkeyPatch, how: Any, loads: int) -> None:
    """Every process that loads, but this one, ends so after as many images."""
    before, done = Images.__getitem__, [0]

    def spoiled(self: Images, place: int) -> Any:
        done[0] += 1
        if get_worker_info() is not None and done[0] > loads:
            how()
        return before(self, place)

    monkeypatch.setattr(Images, "__getitem__", spoiled)


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        (killed, r"DataLoader worker \(pid.*\) (exited unexpectedly|is killed by signal: Killed)"),
        (without_room, r"RuntimeError: unable to write to file </torch_1_2_3>: No space left on device \(28\)"),
        (without_memory, "MemoryError"),
    ],
)
@pytest.mark.parametrize("epochs", [0, 1])
def test_a_loading_process_that_ends_is_a_sentence(
    config: TrainConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Any,
    how: Any,
    reason: str,
    epochs: int,
) -> None:
    fit(replace(config, out=str(tmp_path / "whole"), workers=0))
    capsys.readouterr()
    asked = ["--model", "test_convnext", "--image-size", "32", "--epochs", "2", "--batch-size", "9", "--workers", "1"]
    with monkeypatch.context() as patch:
        spoil(patch, how, 28 if epochs else 4)
        assert main(["train", str(config.csv), *asked, "--augment", "light", "--out", str(config.folder)]) == 2
    error = capsys.readouterr().err
    saved = "1 epoch saved" if epochs else "no epoch was over"
    assert error.splitlines()[-1].endswith(f"{saved}; `topkloss train --resume {config.folder} --workers 0` continues.")
    head = "^topkloss: `--workers` must be as many processes as the machine bears; got 1, and one ended: "
    assert re.search(head + reason + r"\. ", error.splitlines()[-1])
    assert "Traceback" not in error
    assert (load(config.folder) is not None) == bool(epochs)
    resume(config.folder, {"workers": 0})
    for name in ("model.safetensors", "metrics.csv", "losses.csv"):
        assert (config.folder / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_mistake_in_a_loading_process_is_not_taken_for_the_machine(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def mistaken() -> None:
        raise KeyError("DataLoader worker (pid")

    spoil(monkeypatch, mistaken, 0)
    with pytest.raises(KeyError):
        fit(config)
    with pytest.raises(RuntimeError, match=r"^mat1 and mat2"), bearing(1):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")
    with pytest.raises(RuntimeError, match=r"^DataLoader worker"), bearing(0):
        raise RuntimeError("DataLoader worker (pid 1) is killed by signal: Killed. ")


def test_an_end_that_is_heard_of_elsewhere_and_a_process_that_cannot_begin_are_sentences() -> None:
    with pytest.raises(RunError, match=r"got 3, and one ended: \[Errno 11\] no more\. Pass --workers 0\.$"), bearing(3):
        raise BlockingIOError(11, "no more")
    with pytest.raises(RunError, match=r"signal: Bus error\. Pass"), bearing(3):
        raise RuntimeError(
            "DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that dataloader's workers are "
            "out of shared memory. Please try to raise your shared memory limit."
        )


def test_an_end_while_a_batch_is_handed_over_is_a_sentence_and_a_reader_that_leaves_is_none() -> None:
    """What the sender of a batch leaves behind: a connection that breaks, or its address, where nobody listens."""
    sender, receiver = multiprocessing.Pipe()
    sender.close()
    with pytest.raises(RunError, match=r"^`--workers` .* one ended: EOFError\. Pass --workers 0\.$"), bearing(1):
        receiver.recv_bytes()
    with pytest.raises(RunError, match=r"one ended: \[Errno 2\] No such file or directory\. "), bearing(1):
        Client("/nowhere/socket")
    with pytest.raises(BrokenPipeError), bearing(1):
        raise BrokenPipeError(32, "Broken pipe")


# Devices


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        *(("gpu", "cuda"), ("GPU", "cuda"), ("1", "cuda:1"), ("gpu:1", "cuda:1"), ("CUDA", "cuda"), ("cuda:", "auto")),
        *(("cuda:-1", "auto"), ("tpu", "auto"), ("", "auto"), ("cpu:0", "auto"), ("cuda:0,1", "auto")),
    ],
)
def test_what_is_no_device_is_answered_by_one(config: TrainConfig, name: str, hint: str) -> None:
    with pytest.raises(InputError) as caught:
        fit(replace(config, device=name))
    assert str(caught.value) == (
        f"`--device` must be auto, cpu, cuda, cuda:N or mps; got {name or 'nothing'}. Pass --device {hint}."
    )
    assert not config.folder.exists()


def test_a_device_that_is_not_there_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [device_named(name) for name in ("auto", "cpu", "cuda", "cuda:1")] == ["cuda", "cpu", "cuda", "cuda:1"]
    with pytest.raises(InputError, match=r"got cuda:2, and torch finds cuda:0 to cuda:1\. Pass --device cuda:1\."):
        device_named("cuda:2")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert device_named("auto") == "cpu"
    with pytest.raises(InputError, match=r"^`--device` must be there; got cuda:0, and this torch .*\. Leave it out\.$"):
        device_named("cuda:0")
    with pytest.raises(InputError, match=r"^`--device` must be there; got mps, and torch finds no Metal"):
        device_named("mps")


@pytest.mark.parametrize("command", ["train", "evaluate", "predict"])
def test_every_command_that_computes_takes_a_device(
    trained: Path, tmp_path: Path, command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    data, out = str(trained.parent / "data"), str(tmp_path / "out")
    small = ["--model", "test_resnet", "--image-size", "32", "--epochs", "1", "--batch-size", "9"]
    words = {
        "train": ["train", f"{data}/pictures.csv", *small, "--out", out],
        "evaluate": ["evaluate", str(trained), "--out", out],
        "predict": ["predict", str(trained), data, "--out", f"{out}.csv"],
    }[command]
    assert main([*words, "--device", "cuda:1"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("topkloss: `--device` must be there; got cuda:1, and this torch ")
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
    assert main([*words, "--device", "cpu"]) == 0


def test_one_gpu_is_not_for_several_processes(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match=r"^`--device` must be cuda in several processes, .* got cuda:1\."):
        fit(replace(config, device="cuda:1"))
    monkeypatch.delenv("WORLD_SIZE")
    with pytest.raises(InputError, match=r"^`--precision` must be 32 or bf16-mixed without a GPU; got 16-mixed"):
        fit(replace(config, device="cpu", precision="16-mixed"))


# Workers that pay


def test_processes_load_where_that_takes_long_and_there_is_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("topkloss.app.options.workers.cores", lambda: 16)
    slow: dict[str, Any] = {"load": lambda place: time.sleep(0.002), "images": 4000, "passes": 1, "batch_bytes": 1}
    assert workers_that_pay(**slow) == 4  # 8 s in all
    assert workers_that_pay(**{**slow, "passes": 0}) == 0
    assert workers_that_pay(**{**slow, "images": 100}) == 0
    assert workers_that_pay(**{**slow, "images": 0}) == 0
    monkeypatch.setattr("topkloss.app.options.workers.cores", lambda: 3)
    assert workers_that_pay(**slow) == 3
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert workers_that_pay(**slow) == 1
    room = os.statvfs("/dev/shm")
    assert workers_that_pay(**{**slow, "batch_bytes": room.f_blocks * room.f_frsize}) == 0
    monkeypatch.setattr("multiprocessing.get_start_method", lambda: "spawn")
    assert workers_that_pay(**slow) == 0


def test_only_places_that_are_there_are_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    for images in (1, 7, 8, 9, 100):
        places: list[int] = []
        workers_that_pay(places.append, images=images, passes=1, batch_bytes=1)
        assert len(places) == 1 + min(8, images)
        assert max(places) < images


def test_without_a_word_a_run_is_the_same_and_asks_anew_on_each_machine(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit(replace(config, workers=0))
    asked: list[tuple[int, int]] = []

    def pay(load: Any, images: int, passes: int, batch_bytes: int) -> int:
        load(0)
        asked.append((images, passes))
        return 2

    monkeypatch.setattr("topkloss.app.tasks.images.loaders.workers_that_pay", pay)
    monkeypatch.setattr("topkloss.app.tasks.images.recording.workers_that_pay", pay)
    record = fit(replace(config, workers=None, out=str(tmp_path / "open")))
    assert (asked, record.config.workers) == ([(27, 2), (30, 1)], None)
    for name in ("model.safetensors", "metrics.csv"):
        assert (tmp_path / "open" / name).read_bytes() == (config.folder / name).read_bytes()
