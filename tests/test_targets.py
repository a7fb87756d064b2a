"""Targets of classes: indices of any shape and type, and probabilities; values from torch and from closed forms."""

from __future__ import annotations

import copy
import pickle
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from topkloss import (
    AverageTopKCrossEntropyLoss,
    AverageTopKLoss,
    CompoundLoss,
    CrossEntropy,
    DeepSupervisionLoss,
    HardNegativeLoss,
    RegionLoss,
    average_top_k_cross_entropy,
    topk_select,
)
from topkloss.kernels import native, operators, portable
from topkloss.losses import cross_entropy, dice_loss, generalized_dice_loss, multiclass_hinge_loss

built = pytest.mark.skipif(not native.is_available(), reason="the native kernels were not built for this processor")
BACKENDS = ["torch", pytest.param("native", marks=built)]
WAYS = ["composed", *BACKENDS]
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
# Planes whole, in part and few, short rows and long ones, with and without what a vector leaves over.
SHAPES = [(2, 5, 7, 9), (2, 3, 256), (1, 40, 300), (300, 10), (40, 70), (9, 48), (3, 60, 5, 5), (40, 2)]


def logits_of(shape: tuple[int, ...], dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return (3 * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)).to(dtype)


def probabilities_of(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
    """Some dense, some that have most in one class, with zeros."""
    generator = torch.Generator().manual_seed(1)
    shares = torch.rand(shape, generator=generator, dtype=torch.float64).pow(6)
    shares[shares < 1e-3] = 0
    shares[:, 0] += 0.01
    return (shares / shares.sum(dim=1, keepdim=True)).to(dtype)


def unreduced(way: str, outputs: Tensor, targets: Tensor, **given: Any) -> tuple[Tensor, Tensor | None]:
    settings: dict[str, Any] = {"counts": None, "class_weight": None, "smoothing": 0.0} | given
    if way == "composed":
        return portable.composed(outputs, targets, **settings)
    return operators.cross_entropy(outputs, targets, backend=way, **settings)  # type: ignore[arg-type]


def with_slopes(way: str, outputs: Tensor, targets: Tensor, **given: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Losses, scores, and the gradient of a sum in which a third of the losses weighs nothing."""
    leaf = outputs.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    losses, scores = unreduced(way, leaf, targets, **given)
    factors = torch.rand(losses.shape, generator=torch.Generator().manual_seed(2)).to(losses.dtype)
    factors[factors < 1 / 3] = 0
    (gradient,) = torch.autograd.grad(losses, leaf, factors)
    return losses.detach(), losses.detach() if scores is None else scores, gradient


# Probabilities: torch's losses, ranked without the entropy of the targets


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_losses_and_gradients_of_probabilities_are_torchs(way: str, dtype: torch.dtype, shape: Any) -> None:
    outputs, targets = logits_of(shape, dtype), probabilities_of(shape, dtype)
    weight = torch.rand(shape[1], generator=torch.Generator().manual_seed(3), dtype=torch.float64) + 0.1
    real = torch.float64 if dtype == torch.float64 else torch.float32
    for weights, smoothing in ((None, 0.0), (weight, 0.0), (None, 0.2), (weight, 0.2)):
        own = None if weights is None else weights.to(real)
        losses, scores, slopes = with_slopes(way, outputs, targets, class_weight=own, smoothing=smoothing)
        exact = outputs.double().requires_grad_()
        given: dict[str, Any] = {"weight": weights, "label_smoothing": smoothing, "reduction": "none"}
        expected = F.cross_entropy(exact, targets.double(), **given)
        factors = torch.rand(losses.shape, generator=torch.Generator().manual_seed(2)).to(real).double()
        factors[factors < 1 / 3] = 0
        (slope,) = torch.autograd.grad(expected, exact, factors)
        eps = torch.finfo(real).eps
        assert (losses.double() - expected).abs().max() <= 4 * eps * (1 + expected.abs().max())
        assert (slopes.double() - slope).abs().max() <= 4 * torch.finfo(dtype).eps * slope.abs().max()
        known = targets.double()
        divergence = (torch.xlogy(known, known) - known * exact.log_softmax(dim=1)).sum(dim=1)
        assert (scores.double() - divergence).abs().max() <= 8 * eps * (1 + expected.abs().max())
        assert slopes.movedim(1, -1)[factors == 0].eq(0).all()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("channels_last", [False, True])
def test_one_hot_is_the_index_bit_for_bit(way: str, dtype: torch.dtype, shape: Any, channels_last: bool) -> None:
    outputs = logits_of(shape, dtype)
    targets = torch.randint(shape[1], (shape[0], *shape[2:]), generator=torch.Generator().manual_seed(4))
    outputs.view(-1)[0], targets.view(-1)[0] = -torch.inf, 1  # no mass where the logit is infinite
    if channels_last:
        outputs = outputs.movedim(1, -1).contiguous().movedim(-1, 1)
    one_hot = F.one_hot(targets, shape[1]).movedim(-1, 1)
    by_index = with_slopes(way, outputs, targets)
    for one, other in zip(by_index, with_slopes(way, outputs, one_hot.to(dtype)), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_at_fraction_1_it_is_the_criterion_of_torch(dtype: torch.dtype, weighted: bool, smoothing: float) -> None:
    outputs, targets = logits_of((6, 5, 8), dtype), probabilities_of((6, 5, 8), dtype)
    weight = torch.tensor([1.0, 2.0, 0.0, 0.5, 3.0], dtype=dtype) if weighted else None
    values, slopes = [], []
    for criterion in (
        AverageTopKCrossEntropyLoss(fraction=1, weight=weight, label_smoothing=smoothing),
        AverageTopKLoss(CrossEntropy(weight=weight, label_smoothing=smoothing), fraction=1),
        AverageTopKLoss(nn.CrossEntropyLoss(weight, label_smoothing=smoothing, reduction="none"), fraction=1),
        nn.CrossEntropyLoss(weight, label_smoothing=smoothing),
    ):
        leaf = outputs.detach().requires_grad_()
        value = criterion(leaf, targets)
        slopes.append(torch.autograd.grad(value, leaf)[0])
        values.append(value.detach().to(dtype))
    for value, slope in zip(values[:-1], slopes[:-1], strict=True):
        torch.testing.assert_close(value, values[-1], rtol=4 * torch.finfo(dtype).eps, atol=0)
        tolerance = 8 * torch.finfo(dtype).eps * float(slopes[-1].abs().max())
        torch.testing.assert_close(slope, slopes[-1], rtol=0, atol=tolerance)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_mixed_up_example_is_not_hard_because_its_target_is(backend: Any) -> None:
    targets = torch.tensor([[0.5, 0.5], [1.0, 0.0]])
    outputs = torch.tensor([[0.0, 0.0], [0.2, 0.0]])  # the first is as good as it can be: log 2, against .598
    value = average_top_k_cross_entropy(outputs, targets, k=1, backend=backend)
    torch.testing.assert_close(value, F.cross_entropy(outputs[1:], torch.tensor([0])))
    _, scores = cross_entropy(outputs, targets)
    assert scores.tolist() == pytest.approx([0.0, 0.5981388], abs=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("poison", [torch.nan, torch.inf, -1.0])
@pytest.mark.parametrize("shape", [(4, 3, 20), (12, 60)], ids=str)
def test_what_is_left_out_never_matters(backend: Any, poison: float, shape: Any) -> None:
    outputs, targets = logits_of(shape), probabilities_of(shape)
    mask = torch.ones(shape[0], *shape[2:], dtype=torch.bool)
    mask[::2] = False
    answers = []
    left_out: list[dict[str, Any]] = [{"mask": mask}, {"sample_weight": mask.float()}]
    for bad in (0.5, poison):
        logits, shares = outputs.clone(), targets.clone()
        logits[::2] = bad if bad != -1 else torch.nan
        shares[::2] = bad
        for given in left_out:
            leaf = logits.clone().requires_grad_()
            value = average_top_k_cross_entropy(leaf, shares, fraction=0.5, backend=backend, **given)
            answers.append((value.detach(), torch.autograd.grad(value, leaf)[0]))
    for value, gradient in answers[1:]:
        assert torch.equal(value, answers[0][0])
        assert torch.equal(gradient, answers[0][1])
    assert not answers[0][1][::2].any()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", [(4, 3, 20), (12, 60)], ids=str)
def test_a_counted_nan_in_a_target_shows(backend: Any, shape: Any) -> None:
    outputs, targets = logits_of(shape), probabilities_of(shape)
    targets[1, 1] = torch.nan
    assert average_top_k_cross_entropy(outputs, targets, fraction=0.5, backend=backend).isnan()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("shape", [(4, 3, 20), (12, 60)], ids=str)
def test_logits_given_for_probabilities_are_refused(way: str, shape: Any) -> None:
    targets = probabilities_of(shape)
    targets[2, 1] = -0.25
    message = (
        "`targets` shaped like the outputs must be probabilities, >= 0 where counted; got -0.25. If they are logits, "
        "of a teacher say, pass targets.softmax(dim=1)."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        unreduced(way, logits_of(shape), targets)


@pytest.mark.parametrize("shape", [(4, 3, 2), (5, 60)], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_derivatives_of_probabilities(backend: Any, shape: Any) -> None:
    outputs = logits_of(shape, torch.float64).div(3).requires_grad_()
    targets = probabilities_of(shape, torch.float64)
    weight = torch.rand(shape[1], dtype=torch.float64) + 0.5

    def losses(outputs: Tensor, targets: Tensor = targets) -> Tensor:
        settings: dict[str, Any] = {"counts": None, "class_weight": weight, "smoothing": 0.1}
        return operators.cross_entropy(outputs, targets, backend=backend, **settings)[0]

    assert torch.autograd.gradcheck(losses, (outputs,))
    assert torch.autograd.gradgradcheck(losses, (outputs,))
    inside = (targets + 1e-3).requires_grad_()  # one side of 0 is no probability
    assert torch.autograd.gradcheck(losses, (outputs, inside))


def test_targets_that_ask_for_a_gradient_get_the_one_of_torch() -> None:
    outputs, slopes = logits_of((6, 4)), []
    for loss in (AverageTopKCrossEntropyLoss(fraction=1), nn.CrossEntropyLoss()):
        targets = probabilities_of((6, 4)).requires_grad_()
        slopes.append(torch.autograd.grad(loss(outputs, targets), targets)[0])
    torch.testing.assert_close(*slopes)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # that opcheck itself reads
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_operators_of_probabilities_keep_torchs_contract(backend: str) -> None:
    outputs, targets = logits_of((2, 3, 40)).requires_grad_(), probabilities_of((2, 3, 40))
    counts = torch.arange(80).view(2, 40) % 3 > 0
    arguments = (outputs, targets, counts, torch.rand(3) + 0.1, 0.1, backend == "native")
    torch.library.opcheck(torch.ops.topkloss.cross_entropy.default, arguments)
    slopes = torch.rand(2, 40).requires_grad_()
    torch.library.opcheck(torch.ops.topkloss.cross_entropy_backward.default, (slopes, *arguments))


@pytest.mark.parametrize("backend", BACKENDS)
def test_probabilities_and_every_shape_of_an_index_compile_whole(backend: Any) -> None:
    def value(outputs: Tensor, targets: Tensor) -> Tensor:
        return average_top_k_cross_entropy(outputs, targets, fraction=0.5, weight=[1.0, 2.0, 3.0], backend=backend)

    compiled = torch.compile(value, fullgraph=True)
    index = torch.randint(3, (2, 40))
    for targets in (probabilities_of((2, 3, 40)), index, index.unsqueeze(1), index.float()):
        slopes = []
        for function in (value, compiled):
            leaf = logits_of((2, 3, 40)).requires_grad_()
            slopes.append(torch.autograd.grad(function(leaf, targets), leaf)[0])
        torch.testing.assert_close(*slopes)


@built
def test_probabilities_in_place_are_the_same_gradient() -> None:
    targets, gradients = probabilities_of((2, 5, 20, 33)), []
    for inplace in (True, False):
        leaf = logits_of((2, 5, 20, 33)).requires_grad_()
        outputs = leaf * 2
        average_top_k_cross_entropy(outputs, targets, fraction=0.4, inplace=inplace).backward()
        assert (outputs.numel() == 0) == inplace
        gradients.append(leaf.grad)
    torch.testing.assert_close(*gradients, rtol=0, atol=0)


def test_an_ignore_index_beside_probabilities_is_refused_as_torch_does() -> None:
    outputs, targets = logits_of((4, 3)), probabilities_of((4, 3))
    with pytest.raises(RuntimeError, match="ignore_index is not supported for floating point target"):
        F.cross_entropy(outputs, targets, ignore_index=255)
    message = (
        "`ignore_index` must be negative beside targets that are probabilities, of which none can be ignored; got 255. "
        "To leave elements out pass `mask` to the call."
    )
    for criterion in (
        AverageTopKCrossEntropyLoss(k=1, ignore_index=255),
        AverageTopKLoss(nn.CrossEntropyLoss(ignore_index=255, reduction="none"), k=1),
    ):
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            criterion(outputs, targets)
    with pytest.raises(ValueError, match="`ignore_index` must be negative"):
        RegionLoss(dice_loss, ignore_index=255)(logits_of((2, 3, 4)), probabilities_of((2, 3, 4)))


# Indices of other shapes and types


@pytest.mark.parametrize("shape", [(6, 3), (2, 3, 8), (2, 3, 4, 5), (2, 3, 1), (2, 3, 2, 2, 2)], ids=str)
@pytest.mark.parametrize("of", [Tensor.float, Tensor.double, Tensor.half, Tensor.int, lambda y: y.to(torch.uint8)])
@pytest.mark.parametrize("channel", [False, True])
def test_an_index_may_have_a_channel_and_a_floating_type(shape: Any, of: Any, channel: bool) -> None:
    outputs = logits_of(shape)
    plain = torch.randint(3, (shape[0], *shape[2:]), generator=torch.Generator().manual_seed(5))
    plain.view(-1)[1] = 255
    mask = torch.arange(plain.numel()).view(plain.shape) % 4 > 0
    targets, own = (one.unsqueeze(1) if channel else one for one in (of(plain), mask))
    criteria: list[nn.Module] = [
        AverageTopKCrossEntropyLoss(fraction=0.5, ignore_index=255),
        AverageTopKLoss(nn.CrossEntropyLoss(ignore_index=255, reduction="none"), fraction=0.5),
        HardNegativeLoss(CrossEntropy(ignore_index=255), ratio=1),
    ]
    if len(shape) > 2:
        criteria.append(AverageTopKLoss(RegionLoss(dice_loss, ignore_index=255), fraction=1))
    for criterion in criteria:
        assert torch.equal(criterion(outputs, targets, mask=own), criterion(outputs, plain, mask=mask))
    hinge = multiclass_hinge_loss(outputs, targets, mask=own & (targets != 255))
    assert torch.equal(hinge, multiclass_hinge_loss(outputs, plain, mask=mask & (plain != 255)))


def test_a_float_index_that_is_left_out_never_matters() -> None:
    outputs = logits_of((4, 3)).requires_grad_()
    targets = torch.tensor([0.0, torch.nan, 0.5, 2.0])
    mask = torch.tensor([True, False, False, True])
    value = average_top_k_cross_entropy(outputs, targets, fraction=1, mask=mask)
    torch.testing.assert_close(value, F.cross_entropy(outputs[mask], torch.tensor([0, 2])))
    assert torch.autograd.grad(value, outputs)[0][~mask].eq(0).all()
    for bad in (torch.nan, torch.inf, 0.5):
        with pytest.raises(ValueError, match=f"whole numbers where counted; got {bad:g}"):
            average_top_k_cross_entropy(outputs, torch.tensor([0.0, 1.0, bad, 2.0]), fraction=1)


def test_a_float_type_that_cannot_hold_the_classes_is_refused() -> None:
    targets = torch.tensor([300.0], dtype=torch.bfloat16)
    message = "`targets` must be of a type that holds all 1000 classes; got torch.bfloat16, which rounds them."
    with pytest.raises(TypeError, match=f"^{re.escape(message)}"):
        cross_entropy(torch.zeros(1, 1000), targets)
    assert cross_entropy(torch.zeros(1, 257), torch.tensor([256.0], dtype=torch.bfloat16))[0].item() > 0


def test_one_element_alone() -> None:
    outputs = logits_of((3,)).requires_grad_()
    value = AverageTopKCrossEntropyLoss(fraction=1)(outputs, torch.tensor(2))
    torch.testing.assert_close(value, nn.CrossEntropyLoss()(outputs, torch.tensor(2)))
    assert cross_entropy(outputs, torch.tensor(2))[0].shape == ()
    assert multiclass_hinge_loss(outputs, torch.tensor(2)).shape == ()
    given = {"mask": torch.tensor(False), "sample_weight": torch.tensor(2.0)}
    assert AverageTopKCrossEntropyLoss(fraction=1)(outputs, torch.tensor(2), **given).item() == 0
    assert AverageTopKCrossEntropyLoss(fraction=1, reduction="none")(outputs, torch.tensor(2)).shape == ()


LOST = "`outputs` must have shape (N, C) or (N, C, d1, ...) and `targets` the same without C"


@pytest.mark.parametrize(
    ("shape", "targets", "hint"),
    [
        ((2, 7, 5), (2, 7), "The classes are dimension 1: pass outputs.movedim(-1, 1)."),
        ((2, 4, 6, 3), (2, 4, 6), "The classes are dimension 1: pass outputs.movedim(-1, 1)."),
        (
            (2, 4, 6, 3),
            (2, 4, 6, 1),
            "The classes are dimension 1: pass outputs.movedim(-1, 1) and targets.movedim(-1, 1).",
        ),
        ((2, 3, 4, 6), (2, 4, 6, 3), "The classes are dimension 1: pass targets.movedim(-1, 1)."),
        ((2, 3, 4, 4), (2, 8, 8), "For outputs of another size pass F.interpolate(outputs, size=targets.shape[1:])."),
        (
            (2, 3, 4, 4),
            (2, 1, 8, 8),
            "For outputs of another size pass F.interpolate(outputs, size=targets.shape[2:]).",
        ),
        ((8, 3), (6,), "Each sample of the batch needs its own target: pass both of the same batch."),
        ((8, 3), (8, 4), "Probabilities are one of each class of the outputs: make 4 outputs, not 3."),
        ((8, 3), (2, 4), "Pass targets.reshape((8,))."),
        ((8, 3), (2, 4, 5), "One class index for each element has the shape (8,)."),
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", [torch.long, torch.float32], ids=str)
def test_each_wrong_shape_has_its_own_way_out(shape: Any, targets: Any, hint: str, dtype: torch.dtype) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(LOST)}.*got .*{re.escape(hint)}$"):
        average_top_k_cross_entropy(torch.zeros(shape), torch.zeros(targets, dtype=dtype), k=1)


def test_the_way_out_of_a_language_models_logits() -> None:
    logits, labels = logits_of((2, 7, 5)), torch.randint(5, (2, 7))
    value = average_top_k_cross_entropy(logits.movedim(-1, 1), labels, fraction=1)
    torch.testing.assert_close(value, F.cross_entropy(logits.flatten(0, 1), labels.flatten()))


def test_a_square_that_may_be_a_language_models_is_said() -> None:
    logits, labels = logits_of((2, 5, 5)), torch.randint(5, (2, 5))
    with pytest.warns(UserWarning, match=r"pass outputs\.movedim\(-1, 1\); if not, outputs\[\.\.\., None\]"):
        average_top_k_cross_entropy(logits, labels, fraction=1)
    tokens = average_top_k_cross_entropy(logits.movedim(-1, 1), labels, fraction=1)
    torch.testing.assert_close(tokens, F.cross_entropy(logits.flatten(0, 1), labels.flatten()))
    positions = average_top_k_cross_entropy(logits[..., None], labels[..., None], fraction=1)
    torch.testing.assert_close(positions, F.cross_entropy(logits, labels))


def test_a_square_of_log_probabilities_is_said() -> None:
    logits, labels = logits_of((2, 5, 5)), torch.randint(5, (2, 5))
    with pytest.warns(UserWarning, match=r"pass outputs\.movedim\(-1, 1\)"):
        AverageTopKLoss(nn.NLLLoss(reduction="none"), fraction=1)(logits.log_softmax(-1), labels)


@pytest.mark.parametrize("shape", [(2, 7, 5), (2, 5, 5), (2, 3, 4, 5)], ids=str)
def test_a_teacher_of_tokens_is_refused_and_its_way_out_is_right(shape: Any) -> None:
    """Its shape is that of the outputs wherever the classes are: only the sums tell."""
    logits, teacher = logits_of(shape), logits_of(shape).detach().flip(0).softmax(-1)
    theirs = F.cross_entropy(logits.flatten(0, -2), teacher.flatten(0, -2))
    for criterion in (
        AverageTopKCrossEntropyLoss(fraction=1),
        AverageTopKLoss(nn.CrossEntropyLoss(reduction="none"), fraction=1),
    ):
        with pytest.raises(ValueError, match=r"outputs\.movedim\(-1, 1\) and targets\.movedim\(-1, 1\)\.$"):
            criterion(logits, teacher)
        torch.testing.assert_close(criterion(logits.movedim(-1, 1), teacher.movedim(-1, 1)), theirs)


def test_targets_that_do_not_sum_to_1_are_torchs() -> None:
    logits, targets = logits_of((2, 7, 5)), logits_of((2, 7, 5)).detach().abs()
    for given in (targets, targets.softmax(1), targets.softmax(1) * 2, targets.softmax(1).masked_fill(targets > 1, 0)):
        ours = AverageTopKCrossEntropyLoss(fraction=1)(logits, given)
        torch.testing.assert_close(ours, F.cross_entropy(logits, given))


@pytest.mark.parametrize("shape", [(4, 1), (4, 1, 2, 2)], ids=str)
@pytest.mark.parametrize("dtype", [torch.long, torch.float32], ids=str)
def test_one_channel_is_no_softmax(shape: Any, dtype: torch.dtype) -> None:
    outputs = logits_of(shape)
    for targets in (torch.zeros(shape, dtype=dtype), torch.zeros(shape[0], *shape[2:], dtype=dtype)):
        with pytest.raises(ValueError, match=re.escape('AverageTopKLoss(nn.BCEWithLogitsLoss(reduction="none"), ...)')):
            AverageTopKCrossEntropyLoss(k=1)(outputs, targets)
        with pytest.raises(ValueError, match="take `hinge_loss` with targets of -1 and \\+1"):
            multiclass_hinge_loss(outputs, targets)


def test_the_way_out_of_one_channel_is_the_sigmoid() -> None:
    outputs, targets = logits_of((2, 1, 4, 4)), torch.randint(2, (2, 1, 4, 4))
    for loss in (dice_loss, generalized_dice_loss):
        with pytest.raises(ValueError, match=r"pass torch\.cat\(\[torch\.zeros_like\(outputs\), outputs\], dim=1\)"):
            loss(outputs, targets)
    both = torch.cat([torch.zeros_like(outputs), outputs], dim=1)
    p, y = outputs.sigmoid().flatten(1), targets.flatten(1)
    expected = 1 - 2 * (p * y).sum(1) / (p + y).sum(1)
    torch.testing.assert_close(dice_loss(both, targets)[:, 1], expected)


@pytest.mark.parametrize("loss", [dice_loss, generalized_dice_loss])
def test_one_hot_regions_are_those_of_the_index(loss: Callable[..., Tensor]) -> None:
    outputs, index = logits_of((2, 3, 4, 5)), torch.randint(3, (2, 4, 5))
    index[0][index[0] == 2] = 0  # absent
    one_hot = F.one_hot(index, 3).movedim(-1, 1).float()
    mask = torch.rand(2, 4, 5) > 0.3
    torch.testing.assert_close(loss(outputs, one_hot, mask=mask), loss(outputs, index, mask=mask))
    one_hot[~mask.unsqueeze(1).expand_as(one_hot)] = torch.nan
    by_shares, by_index = (RegionLoss(loss)(outputs, own, mask=mask) for own in (one_hot, index))
    torch.testing.assert_close(by_shares.losses, by_index.losses)
    assert by_shares.mask is not None
    assert torch.equal(by_shares.mask, by_index.mask)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"must be shares in \[0, 1\] where counted; got 2"):
        loss(outputs, 2 * F.one_hot(index, 3).movedim(-1, 1).float())


def test_scales_of_targets_with_a_channel_and_of_probabilities() -> None:
    outputs = [logits_of((2, 3, 8, 8)), logits_of((2, 3, 4, 4))]
    index = torch.randint(3, (2, 8, 8))
    criterion = DeepSupervisionLoss(AverageTopKCrossEntropyLoss(fraction=0.5), weights=[1.0, 0.5])
    expected = criterion(outputs, index)
    for targets in (index.unsqueeze(1), F.one_hot(index, 3).movedim(-1, 1).float()):
        torch.testing.assert_close(criterion(outputs, targets), expected, rtol=0, atol=0)


@pytest.mark.parametrize("weight", [[1.0, 2.0, 3.0], (1, 2, 3), np.array([1.0, 2.0, 3.0])], ids=str)
def test_class_weights_as_a_list(weight: Any) -> None:
    outputs, targets = logits_of((8, 3)), torch.randint(3, (8,))
    expected = F.cross_entropy(outputs, targets, weight=torch.tensor([1.0, 2.0, 3.0]))
    for value in (
        AverageTopKCrossEntropyLoss(fraction=1, weight=weight)(outputs, targets),
        AverageTopKLoss(CrossEntropy(weight=weight), fraction=1)(outputs, targets),
        average_top_k_cross_entropy(outputs, targets, fraction=1, weight=weight),
    ):
        torch.testing.assert_close(value, expected)
    by_list = cross_entropy(outputs, targets, weight=weight, label_smoothing=0.1)
    torch.testing.assert_close(
        by_list, cross_entropy(outputs, targets, weight=torch.tensor([1.0, 2, 3]), label_smoothing=0.1)
    )
    with pytest.raises(ValueError, match=r"one finite number >= 0 per class, shape \(C,\); got \[1.0, -2.0\]"):
        AverageTopKCrossEntropyLoss(k=1, weight=[1, -2])


# In the place of nn.CrossEntropyLoss


def test_the_criterion_is_a_cross_entropy_of_torch() -> None:
    criterion = AverageTopKCrossEntropyLoss(fraction=0.5, weight=[1.0, 2.0, 3.0], ignore_index=2)
    assert isinstance(criterion, nn.CrossEntropyLoss)
    assert criterion.state_dict().keys() == nn.CrossEntropyLoss(torch.ones(3)).state_dict().keys()
    assert AverageTopKCrossEntropyLoss(k=1).state_dict() == {}
    outputs, targets = logits_of((8, 3)), torch.randint(3, (8,))
    value = criterion(outputs, targets)
    for other in (copy.deepcopy(criterion), pickle.loads(pickle.dumps(criterion))):
        assert torch.equal(other(outputs, targets), value)
        assert repr(other) == repr(criterion)
    assert torch.equal(CompoundLoss([criterion])(outputs, targets), value)
    inner = AverageTopKLoss(CrossEntropy(weight=[1.0, 2.0, 3.0], ignore_index=2), fraction=0.5)
    assert torch.equal(inner(outputs, targets), value)


@pytest.mark.parametrize("of_probabilities", [False, True])
def test_unreduced_it_is_the_cross_entropy_of_torch(of_probabilities: bool) -> None:
    outputs, targets = logits_of((8, 3, 5)).requires_grad_(), torch.randint(3, (8, 5))
    targets = probabilities_of((8, 3, 5)) if of_probabilities else targets.masked_fill(targets == 1, -100)
    given: dict[str, Any] = {"weight": torch.tensor([1.0, 2.0, 0.5]), "label_smoothing": 0.1}
    criterion = AverageTopKCrossEntropyLoss(fraction=0.1, **given)
    criterion.reduction = "none"  # as fastai and Composer set it
    losses, expected = criterion(outputs, targets), nn.CrossEntropyLoss(**given, reduction="none")(outputs, targets)
    torch.testing.assert_close(losses, expected)
    slopes = [torch.autograd.grad(one.sum(), outputs)[0] for one in (losses, expected)]
    torch.testing.assert_close(*slopes)
    mask = torch.rand(8, 5) > 0.5
    assert torch.equal(criterion(outputs, targets, mask=mask), losses.masked_fill(~mask, 0))
    assert "reduction='none'" in repr(criterion)
    message = '`reduction` must be "mean" or "none"; got \'sum\'. For the sum pass "mean" and multiply the loss by k.'
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        AverageTopKCrossEntropyLoss(k=1, reduction="sum")  # type: ignore[arg-type]
    criterion.reduction = "sum"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        criterion(outputs, targets)


def test_the_loss_says_its_backend_and_whether_it_writes_in_place() -> None:
    assert repr(CrossEntropy()) == "CrossEntropy(ignore_index=-100, label_smoothing=0.0)"
    shown = "CrossEntropy(ignore_index=-100, label_smoothing=0.0, backend='torch', inplace=True)"
    assert repr(CrossEntropy(backend="torch", inplace=True)) == shown


# What else reads the logits


@built
@pytest.mark.parametrize(
    "alias",
    [
        Tensor.detach,
        lambda x: x.data,
        lambda x: x.detach().numpy(),
        lambda x: x[0],
        lambda x: x.untyped_storage(),
        lambda x: x.detach().argmax,
    ],
    ids=["detached", "data", "numpy", "a view", "the storage", "a method"],
)
@pytest.mark.parametrize("is_view", [False, True])
def test_in_place_leaves_alone_what_something_else_reads(alias: Callable[[Tensor], Any], is_view: bool) -> None:
    leaf = logits_of((20, 3)).requires_grad_()
    targets, gradients = torch.randint(3, (20,)), []
    for inplace in (True, False):
        outputs = (leaf * 2).view(20, 3) if is_view else leaf * 2
        before = outputs.detach().clone()
        kept = alias(outputs)
        loss = average_top_k_cross_entropy(outputs, targets, fraction=0.5, backend="native", inplace=inplace)
        gradients.append(torch.autograd.grad(loss, leaf)[0])
        assert torch.equal(outputs, before)
        del kept
    assert torch.equal(*gradients)


@built
def test_in_place_leaves_alone_the_logits_that_a_view_was_taken_of() -> None:
    """A language model's: the loss takes logits.view(-1, C), the metrics take the logits."""
    logits = logits_of((4, 5, 3)).requires_grad_() * 2
    before = logits.detach().clone()
    loss = average_top_k_cross_entropy(logits.view(-1, 3), torch.randint(3, (20,)), fraction=0.5, inplace=True)
    loss.backward()
    assert torch.equal(logits, before)


@built
@pytest.mark.parametrize("of", [lambda x: x * 2, lambda x: (x * 2).view(20, 3), lambda x: F.linear(x, torch.eye(3))])
def test_in_place_overwrites_what_nobody_else_reads(of: Callable[[Tensor], Tensor]) -> None:
    outputs = of(logits_of((20, 3)).requires_grad_())
    outputs.detach().argmax(dim=1)  # metrics before the backward pass, whose alias is gone
    average_top_k_cross_entropy(outputs, torch.randint(3, (20,)), fraction=0.5, inplace=True).backward()
    assert outputs.numel() == 0


# Class weights that are uneven, under smoothing


@built
def test_a_smoothed_slope_keeps_its_digits_with_uneven_class_weights() -> None:
    generator = torch.Generator().manual_seed(0)
    outputs, targets = torch.randn(64, 1000, generator=generator), torch.randint(1000, (64,), generator=generator)
    weight = torch.rand(1000, generator=generator).pow(4) + 1e-3
    slopes = []
    for x, own in ((outputs, weight), (outputs.double(), weight.double())):
        leaf = x.clone().requires_grad_()
        given: dict[str, Any] = {"weight": own, "label_smoothing": 0.1, "sample_weight": 1 / own.double()[targets]}
        value = average_top_k_cross_entropy(leaf, targets, fraction=1, backend="native", **given)
        slopes.append(torch.autograd.grad(value, leaf)[0].double())
    off = (slopes[0] - slopes[1]).abs() / slopes[1].abs().amax(dim=1, keepdim=True)
    assert off.max() < 1e-6


def test_a_selection_of_probabilities_is_that_of_their_scores() -> None:
    outputs, targets = logits_of((40, 3)), probabilities_of((40, 3))
    selection = AverageTopKCrossEntropyLoss(k=7).select(outputs, targets)
    losses, scores = cross_entropy(outputs, targets)
    assert torch.equal(selection.kept, topk_select(losses, k=7, scores=scores).kept)
    with pytest.raises(ValueError, match=r'must be integers shaped like the losses, .* for within="class"'):
        AverageTopKCrossEntropyLoss(k=1, within="class")(outputs, targets)
