"""One run on a table, from a `TableConfig` to a folder with a model, metrics and the loss of every row."""

from __future__ import annotations

import csv
import math
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

import topkloss
from topkloss.app.data.examples import imbalance, too_uneven
from topkloss.app.errors import InputError, shown
from topkloss.app.options.option import known
from topkloss.app.runs.cells import name_in
from topkloss.app.runs.files import check_new
from topkloss.app.runs.held_out import MODEL, PLAIN
from topkloss.app.tasks.tables.columns import Floats
from topkloss.app.tasks.tables.config import TableConfig, checked
from topkloss.app.tasks.tables.encoding import Encoding
from topkloss.app.tasks.tables.measure import gains, judged_by, measure_rows
from topkloss.app.tasks.tables.model import Linear, write_models
from topkloss.app.tasks.tables.recording import held_out_of
from topkloss.app.tasks.tables.records import LOSSES, ModelRecord, TableRecord
from topkloss.app.tasks.tables.search import Fitted, Training, search
from topkloss.app.tasks.tables.source import Data, read_data
from topkloss.ranking.selection import topk_select

__all__ = ["fit_table", "summary"]


def fit_table(config: TableConfig) -> TableRecord:
    """Chooses fraction and C, fits the model and the plain average beside it, and measures both on held-out rows.

    Args:
        config: What to do.

    Returns:
        The record, as it stands in ``config.folder``, which appears when all is done.

    Raises:
        InputError: One sentence; nothing is written then.
    """
    config = replace(checked(config), out=str(config.folder))
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InputError("A table must be fitted in one process; got several. Run it without torchrun.")
    with _whole(config.folder) as partial:
        data = read_data(config)
        encoding = Encoding.of(data.rows, data.train, data.kinds, config)
        print(summary(data, encoding, config.score), flush=True)
        training, began = _training(data, encoding), time.monotonic()
        fitted = search(training, config, known(config.fractions, "fractions"), drop=config.drop_fraction)
        if fitted.fraction == 1 and config.drop_fraction is None:
            plain = replace(fitted, tried=len(config.C))  # a search of it alone sees the same folds and scores
        else:
            plain = search(training, config, (1.0,), drop=None)
        seconds = time.monotonic() - began
        model, average = (Linear.of(one.model, config, data.classes) for one in (fitted, plain))
        features, labels = encoding.encode(data.rows, data.held_out), data.labels[data.held_out]
        judged = judged_by(known(config.score, "score"), labels)
        difference, chance = gains(model, average, features, labels, judged)
        record = TableRecord(
            replace(config, csv=os.path.abspath(data.table.source)),
            {"python": platform.python_version(), "topkloss": topkloss.__version__}
            | {name: version(name) for name in ("numpy", "scipy", "scikit-learn")},
            _told(data, encoding),
            _record(fitted, model, training, config, features, labels, config.drop_fraction),
            _record(plain, average, training, config, features, labels, None),
            difference,
            chance,
            seconds,
            judged,
        )
        write_models(partial, encoding, model, average)
        _write_losses(partial / LOSSES, data, training, features, (model, average), record)
        held_out_of(data, features, {MODEL: model, PLAIN: average}).write(partial)
        record.write(partial)
    return record


def summary(data: Data, encoding: Encoding, score: str | None) -> str:
    """How many rows there are, how uneven the classes, what becomes of the columns."""
    lines = [f"{len(data.train)} rows to train on, {len(data.held_out)} held out"]
    if data.classes:
        counts = np.bincount(data.labels[data.train].astype(np.intp), minlength=len(data.classes)).tolist()
        of_class = dict(zip(data.classes, counts, strict=True))
        lines[0] += f"; {imbalance(of_class).replace('images', 'rows')}"
        if too_uneven(of_class) and score == "accuracy":
            lines.append(
                "accuracy, which is chosen by, hardly sees the rare class: consider --score balanced-accuracy "
                "--class-weights balanced"
            )
    kinds = encoding.kinds
    lines.append(
        f"{len(encoding.features)} features: {len(kinds.numbers)} columns of numbers, {len(kinds.words)} of words"
        + (f" ({', '.join(map(shown, kinds.words))})" if kinds.words else "")
    )
    if data.table.commas:
        lines.append(f"decimal commas were read as points: {', '.join(map(shown, sorted(data.table.commas)))}")
    if gone := encoding.missing(data.rows):
        columns = ", ".join(f"{shown(name)} ({count})" for name, count in gone.items())
        lines.append(f"missing numbers become the median, and a feature says where: {columns}")
    if encoding.left_out:
        lines.append(
            f"left out, the same (or nothing) in every training row: {', '.join(map(shown, encoding.left_out))}"
        )
    if counting := [name for name in kinds.numbers if _counts(data.rows.numbers[name])]:
        lines.append(
            f"numbers that only count the rows are no features; should it be --ignore {' '.join(map(shown, counting))}?"
        )
    return "\n".join(lines)


