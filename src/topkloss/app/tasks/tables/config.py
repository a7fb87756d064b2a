"""What a run on a table of features is asked: the options of ``topkloss train --task classification | regression``.

The command builds its options from this table too, without torch or scikit-learn. `checked` asks the library for its
ranges.
"""

from __future__ import annotations

import difflib
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Literal

from topkloss.app.data.layout import check_share
from topkloss.app.errors import InputError
from topkloss.app.options import shared
from topkloss.app.options.option import Option, check_choices, check_count, option, options_of, refusals_of

__all__ = ["TableConfig", "checked", "table_options"]

# Of each task the losses of a row, the usual one first, and the scores, likewise.
LOSSES = {
    "classification": ("logistic", "softmax", "hinge", "squared-hinge"),
    "regression": ("squared", "absolute", "huber"),
}
SCORES = {"classification": ("accuracy", "balanced-accuracy", "cross-entropy"), "regression": ("r2", "absolute-error")}

# With these a fraction is another C (docs/tables.md): there is nothing to choose besides.
SAME_AS_C = ("hinge", "absolute")
FRACTIONS = (1.0, 0.8, 0.6, 0.4)
STRENGTHS = (0.01, 0.1, 1.0, 10.0, 100.0)


@dataclass(frozen=True)
class TableConfig:
    """What a run on a table of features is asked. Options that images have too mean the same here.

    None is "not given": `checked` fills in what follows from the rest.
    """

    task: Literal["classification", "regression"] = option(
        "classification", str, "what a row's label is: a class, or a number", tuple(LOSSES)
    )
    csv: str | None = shared.csv("a row per example")
    label_column: str = shared.label_column("labels")
    weight_column: str | None = option(None, str, "column of the weights of the rows, each >= 0; 0 leaves a row out")
    split_column: str | None = shared.split_column()
    group_by: str | None = shared.group_by()
    held_out: float = shared.held_out()
    ignore: Sequence[str] = option((), str, "columns that are no features: ids, dates, free text", shown="", many=True)
    categorical: Sequence[str] = option(
        (), str, "columns whose numbers are names: codes, post codes", shown="", many=True
    )
    missing: Sequence[str] = option(
        (), str, "what stands for a missing value beside nothing: NA ?", shown="", many=True
    )
    max_categories: int = option(100, int, "most values of a column of words; each becomes a feature", least=2)
    row_loss: str | None = option(
        None,
        str,
        "loss of a row",
        tuple(loss for losses in LOSSES.values() for loss in losses),
        shown="default: logistic; squared for numbers",
    )
    delta: float | None = option(
        None, float, "error from which --row-loss huber is a line, in the unit of the label", shown="default: 1"
    )
    fractions: Sequence[float] | None = option(
        None, float, "shares of the rows that are averaged, each in (0, 1]", shown="default: 1 0.8 0.6 0.4", many=True
    )
    drop_fraction: float | None = shared.drop_fraction("the rows", "is left out first", "default: none")
    C: Sequence[float] = option(
        STRENGTHS, float, "strengths of the losses against the penalty", shown="default: 0.01 0.1 1 10 100", many=True
    )
    folds: int = option(5, int, "parts of the cross-validation that chooses the fraction and C", least=2)
    score: str | None = option(
        None,
        str,
        "what it chooses by",
        tuple(score for scores in SCORES.values() for score in scores),
        shown="default: accuracy, which is blind to rare classes; r2 for numbers",
    )
    class_weights: Literal["none", "balanced"] = shared.class_weights("rows")
    seed: int = shared.seed("the split and the folds")
    split_seed: int | None = shared.split_seed()
    out: str | None = shared.out()

    def __post_init__(self) -> None:
        for one in fields(self):
            if one.metadata["many"] and (several := getattr(self, one.name)) is not None:
                object.__setattr__(self, one.name, tuple(several))

    @property
    def split(self) -> int:
        """The seed that decides which rows are held out."""
        return self.seed if self.split_seed is None else self.split_seed

    @property
    def folder(self) -> Path:
        """The folder of the run."""
        if self.out is not None:
            return Path(self.out)
        stem = "table" if self.csv is None else Path(os.path.abspath(self.csv)).stem
        return Path("runs") / f"{stem}-{self.task}-seed{self.seed}"


