"""One run, from a `TrainConfig` to a folder with weights and metrics; and the same run, taken up again."""

from __future__ import annotations

import importlib.util
import logging
import os
import platform
import sys
import warnings
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.loggers import TensorBoardLogger
from torch import nn
from torch.utils.data import DataLoader

import topkloss
from topkloss.app.data.dataset import Images, ImageTable, preparation, split
from topkloss.app.data.examples import imbalance, too_uneven
from topkloss.app.errors import DiskError, InputError, in_command
from topkloss.app.options.option import known
from topkloss.app.tasks.images.callbacks import Clock, Lines, Seeding, Stopping, is_over
from topkloss.app.tasks.images.checkpoints import (
    CHECKPOINT,
    Saving,
    WholeFiles,
    alone,
    created,
    disk,
    emptied,
    load,
    write_weights,
)
from topkloss.app.tasks.images.config import FREE, TrainConfig, checked
from topkloss.app.tasks.images.criterion import create_criterion
from topkloss.app.tasks.images.models import check_takes, colours, create_model, load_weights, own_size
from topkloss.app.tasks.images.module import ImageClassifier, Progress
from topkloss.app.tasks.images.recording import write_held_out
from topkloss.app.tasks.images.records import RunHeader, RunRecord
from topkloss.app.tasks.images.sampling import Drawn, Order, augmentation
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
        with disk(folder, "config.yaml"):
            if _is_first():
                run.header.write(folder)
        return _trained(run, folder, None)
    except InputError as error:
        if _is_first() and not isinstance(error, DiskError) and not (folder / CHECKPOINT).exists():
            emptied(folder, keep=existed)
        raise


def resume(folder: Path, changes: Mapping[str, Any] | None = None) -> RunRecord:
    """Goes on after the last whole epoch, to the same weights as if nothing had happened; a finished run is left alone.

    Args:
        folder: Of the run.
        changes: Fields of the config given anew: where the data are, and what changes no number.

    Returns:
        The record, as it stands in the folder.

    Raises:
        InputError: If the folder holds no run, the data differ, or a change would change the numbers.
        KeyboardInterrupt: See `fit`.
    """
    header = RunHeader.read(folder)
    if (folder / "metrics.json").exists():
        if _is_first():
            print(f"{folder} is a finished run: there is nothing to resume.")
        return RunRecord.read(folder)
    config = checked(replace(header.config, **_allowed(header.config, changes or {}), out=str(folder)))
    checkpoint = load(folder)
    run = _prepare(config, fresh=checkpoint is None)
    _check_same(folder, header, run.header)
    return _trained(run, folder.absolute(), checkpoint)


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
        processes=_processes(),
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


def _trained(run: Prepared, folder: Path, checkpoint: dict[str, Any] | None) -> RunRecord:
    """Trains what is left, and finishes the folder."""
    config = run.header.config
    if _is_first():
        print(_summary(run), flush=True)
    progress = Progress() if checkpoint is None else Progress.of(checkpoint["progress"])
    done = len(progress.epochs)
    if not _is_first():
        progress = _train(run, folder, done)
        return _record(run, progress)
    try:
        with alone(folder):
            if not is_over(progress.epochs, config.epochs, config.early_stopping):
                progress = _train(run, folder, done)
            final = load(folder)
            if final is None:
                raise DiskError(f"{folder} must have the checkpoint of its last epoch; got none. Train again.")
            write_weights(folder, final)
            write_held_out(folder, config, run.table, run.held_out, run.model)
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
    )


def _train(run: Prepared, folder: Path, done: int) -> Progress:
    """The epochs after the first ``done``."""
    config = run.header.config
    train, held_out = _loaders(run, done)
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
            trainer.fit(task, train, held_out, ckpt_path=checkpoint, weights_only=True)
        except DiskError:
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


def _how_to_go_on(folder: Path) -> str:
    saved = load(folder)
    epochs = 0 if saved is None else len(saved["progress"]["epochs"])
    kept = f"{epochs} epoch{'' if epochs == 1 else 's'} saved" if epochs else "no epoch was over"
    return f"{kept}; `topkloss train --resume {in_command(_short(folder))}` continues."


def _trainer(config: TrainConfig, folder: Path) -> lightning.Trainer:
    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    bar = [TQDMProgressBar(leave=False)] if sys.stderr.isatty() else []
    return lightning.Trainer(
        max_epochs=config.epochs,
        devices=local,
        num_nodes=_processes() // local,
        strategy="ddp" if _processes() > 1 else "auto",
        accelerator="auto" if torch.cuda.is_available() else "cpu",
        precision=config.precision,
        plugins=[WholeFiles()],
        callbacks=[Seeding(config.seed), Clock(), Stopping(config.early_stopping), Saving(folder), Lines(), *bar],
        deterministic="warn",
        logger=TensorBoardLogger(folder, name="", version="tensorboard") if config.log == "tensorboard" else False,
        enable_model_summary=False,
        enable_progress_bar=sys.stderr.isatty(),
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
    )


