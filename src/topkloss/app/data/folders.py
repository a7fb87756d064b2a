"""A folder of images: a sub-folder per class, or such sub-folders under train, val and test."""

from __future__ import annotations

import hashlib
import os
import unicodedata
from collections import Counter
from pathlib import Path

from topkloss.app.data.listing import PARTS, Listing, Row
from topkloss.app.data.passed import counted_kinds, is_hidden, kind_of, walked
from topkloss.app.errors import InputError, Refuse, shown

__all__ = ["list_folder"]

# What else others call a part, without what is no letter; `PARTS` are those that are read as parts.
UNREAD = {"dev", "development", "eval", "evaluation", "holdout", "testing"}
NAMES = {name.replace("_", "") for name in PARTS} | UNREAD


def list_folder(folder: Path, suffixes: frozenset[str], refuse: Refuse) -> Listing:
    """Lists the images of each class, at any depth; hidden files and files of other suffixes are none.

    Args:
        folder: Each sub-folder is a class; or each is a part, by a name that a split column may say (train, val,
            test), and each of its sub-folders a class.
        suffixes: Of images, in small letters.
        refuse: Called with one sentence for each class without images and each image in no class.

    Raises:
        InputError: One sentence, if the folder holds no classes.
    """
    try:
        parts = {name: PARTS.get(name.lower()) for name in _folders(folder)}
        rows: list[Row] = []
        passed: Counter[str] = Counter()
        if parts and all(parts.values()):
            _strays(folder, suffixes, refuse, passed)
            for name, part in parts.items():
                rows += _classes(folder, folder / name, part, suffixes, refuse, passed)
        else:
            rows += _classes(folder, folder, None, suffixes, refuse, passed)
        digest = hashlib.sha256()
        for image in sorted(row.image for row in rows):
            digest.update(os.fsencode(image) + b"\0%d\0" % (folder / image).lstat().st_size)
    except OSError as error:
        raise InputError(
            f"{shown(folder)} must be a folder that can be read; got {error.strerror} at {shown(error.filename)}. "
            "Allow it, or pass another."
        ) from error
    return Listing(folder, digest.hexdigest(), "", folder.resolve(), tuple(rows), None, passed)


def _folders(folder: Path) -> list[str]:
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir() and not is_hidden(entry.name))


def _classes(
    root: Path, folder: Path, part: str | None, suffixes: frozenset[str], refuse: Refuse, passed: Counter[str]
) -> list[Row]:
    """The images of the classes whose folders are in a folder."""
    labels = _folders(folder)
    if not labels:
        raise InputError(
            f"{shown(folder)} must hold a folder for each class; got no folder. Pass a table, or sort the images."
        )
    _strays(folder, suffixes, refuse, passed)
    rows = []
    for label in labels:
        if not label.isprintable():
            refuse(f"{shown(folder)}: a class must have a printable name; got {label!r}. Rename the folder.")
            continue
        if mistaken := _mistaken(folder / label, suffixes):
            refuse(mistaken)
            continue
        others: Counter[str] = Counter()
        images = _images(folder / label, suffixes, others)
        passed.update(others)
        if not images:
            got = f", but {counted_kinds(others)}" if others else ""
            refuse(
                f"{shown(folder / label)}: a class must have images; got a folder without any{got}. "
                "Add some or remove the folder."
            )
        name = unicodedata.normalize("NFC", label)  # a Mac's and a Linux's é are one
        rows += [Row(0, os.path.relpath(image, root), name, None, part) for image in images]
    return rows


def _mistaken(folder: Path, suffixes: frozenset[str]) -> str:
    """Why the folder of a class, which holds folders and no images itself, is none: it, or all in it, are parts."""
    inside = _folders(folder)
    if not inside or any(_is_image(name, suffixes) for name in os.listdir(folder)):
        return ""
    if _names_a_part(folder.name):
        return (
            f"{shown(folder)}: a class must hold images; got folders only, under the name of a part. Name every folder "
            "beside it train, val or test, or, if it is a class, rename it."
        )
    if all(map(_names_a_part, inside)):
        return (
            f"{shown(folder)}: parts must lie around the classes; got {shown(', '.join(inside))} inside of a class. "
            f"Move them, as to {shown(Path(inside[0], folder.name))}, or, if they are no parts, rename them."
        )
    return ""


def _names_a_part(name: str) -> bool:
    """Whether a folder seems to be a part: dev, Test_Set, train2017."""
    letters = "".join(filter(str.isalpha, name.lower()))
    return letters in NAMES or letters.removesuffix("set") in NAMES


def _images(folder: Path, suffixes: frozenset[str], passed: Counter[str]) -> list[str]:
    """Paths of the images below a folder, sorted; what else there is, is counted."""
    found: list[str] = []

    def fail(error: OSError) -> None:
        raise error

    for above, files in walked(folder, passed, fail):
        found += [os.path.join(above, name) for name in files if _is_image(name, suffixes)]
        passed.update(kind_of(name) for name in files if not _is_image(name, suffixes))
    return sorted(found)


def _strays(folder: Path, suffixes: frozenset[str], refuse: Refuse, passed: Counter[str]) -> None:
    with os.scandir(folder) as entries:
        files = sorted(entry.name for entry in entries if entry.is_file())
    strays = [name for name in files if _is_image(name, suffixes)]
    passed.update(kind_of(name) for name in files if not _is_image(name, suffixes))
    for name in strays:
        refuse(
            f"{shown(folder / name)}: an image must lie in the folder of its class; got it beside them. "
            "Move it or remove it."
        )


def _is_image(name: str, suffixes: frozenset[str]) -> bool:
    return not is_hidden(name) and os.path.splitext(name)[1].lower() in suffixes
