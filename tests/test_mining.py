"""Mining by a threshold and by ratio, sums of criteria, several scales, and what a monitor says of them."""

from __future__ import annotations

import copy
import math
from fractions import Fraction
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from topkloss import (
    AverageRankedRangeLoss,
    AverageTopKCrossEntropyLoss,
    AverageTopKLoss,
    CompoundLoss,
    CrossEntropy,
    DeepSupervisionLoss,
    DualAverageTopKLoss,
    HardNegativeLoss,
    Monitor,
    OHEMLoss,
    RegionLoss,
    average_above,
    average_hard_negatives,
    average_top_k,
    topk_select,
)
from topkloss.losses import dice_loss, generalized_dice_loss

LOSSES = torch.tensor([3.0, 0.1, 0.2, 9.0, 0.3])


def pixels(n: int = 2, classes: int = 3, side: int = 8) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    outputs = torch.randn(n, classes, side, side, generator=generator, dtype=torch.float64)
    targets = torch.randint(classes, (n, side, side), generator=generator)
    targets[:, 0] = 255
    return outputs.requires_grad_(), targets


# Above a threshold


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"threshold": 1.0}, 6.0),
        ({"threshold": 1.0, "min_kept": 1}, 6.0),  # a floor, not a cap
        ({"threshold": 1.0, "min_kept": 3}, (3 + 9 + 0.3) / 3),
        ({"threshold": 1.0, "min_kept": 2.5}, (3 + 9 + 0.15) / 2.5),
        ({"threshold": 99.0, "min_kept": 1}, 9.0),
        ({"threshold": 99.0, "min_fraction": 0.4}, 6.0),
        ({"threshold": 99.0}, 0.0),
        ({"threshold": 3.0}, 9.0),  # compared strictly
        ({"threshold": -math.inf, "min_kept": 1}, 12.6 / 5),
        ({"threshold": 99.0, "min_kept": 1000}, 12.6 / 5),
    ],
    ids=str,
)
def test_above_a_threshold_and_at_least_so_many(given: dict[str, float], expected: float) -> None:
    assert average_above(LOSSES, **given).item() == pytest.approx(expected)  # type: ignore[arg-type]


def test_where_nothing_is_above_and_nothing_must_be_kept_it_is_a_connected_zero() -> None:
    losses = LOSSES.clone().requires_grad_()
    value = average_above(losses, threshold=99)
    value.backward()
    assert value == 0
    assert losses.grad is not None
    assert (losses.grad == 0).all()


def test_a_probability_below_which_a_pixel_is_hard_is_a_loss_above_minus_its_log() -> None:
    outputs, targets = pixels()
    criterion = OHEMLoss(CrossEntropy(ignore_index=255), threshold=-math.log(0.4))
    valid = targets != 255
    p = outputs.softmax(dim=1).gather(1, targets.masked_fill(~valid, 0).unsqueeze(1)).squeeze(1)[valid]
    torch.testing.assert_close(criterion(outputs, targets), -p[p < 0.4].log().mean())


@pytest.mark.parametrize("masked", [False, True])
def test_a_selection_says_the_lowest_loss_it_kept(masked: bool) -> None:
    losses = torch.tensor([3.0, 0.1, 9.0, 5.0, -9.0])
    mask = torch.tensor([True, True, True, False, True]) if masked else None
    zeros = torch.zeros(5, dtype=torch.long)
    for criterion, lowest in [
        (OHEMLoss(lambda o, t: o, threshold=1.0), 3.0),
        (OHEMLoss(lambda o, t: o, threshold=99.0), -math.inf),
        (OHEMLoss(lambda o, t: o, threshold=99.0, min_kept=1), 9.0),
        (HardNegativeLoss(lambda o, t: o, min_negatives=1), 9.0),
    ]:
        selection = criterion.select(losses, zeros, mask=mask)
        assert selection.threshold == lowest
        in_one_group = criterion.select(losses, zeros, mask=mask, groups=zeros)
        assert in_one_group.threshold == lowest
        assert torch.equal(in_one_group.weights, selection.weights)
        one = criterion.select(losses[2:3], zeros[:1], groups=zeros[:1])
        assert one.threshold == (lowest if lowest in (9.0, -math.inf) else 9.0)