@contextmanager
def _whole(folder: Path) -> Iterator[Path]:
    """A folder beside, which takes the place of the run's at the end: there is a whole run, or none."""
    folder = folder.absolute()
    try:
        check_new(folder, resumable=False)
        existed = next(parent for parent in folder.parents if parent.exists())
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=folder.parent))
    except OSError as error:
        raise InputError(
            f"`--out` must be a folder that can be made; got {folder}: {error.strerror}. Pass another."
        ) from error
    try:
        yield partial
        try:
            partial.chmod(0o755)
            partial.replace(folder)
        except OSError as error:
            raise InputError(
                f"`--out` must be a new or empty folder; got {folder}: {error.strerror}. Pass another."
            ) from error
    except OSError as error:
        raise InputError(
            f"`--out` must have room for the run; got {folder}: {error.strerror or error}. Free some, or pass another."
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        for parent in folder.parents:
            if parent == existed or not parent.exists() or any(parent.iterdir()):
                break
            parent.rmdir()


def _training(data: Data, encoding: Encoding) -> Training:
    rows, train = data.rows, data.train
    groups = [rows.groups[index] or "" for index in train]
    return Training(
        encoding.encode(rows, train),
        data.labels[train],
        None if rows.weights is None else rows.weights[train],
        groups if any(groups) else None,
        data.classes,
    )


def _told(data: Data, encoding: Encoding) -> dict[str, object]:
    return {
        "digest": data.table.digest,
        "measured": data.digest_of_held_out(),
        "train": len(data.train),
        "held_out": len(data.held_out),
        "classes": list(data.classes),
        "features": len(encoding.features),
        "numbers": len(encoding.numbers),
        "words": len(encoding.words),
        "left_out": list(encoding.left_out),
    }


def _record(
    fitted: Fitted,
    model: Linear,
    training: Training,
    config: TableConfig,
    features: Floats,
    labels: Floats,
    drop: float | None,
) -> ModelRecord:
    """What is proved of a model, and what was measured."""
    gaps = np.atleast_1d(fitted.model.dual_gap_)
    lengths = np.linalg.norm(model.coefficients, axis=1)
    if config.row_loss == "softmax":  # one problem; of two classes the difference of two opposite rows is kept
        lengths = np.array([np.linalg.norm(model.coefficients) / (math.sqrt(2) if len(model.classes) == 2 else 1)])
    error = None
    if (lengths > 0).all():
        mass = float(_mass(training, config).sum())
        error = float((np.sqrt(2 * fitted.C * mass * gaps) / lengths).max())
    found = measure_rows(model, features, labels, resamples=0)
    return ModelRecord(
        fraction=float(fitted.fraction),
        drop_fraction=drop,
        C=float(fitted.C),
        score=fitted.score,
        tried=fitted.tried,
        is_zero=model.is_zero,
        threshold=tuple(np.atleast_1d(fitted.model.threshold_).tolist()),
        dual_gap=tuple(gaps.tolist()),
        error=error,
        metrics={name: metric.value for name, metric in found.metrics.items()},
        recall={one.name: one.recall for one in found.classes},
    )


def _mass(training: Training, config: TableConfig) -> Floats:
    """The mass of each training row: its weight times that of its class."""
    mass = np.ones(len(training.labels)) if training.weights is None else training.weights
    if config.class_weights == "none":
        return mass
    codes = training.labels.astype(np.intp)
    held = np.bincount(codes, weights=mass, minlength=len(training.classes))
    each: Floats = mass * (mass.sum() / (len(held) * held))[codes]
    return each


def _write_losses(
    path: Path, data: Data, training: Training, held_out: Floats, models: Sequence[Linear], record: TableRecord
) -> None:
    """A line for each row that is trained on or held out: what is predicted, its loss, what share was averaged."""
    model, (places, both) = models[0], ([*data.train, *data.held_out], (training.features, held_out))
    of_train = model.losses(training.features, training.labels)
    losses = np.concatenate([of_train, model.losses(held_out, data.labels[data.held_out])])
    predicted, plain = ([label for features in both for label in one.predicted(features)] for one in models)
    chosen = _selected(of_train, _mass(training, record.config), record.model)
    shares = [*(f"{share:.4g}" for share in chosen), *([""] * len(data.held_out))]
    parts = ["train"] * len(data.train) + ["held_out"] * len(data.held_out)
    with path.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        writer = csv.writer(file)
        writer.writerow([data.table.unit, "part", "label", "prediction", "loss", "selected", "plain_average"])
        columns = zip(places, parts, predicted, losses.sum(1), shares, plain, strict=True)
        for index, part, prediction, loss, share, other in columns:
            row = data.rows
            said = [name_in(one) for one in (row.labels[index], prediction, other)]
            writer.writerow([row.lines[index], part, *said[:2], f"{loss:.7g}", share, said[2]])


def _selected(losses: Floats, mass: Floats, record: ModelRecord) -> Floats:
    """The share of each training row that was averaged, mean over the problems."""
    total, drop = float(mass.sum()), record.drop_fraction or 0.0
    weight, shares = torch.from_numpy(np.array(mass)), np.zeros(len(losses))
    for problem in losses.T:
        each = torch.from_numpy(np.array(problem))

        def taken(k: float, each: torch.Tensor = each) -> Floats:
            found: Floats = (topk_select(each, k=min(k, total), sample_weight=weight).weights * min(k, total)).numpy()
            return found

        share = taken((record.fraction + drop) * total) - (taken(drop * total) if drop else 0.0)
        shares += np.divide(share, mass, out=np.zeros(len(mass)), where=mass > 0)
    found: Floats = np.clip(shares / losses.shape[1], 0.0, 1.0)
    return found


def _counts(column: Floats) -> bool:
    """Whether each number is one more than that before, from row to row."""
    return len(column) > 2 and bool((np.diff(column) == 1).all())
