"""The cross-entropy of probabilities, forward and backward, against plain ``F.cross_entropy`` of the same targets.

    OMP_NUM_THREADS=1 python -m benchmarks.probabilities --shape 2 19 384 384

Targets are mixed up, as mixup does: two classes share each element. Each way is judged against float64, and all take
turns in one process.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.ledger import LEDGER, Row, line, rows_of, take_turns, write
from benchmarks.measure import mode
from benchmarks.problem import IGNORED, SMALL, Loss, Problem, peak, problem_of, seconds
from topkloss import average_top_k_cross_entropy
from topkloss.kernels import native

__all__ = ["KERNEL", "main", "measure"]

KERNEL = "cross-entropy of probabilities"
BASELINE = "F.cross_entropy, mean"
SHARE = 0.7  # of the first class of each element


def mixed(problem: Problem) -> Problem:
    """The same logits, with a second class in each target: that of another element."""
    classes = problem.logits.shape[1]
    index = problem.targets.masked_fill(problem.targets == IGNORED, 0)
    one, other = (F.one_hot(labels, classes).movedim(-1, 1).float() for labels in (index, index.flip(0)))
    return Problem(problem.logits, (SHARE * one + (1 - SHARE) * other).contiguous())


def ways() -> dict[tuple[str, float], Loss]:
    """Who computes, and the fraction that is averaged; the baseline first."""
    backends = ["native", "torch"] if native.is_available() else ["torch"]
    found: dict[tuple[str, float], Loss] = {(BASELINE, 1.0): lambda x, t: F.cross_entropy(x, t)}
    for backend in backends:
        for fraction in (0.25, 1.0):
            found[backend, fraction] = _ours(backend, fraction)
    return found


def _ours(backend: str, fraction: float) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda x, t: average_top_k_cross_entropy(x, t, fraction=fraction, backend=backend)  # type: ignore[arg-type]


def judge(name: str, loss: Loss, problem: Problem, fraction: float) -> None:
    """The value and the gradient in float64, of torch's losses and a sort of their divergences."""
    outputs = problem.logits.double().requires_grad_()
    targets = problem.targets.double()
    losses = F.cross_entropy(outputs, targets, reduction="none").flatten()
    scores = losses.detach() + torch.xlogy(targets, targets).sum(dim=1).flatten()
    k = fraction * losses.numel()
    order = scores.argsort(descending=True)[: int(k + 1)]
    shares = (k - torch.arange(len(order), dtype=torch.float64)).clamp(0, 1) / k
    expected = (losses[order] * shares).sum()
    own = problem.outputs()
    value = loss(own, problem.targets)
    assert abs(value.item() - expected.item()) <= problem.precision * expected.item(), (name, value, expected)
    (slope,), (gradient,) = torch.autograd.grad(expected, outputs), torch.autograd.grad(value, own)
    off = (gradient - slope).abs().amax(dim=1).flatten()
    edge = scores[order[-1]]  # rounding may put on either side what is as hard
    sure = (scores - edge).abs() > problem.margin * (1 + edge.abs()) if fraction < 1 else torch.ones_like(off).bool()
    assert float(off[sure].max()) <= problem.precision / k, f"{name}: another gradient"


def measure(problem: Problem, turns: int) -> list[Row]:
    """Judges, then times, every way."""
    every = ways()
    for (name, fraction), loss in every.items():
        judge(name, loss, problem, fraction)
    names = {f"{name} at {fraction:g}": way for (name, fraction), way in every.items()}
    baseline = f"{BASELINE} at 1"
    times = take_turns({name: seconds(way, problem) for name, way in names.items()}, turns)
    peaks = {} if problem.logits.numel() <= SMALL else {name: peak(way, problem) for name, way in names.items()}
    given = {"kernel": KERNEL, "mode": mode(), "input": problem.name, "size": problem.logits.numel()}
    rows = rows_of(times, baseline=baseline, fraction=1.0, peaks=peaks, **given)  # type: ignore[arg-type]
    return [replace(row, provider=name, fraction=fraction) for row, (name, fraction) in zip(rows, every, strict=True)]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, prints, and adds to the ledger."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--shape", type=int, nargs="+", default=[2, 19, 384, 384], help="N C, or N C d1 ...")
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument("--ledger", type=Path, default=LEDGER)
    asked = parser.parse_args(arguments)
    rows = measure(mixed(problem_of(parser, asked.shape, torch.float32)), asked.turns)
    print("\n".join(line(row) for row in rows))
    write(rows, asked.ledger)


if __name__ == "__main__":
    main()
