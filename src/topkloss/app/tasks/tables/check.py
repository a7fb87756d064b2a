"""Everything that is wrong with a table of features, found before anything is fitted; and what is in it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np

from topkloss.app.alignment import aligned
from topkloss.app.errors import InputError, refuse_listed, shown
from topkloss.app.problems import listed
from topkloss.app.tasks.tables.config import TableConfig, checked
from topkloss.app.tasks.tables.encoding import Encoding
from topkloss.app.tasks.tables.fit import summary
from topkloss.app.tasks.tables.source import Data, read_data

__all__ = ["TableCheck", "check_table"]

# Classes: more than these nobody reads.
MOST_CLASSES = 30


@dataclass(frozen=True)
class TableCheck:
    """A table as it was found.

    Attributes:
        source: The table.
        problems: A sentence for each thing that is wrong, with its place.
        found: What is in it, lines of text; empty where there are problems.
    """

    source: str
    problems: tuple[str, ...]
    found: tuple[str, ...]

    def text(self) -> str:
        """The problems, equal ones together, or what is in the table."""
        return "\n".join(listed(self.problems) or (f"{shown(self.source)}: nothing is wrong", "", *self.found))

    def raise_for_problems(self) -> None:
        """Refuses the table where a problem was found.

        Raises:
            InputError: One sentence with their number.
        """
        refuse_listed(self.source, self.problems)


def check_table(config: TableConfig) -> TableCheck:
    """Reads everything and finds all that is wrong.

    Args:
        config: The table and its columns; what is asked of the model is not looked at.

    Raises:
        InputError: One sentence, if an option is wrong.
    """
    config = checked(config)
    problems: list[str] = []
    found: tuple[str, ...] = ()
    try:
        data = read_data(config, refuse=problems.append)
        if not problems:
            encoding = Encoding.of(data.rows, data.train, data.kinds, config)
            found = (summary(data, encoding, config.score), *_classes(data), *_copies(data))
    except InputError as error:
        if str(error).startswith("`--"):
            raise
        problems.append(str(error))
    return TableCheck(str(config.csv), tuple(problems), found)


def _classes(data: Data) -> list[str]:
    """Rows of each class in each part."""
    if not data.classes or len(data.classes) > MOST_CLASSES:
        return []
    parts = {"train": data.train, "held out": data.held_out}
    counts = {part: Counter(data.rows.labels[index] for index in places) for part, places in parts.items()}
    head = ["class", f"{'train':>8}", "held out"]
    rows = [[shown(name), *(str(counts[part][name]) for part in parts)] for name in data.classes]
    return ["", *aligned([head, *rows])]


def _copies(data: Data) -> list[str]:
    """Rows whose features are those of another."""
    numbers = np.column_stack([*data.rows.numbers.values(), np.empty((len(data.rows), 0))])
    words = list(zip(*data.rows.words.values(), strict=True)) or [()] * len(data.rows)
    seen: dict[tuple[bytes, tuple[str, ...]], set[str]] = {}
    keys = [(row.tobytes(), each) for row, each in zip(numbers, words, strict=True)]
    for key, label in zip(keys, data.rows.labels, strict=True):
        seen.setdefault(key, set()).add(label)
    lines = []
    if copies := len(keys) - len(seen):
        leaked = len({keys[index] for index in data.train} & {keys[index] for index in data.held_out})
        lines.append(f"{copies} rows have the features of another one; {leaked} such in both parts")
    if split := sum(len(labels) > 1 for labels in seen.values()) if data.classes else 0:
        lines.append(f"{split} times the same features have different labels: no model is right on both")
    return ["", *lines] if lines else []
