"""What a user did that cannot be done, in one sentence."""

from __future__ import annotations

__all__ = ["DiskError", "InputError"]


class InputError(ValueError):
    """Bad input: the command prints the sentence, without a traceback, and exits with code 2."""


class DiskError(InputError):
    """A file of a run cannot be written; what was written before stays as it is."""
