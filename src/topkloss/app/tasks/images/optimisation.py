"""From the words of a config: timm's optimisers and learning-rate schedules, the core's schedules of the fraction."""

from __future__ import annotations

from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.scheduler.scheduler import Scheduler
from torch import nn
from torch.optim import Optimizer

from topkloss.app.options.option import known
from topkloss.app.tasks.images.config import TrainConfig
from topkloss.criteria.criterion import Criterion
from topkloss.loop.schedule import CosineFraction, LinearFraction

__all__ = ["create_fraction_schedule", "create_optimizer", "create_schedule"]

# A step of exactly 0 learns nothing.
LEAST_LR = 1e-5


def create_optimizer(config: TrainConfig, model: nn.Module) -> Optimizer:
    """Weight decay spares biases and normalisations; sgd has a momentum of 0.9, by Nesterov."""
    optimizer: Optimizer = create_optimizer_v2(model, opt=config.opt, lr=config.lr, weight_decay=config.weight_decay)
    return optimizer


def create_schedule(config: TrainConfig, optimizer: Optimizer, steps: int) -> Scheduler:
    """The learning rate as a function of the number of steps made, ``step_update(number)``: so it needs no saving.

    Args:
        config: From `checked`.
        optimizer: Whose learning rate it sets.
        steps: Of an epoch.
    """
    schedule: Scheduler
    schedule, _ = create_scheduler_v2(
        optimizer,
        # steps of size 1 are no steps
        sched="cosine" if config.sched == "cosine" else "step",
        decay_rate=1.0,
        decay_epochs=config.epochs,
        num_epochs=config.epochs,
        warmup_epochs=config.warmup_epochs,
        warmup_lr=min(LEAST_LR, config.lr),
        step_on_epochs=False,
        updates_per_epoch=steps,
    )
    return schedule


def create_fraction_schedule(config: TrainConfig, criterion: Criterion, steps: int) -> LinearFraction | None:
    """Down from all to the fraction, a step of training each; None where it does not move."""
    if config.schedule == "constant":
        return None
    kind = CosineFraction if config.schedule == "cosine" else LinearFraction
    return kind(criterion, end=config.share, steps=known(config.schedule_epochs, "schedule-epochs") * steps)
