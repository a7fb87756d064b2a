"""Threshold and weights: at every size, against a linear program, at the edges of counting."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable
from dataclasses import FrozenInstanceError
from fractions import Fraction
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linprog
from torch import Tensor

from tests.laws import Batch, batches
from topkloss import (
    Selection,
    average_top_k,
    maximum,
    reference,
    topk_select,
    topk_threshold,
    topk_weights,
)
from topkloss.kernels import native
from topkloss.ranking import rank, threshold
from topkloss.ranking.threshold import SLACK, _by_bisection, _by_pivots, _by_sorting

# The threshold at every size: three ways and torch.sort


def stripes(n: int) -> Tensor:
    return (torch.arange(n) % 7 < 2).float()


KINDS: dict[str, Callable[[int], Tensor]] = {
    "normal": lambda n: torch.randn(n),
    "exponential": lambda n: torch.empty(n).exponential_(),
    "heavy tail": lambda n: torch.empty(n).cauchy_(),
    "constant": lambda n: torch.full((n,), 3.0),
    "two values": lambda n: (torch.rand(n) > 0.3).float(),
    "stripes": stripes,
    "mostly zero": lambda n: torch.relu(torch.randn(n) - 2),
    "sorted": lambda n: torch.randn(n).sort().values,
    "descending": lambda n: torch.randn(n).sort(descending=True).values,
    "infinities": lambda n: torch.randn(n).masked_fill(torch.rand(n) > 0.5, math.inf),
    "one giant": lambda n: torch.cat([torch.randn(n - 1), torch.tensor([1e30])]),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n", [1, 2, 100, 19_999, 20_001, 100_003, 500_000])
@pytest.mark.parametrize("kind", KINDS)
def test_all_ways_find_the_kth_largest(kind: str, n: int, dtype: torch.dtype) -> None:
    torch.manual_seed(n)
    scores = KINDS[kind](n).to(dtype)
    ordered = scores.sort(descending=True).values
    for fraction in (1e-9, 0.01, 0.5, 0.7, 1.0):
        wanted = max(fraction * n, 0.5)
        expected = ordered[max(math.ceil(wanted * (1 - SLACK)), 1) - 1]
        need = torch.tensor(wanted * (1 - SLACK), dtype=torch.float64)
        found = _by_pivots(scores, None, float(need))
        assert found.score == expected
        assert found.above == (scores > expected).sum()
        assert found.tied == (scores == expected).sum()
        assert _by_sorting(scores, None, need) == expected
        if n <= 100_003:
            assert _by_bisection(scores, None, need) == expected


@pytest.mark.parametrize("n", [100, 100_003])
@pytest.mark.parametrize("kind", KINDS)
def test_all_ways_agree_on_the_kth_largest_by_mass(kind: str, n: int) -> None:
    torch.manual_seed(n)
    scores = KINDS[kind](n)
    mass = torch.rand(n, dtype=torch.float64) * (torch.rand(n) > 0.2)
    mass[0] = n / 50  # one heavy element
    for fraction in (1e-6, 0.01, 0.5, 0.99, 1.0):
        need = mass.sum() * fraction * (1 - SLACK)
        found, above, tied = _by_pivots(scores, mass, float(need))
        assert found == _by_sorting(scores, mass, need) == _by_bisection(scores, mass, need)
        slack = 1e-9 * float(mass.sum())
        assert mass[scores >= found].sum() >= need - slack
        assert mass[scores > found].sum() <= need + slack
        assert above.item() == pytest.approx(float(mass[scores > found].sum()), abs=slack)
        assert tied.item() == pytest.approx(float(mass[scores == found].sum()), abs=slack)


def test_pivots_narrow_down_rather_than_sort() -> None:
    """A million losses are never sorted, nor handed to kthvalue, whole."""
    scores, sizes = torch.randn(1_000_000), []
    with mock.patch.object(threshold, "_bracket", wraps=threshold._bracket) as bracket:
        for wanted in (1.0, 1e5, 5e5, 999_999.0):
            _by_pivots(scores, None, wanted)
        sizes = [call.args[0].numel() for call in bracket.call_args_list]
    assert sum(sizes) < 4 * 1.2 * 1_000_000
    assert sizes.count(1_000_000) == 4


# A second oracle: the weights solve a linear program


@given(batch=batches())
def test_value_is_the_optimum_of_the_linear_program(batch: Batch) -> None:
    """max <w, l> over 0 <= w_i <= s_i / k, sum w = 1, by scipy."""
    batch = batch.calm()
    if not batch.counts.any():
        return
    losses, mass = batch.losses.flatten().numpy(), batch.mass.flatten().numpy()
    scale = max(1.0, float(np.abs(losses).max()))
    optimum = linprog(
        -losses / scale, A_eq=np.ones((1, len(losses))), b_eq=[1.0], bounds=[(0, m / batch.k) for m in mass]
    )
    assert optimum.success
    value = average_top_k(batch.losses, mask=batch.mask, sample_weight=batch.sample_weight, **batch.asked)  # type: ignore[arg-type]
    assert value.item() / scale == pytest.approx(-optimum.fun, abs=1e-7)


# The public functions against the reference


@given(batch=batches())
def test_weights_and_threshold_are_the_oracles(batch: Batch) -> None:
    given_ = {"mask": batch.mask, "sample_weight": batch.sample_weight, **batch.asked}
    flat = {name: value.flatten().tolist() if isinstance(value, Tensor) else value for name, value in given_.items()}
    losses = batch.losses.double().flatten().tolist()
    weights = topk_weights(batch.losses, **given_)  # type: ignore[arg-type]
    assert weights.shape == batch.losses.shape
    assert not weights.requires_grad
    assert weights.flatten().tolist() == pytest.approx(reference.topk_weights(losses, **flat), abs=1e-6, rel=1e-6)  # type: ignore[arg-type]
    threshold = topk_threshold(batch.losses, **given_)  # type: ignore[arg-type]
    assert threshold.item() == reference.topk_threshold(losses, **flat)  # type: ignore[arg-type]


@given(
    batch=batches(),
    drop=st.fixed_dictionaries({"drop": st.floats(0, 20)})
    | st.fixed_dictionaries({"drop_fraction": st.floats(0, 0.99)}),
    seed=st.integers(0, 9),
)
def test_selection_is_the_oracles_with_drop_and_scores(batch: Batch, drop: dict[str, float], seed: int) -> None:
    scores = torch.randint(0, 5, batch.losses.shape, generator=torch.Generator().manual_seed(seed)).double()
    given_ = {"mask": batch.mask, "sample_weight": batch.sample_weight, "scores": scores, **batch.asked, **drop}
    flat = {name: value.flatten().tolist() if isinstance(value, Tensor) else value for name, value in given_.items()}
    selection = topk_select(batch.calm().losses, **given_)  # type: ignore[arg-type]
    weights = reference.topk_weights(batch.calm().losses.flatten().tolist(), **flat)  # type: ignore[arg-type]
    assert selection.weights.flatten().tolist() == pytest.approx(weights, abs=1e-8, rel=1e-8)
    assert torch.equal(selection.kept, selection.weights != 0)
    assert selection.counted_mass.item() == pytest.approx(float(batch.mass.sum()))


def test_selection_says_all_that_a_monitor_reads() -> None:
    losses = torch.tensor([3.0, math.nan, 1.0, 2.0, 5.0], requires_grad=True)
    mask = torch.tensor([True, True, True, True, False])
    selection = topk_select(losses, k=2, mask=mask, nan_policy="omit")
    assert isinstance(selection, Selection)
    assert selection.threshold == 2
    assert selection.weights.tolist() == [0.5, 0, 0, 0.5, 0]
    assert selection.kept.tolist() == [True, False, False, True, False]
    assert selection.value == 2.5
    assert selection.counted_mass == 3
    assert selection.counted_mass.dtype == torch.float64
    assert selection.omitted == 1
    assert selection.average == 2
    assert selection.mass.tolist() == [1, 0, 1, 1, 0]
    assert not any(t.requires_grad for t in (selection.threshold, selection.weights, selection.average))
    (gradient,) = torch.autograd.grad(selection.value, losses)
    assert torch.equal(gradient, selection.weights)
    with pytest.raises(AttributeError):
        selection.value = losses  # type: ignore[misc]


NAN, FINE = [math.nan, 2.0, 1.0], [3.0, 2.0, 1.0]


@pytest.mark.parametrize(("losses", "scores"), [(NAN, FINE), (FINE, NAN), (NAN, NAN)])
def test_a_nan_in_losses_or_scores_is_a_nan(losses: list[float], scores: list[float]) -> None:
    """Where only the loss is NaN and it is not even selected, too."""
    given_ = {"k": 1.0, "scores": -torch.tensor(scores)}
    assert average_top_k(torch.tensor(losses), **given_).isnan()  # type: ignore[arg-type]
    selection = topk_select(torch.tensor(losses), nan_policy="omit", **given_)  # type: ignore[arg-type]
    assert selection.omitted == 1
    assert selection.value == 1
    with pytest.raises(ValueError, match="NaN"):
        average_top_k(torch.tensor(losses), nan_policy="raise", **given_)  # type: ignore[arg-type]


def test_a_nan_is_on_all_that_counts_and_nowhere_else() -> None:
    selection = topk_select(torch.tensor([1.0, math.nan, 5.0]), k=1, mask=torch.tensor([True, True, False]))
    assert selection.weights.tolist() == pytest.approx([math.nan, math.nan, 0], nan_ok=True)
    assert selection.kept.tolist() == [True, True, False]


def test_a_word_read_from_a_file_is_that_word() -> None:
    losses = torch.tensor([1.0, math.nan, 3.0])
    omit, raise_ = ("".join(letters) for letters in (["o", "mit"], ["r", "aise"]))
    assert average_top_k(losses, k=1, nan_policy=omit) == 3  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="must not be NaN"):
        average_top_k(losses, k=1, nan_policy=raise_)  # type: ignore[arg-type]


@pytest.mark.parametrize("scored", [False, True])
@pytest.mark.parametrize("beside", [{}, {"mask": torch.arange(12).reshape(2, 6).t() != 11}])
@pytest.mark.parametrize("weighted", [False, True])
def test_a_nan_is_omitted_in_any_layout(scored: bool, beside: dict[str, Any], weighted: bool) -> None:
    losses = torch.arange(12.0).reshape(2, 6).t()  # beside what is dense it lies in another order
    losses[4, 1] = math.nan
    assert not losses.is_contiguous()
    beside = beside | ({"scores": losses.nan_to_num(nan=99.0)} if scored else {})
    beside = beside | ({"sample_weight": torch.full((6, 2), 0.5)} if weighted else {})
    ours = topk_select(losses, k=2, nan_policy="omit", **beside)
    dense = {name: tensor.contiguous() for name, tensor in beside.items()}
    theirs = topk_select(losses.contiguous(), k=2, nan_policy="omit", **dense)
    assert ours.omitted == theirs.omitted == 1
    assert ours.value == theirs.value
    assert torch.equal(ours.weights, theirs.weights)
    assert ours.weights[4, 1] == 0


def test_a_masked_nan_is_not_omitted_but_masked() -> None:
    losses = torch.tensor([math.nan, 1.0])
    assert topk_select(losses, k=1, mask=torch.tensor([False, True]), nan_policy="omit").omitted == 0


def test_thresholds_of_nothing_and_of_nan() -> None:
    assert topk_threshold(torch.zeros(3), k=1, mask=torch.zeros(3, dtype=torch.bool)) == -math.inf
    assert topk_threshold(torch.zeros(0), k=1) == -math.inf
    assert topk_threshold(torch.tensor([1.0, math.nan]), k=1).isnan()


# Counting (law 2)


@pytest.mark.parametrize(
    ("fraction", "n", "kept"), [(0.29, 100, 29), (0.35, 10, 4), (0.7, 10, 7), (0.1, 30, 3), (1 / 3, 3, 1)]
)
def test_a_share_of_a_count_is_snapped_to_the_integer(fraction: float, n: int, kept: int) -> None:
    """0.29 * 100 is 28.999999999999996 in floats."""
    selection = topk_select(torch.arange(n, dtype=torch.float32), fraction=fraction)
    assert selection.kept.sum() == kept
    if kept / n == pytest.approx(fraction):
        assert selection.weights.max() == torch.tensor(1.0 / kept)


def test_a_count_within_a_billionth_of_an_integer_is_that_integer() -> None:
    losses = torch.arange(100, dtype=torch.float64)
    for near in (29 * (1 - 5e-10), 29, 29 * (1 + 5e-10)):
        weights = topk_weights(losses, k=near)
        assert (weights != 0).sum() == 29
        assert weights.max().item() == 1 / 29
    assert (topk_weights(losses, k=29 * (1 + 2e-9)) != 0).sum() == 30
    assert topk_weights(losses, k=29 * (1 - 2e-9)).max().item() > 1 / 29


def test_all_of_a_mass_near_an_integer_is_all_of_it() -> None:
    mass = torch.tensor([1.0, 1.0, 1.0 + 3e-10], dtype=torch.float64)
    weights = topk_weights(torch.arange(3.0, dtype=torch.float64), fraction=1, sample_weight=mass)
    assert weights.tolist() == pytest.approx((mass / mass.sum()).tolist(), abs=1e-15)


def test_a_share_that_is_no_integer_is_not_rounded() -> None:
    weights = topk_weights(torch.arange(10, dtype=torch.float64), fraction=0.35)
    assert weights.tolist() == pytest.approx([0] * 6 + [0.5 / 3.5] + [1 / 3.5] * 3)


def test_counts_beyond_the_integers_of_float32() -> None:
    n = 2**24 + 3
    losses = torch.zeros(()).expand(n)
    assert topk_select(losses, k=1, mask=torch.ones((), dtype=torch.bool).expand(n)).counted_mass == n
    first = torch.arange(n) > 0
    assert topk_select(losses, fraction=1, mask=first).counted_mass == n - 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_weights_are_not_lost(dtype: torch.dtype) -> None:
    """1/k of a large k is subnormal, then 0, in float16."""
    weights = topk_weights(torch.ones(100_000, dtype=dtype), k=90_000)
    assert weights.dtype == torch.float32
    assert weights.double().sum().item() == pytest.approx(1, abs=1e-5)


def test_tiny_and_huge_masses() -> None:
    losses = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    for scale in (1e-300, 1e-30, 1e30, 1e300):
        mass = torch.tensor([1.0, 1.0, 1.0], dtype=torch.float64) * scale
        assert average_top_k(losses, fraction=0.5, sample_weight=mass).item() == pytest.approx(2.5 + 1 / 6)
        middle = topk_select(losses, fraction=1 / 3, drop_fraction=1 / 3, sample_weight=mass)
        assert middle.value.item() == pytest.approx(2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("asked", [{"k": 1e-39}, {"k": 5e-324}, {"fraction": 1e-50}, {"k": 1e-39, "drop": 1}])
def test_next_to_nothing_is_the_largest(asked: dict[str, float], dtype: torch.dtype) -> None:
    selection = topk_select(torch.tensor([3.0, 1.0, 2.0, 5.0], dtype=dtype), **asked)  # type: ignore[arg-type]
    expected = [1, 0, 0, 0] if "drop" in asked else [0, 0, 0, 1]
    assert selection.weights.tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("drop", [None, 0.1])
def test_rounding_never_keeps_what_lies_below(drop: float | None) -> None:
    losses, mass = torch.arange(12.0, dtype=torch.float64), torch.full((12,), 0.1, dtype=torch.float64)
    selection = topk_select(losses, k=0.3 * (1 + 5e-13), drop=drop, sample_weight=mass)
    assert selection.kept.sum() == 3
    assert (selection.weights >= 0).all()


def test_the_gradient_of_an_infinite_maximum_is_on_it_alone() -> None:
    for values, expected in (([1.0, math.inf, 5.0], [0, 1, 0]), ([-math.inf, -math.inf, 5.0], [0.5, 0.5, 0])):
        losses = torch.tensor(values, requires_grad=True)
        (gradient,) = torch.autograd.grad(maximum(losses, mask=torch.tensor([True, True, False])), losses)
        assert gradient.tolist() == expected


def test_a_thin_range_of_many_ties() -> None:
    selection = topk_select(torch.ones(1_000_000), k=1e-3, drop=0.25)
    assert selection.weights.double().sum().item() == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize(("n", "k"), [(1_000, 1e-4), (1_000_000, 0.1), (1_000_000, 1e-3)])
def test_a_thin_rest_of_many_ties_keeps_its_precision(n: int, k: float) -> None:
    selection = topk_select(torch.ones(n, dtype=torch.float64), k=k, drop=n - k)
    assert selection.weights.sum().item() == pytest.approx(1, abs=1e-12)


def test_rounding_leaves_nothing_behind_a_drop_of_all() -> None:
    """A sum of twelve tenths is 1.2 but for the last digit."""
    losses, mass = torch.arange(1.0, 13.0, dtype=torch.float64), torch.full((12,), 0.1, dtype=torch.float64)
    for drop in (1.2, float(mass.sum()), 12 * 0.1):
        selection = topk_select(losses, k=1, drop=drop, sample_weight=mass)
        assert (selection.weights == 0).all()
        assert selection.value == 0


def test_no_rank_is_lost_of_a_hundred_million() -> None:
    """Ones are counted without rounding, so nothing is allowed for it."""
    for k in (1.0, 9e7, 1e8):
        assert math.ceil(threshold.needed(k, None)) == k
    assert math.ceil(threshold.needed(1e6, torch.full((1_000_000,), 0.1, dtype=torch.float64))) == 1e6


def test_rounding_of_many_masses_does_not_move_the_threshold() -> None:
    losses = torch.arange(2_000_000).float()
    for mass in (0.1, 1.0):
        given_ = {"fraction": 0.9, "sample_weight": torch.full((2_000_000,), mass, dtype=torch.float64)}
        assert topk_threshold(losses, **given_) == 200_000  # type: ignore[arg-type]
        assert torch.vmap(lambda x: topk_threshold(x, **given_))(losses[None]) == 200_000  # type: ignore[arg-type]  # noqa: B023


def test_masses_whose_sum_overflows_are_not_hidden() -> None:
    mass = torch.full((2,), 1e308, dtype=torch.float64)
    assert average_top_k(torch.tensor([1.0, 2.0]), k=1, sample_weight=mass).isnan()
    losses, mass = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1e308, 1e308, 1.0], dtype=torch.float64)
    huge = torch.tensor([True, True, False])
    assert average_top_k(losses, k=1, sample_weight=mass, mask=huge).isnan()
    assert average_top_k(losses, k=1, sample_weight=mass, mask=~huge) == 3


def test_precise_losses_keep_their_precision_under_coarse_scores() -> None:
    losses = torch.ones(3, dtype=torch.float64)
    for dtype in (torch.float16, torch.float32):
        weights = topk_weights(losses, k=1, scores=losses.to(dtype))
        assert weights.sum().item() == pytest.approx(1, abs=1e-15)


def test_selections_are_compared_by_identity_and_not_changed() -> None:
    selection = topk_select(torch.tensor([1.0, 2.0]), k=1)
    with pytest.raises(FrozenInstanceError):
        selection.value = torch.tensor(0.0)  # type: ignore[misc]
    same = selection
    assert selection == same
    assert selection != topk_select(torch.tensor([1.0, 2.0]), k=1)


def test_another_default_device_does_not_matter() -> None:
    losses = torch.ones(30_000)
    torch.set_default_device("meta")
    try:
        value = average_top_k(losses, k=2)
    finally:
        torch.set_default_device(None)
    assert value.item() == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("k", [Fraction(2, 1), np.float32(2.0), np.int64(2), 2, 2.0])
def test_numbers_of_other_types_are_numbers(k: float) -> None:
    assert average_top_k(torch.tensor([1.0, 2.0, 3.0]), k=k) == 2.5
    assert average_top_k(torch.tensor([1.0, 2.0, 3.0, 4.0]), fraction=k / 4) == 3.5


def test_a_thin_slice_of_many_ties_is_not_lost() -> None:
    """Half a million equal losses are dropped and one is averaged: a millionth of each, not a rounded difference."""
    selection = topk_select(torch.full((1_000_000,), 3.0), k=1, drop=500_000)
    assert selection.weights.double().sum().item() == pytest.approx(1, abs=1e-6)
    assert selection.value.item() == pytest.approx(3, abs=1e-5)


# Layout


def test_shape_and_strides_never_matter() -> None:
    torch.manual_seed(0)
    losses = torch.randn(6, 8)
    expected = average_top_k(losses.flatten(), k=7.5)
    for view in (losses.t(), losses.reshape(2, 3, 8).movedim(0, 2), losses.flip(0), losses.unsqueeze(0)):
        assert average_top_k(view, k=7.5) == expected
    strided = torch.randn(12, 8)[::2]
    assert average_top_k(strided, k=3) == average_top_k(strided.clone(), k=3)
    assert topk_weights(losses.t(), k=7.5).shape == (8, 6)


@pytest.mark.parametrize("shape", [(0,), (0, 3), (3, 0, 2)])
def test_zero_size_is_nothing_counted(shape: tuple[int, ...]) -> None:
    losses = torch.zeros(shape, requires_grad=True)
    value = average_top_k(losses, fraction=0.5)
    value.backward()
    assert value == 0
    assert losses.grad is not None
    assert losses.grad.shape == shape
    assert topk_weights(losses, k=3).shape == shape


# What is read late


@pytest.mark.parametrize("by_kernels", [True, False])
@pytest.mark.parametrize("changed", ["losses", "mask", "sample_weight"])
def test_what_was_selected_from_must_stay_until_it_is_read(
    changed: str, by_kernels: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not by_kernels:
        monkeypatch.setattr(rank, "native", mock.Mock(is_available=lambda: False))
    elif not native.is_available():
        pytest.skip("the native kernels were not built for this processor")
    given: dict[str, Any] = {"losses": torch.rand(8), "mask": torch.rand(8) < 0.7}
    given |= {"sample_weight": torch.rand(8).double()} if changed != "mask" else {}
    read, unread = topk_select(**given, k=0.3), topk_select(**given, k=0.3)
    before = read.weights, read.kept, read.mass
    given[changed].copy_(given[changed].flip(0))
    if by_kernels or changed == "mask":  # torch's operations ranked a copy of the others
        with pytest.raises(RuntimeError, match="what was selected from must stay as it is until the selection is read"):
            print(unread.weights, unread.mass)
    else:
        assert torch.equal(unread.weights, before[0])
    assert all(one is other for one, other in zip((read.weights, read.kept, read.mass), before, strict=True))


@pytest.mark.parametrize("groups", [None, torch.arange(4096) % 2])
def test_a_selection_can_be_copied_and_sent(groups: Tensor | None) -> None:
    selection = topk_select(torch.rand(4096), k=3, groups=groups)
    for copied in (copy.deepcopy(selection), pickle.loads(pickle.dumps(selection))):
        assert torch.equal(copied.weights, selection.weights)
        assert torch.equal(copied.mass, selection.mass)


def test_the_number_of_omitted_is_a_tensor() -> None:
    selection = topk_select(torch.tensor([1.0, math.nan, math.nan]), k=1, nan_policy="omit")
    assert torch.equal(selection.omitted, torch.tensor(2))


@pytest.mark.skipif(not native.is_available(), reason="the native kernels were not built for this processor")
def test_groups_must_stay_until_the_selection_is_read() -> None:
    losses, groups = torch.rand(4096), torch.arange(4096) % 2
    selection = topk_select(losses, k=3, groups=groups)
    groups.zero_()
    with pytest.raises(RuntimeError, match="what was selected from must stay as it is"):
        print(selection.weights)


@pytest.mark.parametrize("groups", [1, 2, 3000])
def test_the_threshold_of_groups_that_lose_everything_is_none(groups: int) -> None:
    selection = topk_select(torch.rand(4096), k=1, drop=5000, groups=torch.arange(4096) % groups)
    assert selection.threshold == -torch.inf
    assert selection.value == 0


def test_unsigned_numbers_of_many_groups() -> None:
    losses = torch.rand(300)
    numbers = (torch.arange(300) % 200).to(torch.uint32)
    selection = topk_select(losses, k=1, groups=numbers)
    torch.testing.assert_close(selection.value, topk_select(losses, k=1, groups=numbers.long()).value)


def test_a_compiled_selection_holds_its_own_masses() -> None:
    mask = torch.tensor([True, False, True])
    compiled = torch.compile(lambda x, m: topk_select(x, k=1, mask=m), fullgraph=True, backend="eager")
    selection = compiled(torch.rand(3), mask)
    mask.zero_()
    assert selection.mass.tolist() == [1, 0, 1]
