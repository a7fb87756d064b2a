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
from topkloss.aggregates import dual as soft
from topkloss.base.tensors import Scalar, smaller
from topkloss.kernels import native, portable
from topkloss.losses import cross_entropy as right_loss
from topkloss.losses import elements
from topkloss.ranking import groups, selection, stretch
from topkloss.ranking import ranking as counted
from topkloss.ranking.groups import Places
from topkloss.ranking.ranking import Counted, Line
from topkloss.ranking.selection import ranked_weights
from topkloss.ranking.stretch import Cut, Weights, in_full
from topkloss.ranking.stretch import weighted_sum as right_sum
from topkloss.ranking.threshold import KthLargest, _around

BY_NAME = {subject.name: subject for subject in SUBJECTS}


@dataclass(frozen=True)
class Mutant:
    """One mistake: what it replaces, by what, and the law that must reject it; `composed`: without native kernels."""

    name: str
    where: Any
    attribute: str
    wrong: Callable[..., Any]
    law: str
    subject: str = "average_top_k"
    composed: bool = False


right_cut, right_count = stretch.cut, counted.count
right_spread, right_above, right_kth = stretch.spread, selection.weights_above, selection.kth_weights
right_weights_by, right_native_kth = portable.weights_by, native.kth_largest
right_native_gradient, right_native_sum = native.gradient, native.weighted_sum
right_native_count, right_native_weights = native.count, native.weights
right_negatives, right_places, right_part = selection.hard_negative_weights, groups.places, soft._positive_part


def right_capacity(total: Scalar, count: float | None, fraction: float | None) -> Tensor:
    return torch.as_tensor(stretch.capacity(total, count, fraction), dtype=torch.float64)


def like(wanted: Tensor, total: Scalar) -> Scalar:
    return wanted if isinstance(total, Tensor) else float(wanted)


def clamped(total: Scalar, count: float | None, fraction: float | None) -> Scalar:
    return like(right_capacity(total, count, fraction).clamp(min=1).clamp(max=total), total)


def truncated(total: Scalar, count: float | None, fraction: float | None) -> Scalar:
    return like(right_capacity(total, count, fraction).floor().clamp(min=1), total)


def rounded(total: Scalar, count: float | None, fraction: float | None) -> Scalar:
    return like(right_capacity(total, count, fraction).round().clamp(min=1), total)


def single(total: Scalar, count: float | None, fraction: float | None) -> Scalar:
    whole = torch.as_tensor(total, dtype=torch.float64)
    number = torch.tensor(count, dtype=torch.float32) if fraction is None else torch.tensor(fraction) * whole.float()
    return like(torch.minimum(number.double(), whole), total)


def unbounded(total: Scalar, count: float | None, fraction: float | None) -> Scalar:
    return total * (fraction or 0.0) if count is None else like(torch.tensor(count, dtype=torch.float64), total)


def in_index_order(line: Counted | Line, *, k: float | None, fraction: float | None) -> tuple[Tensor, Scalar]:
    """Whoever comes first among equals is taken whole."""
    counted = line.in_tensors()
    wanted = right_capacity(counted.total, k, fraction)
    end = right_cut(counted, wanted)
    mass = torch.ones_like(counted.scores, dtype=torch.float64) if counted.mass is None else counted.mass
    mass = (mass if counted.mask is None else mass * counted.mask).flatten()
    order = counted.scores.flatten().argsort(descending=True, stable=True)
    after = mass[order].cumsum(0)
    taken = ((wanted - (after - mass[order])) / mass[order].clamp(min=1e-9)).clamp(0, 1) * (mass[order] > 0)
    shares = torch.empty_like(taken).scatter(0, order, taken).reshape(counted.scores.shape)
    lowest = torch.as_tensor(end.score)
    return right_spread(counted, shares.to(counted.scores.dtype), wanted, lowest), lowest


def minus_zero_below_zero(losses: Tensor, **given: Any) -> Counted:
    """The order of the float bits."""
    counted = right_count(losses, **given)
    minus = (counted.scores == 0) & counted.scores.signbit()
    return counted._replace(scores=counted.scores.masked_fill(minus, -1e-30))


