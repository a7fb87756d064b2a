"""The task: classify images, the loss over what the criterion selects of each step, measured on held-out images."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, TypeAlias, cast

import lightning
import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy, MulticlassRecall

from topkloss.app.errors import InputError
from topkloss.app.tasks.images.config import TrainConfig
from topkloss.app.tasks.images.optimisation import create_fraction_schedule, create_optimizer, create_schedule
from topkloss.app.tasks.images.records import EpochRecord
from topkloss.base.processes import WORLD
from topkloss.criteria.criterion import Criterion
from topkloss.loop.monitor import Monitor
from topkloss.loop.selective import SelectiveStep

__all__ = ["ImageClassifier", "Progress"]

Batch: TypeAlias = tuple[Tensor, Tensor, Tensor]

# How often the criterion is timed after an epoch; the fastest counts.
TIMINGS = 5


class Progress:
    """What a run knows beside its weights: of every epoch its record, of the last one also the rest.

    Attributes:
        epochs: In order.
        best_epoch: Under early stopping the one whose weights are kept; else None.
        recall, gradient: See `RunRecord`; of the epoch whose weights are kept.
        time: See `RunRecord`.
        seconds: In all epochs.
    """

    def __init__(self) -> None:
        self.epochs: list[EpochRecord] = []
        self.best_epoch: int | None = None
        self.recall: dict[str, float] = {}
        self.gradient: dict[str, float] = {}
        self.time: dict[str, float] = {}
        self.seconds = 0.0

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers and words, for a checkpoint."""
        return {**vars(self), "epochs": [asdict(epoch) for epoch in self.epochs]}

    @classmethod
    def of(cls, state: dict[str, Any]) -> Progress:
        """From what `state_dict` returned."""
        progress = cls()
        vars(progress).update({**state, "epochs": [EpochRecord(**epoch) for epoch in state["epochs"]]})
        return progress


