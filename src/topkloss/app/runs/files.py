"""Files that a command writes: whole or not at all, where it was asked to, with the suffix that says what they are."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from topkloss.app.errors import InputError, in_command

__all__ = ["check_new", "check_out", "replacing", "written"]


def check_out(path: Path, suffixes: Sequence[str]) -> None:
    """What can be said before the work is done.

    Raises:
        InputError: If the path of a file ends otherwise, is a folder or lies in none.
    """
    if path.suffix not in suffixes:
        raise InputError(
            f"`--out` must end in {' or '.join(suffixes)}; got {path}. Pass {path.with_suffix(suffixes[0])}."
        )
    if path.is_dir():
        raise InputError(f"`--out` must be a file; got {path}, which is a folder. Pass {path / f'out{path.suffix}'}.")
    if not path.parent.is_dir():
        raise InputError(f"`--out` must lie in a folder; got {path}, and there is no {path.parent}. Make it first.")


def check_new(folder: Path, *, resumable: bool = True) -> None:
    """Whether a run may have this folder; `resumable`: whether one that is there can be gone on with.

    Raises:
        InputError: If something is in it, or it is none.
        OSError: If the system does not let it be seen.
    """
    if folder.exists() and not (folder.is_dir() and not list(_of_others(folder))):
        hint = (
            f"Pass another, or --resume {in_command(folder)}"
            if resumable and (folder / "config.yaml").exists()
            else "Pass another"
        )
        raise InputError(f"`--out` must be a new or empty folder; got {folder}, which exists. {hint}.")


def _of_others(folder: Path) -> Iterator[Path]:
    """What a run that was killed before it began did not leave."""
    return (path for path in folder.iterdir() if not path.name.startswith(".partial-"))


@contextmanager
def written(path: Path) -> Iterator[Path]:
    """A path to write to, which becomes `path` at the end; what cannot be written is said.

    Raises:
        InputError: If the system refuses.
    """
    try:
        with replacing(path) as partial:
            partial.touch()  # whoever may not write hears it before the work
            yield partial
    except OSError as error:
        raise InputError(
            f"`--out` must be a path that can be written; got {path}: {error.strerror or error}. Pass another."
        ) from error


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path beside `path` to write to; renamed to it at the end, so that nobody ever reads half a file.

    What was written is on the disk before it is renamed: a full disk is noticed in time, a power failure survived.
    """
    partial = path.with_name(f".partial-{path.name}")
    try:
        yield partial
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
