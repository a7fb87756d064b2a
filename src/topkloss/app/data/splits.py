"""Which images are trained on and which are held out: as the table says, by class, or by group and class."""

from __future__ import annotations

import math
import random
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

from topkloss.app.data.examples import ImageTable
from topkloss.app.data.listing import Listing, Row
from topkloss.app.errors import InputError, Refuse
from topkloss.app.options.shared import HELD_OUT

__all__ = ["check_groups", "check_parts", "split", "split_rows"]

# The most that are tried: some orders leave a class on one side, and the nearest of a hundred is nearer than the first.
ORDERS = 100

# A share this near in each class is not bettered: of many groups the first order does.
NEAR = 0.01


def check_parts(listing: Listing, refuse: Refuse) -> None:
    """Whether each class can be trained on and measured.

    Args:
        listing: The data set.
        refuse: Called with one sentence for each class that is too small, and each group that is in two parts.
    """
    labelled: dict[str, list[Row]] = defaultdict(list)
    for row in listing.rows:
        labelled[row.label].append(row)
    given = any(row.part == "held_out" for row in listing.rows)
    for label, rows in labelled.items():
        _check_class(listing, label, rows, given, refuse)
    for label in listing.order or ():
        if label not in labelled:
            refuse(f"{listing.place(1)}: a class must have examples; got none of {label!r}. Leave its column out.")
    if not labelled:
        refuse(f"{listing.place(1)}: there must be an image that can be used; got none. Add images.")
    elif len(labelled) == 1:
        place = listing.place(listing.rows[0].line)
        refuse(f"{place}: there must be 2 classes or more; got only {next(iter(labelled))!r}. Add another class.")
    check_groups(listing, refuse)


def split(table: ImageTable, seed: int, held_out: float = HELD_OUT) -> tuple[list[int], list[int]]:
    """Indices to train on and to hold out; what is for testing is in neither.

    Where no example is marked as held out, a share of each class is drawn, at least one and not all; of grouped
    examples whole groups, so that the share of each class is met as nearly as their sizes allow.
    (scikit-learn's stratified splits refuse a table with fewer held-out places than classes.)

    Args:
        table: Its parts and groups were checked.
        seed: Decides what is drawn.
        held_out: The share, in (0, 1).

    Raises:
        InputError: If the groups cannot be parted with each class on both sides.
    """
    labels = [one.label for one in table.examples]
    groups, parts = [one.group for one in table.examples], [one.part for one in table.examples]
    return split_rows(labels, groups, parts, table.classes, seed, held_out)


def split_rows(
    labels: Sequence[int],
    groups: Sequence[str | None],
    parts: Sequence[str | None],
    classes: Sequence[str],
    seed: int,
    held_out: float,
) -> tuple[list[int], list[int]]:
    """See `split`: the same of the class, the group and the part of each example."""
    marked = [index for index, part in enumerate(parts) if part == "held_out"]
    free = [index for index, part in enumerate(parts) if part in (None, "train")]
    if marked:
        return free, marked
    chance = random.Random(seed)
    if any(groups[index] is not None for index in free):
        drawn = _draw_groups(labels, groups, classes, free, chance, held_out)
    else:
        drawn = _draw(labels, free, chance, held_out)
    return [index for index in free if index not in drawn], sorted(drawn)


def _check_class(listing: Listing, label: str, rows: Sequence[Row], given: bool, refuse: Refuse) -> None:
    place = listing.place(rows[0].line)
    parts = Counter(row.part for row in rows)
    if given:
        for part in ("train", "held_out"):
            if not parts[part]:
                refuse(
                    f"{place}: a class must have examples in train and in held_out; got none of {label!r} in {part}. "
                    "Move one there or remove the class."
                )
        return
    free = [row for row in rows if row.part != "test"]
    if len(free) < 2:
        refuse(
            f"{place}: a class must have 2 examples or more, one of them to be held out; got {len(free)} of {label!r}. "
            f"Add another or {listing.removal}."
        )
    elif free[0].group is not None and len({row.group for row in free}) < 2:
        refuse(
            f"{place}: a class must be in 2 groups or more, one of them to be held out; got {label!r} in "
            f"{free[0].group!r} only. Add another or remove the class."
        )


