"""Every error: the argument, what it must be, what came, one way out."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import topkloss
from topkloss import (
    AverageRankedRangeLoss,
    AverageTopKCrossEntropyLoss,
    AverageTopKLoss,
    CompoundLoss,
    CrossEntropy,
    DeepSupervisionLoss,
    DualAverageTopKLoss,
    HardNegativeLoss,
    OHEMLoss,
    RegionLoss,
    average,
    average_above,
    average_hard_negatives,
    average_ranked_range,
    average_tilted,
    average_top_k,
    average_top_k_cross_entropy,
    average_top_k_dual,
    kth_largest,
    maximum,
    topk_select,
    topk_threshold,
    topk_weights,
)
from topkloss.aggregates import average as aggregate
from topkloss.aggregates import dual as soft
from topkloss.losses import cross_entropy, dice_loss

LOSSES = torch.tensor([1.0, 2.0, 3.0])
NAN = torch.tensor([1.0, math.nan])
LOGITS, TARGETS = torch.zeros(4, 3), torch.zeros(4, dtype=torch.long)

# k and fraction, of every function and criterion that takes them: at once, before anything is computed

TAKE_K: dict[str, Callable[..., Any]] = {
    "topk_threshold": lambda **given: topk_threshold(LOSSES, **given),
    "topk_weights": lambda **given: topk_weights(LOSSES, **given),
    "topk_select": lambda **given: topk_select(LOSSES, **given),
    "average_top_k": lambda **given: average_top_k(LOSSES, **given),
    "average_ranked_range": lambda **given: average_ranked_range(LOSSES, drop=1, **given),
    "AverageTopKLoss": lambda **given: AverageTopKLoss(nn.L1Loss(reduction="none"), **given),
    "AverageRankedRangeLoss": lambda **given: AverageRankedRangeLoss(nn.L1Loss(reduction="none"), drop=1, **given),
    "AverageTopKCrossEntropyLoss": AverageTopKCrossEntropyLoss,
    "kth_largest": lambda **given: kth_largest(LOSSES, **given),
}

BAD_K: list[tuple[dict[str, Any], type[Exception], str]] = [
    (
        {},
        ValueError,
        "exactly one of `k` and `fraction` must be given; got neither. "
        "For the 70 % hardest elements pass fraction=0.7.",
    ),
    (
        {"k": 2, "fraction": 0.5},
        ValueError,
        "exactly one of `k` and `fraction` must be given; got k=2 and fraction=0.5. "
        "For the 70 % hardest elements pass fraction=0.7.",
    ),
    (
        {"fraction": 70},
        ValueError,
        "`fraction` must satisfy 0 < fraction <= 1; got 70. For the 70 % hardest elements pass fraction=0.7.",
    ),
    (
        {"fraction": 1.5},
        ValueError,
        "`fraction` must satisfy 0 < fraction <= 1; got 1.5. For the 1.5 % hardest elements pass fraction=0.015.",
    ),
    (
        {"fraction": 0.0},
        ValueError,
        "`fraction` must satisfy 0 < fraction <= 1; got 0. For the 70 % hardest elements pass fraction=0.7.",
    ),
    (
        {"fraction": math.nan},
        ValueError,
        "`fraction` must satisfy 0 < fraction <= 1; got nan. For the 70 % hardest elements pass fraction=0.7.",
    ),
    ({"k": 0}, ValueError, "`k` must satisfy k > 0; got 0. For a share of the elements pass fraction=, e.g. 0.7."),
    ({"k": -3}, ValueError, "`k` must satisfy k > 0; got -3. For a share of the elements pass fraction=, e.g. 0.7."),
    (
        {"k": math.nan},
        ValueError,
        "`k` must satisfy k > 0; got nan. For a share of the elements pass fraction=, e.g. 0.7.",
    ),
    ({"k": True}, TypeError, "`k` must be a real number; got bool. Pass a Python number, e.g. float(k)."),
    (
        {"k": torch.tensor(2)},
        TypeError,
        "`k` must be a real number; got Tensor. Pass a Python number, e.g. float(k).",
    ),
    (
        {"k": np.array([2.0])},
        TypeError,
        "`k` must be a real number; got ndarray. Pass a Python number, e.g. float(k).",
    ),
    (
        {"fraction": "0.7"},
        TypeError,
        "`fraction` must be a real number; got str. Pass a Python number, e.g. float(fraction).",
    ),
]


def says(call: Callable[..., Any], error: type[Exception], sentence: str) -> None:
    with pytest.raises(error, match=f"^{re.escape(sentence)}$"):
        call()


@pytest.mark.parametrize("name", TAKE_K)
@pytest.mark.parametrize(("given", "error", "sentence"), BAD_K, ids=lambda value: str(value)[:40])
def test_k_and_fraction(name: str, given: dict[str, Any], error: type[Exception], sentence: str) -> None:
    says(lambda: TAKE_K[name](**given), error, sentence)


# drop and drop_fraction

TAKE_DROP: dict[str, Callable[..., Any]] = {
    "average_ranked_range": lambda **given: average_ranked_range(LOSSES, k=1, **given),
    "AverageRankedRangeLoss": lambda **given: AverageRankedRangeLoss(nn.L1Loss(reduction="none"), k=1, **given),
    "topk_select": lambda **given: topk_select(LOSSES, k=1, **given),
}
WAY_OUT = "To leave out the 2 % largest pass drop_fraction=0.02."


@pytest.mark.parametrize("name", TAKE_DROP)
@pytest.mark.parametrize(
    ("given", "error", "sentence"),
    [
        ({"drop": -1}, ValueError, "`drop` must satisfy 0 <= drop < inf; got -1. To drop nothing pass drop=0."),
        (
            {"drop": math.inf},
            ValueError,
            "`drop` must satisfy 0 <= drop < inf; got inf. To drop nothing pass drop=0.",
        ),
        (
            {"drop_fraction": 1},
            ValueError,
            f"`drop_fraction` must satisfy 0 <= drop_fraction < 1; got 1. {WAY_OUT}",
        ),
        (
            {"drop": None, "drop_fraction": torch.tensor(0.1)},
            TypeError,
            "`drop_fraction` must be a real number; got Tensor. Pass a Python number, e.g. float(drop_fraction).",
        ),
    ],
    ids=str,
)
def test_drop(name: str, given: dict[str, Any], error: type[Exception], sentence: str) -> None:
    says(lambda: TAKE_DROP[name](**given), error, sentence)


@pytest.mark.parametrize("name", TAKE_DROP)
def test_both_drops(name: str) -> None:
    how_many = "at most" if name == "topk_select" else "exactly"
    says(
        lambda: TAKE_DROP[name](drop=1, drop_fraction=0.1),
        ValueError,
        f"{how_many} one of `drop` and `drop_fraction` must be given; got drop=1 and drop_fraction=0.1. {WAY_OUT}",
    )
    if how_many == "exactly":
        sentence = f"exactly one of `drop` and `drop_fraction` must be given; got neither. {WAY_OUT}"
        says(lambda: TAKE_DROP[name](), ValueError, sentence)


# Tensors

SHAPE = torch.ones(2)
TENSORS: list[tuple[str, Callable[[], Any], type[Exception], str]] = [
    (
        "scalar",
        lambda: average_top_k(torch.tensor(1.0), k=1),
        ValueError,
        "`losses` must hold one number per element; got a scalar, which is already reduced, so there is nothing to "
        'select from. Pass the unreduced losses, e.g. with reduction="none".',
    ),
    (
        "integers",
        lambda: average(torch.tensor([1, 2])),
        TypeError,
        "`losses` must be a floating-point tensor; got torch.int64. Pass losses.float().",
    ),
    (
        "list",
        lambda: maximum([1.0, 2.0]),  # type: ignore[arg-type]
        TypeError,
        "`losses` must be a floating-point tensor; got list. Pass losses.float().",
    ),
    (
        "scores",
        lambda: average_top_k(LOSSES, k=1, scores=torch.tensor([1, 2, 3])),
        TypeError,
        "`scores` must be a floating-point tensor; got torch.int64. Pass scores.float().",
    ),
    (
        "mask type",
        lambda: average_top_k(LOSSES, k=1, mask=torch.ones(3)),
        TypeError,
        "`mask` must be a bool tensor, True = counts; got torch.float32. Pass mask.bool().",
    ),
    (
        "mask list",
        lambda: average_top_k(LOSSES, k=1, mask=[True, True, False]),  # type: ignore[arg-type]
        TypeError,
        "`mask` must be a bool tensor, True = counts; got list. Pass mask.bool().",
    ),
    (
        "mask shape",
        lambda: average_top_k(torch.zeros(8, 4), k=1, mask=torch.ones(8, dtype=torch.bool)),
        ValueError,
        "`losses` and `mask` must have the same shape; got (8, 4) and (8,). Pass mask[:, None].expand(8, 4).",
    ),
    (
        "mass shape",
        lambda: average(LOSSES, sample_weight=SHAPE),
        ValueError,
        "`losses` and `sample_weight` must have the same shape; got (3,) and (2,). "
        "Expand `sample_weight` to the shape of `losses`.",
    ),
    (
        "mass list",
        lambda: average(LOSSES, sample_weight=[1, 1, 1]),  # type: ignore[arg-type]
        TypeError,
        "`sample_weight` must be a real tensor; got list. Pass torch.as_tensor(sample_weight).",
    ),
    (
        "complex mass",
        lambda: average(LOSSES, sample_weight=torch.ones(3, dtype=torch.complex64)),
        TypeError,
        "`sample_weight` must be a real tensor; got torch.complex64. Pass torch.as_tensor(sample_weight).",
    ),
    (
        "scores shape",
        lambda: topk_weights(LOSSES, k=1, scores=SHAPE),
        ValueError,
        "`losses` and `scores` must have the same shape; got (3,) and (2,). Expand `scores` to the shape of `losses`.",
    ),
    *(
        (
            f"mass {bad}",
            lambda bad=bad: average(LOSSES, sample_weight=torch.tensor([1.0, bad, 1.0])),
            ValueError,
            f"`sample_weight` must be finite and >= 0 where counted; got {bad:g}. "
            "To leave an element out give it weight 0 or mask=False.",
        )
        for bad in (-1.0, math.inf, math.nan)
    ),
    (
        "NaN",
        lambda: average_top_k(NAN, k=1, nan_policy="raise"),
        ValueError,
        "`losses` (or `scores`) must not be NaN where counted; got NaN. "
        'Pass nan_policy="omit" to leave such elements out.',
    ),
    (
        "NaN score",
        lambda: average_top_k(torch.zeros(2), k=1, scores=NAN, nan_policy="raise"),
        ValueError,
        "`losses` (or `scores`) must not be NaN where counted; got NaN. "
        'Pass nan_policy="omit" to leave such elements out.',
    ),
    (
        "policy",
        lambda: average_top_k(LOSSES, k=1, nan_policy="ignore"),  # type: ignore[arg-type]
        ValueError,
        '`nan_policy` must be "propagate", "raise" or "omit"; got \'ignore\'. '
        'To keep divergence visible pass "propagate".',
    ),
]


@pytest.mark.parametrize(("call", "error", "sentence"), [row[1:] for row in TENSORS], ids=[row[0] for row in TENSORS])
def test_tensors(call: Callable[[], Any], error: type[Exception], sentence: str) -> None:
    says(call, error, sentence)


def test_the_first_wrong_mass_is_named() -> None:
    with pytest.raises(ValueError, match="got -1"):
        average(LOSSES, sample_weight=torch.tensor([1.0, -1.0, -2.0]))


@pytest.mark.parametrize("name", ["topk_threshold", "topk_weights", "topk_select", *aggregate.__all__, *soft.__all__])
def test_everything_after_the_tensors_is_given_by_name(name: str) -> None:
    parameters = inspect.signature(getattr(topkloss, name)).parameters.values()
    by_place = {one.name for one in parameters if one.kind is not inspect.Parameter.KEYWORD_ONLY}
    tensors = {"average_hard_negatives": {"losses", "positives"}, "average_top_k_dual": {"losses", "threshold"}}
    assert by_place == tensors.get(name, {"loss" if name.endswith("Loss") else "losses"})


def test_a_wrong_mass_that_is_not_counted_is_no_error() -> None:
    mass = torch.tensor([1.0, -1.0, math.nan])
    assert average(LOSSES, mask=torch.tensor([True, False, False]), sample_weight=mass) == 1


# Criteria

CRITERIA: list[tuple[str, Callable[[], Any], type[Exception], str]] = [
    (
        "level",
        lambda: AverageTopKLoss(torch.sub, k=1, level="pixel"),  # type: ignore[arg-type]
        ValueError,
        '`level` must be "element" or "sample"; got \'pixel\'. To rank single losses pass "element".',
    ),
    (
        "level of the range",
        lambda: AverageRankedRangeLoss(torch.sub, k=1, drop=1, level=None),  # type: ignore[arg-type]
        ValueError,
        '`level` must be "element" or "sample"; got None. To rank single losses pass "element".',
    ),
    (
        "policy at once",
        lambda: AverageTopKLoss(torch.sub, k=1, nan_policy="skip"),  # type: ignore[arg-type]
        ValueError,
        '`nan_policy` must be "propagate", "raise" or "omit"; got \'skip\'. '
        'To keep divergence visible pass "propagate".',
    ),
    (
        "mask of samples",
        lambda: AverageTopKLoss(torch.sub, k=1, level="sample")(LOGITS, LOGITS, mask=torch.ones(4, dtype=torch.bool)),
        ValueError,
        "`losses` and `mask` must have the same shape; got (4, 3) and (4,). Pass mask[:, None].expand(4, 3).",
    ),
    (
        "smoothing",
        lambda: AverageTopKCrossEntropyLoss(k=1, label_smoothing=10),
        ValueError,
        "`label_smoothing` must satisfy 0 <= label_smoothing <= 1; got 10. A common choice is label_smoothing=0.1.",
    ),
    (
        "class weights",
        lambda: AverageTopKCrossEntropyLoss(k=1, weight=torch.tensor([1.0, -1.0])),
        ValueError,
        "`weight` must be one finite number >= 0 per class, shape (C,); got [1.0, -1.0]. "
        "To weigh elements rather than classes pass `sample_weight` to the call.",
    ),
    (
        "class weights in words",
        lambda: AverageTopKCrossEntropyLoss(k=1, weight="balanced"),  # type: ignore[arg-type]
        TypeError,
        "`weight` must be one number for each class; got str. Pass a tensor or a list, e.g. weight=[1.0, 2.0] for two "
        "classes.",
    ),
    (
        "outputs of one dimension",
        lambda: AverageTopKCrossEntropyLoss(k=1, weight=torch.ones(3))(torch.zeros(3), TARGETS),
        ValueError,
        "`targets` must be a scalar beside the logits of one element, shape (C,); got (3,) and (4,). For one logit per "
        'element take AverageTopKLoss(nn.BCEWithLogitsLoss(reduction="none"), ...).',
    ),
    (
        "smoothing word",
        lambda: AverageTopKCrossEntropyLoss(k=1, label_smoothing="a"),  # type: ignore[arg-type]
        TypeError,
        "`label_smoothing` must be a real number; got str. Pass a Python number, e.g. float(label_smoothing).",
    ),
    (
        "integer losses of samples",
        lambda: AverageTopKLoss(torch.sub, k=1, level="sample")(TARGETS, TARGETS),
        TypeError,
        "`losses` must be a floating-point tensor; got torch.int64. Pass losses.float().",
    ),
    (
        "class weights shape",
        lambda: AverageTopKCrossEntropyLoss(k=1, weight=torch.ones(1, 2)),
        ValueError,
        "`weight` must be one finite number >= 0 per class, shape (C,); got [[1.0, 1.0]]. "
        "To weigh elements rather than classes pass `sample_weight` to the call.",
    ),
    (
        "number of class weights",
        lambda: AverageTopKCrossEntropyLoss(k=1, weight=torch.ones(5))(LOGITS, TARGETS),
        ValueError,
        "`weight` must hold one number per class; got 5 for 3 classes. The classes are dimension 1 of the outputs.",
    ),
    (
        "integer logits",
        lambda: AverageTopKCrossEntropyLoss(k=1)(LOGITS.long(), TARGETS),
        TypeError,
        "`outputs` must be floating-point logits; got torch.int64. Pass outputs.float().",
    ),
    (
        "one-hot targets of integers",
        lambda: AverageTopKCrossEntropyLoss(k=1)(LOGITS, LOGITS.long()),
        TypeError,
        "`targets` shaped like the outputs must be probabilities, of a floating type; got torch.int64. "
        "Of one-hot targets pass targets.float().",
    ),
    (
        "classes last",
        lambda: AverageTopKCrossEntropyLoss(k=1)(torch.zeros(4, 6, 3), torch.zeros(4, 6, dtype=torch.long)),
        ValueError,
        "`outputs` must have shape (N, C) or (N, C, d1, ...) and `targets` the same without C, or with the "
        "probabilities of each class; got (4, 6, 3) and (4, 6). The classes are dimension 1: pass "
        "outputs.movedim(-1, 1).",
    ),
    (
        "mask of targets",
        lambda: AverageTopKCrossEntropyLoss(k=1)(LOGITS, TARGETS, mask=torch.ones(3, dtype=torch.bool)),
        ValueError,
        "`targets` and `mask` must have the same shape; got (4,) and (3,). Expand `mask` to the shape of `targets`.",
    ),
    (
        "mask of integers",
        lambda: AverageTopKCrossEntropyLoss(k=1)(LOGITS, TARGETS, mask=TARGETS),
        TypeError,
        "`mask` must be a bool tensor, True = counts; got torch.int64. Pass mask.bool().",
    ),
    (
        "mass of targets",
        lambda: AverageTopKCrossEntropyLoss(k=1)(LOGITS, TARGETS, sample_weight=torch.ones(3)),
        ValueError,
        "`targets` and `sample_weight` must have the same shape; got (4,) and (3,). "
        "Expand `sample_weight` to the shape of `targets`.",
    ),
    (
        "label",
        lambda: cross_entropy(LOGITS, TARGETS + 255),
        ValueError,
        "`targets` must be classes in [0, 3) where counted; got 255. "
        "If that marks elements to leave out, pass it as `ignore_index`.",
    ),
]


@pytest.mark.parametrize(("call", "error", "sentence"), [row[1:] for row in CRITERIA], ids=[row[0] for row in CRITERIA])
def test_criteria(call: Callable[[], Any], error: type[Exception], sentence: str) -> None:
    says(call, error, sentence)


# Mining, groups, sums

MINING: list[tuple[str, Callable[[], Any], type[Exception], str]] = [
    (
        "NaN threshold",
        lambda: average_above(LOSSES, threshold=math.nan),
        ValueError,
        "`threshold` must be a number; got nan. To keep a share of the elements use average_top_k.",
    ),
    (
        "threshold of a tensor",
        lambda: OHEMLoss(torch.sub, threshold=torch.tensor(0.7)),  # type: ignore[arg-type]
        TypeError,
        "`threshold` must be a real number; got Tensor. Pass a Python number, e.g. float(threshold).",
    ),
    (
        "two floors",
        lambda: OHEMLoss(torch.sub, threshold=1, min_kept=3, min_fraction=0.1),
        ValueError,
        "at most one of `min_kept` and `min_fraction` must be given; got min_kept=3 and min_fraction=0.1. "
        "To keep at least a sixteenth pass min_fraction=1/16.",
    ),
    *(
        (
            f"floor {bad}",
            lambda bad=bad: average_above(LOSSES, threshold=1, min_kept=bad),
            ValueError,
            f"`min_kept` must satisfy min_kept >= 0; got {bad}. For no least number leave it out.",
        )
        for bad in (-1, math.nan)
    ),
    (
        "floor of per cent",
        lambda: average_above(LOSSES, threshold=1, min_fraction=10),
        ValueError,
        "`min_fraction` must satisfy 0 < min_fraction <= 1; got 10. "
        "To keep at least a sixteenth pass min_fraction=1/16.",
    ),
    (
        "ratio",
        lambda: HardNegativeLoss(torch.sub, ratio=0),
        ValueError,
        "`ratio` must satisfy 0 < ratio < inf; got 0. SSD takes 3 negatives per positive.",
    ),
    (
        "least negatives",
        lambda: average_hard_negatives(LOSSES, LOSSES > 1, min_negatives=-1),
        ValueError,
        "`min_negatives` must satisfy 0 <= min_negatives < inf; got -1. Pass 0 for none where nothing is positive.",
    ),
    (
        "positives of labels",
        lambda: average_hard_negatives(LOSSES, torch.tensor([0, 1, 2])),
        TypeError,
        "`positives` must be a bool tensor; got torch.int64. Pass e.g. positives=targets > 0.",
    ),
    (
        "shape of positives",
        lambda: HardNegativeLoss(lambda o, t: o)(LOSSES, torch.tensor([0, 1])),
        ValueError,
        "`losses` and `positives` must have the same shape; got (3,) and (2,). "
        "Expand `positives` to the shape of `losses`.",
    ),
    (
        "groups of floats",
        lambda: average(LOSSES, groups=LOSSES),
        TypeError,
        "`groups` must be a tensor of an integer type; got torch.float32. Number the groups, e.g. from 0.",
    ),
    (
        "groups of truth values",
        lambda: maximum(LOSSES, groups=LOSSES > 1),
        TypeError,
        "`groups` must be a tensor of an integer type; got torch.bool. Number the groups, e.g. from 0.",
    ),
    (
        "shape of groups",
        lambda: topk_select(LOSSES, k=1, groups=torch.tensor([0, 1])),
        ValueError,
        "`losses` and `groups` must have the same shape; got (3,) and (2,). Expand `groups` to the shape of `losses`.",
    ),
    (
        "within",
        lambda: AverageTopKLoss(torch.sub, k=1, within="image"),  # type: ignore[arg-type]
        ValueError,
        '`within` must be "batch", "sample" or "class"; got \'image\'. To rank all together pass "batch".',
    ),
    (
        "samples within samples",
        lambda: AverageTopKLoss(torch.sub, k=1, level="sample", within="sample"),
        ValueError,
        '`within` must be "batch" at level="sample"; got \'sample\'. To rank the elements of each sample pass '
        'level="element".',
    ),
    (
        "within and groups",
        lambda: AverageTopKLoss(torch.sub, k=1, within="sample")(LOSSES, LOSSES, groups=torch.tensor([0, 1, 2])),
        ValueError,
        '`groups` must not be given beside within="sample"; got both. Leave one out.',
    ),
    (
        "classes of real numbers",
        lambda: AverageTopKLoss(torch.sub, k=1, within="class")(LOSSES, LOSSES),
        ValueError,
        '`targets` must be integers shaped like the losses, (3,), for within="class"; got torch.float32 of shape (3,). '
        "Other groups can be passed as `groups`.",
    ),
    (
        "classes of one region per sample",
        lambda: AverageTopKLoss(RegionLoss(lambda o, t, mask: o.mean(dim=(1, 2))), k=1, within="class")(
            torch.zeros(2, 3, 4), torch.zeros(2, 4, dtype=torch.long)
        ),
        ValueError,
        '`targets` must be integers shaped like the losses, (2,), for within="class"; got no classes. '
        "Other groups can be passed as `groups`.",
    ),
    (
        "learned threshold",
        lambda: average_top_k_dual(LOSSES, 1.0, fraction=0.5),  # type: ignore[arg-type]
        TypeError,
        "`threshold` must be a 0-dim floating-point tensor; got float. "
        "To learn it pass torch.nn.Parameter(torch.tensor(0.0)).",
    ),
    (
        "several thresholds",
        lambda: average_top_k_dual(LOSSES, LOSSES, fraction=0.5),
        TypeError,
        "`threshold` must be a 0-dim floating-point tensor; got shape (3,). "
        "To learn it pass torch.nn.Parameter(torch.tensor(0.0)).",
    ),
    (
        "rounding",
        lambda: DualAverageTopKLoss(torch.sub, fraction=0.5, smoothing=-1),
        ValueError,
        "`smoothing` must satisfy 0 <= smoothing < inf; got -1. For the exact form pass smoothing=0.",
    ),
    (
        "no tilt",
        lambda: average_tilted(LOSSES, tilt=0),
        ValueError,
        "`tilt` must be finite and not 0; got 0. For its limit at 0 use `average`.",
    ),
    (
        "what a model returns",
        lambda: AverageTopKCrossEntropyLoss(k=1)({"out": LOGITS}, TARGETS),  # type: ignore[arg-type]
        TypeError,
        "`outputs` must be a tensor of logits; got dict. Of what a model returns pass the logits alone, e.g. "
        'outputs["out"].',
    ),
    (
        "targets of numpy",
        lambda: AverageTopKCrossEntropyLoss(k=1)(LOGITS, TARGETS.numpy()),  # type: ignore[arg-type]
        TypeError,
        "`targets` must be a tensor of class indices; got ndarray. Pass torch.as_tensor(targets).",
    ),
    (
        "class weights that are one number",
        lambda: average_top_k_cross_entropy(LOGITS, TARGETS, k=1, weight=2.0),  # type: ignore[arg-type]
        TypeError,
        "`weight` must be one number for each class; got float. Pass a tensor or a list, e.g. weight=[1.0, 2.0] for "
        "two classes.",
    ),
    (
        "a class of losses",
        lambda: AverageTopKLoss(torch.nn.L1Loss, k=1),  # type: ignore[arg-type]
        TypeError,
        "`loss` must be called as loss(outputs, targets); got the class L1Loss. Pass a module or function, e.g. "
        'torch.nn.L1Loss(reduction="none").',
    ),
    (
        "the name of a loss",
        lambda: AverageTopKLoss("l1", k=1),  # type: ignore[arg-type]
        TypeError,
        "`loss` must be called as loss(outputs, targets); got str. Pass a module or function, e.g. "
        'torch.nn.L1Loss(reduction="none").',
    ),
    (
        "number of weights",
        lambda: CompoundLoss([AverageTopKLoss(torch.sub, k=1)], weights=[1, 2]),
        ValueError,
        "`criteria` and `weights` must be as many; got 1 and 2. Give a part that is not wanted the weight 0.",
    ),
    (
        "weights of nothing",
        lambda: DeepSupervisionLoss(AverageTopKLoss(torch.sub, k=1), weights=[0, 0]),
        ValueError,
        "`weights` must be finite and >= 0, one of them above 0; got [0.0, 0.0]. A weight of 0 leaves its part out.",
    ),
    *(
        (
            f"a plain loss in {kind.__name__}",
            lambda kind=kind, given=given: kind(given, weights=[1]),
            TypeError,
            f"`{name}` must be of topkloss, like AverageTopKLoss, or return one number; got CrossEntropyLoss. For the "
            "plain mean of a loss that is not reduced pass AverageTopKLoss(loss, fraction=1).",
        )
        for kind, name, given in (
            (CompoundLoss, "criteria", [torch.nn.CrossEntropyLoss(reduction="none")]),
            (DeepSupervisionLoss, "criterion", torch.nn.CrossEntropyLoss(reduction="none")),
        )
    ),
    (
        "number of scales",
        lambda: DeepSupervisionLoss(AverageTopKCrossEntropyLoss(k=1), weights=[1])([LOGITS, LOGITS], TARGETS),
        ValueError,
        "`outputs` and `weights` must be as many; got 2 and 1. Give a part that is not wanted the weight 0.",
    ),
    (
        "smoothing of the labels",
        lambda: CrossEntropy(label_smoothing=2),
        ValueError,
        "`label_smoothing` must satisfy 0 <= label_smoothing <= 1; got 2. A common choice is label_smoothing=0.1.",
    ),
    (
        "a region loss of one number",
        lambda: AverageTopKLoss(lambda o, t: dice_loss(o, t).mean(), k=1)(
            torch.zeros(2, 3, 4), torch.zeros(2, 4, dtype=torch.long)
        ),
        ValueError,
        "`losses` must hold one number per element; got a scalar, which is already reduced, so there is nothing to "
        'select from. Pass the unreduced losses, e.g. with reduction="none".',
    ),
]


@pytest.mark.parametrize(("call", "error", "sentence"), [row[1:] for row in MINING], ids=[row[0] for row in MINING])
def test_mining(call: Callable[[], Any], error: type[Exception], sentence: str) -> None:
    says(call, error, sentence)
