"""Processes that rank together, for tests: started quickly, asked to run a function, ended whatever happened."""

from __future__ import annotations

import multiprocessing
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

# A process of tests has one such server, which has loaded what any of them needs (and what is installed); each process
# is forked from it.
START = multiprocessing.get_context("forkserver")
START.set_forkserver_preload(["torch", "torch.distributed", "topkloss", "topkloss.app.tasks.images.fit"])

PATIENCE = 120.0  # seconds; a process that has not ended by then hangs


@dataclass(frozen=True)
class Ended:
    """How one process ended: what the function returned, or what it raised; neither where it was killed."""

    result: Any = None
    error: str = ""
    kind: str = ""
    seconds: float = 0.0


def in_processes(
    function: Callable[..., Any], arguments: Sequence[tuple[Any, ...]], *, timeout: float = 60.0
) -> list[Ended]:
    """Calls the function in as many processes as there are tuples of arguments, with its own in each.

    Args:
        function: Importable by name.
        arguments: One tuple per rank.
        timeout: Of the process group, in seconds.
    """
    with tempfile.TemporaryDirectory() as folder:
        pipes = [START.Pipe(duplex=False) for _ in arguments]
        processes = [
            START.Process(
                target=_process,
                args=(pipes[rank][1], function, own, rank, len(arguments), str(Path(folder) / "store"), timeout),
                daemon=True,
            )
            for rank, own in enumerate(arguments)
        ]
        for process in processes:
            process.start()
        for _, writes in pipes:
            writes.close()
        until = time.monotonic() + PATIENCE
        ended = []
        for (reads, _), process in zip(pipes, processes, strict=True):
            if not reads.poll(max(0.0, until - time.monotonic())):
                for other in processes:
                    other.kill()
                raise AssertionError(f"a process still runs after {PATIENCE:g} s")
            try:
                ended.append(reads.recv())
            except EOFError:  # killed
                ended.append(Ended())
            process.join(10)
            process.kill()
        return ended


def results(function: Callable[..., Any], arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
    """What the function returned in each process; none may raise."""
    ended = in_processes(function, arguments)
    for one in ended:
        assert not one.kind, one.error
    return [one.result for one in ended]


def _process(pipe: Any, function: Any, arguments: Any, rank: int, size: int, store: str, timeout: float) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=size, timeout=timedelta(seconds=timeout)
    )
    start = time.monotonic()
    try:
        pipe.send(Ended(function(*arguments), seconds=time.monotonic() - start))
    except Exception as error:
        pipe.send(Ended(None, f"{error}\n{traceback.format_exc()}", type(error).__name__, time.monotonic() - start))
    finally:
        pipe.close()
        import os

        os._exit(0)  # a group that has failed cannot be left in order
