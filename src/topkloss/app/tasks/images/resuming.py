"""What a run that is taken up again may be asked anew: never what would change a number that it has computed."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from topkloss.app.errors import InputError, in_command
from topkloss.app.tasks.images.callbacks import is_over
from topkloss.app.tasks.images.config import FREE, TrainConfig
from topkloss.app.tasks.images.records import EpochRecord, RunHeader

__all__ = ["asked_anew", "check_length", "check_same", "nothing_to_resume"]

# These decide how long a run trains; the epochs that were made stay as they are.
LENGTH = ("epochs", "early_stopping")


def asked_anew(config: TrainConfig, changes: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that differ from those of the run.

    Args:
        config: Of the run.
        changes: Fields of the config given anew.

    Raises:
        InputError: If the numbers of the epochs that were made depend on one of them.
    """
    asked = replace(config, **changes)
    found = {name: getattr(asked, name) for name in changes if getattr(asked, name) != getattr(config, name)}
    for name, value in found.items():
        if name not in FREE and name not in LENGTH:
            word, was = name.replace("_", "-"), getattr(config, name)
            raise InputError(
                f"`--{word}` must be that of the run, {was}, for its numbers depend on it; got {value}. "
                "Leave it out, or train anew with another --out."
            )
    return found


def check_length(folder: Path, before: TrainConfig, now: TrainConfig, epochs: Sequence[EpochRecord]) -> None:
    """Whether the epochs that were made are also the first ones of a run of another length.

    Args:
        folder: Of the run.
        before: What was asked when it began.
        now: What is asked anew.
        epochs: That it has made.

    Raises:
        InputError: If not, or if nothing would come of it.
    """
    if now.epochs != before.epochs:
        _check_epochs(folder, before, now, len(epochs))
    if now.early_stopping == before.early_stopping:
        if is_stopped(epochs, before) and now.epochs > before.epochs:
            raise InputError(
                f"`--early-stopping` must be more than {before.early_stopping}, which ended {folder} after epoch "
                f"{len(epochs)} of {before.epochs}, whatever --epochs is; got {now.epochs} for the latter alone. "
                f"Pass --early-stopping {2 * (before.early_stopping or 0)} too."
            )
        return
    if before.early_stopping is None:
        raise InputError(
            f"`--early-stopping` must be left out, as it was when {folder} began, which kept no best epoch; got "
            f"{now.early_stopping}. Leave it out, or train anew with another --out."
        )
    if now.early_stopping is None or now.early_stopping < before.early_stopping:
        got = "none" if now.early_stopping is None else now.early_stopping
        raise InputError(
            f"`--early-stopping` must be that of the run, {before.early_stopping}, or more; got {got}. "
            "Leave it out, or train anew with another --out."
        )


def _check_epochs(folder: Path, before: TrainConfig, now: TrainConfig, done: int) -> None:
    if before.sched != "none":
        raise InputError(
            f"`--epochs` must be that of the run, {before.epochs}, by whose end --sched {before.sched} brings the "
            f"learning rate down; got {now.epochs}. Leave it out, or begin anew with --sched none, which can be "
            "trained on."
        )
    if now.epochs < done:
        raise InputError(
            f"`--epochs` must be {done} or more, as many as {folder} has made; got {now.epochs}. Leave it out."
        )


def is_stopped(epochs: Sequence[EpochRecord], config: TrainConfig) -> bool:
    """Whether a run ended before all its epochs were made."""
    return len(epochs) < config.epochs and is_over(epochs, config.epochs, config.early_stopping)


def nothing_to_resume(
    folder: Path, config: TrainConfig, epochs: Sequence[EpochRecord], changes: Mapping[str, Any]
) -> str:
    """What is said of a finished run that is to be resumed: what was asked for nothing, and how it can be trained on.

    Args:
        folder: Of the run.
        config: What it was asked.
        epochs: That it has made.
        changes: See `asked_anew`.
    """
    said = f"{folder} is a finished run: there is nothing to resume"
    if vain := [f"--{name.replace('_', '-')}" for name in changes if name != "csv"]:
        said += f", and {' and '.join(vain)} {'change' if len(vain) > 1 else 'changes'} nothing"
    again = f"`topkloss train --resume {in_command(folder)}"
    if is_stopped(epochs, config):
        more = 2 * (config.early_stopping or 0)
        return f"{said}. {again} --early-stopping {more}` trains it on."
    if config.sched == "none":
        return f"{said}. {again} --epochs {2 * len(epochs)}` trains it on."
    return f"{said}."


def check_same(folder: Path, header: RunHeader, now: RunHeader, *, tell: bool) -> None:
    """The data and the number of processes decide the numbers; versions and threads their last digits.

    Args:
        folder: Of the run.
        header: As the run began.
        now: As it would go on.
        tell: Whether to say what decides last digits.

    Raises:
        InputError: If the data or the number of processes differ.
    """
    if header.data != now.data:
        differ = next(name for name in header.data if header.data[name] != now.data.get(name))
        raise InputError(
            f"`--resume` must find the data of the run; got others, which differ in {differ!r} of config.yaml. "
            "Put them back, or train anew with another --out."
        )
    if header.processes != now.processes:
        raise InputError(
            f"`--resume` must run in {header.processes} process{'' if header.processes == 1 else 'es'}, as the run "
            f"did; got {now.processes}. Start so many by torchrun."
        )
    changed = [f"{name} {was}" for name, was in header.versions.items() if now.versions.get(name) != was]
    changed += [f"{header.threads} threads"] if header.threads != now.threads else []
    if changed and tell:
        print(
            f"topkloss: {folder} was begun with {', '.join(changed)}: the last digits may differ from an uninterrupted "
            "run's.",
            file=sys.stderr,
        )
