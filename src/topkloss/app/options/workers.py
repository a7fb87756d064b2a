"""Processes that load images: how many pay, and what is said when one of them ends."""

from __future__ import annotations

import errno
import multiprocessing
import os
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from topkloss.app.errors import InputError, RunError
from topkloss.app.options.option import cores

__all__ = ["MOST", "bearing", "workers_that_pay"]

# More of them seldom load faster than a model takes; each costs memory.
MOST = 4

# All of the loading together must take so long before processes that take a tenth of it to start are worth it.
SECONDS = 5.0

# Timed before anything is decided.
TRIED = 8

# Batches that a process has ready, or is handing over.
BATCHES_OF_EACH = 3

# Where batches of other processes lie on Linux; a container often has 64 MiB of it.
SHARED = Path("/dev/shm")

# What torch, and the system below it, say of a process that ended or of memory that is shared with it.
SIGNS = (
    *("DataLoader worker (pid", "shared memory", "unable to write to file </torch", "unable to open file </torch"),
    *("unable to mmap", "ancdata", "MemoryError", "Cannot allocate memory"),
    *("Too many open files", "Resource temporarily unavailable"),
)
ERRNOS = (errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE)


def workers_that_pay(load: Callable[[int], object], images: int, passes: int, batch_bytes: int) -> int:
    """How many processes shall load images beside this one, where nobody said: as many as there are cores, at most 4.

    None where all of the loading, by the time that the first few images take, is a matter of seconds; none where a
    process would start a program anew, which is not for this one to decide; no more than shared memory has room for.

    Args:
        load: From the place of an image to the prepared image, or None where it is bad.
        images: How many there are.
        passes: How often they are loaded.
        batch_bytes: Of the images of a batch, prepared.

    Example:
        >>> workers_that_pay(lambda place: None, images=10, passes=1, batch_bytes=1000)
        0
    """
    most = min(MOST, cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    if multiprocessing.get_start_method() != "fork" or images == 0:
        return 0
    if SHARED.is_dir():
        room = os.statvfs(SHARED)
        most = min(most, room.f_bavail * room.f_frsize // (BATCHES_OF_EACH * max(1, batch_bytes)))
    if most < 1:
        return 0
    load(0)  # the first loads libraries
    began, tried = time.perf_counter(), min(TRIED, images)
    for place in range(0, tried * (images // tried), images // tried):
        load(place)
        each = (time.perf_counter() - began) / (place // (images // tried) + 1)
        if each * images * passes > 2 * SECONDS * TRIED:
            break  # beyond doubt
    return int(most) if each * images * passes > SECONDS else 0


@contextmanager
def bearing(workers: int, hint: Callable[[], str] = lambda: "Pass --workers 0.") -> Iterator[None]:
    """A process that loads images and ends, or finds no memory, is one sentence.

    torch raises what it hears of such an end wherever this process is.

    Args:
        workers: How many load.
        hint: The last sentence, made when it is needed.

    Raises:
        RunError: If one ended.
    """
    try:
        yield
    except InputError:
        raise
    except (OSError, EOFError, RuntimeError, MemoryError) as error:
        if workers == 0 or not _is_sign(error):
            raise
        said = str(error).rstrip().rpartition("\n")[2] if str(error).startswith("Caught") else str(error)
        reason = said.partition("\n")[0].partition(". ")[0].rstrip(". ") or type(error).__name__
        raise RunError(
            f"`--workers` must be as many processes as the machine bears; got {workers}, and one ended: {reason}. "
            f"{hint()}"
        ) from error


def _is_sign(error: BaseException) -> bool:
    """Whether it is the machine, and no mistake in what a process does."""
    text = str(error)
    if text.startswith("Caught "):  # an exception of a process, with its traceback: what it was stands last
        last = text.rstrip().rpartition("\n")[2]
        return any(sign in last for sign in SIGNS[1:])
    if isinstance(error, OSError | EOFError) and _is_in_transit(error):
        return True
    return any(sign in text for sign in SIGNS) or (isinstance(error, OSError) and error.errno in ERRNOS)


def _is_in_transit(error: BaseException) -> bool:
    """Whether it came up while something was sent from process to process, and is no file's or output's."""
    frames = [frame.f_code.co_filename for frame, _ in traceback.walk_tb(error.__traceback__)]
    return any(Path(name).parent.name == "multiprocessing" for name in frames)
