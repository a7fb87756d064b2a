"""Rows without labels: what the model says of each, into a CSV."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from topkloss.app.errors import InputError, shown, stop
from topkloss.app.runs.cells import name_in
from topkloss.app.runs.files import check_out, written
from topkloss.app.tasks.tables.columns import Floats, open_table, read_rows
from topkloss.app.tasks.tables.evaluate import TableRun

__all__ = ["Written", "write_table_predictions"]


@dataclass(frozen=True)
class Written:
    """What was written.

    Attributes:
        lines: Rows.
        bad: Those of them with an error.
        unknown: Of each column, in how many rows it says a word that training did not.
        missing: Of each column of numbers, in how many rows it says nothing.
    """

    lines: int
    bad: int
    unknown: dict[str, int]
    missing: dict[str, int]

    def notes(self) -> list[str]:
        """What a user should know of them, a sentence each."""
        notes = []
        if self.bad:
            notes.append(f"{self.bad} of {self.lines} rows are bad; the column `error` says why.")
        if self.unknown:
            notes.append(f"words that training did not say count as none of its words: {_listed(self.unknown)}.")
        if self.missing:
            notes.append(f"missing numbers became the median of training: {_listed(self.missing)}.")
        return notes


def write_table_predictions(run: TableRun, tables: Sequence[str | Path], out: str | Path) -> Written:
    """Writes a CSV: the line (or row), class and probability, or number, error, and a column `p_...` for each class.

    Args:
        run: From `load_table_run`.
        tables: One CSV, TSV or Parquet with the columns of the run's features; others are allowed.
        out: Ends in ``.csv``. It appears, or is replaced, when all is done.

    Raises:
        InputError: If the table cannot be read, holds no row, or none that can be used; if `out` cannot be written.
    """
    if len(tables) != 1 or Path(tables[0]).is_dir():
        raise InputError(
            f"`IMAGES` must be one table for a run on a table; got {', '.join(map(str, tables[:3]))}. Pass a CSV."
        )
    table, out = Path(tables[0]), Path(out)
    check_out(out, (".csv",))
    kinds, config = run.encoding.kinds, run.record.config
    opened = open_table(table, config, labelled=False, features=(*kinds.numbers, *kinds.words))
    bad: dict[int, str] = {}
    rows = read_rows(opened, config, kinds, stop, labelled=False, bad=bad.__setitem__)
    if not len(rows):
        got = "the names of the columns only. Add rows."
        if bad:
            line, reason = next(iter(bad.items()))
            got = f"{len(bad)}, none of which can. {opened.unit.capitalize()} {line}: {reason}"
        raise InputError(f"{shown(table)} must hold rows that can be used; got {got}")
    good = dict(zip(rows.lines, _predicted(run, run.encoding.encode(rows)), strict=True))
    names = [f"p_{name}" for name in run.model.classes] if run.model.has_probabilities else []
    head = ["prediction", *(["probability"] if names else []), "error", *names]
    with written(out) as partial, partial.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        writer = csv.writer(file)
        writer.writerow([opened.unit, *head])
        for line in sorted({*good, *bad}):
            blank = ["" if name != "error" else name_in(bad.get(line, "")) for name in head]
            writer.writerow([line, *good.get(line, blank)])
    return Written(len(good) + len(bad), len(bad), run.encoding.unknown(rows), run.encoding.missing(rows))


def _predicted(run: TableRun, features: Floats) -> list[list[str]]:
    """The cells of each row, behind its line."""
    model = run.model
    predicted = model.predicted(features)
    if not model.has_probabilities:
        return [[name_in(one), ""] for one in predicted]
    return [
        [name_in(label), f"{max(chances):.7g}", "", *(f"{chance:.7g}" for chance in chances)]
        for label, chances in zip(predicted, model.logits(features).softmax(1).tolist(), strict=True)
    ]


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{shown(name)} in {count} row{'' if count == 1 else 's'}" for name, count in counts.items())
