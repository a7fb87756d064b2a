"""Ranks within groups: many, uneven, of any numbers; each as exact as alone."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from topkloss import (
    AverageTopKCrossEntropyLoss,
    AverageTopKLoss,
    CrossEntropy,
    average_above,
    average_ranked_range,
    average_top_k,
    kth_largest,
    topk_select,
)
from topkloss.kernels import native
from topkloss.ranking import groups as groups_module
from topkloss.ranking.groups import NativeGroups, SortedGroups
from topkloss.ranking.rank import rank
from topkloss.ranking.selection import above, everything, kth, largest, top_k
from topkloss.ranking.tensor_ranking import tensor_ranking


def one_by_one(aggregate: Any, losses: Tensor, groups: Tensor, **given: Any) -> Tensor:
    """The mean over the groups that count something, each through the ungrouped way."""
    values = []
    for group in groups.unique():
        own = groups == group
        part = {name: value[own] if isinstance(value, Tensor) else value for name, value in given.items()}
        counts = part.get("mask", torch.ones(int(own.sum()), dtype=torch.bool))
        mass = part.get("sample_weight", torch.ones(int(own.sum())))
        if bool((counts & (mass > 0)).any()):
            values.append(aggregate(losses[own], **part))
    return torch.stack(values).mean()


@pytest.mark.parametrize("weighed", [False, True])
@pytest.mark.parametrize(
    ("aggregate", "asked"),
    [
        (average_top_k, {"k": 2.5}),
        (average_top_k, {"fraction": 0.3}),
        (average_ranked_range, {"k": 2.5, "drop": 1.5}),
        (average_ranked_range, {"fraction": 0.3, "drop_fraction": 0.2}),
        (average_above, {"threshold": 0.5, "min_kept": 1.5}),
        (kth_largest, {"fraction": 0.3}),
    ],
    ids=lambda value: value.__name__ if callable(value) else str(value),
)
def test_a_thousand_groups_are_as_many_calls(aggregate: Any, asked: dict[str, float], weighed: bool) -> None:
    torch.manual_seed(0)
    n = 20_000
    losses = (4 * torch.randn(n, dtype=torch.float64)).round() / 4  # with ties
    losses.requires_grad_()
    groups = (1000 * torch.rand(n).square()).long() - 500  # large and small ones, negative numbers
    given: dict[str, Any] = {"mask": torch.rand(n) > 0.3, **asked}
    if weighed:
        given["sample_weight"] = torch.rand(n, dtype=torch.float64).square() * 100
    ours = aggregate(losses, groups=groups, **given)
    theirs = one_by_one(aggregate, losses, groups, **given)
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=0)
    gradients = [torch.autograd.grad(value, losses)[0] for value in (ours, theirs)]
    torch.testing.assert_close(*gradients, rtol=1e-7, atol=1e-13)


def test_a_light_group_beside_a_heavy_one_is_as_exact_as_alone() -> None:
    losses = torch.tensor([5.0, 1.0, 4.0, 2.0, 3.0], dtype=torch.float64)
    mass = torch.tensor([1e12, 1e12, 1e-12, 1e-12, 1e-12], dtype=torch.float64)
    selection = topk_select(losses, fraction=0.5, sample_weight=mass, groups=torch.tensor([0, 0, 1, 1, 1]))
    expected = torch.tensor([1.0, 0.0, 2 / 3, 0.0, 1 / 3], dtype=torch.float64) / 2
    torch.testing.assert_close(selection.weights, expected, rtol=1e-12, atol=0)
    assert selection.kept.tolist() == [True, False, True, False, True]


def test_a_cut_between_two_elements_takes_nothing_of_the_other_one() -> None:
    """However the sums of masses round: an infinity just behind the cut, or just dropped before it, leaves no trace."""
    torch.manual_seed(0)
    for _ in range(200):
        mass = torch.rand(12, dtype=torch.float64) ** 3
        groups = torch.tensor([0] * 6 + [1] * 6)
        k = math.fsum(mass[:3].tolist())
        mass[6:9] = mass[:3].flip(0)  # the same sum, in another order
        losses = torch.arange(12, 0, -1, dtype=torch.float64)
        low, high = losses.clone(), losses.clone()
        low[[3, 4, 5, 9, 10, 11]] = -math.inf
        high[[0, 1, 2, 6, 7, 8]] = math.inf
        given: dict[str, Any] = {"sample_weight": mass, "groups": groups}
        assert average_top_k(low, k=k, **given).isfinite()
        assert kth_largest(low, k=k, **given).isfinite()
        assert average_ranked_range(high, k=0.01, drop=k, **given).isfinite()


def test_a_tiny_k_is_the_maximum_of_each_group() -> None:
    losses, groups = torch.tensor([5.0, 1.0, 4.0, 2.0]), torch.tensor([3, 3, 7, 7])
    mass = torch.full((4,), 3.0)
    for k in (1.0, 1e-3, 1e-30, 5e-324):
        assert average_top_k(losses, k=k, groups=groups, sample_weight=mass) == 4.5
        assert kth_largest(losses, k=k, groups=groups, sample_weight=mass) == 4.5


def test_masses_in_groups_are_exact_where_each_counts_one() -> None:
    scores = torch.tensor([2.0, -0.0, 2.0, 0.0, math.inf, -math.inf])
    mask = torch.tensor([True, True, True, True, True, False])
    at = SortedGroups(tensor_ranking(scores, mask=mask), torch.zeros(6, dtype=torch.int8))
    assert at.above_each.tolist() == [1, 3, 1, 3, 0, 5]
    assert at.tied.tolist() == [2, 2, 2, 2, 1, 0]
    assert at.total.tolist() == [5] * 6
    assert at.number == 1


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64])
def test_any_integers_number_the_groups(dtype: torch.dtype) -> None:
    losses = torch.tensor([[5.0, 1.0], [4.0, 2.0]])
    groups = torch.tensor([[9, 9], [200 if dtype == torch.uint8 else -3] * 2]).to(dtype)
    assert average_top_k(losses, k=1, groups=groups) == 4.5


def test_a_group_without_anything_counted_has_no_say() -> None:
    losses = torch.tensor([5.0, 1.0, math.nan], requires_grad=True)
    value = average_top_k(losses, k=1, mask=torch.tensor([True, True, False]), groups=torch.tensor([0, 0, 1]))
    value.backward()
    assert value == 5
    assert losses.grad is not None
    assert losses.grad.tolist() == [1, 0, 0]


def test_a_counted_nan_in_one_group_shows_and_the_lowest_threshold_is_said() -> None:
    losses, groups = torch.tensor([5.0, 1.0, 4.0, 2.0]), torch.tensor([0, 0, 1, 1])
    assert topk_select(losses, k=1, groups=groups).threshold == 4
    losses[3] = math.nan
    selection = topk_select(losses, k=1, groups=groups)
    assert selection.value.isnan()
    assert selection.threshold.isnan()
    assert topk_select(losses, k=1, groups=groups, nan_policy="omit").value == 4.5


# Criteria


@pytest.mark.parametrize("weighted", [False, True])
def test_within_samples_is_the_mean_of_each_sample_by_itself(weighted: bool) -> None:
    torch.manual_seed(0)
    outputs = torch.randn(4, 3, 50, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(3, (4, 50))
    targets[1, :45], targets[2] = -100, -100
    weight = torch.tensor([0.5, 1.0, 3.0]) if weighted else None
    ours = AverageTopKCrossEntropyLoss(fraction=0.3, weight=weight, within="sample")(outputs, targets)
    alone = AverageTopKCrossEntropyLoss(fraction=0.3, weight=weight)
    theirs = torch.stack([alone(outputs[i : i + 1], targets[i : i + 1]) for i in (0, 1, 3)]).mean()
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(torch.autograd.grad(ours, outputs), torch.autograd.grad(theirs, outputs))


def test_within_classes_is_the_mean_of_each_class_by_itself() -> None:
    torch.manual_seed(0)
    outputs, targets = torch.randn(60, 4, dtype=torch.float64), torch.randint(3, (60,))  # class 3 has no element
    targets[:9] = 255
    ours = AverageTopKCrossEntropyLoss(fraction=0.3, within="class", ignore_index=255)(outputs, targets)
    alone = AverageTopKLoss(CrossEntropy(), fraction=0.3)
    theirs = torch.stack([alone(outputs[targets == c], targets[targets == c]) for c in range(3)]).mean()
    torch.testing.assert_close(ours, theirs)


def test_samples_are_ranked_by_their_unsmoothed_mean_over_what_counts() -> None:
    outputs = torch.tensor([[[60.0, 60.0], [0.0, 0.0]], [[0.0, 0.0], [0.0, 0.0]], [[9.0, 0.0], [0.0, 0.0]]])
    targets = torch.tensor([[0, 0], [0, 0], [1, 255]])
    criterion = AverageTopKCrossEntropyLoss(k=1, level="sample", ignore_index=255, label_smoothing=0.9)
    assert criterion.select(outputs, targets).kept.tolist() == [False, False, True]
    mass = torch.tensor([1.0, 1.0, 0.0])
    assert criterion.select(outputs, targets, sample_weight=mass).kept.tolist() == [False, True, False]


def test_class_weights_weigh_the_pixels_within_a_sample() -> None:
    outputs, targets = torch.randn(2, 3, 5), torch.tensor([[0, 1, 2, 0, 1], [0, 0, 0, 2, 2]])
    weight = torch.tensor([1.0, 5.0, 0.5])
    ours = AverageTopKCrossEntropyLoss(fraction=1, weight=weight, level="sample")(outputs, targets)
    each = [torch.nn.functional.cross_entropy(outputs[i : i + 1], targets[i : i + 1], weight=weight) for i in range(2)]
    torch.testing.assert_close(ours, torch.stack(each).mean())


@pytest.mark.skipif(not native.is_available(), reason="the native kernels were not built for this processor")
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("by", ["sample", "class"])
@pytest.mark.parametrize("nan_policy", ["propagate", "omit"])
def test_long_groups_by_the_kernels_are_those_by_one_sort(
    by: str, weighted: bool, nan_policy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On as many elements as the kernels take by themselves: ignored ones, an empty group, ties, and a NaN left out."""
    generator = torch.Generator().manual_seed(0)
    losses = (torch.randn(3, 2, 40, 50, generator=generator) * 4).round() / 4
    mask = torch.rand(losses.shape, generator=generator) < 0.7
    mask[1] = by == "class"
    targets = torch.randint(-1, 2, losses.shape, generator=generator).masked_fill(~mask, 255)
    targets = torch.where(targets == 0, -1, targets)  # one number between two has no element
    mass = torch.randint(0, 3, losses.shape, generator=generator).float() if weighted else None
    losses = losses.masked_fill(
        torch.rand(losses.shape, generator=generator) < 0.01, math.nan if nan_policy == "omit" else 9
    )
    given: dict[str, Any] = {"mask": mask, "sample_weight": mass, "nan_policy": nan_policy}
    given |= {"by_sample": True} if by == "sample" else {"groups": targets}
    rules = {
        "top": top_k(None, 0.3),
        "range": top_k(None, 0.3, 7.0),
        "kth": kth(50.5, None),
        "above": above(0.5, 20.0, None),
        "everything": everything,
        "largest": largest,
    }
    for name, rule in rules.items():
        answers = []
        for long in (groups_module.LONG, 2**40):
            monkeypatch.setattr(groups_module, "LONG", long)
            leaf = losses.clone().requires_grad_()
            rankings = rank(leaf, **given)
            assert isinstance(rankings, NativeGroups if long < 2**40 else SortedGroups)
            weights = rankings.by(rule)
            value = rankings.dot(weights, leaf)
            answers.append([value, *torch.autograd.grad(value, leaf), weights.dense(), weights.lowest])
            monkeypatch.undo()
        torch.testing.assert_close(*answers, msg=name)
