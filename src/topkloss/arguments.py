"""What the caller may ask for, and the sentence that answers anything else.

Every sentence names the argument, what it must be, what came and one way out. Only free checks are here: none reads
the values of a tensor.
"""

from __future__ import annotations

import math
import numbers
from typing import Literal

import torch
from torch import Tensor

NanPolicy = Literal["propagate", "raise", "omit"]


def check_k(k: float | None, fraction: float | None) -> None:
    """Exactly one of `k` and `fraction`, and that one in range; free, so it is checked at once."""
    if (k is None) == (fraction is None):
        came = "neither" if k is None else f"k={k!r} and fraction={fraction!r}"
        raise ValueError(
            f"exactly one of `k` and `fraction` must be given; got {came}. "
            "For the 70 % hardest elements pass fraction=0.7."
        )
    if k is not None and not real_number("k", k) > 0:
        raise ValueError(f"`k` must satisfy k > 0; got {k}. For a share of the elements pass fraction=, e.g. 0.7.")
    if fraction is not None and not 0 < real_number("fraction", fraction) <= 1:
        example = fraction / 100 if 1 < fraction <= 100 else 0.7
        raise ValueError(
            f"`fraction` must satisfy 0 < fraction <= 1; got {float(fraction):g}. "
            f"For the {100 * example:g} % hardest elements pass fraction={example:g}."
        )


def check_drop(drop: float | None, drop_fraction: float | None, *, required: bool = False) -> None:
    """At most one of `drop` and `drop_fraction` (exactly one where required), and that one in range."""
    if (drop is not None and drop_fraction is not None) or (required and drop is None and drop_fraction is None):
        came = "neither" if drop is None else f"drop={drop!r} and drop_fraction={drop_fraction!r}"
        raise ValueError(
            f"{'exactly' if required else 'at most'} one of `drop` and `drop_fraction` must be given; got {came}. "
            "To leave out the 2 % largest pass drop_fraction=0.02."
        )
    if drop is not None and not 0 <= real_number("drop", drop) < math.inf:
        raise ValueError(f"`drop` must satisfy 0 <= drop < inf; got {drop}. To drop nothing pass drop=0.")
    if drop_fraction is not None and not 0 <= real_number("drop_fraction", drop_fraction) < 1:
        raise ValueError(
            f"`drop_fraction` must satisfy 0 <= drop_fraction < 1; got {float(drop_fraction):g}. "
            "To leave out the 2 % largest pass drop_fraction=0.02."
        )


def real_number(name: str, value: float) -> float:
    """The value, if it is one number of Python or numpy, and not a truth value."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(
            f"`{name}` must be a real number; got {type(value).__name__}. Pass a Python number, e.g. float({name})."
        )
    return value


def check_nan_policy(nan_policy: str) -> None:
    """One of the three words."""
    if nan_policy not in ("propagate", "raise", "omit"):
        raise ValueError(
            f'`nan_policy` must be "propagate", "raise" or "omit"; got {nan_policy!r}. '
            'To keep divergence visible pass "propagate".'
        )


def check_tensors(
    losses: Tensor, *, mask: Tensor | None, sample_weight: Tensor | None, scores: Tensor | None = None
) -> None:
    """Unreduced floating-point losses, and what stands beside them."""
    _check_floating("losses", losses)
    if losses.dim() == 0:
        raise ValueError(
            "`losses` must hold one number per element; got a scalar, which is already reduced, so there is "
            'nothing to select from. Pass the unreduced losses, e.g. with reduction="none".'
        )
    check_beside("losses", losses, mask=mask, sample_weight=sample_weight)
    if scores is not None:
        _check_floating("scores", scores)
        _check_same_shape("losses", losses, "scores", scores)


def check_beside(name: str, tensor: Tensor, *, mask: Tensor | None, sample_weight: Tensor | None = None) -> None:
    """Type and shape of the mask and the masses of the elements of a tensor."""
    if mask is not None:
        if not (isinstance(mask, Tensor) and mask.dtype == torch.bool):
            raise TypeError(f"`mask` must be a bool tensor, True = counts; got {_came(mask)}. Pass mask.bool().")
        _check_same_shape(name, tensor, "mask", mask)
    if sample_weight is not None:
        if not isinstance(sample_weight, Tensor) or sample_weight.is_complex():
            raise TypeError(
                f"`sample_weight` must be a real tensor; got {_came(sample_weight)}. "
                "Pass torch.as_tensor(sample_weight)."
            )
        _check_same_shape(name, tensor, "sample_weight", sample_weight)


def _check_floating(name: str, tensor: Tensor) -> None:
    if not (isinstance(tensor, Tensor) and tensor.is_floating_point()):
        raise TypeError(f"`{name}` must be a floating-point tensor; got {_came(tensor)}. Pass {name}.float().")


def _check_same_shape(name: str, tensor: Tensor, beside: str, other: Tensor) -> None:
    if other.shape != tensor.shape:
        raise ValueError(
            f"`{name}` and `{beside}` must have the same shape; got {tuple(tensor.shape)} and {tuple(other.shape)}. "
            f"Expand `{beside}` to the shape of `{name}`."
        )


def _came(value: object) -> object:
    return value.dtype if isinstance(value, Tensor) else type(value).__name__