def test_a_threshold_is_any_real_number() -> None:
    half: Any = Fraction(1, 2)
    for groups in (None, torch.zeros(5, dtype=torch.long)):
        assert average_above(LOSSES, threshold=half, groups=groups) == 6


# Hard negatives


def test_three_negatives_for_each_positive() -> None:
    losses = torch.tensor([1.0, 0.5, 4.0, 2.0, 3.0, 0.1])
    positives = torch.tensor([True, False, False, False, False, False])
    assert average_hard_negatives(losses, positives).item() == pytest.approx((1 + 4 + 3 + 2) / 4)
    assert average_hard_negatives(losses, positives, ratio=0.5).item() == pytest.approx((1 + 2) / 1.5)
    assert average_hard_negatives(losses, positives, ratio=99).item() == pytest.approx(10.6 / 6)
    assert average_hard_negatives(losses, positives, ratio=1, min_negatives=2).item() == pytest.approx((1 + 4 + 3) / 3)


def test_without_positives_the_least_number_of_negatives_is_kept() -> None:
    nobody = torch.zeros(5, dtype=torch.bool)
    assert average_hard_negatives(LOSSES, nobody) == 0
    assert average_hard_negatives(LOSSES, nobody, min_negatives=2) == 6
    assert average_hard_negatives(LOSSES, ~nobody).item() == pytest.approx(12.6 / 5)


def test_an_infinite_negative_is_a_negative() -> None:
    losses = torch.tensor([1.0, math.inf, 2.0], requires_grad=True)
    selection = HardNegativeLoss(lambda outputs, _: outputs, ratio=1).select(losses, torch.tensor([1, 0, 0]))
    assert selection.weights.tolist() == [0.5, 0.5, 0]


def test_ssd_mines_within_each_image_and_divides_by_the_positives() -> None:
    """SSD's own way, two argsorts per image: its sum over P is ours times 1 + ratio where all have positives."""
    torch.manual_seed(0)
    outputs, targets = torch.randn(3, 4, 200, dtype=torch.float64), torch.zeros(3, 200, dtype=torch.long)
    targets[:, :7] = torch.randint(1, 4, (3, 7))
    losses = nn.functional.cross_entropy(outputs, targets, reduction="none")
    rank = losses.masked_fill(targets > 0, -math.inf).argsort(dim=1, descending=True).argsort(dim=1)
    kept = (targets > 0) | (rank < 3 * 7)
    ssd = (losses * kept).sum() / (targets > 0).sum()
    ours = HardNegativeLoss(CrossEntropy(), ratio=3, within="sample")(outputs, targets)
    torch.testing.assert_close(ours * 4, ssd)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.uint32, torch.uint64])
def test_positives_are_told_in_any_integer_type(dtype: torch.dtype) -> None:
    """Of wide unsigned integers torch compares none."""
    criterion, outputs, targets = HardNegativeLoss(CrossEntropy()), torch.randn(6, 3), torch.tensor([0, 2, 0, 1, 0, 0])
    assert criterion(outputs, targets.to(dtype)) == criterion(outputs, targets)
    floating = HardNegativeLoss(torch.sub, ratio=1)
    assert floating(torch.tensor([1.0, 9.0]), torch.tensor([0.5, 0.0])) == 4.75


def test_ignored_anchors_are_neither() -> None:
    outputs, targets = torch.randn(1, 2, 6), torch.tensor([[1, 0, 0, 0, 255, 255]])
    outputs[:, :, 4:] = math.nan
    criterion = HardNegativeLoss(CrossEntropy(ignore_index=255), ratio=3, within="sample")
    assert criterion.select(outputs, targets).kept.tolist() == [[True, True, True, True, False, False]]


# Sums and scales


