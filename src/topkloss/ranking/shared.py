"""One ranking over all processes, without gathering the losses.

Every process keeps its losses. What travels is sums: a histogram of the leading bits of the scores says in which bin
the wanted mass ends, a histogram of the next bits within that bin where in the bin, and so on until every bit is
known: three rounds for float32, six for float64. The answer is exact, the same on all processes to the last bit, and
its traffic depends on the number of groups, not on that of the elements.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from topkloss.base.processes import Ranks
from topkloss.base.tensors import ordered_bits, part_before, score_of_bits, values_are_readable
from topkloss.ranking.groups import GroupedRanking
from topkloss.ranking.tensor_ranking import TensorRanking
from topkloss.ranking.threshold import SLACK, SLACK_OF_EACH

# Bits of a histogram of one group; of many groups fewer, so that all together have at most so many bins.
BITS, MOST_BINS = 11, 2**16


class Cuts(NamedTuple):
    """Where a mass of the largest ends, in each group: one number for each."""

    score: Tensor  # elements above it lie before the end
    above: Tensor  # float64: the mass of all elements above
    tied: Tensor  # float64: the mass of all elements at it


class SharedRanking(GroupedRanking):
    """What counts on all processes, ranked together, or in groups that they share.

    Masses are tables, one number per group, the same on all processes.

    Args:
        of: What counts in this process.
        groups: Integers shaped like the scores; equal numbers are one group, on all processes. None = one group.
        ranks: The processes.
    """

    ranks: Ranks

    def __init__(self, of: TensorRanking, groups: Tensor | None, ranks: Ranks) -> None:
        self.ranks = ranks
        self._size, self._group = 1, None
        if groups is not None:
            numbers = groups.reshape(-1).long()
            table = ranks.union(numbers)
            self._size, self._group = max(len(table), 1), torch.searchsorted(table, numbers)
        each = torch.ones_like(of.scores) if of.mask is None else of.mask
        own = self._own_sum(each if of.mass is None else of.mass)
        sums = ranks.sum(torch.cat([own, own.new_full((1,), 0 if of.mass is None else of.mass.numel())]))
        total, has_nan = sums[:-1], ranks.max(of.has_nan.long()) > 0
        super().__init__(of.scores, of.mask, of.mass, total, has_nan, of.omitted, of.dtype)
        self.number = (total > 0).sum().clamp(min=1)
        self._slack = SLACK + SLACK_OF_EACH * sums[-1]
        self._flat = of.scores.reshape(-1) + 0.0  # -0.0 becomes 0.0

    def within(self, start: Any, length: Any) -> Tensor:
        """See `GroupedRanking`."""
        if start is None:
            end = self._cuts(length)
            return self._before_cuts(end, _fraction(length - end.above, end.tied))
        begin, end = self._cuts(start), self._cuts(start + length)
        until = self._before_cuts(end, _fraction(length - (end.above - start).clamp(min=0), end.tied))
        since = torch.where(begin.score == end.score, 0, _fraction(start - begin.above, begin.tied))
        between = torch.minimum(until, 1 - self._before_cuts(begin, since))
        return between.masked_fill(between <= self._slack, 0)  # what rounding leaves of an element is none of it

    def last(self, length: Any) -> Tensor:
        """See `GroupedRanking`."""
        return self._at(self._cuts(length))

    def first(self) -> Tensor:
        """See `GroupedRanking`."""
        return self._at(self._cuts(torch.zeros_like(self.total)))

    def each(self, values: Tensor) -> Tensor:
        """See `GroupedRanking`; one number where all are in one group."""
        return self._each(values) if self._group is None else self._each(values).reshape(self.scores.shape)

    def _sum(self, mass: Tensor) -> Tensor:
        return self.ranks.sum(self._own_sum(mass.double()))

    def _own_sum(self, values: Tensor) -> Tensor:
        if self._group is None:
            return values.sum(dtype=torch.float64).reshape(1)
        return _histogram(self._group, values.reshape(-1).double(), self._size)

    def _each(self, table: Tensor) -> Tensor:
        return table.reshape(()) if self._group is None else table[self._group]

    def _at(self, cuts: Cuts) -> Tensor:
        return (self._flat == self._each(cuts.score)).reshape(self.scores.shape)

    def _before_cuts(self, cuts: Cuts, part: Tensor) -> Tensor:
        """1 above the cut of its group, this part of those at it, 0 below."""
        each = part_before(self._flat, self._each(cuts.score), self._each(part).to(self._flat.dtype))
        return each.reshape(self.scores.shape)

    def _cuts(self, wanted: Tensor) -> Cuts:
        """Where the wanted mass ends in each group; at the largest score where none is wanted.

        A radix search of the keys, the scores as integers of the same order, from the leading digit to the last.
        """
        need = wanted * (1 - self._slack)
        key, group, mass = self._keys()
        most = max(1, min(BITS, (MOST_BINS // self._size).bit_length() - 1))
        width = left = 8 * self.scores.element_size()
        prefix, above, tied = torch.zeros_like(need, dtype=torch.int64), torch.zeros_like(need), torch.zeros_like(need)
        while left > 0:
            # 1. the next digit of each key, of as many bits as the histograms of all groups have room for
            bits = min(most, left)
            left -= bits
            first = left + bits == width
            digit = (key >> left) + 2 ** (bits - 1) if first else (key >> left) & (2**bits - 1)  # the first is signed
            # 2. how much mass each digit holds, in each group, on all processes; and with the larger ones together
            held = _histogram(digit if group is None else (group << bits) + digit, mass, self._size << bits)
            held = self.ranks.sum(held).reshape(self._size, -1)
            reached = above.unsqueeze(1) + held.flip(1).cumsum(1).flip(1)
            # 3. the largest digit with which the need is reached, and some mass with it
            enough = (reached >= need.unsqueeze(1)) & (reached > above.unsqueeze(1))
            found = (enough.sum(1) - 1).clamp(min=0)
            # 4. what lies above that digit, which is never a difference: it would cancel; and what lies at it
            higher = torch.cat([reached[:, 1:], above.unsqueeze(1)], 1)
            above, tied = (one.gather(1, found.unsqueeze(1)).squeeze(1) for one in (higher, held))
            prefix = found - 2 ** (bits - 1) if first else (prefix << bits) + found
            # 5. only keys of that digit are looked at further
            inside = digit == (found if group is None else found[group])
            if values_are_readable(key):
                key = key[inside]
                group, mass = (None if one is None else one[inside] for one in (group, mass))
            else:
                mass = torch.where(inside, 1.0 if mass is None else mass, 0.0).double()
        score = score_of_bits(prefix, self.scores.dtype)
        return Cuts(torch.where(self.total > 0, score, -torch.inf), above, tied)

    def _keys(self) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Keys, groups and masses of what counts, flat."""
        key, group = ordered_bits(self._flat), self._group
        mask, mass = (None if one is None else one.reshape(-1) for one in (self.mask, self.mass))
        if mask is None:
            return key, group, mass
        if values_are_readable(key):
            return key[mask], None if group is None else group[mask], None if mass is None else mass[mask]
        return key, group, mask.double() if mass is None else mass


def _fraction(part: Tensor, whole: Tensor) -> Tensor:
    return torch.where(whole > 0, part / whole, 0).clamp(0, 1)


def _histogram(digit: Tensor, mass: Tensor | None, size: int) -> Tensor:
    """The mass of each digit, of so many; None = 1 each."""
    if values_are_readable(digit):
        return torch.bincount(digit, mass, minlength=size).double()
    mass = torch.ones_like(digit, dtype=torch.float64) if mass is None else mass
    return torch.zeros(size, dtype=torch.float64, device=digit.device).scatter_add(0, digit.long(), mass)
