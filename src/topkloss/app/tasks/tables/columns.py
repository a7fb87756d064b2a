"""A table of features: its columns told apart by options and by what their cells are, each cell checked."""

from __future__ import annotations

import difflib
import hashlib
import math
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from topkloss.app.data.listing import PARTS, SPLIT, content_of
from topkloss.app.data.reader import Reader, open_reader
from topkloss.app.data.spelling import decimal_commas, is_date, naming, number, spelling, with_point
from topkloss.app.errors import InputError, Refuse, shown
from topkloss.app.tasks.tables.config import TableConfig

__all__ = ["Floats", "Kinds", "Rows", "kinds_of", "open_table", "read_rows"]

Floats = NDArray[np.float64]

# So many names of columns are listed in a sentence.
FEW = 10


@dataclass(frozen=True)
class Kinds:
    """The features of a table.

    Attributes:
        numbers: Columns of numbers, in order.
        words: Columns of words; a missing one is the word "".
        constant: Columns that say the same in every row: left out.
    """

    numbers: tuple[str, ...]
    words: tuple[str, ...]
    constant: tuple[str, ...] = ()


@dataclass(frozen=True)
class Table:
    """An opened table and the columns that its options name.

    Attributes:
        source, content, digest, unit: The file, its bytes, their SHA-256, and what its rows are counted in.
        names: Of the columns.
        split: The column of the parts; None where there is none.
        commas: The columns whose numbers have decimal commas.
    """

    source: Path
    content: bytes
    digest: str
    unit: str
    names: tuple[str, ...]
    split: str | None
    commas: frozenset[str] = frozenset()

    def place(self, line: int) -> str:
        """The beginning of a sentence about a row."""
        return f"{shown(self.source)}, {self.unit} {line}"

    def read(self, columns: Sequence[str], refuse: Refuse) -> Iterator[tuple[int, dict[str, str]]]:
        """The number of each row and its cells in those columns."""
        for line, cells in open_reader(self.source, self.content).read(columns, refuse):
            pairs = zip(columns, cells, strict=True)
            yield line, {name: with_point(cell) if name in self.commas else cell for name, cell in pairs}


@dataclass
class Rows:
    """The rows of a table that can be used.

    Attributes:
        lines: Where each stands.
        numbers: Of each column of numbers, NaN where missing.
        words: Of each column of words.
        labels: As they stand; empty where they were not asked for.
        weights: None where no column says them.
        groups, parts: None in each place where no column says them.
    """

    lines: list[int] = field(default_factory=list)
    numbers: dict[str, Floats] = field(default_factory=dict)
    words: dict[str, list[str]] = field(default_factory=dict)
    labels: list[str] = field(default_factory=list)
    weights: Floats | None = None
    groups: list[str | None] = field(default_factory=list)
    parts: list[str | None] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.lines)


def open_table(path: Path, config: TableConfig, *, labelled: bool = True, features: Sequence[str] = ()) -> Table:
    """Opens a table and finds the columns that options name.

    Args:
        path: CSV, TSV or Parquet.
        config: Which columns are which.
        labelled: Whether the labels, and what else only training needs, must be there.
        features: Of a run: they must be there too.

    Raises:
        InputError: One sentence, if it cannot be read, or a column is missing or there twice.
    """
    content = content_of(path, f"the columns of features and {shown(config.label_column)}")
    reader = open_reader(path, content)
    split = config.split_column or (SPLIT if labelled and SPLIT in reader.names else None)
    wanted: list[tuple[str, str]] = [("", name) for name in features]
    if labelled:
        roles = [("--label-column", config.label_column), ("--weight-column", config.weight_column)]
        roles += [("--split-column", split), ("--group-by", config.group_by)]
        wanted += [(option, name) for option, name in roles if name is not None]
        if not features:
            wanted += [("--ignore", name) for name in config.ignore]
            wanted += [("--categorical", name) for name in config.categorical]
    for option, name in wanted:
        _check_there(reader, option, name)
    _check_roles(wanted)
    if not features and (twice := [name for name, count in Counter(reader.names).items() if count > 1]):
        raise InputError(
            f"{reader.head}: a column must have a name of its own; got {shown(twice[0]) or 'one without a name'!r} "
            f"{reader.names.count(twice[0])} times. Rename one."
        )
    if not features and "" in reader.names and "" not in config.ignore:
        raise InputError(
            f"{reader.head}: a column must have a name; got column {reader.names.index('') + 1} without one. "
            'Name it, or pass --ignore "".'
        )
    digest = hashlib.sha256(content).hexdigest()
    others = {*config.ignore, *config.categorical, config.group_by, split}
    others |= set() if config.task == "regression" else {config.label_column}
    numbers = [name for name in (features or reader.names) if name not in others]
    if features and labelled and config.task == "regression":
        numbers.append(config.label_column)
    commas = decimal_commas(path, reader, numbers)
    return Table(path, content, digest, reader.unit, tuple(reader.names), split if labelled else None, commas)


