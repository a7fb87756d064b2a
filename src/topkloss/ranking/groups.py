"""Groups, each ranked by itself: within images, within classes, or by any other numbers.

`NativeGroups` asks the kernels for each group, where groups are few or long: a sample is a slice of the losses, and one
pass over the numbers of the groups lays the elements of each side by side. `SortedGroups` serves any number of groups
of any size: one sort, by group and then from the largest score to the smallest, with no loop over them, no shape that
depends on data and no value brought back to the host.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from topkloss.kernels import native
from topkloss.ranking.native_ranking import NativeRanking, NativeWeights
from topkloss.ranking.ranking import Rankings, Rule
from topkloss.ranking.tensor_ranking import TensorRanking, TensorWeights
from topkloss.ranking.threshold import SLACK

# Elements of a group on average from which on a call of the kernels for each group is sooner than one sort.
LONG = 1024

# What a running sum of fractions loses for each group that it has passed, as a fraction of the group's mass.
ROUNDING = 2.0**-50


def sample_numbers(losses: Tensor) -> Tensor:
    """For each element the number of its sample, an index of the first dimension."""
    number = torch.arange(losses.shape[0], device=losses.device)
    return number.view(-1, *(1,) * (losses.dim() - 1)).expand(losses.shape)


# By the native kernels


class NativeGroups(Rankings):
    """Groups of one line of elements, each a ranking by the native kernels.

    Args:
        whole: All that counts.
        groups: Of its line.
        parts: The ranking of each.
    """

    def __init__(self, whole: NativeRanking, groups: native.Groups, parts: Sequence[NativeRanking]) -> None:
        self.whole, self.groups, self.parts = whole, groups, parts
        self.scores, self.dtype = whole.scores, whole.dtype
        self.has_nan, self.omitted = whole.has_nan, whole.omitted

    def by(self, rule: Rule) -> NativeWeights:
        """See `Rankings`."""
        number = max(sum(part.total > 0 for part in self.parts), 1)
        intervals = [
            interval._replace(scale=interval.scale / number)
            for part in self.parts
            for interval in rule(part).intervals  # type: ignore[attr-defined]
        ]
        return NativeWeights(self.whole.line, self.dtype, intervals, self.groups)

    def even(self) -> NativeWeights:
        """See `Rankings`."""
        return self.whole.even()

    def inputs(self) -> tuple[Tensor | None, ...]:
        """See `Rankings`."""
        return *self.whole.inputs(), self.groups.index

    def each_mass(self) -> Tensor:
        """See `Rankings`."""
        return self.whole.each_mass()


def native_groups(whole: NativeRanking, index: Tensor | None) -> NativeGroups | None:
    """The groups of a ranking, where they are few or long; None where one sort is sooner.

    Args:
        whole: All that counts.
        index: The group of each element; None = each sample is one.
    """
    size = whole.scores.numel()
    if index is None:
        number = whole.scores.shape[0]
        groups = native.Groups(None, 0, number)
    else:
        groups = native.groups_by(whole.line, index.detach().long().contiguous())
        number = groups.number
    if size == 0 or number * LONG > size:
        return None
    if whole.has_nan:
        return NativeGroups(whole, groups, [whole] * number)
    lines = _slices(whole.line, number) if index is None else native.partition(whole.line, groups)
    parts = [NativeRanking(line, native.count(line)[0], False, 0, whole.dtype) for line in lines]
    return NativeGroups(whole, groups, parts)


def _slices(line: native.Line, number: int) -> list[native.Line]:
    """So many runs of the same length."""
    scores, *beside = line.tensors
    scores = scores.view(number, -1)
    mass, counts = (None if one is None else one.view(number, -1) for one in beside)
    return [
        native.Line(scores[i], None if mass is None else mass[i], None if counts is None else counts[i])
        for i in range(number)
    ]


# By torch's operations


class GroupedRanking(TensorRanking):
    """Several rankings at once; `total` is in the form that `_sum` returns.

    What a rule asks is answered by where each element lies in the ranking of its own group.
    """

    number: Tensor  # 0-dim: how many groups count something, at least 1

    @abstractmethod
    def within(self, start: Any, length: Any) -> Tensor:
        """How much of each element, in [0, 1], lies in the interval of its ranking behind `start`; None = at 0."""

    @abstractmethod
    def last(self, length: Any) -> Tensor:
        """Whether each element is among those at which the interval from 0 ends."""

    @abstractmethod
    def first(self) -> Tensor:
        """Whether each element is among the largest of its group."""

    @abstractmethod
    def each(self, values: Tensor) -> Tensor:
        """The value of each element's group, of values in the form of `total`."""

    def interval(self, start: Any, length: Any) -> TensorWeights:
        """See `Ranking`."""
        return self.chosen(self.within(start, length))

    def tied_at(self, wanted: Any) -> TensorWeights:
        """See `Ranking`."""
        return self.chosen(self.last(wanted))

    def largest(self) -> TensorWeights:
        """See `Ranking`."""
        return self.chosen(self.first())

    def _within(self, wanted: Any) -> Tensor:
        return self.within(None, wanted).to(self.dtype)

    def _of_each(self, scale: Tensor) -> Tensor:
        return self.each(scale / self.number)


