"""An option: a field of a config with its default, its values and its meaning, as the command and files have it."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import Field, dataclass, field, fields
from typing import Any, TypeVar

from topkloss.app.errors import InputError

__all__ = ["Option", "check_choices", "check_count", "cores", "known", "option", "options_of", "refusals_of"]

T = TypeVar("T")

# What torch and numpy count with; a thousand times more than any run takes.
LARGEST, LARGEST_SEED = 2**31 - 1, 2**32 - 1

# On any machine; on one with many cores, eight for each: far more exhaust its memory before they load an image.
MANY_WORKERS = 64


@dataclass(frozen=True)
class Option:
    """A field of a config as the command and files write it: ``batch-size`` for ``batch_size``."""

    name: str
    field: str
    kind: type
    help: str
    choices: tuple[str, ...]
    default: Any
    many: bool


def option(
    default: Any,
    kind: type,
    text: str,
    choices: Sequence[str] = (),
    shown: str | None = None,
    least: int | None = None,
    many: bool = False,
) -> Any:
    """A field; ``shown`` is how the help writes the default, where that is not the value; ``least`` bounds a count.

    ``many``: it takes several values of its kind.
    """
    shown = shown if shown is not None else "" if default in (None, False, "") else f"default: {default}"
    meaning = {"kind": kind, "help": f"{text} ({shown})" if shown else text, "choices": tuple(choices)}
    return field(default=default, metadata={**meaning, "least": least, "many": many})


def options_of(config: type[Any]) -> dict[str, Option]:
    """The fields of a config, by the name of the option."""

    def made(one: Field[Any]) -> Option:
        read = one.metadata
        name = one.name.replace("_", "-")
        return Option(name, one.name, read["kind"], read["help"], read["choices"], one.default, read["many"])

    return {one.name: one for one in map(made, fields(config))}


def check_choices(config: Any) -> None:
    """Whether each word of a config is one that its option allows.

    Raises:
        InputError: One sentence that lists them.
    """
    for one in options_of(type(config)).values():
        value = getattr(config, one.field)
        if one.choices and value is not None and value not in one.choices:
            close = difflib.get_close_matches(str(value).replace("_", "-"), one.choices, n=1)
            raise InputError(
                f"`--{one.name}` must be one of {', '.join(one.choices)}; got {value}. "
                f"Pass --{one.name} {close[0] if close else one.choices[0]}, or leave it out."
            )


def check_count(name: str, value: int | None, least: int) -> None:
    """Raises where a number is too small, or larger than anything can be.

    Args:
        name: Of the option, as a field is written.
        value: None is never wrong.
        least: The smallest that is not.

    Raises:
        InputError: One sentence that names the option.
    """
    most = {"seed": LARGEST_SEED, "split_seed": LARGEST_SEED, "workers": max(MANY_WORKERS, 8 * cores())}.get(
        name, LARGEST
    )
    if value is None or least <= value <= most:
        return
    option = f"--{name.replace('_', '-')}"
    bound = f"{least} or more" if value < least else f"{most} or fewer"
    raise InputError(f"`{option}` must be {bound}; got {value}. Leave it out for the default.")


def cores() -> int:
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def known(value: T | None, name: str) -> T:
    """The value of an option that is no longer open, because it was given, or `checked` or the data filled it in.

    Args:
        value: Of the option.
        name: Of the option.

    Raises:
        InputError: If it is still open.
    """
    if value is None:
        raise InputError(f"`--{name}` must be known here; got none. Pass it, or a config that was checked.")
    return value


@contextmanager
def refusals_of(name: str) -> Iterator[None]:
    """What the library refuses inside is refused as the value of an option: its name, then the library's sentence.

    Args:
        name: Of the option.

    Raises:
        InputError: Where the library raises ValueError or TypeError.
    """
    try:
        yield
    except (TypeError, ValueError) as error:
        raise InputError(f"`--{name}`: {error}") from error
