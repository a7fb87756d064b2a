"""Logits and targets, the right answer in float64, and what is asked of whoever computes a loss of them."""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.measure import peak_of

__all__ = ["IGNORED", "SMALL", "Loss", "Problem", "Weights", "judge", "peak", "problem_of", "ranked", "seconds"]

IGNORED = -100  # no class, however many there are
SHARE_IGNORED = 0.05

# Up to so many logits, the choice by size and the loop over samples are measured, and memory is not followed.
SMALL = 200_000

# From outputs and targets to a loss.
Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Problem:
    """Logits and targets, and the right answers in float64.

    Attributes:
        logits: Shape (N, C) or (N, C, d1, ...).
        targets: Classes, `IGNORED` for about one in twenty: so that every fraction counts a whole number of elements,
            and of each of two images.
    """

    logits: Tensor
    targets: Tensor

    @classmethod
    def of(cls, shape: Sequence[int], dtype: torch.dtype) -> Problem:
        """Normal logits, of which the target's are larger: easy elements and hard ones, as in a trained network."""
        generator = torch.Generator().manual_seed(0)
        logits = torch.randn(*shape, generator=generator)
        places = (shape[0], *shape[2:])
        targets = torch.randint(shape[1], places, generator=generator)
        logits.mul_(2).scatter_add_(1, targets.unsqueeze(1), 6 * torch.rand(places, generator=generator).unsqueeze(1))
        n = targets.numel()
        counted = int(n * (1 - SHARE_IGNORED)) // 20 * 20
        left_out = torch.randperm(n, generator=generator)[: n - counted]
        targets.view(-1)[left_out] = IGNORED
        return cls(logits.to(dtype), targets)

    @property
    def name(self) -> str:
        """As the ledger has it."""
        return f"{' x '.join(map(str, self.logits.shape))} {str(self.logits.dtype).removeprefix('torch.')}"

    @cached_property
    def counted(self) -> int:
        """How many elements are not ignored."""
        return int((self.targets != IGNORED).sum())

    def k(self, fraction: float) -> int:
        """How many elements are averaged."""
        return round(fraction * self.counted)

    def outputs(self) -> Tensor:
        """The logits as a network hands them over: written anew, in need of a gradient, no leaf."""
        return _Network.apply(torch.zeros((), requires_grad=True), self.logits)  # type: ignore[no-any-return]

    @cached_property
    def losses(self) -> Tensor:
        """In float64; -inf where ignored."""
        own = self.targets.masked_fill(self.targets == IGNORED, 0)
        losses = F.cross_entropy(self.logits.double(), own, reduction="none")
        return losses.masked_fill(self.targets == IGNORED, -torch.inf)

    @cached_property
    def slopes(self) -> Tensor:
        """The gradient of each element's own loss: computed in float64, kept in float32."""
        own = self.targets.masked_fill(self.targets == IGNORED, 0).unsqueeze(1)
        return self.logits.double().softmax(1).scatter_add_(1, own, -torch.ones_like(own, dtype=torch.float64)).float()

    @property
    def margin(self) -> float:
        """By how much, relative to 1 and itself, rounding may move a loss."""
        return 1e-5 if self.logits.dtype == torch.float32 else 1e-2

    @property
    def precision(self) -> float:
        """Of values and gradients."""
        return 1e-4 if self.logits.dtype == torch.float32 else 2e-2


def problem_of(parser: argparse.ArgumentParser, shape: Sequence[int], dtype: torch.dtype) -> Problem:
    """What a command was asked for."""
    if math.prod(shape) // shape[1] < 40:
        parser.error("argument --shape: 40 elements at least, so that every fraction is a whole number of them.")
    return Problem.of(shape, dtype)


class _Network(torch.autograd.Function):
    """Stands for what computes the logits."""

    @staticmethod
    def forward(ctx: Any, parameter: Tensor, logits: Tensor) -> Tensor:
        return logits.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient.new_zeros(()), None


@dataclass(frozen=True)
class Weights:
    """A loss as a sum of the elements' losses.

    Attributes:
        each: Float64, shaped like the losses.
        sure: Whose weight rounding cannot change.
    """

    each: Tensor
    sure: Tensor

    def scaled(self, factor: float) -> Weights:
        """The same selection, of which so much is taken."""
        return Weights(self.each * factor, self.sure)


def ranked(losses: Tensor, stop: float, *, margin: float, start: float = 0.0, slack: int = 0) -> Weights:
    """The average of the mass between two ranks, the hardest first; -inf counts never.

    Unsure is what is as hard as the loss at an edge but for a margin, or up to `slack` ranks from it.
    """
    line = losses.flatten()
    ordered, order = line.sort(descending=True)
    ranks = torch.arange(len(line), dtype=torch.float64)
    shares = (stop - ranks).clamp(0, 1) - (start - ranks).clamp(0, 1)
    each = torch.zeros_like(line).scatter_(0, order, shares / (stop - start))
    sure = line > -torch.inf
    counted = int(sure.sum())
    for edge in (start, stop):
        if 0 < edge < counted:
            at = math.ceil(edge) - 1
            above, below = ordered[max(at - slack, 0)], ordered[min(at + slack, counted - 1)]
            width = margin * (1 + float(ordered[at]))
            near = (line <= above + width) & (line >= below - width)
            if int(near.sum()) > 1:
                sure &= ~near
    return Weights(each.view_as(losses), sure.view_as(losses))


def judge(name: str, loss: Loss, problem: Problem, right: Weights) -> None:
    """The value and the gradient, but for elements as hard as the threshold, which rounding may put on either side."""
    outputs = problem.outputs()
    computed = loss(outputs, problem.targets)
    (gradient,) = torch.autograd.grad(computed, outputs)
    value = computed.item()
    expected = float(torch.where(right.each > 0, right.each * problem.losses, 0.0).sum())
    assert abs(value - expected) <= problem.precision * abs(expected), (name, value, expected)
    assert bool(gradient.isfinite().all()), f"{name}: a gradient that is not finite"
    ignored = (problem.targets == IGNORED).unsqueeze(1)
    assert not bool((gradient * ignored).any()), f"{name}: a gradient at an ignored target"
    weights = right.each.float().unsqueeze(1)
    off = torch.addcmul(gradient.float(), problem.slopes, weights, value=-1).abs_().amax(1)
    assert float(off[right.sure].amax()) <= problem.precision * float(weights.max()), f"{name}: another gradient"


def seconds(loss: Loss, problem: Problem) -> Callable[[], float]:
    """What takes the time of one forward and backward, into a fresh gradient."""

    def run() -> float:
        outputs = problem.outputs()
        start = time.perf_counter()
        gradient = torch.autograd.grad(loss(outputs, problem.targets), outputs)
        took = time.perf_counter() - start
        del gradient
        return took

    return run


def peak(loss: Loss, problem: Problem) -> float:
    """MiB held at most above logits and targets."""
    outputs = problem.outputs()
    return peak_of(lambda: torch.autograd.grad(loss(outputs, problem.targets), outputs)) / 2**20
