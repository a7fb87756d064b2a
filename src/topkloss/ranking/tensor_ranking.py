"""A ranking by torch's operations, on any device, under any tracing: nothing waits for its numbers, 0-dim tensors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from topkloss.base.arguments import NanPolicy
from topkloss.base.tensors import computing_dtype, part_before, values_are_readable
from topkloss.ranking.ranking import Ranking, Weights, not_a_mass, refuse_nan
from topkloss.ranking.threshold import kth_largest


class TensorWeights(Weights):
    """Weights, and the lowest score that weighs anything, as tensors."""

    def __init__(self, weights: Tensor, lowest: Tensor) -> None:
        self.weights, self._lowest = weights, lowest

    @property
    def lowest(self) -> Tensor:
        """See `Weights`."""
        return self._lowest

    def dense(self) -> Tensor:
        """See `Weights`."""
        return self.weights

    def dot(self, losses: Tensor) -> Tensor:
        """See `Weights`."""
        return weighted_sum(self.weights, losses)


class TensorRanking(Ranking):
    """By torch's operations. All tensors are detached, and the caller's are never written to.

    Args:
        scores: float32 or float64, shaped like the losses; -inf where not counted.
        mask: True = counted; None = all.
        mass: float64, 0 where not counted; None = 1 each.
        total: float64, 0-dim; with groups one number for each element, or for each group.
        has_nan, omitted: 0-dim.
        dtype: See `Ranking`.
    """

    total: Tensor
    has_nan: Tensor
    omitted: Tensor

    def __init__(
        self,
        scores: Tensor,
        mask: Tensor | None,
        mass: Tensor | None,
        total: Tensor,
        has_nan: Tensor,
        omitted: Tensor,
        dtype: torch.dtype,
    ) -> None:
        self.scores, self.mask, self.mass, self.total = scores, mask, mass, total
        self.has_nan, self.omitted, self.dtype = has_nan, omitted, dtype

    def _kth_largest(self, wanted: Any) -> tuple[Tensor, Tensor, Tensor]:
        score, above, tied = kth_largest(self.scores, self.mass, wanted)
        return torch.where(self.total > 0, score, -torch.inf), above, tied

    def _weigh(self, selected: Any, end: Any, start: Any = None) -> TensorWeights:
        before = self._before(end.score, end.part)
        if start is not None:
            before = torch.minimum(before, 1 - self._before(start.score, start.part))
        return self._normalised(before, selected, end.score)

    def _before(self, score: Tensor, part: Tensor) -> Tensor:
        return part_before(self.scores, score, part.to(self.dtype))

    def _normalised(self, chosen: Tensor, selected: Tensor, lowest: Tensor) -> TensorWeights:
        """Weights of sum 1 over the chosen fractions of the elements, whose mass is `selected`."""
        scale = torch.where(selected > 0, 1 / selected, 0)
        scale = torch.where(self.has_nan, torch.nan, self._of_each(scale))
        weights = (chosen if self.mass is None else self.mass * chosen).mul(scale).to(self.dtype)
        # a lowest score above -inf leaves out by itself what is not counted
        if not (self.mask is None or (values_are_readable(lowest) and bool(lowest > -torch.inf))):
            weights = weights.masked_fill(~self.mask, 0)
        return TensorWeights(weights, lowest)

    def _of_each(self, scale: Tensor) -> Tensor:
        """The scale of each element; of one ranking all have the same."""
        return scale

    def chosen(self, chosen: Tensor) -> TensorWeights:
        """Weights of these fractions of the elements."""
        counts = chosen > 0 if self.mask is None else (chosen > 0) & self.mask
        scores = torch.where(counts, self.scores, torch.inf)
        lowest = scores.amin() if scores.numel() > 0 else scores.new_full((), torch.inf)
        some = counts.any()
        if self.ranks is not None:
            highest, some_rank = self.ranks.max(torch.stack([-lowest, some.to(lowest.dtype)]))
            lowest, some = -highest, some_rank > 0
        lowest = torch.where(some, lowest, -torch.inf).masked_fill(self.has_nan, torch.nan)
        return self._normalised(chosen.to(self.dtype), self._mass_of(chosen), lowest)

    def _mass_of(self, chosen: Tensor) -> Tensor:
        """The counted mass of these fractions of the elements, in the form of `total`."""
        mass = chosen if self.mass is None else self.mass * chosen
        return self._sum(mass if self.mask is None else mass.masked_fill(~self.mask, 0))

    def _sum(self, mass: Tensor) -> Tensor:
        return mass.sum(dtype=torch.float64)

    def tied_at(self, wanted: Any) -> TensorWeights:
        """See `Ranking`."""
        return self.chosen(self.scores == self.cut(wanted).score)

    def largest(self) -> TensorWeights:
        """See `Ranking`."""
        return self.chosen(self.scores == self.scores.amax() if self.scores.numel() else self.scores > 0)

    def above(self, threshold: float, floor: Any) -> TensorWeights:
        """See `Ranking`."""
        chosen = self.scores > float(threshold)
        if floor is None:
            return self.chosen(chosen)
        return self.chosen(torch.maximum(chosen.to(self.dtype), self._within(floor)))

    def _within(self, wanted: Any) -> Tensor:
        """How much of each element lies within the `wanted` mass of the largest."""
        end: Any = self.cut(wanted)
        return self._before(end.score, end.part)

    def mass_above(self, score: float) -> Tensor:
        """See `Ranking`."""
        return self._mass_of(self.scores > score)

    def everything(self) -> TensorWeights:
        """See `Ranking`."""
        return self._normalised(torch.ones_like(self.scores), self.total, self.scores.new_full((), -torch.inf))

    def even(self) -> TensorWeights:
        """See `Ranking`."""
        mass = self.each_mass()
        total = mass.sum() if self.ranks is None else self.ranks.sum(mass.sum())
        weights = torch.where(total > 0, mass / total, 0).masked_fill(self.has_nan & (mass > 0), torch.nan)
        return TensorWeights(weights.to(self.dtype), self.scores.new_full((), -torch.inf))

    def inputs(self) -> tuple[Tensor | None, ...]:
        """See `Rankings`."""
        return self.mask, self.mass

    def each_mass(self) -> Tensor:
        """See `Rankings`."""
        mass = torch.ones_like(self.scores, dtype=torch.float64) if self.mass is None else self.mass
        return mass if self.mask is None else mass.masked_fill(~self.mask, 0)


def tensor_ranking(
    losses: Tensor,
    *,
    mask: Tensor | None = None,
    sample_weight: Tensor | None = None,
    scores: Tensor | None = None,
    nan_policy: NanPolicy = "propagate",
) -> TensorRanking:
    """What counts, ranked by torch's operations; the arguments are those of `rank`, and have been checked."""
    losses, mask = losses.detach(), None if mask is None else mask.detach()
    ranked = losses if scores is None else scores.detach()
    ranked = ranked.to(computing_dtype(ranked)).resolve_neg()
    has_nan = losses.new_zeros((), dtype=torch.bool)
    omitted = losses.new_zeros((), dtype=torch.int64)
    mass = None
    if sample_weight is not None:
        mass = sample_weight.detach().double()
        has_nan = _has_no_mass(mass, mask)
        mask = mass > 0 if mask is None else mask & (mass > 0)
    if nan_policy == "omit":
        nan = losses.isnan() if scores is None else losses.isnan() | ranked.isnan()
        omitted = (nan if mask is None else nan & mask).sum()
        mask = ~nan if mask is None else mask & ~nan
    if mask is not None:
        ranked = _uncounted_last(ranked, mask)
    if nan_policy != "omit" and losses.numel() > 0:
        has_nan = has_nan | ranked.amax().isnan()
        if scores is not None:
            has_nan = has_nan | (losses if mask is None else losses.masked_fill(~mask, 0)).amax().isnan()
    refuse_nan(nan_policy == "raise" and bool(has_nan))
    if mask is None:
        total = torch.full((), losses.numel(), dtype=torch.float64, device=losses.device)
    elif mass is None:
        total = mask.sum().double()
    else:
        mass = mass.masked_fill(~mask, 0)
        total = mass.sum()
    return TensorRanking(ranked, mask, mass, total, has_nan, omitted, computing_dtype(losses))


