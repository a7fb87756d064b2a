"""Numbers as people and spreadsheets write them: decimal commas, thousands, signs of percent and of money."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from topkloss.app.data.reader import Reader
from topkloss.app.errors import InputError, shown

__all__ = ["decimal_commas", "is_date", "naming", "number", "spelling", "with_point"]

COMMA = re.compile(r"[+-]?\d*,\d+(?:[eE][+-]?\d+)?")
# With a point that may part thousands, and numbers too small for one.
THOUSANDS, SMALL = re.compile(r"[+-]?[1-9]\d{0,2}\.\d{3}"), re.compile(r"[+-]?\d{1,3}")
# Signs of money, and the codes of ISO 4217 that are met most.
MONEY = (
    r"(?:[$\u00a2-\u00a5\u0e3f\u20a0-\u20cf\ufe69\uff04\uffe0\uffe1\uffe5\uffe6]|Fr\.|kr|z\u0142|"
    r"AED|AUD|BRL|CAD|CHF|CLP|CNY|COP|CZK|DKK|EGP|EUR|GBP|HKD|HUF|IDR|ILS|INR|ISK|JPY|KRW|MXN|MYR|NGN|NOK|NZD|PHP|PKR|"
    r"PLN|RON|RUB|SAR|SEK|SGD|THB|TRY|TWD|UAH|USD|VND|ZAR)"
)
AMOUNT = r"\d[\d.,'\u2019\s]*"
# Dates by numbers, the year first or last, and by the names of months; a time may follow.
YEAR, DAY, MONTH = r"(?:1[5-9]|2[01])\d\d", r"(?:0?[1-9]|[12]\d|3[01])", r"(?:0?[1-9]|1[0-2])"
NAMED = r"(?:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]*\.?"
DATE = re.compile(
    rf"(?:(?:{DAY}([./-]){MONTH}|{MONTH}([./-]){DAY})(?:\1|\2){YEAR}|{YEAR}([./-]){MONTH}\3{DAY}"
    rf"|{DAY}/{MONTH}/\d\d|{MONTH}/{DAY}/\d\d|(?:0[1-9]|[12]\d|3[01])\.(?:0[1-9]|1[0-2])\.\d\d"
    rf"|{DAY}\.?[ -]{NAMED}[ -](?:{YEAR}|\d\d)|{NAMED} {DAY},? {YEAR})"
    r"(?:,?[ T]\d{1,2}:\d\d(?::\d\d(?:\.\d+)?)?(?: ?[ap]m)?)?",
    re.IGNORECASE,
)
POINT = re.compile(r"[+-]?\d*\.\d+(?:[eE][+-]?\d+)?")
# A cell, what its column must be instead, and how to write it; the first that fits.
SPELLINGS = (
    (
        re.compile(r"(?=.*[\uff05\uff0b-\uff0e\uff10-\uff19])[-+\d.,%\uff05\uff0b-\uff0e\uff10-\uff19]+"),
        "be numbers in the digits and signs of a keyboard",
        "Write 1.5 in narrow digits",
    ),
    (re.compile(rf"[+-]?{AMOUNT}[\u2030\u2031]"), "be numbers without a sign of per mille", "Write 0.005 for 5\u2030"),
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
    (
        re.compile(r"[+-]?\d{1,2}(?:,\d{2})+,\d{3}(?:\.\d+)?"),
        "be numbers without separators of thousands",
        "Write 123400 for 1,23,400",
    ),
    (COMMA, "have points in its numbers", "Write them with points"),
    (
        re.compile(rf"[+-]?{MONEY}\s*[+-]?{AMOUNT}|[+-]?{AMOUNT}{MONEY}|\({MONEY}\s*{AMOUNT}\)"),
        "be numbers without a currency",
        "Leave the sign out",
    ),
    (re.compile(rf"\({AMOUNT}\)|{AMOUNT}-"), "have the minus sign before its numbers", "Write -1 for (1) or 1-"),
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
    """Whether a cell is a date, as ISO 8601 has it or as people write it.

    Example:
        >>> is_date("2024-01-31"), is_date("31.01.2024"), is_date("1/31/24"), is_date("10.20.3000")
        (True, True, True, False)
    """
    if DATE.fullmatch(cell):
        return True
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


def naming(reader: Reader, option: str) -> str:
    """The way out where a column is not there: to name it, or, where numbers stand for names, perhaps all columns."""
    if reader.unit == "line" and any(number(with_point(name)) is not None for name in reader.names):
        return f"If that is a row, add a line with the names above it; if not, pass its name as `{option}`."
    return f"Pass its name as `{option}`."


def decimal_commas(source: Path, reader: Reader, names: Sequence[str], *, optional: bool = True) -> frozenset[str]:
    """The columns that have decimal commas, as a file has whose cells are separated by semicolons.

    Args:
        source: The file.
        reader: Of it.
        names: Of the columns that may hold numbers.
        optional: Whether an option can say that a column holds none.

    Raises:
        InputError: If numbers with points stand beside them, which may be thousands or decimals; or if every point of
            the table may part thousands.
    """
    if reader.delimiter != ";":
        return frozenset()
    commas: dict[str, tuple[int, str]] = {}
    points: dict[str, tuple[int, str]] = {}
    decimal, larger = False, set[str]()
    for line, cells in reader.read(names, lambda _: None):
        for name, cell in zip(names, cells, strict=True):
            if "," in cell and COMMA.fullmatch(cell):
                commas.setdefault(name, (line, cell))
            elif "." in cell and POINT.fullmatch(cell):
                points.setdefault(name, (line, cell))
                decimal = decimal or not THOUSANDS.fullmatch(cell)
            elif number(cell) is not None and not SMALL.fullmatch(cell):
                larger.add(name)
    instead = "--ignore or --categorical {!r}" if optional else ""
    if not commas and not decimal and (doubtful := [name for name in points if name not in larger]):
        line, cell = points[doubtful[0]]
        raise InputError(
            f"{shown(source)}, {reader.unit} {line}: between semicolons, numbers with points must not all have three "
            f"digits after them, as thousands have; got {cell!r} in `{shown(doubtful[0])}`. Write "
            f"{cell.replace('.', '')} if the point parts thousands, {cell}0 if it is decimal"
            + (f", or pass {instead.format(doubtful[0])}." if instead else ".")
        )
    if commas and points:
        (one, (line, cell)), (other, (where, comma)) = next(iter(points.items())), next(iter(commas.items()))
        both = one if one in commas else ""
        where, comma = commas.get(both, (where, comma))
        raise InputError(
            f"{shown(source)}, {reader.unit} {line}: a table with decimal commas must have no points in its numbers; "
            f"got {cell!r} in `{shown(one)}`, and {comma!r} in `{shown(both or other)}`, {reader.unit} {where}. "
            f"Write all with one sign, without separators of thousands"
            + (f", or pass {instead.format(one)}." if instead else ".")
        )
    return frozenset(commas)
