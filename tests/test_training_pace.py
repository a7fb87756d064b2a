"""How far a run is, and how much time is left of it."""

from __future__ import annotations

import io
import re
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tests.pictures import write_pictures
from topkloss.app.tasks.images.fit import fit
from topkloss.app.tasks.images.pace import Pace
from topkloss.app.tasks.images.records import TrainConfig


class Clock:
    """Time that passes when it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr("topkloss.app.tasks.images.pace.time", SimpleNamespace(monotonic=lambda: self.now))


def trainer(epoch: int, epochs: int) -> Any:
    return SimpleNamespace(
        current_epoch=epoch, max_epochs=epochs, num_training_batches=8, num_val_batches=[2], is_global_zero=True
    )


def test_what_is_left_is_that_of_all_epochs_to_come(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ten batches of 30 s in each of four epochs, the first of which was made in another process."""
    clock, pace, module = Clock(monkeypatch), Pace(), cast(Any, None)
    pace.on_train_start(trainer(1, 4), module)
    for epoch in (1, 2, 3):
        for batch in range(10):
            clock.now += 30
            step = pace.on_train_batch_end if batch < 8 else pace.on_validation_batch_end
            step(trainer(epoch, 4))
        said = capsys.readouterr().err.splitlines()
        assert len(said) == 5, "a line each minute"
        if epoch == 2:
            assert said[0] == "epoch 3/4: 2 of 10 batches; 4 min of the epoch, 9 min of the run left"
        left = {1: "5 min, 10 min left", 2: "5 min, 5 min left", 3: "5 min"}[epoch]
        assert pace.of_last_epoch(is_last=epoch == 3) == left


def test_a_run_that_may_stop_early_takes_at_most_so_long(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, pace, module = Clock(monkeypatch), Pace(at_most=True), cast(Any, None)
    pace.on_train_start(trainer(0, 2), module)
    for _ in range(10):
        clock.now += 720
        pace.on_train_batch_end(trainer(0, 2))
    assert pace.of_last_epoch(is_last=False) == "2 h, at most 2 h left"


def test_a_terminal_shows_the_whole_run(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, pace, module = Clock(monkeypatch), Pace(), cast(Any, None)
    screen = io.StringIO()
    monkeypatch.setattr(screen, "isatty", lambda: True)
    monkeypatch.setattr("sys.stderr", screen)
    pace.on_train_start(trainer(0, 4), module)
    clock.now += 60
    time.sleep(0.15)  # the bar draws ten times a second
    pace.on_train_batch_end(trainer(0, 4))
    pace.teardown(trainer(0, 4), module, "fit")
    assert re.search(r" 2 %\|.*\| epoch 1/4; 9 min of the epoch, 39 min of the run left", screen.getvalue())


def test_the_line_of_an_epoch_says_what_is_left(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small: dict[str, Any] = {"model": "test_resnet", "image_size": 32, "batch_size": 9, "epochs": 2}
    fit(TrainConfig(csv=str(write_pictures(tmp_path)), out=str(tmp_path / "run"), **small))
    output, error = capsys.readouterr()
    first, last = (line for line in output.splitlines() if line.startswith("epoch "))
    assert re.search(r"%  \d+ s, \d+ s left$", first)
    assert re.search(r"%  \d+ s$", last)
    assert error == ""
