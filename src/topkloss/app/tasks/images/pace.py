"""How far a whole run is, and how much time is left: a bar on a terminal, plain lines elsewhere, on standard error."""

from __future__ import annotations

import sys
import time

import lightning
from lightning.pytorch.callbacks import Callback
from tqdm import tqdm

from topkloss.app.progress import duration

__all__ = ["Pace"]

# Between two lines within an epoch, where there is no terminal.
SECONDS = 60.0

BAR = "{percentage:3.0f} %|{bar}| {desc}"


class Pace(Callback):
    """Counts the batches of all epochs, to train from and to measure by, each for as much as another.

    So what is left of a run is what its batches so far took, on average, times those to come; the mistake within an
    epoch, whose last batches are measured only, is gone at its end.

    Args:
        at_most: Whether the run may end earlier.
    """

    def __init__(self, *, at_most: bool = False) -> None:
        self.at_most, self.bar = at_most, None

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Starts the clock."""
        self.began = self.said = self.epoch_began = time.monotonic()
        self.first, self.epochs, self.done = trainer.current_epoch, trainer.max_epochs or 0, 0
        self.of_epoch = int(trainer.num_training_batches) + int(sum(trainer.num_val_batches))
        if trainer.is_global_zero and sys.stderr.isatty():
            total = self.epochs * self.of_epoch
            self.bar = tqdm(total=total, initial=self.first * self.of_epoch, bar_format=BAR, leave=False)

    def on_train_batch_end(self, trainer: lightning.Trainer, *_: object) -> None:
        """One batch more."""
        self._advance(trainer)

    def on_validation_batch_end(self, trainer: lightning.Trainer, *_: object) -> None:
        """One batch more."""
        self._advance(trainer)

    def on_exception(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, exception: BaseException
    ) -> None:
        """Leaves a clean line to whatever is said next."""
        self._close()

    def teardown(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        """Takes the bar away."""
        self._close()

    def of_last_epoch(self, *, is_last: bool) -> str:
        """What an epoch took that has just ended, and what is left; the next one begins.

        Args:
            is_last: Whether none follows.
        """
        now = time.monotonic()
        took, self.said, self.epoch_began = now - self.epoch_began, now, now
        if is_last or self.done == 0:
            return duration(took)
        return f"{duration(took)}, {self._left()} left"

    def _advance(self, trainer: lightning.Trainer) -> None:
        self.done += 1
        if not trainer.is_global_zero:
            return
        epoch, now = f"epoch {trainer.current_epoch + 1}/{self.epochs}", time.monotonic()
        place = (self.done - 1) % self.of_epoch + 1
        left = f"{duration(self._seconds(self.of_epoch - place))} of the epoch, {self._left()} of the run left"
        if self.bar is not None:
            self.bar.set_description_str(f"{epoch}; {left}", refresh=False)
            self.bar.update()
        elif now - self.said >= SECONDS:
            self.said = now
            print(f"{epoch}: {place} of {self.of_epoch} batches; {left}", file=sys.stderr, flush=True)

    def _left(self) -> str:
        to_come = (self.epochs - self.first) * self.of_epoch - self.done
        return f"{'at most ' if self.at_most else ''}{duration(self._seconds(to_come))}"

    def _seconds(self, batches: int) -> float:
        return (time.monotonic() - self.began) / self.done * batches

    def _close(self) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None
