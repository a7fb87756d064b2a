"""The loaders of a run: images to train on, in the order of their epoch, and those that are held out."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

from topkloss.app.data.dataset import Images, ImageTable, preparation
from topkloss.app.options.option import known
from topkloss.app.options.workers import workers_that_pay
from topkloss.app.tasks.images.config import TrainConfig
from topkloss.app.tasks.images.sampling import Drawn, Order, augmentation

__all__ = ["image_bytes", "loaders", "processes"]


def loaders(
    config: TrainConfig, table: ImageTable, train: list[int], held_out: list[int], model: nn.Module, done: int
) -> tuple[DataLoader[Any], DataLoader[Any]]:
    """To train from, and to measure by.

    Args:
        config: From `checked`, its size, mean and standard deviation filled in.
        table: Of the images.
        train, held_out: Which of them.
        model: That takes them.
        done: How many epochs were made.
    """
    size = known(config.image_size, "image-size")
    prepare = preparation(size, known(config.mean, "mean"), known(config.std, "std"))
    drawn = Images(table, train, augmentation(config.augment, size, prepare))
    measured = Images(table, held_out, prepare)
    rank = int(os.environ.get("RANK", "0"))
    order = Order(len(train), seed=config.seed, processes=processes(), rank=rank)
    order.set_epoch(done)  # the loader asks before Lightning tells
    size = config.batch_size * config.accumulate
    # a last batch of one image has no variance for batch normalisation to divide by
    normalised = any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())
    unfit = normalised and len(order) > size and len(order) % size == 1
    of_train: Any = Drawn(drawn, config.seed)
    workers = config.workers
    if workers is None:
        both = (size + config.batch_size) * image_bytes(known(config.image_size, "image-size"))
        workers = workers_that_pay(lambda place: of_train[done, place, True], len(train), config.epochs - done, both)
    settings: dict[str, Any] = {"num_workers": workers, "persistent_workers": workers > 0}

    def own_chance() -> torch.Generator:
        """A loader that draws from the common one shifts what the model draws."""
        return torch.Generator().manual_seed(config.seed)

    return (
        DataLoader(of_train, batch_size=size, sampler=order, drop_last=unfit, generator=own_chance(), **settings),
        DataLoader(measured, batch_size=config.batch_size, generator=own_chance(), **settings),
    )


def image_bytes(size: int) -> int:
    """Of a prepared image: three channels of four bytes."""
    return 12 * size * size


def processes() -> int:
    """How many train together."""
    return int(os.environ.get("WORLD_SIZE", "1"))
