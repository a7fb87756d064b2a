"""Every public aggregate and criterion, and which laws each does not obey, with a batch that shows it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import topkloss
from tests.laws import Aggregate, Asked, Batch, Oracle, Subject
from topkloss import reference
from topkloss.kernels import native


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
    groups: list[int] | None = None,
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
        groups=None if groups is None else torch.tensor(groups),
    )


FOUR = batch([1.0, 2.0, 3.0, 4.0], {"k": 2.0})
UNEVEN = batch([1.0, 2.0, 3.0, 9.0], {"k": 4.0}, groups=[0, 0, 0, 1])


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


def criterion_of_losses(make: Callable[..., nn.Module], losses: Tensor, **given: Any) -> Tensor:
    """A criterion whose outputs are the losses; what is not of the call is of its making."""
    of_call = {name: given.pop(name) for name in ("mask", "sample_weight", "groups") if name in given}
    result = make(torch.sub, **given)(losses, torch.zeros_like(losses), **of_call)
    assert isinstance(result, Tensor)
    return result


def of_losses(make: Callable[..., nn.Module], **given: Any) -> Callable[..., Tensor]:
    """A criterion as an aggregate."""
    return partial(criterion_of_losses, partial(make, **given))


def ohem(loss: Any, *, k: float | None = None, fraction: float | None = None, nan_policy: Any) -> nn.Module:
    """What is asked is the least that is kept."""
    return topkloss.OHEMLoss(loss, threshold=2.0, min_kept=k, min_fraction=fraction, nan_policy=nan_policy)


def dual_criterion(loss: Any, *, k: float = 0.0, fraction: float = 0.0, nan_policy: Any) -> nn.Module:
    """Seen from the threshold 1."""
    criterion = topkloss.DualAverageTopKLoss(loss, fraction=0.4, threshold=1.0, nan_policy=nan_policy)
    return criterion.requires_grad_(False)


def hard_negative_criterion(losses: Tensor, *, groups: Tensor, nan_policy: Any, **given: Any) -> Tensor:
    """Every second group number marks the positives; what is asked is the ratio."""
    ratio = given.pop("k", None) or given.pop("fraction")
    criterion = topkloss.HardNegativeLoss(
        lambda outputs, _: outputs, ratio=ratio, positives=lambda targets: targets % 2 == 0, nan_policy=nan_policy
    )
    result = criterion(losses, groups, groups=groups // 2, **given)
    assert isinstance(result, Tensor)
    return result


def within_criterion(
    losses: Tensor, *, groups: Tensor, nan_policy: Any, mask: Any, sample_weight: Any, **asked: Any
) -> Tensor:
    """The groups are the classes of the targets."""
    criterion = topkloss.AverageTopKLoss(lambda outputs, _: outputs, within="class", nan_policy=nan_policy, **asked)
    result = criterion(losses, groups, mask=mask, sample_weight=sample_weight)
    assert isinstance(result, Tensor)
    return result


def sample_criterion(losses: Tensor, *, nan_policy: Any, mask: Any, sample_weight: Any, **asked: Any) -> Tensor:
    """Each loss is that of a sample of three pixels; the third never counts."""
    if losses.dim() == 0:
        return topkloss.AverageTopKLoss(torch.sub, **asked)(losses, torch.zeros_like(losses))  # type: ignore[no-any-return]
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


def cross_entropy_criterion(
    losses: Tensor, *, nan_policy: Any, mask: Any, sample_weight: Any, backend: Any = "auto", **asked: Any
) -> Tensor:
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
    criterion = topkloss.AverageTopKCrossEntropyLoss(nan_policy=nan_policy, backend=backend, **asked)
    result = criterion(outputs, targets, sample_weight=sample_weight)
    assert isinstance(result, Tensor)
    return result


def above(losses: Tensor, *, k: float | None = None, fraction: float | None = None, **given: Any) -> Tensor:
    """What is asked is the least that is kept."""
    return topkloss.average_above(losses, threshold=2.0, min_kept=k, min_fraction=fraction, **given)


def hard_negatives(losses: Tensor, *, groups: Tensor, k: float = 0.0, fraction: float = 0.0, **given: Any) -> Tensor:
    """Every second group number marks the positives; what is asked is the ratio."""
    given = {"ratio": k or fraction, "groups": groups // 2, **given}
    return topkloss.average_hard_negatives(losses, groups % 2 == 0, **given)


def dual(losses: Tensor, *, smoothing: float = 0.0, k: float = 0.0, fraction: float = 0.0, **given: Any) -> Tensor:
    """Seen from the threshold 1; `k` and `fraction` mean nothing here."""
    threshold = torch.tensor(1.0, dtype=torch.float64)
    return topkloss.average_top_k_dual(losses, threshold, fraction=0.4, smoothing=smoothing, **given)


def average_tilted(losses: Tensor, *, k: float = 0.0, fraction: float = 0.0, **given: Any) -> Tensor:
    """`k` and `fraction` mean nothing here."""
    return topkloss.average_tilted(losses, tilt=0.7, **given)


def above_oracle(losses: list[float], *, k: float | None = None, fraction: float | None = None, **given: Any) -> float:
    """See `above`."""
    return reference.average_above(losses, threshold=2.0, min_kept=k, min_fraction=fraction, **given)


def hard_negatives_oracle(
    losses: list[float], *, groups: list[int], k: float = 0.0, fraction: float = 0.0, **given: Any
) -> float:
    """See `hard_negatives`."""

    def of_group(losses: list[float], *, positives: list[bool], **given: Any) -> float:
        return reference.average_hard_negatives(losses, positives, ratio=k or fraction, **given)

    positives = [group % 2 == 0 for group in groups]
    return reference.mean_over_groups(of_group, losses, [group // 2 for group in groups], positives=positives, **given)


def dual_oracle(
    losses: list[float], *, smoothing: float = 0.0, k: float = 0.0, fraction: float = 0.0, **given: Any
) -> float:
    """See `dual`."""
    return reference.average_top_k_dual(losses, 1.0, fraction=0.4, smoothing=smoothing, **given)


def tilted_oracle(losses: list[float], *, k: float = 0.0, fraction: float = 0.0, **given: Any) -> float:
    """See `average_tilted`."""
    return reference.average_tilted(losses, tilt=0.7, **given)


def average_oracle(losses: list[float], *, k: float = 0.0, fraction: float = 0.0, **given: Any) -> float:
    """See `average`."""
    return reference.average(losses, **given)


def maximum_oracle(losses: list[float], *, k: float = 0.0, fraction: float = 0.0, **given: Any) -> float:
    """See `maximum`."""
    return reference.maximum(losses, **given)


def easiest_oracle(losses: list[float], **given: Any) -> float:
    """See `easiest`."""
    return reference.average_top_k(losses, scores=[-loss for loss in losses], **given)


def _in_groups(name: str, aggregate: Aggregate, oracle: Oracle) -> Subject:
    return Subject(f"{name} in groups", aggregate, partial(reference.mean_over_groups, oracle), grouped=True)


_ALSO_IN_GROUPS = [
    _in_groups("average", average, average_oracle),
    _in_groups("maximum", maximum, maximum_oracle),
    _in_groups("average_top_k", topkloss.average_top_k, reference.average_top_k),
    _in_groups(
        "average_ranked_range",
        partial(topkloss.average_ranked_range, drop_fraction=0.2),
        partial(reference.average_ranked_range, drop_fraction=0.2),
    ),
    _in_groups("average_above", above, above_oracle),
    _in_groups("kth_largest", topkloss.kth_largest, reference.kth_largest),
]

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
    *_ALSO_IN_GROUPS,
    Subject("average_above", above, above_oracle),
    Subject("average_hard_negatives", hard_negatives, hard_negatives_oracle, grouped=True),
    Subject("kth_largest", topkloss.kth_largest, reference.kth_largest),
    Subject("average_top_k_dual", dual, dual_oracle),
    Subject("average_top_k_dual smoothed", partial(dual, smoothing=0.5), partial(dual_oracle, smoothing=0.5)),
    Subject("average_tilted", average_tilted, tilted_oracle),
    Subject("AverageTopKLoss", of_losses(topkloss.AverageTopKLoss), reference.average_top_k),
    Subject(
        "AverageTopKLoss within classes",
        within_criterion,
        partial(reference.mean_over_groups, reference.average_top_k),
        grouped=True,
    ),
    Subject("OHEMLoss", of_losses(ohem), above_oracle),
    Subject("HardNegativeLoss", hard_negative_criterion, hard_negatives_oracle, grouped=True),
    Subject("DualAverageTopKLoss", of_losses(dual_criterion), dual_oracle),
    Subject("AverageTopKLoss of samples", sample_criterion, reference.average_top_k),
    Subject(
        "AverageRankedRangeLoss",
        of_losses(topkloss.AverageRankedRangeLoss, drop=1),
        partial(reference.average_ranked_range, drop=1.0),
    ),
    Subject("AverageTopKCrossEntropyLoss", cross_entropy_criterion, reference.average_top_k, positive=True, poison=1.0),
    *(
        Subject(
            f"AverageTopKCrossEntropyLoss by {backend}",
            partial(cross_entropy_criterion, backend=backend),
            reference.average_top_k,
            positive=True,
            poison=1.0,
        )
        for backend in ("torch", "native")
        if backend == "torch" or native.is_available()
    ),
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

_IN_GROUPS = [
    Omission("k_of_one_is_the_maximum", "it is the mean of the groups' own", UNEVEN),
    Omission("everything_is_the_mean", "small groups have the same say as large ones", UNEVEN),
    Omission("value_is_the_minimum_over_lambda", "each group has a threshold of its own", UNEVEN),
    Omission("weights_are_bounded_and_sum_to_one", "an element of a small group has more weight", UNEVEN),
]
_UP_TO_K_IN_GROUPS = Omission(
    "value_never_increases_in_k",
    "a k above the size of a group stands for less: k * value is no longer concave",
    UNEVEN,
)

_CROSSING = batch([9.0, 1.0], {"k": 1.0}, other=[9.0, 3.0])
_ABOVE = [
    Omission("value_is_convex", "a loss that crosses the threshold dilutes the mean", _CROSSING),
    Omission("gradient_is_a_subgradient", "it is not convex", _CROSSING),
    Omission("value_grows_with_every_loss", "a loss that crosses the threshold dilutes the mean", _CROSSING),
    Omission(
        "value_is_homogeneous_and_moves_with_the_losses",
        "the threshold stays where it is",
        batch([1.0, 2.0, 3.0, 9.0], {"k": 1.0}),
    ),
]
_SWAP = batch([0.0, 4.0], {"k": 2.0}, other=[4.0, 0.0])
_KTH = [
    Omission("everything_is_the_mean", "it is one loss", UNEVEN),
    Omission("value_never_increases_in_k", "it does, but k times it is not concave", UNEVEN),
    Omission("value_is_the_minimum_over_lambda", "it is one loss", UNEVEN),
    Omission("weights_are_bounded_and_sum_to_one", "one element may have it all", UNEVEN),
    Omission("value_is_convex", "it is a difference of convex functions", _SWAP),
    Omission("gradient_is_a_subgradient", "it is not convex", _SWAP),
]
_FROM_A_THRESHOLD = [
    Omission("k_of_one_is_the_maximum", "it is larger where the threshold is not that of the batch", UNEVEN),
    Omission("everything_is_the_mean", "the threshold is not that of the batch", UNEVEN),
    Omission("value_is_the_minimum_over_lambda", "lambda is given", UNEVEN),
    Omission("value_is_homogeneous_and_moves_with_the_losses", "the threshold stays where it is", UNEVEN),
    Omission("weights_are_bounded_and_sum_to_one", "the threshold has the rest of the gradient", UNEVEN),
    Omission("computes_in_float32_at_least", "of equal losses above the threshold it is larger than they", FOUR),
]
_OF_POSITIVES = "of each positive and its negatives"
_NO_POSITIVE = batch([1.0, 2.0], {"k": 1.0}, groups=[1, 1])

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
    "average in groups": [*_IN_GROUPS, Omission("unselected_infinity_costs_nothing", "it selects all", FOUR)],
    "maximum in groups": _IN_GROUPS,
    "average_top_k in groups": [*_IN_GROUPS, _UP_TO_K_IN_GROUPS],
    "average_ranked_range in groups": [
        *_IN_GROUPS,
        _UP_TO_K_IN_GROUPS,
        *(omission for omission in _RANGE if omission.law in ("value_is_convex", "gradient_is_a_subgradient")),
    ],
    "average_above": [
        Omission("k_of_one_is_the_maximum", "more may lie above the threshold", UNEVEN),
        Omission(
            "value_is_the_minimum_over_lambda",
            "more may lie above the threshold",
            batch([1.0, 2.0, 3.0, 9.0], {"k": 1.0}),
        ),
        *_ABOVE,
    ],
    "average_above in groups": [*_IN_GROUPS, _UP_TO_K_IN_GROUPS, *_ABOVE],
    "average_hard_negatives": [
        Omission(
            "k_of_one_is_the_maximum", _OF_POSITIVES, batch([1.0, 2.0, 3.0, 9.0], {"k": 4.0}, groups=[1, 1, 1, 0])
        ),
        Omission("everything_is_the_mean", _OF_POSITIVES, batch([1.0, 2.0, 3.0, 9.0], {"k": 4.0}, groups=[1, 1, 1, 0])),
        Omission(
            "value_never_increases_in_k",
            "a ratio above what there is stands for less",
            batch([1.0, 2.0, 3.0, 9.0], {"k": 4.0}, groups=[1, 1, 1, 0]),
        ),
        Omission(
            "value_is_the_minimum_over_lambda",
            _OF_POSITIVES,
            batch([1.0, 2.0, 3.0, 9.0], {"k": 2.0}, groups=[1, 1, 1, 0]),
        ),
        Omission("value_is_homogeneous_and_moves_with_the_losses", "where nothing is positive it is 0", _NO_POSITIVE),
        Omission("weights_are_bounded_and_sum_to_one", "where nothing is positive there are none", _NO_POSITIVE),
        Omission("unselected_infinity_costs_nothing", "all are positives there, and selected", FOUR),
    ],
    "kth_largest": _KTH,
    "kth_largest in groups": [Omission("k_of_one_is_the_maximum", "it is the mean of the groups' own", UNEVEN), *_KTH],
    "average_top_k_dual": _FROM_A_THRESHOLD,
    "average_top_k_dual smoothed": _FROM_A_THRESHOLD,
    "AverageTopKLoss within classes": [*_IN_GROUPS, _UP_TO_K_IN_GROUPS],
    "DualAverageTopKLoss": _FROM_A_THRESHOLD,
    "average_tilted": [
        Omission("k_of_one_is_the_maximum", "it has no k", UNEVEN),
        Omission("everything_is_the_mean", "it has no k", UNEVEN),
        Omission("value_is_the_minimum_over_lambda", "it has no k", UNEVEN),
        Omission(
            "value_is_homogeneous_and_moves_with_the_losses", "the tilt is in one over the unit of losses", UNEVEN
        ),
        Omission("weights_are_bounded_and_sum_to_one", "the largest may have it all", UNEVEN),
    ],
}
OMISSIONS["OHEMLoss"] = OMISSIONS["average_above"]
OMISSIONS["HardNegativeLoss"] = OMISSIONS["average_hard_negatives"]
for _subject in SUBJECTS:  # whatever computes it
    if _subject.name.startswith("AverageTopKCrossEntropyLoss by"):
        OMISSIONS[_subject.name] = OMISSIONS["AverageTopKCrossEntropyLoss"]
