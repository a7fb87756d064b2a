"""What a step costs that skips the backward pass of easy images: time, memory, and how exact it is.

``python -m benchmarks.selective`` takes a residual network with group normalisation, trained for a moment on the
embedded digits, and one batch of 256. Each way is checked against the gradient of the whole batch before it is timed.
The baseline is the better of two full steps: of the whole batch, and in micro-batches that rank nothing. Ranking in
bfloat16 is tried too. It adds to ``benchmarks/selective.csv`` and prints what docs/selective.md states.
"""

from __future__ import annotations

import argparse
import copy
import csv
import platform
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from statistics import median

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.measure import Memory, commit, spread
from benchmarks.schedules import read_digits
from benchmarks.skipping import network
from topkloss import AverageTopKCrossEntropyLoss, SelectiveStep

__all__ = ["LEDGER", "Problem", "Row", "Setting", "main", "measure", "read", "summary"]

LEDGER = Path(__file__).with_name("selective.csv")
FRACTIONS = (0.1, 0.3, 0.5, 0.7)
FULL = ("whole batch", "micro-batches")


@dataclass(frozen=True)
class Setting:
    """What is measured, and on what.

    Attributes:
        batch, micro_batch: Images.
        width: Channels of the network.
        device: As torch names it.
        amp: Under autocast in bfloat16.
        channels_last: The memory format of network and images.
    """

    batch: int = 256
    micro_batch: int = 64
    width: int = 32
    device: str = "cpu"
    amp: bool = False
    channels_last: bool = False

    def autocast(self) -> AbstractContextManager[object]:
        """What a forward pass runs in."""
        return torch.autocast(self.device, torch.bfloat16, enabled=self.amp)


@dataclass(frozen=True)
class Row:
    """One way at one fraction.

    Attributes:
        way: What is timed.
        fraction: Share of the batch that is averaged.
        batch, micro_batch: Images.
        milliseconds, low, high: Forward and backward: median, first and last decile.
        ratio, ratio_low, ratio_high: To the better full step of the same turn.
        peak: MiB that the operations allocate at most, beside network and batch.
        difference: Norm of the gradient's difference to that of the whole batch, relative to its norm.
        error: The same to the gradient of the whole batch in float64: what rounding does to each way.
        agreement: Share of the selected images that float32 selects too.
        device, amp, channels_last, torch, threads, commit: Where it was measured.
    """

    way: str
    fraction: float
    batch: int
    micro_batch: int
    milliseconds: float
    low: float
    high: float
    ratio: float
    ratio_low: float
    ratio_high: float
    peak: float
    difference: float
    error: float
    agreement: float
    device: str
    amp: bool
    channels_last: bool
    torch: str
    threads: int
    commit: str


class Problem:
    """A network that was trained for a moment, and batches that it has not seen."""

    def __init__(self, setting: Setting, steps: int) -> None:
        self.setting = setting
        pixels, labels = read_digits()
        order = torch.randperm(len(pixels), generator=torch.Generator().manual_seed(0))
        images = ((pixels[order].float() / 255 - 0.1307) / 0.3081).view(-1, 1, 28, 28).to(setting.device)
        labels = labels[order].long().to(setting.device)
        self.model = network(0, width=setting.width).to(setting.device)
        if setting.channels_last:
            self.model = self.model.to(memory_format=torch.channels_last)
            images = images.contiguous(memory_format=torch.channels_last)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.05, momentum=0.9)
        learned = 64 * steps
        for some, targets in zip(images[:learned].split(64), labels[:learned].split(64), strict=True):
            self.optimizer.zero_grad()
            F.cross_entropy(self.model(some), targets).backward()
            self.optimizer.step()
        rest = images[learned:].split(setting.batch), labels[learned:].split(setting.batch)
        self.batches = [batch for batch in zip(*rest, strict=True) if len(batch[1]) == setting.batch]
        self.images, self.labels = self.batches[0]

    def whole(self, criterion: nn.Module, batch: int = 0) -> None:
        """The full step of a whole batch."""
        images, labels = self.batches[batch]
        with self.setting.autocast():
            loss = criterion(self.model(images), labels)
        loss.backward()

    def micro_batches(self) -> None:
        """A full step of the plain mean in micro-batches: nothing is ranked, so no mined loss can be sooner."""
        size = self.setting.micro_batch
        for images, labels in zip(self.images.split(size), self.labels.split(size), strict=True):
            with self.setting.autocast():
                loss = F.cross_entropy(self.model(images), labels, reduction="sum") / len(self.images)
            loss.backward()

    def in_float64(self, criterion: nn.Module) -> Tensor:
        """The gradient of the whole batch, nearly without rounding."""
        model = copy.deepcopy(self.model).double()
        model.zero_grad()
        criterion(model(self.images.double()), self.labels).backward()
        return _gradient(model)

    def gradient(self, backward: Callable[[], object]) -> Tensor:
        """What a way leaves in the parameters."""
        self.model.zero_grad()
        backward()
        return _gradient(self.model)


