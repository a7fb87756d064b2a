"""The k-th largest of n numbers, by mass, exactly: three ways to the same answer.

Where values may be read (plain tensors on the CPU): two pivots from a sample bracket the answer, so that about
three reads of the data and a sort of the few candidates between the pivots settle it (Floyd and Rivest.
Expected time bounds for selection. 1975). Ties and sorted or constant data cost no more.

On an accelerator: bisection on the bits of the answer. Floats of one sign are ordered like their bits, so 32
questions "how much mass is at least this large?" (64 for float64) settle every bit of it, with no sort, no
data-dependent shape and no value brought back to the host.

Where neither may be done (torch.compile and torch.func on the CPU, vmap anywhere): one sort.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

# Masses are sums of rounded numbers: a sum this close to the wanted one, relatively, has reached it.
SLACK = 1e-12

# Up to this many elements kthvalue (or a sort) beats the pivots; measured on the CPU.
SMALL = 20_000


def values_are_readable(tensor: Tensor) -> bool:
    """Whether Python may look at values here without waiting for a device or breaking a trace."""
    return tensor.device.type == "cpu" and _is_plain(tensor) and not torch.compiler.is_compiling()


def _is_plain(tensor: Tensor) -> bool:
    """Whether a tensor is what it seems: no subclass, and no vmap or other transform of torch.func around it."""
    return type(tensor) in (Tensor, torch.nn.Parameter) and not torch._C._are_functorch_transforms_active()


def kth_largest(scores: Tensor, mask: Tensor | None, mass: Tensor | None, wanted: Tensor) -> Tensor:
    """The largest score t such that the elements >= t hold the `wanted` mass.

    Args:
        scores: float32 or float64, any shape; -inf where not counted.
        mask: Bool, shaped like `scores`, True = counted; None = all.
        mass: float64, shaped like `scores`, 0 where not counted; None = 1 each.
        wanted: 0-dim float64, at most the whole counted mass.

    Returns:
        0-dim tensor of the dtype of `scores`; unspecified where nothing is counted or a score is NaN.
    """
    need = wanted * (1 - SLACK)
    if values_are_readable(scores):
        flat = scores.reshape(-1) if mask is None else scores[mask]
        if mass is not None:
            mass = mass.reshape(-1) if mask is None else mass[mask]
        if flat.numel() > 0 and bool(flat.amax() >= -torch.inf) and bool(need > 0):
            return _by_pivots(flat, mass, float(need))
        return scores.new_full((), -torch.inf)
    if scores.device.type != "cpu" and not torch._C._are_functorch_transforms_active():
        return _by_bisection(scores, mass, need)
    return _by_sorting(scores.reshape(-1), None if mass is None else mass.reshape(-1), need)


def _by_pivots(scores: Tensor, mass: Tensor | None, need: float) -> Tensor:
    before = math.inf
    while SMALL < scores.numel() <= before / 2:
        before = scores.numel()
        low, high = _bracket(scores, mass, need)
        from_high = _mass_of(scores >= high, mass)
        if from_high >= need:
            part = scores > high
            if _mass_of(part, mass) < need:
                return high
        else:
            part, above = scores > low, from_high
            if _mass_of(part, mass) >= need:
                part &= scores < high
            else:
                above = _mass_of(scores >= low, mass)
                if above >= need:
                    return low
                part = scores < low
            need -= above
        scores, mass = scores[part], None if mass is None else mass[part]
    if mass is None:
        rank = min(max(math.ceil(need), 1), scores.numel())
        return scores.kthvalue(scores.numel() - rank + 1).values
    return _by_sorting(scores, mass, torch.as_tensor(need, dtype=torch.float64))


def _bracket(scores: Tensor, mass: Tensor | None, need: float) -> tuple[Tensor, Tensor]:
    """Two scores that very probably have the answer between them: three deviations around its rank in a sample.

    The sample walks the data in golden-ratio steps: spread evenly, in step with no row or stripe of an image, and
    without touching the random state.
    """
    n = scores.numel()
    size = round(n ** (2 / 3))
    places = torch.arange(size, device=scores.device) * round(n * 0.6180339887498949) % n
    sample, order = scores[places].sort(descending=True)
    if mass is None:
        rank = need / n * size
    else:
        reached = mass[places][order].cumsum(0)
        rank = float(torch.searchsorted(reached, reached[-1] * (need / float(mass.sum()))))
    margin = 1.5 * math.sqrt(size)
    last = size - 1
    return sample[min(max(int(rank + margin), 0), last)], sample[min(max(int(rank - margin), 0), last)]


def _by_sorting(scores: Tensor, mass: Tensor | None, need: Tensor) -> Tensor:
    if scores.numel() == 0:
        return scores.new_full((), -torch.inf)
    ordered, order = scores.sort(descending=True)
    before = need.ceil() - 1 if mass is None else (mass.gather(0, order).cumsum(0) < need).sum()
    place = before.nan_to_num().clamp(0, scores.numel() - 1).long()
    return ordered.gather(0, place.reshape(1)).reshape(())


def _mass_of(chosen: Tensor, mass: Tensor | None) -> float:
    return float(chosen.sum() if mass is None else (mass * chosen).sum())


def _by_bisection(scores: Tensor, mass: Tensor | None, need: Tensor) -> Tensor:
    integer, sign_bit = (torch.int64, 63) if scores.dtype == torch.float64 else (torch.int32, 31)
    magnitude = torch.iinfo(integer).max

    def as_score(key: Tensor) -> Tensor:
        """Keys are ordered like the scores: the bits of a positive float, flipped below the sign for a negative one."""
        return (key ^ ((key >> sign_bit) & magnitude)).view(scores.dtype)

    infinity = torch.full((), torch.inf, dtype=scores.dtype, device=scores.device).view(integer)
    low, high = infinity ^ -1, infinity
    for _ in range(sign_bit + 1):
        middle = (low | high) - ((low ^ high) >> 1)  # the mean, rounded up, without overflow
        reaches = scores >= as_score(middle)
        held = reaches.sum() if mass is None else (mass * reaches).sum()
        enough = held >= need
        low, high = torch.where(enough, middle, low), torch.where(enough, high, middle - 1)
    return as_score(low)
