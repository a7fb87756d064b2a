"""A data set of images, from a table or a folder to what a DataLoader serves: this is the door of that part."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from topkloss.app.data.decoding import (
    BadImage,
    Images,
    bad_sentence,
    decode_all,
    locate,
    preparation,
    read_header,
    suffixes,
)
from topkloss.app.data.examples import Example, ImageTable, classes_of, number
from topkloss.app.data.finding import Finder
from topkloss.app.data.folders import list_folder
from topkloss.app.data.layout import DataOptions, check_options
from topkloss.app.data.listing import Listing, Row, list_table
from topkloss.app.data.passed import passed_over
from topkloss.app.data.splits import check_parts, split
from topkloss.app.errors import InputError, Refuse, shown, stop

__all__ = [
    "DataOptions",
    "Example",
    "ImageTable",
    "Images",
    "data_path",
    "find",
    "list_data",
    "notes_on",
    "preparation",
    "read_table",
    "split",
]

AS_NAMED = DataOptions()


def data_path(data: str | None, options: DataOptions = AS_NAMED) -> Path:
    """Where a data set is: the embedded digits, written once, where none is named.

    Raises:
        InputError: If options say how a table is laid out that is not there.
    """
    if data is not None:
        return Path(data)
    check_options(None, options)
    from topkloss.app.data.digits import write_digits

    return write_digits()


def read_table(
    data: Path,
    options: DataOptions = AS_NAMED,
    *,
    skip_bad: bool = False,
    workers: int = 0,
    classes: Sequence[str] | None = None,
) -> ImageTable:
    """Reads a data set and checks each row, the size of each class, and each image.

    Args:
        data: A CSV, TSV or Parquet file, or a folder with one sub-folder per class.
        options: How it is laid out.
        skip_bad: Decode every image whole, and leave out those that cannot be used. Otherwise their headers are read,
            and the first bad one is an error.
        workers: Processes that decode; 0 for this one.
        classes: Names of the classes of a model, in order: each label must be among them. Default: those of the labels.

    Returns:
        The data set. Each image lies inside its folder; without `classes`, each class can be trained on and measured.

    Raises:
        InputError: One sentence with the file and the line.
    """
    listing, shades = list_data(data, options, stop), options.shades
    if classes is None:
        check_parts(listing, stop)
    else:
        _check_known(listing, classes)
        listing = replace(listing, order=tuple(classes))
    names, finder = classes_of(listing), Finder(listing.root, suffixes())
    if not skip_bad:
        found = list(find(listing, finder, stop, stop))
        for row, path in found:
            try:
                read_header(path, shades)
            except BadImage as bad:
                raise InputError(bad_sentence(listing, row.line, bad)) from bad
        return ImageTable(listing, names, number(listing, found), (), shades, notes_on(listing, finder))
    skipped: list[str] = []
    found = list(find(listing, finder, stop, skipped.append))
    good = []
    for (row, path), decoded in zip(found, decode_all([path for _, path in found], workers, shades), strict=True):
        if decoded.bad is None:
            good.append((row, path))
        else:
            skipped.append(bad_sentence(listing, row.line, decoded.bad))
    if classes is None:
        check_parts(replace(listing, rows=tuple(row for row, _ in good)), stop)
    return ImageTable(listing, names, number(listing, good), tuple(skipped), shades, notes_on(listing, finder))


def _check_known(listing: Listing, classes: Sequence[str]) -> None:
    """Each label is a class of the model."""
    known = set(classes)
    some = ", ".join(classes) if len(classes) <= 10 else f"{', '.join(classes[:9])} and {len(classes) - 9} others"
    for row in listing.rows:
        if row.label not in known:
            raise InputError(
                f"{listing.place(row.line)}: `label` must be a class of the model ({some}); got {row.label!r}. "
                "Correct the line or remove it."
            )


def list_data(data: Path, options: DataOptions, refuse: Refuse) -> Listing:
    """Lists a data set; its images are not opened.

    Args:
        data: See `read_table`.
        options: How it is laid out.
        refuse: Called with one sentence for each thing that is wrong; what it is wrong with is left out.

    Raises:
        InputError: One sentence, if nothing can be listed.
    """
    check_options(data, options)
    return list_folder(data, suffixes(), refuse) if os.path.isdir(data) else list_table(data, options, refuse)


def find(listing: Listing, finder: Finder, refuse: Refuse, bad: Refuse) -> Iterator[tuple[Row, Path]]:
    """The rows whose image is there, with its path.

    Args:
        listing: The data set.
        finder: Of its images.
        refuse: Called with one sentence for each image outside its folder.
        bad: Called with one sentence for each image that is not there.
    """
    for row in listing.rows:
        try:
            yield row, locate(listing, row.image, finder if listing.unit else None)
        except BadImage as error:
            bad(bad_sentence(listing, row.line, error))
        except InputError as error:
            refuse(f"{listing.place(row.line)}: {error}")


def notes_on(listing: Listing, finder: Finder) -> tuple[str, ...]:
    """A line for each thing that was passed over, or taken otherwise than it was written, once all was found."""
    alike: dict[str, list[str]] = {}
    for name in classes_of(listing):
        alike.setdefault(name.casefold(), []).append(name)
    cases = [
        f"classes that differ in letter case only: {shown(', '.join(names))}" for names in alike.values() if names[1:]
    ]
    over = passed_over(listing.passed)
    return (*([over] if over else []), *finder.notes(), *cases)
