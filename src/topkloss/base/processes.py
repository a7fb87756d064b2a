"""One threshold over all processes, without gathering the losses.

Every process keeps its losses. What travels is sums: a histogram of the leading bits of the scores says in which bin
the wanted mass ends, a histogram of the next bits within that bin where in the bin, and so on until every bit is
known: three rounds for float32, six for float64. The answer is exact, the same on all processes to the last bit, and
its traffic depends on the number of groups, not on that of the elements.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeAlias, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from topkloss.base.tensors import values_are_readable
from topkloss.ranking.threshold import SLACK, SLACK_OF_EACH

__all__ = ["WORLD", "DistributedError"]

Work = TypeVar("Work")

# So many bins in a histogram of one group; of many groups fewer, so that all together stay below the second number.
BITS, MOST_BINS = 11, 2**16

# A sentence that one process sends to the others is cut off after so many bytes.
SENTENCE = 400


class DistributedError(RuntimeError):
    """The processes of a group could not find an answer together: one failed, asked for something else, or is gone."""

    def __init__(self, sentence: str) -> None:
        super().__init__(sentence)


class World:
    """All processes that there are when a criterion is called: of the default group, or this one alone."""

    def __repr__(self) -> str:
        return "WORLD"

    def __reduce__(self) -> str:
        return "WORLD"  # copied or pickled it is the same one


WORLD = World()
ProcessGroup: TypeAlias = "dist.ProcessGroup | DeviceMesh | World"


def check_process_group(process_group: Any) -> None:
    """What may be ranked with."""
    is_group = isinstance(process_group, World) or (
        dist.is_available() and isinstance(process_group, dist.ProcessGroup)
    )
    is_line = isinstance(process_group, DeviceMesh) and process_group.ndim == 1
    if not (process_group is None or is_group or is_line):
        is_mesh = isinstance(process_group, DeviceMesh)
        came = f"a mesh of {process_group.ndim} dimensions" if is_mesh else repr(process_group)
        raise TypeError(
            f"`process_group` must be WORLD, a process group or a mesh of one dimension; got {came}. "
            'Of a larger mesh pass one dimension, mesh["dp"].'
        )


def ranks_of(process_group: Any) -> Ranks | None:
    """The processes that rank together; None = this one alone."""
    if process_group is None or not dist.is_available():
        return None
    if isinstance(process_group, World):
        return Ranks(dist.group.WORLD) if dist.is_initialized() else None
    if isinstance(process_group, DeviceMesh):
        return Ranks(process_group.get_group())
    return Ranks(process_group)


class Ranks:
    """A process group, seen as something that adds up numbers.

    Args:
        group: Every process of it must make the same calls in the same order; its time-out is how long one waits for
            another.
    """

    def __init__(self, group: Any) -> None:
        self.group = group
        self.size = dist.get_world_size(group)
        self.rank = dist.get_rank(group)

    def sum(self, numbers: Tensor) -> Tensor:
        """The sum over the processes, the same on each to the last bit."""
        return self._reduce(numbers, dist.ReduceOp.SUM)

    def max(self, numbers: Tensor) -> Tensor:
        """The largest over the processes."""
        return self._reduce(numbers, dist.ReduceOp.MAX)

    def total(self, part: Tensor) -> Tensor:
        """The sum over the processes, with the gradient that becomes right when gradients are averaged over them."""
        return cast(Tensor, _Total.apply(part, self))

    def union(self, numbers: Tensor) -> Tensor:
        """All integers that some process has, sorted, once each."""
        own = torch.unique(numbers)
        sizes = torch.zeros(self.size, dtype=torch.int64, device=own.device)
        sizes[self.rank] = len(own)
        sizes = self.sum(sizes)
        padded = own.new_zeros(int(sizes.max()))
        padded[: len(own)] = own
        gathered = [torch.empty_like(padded) for _ in range(self.size)]
        with self._waiting():
            dist.all_gather(gathered, padded, group=self.group)
        return cast(Tensor, torch.unique(torch.cat([row[:n] for row, n in zip(gathered, sizes.tolist(), strict=True)])))

    def together(self, work: Callable[[], Work], request: Callable[[Work], str]) -> Work:
        """What each process does by itself; afterwards all have done it and ask for the same, or all raise.

        Args:
            work: Done here, without a word to the others.
            request: What this process asks for, in words, given the result; must be the same on all.
        """
        try:
            result = work()
        except Exception as error:
            with contextlib.suppress(DistributedError):  # the others are gone: what failed here is what matters
                self._agree(f"{type(error).__name__}: {error}", failed=True)
            raise
        self._agree(request(result), failed=False)
        return result

    def _agree(self, sentence: str, *, failed: bool) -> None:
        """Raises on every process unless all say the same."""
        device = self.device_of_words()
        text = sentence.encode(errors="replace")[:SENTENCE]
        words = torch.zeros(SENTENCE, dtype=torch.uint8, device=device)
        words[: len(text)] = torch.frombuffer(bytearray(text), dtype=torch.uint8).to(device) if text else 0
        number = int.from_bytes(text, "little") % (2**61 - 1)
        differ = self.max(torch.tensor([number, -number, failed], dtype=torch.int64, device=device)).tolist()
        if differ[0] == -differ[1] and not differ[2]:
            return
        said = [torch.empty_like(words) for _ in range(self.size)]
        fails = [torch.zeros(1, dtype=torch.int64, device=device) for _ in range(self.size)]
        with self._waiting():
            dist.all_gather(said, words, group=self.group)
            dist.all_gather(fails, torch.tensor([int(failed)], device=device), group=self.group)
        if failed:
            return
        sentences = [bytes(one.tolist()).rstrip(b"\0").decode(errors="replace") for one in said]
        failures = [rank for rank, one in enumerate(fails) if one.item()]
        if failures:
            raise DistributedError(
                f"rank {failures[0]} of {self.size} could not take part: {sentences[failures[0]]} "
                "Every rank stops here."
            )
        other = next(rank for rank, one in enumerate(sentences) if one != sentences[0])
        raise DistributedError(
            f"all {self.size} ranks must ask for the same; got {sentences[0]} on rank 0 and {sentences[other]} on rank "
            f"{other}. Make the criterion and its inputs alike on all of them."
        )

    def device_of_words(self) -> torch.device:
        """Where numbers can be sent from without waiting for an accelerator, if the group can."""
        if "nccl" in dist.get_backend_config(self.group) and "gloo" not in dist.get_backend_config(self.group):
            return torch.device("cuda", torch.cuda.current_device())
        return torch.device("cpu")

    def _reduce(self, numbers: Tensor, how: Any) -> Tensor:
        numbers = numbers.detach().clone(memory_format=torch.contiguous_format)
        with self._waiting():
            dist.all_reduce(numbers, op=how, group=self.group)
        return numbers

    @contextlib.contextmanager
    def _waiting(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            reason = str(error).partition("\n")[0].rstrip(". ")
            raise DistributedError(
                f"the {self.size} ranks of `process_group` must all take part; got no answer from all of them: "
                f"{reason}. Either another rank has failed, ended or lags behind the time-out of the group: see its "
                "output, or make the group with a longer timeout=. Or its backend does not serve this device."
            ) from error


class _Total(torch.autograd.Function):
    """The sum over the processes; each one's part has the gradient that the sum has, times their number."""

    @staticmethod
    def forward(context: Any, part: Tensor, ranks: Ranks) -> Tensor:
        context.ranks = ranks
        return ranks.sum(part)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Any:
        return gradient * context.ranks.size, None


