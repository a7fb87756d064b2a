"""The data set that a run on images is of."""

from __future__ import annotations

from collections.abc import Sequence

from topkloss.app.data.dataset import data_path, read_table
from topkloss.app.data.examples import ImageTable
from topkloss.app.options.option import cores
from topkloss.app.options.workers import MOST
from topkloss.app.tasks.images.config import TrainConfig

__all__ = ["table_of"]


def table_of(config: TrainConfig, *, classes: Sequence[str] | None = None) -> ImageTable:
    """The data set that a config names; without one the embedded digits. See `read_table`."""
    workers = min(MOST, cores()) if config.workers is None else config.workers
    layout, skip_bad = config.data_options, config.on_bad_image == "skip"
    path = data_path(config.csv, layout)
    return read_table(path, layout, skip_bad=skip_bad, workers=workers, classes=classes)
