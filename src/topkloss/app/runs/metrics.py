"""What was measured of a run on labelled images: a frozen record, written as a file.

Nothing here needs torch, so that a report shows it in an instant.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from topkloss.app.errors import InputError
from topkloss.app.runs.files import replacing
from topkloss.app.runs.held_out import HELD_OUT, HeldOut

__all__ = [
    "UNITS",
    "Bin",
    "ClassMetrics",
    "Evaluation",
    "Metric",
    "Numbers",
    "Unit",
    "check_out_folder",
    "check_score",
    "in_file",
    "write_evaluation",
]


@dataclass(frozen=True)
class Metric:
    """A number and its 95 % interval over the choice of images.

    Attributes:
        value: None where it is undefined.
        low: The 2.5 % quantile of the resamples; None where there is no interval.
        high: The 97.5 % quantile.
    """

    value: float | None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class ClassMetrics:
    """One class against the rest; a metric is None where it would divide by 0.

    Attributes:
        name: Of the class.
        support: Images of the class.
        predicted: Images that the model takes for it.
        precision: Share of those predicted that are of the class.
        recall: Share of those of the class that are predicted.
        f1: Harmonic mean of the two: twice the right ones over support plus predicted.
        auroc: Probability that an image of the class gets a larger probability of it than one of another; ties
            count half.
    """

    name: str
    support: int
    predicted: int
    precision: float | None
    recall: float | None
    f1: float | None
    auroc: float | None


@dataclass(frozen=True)
class Bin:
    """Images whose predicted class has a probability between two bounds.

    Attributes:
        low: The lower bound, included.
        high: The upper bound, excluded, but for that of the last bin, 1.
        images: Their number.
        confidence: Mean of these probabilities; None where there is no image.
        accuracy: Share of the images that are classified right; None where there is no image.
    """

    low: float
    high: float
    images: int
    confidence: float | None
    accuracy: float | None


@dataclass(frozen=True)
class Numbers:
    """Rows whose labels are numbers, and what models say of them.

    Attributes:
        label: The column of the labels, in whose unit all these numbers are.
        unit: What a place counts: "line" or "row".
        places: Of the rows, in their table.
        true: Their labels.
        predicted: Of each model, by what a reader calls it, a number for each row; the last is the one that was chosen.
    """

    label: str
    unit: str
    places: tuple[int, ...]
    true: tuple[float, ...]
    predicted: dict[str, tuple[float, ...]]

    def largest(self, name: str, count: int) -> list[int]:
        """The rows, by their order here, with the largest absolute errors of a model, the largest first."""
        errors = self.errors(name)
        return sorted(range(len(errors)), key=lambda row: -errors[row])[:count]

    def errors(self, name: str) -> list[float]:
        """The absolute errors of a model."""
        return [abs(one - true) for one, true in zip(self.predicted[name], self.true, strict=True)]


@dataclass(frozen=True)
class Evaluation:
    """A run, measured.

    Attributes:
        run: Its folder.
        data: The table of the images.
        digest: Of the table (SHA-256).
        held_out: Whether they are the run's own held-out images.
        images: Their number; rows, where `unit` says so.
        metrics: `accuracy`, `balanced_accuracy`, `f1`, `auroc` (both the plain mean over the classes that have one),
            `cross_entropy` in nats, `calibration_error`, of models that have these; of numbers `r2`,
            `mean_absolute_error`, `root_mean_square_error`, and no classes.
        classes: In the order of the model's outputs.
        confusion: Images of each class, a row, that were taken for each, a column.
        bins: Of the reliability diagram.
        resamples: How often the images were drawn for the intervals.
        seed: Of the drawing.
        unit: What was measured: "images" or "rows".
        numbers: Of a model of numbers each row, for the text and the picture; not written.
        said: Of the run's own held-out examples what it says of each, written beside; None for others.
    """

    run: str
    data: str
    digest: str
    held_out: bool
    images: int
    metrics: dict[str, Metric]
    classes: tuple[ClassMetrics, ...]
    confusion: tuple[tuple[int, ...], ...]
    bins: tuple[Bin, ...]
    resamples: int
    seed: int
    unit: str = "images"
    numbers: Numbers | None = None
    said: HeldOut | None = None

    def write(self, path: Path) -> None:
        """Writes it as JSON; what is undefined is null."""
        with replacing(path) as partial:
            content = {in_file(name): value for name, value in asdict(replace(self, numbers=None, said=None)).items()}
            del content["numbers"], content["said"]
            text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
            partial.write_text(text + "\n", encoding="utf-8")


@dataclass(frozen=True)
class Unit:
    """How a difference in a score is written.

    Attributes:
        factor: By which it is multiplied.
        words: What it then counts.
        share: Whether an example is right or wrong, so that the score moves in steps.
        smaller: Whether the score is the smaller the better.
    """

    factor: float
    words: str
    share: bool = False
    smaller: bool = False


# By which runs are judged; those of `OF_NUMBERS` where labels are numbers.
UNITS: Mapping[str, Unit] = {
    "accuracy": Unit(100, "points of accuracy", share=True),
    "balanced-accuracy": Unit(100, "points of balanced accuracy", share=True),
    "f1": Unit(100, "points of mean F1", share=True),
    "auroc": Unit(100, "points of mean AUROC"),
    "cross-entropy": Unit(1, "nats of cross-entropy", smaller=True),
    "r2": Unit(1, "of R2"),
    "absolute-error": Unit(1, "of mean absolute error", smaller=True),
}
OF_NUMBERS = ("r2", "absolute-error")


def check_score(score: str | None, *, numbers: bool) -> None:
    """Whether runs can be judged by a score.

    Args:
        score: Of the option; None where it was not given.
        numbers: Whether the labels are numbers, not classes.

    Raises:
        InputError: If it is none, or one of other labels.
    """
    fit = [name for name in UNITS if (name in OF_NUMBERS) == numbers]
    if score is not None and score not in fit:
        what = "numbers" if numbers else "classes"
        raise InputError(f"`--score` must be one of {', '.join(fit)} for {what}; got {score}. Pass --score {fit[0]}.")


def in_file(name: str) -> str:
    """What a field is called in the files of a run, which hold the metrics as ``figures``."""
    return "figures" if name == "metrics" else name


def check_out_folder(out: Path) -> None:
    """What can be said of the folder for an evaluation before there is one.

    Raises:
        InputError: If a file is in its place, or nothing may be written where it is or would be made.
    """
    there = next(one for one in (out, *out.absolute().parents) if one.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        reason = os.strerror(errno.EACCES if there.is_dir() else errno.EEXIST if there == out else errno.ENOTDIR)
        raise _unwritable(out, reason)


def _unwritable(folder: Path, reason: str | None) -> InputError:
    return InputError(f"`--out` must be a folder that can be written to; got {folder}: {reason}. Pass another.")


def write_evaluation(evaluation: Evaluation, out: Path | None) -> Path:
    """Writes ``evaluation.json``, and ``held_out.csv`` into a run that has none.

    Args:
        evaluation: What to write.
        out: The folder, made if need be. Default: that of the run; for another table, one in it, named after the table.

    Returns:
        The path of the file.

    Raises:
        InputError: If it cannot be written.
    """
    folder = out or Path(evaluation.run) / ("" if evaluation.held_out else Path(evaluation.data).stem)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        evaluation.write(folder / "evaluation.json")
        if evaluation.said is not None and out is None and not (folder / HELD_OUT).exists():
            evaluation.said.write(folder)  # a run of an earlier version, or one that lost it
    except OSError as error:
        raise _unwritable(folder, error.strerror) from error
    return folder / "evaluation.json"
