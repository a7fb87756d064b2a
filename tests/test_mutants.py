"""Known-wrong aggregates. Each is the library with one mistake in it, and a law must say so."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import Phase, given, settings
from torch import Tensor

import topkloss
from tests.laws import LAWS, Batch, batches
from tests.subjects import SUBJECTS
from tests.test_criterion import value_is_the_smoothed_loss_of_the_hardest_by_plain_loss
from topkloss.aggregates import average as aggregate
from topkloss.aggregates import dual
from topkloss.base.tensors import Scalar, smaller
from topkloss.kernels import native, operators, portable
from topkloss.ranking import groups, rank, selection, tensor_ranking
from topkloss.ranking.groups import NativeGroups, SortedGroups
from topkloss.ranking.native_ranking import NativeRanking, NativeWeights
from topkloss.ranking.ranking import Ranking, Rankings, Rule, Weights, requested_mass
from topkloss.ranking.tensor_ranking import TensorRanking, TensorWeights
from topkloss.ranking.threshold import KthLargest, _around

BY_NAME = {subject.name: subject for subject in SUBJECTS}


@dataclass(frozen=True)
class Mutant:
    """One mistake: what it replaces, by what, and the law that must reject it.

    `composed`: without native kernels; `in_groups`: short groups by the native kernels too.
    """

    name: str
    where: Any
    attribute: str
    wrong: Callable[..., Any]
    law: str
    subject: str = "average_top_k"
    composed: bool = False
    in_groups: bool = False


right_rank, right_dot, right_by = rank.rank, NativeWeights.dot, NativeGroups.by
right_normalised, right_kth_largest = TensorRanking._normalised, NativeRanking._kth_largest
right_above, right_kth, right_negatives = selection.above, selection.kth, selection.hard_negatives
right_native_kth, right_native_sum = native.kth_largest, native.weighted_sum
right_native_count, right_native_weights = native.count, native.weights
right_native_gradient, right_portable_gradient = native.gradient, portable.gradient
right_part, right_loss = dual._positive_part, operators.cross_entropy


def right_mass(total: Scalar, count: float | None, fraction: float | None) -> Tensor:
    return torch.as_tensor(requested_mass(total, count, fraction), dtype=torch.float64)


def like(wanted: Tensor, total: Scalar) -> Scalar:
    return wanted if isinstance(total, Tensor) else float(wanted)


def clamped(total: Scalar, count: float | None, fraction: float | None) -> Scalar:
    return like(right_mass(total, count, fraction).clamp(min=1).clamp(max=total), total)


def truncated(total: Scalar, count: float | None, fraction: float | None) -> Scalar:
    return like(right_mass(total, count, fraction).floor().clamp(min=1), total)


def rounded(total: Scalar, count: float | None, fraction: float | None) -> Scalar:
    return like(right_mass(total, count, fraction).round().clamp(min=1), total)


def single(total: Scalar, count: float | None, fraction: float | None) -> Scalar:
    whole = torch.as_tensor(total, dtype=torch.float64)
    number = torch.tensor(count, dtype=torch.float32) if fraction is None else torch.tensor(fraction) * whole.float()
    return like(torch.minimum(number.double(), whole), total)


def unbounded(total: Scalar, count: float | None, fraction: float | None) -> Scalar:
    return total * (fraction or 0.0) if count is None else like(torch.tensor(count, dtype=torch.float64), total)


def in_index_order(k: float | None, fraction: float | None, *_: Any) -> Rule:
    """Whoever comes first among equals is taken whole."""

    def rule(ranking: Ranking) -> Weights:
        assert isinstance(ranking, TensorRanking)
        wanted = right_mass(ranking.total, k, fraction)
        mass = ranking.each_mass().flatten()
        order = ranking.scores.flatten().argsort(descending=True, stable=True)
        after = mass[order].cumsum(0)
        taken = ((wanted - (after - mass[order])) / mass[order].clamp(min=1e-9)).clamp(0, 1) * (mass[order] > 0)
        chosen = torch.empty_like(taken).scatter(0, order, taken).reshape(ranking.scores.shape)
        lowest = torch.as_tensor(ranking.cut(wanted).score)
        return ranking._normalised(chosen.to(ranking.scores.dtype), wanted, lowest)

    return rule


def minus_zero_below_zero(losses: Tensor, *, groups: Tensor | None = None, **given: Any) -> Rankings:
    """The order of the float bits."""
    ranking = tensor_ranking.tensor_ranking(losses, **given)
    minus = (ranking.scores == 0) & ranking.scores.signbit()
    ranking.scores = ranking.scores.masked_fill(minus, -1e-30)
    return ranking


def all_ties_whole(ranking: TensorRanking, score: Tensor, part: Tensor) -> Tensor:
    return (ranking.scores >= score).to(ranking.dtype)


def whole_numbers_of_elements(ranking: NativeRanking, wanted: Scalar) -> tuple[float, float, float]:
    """`k` counts elements, whatever their mass."""
    scores, _, mask = ranking.line.tensors
    return native.kth_largest(native.Line(scores, None, mask), float(wanted)) if wanted > 0 else (-math.inf, 0, 0)


def by_interpolated_quantile(scores: Tensor, mass: Tensor | None, wanted: Tensor) -> KthLargest:
    finite = scores[scores.isfinite()]
    score = torch.tensor(-torch.inf, dtype=scores.dtype)
    if finite.numel() > 0:
        score = torch.quantile(finite, (1 - wanted / finite.numel()).clamp(0, 1).to(scores.dtype))
    return _around(score, scores, mass)


def detached(given: NativeWeights, losses: Tensor) -> Tensor:
    weights = given.dense()
    return right_dot(given, losses) if bool((weights != 0).any()) else torch.zeros((), dtype=weights.dtype)


def in_half(given: NativeWeights, losses: Tensor) -> Tensor:
    return tensor_ranking.weighted_sum(given.dense().to(losses.dtype), losses)


def zero_times_infinity(given: NativeWeights, losses: Tensor) -> Tensor:
    return (given.dense() * losses).sum()


def mean_over_all(given: NativeWeights, losses: Tensor) -> Tensor:
    weights = given.dense()
    kept = weights != 0
    return losses.where(kept, 0.0).to(weights.dtype).sum() / max(losses.numel(), 1)


def hides_nan(given: NativeWeights, losses: Tensor) -> Tensor:
    without = losses.nan_to_num(posinf=torch.inf, neginf=-torch.inf)
    return tensor_ranking.weighted_sum(given.dense().nan_to_num(), without)


def masked_as_zero(losses: Tensor, *, mask: Tensor | None = None, **given: Any) -> Rankings:
    """An ignored loss is a loss of 0."""
    losses = losses if mask is None else losses.masked_fill(~mask, 0)
    return right_rank(losses, **given)


def share_of_all(losses: Tensor, **given: Any) -> Rankings:
    """`fraction` is of all elements, counted or not."""
    ranking = right_rank(losses, **given)
    assert isinstance(ranking, NativeRanking)
    ranking.total = float(losses.numel())
    return ranking


def written_to(losses: Tensor, *, mask: Tensor | None = None, **given: Any) -> Rankings:
    if mask is not None:
        losses.detach().masked_fill_(~mask, 0)
    return right_rank(losses, mask=mask, **given)


def scaled_down(ranking: TensorRanking, chosen: Tensor, selected: Tensor, lowest: Tensor) -> TensorWeights:
    """An OHEM that divides by the number of all pixels."""
    return right_normalised(ranking, chosen, ranking.total, lowest)


# Mining and groups


def threshold_included(threshold: float, min_kept: float | None, min_fraction: float | None) -> Rule:
    return right_above(math.nextafter(threshold, -math.inf), min_kept, min_fraction)


def floor_as_cap(threshold: float, min_kept: float | None, min_fraction: float | None) -> Rule:
    """The least that is kept is also the most."""
    return selection.top_k(min_kept, min_fraction)


def mean_of_nothing(*given: Any) -> Rule:
    """Without a floor where none is above: 0 / 0."""

    def rule(ranking: Ranking) -> Weights:
        weights = right_above(*given)(ranking).dense()
        return TensorWeights(weights / weights.sum(), weights.new_zeros(()))

    return rule


def positives_twice(ratio: float, min_negatives: float) -> Rule:
    """The positives are among the mined ones too."""

    def rule(ranking: Ranking) -> Weights:
        mass = ranking.mass_above(torch.finfo(ranking.scores.dtype).max)
        return ranking.interval(None, smaller(ratio * mass, ranking.total))

    return rule


def ratio_upside_down(ratio: float, min_negatives: float) -> Rule:
    return right_negatives(1 / ratio, min_negatives)


def across_groups(losses: Tensor, *, groups: Tensor | None = None, **given: Any) -> Rankings:
    """The hardest of the batch in place of those of each image."""
    return right_rank(losses, **given)


def large_groups_say_more(ranking: SortedGroups, chosen: Tensor, selected: Tensor, lowest: Tensor) -> TensorWeights:
    """The mean over all that was selected, not over the groups."""
    mass = ranking.each_mass() * chosen
    return TensorWeights((mass / mass.sum().clamp(min=1e-300)).to(ranking.dtype), lowest)


class EmptyGroupsSayZero(SortedGroups):
    """Groups in which nothing counts are counted."""

    def __init__(self, of: TensorRanking, groups: Tensor) -> None:
        super().__init__(of, groups)
        self.number = torch.tensor(float(groups.unique().numel())).double().clamp(min=1)


def large_native_groups_say_more(rankings: NativeGroups, rule: Rule) -> NativeWeights:
    weights = right_by(rankings, rule)
    totals = [part.total for part in rankings.parts]
    mean = sum(totals) / max(sum(total > 0 for total in totals), 1)
    weights.intervals = [
        interval._replace(scale=interval.scale * total / max(mean, 1e-300))
        for interval, total in zip(weights.intervals, totals, strict=True)
    ]
    return weights


def empty_native_groups_say_zero(rankings: NativeGroups, rule: Rule) -> NativeWeights:
    weights = right_by(rankings, rule)
    some = max(sum(part.total > 0 for part in rankings.parts), 1) / max(len(rankings.parts), 1)
    weights.intervals = [interval._replace(scale=interval.scale * some) for interval in weights.intervals]
    return weights


def first_of_the_tied(k: float | None, fraction: float | None) -> Rule:
    def rule(ranking: Ranking) -> Weights:
        found = right_kth(k, fraction)(ranking)
        weights = found.dense()
        flat = weights.flatten()
        first = torch.zeros_like(flat)
        if flat.numel() > 0:
            first[flat.ne(0).long().argmax()] = flat.sum()
        return TensorWeights(first.reshape(weights.shape), found.lowest)

    return rule


def excess_of_both_signs(x: Tensor, smoothing: float) -> Tensor:
    return x


def corner_off_by_half(x: Tensor, smoothing: float) -> Tensor:
    """Rounded off without coming back to the corner far above it."""
    return right_part(x, smoothing) + smoothing / 2


def overflowing(
    losses: Tensor, *, tilt: float, mask: Any = None, sample_weight: Any = None, nan_policy: Any = None
) -> Tensor:
    mass = torch.ones_like(losses) if sample_weight is None else sample_weight
    mass = mass if mask is None else mass * mask
    return ((mass * (tilt * losses).exp()).sum() / mass.sum()).log() / tilt


def one_too_far(line: native.Line, need: float) -> tuple[float, float, float]:
    return right_native_kth(line, need + 1)


def all_alike(grad_output: Tensor) -> Tensor:
    """The gradient of a mean."""
    return torch.full_like(grad_output, float(grad_output.sum()) / max(grad_output.numel(), 1))


def native_slope_of_all(grad_output: Tensor, *of: Any, **given: Any) -> Tensor:
    return right_native_gradient(all_alike(grad_output), *of, **given)


def portable_slope_of_all(grad_output: Tensor, *of: Any, **given: Any) -> Tensor:
    return right_portable_gradient(all_alike(grad_output), *of, **given)


def without_the_tied(line: native.Line, by: Any, losses: Tensor, groups: Any) -> float:
    return right_native_sum(line, [one._replace(end_part=0.0) for one in by], losses, groups)


def all_of_the_tied(line: native.Line, by: Any, out: Tensor, groups: Any, **given: Any) -> None:
    right_native_weights(line, [one._replace(end_part=1.0) for one in by], out, groups, **given)


def from_the_largest_on(line: native.Line, by: Any, losses: Tensor, groups: Any) -> float:
    return right_native_sum(line, [one._replace(start=math.inf, start_part=1.0) for one in by], losses, groups)


def whatever_the_mask(line: native.Line, by: Any, losses: Tensor, groups: Any) -> float:
    scores, mass, _ = line.tensors
    return right_native_sum(native.Line(scores, mass), by, losses, groups)


def blind_to_nan(line: native.Line) -> tuple[float, bool, int]:
    mass, _, wrong = right_native_count(line)
    return mass, False, wrong


VALUE, MASS = "value_is_the_oracles", "scaling_the_mass_changes_nothing_under_fraction"
SLOPE = "gradient_is_a_subgradient"
PORTABLE, NATIVE = "AverageTopKCrossEntropyLoss by torch", "AverageTopKCrossEntropyLoss by native"
MASK, NOBODY = "masked_is_the_same_as_left_out", "nothing_counted_is_a_connected_zero"
RANGED, NEGATIVES, GROUPS = "average_ranked_range", "average_hard_negatives", "average_top_k in groups"
MUTANTS_OF_NATIVE = [
    Mutant(
        "k counts elements, not mass",
        NativeRanking,
        "_kth_largest",
        whole_numbers_of_elements,
        "integer_mass_is_repetition",
    ),
    Mutant("detached zero", NativeWeights, "dot", detached, NOBODY),
    Mutant("weights in float16", NativeWeights, "dot", in_half, "computes_in_float32_at_least"),
    Mutant("0 x inf", NativeWeights, "dot", zero_times_infinity, "unselected_infinity_costs_nothing"),
    Mutant("0 x NaN", NativeWeights, "dot", zero_times_infinity, MASK),
    Mutant("mean over all elements", NativeWeights, "dot", mean_over_all, VALUE),
    Mutant("NaN hidden", NativeWeights, "dot", hides_nan, "counted_nan_is_visible_omitted_or_refused"),
    Mutant("fraction of all, not of the counted", aggregate, "rank", share_of_all, MASK),
    Mutant("native: one too far", native, "kth_largest", one_too_far, VALUE),
    Mutant("native: nothing at the threshold", native, "weighted_sum", without_the_tied, VALUE, NATIVE),
    Mutant("native: nothing at the end", native, "weighted_sum", without_the_tied, VALUE),
    Mutant("native: slope of all ties", native, "weights", all_of_the_tied, SLOPE),
    Mutant("native: nothing dropped", native, "weighted_sum", from_the_largest_on, VALUE, RANGED),
    Mutant("native: whatever the mask", native, "weighted_sum", whatever_the_mask, VALUE),
    Mutant("native: NaN not seen", native, "count", blind_to_nan, "counted_nan_is_visible_omitted_or_refused"),
    Mutant("native: slope of all that counts", native, "gradient", native_slope_of_all, SLOPE, NATIVE),
    Mutant(
        "native: large groups say more", NativeGroups, "by", large_native_groups_say_more, VALUE, GROUPS, in_groups=True
    ),
    Mutant(
        "native: empty groups say zero", NativeGroups, "by", empty_native_groups_say_zero, MASK, GROUPS, in_groups=True
    ),
]

MUTANTS = [
    Mutant("k clamped to 1", selection, "requested_mass", clamped, MASS),
    Mutant("k truncated", selection, "requested_mass", truncated, VALUE),
    Mutant("k rounded", selection, "requested_mass", rounded, VALUE),
    Mutant("k in float32", selection, "requested_mass", single, VALUE),
    Mutant("k not bounded by what there is", selection, "requested_mass", unbounded, "everything_is_the_mean"),
    Mutant("ties in index order", aggregate, "top_k", in_index_order, "order_never_matters", composed=True),
    Mutant("-0.0 below 0.0", aggregate, "rank", minus_zero_below_zero, "ties_share_in_proportion_to_their_mass"),
    Mutant("all ties whole", TensorRanking, "_before", all_ties_whole, VALUE, composed=True),
    Mutant("interpolated quantile", tensor_ranking, "kth_largest", by_interpolated_quantile, VALUE, composed=True),
    Mutant("masked as zero", aggregate, "rank", masked_as_zero, MASK),
    Mutant("losses written to", aggregate, "rank", written_to, "inputs_are_never_written_to"),
    Mutant("divided by the counted, not the selected", TensorRanking, "_normalised", scaled_down, VALUE, composed=True),
    Mutant("losses at the threshold kept", aggregate, "above", threshold_included, VALUE, "average_above"),
    Mutant("floor as cap", aggregate, "above", floor_as_cap, VALUE, "average_above"),
    Mutant("mean of nothing", aggregate, "above", mean_of_nothing, NOBODY, "average_above"),
    Mutant("positives mined too", aggregate, "hard_negatives", positives_twice, VALUE, NEGATIVES),
    Mutant("ratio upside down", aggregate, "hard_negatives", ratio_upside_down, VALUE, NEGATIVES),
    Mutant("negatives of the whole batch", aggregate, "rank", across_groups, VALUE, NEGATIVES),
    Mutant("groups forgotten", aggregate, "rank", across_groups, VALUE, GROUPS),
    Mutant("large groups say more", SortedGroups, "_normalised", large_groups_say_more, VALUE, GROUPS),
    Mutant("empty groups say zero", rank, "SortedGroups", EmptyGroupsSayZero, MASK, GROUPS),
    Mutant("first of the tied", aggregate, "kth", first_of_the_tied, "order_never_matters", "kth_largest"),
    Mutant("excess of both signs", dual, "_positive_part", excess_of_both_signs, VALUE, "average_top_k_dual"),
    Mutant("corner off", dual, "_positive_part", corner_off_by_half, VALUE, "average_top_k_dual smoothed"),
    Mutant("kernel: NaN times 0", portable, "_is_finite", lambda _: True, MASK, PORTABLE),
    Mutant("kernel: slope of all that counts", portable, "gradient", portable_slope_of_all, SLOPE, PORTABLE),
    *([] if not native.is_available() else MUTANTS_OF_NATIVE),
    Mutant("tilted overflows", topkloss, "average_tilted", overflowing, VALUE, "average_tilted"),
]


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_mutant_is_rejected(mutant: Mutant) -> None:
    subject = BY_NAME[mutant.subject]

    @settings(derandomize=True, database=None, max_examples=3000, phases=[Phase.generate], report_multiple_bugs=False)
    @given(batch=batches())
    def holds(batch: Batch) -> None:
        LAWS[mutant.law](subject, batch)

    kernels = mock.Mock(is_available=lambda: False) if mutant.composed else native
    with (
        mock.patch.object(rank, "native", kernels),
        mock.patch.object(groups, "LONG", 1 if mutant.in_groups else groups.LONG),
        mock.patch.object(mutant.where, mutant.attribute, mutant.wrong),
        pytest.raises(AssertionError),
    ):
        holds()


def test_ranking_by_the_smoothed_loss_is_rejected() -> None:
    def smoothed(*args: Any, **given: Any) -> tuple[Tensor, Tensor]:
        losses, _ = right_loss(*args, **given)
        return losses, losses.detach()

    with mock.patch.object(operators, "cross_entropy", smoothed), pytest.raises(AssertionError):
        value_is_the_smoothed_loss_of_the_hardest_by_plain_loss()
