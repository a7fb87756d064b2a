"""The criteria: equal to torch's cross-entropy where that is defined, exact where it is not, shapes, dtypes, state."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from topkloss import AverageRankedRangeLoss, AverageTopKCrossEntropyLoss, AverageTopKLoss, reference

SHAPES = [(64, 5), (3, 5, 7), (2, 5, 6, 4), (2, 5, 3, 2, 4)]


def logits_and_targets(shape: tuple[int, ...], dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    outputs = (3 * torch.randn(shape, generator=generator, dtype=torch.float64)).to(dtype)
    targets = torch.randint(shape[1], (shape[0], *shape[2:]), generator=generator)
    targets[torch.rand(targets.shape, generator=generator) < 0.2] = -100
    return outputs.requires_grad_(), targets


def assert_same(ours: Tensor, theirs: Tensor, outputs: Tensor, tolerance: float) -> None:
    """The same value, and the same gradient in the outputs."""
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)
    gradients = [torch.autograd.grad(value, outputs)[0] for value in (ours, theirs)]
    torch.testing.assert_close(*gradients, rtol=tolerance, atol=tolerance)


# At fraction 1 it is nn.CrossEntropyLoss (law 8)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("weighted", [False, True])
def test_fraction_one_is_torchs_cross_entropy(shape: tuple[int, ...], smoothing: float, weighted: bool) -> None:
    outputs, targets = logits_and_targets(shape)
    weight = torch.tensor([0.5, 1.0, 2.0, 0.0, 7.0], dtype=torch.float64) if weighted else None
    if weighted and smoothing > 0:
        assert weight is not None
        weight[3] = 0.3
    ours = AverageTopKCrossEntropyLoss(fraction=1, weight=weight, label_smoothing=smoothing)(outputs, targets)
    theirs = F.cross_entropy(outputs, targets, weight=weight, label_smoothing=smoothing)
    assert_same(ours, theirs, outputs, 1e-12)


def test_fraction_one_is_torchs_cross_entropy_in_float32() -> None:
    outputs, targets = logits_and_targets((64, 5), torch.float32)
    weight = torch.tensor([0.5, 1.0, 2.0, 0.0, 7.0])
    ours = AverageTopKCrossEntropyLoss(fraction=1, weight=weight)(outputs, targets)
    assert ours.dtype == torch.float32
    assert_same(ours, F.cross_entropy(outputs, targets, weight=weight), outputs, 1e-6)


def test_a_class_of_weight_zero_is_not_counted_under_smoothing() -> None:
    """Where torch still adds the smoothed part of its elements; documented, since mass 0 means not counted."""
    outputs, targets = logits_and_targets((64, 5))
    weight = torch.tensor([1.0, 1.0, 1.0, 0.0, 1.0], dtype=torch.float64)
    criterion = AverageTopKCrossEntropyLoss(fraction=1, weight=weight, label_smoothing=0.1)
    without = targets.masked_fill(targets == 3, -100)
    torch.testing.assert_close(criterion(outputs, targets), criterion(outputs, without))
    assert not torch.isclose(
        criterion(outputs, targets), F.cross_entropy(outputs, targets, weight=weight, label_smoothing=0.1)
    )


# Above the oracle


def plain_losses(outputs: Tensor, targets: Tensor) -> list[float]:
    """Cross-entropy in Python floats; 0 where ignored."""
    rows = outputs.detach().movedim(1, -1).reshape(-1, outputs.shape[1]).tolist()
    return [
        math.log(math.fsum(math.exp(z - row[y]) for z in row)) if y >= 0 else 0.0
        for row, y in zip(rows, targets.flatten().tolist(), strict=True)
    ]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("asked", [{"k": 2.5}, {"fraction": 0.35}], ids=str)
@pytest.mark.parametrize("weighted", [False, True])
def test_value_is_the_oracles(shape: tuple[int, ...], asked: dict[str, Any], weighted: bool) -> None:
    outputs, targets = logits_and_targets(shape)
    class_weights = [0.5, 1.0, 2.0, 0.0, 7.0]
    weight = torch.tensor(class_weights) if weighted else None
    ours = AverageTopKCrossEntropyLoss(weight=weight, **asked)(outputs, targets)
    counted = [y >= 0 for y in targets.flatten().tolist()]
    mass = [class_weights[y] for y in targets.flatten().clamp(min=0).tolist()] if weighted else None
    expected = reference.average_top_k(plain_losses(outputs, targets), mask=counted, sample_weight=mass, **asked)
    assert ours.item() == pytest.approx(expected, rel=1e-12)


def value_is_the_smoothed_loss_of_the_hardest_by_plain_loss() -> None:
    """Law 9: two confident elements have the larger smoothed loss, the two uncertain ones are the hardest."""
    outputs = torch.tensor([[60.0, 0, 0], [60.0, 0, 0], [0.0, 0, 0], [0.0, 0.5, 0]], dtype=torch.float64)
    targets = torch.zeros(4, dtype=torch.long)
    smoothed = F.cross_entropy(outputs, targets, label_smoothing=0.2, reduction="none")
    assert smoothed[:2].min() > smoothed[2:].max()
    value = AverageTopKCrossEntropyLoss(k=2, label_smoothing=0.2)(outputs, targets)
    torch.testing.assert_close(value, smoothed[2:].mean())


def test_smoothing_ranks_by_the_plain_loss() -> None:
    value_is_the_smoothed_loss_of_the_hardest_by_plain_loss()


def test_class_weights_do_not_decide_who_is_hard() -> None:
    """Law 8: ranked by the unweighted loss, although the class of the easy one weighs a thousand times more."""
    outputs = torch.tensor([[0.0, 1.0], [1.0, 0.0]], requires_grad=True)
    criterion = AverageTopKCrossEntropyLoss(k=1, weight=torch.tensor([1.0, 1000.0]))
    criterion(outputs, torch.tensor([0, 1])).backward()
    assert outputs.grad is not None
    # both have the same loss of 1.313: they tie, and share by mass
    assert outputs.grad[1].abs().sum() == pytest.approx(1000 * float(outputs.grad[0].abs().sum()), rel=1e-4)
    outputs = torch.tensor([[0.0, 1.1], [1.0, 0.0]], requires_grad=True)
    criterion(outputs, torch.tensor([0, 1])).backward()
    assert outputs.grad is not None
    assert (outputs.grad[0] != 0).all()


# What is not counted never matters (law 4)


@pytest.mark.parametrize("ignore_index", [-100, 255, 2])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_ignored_logits_and_labels_never_matter(ignore_index: int, smoothing: float) -> None:
    outputs, targets = logits_and_targets((4, 5, 6))
    ignored = targets == -100
    targets[targets == ignore_index] = 1
    criterion = AverageTopKCrossEntropyLoss(
        fraction=0.5, ignore_index=ignore_index, label_smoothing=smoothing, weight=torch.rand(5) + 0.1
    )
    legal = criterion(outputs, targets.masked_fill(ignored, ignore_index))
    poisoned = outputs.detach().masked_fill(ignored.unsqueeze(1), math.nan).requires_grad_()
    value = criterion(poisoned, targets.masked_fill(ignored, ignore_index))
    assert value == legal
    (gradient,) = torch.autograd.grad(value, poisoned)
    assert torch.equal(gradient, torch.autograd.grad(legal, outputs)[0])
    assert (gradient.movedim(1, -1)[ignored] == 0).all()


@pytest.mark.parametrize(
    ("dtype", "label", "ignore_index"),
    [(torch.uint8, 156, -100), (torch.uint8, 255, -1), (torch.int8, 1, 257), (torch.int16, 3, 65539)],
)
def test_a_narrow_type_of_targets_does_not_wrap_the_ignored_one(
    dtype: torch.dtype, label: int, ignore_index: int
) -> None:
    outputs, targets = torch.randn(2, 300), torch.tensor([label, label], dtype=dtype)
    ours = AverageTopKCrossEntropyLoss(fraction=1, ignore_index=ignore_index)(outputs, targets)
    torch.testing.assert_close(ours, F.cross_entropy(outputs, targets.long()))


def test_half_masses_are_multiplied_in_float64() -> None:
    outputs, targets = torch.randn(3, 2), torch.tensor([0, 1, 1])
    for size in (1000.0, 1e-4):
        criterion = AverageTopKCrossEntropyLoss(fraction=1, weight=torch.full((2,), size).half())
        value = criterion(outputs, targets, sample_weight=torch.full((3,), size).half())
        torch.testing.assert_close(value, F.cross_entropy(outputs, targets))


def test_class_weights_get_no_gradient() -> None:
    weight = torch.tensor([1.0, 2.0], requires_grad=True)
    criterion = AverageTopKCrossEntropyLoss(fraction=1, weight=weight, label_smoothing=0.1)
    assert not criterion(torch.randn(3, 2), torch.tensor([0, 1, 1])).requires_grad


def test_mask_and_ignore_index_both_leave_out() -> None:
    outputs, targets = logits_and_targets((64, 5))
    mask = torch.arange(64) % 3 > 0
    criterion = AverageTopKCrossEntropyLoss(fraction=0.5)
    garbage = targets.masked_fill(~mask, 77)
    both = targets.masked_fill(~mask, -100)
    assert criterion(outputs, garbage, mask=mask) == criterion(outputs, both)


def test_a_label_of_a_sample_of_weight_zero_never_matters() -> None:
    outputs, targets = logits_and_targets((64, 5))
    counts = targets >= 0
    value = AverageTopKCrossEntropyLoss(fraction=0.5)(
        outputs, targets.masked_fill(~counts, 99), sample_weight=counts.double()
    )
    # close, not equal: where nobody gives masses, kernels may serve, which add in another order
    torch.testing.assert_close(value, AverageTopKCrossEntropyLoss(fraction=0.5)(outputs, targets), rtol=1e-14, atol=0)


@pytest.mark.parametrize("label", [5, -1])
def test_a_counted_label_that_is_no_class_is_refused(label: int) -> None:
    outputs, _ = logits_and_targets((2, 5))
    with pytest.raises(ValueError, match=rf"classes in \[0, 5\) where counted; got {label}.*`ignore_index`"):
        AverageTopKCrossEntropyLoss(k=1)(outputs, torch.tensor([0, label]))


# Precision (law 7)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_logits_are_computed_in_float32(dtype: torch.dtype) -> None:
    outputs, targets = logits_and_targets((64, 5), dtype)
    criterion = AverageTopKCrossEntropyLoss(fraction=0.5)
    value = criterion(outputs, targets)
    assert value.dtype == torch.float32
    assert value == criterion(outputs.float(), targets)
    value.backward()
    assert outputs.grad is not None
    assert outputs.grad.dtype == dtype


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_changes_nothing_but_the_logits(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model, images = nn.Linear(8, 5), torch.randn(16, 8)
    targets = torch.arange(16) % 5
    criterion = AverageTopKCrossEntropyLoss(fraction=0.5)
    with torch.autocast("cpu", dtype=dtype):
        outputs = model(images)
        value = criterion(outputs, targets)
    assert outputs.dtype == dtype
    assert value.dtype == torch.float32
    assert value == criterion(outputs, targets)
    value.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


# Any loss, any level


def test_element_level_ranks_pixels_and_sample_level_images() -> None:
    outputs = torch.tensor([[9.0, 0.0], [5.0, 5.0]])
    loss = nn.L1Loss(reduction="none")
    assert AverageTopKLoss(loss, k=1)(outputs, torch.zeros(2, 2)) == 9
    assert AverageTopKLoss(loss, k=1, level="sample")(outputs, torch.zeros(2, 2)) == 5


def test_sample_level_averages_only_what_counts() -> None:
    outputs = torch.tensor([[9.0, 1.0], [5.0, 5.0], [math.nan, math.nan]])
    mask = torch.tensor([[False, True], [True, True], [False, False]])
    criterion = AverageTopKLoss(lambda o, t: o - t, fraction=1, level="sample")
    assert criterion(outputs, torch.zeros(3, 2), mask=mask) == 3


@pytest.mark.parametrize("shape", [(0,), (0, 3), (4, 0), (4, 0, 2)])
def test_samples_without_elements_are_nothing_counted(shape: tuple[int, ...]) -> None:
    outputs = torch.zeros(shape, requires_grad=True)
    value = AverageTopKLoss(torch.sub, fraction=1, level="sample")(outputs, torch.zeros(shape))
    assert value == 0
    assert value.requires_grad


def test_scores_are_passed_on() -> None:
    losses, scores = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([9.0, 0.0, 1.0])
    zeros = torch.zeros(3)
    assert AverageTopKLoss(torch.sub, k=1)(losses, zeros, scores=scores) == 1
    assert AverageRankedRangeLoss(torch.sub, k=1, drop=1)(losses, zeros, scores=scores) == 3


def test_a_loss_that_is_already_reduced_is_refused() -> None:
    """Where nothing says so before: what says so by its `reduction` is refused when the criterion is made."""
    criterion = AverageTopKLoss(lambda outputs, targets: F.mse_loss(outputs, targets), k=1)
    with pytest.raises(ValueError, match=r'already reduced.*reduction="none"'):
        criterion(torch.zeros(3), torch.zeros(3))


# State, copies, description


def test_class_weights_follow_the_module_and_the_checkpoint() -> None:
    criterion = AverageTopKCrossEntropyLoss(k=1, weight=torch.tensor([1.0, 2.0]))
    assert criterion.double().weight is not None
    assert list(criterion.state_dict()) == ["weight"]
    other = copy.deepcopy(criterion)
    other.load_state_dict({"weight": torch.tensor([3.0, 4.0])})
    outputs = torch.randn(3, 2)
    value = other(outputs, torch.tensor([0, 1, 1]))
    fresh = AverageTopKCrossEntropyLoss(k=1, weight=torch.tensor([3.0, 4.0]))
    assert value == fresh(outputs, torch.tensor([0, 1, 1]))


def test_the_state_is_that_of_cross_entropy() -> None:
    """So that a checkpoint made with the one loads into the other."""
    weight = torch.tensor([1.0, 2.0])
    ours, theirs = AverageTopKCrossEntropyLoss(k=1, weight=weight), nn.CrossEntropyLoss(weight=weight)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert list(AverageTopKCrossEntropyLoss(k=1).state_dict()) == list(nn.CrossEntropyLoss().state_dict())


@pytest.mark.parametrize(
    ("criterion", "text"),
    [
        (AverageTopKCrossEntropyLoss(fraction=0.7), "AverageTopKCrossEntropyLoss(fraction=0.7, ignore_index=-100"),
        (AverageTopKLoss(torch.sub, k=3), "AverageTopKLoss(k=3, level='element'"),
        (AverageRankedRangeLoss(torch.sub, k=3, drop=1), "AverageRankedRangeLoss(k=3, drop=1, level='element'"),
    ],
)
def test_repr_says_what_was_asked(criterion: nn.Module, text: str) -> None:
    assert repr(criterion).startswith(text)


# It trains


def test_a_network_learns_under_it() -> None:
    torch.manual_seed(0)
    x = torch.randn(200, 2)
    y = (x[:, 0] * x[:, 1] > 0).long()
    model = nn.Sequential(nn.Linear(2, 32), nn.ReLU(), nn.Linear(32, 2))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    criterion = AverageTopKCrossEntropyLoss(fraction=0.7)
    for _ in range(200):
        optimizer.zero_grad()
        criterion(model(x), y).backward()
        optimizer.step()
    assert (model(x).argmax(dim=1) == y).float().mean() > 0.95


# A cross-entropy of torch


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("weighted", [False, True])
def test_a_cross_entropy_of_torch_brings_what_it_was_made_of(smoothing: float, weighted: bool) -> None:
    """At fraction 1 it is torch's own mean: what it ignores is not counted, and a class weight is a mass."""
    outputs, targets = torch.randn(2, 5, 300, dtype=torch.float64), torch.randint(5, (2, 300))
    targets[:, ::3] = 255
    made: dict[str, Any] = {"ignore_index": 255, "label_smoothing": smoothing}
    made |= {"weight": torch.linspace(0.5, 2, 5, dtype=torch.float64)} if weighted else {}
    criterion = AverageTopKLoss(nn.CrossEntropyLoss(**made, reduction="none"), fraction=1)
    torch.testing.assert_close(criterion(outputs, targets), nn.CrossEntropyLoss(**made)(outputs, targets))
    assert ("loss.weight" in criterion.state_dict()) == weighted
    hardest = AverageTopKLoss(nn.CrossEntropyLoss(**made, reduction="none"), fraction=0.3)
    ours = AverageTopKCrossEntropyLoss(**made, fraction=0.3)
    torch.testing.assert_close(hardest(outputs, targets), ours(outputs, targets), rtol=0, atol=0)


