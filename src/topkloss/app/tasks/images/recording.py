"""What a run says of each of its images: the loss of all, and of those held out what a report compares runs by."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from topkloss.app.data.dataset import Images, ImageTable, preparation
from topkloss.app.options.option import known
from topkloss.app.options.workers import workers_that_pay
from topkloss.app.progress import counted
from topkloss.app.runs.cells import name_in
from topkloss.app.runs.files import replacing
from topkloss.app.runs.held_out import MODEL, HeldOut, Outputs, example
from topkloss.app.tasks.images.config import TrainConfig
from topkloss.app.tasks.images.loaders import image_bytes
from topkloss.app.tasks.images.records import LOSSES

__all__ = ["held_out_of", "write_examples"]

COLUMNS = ("image", "part", "label", "prediction", "loss")


def write_examples(
    folder: Path,
    config: TrainConfig,
    table: ImageTable,
    *,
    train: Sequence[int],
    held_out: Sequence[int],
    model: nn.Module,
) -> None:
    """Passes every image through the model once, and writes ``losses.csv`` and ``held_out.csv``.

    Of images of which one's logits are not finite there is no ``held_out.csv``.

    Args:
        folder: Of the run.
        config: From `checked`, its size, mean and standard deviation filled in.
        table: Of the images.
        train, held_out: Places in it.
        model: With the weights that the run ends with, in evaluation mode.
    """
    parts = [("train", place) for place in train] + [("held_out", place) for place in held_out]
    rows = counted(_logits(config, table, [place for _, place in parts], model), len(parts), "measured")
    kept: list[Tensor] = []
    with (
        replacing(folder / LOSSES) as partial,
        partial.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file,
    ):
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for (part, place), logits in zip(parts, rows, strict=True):
            one = table.examples[place]
            loss = float(F.cross_entropy(logits, torch.tensor(one.label)))
            names = one.path.relative_to(table.listing.root), part, table.classes[one.label]
            writer.writerow([*map(name_in, names), name_in(table.classes[int(logits.argmax())]), f"{loss:.7g}"])
            kept += [logits] if part == "held_out" else []
    if all(bool(logits.isfinite().all()) for logits in kept):
        held_out_of(table, held_out, torch.stack(kept)).write(folder)


def held_out_of(table: ImageTable, places: Sequence[int], logits: Tensor) -> HeldOut:
    """The held-out images, each known by its bytes and its class, with their probabilities.

    Args:
        table: The data set.
        places: Of the images in it.
        logits: Of them, shape (N, C), float64.
    """
    examples = [table.examples[place] for place in places]
    labels = torch.tensor([one.label for one in examples])
    losses = F.cross_entropy(logits, labels, reduction="none")
    names = [table.classes[one.label] for one in examples]
    return HeldOut(
        examples=tuple(example(one.path.read_bytes(), name) for one, name in zip(examples, names, strict=True)),
        names=tuple(str(one.path.relative_to(table.listing.root)) for one in examples),
        labels=tuple(names),
        classes=table.classes,
        models={
            MODEL: Outputs(
                predictions=tuple(table.classes[place] for place in logits.argmax(1).tolist()),
                losses=tuple(losses.tolist()),
                scores=tuple(map(tuple, logits.softmax(1).tolist())),
            )
        },
    )


def _logits(config: TrainConfig, table: ImageTable, places: Sequence[int], model: nn.Module) -> Iterator[Tensor]:
    """Those of each image, float64 on the CPU."""
    size = known(config.image_size, "image-size")
    prepare = preparation(size, known(config.mean, "mean"), known(config.std, "std"))
    images, workers = Images(table, places, prepare), config.workers
    if workers is None:
        workers = workers_that_pay(images.__getitem__, len(places), 1, config.batch_size * image_bytes(size))
    device = next(model.parameters()).device
    loader: DataLoader[Any] = DataLoader(images, batch_size=config.batch_size, num_workers=workers)
    for batch, _ in loader:
        with torch.inference_mode():
            yield from model(batch.to(device)).double().cpu()
