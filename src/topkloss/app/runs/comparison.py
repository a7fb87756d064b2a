"""Two models, compared: on the same examples, on others, and over seeds; several pairs by Holm's rule."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import bdtr, ndtr, ndtri, stdtr, stdtrit

from topkloss.app.runs.scores import Floats

__all__ = ["Compared", "holm", "independent", "mcnemar", "on_the_same", "over_seeds", "over_unlike_seeds", "swapped_f1"]

LEVEL, POWER = 0.05, 0.8

# Signs of up to so many examples are all tried; of more, so many draws; beyond so many examples the sum is normal.
ALL_SIGNS, DRAWS, MOST_FLIPPED = 12, 9_999, 2_000
SEED = 0


@dataclass(frozen=True)
class Compared:
    """What was found of a difference, the first model's score minus the second's.

    Attributes:
        value: The difference, the larger the better is the first.
        low, high: 95 % interval.
        p: Two-sided; 1 where nothing differs.
        error: Standard error, as a test has it under no difference.
        freedom: Degrees of freedom; infinite for the normal distribution.
        test: Its name.
        least: No smaller difference can be shown, however it comes about.
    """

    value: float
    low: float
    high: float
    p: float
    error: float
    freedom: float
    test: str
    least: float = 0.0

    def detectable(self, tests: int = 1) -> float:
        """The difference that would be found four times in five, were it there, where so many are tested."""
        level = LEVEL / tests
        sum_of_quantiles = -_quantile(level / 2, self.freedom) + _quantile(POWER, self.freedom)
        return max(sum_of_quantiles * self.error, self.least * math.ceil(1 + math.log2(1 / level)))


def mcnemar(better: int, worse: int) -> float:
    r"""The p of McNemar's exact test: whether, of the examples on which one model alone is right, half are of each.

    .. math:: p = \min(1,\ 2 P(X \le \min(b, c))), \qquad X \sim \mathrm{Bin}(b + c, 1/2)

    Args:
        better, worse: On how many examples the first, or the second, is right alone.

    Example:
        >>> round(mcnemar(16, 4), 6), mcnemar(0, 0)
        (0.011818, 1.0)
    """
    n = better + worse
    return min(1.0, 2 * float(bdtr(min(better, worse), n, 0.5))) if n else 1.0


def on_the_same(first: Floats, second: Floats, *, share: bool = False, right_or_wrong: bool = False) -> Compared:
    r"""Compares two models on the same examples, from what each example adds to the score of each.

    With d the differences of the n examples, the interval is

    .. math:: \sum d \pm 1.96 \sqrt{\tfrac{n}{n - 1} \sum (d - \bar d)^2}

    of accuracies Bonett and Price's, with one example more on which each is right alone (J. Educ. Behav. Stat. 2012).
    The test of accuracies is McNemar's exact one. Otherwise the signs of the differences are flipped, for they may as
    well be the other way round where the models are alike: all signs of few examples, random ones of more.

    Args:
        first, second: From `topkloss.app.runs.scores.contributions`, in one order of the examples.
        share: Whether the score moves in steps, so that no difference seen is none at all to be had.
        right_or_wrong: Whether it is the accuracy of two single models.
    """
    d = first - second
    n, value = len(d), float(d.sum())
    step = max(float(np.abs(first).max()), float(np.abs(second).max())) if share else 0.0
    error = math.sqrt(float((d**2).sum()) + step**2)
    if right_or_wrong:
        better, worse = int((d > 0).sum()), int((d < 0).sum())
        up, down = (better + 1) / (n + 2), (worse + 1) / (n + 2)
        half = -_quantile(LEVEL / 2) * math.sqrt((up + down - (up - down) ** 2) / (n + 2))
        low, high = up - down - half, up - down + half
        p = mcnemar(better, worse)
        return Compared(value, low, high, p, error, math.inf, "McNemar's exact test", 1 / n)
    spread = math.sqrt(_variance_of_sum(d) + step**2)
    p, test = _flipped(d)
    half = -_quantile(LEVEL / 2) * spread
    return Compared(value, value - half, value + half, p, error, math.inf, test)


def swapped_f1(labels: Sequence[str], first: Sequence[str], second: Sequence[str]) -> float:
    """The p of a difference in mean F1, which is no sum over examples: what the models say is swapped in random ones.

    Args:
        labels, first, second: True classes, and what each model says.
    """
    place = {name: number for number, name in enumerate(sorted({*labels, *first, *second}))}
    true, one, two = (np.array([place[name] for name in names]) for names in (labels, first, second))
    moved, count = np.flatnonzero(one != two), len(place)
    if not len(moved):
        return 1.0
    support = np.bincount(true, minlength=count)
    taken = [np.bincount(said, minlength=count) for said in (one, two)]
    hits = [np.bincount(true[said == true], minlength=count) for said in (one, two)]
    columns = np.arange(count)
    more = (two[moved, None] == columns).astype(np.float64) - (one[moved, None] == columns)
    more_hits = more * (true[moved, None] == columns)

    def difference(swapped: Floats) -> Floats:
        means = []
        for sign, hit, said in ((1, hits[0], taken[0]), (-1, hits[1], taken[1])):
            total = support + said + sign * (swapped @ more)
            each = np.divide(2 * (hit + sign * (swapped @ more_hits)), total, out=np.zeros_like(total), where=total > 0)
            means.append(each.sum(1) / (total > 0).sum(1))
        found: Floats = np.abs(means[0] - means[1])
        return found

    least = float(difference(np.zeros((1, len(moved))))[0]) - 1e-12
    chance, draws = np.random.default_rng(SEED), max(999, min(DRAWS, 500_000_000 // (len(moved) * count)))
    beyond, done = 0, 0
    while done < draws:
        size = min(draws - done, max(1, 1_000_000 // max(len(moved), count)))
        beyond += int((difference(chance.integers(2, size=(size, len(moved))).astype(np.float64)) >= least).sum())
        done += size
    return (1 + beyond) / (1 + draws)


def independent(values: tuple[float, float], variances: tuple[float, float]) -> Compared:
    """Compares two scores on other examples, by their variances."""
    value, error = values[0] - values[1], math.sqrt(sum(variances))
    return _compared(value, error, math.inf, "a z test of two samples")


def over_seeds(
    first: Sequence[Floats], second: Sequence[Floats], *, ratio: float | None, step: float = 0.0
) -> Compared:
    r"""Compares two ways of training over J seeds, the same for both, each seed's two runs on the same examples.

    With the differences :math:`d_j` of the scores, their mean m and variance s^2, on one split

    .. math:: \mathrm{SE}^2 = s^2 / J + v, \qquad v = \tfrac{n}{n - 1} \sum (\bar d_i - \bar{\bar d})^2,

    where v is the variance that the choice of the examples adds, from the means of their differences over the seeds;
    on a split for each seed (Nadeau and Bengio. Inference for the generalization error. 2003)

    .. math:: \mathrm{SE}^2 = (1 / J + n_2 / n_1) s^2.

    The test is Student's: with J - 1 degrees of freedom, or on one split with Satterthwaite's. To :math:`s^2` the worth
    of an example is added, for equal differences of few seeds are no proof that there is no other.

    Args:
        first, second: Contributions of each seed.
        ratio: Examples held out over those trained on, n2 / n1, where each seed has its own split; None for one split.
        step: The worth of an example.
    """
    d = np.array([float((a - b).sum()) for a, b in zip(first, second, strict=True)])
    seeds = len(d)
    variance = (float(((d - d.mean()) ** 2).sum()) + step**2) / (seeds - 1)
    if ratio is not None:
        error = math.sqrt((1 / seeds + ratio) * variance)
        return _compared(float(d.mean()), error, seeds - 1, "the corrected t test over seeds and splits")
    examples = np.mean([a - b for a, b in zip(first, second, strict=True)], axis=0)
    parts = [(variance / seeds, seeds - 1), (_variance_of_sum(examples), len(examples) - 1)]
    return _added(float(d.mean()), parts, "the paired t test over seeds and examples")


def over_unlike_seeds(
    first: Sequence[float],
    second: Sequence[float],
    *,
    ratio: float | None,
    parts: tuple[Sequence[Floats], Sequence[Floats]] | None = None,
    step: float = 0.0,
) -> Compared:
    """Compares two ways of training whose seeds are not the same: Welch's t test, with the same additions.

    Args:
        first, second: The score of each seed.
        ratio: See `over_seeds`; None where all runs were measured on the same examples.
        parts: Where all were measured on the same examples, the contributions of each seed.
        step: See `over_seeds`.
    """
    added = []
    for scores in (np.array(first), np.array(second)):
        variance = (float(((scores - scores.mean()) ** 2).sum()) + step**2) / (len(scores) - 1)
        added.append((variance * (1 / len(scores) + (ratio or 0.0)), len(scores) - 1))
    if parts is not None:
        examples = np.mean(parts[0], axis=0) - np.mean(parts[1], axis=0)
        added.append((_variance_of_sum(examples), len(examples) - 1))
    return _added(float(np.mean(first) - np.mean(second)), added, "Welch's t test over seeds")


def holm(ps: Sequence[float]) -> list[float]:
    """Holm's adjusted p of each: at most 5 % of families without a difference have one of them below 0.05.

    Example:
        >>> holm([0.01, 0.04, 0.03])
        [0.03, 0.06, 0.06]
    """
    order = sorted(range(len(ps)), key=lambda place: ps[place])
    adjusted, most = [0.0] * len(ps), 0.0
    for rank, place in enumerate(order):
        most = max(most, min(1.0, (len(ps) - rank) * ps[place]))
        adjusted[place] = most
    return adjusted


def _variance_of_sum(d: Floats) -> float:
    n = len(d)
    return float(((d - d.mean()) ** 2).sum()) * n / (n - 1) if n > 1 else math.inf


def _flipped(d: Floats) -> tuple[float, str]:
    """The share of the signs under which the sum is as far from 0."""
    moved = d[d != 0]
    value, m = abs(float(moved.sum())), len(moved)
    least = value * (1 - 1e-9)
    if m == 0:
        return 1.0, "no example differs"
    if m <= ALL_SIGNS:
        bits = (np.arange(2**m)[:, None] >> np.arange(m)) & 1
        sums = (2 * bits - 1) @ moved
        return float((np.abs(sums) >= least).mean()), "the exact sign-flip test"
    if m > MOST_FLIPPED:
        error = math.sqrt(float((moved**2).sum()))
        return 2 * float(ndtr(-value / error)), "the normal sign-flip test"
    chance, beyond, done = np.random.default_rng(SEED), 0, 0
    while done < DRAWS:
        size = min(DRAWS - done, 1_000_000 // m)
        sums = (2.0 * chance.integers(2, size=(size, m)) - 1) @ moved
        beyond += int((np.abs(sums) >= least).sum())
        done += size
    return (1 + beyond) / (1 + DRAWS), "the sign-flip test"


def _added(value: float, parts: Sequence[tuple[float, float]], test: str) -> Compared:
    """From variances that add up, each with its degrees of freedom."""
    whole = sum(variance for variance, _ in parts)
    shared = sum(variance**2 / freedom for variance, freedom in parts)
    return _compared(value, math.sqrt(whole), whole**2 / shared if shared else math.inf, test)


def _compared(value: float, error: float, freedom: float, test: str) -> Compared:
    half = -_quantile(LEVEL / 2, freedom) * error
    p = 1.0 if error == 0 else 2 * _below(-abs(value) / error, freedom)
    return Compared(value, value - half, value + half, p, error, freedom, test)


def _below(t: float, freedom: float) -> float:
    return float(ndtr(t) if math.isinf(freedom) else stdtr(freedom, t))


def _quantile(share: float, freedom: float = math.inf) -> float:
    return float(ndtri(share) if math.isinf(freedom) else stdtrit(freedom, share))
