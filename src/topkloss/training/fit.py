"""One run, from a `TrainConfig` to a folder with a checkpoint and metrics."""

from __future__ import annotations

import logging
import os
import platform
import shutil
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, TQDMProgressBar
from torch import Tensor
from torch.utils.data import DataLoader, DistributedSampler
from torchvision.transforms import v2

import topkloss
from topkloss.training.data import Images, ImageTable, preparation, read_table, split
from topkloss.training.errors import InputError
from topkloss.training.models import check_takes, colours, create_model, own_size
from topkloss.training.records import RunRecord, TrainConfig
from topkloss.training.task import ImageClassifier

__all__ = ["fit"]

Loader = DataLoader[tuple[Tensor, int]]

# 28 pixels, a little enlarged: a size that halves five times.
DIGIT_SIZE = 32


def fit(config: TrainConfig) -> RunRecord:
    """Trains, measures on the held-out tenth after every epoch, writes the folder of the run when all is done.

    The same config gives the same numbers on the same machine. In several processes (torchrun) each takes its share
    of the images, and the first writes.

    Args:
        config: What to do.

    Returns:
        The record, as it stands in ``config.folder``.

    Raises:
        InputError: One sentence, before anything is trained where that is possible; nothing is left behind.
    """
    _check(config)
    table = read_table(_csv(config), None if config.images is None else Path(config.images))
    train, held_out = split(table, config.seed)
    _quiet()
    lightning.seed_everything(config.seed, verbose=False)
    model = create_model(config.model, len(table.classes))
    size = config.image_size or (DIGIT_SIZE if config.csv is None else own_size(model))
    check_takes(model, config.model, size)
    prepare = preparation(size, *colours(model))
    task = ImageClassifier(
        model,
        table.classes,
        fraction=config.share,
        lr=config.lr,
        skip_easy=config.batch_size if config.skip_easy else 0,
    )
    with _folder(config.folder) as folder:
        seconds = _train(config, task, _loaders(config, table, train, held_out, prepare), folder)
        support = Counter(table.examples[index].label for index in held_out)
        record = RunRecord(
            config=replace(config, fraction=config.share, image_size=size, out=str(config.folder)),
            versions={"python": platform.python_version(), "topkloss": topkloss.__version__}
            | {name: version(name) for name in ("torch", "torchvision", "timm", "lightning")},
            threads=torch.get_num_threads(),
            data={
                "digest": table.digest,
                "classes": list(table.classes),
                "train": len(train),
                "held_out": len(held_out),
            },
            epochs=tuple(task.epochs),
            recall=task.recall_of_classes(),
            support={name: support[label] for label, name in enumerate(table.classes)},
            seconds=round(seconds, 1),
        )
        if _is_first():
            record.write(folder)
            if task.step is not None:
                print(task.step.report())
    return record


def _check(config: TrainConfig) -> None:
    """What can be refused before anything is read."""
    if config.loss == "average" and config.share != 1:
        raise InputError(
            f"`--fraction` must be 1 with --loss average, which averages all; got {config.share:g}. "
            "Leave it out, or pass --loss top-k."
        )
    if not 0 < config.share <= 1:
        example = config.share / 100 if 1 < config.share <= 100 else 0.7
        raise InputError(
            f"`--fraction` must satisfy 0 < fraction <= 1; got {config.share:g}. "
            f"For the {100 * example:g} % hardest of each batch pass --fraction {example:g}."
        )
    for name, least in (("image_size", 1), ("epochs", 1), ("batch_size", 1), ("seed", 0), ("workers", 0)):
        value = getattr(config, name)
        if value is not None and value < least:
            option = f"--{name.replace('_', '-')}"
            raise InputError(f"`{option}` must be {least} or more; got {value}. Leave it out for the default.")
    if not 0 < config.lr <= 1:
        raise InputError(f"`--lr` must satisfy 0 < lr <= 1; got {config.lr:g}. Leave it out for the default.")
    if config.folder.exists() and not (config.folder.is_dir() and not any(config.folder.iterdir())):
        raise InputError(f"`--out` must be a new or empty folder; got {config.folder}, which exists. Pass another.")


def _csv(config: TrainConfig) -> Path:
    if config.csv is not None:
        return Path(config.csv)
    from topkloss.training.digits import write_digits

    return write_digits()


