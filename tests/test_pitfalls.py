"""The known pitfalls of such losses, each by name; those of whole situations are in `test_situations`."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from topkloss import (
    AverageTopKCrossEntropyLoss,
    AverageTopKLoss,
    CompoundLoss,
    CrossEntropy,
    DeepSupervisionLoss,
    HardNegativeLoss,
    Monitor,
    OHEMLoss,
    RegionLoss,
    average_above,
    average_ranked_range,
    average_top_k,
    topk_weights,
)
from topkloss.losses import dice_loss

IGNORED = 255
CRITERIA = {
    "AverageTopKCrossEntropyLoss": AverageTopKCrossEntropyLoss(fraction=0.1, ignore_index=IGNORED),
    "within samples": AverageTopKCrossEntropyLoss(fraction=0.1, ignore_index=IGNORED, within="sample"),
    "within classes": AverageTopKCrossEntropyLoss(fraction=0.1, ignore_index=IGNORED, within="class"),
    "of samples": AverageTopKCrossEntropyLoss(fraction=0.1, ignore_index=IGNORED, level="sample"),
    "OHEMLoss": OHEMLoss(CrossEntropy(ignore_index=IGNORED), threshold=0.36, min_fraction=0.05),
    "HardNegativeLoss": HardNegativeLoss(CrossEntropy(ignore_index=IGNORED)),
    "Dice": AverageTopKLoss(RegionLoss(dice_loss, ignore_index=IGNORED), fraction=0.5),
    "sum": CompoundLoss(
        [
            AverageTopKCrossEntropyLoss(fraction=0.1, ignore_index=IGNORED),
            AverageTopKLoss(RegionLoss(dice_loss, ignore_index=IGNORED), fraction=1),
        ]
    ),
}


def pixels(logit: float = 1.0, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    targets = torch.randint(3, (2, 8, 8), generator=generator)
    outputs = logit * F.one_hot(targets, 3).movedim(-1, 1) + 0.1 * torch.randn(2, 3, 8, 8, generator=generator)
    return outputs.to(dtype).requires_grad_(), targets


@pytest.mark.parametrize("name", CRITERIA)
def test_3_1_saturated_easy_or_all_ignored_is_finite_with_a_finite_gradient(name: str) -> None:
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        for logit in (1.0, 12.0, 60.0):
            outputs, targets = pixels(logit, dtype)
            for labels in (targets, torch.full_like(targets, IGNORED)):
                value = CRITERIA[name](outputs, labels)
                (gradient,) = torch.autograd.grad(value, outputs)
                assert value.isfinite()
                assert gradient.isfinite().all()
                if (labels == IGNORED).all():
                    assert value == 0
                    assert (gradient == 0).all()


@pytest.mark.parametrize("name", CRITERIA)
def test_3_2_ignored_pixels_never_dilute_and_an_illegal_label_is_refused(name: str) -> None:
    """Twice the picture, one half of it ignored and NaN, is the picture; 255 is no class, and 7 not one either."""
    outputs, targets = pixels()
    ignored = torch.full_like(targets, IGNORED)
    wide = torch.cat([outputs, outputs * math.nan], dim=2)
    torch.testing.assert_close(
        CRITERIA[name](wide, torch.cat([targets, ignored], dim=1)), CRITERIA[name](outputs, targets)
    )
    with pytest.raises(ValueError, match="got 7"):
        CRITERIA[name](outputs, targets.masked_fill(targets == 2, 7))


def test_3_2_a_weight_of_classes_is_never_indexed_by_the_ignored_label() -> None:
    outputs, targets = pixels()
    targets[:, :4] = IGNORED
    criterion = AverageTopKCrossEntropyLoss(fraction=1, weight=torch.tensor([1.0, 2.0, 3.0]), ignore_index=IGNORED)
    expected = F.cross_entropy(outputs, targets, weight=torch.tensor([1.0, 2.0, 3.0]), ignore_index=IGNORED)
    torch.testing.assert_close(criterion(outputs, targets), expected)


def test_3_2_what_is_not_counted_is_not_a_loss_of_zero() -> None:
    """Losses may be negative, those above a reference: an ignored 0 would be selected first."""
    losses, mask = torch.tensor([-3.0, -1.0, 0.0]), torch.tensor([True, True, False])
    assert average_top_k(losses, k=1, mask=mask) == -1


@pytest.mark.parametrize("name", CRITERIA)
def test_3_3_nothing_counted_reaches_every_parameter_with_a_zero(name: str) -> None:
    """A zero off the graph makes other processes wait for this one's gradients."""
    model = nn.Conv2d(3, 3, 1)
    _, targets = pixels()
    CRITERIA[name](model(torch.randn(2, 3, 8, 8)), torch.full_like(targets, IGNORED)).backward()
    assert all(p.grad is not None and (p.grad == 0).all() for p in model.parameters())


@pytest.mark.parametrize(("n", "fraction", "selected"), [(100, 0.29, 29), (100, 0.57, 57), (4, 0.1, 1), (10, 0.35, 4)])
def test_3_4_k_is_neither_truncated_nor_rounded(n: int, fraction: float, selected: int) -> None:
    weights = topk_weights(torch.arange(n, dtype=torch.float64), fraction=fraction)
    assert (weights > 0).sum() == selected
    assert weights.max().item() == pytest.approx(1 / max(fraction * n, 1))
    assert weights.sum().item() == pytest.approx(1)