class ImageClassifier(lightning.LightningModule):
    """A model, its criterion and how both are trained.

    Every step is a `SelectiveStep`, which is a plain one where nothing is skipped and nothing accumulated.

    Args:
        config: From `checked`.
        model: From images (N, 3, H, W) to logits (N, C).
        criterion: See `create_criterion`.
        classes: Names of the classes.
        steps: Of an epoch.
    """

    def __init__(
        self, config: TrainConfig, model: nn.Module, criterion: Criterion, *, classes: Sequence[str], steps: int
    ) -> None:
        super().__init__()
        self.config, self.classes, self.steps = config, classes, steps
        self.format = torch.channels_last if config.channels_last else torch.preserve_format
        self.model = model.to(memory_format=self.format)
        if config.compile:
            self.model.compile()
        self.criterion = criterion
        self.automatic_optimization = False
        skips = {"start": 0, "end": None} if config.skip_easy else {"start": 1, "end": 1}  # from 1 to 1 is never
        asked: dict[str, Any] = {"micro_batch": config.batch_size, "backward": self.manual_backward, **skips}
        self.step = SelectiveStep(self.model, criterion, **asked)
        self.fraction_schedule = create_fraction_schedule(config, criterion, steps)
        self._ema: list[ModelEmaV3] = []  # in a list: it is no part of the model, and not trained
        self._ema_state: dict[str, Tensor] | None = None
        self._best: dict[str, Tensor] = {}  # weights, under timm's names
        self.monitor = Monitor(len(classes), process_group=WORLD)
        # every process measures all held-out images, so there is nothing to bring together
        self.cross_entropy = MeanMetric(nan_strategy="disable", sync_on_compute=False)  # a NaN must show
        self.accuracy = MulticlassAccuracy(len(classes), average="micro", sync_on_compute=False)
        self.recall = MulticlassRecall(len(classes), average="none", sync_on_compute=False)
        self.progress = Progress()

    def configure_optimizers(self) -> Optimizer:
        """And the schedule of its learning rate, which is a function of the number of steps."""
        optimizer = create_optimizer(self.config, self.model)
        self.schedule = create_schedule(self.config, optimizer, self.steps)
        return optimizer

    def on_fit_start(self) -> None:
        """Now that the model is on its device it can be averaged there."""
        if self.config.ema is not None:
            self._ema = [ModelEmaV3(self.model, decay=self.config.ema, use_warmup=True)]
            if self._ema_state is not None:
                self._ema[0].module.load_state_dict(self._ema_state)

    def training_step(self, batch: Batch, _: int) -> None:
        """Ranks the images of all processes, back-propagates, and makes a step."""
        images, labels, counts = batch
        optimizer = cast(LightningOptimizer, self.optimizers())  # there is one, and it is wrapped
        self.schedule.step_update(self.global_step)
        optimizer.zero_grad()
        stepped = self.step(images.to(memory_format=self.format), labels, mask=counts)
        optimizer.step()
        self.monitor.update(stepped.selection, labels)
        if self._ema:
            self._ema[0].update(self.model, step=self.global_step)
        self.fraction = getattr(self.criterion, "fraction", None)
        if self.fraction_schedule is not None:
            self.fraction_schedule.step()

    def on_validation_epoch_start(self) -> None:
        """Forgets the metrics of the epoch before."""
        for metric in (self.cross_entropy, self.accuracy, self.recall):
            metric.reset()

    def validation_step(self, batch: tuple[Tensor, Tensor], _: int) -> None:
        """Measures a batch of held-out images, by the averaged weights where there are any."""
        images, labels = batch
        logits = self._measured(images.to(memory_format=self.format)).float()
        self.cross_entropy.update(F.cross_entropy(logits, labels, reduction="none"))
        self.accuracy.update(logits, labels)
        self.recall.update(logits, labels)

    def on_validation_epoch_end(self) -> None:
        """Records the epoch, whose last batch came just before the held-out images."""
        mined = self.monitor.compute()
        epoch = EpochRecord(
            epoch=self.current_epoch + 1,
            train_loss=_rounded(mined.value),
            train_cross_entropy=_rounded(mined.average),
            cross_entropy=_rounded(self.cross_entropy.compute().item()),
            accuracy=_rounded(self.accuracy.compute().item()),
            fraction=_rounded(1.0 if self.fraction is None else self.fraction),
            threshold=_rounded(mined.threshold),
            kept=_rounded(mined.kept),
        )
        if not (math.isfinite(epoch.train_loss) and math.isfinite(epoch.cross_entropy)):
            raise InputError(
                f"`--lr` must be small enough for training to converge; got {self.config.lr:g}, and in epoch "
                f"{epoch.epoch} the loss is {epoch.train_loss}. Pass --lr {self.config.lr / 10:g}."
            )
        before = [one.cross_entropy for one in self.progress.epochs]
        if self.config.early_stopping is not None and all(epoch.cross_entropy < one for one in before):
            self.progress.best_epoch = epoch.epoch
            kept = self._measured.state_dict()
            self._best = {name: value.detach().cpu().clone() for name, value in kept.items()}
        if self.progress.best_epoch in (None, epoch.epoch):  # the weights would be those of this epoch
            self.progress.recall = self._of_classes(self.recall.compute().tolist())
            self.progress.gradient = self._of_classes(mined.gradient_of_class)
        self.progress.epochs.append(epoch)
        self.monitor.reset()

    @property
    def _measured(self) -> nn.Module:
        """The model whose weights are measured: the average of all steps, where one is kept."""
        averaged: nn.Module = self._ema[0].module if self._ema else self.model
        return averaged

    def seconds_of_criterion(self) -> float:
        """The seconds of one step: logits to loss and back, the fastest of a few."""
        images = min(self.config.batch_size * self.config.accumulate, 4096)
        chance = torch.Generator().manual_seed(0)
        logits = torch.randn(images, len(self.classes), generator=chance).to(self.device).requires_grad_()
        labels = torch.randint(len(self.classes), (images,), generator=chance).to(self.device)
        took = []
        for _ in range(TIMINGS):
            self._synchronise()
            start = time.perf_counter()
            torch.autograd.backward(self.criterion.select(logits, labels).value)
            self._synchronise()
            took.append(time.perf_counter() - start)
        return min(took)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """All that an epoch needs beside weights and optimiser; chance is seeded anew in each."""
        checkpoint["progress"] = self.progress.state_dict()
        checkpoint["step"] = self.step.state_dict()
        if self.fraction_schedule is not None:
            checkpoint["fraction_schedule"] = self.fraction_schedule.state_dict()
        if self._ema:
            checkpoint["ema"] = self._ema[0].module.state_dict()
        if self._best:
            checkpoint["best"] = self._best

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Takes from a checkpoint what `on_save_checkpoint` put there."""
        self.progress = Progress.of(checkpoint["progress"])
        self.step.load_state_dict(checkpoint["step"])
        if self.fraction_schedule is not None:
            self.fraction_schedule.load_state_dict(checkpoint["fraction_schedule"])
        self._ema_state = checkpoint.get("ema")
        self._best = checkpoint.get("best", {})

    def _of_classes(self, numbers: Sequence[float]) -> dict[str, float]:
        return dict(zip(self.classes, map(_rounded, numbers), strict=True))

    def _synchronise(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def _rounded(value: float) -> float:
    """The value with as many digits as float32 has."""
    return round(value, 7)
