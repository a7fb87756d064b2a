"""The command ``topkloss`` from its first moment: Ctrl-C while torch is loaded ends it as quietly as later."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType

__all__ = ["main"]


def main() -> int:
    """Runs the command, as `topkloss.app.cli.main` does.

    Returns:
        The exit code.
    """
    heard = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # a job in the background ignores it
    if heard:
        signal.signal(signal.SIGINT, _leave)
    from topkloss.app.cli import main as command

    if heard:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    return command()


def _leave(number: int, frame: FrameType | None) -> None:
    """At once, and not by an exception, which a library that is half loaded might take for one of its own."""
    print("topkloss: interrupted; nothing was written.", file=sys.stderr, flush=True)
    os._exit(130)


if __name__ == "__main__":
    sys.exit(main())
