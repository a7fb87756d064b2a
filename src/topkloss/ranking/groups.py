"""Where each element lies on the line of its own group: ranks within images, classes or any other groups.

One sort, by group and then from the largest score to the smallest, settles all groups together: no loop over them, no
shape that depends on data and no value brought back to the host, whatever their number and sizes.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from topkloss.ranking.threshold import SLACK

# What a running sum of shares loses for each group that it has passed, as a share of the group's mass.
ROUNDING = 2.0**-50


class Places(NamedTuple):
    """What each element needs to know of its group; masses are float64, shaped like the scores."""

    above: Tensor  # the mass of what has a larger score
    tied: Tensor  # the mass of what has the same score, the element included
    total: Tensor  # the mass of all that counts
    number: Tensor  # 0-dim: how many groups count something, at least 1
    order: Tensor  # flat: the elements by group
    group: Tensor  # flat, in that order: the number of the group, counted from 0

    def sum(self, values: Tensor) -> Tensor:
        """The sum over its group, for each element."""
        return _put_back(_sums(values.reshape(-1)[self.order], self.group), self.order).reshape(values.shape)

    def each(self, values: Tensor) -> Tensor:
        """The number of each element's group: masses here are already shaped like the scores."""
        return values

    def first(self) -> Tensor:
        """Whether each element is among the largest of its group."""
        return self.above == 0

    def within(self, start: Tensor | None, length: Tensor) -> Tensor:
        """How much of each element, in [0, 1], lies in the stretch of its line that begins at `start`; None = at 0."""
        if start is None:
            overlap = torch.minimum(self.above + self.tied, length) - self.above
            # some of the largest is in, however short the stretch
            slack = torch.where(self.above > 0, self._slack(length), 0)
        else:
            behind = self.above - start
            overlap = torch.minimum(behind + self.tied, length) - behind.clamp(min=0)
            slack = self._slack(start + length)
        return torch.where(overlap > slack, overlap / self.tied, 0).clamp(max=1)

    def last(self, length: Tensor) -> Tensor:
        """Whether each element is among those at which the stretch from 0 ends."""
        return (self.within(None, length) > 0) & (self.above + self.tied >= length - self._slack(length))

    def _slack(self, length: Tensor) -> Tensor:
        """Up to how much masses are equal."""
        return SLACK * length + ROUNDING * self.number * self.total


def places(scores: Tensor, mask: Tensor | None, mass: Tensor | None, groups: Tensor) -> Places:
    """The place of every element on the line of its group.

    Args:
        scores: Floating point, any shape.
        mask: Bool, shaped like `scores`; None = all count.
        mass: float64, shaped like `scores`, 0 where not counted; None = 1 each, which makes all masses exact.
        groups: Integers, shaped like `scores`; equal numbers are one group.
    """
    each = mass if mass is not None else torch.ones_like(scores, dtype=torch.float64) if mask is None else mask.double()
    shape, scores, each, groups = scores.shape, scores.reshape(-1), each.reshape(-1), groups.reshape(-1)
    order = scores.argsort(descending=True, stable=True)
    order = order[groups[order].argsort(stable=True)]
    scores, each, groups = scores[order], each[order], groups[order]
    first = torch.arange(len(order), device=order.device) == 0
    opens_group = first | (groups != groups.roll(1))
    opens_run = opens_group | (scores != scores.roll(1))
    group, run = opens_group.cumsum(0) - 1, opens_run.cumsum(0) - 1
    total, tied = _sums(each, group), _sums(each, run)
    share = torch.where(total > 0, each / total, 0)
    summands = each if mass is None else share  # a light group beside a heavy one is then as exact as alone
    before = torch.cat([summands.new_zeros(1), summands.cumsum(0)])[:-1]
    above = before[_start_of_run(opens_run)] - before[_start_of_run(opens_group)]
    above = above if mass is None else above * total
    above, tied, total = (_put_back(values, order).reshape(shape) for values in (above, tied, total))
    return Places(above, tied, total, share.sum().round().clamp(min=1), order, group)


def _sums(values: Tensor, run: Tensor) -> Tensor:
    """For each element the sum over its run, by the numbers of the runs."""
    return torch.zeros_like(values).scatter_add(0, run, values)[run]


def _start_of_run(opens: Tensor) -> Tensor:
    place = torch.arange(len(opens), device=opens.device)
    return torch.where(opens, place, 0).cummax(0).values


def _put_back(values: Tensor, order: Tensor) -> Tensor:
    return torch.zeros_like(values).scatter(0, order, values)
