"""A run on a table of features, as text: the model beside the plain average, what is proved, which rows are hard."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from topkloss.app.alignment import aligned
from topkloss.app.errors import InputError, shown
from topkloss.app.report.inspection import Inspection, inspect
from topkloss.app.runs.metrics import Numbers, sampling_margin
from topkloss.app.tasks.tables.records import LOSSES, ModelRecord, TableRecord

__all__ = ["hardest", "losses_of", "numbers_of", "rows_table"]

# Name in the record: what a reader calls it, and whether it is a share, shown in %.
METRICS = {
    "accuracy": ("accuracy, %", True),
    "balanced_accuracy": ("balanced accuracy, %", True),
    "auroc": ("mean AUROC, %", True),
    "cross_entropy": ("cross-entropy, nats", False),
    "r2": ("R2", False),
    "mean_absolute_error": ("mean absolute error", False),
    "root_mean_square_error": ("root mean square error", False),
}
# The unit in which a gain in each score is written.
GAINS = {
    "accuracy": (100.0, "points of accuracy"),
    "balanced-accuracy": (100.0, "points of balanced accuracy"),
    "cross-entropy": (1.0, "nats of cross-entropy"),
    "r2": (1.0, "of mean absolute error"),
    "absolute-error": (1.0, "of mean absolute error"),
}
HARDEST = 5

# The relative error of the weights that the estimators ask of their solver.
ASKED = 1e-4
MOST_CLASSES = 30


def rows_table(records: Sequence[TableRecord]) -> str:
    """A column for each model, that of a run and the plain average beside it; then what their difference is worth."""
    columns = [(record, model) for record in records for model in _models(record)]
    classes = list(dict.fromkeys(name for _, model in columns for name in model.recall))[:MOST_CLASSES]
    rows = [("", _names(records, several=len(records) > 1))]
    for name, (title, share) in METRICS.items():
        if any(name in model.metrics for _, model in columns):
            rows.append((title, [_shown(model.metrics.get(name), share) for _, model in columns]))
    rows += [(f"recall of {shown(one)}, %", [_shown(m.recall.get(one), True) for _, m in columns]) for one in classes]
    rows += [
        ("C", [f"{model.C:g}" for _, model in columns]),
        ("weights proved within, %", [_error(model) for _, model in columns]),
    ]
    lines = aligned([[title, *cells] for title, cells in rows])
    return "\n".join([*lines, "", *_verdicts(records)])


def hardest(folder: Path) -> str:
    """The held-out rows with the largest losses.

    Raises:
        InputError: If the file of the losses cannot be read.
    """
    path = folder / LOSSES
    with _held_out(path) as (unit, held_out):
        rows = [(float(row["loss"]), row[unit], row) for row in held_out]
    rows.sort(key=lambda one: -one[0])
    lines = [
        f"{unit} {line}: {shown(row['label'])}, predicted {shown(row['prediction'])}, loss {loss:.4g}"
        for loss, line, row in rows[:HARDEST]
    ]
    return "\n".join(["the hardest held-out rows:", *lines, f"all of them: {path}"])


def numbers_of(runs: Sequence[Path]) -> Numbers | None:
    """What the models of runs say of their held-out rows, to be drawn; None where they are classes.

    Raises:
        InputError: If several runs are not on the same numbers, or a file cannot be read.
    """
    records = [TableRecord.read(run) for run in runs]
    if any(record.data["classes"] for record in records) or len({one.data["measured"] for one in records}) > 1:
        if len(runs) > 1:
            raise InputError(
                f"`--metric` must come with one run on a table, or with runs on numbers that were measured on the same "
                f"rows; got {len(runs)} others. Draw them one by one."
            )
        return None
    predicted = {}
    for record in records:
        with _held_out(record.config.folder / LOSSES) as (unit, rows):
            places = tuple(int(row[unit]) for row in rows)
            true = tuple(float(row["label"]) for row in rows)
            for model, name in zip(_models(record), _names([record], several=len(runs) > 1), strict=True):
                column = "plain_average" if model is record.plain else "prediction"
                predicted[name] = tuple(float(row[column]) for row in rows)
    return Numbers(records[0].config.label_column, unit, places, true, predicted)


@contextmanager
def _held_out(path: Path) -> Iterator[tuple[str, list[dict[str, str]]]]:
    """What the lines count, and those of the rows held out; whoever finds that a file is no such file may say so.

    Raises:
        InputError: If it cannot be read, or a column or a number is missing.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            unit = (reader.fieldnames or ["line"])[0]
            rows = [row for row in reader if row["part"] == "held_out"]
        if not rows:
            raise ValueError("no held-out row")
        yield unit, rows
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        raise InputError(
            f"{path} must be what a run wrote; got {type(error).__name__}: {error}. Copy it whole, or train again."
        ) from error


