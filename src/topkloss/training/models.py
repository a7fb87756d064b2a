"""A timm model by name, with fresh weights, and what its images look like."""

from __future__ import annotations

import difflib

import timm
import torch
from timm.data.config import resolve_model_data_config
from torch import nn

from topkloss.training.errors import InputError

__all__ = ["check_takes", "colours", "create_model", "own_size"]


def create_model(name: str, classes: int) -> nn.Module:
    """A model with one output per class; nothing is downloaded.

    Raises:
        InputError: If timm has no model of that name.
    """
    if ":" in name or not timm.is_model(name):  # a colon would fetch from elsewhere
        close = difflib.get_close_matches(name, timm.list_models(), n=3)
        advice = f"Did you mean {', '.join(close)}?" if close else "timm.list_models() lists them."
        raise InputError(f"`--model` must be the name of a timm model; got {name}. {advice}")
    model: nn.Module = timm.create_model(name, pretrained=False, num_classes=classes)
    return model


def own_size(model: nn.Module) -> int:
    """Height and width of the images that the model was designed for, in pixels."""
    size: int = resolve_model_data_config(model)["input_size"][-1]
    return size


def colours(model: nn.Module) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of the channels, in [0, 1], that the model's images are normalised by."""
    config = resolve_model_data_config(model)
    return config["mean"], config["std"]


def check_takes(model: nn.Module, name: str, image_size: int) -> None:
    """Tries one image.

    Raises:
        InputError: If the model does not take images of the size.
    """
    try:
        with torch.no_grad():
            model.eval()(torch.zeros(1, 3, image_size, image_size))
    except (RuntimeError, AssertionError, ValueError) as error:
        reason = str(error).partition("\n")[0].rstrip(".")
        raise InputError(
            f"`--image-size` must be one that {name} takes; got {image_size}: {reason}. "
            f"Pass --image-size {own_size(model)}."
        ) from error
    finally:
        model.train()
