"""Ctrl-C while libraries are loaded, which takes seconds: it ends the command at once, in one quiet sentence."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["loading"]


@contextmanager
def loading() -> Iterator[None]:
    """For imports, and nothing else: what runs inside has written no file yet.

    Elsewhere Ctrl-C is an exception, which a library that is half loaded might take for one of its own.
    """
    heard = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # a job in the background ignores it
    if not heard or threading.current_thread() is not threading.main_thread():
        yield
        return
    signal.signal(signal.SIGINT, _leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _leave(number: int, frame: FrameType | None) -> None:
    """Ends the process without an exception."""
    print("topkloss: interrupted; nothing was written.", file=sys.stderr, flush=True)
    os._exit(130)
