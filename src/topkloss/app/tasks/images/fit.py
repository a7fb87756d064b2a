"""One run, from a `TrainConfig` to a folder with weights and metrics; and the same run, taken up again."""

from __future__ import annotations

import importlib.util
import logging
import os
import platform
import warnings
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from torch import nn

import topkloss
from topkloss.app.data.dataset import ImageTable, split
from topkloss.app.data.decoding import cut_off
from topkloss.app.data.examples import imbalance, too_uneven
from topkloss.app.errors import DiskError, InputError, RunError, in_command
from topkloss.app.options.devices import device_named
from topkloss.app.options.workers import MOST, bearing
from topkloss.app.progress import noted
from topkloss.app.tasks.images.callbacks import Clock, Lines, Seeding, Stopping, is_over
from topkloss.app.tasks.images.checkpoints import (
    CHECKPOINT,
    Saving,
    WholeFiles,
    alone,
    created,
    disk,
    emptied,
    final_weights,
    load,
    reopened,
    write_weights,
)
from topkloss.app.tasks.images.config import TrainConfig, checked
from topkloss.app.tasks.images.criterion import create_criterion
from topkloss.app.tasks.images.loaders import loaders, processes
from topkloss.app.tasks.images.models import check_takes, colours, create_model, load_weights, own_size
from topkloss.app.tasks.images.module import ImageClassifier, Progress
from topkloss.app.tasks.images.pace import Pace
from topkloss.app.tasks.images.recording import write_examples
from topkloss.app.tasks.images.records import RunHeader, RunRecord
from topkloss.app.tasks.images.resuming import asked_anew, check_length, check_same, nothing_to_resume
from topkloss.app.tasks.images.source import table_of

__all__ = ["fit", "resume"]

# 28 pixels, a little enlarged: a size that halves five times.
DIGIT_SIZE = 32

BLIND = (
    "accuracy hardly sees the rare class: look at the mean recall, judge by `topkloss report --score "
    "balanced-accuracy`, and consider --class-weights balanced"
)

# Of the images that were left out, so many are named.
FEW = 3


def fit(config: TrainConfig) -> RunRecord:
    """Trains, and measures on the held-out images after every epoch; from then on `resume` can go on from there.

    The same config gives the same numbers on the same machine. In several processes (torchrun) each takes its share
    of the images, and the first writes.

    Args:
        config: What to do.

    Returns:
        The record, as it stands in ``config.folder``.

    Raises:
        InputError: One sentence, before anything is trained where that is possible; a run that fails before its first
            epoch is over leaves nothing.
        KeyboardInterrupt: After Ctrl-C; it says how to go on.
    """
    config = replace(checked(config), out=str(config.folder))
    if _is_first() and config.folder.exists():
        created(config.folder)  # or refused, before the data are read
    run = _prepare(config, fresh=True)
    existed = config.folder.exists()
    folder = created(config.folder) if _is_first() else config.folder.absolute()
    try:
        return _trained(run, folder, Progress(), fresh=True)
    except InputError as error:
        if _is_first() and not isinstance(error, RunError) and not (folder / CHECKPOINT).exists():
            emptied(folder, keep=existed)
        raise


def resume(folder: Path, changes: Mapping[str, Any] | None = None) -> RunRecord:
    """Goes on after the last whole epoch, to the same weights as if nothing had happened.

    A finished run is left alone, unless more epochs, or more patience, are asked of it.

    Args:
        folder: Of the run.
        changes: Fields of the config given anew: where the data are, what changes no number, and how long it trains,
            where the epochs that were made do not depend on that.

    Returns:
        The record, as it stands in the folder.

    Raises:
        InputError: If the folder holds no run, the data differ, or a change would change the numbers.
        KeyboardInterrupt: See `fit`.
    """
    header = RunHeader.read(folder)
    asked = asked_anew(header.config, changes or {})
    config = checked(replace(header.config, **asked, out=str(folder)))
    finished = RunRecord.read(folder) if (folder / "metrics.json").exists() else None
    if finished is not None:
        check_length(folder, header.config, config, finished.epochs)
        if is_over(finished.epochs, config.epochs, config.early_stopping):
            if _is_first():
                print(nothing_to_resume(folder, header.config, finished.epochs, asked))
            return finished
    checkpoint = load(folder)
    if checkpoint is None and finished is not None:
        raise InputError(f"{folder} must have its {CHECKPOINT} to be trained on; got none. Train anew.")
    done = Progress() if checkpoint is None else Progress.of(checkpoint["progress"])
    check_length(folder, header.config, config, done.epochs)
    run = _prepare(config, fresh=checkpoint is None)
    check_same(folder, header, run.header, tell=_is_first())
    return _trained(run, folder.absolute(), done, fresh=False)


