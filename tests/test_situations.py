"""The situations in which losses over the hardest pixels fail, by name: value, gradient, visibility of NaN."""

from __future__ import annotations

import math

import pytest
import torch

from benchmarks import situations
from benchmarks.situations import Situation, through_network
from topkloss import AverageTopKCrossEntropyLoss


def answer(situation: Situation) -> tuple[float, torch.Tensor]:
    """Our value, and the gradient that reaches the network."""
    weight, logits = through_network(situation)
    criterion = AverageTopKCrossEntropyLoss(fraction=situation.fraction, ignore_index=situations.IGNORED)
    value = criterion(logits, situation.targets)
    (gradient,) = torch.autograd.grad(value, weight)
    return value.item(), gradient


def test_all_ignored_is_zero_and_reaches_the_network() -> None:
    value, gradient = answer(situations.all_ignored())
    assert value == 0
    assert (gradient == 0).all()


def test_four_easy_pixels_give_the_hardest_one() -> None:
    """A tenth of four pixels is less than one: the largest loss, not the mean of an empty selection."""
    situation = situations.four_easy_pixels()
    value, gradient = answer(situation)
    assert value == pytest.approx(max(situation.losses()), rel=1e-4)
    assert gradient.isfinite().all()
    assert (gradient != 0).any()


@pytest.mark.parametrize("situation", [situations.saturated_float16(), situations.saturated_bfloat16()])
def test_saturated_probabilities_in_half_precision_still_rank(situation: Situation) -> None:
    value, gradient = answer(situation)
    assert value == pytest.approx(situation.expected(), rel=0.02)
    assert gradient.isfinite().all()
    assert (gradient != 0).any()


def test_one_nan_pixel_stays_visible() -> None:
    value, gradient = answer(situations.one_nan_pixel())
    assert math.isnan(value)
    assert gradient.isnan().any()


def test_nan_at_an_ignored_pixel_never_matters() -> None:
    situation = situations.nan_at_an_ignored_pixel()
    value, gradient = answer(situation)
    assert value == pytest.approx(situation.expected(), rel=1e-5)
    assert gradient.isfinite().all()


def test_with_95_percent_ignored_a_fraction_is_of_the_counted() -> None:
    situation = situations.ninety_five_percent_ignored()
    assert situation.k == 8
    value, _ = answer(situation)
    assert value == pytest.approx(situation.expected(), rel=1e-5)


def test_ten_pixels_at_fraction_35_average_three_and_a_half() -> None:
    situation = situations.fractional_k()
    hardest = sorted(situation.losses(), reverse=True)
    value, _ = answer(situation)
    assert value == pytest.approx((sum(hardest[:3]) + 0.5 * hardest[3]) / 3.5, rel=1e-5)
