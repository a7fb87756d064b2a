"""What the caller may ask for, and the sentence that answers anything else.

Every sentence names the argument, what it must be, what it got and one way out. Only free checks are here: none reads
the values of a tensor.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

NanPolicy = Literal["propagate", "raise", "omit"]
ClassWeights = Tensor | Sequence[float]


def check_k(k: float | None, fraction: float | None) -> None:
    """Exactly one of `k` and `fraction`, and that one in range; free, so it is checked at once."""
    if (k is None) == (fraction is None):
        got = "neither" if k is None else f"k={k!r} and fraction={fraction!r}"
        raise ValueError(
            f"exactly one of `k` and `fraction` must be given; got {got}. "
            "For the 70 % hardest elements pass fraction=0.7."
        )
    if k is not None:
        in_range("k", k, "0 <", hint="For a share of the elements pass fraction=, e.g. 0.7.")
    if fraction is not None:
        percent = f"{fraction:g}" if 1 < real_number("fraction", fraction) <= 100 else "70"
        hint = f"For the {percent} % hardest elements pass fraction={float(percent) / 100:g}."
        in_range("fraction", fraction, "0 <", "<= 1", hint=hint)


def check_drop(drop: float | None, drop_fraction: float | None, *, required: bool = False) -> None:
    """At most one of `drop` and `drop_fraction` (exactly one where required), and that one in range."""
    if (drop is not None and drop_fraction is not None) or (required and drop is None and drop_fraction is None):
        got = "neither" if drop is None else f"drop={drop!r} and drop_fraction={drop_fraction!r}"
        raise ValueError(
            f"{'exactly' if required else 'at most'} one of `drop` and `drop_fraction` must be given; got {got}. "
            "To leave out the 2 % largest pass drop_fraction=0.02."
        )
    if drop is not None:
        in_range("drop", drop, "0 <=", "< inf", hint="To drop nothing pass drop=0.")
    if drop_fraction is not None:
        hint = "To leave out the 2 % largest pass drop_fraction=0.02."
        in_range("drop_fraction", drop_fraction, "0 <=", "< 1", hint=hint)


def check_floor(
    threshold: float | None, probability: float | None, min_kept: float | None, min_fraction: float | None
) -> None:
    """A threshold or a probability, and at most one of the least number and the least share that are kept."""
    if (threshold is None) == (probability is None):
        got = "neither" if threshold is None else f"threshold={threshold!r} and probability={probability!r}"
        raise ValueError(
            f"exactly one of `threshold`, a loss, and `probability` must be given; got {got}. To keep what has a "
            "probability of its class below 0.7 pass probability=0.7."
        )
    if probability is not None:
        hint = "To keep what has a probability of its class below 0.7 pass probability=0.7; a loss is a threshold=."
        in_range("probability", probability, "0 <", "<= 1", hint=hint)
    if threshold is not None and math.isnan(real_number("threshold", threshold)):
        raise ValueError("`threshold` must be a number; got nan. To keep a share of the elements use average_top_k.")
    if min_kept is not None and min_fraction is not None:
        raise ValueError(
            f"at most one of `min_kept` and `min_fraction` must be given; got min_kept={min_kept!r} and "
            f"min_fraction={min_fraction!r}. To keep at least a sixteenth pass min_fraction=1/16."
        )
    if min_kept is not None:
        in_range("min_kept", min_kept, "0 <=", hint="For no least number leave it out.")
    if min_fraction is not None:
        in_range(
            "min_fraction", min_fraction, "0 <", "<= 1", hint="To keep at least a sixteenth pass min_fraction=1/16."
        )


def check_reach(
    threshold: float, probability: float | None, loss: str, least: float, most: float, *, has_floor: bool
) -> None:
    """A threshold that something of the loss can lie above, and something below.

    Args:
        threshold: In the unit of the losses.
        probability: What it was given as, if it was.
        loss: Its name.
        least, most: What is known of it.
        has_floor: Whether something is kept in any case.
    """
    both = "For a probability of the right class pass probability=0.7, or its loss, threshold=-math.log(0.7)."
    if probability is not None and most < math.inf:
        raise ValueError(
            f"`probability` must be that of a cross-entropy; got {probability:g} for {loss}, which is none. Pass a "
            f"threshold= between {least:g} and {most:g}."
        )
    if threshold >= most and not has_floor:
        raise ValueError(
            f"`threshold` must be below {most:g}, the most that {loss} can reach; got {threshold:g}, above which there "
            f"is nothing to keep. Pass a smaller one, or min_kept=. {both}"
        )
    if threshold < least:
        raise ValueError(
            f"`threshold` must be >= {least:g}, the least that {loss} can be; got {threshold:g}, by which all is "
            f"kept. {both}"
        )


def check_ratio(ratio: float, min_negatives: float) -> None:
    """How many negatives for each positive, and how many at least."""
    in_range("ratio", ratio, "0 <", "< inf", hint="SSD takes 3 negatives per positive.")
    in_range("min_negatives", min_negatives, "0 <=", "< inf", hint="Pass 0 for none where nothing is positive.")


def check_weights_of_parts(name: str, number: int, weights: list[float]) -> None:
    """One finite weight >= 0 for each part, one of them above 0."""
    if len(weights) != number:
        raise ValueError(
            f"`{name}` and `weights` must be as many; got {number} and {len(weights)}. Give a part that is not wanted "
            "the weight 0."
        )
    if not all(0 <= weight < math.inf for weight in weights) or not any(weights):
        raise ValueError(
            f"`weights` must be finite and >= 0, one of them above 0; got {weights}. A weight of 0 leaves its part out."
        )


def check_smoothing(smoothing: float) -> None:
    """The width over which a kink is rounded off."""
    in_range("smoothing", smoothing, "0 <=", "< inf", hint="For the exact form pass smoothing=0.")


def check_threshold(threshold: Tensor) -> None:
    """One number that can be learned."""
    if not (isinstance(threshold, Tensor) and threshold.is_floating_point() and threshold.dim() == 0):
        got = f"shape {tuple(threshold.shape)}" if isinstance(threshold, Tensor) else type(threshold).__name__
        raise TypeError(
            f"`threshold` must be a 0-dim floating-point tensor; got {got}. "
            "To learn it pass torch.nn.Parameter(torch.tensor(0.0))."
        )


def check_tilt(tilt: float) -> None:
    """A finite number that is not 0."""
    if not math.isfinite(real_number("tilt", tilt)) or tilt == 0:
        raise ValueError(f"`tilt` must be finite and not 0; got {tilt}. For its limit at 0 use `average`.")


def real_number(name: str, value: float) -> float:
    """The value, if it is one number of Python or numpy, and not a truth value."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(
            f"`{name}` must be a real number; got {type(value).__name__}. Pass a Python number, e.g. float({name})."
        )
    return value


