"""The dual form and the tilted average: corners, infinities, defaults, and where nothing or a NaN counts."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from topkloss import (
    DualAverageTopKLoss,
    average,
    average_tilted,
    average_top_k,
    average_top_k_dual,
    maximum,
    topk_threshold,
)

ONE = torch.tensor(1.0, dtype=torch.float64)


def dual(losses: list[float], *, smoothing: float = 0.0, fraction: float = 0.5) -> tuple[float, list[float]]:
    """The value from the threshold 1, and the gradient in the losses."""
    leaf = torch.tensor(losses, dtype=torch.float64, requires_grad=True)
    value = average_top_k_dual(leaf, ONE, fraction=fraction, smoothing=smoothing)
    value.backward()
    assert leaf.grad is not None
    return value.item(), leaf.grad.tolist()


def test_from_the_threshold_of_the_batch_it_is_the_average_top_k_and_never_less() -> None:
    torch.manual_seed(0)
    losses = torch.randn(50, dtype=torch.float64)
    exact = average_top_k(losses, fraction=0.3)
    torch.testing.assert_close(average_top_k_dual(losses, topk_threshold(losses, fraction=0.3), fraction=0.3), exact)
    for at in losses:
        assert average_top_k_dual(losses, at, fraction=0.3) >= exact - 1e-12


def test_the_threshold_gets_one_minus_the_share_above_over_the_fraction() -> None:
    threshold = torch.tensor(1.5, dtype=torch.float64, requires_grad=True)
    losses = torch.tensor([1.0, 2.0, 3.0, 1.0, math.nan], dtype=torch.float64)
    mask = torch.tensor([True, True, True, True, False])
    average_top_k_dual(losses, threshold, fraction=0.8, mask=mask).backward()
    assert threshold.grad is not None
    assert threshold.grad.item() == pytest.approx(1 - 0.5 / 0.8)


def test_where_nothing_counts_the_threshold_rests() -> None:
    threshold, losses = torch.tensor(5.0, requires_grad=True), torch.ones(3, requires_grad=True)
    value = average_top_k_dual(losses, threshold, fraction=0.5, mask=torch.zeros(3, dtype=torch.bool))
    value.backward()
    assert value == 0
    assert threshold.grad == 0
    assert losses.grad is not None
    assert (losses.grad == 0).all()


@pytest.mark.parametrize("smoothing", [0.3, 2.0])
def test_a_rounded_corner_is_below_the_corner_by_less_than_half_its_width(smoothing: float) -> None:
    for x in (-1e9, -3.0, -0.1, 0.0, 0.2, 5.0, 1e3, 1e10, 1e300):
        value, (slope,) = dual([1 + x], smoothing=smoothing, fraction=1.0)
        excess = (x + math.hypot(x, smoothing) - smoothing) / 2
        if -1e3 < x < 1e6:
            assert value - 1 == pytest.approx(excess, abs=1e-12)
            assert slope == pytest.approx((1 + x / math.hypot(x, smoothing)) / 2, abs=1e-12)
        assert max(x, 0) - smoothing / 2 <= value - 1 + 1e-6 * max(1, abs(x) / 1e9)
        assert value - 1 <= max(x, 0)
        assert 0 <= slope <= 1
    far, _ = dual([1 + 1e10], smoothing=smoothing, fraction=1.0)
    assert far - 1 - 1e10 == pytest.approx(-smoothing / 2, abs=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_infinite_losses_are_losses(smoothing: float) -> None:
    value, slopes = dual([math.inf, 1.5, -math.inf], smoothing=smoothing)
    assert value == math.inf
    assert slopes[0] == pytest.approx(1 / 1.5)
    assert slopes[2] == 0
    value, slopes = dual([3.0, -math.inf], smoothing=smoothing)
    rounded = (2 + math.hypot(2, smoothing) - smoothing) / 2
    assert value == pytest.approx(1 + (rounded - smoothing / 2) / 2 / 0.5)  # behind the corner it is -smoothing / 2
    assert slopes[1] == 0


def test_a_counted_nan_shows_everywhere_but_where_nothing_counts() -> None:
    losses = torch.tensor([0.5, math.nan, 3.0, 7.0], dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([True, True, True, False])
    for value in (
        average_top_k_dual(losses, ONE, fraction=0.5, mask=mask),
        average_tilted(losses, tilt=1.0, mask=mask),
    ):
        (gradient,) = torch.autograd.grad(value, losses)
        assert value.isnan()
        assert gradient[:3].isnan().all()
        assert gradient[3] == 0


def test_defaults_are_the_exact_corner_and_a_threshold_of_zero() -> None:
    criterion = DualAverageTopKLoss(nn.L1Loss(reduction="none"), fraction=0.5)
    assert criterion.threshold == 0
    outputs = torch.tensor([0.25, 0.5])
    assert criterion(outputs, torch.zeros(2)) == 0.75
    assert average_top_k_dual(outputs, torch.tensor(0.25), fraction=0.5) == 0.5
    assert criterion(outputs, torch.zeros(2), mask=torch.tensor([True, False])) == 0.5
    samples = DualAverageTopKLoss(nn.L1Loss(reduction="none"), fraction=1.0, level="sample")
    assert samples(torch.tensor([[1.0, 3.0]]), torch.zeros(1, 2)) == 2


# Tilted


def test_tilted_runs_from_the_mean_to_the_maximum() -> None:
    losses = torch.tensor([1.0, 2.0, 9.0], dtype=torch.float64)
    values = [average_tilted(losses, tilt=tilt).item() for tilt in (-1e3, -1.0, 1e-9, 1.0, 1e3)]
    assert values == sorted(values)
    assert values[0] == pytest.approx(1, abs=0.01)
    assert values[2] == pytest.approx(average(losses).item(), abs=1e-6)
    assert values[4] == pytest.approx(maximum(losses).item(), abs=0.01)


def test_tilted_bounds_the_tail() -> None:
    torch.manual_seed(0)
    losses = torch.randn(40, dtype=torch.float64).exp()
    for k in (1, 4, 13, 40):
        assert average_top_k(losses, k=k) <= average_tilted(losses, tilt=0.7) + math.log(40 / k) / 0.7


@pytest.mark.parametrize("tilt", [0.5, -0.5])
def test_infinite_losses_share_the_gradient(tilt: float) -> None:
    sign = math.copysign(1, tilt)
    losses = torch.tensor([sign * math.inf, 1.0, sign * math.inf, -sign * math.inf, math.nan], requires_grad=True)
    value = average_tilted(losses, tilt=tilt, mask=torch.tensor([True, True, True, True, False]))
    value.backward()
    assert value == sign * math.inf
    assert losses.grad is not None
    assert losses.grad.tolist() == [0.5, 0, 0.5, 0, 0]


def test_a_loss_without_any_weight_costs_nothing() -> None:
    losses = torch.tensor([3.0, 1.0, -math.inf], requires_grad=True)
    value = average_tilted(losses, tilt=2.0)
    value.backward()
    assert value.isfinite()
    assert losses.grad is not None
    assert losses.grad[2] == 0
    assert losses.grad.sum().item() == pytest.approx(1)


def test_tilted_has_second_derivatives() -> None:
    losses = torch.randn(5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda x: average_tilted(x, tilt=1.5), losses)
    near = torch.randn(5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda x: average_top_k_dual(x, ONE, fraction=0.4, smoothing=0.3), near)
