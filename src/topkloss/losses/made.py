"""What a loss of another library was made of: read from modules, partials, functions, and what they hold."""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Whose losses are known to give each element a loss of its own outputs and target.
KNOWN = ("torch.nn.modules.loss", "torch.nn.functional", "torch._C._nn", "topkloss.losses.pointwise")

# Words by which a loss says that it returns one number.
REDUCING = ("mean", "sum", "batchmean", "elementwise_mean", "batchwise_mean")

# The methods of a module that are the module itself.
CALLED = ("forward", "__call__", "_wrapped_call_impl", "_call_impl")

# What torch ignores where nobody says otherwise.
IGNORED_BY_TORCH = -100


class Made:
    """A loss, and what it says of itself.

    Its ``ignore_index`` is read from the module, the keywords of a ``functools.partial`` or the defaults of a function,
    else from the cross-entropies that a module or function holds; modules are read at every call.

    Args:
        loss: Called as ``loss(outputs, targets)``.

    Raises:
        ValueError: If it says that it is reduced, or weighs classes in a way that cannot be honoured.
    """

    def __init__(self, loss: Callable[..., Any]) -> None:
        self.loss = loss
        self.origin = _origin(loss)
        self.named = _named(loss)
        self.held = [] if self._is_known_classifier() else [one for one in _held(loss) if _takes_classes(one)]
        self._check_reduction()
        self._check_class_weights()

    def _class_weights(self, targets: Any) -> Tensor | None:
        weight = self._own("weight")
        if weight is None or isinstance(weight, Tensor):
            return weight
        return torch.as_tensor(weight, dtype=torch.float32, device=targets.device)

    def _own(self, name: str, default: Any = None) -> Any:
        """What the loss was made of."""
        if name in self.named:
            return self.named[name]
        own = self.origin.__dict__ if isinstance(self.origin, nn.Module) else {}
        if name in own:
            value = own[name]
        elif name in own.get("_buffers", ()):  # where getattr of a module comes last
            value = own["_buffers"][name]
        elif "_parameters" in own and not hasattr(type(self.origin), name) and not _has(own, name):
            value = None
        else:
            value = getattr(self.origin, name, None)
        return default if value is None else value

    def _ignore_index(self) -> tuple[Any, bool]:
        """The label that it ignores, None where that is not known; and whether it only holds what ignores it."""
        own = self._own("ignore_index", IGNORED_BY_TORCH if self._is(nn.NLLLoss, F.nll_loss) else None)
        if own is not None:
            return own, False
        held = {getattr(one, "ignore_index", None) for one in self.held}
        return (held.pop(), True) if len(held) == 1 else (None, False)

    def _is(self, module: type[nn.Module], function: Callable[..., Any]) -> bool:
        """Whether it computes what this module of torch does, whoever derived from it and for whatever defaults."""
        origin = self.origin
        if not isinstance(origin, module):
            return origin is function
        hooked = origin._forward_hooks or origin._forward_pre_hooks or "forward" in vars(origin)
        return type(origin).forward is module.forward and not hooked

    def _is_of_torch(self) -> bool:
        """Whether an element's loss is known to depend on its own outputs and target alone."""
        if isinstance(self.origin, torch.jit.ScriptModule):  # whose class has no forward pass
            return False
        kind = self.origin if not isinstance(self.origin, nn.Module) else type(self.origin).forward
        return getattr(kind, "__module__", "") in KNOWN

    def _is_known_classifier(self) -> bool:
        return self.is_cross_entropy or self._is(nn.NLLLoss, F.nll_loss)

    def _check_reduction(self) -> None:
        reduction = self._own("reduction")
        reduction = getattr(reduction, "value", reduction)  # of an enumeration
        if isinstance(reduction, str) and reduction.lower() in REDUCING:
            raise ValueError(
                f'`loss` must not be reduced; got {self.name} with reduction="{reduction}", of which one number is '
                'left, so there is nothing to select from. Pass reduction="none" to it; a loss of the whole batch, '
                "like Dice, is a part of a CompoundLoss."
            )

    def _check_class_weights(self) -> None:
        weighted = isinstance(self.origin, nn.CrossEntropyLoss | nn.NLLLoss) and self._own("weight") is not None
        weighted = weighted or any(getattr(one, "weight", None) is not None for one in self.held)
        if weighted and not self._is_known_classifier():
            raise ValueError(
                f"`loss` must not weigh classes in a forward pass of its own; got {self.name} with weight=, whose mean "
                "is not known. Make it without, and pass the weight of each target's class as `sample_weight`."
            )

    @property
    def is_cross_entropy(self) -> bool:
        """Whether it computes torch's own."""
        return self._is(nn.CrossEntropyLoss, F.cross_entropy)

    @property
    def name(self) -> str:
        """Of the module's class, or of the function."""
        origin = self.origin
        return getattr(origin, "__name__", type(origin).__name__)