def check_groups(listing: Listing, refuse: Refuse) -> None:
    """Whether each group lies in one part.

    Args:
        listing: The data set.
        refuse: Called with one sentence for each row of a group that is in another part too.
    """
    first: dict[str, Row] = {}
    for row in listing.rows:
        if row.group is not None and first.setdefault(row.group, row).part != row.part:
            before = first[row.group]
            refuse(
                f"{listing.place(row.line)}: a group must lie in one part; got {row.group!r} in {row.part} here and in "
                f"{before.part} in {listing.unit} {before.line}. Move one of them."
            )


def _draw(labels: Sequence[int], free: Sequence[int], chance: random.Random, share: float) -> set[int]:
    places: dict[int, list[int]] = defaultdict(list)
    for index in free:
        places[labels[index]].append(index)
    drawn: set[int] = set()
    for _, members in sorted(places.items()):
        drawn.update(chance.sample(members, max(1, min(round(share * len(members)), len(members) - 1))))
    return drawn


def _draw_groups(
    labels: Sequence[int],
    groups: Sequence[str | None],
    classes: Sequence[str],
    free: Sequence[int],
    chance: random.Random,
    share: float,
) -> set[int]:
    """Whole groups: of some random orders in which each class comes to both sides, the one nearest to the shares."""
    members: dict[str, list[int]] = defaultdict(list)
    for index in free:
        members[groups[index] or ""].append(index)
    sizes = {group: Counter(labels[index] for index in indices) for group, indices in members.items()}
    order = sorted(members)
    missing: set[int] = set()
    nearest, best = math.inf, set[str]()
    for attempt in range(ORDERS):
        chance.shuffle(order)
        taken = _Taken(order, sizes, share)
        if attempt % 2 == 0:
            taken.fill()
            taken.cover(smallest=True)
        else:  # those that the shares ask for may bar those that a class needs
            taken.cover(smallest=False)
            taken.fill()
        missing.update(taken.missing())
        if not taken.missing() and taken.distance() < nearest:
            nearest, best = taken.distance(), taken.groups
        if nearest <= NEAR:
            break
    if best:
        return {index for group in best for index in members[group]}
    raise InputError(
        f"`--group-by` must leave each class in both parts; got groups of which no choice was found that does so with "
        f"{classes[min(missing)]!r}. Group by another column, or remove the class."
    )


class _Taken:
    """The groups that are held out: none at first.

    Args:
        order: In which groups are considered.
        sizes: Examples of each class in each group.
        share: Of each class that is asked for.
    """

    def __init__(self, order: Sequence[str], sizes: Mapping[str, Counter[int]], share: float) -> None:
        self.order = order
        self.sizes = sizes
        self.whole = sum(sizes.values(), Counter[int]())
        self.asked = {label: max(1.0, share * size) for label, size in self.whole.items()}
        self.held = Counter[int]()
        self.groups = set[str]()

    def fill(self) -> None:
        """Takes each group that brings the shares of its classes nearer to what was asked."""
        for group in self.order:
            if group not in self.groups and self._is_nearer_with(group) and self._leaves_some(group):
                self._take(group)

    def cover(self, *, smallest: bool) -> None:
        """Takes a group with each class that none of the taken has: the smallest, or the first."""
        for label in self.missing():
            able = [group for group in self.order if self.sizes[group][label] and self._leaves_some(group)]
            if able and not self.held[label]:
                self._take(min(able, key=lambda group: self.sizes[group].total()) if smallest else able[0])

    def missing(self) -> list[int]:
        """Classes that none of the taken has."""
        return [label for label in sorted(self.whole) if not self.held[label]]

    def distance(self) -> float:
        """From the shares that were asked for: the root of the mean square over the classes."""
        far = [(self.held[label] - self.asked[label]) / size for label, size in self.whole.items()]
        return math.hypot(*far) / math.sqrt(len(far))

    def _take(self, group: str) -> None:
        self.groups.add(group)
        self.held.update(self.sizes[group])

    def _is_nearer_with(self, group: str) -> bool:
        change = 0.0
        for label, size in self.sizes[group].items():
            far = self.held[label] - self.asked[label]
            change += ((far + size) ** 2 - far**2) / self.whole[label] ** 2
        return change < 0

    def _leaves_some(self, group: str) -> bool:
        return all(self.held[label] + size < self.whole[label] for label, size in self.sizes[group].items())
