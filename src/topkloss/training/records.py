"""What a run was asked, what happened in each epoch, what came out: frozen records, read and written as files.

Nothing here needs torch, so that a report reads runs in an instant.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from topkloss.training.errors import InputError

__all__ = ["EpochRecord", "RunRecord", "TrainConfig", "replacing"]


@dataclass(frozen=True)
class TrainConfig:
    """What a run is asked. Its fields are the options of ``topkloss train``, its defaults theirs.

    Attributes:
        csv: A table with the columns `image` and `label`; None for the embedded digits.
        images: The folder that image paths start from; None for the folder of the CSV.
        loss: "top-k", or "average", which is plain cross-entropy.
        fraction: The share of each batch that is averaged, the hardest; None for 0.7, or 1 under "average".
        model: Name of a timm model, trained from scratch.
        image_size: Height and width that images are resized to, in pixels; None for the model's own, 32 for the digits.
        epochs: Passes over the training images.
        batch_size: Images of a step, per process.
        lr: Learning rate of Adam at the start; it falls to 0 along a cosine.
        seed: Decides the split, the initial weights and the order of images.
        workers: Processes that load images beside the main one.
        skip_easy: Rank each batch first, and back-propagate the selected images only.
        out: The folder of the run; None for one under ``runs/`` named after what was asked.
    """

    csv: str | None = None
    images: str | None = None
    loss: Literal["top-k", "average"] = "top-k"
    fraction: float | None = None
    model: str = "resnet10t"
    image_size: int | None = None
    epochs: int = 4
    batch_size: int = 64
    lr: float = 1e-3
    seed: int = 0
    workers: int = 0
    skip_easy: bool = False
    out: str | None = None

    @property
    def share(self) -> float:
        """The fraction in effect: 1 is the average."""
        if self.fraction is not None:
            return self.fraction
        return 1.0 if self.loss == "average" else 0.7

    @property
    def folder(self) -> Path:
        """The folder of the run."""
        if self.out is not None:
            return Path(self.out)
        data = "digits" if self.csv is None else Path(self.csv).stem
        loss = "average" if self.share == 1 else f"top-k-{self.share:g}"
        return Path("runs") / f"{data}-{loss}-seed{self.seed}"


@dataclass(frozen=True)
class EpochRecord:
    """What happened in an epoch; losses are cross-entropies in nats.

    Attributes:
        epoch: 1, 2, ...
        train_loss: Mean over the batches of what was minimised: the average of the hardest share.
        train_cross_entropy: Mean over the same batches of the plain cross-entropy.
        cross_entropy: Mean over the held-out images.
        accuracy: Share of the held-out images that are classified right.
    """

    epoch: int
    train_loss: float
    train_cross_entropy: float
    cross_entropy: float
    accuracy: float


@dataclass(frozen=True)
class RunRecord:
    """A finished run.

    Attributes:
        config: What was asked.
        versions: Of the packages that decide the numbers.
        threads: Of torch on the CPU; another number of them rounds sums otherwise.
        data: Digest of the CSV (SHA-256), `digest`; names of the classes, `classes`, in the order of the model's
            outputs; number of images trained on, `train`, and held out, `held_out`.
        epochs: In order.
        recall: Of each class on the held-out images, in [0, 1]; `support` has their number.
        support: Held-out images of each class.
        seconds: From the first batch to the last metric.
    """

    config: TrainConfig
    versions: dict[str, str]
    threads: int
    data: dict[str, Any]
    epochs: tuple[EpochRecord, ...]
    recall: dict[str, float]
    support: dict[str, int]
    seconds: float

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the model's outputs."""
        return tuple(self.data["classes"])

    @property
    def last(self) -> EpochRecord:
        """The epoch that the checkpoint holds."""
        return self.epochs[-1]

    def write(self, folder: Path) -> None:
        """Writes ``config.json``, ``metrics.json`` and ``metrics.csv``."""
        _write_json(
            folder / "config.json",
            {**asdict(self.config), **{name: getattr(self, name) for name in ("versions", "threads", "data")}},
        )
        last = {key: value for key, value in asdict(self.last).items() if key != "epoch"}
        figures = {**last, "recall": self.recall, "support": self.support, "seconds": self.seconds}
        _write_json(folder / "metrics.json", {"epochs": len(self.epochs), **figures})
        with replacing(folder / "metrics.csv") as path, path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, [field.name for field in fields(EpochRecord)])
            writer.writeheader()
            writer.writerows(asdict(epoch) for epoch in self.epochs)

    @classmethod
    def read(cls, folder: Path) -> RunRecord:
        """Reads what `write` wrote.

        Raises:
            InputError: If the folder holds no finished run.
        """
        try:
            asked = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            figures = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
            with (folder / "metrics.csv").open(newline="", encoding="utf-8") as file:
                rows = list(csv.DictReader(file))
            if not rows:
                raise ValueError("no epoch in metrics.csv")
            return cls(
                config=TrainConfig(**{field.name: asked[field.name] for field in fields(TrainConfig)}),
                versions=asked["versions"],
                threads=asked["threads"],
                data=asked["data"],
                epochs=tuple(
                    EpochRecord(int(row.pop("epoch")), **{name: float(value) for name, value in row.items()})
                    for row in rows
                ),
                recall=figures["recall"],
                support=figures["support"],
                seconds=figures["seconds"],
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(
                f"{folder} must be the folder of a finished run, with config.json, metrics.json and metrics.csv; "
                f"got {type(error).__name__}: {error}. `topkloss train` makes one."
            ) from error


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path beside `path` to write to; renamed to it at the end, so that nobody ever reads half a file."""
    partial = path.with_name(f".partial-{path.name}")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    with replacing(path) as partial:
        partial.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