def test_targets_that_are_no_tensor_are_named_to_a_cross_entropy_of_torch_too() -> None:
    with pytest.raises(TypeError, match="`targets` must be a tensor of class indices; got list"):
        AverageTopKLoss(nn.CrossEntropyLoss(reduction="none"), k=1)(torch.zeros(2, 3), [0, 1])


def test_a_cross_entropy_of_torch_takes_probabilities_and_is_ranked_without_their_entropy() -> None:
    outputs, targets = torch.randn(8, 3), torch.rand(8, 3).softmax(1)
    criterion = AverageTopKLoss(nn.CrossEntropyLoss(reduction="none"), k=2)
    losses = nn.functional.cross_entropy(outputs, targets, reduction="none")
    hardest = (losses + torch.xlogy(targets, targets).sum(1)).topk(2)[1]
    torch.testing.assert_close(criterion(outputs, targets), losses[hardest].mean())


def test_a_cross_entropy_of_torch_is_read_when_it_is_called() -> None:
    loss = nn.CrossEntropyLoss(reduction="none")
    criterion = AverageTopKLoss(loss, fraction=1)
    loss.ignore_index, loss.weight = 0, torch.tensor([1.0, 2.0, 3.0])
    outputs, targets = torch.randn(2, 3, 50), torch.randint(3, (2, 50))
    expected = nn.functional.cross_entropy(outputs, targets, ignore_index=0, weight=loss.weight)
    torch.testing.assert_close(criterion(outputs, targets), expected)
    assert criterion.loss is loss


def test_only_an_unreduced_cross_entropy_of_torch_is_taken_for_one() -> None:
    class Own(nn.CrossEntropyLoss):
        def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
            return super().forward(outputs, targets) + 1

    own = Own(reduction="none")
    outputs, targets = torch.randn(8, 3), torch.zeros(8, dtype=torch.long)
    expected = F.cross_entropy(outputs, targets) + 1
    torch.testing.assert_close(AverageTopKLoss(own, fraction=1)(outputs, targets), expected)
    with pytest.raises(ValueError, match=r'must not be reduced; got CrossEntropyLoss with reduction="mean"'):
        AverageTopKLoss(nn.CrossEntropyLoss(), k=2)
