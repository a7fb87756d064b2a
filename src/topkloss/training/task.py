"""The task: classify images, the loss over the hardest share of each batch, measured on the held-out images."""

from __future__ import annotations

import math
from collections.abc import Sequence

import lightning
import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import LRScheduler
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy, MulticlassRecall

from topkloss.criterion import AverageTopKCrossEntropyLoss
from topkloss.distributed import WORLD
from topkloss.selective import SelectiveStep
from topkloss.training.errors import InputError
from topkloss.training.records import EpochRecord

__all__ = ["ImageClassifier"]


class ImageClassifier(lightning.LightningModule):
    """Cross-entropy under AT_k, by Adam. ``fraction=1`` is the plain mean.

    Args:
        model: From images (N, 3, H, W) to logits (N, C).
        classes: Names of the classes.
        fraction: Share of each batch that is averaged, the hardest of all processes together.
        lr: Learning rate at the start.
        skip_easy: Most images of a batch: the selected ones alone are back-propagated; 0 = all are.
    """

    def __init__(
        self, model: nn.Module, classes: Sequence[str], *, fraction: float, lr: float, skip_easy: int = 0
    ) -> None:
        super().__init__()
        self.model = model
        self.classes = classes
        self.criterion = AverageTopKCrossEntropyLoss(fraction=fraction, process_group=WORLD)
        self.lr = lr
        # one micro-batch: then every process has one backward pass, as DistributedDataParallel expects
        self.step = (
            SelectiveStep(model, self.criterion, micro_batch=skip_easy, backward=self.manual_backward)
            if skip_easy
            else None
        )
        self.automatic_optimization = self.step is None
        self.train_loss = MeanMetric(nan_strategy="disable")  # a NaN must show
        self.train_cross_entropy = MeanMetric(nan_strategy="disable")
        # every process measures all held-out images, so there is nothing to bring together
        self.cross_entropy = MeanMetric(nan_strategy="disable", sync_on_compute=False)
        self.accuracy = MulticlassAccuracy(len(classes), average="micro", sync_on_compute=False)
        self.recall = MulticlassRecall(len(classes), average="none", sync_on_compute=False)
        self.epochs: list[EpochRecord] = []

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor | None:
        """The loss of a batch; None where the step is already made."""
        images, labels = batch
        if self.step is not None:
            self._step_selectively(self.step, images, labels)
            return None
        logits = self.model(images)
        loss: Tensor = self.criterion(logits, labels)
        self.train_loss.update(loss.detach())
        self.train_cross_entropy.update(F.cross_entropy(logits.detach(), labels))
        return loss

    def _step_selectively(self, step: SelectiveStep, images: Tensor, labels: Tensor) -> None:
        optimizer, schedule = self.optimizers(), self.lr_schedulers()
        assert isinstance(optimizer, LightningOptimizer)
        assert isinstance(schedule, LRScheduler)
        optimizer.zero_grad()
        selection = step(images, labels).selection
        optimizer.step()
        schedule.step()
        self.train_loss.update(selection.value)
        self.train_cross_entropy.update(selection.average)

    def on_validation_epoch_start(self) -> None:
        """Forgets the epoch before."""
        for metric in (self.cross_entropy, self.accuracy, self.recall):
            metric.reset()

    def validation_step(self, batch: tuple[Tensor, Tensor], _: int) -> None:
        """Measures a batch of held-out images."""
        images, labels = batch
        logits = self.model(images)
        self.cross_entropy.update(F.cross_entropy(logits, labels, reduction="none"))
        self.accuracy.update(logits, labels)
        self.recall.update(logits, labels)

    def on_validation_epoch_end(self) -> None:
        """Records the epoch, whose last batch came just before the held-out images."""
        epoch = EpochRecord(
            epoch=self.current_epoch + 1,
            train_loss=_number(self.train_loss.compute()),
            train_cross_entropy=_number(self.train_cross_entropy.compute()),
            cross_entropy=_number(self.cross_entropy.compute()),
            accuracy=_number(self.accuracy.compute()),
        )
        if not (math.isfinite(epoch.train_loss) and math.isfinite(epoch.cross_entropy)):
            raise InputError(
                f"`--lr` must be small enough for training to converge; got {self.lr:g}, and in epoch {epoch.epoch} "
                f"the loss is {epoch.train_loss}. Pass --lr {self.lr / 10:g}."
            )
        self.epochs.append(epoch)
        self.train_loss.reset()
        self.train_cross_entropy.reset()

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Adam, its learning rate falling to 0 along a cosine: so which batches come last matters little."""
        optimizer = torch.optim.Adam(self.parameters(), lr=self.lr)
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def recall_of_classes(self) -> dict[str, float]:
        """Recall of each class in the last epoch, in [0, 1]."""
        return dict(zip(self.classes, map(_number, self.recall.compute()), strict=True))


def _number(value: Tensor) -> float:
    """As many digits as float32 has."""
    return round(value.item(), 7)