def losses_of(run: Path) -> Inspection:
    """The losses of all rows of a run, to be drawn.

    Raises:
        InputError: If the file cannot be read.
    """
    classes = TableRecord.read(run).data["classes"]
    return inspect(run / LOSSES, class_column="label" if classes else None, part="all")


def _models(record: TableRecord) -> list[ModelRecord]:
    return [record.plain] if record.model.called == "average" else [record.plain, record.model]


def _names(records: Sequence[TableRecord], *, several: bool) -> list[str]:
    """The names of the models; with several runs, each with the folder of its run."""
    return [
        f"{record.config.folder}: {model.called}" if several else model.called
        for record in records
        for model in _models(record)
    ]


def _verdicts(records: Sequence[TableRecord]) -> list[str]:
    lines = [line for record in records for line in _verdict(record, len(records) > 1)]
    if len(records) > 1 and len({record.data["measured"] for record in records}) > 1:
        return [*lines, "Runs on other rows (another table or split): their figures do not compare."]
    accuracies = [record.model.metrics.get("accuracy") for record in records]
    known = [accuracy for accuracy in accuracies if accuracy is not None]
    if len(records) > 1 and len(known) == len(records):
        n = records[0].data["held_out"]
        points, difference = 100 * sampling_margin(min(known), max(known), n), 100 * (max(known) - min(known))
        said = "no more than" if difference <= points else "more than"
        lines.append(
            f"Between the runs accuracies differ by {difference:.1f} points, {said} the {points:.1f} that the choice "
            f"of {n} held-out rows\nexplains by chance."
        )
    return lines


def _verdict(record: TableRecord, several: bool) -> list[str]:
    """What may be said of a model and the plain average, both tuned, on the same rows."""
    n, model = record.data["held_out"], record.model
    run = f"{record.config.folder}: " if several else ""
    lines = []
    if model.called == "average":
        tried = "" if model.tried < 2 else f", by cross-validation the best of {model.tried} choices"
        lines.append(f"{run}The model is the plain average, C {model.C:g}{tried}: nothing was mined.")
    else:
        factor, unit = GAINS[record.config.score or "accuracy"]
        gain, points = factor * record.difference, factor * record.chance
        said = "no more than" if abs(gain) <= points else "more than"
        compared = f"{_rounded(abs(gain))} {unit} {'better' if gain > 0 else 'worse'} than"
        explained = f"{said} the {_rounded(points)} that the choice of these rows explains by chance."
        if gain == 0:
            compared, explained = "exactly as good as", f"it reaches the same {unit.rpartition('of ')[2]}."
        lines.append(
            f"{run}On {n} held-out rows {model.called} is {compared} the plain average, tuned as well:\n{explained} "
            "Another seed draws others: one run is no proof."
        )
    for one in _models(record):
        if one.error is not None and one.error > ASKED:
            lines.append(
                f"{run}The solver ended {one.called} with weights proved within {100 * one.error:.1g} %, not the "
                f"{100 * ASKED:g} % asked for: predictions\nthat are nearly even may be others."
            )
    if model.is_zero:
        lines.append(
            f"{run}The model predicts the same for every row: the fraction {model.fraction:g} is too small for these "
            "data. Pass larger --fractions."
        )
    return lines


def _rounded(value: float) -> str:
    """Two digits that count, without a power of ten where there is no need."""
    return f"{float(f'{value:.2g}'):g}"


def _error(model: ModelRecord) -> str:
    """The bound that the duality gap proves."""
    return "all 0" if model.error is None or model.is_zero else f"{100 * model.error:.1g}"


def _shown(value: float | None, share: bool) -> str:
    if value is None:
        return "-"
    return f"{100 * value:.1f}" if share else f"{value:.4g}"