def measure(setting: Setting, rounds: int, steps: int) -> list[Row]:
    """Every way at every fraction."""
    problem = Problem(setting, steps)
    return [row for fraction in FRACTIONS for row in _at(problem, fraction, rounds)]


def _at(problem: Problem, fraction: float, rounds: int) -> list[Row]:
    setting = problem.setting
    criterion = AverageTopKCrossEntropyLoss(fraction=fraction)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it cannot pay at 70 %
        exact, lower = (
            SelectiveStep(problem.model, criterion, micro_batch=setting.micro_batch, ranking_dtype=dtype)
            for dtype in (None, torch.bfloat16)
        )

    def step(selective: SelectiveStep) -> Tensor:
        with setting.autocast():
            return selective(problem.images, problem.labels).selection.kept  # type: ignore[no-any-return]

    ways: dict[str, Callable[[], object]] = {
        "whole batch": lambda: problem.whole(criterion),
        "micro-batches": problem.micro_batches,
        "selective": lambda: step(exact),
        "selective, ranked in bfloat16": lambda: step(lower),
    }
    gradients = {way: problem.gradient(run) for way, run in ways.items()}
    precise = problem.in_float64(criterion)
    error = {way: _difference(gradient, precise) for way, gradient in gradients.items()}
    assert setting.amp or error["selective"] < max(1e-5, 1.5 * error["whole batch"]), (fraction, error)
    kept = {way: step(one) for way, one in (("selective", exact), ("selective, ranked in bfloat16", lower))}
    # bfloat16 is so slow on some CPUs that it would disturb the others' turns
    turns = {way: _turns(problem, {one: ways[one] for one in (*FULL, way)}, rounds) for way in kept}
    times = {**turns["selective, ranked in bfloat16"], **turns["selective"]}
    rows = []
    for way in ways:
        full = turns[way if way in turns else "selective"]
        better = full[min(FULL, key=lambda one: median(full[one]))]
        ratios = [mine / base for mine, base in zip(times[way], better, strict=True)]
        milliseconds, low, high, ratio, ratio_low, ratio_high = (
            round(one, 3) for one in spread(times[way]) + spread(ratios)
        )
        agreement = float((kept[way] & kept["selective"]).sum() / kept[way].sum()) if way in kept else 1.0
        row = Row(
            way=way,
            fraction=fraction,
            batch=setting.batch,
            micro_batch=setting.micro_batch,
            milliseconds=milliseconds,
            low=low,
            high=high,
            ratio=ratio,
            ratio_low=ratio_low,
            ratio_high=ratio_high,
            peak=round(_peak(ways[way], problem), 2),
            difference=float(f"{_difference(gradients[way], gradients['whole batch']):.1e}"),
            error=float(f"{error[way]:.1e}"),
            agreement=round(agreement, 3),
            device=torch.cuda.get_device_name() if setting.device == "cuda" else platform.machine(),
            amp=setting.amp,
            channels_last=setting.channels_last,
            torch=torch.__version__,
            threads=torch.get_num_threads(),
            commit=commit(),
        )
        rows.append(row)
    return rows


