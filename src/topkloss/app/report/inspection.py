"""A file of losses: read line by line, and what each fraction of them would select, as text.

torch is loaded to compute, when the options and the file have been found right.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from topkloss.app.alignment import aligned, shortened
from topkloss.app.data.examples import numerically
from topkloss.app.data.listing import content_of
from topkloss.app.data.reader import Reader, open_reader
from topkloss.app.data.spelling import decimal_commas, naming, number, spelling, with_point
from topkloss.app.errors import InputError, stop
from topkloss.app.loading import loading
from topkloss.app.options.option import refusals_of
from topkloss.app.report.probabilities import check_losses, rows_of
from topkloss.app.runs.cells import name_of
from topkloss.app.runs.held_out import FIRST, MODEL

if TYPE_CHECKING:
    from torch import Tensor

    from topkloss.loop.inspect import FractionTable

__all__ = ["Inspection", "inspect", "most_different", "number_of", "text"]

# More classes than these no reader compares: the ones whose shares differ most are shown.
MOST_CLASSES = 20
LONGEST_NAME = 24

# The column that says which part of the examples a line is of, what it says in the file of a run, and what is taken.
PART, PARTS, HELD_OUT = "part", ("train", "held_out", "test"), "held_out"

# So many parts are named that there are, in the place of one that there is not.
FEW = 5


@dataclass(frozen=True)
class Inspection:
    """A file of losses and what was computed of it.

    Attributes:
        path: Of the file.
        losses: In its order, float64.
        names: Of the classes, as they are shown; the place of a name is its number in `table`.
        table: What each fraction selects.
        part: Which part of the examples they are of; "" where the file names none.
        entropy: The average cross-entropy of predicting the shares of the classes; None where that means nothing.
    """

    path: Path
    losses: Tensor
    names: tuple[str, ...]
    table: FractionTable
    part: str = ""
    entropy: float | None = None


def inspect(
    path: Path,
    *,
    loss_column: str = "loss",
    class_column: str | None = None,
    constant_loss: float | None = None,
    fractions: Sequence[float] | None = None,
    part: str | None = None,
    is_cross_entropy: bool = False,
) -> Inspection:
    """Reads a file and computes what each fraction selects.

    Args:
        path: CSV, TSV or Parquet, see `topkloss.app.data.reader.open_reader`; the first line names the columns.
        loss_column: The column of the losses, one number per line; infinite ones are allowed.
        class_column: The column of the classes, any text. Default: no class shares.
        constant_loss: See `topkloss.loop.inspect.inspect_fractions`.
        fractions: Each in (0, 1]. Default: those of `inspect_fractions`.
        part: What the column `part` says of the lines to take, or "all". Default: "held_out", where that column is
            there and says nothing but "train", "held_out" and "test".
        is_cross_entropy: Whether the losses are, so that the shares of the classes have one too.

    Raises:
        InputError: One sentence, with the file and the line or with the option.
    """
    _check(fractions or (), constant_loss)
    reader = _opened(path, loss_column)
    values, labels, taken = _read(path, reader, loss_column, class_column, part)
    check_losses(path, loss_column, values, lambda: rows_of(reader))
    called = sorted(set(labels), key=numerically)
    place_of = {name: place for place, name in enumerate(called)}

    with loading():
        import torch

        from topkloss.loop.inspect import FRACTIONS, inspect_fractions

    losses = torch.tensor(values, dtype=torch.float64)
    table = inspect_fractions(
        losses,
        fractions=FRACTIONS if fractions is None else fractions,
        classes=torch.tensor([place_of[label] for label in labels]) if labels else None,
        constant_loss=constant_loss,
    )
    entropy = -sum(share * math.log(share) for share in table.shares.values()) if is_cross_entropy and labels else None
    return Inspection(path, losses, tuple(_shown(name) for name in called), table, taken, entropy)


def text(inspection: Inspection) -> str:
    """The table, what the bound says, and the class shares."""
    table, losses = inspection.table, inspection.losses
    part = f", {inspection.part}" if inspection.part else ""
    head = f"{number_of(inspection)}{part}: mean {table.average:.4g}, from {losses.min():.4g} to {losses.max():.4g}"
    columns = [
        ["fraction", *(f"{row.fraction:g}" for row in table.rows)],
        ["k", *(f"{row.k:.10g}" for row in table.rows)],
        ["threshold", *(f"{row.threshold:.4g}" for row in table.rows)],
        ["value (AT_k)", *(f"{row.value:.4g}" for row in table.rows)],
        ["value / mean", *(_ratio(row.value, table.average) for row in table.rows)],
    ]
    return "\n".join(
        [head, "", *aligned([*zip(*columns, strict=True)], left=0), *_bounds(inspection), *_classes(inspection)]
    )


def number_of(inspection: Inspection) -> str:
    """The number of losses, in words."""
    return f"{len(inspection.losses)} loss{'' if len(inspection.losses) == 1 else 'es'}"


def most_different(inspection: Inspection) -> list[int]:
    """The classes to show, by number: those whose share of what some fraction selects is farthest beyond chance.

    A class with the share q of all losses has q of k chosen by chance, give or take the root of q (1 - q) / k.
    """
    table = inspection.table

    def beyond_chance(label: int) -> float:
        whole = table.shares[label]
        chance = math.sqrt(whole * (1 - whole)) or 1.0
        return max((abs(row.shares[label] - whole) * math.sqrt(row.k) / chance for row in table.rows), default=0.0)

    ranked = sorted(table.shares, key=lambda label: (-beyond_chance(label), label))
    return sorted(ranked[:MOST_CLASSES])


def _bounds(inspection: Inspection) -> list[str]:
    table, entropy = inspection.table, []
    if inspection.entropy is not None:
        entropy = [f"Predicting the shares of the classes, always the same, costs {inspection.entropy:.4g} on average."]
    if table.constant_loss is None or table.bound is None or table.crossing is None:
        return []
    constant, bound = f"{table.constant_loss:.4g}", f"{table.bound:.3g}"
    if table.crossing == math.inf:
        return [
            "",
            f"A model whose loss is {constant} everywhere has the smaller AT_k at every fraction: train longer.",
            *entropy,
        ]
    if table.crossing == 0:
        verdict = f"No loss is above {constant}: a constant model with that loss has the smaller AT_k at no fraction."
    else:
        below = f"{table.crossing:.3g}"
        verdict = f"Below fraction {below} a constant model, of loss {constant}, has a smaller AT_k than this one."
    above = f"Above fraction {bound} = mean / {constant} the bound k > n E* holds: E* is that or less."
    return ["", above, verdict, *entropy]


def _classes(inspection: Inspection) -> list[str]:
    table, names = inspection.table, inspection.names
    if not names:
        return []
    shown = most_different(inspection)
    rows = [row for row in table.rows if row.fraction < 1]
    columns = [
        ["class", *(names[label] for label in shown)],
        ["all", *(f"{100 * table.shares[label]:.1f}" for label in shown)],
        *([f"{row.fraction:g}", *(f"{100 * row.shares[label]:.1f}" for label in shown)] for row in rows),
    ]
    lines = ["", "Share of each class in all losses and in each fraction, %:", *aligned([*zip(*columns, strict=True)])]
    if len(shown) < len(names):
        lines.append(f"and {len(names) - len(shown)} other classes, nearer to what chance would select")
    return lines


def _opened(path: Path, loss_column: str) -> Reader:
    return open_reader(path, content_of(path, f"the column {loss_column}"))


def _read(
    path: Path, reader: Reader, loss_column: str, class_column: str | None, part: str | None
) -> tuple[list[float], list[str], str]:
    """The losses, the class of each, or none, and which part of the file that is."""
    wanted = {"--loss-column": loss_column} | ({} if class_column is None else {"--class-column": class_column})
    for option, column in wanted.items():
        if reader.names.count(column) != 1:
            raise InputError(
                f"{reader.head}: there must be one column `{column}`; got "
                f"{', '.join(map(_shown, reader.names)) or 'nothing'}. {naming(reader, option)}"
            )
    commas = decimal_commas(path, reader, [loss_column], optional=False)
    has_parts = reader.names.count(PART) == 1
    losses: list[float] = []
    labels, parts = list[str](), list[str]()
    of_models = tuple(reader.names[: len(FIRST)]) == FIRST  # beside the run's own a table's plain average
    beside = ([PART] if has_parts else []) + ([FIRST[0]] if of_models else [])
    for line, cells in reader.read([*wanted.values(), *beside], stop):
        if of_models and cells[-1] != MODEL:
            continue
        losses.append(_number(path, line, loss_column, with_point(cells[0]) if commas else cells[0]))
        labels += map(name_of, _named(path, line, class_column, cells[1 : len(wanted)]))
        parts += cells[len(wanted) :][: int(has_parts)]
    if not losses:
        raise InputError(f"{path}, line 2: there must be a loss; got the names of the columns only. Add losses.")
    taken = _part(path, parts, part)
    if taken is None:
        return losses, labels, ""
    rows = [row for row, one in enumerate(parts) if one == taken]
    return [losses[row] for row in rows], [labels[row] for row in rows if labels], taken


def _part(path: Path, parts: Sequence[str], part: str | None) -> str | None:
    """The part to take; None for all of the file."""
    there = sorted(set(parts))
    if part == "all" or (part is None and not (there and set(there) <= set(PARTS))):
        return None
    asked = part or HELD_OUT
    if asked not in there:
        raise InputError(
            f"{path}: `--part` must be what the column `{PART}` says of some lines; got {asked}, and "
            + (
                f"lines of {', '.join(map(_shown, there[:FEW]))}. Pass one of them, or all."
                if there
                else "no such column. "
            )
            + ("" if there else "Leave it out.")
        )
    return asked


def _number(path: Path, line: int, column: str, cell: str) -> float:
    value = number(cell)
    if value is None:
        way = spelling(cell)[1] or "Correct the line or remove it"
        raise InputError(f"{path}, line {line}: `{column}` must be a number; got {_shown(cell) or 'nothing'}. {way}.")
    return value


def _named(path: Path, line: int, column: str | None, cells: list[str]) -> list[str]:
    if "" in cells:
        raise InputError(
            f"{path}, line {line}: `{column}` must not be empty; got nothing. Fill it in or remove the line."
        )
    return cells


def _check(fractions: Sequence[float], constant_loss: float | None) -> None:
    if fractions:
        with loading():
            from topkloss.base.arguments import check_k
        for fraction in fractions:
            with refusals_of("fractions"):
                check_k(None, fraction)
    if constant_loss is not None and not 0 < constant_loss < math.inf:
        raise InputError(
            f"`--constant-loss` must satisfy 0 < loss < inf; got {constant_loss:g}. "
            "For the cross-entropy of C classes pass the natural logarithm of C."
        )


def _shown(name: str) -> str:
    """A name on one line, of bearable length, without what would command a terminal."""
    clean = "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in name)
    return shortened(clean, LONGEST_NAME)


def _ratio(value: float, average: float) -> str:
    return f"{value / average:.3g}" if average and math.isfinite(average) else "-"