def weighted_sum(weights: Tensor, losses: Tensor) -> Tensor:
    """The sum of weights times losses; what stands where the weight is 0 never matters, nor does its gradient."""
    losses = losses.to(weights.dtype)
    if not (values_are_readable(losses) and bool(losses.detach().sum().isfinite())):
        losses = losses.masked_fill(weights == 0, 0)
    return (weights * losses).sum()


def _uncounted_last(scores: Tensor, mask: Tensor) -> Tensor:
    """The scores, -inf where not counted.

    Adding 0 or -inf, which is -huge * huge, is several times faster on the CPU than choosing by a mask. It differs
    where NaN or inf stands in a place that is not counted, which shows as a NaN.
    """
    if values_are_readable(scores) and scores.numel() > 0:
        huge = torch.finfo(scores.dtype).max
        counts = mask.view(torch.uint8).to(scores.dtype)
        ranked = counts.sub_(1).mul_(huge).mul_(huge).add_(scores)
        if not bool(ranked.amax().isnan()):
            return ranked
    return scores.masked_fill(~mask, -torch.inf)


def _has_no_mass(mass: Tensor, mask: Tensor | None) -> Tensor:
    """Whether a counted mass is negative, infinite or NaN: an error where values may be read, NaN elsewhere."""
    wrong = ~((mass >= 0) & (mass < torch.inf))
    if mask is not None:
        wrong = wrong & mask
    if values_are_readable(mass) and bool(wrong.any()):
        raise not_a_mass(mass[wrong][0])
    return wrong.any() | (mass if mask is None else mass.masked_fill(~mask, 0)).sum().isinf()