def all_ties_whole(counted: Counted, end: Cut, start: Cut | None = None) -> Tensor:
    return (counted.scores >= end.score).to(counted.dtype)


def whole_numbers_of_elements(counted: Counted | Line, wanted: Scalar) -> Cut:
    """`k` counts elements, whatever their mass."""
    if isinstance(counted, Line):
        scores, _, mask = counted.memory.tensors
        return right_cut(counted._replace(memory=native.line(scores, None, mask)), wanted)
    return right_cut(counted._replace(mass=None), wanted)


def by_interpolated_quantile(scores: Tensor, mass: Tensor | None, wanted: Tensor) -> KthLargest:
    finite = scores[scores.isfinite()]
    score = torch.tensor(-torch.inf, dtype=scores.dtype)
    if finite.numel() > 0:
        score = torch.quantile(finite, (1 - wanted / finite.numel()).clamp(0, 1).to(scores.dtype))
    return _around(score, scores, mass)


def detached(given: Weights, losses: Tensor) -> Tensor:
    weights = in_full(given)
    return right_sum(given, losses) if bool((weights != 0).any()) else torch.zeros((), dtype=weights.dtype)


def in_half(given: Weights, losses: Tensor) -> Tensor:
    weights = in_full(given)
    return right_sum(weights.to(losses.dtype), losses)


def zero_times_infinity(given: Weights, losses: Tensor) -> Tensor:
    weights = in_full(given)
    return (weights * losses).sum()


def mean_over_all(given: Weights, losses: Tensor) -> Tensor:
    weights = in_full(given)
    kept = weights != 0
    return losses.where(kept, 0.0).to(weights.dtype).sum() / max(losses.numel(), 1)


def hides_nan(given: Weights, losses: Tensor) -> Tensor:
    weights = in_full(given)
    return right_sum(weights.nan_to_num(), losses.nan_to_num(posinf=torch.inf, neginf=-torch.inf))


def masked_as_zero(losses: Tensor, *, mask: Tensor | None = None, **given: Any) -> Counted:
    """An ignored loss is a loss of 0."""
    losses = losses if mask is None else losses.masked_fill(~mask, 0)
    return right_count(losses, **given)


def share_of_all(losses: Tensor, **given: Any) -> Counted:
    """`fraction` is of all elements, counted or not."""
    return right_count(losses, **given)._replace(total=torch.tensor(float(losses.numel()), dtype=torch.float64))


def written_to(losses: Tensor, *, mask: Tensor | None = None, **given: Any) -> Counted:
    if mask is not None:
        losses.detach().masked_fill_(~mask, 0)
    return right_count(losses, mask=mask, **given)


def scaled_down(counted: Counted, chosen: Tensor, selected_mass: Tensor, lowest: Tensor) -> Tensor:
    """An OHEM that divides by the number of all pixels."""
    return right_spread(counted, chosen, counted.total, lowest)


# Mining and groups


def threshold_included(counted: Line, *, threshold: float, **given: Any) -> tuple[Weights, Scalar]:
    return right_above(counted, threshold=math.nextafter(threshold, -math.inf), **given)


def floor_as_cap(counted: Line, *, min_kept: float | None, min_fraction: float | None, threshold: float) -> Any:
    """The least that is kept is also the most."""
    return ranked_weights(counted, k=min_kept, fraction=min_fraction)


def mean_of_nothing(counted: Line, **given: Any) -> tuple[Weights, Scalar]:
    """Without a floor where none is above: 0 / 0."""
    found, lowest = right_above(counted, **given)
    weights = in_full(found)
    return weights / weights.sum(), lowest


def positives_twice(counted: Counted | Line, *, ratio: float, min_negatives: float) -> tuple[Weights, Scalar]:
    """The positives are among the mined ones too."""
    mass = stretch.above(counted, torch.finfo(counted.scores.dtype).max)
    return selection.largest(counted, smaller(ratio * mass, counted.total))


def ratio_upside_down(counted: Counted | Line, *, ratio: float, min_negatives: float) -> tuple[Weights, Scalar]:
    return right_negatives(counted, ratio=1 / ratio, min_negatives=min_negatives)


def across_groups(losses: Tensor, *, groups: Tensor | None = None, **given: Any) -> Counted:
    """The hardest of the batch in place of those of each image."""
    return right_count(losses, **given)


