"""A table of images: CSV, TSV or Parquet, its columns named by options, each row checked; no image is opened here."""

from __future__ import annotations

import hashlib
import mimetypes
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from topkloss.app.data.layout import DataOptions
from topkloss.app.data.reader import Reader, open_reader
from topkloss.app.errors import InputError, Refuse, shown

__all__ = ["PARTS", "SPLIT", "Listing", "Row", "content_of", "list_table"]

# What the split column may say, and the part that it means.
PARTS = {
    "train": "train",
    "training": "train",
    "held_out": "held_out",
    "val": "held_out",
    "valid": "held_out",
    "validation": "held_out",
    "test": "test",
}
SPLIT = "split"
ONES = {"1": True, "1.0": True, "true": True, "0": False, "0.0": False, "false": False}


@dataclass(frozen=True)
class Row:
    """An image as it is listed.

    Attributes:
        line: Where, from 1; 0 in a folder.
        image: Its path, from the root.
        label: Its class.
        group: What the column of the groups says; None where there is none.
        part: "train", "held_out" or "test"; None where nothing says which.
    """

    line: int
    image: str
    label: str
    group: str | None = None
    part: str | None = None


@dataclass(frozen=True)
class Listing:
    """A data set before its images are looked at.

    Attributes:
        source: The table or the folder.
        digest: SHA-256 of the bytes of the table; in a folder, of the sorted paths and sizes.
        unit: What `Row.line` counts: "line", "row" of a Parquet file, "" in a folder.
        root: The folder that must hold every image, resolved.
        rows: In order.
        order: The classes as the user put them; None for the order of their names.
        passed: How many files of a folder were passed over, by suffix, and how many links to folders.
    """

    source: Path
    digest: str
    unit: str
    root: Path
    rows: tuple[Row, ...]
    order: tuple[str, ...] | None = None
    passed: Mapping[str, int] = field(default_factory=dict)

    def place(self, line: int) -> str:
        """The beginning of a sentence about a row."""
        return f"{shown(self.source)}, {self.unit} {line}" if self.unit else shown(self.source)

    @property
    def removal(self) -> str:
        """The last way out of a bad row."""
        return f"remove the {self.unit or 'file'}"


@dataclass(frozen=True)
class _Columns:
    image: str
    labels: tuple[str, ...]
    split: str | None
    group: str | None

    @property
    def names(self) -> list[str]:
        every = (self.image, *self.labels, self.split, self.group)
        return list(dict.fromkeys(name for name in every if name is not None))


def list_table(table: Path, options: DataOptions, refuse: Refuse) -> Listing:
    """Reads a table and checks each row.

    Args:
        table: CSV, TSV or Parquet (see `open_reader`). Columns that no option names are allowed.
        options: Which columns are which.
        refuse: Called with one sentence for each row that cannot be used, which is then left out.

    Raises:
        InputError: One sentence, if the table as a whole cannot be used.
    """
    root = Path(table.parent if options.images is None else options.images).resolve()
    if not root.is_dir():
        raise InputError(
            f"`--images` must be a folder; got {shown(root)}, which is none. Pass the folder of the images."
        )
    content = content_of(table)
    reader = open_reader(table, content)
    _check_names(reader, root, options)
    columns = _columns(reader, options)
    listing = Listing(
        table,
        hashlib.sha256(content).hexdigest(),
        reader.unit,
        root,
        (),
        None if options.label_columns is None else tuple(options.label_columns),
    )
    rows, any_row = [], False
    for line, values in reader.read(columns.names, refuse):
        any_row = True
        row = _row(listing, line, dict(zip(columns.names, values, strict=True)), columns, options, refuse)
        if row is not None:
            rows.append(row)
    if not any_row:
        raise InputError(
            f"{listing.place(1 if reader.unit == 'row' else 2)}: there must be an example; "
            "got the names of the columns only. Add images."
        )
    return replace(listing, rows=tuple(rows))


