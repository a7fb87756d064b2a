"""An evaluation, as text: the metrics with their intervals, then the classes."""

from __future__ import annotations

from topkloss.app.alignment import aligned, shortened
from topkloss.app.runs.metrics import ClassMetrics, Evaluation, Metric

__all__ = ["text"]

# More classes than these nobody reads: the ones with the least F1 are shown.
MOST_CLASSES = 30
LONGEST_NAME = 24
# Errors that are named, in the text and in the picture.
LARGEST = 5

# Name in the record: what a reader calls it, and whether it is a share, shown in %.
METRICS = {
    "accuracy": ("accuracy, %", True),
    "balanced_accuracy": ("balanced accuracy, %", True),
    "f1": ("mean F1, %", True),
    "auroc": ("mean AUROC, %", True),
    "calibration_error": ("expected calibration error, %", True),
    "cross_entropy": ("cross-entropy, nats", False),
    "r2": ("R2", False),
    "mean_absolute_error": ("mean absolute error", False),
    "root_mean_square_error": ("root mean square error", False),
}
# In the unit of the labels, which may be anything.
IN_UNITS = ("mean_absolute_error", "root_mean_square_error")


def text(evaluation: Evaluation) -> str:
    """The tables, and what is undefined and why."""
    which = f"held-out {evaluation.unit}" if evaluation.held_out else f"{evaluation.unit} of {evaluation.data}"
    classes = ["", *_classes(evaluation)] if evaluation.classes else []
    head = f"{evaluation.run} on {evaluation.images} {which}"
    return "\n".join([head, "", *_headline(evaluation), *classes, *_largest(evaluation), *_notes(evaluation)])


def _headline(evaluation: Evaluation) -> list[str]:
    rows: list[tuple[str, ...]] = [("", "", "95 % interval")]
    for name, (title, share) in METRICS.items():
        metric = evaluation.metrics.get(name)
        if metric is None:
            continue
        form = ".5g" if name in IN_UNITS else ".4f"
        rows.append((title, _shown(metric.value, share, form), _interval(metric, share, form)))
    return aligned(rows)


def _largest(evaluation: Evaluation) -> list[str]:
    """The rows that are farthest off, where labels are numbers."""
    if (numbers := evaluation.numbers) is None:
        return []
    predicted = [*numbers.predicted.values()][-1]
    rows = numbers.largest([*numbers.predicted][-1], LARGEST)
    return ["", "the largest errors:"] + [
        f"{numbers.unit} {numbers.places[row]}: {numbers.true[row]:.7g}, predicted {predicted[row]:.7g}" for row in rows
    ]


def _classes(evaluation: Evaluation) -> list[str]:
    shown = _least(evaluation)
    titles = ("class", evaluation.unit, "predicted", "precision, %", "recall, %", "F1, %", "AUROC, %")
    rows: list[tuple[str, ...]] = [titles]
    for one in shown:
        metrics = [_shown(metric, True) for metric in (one.precision, one.recall, one.f1, one.auroc)]
        rows.append((_name(one.name), str(one.support), str(one.predicted), *metrics))
    lines = aligned(rows)
    if len(shown) < len(evaluation.classes):
        lines.append(f"and {len(evaluation.classes) - len(shown)} classes with a larger F1, in evaluation.json")
    return lines


def _least(evaluation: Evaluation) -> list[ClassMetrics]:
    """The classes to show, in their order."""
    ranked = sorted(evaluation.classes, key=lambda one: 2.0 if one.f1 is None else one.f1)
    shown = {one.name for one in ranked[:MOST_CLASSES]}
    return [one for one in evaluation.classes if one.name in shown]


def _notes(evaluation: Evaluation) -> list[str]:
    absent = [_name(one.name) for one in evaluation.classes if one.support == 0]
    notes = []
    if absent:
        listed = ", ".join(absent[:5]) + (f" and {len(absent) - 5} others" if len(absent) > 5 else "")
        notes.append(
            f"No {evaluation.unit[:-1]} of {listed}: recall and AUROC are undefined there, and the means leave them "
            "out."
        )
    if any(one.precision is None for one in evaluation.classes):
        notes.append("A class that is never predicted has no precision.")
    auroc, accuracy = evaluation.metrics.get("auroc"), evaluation.metrics.get("accuracy")
    if auroc is not None and auroc.value is not None and auroc.low is None:
        notes.append(
            f"The AUROC has no interval here: {evaluation.unit} x classes are too many to rank again and again."
        )
    if accuracy is not None and accuracy.value == 1:
        most = min(1.0, 3 / evaluation.images)
        notes.append(
            f"No error on {evaluation.images} {evaluation.unit} is compatible with an error rate of up to "
            f"{_shown(most, True)} %."
        )
    return ["", *notes] if notes else []


def _shown(value: float | None, share: bool, form: str = ".4f") -> str:
    if value is None:
        return "-"
    return f"{100 * value:.1f}" if share else f"{value:{form}}"


def _interval(metric: Metric, share: bool, form: str) -> str:
    return "-" if metric.low is None else f"{_shown(metric.low, share, form)} to {_shown(metric.high, share, form)}"


def _name(name: str) -> str:
    """A class name on one line, of bearable length, without what would command a terminal."""
    clean = "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in name)
    return shortened(clean, LONGEST_NAME)
