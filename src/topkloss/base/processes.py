"""Several processes that add up numbers, and raise together."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

__all__ = ["WORLD", "DistributedError"]

Work = TypeVar("Work")

# What one process says to the others is cut off after so many bytes.
MAX_MESSAGE = 400


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


class HeldGroup:
    """A process group, which a copy of what holds it shares, as processes cannot be copied."""

    def __init__(self, group: Any) -> None:
        self.group = group

    def __repr__(self) -> str:
        if not isinstance(self.group, dist.ProcessGroup):
            return repr(self.group)
        return f"<process group of {self.group.size()}>"

    def __deepcopy__(self, memo: Any) -> HeldGroup:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        if isinstance(self.group, World | DeviceMesh | None):
            return HeldGroup, (self.group,)
        raise TypeError(
            f"`process_group` must be WORLD or a mesh to be pickled; got {self!r}, which means nothing to another "
            "program. Set process_group=None before, or save the state_dict."
        )


def own_group(process_group: Any) -> ProcessGroup | None:
    """What may be ranked with; torch's own word for all processes is `WORLD`.

    Raises:
        TypeError: If it is anything else.
    """
    is_group = isinstance(process_group, World) or (
        dist.is_available() and isinstance(process_group, dist.ProcessGroup)
    )
    is_one_dimensional = isinstance(process_group, DeviceMesh) and process_group.ndim == 1
    if not (process_group is None or is_group or is_one_dimensional):
        is_mesh = isinstance(process_group, DeviceMesh)
        got = f"a mesh of {process_group.ndim} dimensions" if is_mesh else repr(process_group)
        raise TypeError(
            f"`process_group` must be WORLD, a process group or a mesh of one dimension; got {got}. "
            'Of a larger mesh pass one dimension, mesh["dp"].'
        )
    is_all = is_group and dist.is_initialized() and process_group is dist.group.WORLD
    return WORLD if is_all else cast("ProcessGroup | None", process_group)


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
        device = self.message_device()
        text = sentence.encode(errors="replace")[:MAX_MESSAGE]
        message = torch.zeros(MAX_MESSAGE, dtype=torch.uint8, device=device)
        message[: len(text)] = torch.frombuffer(bytearray(text), dtype=torch.uint8).to(device) if text else 0
        number = int.from_bytes(text, "little") % (2**61 - 1)
        differ = self.max(torch.tensor([number, -number, failed], dtype=torch.int64, device=device)).tolist()
        if differ[0] == -differ[1] and not differ[2]:
            return
        said = [torch.empty_like(message) for _ in range(self.size)]
        fails = [torch.zeros(1, dtype=torch.int64, device=device) for _ in range(self.size)]
        with self._waiting():
            dist.all_gather(said, message, group=self.group)
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

    def message_device(self) -> torch.device:
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
