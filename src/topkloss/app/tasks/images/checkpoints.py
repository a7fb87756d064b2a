"""The folder of a run while it trains: from its beginning to its end it can be taken up again.

``config.yaml`` is there first, ``metrics.json`` last. Between them ``last.ckpt`` is replaced, whole, after each epoch.
"""

from __future__ import annotations

import fcntl
import io
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import lightning
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import Checkpoint
from safetensors.torch import save
from torch import Tensor

from topkloss.app.errors import DiskError, InputError, RunError, in_command
from topkloss.app.runs.files import check_new, replacing
from topkloss.app.tasks.images.module import ImageClassifier
from topkloss.app.tasks.images.records import WEIGHTS, write_epochs

__all__ = [
    "CHECKPOINT",
    "Saving",
    "WholeFiles",
    "alone",
    "created",
    "disk",
    "emptied",
    "final_weights",
    "load",
    "reopened",
    "write_weights",
]

CHECKPOINT = "last.ckpt"

# How long the loading processes of a killed run may take to notice.
SECONDS_TO_DIE = 15


class WholeFiles(TorchCheckpointIO):
    """Lightning's checkpoints, written beside their place and renamed within the same folder."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Writes all of it or nothing."""
        content = io.BytesIO()  # a full disk is then an error of the system, not one of the archive
        torch.save(checkpoint, content)
        with replacing(Path(path)) as partial:
            partial.write_bytes(content.getbuffer())


class Saving(Checkpoint):
    """After each epoch, and after all other callbacks: the checkpoint, then the lines of the epochs that it holds."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Called by all processes; the first writes."""
        module = cast(ImageClassifier, pl_module)
        with disk(self.folder, f"epoch {trainer.current_epoch + 1}"):
            trainer.save_checkpoint(self.folder / CHECKPOINT)
            if trainer.is_global_zero:
                write_epochs(self.folder, module.progress.epochs)


def load(folder: Path) -> dict[str, Any] | None:
    """The last checkpoint; None before the first epoch is over.

    Raises:
        InputError: If it was not written by a run of this version.
    """
    path = folder / CHECKPOINT
    if not path.exists():
        return None
    try:
        checkpoint: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        checkpoint["progress"]["epochs"], checkpoint["state_dict"]
    except Exception as error:  # whatever stands in a file that is none
        raise InputError(
            f"{path} must be the checkpoint of a run; got {type(error).__name__}. Train anew with another --out."
        ) from error
    return checkpoint


def write_weights(folder: Path, checkpoint: dict[str, Any]) -> None:
    """Writes ``model.safetensors``, under timm's names: those of the best epoch, or the averaged ones, if there are."""
    state = final_weights(checkpoint)
    with disk(folder, "the final weights"), replacing(folder / WEIGHTS) as partial:
        partial.write_bytes(save({name: value.contiguous().clone() for name, value in state.items()}))


def final_weights(checkpoint: dict[str, Any]) -> dict[str, Tensor]:
    """The weights that a run ends with, under timm's names: of the best epoch under early stopping, else the last."""
    state: dict[str, Tensor] = (
        checkpoint.get("best")
        or checkpoint.get("ema")
        or {
            name.removeprefix("model."): value
            for name, value in checkpoint["state_dict"].items()
            if name.startswith("model.")
        }
    )
    return state


def reopened(folder: Path) -> None:
    """Takes away what says that a run is finished, and what was measured of the weights that it then had."""
    for name in ("metrics.json", "evaluation.json"):
        (folder / name).unlink(missing_ok=True)


def created(folder: Path) -> Path:
    """The folder of a new run, made, as an absolute path.

    Raises:
        InputError: If it cannot be made, or is not empty.
    """
    folder = folder.absolute()
    try:
        check_new(folder)
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"`--out` must be a folder that can be made; got {folder}: {error.strerror}. Pass another."
        ) from error
    return folder


def emptied(folder: Path, *, keep: bool) -> None:
    """Takes away a run that failed before its first epoch was over."""
    shutil.rmtree(folder, ignore_errors=True)
    if keep:
        folder.mkdir(exist_ok=True)


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Holds the folder against other processes, until the end of this one at the latest.

    Raises:
        InputError: If another process has it.
    """
    place = os.open(folder, os.O_RDONLY)
    try:
        patience = time.monotonic() + SECONDS_TO_DIE
        while True:
            try:
                fcntl.flock(place, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() > patience:
                    raise RunError(
                        f"{folder} must be trained by one process; got a second one. Wait for the first, or end it."
                    ) from error
                time.sleep(0.1)
        yield
    finally:
        os.close(place)


@contextmanager
def disk(folder: Path, what: str) -> Iterator[None]:
    """What the system says of a file of the run, as a sentence."""
    try:
        yield
    except OSError as error:
        hint = "Free some space, or pass another --out."
        if (folder / "config.yaml").exists():
            again = f"`topkloss train --resume {in_command(folder)}`"
            hint = f"What was saved before is whole: free some space, then {again}."
        raise DiskError(f"{folder} must have room for {what}; got {error.strerror or error}. {hint}") from error
