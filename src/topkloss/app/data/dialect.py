"""How a text file of cells is written: its encoding, what separates the cells, and how letters are coded."""

from __future__ import annotations

import codecs
import csv
import io
import re
import unicodedata
from itertools import islice
from pathlib import Path

from topkloss.app.errors import InputError

__all__ = ["delimiter_of", "text_of", "whole"]

# What may separate cells, and how many rows are looked at.
DELIMITERS, ROWS = ",;\t|", 1000
# Excel's own first line.
SEPARATOR = re.compile(r'"?sep=(.)"?\r?\n')
FOREIGN = {
    b"PK\x03\x04": ("an Excel workbook, or another zip", "Save the sheet as CSV UTF-8."),
    b"\xd0\xcf\x11\xe0": ("an Excel workbook", "Save the sheet as CSV UTF-8."),
    b"\x1f\x8b": ("a file packed by gzip", "Unpack it."),
    b"PAR1": ("Parquet", "Let its name end in .parquet."),
}


def whole(cell: str) -> str:
    """A cell without blanks around it, its letters coded in one way: a Mac's é and a Linux's are one."""
    cell = cell.strip()
    return cell if cell.isascii() else unicodedata.normalize("NFC", cell)


def text_of(table: Path, content: bytes) -> str:
    """The text of a file: UTF-8, or UTF-16 that says so by its first two bytes, as Excel's "Unicode text" does.

    Raises:
        InputError: One sentence, if it is none.
    """
    encoding = "utf-16" if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"
    if encoding != "utf-16" and 0 in content[:2]:
        raise InputError(
            f"{table}, line 1: a table must be text in UTF-8; got UTF-16 that does not say so. Save it as CSV in UTF-8."
        )
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        got = "UTF-16 that is cut off" if encoding == "utf-16" else f"the byte 0x{content[error.start]:02x}"
        hint = "Save it as CSV in UTF-8 (in Excel: CSV UTF-8)."
        for magic, (what, other) in FOREIGN.items():
            if content.startswith(magic):
                got, hint = what, other
        raise InputError(f"{table}, line {line}: a table must be text in UTF-8; got {got}. {hint}") from error


def delimiter_of(text: str, *, is_tabbed: bool) -> tuple[int, str]:
    r"""How many lines stand before the names of the columns, and what separates cells.

    Excel may say it in a first line ``sep=;``. Otherwise it is what gives each row as many cells as the first one has,
    two or more: a comma if that does, then the one that gives most. Where nothing does, it is what the first line has
    most of, and whoever reads the rows finds what is wrong with them.

    Args:
        text: Of the file.
        is_tabbed: Whether its name says that tabs do.

    Example:
        >>> delimiter_of('image;label\n"a;b.png";heron\n', is_tabbed=False)
        (0, ';')
        >>> delimiter_of("x;y\n1,5;2,5\n", is_tabbed=False), delimiter_of("x,y\n1;5,2;5\n", is_tabbed=False)
        ((0, ';'), (0, ','))
    """
    if said := SEPARATOR.match(text):
        return 1, said[1]
    if is_tabbed:
        return 0, "\t"
    names = {delimiter: _rows(text, delimiter, 1) for delimiter in DELIMITERS}
    cells = {delimiter: len(rows[0]) if rows else 0 for delimiter, rows in names.items()}
    several = [delimiter for delimiter in DELIMITERS if cells[delimiter] > 1]
    even = [one for one in several if _is_even(text, one)]
    among = even or several or [","]
    return 0, "," if "," in among else max(among, key=cells.__getitem__)


def _is_even(text: str, delimiter: str) -> bool:
    rows = _rows(text, delimiter, ROWS)
    return rows is not None and len({len(row) for row in rows if row}) == 1


def _rows(text: str, delimiter: str, most: int) -> list[list[str]] | None:
    """The first rows; None where they are none."""
    try:
        return list(islice(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True), most))
    except csv.Error:
        return None
