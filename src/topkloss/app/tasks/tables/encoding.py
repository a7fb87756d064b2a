"""From the columns of a table to the numbers of a linear model, by numbers and words that a file can hold."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from topkloss.app.errors import InputError, shown
from topkloss.app.tasks.tables.columns import Floats, Kinds, Rows
from topkloss.app.tasks.tables.config import TableConfig

__all__ = ["Encoding", "NumberColumn", "WordColumn"]

# Numbers of an encoded table: 4 GB.
MOST = 500_000_000


@dataclass(frozen=True)
class NumberColumn:
    """A column of numbers: missing ones become the median, all become (x - mean) / scale.

    Attributes:
        name: Of the column.
        median: Of the training rows that say one, by weight, as are the next two.
        mean, scale: Of the training rows once the median is filled in; the scale is their standard deviation.
        missing: Whether a feature says, by 0 or 1, where it was missing: there is one if it ever was in training.
    """

    name: str
    median: float
    mean: float
    scale: float
    missing: bool


@dataclass(frozen=True)
class WordColumn:
    """A column of words: one feature for each, 1 where the row says it; all 0 for an unknown word.

    Attributes:
        name: Of the column.
        words: In order; "" is a missing one.
    """

    name: str
    words: tuple[str, ...]


@dataclass(frozen=True)
class Encoding:
    """How rows become features: those of the numbers first, then those of the words.

    Attributes:
        numbers: See `NumberColumn`.
        words: See `WordColumn`.
        left_out: Columns that say the same in every training row.
    """

    numbers: tuple[NumberColumn, ...]
    words: tuple[WordColumn, ...]
    left_out: tuple[str, ...] = ()

    @classmethod
    def of(cls, rows: Rows, train: Sequence[int], kinds: Kinds, config: TableConfig) -> Encoding:
        """Learnt from the training rows alone.

        Raises:
            InputError: If numbers are too large, no feature is left, or the features are too many to be held.
        """
        left_out, numbers, words = list(kinds.constant), [], []
        weights = None if rows.weights is None else rows.weights[train]
        for name in kinds.numbers:
            column = _number_column(name, rows.numbers[name][train], weights)
            if column.scale > 0 or column.missing:
                numbers.append(column)
            else:
                left_out.append(name)
        for name in kinds.words:
            each = tuple(sorted({rows.words[name][index] for index in train}))
            if len(each) > 1:
                words.append(WordColumn(name, each))
            else:
                left_out.append(name)
        encoding = cls(tuple(numbers), tuple(words), tuple(left_out))
        if not encoding.features:
            raise InputError("A column must differ from row to row in training; got none that does. Add columns.")
        if len(rows) * len(encoding.features) > MOST:
            raise InputError(
                f"The encoded table must hold at most {MOST:,} numbers, 4 GB; got {len(rows)} rows x "
                f"{len(encoding.features)} features. Pass --ignore with columns that have many values."
            )
        return encoding

    @property
    def kinds(self) -> Kinds:
        """The columns that are read."""
        return Kinds(tuple(one.name for one in self.numbers), tuple(one.name for one in self.words))

    @property
    def features(self) -> list[str]:
        """What each coefficient belongs to: ``age``, ``age missing``, ``city=Bonn``."""
        names = []
        for one in self.numbers:
            names += [one.name] if one.scale > 0 else []
            names += [f"{one.name} missing"] if one.missing else []
        return names + [f"{one.name}={word or 'missing'}" for one in self.words for word in one.words]

    def encode(self, rows: Rows, chosen: Sequence[int] | None = None) -> Floats:
        """Features of rows, shape (n, features); of all or of those that are chosen."""
        at = np.arange(len(rows)) if chosen is None else np.asarray(chosen, dtype=np.intp)
        encoded = np.zeros((len(at), len(self.features)))
        place = 0
        for one in self.numbers:
            column = rows.numbers[one.name][at]
            gone = np.isnan(column)
            if one.scale > 0:
                encoded[:, place] = (np.where(gone, one.median, column) - one.mean) / one.scale
                place += 1
            if one.missing:
                encoded[:, place] = gone
                place += 1
        for each in self.words:
            index, words = {word: number for number, word in enumerate(each.words)}, rows.words[each.name]
            codes = np.array([index.get(words[row], -1) for row in at], dtype=np.intp)
            known = np.flatnonzero(codes >= 0)
            encoded[known, place + codes[known]] = 1.0
            place += len(each.words)
        return encoded

    def missing(self, rows: Rows) -> dict[str, int]:
        """How many rows say nothing, of each column of numbers that has such."""
        gone = {one.name: int(np.isnan(rows.numbers[one.name]).sum()) for one in self.numbers}
        return {name: count for name, count in gone.items() if count}

    def unknown(self, rows: Rows) -> dict[str, int]:
        """How many rows say a word that training did not, of each column that has such."""
        found = {}
        for one in self.words:
            known = set(one.words)
            new = sum(count for word, count in Counter(rows.words[one.name]).items() if word not in known)
            if new:
                found[one.name] = new
        return found

    def content(self) -> dict[str, Any]:
        """The encoding as JSON holds it; `from_content` reads it."""
        return asdict(self)

    @classmethod
    def from_content(cls, content: Mapping[str, Any]) -> Encoding:
        """What `content` wrote.

        Raises:
            KeyError, TypeError, ValueError: If it is something else.
        """
        numbers = tuple(NumberColumn(**one) for one in content["numbers"])
        words = tuple(WordColumn(one["name"], tuple(map(str, one["words"]))) for one in content["words"])
        for one in numbers:
            if not all(isinstance(value, float) for value in (one.median, one.mean, one.scale)):
                raise ValueError(f"no numbers for {one.name}")
        return cls(numbers, words, tuple(content["left_out"]))


def _number_column(name: str, column: Floats, weights: Floats | None) -> NumberColumn:
    gone = np.isnan(column)
    if gone.all():
        return NumberColumn(name, 0.0, 0.0, 0.0, False)
    mass = np.ones(len(column)) if weights is None else weights
    with np.errstate(over="ignore", invalid="ignore"):
        median = _median(column[~gone], mass[~gone])
        filled = np.where(gone, median, column)
        mean = float(np.average(filled, weights=mass))
        scale = float(np.sqrt(np.average((filled - mean) ** 2, weights=mass)))
    if not (np.isfinite(mean) and np.isfinite(scale)):
        raise InputError(
            f"`{shown(name)}` must hold numbers whose squares can be added up; got {np.abs(filled).max():g}. "
            "Divide them, or take their logarithm."
        )
    constant = bool((filled == filled[0]).all())
    return NumberColumn(name, median, mean, 0.0 if constant else scale, bool(gone.any()))


def _median(column: Floats, mass: Floats) -> float:
    """Half of the mass is below, half above; between two where that is exact (numpy's knows no weights there)."""
    order = np.argsort(column, kind="stable")
    below = np.cumsum(mass[order])
    half = below[-1] / 2
    first, last = np.searchsorted(below, half), np.searchsorted(below, half, side="right")
    return float(column[order[first]] / 2 + column[order[min(int(last), len(column) - 1)]] / 2)
