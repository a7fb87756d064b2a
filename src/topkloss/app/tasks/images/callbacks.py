"""What happens around an epoch: chance is seeded, time is measured, a line is printed, a run stops early."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Sequence
from typing import cast

import lightning
from lightning.pytorch.callbacks import Callback, Checkpoint
from tqdm import tqdm

from topkloss.app.tasks.images.module import ImageClassifier, Progress
from topkloss.app.tasks.images.pace import Pace
from topkloss.app.tasks.images.records import EpochRecord
from topkloss.app.tasks.images.sampling import derived

__all__ = ["Clock", "Lines", "Seeding", "Stopping", "is_over", "line"]

# So many classes are named in the line of an epoch.
NAMED = 3


class Seeding(Callback):
    """Seeds every random state at the start of each epoch, for each process another."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_epoch_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """The epoch and the process say which."""
        lightning.seed_everything(derived(self.seed, trainer.current_epoch, trainer.global_rank, 0), verbose=False)


class Clock(Callback):
    """Measures an epoch: its length, and the shares of training that go to waiting for data and to the criterion."""

    def on_train_epoch_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Starts the clock."""
        self.began = self.ended = time.perf_counter()
        self.waited, self.steps = 0.0, 0

    def on_train_batch_start(self, trainer: lightning.Trainer, *_: object) -> None:
        """Counts the wait for the batch that is there now."""
        self.waited += time.perf_counter() - self.ended

    def on_train_batch_end(self, trainer: lightning.Trainer, *_: object) -> None:
        """Starts the wait for the next batch."""
        self.ended = time.perf_counter()
        self.steps += 1

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Notes the shares of time, once the held-out images are measured too."""
        module = cast(ImageClassifier, pl_module)
        progress, trained = module.progress, self.ended - self.began
        progress.seconds = round(progress.seconds + time.perf_counter() - self.began, 3)
        step = (trained - self.waited) / self.steps
        progress.time = {
            "waiting": round(self.waited / trained, 4),
            "criterion": round(module.seconds_of_criterion() / step, 4),
        }


class Lines(Checkpoint):
    """A line after each epoch, and the same numbers for the logger.

    Lightning calls checkpoints last, in the order they are given: what is printed is saved.

    Args:
        pace: Knows the time that is left.
    """

    def __init__(self, pace: Pace) -> None:
        self.pace = pace

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Prints it, from the first process."""
        module = cast(ImageClassifier, pl_module)
        if trainer.is_global_zero:
            is_last = trainer.should_stop or module.progress.epochs[-1].epoch == trainer.max_epochs
            told = f"{line(module.progress, trainer.max_epochs or 0)}  {self.pace.of_last_epoch(is_last=is_last)}"
            tqdm.write(told, file=sys.stdout)  # above a bar, where there is one
            sys.stdout.flush()
            numbers = {**vars(module.progress.epochs[-1]), **module.progress.time}
            epoch = numbers.pop("epoch")
            if trainer.logger is not None:
                trainer.logger.log_metrics(numbers, step=epoch)


class Stopping(Callback):
    """Ends a run where the epochs so far say so; a run that is taken up again comes to the same conclusion."""

    def __init__(self, patience: int | None) -> None:
        self.patience = patience

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Lightning then trains no further epoch."""
        module = cast(ImageClassifier, pl_module)
        trainer.should_stop = is_over(module.progress.epochs, trainer.max_epochs or 0, self.patience)


def is_over(epochs: Sequence[EpochRecord], most: int, patience: int | None) -> bool:
    """Whether all epochs were made, or the held-out cross-entropy of the last ``patience`` was no lower than before."""
    if len(epochs) >= most:
        return True
    if patience is None or len(epochs) <= patience:
        return False
    before = min(epoch.cross_entropy for epoch in epochs[:-patience])
    return all(not epoch.cross_entropy < before for epoch in epochs[-patience:])


def line(progress: Progress, most: int) -> str:
    """The last epoch in words: losses, accuracy, what was kept, and which classes had most of the gradient."""
    epoch = progress.epochs[-1]
    hardest = sorted(progress.gradient.items(), key=lambda item: -item[1])[:NAMED]
    above = "" if math.isinf(epoch.threshold) else f", from a loss of {epoch.threshold:.4f}"
    return (
        f"epoch {epoch.epoch}/{most}  loss {epoch.train_loss:.4f}  "
        f"held out: cross-entropy {epoch.cross_entropy:.4f}, accuracy {100 * epoch.accuracy:.1f} %  "
        f"kept {100 * epoch.kept:.1f} %{above}  "
        f"gradient: {', '.join(f'{name} {100 * share:.0f} %' for name, share in hardest)}"
    )
