"""The oracle of the tests: every aggregate by ``sorted()`` in Python floats, slow and obvious.

The functions have the names, keywords and answers of the library, on flat lists in the place of tensors. They walk the
ranking, the elements from the hardest to the easiest, each as wide as its mass, until the requested mass is reached.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any

__all__ = [
    "average",
    "average_above",
    "average_hard_negatives",
    "average_ranked_range",
    "average_tilted",
    "average_top_k",
    "average_top_k_dual",
    "kth_largest",
    "maximum",
    "mean_over_groups",
    "topk_threshold",
    "topk_weights",
]


def topk_threshold(
    losses: Sequence[float],
    *,
    k: float | None = None,
    fraction: float | None = None,
    mask: Sequence[bool] | None = None,
    sample_weight: Sequence[float] | None = None,
) -> float:
    """The k-th largest counted loss, by mass.

    Example:
        >>> topk_threshold([3.0, 1.0, 2.0, 5.0], k=2)
        3.0
    """
    mass = _counted_mass(losses, mask, sample_weight)
    if _has_nan(losses, mass):
        return math.nan
    wanted = _capacity(math.fsum(mass), k, fraction)
    return _shares(losses, mass, wanted)[1]


def topk_weights(
    losses: Sequence[float],
    *,
    k: float | None = None,
    fraction: float | None = None,
    drop: float | None = None,
    drop_fraction: float | None = None,
    mask: Sequence[bool] | None = None,
    sample_weight: Sequence[float] | None = None,
    scores: Sequence[float] | None = None,
    nan_policy: str = "propagate",
) -> list[float]:
    """The weight of each element in the average top-k loss, or in the ranked range if a drop is given.

    Example:
        >>> topk_weights([3.0, 1.0, 2.0, 2.0], k=2)
        [0.5, 0.0, 0.25, 0.25]
    """
    scores = losses if scores is None else scores
    nan = [math.isnan(loss) or math.isnan(score) for loss, score in zip(losses, scores, strict=True)]
    mass = _counted_mass(losses, mask, sample_weight)
    if nan_policy == "omit":
        mass = [0.0 if bad else width for bad, width in zip(nan, mass, strict=True)]
    elif any(bad and width > 0 for bad, width in zip(nan, mass, strict=True)):
        if nan_policy == "raise":
            raise ValueError("a counted loss or score is NaN")
        return [math.nan if width > 0 else 0.0 for width in mass]
    total = math.fsum(mass)
    dropped = 0.0 if drop is None and drop_fraction is None else _capacity(total, drop, drop_fraction)
    reached = min(dropped + _capacity(total, k, fraction), total)
    if reached <= dropped:
        return [0.0] * len(losses)
    outer, inner = _shares(scores, mass, reached)[0], _shares(scores, mass, dropped)[0]
    return [(a - b) / (reached - dropped) for a, b in zip(outer, inner, strict=True)]


def average_top_k(
    losses: Sequence[float],
    *,
    k: float | None = None,
    fraction: float | None = None,
    mask: Sequence[bool] | None = None,
    sample_weight: Sequence[float] | None = None,
    scores: Sequence[float] | None = None,
    nan_policy: str = "propagate",
) -> float:
    """The average of the k largest losses, by mass.

    Example:
        >>> average_top_k([3.0, 1.0, 2.0, 9.0], k=2.5)
        5.2
    """
    weights = topk_weights(
        losses,
        k=k,
        fraction=fraction,
        mask=mask,
        sample_weight=sample_weight,
        scores=scores,
        nan_policy=nan_policy,
    )
    return _weighted_sum(weights, losses)


def average_ranked_range(
    losses: Sequence[float],
    *,
    k: float | None = None,
    fraction: float | None = None,
    drop: float | None = None,
    drop_fraction: float | None = None,
    mask: Sequence[bool] | None = None,
    sample_weight: Sequence[float] | None = None,
    scores: Sequence[float] | None = None,
    nan_policy: str = "propagate",
) -> float:
    """The average of the k largest losses after the largest `drop` are left out.

    Example:
        >>> average_ranked_range([3.0, 1.0, 2.0, 900.0], k=2, drop=1)
        2.5
    """
    weights = topk_weights(
        losses,
        k=k,
        fraction=fraction,
        drop=drop,
        drop_fraction=drop_fraction,
        mask=mask,
        sample_weight=sample_weight,
        scores=scores,
        nan_policy=nan_policy,
    )
    return _weighted_sum(weights, losses)


def average(
    losses: Sequence[float],
    *,
    mask: Sequence[bool] | None = None,
    sample_weight: Sequence[float] | None = None,
    nan_policy: str = "propagate",
) -> float:
    """The mean of the counted losses.

    Example:
        >>> average([1.0, 2.0, 9.0], mask=[True, True, False])
        1.5
    """
    return average_top_k(losses, fraction=1.0, mask=mask, sample_weight=sample_weight, nan_policy=nan_policy)


def maximum(
    losses: Sequence[float],
    *,
    mask: Sequence[bool] | None = None,
    sample_weight: Sequence[float] | None = None,
    nan_policy: str = "propagate",
) -> float:
    """The largest counted loss; 0 if nothing is counted.

    Example:
        >>> maximum([1.0, 2.0, 9.0])
        9.0
    """
    mass = _counted_mass(losses, mask, sample_weight)
    counted = [loss for loss, width in zip(losses, mass, strict=True) if width > 0]
    finite = [loss for loss in counted if not math.isnan(loss)]
    if len(finite) < len(counted) and nan_policy != "omit":
        if nan_policy == "raise":
            raise ValueError("a counted loss is NaN")
        return math.nan
    return max(finite, default=0.0)


def kth_largest(
    losses: Sequence[float],
    *,
    k: float | None = None,
    fraction: float | None = None,
    mask: Sequence[bool] | None = None,
    sample_weight: Sequence[float] | None = None,
    nan_policy: str = "propagate",
) -> float:
    """The k-th largest counted loss; 0 if nothing is counted.

    Example:
        >>> kth_largest([3.0, 1.0, 2.0, 9.0], k=2)
        3.0
    """
    mass = _counted_mass(losses, mask, sample_weight)
    usable = [width > 0 and not math.isnan(loss) for loss, width in zip(losses, mass, strict=True)]
    if nan_policy != "omit" and _has_nan(losses, mass):
        return math.nan
    return topk_threshold(losses, k=k, fraction=fraction, mask=usable, sample_weight=mass) if any(usable) else 0.0


def average_above(
    losses: Sequence[float],
    *,
    threshold: float,
    min_kept: float | None = None,
    min_fraction: float | None = None,
    mask: Sequence[bool] | None = None,
    sample_weight: Sequence[float] | None = None,
    scores: Sequence[float] | None = None,
    nan_policy: str = "propagate",
) -> float:
    """The average of the losses above a threshold, or of the `min_kept` largest if fewer are above it.

    Example:
        >>> average_above([3.0, 0.1, 0.0, 9.0], threshold=0.36, min_kept=3)
        4.033333333333333
    """
    ranked = losses if scores is None else scores
    mass = _counted_mass(losses, mask, sample_weight)
    if nan_policy == "omit":
        nan = [math.isnan(loss) or math.isnan(score) for loss, score in zip(losses, ranked, strict=True)]
        mass = [0.0 if bad else width for bad, width in zip(nan, mass, strict=True)]
    above = math.fsum(width for score, width in zip(ranked, mass, strict=True) if score > threshold)
    floor = _capacity(math.fsum(mass), min_kept, min_fraction) if min_kept or min_fraction else 0.0
    if max(above, floor) == 0 and not _has_nan(losses, mass) and not _has_nan(ranked, mass):
        return 0.0
    return average_top_k(losses, k=max(above, floor, 1e-300), sample_weight=mass, scores=scores, nan_policy=nan_policy)


def average_hard_negatives(
    losses: Sequence[float],
    positives: Sequence[bool],
    *,
    ratio: float = 3.0,
    min_negatives: float = 0.0,
    mask: Sequence[bool] | None = None,
    sample_weight: Sequence[float] | None = None,
    nan_policy: str = "propagate",
) -> float:
    """The average over all positives and the hardest negatives, `ratio` of them for each positive.

    Example:
        >>> average_hard_negatives([1.0, 0.5, 4.0, 3.0], [True, False, False, False], ratio=1)
        2.5
    """
    mass = _counted_mass(losses, mask, sample_weight)
    if nan_policy == "omit":
        mass = [0.0 if math.isnan(loss) else width for loss, width in zip(losses, mass, strict=True)]
    elif _has_nan(losses, mass):
        return average(losses, sample_weight=mass, nan_policy=nan_policy)
    own = [width if positive else 0.0 for width, positive in zip(mass, positives, strict=True)]
    others = [0.0 if positive else width for width, positive in zip(mass, positives, strict=True)]
    wanted = max(ratio * math.fsum(own), min_negatives)
    shares = _shares(losses, others, min(wanted, math.fsum(others)))[0]
    chosen = [a + b for a, b in zip(own, shares, strict=True)]
    selected = math.fsum(chosen)
    return _weighted_sum([part / selected for part in chosen], losses) if selected > 0 else 0.0


def average_top_k_dual(
    losses: Sequence[float],
    threshold: float,
    *,
    fraction: float,
    smoothing: float = 0.0,
    mask: Sequence[bool] | None = None,
    sample_weight: Sequence[float] | None = None,
    nan_policy: str = "propagate",
) -> float:
    """The dual form of the average top-k loss: the threshold plus the mean excess above it, divided by the fraction.

    Example:
        >>> average_top_k_dual([9.0, 7.0, 5.0, 3.0], 5.0, fraction=0.5)
        8.0
    """
    mass = _counted_mass(losses, mask, sample_weight)
    if not any(
        width > 0 and not (nan_policy == "omit" and math.isnan(x)) for x, width in zip(losses, mass, strict=True)
    ):
        return 0.0

    def excess(loss: float) -> float:
        x = loss - threshold
        if smoothing == 0 or math.isinf(x) or math.isnan(x):
            return x if math.isnan(x) else max(x, 0.0) - smoothing / 2
        root = math.hypot(x, smoothing)
        return ((x + root if x > 0 else smoothing**2 / (root - x)) - smoothing) / 2

    excesses = [excess(loss) for loss in losses]
    return threshold + average(excesses, sample_weight=mass, nan_policy=nan_policy) / fraction


def average_tilted(
    losses: Sequence[float],
    *,
    tilt: float,
    mask: Sequence[bool] | None = None,
    sample_weight: Sequence[float] | None = None,
    nan_policy: str = "propagate",
) -> float:
    """The tilted average: the logarithm of the mean of exp(tilt * loss), divided by the tilt.

    Example:
        >>> round(average_tilted([0.0, math.log(3.0)], tilt=1.0), 6), round(math.log(2.0), 6)
        (0.693147, 0.693147)
    """
    mass = _counted_mass(losses, mask, sample_weight)
    if nan_policy == "omit":
        mass = [0.0 if math.isnan(loss) else width for loss, width in zip(losses, mass, strict=True)]
    elif _has_nan(losses, mass):
        return average(losses, sample_weight=mass, nan_policy=nan_policy)
    powers = [tilt * loss for loss, width in zip(losses, mass, strict=True) if width > 0]
    if not powers or math.isinf(max(powers)):
        return max(powers, default=0.0) / tilt
    total = math.fsum(
        width * math.exp(tilt * x - max(powers)) for x, width in zip(losses, mass, strict=True) if width > 0
    )
    return (max(powers) + math.log(total / math.fsum(mass))) / tilt


def mean_over_groups(
    aggregate: Callable[..., float], losses: Sequence[float], groups: Sequence[int], **given: Any
) -> float:
    """The plain mean of an aggregate over the groups that count something.

    Lists among the keywords, like `mask`, are divided among the groups as the losses are.

    Example:
        >>> mean_over_groups(maximum, [3.0, 1.0, 2.0, 9.0], [0, 0, 0, 1])
        6.0
    """
    values = []
    for group in sorted(set(groups)):
        inside = [i for i, own in enumerate(groups) if own == group]
        part = {name: [x[i] for i in inside] if isinstance(x, list) else x for name, x in given.items()}
        own_losses = [losses[i] for i in inside]
        mass = _counted_mass(own_losses, part.get("mask"), part.get("sample_weight"))
        omits = given.get("nan_policy") == "omit"
        if any(width > 0 and not (omits and math.isnan(x)) for x, width in zip(own_losses, mass, strict=True)):
            values.append(aggregate(own_losses, **part))
    return (
        math.fsum(values) / len(values)
        if values and all(map(math.isfinite, values))
        else sum(values) / max(len(values), 1)
    )


def _counted_mass(
    losses: Sequence[float], mask: Sequence[bool] | None, sample_weight: Sequence[float] | None
) -> list[float]:
    mask = [True] * len(losses) if mask is None else mask
    sample_weight = [1.0] * len(losses) if sample_weight is None else sample_weight
    return [width if counts else 0.0 for counts, width in zip(mask, sample_weight, strict=True)]


def _has_nan(losses: Sequence[float], mass: Sequence[float]) -> bool:
    return any(math.isnan(loss) for loss, width in zip(losses, mass, strict=True) if width > 0)


def _capacity(total: float, count: float | None, fraction: float | None) -> float:
    """The requested mass, at most all; a number within 1e-9 of an integer (relative) is that integer."""
    wanted = count if count is not None else fraction * total if fraction is not None else 0.0
    if math.isfinite(wanted) and abs(wanted - round(wanted)) <= 1e-9 * wanted:
        wanted = float(round(wanted))
    return min(wanted, total)


def _shares(scores: Sequence[float], mass: Sequence[float], wanted: float) -> tuple[list[float], float]:
    """The mass of each element within the `wanted` largest, and the lowest score that was reached."""
    shares = [0.0] * len(scores)
    order = sorted((i for i in range(len(scores)) if mass[i] > 0), key=lambda i: scores[i], reverse=True)
    walked, lowest = 0.0, -math.inf
    for score, group in groupby(order, key=lambda i: scores[i]):
        tied = list(group)
        width = math.fsum(mass[i] for i in tied)
        if walked >= wanted * (1 - 1e-12):
            break
        part = min((wanted - walked) / width, 1.0)
        for i in tied:
            shares[i] = mass[i] * part
        walked, lowest = walked + width, score
    return shares, lowest


def _weighted_sum(weights: Sequence[float], losses: Sequence[float]) -> float:
    terms = [weight * loss for weight, loss in zip(weights, losses, strict=True) if weight != 0]
    return math.fsum(terms) if all(map(math.isfinite, terms)) else sum(terms)
