"""Which kind of run is asked for, or was made: on images, or on a table of features; ``task`` alone says it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from topkloss.app.data.layout import DataOptions
from topkloss.app.errors import InputError
from topkloss.app.options.file import content_of, given
from topkloss.app.options.option import Option
from topkloss.app.tasks.images.config import TrainConfig, options
from topkloss.app.tasks.tables.config import TableConfig, table_options

__all__ = [
    "changes",
    "check_together",
    "checkable",
    "every_option",
    "is_table_run",
    "only_of_tables",
    "refuse_export",
    "request",
]

IMAGES = "images"
# How a table of features is laid out, beside what tables of images have too.
OF_TABLES = ("weight-column", "ignore", "categorical", "missing", "max-categories")
TASKS = (IMAGES, *table_options()["task"].choices)


def every_option() -> dict[str, Option]:
    """The options of ``topkloss train``: those of images, then those of tables alone."""
    told = "images, or a table of features whose labels are classes or numbers (default: images)"
    task = Option("task", "task", str, told, TASKS, IMAGES, False)
    return {"task": task, **{name: one for name, one in table_options().items() if name != "task"}, **options()}


def only_of_tables(one: Option) -> bool:
    """Whether an option is none of images."""
    return one.name != "task" and one.name not in options()


def checkable() -> dict[str, Option]:
    """Those of them that ``topkloss check`` takes: how the data are laid out, and parted."""
    of_images = {one.name.replace("_", "-") for one in fields(DataOptions)}
    every = {"task", "csv", "seed", *of_images, *OF_TABLES}
    return {name: one for name, one in every_option().items() if name in every}


def check_together(runs: Sequence[Path]) -> bool:
    """Whether runs that are to be compared are on tables: all of them, or none.

    Raises:
        InputError: If some are and some are not.
    """
    tables = [is_table_run(run) for run in runs]
    if any(tables) and not all(tables):
        raise InputError(
            f"`RUN` must be runs on images or runs on tables; got {runs[tables.index(False)]} and "
            f"{runs[tables.index(True)]}. Report them apart."
        )
    return all(tables)


def request(asked: Mapping[str, Any], file: Path | None) -> TrainConfig | TableConfig:
    """What a command and a file of options ask for, those of the command first.

    Args:
        asked: Options of the command, by field.
        file: Of options, in YAML; None for none.

    Raises:
        InputError: If the file cannot be read, or an option belongs to another task.
    """
    content = {} if file is None else content_of(file)
    task = asked.get("task", content.get("task", IMAGES))
    if task not in TASKS:
        raise InputError(f"{file}: `task` must be one of {', '.join(TASKS)}; got {task!r}. Correct the line.")
    known = options() if task == IMAGES else table_options()
    wanted = {name: value for name, value in content.items() if name != "task" or task != IMAGES}
    for one in every_option().values():
        if (one.field in asked or one.name in wanted) and one.name not in known and one.name != "task":
            raise InputError(_foreign(one.name, task))
    read = given(wanted, str(file), known)
    both = {**read, **asked, "task": task}
    if task == IMAGES:
        del both["task"]
        return TrainConfig(**both)
    return TableConfig(**both)


def is_table_run(folder: Path) -> bool:
    """Whether the folder is that of a run on a table of features; what is no run at all is none either."""
    try:
        return (folder / "config.yaml").exists() and content_of(folder / "config.yaml").get("task", IMAGES) != IMAGES
    except (InputError, OSError):  # whoever opens it says what is wrong with it
        return False


def refuse_export(run: Path) -> None:
    """A linear model needs no format of networks.

    Raises:
        InputError: If the run is on a table.
    """
    if is_table_run(run):
        raise InputError(
            f"`RUN` must be a run on images; got {run}, on a table. Its model is in model.json, as plain numbers: "
            "docs/features.md says how to use them."
        )


def changes(folder: Path, asked: Mapping[str, Any]) -> dict[str, Any]:
    """What is asked of a run that is resumed, by field.

    Raises:
        InputError: If it is on a table, or an option is one of tables.
    """
    if is_table_run(folder):
        raise InputError(
            f"`--resume` must be a run on images; got {folder}, on a table, which is written when it is finished. "
            "Pass its config.yaml as --config to fit anew."
        )
    if not isinstance(request(asked, None), TrainConfig):
        raise InputError(f"`--task` must be images with --resume; got {asked['task']}. Leave it out.")
    return {name: value for name, value in asked.items() if name != "task"}


def _foreign(name: str, task: str) -> str:
    """An option of the other kind of task."""
    instead = {
        "fraction": "Pass --fractions, which takes one or more.",
        "loss": "Pass --fractions 1 for the average, --row-loss for the loss of a row.",
        "images": "Leave it out.",
    }
    if task == IMAGES:
        way_out = "Pass --task classification or regression, or leave it out."
    else:
        way_out = instead.get(name, "Leave it out.")
    return f"`--{name}` must be left out with --task {task}, which takes none. {way_out}"