def content_of(table: Path, columns: str = "the columns image,label") -> bytes:
    """The bytes of a file.

    Args:
        table: Its path.
        columns: That it should have, for a sentence.

    Raises:
        InputError: One sentence, if it is none or cannot be read.
    """
    if os.path.exists(table) and not os.path.isfile(table) and not os.path.isdir(table):  # a pipe would wait for ever
        raise InputError(f"{shown(table)} must be a file or a folder; got neither. Pass a CSV file.")
    try:
        return table.read_bytes()
    except (OSError, ValueError) as error:
        raise InputError(
            f"{shown(table)} must be a CSV file in UTF-8; got {getattr(error, 'strerror', None) or error}. "
            f"Pass a file with {columns}."
        ) from error


def _check_names(reader: Reader, root: Path, options: DataOptions) -> None:
    """Refuses a list whose first line is an image already: it would be lost, whatever options name its cells.

    Raises:
        InputError: If a name is that of an image, or with the suffix that an option says, of a file that is there.
    """
    unnamed = options.image_column not in reader.names or "." in options.image_column
    suffix = options.image_suffix if unnamed else ""
    for name in reader.names if reader.unit == "line" else ():
        is_image = (mimetypes.guess_type(name)[0] or "").startswith("image/")
        if is_image or (unnamed and name and any(os.path.isfile(root / path) for path in (name, name + suffix))):
            raise InputError(
                f"{reader.head}: the first line must name the columns, like image,label; got {shown(name)}, an image. "
                "Add a line with the names above it."
            )


def _columns(reader: Reader, options: DataOptions) -> _Columns:
    """The columns that are read, each of which is there once."""
    labels = (options.label_column,) if options.label_columns is None else tuple(options.label_columns)
    split = options.split_column or (SPLIT if SPLIT in reader.names else None)
    wanted = [("--image-column", options.image_column)]
    wanted += [("--label-column" if options.label_columns is None else "--label-columns", label) for label in labels]
    wanted += [("--split-column", split)] if split else []
    wanted += [("--group-by", options.group_by)] if options.group_by else []
    for option, name in wanted:
        if reader.names.count(name) != 1:
            raise InputError(
                f"{reader.head}: there must be one column `{shown(name)}`; "
                f"got {shown(', '.join(reader.names)) or 'nothing'}. Pass its name as `{option}`."
            )
    return _Columns(options.image_column, labels, split, options.group_by or None)


def _row(
    listing: Listing,
    line: int,
    cells: dict[str, str],
    columns: _Columns,
    options: DataOptions,
    refuse: Refuse,
) -> Row | None:
    """A row; None if it was refused."""
    place = listing.place(line)
    for column in columns.names:
        if not cells[column]:
            refuse(f"{place}: `{shown(column)}` must not be empty; got nothing. Fill it in or {listing.removal}.")
            return None
    label = _label(place, cells, columns.labels, refuse)
    part = PARTS.get(cells[columns.split].lower()) if columns.split else None
    if columns.split and part is None:
        refuse(
            f"{place}: `{shown(columns.split)}` must be train, held_out (or val) or test; "
            f"got {cells[columns.split]!r}. Correct it."
        )
        return None
    if label is None:
        return None
    image, suffix = cells[columns.image], options.image_suffix
    if not image.lower().endswith(suffix.lower()):
        image += suffix
    return Row(line, image, label, cells[columns.group] if columns.group else None, part)


def _label(place: str, cells: dict[str, str], columns: tuple[str, ...], refuse: Refuse) -> str | None:
    """The class of a row, from one column of names or from one column per class."""
    if len(columns) == 1:
        label = cells[columns[0]]
        if not label.isprintable():
            refuse(f"{place}: `{shown(columns[0])}` must be printable text; got {label!r}. Correct it.")
            return None
        return label
    ones = []
    for column in columns:
        one = ONES.get(cells[column].lower())
        if one is None:
            refuse(f"{place}: `{shown(column)}` must be 0 or 1; got {cells[column]!r}. Correct it.")
            return None
        ones += [column] if one else []
    if len(ones) != 1:
        refuse(
            f"{place}: one label column must be 1, the others 0; got {shown(' and '.join(ones)) or 'none'} at 1. "
            "Decide on one class."
        )
        return None
    return ones[0]