def _loaders(
    config: TrainConfig, table: ImageTable, train: list[int], held_out: list[int], prepare: v2.Transform
) -> tuple[Loader, Loader]:
    images, measured = Images(table, train, prepare), Images(table, held_out, prepare)
    rank = int(os.environ.get("RANK", "0"))
    sampler: DistributedSampler[tuple[Tensor, int]] = DistributedSampler(
        images, num_replicas=_processes(), rank=rank, shuffle=True, seed=config.seed
    )
    settings: dict[str, Any] = {"num_workers": config.workers, "persistent_workers": config.workers > 0}
    # a last batch of one image has no variance for batch normalisation to divide by
    alone = len(sampler) > config.batch_size and len(sampler) % config.batch_size == 1
    return (
        DataLoader(images, batch_size=config.batch_size, sampler=sampler, drop_last=alone, **settings),
        DataLoader(measured, batch_size=config.batch_size, **settings),
    )


def _train(config: TrainConfig, task: ImageClassifier, loaders: tuple[Loader, Loader], folder: Path) -> float:
    """Seconds that it took."""
    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    trainer = lightning.Trainer(
        max_epochs=config.epochs,
        devices=local,
        num_nodes=_processes() // local,
        strategy="ddp" if _processes() > 1 else "auto",
        accelerator="auto" if torch.cuda.is_available() else "cpu",
        callbacks=_callbacks(folder),
        deterministic="warn",
        logger=False,
        enable_model_summary=False,
        enable_progress_bar=sys.stderr.isatty(),
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
    )
    start = time.perf_counter()
    with warnings.catch_warnings():
        # Lightning's own, about Lightning or about a choice that is the user's
        for hint in ("does not have many workers", "The number of training batches", "treespec, LeafSpec"):
            warnings.filterwarnings("ignore", message=f".*{hint}.*")
        try:
            trainer.fit(task, *loaders)
        except InputError as error:
            raise InputError(_sentence(error)) from error
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            raise InputError(
                f"`--batch-size` must be larger for this model and image size, whose batch normalisation needs more "
                f"than one value; got {config.batch_size}. "
                + ("Leave out --skip-easy: it selected one image." if config.skip_easy else "Pass --batch-size 16.")
            ) from error
        except SystemExit:
            if trainer.interrupted:  # Lightning turns Ctrl-C into an exit
                raise KeyboardInterrupt from None
            raise
    return time.perf_counter() - start


def _callbacks(folder: Path) -> list[Callback]:
    callbacks: list[Callback] = [EpochLines(), ModelCheckpoint(folder, filename="last", enable_version_counter=False)]
    if sys.stderr.isatty():
        callbacks.append(TQDMProgressBar(leave=False))
    return callbacks


class EpochLines(Callback):
    """A line after each epoch."""

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Prints it, from the first process."""
        assert isinstance(pl_module, ImageClassifier)
        if trainer.is_global_zero:
            epoch = pl_module.epochs[-1]
            print(
                f"epoch {epoch.epoch}/{trainer.max_epochs}  loss {epoch.train_loss:.4f}  "
                f"held out: cross-entropy {epoch.cross_entropy:.4f}, accuracy {100 * epoch.accuracy:.1f} %",
                flush=True,
            )


@contextmanager
def _folder(final: Path) -> Iterator[Path]:
    """A hidden folder beside the final one, which it becomes at the end; nothing remains of it where a run fails."""
    if not _is_first():
        yield final  # the first process writes
        return
    try:
        final = final.absolute()  # "." has no name
        final.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{final.name}-", dir=final.parent))
    except OSError as error:
        raise InputError(
            f"`--out` must be a folder that can be made; got {final}: {error.strerror}. Pass another."
        ) from error
    try:
        yield partial
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    partial.chmod(0o755)
    try:
        partial.rename(final)
    except OSError as error:
        raise InputError(
            f"`--out` must be free when the run ends; got {final}, which appeared meanwhile. The run is in {partial}."
        ) from error


def _sentence(error: InputError) -> str:
    """Without the traceback that a DataLoader's process puts around it."""
    return str(error).rpartition(f"{InputError.__name__}: ")[2].strip()


def _quiet() -> None:
    """Lightning's hints are for people who write Lightning."""
    for name in ("lightning", "lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)


def _processes() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def _is_first() -> bool:
    return int(os.environ.get("RANK", "0")) == 0
