"""What a user did that cannot be done, in one sentence."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence

__all__ = ["DiskError", "InputError", "Refuse", "RunError", "in_command", "refuse_listed", "shown", "stop"]

# What is done with a sentence about a mistake: `stop` raises it; the `append` of a list goes on and finds the next.
Refuse = Callable[[str], None]


class InputError(ValueError):
    """Bad input: the command prints the sentence, without a traceback, and exits with code 2."""


class RunError(InputError):
    """A run cannot go on, or not now; what is in its folder stays as it is."""


class DiskError(RunError):
    """A file of a run cannot be written."""


def stop(sentence: str) -> None:
    """The first mistake ends the command.

    Raises:
        InputError: Always.
    """
    raise InputError(sentence)


def refuse_listed(source: object, problems: Sequence[str]) -> None:
    """Refuses a source in which problems were found.

    Raises:
        InputError: One sentence with the number of problems, which were listed before.
    """
    if problems:
        number = f"{len(problems)} problem{'' if len(problems) == 1 else 's'}"
        raise InputError(f"{shown(source)} must be free of problems; got {number}. Correct what is listed.")


def in_command(path: object) -> str:
    """A path as it may stand in a command that is to be copied: quoted where a shell needs it.

    Example:
        >>> in_command("my runs/a")
        "'my runs/a'"
    """
    return shlex.quote(shown(path))


def shown(name: object) -> str:
    r"""A name as it may stand in a sentence: on one line, without what would command a terminal.

    Example:
        >>> shown("a\nb\x1b[31m.png")
        'a�b�[31m.png'
    """
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in str(name))
