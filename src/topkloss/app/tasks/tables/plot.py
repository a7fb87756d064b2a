"""Runs on tables, as a picture: the errors of numbers, and the curves of the losses."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from topkloss.app.report.picture import check
from topkloss.app.report.plot_inspection import draw_inspection
from topkloss.app.report.plot_numbers import draw_numbers
from topkloss.app.tasks.tables.text import losses_of, numbers_of

__all__ = ["draw_rows"]


def draw_rows(runs: Sequence[Path], path: Path) -> None:
    """Writes the picture of a run on a table; of numbers, of several runs that were measured on the same rows too.

    Args:
        runs: Their folders.
        path: Ends in ``.png`` or ``.svg``.

    Raises:
        InputError: If the runs cannot be read or drawn together, or the path ends otherwise or cannot be written.
    """
    check(path)
    numbers = numbers_of(runs)
    losses = losses_of(runs[0]) if len(runs) == 1 else None
    if numbers is not None:
        draw_numbers(numbers, path, losses)
    elif losses is not None:
        draw_inspection(losses, path)
