"""Chance as a function of (seed, epoch, place): a run that is taken up again draws what it would have drawn.

Nothing is left in a random state from one epoch to the next: each epoch is seeded anew, and each image of it, so that
neither the number of loading processes nor that of training processes changes what is drawn.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler
from torchvision.transforms import v2

__all__ = ["Chosen", "Drawn", "Order", "augmentation", "derived"]

# What an `Order` yields and a `Drawn` takes: the epoch, the place of an image, and whether it counts.
Chosen = tuple[int, int, bool]


def derived(seed: int, *places: int) -> int:
    """A seed below 2^32 for a place, unlike those of all others.

    Example:
        >>> derived(0, 1) == derived(0, 1), derived(0, 1) == derived(1, 0)
        (True, False)
    """
    text = "/".join(map(str, (seed, *places)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "little")


class Order(Sampler[Chosen]):
    """The images of an epoch in a random order, dealt out to the processes in turn.

    The batches of all processes together are those of one process with the batch size of all. Where the images do not
    divide evenly the first are dealt once more, and do not count.

    Args:
        images: How many.
        seed: Of the run.
        processes, rank: How many train together, and which this is.
    """

    def __init__(self, images: int, *, seed: int, processes: int = 1, rank: int = 0) -> None:
        self.images, self.seed, self.processes, self.rank = images, seed, processes, rank
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning; the first is 0."""
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-self.images // self.processes)

    def __iter__(self) -> Iterator[Chosen]:
        chance = torch.Generator().manual_seed(derived(self.seed, self.epoch))
        order = torch.randperm(self.images, generator=chance).tolist()
        for turn in range(self.rank, len(self) * self.processes, self.processes):
            yield self.epoch, order[turn % self.images], turn < self.images


class Drawn(Dataset[tuple[Tensor, int, bool]]):
    """Images whose random preparation is drawn anew in each epoch, the same wherever it is drawn.

    Args:
        images: Yields an image and its label by its place.
        seed: Of the run.
    """

    def __init__(self, images: Dataset[tuple[Tensor, int]], seed: int) -> None:
        self.images, self.seed = images, seed

    def __getitem__(self, chosen: Chosen) -> tuple[Tensor, int, bool]:
        epoch, place, counts = chosen
        state = torch.get_rng_state()
        torch.default_generator.manual_seed(derived(self.seed, epoch, place))
        try:
            image, label = self.images[place]
        finally:
            torch.set_rng_state(state)
        return image, label, counts


def augmentation(name: str, size: int, prepare: v2.Transform) -> v2.Transform:
    """From a PIL image to a prepared tensor, by chance: torchvision's transforms before, and after, what is certain.

    Args:
        name: "none", "light" or "strong".
        size: Height and width of the prepared images.
        prepare: What is done without chance.
    """
    if name == "none":
        return prepare
    if name == "light":
        moved = v2.RandomAffine(10, translate=(0.1, 0.1), scale=(0.9, 1.1), interpolation=v2.InterpolationMode.BILINEAR)
        return v2.Compose([moved, v2.ColorJitter(0.1, 0.1), prepare])
    cropped = v2.RandomResizedCrop((size, size), scale=(0.35, 1.0), antialias=True)
    return v2.Compose(
        [cropped, v2.RandomHorizontalFlip(), v2.TrivialAugmentWide(), prepare, v2.RandomErasing(p=0.25, value=0)]
    )
