"""What one threshold over several processes costs: beside gathering all losses, and beside ranking apart.

``python -m benchmarks.distributed`` starts four processes on this machine (gloo, one thread each) with 4 million losses
each, checks that both ways give the same value, and times forward + backward of each way in turn. It writes
``benchmarks/distributed.csv`` and prints what docs/distributed.md states.
"""

from __future__ import annotations

import argparse
import csv
import platform
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from statistics import median

import torch
import torch.distributed as dist
from torch import Tensor
from torch.multiprocessing.spawn import spawn

from topkloss import WORLD, AverageTopKLoss, average_top_k

__all__ = ["LEDGER", "Row", "main"]

LEDGER = Path(__file__).with_name("distributed.csv")
FRACTIONS = (0.1, 0.3, 0.7)


@dataclass(frozen=True)
class Row:
    """One way at one fraction. Times in milliseconds, of the slowest process; bytes that each process hands over."""

    way: str
    processes: int
    elements: int
    fraction: float
    milliseconds: float
    low: float
    high: float
    handed: int
    device: str
    torch: str


def gathered(losses: Tensor, fraction: float) -> Tensor:
    """The straightforward way: every process gets all losses, and ranks them."""
    rows = [torch.empty_like(losses) for _ in range(dist.get_world_size())]
    dist.all_gather(rows, losses.detach())
    rows[dist.get_rank()] = losses
    return average_top_k(torch.cat(rows), fraction=fraction) * dist.get_world_size()


def together(losses: Tensor, fraction: float) -> Tensor:
    """This package's."""
    return AverageTopKLoss(torch.sub, fraction=fraction, process_group=WORLD)(losses, torch.zeros_like(losses))  # type: ignore[no-any-return]


def apart(losses: Tensor, fraction: float) -> Tensor:
    """Another loss, without a word to the others: what the rest costs more than."""
    return AverageTopKLoss(torch.sub, fraction=fraction)(losses, torch.zeros_like(losses))  # type: ignore[no-any-return]


WAYS: dict[str, Callable[[Tensor, float], Tensor]] = {"gathered": gathered, "together": together, "apart": apart}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, writes, prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--elements", type=int, default=4_000_000, help="of each process")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--ledger", type=Path, default=LEDGER)
    asked = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        ledger = Path(folder) / "ledger.csv"
        given = (asked.processes, asked.elements, asked.rounds, f"file://{folder}/store", ledger)
        spawn(_process, given, nprocs=asked.processes)  # type: ignore[no-untyped-call]
        asked.ledger.write_text(ledger.read_text())
    print(asked.ledger.read_text(), end="")


def _process(rank: int, processes: int, elements: int, rounds: int, store: str, ledger: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=processes)
    torch.manual_seed(rank)
    losses = torch.randn(elements).square_().requires_grad_()
    rows = []
    for fraction in FRACTIONS:
        _check(losses, fraction)
        times: dict[str, list[float]] = {way: [] for way in WAYS}
        for _ in range(rounds):
            for way, value in WAYS.items():
                losses.grad = None
                dist.barrier()
                start = time.perf_counter()
                value(losses, fraction).backward()
                dist.barrier()
                times[way].append(1000 * (time.perf_counter() - start))
        for way, taken in times.items():
            handed = {"gathered": 4 * elements, "together": _handed(losses, fraction), "apart": 0}[way]
            rows.append(
                Row(
                    way,
                    processes,
                    elements,
                    fraction,
                    milliseconds=round(median(taken), 1),
                    low=round(min(taken), 1),
                    high=round(max(taken), 1),
                    handed=handed,
                    device=platform.machine(),
                    torch=torch.__version__,
                )
            )
    if rank == 0:
        with ledger.open("w", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow([field.name for field in fields(Row)])
            writer.writerows(astuple(row) for row in rows)
    dist.destroy_process_group()


def _check(losses: Tensor, fraction: float) -> None:
    """Value and gradient are those of gathering."""
    values: list[Tensor] = []
    gradients: list[Tensor | None] = []
    for way in (gathered, together):
        losses.grad = None
        value = way(losses, fraction)
        value.backward()
        values.append(value.detach() / (dist.get_world_size() if way is gathered else 1))
        gradients.append(losses.grad)
    torch.testing.assert_close(*values, rtol=1e-5, atol=0)
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-12)


def _handed(losses: Tensor, fraction: float) -> int:
    """Bytes that this process hands to the others."""
    handed, reduce = 0, dist.all_reduce

    def counting(numbers: Tensor, op: dist.ReduceOp.RedOpType, group: dist.ProcessGroup) -> None:
        nonlocal handed
        handed += numbers.numel() * numbers.element_size()
        reduce(numbers, op, group)

    dist.all_reduce = counting  # type: ignore[assignment]
    together(losses, fraction)
    dist.all_reduce = reduce
    return handed


if __name__ == "__main__":
    main()
