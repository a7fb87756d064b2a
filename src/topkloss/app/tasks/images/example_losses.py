"""The loss of every image of a run, trained on or held out, by the weights that it ends with: ``losses.csv``."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from topkloss.app.data.dataset import Images, ImageTable, preparation
from topkloss.app.options.option import known
from topkloss.app.options.workers import workers_that_pay
from topkloss.app.progress import counted
from topkloss.app.runs.files import replacing
from topkloss.app.tasks.images.config import TrainConfig
from topkloss.app.tasks.images.loaders import image_bytes

__all__ = ["write_losses"]

COLUMNS = ("image", "part", "label", "prediction", "loss")


def write_losses(
    path: Path, config: TrainConfig, table: ImageTable, parts: Mapping[str, Sequence[int]], model: nn.Module
) -> None:
    """A line for each image: where it is, its part, its class, what is predicted, its cross-entropy in nats.

    Args:
        path: Of the file, which appears when all is done.
        config: From `checked`, its size, mean and standard deviation filled in.
        table: Of the images.
        parts: Which of them are in each part.
        model: In evaluation mode.
    """
    examples = [(part, place) for part, places in parts.items() for place in places]
    measured = _measured(config, table, [place for _, place in examples], model)
    with replacing(path) as partial, partial.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        shown = counted(measured, len(examples), "measured")
        for (part, place), (predicted, loss) in zip(examples, shown, strict=True):
            example = table.examples[place]
            image = example.path.relative_to(table.listing.root)
            writer.writerow([image, part, table.classes[example.label], table.classes[predicted], f"{loss:.7g}"])


def _measured(
    config: TrainConfig, table: ImageTable, places: Sequence[int], model: nn.Module
) -> Iterator[tuple[int, float]]:
    """What is predicted for each image, and its loss."""
    size = known(config.image_size, "image-size")
    prepare = preparation(size, known(config.mean, "mean"), known(config.std, "std"))
    images, workers = Images(table, places, prepare), config.workers
    if workers is None:
        workers = workers_that_pay(images.__getitem__, len(places), 1, config.batch_size * image_bytes(size))
    device = next(model.parameters()).device
    loader: DataLoader[Any] = DataLoader(images, batch_size=config.batch_size, num_workers=workers)
    for batch, labels in loader:
        with torch.inference_mode():
            logits = model(batch.to(device)).double().cpu()
        losses = F.cross_entropy(logits, labels, reduction="none")
        yield from zip(logits.argmax(1).tolist(), losses.tolist(), strict=True)
