"""How far something long is: a bar with the time left on a terminal, plain lines elsewhere, on standard error."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

__all__ = ["counted"]

T = TypeVar("T")

# Fewer images than these are done before anybody wonders; of more, elsewhere than on a terminal, each tenth is told.
MANY = 1000
LINES = 10


def counted(images: Iterable[T], total: int, done: str) -> Iterator[T]:
    """The same, while it shows how many of them there were.

    Args:
        images: What is made of each image, as it comes.
        total: How many there will be.
        done: What has happened to each, in a word.
    """
    if sys.stderr.isatty():
        yield from tqdm(images, total=total, desc=done, unit="image", leave=False)
        return
    told = 0
    for number, image in enumerate(images, 1):
        if total >= MANY and number * LINES // total > told:
            told = number * LINES // total
            print(f"{done} {number} of {total} images", file=sys.stderr, flush=True)
        yield image  # last, for nobody may ask for one after it
