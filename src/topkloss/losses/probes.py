"""What shapes do not say of a loss, and a second call of it on other numbers does; where values can be read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from topkloss.base.tensors import values_are_readable
from topkloss.losses.targets import BINARY

# Outputs between which every loss of them tells a difference.
APART = (-100.0, 100.0)


def check_sees_outputs(call: Callable[..., Any], losses: Tensor, outputs: Any, targets: Any) -> None:
    """Losses of one channel that are not 0 whatever the outputs are, as a softmax of one channel makes them.

    Args:
        call: The loss, which gave `losses`, one number for each element or one for all.
        losses, outputs, targets: Of this batch.

    Raises:
        ValueError: If all are 0, and stay so for other outputs.
    """
    if not (isinstance(outputs, Tensor) and isinstance(targets, Tensor)) or targets.is_floating_point():
        return
    if outputs.dim() < 2 or outputs.shape[1] != 1 or not values_are_readable(losses):
        return
    if losses.numel() == 0 or bool(losses.detach().any()) or not bool((targets == 0).any()):
        return  # of what is ignored alone, the loss is 0 for another reason
    for value in APART:
        other = _called(call, torch.full_like(outputs, value), targets)
        if other is None or bool(other.any()):
            return
    raise ValueError(
        f"`outputs` must have two classes or more, in dimension 1, for this loss; got {tuple(outputs.shape)}, of which "
        f"it is 0 whatever they are. {BINARY}"
    )


def check_own_examples(call: Callable[..., Any], losses: Tensor, outputs: Tensor, targets: Tensor) -> None:
    """Losses of (N, 1) beside (N,) that were not broadcast to N x N, and then reduced to N.

    Raises:
        ValueError: If those of two examples alone are others than in the batch.
    """
    longer, shorter = (outputs, targets) if outputs.dim() > targets.dim() else (targets, outputs)
    if longer.dim() != shorter.dim() + 1 or longer.shape[1] != 1 or longer.squeeze(1).shape != shorter.shape:
        return
    rows = 2 if len(losses) > 2 else 1
    if len(losses) != len(outputs) or len(losses) < 2 or not values_are_readable(losses):
        return
    alone = _called(call, outputs[:rows], targets[:rows])
    same = losses.detach()[:rows]
    if alone is None or (alone.shape == same.shape and torch.allclose(alone, same, rtol=1e-2, equal_nan=True)):
        return
    hint = "outputs[:, 0], or targets.unsqueeze(1)" if longer is outputs else "targets[:, 0], or outputs.unsqueeze(1)"
    raise ValueError(
        f"`outputs` and `targets` must have the same shape for this loss; got {tuple(outputs.shape)} and "
        f"{tuple(targets.shape)}, of which it gives an example another loss in a batch than alone. Pass {hint}."
    )


def _called(call: Callable[..., Any], outputs: Tensor, targets: Tensor) -> Tensor | None:
    """What it returns of other numbers, without gradient; None if it cannot be said."""
    try:
        with torch.no_grad():
            losses = call(outputs, targets)
    except Exception:  # it is not the batch that was given, so its refusal says nothing of it
        return None
    return losses if isinstance(losses, Tensor) else None
