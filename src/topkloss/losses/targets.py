"""What targets of classes are: indices or probabilities, decided by shape and type, never by value."""

from __future__ import annotations

import warnings
from typing import NamedTuple

import torch
from torch import Tensor

from topkloss.base.arguments import check_beside
from topkloss.base.tensors import values_are_readable

# No class, and what nobody ignores: of a target that is no whole number, where that cannot be said at once.
NOWHERE = -(2**40)

BINARY = 'For one logit per element take AverageTopKLoss(nn.BCEWithLogitsLoss(reduction="none"), ...).'
TWO_CHANNELS = "For a sigmoid of one channel pass torch.cat([torch.zeros_like(outputs), outputs], dim=1)."
MARGIN = "For one margin per element take `hinge_loss` with targets of -1 and +1."


class Batch(NamedTuple):
    """A batch as the losses read it."""

    outputs: Tensor  # logits, (N, C) or (N, C, d1, ...)
    targets: Tensor  # int64, (N,) or (N, d1, ...); or probabilities, floating point, shaped like the outputs
    mask: Tensor | None  # shaped like the losses, (N,) or (N, d1, ...)
    sample_weight: Tensor | None
    is_batched: bool = True  # False: it was one element, (C,)

    @property
    def of_probabilities(self) -> bool:
        """Whether each element has a probability for each class."""
        return self.targets.is_floating_point()


def read_batch(
    outputs: Tensor,
    targets: Tensor,
    *,
    mask: Tensor | None = None,
    sample_weight: Tensor | None = None,
    one_channel: str = BINARY,
    of_regions: bool = False,
) -> Batch:
    """Outputs and targets whose types and shapes fit.

    Class indices may have a channel of their own, (N, 1, d1, ...), and a floating type; so may what stands beside them.

    Args:
        outputs: Logits, (N, C), (N, C, d1, ...) or (C,), floating point.
        targets: Indices, (N,), (N, d1, ...), (N, 1, d1, ...) or a scalar; or probabilities, shaped like the outputs.
        mask, sample_weight: Shaped like the targets, or like the losses.
        one_channel: The way out where there is one class.
        of_regions: They are images or volumes, never the tokens of a language model.

    Raises:
        TypeError: If they are no tensors, or of another type.
        ValueError: If shapes do not fit; or a readable counted index is no whole number.
    """
    _check_tensors(outputs, targets)
    if outputs.dim() == 1 and targets.dim() == 0:
        beside = (one[None] if isinstance(one, Tensor) and not one.dim() else one for one in (mask, sample_weight))
        mask, sample_weight = beside
        batch = read_batch(outputs[None], targets[None], mask=mask, sample_weight=sample_weight)
        return batch._replace(is_batched=False)
    if outputs.dim() < 2:
        is_same = targets.shape == outputs.shape and targets.is_floating_point()
        soft = " For the probabilities of one element pass outputs[None] and targets[None]." if is_same else ""
        raise ValueError(
            "`targets` must be a scalar beside the logits of one element, shape (C,); "
            f"got {tuple(outputs.shape)} and {tuple(targets.shape)}. {BINARY}{soft}"
        )
    check_classes(outputs, one_channel)
    of_elements = outputs.shape[:1] + outputs.shape[2:]
    is_index = targets.shape == of_elements or _has_channel(targets, outputs)
    if not (is_index or targets.shape == outputs.shape):
        raise _misfit(outputs, targets)
    _check_dtype(outputs, targets, is_index)
    targets = targets.squeeze(1) if _has_channel(targets, outputs) else targets
    mask, sample_weight = (
        one.squeeze(1) if one is not None and _has_channel(one, outputs) else one for one in (mask, sample_weight)
    )
    if is_index:
        check_beside("targets", targets, mask=mask, sample_weight=sample_weight)
        if not of_regions:
            warn_of_a_square(outputs)
        targets = _indices(targets, mask)
    else:
        check_beside("outputs[:, 0]", outputs[:, 0], mask=mask, sample_weight=sample_weight)
        _check_dimension(targets)
    return Batch(outputs, targets, mask, sample_weight)


def check_classes(outputs: Tensor, one_channel: str = BINARY) -> None:
    """Two classes or more.

    Raises:
        ValueError: If there is one.
    """
    if outputs.shape[1] == 1:
        raise ValueError(
            f"`outputs` must have two classes or more, in dimension 1; got {tuple(outputs.shape)}, whose softmax is 1 "
            f"whatever they are. {one_channel}"
        )


def _check_tensors(outputs: Tensor, targets: Tensor) -> None:
    if not isinstance(outputs, Tensor):
        raise TypeError(
            f"`outputs` must be a tensor of logits; got {type(outputs).__name__}. Of what a model returns pass the "
            'logits alone, e.g. outputs["out"].'
        )
    if not isinstance(targets, Tensor):
        raise TypeError(
            f"`targets` must be a tensor of class indices; got {type(targets).__name__}. Pass torch.as_tensor(targets)."
        )
    if not outputs.is_floating_point():
        raise TypeError(f"`outputs` must be floating-point logits; got {outputs.dtype}. Pass outputs.float().")


def _has_channel(tensor: Tensor, outputs: Tensor) -> bool:
    """Whether it has one number for each element, and a dimension of its own where the classes are."""
    if not isinstance(tensor, Tensor) or tensor.dim() != outputs.dim():
        return False
    return tensor.shape == (outputs.shape[0], 1, *outputs.shape[2:])


