"""Runs side by side, as text, and what their difference is worth."""

from __future__ import annotations

from collections.abc import Sequence

from topkloss.app.alignment import aligned
from topkloss.app.runs.metrics import sampling_margin
from topkloss.app.tasks.images.records import RunRecord

__all__ = ["classes", "names", "table"]


def table(records: Sequence[RunRecord]) -> str:
    """A column per run: accuracy, cross-entropy and the recall of each class on the held-out images, and the cost."""
    rows = [
        ("", names(records)),
        ("accuracy, %", [_percent(record.last.accuracy) for record in records]),
        ("mean recall, %", [_percent(_mean(record.recall)) for record in records]),
        *(
            (f"recall of {label}, %", [_percent(record.recall.get(label)) for record in records])
            for label in classes(records)
        ),
        ("cross-entropy, nats", [f"{record.last.cross_entropy:.4f}" for record in records]),
        ("epochs", [str(len(record.epochs)) for record in records]),
        ("seconds", [f"{record.seconds:.0f}" for record in records]),
    ]
    lines = aligned([[title, *cells] for title, cells in rows])
    return "\n".join([*lines, "", _worth(records)])


def classes(records: Sequence[RunRecord]) -> list[str]:
    """The classes of all runs, each once, in the order of the first that has them."""
    return list(dict.fromkeys(label for record in records for label in record.recall))


def names(records: Sequence[RunRecord]) -> list[str]:
    """What a reader calls the runs: by their losses, or by their folders where two have the same loss."""
    losses = [record.config.called for record in records]
    return losses if len(set(losses)) == len(losses) else [str(record.config.folder) for record in records]


def _worth(records: Sequence[RunRecord]) -> str:
    """What may be concluded."""
    measured = records[0].data["held_out"]
    if len({record.data["measured"] for record in records}) > 1:
        return "These runs were not measured on the same images (other data or split): their figures do not compare."
    if len(records) == 1:
        return f"Measured on {measured} held-out images, with one seed."
    accuracies = [record.last.accuracy for record in records]
    points = 100 * sampling_margin(min(accuracies), max(accuracies), measured)
    difference = 100 * (max(accuracies) - min(accuracies))
    verdict = "no more than" if difference <= points else "more than"
    return (
        f"Measured on {measured} held-out images, with one seed each: accuracies differ by {difference:.1f} points, "
        f"{verdict}\nthe {points:.1f} that the choice of held-out images explains by chance. Another seed moves both: "
        "one run of each is no proof."
    )


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def _mean(recall: dict[str, float]) -> float:
    return sum(recall.values()) / len(recall)
