"""Columns that are no losses: probabilities and the like, of which the largest are the easiest examples."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from topkloss.app.data.reader import Reader
from topkloss.app.data.spelling import with_point
from topkloss.app.errors import InputError, stop

__all__ = ["check_losses", "rows_of"]

# What such columns are called; from 0 to 1 and the more the better, or below 0 and the more the better.
SHARES = re.compile(
    r"(p|prob|probs|proba|probability|probabilities|confidence|conf|score|scores|softmax|sigmoid|likelihood|accuracy|acc"
    r"|correct|right)|(p|prob|proba|prob_of|probability|pred_prob|score|conf)_.*|.*_(prob|proba|probability|confidence)"
)
LOGARITHMS = re.compile(
    r"(log_?)(p|prob|probs|proba|probability|probabilities|likelihood|lik|softmax)|loglik|ll|logp_.*"
)

# Of the sum of the probabilities of an example, as files round them.
ROUNDING = 1e-3


def check_losses(path: Path, column: str, values: Sequence[float], rows: Callable[[], list[list[str]]]) -> None:
    """Refuses a column of probabilities, or of their logarithms: by its name where its values agree, or by its rows.

    A name alone says nothing (a `score` of 3 is a loss, perhaps), nor do values (losses between 0 and 1 are common).

    Args:
        path: Of the file, for the sentence.
        column: Its name.
        values: What stands in it.
        rows: All cells of the file, its first line first; asked where the name is no answer.

    Raises:
        InputError: One sentence.
    """
    name, rule = column.strip().lower().replace("-", "_").replace(" ", "_"), ""
    if all(0 <= value <= 1 for value in values):
        if SHARES.fullmatch(name):
            rule = "probabilities, by its name, and all of it lies in [0, 1]"
        elif _is_of_a_distribution(column, rows()):
            rule = "probabilities: with columns beside it, it adds up to 1 in every line"
        hint = "Pass the losses, -log of the probability of the true class"
    elif LOGARITHMS.fullmatch(name) and all(value <= 0 for value in values):
        rule, hint = "logarithms of probabilities, by its name, and none of it is above 0", "Pass their negatives"
    if rule:
        raise InputError(
            f"{path}: `{column}` must be losses, the largest of the hardest examples; got {rule}. {hint}; "
            "if it is losses all the same, rename it."
        )


def _is_of_a_distribution(column: str, rows: Iterable[Sequence[str]]) -> bool:
    """Whether some columns, this one among them, are in [0, 1] and add up to 1 in each line."""
    lines = [list(row) for row in rows if row]
    head, cells = [name.strip() for name in lines[0]], lines[1:]
    shares = [
        [float(row[place]) for row in cells]
        for place, name in enumerate(head)
        if name == column or all(place < len(row) and _is_share(row[place]) for row in cells)
    ]
    return len(shares) > 1 and all(abs(sum(row) - 1) <= ROUNDING for row in zip(*shares, strict=True))


def _is_share(cell: str) -> bool:
    try:
        value = float(cell)
    except ValueError:
        return False
    return math.isfinite(value) and 0 <= value <= 1


def rows_of(reader: Reader) -> list[list[str]]:
    """All cells of a table, the names of its columns first."""
    names = list(dict.fromkeys(reader.names))
    rows = (cells for _, cells in reader.read(names, stop))
    return [names, *([with_point(cell) for cell in cells] if reader.delimiter == ";" else cells for cells in rows)]