@dataclass(frozen=True)
class Prepared:
    """All that was read before anything is trained."""

    header: RunHeader
    table: ImageTable
    train: list[int]
    held_out: list[int]
    model: nn.Module


def _prepare(config: TrainConfig, *, fresh: bool) -> Prepared:
    """Reads the data and makes the model; ``fresh``: with the weights that it begins from."""
    _check_machine(config)
    table = table_of(config)
    train, held_out = split(table, config.split, config.held_out)
    _quiet()
    lightning.seed_everything(config.seed, verbose=False)
    model = create_model(config.model, len(table.classes), pretrained=config.pretrained and fresh)
    if config.weights is not None and fresh:
        load_weights(model, config.model, Path(config.weights))
    size = config.image_size or (DIGIT_SIZE if config.csv is None else own_size(model))
    check_takes(model, config.model, size)
    mean, std = colours(model)
    header = RunHeader(
        config=replace(
            config,
            image_size=size,
            mean=config.mean or mean,
            std=config.std or std,
            **{name: os.path.abspath(path) for name in ("csv", "images", "weights") if (path := getattr(config, name))},
        ),
        versions={"python": platform.python_version(), "topkloss": topkloss.__version__}
        | {name: version(name) for name in ("torch", "torchvision", "timm", "lightning")},
        threads=torch.get_num_threads(),
        processes=processes(),
        data={
            "digest": table.digest,
            "measured": table.digest_of(held_out),
            "images": table.digest_of_sizes(),
            "train": len(train),
            "held_out": len(held_out),
            "skipped": len(table.skipped),
            "classes": list(table.classes),
        },
    )
    return Prepared(header, table, train, held_out, model)


def _trained(run: Prepared, folder: Path, progress: Progress, *, fresh: bool) -> RunRecord:
    """Trains what is left, and finishes the folder; a ``fresh`` one must still be empty."""
    config = run.header.config
    if _is_first():
        print(_summary(run), flush=True)
        noted(cut_off([example.path for example in run.table.examples], run.table.pixel_range))
    done, over = len(progress.epochs), is_over(progress.epochs, config.epochs, config.early_stopping)
    if not _is_first():
        progress = progress if over else _train(run, folder, done)
        return _record(run, progress)
    try:
        with alone(folder):
            if fresh and (folder / "config.yaml").exists():
                raise RunError(f"`--out` must be a new or empty folder; got {folder}, where another run was as quick.")
            with disk(folder, "config.yaml"):
                reopened(folder)
                run.header.write(folder)
            if not over:
                progress = _train(run, folder, done)
            final = load(folder)
            if final is None:
                raise DiskError(f"{folder} must have the checkpoint of its last epoch; got none. Train again.")
            write_weights(folder, final)
            with disk(folder, "what it says of the images"):
                _write_examples(run, folder, final_weights(final))
            record = _record(run, progress)
            with disk(folder, "the metrics"):
                record.write(folder)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(_how_to_go_on(folder)) from None
    return record


def _record(run: Prepared, progress: Progress) -> RunRecord:
    support = Counter(run.table.examples[index].label for index in run.held_out)
    return RunRecord(
        **vars(run.header),
        epochs=tuple(progress.epochs),
        recall=progress.recall,
        support={name: support[label] for label, name in enumerate(run.table.classes)},
        seconds=progress.seconds,
        gradient=progress.gradient,
        time=progress.time,
        best_epoch=progress.best_epoch,
    )


def _write_examples(run: Prepared, folder: Path, weights: Mapping[str, torch.Tensor]) -> None:
    """By the weights that the run ends with, of the images as they are, without augmentation."""
    config = run.header.config
    run.model.load_state_dict(weights)
    model = run.model.eval().to(device_named(config.device))
    with bearing(config.workers or MOST, lambda: _how_to_go_on(folder, " --workers 0")):
        write_examples(folder, config, run.table, train=run.train, held_out=run.held_out, model=model)


