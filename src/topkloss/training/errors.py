"""What a user did that cannot be done, in one sentence."""

from __future__ import annotations

__all__ = ["InputError"]


class InputError(ValueError):
    """Bad input: the command prints the sentence, without a traceback, and exits with code 2."""
