"""A run on labelled rows: its own held-out ones, or those of another table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from topkloss.app.errors import InputError, shown
from topkloss.app.runs.classification import RESAMPLES
from topkloss.app.runs.held_out import MODEL, PLAIN
from topkloss.app.runs.metrics import Evaluation, Numbers
from topkloss.app.tasks.tables.columns import Floats, Table
from topkloss.app.tasks.tables.encoding import Encoding
from topkloss.app.tasks.tables.measure import measure_rows
from topkloss.app.tasks.tables.model import Linear, load_models
from topkloss.app.tasks.tables.recording import held_out_of
from topkloss.app.tasks.tables.records import TableRecord
from topkloss.app.tasks.tables.source import Data, read_data, read_labelled

__all__ = ["TableRun", "evaluate_table", "load_table_run"]

SEED = 0


@dataclass(frozen=True)
class TableRun:
    """What evaluates and predicts.

    Attributes:
        folder: Where it was loaded from.
        record: What was asked and what came out.
        encoding: How rows become features.
        model: The one that was chosen.
        plain: The plain average.
    """

    folder: Path
    record: TableRecord
    encoding: Encoding
    model: Linear
    plain: Linear


def load_table_run(folder: str | Path) -> TableRun:
    """Opens the folder of a finished run on a table; all in it is numbers and words.

    Raises:
        InputError: One sentence, if it is not finished, not whole or not of this program.
    """
    folder = Path(folder)
    record = TableRecord.read(folder)
    encoding, model, plain = load_models(folder)
    if (record.config.task == "regression") == bool(model.classes):
        raise InputError(
            f"{folder} must hold a model of its task, {record.config.task}; got another. Copy it whole, or train again."
        )
    return TableRun(folder, record, encoding, model, plain)


def evaluate_table(run: TableRun, *, csv: str | Path | None = None, images: str | Path | None = None) -> Evaluation:
    """Measures a run; `topkloss.app.tasks.tables.measure.measure_rows` defines the metrics.

    Args:
        run: From `load_table_run`.
        csv: A table with the columns of the run. Default: the rows that the run held out, which follow from its table
            and its seed.
        images: Must be None: a table has none.

    Raises:
        InputError: If images are given; if the table cannot be read, or, the default, is no longer what the
            run was trained on.
    """
    if images is not None:
        raise InputError(f"`--images` must be left out for a run on a table; got {images}. Leave it out.")
    if csv is None:
        data = _held_out(run)
        table, rows, places = data.table, data.rows, list(data.held_out)
        features, labels = run.encoding.encode(rows, places), data.labels[places]
    else:
        table, rows, labels = read_labelled(Path(csv), run.record.config, run.encoding.kinds, run.model.classes)
        features, places = run.encoding.encode(rows), list(range(len(rows)))
    found = measure_rows(run.model, features, labels, seed=SEED)
    return Evaluation(
        run=str(run.folder),
        data=str(table.source),
        digest=table.digest,
        held_out=csv is None,
        images=len(labels),
        metrics=found.metrics,
        classes=found.classes,
        confusion=found.confusion,
        bins=found.bins,
        resamples=RESAMPLES,
        seed=SEED,
        unit="rows",
        numbers=None
        if run.model.classes
        else _numbers(run, table, [rows.lines[at] for at in places], features, labels),
        said=held_out_of(data, features, {MODEL: run.model, PLAIN: run.plain}) if csv is None else None,
    )


def _numbers(run: TableRun, table: Table, places: Sequence[int], features: Floats, labels: Floats) -> Numbers:
    """What the plain average and, where it is another, the chosen model say."""
    record = run.record
    models = {record.plain.called: run.plain, record.model.called: run.model}
    predicted = {name: tuple(model.numbers(features).tolist()) for name, model in models.items()}
    return Numbers(record.config.label_column, table.unit, tuple(places), tuple(labels.tolist()), predicted)


def _held_out(run: TableRun) -> Data:
    config = run.record.config
    source = Path(config.csv or "")
    if not source.exists():
        raise InputError(
            f"{run.folder} was trained on {shown(source)}, which must be there to find its held-out rows; got no such "
            "file. Put it back, or pass --data."
        )
    data = read_data(replace(config, out=None), kinds=run.encoding.kinds)
    if data.digest_of_held_out() != run.record.data["measured"] or data.classes != run.model.classes:
        raise InputError(
            f"{shown(source)} must be what {run.folder} was trained on; got another content, so nobody knows which "
            "rows were held out. Restore it, or pass --data with rows that the run has not seen."
        )
    return data
