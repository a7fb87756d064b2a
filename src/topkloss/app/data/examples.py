"""What a data set is once it is checked: classes, and examples that know where they were listed."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from topkloss.app.data.listing import Listing, Row

__all__ = ["Example", "ImageTable", "classes_of", "imbalance", "number", "numerically", "too_uneven"]


# Beyond this ratio of the largest class to the smallest, accuracy is nearly that of the large ones.
UNEVEN = 10


@dataclass(frozen=True)
class Example:
    """A listed image.

    Attributes:
        path: Of the image.
        label: Index into the classes.
        line: Where the table names it, from 1; 0 in a folder.
        group: What must not be in two parts; None where nothing is grouped.
        part: "train", "held_out" or "test"; None where nothing says which.
    """

    path: Path
    label: int
    line: int
    group: str | None = None
    part: str | None = None


@dataclass(frozen=True)
class ImageTable:
    """A checked data set.

    Attributes:
        listing: Where it was read from.
        classes: Names of the classes: in the order of the label columns, otherwise numbers by value, then words.
        examples: In the order of the listing.
        skipped: A sentence for each image that was left out.
        pixel_range: The numbers of the files that are black and white; None for 8 bits as they are.
        notes: A line for each thing that was taken otherwise than it was written, or passed over.
    """

    listing: Listing
    classes: tuple[str, ...]
    examples: tuple[Example, ...]
    skipped: tuple[str, ...] = ()
    pixel_range: tuple[float, float] | None = None
    notes: tuple[str, ...] = ()

    @property
    def digest(self) -> str:
        """SHA-256 of the table; of a folder, of its sorted paths and sizes."""
        return self.listing.digest

    def digest_of(self, indices: Sequence[int]) -> str:
        """SHA-256 of the data set and of which of its images these are: the same metrics are measured on the same."""
        whole = hashlib.sha256(self.digest.encode())
        for index in sorted(indices):
            example = self.examples[index]
            whole.update(b"\0%d\0" % example.label + os.fsencode(example.path.relative_to(self.listing.root)))
        return whole.hexdigest()

    def digest_of_sizes(self) -> str:
        """SHA-256 of the sizes of the image files, in order: other images at the same paths are noticed."""
        sizes = ",".join(str(example.path.stat().st_size) for example in self.examples)
        return hashlib.sha256(sizes.encode()).hexdigest()


def classes_of(listing: Listing) -> tuple[str, ...]:
    """Names of the classes, in order."""
    return listing.order or tuple(sorted({row.label for row in listing.rows}, key=numerically))


def number(listing: Listing, found: Iterable[tuple[Row, Path]]) -> tuple[Example, ...]:
    """Examples of rows whose images were found."""
    index = {name: number for number, name in enumerate(classes_of(listing))}
    return tuple(Example(path, index[row.label], row.line, row.group, row.part) for row, path in found)


def imbalance(counts: Mapping[str, int]) -> str:
    """How uneven the classes are.

    Args:
        counts: Images of each class.

    Example:
        >>> imbalance({"cat": 90, "dog": 10})
        'imbalance 9: from 10 images of dog to 90 of cat'
        >>> imbalance({"cat": 50, "dog": 50})
        'imbalance 1: 50 images of each class'
    """
    smallest, largest = min(counts, key=counts.__getitem__), max(counts, key=counts.__getitem__)
    if counts[smallest] == counts[largest]:
        return f"imbalance 1: {counts[smallest]} images of each class"
    ratio = f"{counts[largest] / counts[smallest]:.3g}" if counts[smallest] else "infinite"
    return f"imbalance {ratio}: from {counts[smallest]} images of {smallest} to {counts[largest]} of {largest}"


def too_uneven(counts: Mapping[str, int]) -> bool:
    """Whether classes are so uneven, by more than `UNEVEN` to 1, that accuracy hardly sees the rare ones.

    Args:
        counts: Examples of each class.

    Example:
        >>> too_uneven({"cat": 100, "dog": 10}), too_uneven({"cat": 101, "dog": 10}), too_uneven({})
        (False, True, False)
    """
    return bool(counts) and max(counts.values()) > UNEVEN * min(counts.values())


def numerically(label: str) -> tuple[int, float, str]:
    """The place of a class in the order of all: numbers first, by value; then words, "nan" among them.

    Example:
        >>> sorted(["nan", "b", "10", "9"], key=numerically)
        ['9', '10', 'b', 'nan']
    """
    try:
        value = float(label)
    except ValueError:
        value = math.nan
    return (1, 0.0, label) if math.isnan(value) else (0, value, label)
