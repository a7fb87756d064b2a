"""A ranking by the native kernels: one process, on the CPU; numbers are those of Python, and no weights are kept."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from topkloss.base.arguments import NanPolicy
from topkloss.base.tensors import Scalar, computing_dtype, dense, memory_is_readable
from topkloss.kernels import native
from topkloss.ranking.ranking import LEAST, Cut, Ranking, Weights, not_a_mass, refuse_nan
from topkloss.ranking.threshold import needed


class NativeWeights(Weights):
    """An interval for each group of a line of elements (mostly one), written out nowhere but in the gradient."""

    def __init__(
        self,
        line: native.Line,
        dtype: torch.dtype,
        intervals: Sequence[native.Interval],
        groups: native.Groups = native.ONE_GROUP,
    ) -> None:
        self.line, self.dtype, self.intervals, self.groups = line, dtype, intervals, groups

    @property
    def lowest(self) -> Tensor:
        """See `Weights`."""
        return torch.scalar_tensor(self._lowest(), dtype=self.line.tensors[0].dtype, device="cpu")

    def _lowest(self) -> float:
        if self.groups is native.ONE_GROUP:
            return self.intervals[0].end
        ends = [interval.end for interval in self.intervals if interval.scale != 0 or math.isnan(interval.end)]
        return math.nan if any(map(math.isnan, ends)) else min(ends, default=-math.inf)

    def dense(self) -> Tensor:
        """See `Weights`."""
        out = torch.empty_like(self.line.tensors[0], dtype=self.dtype)
        native.weights(self.line, self.intervals, out, self.groups)
        return out

    def dot(self, losses: Tensor) -> Tensor:
        """See `Weights`."""
        value: Tensor = _NativeSum.apply(losses, self)
        return value


class _NativeSum(torch.autograd.Function):
    """The weighted sum by the native kernels; its gradient is the weights times grad_output, written once."""

    @staticmethod
    def forward(ctx: Any, losses: Tensor, weights: NativeWeights) -> Tensor:
        line, dtype = weights.line, weights.dtype
        if ctx.needs_input_grad[0]:
            kept: tuple[Tensor | None, ...] = (*line.tensors, weights.groups.index)
            if any(each is not None and each.is_inference() for each in kept):  # which autograd does not keep
                kept = tuple(each if each is None else each.clone() for each in kept)
            ctx.save_for_backward(*kept)
            ctx.weights, ctx.dtype = weights, losses.dtype
        value = native.weighted_sum(line, weights.intervals, dense(losses, dtype), weights.groups)
        return torch.scalar_tensor(value, dtype=dtype, device="cpu")

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None]:
        *kept, index = ctx.saved_tensors  # raises where they were changed since
        weights: NativeWeights = ctx.weights
        line, groups = weights.line, weights.groups
        if kept[0] is not line.tensors[0]:  # they were copied, or kept elsewhere meanwhile
            line, groups = native.Line(*kept), native.Groups(index, groups.first, groups.number)
        intervals, follows = weights.intervals, torch.is_grad_enabled() or not memory_is_readable(grad_output)
        gradient = torch.empty_like(kept[0], dtype=weights.dtype)
        native.weights(line, intervals, gradient, groups, factor=1.0 if follows else grad_output.item())
        if follows:
            gradient = torch.where(gradient == 0, 0, grad_output * gradient)
        return gradient if gradient.dtype == ctx.dtype else gradient.to(ctx.dtype), None


class NativeRanking(Ranking):
    """By the native kernels: the inputs as they are, and what one look at them told.

    Args:
        line: Scores, masses and mask; anything where not counted.
        total: See `Ranking`; 0 where a NaN counts.
        has_nan, omitted, dtype: See `Ranking`.
    """

    total: float

    def __init__(self, line: native.Line, total: float, has_nan: bool, omitted: int, dtype: torch.dtype) -> None:
        self.line, self.scores, self.dtype = line, line.tensors[0], dtype
        self.total, self.has_nan, self.omitted = total, has_nan, omitted

    def _kth_largest(self, wanted: Scalar) -> tuple[float, float, float]:
        need = float(needed(wanted, self.line.tensors[1]))
        return native.kth_largest(self.line, need) if need > 0 else (-math.inf, 0.0, 0.0)

    def _weigh(self, selected: Scalar, end: Cut, start: Cut | None = None) -> NativeWeights:
        scale = 1 / float(selected) if selected > 0 else 0.0
        first = () if start is None else (float(start.score), float(1 - start.part))
        interval = native.Interval(float(end.score), float(end.part), scale, *first)
        return NativeWeights(self.line, self.dtype, (interval,))

    def tied_at(self, wanted: Scalar) -> NativeWeights:
        """See `Ranking`."""
        end = self.cut(wanted)
        return self._weigh(end.tied, end._replace(part=1.0), end._replace(part=0.0))

    def largest(self) -> NativeWeights:
        """See `Ranking`."""
        return self.tied_at(LEAST * self.total)

    def above(self, threshold: float, floor: Scalar | None) -> Weights:
        """See `Ranking`."""
        mass, lowest = native.above(self.line, threshold)
        if self.has_nan or (floor or 0.0) > mass:
            return self.interval(None, floor or 0.0)
        return self._weigh(mass, Cut(lowest if mass > 0 else -math.inf, 0.0, mass, 1.0))

    def mass_above(self, score: float) -> float:
        """See `Ranking`."""
        return native.above(self.line, score)[0]

    def everything(self) -> NativeWeights:
        """See `Ranking`."""
        lowest = math.nan if self.has_nan else -math.inf
        return self._weigh(self.total, Cut(lowest, 0.0, 0.0, 1.0))

    def even(self) -> NativeWeights:
        """See `Ranking`."""
        return self.everything()

    def inputs(self) -> tuple[Tensor | None, ...]:
        """See `Rankings`."""
        return self.line.tensors

    def each_mass(self) -> Tensor:
        """See `Rankings`."""
        scores, mass, counts = self.line.tensors
        mass = torch.ones_like(scores, dtype=torch.float64) if mass is None else mass.double()
        return mass if counts is None else mass.masked_fill(~counts, 0)


def native_ranking(
    losses: Tensor,
    *,
    mask: Tensor | None = None,
    sample_weight: Tensor | None = None,
    scores: Tensor | None = None,
    nan_policy: NanPolicy = "propagate",
) -> NativeRanking:
    """What counts, ranked by the native kernels; the arguments are those of `rank`, and have been checked."""
    losses = dense(losses)
    ranked = losses if scores is None else dense(scores)
    mask = None if mask is None else dense(mask, torch.bool)
    own = torch.float32 if sample_weight is not None and sample_weight.dtype == torch.float32 else torch.float64
    mass = None if sample_weight is None else dense(sample_weight, own)
    line = native.Line(ranked, mass, mask)
    total, has_nan, wrong = native.count(line)
    if mass is not None and wrong >= 0:
        raise not_a_mass(mass.view(-1)[wrong])
    omitted = 0
    if nan_policy == "omit":
        nan = losses.isnan() if scores is None else losses.isnan() | ranked.isnan()
        counts = torch.ones_like(nan) if mask is None else mask
        omitted = int((nan & counts if mass is None else nan & counts & (mass > 0)).sum())
        line = native.Line(ranked, mass, counts & ~nan)
        total, has_nan, _ = native.count(line)
    elif scores is not None:
        has_nan = has_nan or native.count(native.Line(losses, mass, mask))[1]
    has_nan = has_nan or total == math.inf
    refuse_nan(nan_policy == "raise" and has_nan)
    return NativeRanking(line, 0.0 if has_nan else total, has_nan, omitted, computing_dtype(losses))
