"""A stretch of the line: how far a mass of the largest reaches, what each element weighs by it, and their sum.

Laid side by side, the largest first, what counts is a `Counted` or, where the native kernels serve, a `Line`. The one
is weighed by operations of torch, its weights a tensor; the other by one pass of a kernel, its weights a `Weighing`,
written out nowhere but in the gradient. The laws are the same, and are said once.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from topkloss.base.tensors import Scalar, choose, memory_is_readable, part_of, values_are_readable
from topkloss.kernels import native
from topkloss.ranking.ranking import Counted, Line, dense
from topkloss.ranking.threshold import kth_largest, needed

# A count within this relative distance of an integer is that integer: 0.29 * 100 selects 29.
SNAP = 1e-9


class Cut(NamedTuple):
    """Where a given mass of the largest ends: numbers of Python on a `Line`, else 0-dim tensors."""

    score: Scalar  # elements above it lie before the end, those below it behind
    above: Scalar  # float64: the mass of all elements above that score
    tied: Scalar  # float64: the mass of all elements at it
    part: Scalar  # float64: how much of each of them lies before the end; of any value where none counts


class Weighing(NamedTuple):
    """Weights that are not written out: a line, and the stretch of it that is averaged."""

    line: Line
    stretch: native.Stretch


Weights = Tensor | Weighing


def capacity(total: Scalar, count: float | None, fraction: float | None) -> Scalar:
    """The mass asked for, shaped like the total: `count`, or `fraction` of it; near-integers snapped; at most all."""
    if isinstance(total, Tensor):
        if fraction is not None:
            wanted = total * float(fraction)
        else:
            assert count is not None
            wanted = torch.ones_like(total) * float(count)  # not torch.full: a compiled graph then serves every count
        nearest = wanted.round()
        snapped = torch.where((wanted - nearest).abs() <= SNAP * wanted, nearest, wanted)
        return torch.where(wanted < total, snapped, total).minimum(total)
    if fraction is not None:
        asked = total * float(fraction)
    else:
        assert count is not None
        asked = float(count)
    if not asked < total:
        return total
    return min(float(round(asked)) if abs(asked - round(asked)) <= SNAP * asked else asked, total)


def cut(counted: Counted | Line, wanted: Scalar) -> Cut:
    """Where the `wanted` mass ends; -inf where nothing counts, NaN where poisoned."""
    score: Scalar
    above: Scalar
    tied: Scalar
    if isinstance(counted, Line):
        need = float(needed(wanted, counted.memory.tensors[1]))
        score, above, tied = -math.inf, 0.0, 0.0
        if need > 0:
            score, above, tied = native.kth_largest(counted.memory, need)
    else:
        assert isinstance(wanted, Tensor)
        score, above, tied = kth_largest(counted.scores, counted.mass, wanted)
        score = torch.where(counted.total > 0, score, -torch.inf)
    tied = choose(score == -math.inf, counted.total - above, tied)
    return Cut(choose(counted.poisoned, math.nan, score), above, tied, part_of(wanted - above, tied))


def above(counted: Counted | Line, score: float) -> Scalar:
    """The counted mass whose score is larger."""
    if isinstance(counted, Line):
        return native.above(counted.memory, score)[0]
    return counted.mass_of(counted.scores > score)


def weigh(counted: Counted | Line, selected: Scalar, end: Cut | None = None, start: Cut | None = None) -> Weights:
    """Weights of what lies before the end (None = all) and behind the start (None = from the largest on).

    Args:
        counted: What counts.
        selected: Its mass; with groups, in the element's own.
        end: Where it ends.
        start: Where it begins.
    """
    if isinstance(counted, Line):
        scale = 1 / float(selected) if selected > 0 else 0.0
        lowest = math.nan if counted.poisoned else -math.inf
        last = (lowest, 1.0) if end is None else (float(end.score), float(end.part))
        first = () if start is None else (float(start.score), float(1 - start.part))
        return Weighing(counted, native.Stretch(*last, scale, *first))
    assert isinstance(selected, Tensor)
    if end is None:
        everything = torch.ones_like(counted.scores)
        return spread(counted, everything, selected, everything.new_full((), -torch.inf))
    assert isinstance(end.score, Tensor)
    return spread(counted, share(counted, end, start), selected, end.score)


def share(counted: Counted, end: Cut, start: Cut | None = None) -> Tensor:
    """How much of each element, in [0, 1], lies before the end and behind the start.

    By arithmetic on 1 (above), 0 (tied) and -1 (below), which is several times faster on the CPU than masks are.
    """
    assert isinstance(end.part, Tensor)
    before = _side(counted, end.score).add_(end.part.to(counted.dtype)).clamp(0, 1)
    if start is None:
        return before
    assert isinstance(start.part, Tensor)
    behind = _side(counted, start.score).neg_().add_((1 - start.part).to(counted.dtype)).clamp(0, 1)
    return torch.minimum(before, behind)


def _side(counted: Counted, score: Scalar) -> Tensor:
    """1 above the score, 0 at it (infinities too), -1 below."""
    return (counted.scores - score).nan_to_num_(nan=0.0).sign_().to(counted.dtype)


def spread(counted: Counted, chosen: Tensor, selected_mass: Tensor, lowest: Tensor) -> Tensor:
    """Weights of sum 1 over the chosen shares; 0 where not counted, NaN on the counted where poisoned.

    Args:
        counted: What counts.
        chosen: The share of each element.
        selected_mass: The mass of all chosen shares; with groups, in the element's own.
        lowest: 0-dim, the lowest score chosen. Above -inf it leaves out by itself what is not counted.
    """
    scale = torch.where(selected_mass > 0, 1 / selected_mass, 0)
    if counted.places is not None:
        scale = counted.places.each(scale / counted.places.number)
    scale = torch.where(counted.poisoned, torch.nan, scale)
    weights = (chosen if counted.mass is None else counted.mass * chosen).mul(scale).to(counted.dtype)
    if counted.mask is None or (values_are_readable(lowest) and bool(lowest > -torch.inf)):
        return weights
    return weights.masked_fill(~counted.mask, 0)


def in_full(weights: Weights) -> Tensor:
    """The weights written out, shaped like the losses."""
    if isinstance(weights, Tensor):
        return weights
    line, stretch = weights
    out = torch.empty_like(line.scores, dtype=line.dtype)
    native.weights(line.memory, stretch, out)
    return out


def weighted_sum(weights: Weights, losses: Tensor) -> Tensor:
    """The sum of weights times losses; what stands where the weight is 0 never matters, nor does its gradient."""
    if isinstance(weights, Weighing):
        value: Tensor = _Average.apply(losses, weights)
        return value
    losses = losses.to(weights.dtype)
    if not (values_are_readable(losses) and bool(losses.detach().sum().isfinite())):
        losses = losses.masked_fill(weights == 0, 0)
    return (weights * losses).sum()


class _Average(torch.autograd.Function):
    """The weighted sum by the native kernels: the gradient is the weights times the slope, written once."""

    @staticmethod
    def forward(ctx: Any, losses: Tensor, weights: Weighing) -> Tensor:
        line, stretch = weights
        if ctx.needs_input_grad[0]:
            kept = line.memory.tensors
            ctx.save_for_backward(
                *(each.clone() if each is not None and each.is_inference() else each for each in kept)
            )
            ctx.stretch, ctx.dtypes = stretch, (line.dtype, losses.dtype)
        value = native.weighted_sum(line.memory, stretch, dense(losses, line.dtype))
        return torch.scalar_tensor(value, dtype=line.dtype, device="cpu")

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, None]:
        line = native.line(*ctx.saved_tensors)
        stretch, (dtype, own) = ctx.stretch, ctx.dtypes
        follows = torch.is_grad_enabled() or not memory_is_readable(slope)
        if not follows:
            stretch = stretch._replace(scale=stretch.scale * slope.item())
        weights = torch.empty_like(line.tensors[0], dtype=dtype)
        native.weights(line, stretch, weights)
        gradient = torch.where(weights == 0, 0, slope * weights) if follows else weights
        return gradient.to(own), None