def table_options() -> dict[str, Option]:
    """All options, by name, in the order of the help."""
    return options_of(TableConfig)


def checked(config: TableConfig) -> TableConfig:
    """The config with what was left open filled in, where nothing has to be read to know it.

    Raises:
        InputError: If an option is out of range, or two contradict each other.
    """
    if config.csv is None:
        raise InputError("`DATA` must be a table; got none. Pass a CSV: topkloss train customers.csv --task ...")
    if os.path.isdir(config.csv):
        raise InputError(f"`DATA` must be a table; got the folder {config.csv}. Pass a CSV, a .tsv or a .parquet.")
    check_share(config.held_out)
    for one in fields(config):
        if one.metadata["least"] is not None:
            check_count(one.name, getattr(config, one.name), one.metadata["least"])
    _check_words(config)
    check_choices(config)
    loss = config.row_loss or LOSSES[config.task][0]
    fractions = config.fractions or ((1.0,) if loss in SAME_AS_C else FRACTIONS)
    _check_numbers(config, loss, fractions)
    return replace(
        config,
        row_loss=loss,
        fractions=tuple(sorted(set(fractions), reverse=True)),
        C=tuple(sorted(set(config.C))),
        score=config.score or SCORES[config.task][0],
        delta=(config.delta or 1.0) if loss == "huber" else None,
    )


def _check_words(config: TableConfig) -> None:
    """Checks that the row loss, the score and the class weights go with the task."""
    for name, value, choices in (("row-loss", config.row_loss, LOSSES), ("score", config.score, SCORES)):
        allowed = choices[config.task]
        if value is not None and value not in allowed:
            close = difflib.get_close_matches(value.replace("_", "-"), allowed, n=1)
            raise InputError(
                f"`--{name}` must be one of {', '.join(allowed)} with --task {config.task}; got {value}. "
                f"Pass --{name} {close[0] if close else allowed[0]}, or the other task."
            )
    if config.score == "cross-entropy" and (config.row_loss or "logistic") not in ("logistic", "softmax"):
        raise InputError(
            f"`--score` must need no probabilities with --row-loss {config.row_loss}, which gives none; got "
            "cross-entropy. Pass --score accuracy."
        )
    if config.task == "regression" and config.class_weights == "balanced":
        raise InputError(
            "`--class-weights` must be none with --task regression, which has no classes; got balanced. Leave it out."
        )


def _check_numbers(config: TableConfig, loss: str, fractions: Sequence[float]) -> None:
    from topkloss.base.arguments import check_drop, check_k  # here: it loads torch

    for fraction in fractions:
        with refusals_of("fractions"):
            check_k(None, fraction)
    with refusals_of("drop-fraction"):
        check_drop(None, config.drop_fraction)
    for strength in config.C:
        if not 0 < strength < math.inf:
            raise InputError(f"`--C` must satisfy 0 < C < inf; got {strength:g}. For a weak penalty pass 1e4.")
    if not config.C:
        raise InputError("`--C` must be a number or more; got none. Pass --C 1.")
    if config.drop_fraction == 0:
        raise InputError("`--drop-fraction` must not be 0; got 0. Leave it out to drop nothing.")
    if config.delta is not None and loss != "huber":
        raise InputError(
            f"`--delta` must be left out with --row-loss {loss}, which takes none; got {config.delta:g}. "
            "Pass --row-loss huber, or leave it out."
        )
    if config.delta is not None and not 0 < config.delta < math.inf:
        raise InputError(f"`--delta` must satisfy 0 < delta < inf; got {config.delta:g}. Pass a usual error.")