def test_a_compound_is_the_weighted_sum_and_keeps_what_each_selected() -> None:
    outputs, targets = pixels()
    mined = AverageTopKCrossEntropyLoss(fraction=0.1, ignore_index=255)
    dice = AverageTopKLoss(RegionLoss(dice_loss, ignore_index=255), fraction=1)
    off = AverageTopKLoss(RegionLoss(generalized_dice_loss, ignore_index=255), fraction=1)
    both = CompoundLoss([mined, dice, off], weights=[1.0, 0.5, 0.0])
    expected = mined(outputs, targets) + 0.5 * dice(outputs, targets)
    torch.testing.assert_close(both(outputs, targets), expected)
    selections = both.select(outputs, targets)
    torch.testing.assert_close(both.total(selections), expected)
    pixel, region, nothing = selections
    assert pixel is not None
    assert region is not None
    assert nothing is None
    assert pixel.kept.sum() == math.ceil(0.1 * 2 * 56)
    assert region.kept.shape == (2, 3)
    gradients = [torch.autograd.grad(x, outputs)[0] for x in (both.total(both.select(outputs, targets)), expected)]
    torch.testing.assert_close(*gradients)


def test_regions_are_mined_by_sample_and_class_and_absent_ones_do_not_count() -> None:
    outputs, targets = pixels(classes=4)
    targets[targets == 3] = 0
    selection = AverageTopKLoss(RegionLoss(dice_loss, ignore_index=255), k=2).select(outputs, targets)
    assert selection.mass.tolist() == [[1, 1, 1, 0]] * 2
    valid = targets != 255
    losses = dice_loss(outputs, targets.masked_fill(~valid, 0), mask=valid)[:, :3]
    torch.testing.assert_close(selection.value, losses.flatten().topk(2).values.mean())
    by_class = AverageTopKLoss(RegionLoss(dice_loss, ignore_index=255), k=1, within="class")(outputs, targets)
    torch.testing.assert_close(by_class, losses.amax(dim=0).mean())


def test_scales_share_a_fraction_and_shrink_a_count() -> None:
    """64 and 16 and 1 pixels: k = 16 at the first is 4 at the second."""
    outputs = [torch.randn(1, 3, side, side, dtype=torch.float64) for side in (8, 4, 1)]
    targets = torch.randint(3, (1, 8, 8))
    counts = DeepSupervisionLoss(AverageTopKCrossEntropyLoss(k=16), weights=[1, 0.5, 0]).select(outputs, targets)
    shares = DeepSupervisionLoss(AverageTopKCrossEntropyLoss(fraction=0.25), weights=[1, 0.5, 0])
    for count, share in zip(counts, shares.select(outputs, targets), strict=True):
        assert (count is None) == (share is None)
        if count is not None and share is not None:
            assert torch.equal(count.weights, share.weights)
    first, second = (
        AverageTopKCrossEntropyLoss(fraction=0.25)(o, t)
        for o, t in (
            (outputs[0], targets),
            (outputs[1], targets[:, 1::2, 1::2]),
        )
    )
    torch.testing.assert_close(shares(outputs, targets), (first + 0.5 * second) / 1.5)


def test_a_coarse_scale_never_rounds_to_nothing_and_ignored_stays_ignored() -> None:
    outputs = [torch.randn(1, 2, side, side, requires_grad=True) for side in (4, 2, 1)]
    targets = torch.full((1, 4, 4), 255)
    targets[0, 3, 3] = 1
    criterion = DeepSupervisionLoss(AverageTopKCrossEntropyLoss(fraction=0.1, ignore_index=255), weights=[1, 1, 1])
    value = criterion(outputs, targets)
    value.backward()
    assert value.isfinite()
    assert all(scale.grad is not None and scale.grad.isfinite().all() for scale in outputs)
    masked = criterion(outputs, targets.masked_fill(targets == 255, 0), mask=targets != 255)
    torch.testing.assert_close(masked, value)


