"""Runs side by side, as text, and what their differences are worth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from statistics import fmean

from topkloss.app.alignment import aligned
from topkloss.app.data.examples import too_uneven
from topkloss.app.errors import shown
from topkloss.app.report.arms import Arm, Trial, arms_of, mean_and_range, variance_of_share
from topkloss.app.runs.held_out import HeldOut
from topkloss.app.tasks.images.config import FREE
from topkloss.app.tasks.images.records import RunRecord

__all__ = ["classes", "groups", "table"]

# What may differ between the runs of a group.
OWN = {*FREE, "seed", "split_seed", "out"}


def table(records: Sequence[RunRecord], held: Sequence[HeldOut | None] = (), *, score: str = "accuracy") -> str:
    """A column for each way of training: what was measured on the held-out images, the cost, and what may be concluded.

    Runs that differ in their seeds only share a column, which has their mean and, in brackets, the least and the most.

    Args:
        records: Of the runs.
        held: What they say of each held-out image; None of one that did not record it.
        score: By which they are judged; see `topkloss.app.runs.scores.contributions`.
    """
    arms = groups(records, held)
    of_arm = [[records[place] for place in arm.places] for arm in arms]
    rows = [
        ("", [arm.name for arm in arms]),
        *([("seeds", [str(len(arm.trials)) for arm in arms])] if any(len(arm.trials) > 1 for arm in arms) else []),
        ("accuracy, %", [_percent([record.last.accuracy for record in runs]) for runs in of_arm]),
        ("mean recall, %", [_percent([_mean(record.recall) for record in runs]) for runs in of_arm]),
        *(
            (f"recall of {label}, %", [_percent([record.recall.get(label) for record in runs]) for runs in of_arm])
            for label in classes(records)
        ),
        (
            "cross-entropy, nats",
            [mean_and_range([record.last.cross_entropy for record in runs], ".4f") for runs in of_arm],
        ),
        ("epochs", [mean_and_range([len(record.epochs) for record in runs], "g") for runs in of_arm]),
        ("seconds", [mean_and_range([record.seconds for record in runs], ".0f") for runs in of_arm]),
    ]
    lines = aligned([[title, *cells] for title, cells in rows])
    return "\n".join([*lines, "", *_worth(arms, score)])


def classes(records: Sequence[RunRecord]) -> list[str]:
    """The classes of all runs, each once, in the order of the first that has them."""
    return list(dict.fromkeys(label for record in records for label in record.recall))


def groups(records: Sequence[RunRecord], held: Sequence[HeldOut | None] = ()) -> list[Arm]:
    """The ways of training, each with its runs."""
    known = held or [None] * len(records)
    return arms_of([_trial(record, one) for record, one in zip(records, known, strict=True)])


def _trial(record: RunRecord, held: HeldOut | None) -> Trial:
    config, data = record.config, record.data
    options = {name.replace("_", "-"): value for name, value in asdict(config).items() if name not in OWN}
    options |= {"data": data["digest"], "images": data.get("images"), "processes": record.processes}
    accuracy, n = record.last.accuracy, data["held_out"]
    values = {"accuracy": (accuracy, variance_of_share(accuracy, n))}
    seen = {label: count for label, count in record.support.items() if count and label in record.recall}
    if seen:
        each = {label: variance_of_share(record.recall[label], count) for label, count in seen.items()}
        mean = fmean(record.recall[label] for label in seen)
        values["balanced-accuracy"] = (mean, sum(each.values()) / len(seen) ** 2)
    return Trial(
        folder=shown(config.folder),
        called=config.called,
        options={name: tuple(value) if isinstance(value, list) else value for name, value in options.items()},
        seeds=(config.split, config.seed),
        train=data["train"],
        held_out=n,
        measured=data["measured"],
        classes=frozenset(record.recall),
        values=values,
        support=record.support,
        held=held,
    )


def _worth(arms: Sequence[Arm], score: str) -> list[str]:
    """What may be concluded."""
    lines = [sentence for arm in arms for sentence in arm.copies]
    first = arms[0].trials[0]
    if len(arms) == 1:
        count, same = len(arms[0].trials), len({trial.measured for trial in arms[0].trials}) == 1
        seeds = "one seed" if count == 1 else f"{count} seeds" if same else f"{count} seeds and other images for each"
        lines.append(f"Measured on {first.held_out} held-out images, with {seeds}.")
    else:
        from topkloss.app.report.verdicts import verdicts

        lines += verdicts(arms, [score], "images")
        if all(len(arm.trials) == 1 for arm in arms):
            lines.append("Another seed moves every run: one run of each is no proof.")
    if score == "accuracy" and any(too_uneven(arm.trials[0].support) for arm in arms):
        lines.append(
            "One class has more than 10 times the images of another: accuracy hardly sees the rare one. Pass --score "
            "balanced-accuracy,\nand try `topkloss train --class-weights balanced`."
        )
    return lines


def _percent(values: Sequence[float | None]) -> str:
    known = [100 * value for value in values if value is not None]
    return mean_and_range(known, ".1f") if known else "-"


def _mean(recall: dict[str, float]) -> float:
    return sum(recall.values()) / len(recall)
