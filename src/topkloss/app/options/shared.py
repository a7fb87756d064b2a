"""Options that more than one config has, each once: a call makes the field of one config."""

from __future__ import annotations

from typing import Any

from topkloss.app.options.devices import MEANING
from topkloss.app.options.option import option

__all__ = [
    "HELD_OUT",
    "class_weights",
    "csv",
    "device",
    "drop_fraction",
    "group_by",
    "held_out",
    "image_column",
    "image_suffix",
    "images",
    "label_column",
    "label_columns",
    "out",
    "pixel_range",
    "seed",
    "split_column",
    "split_seed",
    "workers",
]

HELD_OUT = 0.1


def csv(rest: str, shown: str | None = None) -> Any:
    """The table; ``rest`` is what it may be else, or what a row of it is."""
    return option(None, str, f"CSV, .tsv or .parquet, {rest}", shown=shown)


def images() -> Any:
    """The folder of the images."""
    return option(None, str, "folder that image paths start from", shown="default: that of the table")


def image_column() -> Any:
    """The column that leads to an image."""
    return option("image", str, "column of the paths")


def label_column(labels: str) -> Any:
    """The column of what is learned: classes, or labels."""
    return option("label", str, f"column of the {labels}")


def label_columns() -> Any:
    """The columns of the classes, where each has one."""
    return option(None, str, "one column per class instead, one of them 1 in each row", many=True)


def image_suffix() -> Any:
    """The end of a path that is written without it."""
    return option("", str, "appended to paths that do not end in it, e.g. .jpg")


def split_column() -> Any:
    """The column that parts the rows."""
    return option(
        None, str, "column that says train, held_out (or val) or test", shown="default: split, if there is one"
    )


def group_by() -> Any:
    """The column of groups that are not parted."""
    return option(None, str, "column whose values stay together in the split, e.g. patient")


def held_out() -> Any:
    """The share that is measured on."""
    return option(HELD_OUT, float, "share that is held out where no row says which, in (0, 1)")


def pixel_range() -> Any:
    """What is black and what is white in files of more than 8 bits."""
    text = "two numbers of the image files, black and white, as 0 65535: needed beyond 8 bits per channel"
    return option(None, float, text, many=True)


def class_weights(unit: str) -> Any:
    """The mass of a class; ``unit`` is what is counted."""
    text = f"mass of a class: 1, or inversely proportional to its number of {unit}"
    return option("none", str, text, ("none", "balanced"))


def drop_fraction(whole: str, rest: str, shown: str) -> Any:
    """The share that is dropped of ``whole``; ``rest`` says when."""
    return option(None, float, f"share of {whole}, the largest losses, that {rest}", shown=shown)


def seed(decides: str) -> Any:
    """The number that all chance begins with."""
    return option(0, int, f"decides {decides}", least=0)


def device() -> Any:
    """What computes."""
    return option("auto", str, MEANING)


def workers() -> Any:
    """How many processes load."""
    shown = "default: one per core, at most 4; none where loading is a matter of seconds"
    return option(None, int, "processes that load images", shown=shown, least=0)


def split_seed() -> Any:
    """The number that the chance of the split begins with."""
    return option(None, int, "decides which are held out", shown="default: --seed", least=0)


def out() -> Any:
    """The folder of the run."""
    return option(None, str, "folder of the run, new (default: one under runs/)")