@pytest.mark.parametrize(
    "criterion",
    [
        OHEMLoss(torch.sub, threshold=1.0, min_kept=8),
        AverageRankedRangeLoss(torch.sub, k=8, drop=4),
        AverageTopKLoss(torch.sub, k=8),
        HardNegativeLoss(lambda outputs, _: outputs, min_negatives=8),
    ],
    ids=lambda criterion: type(criterion).__name__,
)
def test_every_count_shrinks_with_the_scale(criterion: nn.Module) -> None:
    losses = torch.linspace(-1, 0, 64)
    full = criterion.select(losses, torch.zeros(64))  # type: ignore[operator]
    quarter = criterion.select(losses, torch.zeros(64), scale=0.25)  # type: ignore[operator]
    assert full.kept.sum() == 8
    assert quarter.kept.sum() == 2


def test_numbers_of_samples_and_regions_do_not_shrink_with_the_scale() -> None:
    outputs, targets = pixels(n=4)
    samples = AverageTopKCrossEntropyLoss(k=2, level="sample", ignore_index=255)
    regions = AverageTopKLoss(RegionLoss(dice_loss, ignore_index=255), k=2)
    for criterion in (samples, regions):
        assert criterion.select(outputs, targets, scale=1 / 64).kept.sum() == 2


def test_sums_at_several_scales() -> None:
    """nnU-Net's: mined cross-entropy and Dice at each."""
    outputs = [torch.randn(2, 3, side, side, dtype=torch.float64) for side in (8, 4)]
    targets = torch.randint(3, (2, 8, 8))
    both = CompoundLoss([AverageTopKCrossEntropyLoss(k=16), AverageTopKLoss(RegionLoss(dice_loss), fraction=1)])
    scales = DeepSupervisionLoss(both, weights=[1, 0.5])
    coarse = CompoundLoss([AverageTopKCrossEntropyLoss(k=4), AverageTopKLoss(RegionLoss(dice_loss), fraction=1)])
    expected = (both(outputs[0], targets) + 0.5 * coarse(outputs[1], targets[:, 1::2, 1::2])) / 1.5
    torch.testing.assert_close(scales(outputs, targets), expected)
    (fine, _), (mined, _) = scales.select(outputs, targets)
    assert (fine.kept.sum(), mined.kept.sum()) == (16, 4)
    nested = CompoundLoss([both, both], weights=[1, 2])
    torch.testing.assert_close(nested(outputs[0], targets), 3 * both(outputs[0], targets))


def test_scores_rank_the_negatives_and_never_the_positives() -> None:
    losses, labels = torch.tensor([1.0, 5.0, 2.0, 3.0]), torch.tensor([1, 0, 0, 0])
    criterion = HardNegativeLoss(lambda outputs, _: outputs, ratio=1)
    scores = torch.tensor([-9.0, 0.0, 4.0, 3.0])
    assert criterion.select(losses, labels, scores=scores).kept.tolist() == [True, False, True, False]
    assert average_hard_negatives(losses, labels > 0, ratio=1, scores=scores) == 1.5


# Through a learned threshold


def test_the_threshold_is_a_parameter_and_settles_at_that_of_the_data() -> None:
    torch.manual_seed(0)
    data = torch.rand(4096)
    criterion = DualAverageTopKLoss(lambda outputs, _: outputs, fraction=0.25)
    assert list(criterion.state_dict()) == ["threshold"]
    optimizer = torch.optim.SGD(criterion.parameters(), lr=0.01)
    values = []
    for step in range(3000):
        batch = data[torch.randint(4096, (8,))]
        optimizer.zero_grad()
        value = criterion(batch, batch)
        value.backward()
        optimizer.step()
        if step >= 1000:
            values.append(value.item())
    assert criterion.threshold.item() == pytest.approx(0.75, abs=0.05)
    assert sum(values) / len(values) == pytest.approx(average_top_k(data, fraction=0.25).item(), abs=0.01)


def test_tiny_masses_count_for_the_threshold() -> None:
    """In float32 their sum is 0."""
    criterion = DualAverageTopKLoss(lambda outputs, _: outputs, fraction=0.5, threshold=2.0)
    losses = torch.tensor([1.0, 3.0])
    assert criterion(losses, losses, sample_weight=torch.full((2,), 1e-50, dtype=torch.float64)) == 3