def _check_dtype(outputs: Tensor, targets: Tensor, is_index: bool) -> None:
    """Indices of a type that holds every class; probabilities of a floating type."""
    dtype, classes = targets.dtype, outputs.shape[1]
    if not is_index:
        if not targets.is_floating_point():
            raise TypeError(
                f"`targets` shaped like the outputs must be probabilities, of a floating type; got {dtype}. "
                "Of one-hot targets pass targets.float()."
            )
        return
    if targets.is_complex() or dtype == torch.bool:
        raise TypeError(f"`targets` must be class indices; got {dtype}. Pass targets.long().")
    if targets.is_floating_point() and classes - 1 > 2 / torch.finfo(dtype).eps:
        raise TypeError(
            f"`targets` must be of a type that holds all {classes} classes; got {dtype}, which rounds them. "
            "Keep them as torch.int64."
        )


def _indices(targets: Tensor, mask: Tensor | None) -> Tensor:
    """Class indices as int64; of a floating type, whole numbers where counted."""
    if not targets.is_floating_point():
        return targets.long()  # in uint8, -100 would be the class 156
    targets = targets.detach()
    if mask is not None:
        targets = targets.masked_fill(~mask, 0)
    fits = (targets == targets.floor()) & (targets.abs() < 2**40)
    if values_are_readable(targets) and not bool(fits.all()):
        raise ValueError(
            "`targets` of one number per element must be class indices, whole numbers where counted; "
            f"got {targets[~fits][0]:g}. For probabilities pass one of each class, in the shape of the outputs."
        )
    return torch.where(fits, targets, NOWHERE).long()


def _check_dimension(targets: Tensor) -> None:
    """The probabilities of an element are those of dimension 1, and not, by their sums, those of the last.

    Of the first element alone, but where that is suspect: to read all would cost as much as the loss.
    """
    if targets.dim() < 3 or targets.numel() == 0 or not values_are_readable(targets):
        return
    targets, near = targets.detach(), 0.01
    first = targets[(0, *(slice(None) if dim == 1 else 0 for dim in range(1, targets.dim())))]
    last = targets[(0,) * (targets.dim() - 1)]
    if abs(first.sum().item() - 1) <= near or not abs(last.sum().item() - 1) <= near:
        return
    if bool(((targets.sum(-1) - 1).abs() <= near).all()):
        raise ValueError(
            "`targets` must have the probabilities of each element, which sum to 1, in dimension 1; got "
            f"{tuple(targets.shape)} with sums of 1 over the last. If the classes are the last dimension, pass "
            "outputs.movedim(-1, 1) and targets.movedim(-1, 1)."
        )


def warn_of_a_square(outputs: Tensor) -> None:
    """Says it where (B, T, C) cannot be told from (N, C, d1) by its shape, and lies as if it were the former.

    Two tokens of two classes are nobody's.
    """
    if outputs.dim() != 3 or outputs.shape[1] != outputs.shape[2] or outputs.shape[1] == 2:
        return
    if torch.compiler.is_compiling() or outputs.stride(2) != 1:
        return
    warnings.warn(
        f"`outputs` of shape {tuple(outputs.shape)} are read with the classes in dimension 1. If they are (B, T, C), "
        "of a language model, pass outputs.movedim(-1, 1); if not, outputs[..., None] with targets[..., None] say so.",
        stacklevel=4,
    )


def _misfit(outputs: Tensor, targets: Tensor) -> ValueError:
    """The error about shapes that do not fit, with the way out that they show."""
    shape, given = tuple(outputs.shape), tuple(targets.shape)
    of_elements = shape[:1] + shape[2:]
    index = given[:1] + given[2:] if len(given) == len(shape) else given
    if len(shape) > 2 and given == shape[:-1]:
        hint = "The classes are dimension 1: pass outputs.movedim(-1, 1)."
    elif len(shape) > 2 and given == (*shape[:-1], 1):
        hint = "The classes are dimension 1: pass outputs.movedim(-1, 1) and targets.movedim(-1, 1)."
    elif len(given) == len(shape) and len(shape) > 2 and (*given[:1], *given[-1:], *given[1:-1]) == shape:
        hint = "The classes are dimension 1: pass targets.movedim(-1, 1)."
    elif len(shape) > 2 and len(given) == len(shape) - 1 and given[:1] == shape[:1]:
        hint = "For outputs of another size pass F.interpolate(outputs, size=targets.shape[1:])."
    elif len(given) == len(shape) > 2 and given[1] in (1, shape[1]) and given[0] == shape[0]:
        hint = "For outputs of another size pass F.interpolate(outputs, size=targets.shape[2:])."
    elif len(given) == len(shape) and index == of_elements:
        hint = f"Probabilities are one of each class of the outputs: make {given[1]} outputs, not {shape[1]}."
    elif targets.numel() == outputs.numel() // max(shape[1], 1):
        hint = f"Pass targets.reshape({of_elements})."
    elif given[1:] == of_elements[1:] or (index[1:] == of_elements[1:] and given[1:2] in ((1,), shape[1:2])):
        hint = "Each sample of the batch needs its own target: pass both of the same batch."
    else:
        hint = f"One class index for each element has the shape {of_elements}."
    return ValueError(
        "`outputs` must have shape (N, C) or (N, C, d1, ...) and `targets` the same without C, or with the "
        f"probabilities of each class; got {shape} and {given}. {hint}"
    )