def kinds_of(table: Table, config: TableConfig, refuse: Refuse) -> Kinds:
    """Tells the features apart: numbers are what is a number in every row that says anything.

    Args:
        table: From `open_table`.
        config: What is missing, no feature, or a name though it is a number.
        refuse: Called with one sentence for each column that cannot be used.

    Raises:
        InputError: If there is no row, or no feature.
    """
    others = {config.label_column, config.weight_column, table.split, config.group_by, *config.ignore}
    surveys = {name: _Survey(name) for name in table.names if name not in others}
    missing, count = {"", *config.missing}, 0
    for line, cells in table.read(list(surveys), refuse):
        count += 1
        for name, survey in surveys.items():
            survey.see(line, cells[name], missing, config.max_categories)
    if not count:
        raise InputError(f"{table.place(2)}: there must be a row; got the names of the columns only. Add rows.")
    numbers: list[str] = []
    words: list[str] = []
    constant: list[str] = []
    for name, survey in surveys.items():
        if len(survey.distinct) + survey.missed == 1:
            constant.append(name)
        elif sentence := survey.problem(table, config, count):
            refuse(sentence)
        else:
            (words if survey.texts or name in config.categorical else numbers).append(name)
    if not numbers and not words and len(constant) == len(surveys):
        raise InputError(
            f"{shown(table.source)}: there must be a column that is a feature and differs from row to row; got none "
            f"beside {shown(config.label_column)}. Add columns."
        )
    return Kinds(tuple(numbers), tuple(words), tuple(constant))


def read_rows(
    table: Table,
    config: TableConfig,
    kinds: Kinds,
    refuse: Refuse,
    *,
    labelled: bool = True,
    bad: Callable[[int, str], None] | None = None,
) -> Rows:
    """The rows, each cell checked.

    Args:
        table: From `open_table`.
        config: Which columns are which.
        kinds: Of this table, or of the one that the model was made from.
        refuse: Called with one sentence for each row that cannot be used, which is then left out.
        labelled: Whether labels are read, and weights, groups and parts.
        bad: Called with the line and the reason in the place of `refuse`, where a cell is wrong.
    """
    roles = (config.label_column, config.weight_column, table.split, config.group_by) if labelled else ()
    columns = list(dict.fromkeys([*kinds.numbers, *kinds.words, *(name for name in roles if name is not None)]))
    missing, rows, weights = {"", *config.missing}, Rows(), array("d")
    numbers = {name: array("d") for name in kinds.numbers}
    rows.words = {name: [] for name in kinds.words}
    interned: dict[str, str] = {}  # a word is kept once, however many rows say it
    for line, cells in table.read(columns, refuse):
        sentence, read = _numbers(cells, kinds.numbers, missing)
        weight, part = 1.0, None
        if labelled and not sentence:
            sentence, weight, part = _roles(cells, table, config, missing)
        if sentence:
            refuse(f"{table.place(line)}: {sentence}") if bad is None else bad(line, sentence)
            continue
        if weight == 0:
            continue
        rows.lines.append(line)
        for name, value in zip(kinds.numbers, read, strict=True):
            numbers[name].append(value)
        for name in kinds.words:
            word = "" if cells[name] in missing else cells[name]
            rows.words[name].append(interned.setdefault(word, word))
        if labelled:
            label = cells[config.label_column]
            rows.labels.append(interned.setdefault(label, label))
            weights.append(weight)
            rows.groups.append(None if config.group_by is None else cells[config.group_by])
            rows.parts.append(part)
    rows.numbers = {name: np.frombuffer(column, dtype=np.float64) for name, column in numbers.items() if column}
    rows.numbers |= {name: np.empty(0) for name, column in numbers.items() if not column}
    if config.weight_column is not None and labelled:
        rows.weights = np.array(weights)
    return rows


