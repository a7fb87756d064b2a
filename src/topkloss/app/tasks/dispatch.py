"""From a name, or the folder of a run, to its task; a new task is a folder beside this file and a line in `TASKS`."""

from __future__ import annotations

import difflib
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from topkloss.app.errors import InputError, shown, stop
from topkloss.app.options.file import content_of, given
from topkloss.app.options.option import Option
from topkloss.app.runs.held_out import HELD_OUT
from topkloss.app.tasks.images.task import IMAGES
from topkloss.app.tasks.interface import RunLosses, Task
from topkloss.app.tasks.tables.task import TABLES

__all__ = ["TASKS", "changes", "losses_at", "option_groups", "request", "task_of_run", "task_of_runs"]

# The first is what a command without --task is about, and a run whose config.yaml names no task.
TASKS: tuple[Task, ...] = (IMAGES, TABLES)
NAMES = tuple(name for task in TASKS for name in task.names)
DEFAULT = NAMES[0]
DEFAULT_TASK = TASKS[0]

# Columns of a table of features that a sentence names.
FEW = 3


def option_groups(*, layout_only: bool = False) -> list[tuple[Task, list[Option]]]:
    """The options of ``topkloss train``, each with the first task that has it; ``--task`` is the very first.

    Args:
        layout_only: Those that ``topkloss check`` takes.
    """
    meanings = ", or ".join(f"{task.what} {task.detail}".rstrip() for task in TASKS)
    seen = {"task": Option("task", "task", str, f"{meanings} (default: {DEFAULT})", NAMES, DEFAULT, False)}
    groups = [(TASKS[0], [seen["task"]])] + [(task, list[Option]()) for task in TASKS[1:]]
    for task, group in groups:
        for name, one in task.options.items():
            if name not in seen and (name in task.layout or not layout_only):
                seen[name] = one
                group.append(one)
    return groups


def request(asked: Mapping[str, Any], file: Path | None) -> tuple[Task, Any]:
    """The task and the config that a command and a file of options ask for; options of the command come first.

    Args:
        asked: Options of the command, by field.
        file: Of options, in YAML; None for none.

    Raises:
        InputError: If the file cannot be read, or an option belongs to another task.
    """
    content = {} if file is None else content_of(file)
    name = asked.get("task", content.get("task", DEFAULT))
    if "task" in asked and name not in NAMES:
        close = difflib.get_close_matches(str(name), NAMES, n=1)
        raise InputError(
            f"`--task` must be one of {', '.join(NAMES)}; got {name}. Pass --task {close[0] if close else NAMES[1]}."
        )
    task = _task_of(name, str(file))
    known = task.options
    for _, group in option_groups():
        for one in group:
            if (one.field in asked or one.name in content) and one.name not in known and one.name != "task":
                raise InputError(_foreign(one.name, task, name))
    read = given({key: value for key, value in content.items() if key != "task"}, str(file), known)
    if task is DEFAULT_TASK and "task" not in asked and "task" not in content:
        _refuse_features({**read, **asked})
    both = {**read, **asked, "task": name}
    return task, task.config(**{key: value for key, value in both.items() if key != "task" or key in known})


def _refuse_features(asked: Mapping[str, Any]) -> None:
    """A table with no column of paths was meant for another task, if no option says that there is one.

    What cannot be read here is left to the task, which says what is wrong with it.
    """
    path = asked.get("csv")
    if path is None or not os.path.isfile(path) or "image_column" in asked or "label_columns" in asked:
        return
    from topkloss.app.data.reader import open_reader

    try:
        reader = open_reader(Path(path), Path(path).read_bytes())
        names = [name for name, count in Counter(reader.names).items() if count == 1]
        first = next(reader.read(names, stop), (0, []))[1]
    except (OSError, ValueError):  # the task says what is wrong with it
        return
    if "image" in names or not first or any(map(_is_path, first)):
        return
    if len(names) < 2 or (len(names) == 2 and not _is_number(first[0])):
        return
    others = [name for task in TASKS[1:] for name in task.names]
    some = ", ".join(map(shown, names[:FEW])) + (", ..." if len(names) > FEW else "")
    raise InputError(
        f"{shown(path)} must have a column `image` with paths of images; got the columns {some}. Pass --task "
        f"{' or --task '.join(others)} for a table of features, or --image-column for another name."
    )


def _is_path(cell: str) -> bool:
    """Whether a cell may lead to an image: by a suffix, or a folder before it."""
    return bool(re.search(r"\.[A-Za-z]\w{1,4}$|[/\\]", cell.strip()))


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def task_of_run(folder: Path) -> Task:
    """The task that made a run; of what is no run at all the first one, whose verbs say what is wrong with it.

    Raises:
        InputError: If the run names a task that is none.
    """
    path = folder / "config.yaml"
    try:
        name = content_of(path).get("task", DEFAULT) if path.exists() else DEFAULT
    except (InputError, OSError):
        name = DEFAULT
    return _task_of(name, str(path))


def losses_at(path: Path) -> RunLosses | None:
    """The losses of the examples of a run, by its folder or by the file in it; None where a file is of no run.

    Raises:
        InputError: If a folder is no finished run, or has no losses.
    """
    if path.is_dir():
        found = task_of_run(path).losses(path)
        if not found.path.exists():
            raise InputError(
                f"{path} must have {found.path.name}, as runs have; got none. Copy it whole; of an earlier version, "
                f"run `topkloss evaluate` on it, and pass its {HELD_OUT}."
            )
        return found
    if not (path.parent / "config.yaml").exists() or not (path.parent / "metrics.json").exists():
        return None
    try:
        found = task_of_run(path.parent).losses(path.parent)
    except InputError:  # files of those names that are no run's
        return None
    return found if found.path == path else None


def task_of_runs(runs: Sequence[Path]) -> Task:
    """The task that made runs which are to be compared.

    Raises:
        InputError: If it is not one task.
    """
    first, *others = map(task_of_run, runs)
    for run, other in zip(runs[1:], others, strict=True):
        if other is not first:
            kinds = " or ".join(f"runs on {task.data}" for task in TASKS)
            one, two = sorted([(first, runs[0]), (other, run)], key=lambda pair: TASKS.index(pair[0]))
            raise InputError(f"`RUN` must be {kinds}; got {one[1]} and {two[1]}. Report them apart.")
    return first


def changes(task: Task, asked: Mapping[str, Any]) -> dict[str, Any]:
    """What is asked anew of a run that is resumed, by field.

    Args:
        task: That made the run.
        asked: Options of the command, by field.

    Raises:
        InputError: If an option belongs to another task.
    """
    name = asked.get("task", task.names[0])
    if name not in task.names:
        raise InputError(f"`--task` must be {task.names[0]} with --resume; got {name}. Leave it out.")
    request({**asked, "task": name}, None)
    return {field: value for field, value in asked.items() if field != "task"}


def _task_of(name: Any, where: str) -> Task:
    for task in TASKS:
        if name in task.names:
            return task
    raise InputError(f"{where}: `task` must be one of {', '.join(NAMES)}; got {name!r}. Correct the line.")


def _foreign(option: str, task: Task, name: str) -> str:
    """The sentence about an option that belongs to another task."""
    hint = task.instead.get(option, "Leave it out.")
    if task is TASKS[0]:
        owner = next(other for other in TASKS if option in other.options)
        hint = f"Pass --task {' or '.join(owner.names)}, or leave it out."
    return f"`--{option}` must be left out with --task {name}, which takes none. {hint}"
