"""The k-th largest of n numbers, by mass, exactly: several ways to the same answer.

On the CPU, under torch.compile too: the native kernel, where it was built.

Without it, where values may be read (plain tensors on the CPU): two pivots from a sample bracket the answer, so that
about three reads of the data and a look at the few candidates between the pivots settle it (Floyd and Rivest. Expected
time bounds for selection. 1975). Ties and sorted or constant data cost no more.

On an accelerator: bisection on the bits of the answer. Floats of one sign are ordered like their bits, so 32
questions "how much mass is at least this large?" (64 for float64) settle every bit of it, with no sort, no
data-dependent shape and no value brought back to the host.

Where neither may be done (torch.compile and torch.func on the CPU, vmap anywhere): one sort.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from topkloss.base.tensors import Scalar, ordered_bits, score_of_bits, values_are_readable
from topkloss.kernels import native, operators

Number = TypeVar("Number", Tensor, Scalar)

# Masses are sums of rounded numbers: a sum this close to the wanted one, relatively, has reached it; and as much closer
# for each element as a running sum may lose.
SLACK, SLACK_OF_EACH = 1e-12, 2.0**-52

# Up to this many ones float32 adds without rounding.
COUNTABLE = 2**24

# Up to this many elements kthvalue (or a sort) beats the pivots; measured on the CPU.
SMALL = 20_000


class KthLargest(NamedTuple):
    """A score, with the mass of what is larger and of what equals it: all 0-dim, the masses float64."""

    score: Tensor
    above: Tensor
    tied: Tensor


def kth_largest(scores: Tensor, mass: Tensor | None, wanted: Tensor) -> KthLargest:
    """The largest score t such that the elements >= t hold the `wanted` mass.

    Args:
        scores: float32 or float64, any shape, without NaN; -inf where not counted.
        mass: float64, shaped like `scores`, 0 where not counted; None = 1 each.
        wanted: 0-dim float64, at most the whole counted mass.

    Returns:
        The score, in the dtype of `scores`, and the masses around it. Unspecified where nothing is counted or a
        score is NaN; where the score is -inf and `mass` is None, `tied` includes what is not counted.
    """
    need = needed(wanted, mass)
    scores, mass = scores.reshape(-1), None if mass is None else mass.reshape(-1)
    if native.is_available() and (values_are_readable(scores) or (torch.compiler.is_compiling() and scores.is_cpu)):
        by = operators.kth_largest if torch.compiler.is_compiling() else operators.find_kth_largest
        score, above, tied = by(scores, mass, need).unbind()
        return KthLargest(score.to(scores.dtype), above, tied)
    if values_are_readable(scores):
        return _by_pivots(scores, mass, float(need)) if bool(need > 0) else _kth(scores.new_tensor(-torch.inf), 0, 0)
    if scores.device.type != "cpu" and not torch._C._are_functorch_transforms_active():
        return _around(_by_bisection(scores, mass, need), scores, mass)
    return _around(_by_sorting(scores, mass, need), scores, mass)


def needed(wanted: Number, mass: Tensor | None) -> Number:
    """The mass that must be reached: the wanted one, less what the rounding of the sum of these masses may take.

    Of 1 each (None) the sum is exact: what their rounding might take would be two of a hundred million.
    """
    return wanted * (1 - SLACK - (0 if mass is None else SLACK_OF_EACH * mass.numel()))


def _around(score: Tensor, scores: Tensor, mass: Tensor | None) -> KthLargest:
    above, tied = scores > score, scores == score
    if mass is None:
        return KthLargest(score, above.sum().double(), tied.sum().double())
    return KthLargest(score, (mass * above).sum(), (mass * tied).sum())


def _by_pivots(scores: Tensor, mass: Tensor | None, need: float) -> KthLargest:
    """Of what may still be the answer, a smaller part each time, until it is small or no longer shrinks by half."""
    above, before = 0.0, math.inf
    while SMALL < scores.numel() <= before / 2:
        before = scores.numel()
        # 1. two pivots from a sample
        low, high = _bracket(scores, mass, need)
        # 2. the answer lies above the upper one, or is it; between the two, or is the lower one; or lies below
        reached = _mass_where(torch.ge, scores, high, mass)
        if reached >= need:
            inside = _mass_where(torch.gt, scores, high, mass)
            if inside < need:
                return _kth(high, above + inside, _mass_where(torch.eq, scores, high, mass))
            part = scores > high
        else:
            inside = _mass_where(torch.gt, scores, low, mass)
            if inside >= need:
                part = (scores > low) & (scores < high)
            else:
                tied = _mass_where(torch.eq, scores, low, mass)
                reached = inside + tied
                if reached >= need:
                    return _kth(low, above + inside, tied)
                part = scores < low
            above, need = above + reached, need - reached
        # 3. only that part is looked at further
        scores, mass = scores[part], None if mass is None else mass[part]
    # 4. of what is left by kthvalue, or with masses by one sort
    if scores.numel() == 0:  # nothing, or rounding left less mass than is needed
        return _kth(scores.new_tensor(-torch.inf), above, 0)
    if mass is None:
        rank = min(max(math.ceil(need), 1), scores.numel())
        score = scores.kthvalue(scores.numel() - rank + 1).values
    else:
        score = _by_sorting(scores, mass, torch.tensor(need, dtype=torch.float64, device="cpu"))
    around = _around(score, scores, mass)
    return around._replace(above=around.above + above)


def _kth(score: Tensor, above: float, tied: float) -> KthLargest:
    return KthLargest(score, *torch.tensor([above, tied], dtype=torch.float64, device="cpu"))


def _bracket(scores: Tensor, mass: Tensor | None, need: float) -> tuple[Tensor, Tensor]:
    """Two scores that very probably have the answer between them: three deviations around its rank in a sample.

    The sample walks the data in steps of about the golden ratio that meet each place once: spread evenly, in step
    with no row or stripe of an image, and without touching the random state.
    """
    n = scores.numel()
    size = round(n ** (2 / 3))
    step = round(n * 0.6180339887498949)
    while math.gcd(step, n) > 1:
        step += 1
    positions = torch.arange(size, device=scores.device) * step % n
    sample, order = scores[positions].sort(descending=True)
    if mass is None:
        rank = need / n * size
    else:
        reached = mass[positions][order].cumsum(0)
        total = float(mass.sum())
        rank = float(torch.searchsorted(reached, reached[-1] * (need / total if total > 0 else 1.0)))
    margin = 1.5 * math.sqrt(size)
    last = size - 1
    return sample[min(max(int(rank + margin), 0), last)], sample[min(max(int(rank - margin), 0), last)]


def _mass_where(compare: Callable[..., Tensor], scores: Tensor, pivot: Tensor, mass: Tensor | None) -> float:
    """Mass of the scores that compare so to the pivot.

    The comparison is written as numbers, 0 and 1: on the CPU several times faster than as booleans.
    """
    if mass is None:
        ones = compare(scores, pivot, out=torch.empty_like(scores))
        return float(ones.sum(dtype=None if scores.numel() <= COUNTABLE else torch.float64))
    return float(torch.dot(compare(scores, pivot, out=torch.empty_like(mass)), mass))


def _by_sorting(scores: Tensor, mass: Tensor | None, need: Tensor) -> Tensor:
    if scores.numel() == 0:
        return scores.new_full((), -torch.inf)
    ordered, order = scores.sort(descending=True)
    before = need.ceil() - 1 if mass is None else (mass.gather(0, order).cumsum(0) < need).sum()
    place = before.nan_to_num().clamp(0, scores.numel() - 1).long()
    return ordered.gather(0, place.reshape(1)).reshape(())


def _by_bisection(scores: Tensor, mass: Tensor | None, need: Tensor) -> Tensor:
    infinity = ordered_bits(torch.full((), torch.inf, dtype=scores.dtype, device=scores.device))
    low, high = infinity ^ -1, infinity
    for _ in range(8 * scores.element_size()):
        middle = (low | high) - ((low ^ high) >> 1)  # the mean, rounded up, without overflow
        reaches = scores >= score_of_bits(middle, scores.dtype)
        held = reaches.sum() if mass is None else (mass * reaches).sum()
        enough = held >= need
        low, high = torch.where(enough, middle, low), torch.where(enough, high, middle - 1)
    return score_of_bits(low, scores.dtype)
