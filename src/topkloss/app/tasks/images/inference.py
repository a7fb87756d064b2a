"""Images through the model of a run, in batches: the logits of each, or why there are none."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from topkloss.app.data.decoding import BadImage, cut_off, decode, suffixes
from topkloss.app.options.option import check_count
from topkloss.app.options.workers import bearing, workers_that_pay
from topkloss.app.progress import counted, noted
from topkloss.app.tasks.images.loaders import image_bytes
from topkloss.app.tasks.images.run import Run

__all__ = ["SUFFIXES", "Item", "outputs"]

SUFFIXES = suffixes()

Item = tuple[Tensor | None, str]
Batch = tuple[Tensor, list[str]]


def outputs(run: Run, paths: Sequence[Path], *, batch_size: int = 64, workers: int | None = 0) -> Iterator[Item]:
    """The logits of each image, in order, as they come: float64 on the CPU, or None and the reason.

    Shows how far it is, and before that what the run's range of pixels cuts off.

    Args:
        run: Whose model.
        paths: Of images; what cannot be read costs nothing but its own place.
        batch_size: Images that pass through the model together.
        workers: Processes that load images beside this one; None for as many as pay.

    Raises:
        InputError: If an option is out of range or a process that loads images ends.
    """
    check_count("batch_size", batch_size, 1)
    check_count("workers", workers, 0)
    images = _Images(paths, run)
    noted(cut_off(paths, images.pixel_range))
    if workers is None:
        workers = workers_that_pay(images.__getitem__, len(paths), 1, batch_size * image_bytes(run.image_size))
    return counted(_outputs(run, images, batch_size, workers), len(paths), "classified")


def _outputs(run: Run, images: _Images, batch_size: int, workers: int) -> Iterator[Item]:
    loader: Any = DataLoader(images, batch_size=batch_size, num_workers=workers, collate_fn=_together)
    with bearing(workers):
        yield from _logits(run, loader)


def _logits(run: Run, loader: Iterable[Batch]) -> Iterator[Item]:
    for batch, reasons in loader:
        with torch.inference_mode():
            logits = iter(run.model(batch.to(run.device)).double().cpu() if len(batch) else ())
        for reason in reasons:
            if reason:
                yield None, reason
                continue
            row: Tensor = next(logits)
            yield (row, "") if bool(row.isfinite().all()) else (None, "the model's output is not finite")


class _Images(Dataset[Item]):
    def __init__(self, paths: Sequence[Path], run: Run) -> None:
        self.paths = paths
        self.prepare, self.pixel_range = run.prepare, run.config.data_options.shades

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, place: int) -> Item:
        try:
            return self.prepare(decode(self.paths[place], self.pixel_range)), ""
        except BadImage as bad:
            return None, bad.reason


def _together(items: list[Item]) -> Batch:
    """The images that there are, and the reason, or none, at each place."""
    images = [image for image, _ in items if image is not None]
    return torch.stack(images) if images else torch.empty(0), [reason for _, reason in items]
