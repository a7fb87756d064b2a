"""A table of features from a file to rows that are checked and parted: this is the door of that part."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from topkloss.app.data.examples import numerically
from topkloss.app.data.listing import Listing, Row
from topkloss.app.data.splits import check_groups, check_parts, split_rows
from topkloss.app.errors import InputError, Refuse, shown, stop
from topkloss.app.options.option import known
from topkloss.app.tasks.tables.columns import Floats, Kinds, Rows, Table, kinds_of, open_table, read_rows
from topkloss.app.tasks.tables.config import TableConfig

__all__ = ["Data", "read_data", "read_labelled"]


@dataclass(frozen=True)
class Data:
    """A table that is checked.

    Attributes:
        table: The file.
        kinds: Of its features.
        rows: In order.
        classes: Their names, numbers by value and then words; empty for numbers.
        train, held_out: Places of rows.
    """

    table: Table
    kinds: Kinds
    rows: Rows
    classes: tuple[str, ...]
    train: list[int]
    held_out: list[int]

    @property
    def labels(self) -> Floats:
        """Numbers; of classes, their places."""
        return numbered(self.rows, self.classes)

    def digest_of_held_out(self) -> str:
        """SHA-256 of the table and of which of its rows are held out."""
        whole = hashlib.sha256(self.table.digest.encode())
        whole.update(np.array(self.held_out, dtype="<i8").tobytes())
        return whole.hexdigest()


def read_data(config: TableConfig, *, refuse: Refuse = stop, kinds: Kinds | None = None) -> Data:
    """Reads a table, checks each cell, and parts the rows.

    Args:
        config: From `checked`.
        refuse: Called with one sentence for each thing that is wrong; what it is wrong with is left out.
        kinds: Of the features of a run; default: as the table shows.

    Raises:
        InputError: One sentence, if nothing can be made of it.
    """
    features = () if kinds is None else (*kinds.numbers, *kinds.words)
    table = open_table(Path(known(config.csv, "csv")), config, features=features)
    found = kinds_of(table, config, refuse) if kinds is None else kinds
    rows = read_rows(table, config, found, refuse)
    classes = _check_rows(table, rows, config, refuse)
    codes = [0] * len(rows)
    if classes:
        place = {name: number for number, name in enumerate(classes)}
        codes = [place[label] for label in rows.labels]
    train, held_out = split_rows(codes, rows.groups, rows.parts, classes or ("",), config.split, config.held_out)
    return Data(table, found, rows, classes, train, held_out)


def read_labelled(path: Path, config: TableConfig, kinds: Kinds, classes: Sequence[str]) -> tuple[Table, Rows, Floats]:
    """The rows of another table than a run was made from, all of them, with their labels.

    Raises:
        InputError: One sentence, if a row cannot be used, or its label is no class of the model.
    """
    asked = replace(config, csv=str(path), weight_column=None, split_column=None, group_by=None)
    table = replace(open_table(path, asked, features=(*kinds.numbers, *kinds.words)), split=None)
    rows = read_rows(table, asked, kinds, stop)
    if not len(rows):
        raise InputError(f"{table.place(2)}: there must be a row; got the names of the columns only. Add rows.")
    known = set(classes)
    for line, label in zip(rows.lines, rows.labels, strict=True):
        if classes and label not in known:
            some = ", ".join(classes) if len(classes) <= 10 else f"{', '.join(classes[:9])}, ..."
            raise InputError(
                f"{table.place(line)}: `{shown(config.label_column)}` must be a class of the model ({some}); got "
                f"{label!r}. Correct the row or remove it."
            )
    return table, rows, numbered(rows, classes)


def numbered(rows: Rows, classes: Sequence[str]) -> Floats:
    """The labels as numbers; of classes, their places."""
    place = {name: float(number) for number, name in enumerate(classes)}
    return np.array([place[label] if classes else float(label) for label in rows.labels], dtype=np.float64)


def _check_rows(table: Table, rows: Rows, config: TableConfig, refuse: Refuse) -> tuple[str, ...]:
    """Whether there is enough of each class in each part; the classes."""
    if not len(rows):
        refuse(f"{shown(table.source)}: there must be a row that counts; got none. Add rows, or weights above 0.")
        return ()
    marks = zip(rows.lines, rows.labels, rows.groups, rows.parts, strict=True)
    listing = Listing(table.source, "", table.unit, table.source.parent, ())
    if config.task == "regression":
        listed = replace(listing, rows=tuple(Row(line, "", "", group, part) for line, _, group, part in marks))
        _check_numbers(table, listed, refuse)
        check_groups(listed, refuse)
        return ()
    classes = tuple(sorted(set(rows.labels), key=numerically))
    if len(classes) > config.max_categories or len(classes) > max(2, len(rows) / 2):
        raise InputError(
            f"{shown(table.source)}: `{shown(config.label_column)}` must have at most {config.max_categories} classes, "
            f"of 2 rows or more; got {len(classes)} in {len(rows)} rows. For numbers pass --task regression, else a "
            "larger --max-categories."
        )
    listed = replace(listing, rows=tuple(Row(line, "", label, group, part) for line, label, group, part in marks))
    check_parts(listed, refuse)
    return classes


def _check_numbers(table: Table, listed: Listing, refuse: Refuse) -> None:
    """Refuses a split of numbers that leaves a side without rows."""
    parts = [row.part for row in listed.rows]
    if "held_out" in parts:
        if not {None, "train"} & set(parts):
            refuse(f"{shown(table.source)}: there must be a row in train; got none. Move one there.")
        return
    free = [row for row in listed.rows if row.part != "test"]
    if len(free) < 2 or (free[0].group is not None and len({row.group for row in free}) < 2):
        refuse(f"{shown(table.source)}: there must be 2 rows or more, in 2 groups if grouped; got fewer. Add rows.")
