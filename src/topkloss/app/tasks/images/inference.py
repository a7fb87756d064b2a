"""Images through the model of a run, in batches: the logits of each, or why there are none."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from topkloss.app.data.decoding import BadImage, decode, suffixes
from topkloss.app.errors import InputError
from topkloss.app.options.option import check_count
from topkloss.app.progress import counted
from topkloss.app.tasks.images.run import Run

__all__ = ["SUFFIXES", "Item", "outputs"]

SUFFIXES = suffixes()

Item = tuple[Tensor | None, str]
Batch = tuple[Tensor, list[str]]


def outputs(run: Run, paths: Sequence[Path], *, batch_size: int = 64, workers: int = 0) -> Iterator[Item]:
    """The logits of each image, in order, as they come: float64 on the CPU, or None and the reason.

    Shows how far it is.

    Args:
        run: Whose model.
        paths: Of images; what cannot be read costs nothing but its own place.
        batch_size: Images that pass through the model together.
        workers: Processes that load images beside this one.

    Raises:
        InputError: If an option is out of range or a process that loads images ends.
    """
    check_count("batch_size", batch_size, 1)
    check_count("workers", workers, 0)
    return counted(_outputs(run, paths, batch_size, workers), len(paths), "classified")


def _outputs(run: Run, paths: Sequence[Path], batch_size: int, workers: int) -> Iterator[Item]:
    images = _Images(paths, run)
    loader: DataLoader[Item] = DataLoader(images, batch_size=batch_size, num_workers=workers, collate_fn=_together)
    for batch, reasons in _batches(loader, workers):
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


def _batches(loader: DataLoader[Item], workers: int) -> Iterator[Batch]:
    try:
        yield from loader
    except (OSError, RuntimeError) as error:
        if workers == 0:
            raise
        raise InputError(
            f"`--workers` must be as many processes as the machine bears; got {workers}, and one ended: "
            f"{str(error).partition('.')[0]}. Pass --workers 0."
        ) from error
