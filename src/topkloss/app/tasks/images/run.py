"""A finished run, opened: what was asked, the names of the classes, the model with its weights, how images enter it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn
from torchvision.transforms import v2

from topkloss.app.data.bad import MOST_PIXELS
from topkloss.app.data.dataset import preparation
from topkloss.app.data.layout import check_pixel_range
from topkloss.app.errors import InputError
from topkloss.app.options.devices import device_named
from topkloss.app.options.option import known
from topkloss.app.tasks.images.config import check_colours
from topkloss.app.tasks.images.models import create_model
from topkloss.app.tasks.images.records import WEIGHTS, RunRecord, TrainConfig

__all__ = ["Run", "load_run"]


@dataclass(frozen=True)
class Run:
    """What evaluates, predicts and exports.

    Attributes:
        folder: Where it was loaded from.
        config: What was asked.
        digest: Of the table that it was trained on.
        sizes: Digest of the sizes of the images that it was trained on.
        classes: Names of the classes, in the order of the model's outputs.
        model: From prepared images (N, 3, size, size) to logits (N, C); in evaluation mode.
        image_size: Height and width that images are resized to, in pixels.
        mean: Of the channels, in [0, 1]: what is subtracted.
        std: Of the channels, in [0, 1]: what is divided by.
    """

    folder: Path
    config: TrainConfig
    digest: str
    sizes: str
    classes: tuple[str, ...]
    model: nn.Module
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def prepare(self) -> v2.Transform:
        """From what `topkloss.app.data.decoding.decode` returns, a PIL image for one, to what the model takes."""
        return preparation(self.image_size, self.mean, self.std)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device


def load_run(folder: str | Path, *, device: str | torch.device | None = None) -> Run:
    """Opens the folder of a finished run. No code of its files is run: they are read as tensors and numbers.

    Args:
        folder: Of the run.
        device: For the model, as `--device` names it; None for the GPU where there is one.

    Raises:
        InputError: One sentence, if it is not finished, not whole, not of this program or does not fit together.
    """
    folder, device = Path(folder), device_named(str(device or "auto"))
    record = _record(folder)
    config = record.config
    model = create_model(config.model, len(record.classes))
    path = folder / WEIGHTS
    try:
        weights = load_file(path)
        model.load_state_dict(weights)
    except Exception as error:  # a file of any content
        raise InputError(
            f"{path} must hold the weights of {config.model} for {len(record.classes)} classes; got {_reason(error)}. "
            "Copy the folder of the run whole, or train again."
        ) from error
    if not all(bool(weight.isfinite().all()) for weight in weights.values()):
        raise InputError(f"{path} must hold finite weights; got NaN or infinity. Train again, with a smaller --lr.")
    return Run(
        folder=folder,
        config=config,
        digest=record.data["digest"],
        sizes=record.data["images"],
        classes=record.classes,
        model=model.eval().to(device),
        image_size=known(config.image_size, "image-size"),
        mean=tuple(known(config.mean, "mean")),
        std=tuple(known(config.std, "std")),
    )


def _record(folder: Path) -> RunRecord:
    """What the run says of itself, as far as it is needed here of the types that it should have."""
    record = RunRecord.read(folder)
    check_colours(record.config)
    check_pixel_range(record.config.pixel_range)
    size, data = record.config.image_size, record.data if isinstance(record.data, dict) else {}
    if size is None or not 1 <= size <= MOST_PIXELS**0.5:
        wrong = f"image-size: {size}"
    elif record.config.mean is None or record.config.std is None:
        wrong = "no mean and std of the images"
    elif not _names(data.get("classes")) or not all(isinstance(data.get(name), str) for name in ("digest", "images")):
        wrong = "no names of classes and digests of the data"
    else:
        return record
    raise InputError(
        f"{folder} must be the folder of a finished run, as `topkloss train` wrote it; got {wrong}. "
        "Copy the folder of the run whole, or train again."
    )


def _names(classes: object) -> bool:
    """Two or more, all different."""
    return (
        isinstance(classes, list)
        and all(isinstance(name, str) for name in classes)
        and len(set(classes)) == len(classes) > 1
    )


def _reason(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if "state_dict for" in str(error):
        return "weights of another shape or name"
    return f"a file that cannot be read as tensors ({type(error).__name__})"