def test_a_copy_has_a_threshold_of_its_own() -> None:
    criterion = DualAverageTopKLoss(torch.sub, fraction=0.25, threshold=2.0)
    other = copy.deepcopy(criterion)
    other.load_state_dict({"threshold": torch.tensor(3.0)})
    assert criterion.threshold == 2


# What a monitor says


def test_a_monitor_averages_an_epoch() -> None:
    monitor = Monitor(classes=3)
    classes = torch.tensor([0, 0, 1, 2])
    monitor.update(topk_select(torch.tensor([4.0, 1.0, 3.0, 2.0]), k=2), classes)
    mask = torch.tensor([True, True, False, False])
    monitor.update(topk_select(torch.tensor([8.0, 6.0, math.nan, 9.0]), k=1, mask=mask), classes)
    monitor.update(topk_select(torch.tensor([8.0, math.nan, 1.0, 9.0]), k=1, mask=mask & False), classes)
    mined = monitor.compute()
    assert mined.batches == 2
    assert mined.value == (3.5 + 8) / 2
    assert mined.average == (10 + 14) / 6
    assert mined.threshold == (3 + 8) / 2
    assert mined.kept == 3 / 6
    assert mined.kept_of_class == [2 / 4, 1, 0]
    assert mined.gradient_of_class == [1.5 / 2, 0.5 / 2, 0]
    assert mined.omitted == 0
    monitor.reset()
    assert math.isnan(monitor.compute().value)
    assert monitor.compute().batches == 0


def test_a_monitor_keeps_no_graph_and_tells_classes_apart_by_index_only() -> None:
    outputs, targets = pixels()
    criterion, monitor = AverageTopKCrossEntropyLoss(fraction=0.5, ignore_index=255), Monitor(classes=3)
    selection = criterion.select(outputs, targets)
    torch.testing.assert_close(selection.value, criterion(outputs, targets))
    monitor.update(selection, targets)
    assert not any(sums.requires_grad for sums in (monitor._sums, monitor._of_classes) if sums is not None)
    mined = monitor.compute()
    assert sum(mined.gradient_of_class) == pytest.approx(1)
    assert mined.kept == pytest.approx(0.5)
    assert mined.value > mined.average


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16])
def test_a_monitor_tells_more_classes_apart_than_the_type_has_numbers(dtype: torch.dtype) -> None:
    monitor = Monitor(classes=300)
    monitor.update(topk_select(torch.tensor([4.0, 1.0, 3.0]), k=2), torch.tensor([200, 0, 1], dtype=dtype))
    assert monitor.compute().gradient_of_class == [0, 0.5, *[0] * 198, 0.5, *[0] * 99]


def test_a_monitor_refuses_classes_of_another_shape() -> None:
    """Of more regions than pixels, the first would be told apart by the classes of pixels."""
    outputs, targets = torch.randn(1, 5, 4), torch.tensor([[0, 1, 2, 3]])
    selection = AverageTopKLoss(RegionLoss(dice_loss), fraction=1).select(outputs, targets)
    with pytest.raises(
        ValueError, match=r"`selection.weights` and `classes` must have the same shape; got \(1, 5\) and"
    ):
        Monitor(classes=5).update(selection, targets)


def test_a_monitor_counts_what_was_omitted_and_shows_a_nan() -> None:
    monitor = Monitor()
    losses = torch.tensor([1.0, math.nan, 3.0])
    monitor.update(topk_select(losses, k=1, nan_policy="omit"))
    assert monitor.compute().omitted == 1
    assert monitor.compute().value == 3
    monitor.update(topk_select(losses, k=1))
    assert math.isnan(monitor.compute().value)
    assert math.isnan(monitor.compute().average)


def test_on_an_accelerator_an_update_reads_nothing_back() -> None:
    """A meta tensor has no values to read."""
    monitor = Monitor(classes=3)
    losses = torch.zeros(100, device="meta")
    monitor.update(topk_select(losses, k=3), torch.zeros(100, dtype=torch.long, device="meta"))
