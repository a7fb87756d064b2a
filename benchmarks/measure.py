"""What every benchmark needs: memory followed, times summed up, the allocator and the commit named."""

from __future__ import annotations

import os
import statistics
import subprocess
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["KEEPING_PAGES", "Memory", "commit", "mode", "peak_of", "spread"]

# glibc then takes memory from one growing heap, and never gives it back.
KEEPING_PAGES = "glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=1099511627776"


def mode() -> str:
    """What is timed, and under which allocator."""
    keeping = "mmap_max=0" in os.environ.get("GLIBC_TUNABLES", "")
    return "forward + backward" + (", pages kept" if keeping else "")


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
