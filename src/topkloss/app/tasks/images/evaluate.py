"""A run on labelled images: its own held-out ones, or those of another table."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from topkloss.app.data.dataset import ImageTable, split
from topkloss.app.errors import InputError, shown
from topkloss.app.runs.classification import RESAMPLES, measure
from topkloss.app.runs.metrics import Evaluation, write_evaluation
from topkloss.app.tasks.images.inference import outputs
from topkloss.app.tasks.images.recording import held_out_of
from topkloss.app.tasks.images.run import Run
from topkloss.app.tasks.images.source import table_of

__all__ = ["evaluate", "write_evaluation"]

SEED = 0


def evaluate(
    run: Run,
    *,
    csv: str | Path | None = None,
    images: str | Path | None = None,
    batch_size: int = 64,
    workers: int | None = 0,
) -> Evaluation:
    """Measures a run; `topkloss.app.runs.classification.measure` defines the metrics.

    Args:
        run: From `topkloss.app.tasks.images.run.load_run`.
        csv: A table or a folder, laid out as that of the run, the labels among the run's classes. Default: the images
            that the run held out, which follow from its data and its seed.
        images: The folder that image paths start from; default: the one that the run was given, otherwise that of the
            table.
        batch_size: Images that pass through the model together.
        workers: Processes that load images beside this one.

    Raises:
        InputError: If the table cannot be read, or, the default, is no longer what the run was trained on, or its
            images are not; if an image cannot be read; if an option is out of range.
    """
    table, places = _held_out(run, images) if csv is None else _whole(run, csv, images)
    examples = [table.examples[place] for place in places]
    rows = []
    for example, (logits, reason) in zip(
        examples,
        outputs(run, [example.path for example in examples], batch_size=batch_size, workers=workers),
        strict=True,
    ):
        if logits is None:
            raise InputError(
                f"{table.listing.place(example.line)}: cannot read the image {example.path}: {reason}. "
                f"Replace it or {table.listing.removal}."
            )
        rows.append(logits)
    logits = torch.stack(rows)
    measures = measure(logits, torch.tensor([example.label for example in examples]), run.classes, seed=SEED)
    return Evaluation(
        run=str(run.folder),
        data=str(table.listing.source),
        digest=table.digest,
        held_out=csv is None,
        images=len(examples),
        metrics=measures.metrics,
        classes=measures.classes,
        confusion=measures.confusion,
        bins=measures.bins,
        resamples=RESAMPLES,
        seed=SEED,
        said=held_out_of(table, places, logits) if csv is None else None,
    )


def _whole(run: Run, csv: str | Path, images: str | Path | None) -> tuple[ImageTable, list[int]]:
    if images is None and not Path(csv).is_dir():
        images = run.config.images
    asked = replace(run.config, csv=str(csv), images=None if images is None else str(images))
    table = table_of(asked, classes=run.classes)
    return table, list(range(len(table.examples)))


def _held_out(run: Run, images: str | Path | None) -> tuple[ImageTable, list[int]]:
    """The images that the run has not seen, as the trainer chose them."""
    csv = run.config.csv
    if csv is not None and not Path(csv).exists():
        raise InputError(
            f"{run.folder} was trained on {csv}, which must be there to find its held-out images; got no such file. "
            "Put it back, or pass --data."
        )
    table = table_of(run.config if images is None else replace(run.config, images=str(images)))
    if (table.digest, table.classes) != (run.digest, run.classes):
        raise InputError(
            f"{table.listing.source} must be what {run.folder} was trained on; got another content, so nobody knows "
            "which images were held out. Restore it, or pass --data with images that the run has not seen."
        )
    if table.digest_of_sizes() != run.sizes:
        raise InputError(
            f"{shown(table.listing.root)} must hold the images that {run.folder} was trained on; got files of other "
            "sizes, which it may have seen or not. Restore them, or pass --data with images that the run has not seen."
        )
    return table, split(table, run.config.split, run.config.held_out)[1]
