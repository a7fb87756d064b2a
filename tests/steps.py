"""A small training problem for every criterion, whole or in micro-batches, in one process or in several."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import topkloss
from topkloss import WORLD, AverageTopKCrossEntropyLoss, AverageTopKLoss, CrossEntropy, RegionLoss, SelectiveStep
from topkloss.losses import dice_loss

WEIGHT = torch.tensor([1.0, 0.5, 2.0], dtype=torch.float64)
CE = partial(CrossEntropy, ignore_index=255)

# name -> the criterion, given its process group. Outputs are logits (N, 3, 4, 4), targets (N, 4, 4).
CRITERIA: dict[str, Callable[[Any], nn.Module]] = {
    "top-k": lambda group: AverageTopKCrossEntropyLoss(fraction=0.3, ignore_index=255, process_group=group),
    "top-k of k": lambda group: AverageTopKCrossEntropyLoss(k=17.5, ignore_index=255, process_group=group),
    "class weights, smoothed": lambda group: AverageTopKCrossEntropyLoss(
        fraction=0.3, weight=WEIGHT, label_smoothing=0.1, ignore_index=255, process_group=group
    ),
    "mean": lambda group: AverageTopKCrossEntropyLoss(fraction=1, ignore_index=255, process_group=group),
    "of samples": lambda group: AverageTopKLoss(CE(), k=2.5, level="sample", process_group=group),
    "within samples": lambda group: AverageTopKLoss(CE(), fraction=0.3, within="sample", process_group=group),
    "within classes": lambda group: AverageTopKLoss(CE(), k=3.5, within="class", process_group=group),
    "omitting NaN": lambda group: AverageTopKLoss(CE(), k=5, nan_policy="omit", process_group=group),
    "ranked range": lambda group: topkloss.AverageRankedRangeLoss(
        CE(), fraction=0.3, drop_fraction=0.05, process_group=group
    ),
    "ranked range in samples": lambda group: topkloss.AverageRankedRangeLoss(
        CE(), k=3, drop=1.5, within="sample", process_group=group
    ),
    "OHEM": lambda group: topkloss.OHEMLoss(CE(), threshold=1.0, min_kept=20, process_group=group),
    "OHEM without a floor": lambda group: topkloss.OHEMLoss(CE(), threshold=1.2, process_group=group),
    "hard negatives": lambda group: topkloss.HardNegativeLoss(CE(), ratio=0.5, process_group=group),
    "hard negatives in samples": lambda group: topkloss.HardNegativeLoss(
        CE(), ratio=0.5, within="sample", process_group=group
    ),
    "dual": lambda group: topkloss.DualAverageTopKLoss(CE(), fraction=0.3, threshold=0.9, process_group=group),
    "smoothed dual": lambda group: topkloss.DualAverageTopKLoss(
        CE(), fraction=0.3, smoothing=0.1, threshold=0.9, process_group=group
    ),
    "compound": lambda group: topkloss.CompoundLoss(
        [
            AverageTopKCrossEntropyLoss(fraction=0.2, ignore_index=255, process_group=group),
            AverageTopKLoss(RegionLoss(dice_loss, ignore_index=255), fraction=1, process_group=group),
        ],
        weights=[1.0, 0.5],
    ),
    "sum with a dual": lambda group: topkloss.CompoundLoss(
        [
            AverageTopKCrossEntropyLoss(k=7, ignore_index=255, process_group=group),
            topkloss.DualAverageTopKLoss(CE(), fraction=0.3, threshold=0.9, process_group=group),
        ]
    ),
    "hardest regions": lambda group: AverageTopKLoss(
        RegionLoss(dice_loss, ignore_index=255), fraction=0.4, within="class", process_group=group
    ),
    "deep supervision": lambda group: topkloss.DeepSupervisionLoss(
        AverageTopKCrossEntropyLoss(k=20, ignore_index=255, process_group=group), weights=[1.0, 0.5]
    ),
}

STEPS = 5


class Net(nn.Module):
    """1x1 convolutions, so that no image is coupled with another."""

    def __init__(self, scales: int) -> None:
        super().__init__()
        self.scales = scales
        self.body = nn.Sequential(nn.Conv2d(2, 8, 1), nn.Tanh(), nn.Conv2d(8, 3, 1))

    def forward(self, images: Tensor) -> Tensor | list[Tensor]:
        """Logits, at several scales where asked."""
        outputs: Tensor = self.body(images)
        return [outputs, outputs[:, :, ::2, ::2]] if self.scales > 1 else outputs


def problem(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Images, some of them alike so that losses tie, and labels, some of them ignored."""
    torch.manual_seed(0)
    images, labels = torch.randn(12, 2, 4, 4, dtype=dtype), torch.randint(0, 3, (12, 4, 4))
    images[8], labels[8] = images[2], labels[2]
    labels[3] = 255
    labels[5, :2] = 255
    return images, labels


def trained(
    name: str,
    part: tuple[int, int],
    dtype: torch.dtype = torch.float64,
    wrap: Any = DistributedDataParallel,
    micro_batch: int = 0,
) -> tuple[list[float], list[list[float]]]:
    """The losses of the steps, and the parameters after them, of the criterion's too; in micro-batches where asked."""
    images, labels = (tensor[slice(*part)] for tensor in problem(dtype))
    torch.manual_seed(1)
    model: nn.Module = Net(scales=2 if name == "deep supervision" else 1).to(dtype)
    if dist.is_initialized():
        model = wrap(model)
    criterion = CRITERIA[name](WORLD).to(dtype)
    optimizer = torch.optim.SGD([*model.parameters(), *criterion.parameters()], lr=0.3)
    step = None
    if micro_batch:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that skipping cannot pay where all is selected
            step = SelectiveStep(model, criterion, micro_batch=micro_batch)  # type: ignore[arg-type]
    losses = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        if step is None:
            loss = criterion(model(images), labels)
            loss.backward()
        else:
            loss = step(images, labels).loss
        optimizer.step()
        losses.append(loss.item())
    parameters = [*model.parameters(), *criterion.parameters()]
    return losses, [getattr(one.detach(), "full_tensor", one.detach)().flatten().tolist() for one in parameters]


def difference(one: tuple[list[float], list[list[float]]], other: tuple[list[float], list[list[float]]]) -> float:
    """The largest, relative to the largest number of its kind."""
    pairs = [(one[0], other[0]), *zip(one[1], other[1], strict=True)]
    return max(max(abs(x - y) for x, y in zip(a, b, strict=True)) / max(abs(y) for y in b) for a, b in pairs)
