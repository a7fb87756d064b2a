"""Parts of a sum: criteria that select, and losses of others that return one number."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from topkloss.criteria.criterion import OfElements
from topkloss.losses.elements import ElementLoss

# Losses of torch that take outputs and targets of different shapes.
BROADCASTING = (
    *(nn.MSELoss, nn.L1Loss, nn.SmoothL1Loss, nn.HuberLoss, nn.HingeEmbeddingLoss, nn.KLDivLoss, nn.PoissonNLLLoss),
    *(F.mse_loss, F.l1_loss, F.smooth_l1_loss, F.huber_loss, F.hinge_embedding_loss, F.kl_div, F.poisson_nll_loss),
)


class Selections(list[Any]):
    """What each part of a sum selected, None where it selects nothing.

    Attributes:
        values: The value of each part that returns one number, else None.
    """

    def __init__(self, entries: Iterable[Any]) -> None:
        entries = list(entries)
        super().__init__(None if isinstance(one, Tensor) else one for one in entries)
        self.values = [one if isinstance(one, Tensor) else None for one in entries]


class WholeLoss(nn.Module):
    """A loss of another library that returns one number for all outputs: it selects nothing.

    Args:
        name: Of the argument that it was given as.
        loss: Called as ``loss(outputs, targets)``, and with ``mask=`` where it has such an argument.

    Raises:
        TypeError: If it cannot be called, or says that it returns one number per element.
    """

    def __init__(self, name: str, loss: Callable[..., Any]) -> None:
        super().__init__()
        reduction = getattr(getattr(loss, "reduction", None), "value", getattr(loss, "reduction", None))
        if isinstance(loss, type) or not callable(loss) or isinstance(loss, ElementLoss) or reduction == "none":
            got = f"the class {loss.__name__}" if isinstance(loss, type) else type(loss).__name__
            raise TypeError(
                f"`{name}` must be of topkloss, like AverageTopKLoss, or return one number; got {got}. For the plain "
                "mean of a loss that is not reduced pass AverageTopKLoss(loss, fraction=1)."
            )
        self.loss = loss
        self.takes_mask = _takes_mask(loss)

    def forward(self, outputs: Any, targets: Any, *, mask: Tensor | None = None) -> Tensor:
        """The number.

        Args:
            outputs, targets: What the loss takes.
            mask: Handed on to a loss that takes one.
        """
        if mask is not None and not self.takes_mask:
            raise TypeError(
                f"`mask` must be None for {self.name}, which takes none, so it would see what does not count; got a "
                "mask. Give it the label to ignore, or pass a function of (outputs, targets, mask) that calls it."
            )
        value = self.loss(outputs, targets) if mask is None else self.loss(outputs, targets, mask=mask)
        if isinstance(value, Tensor) and mask is None:
            self._check_shapes(value, outputs, targets)
        if not (isinstance(value, Tensor) and value.dim() == 0):
            got = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(
                f"{self.name} must return one number, a 0-dim tensor, to be part of a sum; got {got}. For the plain "
                "mean of a loss that is not reduced pass AverageTopKLoss(loss, fraction=1)."
            )
        return value

    def _check_shapes(self, value: Tensor, outputs: Any, targets: Any) -> None:
        """Outputs that decide the value, and in a loss of torch meet their own targets alone."""
        from topkloss.losses.probes import check_sees_outputs  # only here: what is imported at once is to be light
        from topkloss.losses.shapes import check_no_broadcast

        check_sees_outputs(self.loss, value, outputs, targets)
        kind = getattr(self.loss, "func", self.loss)
        kind = type(kind) if isinstance(kind, nn.Module) else kind
        if kind in BROADCASTING and isinstance(outputs, Tensor) and outputs.shape != targets.shape:
            losses = torch.add(*(torch.empty(one.shape, device="meta") for one in (outputs, targets)))
            check_no_broadcast(losses, outputs, targets)

    def select(self, outputs: Any, targets: Any, *, mask: Tensor | None = None, scale: float = 1.0) -> Tensor:
        """The number itself: nothing is selected."""
        return self(outputs, targets, mask=mask)  # type: ignore[no-any-return]

    elements = select

    def select_elements(self, elements: Tensor) -> Tensor:
        """The number that `elements` returned."""
        return elements

    def total(self, selection: Tensor | None) -> Tensor:
        """The number that `select` returned."""
        if selection is None:
            raise TypeError(
                f"`selections` must be what `select` returned, which holds the value of {self.name} beside its "
                "selection; got a list without. Pass it on as it is."
            )
        return selection

    @property
    def name(self) -> str:
        """Of the module's class, or of the function."""
        return getattr(self.loss, "__name__", type(self.loss).__name__)

    def extra_repr(self) -> str:
        """The function; a module follows by itself."""
        return "" if isinstance(self.loss, nn.Module) else self.name


class Sum(nn.Module):
    """A criterion of criteria."""


def part_of_sum(name: str, criterion: Any) -> Any:
    """What is summed: a criterion as it is, anything else as a loss of the whole."""
    return criterion if isinstance(criterion, OfElements | Sum | WholeLoss) else WholeLoss(name, criterion)


def computed(weights: Sequence[float], parts: Iterable[Any]) -> list[Any]:
    """The parts, None where the weight is 0."""
    return [part if weight > 0 else None for weight, part in zip(weights, parts, strict=True)]


def total_of(weights: Sequence[float], parts: Iterable[Any], selections: Sequence[Any]) -> Tensor:
    """The weighted sum, of what each part selected."""
    values = getattr(selections, "values", [None] * len(selections))
    rows = zip(weights, parts, selections, values, strict=True)
    totals = [weight * part.total(one if value is None else value) for weight, part, one, value in rows if weight > 0]
    return torch.stack(totals).sum()


def in_order(name: str, given: Any, names: list[str] | None) -> list[Any]:
    """One for each weight: a sequence as it is, what is named in the order of the names.

    Raises:
        TypeError: If it is a tensor, or names are asked for that it has not.
        ValueError: If its names are others.
    """
    if isinstance(given, Tensor):
        raise TypeError(
            f"`{name}` must be one tensor per scale, in a list or by name; got a tensor of shape "
            f"{tuple(given.shape)}. Of scales stacked in dimension 1 pass {name}.unbind(1); of one scale [{name}]."
        )
    if isinstance(given, Mapping):
        if names is not None and set(given) != set(names):
            raise ValueError(
                f"`{name}` must have the names of `weights`, {', '.join(names)}; got {', '.join(map(str, given))}. "
                "Give a part that is not wanted the weight 0."
            )
        return [given[one] for one in names or given]
    if names is not None:
        raise TypeError(
            f"`{name}` must be by name where the weights are, {', '.join(names)}; got {type(given).__name__}. Pass the "
            "weights as a list, in the same order."
        )
    return list(given)


def _takes_mask(loss: Any) -> bool:
    try:
        parameters = inspect.signature(loss.forward if isinstance(loss, nn.Module) else loss).parameters
    except (TypeError, ValueError):  # a builtin has no signature
        return False
    return "mask" in parameters
