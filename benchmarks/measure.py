"""What every benchmark needs: memory followed, times summed up, the allocator and the commit named."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["FRESH_PAGES", "KEEPING_PAGES", "Memory", "commit", "mode", "peak_of", "ran_under", "spread"]

# glibc then takes memory from one growing heap, and never gives it back.
KEEPING_PAGES = "glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=1099511627776"


# glibc then asks the system anew for every piece as large as logits, and keeps the smaller ones: what it does by itself
# until a larger piece was freed, sooner in one process than in the next.
FRESH_PAGES = "glibc.malloc.mmap_threshold=4194304:glibc.malloc.trim_threshold=1073741824"

ALLOCATORS = {KEEPING_PAGES: ", pages kept", FRESH_PAGES: ", fresh pages"}


def mode() -> str:
    """What is timed, and under which allocator."""
    return "forward + backward" + ALLOCATORS.get(os.environ.get("GLIBC_TUNABLES", ""), "")


def ran_under(allocator: str, module: str, arguments: Sequence[str] | None) -> bool:
    """Runs a benchmark in a process of that allocator, unless this is one.

    Args:
        allocator: One of `ALLOCATORS`.
        module: The benchmark's.
        arguments: Its own; None = those of this process.

    Returns:
        Whether it did: then there is nothing left to do.
    """
    if os.environ.get("GLIBC_TUNABLES") == allocator:
        return False
    command = [sys.executable, "-m", module, *(sys.argv[1:] if arguments is None else arguments)]
    folder = Path(__file__).parent.parent
    subprocess.run(command, check=True, cwd=folder, env={**os.environ, "GLIBC_TUNABLES": allocator})
    return True


def spread(values: list[float]) -> list[float]:
    """Median, first and last decile."""
    low, *_, high = statistics.quantiles(values, n=10, method="inclusive")
    return [statistics.median(values), low, high]


class Memory(TorchDispatchMode):
    """Follows what the operations inside allocate and free, in bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._follow(tensor.untyped_storage())
        return result

    def _follow(self, storage: torch.UntypedStorage) -> None:
        key, size = storage.data_ptr(), storage.nbytes()
        if key in self.known:
            return
        self.known.add(key)
        self.now += size
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self._free, key, size)

    def _free(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.now -= size


def peak_of(run: Callable[[], object]) -> int:
    """Bytes that torch's allocator for the CPU holds at most above what it held before, operators of any kind included.

    `Memory` sees operators from outside only. What a kernel takes without torch, some KiB of scratch for each thread,
    is seen by neither.
    """
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as watched:
        kept = run()
    now = most = 0
    for event in watched.profiler.kineto_results.events():  # type: ignore[union-attr]
        if event.name() == "[memory]":
            now += event.nbytes()
            most = max(most, now)
    del kept
    return most


def commit() -> str:
    """Of the code that is measured, shortened; empty outside a checkout."""
    answer = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True, check=False
    )
    return answer.stdout.strip()