def _origin(loss: Any) -> Any:
    """The module or function itself: what a partial, a bound method or torch.compile wraps."""
    while True:
        if isinstance(loss, functools.partial):
            loss = loss.func
        elif isinstance(getattr(loss, "_orig_mod", None), nn.Module):
            loss = loss._orig_mod
        elif inspect.ismethod(loss) and isinstance(loss.__self__, nn.Module) and loss.__name__ in CALLED:
            loss = loss.__self__
        else:
            return loss


def _named(loss: Any) -> dict[str, Any]:
    """The keywords of a partial, above the defaults of its function."""
    given: dict[str, Any] = {}
    while isinstance(loss, functools.partial):
        given = {**loss.keywords, **given}
        loss = loss.func
    if isinstance(loss, nn.Module) or isinstance(getattr(loss, "__self__", None), nn.Module):
        return given
    with contextlib.suppress(TypeError, ValueError):  # a builtin has no signature
        parameters = inspect.signature(loss).parameters.values()
        given = {one.name: one.default for one in parameters if one.default is not one.empty} | given
    return {**given, "reduction": "none"} if given.get("reduce") is False else given  # torch's older word


def _has(own: dict[str, Any], name: str) -> bool:
    """Whether a module of these attributes has one that torch keeps apart."""
    return name in own["_parameters"] or name in own["_modules"]


def _held(loss: Any, depth: int = 0) -> Iterator[nn.Module]:
    """The modules that a loss calls, as far as it shows them: its parts, and what its function has from outside."""
    if isinstance(loss, nn.Module):
        yield from loss.modules()
    parts: list[Any] = []
    if isinstance(loss, functools.partial):
        parts = [loss.func, *loss.args, *loss.keywords.values()]
    elif inspect.ismethod(loss):
        parts = [loss.__self__, loss.__func__]
    elif inspect.isfunction(loss):
        parts = [cell.cell_contents for cell in loss.__closure__ or () if _is_filled(cell)]
        parts += [loss.__globals__[name] for name in loss.__code__.co_names if name in loss.__globals__]
        parts = [*parts, *(loss.__defaults__ or ()), *(loss.__kwdefaults__ or {}).values()]
    elif not isinstance(loss, type) and not inspect.isbuiltin(loss):
        parts = list(getattr(loss, "__dict__", {}).values())
    for one in parts:
        is_own = inspect.isfunction(one) and not one.__module__.startswith("torch")
        if isinstance(one, nn.Module) or (depth < 2 and (is_own or isinstance(one, functools.partial))):
            yield from _held(one, depth + 1)


def _is_filled(cell: Any) -> bool:
    try:
        return cell.cell_contents is not cell
    except ValueError:  # of a variable that has no value yet
        return False


def _takes_classes(module: nn.Module) -> bool:
    """Whether it is torch's, a subclass of it, or what torch.jit made of it."""
    if isinstance(module, nn.CrossEntropyLoss | nn.NLLLoss):
        return True
    return getattr(module, "original_name", "") in ("CrossEntropyLoss", "NLLLoss")
