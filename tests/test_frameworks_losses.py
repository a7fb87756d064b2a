"""Losses of segmentation_models_pytorch, MONAI, timm and torchvision, in criteria and in sums: the real packages."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from topkloss import (
    AverageTopKCrossEntropyLoss,
    AverageTopKLoss,
    CompoundLoss,
    DeepSupervisionLoss,
    HardNegativeLoss,
    OHEMLoss,
)

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
smp: Any = pytest.importorskip("segmentation_models_pytorch").losses
monai: Any = pytest.importorskip("monai.losses")
MINED = AverageTopKCrossEntropyLoss(fraction=0.3, ignore_index=255)


def pictures() -> tuple[Tensor, Tensor, Tensor]:
    """Logits of three classes, and targets of which three quarters are ignored; which are not."""
    generator = torch.Generator().manual_seed(0)
    outputs = torch.randn(4, 3, 8, 8, generator=generator).requires_grad_()
    targets = torch.randint(3, (4, 8, 8), generator=generator)
    kept = torch.rand(4, 8, 8, generator=generator) < 0.25
    return outputs, targets.masked_fill(~kept, 255), kept


def assert_same(ours: Tensor, theirs: Tensor, outputs: Tensor) -> None:
    """The same value, and the same gradient in the outputs."""
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(*(torch.autograd.grad(one, outputs, retain_graph=True)[0] for one in (ours, theirs)))


# In a criterion: what is ignored is not counted


@pytest.mark.parametrize("reduction", ["none", None])
def test_smps_cross_entropy_is_torchs_mean(reduction: str | None) -> None:
    outputs, targets, _ = pictures()
    loss = smp.SoftCrossEntropyLoss(reduction=reduction, ignore_index=255, smooth_factor=0.1)
    theirs = F.cross_entropy(outputs, targets, ignore_index=255, label_smoothing=0.1)
    assert_same(AverageTopKLoss(loss, fraction=1)(outputs, targets), theirs, outputs)


@pytest.mark.parametrize("given", [{}, {"smooth_factor": 0.1}, {"pos_weight": torch.tensor(3.0)}], ids=str)
def test_smps_binary_cross_entropy_is_torchs_over_what_is_labelled(given: dict[str, Any]) -> None:
    outputs, targets, kept = pictures()
    outputs, binary = outputs[:, :1].detach().requires_grad_(), targets.clamp(max=1).float().masked_fill(~kept, 255)
    loss = smp.SoftBCEWithLogitsLoss(reduction="none", ignore_index=255, **given)
    smooth = given.get("smooth_factor", 0.0)
    soft = binary[kept] * (1 - smooth) + (1 - binary[kept]) * smooth
    theirs = F.binary_cross_entropy_with_logits(outputs[:, 0][kept], soft, pos_weight=given.get("pos_weight"))
    assert_same(AverageTopKLoss(loss, fraction=1)(outputs, binary.unsqueeze(1)), theirs, outputs)
    poisoned = outputs.masked_fill(~kept.unsqueeze(1), float("nan"))
    assert_same(AverageTopKLoss(loss, fraction=1)(poisoned, binary.unsqueeze(1)), theirs, outputs)


@pytest.mark.parametrize("given", [{}, {"normalized": True}], ids=str)
def test_smps_focal_loss_filters_for_itself(given: dict[str, Any]) -> None:
    """It returns the losses of what is labelled alone, flat: each finds its place again."""
    outputs, targets, kept = pictures()
    binary = targets.clamp(max=1).masked_fill(~kept, 255)
    outputs = outputs[:, 0].detach().requires_grad_()
    loss = smp.FocalLoss("binary", reduction=None, ignore_index=255, **given)
    theirs = smp.FocalLoss("binary", ignore_index=255, **given)
    assert_same(AverageTopKLoss(loss, fraction=1)(outputs, binary), theirs(outputs, binary), outputs)
    mask = torch.arange(8).expand(4, 8, 8) % 2 == 0
    poisoned = outputs.masked_fill(~mask, float("nan"))
    ours = AverageTopKLoss(loss, fraction=1)(poisoned, binary.masked_fill(~mask, 77), mask=mask)
    expected = theirs(outputs[mask], binary[mask])
    if not given:
        assert_same(ours, expected, outputs)
    hard = OHEMLoss(loss, threshold=1e-6).select(outputs, binary)
    assert torch.equal(hard.kept.reshape(binary.shape), kept & (hard.weights.reshape(binary.shape) > 0))


@pytest.mark.parametrize("use_softmax", [False, True])
def test_monais_focal_loss_is_its_mean_over_what_is_labelled(use_softmax: bool) -> None:
    outputs, targets, kept = pictures()
    given = {"to_onehot_y": True, "use_softmax": use_softmax, "weight": [1.0, 2.0, 3.0]}
    every = monai.FocalLoss(reduction="none", **given)(outputs, targets.masked_fill(~kept, 0).unsqueeze(1))
    theirs = every.movedim(1, -1)[kept].mean()
    for reduction in ("none", monai.FocalLoss(reduction="none").reduction):
        loss = monai.FocalLoss(reduction=reduction, ignore_index=255, **given)
        for one in (targets.unsqueeze(1), targets.unsqueeze(1).float()):
            assert_same(AverageTopKLoss(loss, fraction=1)(outputs, one), theirs, outputs)


def test_monais_losses_of_regions_are_ranked_by_region() -> None:
    outputs, targets, kept = pictures()
    labels = targets.masked_fill(~kept, 0).unsqueeze(1)
    given = {"softmax": True, "to_onehot_y": True}
    for kind in (monai.DiceLoss, monai.TverskyLoss, monai.GeneralizedDiceLoss):
        assert_same(
            AverageTopKLoss(kind(reduction="none", **given), fraction=1)(outputs, labels),
            kind(**given)(outputs, labels),
            outputs,
        )


@pytest.mark.parametrize(
    "loss",
    [
        smp.SoftCrossEntropyLoss(ignore_index=255),
        smp.FocalLoss("binary"),
        smp.DiceLoss("multiclass"),
        monai.FocalLoss(),
        monai.DiceLoss(reduction="sum"),
    ],
    ids=lambda one: type(one).__name__,
)
def test_what_is_reduced_is_refused_by_name(loss: nn.Module) -> None:
    with pytest.raises(
        ValueError, match=rf"must not be reduced; got {type(loss).__name__} with reduction=.*CompoundLoss"
    ):
        AverageTopKLoss(loss, fraction=0.3)


def test_torchvisions_and_timms_elements() -> None:
    ops, timm = pytest.importorskip("torchvision.ops"), pytest.importorskip("timm.loss")
    outputs, targets, _ = pictures()
    truth = targets.clamp(max=1).unsqueeze(1).expand_as(outputs).float()
    theirs = ops.sigmoid_focal_loss(outputs, truth, reduction="mean")
    assert_same(AverageTopKLoss(ops.sigmoid_focal_loss, fraction=1)(outputs, truth), theirs, outputs)
    given: dict[str, Any] = {"smoothing": 0.0}
    ours = AverageTopKLoss(timm.BinaryCrossEntropy(reduction="none", **given), fraction=1)
    rows, labels = outputs[:, :, 0, 0], torch.tensor([0, 1, 2, 0])
    assert_same(ours(rows, labels), timm.BinaryCrossEntropy(**given)(rows, labels), outputs)
    with pytest.raises(ValueError, match="already reduced"):
        AverageTopKLoss(timm.SoftTargetCrossEntropy(), fraction=1)(rows, rows.softmax(1))


# In a sum


def test_smps_dice_in_a_sum() -> None:
    outputs, targets, _ = pictures()
    dice = smp.DiceLoss("multiclass", ignore_index=255)
    both = CompoundLoss([MINED, dice], weights=[1, 0.5])
    assert_same(both(outputs, targets), MINED(outputs, targets) + 0.5 * dice(outputs, targets), outputs)
    assert [one is None for one in both.select(outputs, targets)] == [False, True]
    for kind in (
        smp.JaccardLoss("multiclass"),
        smp.LovaszLoss("multiclass", ignore_index=255),
        smp.TverskyLoss("multiclass"),
    ):
        assert CompoundLoss([MINED, kind])(outputs, targets.clamp(max=2)).isfinite()


def test_monais_dice_in_a_sum_and_at_several_scales() -> None:
    outputs, targets, kept = pictures()
    labels = targets.masked_fill(~kept, 0)
    dice = monai.DiceLoss(softmax=True, to_onehot_y=True)
    both = CompoundLoss([MINED, lambda outputs, targets: dice(outputs, targets[:, None])])
    expected = MINED(outputs, labels) + dice(outputs, labels[:, None])
    assert_same(both(outputs, labels), expected, outputs)
    scales = DeepSupervisionLoss(both, weights=[1, 0.5])
    coarse = F.avg_pool2d(outputs, 2)
    nearest = labels[:, 1::2, 1::2]
    expected = (both(outputs, labels) + 0.5 * both(coarse, nearest)) / 1.5
    assert_same(scales([outputs, coarse], [labels, nearest]), expected, outputs)
    assert_same(scales([outputs, coarse], labels), expected, outputs)


def test_monais_masked_loss_gets_the_mask() -> None:
    outputs, targets, kept = pictures()
    labels, mask = targets.masked_fill(~kept, 0)[:, None], kept[:, None]
    masked = monai.MaskedDiceLoss(softmax=True, to_onehot_y=True)
    both = CompoundLoss([masked])
    assert_same(both(outputs, labels, mask=mask), masked(outputs, labels, mask=mask), outputs)
    with pytest.raises(TypeError, match="`mask` must be None for DiceLoss"):
        CompoundLoss([monai.DiceLoss(softmax=True, to_onehot_y=True)])(outputs, labels, mask=mask)


# In other people's loops: the lines as they stand there


def test_monais_line() -> None:
    """Its targets are (B, 1, H, W)."""
    outputs, targets, _ = pictures()
    loss = lambda o, t: MINED(o, t[:, 0])  # noqa: E731
    assert_same(loss(outputs, targets.unsqueeze(1)), MINED(outputs, targets), outputs)


def test_a_model_of_smp_trains() -> None:
    import segmentation_models_pytorch

    torch.manual_seed(0)
    model = segmentation_models_pytorch.Unet(
        "resnet18", encoder_weights=None, classes=3, encoder_depth=3, decoder_channels=(16, 8, 8)
    )
    criterion = CompoundLoss([MINED, smp.DiceLoss("multiclass", ignore_index=255)])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    images, targets = torch.randn(2, 3, 32, 32), torch.randint(3, (2, 32, 32))
    targets[:, :8] = 255
    values = []
    for _ in range(3):
        loss = criterion(model(images), targets)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        values.append(loss.item())
    assert values[-1] < values[0]


def test_fastais_way() -> None:
    """Its `Learner` calls ``loss_func(outputs, targets)`` and moves what has ``to``: a sum is moved with its parts."""
    outputs, targets, _ = pictures()
    both = CompoundLoss([MINED, smp.DiceLoss("multiclass", ignore_index=255)]).to("cpu").double()
    assert both(outputs.double(), targets).dtype == torch.float64
    ssd = HardNegativeLoss(smp.SoftCrossEntropyLoss(reduction="none", ignore_index=255, smooth_factor=0.0), ratio=1)
    ours = HardNegativeLoss(nn.CrossEntropyLoss(reduction="none", ignore_index=255), ratio=1)
    assert_same(ssd(outputs, targets), ours(outputs, targets), outputs)