class Cuts(NamedTuple):
    """Where a mass of the largest ends, in each group."""

    score: Tensor  # elements above it lie before the end
    above: Tensor  # float64: the mass of all elements above
    tied: Tensor  # float64: the mass of all elements at it


class SharedPlaces:
    """The places of this process's elements on lines that it shares with the others. See `groups.Places`.

    Masses are tables, one number per group, the same on all processes.

    Args:
        scores: float32 or float64, -inf where not counted.
        mask: Bool, shaped like `scores`; None = all count.
        mass: float64, shaped like `scores`, 0 where not counted; None = 1 each.
        groups: Integers shaped like `scores`; equal numbers are one group, on all processes. None = one group.
        ranks: The processes.
    """

    def __init__(
        self, scores: Tensor, mask: Tensor | None, mass: Tensor | None, groups: Tensor | None, ranks: Ranks
    ) -> None:
        self.ranks = ranks
        self.shape = scores.shape
        self.scores = scores.reshape(-1) + 0.0  # -0.0 becomes 0.0
        self.mask, self.mass = (None if given is None else given.reshape(-1) for given in (mask, mass))
        self.size, self.group = 1, None
        if groups is not None:
            table = ranks.union(groups.reshape(-1).long())
            self.size, self.group = max(len(table), 1), torch.searchsorted(table, groups.reshape(-1).long())
        each = torch.ones_like(self.scores) if mask is None else mask
        own = self._own_sum(each if mass is None else mass)
        sums = ranks.sum(torch.cat([own, own.new_full((1,), 0 if mass is None else mass.numel())]))
        self.total = sums[:-1]
        self.number = (self.total > 0).sum().clamp(min=1)
        self.slack = SLACK + SLACK_OF_EACH * sums[-1]

    def sum(self, values: Tensor) -> Tensor:
        """The sum over each group."""
        return self.ranks.sum(self._own_sum(values))

    def each(self, table: Tensor) -> Tensor:
        """The number of each element's group; one number where all are in one."""
        return self._each(table) if self.group is None else self._each(table).reshape(self.shape)

    def first(self) -> Tensor:
        """Whether each element is among the largest of its group."""
        return self._at(self._cuts(torch.zeros_like(self.total)))

    def last(self, length: Tensor) -> Tensor:
        """Whether each element is among those at which the stretch from 0 ends."""
        return self._at(self._cuts(length))

    def within(self, start: Tensor | None, length: Tensor) -> Tensor:
        """How much of each element lies in the stretch of its line that begins at `start`; None = at 0."""
        if start is None:
            end = self._cuts(length)
            return self._before(end, _share(length - end.above, end.tied))
        begin, end = self._cuts(start), self._cuts(start + length)
        until = self._before(end, _share(length - (end.above - start).clamp(min=0), end.tied))
        since = torch.where(begin.score == end.score, 0, _share(start - begin.above, begin.tied))
        between = torch.minimum(until, 1 - self._before(begin, since))
        return between.masked_fill(between <= self.slack, 0)  # what rounding leaves of an element is none of it

    def _own_sum(self, values: Tensor) -> Tensor:
        if self.group is None:
            return values.sum(dtype=torch.float64).reshape(1)
        return _histogram(self.group, values.reshape(-1).double(), self.size)

    def _each(self, table: Tensor) -> Tensor:
        return table.reshape(()) if self.group is None else table[self.group]

    def _at(self, cuts: Cuts) -> Tensor:
        return (self.scores == self._each(cuts.score)).reshape(self.shape)

    def _before(self, cuts: Cuts, part: Tensor) -> Tensor:
        """1 above the cut, this part of those at it, 0 below: by arithmetic, which is faster than masks are."""
        side = (self.scores - self._each(cuts.score)).nan_to_num_(nan=0.0).sign_()
        return side.add_(self._each(part).to(side.dtype)).clamp_(0, 1).reshape(self.shape)

    def _cuts(self, wanted: Tensor) -> Cuts:
        """Where the wanted mass ends in each group; at the largest score where none is wanted."""
        need = wanted * (1 - self.slack)
        key, group, mass = self._keys()
        most = max(1, min(BITS, (MOST_BINS // self.size).bit_length() - 1))
        width = left = 8 * self.scores.element_size()
        prefix, above, tied = torch.zeros_like(need, dtype=torch.int64), torch.zeros_like(need), torch.zeros_like(need)
        while left > 0:
            bits = min(most, left)
            left -= bits
            first = left + bits == width
            digit = (key >> left) + 2 ** (bits - 1) if first else (key >> left) & (2**bits - 1)
            held = _histogram(digit if group is None else (group << bits) + digit, mass, self.size << bits)
            held = self.ranks.sum(held).reshape(self.size, -1)
            reached = above.unsqueeze(1) + held.flip(1).cumsum(1).flip(1)
            enough = (reached >= need.unsqueeze(1)) & (reached > above.unsqueeze(1))
            found = (enough.sum(1) - 1).clamp(min=0)
            higher = torch.cat([reached[:, 1:], above.unsqueeze(1)], 1)  # never a difference: it would cancel
            above, tied = (one.gather(1, found.unsqueeze(1)).squeeze(1) for one in (higher, held))
            prefix = found - 2 ** (bits - 1) if first else (prefix << bits) + found
            inside = digit == (found if group is None else found[group])
            if values_are_readable(key):
                key = key[inside]
                group, mass = (None if one is None else one[inside] for one in (group, mass))
            else:
                mass = torch.where(inside, 1.0 if mass is None else mass, 0.0).double()
        score = _score_of_bits(prefix, self.scores.dtype)
        return Cuts(torch.where(self.total > 0, score, -torch.inf), above, tied)

    def _keys(self) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Keys, groups and masses of what counts."""
        key, group, mass = _ordered_bits(self.scores), self.group, self.mass
        if self.mask is None:
            return key, group, mass
        if values_are_readable(key):
            mask = self.mask
            return key[mask], None if group is None else group[mask], None if mass is None else mass[mask]
        return key, group, self.mask.double() if mass is None else mass


def _share(part: Tensor, whole: Tensor) -> Tensor:
    return torch.where(whole > 0, part / whole, 0).clamp(0, 1)


def _histogram(place: Tensor, mass: Tensor | None, size: int) -> Tensor:
    """The mass in each of so many places; None = 1 each."""
    if values_are_readable(place):
        return torch.bincount(place, mass, minlength=size).double()
    mass = torch.ones_like(place, dtype=torch.float64) if mass is None else mass
    return torch.zeros(size, dtype=torch.float64, device=place.device).scatter_add(0, place.long(), mass)


def _ordered_bits(scores: Tensor) -> Tensor:
    """Integer keys, ordered like the scores: the bits of a float, flipped below the sign for a negative one."""
    integer, sign_bit = (torch.int64, 63) if scores.dtype == torch.float64 else (torch.int32, 31)
    bits = scores.view(integer)
    return bits ^ ((bits >> sign_bit) & torch.iinfo(integer).max)


def _score_of_bits(key: Tensor, dtype: torch.dtype) -> Tensor:
    """The scores whose keys these are."""
    integer, sign_bit = (torch.int64, 63) if dtype == torch.float64 else (torch.int32, 31)
    bits = key.to(integer)
    return (bits ^ ((bits >> sign_bit) & torch.iinfo(integer).max)).view(dtype)