def _turns(problem: Problem, ways: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Milliseconds of each way, which take turns."""
    times: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(rounds):
        for way, run in ways.items():
            problem.model.zero_grad()
            times[way].append(_milliseconds(run, problem.setting.device))
    return times


def _gradient(model: nn.Module) -> Tensor:
    return torch.cat([one.grad.flatten() for one in model.parameters() if one.grad is not None]).double()


def _difference(gradient: Tensor, expected: Tensor) -> float:
    return float((gradient - expected).norm() / expected.norm())


def _milliseconds(run: Callable[[], object], device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    if device == "cuda":
        torch.cuda.synchronize()
    return 1e3 * (time.perf_counter() - start)


def _peak(run: Callable[[], object], problem: Problem) -> float:
    problem.model.zero_grad()
    if problem.setting.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return float(torch.cuda.max_memory_allocated() - before) / 2**20
    with Memory() as memory:
        there = [problem.images, problem.labels, *problem.model.parameters()]
        memory.known |= {one.untyped_storage().data_ptr() for one in there}
        run()
    return float(memory.most) / 2**20


def summary(rows: Sequence[Row]) -> str:
    """A line for each way and fraction, under the name of the device."""
    first = rows[0]
    extras = [name for name, is_so in (("AMP", first.amp), ("channels last", first.channels_last)) if is_so]
    sizes = f"batch {first.batch}, micro-batches of {first.micro_batch}"
    lines = [", ".join([first.device, f"{first.threads} threads", f"torch {first.torch}", sizes, *extras])]
    lines.append(
        f"{'':8}{'':29}{'ms':>8}   of the better full step   peak MiB   gradient off by   its rounding   selected alike"
    )
    for row in rows:
        ratio = f"{row.ratio:.2f} ({row.ratio_low:.2f} to {row.ratio_high:.2f})"
        lines.append(
            f"{100 * row.fraction:4.0f} %  {row.way:<30}{row.milliseconds:8.1f}   {ratio:<24}{row.peak:9.1f}"
            f"{row.difference:18.0e}{row.error:15.0e}{100 * row.agreement:15.1f} %"
        )
    return "\n".join(lines)


def read(ledger: Path) -> list[Row]:
    """The rows of a ledger."""
    kinds: dict[str, Callable[[str], object]] = {"float": float, "int": int, "str": str, "bool": "True".__eq__}
    with ledger.open(newline="", encoding="utf-8") as file:
        return [
            Row(*(kinds[str(field.type)](line[field.name]) for field in fields(Row)))  # type: ignore[arg-type]
            for line in csv.DictReader(file)
        ]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, adds to the ledger, prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name, kind in (("batch", int), ("micro-batch", int), ("width", int), ("device", str)):
        parser.add_argument(f"--{name}", type=kind, default=getattr(Setting, name.replace("-", "_")))
    for name in ("amp", "channels-last"):
        parser.add_argument(f"--{name}", action="store_true")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--steps", type=int, default=60, help="of training before anything is measured")
    parser.add_argument("--ledger", type=Path, default=LEDGER)
    asked = vars(parser.parse_args(arguments))
    ledger, rounds, steps = asked.pop("ledger"), asked.pop("rounds"), asked.pop("steps")
    rows = measure(Setting(**asked), rounds, steps)
    known = ledger.exists()
    with ledger.open("a", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        if not known:
            writer.writerow([field.name for field in fields(Row)])
        writer.writerows(astuple(row) for row in rows)
    print(summary(rows))


if __name__ == "__main__":
    main()
