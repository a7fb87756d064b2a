"""How far something long is: a bar with the time left on a terminal, plain lines elsewhere, on standard error."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

__all__ = ["counted", "duration", "noted"]

T = TypeVar("T")

# Between two lines, where there is no terminal.
SECONDS = 10.0


def duration(seconds: float) -> str:
    """A length of time, as roughly as one wants to know it.

    Example:
        >>> [duration(seconds) for seconds in (0.4, 59.7, 3599, 3700, 200_000)]
        ['0 s', '1 min', '1 h', '1 h 2 min', '55 h 33 min']
    """
    if seconds < 59.5:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return " ".join([*([f"{hours} h"] if hours else []), *([f"{minutes} min"] if minutes else [])])


def counted(images: Iterable[T], total: int, done: str) -> Iterator[T]:
    """Passes on what is made of each image, and shows how many there were.

    Args:
        images: What is made of each image, as it comes.
        total: How many there will be.
        done: What has happened to each, in a word.
    """
    if sys.stderr.isatty():
        yield from tqdm(images, total=total, desc=done, unit="image", leave=False)
        return
    last = time.monotonic()
    for number, image in enumerate(images, 1):
        if time.monotonic() - last >= SECONDS:
            last = time.monotonic()
            print(f"{done} {number} of {total} images", file=sys.stderr, flush=True)
        yield image


def noted(sentence: str) -> None:
    """Says a sentence, if it is one, on standard error."""
    if sentence:
        print(f"topkloss: {sentence}", file=sys.stderr, flush=True)
