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
SEPARATOR = re.compile(r'"?sep=(.)"?(\r\n|\r|\n)', re.IGNORECASE)
# What a text of letters of 2 or 4 bytes begins with; the longer mark begins with the shorter one.
MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
BLANK = re.compile(r"[ \t]*(\r\n|\r|\n)")
# Whoever packs or codes cells has a zero among so many bytes.
LOOK = 1024
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
    """The text of a file: UTF-8, or UTF-16 or 32 that says so by its first bytes, as Excel's "Unicode text" does.

    Raises:
        InputError: One sentence, if it is none.
    """
    encoding = next((encoding for mark, encoding in MARKS if content.startswith(mark)), "utf-8-sig")
    if content.startswith(tuple(FOREIGN)) and 0 in content[:LOOK]:
        what, hint = next(words for magic, words in FOREIGN.items() if content.startswith(magic))
        raise InputError(f"{table}, line 1: a table must be text in UTF-8; got {what}. {hint}")
    if encoding == "utf-8-sig" and 0 in content[:2]:
        raise InputError(
            f"{table}, line 1: a table must be text in UTF-8; got UTF-16 that does not say so. Save it as CSV in UTF-8."
        )
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        got = (
            f"{encoding.upper()} that is cut off"
            if encoding != "utf-8-sig"
            else f"the byte 0x{content[error.start]:02x}"
        )
        hint = "Save it as CSV in UTF-8 (in Excel: CSV UTF-8)."
        for magic, (what, other) in FOREIGN.items():
            if content.startswith(magic):
                got, hint = what, other
        raise InputError(f"{table}, line {line}: a table must be text in UTF-8; got {got}. {hint}") from error


def delimiter_of(text: str, *, is_tabbed: bool) -> tuple[int, str]:
    r"""How many lines stand before the names of the columns, and what separates cells.

    Empty lines before the names are passed over. Excel may say the separator in a first line ``sep=;``. Otherwise it is
    what gives each row as many cells as the first one has, two or more: the one that gives most, of equals the comma.
    Where nothing does, it is a comma if the first line has one, else what it has most of, and whoever reads the rows
    finds what is wrong with them.

    Args:
        text: Of the file.
        is_tabbed: Whether its name says that tabs do: they do if the first line has one.

    Example:
        >>> delimiter_of('image;label\n"a;b.png";heron\n', is_tabbed=False)
        (0, ';')
        >>> delimiter_of("x;y\n1,5;2,5\n", is_tabbed=False), delimiter_of("x,y\n1;5,2;5\n", is_tabbed=False)
        ((0, ';'), (0, ','))
    """
    before = 0
    while blank := BLANK.match(text):
        before, text = before + 1, text[blank.end() :]
    if said := SEPARATOR.match(text):
        return before + 1, said[1]
    if is_tabbed and re.match(r"[^\r\n]*\t", text):
        return before, "\t"
    names = {delimiter: _rows(text, delimiter, 1) for delimiter in DELIMITERS}
    cells = {delimiter: len(rows[0]) if rows else 0 for delimiter, rows in names.items()}
    several = [delimiter for delimiter in DELIMITERS if cells[delimiter] > 1]
    if even := [one for one in several if _is_even(text, one)]:
        return before, max(even, key=cells.__getitem__)  # of equals the first, a comma
    return before, "," if "," in several else max(several or [","], key=cells.__getitem__)


def _is_even(text: str, delimiter: str) -> bool:
    rows = _rows(text, delimiter, ROWS)
    return rows is not None and len({len(row) for row in rows if row}) == 1


def _rows(text: str, delimiter: str, most: int) -> list[list[str]] | None:
    """The first rows; None where they are none."""
    try:
        return list(islice(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True), most))
    except csv.Error:
        return None
