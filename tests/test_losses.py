"""The margin losses: equal to plain Python, to torch and scikit-learn where those have them, deaf to what is masked."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from topkloss.losses import (
    hinge_loss,
    logistic_loss,
    multiclass_hinge_loss,
    multiclass_squared_hinge_loss,
    squared_hinge_loss,
)

Loss = Callable[..., Tensor]


def plain_logistic(margin: float) -> float:
    return math.log1p(math.exp(-margin)) if margin > 0 else -margin + math.log1p(math.exp(margin))


def plain_hinge(margin: float) -> float:
    return max(0.0, 1 - margin)


def plain_squared_hinge(margin: float) -> float:
    return max(0.0, 1 - margin) ** 2


BINARY: dict[Loss, Callable[[float], float]] = {
    logistic_loss: plain_logistic,
    hinge_loss: plain_hinge,
    squared_hinge_loss: plain_squared_hinge,
}
MULTICLASS: dict[Loss, Callable[[float], float]] = {
    multiclass_hinge_loss: plain_hinge,
    multiclass_squared_hinge_loss: plain_squared_hinge,
}
ALL = [*BINARY, *MULTICLASS]

binary = pytest.mark.parametrize("loss", BINARY, ids=lambda loss: loss.__name__)
multiclass = pytest.mark.parametrize("loss", MULTICLASS, ids=lambda loss: loss.__name__)
every = pytest.mark.parametrize("loss", ALL, ids=lambda loss: loss.__name__)

SHAPES = [(40, 4), (3, 4, 7), (2, 5, 3, 4), (2, 2, 2, 2, 3)]
MULTICLASS_SHAPES = [*SHAPES, (6, 2), (0, 3), (3, 2, 0)]


def case(
    loss: Loss, shape: tuple[int, ...] = (4, 3, 7), dtype: torch.dtype = torch.float64, scale: float = 2
) -> tuple[Tensor, Tensor]:
    """Outputs that want a gradient, and legal targets, for any of the losses."""
    generator = torch.Generator().manual_seed(0)
    outputs = (scale * torch.randn(shape, generator=generator, dtype=torch.float64)).to(dtype).requires_grad_()
    if loss in BINARY:
        return outputs, 2 * torch.randint(2, shape, generator=generator) - 1
    return outputs, torch.randint(shape[1], (shape[0], *shape[2:]), generator=generator)


def gradient(losses: Tensor, outputs: Tensor) -> Tensor:
    """Of a sum in which every element weighs something else."""
    weights = torch.arange(1.0, 1 + losses.numel(), dtype=losses.dtype).reshape(losses.shape)
    return torch.autograd.grad((weights * losses).sum(), outputs)[0]


def plain_margins(outputs: Tensor, targets: Tensor) -> list[float]:
    """f_y less the best of the others."""
    rows = outputs.detach().movedim(1, -1).reshape(-1, outputs.shape[1]).tolist() if outputs.numel() else []
    margins = []
    for row, y in zip(rows, targets.flatten().tolist(), strict=True):
        others = [score for j, score in enumerate(row) if j != y]
        margins.append(row[y] - max(others) if others else math.inf)
    return margins


# Value


@binary
@pytest.mark.parametrize("shape", [(), (7,), (0,), *SHAPES], ids=str)
@pytest.mark.parametrize("scale", [1, 30])
def test_binary_is_the_oracles(loss: Loss, shape: tuple[int, ...], scale: float) -> None:
    outputs, targets = case(loss, shape, scale=scale)
    margins = [f * y for f, y in zip(outputs.flatten().tolist(), targets.flatten().tolist(), strict=True)]
    losses = loss(outputs, targets)
    assert losses.shape == outputs.shape
    assert losses.flatten().tolist() == pytest.approx([BINARY[loss](margin) for margin in margins], rel=1e-14, abs=0)


@multiclass
@pytest.mark.parametrize("shape", MULTICLASS_SHAPES, ids=str)
def test_multiclass_is_the_oracles(loss: Loss, shape: tuple[int, ...]) -> None:
    outputs, targets = case(loss, shape)
    losses = loss(outputs, targets)
    assert losses.shape == targets.shape
    expected = [MULTICLASS[loss](margin) for margin in plain_margins(outputs, targets)]
    assert losses.flatten().tolist() == pytest.approx(expected, rel=1e-14, abs=0)


@binary
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("margin", [1e4, 100.0, 30.0, 1.0, 0.0, -30.0, -100.0, -1e4])
def test_binary_extremes(loss: Loss, dtype: torch.dtype, margin: float) -> None:
    outputs = torch.tensor([margin, -margin], dtype=dtype, requires_grad=True)
    losses = loss(outputs, torch.tensor([1, -1]))
    assert losses.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    expected = BINARY[loss](outputs[0].item())
    assert losses.tolist() == pytest.approx([expected] * 2, rel=1e-15 if dtype == torch.float64 else 1e-6, abs=1e-38)
    assert gradient(losses, outputs).isfinite().all()


@every
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_is_computed_in_single(loss: Loss, dtype: torch.dtype) -> None:
    outputs, targets = case(loss, dtype=dtype, scale=300)  # its square overflows float16
    single = outputs.detach().float().requires_grad_()
    losses = loss(outputs, targets)
    assert losses.dtype == torch.float32
    assert torch.equal(losses, loss(single, targets))
    if loss not in (squared_hinge_loss, multiclass_squared_hinge_loss):
        assert torch.equal(gradient(losses, outputs), gradient(loss(single, targets), single).to(dtype))


@multiclass
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
def test_multiclass_extremes(loss: Loss, dtype: torch.dtype) -> None:
    outputs = torch.tensor([[1e4, -1e4, 0.0], [-1e4, 1e4, 0.0]], dtype=dtype, requires_grad=True)
    losses = loss(outputs, torch.tensor([0, 0]))
    assert losses.tolist() == [0, pytest.approx(MULTICLASS[loss](-2e4), rel=1e-3)]
    assert torch.autograd.grad(losses.sum(), outputs)[0].isfinite().all()


@binary
@pytest.mark.parametrize("dtype", [torch.int8, torch.int64, torch.float16, torch.float64], ids=str)
def test_binary_targets_of_any_number_type(loss: Loss, dtype: torch.dtype) -> None:
    outputs, targets = case(loss, dtype=torch.float32)
    losses = loss(outputs, targets.to(dtype))
    assert losses.dtype == torch.float32
    assert torch.equal(losses, loss(outputs, targets))


@every
def test_strides_do_not_matter_and_nothing_is_written_to(loss: Loss) -> None:
    outputs, targets = case(loss, (4, 3, 7))
    outputs = outputs.detach()
    mask = torch.arange(targets.numel()).reshape(targets.shape) % 3 > 0
    before = outputs.clone(), targets.clone(), mask.clone()
    strided = outputs.permute(2, 0, 1).contiguous().permute(1, 2, 0)
    assert not strided.is_contiguous()
    assert torch.equal(loss(strided, targets, mask=mask), loss(outputs, targets, mask=mask))
    assert all(torch.equal(now, then) for now, then in zip((outputs, targets, mask), before, strict=True))


# Others' losses


def test_logistic_is_torchs_soft_margin_loss_and_finite_where_that_is_not() -> None:
    outputs, targets = case(logistic_loss, dtype=torch.float32)
    theirs = F.soft_margin_loss(outputs, targets, reduction="none")
    torch.testing.assert_close(logistic_loss(outputs, targets), theirs)
    wrong, right = torch.tensor([-89.0, -1e4]), torch.ones(2)
    assert F.soft_margin_loss(wrong, right, reduction="none").isinf().all()
    assert logistic_loss(wrong, right).tolist() == [89, 1e4]


def test_logistic_is_torchs_binary_cross_entropy() -> None:
    outputs, targets = case(logistic_loss)
    ours = logistic_loss(outputs, targets)
    theirs = F.binary_cross_entropy_with_logits(outputs, (targets.double() + 1) / 2, reduction="none")
    torch.testing.assert_close(ours, theirs, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(gradient(ours, outputs), gradient(theirs, outputs), rtol=1e-12, atol=1e-12)


def test_hinge_is_scikit_learns() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    outputs, targets = case(hinge_loss, (50,))
    theirs = metrics.hinge_loss(targets.numpy(), outputs.detach().numpy())
    assert hinge_loss(outputs, targets).mean().item() == pytest.approx(theirs, rel=1e-14)


def test_multiclass_hinge_is_scikit_learns() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    outputs, targets = case(multiclass_hinge_loss, (50, 4))
    theirs = metrics.hinge_loss(targets.numpy(), outputs.detach().numpy(), labels=list(range(4)))
    assert multiclass_hinge_loss(outputs, targets).mean().item() == pytest.approx(theirs, rel=1e-14)


def test_multiclass_hinge_is_not_torchs_multi_margin_loss() -> None:
    """Which sums over the rivals and divides by C; with one rival inside the margin they differ by C alone."""
    outputs = torch.tensor([[2.0, 1.5, 0.0], [1.0, 1.0, 1.0]])
    targets = torch.tensor([0, 1])
    assert F.multi_margin_loss(outputs, targets, reduction="none").tolist() == pytest.approx([0.5 / 3, 2 / 3])
    assert multiclass_hinge_loss(outputs, targets).tolist() == [0.5, 1]


@pytest.mark.parametrize(
    ("many", "two"),
    [(multiclass_hinge_loss, hinge_loss), (multiclass_squared_hinge_loss, squared_hinge_loss)],
    ids=["hinge", "squared"],
)
def test_two_classes_are_the_binary_loss_of_the_difference(many: Loss, two: Loss) -> None:
    outputs, targets = case(many, (5, 2, 6))
    ours, theirs = many(outputs, targets), two(outputs[:, 1] - outputs[:, 0], 2 * targets - 1)
    torch.testing.assert_close(ours, theirs, rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(gradient(ours, outputs), gradient(theirs, outputs), rtol=1e-14, atol=1e-14)


# Gradient


@every
@pytest.mark.parametrize("masked", [False, True])
def test_first_and_second_derivatives(loss: Loss, masked: bool) -> None:
    outputs, targets = case(loss, (5, 3, 2))
    mask = torch.arange(targets.numel()).reshape(targets.shape) % 3 > 0 if masked else None
    value = loss(outputs, targets, mask=mask)
    assert (value > 0).any(), "all flat"
    assert loss is logistic_loss or (value == 0).any(), "no flat side"
    torch.autograd.gradcheck(lambda x: loss(x, targets, mask=mask), outputs)
    torch.autograd.gradgradcheck(lambda x: loss(x, targets, mask=mask), outputs)


@pytest.mark.parametrize("loss", [hinge_loss, squared_hinge_loss], ids=lambda loss: loss.__name__)
def test_no_gradient_at_the_kink(loss: Loss) -> None:
    outputs = torch.tensor([1.0, -1.0], requires_grad=True)
    losses = loss(outputs, torch.tensor([1, -1]))
    assert losses.tolist() == [0, 0]
    assert gradient(losses, outputs).tolist() == [0, 0]


def test_tied_rivals_share_the_gradient() -> None:
    outputs = torch.zeros(1, 4, requires_grad=True)
    losses = multiclass_hinge_loss(outputs, torch.tensor([1]))
    torch.testing.assert_close(gradient(losses, outputs), torch.tensor([[1 / 3, -1, 1 / 3, 1 / 3]]))


# Mask (law 4)

ILLEGAL: dict[str, list[float]] = {"binary": [0.0, math.nan, 255.0, -math.inf], "multiclass": [-100, 255, 3]}


@every
@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf, 1e30])
def test_what_is_masked_never_matters(loss: Loss, poison: float) -> None:
    clean, targets = case(loss, (4, 3, 7), torch.float32)
    mask = torch.rand(targets.shape, generator=torch.Generator().manual_seed(1)) > 0.4
    spots = mask if loss in BINARY else mask.unsqueeze(1).expand_as(clean)
    outputs = clean.detach().masked_fill(~spots, poison).requires_grad_()
    kind = "binary" if loss in BINARY else "multiclass"
    for illegal in ILLEGAL[kind]:
        poisoned = (targets.float() if kind == "binary" else targets).masked_fill(~mask, illegal)
        losses, expected = loss(outputs, poisoned, mask=mask), loss(clean, targets)
        assert torch.equal(losses[mask], expected[mask])
        assert losses[~mask].eq(0).all()
        ours = gradient(losses, outputs)
        assert torch.equal(ours[spots], gradient(expected, clean)[spots])
        assert ours[~spots].eq(0).all()


@every
def test_masked_is_the_loss_of_what_counts(loss: Loss) -> None:
    outputs, targets = case(loss, (20, 3))
    mask = torch.arange(targets.numel()).reshape(targets.shape) % 3 > 0
    kept = outputs[mask], targets[mask]
    assert torch.equal(loss(outputs, targets, mask=mask)[mask], loss(*kept))
    nothing = loss(outputs, targets, mask=torch.zeros_like(mask))
    assert nothing.eq(0).all()
    assert gradient(nothing, outputs).eq(0).all()


@every
def test_what_counts_may_be_nan_and_shows_it(loss: Loss) -> None:
    outputs, targets = case(loss, (4, 3))
    with torch.no_grad():
        outputs[0] = math.nan
    losses = loss(outputs, targets)
    assert losses[0].isnan().all()
    assert losses[1:].isfinite().all()


# torch.compile (law 11)


@every
@pytest.mark.parametrize("masked", [False, True])
def test_compiles_whole(loss: Loss, masked: bool) -> None:
    torch._dynamo.reset()
    outputs, targets = case(loss)
    mask = torch.arange(targets.numel()).reshape(targets.shape) % 3 > 0 if masked else None
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    ours, theirs = compiled(outputs, targets, mask=mask), loss(outputs, targets, mask=mask)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(gradient(ours, outputs), gradient(theirs, outputs))


@every
def test_an_illegal_target_that_cannot_be_read_is_nan(loss: Loss) -> None:
    torch._dynamo.reset()
    outputs, targets = case(loss, (4, 3))
    clean = loss(outputs, targets)
    targets[1] = 3
    targets[2] = -2
    mask = torch.ones(targets.shape, dtype=torch.bool)
    mask[2] = False
    losses = torch.compile(loss, fullgraph=True, backend="eager")(outputs, targets, mask=mask)
    assert losses[1].isnan().all()
    assert losses[2].eq(0).all()
    assert torch.equal(losses[[0, 3]], clean[[0, 3]])


# Errors

FOUR = torch.zeros(4)

BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    (
        {"outputs": FOUR, "targets": torch.tensor([1, 0, 1, 0])},
        ValueError,
        "`targets` must be -1 or +1 where counted; got 0. For labels 0 and 1 pass 2.0 * targets - 1.",
    ),
    (
        {"outputs": FOUR, "targets": torch.tensor([1, -1, 1, math.nan])},
        ValueError,
        "`targets` must be -1 or +1 where counted; got nan. For labels 0 and 1 pass 2.0 * targets - 1.",
    ),
    (
        {"outputs": FOUR[:, None], "targets": torch.ones(4)},
        ValueError,
        "`outputs` and `targets` must have the same shape; got (4, 1) and (4,). "
        "For outputs of shape (N, 1) pass outputs[:, 0].",
    ),
    (
        {"outputs": FOUR, "targets": torch.ones(4), "mask": torch.ones(4)},
        TypeError,
        "`mask` must be a bool tensor, True = counts; got torch.float32. Pass mask.bool().",
    ),
    (
        {"outputs": FOUR, "targets": torch.ones(4), "mask": torch.tensor(True)},
        ValueError,
        "`outputs` and `mask` must have the same shape; got (4,) and (). Expand `mask` to the shape of `outputs`.",
    ),
]

BAD_MULTICLASS: list[tuple[dict[str, Any], type[Exception], str]] = [
    (
        {"outputs": torch.zeros(2, 3), "targets": torch.tensor([2, 255])},
        ValueError,
        "`targets` must be classes in [0, 3) where counted; got 255. "
        "To leave such elements out pass mask=targets != 255.",
    ),
    (
        {"outputs": torch.zeros(2, 3), "targets": torch.tensor([-1, 0]), "mask": torch.tensor([True, False])},
        ValueError,
        "`targets` must be classes in [0, 3) where counted; got -1. "
        "To leave such elements out pass mask=targets != -1.",
    ),
    (
        {"outputs": torch.zeros(2, 3), "targets": torch.zeros(2, 3)},
        TypeError,
        "`targets` must be class indices, not probabilities; got torch.float32 of shape (2, 3). "
        "A margin has one right class: for soft targets take `cross_entropy`.",
    ),
    (
        {"outputs": torch.zeros(2, 1), "targets": torch.tensor([0, 0])},
        ValueError,
        "`outputs` must have two classes or more, in dimension 1; got (2, 1), whose softmax is 1 whatever they are. "
        "For one margin per element take `hinge_loss` with targets of -1 and +1.",
    ),
    (
        {"outputs": torch.zeros(2, 3), "targets": torch.tensor([0, 1]), "mask": torch.ones(2)},
        TypeError,
        "`mask` must be a bool tensor, True = counts; got torch.float32. Pass mask.bool().",
    ),
]


@binary
@pytest.mark.parametrize(("given", "error", "message"), BAD, ids=[message for _, _, message in BAD])
def test_binary_errors(loss: Loss, given: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^{re.escape(message)}$"):
        loss(**given)


@multiclass
@pytest.mark.parametrize(
    ("given", "error", "message"), BAD_MULTICLASS, ids=[message for _, _, message in BAD_MULTICLASS]
)
def test_multiclass_errors(loss: Loss, given: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^{re.escape(message)}$"):
        loss(**given)


@pytest.mark.parametrize("labels", [torch.tensor([0, 1], dtype=torch.uint8), torch.tensor([False, True])], ids=str)
def test_the_way_out_of_labels_0_and_1(labels: Tensor) -> None:
    outputs = torch.tensor([0.5, 0.5])
    with pytest.raises(ValueError, match=r"pass 2\.0 \* targets - 1\.$"):
        hinge_loss(outputs, labels)
    assert hinge_loss(outputs, 2.0 * labels - 1).tolist() == [1.5, 0.5]