class _Survey:
    """What the cells of a column are."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.numbers = self.texts = self.missed_rows = 0
        self.distinct: set[str] = set()
        self.first_word = self.endless = ""
        self.first_line = self.endless_line = 0
        self.dates = self.spelt = True

    @property
    def missed(self) -> bool:
        return self.missed_rows > 0

    def see(self, line: int, cell: str, missing: set[str], most: int) -> None:
        if cell in missing:
            self.missed_rows += 1
            return
        if len(self.distinct) <= most:
            self.distinct.add(cell)
        value = number(cell)
        if value is None:
            self.texts += 1
            self.dates = self.dates and is_date(cell)
            self.spelt = self.spelt and spelling(cell) != ("", "")
            if not self.first_line:
                self.first_word, self.first_line = cell, line
            return
        self.numbers += 1
        if math.isinf(value) and not self.endless_line:
            self.endless, self.endless_line = cell, line

    def problem(self, table: Table, config: TableConfig, rows: int) -> str:
        """What is wrong with the column, in one sentence; empty for nothing."""
        name, column = self.name, f"`{shown(self.name)}`"
        categorical = name in config.categorical
        if self.texts and self.spelt and not categorical:
            must, way = spelling(self.first_word)
            return (
                f"{table.place(self.first_line)}: {column} must {must}; got {self.first_word!r}. {way}, or pass "
                f"--categorical {name!r}."
            )
        if not categorical and self.texts and self.numbers:
            return (
                f"{table.place(self.first_line)}: {column} must be numbers in each row or words in each; got "
                f"{shown(self.first_word)!r} here and numbers in {self.numbers} rows. Pass --missing "
                f"{self.first_word!r} if it says that nothing is known, or --categorical {name!r}."
            )
        if self.texts and self.dates:
            return (
                f"{table.place(self.first_line)}: {column} must be a number or a word; got the date "
                f"{shown(self.first_word)}. Pass --ignore {name!r}, and put what matters of it, e.g. the month, into a "
                "column."
            )
        if self.endless_line and not categorical:
            return (
                f"{table.place(self.endless_line)}: {column} must be finite; got {self.endless}. Correct the cell, "
                "or leave it empty."
            )
        if not self.texts and not categorical:
            return ""
        if len(self.distinct) > config.max_categories:
            return (
                f"{shown(table.source)}: {column} must have at most {config.max_categories} values, each of which "
                f"becomes a feature; got more in {rows} rows. Ids and free text are no features: pass --ignore "
                f"{name!r}, or a larger --max-categories."
            )
        filled = rows - self.missed_rows
        if filled > 2 and len(self.distinct) == filled:
            return (
                f"{shown(table.source)}: {column} must say the same in some rows; got another word in each of "
                f"{filled}, as ids and names are. Pass --ignore {name!r}."
            )
        return ""


def _numbers(cells: Mapping[str, str], names: Sequence[str], missing: set[str]) -> tuple[str, list[float]]:
    """What is wrong with the numbers of a row, and the numbers."""
    read = []
    for name in names:
        cell = cells[name]
        value = math.nan if cell in missing else number(cell)
        if value is None or math.isinf(value):
            way = spelling(cell)[1] or "Correct it"
            return f"`{shown(name)}` must be a finite number; got {shown(cell)!r}. {way} or leave it empty.", []
        read.append(value)
    return "", read


def _roles(
    cells: Mapping[str, str], table: Table, config: TableConfig, missing: set[str]
) -> tuple[str, float, str | None]:
    """What is wrong with label, group, part and weight; the weight and the part."""
    for name in (config.label_column, config.group_by, table.split, config.weight_column):
        if name is not None and cells[name] in missing:
            got = "nothing" if not cells[name] else repr(cells[name])
            return f"`{shown(name)}` must not be missing; got {got}. Fill it in or remove the row.", 0.0, None
    label, name = cells[config.label_column], f"`{shown(config.label_column)}`"
    if config.task == "regression":
        value = number(label)
        if value is None or math.isinf(value):
            hint = f"{spelling(label)[1] or 'Correct it'}, or pass --task classification."
            return f"{name} must be a finite number with --task regression; got {shown(label)!r}. {hint}", 0.0, None
    elif not label.isprintable():
        return f"{name} must be printable text; got {label!r}. Correct it.", 0.0, None
    weight = 1.0 if config.weight_column is None else number(cells[config.weight_column])
    if weight is None or not 0 <= weight < math.inf:
        got = shown(cells[config.weight_column or ""])
        way = spelling(cells[config.weight_column or ""])[1] or "Correct it"
        return f"`{shown(config.weight_column)}` must be a number >= 0; got {got!r}. {way}.", 0.0, None
    part = None if table.split is None else PARTS.get(cells[table.split].lower())
    if table.split is not None and part is None:
        got = repr(cells[table.split])
        return f"`{shown(table.split)}` must be train, held_out (or val) or test; got {got}. Correct it.", 0.0, None
    return "", weight, part


def _check_there(reader: Reader, option: str, name: str) -> None:
    """A column that is named is there once."""
    if reader.names.count(name) == 1:
        return
    named = ", ".join(map(shown, reader.names[:FEW])) or "nothing"
    if len(reader.names) > FEW:
        named += f" and {len(reader.names) - FEW} others"
    close = difflib.get_close_matches(name, reader.names, n=1)
    ask = f"Did you mean {shown(close[0])}?" if close and close[0] != name else naming(reader, option)
    if not option:
        ask = "The model needs it: add it." if not close else f"Rename {shown(close[0])}, or add it."
    raise InputError(f"{reader.head}: there must be one column `{shown(name)}`; got {named}. {ask}")


def _check_roles(wanted: Sequence[tuple[str, str]]) -> None:
    """Refuses a column that two options name."""
    first: dict[str, str] = {}
    for option, name in wanted:
        before = first.setdefault(name, option)
        if option and before != option:
            raise InputError(
                f"`{option}` must name another column than `{before or 'a feature'}`; got {shown(name)} for both. "
                "Leave one of them out."
            )
