"""Which numbers of outputs, targets and losses belong to one element: decided by shapes, never by values."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def spread(gone: Tensor, over: Tensor, classes_first: bool = False) -> Tensor | None:
    """What does not count, as it lies in a tensor of another shape, to broadcast; None where that is not known.

    Args:
        gone: Bool, True = does not count.
        over: Outputs, targets or losses.
        classes_first: Whether dimension 1 of `over` is known to be the one that `gone` lacks.

    Example:
        >>> spread(torch.tensor([True, False]), torch.zeros(2, 3))
        tensor([[ True],
                [False]])
    """
    shape, wanted = gone.shape, over.shape
    if shape == wanted:
        return gone
    is_rows = gone.dim() < over.dim() and wanted[: gone.dim()] == shape
    is_classes = over.dim() > 1 and wanted[:1] + wanted[2:] == shape
    if is_rows and is_classes and gone.dim() > 1 and not classes_first:
        return None  # (N, 4) lacks either dimension of (N, 4, 4)
    if is_classes:
        return gone.unsqueeze(1)
    if is_rows:
        return gone.reshape(*shape, *(1,) * (over.dim() - gone.dim()))
    if gone.dim() > 1 and shape[:1] + shape[2:] == wanted:
        return gone.all(dim=1)
    if over.dim() < gone.dim() and shape[: over.dim()] == wanted:
        return gone.flatten(over.dim()).all(dim=-1)
    if gone.dim() == over.dim() and all(
        1 in (one, other) or one == other for one, other in zip(shape, wanted, strict=True)
    ):
        for dim, (one, other) in enumerate(zip(shape, wanted, strict=True)):
            gone = gone.all(dim=dim, keepdim=True) if other == 1 < one else gone
        return gone
    if gone.numel() == over.numel() and 1 in (gone.dim(), over.dim()):
        return gone.reshape(wanted)
    return None


def mapped(tree: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """The function's answers in the place of the tensors of a tuple, list or dict."""
    if isinstance(tree, Tensor):
        return function(tree)
    if isinstance(tree, dict):
        copied = copy.copy(tree)
        copied.update({name: mapped(one, function) for name, one in tree.items()})
        return copied
    if isinstance(tree, tuple | list):
        every = [mapped(one, function) for one in tree]
        return type(tree)(*every) if hasattr(tree, "_fields") else type(tree)(every)
    return tree


def tensors_of(tree: Any) -> list[Tensor]:
    """The tensors of a tuple, list or dict."""
    if isinstance(tree, Tensor):
        return [tree]
    parts = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, tuple | list) else ()
    return [found for one in parts for found in tensors_of(one)]


def check_no_broadcast(losses: Tensor, outputs: Tensor, targets: Tensor) -> None:
    """A number of losses that no broadcast made.

    Raises:
        ValueError: If the losses have the shape to which outputs and targets of other shapes broadcast: then outputs
            meet targets that are not theirs.
    """
    if outputs.shape == targets.shape or 0 in (outputs.dim(), targets.dim()):
        return
    same_number = outputs.numel() == targets.numel() == losses.numel()
    keeps_dim = outputs.dim() > 1 and targets.shape == (*outputs.shape[:1], 1, *outputs.shape[2:])
    is_index = targets.shape == outputs.shape[:1] + outputs.shape[2:] and not targets.is_floating_point()
    of_outputs = losses.shape == outputs.shape and (keeps_dim or is_index)  # one-hot inside the loss
    broadcast = _broadcast(outputs.shape, targets.shape)
    flat = broadcast is not None and losses.dim() == 1 and losses.numel() > max(outputs.numel(), targets.numel())
    made_so = tuple(losses.shape) == broadcast or (flat and losses.numel() == math.prod(broadcast or ()))
    if not made_so or same_number or of_outputs:
        return
    if outputs.dim() == targets.dim() + 1 and outputs.shape[1] == 1:
        hint = "For a head of one number pass outputs[:, 0], or targets.unsqueeze(1)."
    elif targets.dim() == outputs.dim() + 1 and targets.shape[1] == 1:
        hint = "Pass targets[:, 0], or outputs.unsqueeze(1)."
    else:
        hint = "Where one target is meant for several outputs pass targets.expand_as(outputs)."
    raise ValueError(
        f"`outputs` and `targets` must have the same shape for this loss; got {tuple(outputs.shape)} and "
        f"{tuple(targets.shape)}, which it broadcasts to {broadcast} losses. {hint}"
    )


def _broadcast(shape: torch.Size, other: torch.Size) -> tuple[int, ...] | None:
    """To which both are broadcast; None = they are not."""
    longer, shorter = (shape, other) if len(shape) >= len(other) else (other, shape)
    padded = (1,) * (len(longer) - len(shorter)) + tuple(shorter)
    if not all(1 in pair or pair[0] == pair[1] for pair in zip(longer, padded, strict=True)):
        return None
    return tuple(two if one == 1 else one for one, two in zip(longer, padded, strict=True))


def check_examples(losses: Tensor, outputs: Tensor) -> None:
    """The examples in the first dimension of the losses.

    Raises:
        ValueError: If there are more or fewer.
    """
    if losses.dim() > 0 and outputs.dim() > 0 and len(losses) != len(outputs):
        raise ValueError(
            "the losses must have the examples in their first dimension to be told apart by sample; got losses of "
            f"shape {tuple(losses.shape)} for outputs of shape {tuple(outputs.shape)}. Let the loss return (N, ...)."
        )


def losses_of_kept(losses: Tensor, kept: Tensor | None, targets: Tensor) -> Tensor:
    """The losses, flat and 0 where ignored, of a loss that returns those of the targets that it keeps."""
    if kept is None or losses.dim() != 1 or losses.numel() >= targets.numel() or targets.shape == losses.shape:
        return losses
    if len(losses) == len(targets) or losses.numel() != int(kept.sum()):
        return losses
    return losses.new_zeros(targets.numel()).masked_scatter(kept.reshape(-1), losses)
