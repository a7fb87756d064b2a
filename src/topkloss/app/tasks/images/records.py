"""What a run was asked, what happened in each epoch, what came out: frozen records, read and written as files.

Nothing here needs torch, so that a report reads runs in an instant.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from topkloss.app.errors import InputError, in_command
from topkloss.app.options.file import RECORDED, given
from topkloss.app.runs.files import replacing
from topkloss.app.tasks.images.config import TrainConfig, options

__all__ = ["LOSSES", "WEIGHTS", "EpochRecord", "RunHeader", "RunRecord", "TrainConfig", "write_epochs"]

# In the folder of a finished run, beside the records.
WEIGHTS = "model.safetensors"

# A line for each image: what is predicted, and its cross-entropy.
LOSSES = "losses.csv"

# Fields of a `RunRecord` that stand in metrics.json under their names.
MEASURED = ("recall", "support", "gradient", "time", "seconds", "best_epoch")

# Of these, what runs of earlier versions have not.
NEWER = ("best_epoch",)


@dataclass(frozen=True)
class EpochRecord:
    """What happened in an epoch; losses are in nats.

    Attributes:
        epoch: 1, 2, ...
        train_loss: Mean over the steps of what was minimised.
        train_cross_entropy: Mean over the same images of the loss before anything was selected: the cross-entropy,
            weighed and smoothed where that was asked, or the focal loss.
        cross_entropy: Mean over the held-out images.
        accuracy: Share of the held-out images that are classified right.
        fraction: The fraction asked in the last step.
        threshold: Mean over the steps of the loss from which an image was kept.
        kept: Share of the images that had any weight.
    """

    epoch: int
    train_loss: float
    train_cross_entropy: float
    cross_entropy: float
    accuracy: float
    fraction: float = 1.0
    threshold: float = 0.0
    kept: float = 1.0


@dataclass(frozen=True)
class RunHeader:
    """What ``config.yaml`` holds from the start of a run.

    Attributes:
        config: What was asked, what follows from the data filled in; its paths are absolute.
        versions: Of the packages that decide the numbers.
        threads: Of torch on the CPU; another number of them rounds sums otherwise.
        processes: That train together.
        data: Digests (SHA-256) of the table, `digest`, of the sizes of its images, `images`, and of which of them are
            held out, `measured`; numbers of images trained on, `train`, held out, `held_out`, and left out as bad,
            `skipped`; names of the classes in the order of the outputs, `classes`.
    """

    config: TrainConfig
    versions: dict[str, str]
    threads: int
    processes: int
    data: dict[str, Any]

    def write(self, folder: Path) -> None:
        """Writes ``config.yaml``: a file of options, without the folder, beside what else decides the numbers."""
        import yaml

        asked = {name.replace("_", "-"): value for name, value in asdict(self.config).items() if name != "out"}
        asked = {name: list(value) if isinstance(value, tuple) else value for name, value in asked.items()}
        recorded = {one.name: getattr(self, one.name) for one in fields(self) if one.name != "config"}
        with replacing(folder / "config.yaml") as partial:
            text = yaml.safe_dump({**asked, RECORDED: recorded}, sort_keys=False, allow_unicode=True)
            partial.write_text(text, encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> RunHeader:
        """Reads what `write` wrote.

        Raises:
            InputError: If the folder holds no run.
        """
        import yaml

        path = folder / "config.yaml"
        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
            recorded = content.pop(RECORDED)
            return cls(TrainConfig(**given(content, str(path), options()), out=str(folder)), **recorded)
        except InputError:
            raise
        except (OSError, ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError) as error:
            reason = " ".join((getattr(error, "strerror", None) or str(error)).split())
            raise InputError(
                f"{folder} must be the folder of a run, with config.yaml; got {type(error).__name__}: {reason}. "
                "`topkloss train` makes one."
            ) from error


@dataclass(frozen=True)
class RunRecord:
    """A finished run.

    Attributes:
        config, versions, threads, processes, data: See `RunHeader`.
        epochs: In order.
        recall: Of each class on the held-out images, in [0, 1]; `support` has their number.
        support: Held-out images of each class.
        seconds: In the epochs, from the first batch to the last metric.
        gradient: Of each class its share of the weights in the epoch that the weights are of, so of the gradient.
        time: Shares of the training time in the last epoch: `waiting` for data, and of a step, `criterion`.
        best_epoch: The epoch that the weights are of, under early stopping; None for the last.
    """

    config: TrainConfig
    versions: dict[str, str]
    threads: int
    data: dict[str, Any]
    epochs: tuple[EpochRecord, ...]
    recall: dict[str, float]
    support: dict[str, int]
    seconds: float
    processes: int = 1
    gradient: dict[str, float] = field(default_factory=dict)
    time: dict[str, float] = field(default_factory=dict)
    best_epoch: int | None = None

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the model's outputs."""
        return tuple(self.data["classes"])

    @property
    def last(self) -> EpochRecord:
        """The epoch that the weights are of: the last one, or under early stopping the last that was better."""
        return self.epochs[-1 if self.best_epoch is None else self.best_epoch - 1]

    def write(self, folder: Path) -> None:
        """Writes ``config.yaml``, ``metrics.csv`` and, last, ``metrics.json``: where it is, the run is finished."""
        RunHeader(**{one.name: getattr(self, one.name) for one in fields(RunHeader)}).write(folder)
        write_epochs(folder, self.epochs)
        metrics = {key: value for key, value in asdict(self.last).items() if key != "epoch"}
        metrics |= {name: getattr(self, name) for name in MEASURED}
        with replacing(folder / "metrics.json") as partial:
            text = json.dumps({"epochs": len(self.epochs), **metrics}, indent=2, ensure_ascii=False)
            partial.write_text(text + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> RunRecord:
        """Reads what `write` wrote.

        Raises:
            InputError: If the folder holds no finished run.
        """
        header = RunHeader.read(folder)
        try:
            metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
            with (folder / "metrics.csv").open(newline="", encoding="utf-8") as file:
                rows = list(csv.DictReader(file))
            if not rows:
                raise ValueError("no epoch in metrics.csv")
            return cls(
                **{one.name: getattr(header, one.name) for one in fields(RunHeader)},
                epochs=tuple(
                    EpochRecord(int(row.pop("epoch")), **{name: float(value) for name, value in row.items()})
                    for row in rows
                ),
                **{name: metrics[name] for name in MEASURED if name in metrics or name not in NEWER},
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            finished = (folder / "metrics.json").exists()
            hint = (
                "Copy it whole, or train again"
                if finished
                else f"`topkloss train --resume {in_command(folder)}` finishes it"
            )
            raise InputError(
                f"{folder} must be the folder of a finished run, with metrics.json and metrics.csv; "
                f"got {type(error).__name__}: {error}. {hint}."
            ) from error


def write_epochs(folder: Path, epochs: Sequence[EpochRecord]) -> None:
    """Writes ``metrics.csv``, a line for each epoch."""
    with replacing(folder / "metrics.csv") as path, path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [one.name for one in fields(EpochRecord)])
        writer.writeheader()
        writer.writerows(asdict(epoch) for epoch in epochs)
