"""A timm model by name, with fresh weights or given ones, and what its images look like."""

from __future__ import annotations

import difflib
import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path

import timm
import torch
from safetensors import SafetensorError
from timm.data.config import resolve_model_data_config
from timm.models import load_state_dict
from torch import nn

from topkloss.app.errors import InputError

__all__ = ["check_takes", "colours", "create_model", "load_weights", "own_size"]


def create_model(name: str, classes: int, *, pretrained: bool = False) -> nn.Module:
    """A model with one output per class.

    Args:
        name: Of timm.
        classes: How many.
        pretrained: With timm's weights, which are downloaded once, and a new last layer. Else nothing is downloaded.

    Raises:
        InputError: If timm has no model of that name, or the weights cannot be had.
    """
    if ":" in name or not timm.is_model(name):  # a colon would fetch from elsewhere
        close = difflib.get_close_matches(name, timm.list_models(), n=3)
        advice = f"Did you mean {', '.join(close)}?" if close else "timm.list_models() lists them."
        raise InputError(f"`--model` must be the name of a timm model; got {name}. {advice}")
    if pretrained and not timm.is_model_pretrained(name):
        raise InputError(
            f"`--pretrained` must come with a model that timm has weights of; got {name}, without any. "
            "Leave it out, or pass --weights."
        )
    try:
        model: nn.Module = timm.create_model(name, pretrained=pretrained, num_classes=classes)
    except Exception as error:
        if not pretrained:
            raise
        # huggingface_hub, urllib and httpx each have their own errors for "no network"
        raise InputError(
            f"`--pretrained` must find the weights of {name} in the cache or download them; got "
            f"{type(error).__name__}. Connect to the network, pass --weights with a file, or leave it out."
        ) from error
    return model


def load_weights(model: nn.Module, name: str, file: Path) -> None:
    """Loads weights, but for a last layer of other classes, which stays new.

    Where none of the names is timm's, the tensors of a .pth are taken in their order, and a warning says so: if there
    are as many as the model has, and each is of the shape and the kind (the last word of the name) of the one in its
    place. A .safetensors keeps no order.

    Args:
        model: Of timm.
        name: Its name.
        file: A .safetensors, or what torch.save wrote of a state dict; nothing in it is executed.

    Raises:
        InputError: If it cannot be read, or is of another model.
    """
    try:
        file.open("rb").close()  # timm prints a line of its own where there is none
        state = load_state_dict(str(file), device="cpu", weights_only=True)
        shapes = {key: tuple(value.shape) for key, value in state.items()}
    except (
        *(OSError, SafetensorError, pickle.UnpicklingError, AttributeError, EOFError),
        *(KeyError, RuntimeError, TypeError, ValueError),
    ) as error:
        reason = getattr(error, "strerror", None) or str(error).partition("\n")[0].rstrip(".") or "there is none"
        raise InputError(
            f"`--weights` must be a file of weights, .safetensors or .pth; got {file}: {reason}. Pass another."
        ) from error
    last = model.pretrained_cfg.get("classifier") or ()  # type: ignore[union-attr, operator]
    last = (last,) if isinstance(last, str) else tuple(last)
    own = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    of_last = {key for key in own if key.startswith(tuple(f"{layer}." for layer in last))}
    ordered = file.suffix != ".safetensors" and not own.keys() & shapes.keys()
    if ordered and _in_order(own, shapes, of_last):
        warnings.warn(
            f"{file} has none of the names of {name}: its {len(own)} tensors are taken in their order, in which shapes "
            "and kinds fit. Look whether the first epochs beat fresh weights.",
            stacklevel=1,
        )
        state = dict(zip(own, state.values(), strict=True))
        shapes = dict(zip(own, shapes.values(), strict=True))
    new = {key for key in of_last if shapes.get(key) != own[key]}
    wrong = [key for key in own if key not in new and shapes.get(key) != own[key]]
    wrong += [key for key in shapes if key not in own]
    if wrong:
        got = f"{shapes[wrong[0]]}" if wrong[0] in shapes else "nothing"
        raise InputError(
            f"`--weights` must hold the weights of {name}; got {file}, which has {got} as {wrong[0]!r}; "
            f"{len(wrong)} names or shapes differ. Pass the --model that they are of."
        )
    model.load_state_dict({key: value for key, value in state.items() if key not in new}, strict=False)


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


def _in_order(own: Mapping[str, tuple[int, ...]], given: Mapping[str, tuple[int, ...]], free: set[str]) -> bool:
    """Whether tensor after tensor is of the same kind and shape; of any shape in the ``free`` ones."""
    return len(own) == len(given) and all(
        mine.rpartition(".")[2] == theirs.rpartition(".")[2] and (mine in free or own[mine] == given[theirs])
        for mine, theirs in zip(own, given, strict=True)
    )