def in_range(name: str, value: float, low: str, high: str = "", *, hint: str) -> float:
    """The value, if it is a real number between two bounds: every range of one number is worded here.

    Args:
        name: Of the argument.
        value: What was given.
        low, high: The bounds as they are written, like ``"0 <"`` and ``"<= 1"``; no `high`: as large as it may be.
        hint: One way out.

    Raises:
        TypeError: If it is no real number.
        ValueError: If it is out of range.

    Example:
        >>> in_range("fraction", 70, "0 <", "<= 1", hint="For 70 % pass 0.7.")
        Traceback (most recent call last):
        ValueError: `fraction` must satisfy 0 < fraction <= 1; got 70. For 70 % pass 0.7.
    """
    least, above = low.split()
    real_number(name, value)
    above_low = value > float(least) if above == "<" else value >= float(least)
    below, most = high.split() if high else ("<=", "inf")
    if above_low and (value < float(most) if below == "<" else value <= float(most)):
        return value
    rule = f"{low} {name} {high}" if high else f"{name} {above.replace('<', '>')} {least}"
    raise ValueError(f"`{name}` must satisfy {rule}; got {value:g}. {hint}")


def is_whole(value: object) -> bool:
    """Whether it is an integer of Python or numpy, and not a truth value."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def check_loss(loss: object) -> None:
    """What can be called with outputs and targets; None = the criterion has its own."""
    if isinstance(loss, type) or not (loss is None or callable(loss)):
        got = f"the class {loss.__name__}" if isinstance(loss, type) else type(loss).__name__
        raise TypeError(
            f"`loss` must be called as loss(outputs, targets); got {got}. "
            'Pass a module or function, e.g. torch.nn.L1Loss(reduction="none").'
        )


def check_nan_policy(nan_policy: str) -> None:
    """One of the three words."""
    check_word(
        "nan_policy", nan_policy, "propagate", "raise", "omit", hint='To keep divergence visible pass "propagate".'
    )


def check_tensors(
    losses: Tensor,
    *,
    mask: Tensor | None,
    sample_weight: Tensor | None,
    scores: Tensor | None = None,
    groups: Tensor | None = None,
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
        check_same_shape("losses", losses, "scores", scores)
    if groups is not None:
        check_integers("groups", groups, "Number the groups, e.g. from 0.")
        check_same_shape("losses", losses, "groups", groups)


def check_word(name: str, word: str, *words: str, hint: str) -> None:
    """One of these words."""
    if word not in words:
        quoted = [f'"{one}"' for one in words]
        raise ValueError(f"`{name}` must be {', '.join(quoted[:-1])} or {quoted[-1]}; got {word!r}. {hint}")


def check_label_smoothing(label_smoothing: float) -> None:
    """A share."""
    in_range("label_smoothing", label_smoothing, "0 <=", "<= 1", hint="A common choice is label_smoothing=0.1.")


def class_weights(weight: ClassWeights | None) -> Tensor | None:
    """One finite number >= 0 per class, as a tensor; read once, when a criterion is made."""
    if weight is None:
        return None
    if isinstance(weight, Tensor):
        fits = weight.dim() == 1 and bool(((weight >= 0) & weight.isfinite()).all())
    else:
        try:
            weight = [float(one) for one in weight]
        except (TypeError, ValueError):
            raise TypeError(
                f"`weight` must be one number for each class; got {type(weight).__name__}. "
                "Pass a tensor or a list, e.g. weight=[1.0, 2.0] for two classes."
            ) from None
        fits = all(0 <= one < math.inf for one in weight)
    if not fits:
        got = weight.tolist() if isinstance(weight, Tensor) else weight
        raise ValueError(
            f"`weight` must be one finite number >= 0 per class, shape (C,); got {got}. "
            "To weigh elements rather than classes pass `sample_weight` to the call."
        )
    return weight if isinstance(weight, Tensor) else torch.tensor(weight)


def check_number_of_weights(weight: Tensor | None, classes: int) -> None:
    """One weight for each class of the outputs."""
    if weight is not None and weight.numel() != classes:
        raise ValueError(
            f"`weight` must hold one number per class; got {weight.numel()} for {classes} classes. "
            "The classes are dimension 1 of the outputs."
        )


def illegal_target(target: int, classes: int) -> ValueError:
    """The error about a counted target that is no class."""
    return ValueError(
        f"`targets` must be classes in [0, {classes}) where counted; got {target}. "
        "If that marks elements to leave out, pass it as `ignore_index`."
    )


def illegal_probability(target: float) -> ValueError:
    """The error about a counted target, one of probabilities, that is none."""
    return ValueError(
        f"`targets` shaped like the outputs must be probabilities, >= 0 where counted; got {target:g}. If they are "
        "logits, of a teacher say, pass targets.softmax(dim=1)."
    )


def check_positives(losses: Tensor, positives: Tensor) -> None:
    """Which elements are positive."""
    if not (isinstance(positives, Tensor) and positives.dtype == torch.bool):
        raise TypeError(f"`positives` must be a bool tensor; got {_got(positives)}. Pass e.g. positives=targets > 0.")
    check_same_shape("losses", losses, "positives", positives)


def check_beside(name: str, tensor: Tensor, *, mask: Tensor | None, sample_weight: Tensor | None = None) -> None:
    """Type and shape of the mask and the masses of the elements of a tensor."""
    if mask is not None:
        if not (isinstance(mask, Tensor) and mask.dtype == torch.bool):
            raise TypeError(f"`mask` must be a bool tensor, True = counts; got {_got(mask)}. Pass mask.bool().")
        check_same_shape(name, tensor, "mask", mask)
    if sample_weight is not None:
        if not isinstance(sample_weight, Tensor) or sample_weight.is_complex():
            raise TypeError(
                f"`sample_weight` must be a real tensor; got {_got(sample_weight)}. "
                "Pass torch.as_tensor(sample_weight)."
            )
        check_same_shape(name, tensor, "sample_weight", sample_weight)


def check_integers(name: str, tensor: Tensor, hint: str) -> None:
    """A tensor of an integer type."""
    integer = isinstance(tensor, Tensor) and not (tensor.is_floating_point() or tensor.is_complex())
    if not integer or tensor.dtype == torch.bool:
        raise TypeError(f"`{name}` must be a tensor of an integer type; got {_got(tensor)}. {hint}")


def _check_floating(name: str, tensor: Tensor) -> None:
    if not (isinstance(tensor, Tensor) and tensor.is_floating_point()):
        raise TypeError(f"`{name}` must be a floating-point tensor; got {_got(tensor)}. Pass {name}.float().")


def check_same_shape(name: str, tensor: Tensor, beside: str, other: Tensor) -> None:
    """What stands beside a tensor, element by element."""
    if other.shape != tensor.shape:
        shape, missing = tuple(tensor.shape), tensor.dim() - other.dim()
        hint = f"Expand `{beside}` to the shape of `{name}`."
        if other.dim() and missing > 0 and other.shape == tensor.shape[: other.dim()]:
            # expanded as it is, a square's would be that of columns
            rows = ", ".join([":"] * other.dim() + ["None"] * missing)
            hint = f"Pass {beside}[{rows}].expand{shape}."
        raise ValueError(
            f"`{name}` and `{beside}` must have the same shape; got {shape} and {tuple(other.shape)}. {hint}"
        )


def _got(value: object) -> object:
    return value.dtype if isinstance(value, Tensor) else type(value).__name__