def large_groups_say_more(counted: Counted, chosen: Tensor, selected_mass: Tensor, lowest: Tensor) -> Tensor:
    """The mean over all that was selected, not over the groups."""
    assert counted.places is not None
    mass = counted.each_mass() * chosen
    return (mass / mass.sum().clamp(min=1e-300)).to(counted.dtype)


def empty_groups_say_zero(scores: Tensor, mask: Tensor | None, mass: Tensor | None, groups: Tensor) -> Places:
    """Groups in which nothing counts are counted."""
    at = right_places(scores, mask, mass, groups)
    return at._replace(number=torch.tensor(float(groups.unique().numel())).double().clamp(min=1))


def first_of_the_tied(counted: Line, *, k: float | None, fraction: float | None) -> tuple[Weights, Scalar]:
    found, score = right_kth(counted, k=k, fraction=fraction)
    weights = in_full(found)
    flat = weights.flatten()
    first = torch.zeros_like(flat)
    if flat.numel() > 0:
        first[flat.ne(0).long().argmax()] = flat.sum()
    return first.reshape(weights.shape), score


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


def all_at_the_threshold_whole(rule: Tensor, scores: Tensor, mass: Tensor | None) -> Tensor:
    return right_weights_by(torch.stack([rule[0], torch.ones_like(rule[1]), rule[2]]), scores, mass)


def one_too_far(line: native.Line, need: float) -> tuple[float, float, float]:
    return right_native_kth(line, need + 1)


def all_that_counts(logits: Tensor, targets: Tensor, line: native.Line, by: native.Stretch, **given: Any) -> None:
    right_native_gradient(logits, targets, line, by._replace(end=-1.0), **given)


def without_the_tied(line: native.Line, by: native.Stretch, losses: Tensor) -> float:
    return right_native_sum(line, by._replace(end_part=0.0), losses)


def all_of_the_tied(line: native.Line, by: native.Stretch, out: Tensor) -> None:
    right_native_weights(line, by._replace(end_part=1.0), out)


def from_the_largest_on(line: native.Line, by: native.Stretch, losses: Tensor) -> float:
    return right_native_sum(line, by._replace(start=math.inf, start_part=1.0), losses)


def whatever_the_mask(line: native.Line, by: native.Stretch, losses: Tensor) -> float:
    scores, mass, _ = line.tensors
    return right_native_sum(native.line(scores, mass), by, losses)


def blind_to_nan(line: native.Line) -> tuple[float, bool, int]:
    mass, _, wrong = right_native_count(line)
    return mass, False, wrong


VALUE, MASS = "value_is_the_oracles", "scaling_the_mass_changes_nothing_under_fraction"
SLOPE = "gradient_is_a_subgradient"
PORTABLE, NATIVE = "AverageTopKCrossEntropyLoss by torch", "AverageTopKCrossEntropyLoss by native"
MASK, NOBODY = "masked_is_the_same_as_left_out", "nothing_counted_is_a_connected_zero"
RANGED, NEGATIVES = "average_ranked_range", "average_hard_negatives"
MUTANTS_OF_NATIVE = [
    Mutant("native: one too far", native, "kth_largest", one_too_far, VALUE),
    Mutant("native: nothing at the threshold", native, "weighted_sum", without_the_tied, VALUE, NATIVE),
    Mutant("native: nothing at the end", native, "weighted_sum", without_the_tied, VALUE),
    Mutant("native: slope of all ties", native, "weights", all_of_the_tied, SLOPE),
    Mutant("native: nothing dropped", native, "weighted_sum", from_the_largest_on, VALUE, RANGED),
    Mutant("native: whatever the mask", native, "weighted_sum", whatever_the_mask, VALUE),
    Mutant("native: NaN not seen", native, "count", blind_to_nan, "counted_nan_is_visible_omitted_or_refused"),
    Mutant("native: slope of all that counts", native, "gradient", all_that_counts, SLOPE, NATIVE),
]

