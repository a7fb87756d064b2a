r"""The maths of ranks: which losses are the largest, and how much each of them weighs.

Nothing here carries a gradient but the value of a `Selection`. At the optimum the weights *are* a subgradient of
the aggregate (Danskin), so an aggregate is the inner product of these weights with the losses and autograd does
the rest.

The ``k`` largest are the first ``k`` units of the ranking (see `topkloss.ranking.ranking`). The score at their end is
the threshold; an element before the end is selected whole, the elements tied at the end share what is left of it in
proportion to their mass. A rule says of one ranking which interval of it weighs; `Rankings.by` applies it to each.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from topkloss.base.arguments import NanPolicy, check_drop, check_k
from topkloss.base.tensors import Scalar, Versions, check_unchanged, choose, larger, smaller, versions_of
from topkloss.ranking.rank import rank, rank_all
from topkloss.ranking.ranking import LEAST, Ranking, Rankings, Rule, Weights, requested_mass
from topkloss.ranking.threshold import SLACK

__all__ = ["Selection", "topk_select", "topk_threshold", "topk_weights"]

# Behind a dropped mass, which rounds, less than this fraction of the counted mass is as good as this fraction.
LEAST_BEHIND_DROPPED = 1e-11


@dataclass(frozen=True, eq=False)
class Selection:
    """What a selection took: everything that a monitor reads. Only `value` carries a gradient.

    Among several processes, what is shaped like the losses, and `omitted`, are this process's part of it. What is
    shaped like the losses is written when it is asked for: what was selected from must stay as it is until then (an
    error says so where it did not).

    Attributes:
        value: Scalar, the sum of weights times losses: the aggregate itself, to call ``backward()`` on.
        average: Scalar, the plain mean of the counted losses: what `value` is to be watched beside.
        threshold: Scalar, the score at which the mass asked for is reached, with groups the lowest of theirs; -inf
            where nothing was counted.
        weights: Shaped like the losses; non-negative, of sum 1 (0 where nothing was counted).
        kept: Shaped like the losses, bool: True where the weight is not zero.
        mass: Shaped like the losses, float64: what each counted element counts, 0 where not counted.
        omitted: Scalar int64, how many elements ``nan_policy="omit"`` left out because they were NaN.
    """

    value: Tensor
    average: Tensor
    threshold: Tensor
    omitted: Tensor
    _weights: Weights = field(repr=False)
    _rankings: Rankings = field(repr=False)
    _versions: Versions | None = field(repr=False)
    _written: dict[str, Tensor] = field(default_factory=dict, repr=False)

    @property
    def weights(self) -> Tensor:
        """See `Selection`."""
        return self._once("weights", self._weights.dense)

    @property
    def kept(self) -> Tensor:
        """See `Selection`."""
        return self._once("kept", lambda: self.weights != 0)

    @property
    def mass(self) -> Tensor:
        """See `Selection`."""
        return self._once("mass", self._rankings.each_mass)

    @property
    def counted_mass(self) -> Tensor:
        """Scalar float64, the mass S of all counted elements (their number without `sample_weight`)."""
        return self.mass.sum()

    def _once(self, name: str, write: Callable[[], Tensor]) -> Tensor:
        if name not in self._written:
            if self._versions is not None:
                check_unchanged(self._versions, *self._rankings.inputs())
            with torch.inference_mode(False), torch.no_grad():  # it may be read in one mode and used in another
                self._written[name] = write()
        return self._written[name]

    def __getstate__(self) -> dict[str, Any]:
        """A copy has it all written: its tensors begin to count their versions anew."""
        written = {"weights": self.weights, "kept": self.kept, "mass": self.mass}
        return {**self.__dict__, "_written": written, "_versions": None}

    def detached(self) -> Selection:
        """The same, whose value carries no gradient."""
        return replace(self, value=self.value.detach())


def topk_threshold(
    losses: Tensor,
    *,
    k: float | None = None,
    fraction: float | None = None,
    mask: Tensor | None = None,
    sample_weight: Tensor | None = None,
) -> Tensor:
    r"""The k-th largest counted loss: the threshold above which an element is selected whole.

    .. math:: t = \max \{ t : \textstyle\sum_{i : \ell_i \ge t} s_i \ge k \}

    It minimises :math:`\lambda + \frac1k \sum_i s_i [\ell_i - \lambda]_+`, whose minimum is the average
    top-k loss.

    Args:
        losses: Floating point, any shape except 0-dim, any unit. Not modified.
        k: Mass of the elements selected, k > 0, real (2.5 gives the third largest). Above S it means all.
        fraction: `k` as a share of the counted mass S, 0 < fraction <= 1. Exactly one of the two.
        mask: Bool, shaped like `losses`; True = counts. Default: all count.
        sample_weight: Mass of each element, shaped like `losses`, finite and >= 0; 0 = not counted. Default: 1 each.

    Returns:
        0-dim tensor on the device of `losses`, float64 for float64 input and float32 otherwise, no gradient;
        -inf where nothing is counted, NaN where a counted loss is NaN.

    Raises:
        TypeError: If a tensor or number has the wrong type.
        ValueError: If `k` or `fraction` is out of range, shapes differ, `losses` is a scalar, or a readable
            `sample_weight` is negative, infinite or NaN (on other devices the result is NaN instead).

    Example:
        >>> topk_threshold(torch.tensor([3.0, 1.0, 2.0, 5.0]), k=2)
        tensor(3.)

    Cost: on the CPU about two reads of the losses; on an accelerator 32 (64 for float64), without a sort and
        without waiting for the device; under torch.compile on the CPU and under vmap, one sort.
    Reference: Fan, Lyu, Ying, Hu. Learning with Average Top-k Loss. NeurIPS 2017, Lemma 1.
    """
    check_k(k, fraction)
    ranking = rank_all(losses, mask=mask, sample_weight=sample_weight)
    return ranking.threshold(requested_mass(ranking.total, k, fraction))


def topk_weights(
    losses: Tensor,
    *,
    k: float | None = None,
    fraction: float | None = None,
    mask: Tensor | None = None,
    sample_weight: Tensor | None = None,
    scores: Tensor | None = None,
    nan_policy: NanPolicy = "propagate",
) -> Tensor:
    r"""Weights under which the weighted sum of the losses is their average top-k loss.

    .. math:: w \in \arg\max \{ \langle w, \ell \rangle : 0 \le w_i \le s_i / k,\ \textstyle\sum_i w_i = 1 \}

    Elements tied at the threshold share the remaining weight in proportion to their mass, so the weights
    are unique, the same on every device and every run, and permute with the losses; -0.0 ties with 0.0.

    Args:
        losses, k, fraction, mask, sample_weight: See `topk_threshold`.
        scores: What to rank by instead of the losses: floating point, shaped like them.
        nan_policy: What a NaN among the counted losses or scores does. "propagate": every counted weight is
            NaN; "raise": ValueError (waits for the device); "omit": such elements are not counted.

    Returns:
        Shaped like `losses`, on their device, float64 for float64 input and float32 otherwise, no gradient;
        all 0 where nothing is counted.

    Raises:
        TypeError, ValueError: See `topk_threshold`.

    Example:
        >>> topk_weights(torch.tensor([3.0, 1.0, 2.0, 2.0]), k=2)
        tensor([0.5000, 0.0000, 0.2500, 0.2500])

    Cost: that of `topk_threshold` and one read more; where the native kernels do not serve, four.
    Reference: See `topk_threshold`; the set of weights is the risk envelope of the conditional value at risk
        (Rockafellar, Uryasev. Optimization of conditional value-at-risk. 2000).
    """
    check_k(k, fraction)
    rankings = rank(losses, mask=mask, sample_weight=sample_weight, scores=scores, nan_policy=nan_policy)
    return rankings.by(top_k(k, fraction)).dense()


def topk_select(
    losses: Tensor,
    *,
    k: float | None = None,
    fraction: float | None = None,
    drop: float | None = None,
    drop_fraction: float | None = None,
    mask: Tensor | None = None,
    sample_weight: Tensor | None = None,
    scores: Tensor | None = None,
    groups: Tensor | None = None,
    nan_policy: NanPolicy = "propagate",
) -> Selection:
    """The whole selection, for a monitor: value, plain mean, threshold, weights, what was kept.

    Args:
        losses, fraction, mask, sample_weight: See `topk_threshold`.
        k: See `topk_threshold`; counted after `drop`.
        drop: Mass of the largest elements left out first, >= 0. At most one of the two; default none.
        drop_fraction: `drop` as a share of the counted mass, 0 <= drop_fraction < 1.
        scores, nan_policy: See `topk_weights`.
        groups: Integers, shaped like `losses`: each group is ranked by itself. See `average_top_k`.

    Returns:
        A `Selection`.

    Raises:
        TypeError, ValueError: See `topk_threshold`; also if `drop` or `drop_fraction` is out of range.

    Example:
        >>> selection = topk_select(torch.tensor([3.0, 1.0, 2.0, 9.0]), k=2, drop=1)
        >>> selection.kept, selection.value
        (tensor([ True, False,  True, False]), tensor(2.5000))

    Cost: that of `topk_weights`; with a drop, that of two thresholds.
    Reference: See `topk_threshold`; for the drop, Hu, Ying, Wang, Lyu. Sum of Ranked Range Loss for Supervised
        Learning. JMLR 23(112), 2022.
    """
    check_k(k, fraction)
    check_drop(drop, drop_fraction)
    given: dict[str, Any] = {"mask": mask, "sample_weight": sample_weight, "scores": scores, "groups": groups}
    rankings = rank(losses, **given, nan_policy=nan_policy)
    return selection_of(rankings, losses, rankings.by(top_k(k, fraction, drop, drop_fraction)))


def selection_of(rankings: Rankings, losses: Tensor, weights: Weights) -> Selection:
    """What a monitor reads of these weights."""
    omitted = rankings.omitted
    if not isinstance(omitted, Tensor):
        omitted = torch.tensor(omitted, device="cpu")
    return Selection(
        value=rankings.dot(weights, losses),
        average=rankings.dot(rankings.even(), losses.detach()),
        threshold=weights.lowest,
        omitted=omitted,
        _weights=weights,
        _rankings=rankings,
        _versions=versions_now(rankings),
        _written={"mass": rankings.each_mass()} if torch.compiler.is_compiling() else {},
    )


def versions_now(rankings: Rankings) -> Versions | None:
    """By which a selection knows that what it reads late is unchanged; None in a compiled graph, which writes all."""
    return None if torch.compiler.is_compiling() else versions_of(*rankings.inputs())


# Rules


def top_k(
    k: float | None, fraction: float | None, drop: float | None = None, drop_fraction: float | None = None
) -> Rule:
    """The mass asked for, behind the dropped one."""
    if not drop and not drop_fraction:
        return partial(_top_k, k=k, fraction=fraction)
    return partial(_ranked_range, k=k, fraction=fraction, drop=drop, drop_fraction=drop_fraction)


def _top_k(ranking: Ranking, *, k: float | None, fraction: float | None) -> Weights:
    return ranking.interval(None, _at_least(LEAST, ranking, k, fraction))


def _ranked_range(
    ranking: Ranking, *, k: float | None, fraction: float | None, drop: float | None, drop_fraction: float | None
) -> Weights:
    dropped = requested_mass(ranking.total, drop, drop_fraction)
    left = ranking.total - dropped
    left = choose(left > SLACK * ranking.total, left, 0.0)
    return ranking.interval(dropped, smaller(_at_least(LEAST_BEHIND_DROPPED, ranking, k, fraction), left))


def _at_least(least: float, ranking: Ranking, k: float | None, fraction: float | None) -> Scalar:
    """The mass asked for, but no less of all than can be computed with."""
    return larger(requested_mass(ranking.total, k, fraction), least * ranking.total)


def kth(k: float | None, fraction: float | None) -> Rule:
    """What ties where the mass asked for ends."""
    return lambda ranking: ranking.tied_at(_at_least(LEAST, ranking, k, fraction))


def above(threshold: float, min_kept: float | None, min_fraction: float | None) -> Rule:
    """What lies above a threshold, or within the least mass that is kept."""

    def rule(ranking: Ranking) -> Weights:
        floor = requested_mass(ranking.total, min_kept, min_fraction) if min_kept or min_fraction else None
        return ranking.above(threshold, floor)

    return rule


def loss_of(threshold: float | None, probability: float | None) -> float:
    """The threshold, in the unit of the losses: of a probability its cross-entropy in nats."""
    if threshold is not None:
        return threshold
    return -math.log(probability or 1.0) + 0.0  # of 1 it is 0, not -0


def hard_negatives(ratio: float, min_negatives: float) -> Rule:
    """All positives, which `positives_first` ranks first, and so many negatives for each."""

    def rule(ranking: Ranking) -> Weights:
        mass = ranking.mass_above(torch.finfo(ranking.scores.dtype).max)
        return ranking.interval(None, smaller(mass + larger(ratio * mass, min_negatives), ranking.total))

    return rule


def everything(ranking: Ranking) -> Weights:
    """All that counts."""
    return ranking.everything()


def largest(ranking: Ranking) -> Weights:
    """The largest, and what ties with it."""
    return ranking.largest()


def positives_first(scores: Tensor, positives: Tensor) -> Tensor:
    """Scores by which the negatives come in their own order, behind the positives, which alone are infinite."""
    scores = scores.detach()
    return torch.where(positives, torch.inf, scores.clamp(max=torch.finfo(scores.dtype).max))
