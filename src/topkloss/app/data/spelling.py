"""Numbers as people and spreadsheets write them: decimal commas, thousands, signs of percent and of money."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from topkloss.app.data.reader import Reader
from topkloss.app.errors import InputError, shown

__all__ = ["decimal_commas", "is_date", "number", "spelling", "with_point"]

COMMA = re.compile(r"[+-]?\d*,\d+(?:[eE][+-]?\d+)?")
POINT = re.compile(r"[+-]?\d*\.\d+(?:[eE][+-]?\d+)?")
# A cell, what its column must be instead, and how to write it; the first that fits.
SPELLINGS = (
    (re.compile(r"[+-]?[\d.,'\s]+%"), "be numbers without a percent sign", "Write 12 or 0.12, the same in each row"),
    (
        re.compile(r"[+-]?\d{1,3}(?:[ '\u2019\s]\d{3})+(?:[.,]\d+)?|[+-]?\d{1,3}(?:,\d{3})+(?:,\d{3}|\.\d+)"),
        "be numbers without separators of thousands",
        "Write 1234.5 for 1,234.5",
    ),
    (
        re.compile(r"[+-]?\d{1,3}(?:\.\d{3})+,\d+|[+-]?\d{1,3}(?:\.\d{3}){2,}"),
        "be numbers without separators of thousands",
        "Write 1234.5 for 1.234,5",
    ),
    (
        re.compile(r"[+-]?[1-9]\d{0,2},\d{3}"),
        "be numbers without commas",
        "Write 1234 for 1,234 if the comma parts thousands, 1.234 if it is decimal",
    ),
    (COMMA, "have points in its numbers", "Write them with points"),
    (re.compile(r"[$€£¥]\s*[+-]?[\d.,]+|[+-]?[\d.,]+\s*[$€£¥]"), "be numbers without a currency", "Leave the sign out"),
    (re.compile("[\u2212\u2013]\\s*[\\d.,]+"), "have the minus sign of a keyboard", "Write -1 with the hyphen"),
)


def number(cell: str) -> float | None:
    """The number that a cell says; None where it is a word, "nan" for one.

    Example:
        >>> number("1e3"), number("nan"), number("1_000"), number("inf")
        (1000.0, None, None, inf)
    """
    try:
        value = float(cell)
    except ValueError:
        return None
    return None if math.isnan(value) or "_" in cell else value


def is_date(cell: str) -> bool:
    """Whether a cell is a date as ISO 8601 has it."""
    try:
        datetime.fromisoformat(cell)
    except ValueError:
        return False
    return True


def spelling(cell: str) -> tuple[str, str]:
    """What a column must be whose cells are numbers that are written like this one, and how; empty for words.

    Example:
        >>> spelling("12 %")
        ('be numbers without a percent sign', 'Write 12 or 0.12, the same in each row')
        >>> spelling("0,5"), spelling("heron")
        (('have points in its numbers', 'Write them with points'), ('', ''))
    """
    return next(((must, way) for form, must, way in SPELLINGS if form.fullmatch(cell)), ("", ""))


def with_point(cell: str) -> str:
    """A number with a decimal comma, written with a point; any other cell as it is."""
    return cell.replace(",", ".") if COMMA.fullmatch(cell) else cell


def decimal_commas(source: Path, reader: Reader, names: Sequence[str], *, optional: bool = True) -> frozenset[str]:
    """The columns that have decimal commas, as a file has whose cells are separated by semicolons.

    Args:
        source: The file.
        reader: Of it.
        names: Of the columns that may hold numbers.
        optional: Whether an option can say that a column holds none.

    Raises:
        InputError: If numbers with points stand beside them, which may be thousands or decimals.
    """
    if reader.delimiter != ";":
        return frozenset()
    commas: dict[str, tuple[int, str]] = {}
    points: dict[str, tuple[int, str]] = {}
    for line, cells in reader.read(names, lambda _: None):
        for name, cell in zip(names, cells, strict=True):
            if "," in cell and COMMA.fullmatch(cell):
                commas.setdefault(name, (line, cell))
            elif "." in cell and POINT.fullmatch(cell):
                points.setdefault(name, (line, cell))
    if commas and points:
        (one, (line, cell)), (other, (where, number)) = next(iter(points.items())), next(iter(commas.items()))
        both = one if one in commas else ""
        where, number = commas.get(both, (where, number))
        instead = f", or pass --ignore or --categorical {one!r}" if optional else ""
        raise InputError(
            f"{shown(source)}, {reader.unit} {line}: a table with decimal commas must have no points in its numbers; "
            f"got {cell!r} in `{shown(one)}`, and {number!r} in `{shown(both or other)}`, {reader.unit} {where}. "
            f"Write all with one sign, without separators of thousands{instead}."
        )
    return frozenset(commas)