MUTANTS = [
    Mutant("k clamped to 1", selection, "capacity", clamped, MASS),
    Mutant("k truncated", selection, "capacity", truncated, VALUE),
    Mutant("k rounded", selection, "capacity", rounded, VALUE),
    Mutant("k in float32", selection, "capacity", single, VALUE),
    Mutant("k not bounded by what there is", selection, "capacity", unbounded, "everything_is_the_mean"),
    Mutant("ties in index order", aggregate, "ranked_weights", in_index_order, "order_never_matters"),
    Mutant("-0.0 below 0.0", aggregate, "line", minus_zero_below_zero, "ties_share_in_proportion_to_their_mass"),
    Mutant("all ties whole", stretch, "share", all_ties_whole, VALUE, composed=True),
    Mutant("k counts elements, not mass", selection, "cut", whole_numbers_of_elements, "integer_mass_is_repetition"),
    Mutant("interpolated quantile", stretch, "kth_largest", by_interpolated_quantile, VALUE, composed=True),
    Mutant("detached zero", aggregate, "weighted_sum", detached, NOBODY),
    Mutant("weights in float16", aggregate, "weighted_sum", in_half, "computes_in_float32_at_least"),
    Mutant("0 x inf", aggregate, "weighted_sum", zero_times_infinity, "unselected_infinity_costs_nothing"),
    Mutant("0 x NaN", aggregate, "weighted_sum", zero_times_infinity, MASK),
    Mutant("mean over all elements", aggregate, "weighted_sum", mean_over_all, VALUE),
    Mutant("NaN hidden", aggregate, "weighted_sum", hides_nan, "counted_nan_is_visible_omitted_or_refused"),
    Mutant("masked as zero", aggregate, "line", masked_as_zero, MASK),
    Mutant("fraction of all, not of the counted", aggregate, "line", share_of_all, MASK),
    Mutant("losses written to", aggregate, "line", written_to, "inputs_are_never_written_to"),
    Mutant("divided by the counted, not the selected", stretch, "spread", scaled_down, VALUE, composed=True),
    Mutant("losses at the threshold kept", aggregate, "weights_above", threshold_included, VALUE, "average_above"),
    Mutant("floor as cap", aggregate, "weights_above", floor_as_cap, VALUE, "average_above"),
    Mutant("mean of nothing", aggregate, "weights_above", mean_of_nothing, NOBODY, "average_above"),
    Mutant("positives mined too", aggregate, "hard_negative_weights", positives_twice, VALUE, NEGATIVES),
    Mutant("ratio upside down", aggregate, "hard_negative_weights", ratio_upside_down, VALUE, NEGATIVES),
    Mutant("negatives of the whole batch", aggregate, "line", across_groups, VALUE, NEGATIVES),
    Mutant("groups forgotten", aggregate, "line", across_groups, VALUE, "average_top_k in groups"),
    Mutant("large groups say more", selection, "spread", large_groups_say_more, VALUE, "average_top_k in groups"),
    Mutant("empty groups say zero", counted, "places", empty_groups_say_zero, MASK, "average_top_k in groups"),
    Mutant("first of the tied", aggregate, "kth_weights", first_of_the_tied, "order_never_matters", "kth_largest"),
    Mutant("excess of both signs", soft, "_positive_part", excess_of_both_signs, VALUE, "average_top_k_dual"),
    Mutant("corner off", soft, "_positive_part", corner_off_by_half, VALUE, "average_top_k_dual smoothed"),
    Mutant("kernel: all ties whole", portable, "weights_by", all_at_the_threshold_whole, VALUE, PORTABLE),
    Mutant("kernel: slope of all ties", portable, "weights_by", all_at_the_threshold_whole, SLOPE, PORTABLE),
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
        mock.patch.object(counted, "native", kernels),
        mock.patch.object(mutant.where, mutant.attribute, mutant.wrong),
        pytest.raises(AssertionError),
    ):
        holds()


def test_ranking_by_the_smoothed_loss_is_rejected() -> None:
    def smoothed(*args: Any, **given: Any) -> tuple[Tensor, Tensor]:
        losses, _ = right_loss(*args, **given)
        return losses, losses.detach()

    composed = mock.patch.object(topkloss.criteria.cross_entropy, "native_serves", return_value=False)
    with composed, mock.patch.object(elements, "cross_entropy", smoothed), pytest.raises(AssertionError):
        value_is_the_smoothed_loss_of_the_hardest_by_plain_loss()
