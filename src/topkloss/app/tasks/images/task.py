"""Images, each of one class: the verbs of the command, each with what it loads."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from topkloss.app.data.layout import DataOptions
from topkloss.app.data.passed import passed_over
from topkloss.app.loading import loading
from topkloss.app.tasks.images.config import TrainConfig
from topkloss.app.tasks.images.records import LOSSES, RunRecord
from topkloss.app.tasks.interface import Checked, Predicted, RunLosses, Task

if TYPE_CHECKING:
    from topkloss.app.runs.metrics import Evaluation

__all__ = ["IMAGES"]


def _check(config: TrainConfig, workers: int | None) -> Checked:
    with loading():
        from topkloss.app.tasks.images.check import check
    return check(config.csv, config.data_options, seed=config.split, workers=workers)


def _fit(config: TrainConfig) -> str:
    with loading():
        from topkloss.app.tasks.images.fit import fit
    return _trained(fit(config))


def _resume(run: Path, asked: Mapping[str, Any]) -> str:
    with loading():
        from topkloss.app.tasks.images.fit import resume
    return _trained(resume(run, asked))


def _trained(record: RunRecord) -> str:
    if os.environ.get("RANK", "0") != "0":
        return ""
    accuracy, number = 100 * record.last.accuracy, record.data["held_out"]
    lines = [f"accuracy {accuracy:.1f} % on {number} held-out images", f"results: {record.config.folder}"]
    if record.best_epoch is not None:
        lines[:0] = [
            f"the weights are those of epoch {record.best_epoch} of {len(record.epochs)}, whose held-out "
            f"cross-entropy, {record.last.cross_entropy:.4f}, is the lowest"
        ]
    elif record.config.early_stopping is not None:
        lowest = min(record.epochs, key=lambda epoch: epoch.cross_entropy)
        lines[:0] = [
            f"the weights are those of the last epoch, {len(record.epochs)}: an earlier version, which kept no best "
            f"ones, made epoch {lowest.epoch}, whose held-out cross-entropy, {lowest.cross_entropy:.4f}, is the lowest"
        ]
    return "\n".join(lines)


def _evaluate(
    run: Path, *, csv: Path | None, images: Path | None, batch_size: int, workers: int | None, device: str
) -> Evaluation:
    with loading():
        from topkloss.app.tasks.images.evaluate import evaluate
        from topkloss.app.tasks.images.run import load_run
    return evaluate(load_run(run, device=device), csv=csv, images=images, batch_size=batch_size, workers=workers)


def _predict(
    run: Path, inputs: Sequence[Path], out: Path, *, batch_size: int, workers: int | None, device: str
) -> Predicted:
    with loading():
        from topkloss.app.tasks.images.predict import write_predictions
        from topkloss.app.tasks.images.run import load_run
    passed: Counter[str] = Counter()
    lines, bad = write_predictions(
        load_run(run, device=device), inputs, out, batch_size=batch_size, workers=workers, passed=passed
    )
    notes = [f"{bad} of {lines} images are bad; the column `error` says why."] if bad else []
    notes += [f"{passed_over(passed)}."] if passed else []
    return Predicted(f"{lines - bad} images predicted: {out}", notes)


def _export(run: Path, out: Path) -> str:
    with loading():
        from topkloss.app.tasks.images.export import export
        from topkloss.app.tasks.images.run import load_run
    exported = export(load_run(run), out)
    return (
        f"largest difference from the model on {exported.images} random images: {exported.difference:.1e}, "
        f"at most {exported.limit:.1e} allowed\nresults: {exported.path}"
    )


def _report(runs: Sequence[Path], figure: Path | None, score: str | None) -> str:
    from topkloss.app.runs.held_out import HeldOut
    from topkloss.app.runs.metrics import check_score
    from topkloss.app.tasks.images.text import table

    check_score(score, numbers=False)
    records = [RunRecord.read(run) for run in runs]
    held = [HeldOut.read(run, record.data["held_out"]) for run, record in zip(runs, records, strict=True)]
    if figure is not None:
        from topkloss.app.tasks.images.plot import draw

        draw(records, figure)
    return table(records, held, score=score or "accuracy")


def _losses(run: Path) -> RunLosses:
    return RunLosses(run / LOSSES, "label", math.log(len(RunRecord.read(run).classes)), True)


IMAGES = Task(
    names=("images",),
    what="images",
    detail="",
    data="images",
    config=TrainConfig,
    layout=frozenset({"csv", "seed", "split-seed", *(one.name.replace("_", "-") for one in fields(DataOptions))}),
    check=_check,
    fit=_fit,
    resume=_resume,
    evaluate=_evaluate,
    predict=_predict,
    export=_export,
    losses=_losses,
    report=_report,
    loading=frozenset({"batch-size", "workers", "device"}),
)