def _train(run: Prepared, folder: Path, done: int) -> Progress:
    """The epochs after the first ``done``."""
    config = run.header.config
    train, held_out = loaders(config, run.table, run.train, run.held_out, run.model, done)
    counts = Counter(run.table.examples[index].label for index in run.train)
    task = ImageClassifier(
        config,
        run.model,
        create_criterion(config, [counts[label] for label in range(len(run.table.classes))]),
        classes=run.table.classes,
        steps=len(train),
    )
    trainer = _trainer(config, folder)
    with warnings.catch_warnings():
        # Lightning's own, about Lightning or about a choice that is the user's
        for hint in ("does not have many workers", "The number of training batches", "treespec, LeafSpec"):
            warnings.filterwarnings("ignore", message=f".*{hint}.*")
        try:
            checkpoint = str(folder / CHECKPOINT) if done else None
            with bearing(train.num_workers, lambda: _how_to_go_on(folder, " --workers 0")):
                trainer.fit(task, train, held_out, ckpt_path=checkpoint, weights_only=True)
        except RunError:
            raise
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
    if config.skip_easy and _is_first():
        print(task.step.report())
    return task.progress


def _how_to_go_on(folder: Path, options: str = "") -> str:
    saved = load(folder)
    epochs = 0 if saved is None else len(saved["progress"]["epochs"])
    kept = f"{epochs} epoch{'' if epochs == 1 else 's'} saved" if epochs else "no epoch was over"
    return f"{kept}; `topkloss train --resume {in_command(_short(folder))}{options}` continues."


def _trainer(config: TrainConfig, folder: Path) -> lightning.Trainer:
    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    kind, _, number = device_named(config.device).partition(":")
    pace = Pace(at_most=config.early_stopping is not None)
    seen = [Seeding(config.seed), Clock(), pace, Stopping(config.early_stopping), Saving(folder), Lines(pace)]
    return lightning.Trainer(
        max_epochs=config.epochs,
        devices=[int(number)] if number else local,
        num_nodes=processes() // local,
        strategy="ddp" if processes() > 1 else "auto",
        accelerator=kind,
        precision=config.precision,
        plugins=[WholeFiles()],
        callbacks=seen,
        deterministic="warn",
        logger=TensorBoardLogger(folder, name="", version="tensorboard") if config.log == "tensorboard" else False,
        enable_model_summary=False,
        enable_progress_bar=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
    )


def _check_machine(config: TrainConfig) -> None:
    device = device_named(config.device)
    if ":" in device and processes() > 1:
        raise InputError(
            f"`--device` must be cuda in several processes, each of which takes a GPU; got {device}. "
            "Pass --device cuda, or leave it out."
        )
    if config.precision == "16-mixed" and not device.startswith("cuda"):
        raise InputError(
            "`--precision` must be 32 or bf16-mixed without a GPU; got 16-mixed. Pass --precision bf16-mixed."
        )
    if config.log == "tensorboard" and importlib.util.find_spec("tensorboard") is None:
        raise ModuleNotFoundError("No module named 'tensorboard'", name="tensorboard")
    if config.skip_easy and config.accumulate > 1 and processes() > 1:
        raise InputError(
            "`--accumulate` must be 1 with --skip-easy in several processes, which would select unlike numbers of "
            f"images; got {config.accumulate}. Leave one of them out."
        )


def _summary(run: Prepared) -> str:
    """What was left out, how much there is, how uneven the classes are."""
    table, lines = run.table, list(run.table.notes)
    if table.skipped:
        listed = len(table.skipped) + len(table.examples)
        first = "" if len(table.skipped) <= FEW else f"; the first {FEW}"
        lines += [f"left out {len(table.skipped)} of {listed} images{first}:", *table.skipped[:FEW]]
    counts = Counter(table.examples[index].label for index in run.train)
    of_class = {name: counts[label] for label, name in enumerate(table.classes)}
    lines.append(f"{len(run.train)} images to train on, {len(run.held_out)} held out; {imbalance(of_class)}")
    if too_uneven(of_class) and run.header.config.class_weights == "none":
        lines.append(BLIND)
    return "\n".join(lines)


def _sentence(error: InputError) -> str:
    """The error without the traceback that a DataLoader's process puts around it."""
    return str(error).rpartition(f"{InputError.__name__}: ")[2].strip()


def _short(path: Path) -> Path:
    """From where the user is, if it lies below."""
    try:
        return path.relative_to(Path.cwd())
    except (OSError, ValueError):
        return path


def _quiet() -> None:
    """Lightning's hints are for people who write Lightning."""
    for name in ("lightning", "lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)


def _is_first() -> bool:
    return int(os.environ.get("RANK", "0")) == 0
