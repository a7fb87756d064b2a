"""A text file or a Parquet file as one thing: the names of its columns, then the cells of each row, as text."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

from topkloss.app.data.dialect import delimiter_of, text_of, whole
from topkloss.app.errors import InputError, Refuse, shown

__all__ = ["Reader", "open_reader"]


class Reader(Protocol):
    """An opened table.

    Attributes:
        unit: What a row is counted in, "line" or "row".
        head: Where the names of the columns stand, for a sentence.
        names: Of the columns.
        delimiter: Between cells; empty where they are not text.
    """

    unit: str
    head: str
    names: list[str]
    delimiter: str

    def read(self, columns: Sequence[str], refuse: Refuse) -> Iterator[tuple[int, list[str]]]:
        """The number of each row, and its cells in those columns; a row that is not one is refused and left out."""
        ...


def open_reader(table: Path, content: bytes) -> Reader:
    """Opens a table by its suffix.

    Args:
        table: ``.parquet`` is Parquet, all else is text, that of a ``.tsv`` separated by tabs (see `delimiter_of`).
        content: Its bytes.

    Raises:
        InputError: One sentence, if it is no table.
    """
    return _Parquet(table, content) if table.suffix.lower() == ".parquet" else _Text(table, content)


class _Text:
    unit = "line"

    def __init__(self, table: Path, content: bytes) -> None:
        self.table = table
        self.text = text_of(table, content)
        self.first, self.delimiter = delimiter_of(self.text, is_tabbed=table.suffix.lower() == ".tsv")
        line, names = next(self._rows(), (1, []))
        self.head = f"{table}, line {line}"
        self.names = [whole(name) for name in names]

    def read(self, columns: Sequence[str], refuse: Refuse) -> Iterator[tuple[int, list[str]]]:
        places = [self.names.index(column) for column in columns]
        rows = self._rows()
        next(rows, None)
        for line, row in rows:
            if any(cell.strip() for cell in row[len(self.names) :]):
                refuse(
                    f"{self.table}, line {line}: there must be as many cells as columns, {len(self.names)}; "
                    f"got {len(row)}. Put a cell that holds a separator in quotes."
                )
            elif row:
                yield line, [whole(row[place]) if place < len(row) else "" for place in places]

    def _rows(self) -> Iterator[tuple[int, list[str]]]:
        """Each row with the line on which it begins."""
        file = io.StringIO(self.text, newline="")
        for _ in range(self.first):
            file.readline()
        # strict: an unclosed quote would swallow the rest of the file
        reader = csv.reader(file, delimiter=self.delimiter, strict=True)
        while True:
            line = self.first + reader.line_num + 1
            try:
                row = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                reason = str(error).replace("\t", r"\t")  # the separator of a TSV, which it names
                raise InputError(
                    f"{self.table}, line {line}: a row must be cells as CSV has them; got one that is not: {reason}. "
                    "Look for a quote that is not closed."
                ) from error
            yield line, row


class _Parquet:
    unit = "row"
    delimiter = ""

    def __init__(self, table: Path, content: bytes) -> None:
        from pyarrow import ArrowException, BufferReader, parquet

        self.table = table
        self.head = str(table)
        try:
            self.file = parquet.ParquetFile(BufferReader(content))
        except (ArrowException, OSError) as error:
            raise self._broken(error) from error
        self.columns = list(self.file.schema_arrow.names)
        self.names = [whole(name) for name in self.columns]

    def read(self, columns: Sequence[str], refuse: Refuse) -> Iterator[tuple[int, list[str]]]:
        from pyarrow import ArrowException, types

        there = [self.columns[self.names.index(column)] for column in columns]
        kinds = {column: self.file.schema_arrow.field(column).type for column in there}
        for column, kind in kinds.items():
            if types.is_nested(kind) or "binary" in str(kind):
                raise InputError(
                    f"{self.table}: `{shown(column)}` must be a column of text or numbers; got one of {kind}. "
                    "Write the images to files and their paths to the table."
                )
        number = 0
        try:
            for batch in self.file.iter_batches(columns=there):
                values = [batch.column(column).to_pylist() for column in there]
                for cells in zip(*values, strict=True):
                    number += 1
                    yield number, ["" if _missing(cell) else whole(str(cell)) for cell in cells]
        except (ArrowException, OSError) as error:
            raise self._broken(error) from error

    def _broken(self, error: Exception) -> InputError:
        reason = shown(str(error).partition("\n")[0]).rstrip(".")
        return InputError(f"{self.table} must be a whole Parquet file; got {reason}. Write it again.")


def _missing(cell: object) -> bool:
    return cell is None or cell != cell  # NaN
