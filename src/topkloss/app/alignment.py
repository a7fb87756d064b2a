"""Tables of text whose columns stand under each other on a terminal, in any script."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

__all__ = ["aligned", "padded", "shortened", "width"]


def width(text: str) -> int:
    r"""The cells of a terminal that a text takes: two for a letter of Chinese or Japanese, none for an accent on it.

    Example:
        >>> width("heron"), width("苍鹭"), width("cafe\u0301")
        (5, 4, 4)
    """
    cells = 0
    for letter in text:
        if unicodedata.category(letter) not in ("Mn", "Me", "Cf"):
            cells += 2 if unicodedata.east_asian_width(letter) in "WF" else 1
    return cells


def shortened(text: str, cells: int) -> str:
    """A text that takes so many cells at most: of a longer one the start and an ellipsis.

    Example:
        >>> shortened("great blue heron", 10), shortened("苍鹭与白鹭", 7)
        ('great blu…', '苍鹭与…')
    """
    if width(text) <= cells:
        return text
    while width(text) > cells - 1:
        text = text[:-1]
    return f"{text}\N{HORIZONTAL ELLIPSIS}"


def padded(text: str, cells: int, *, right: bool = False) -> str:
    """A text with blanks up to a width; ``right``: before it."""
    blanks = " " * (cells - width(text))
    return blanks + text if right else text + blanks


def aligned(rows: Sequence[Sequence[str]], *, left: int = 1) -> list[str]:
    r"""A line for each row, its cells under each other.

    Args:
        rows: As many cells in each.
        left: So many of the first columns begin at the left; the others end at the right.

    Example:
        >>> print("\n".join(aligned([["class", "images"], ["鹭", "7"]])))
        class  images
        鹭          7
    """
    widths = [max(map(width, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(padded(cell, widths[place], right=place >= left) for place, cell in enumerate(cells)).rstrip()
        for cells in rows
    ]
