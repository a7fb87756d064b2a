"""A table of features, each row with a class or a number: the verbs of the command, each with what it loads."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from topkloss.app.errors import InputError
from topkloss.app.loading import loading
from topkloss.app.tasks.interface import Checked, Predicted, RunLosses, Task
from topkloss.app.tasks.tables.config import LOSSES, TableConfig

if TYPE_CHECKING:
    from topkloss.app.runs.metrics import Evaluation

__all__ = ["TABLES"]


def _check(config: TableConfig, workers: int | None) -> Checked:
    with loading():
        from topkloss.app.tasks.tables.check import check_table
    return check_table(config)


def _fit(config: TableConfig) -> str:
    with loading():
        from topkloss.app.tasks.tables.fit import fit_table
        from topkloss.app.tasks.tables.text import rows_table
    record = fit_table(config)
    return f"\n{rows_table([record])}\n\nresults: {record.config.folder}"


def _resume(run: Path, asked: Mapping[str, Any]) -> str:
    raise InputError(
        f"`--resume` must be a run on images; got {run}, on a table, which is written when it is finished. "
        "Pass its config.yaml as --config to fit anew."
    )


def _evaluate(
    run: Path, *, csv: Path | None, images: Path | None, batch_size: int, workers: int | None, device: str
) -> Evaluation:
    with loading():
        from topkloss.app.tasks.tables.evaluate import evaluate_table, load_table_run
    return evaluate_table(load_table_run(run), csv=csv, images=images)


def _predict(
    run: Path, inputs: Sequence[Path], out: Path, *, batch_size: int, workers: int | None, device: str
) -> Predicted:
    with loading():
        from topkloss.app.tasks.tables.evaluate import load_table_run
        from topkloss.app.tasks.tables.predict import write_table_predictions
    rows = write_table_predictions(load_table_run(run), inputs, out)
    return Predicted(f"{rows.lines - rows.bad} rows predicted: {out}", rows.notes())


def _export(run: Path, out: Path) -> str:
    """A linear model needs no format of networks."""
    raise InputError(
        f"`RUN` must be a run on images; got {run}, on a table. Its model is in model.json, as plain numbers: "
        "docs/features.md says how to use them."
    )


def _report(runs: Sequence[Path], figure: Path | None, score: str | None) -> str:
    from topkloss.app.runs.held_out import HeldOut
    from topkloss.app.runs.metrics import check_score
    from topkloss.app.tasks.tables.records import TableRecord
    from topkloss.app.tasks.tables.text import hardest, rows_table

    records = [TableRecord.read(run) for run in runs]
    held = [HeldOut.read(run, record.data["held_out"]) for run, record in zip(runs, records, strict=True)]
    for record in records:
        check_score(score, numbers=not record.data["classes"])
    if figure is not None:
        from topkloss.app.tasks.tables.plot import draw_rows

        draw_rows(runs, figure)
    return "\n\n".join([rows_table(records, held, score=score), *map(hardest, runs)])


def _losses(run: Path) -> RunLosses:
    """The sum over the classes, each against the rest; of softmax, and of two classes, there is one problem."""
    from topkloss.app.tasks.tables.records import LOSSES as FILE
    from topkloss.app.tasks.tables.records import TableRecord

    record = TableRecord.read(run)
    loss, classes = record.config.row_loss, len(record.data["classes"])
    if not classes:
        return RunLosses(run / FILE, None, None, False)
    each = math.log(2) if loss == "logistic" else 1.0
    zero = math.log(classes) if loss == "softmax" else each * (1 if classes == 2 else classes)
    return RunLosses(run / FILE, "label", zero, loss == "softmax" or (loss == "logistic" and classes == 2))


TABLES = Task(
    names=tuple(LOSSES),
    what="a table of features",
    detail="whose labels are classes or numbers",
    data="tables",
    config=TableConfig,
    layout=frozenset(
        {"csv", "seed", "split-seed", "label-column", "weight-column", "split-column", "group-by", "held-out"}
        | {"ignore", "categorical", "missing", "max-categories"}
    ),
    check=_check,
    fit=_fit,
    resume=_resume,
    evaluate=_evaluate,
    predict=_predict,
    export=_export,
    losses=_losses,
    report=_report,
    instead={
        "fraction": "Pass --fractions, which takes one or more.",
        "loss": "Pass --fractions 1 for the average, --row-loss for the loss of a row.",
    },
)