class SortedGroups(GroupedRanking):
    """Groups in one process, by one sort; masses are shaped like the scores.

    Args:
        of: All that counts.
        groups: Integers, shaped like the scores; equal numbers are one group.
    """

    def __init__(self, of: TensorRanking, groups: Tensor) -> None:
        each = of.each_mass().reshape(-1)
        scores, groups = of.scores.reshape(-1), groups.reshape(-1).long()
        # 1. the elements by group, and within a group from the largest score to the smallest
        order = scores.argsort(descending=True, stable=True)
        order = order[groups[order].argsort(stable=True)]
        scores, each, groups = scores[order], each[order], groups[order]
        # 2. where a group begins, and where a run of equal scores does
        first = torch.arange(len(order), device=order.device) == 0
        opens_group = first | (groups != groups.roll(1))
        opens_run = opens_group | (scores != scores.roll(1))
        group, run = opens_group.cumsum(0) - 1, opens_run.cumsum(0) - 1
        # 3. the mass of the group and of the run, and what lies before the run in its group, by a running sum
        total, tied = _sums(each, group), _sums(each, run)
        fraction = torch.where(total > 0, each / total, 0)
        summands = each if of.mass is None else fraction  # a light group beside a heavy one is then as exact as alone
        before = torch.cat([summands.new_zeros(1), summands.cumsum(0)])[:-1]
        above = before[_start_of_run(opens_run)] - before[_start_of_run(opens_group)]
        above = above if of.mass is None else above * total
        # 4. back to the places of the elements
        self.above_each, self.tied, total = (
            _put_back(values, order).reshape(of.scores.shape) for values in (above, tied, total)
        )
        super().__init__(of.scores, of.mask, of.mass, total, of.has_nan, of.omitted, of.dtype)
        self.number = fraction.sum().round().clamp(min=1)
        self._order, self._group = order, group

    def within(self, start: Any, length: Any) -> Tensor:
        """See `GroupedRanking`."""
        above, tied = self.above_each, self.tied
        if start is None:
            overlap = torch.minimum(above + tied, length) - above
            # some of the largest is in, however short the interval
            slack = torch.where(above > 0, self._slack(length), 0)
        else:
            behind = above - start
            overlap = torch.minimum(behind + tied, length) - behind.clamp(min=0)
            slack = self._slack(start + length)
        return torch.where(overlap > slack, overlap / tied, 0).clamp(max=1)

    def last(self, length: Any) -> Tensor:
        """See `GroupedRanking`."""
        reached: Tensor = self.above_each + self.tied >= length - self._slack(length)
        return reached & (self.within(None, length) > 0)

    def first(self) -> Tensor:
        """See `GroupedRanking`."""
        return self.above_each == 0

    def each(self, values: Tensor) -> Tensor:
        """See `GroupedRanking`."""
        return values

    def _sum(self, mass: Tensor) -> Tensor:
        return _put_back(_sums(mass.double().reshape(-1)[self._order], self._group), self._order).reshape(mass.shape)

    def _slack(self, length: Tensor) -> Tensor:
        """Up to how much masses are equal."""
        return SLACK * length + ROUNDING * self.number * self.total


def _sums(values: Tensor, run: Tensor) -> Tensor:
    """For each element the sum over its run, by the numbers of the runs."""
    return torch.zeros_like(values).scatter_add(0, run, values)[run]


def _start_of_run(opens: Tensor) -> Tensor:
    """For each element where its run begins."""
    place = torch.arange(len(opens), device=opens.device)
    return torch.where(opens, place, 0).cummax(0).values


def _put_back(values: Tensor, order: Tensor) -> Tensor:
    """Values in an order, where the elements are."""
    return torch.zeros_like(values).scatter(0, order, values)
