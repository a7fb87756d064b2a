"""Everything that is wrong with a data set, found before anything is trained; and what is in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from topkloss.app.alignment import aligned
from topkloss.app.data.cures import cures_of
from topkloss.app.data.dataset import DataOptions, data_path, find, list_data, notes_on
from topkloss.app.data.decoding import Decoded, bad_sentence, decode_all, suffixes
from topkloss.app.data.examples import ImageTable, classes_of, imbalance, number
from topkloss.app.data.finding import Finder
from topkloss.app.data.listing import Row
from topkloss.app.data.splits import check_parts, split
from topkloss.app.errors import InputError, refuse_listed, shown
from topkloss.app.options.option import check_count, cores
from topkloss.app.problems import listed

__all__ = ["DataCheck", "check"]

PARTS = ("train", "held_out", "test")


@dataclass(frozen=True)
class DataCheck:
    """A data set as it was found.

    Attributes:
        source: The table or the folder.
        problems: A sentence for each thing that is wrong, with its place.
        counts: Images that can be decoded, of each class in each part: "train", "held_out" or "test".
        copies: How many of them have the pixels of another one.
        beyond: The share of their numbers that the range of pixels cuts off; None without a range.
        notes: See `ImageTable`.
        cures: A line for what would mend many problems at once.
    """

    source: Path
    problems: tuple[str, ...]
    counts: dict[str, dict[str, int]]
    copies: int
    beyond: float | None = None
    notes: tuple[str, ...] = ()
    cures: tuple[str, ...] = ()

    def text(self) -> str:
        """The problems, equal ones together, and what mends many; then the images of each class and part."""
        wrong = [*listed(self.problems), *self.cures]
        if not self.counts:
            return "\n".join([*wrong, *self.notes])
        parts = [part for part in PARTS if part == "train" or any(row[part] for row in self.counts.values())]
        whole = sum(sum(row.values()) for row in self.counts.values())
        rows = [["class", *(part.replace("_", " ") for part in parts)]]
        rows += [[shown(label), *(str(row[part]) for part in parts)] for label, row in self.counts.items()]
        rows += [["all", *(str(sum(row[part] for row in self.counts.values())) for part in parts)]]
        copies = f", {self.copies} of them copies of another" if self.copies else ""
        head = f"{shown(self.source)}: {whole} images in {len(self.counts)} classes{copies}"
        uneven = imbalance({label: row["train"] for label, row in self.counts.items()})
        beyond = [] if self.beyond is None else [f"{100 * self.beyond:.3g} % of all numbers lie beyond --pixel-range"]
        lines = [head, *self.notes, *beyond, "", *aligned(rows), "", uneven]
        return "\n".join([*wrong, *([""] if wrong else []), *lines])

    def raise_for_problems(self) -> None:
        """Refuses the data set where a problem was found.

        Raises:
            InputError: One sentence with their number.
        """
        refuse_listed(self.source, self.problems)


def check(data: str | None, options: DataOptions, *, seed: int = 0, workers: int | None = 0) -> DataCheck:
    """Reads everything, decodes every image, and finds all that is wrong.

    Args:
        data: See `read_table`; None for the embedded digits.
        options: How it is laid out.
        seed: Of the split, as in training.
        workers: Processes that decode; 0 for this one, None for as many as there are cores.

    Raises:
        InputError: One sentence, if an option is wrong.
    """
    check_count("seed", seed, 0)
    check_count("workers", workers, 0)
    source = data_path(data, options)
    problems: list[str] = []
    try:
        listing = list_data(source, options, problems.append)
    except InputError as error:
        if str(error).startswith("`--"):
            raise
        return DataCheck(source, (*problems, str(error)), {}, 0)
    before = len(problems)
    check_parts(listing, problems.append)
    parted = len(problems) == before
    finder = Finder(listing.root, suffixes())
    found = dict(find(listing, finder, problems.append, problems.append))
    rows = ((row, found.get(row, Path())) for row in listing.rows)
    table = ImageTable(listing, classes_of(listing), number(listing, rows))
    part_of = {index: example.part or "train" for index, example in enumerate(table.examples)}
    if parted:
        try:
            _, held_out = split(table, seed, options.held_out)
            part_of |= dict.fromkeys(held_out, "held_out")
        except InputError as error:
            problems.append(str(error))
    good, bad = _decoded(table, found, options, cores() if workers is None else workers)
    problems += bad
    copies = _compare(table, part_of, [(index, one.digest) for index, one in good], problems)
    counts = {label: dict.fromkeys(PARTS, 0) for label in table.classes}
    for index, _ in good:
        counts[table.classes[table.examples[index].label]][part_of[index]] += 1
    beyond = sum(one.beyond for _, one in good) / max(1, len(good)) if options.shades else None
    cures = cures_of([row.image for row in listing.rows if row not in found], listing, finder, len(bad))
    return DataCheck(source, tuple(problems), counts, copies, beyond, notes_on(listing, finder), cures)


def _decoded(
    table: ImageTable, found: Mapping[Row, Path], options: DataOptions, workers: int
) -> tuple[list[tuple[int, Decoded]], list[str]]:
    """The images that can be decoded, each by its index, and a sentence for each other one."""
    there = [index for index, row in enumerate(table.listing.rows) if row in found]
    paths = [table.examples[index].path for index in there]
    good, bad = [], []
    for index, decoded in zip(there, decode_all(paths, workers, options.shades), strict=True):
        if decoded.bad is None:
            good.append((index, decoded))
        else:
            bad.append(bad_sentence(table.listing, table.examples[index].line, decoded.bad))
    return good, bad


def _compare(table: ImageTable, part_of: dict[int, str], good: Sequence[tuple[int, str]], problems: list[str]) -> int:
    """Finds the same pixels in two parts or with two labels; returns how many images have those of an earlier one."""
    first: dict[str, int] = {}
    copies = 0
    for index, digest in good:
        before = first.setdefault(digest, index)
        if before == index:
            continue
        copies += 1
        here, there = table.examples[index], table.examples[before]
        place = f"{table.listing.place(here.line)}: "
        where = f"in {table.listing.unit} {there.line}" if table.listing.unit else f"at {shown(there.path)}"
        if here.label != there.label:
            problems.append(
                f"{place}an image must have one label; got {shown(here.path)} as {table.classes[here.label]!r}, and "
                f"the same pixels as {table.classes[there.label]!r} {where}. Correct one or remove it."
            )
        if part_of[index] != part_of[before]:
            problems.append(
                f"{place}an image must be in one part; got {shown(here.path)} in {part_of[index]}, and the same pixels "
                f"in {part_of[before]} {where}. Remove one."
            )
    return copies