def _loaders(run: Prepared, done: int) -> tuple[DataLoader[Any], DataLoader[Any]]:
    config = run.header.config
    size = known(config.image_size, "image-size")
    prepare = preparation(size, known(config.mean, "mean"), known(config.std, "std"))
    drawn = Images(run.table, run.train, augmentation(config.augment, size, prepare))
    measured = Images(run.table, run.held_out, prepare)
    rank = int(os.environ.get("RANK", "0"))
    order = Order(len(run.train), seed=config.seed, processes=_processes(), rank=rank)
    order.set_epoch(done)  # the loader asks before Lightning tells
    size = config.batch_size * config.accumulate
    # a last batch of one image has no variance for batch normalisation to divide by
    normalised = any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in run.model.modules())
    unfit = normalised and len(order) > size and len(order) % size == 1
    settings: dict[str, Any] = {"num_workers": config.workers, "persistent_workers": config.workers > 0}

    def own_chance() -> torch.Generator:
        """A loader that draws from the common one shifts what the model draws."""
        return torch.Generator().manual_seed(config.seed)

    train: Any = Drawn(drawn, config.seed)
    return (
        DataLoader(train, batch_size=size, sampler=order, drop_last=unfit, generator=own_chance(), **settings),
        DataLoader(measured, batch_size=config.batch_size, generator=own_chance(), **settings),
    )


def _check_machine(config: TrainConfig) -> None:
    if config.precision == "16-mixed" and not torch.cuda.is_available():
        raise InputError(
            "`--precision` must be 32 or bf16-mixed without a GPU; got 16-mixed. Pass --precision bf16-mixed."
        )
    if config.log == "tensorboard" and importlib.util.find_spec("tensorboard") is None:
        raise ModuleNotFoundError("No module named 'tensorboard'", name="tensorboard")
    if config.skip_easy and config.accumulate > 1 and _processes() > 1:
        raise InputError(
            "`--accumulate` must be 1 with --skip-easy in several processes, which would select unlike numbers of "
            f"images; got {config.accumulate}. Leave one of them out."
        )


def _allowed(config: TrainConfig, changes: Mapping[str, Any]) -> dict[str, Any]:
    """What may be given anew; the rest must be as it was."""
    asked = replace(config, **changes)
    for name in changes:
        was, value = getattr(config, name), getattr(asked, name)
        if name not in FREE and value != was:
            word = name.replace("_", "-")
            raise InputError(
                f"`--{word}` must be that of the run, {was}, for its numbers depend on it; got {value}. "
                "Leave it out, or train anew with another --out."
            )
    return {name: value for name, value in changes.items() if name in FREE}


def _check_same(folder: Path, header: RunHeader, now: RunHeader) -> None:
    """The data and the number of processes decide the numbers; versions and threads their last digits."""
    if header.data != now.data:
        differ = next(name for name in header.data if header.data[name] != now.data.get(name))
        raise InputError(
            f"`--resume` must find the data of the run; got others, which differ in {differ!r} of config.yaml. "
            "Put them back, or train anew with another --out."
        )
    if header.processes != now.processes:
        raise InputError(
            f"`--resume` must run in {header.processes} process{'' if header.processes == 1 else 'es'}, as the run "
            f"did; got {now.processes}. Start so many by torchrun."
        )
    changed = [f"{name} {was}" for name, was in header.versions.items() if now.versions.get(name) != was]
    changed += [f"{header.threads} threads"] if header.threads != now.threads else []
    if changed and _is_first():
        print(
            f"topkloss: {folder} was begun with {', '.join(changed)}: the last digits may differ from an uninterrupted "
            "run's.",
            file=sys.stderr,
        )


def _summary(run: Prepared) -> str:
    """What was left out, how much there is, how uneven the classes are."""
    table, lines = run.table, []
    if table.skipped:
        listed = len(table.skipped) + len(table.examples)
        first = "" if len(table.skipped) <= FEW else f"; the first {FEW}"
        lines = [f"left out {len(table.skipped)} of {listed} images{first}:", *table.skipped[:FEW]]
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


def _processes() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def _is_first() -> bool:
    return int(os.environ.get("RANK", "0")) == 0
