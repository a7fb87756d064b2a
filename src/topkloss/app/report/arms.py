"""Runs in groups: those that differ in their seeds only are one way of training, tried several times."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from topkloss.app.errors import shown
from topkloss.app.runs.held_out import HeldOut

__all__ = ["Arm", "Trial", "arms_of", "mean_and_range", "variance_of_share"]


@dataclass(frozen=True)
class Trial:
    """A run, as far as it is compared with others.

    Attributes:
        folder: What a reader calls it.
        called: Its loss, in a few letters; "" where that is no name.
        options: What was asked and of which data, but for the seeds, by name: the same in runs of one group.
        seeds: Of the split and of the rest.
        train, held_out: Numbers of examples.
        measured: Tells held-out parts apart.
        classes: Names; empty for numbers.
        values: Of each score that was recorded its value, and its variance over the choice of the held-out examples.
        support: Held-out examples of each class.
        held: What the model said of each; None for a run that did not record it.
    """

    folder: str
    called: str
    options: Mapping[str, Hashable]
    seeds: tuple[int, int]
    train: int
    held_out: int
    measured: str
    classes: frozenset[str]
    values: Mapping[str, tuple[float, float]]
    support: Mapping[str, int]
    held: HeldOut | None = None


@dataclass(frozen=True)
class Arm:
    """A way of training.

    Attributes:
        name: What tells it from the other arms.
        places: Of its runs among all that were given; no run is counted twice.
        trials: These runs.
        copies: A sentence for each run that was left out.
    """

    name: str
    places: tuple[int, ...]
    trials: tuple[Trial, ...]
    copies: tuple[str, ...] = ()


def arms_of(trials: Sequence[Trial]) -> list[Arm]:
    """The groups, in the order of their first runs."""
    groups: dict[frozenset[tuple[str, Hashable]], list[int]] = {}
    for place, trial in enumerate(trials):
        groups.setdefault(frozenset(trial.options.items()), []).append(place)
    members = list(groups.values())
    names = _names([[trials[place] for place in places] for places in members])
    arms = []
    for name, places in zip(names, members, strict=True):
        first: dict[tuple[int, int], int] = {}
        for place in places:
            first.setdefault(trials[place].seeds, place)
        copies = [(place, first[trials[place].seeds]) for place in places if place not in first.values()]
        arms.append(
            Arm(
                name,
                tuple(first.values()),
                tuple(trials[place] for place in first.values()),
                tuple(_left_out(trials[copy].folder, trials[other].folder) for copy, other in copies),
            )
        )
    return arms


def _left_out(copy: str, other: str) -> str:
    if copy == other:
        return f"{copy} was given twice: it is counted once."
    return f"{copy} has the options and the seed of {other}: it is left out."


def mean_and_range(values: Sequence[float], form: str) -> str:
    """The mean and, where values differ as they are written, the least and the largest.

    Example:
        >>> mean_and_range([1, 2, 3], ".1f"), mean_and_range([2], ".1f")
        ('2.0 (1.0 to 3.0)', '2.0')
    """
    mean, low, high = (f"{value:{form}}" for value in (fmean(values), min(values), max(values)))
    return mean if low == high else f"{mean} ({low} to {high})"


def variance_of_share(share: float, n: int) -> float:
    """Of a share of n examples, as if there had been one more on each side: that of none is not 0."""
    p = (share * n + 1) / (n + 2)
    return p * (1 - p) / (n + 2)


def _names(groups: Sequence[Sequence[Trial]]) -> list[str]:
    """By their losses; where two have the same, by their folders if they are single runs, else by what differs too."""
    called = [group[0].called for group in groups]
    if len(set(called)) == len(called) and all(called):
        return called
    if all(len(group) == 1 for group in groups):
        return [group[0].folder for group in groups]
    names = []
    for group, name in zip(groups, called, strict=True):
        same = [other[0].options for other in groups if other[0].called == name]
        differ = [option for option in same[0] if len({options.get(option) for options in same}) > 1]
        own = [f"{option} {shown(group[0].options.get(option))}" for option in differ]
        names.append(", ".join(filter(None, [name, *own])) if len(own) < 4 else f"{name}, {group[0].folder}")
    return names if len(set(names)) == len(names) else [f"{group[0].folder} ({len(group)} runs)" for group in groups]
