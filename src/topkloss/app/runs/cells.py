"""Names in the cells of a CSV that a spreadsheet opens: never taken for a formula, and read back as they were."""

from __future__ import annotations

import re

__all__ = ["name_in", "name_of"]

# What a spreadsheet takes for the beginning of a formula; of a tab or a line break it looks at what follows.
FORMULA = re.compile(
    "'*[=+\\-@\\t\\r\\n\N{FULLWIDTH EQUALS SIGN}\N{FULLWIDTH PLUS SIGN}\N{FULLWIDTH HYPHEN-MINUS}"
    "\N{FULLWIDTH COMMERCIAL AT}]"
)
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


def name_in(name: object) -> str:
    """A name as it stands in a cell: with an apostrophe before it where a spreadsheet would take it for a formula.

    Numbers, a class called -1 among them, stay as they are.

    Args:
        name: Of a class, a file, or any other text that is not ours.

    Example:
        >>> [name_in(name) for name in ("=1+1", "cat", "-1", "-x.png", "'=1+1")]
        ["'=1+1", 'cat', '-1', "'-x.png", "''=1+1"]
    """
    text = str(name)
    return f"'{text}" if FORMULA.match(text) and not NUMBER.fullmatch(text) else text


def name_of(cell: str) -> str:
    """The name that `name_in` wrote.

    Example:
        >>> [name_of(cell) for cell in ("'=1+1", "cat", "-1", "'-x.png", "''=1+1", "'tis")]
        ['=1+1', 'cat', '-1', '-x.png', "'=1+1", "'tis"]
    """
    return cell[1:] if cell.startswith("'") and FORMULA.match(cell) else cell
