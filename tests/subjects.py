"""Every public aggregate and criterion, and which laws each does not obey, with a batch that shows it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

import topkloss
from tests.laws import Asked, Batch, Subject
from topkloss import reference


@dataclass(frozen=True)
class Omission:
    """A law that does not hold, why, and a batch on which it fails."""

    law: str
    why: str
    batch: Batch


def batch(
    losses: list[float],
    asked: Asked,
    *,
    other: list[float] | None = None,
    sample_weight: list[float] | None = None,
) -> Batch:
    """A small batch, written out."""
    tensor = partial(torch.tensor, dtype=torch.float64)
    return Batch(
        losses=tensor(losses),
        mask=None,
        sample_weight=None if sample_weight is None else tensor(sample_weight),
        asked=asked,
        other=tensor(losses[::-1] if other is None else other),
        order=torch.arange(len(losses)).flip(0),
        factor=3.0,
    )


FOUR = batch([1.0, 2.0, 3.0, 4.0], {"k": 2.0})


# Each public name as an aggregate of losses. A criterion gets outputs that have these losses.


def average(losses: Tensor, *, k: float = 0.0, fraction: float = 0.0, **given: Any) -> Tensor:
    """`k` and `fraction` mean nothing here."""
    return topkloss.average(losses, **given)


def maximum(losses: Tensor, *, k: float = 0.0, fraction: float = 0.0, **given: Any) -> Tensor:
    """`k` and `fraction` mean nothing here."""
    return topkloss.maximum(losses, **given)


def easiest(losses: Tensor, **given: Any) -> Tensor:
    """Ranked by the opposite of the loss: the k smallest."""
    return topkloss.average_top_k(losses, scores=-losses.detach(), **given)


def element_criterion(losses: Tensor, *, nan_policy: Any, mask: Any, sample_weight: Any, **asked: Any) -> Tensor:
    """The outputs are the losses."""
    criterion = topkloss.AverageTopKLoss(torch.sub, nan_policy=nan_policy, **asked)
    result = criterion(losses, torch.zeros_like(losses), mask=mask, sample_weight=sample_weight)
    assert isinstance(result, Tensor)
    return result


def sample_criterion(losses: Tensor, *, nan_policy: Any, mask: Any, sample_weight: Any, **asked: Any) -> Tensor:
    """Each loss is that of a sample of three pixels; the third never counts."""
    if losses.dim() == 0:
        return element_criterion(losses, nan_policy=nan_policy, mask=mask, sample_weight=sample_weight, **asked)
    samples = losses.reshape(-1)
    if mask is None:
        mask = torch.ones_like(samples, dtype=torch.bool)
    mask = mask.reshape(-1, 1) & torch.tensor([True, True, False])
    outputs = torch.stack([samples, samples, samples + math.nan], dim=1)
    criterion = topkloss.AverageTopKLoss(torch.sub, level="sample", nan_policy=nan_policy, **asked)
    mass = None if sample_weight is None else sample_weight.reshape(-1)
    result = criterion(outputs, torch.zeros_like(outputs), mask=mask, sample_weight=mass)
    assert isinstance(result, Tensor)
    return result


def range_criterion(losses: Tensor, *, nan_policy: Any, mask: Any, sample_weight: Any, **asked: Any) -> Tensor:
    """Drops mass 1, the outputs are the losses."""
    criterion = topkloss.AverageRankedRangeLoss(torch.sub, drop=1, nan_policy=nan_policy, **asked)
    result = criterion(losses, torch.zeros_like(losses), mask=mask, sample_weight=sample_weight)
    assert isinstance(result, Tensor)
    return result


def cross_entropy_criterion(losses: Tensor, *, nan_policy: Any, mask: Any, sample_weight: Any, **asked: Any) -> Tensor:
    """Two classes, the first is right: a logit of log(exp(l) - 1) for the second has the cross-entropy l."""
    wide = losses if losses.dtype == torch.float64 else losses.float()
    logit = wide.expm1().log()
    outputs = torch.stack([torch.zeros_like(logit), logit], dim=min(1, logit.dim()))
    targets = torch.zeros_like(losses, dtype=torch.long)
    if mask is not None:
        targets = targets.masked_fill(~mask, -100)
        outputs = outputs.masked_fill(~mask.unsqueeze(1), math.nan)
    if sample_weight is not None:
        outputs = outputs.masked_fill((sample_weight == 0).unsqueeze(1), math.nan)
    criterion = topkloss.AverageTopKCrossEntropyLoss(nan_policy=nan_policy, **asked)
    result = criterion(outputs, targets, sample_weight=sample_weight)
    assert isinstance(result, Tensor)
    return result


def average_oracle(losses: list[float], *, k: float = 0.0, fraction: float = 0.0, **given: Any) -> float:
    """See `average`."""
    return reference.average(losses, **given)


def maximum_oracle(losses: list[float], *, k: float = 0.0, fraction: float = 0.0, **given: Any) -> float:
    """See `maximum`."""
    return reference.maximum(losses, **given)


def easiest_oracle(losses: list[float], **given: Any) -> float:
    """See `easiest`."""
    return reference.average_top_k(losses, scores=[-loss for loss in losses], **given)


SUBJECTS = [
    Subject("average", average, average_oracle),
    Subject("maximum", maximum, maximum_oracle),
    Subject("average_top_k", topkloss.average_top_k, reference.average_top_k),
    Subject("average_top_k by scores", easiest, easiest_oracle),
    Subject(
        "average_ranked_range",
        partial(topkloss.average_ranked_range, drop_fraction=0.2),
        partial(reference.average_ranked_range, drop_fraction=0.2),
    ),
    Subject("AverageTopKLoss", element_criterion, reference.average_top_k),
    Subject("AverageTopKLoss of samples", sample_criterion, reference.average_top_k),
    Subject("AverageRankedRangeLoss", range_criterion, partial(reference.average_ranked_range, drop=1.0)),
    Subject("AverageTopKCrossEntropyLoss", cross_entropy_criterion, reference.average_top_k, positive=True, poison=1.0),
]

_RANGE = [
    Omission("k_of_one_is_the_maximum", "the largest are dropped", FOUR),
    Omission("everything_is_the_mean", "the largest are dropped", FOUR),
    Omission("value_is_the_minimum_over_lambda", "it is a difference of two such minima", FOUR),
    Omission(
        "value_is_convex",
        "it is a difference of convex functions",
        batch([0.0, 4.0, 0.0], {"k": 1.0}, other=[4.0, 0.0, 0.0]),
    ),
    Omission(
        "gradient_is_a_subgradient",
        "it is not convex",
        batch([0.0, 3.0, 5.0], {"k": 1.0}, other=[0.0, 9.0, 0.0]),
    ),
    Omission(
        "value_never_increases_in_k",
        "where the dropped and k exceed what there is, k stands for less: k * value is no longer concave",
        batch([1.0, 5.0, 9.0, 9.0], {"fraction": 1.0}),
    ),
    Omission(
        "weights_are_bounded_and_sum_to_one",
        "where the dropped and k exceed what there is, fewer than k share the weight",
        batch([1.0, 5.0, 9.0, 9.0], {"fraction": 1.0}),
    ),
]

# Laws that each subject breaks; it obeys all others.
OMISSIONS: dict[str, list[Omission]] = {
    "average": [
        Omission("k_of_one_is_the_maximum", "it has no k", FOUR),
        Omission("value_is_the_minimum_over_lambda", "it has no k", FOUR),
        Omission("unselected_infinity_costs_nothing", "it selects all", FOUR),
    ],
    "maximum": [
        Omission("everything_is_the_mean", "it has no k", FOUR),
        Omission("value_is_the_minimum_over_lambda", "it has no k", FOUR),
        Omission("weights_are_bounded_and_sum_to_one", "one element may have it all", FOUR),
    ],
    "average_top_k by scores": [
        Omission("k_of_one_is_the_maximum", "the first by score need not be the largest loss", FOUR),
        Omission("value_never_increases_in_k", "later ones by score may be larger losses", FOUR),
        Omission("value_is_the_minimum_over_lambda", "not the largest losses", FOUR),
        Omission("value_is_convex", "not the largest losses", batch([0.0, 4.0], {"k": 1.0}, other=[4.0, 0.0])),
        Omission("gradient_is_a_subgradient", "not convex", batch([0.0, 4.0], {"k": 1.0}, other=[4.0, 0.0])),
        Omission("unselected_infinity_costs_nothing", "here it is selected first", FOUR),
    ],
    "average_ranked_range": _RANGE,
    "AverageRankedRangeLoss": [
        *_RANGE,
        Omission(
            "scaling_the_mass_changes_nothing_under_fraction",
            "`drop` is a mass of its own",
            batch([1.0, 2.0, 3.0, 4.0], {"fraction": 0.5}),
        ),
        Omission(
            "value_is_homogeneous_and_moves_with_the_losses",
            "where all are dropped the value is 0",
            batch([2.0], {"k": 1.0}),
        ),
    ],
    "AverageTopKCrossEntropyLoss": [
        Omission("unselected_infinity_costs_nothing", "a cross-entropy is never -inf", FOUR),
        Omission("a_scalar_is_refused", "it takes logits, which are checked for their shape", FOUR),
    ],
}