def test_3_5_ties_are_neither_all_kept_nor_all_dropped() -> None:
    losses = torch.full((4096,), 0.5, dtype=torch.bfloat16)
    weights = topk_weights(losses, fraction=0.1)
    torch.testing.assert_close(weights, torch.full((4096,), 1 / 4096))
    assert average_above(losses, threshold=0.5, min_fraction=0.1) == 0.5  # strictly above: none, so the floor


def test_3_6_ties_do_not_depend_on_order() -> None:
    torch.manual_seed(0)
    losses = torch.randint(3, (1000,)).float()
    order = torch.randperm(1000)
    torch.testing.assert_close(topk_weights(losses[order], k=100), topk_weights(losses, k=100)[order], rtol=0, atol=0)


@pytest.mark.parametrize("kind", ["top-k", "threshold", "negatives"])
def test_3_7_label_smoothing_never_mines_the_best(kind: str) -> None:
    """Smoothed, a logit gap of 20 costs 1.5 and one of 2 costs 0.49: the confident one would be mined."""
    loss = CrossEntropy(label_smoothing=0.1)
    criterion = {
        "top-k": AverageTopKLoss(loss, k=1),
        "threshold": OHEMLoss(loss, threshold=0.1),
        "negatives": HardNegativeLoss(loss, min_negatives=1),
    }[kind]
    outputs = torch.tensor([[20.0, 0, 0, 0], [2.0, 0, 0, 0]])
    smoothed = F.cross_entropy(outputs, torch.zeros(2, dtype=torch.long), label_smoothing=0.1, reduction="none")
    assert smoothed.tolist() == pytest.approx([1.5, 0.491], abs=1e-3)
    selection = criterion.select(outputs, torch.zeros(2, dtype=torch.long))
    assert selection.kept.tolist() == [False, True]
    assert selection.value.item() == pytest.approx(smoothed[1].item())


def test_3_7_class_weights_are_a_mean_and_do_not_rank() -> None:
    outputs, targets = pixels()
    weight = torch.tensor([10.0, 1.0, 1.0])
    mined = AverageTopKCrossEntropyLoss(fraction=0.1, weight=weight)
    plain = F.cross_entropy(outputs, targets, reduction="none").flatten()
    kept = mined.select(outputs, targets).kept.flatten()
    assert plain[kept].min() > plain[~kept].max()


def test_3_8_a_nan_is_neither_hidden_nor_spread_where_it_does_not_count() -> None:
    losses = torch.tensor([1.0, math.nan, 2.0], requires_grad=True)
    assert average_above(losses, threshold=0.5).isnan()
    value = average_above(losses, threshold=0.5, mask=torch.tensor([True, False, True]))
    value.backward()
    assert losses.grad is not None
    assert losses.grad.tolist() == [0.5, 0, 0.5]


def test_3_8_an_infinite_loss_that_is_dropped_leaves_no_trace() -> None:
    losses = torch.tensor([1.0, math.inf, 2.0], requires_grad=True)
    value = average_ranked_range(losses, k=1, drop=1)
    value.backward()
    assert value == 2
    assert losses.grad is not None
    assert losses.grad.tolist() == [0, 0, 1]


def test_3_9_sums_in_half_precision_do_not_overflow() -> None:
    losses = torch.full((200_000,), 2.0, dtype=torch.float16)
    for value in (average_top_k(losses, fraction=0.7), average_above(losses, threshold=1)):
        assert value.item() == pytest.approx(2, rel=1e-5)
        assert value.dtype == torch.float32


def test_3_16_deep_supervision_with_a_weight_of_zero_or_one_pixel_is_no_0_over_0() -> None:
    outputs = [torch.randn(2, 3, side, side) for side in (8, 2, 1)]
    _, targets = pixels()
    for weights in ([1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [1.0, 0.5, 0.25]):
        for criterion in (AverageTopKCrossEntropyLoss(fraction=0.1), AverageTopKCrossEntropyLoss(k=5)):
            assert DeepSupervisionLoss(criterion, weights=weights)(outputs, targets).isfinite()


def test_3_17_a_loss_of_a_whole_batch_is_refused_and_one_of_regions_is_mined() -> None:
    outputs, targets = pixels()
    with pytest.raises(ValueError, match="already reduced"):
        AverageTopKLoss(lambda o, t: dice_loss(o, t).mean(), fraction=0.5)(outputs, targets)
    assert AverageTopKLoss(RegionLoss(dice_loss), k=1).select(outputs, targets).kept.sum() == 1


def test_3_18_the_plain_mean_is_told_beside_the_mined_one_and_outliers_can_be_left_out() -> None:
    """The mined loss is higher because k is lower, not because training got worse."""
    monitor, losses = Monitor(), torch.tensor([1.0, 2.0, 3.0, 900.0])
    criterion = AverageTopKLoss(torch.sub, fraction=0.5)
    monitor.update(criterion.select(losses, torch.zeros(4)))
    mined = monitor.compute()
    assert (mined.value, mined.average) == (451.5, 226.5)
    assert average_ranked_range(losses, fraction=0.5, drop=1) == 2.5
