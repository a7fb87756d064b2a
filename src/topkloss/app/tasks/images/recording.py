"""What a run says of each image that it held out, as a report compares it with another run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from topkloss.app.data.examples import ImageTable
from topkloss.app.options.option import known
from topkloss.app.runs.held_out import MODEL, HeldOut, Outputs, example
from topkloss.app.tasks.images.checkpoints import disk
from topkloss.app.tasks.images.config import TrainConfig
from topkloss.app.tasks.images.inference import outputs
from topkloss.app.tasks.images.records import WEIGHTS
from topkloss.app.tasks.images.run import Run

__all__ = ["held_out_of", "write_held_out"]


def held_out_of(table: ImageTable, places: Sequence[int], logits: Tensor) -> HeldOut:
    """The held-out images, each known by its bytes and its class, with their probabilities.

    Args:
        table: The data set.
        places: Of the images in it.
        logits: Of them, shape (N, C), float64.
    """
    examples = [table.examples[place] for place in places]
    labels = torch.tensor([one.label for one in examples])
    losses = F.cross_entropy(logits, labels, reduction="none")
    names = [table.classes[one.label] for one in examples]
    return HeldOut(
        examples=tuple(example(one.path.read_bytes(), name) for one, name in zip(examples, names, strict=True)),
        names=tuple(str(one.path.relative_to(table.listing.root)) for one in examples),
        labels=tuple(names),
        classes=table.classes,
        models={
            MODEL: Outputs(
                predictions=tuple(table.classes[place] for place in logits.argmax(1).tolist()),
                losses=tuple(losses.tolist()),
                scores=tuple(map(tuple, logits.softmax(1).tolist())),
            )
        },
    )


def write_held_out(
    folder: Path, config: TrainConfig, table: ImageTable, places: Sequence[int], model: nn.Module
) -> None:
    """Passes the held-out images through the weights that a run keeps, and records what they say.

    Nothing is recorded where a model overflows on one of them.

    Args:
        folder: Of the run, with its weights.
        config: Of the run.
        table: The data set.
        places: Of the held-out images in it.
        model: Whose weights are replaced by those of the folder.
    """
    model.load_state_dict(load_file(folder / WEIGHTS))
    run = Run(
        folder=folder,
        config=config,
        digest=table.digest,
        sizes="",
        classes=table.classes,
        model=model.to("cuda" if torch.cuda.is_available() else "cpu").eval(),
        image_size=known(config.image_size, "image-size"),
        mean=_three(config.mean, "mean"),
        std=_three(config.std, "std"),
    )
    paths = [table.examples[place].path for place in places]
    said = [logits for logits, _ in outputs(run, paths, batch_size=config.batch_size, workers=config.workers)]
    rows = [logits for logits in said if logits is not None]
    if len(rows) == len(places):
        with disk(folder, "what it says of the held-out images"):
            held_out_of(table, places, torch.stack(rows)).write(folder)


def _three(colours: Sequence[float] | None, name: str) -> tuple[float, ...]:
    return tuple(known(colours, name))
