"""The region losses: equal to plain Python, finite for classes that are absent, deaf to what is masked."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from topkloss import average_top_k
from topkloss.losses import dice_loss, generalized_dice_loss, present_classes, tversky_loss

SHAPES = [(2, 3, 6), (3, 4, 2, 5), (1, 2, 2, 2, 2), (2, 2, 4), (2, 6, 3)]

LOSSES: dict[str, Callable[..., Tensor]] = {
    "dice": dice_loss,
    "dice, smoothed": lambda *given, **named: dice_loss(*given, smoothing=1.5, **named),
    "tversky": lambda *given, **named: tversky_loss(*given, false_positives=0.3, false_negatives=0.9, **named),
    "generalized dice": generalized_dice_loss,
}
every = pytest.mark.parametrize("name", LOSSES)


def case(
    shape: tuple[int, ...] = (3, 4, 2, 5), dtype: torch.dtype = torch.float64, scale: float = 2
) -> tuple[Tensor, Tensor, Tensor]:
    """Outputs that want a gradient, targets of which some classes are absent here and there, and a mask."""
    generator = torch.Generator().manual_seed(0)
    outputs = (scale * torch.randn(shape, generator=generator, dtype=torch.float64)).to(dtype).requires_grad_()
    targets = torch.randint(shape[1], (shape[0], *shape[2:]), generator=generator)
    targets[0] = targets[0].clamp(max=max(0, shape[1] - 2))
    mask = torch.rand(targets.shape, generator=generator) > 0.3
    return outputs, targets, mask


def gradient(losses: Tensor, outputs: Tensor) -> Tensor:
    """Of a sum in which every region weighs something else."""
    weights = torch.arange(1.0, 1 + losses.numel(), dtype=losses.dtype).reshape(losses.shape)
    return torch.autograd.grad((weights * losses).sum(), outputs)[0]


# The oracle: floats and loops


def softmax(row: list[float]) -> list[float]:
    powers = [math.exp(score - max(row)) for score in row]
    return [power / math.fsum(powers) for power in powers]


def plain_counts(
    outputs: Tensor, targets: Tensor, mask: Tensor | None = None
) -> list[list[tuple[float, float, float, int]]]:
    """TP, FP, FN and volume, of each class in each sample."""
    mask = torch.ones_like(targets, dtype=torch.bool) if mask is None else mask
    classes, found = outputs.shape[1], []
    for sample, labels, counts in zip(outputs.detach().double(), targets, mask, strict=True):
        rows = zip(sample.flatten(1).T.tolist(), labels.flatten().tolist(), counts.flatten().tolist(), strict=True)
        pixels = [(softmax(row), y) for row, y, counted in rows if counted]
        found.append(
            [
                (
                    math.fsum(p[c] for p, y in pixels if y == c),
                    math.fsum(p[c] for p, y in pixels if y != c),
                    math.fsum(1 - p[c] for p, y in pixels if y == c),
                    sum(y == c for _, y in pixels),
                )
                for c in range(classes)
            ]
        )
    return found


def plain_dice(counts: tuple[float, float, float, int], s: float) -> float:
    tp, fp, _, volume = counts
    return 1 - (2 * tp + s) / (tp + fp + volume + s) if tp + fp + volume + s > 0 else 0


def plain_tversky(counts: tuple[float, float, float, int], alpha: float, beta: float, s: float) -> float:
    tp, fp, fn, _ = counts
    below = tp + alpha * fp + beta * fn + s
    return 1 - (tp + s) / below if below > 0 else 0


def plain_generalized_dice(classes: list[tuple[float, float, float, int]]) -> float:
    there = [counts for counts in classes if counts[-1] > 0]
    above = math.fsum(tp / volume**2 for tp, _, _, volume in there)
    below = math.fsum((tp + fp + volume) / volume**2 for tp, fp, _, volume in there)
    return 1 - 2 * above / below if there else 0


def close(losses: Tensor, expected: list[list[float]] | list[float], tolerance: float = 1e-13) -> None:
    torch.testing.assert_close(
        losses.detach().double(), torch.tensor(expected, dtype=torch.float64), rtol=tolerance, atol=tolerance
    )


# Value


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("smoothing", [0, 1e-5, 2.5])
def test_dice_is_the_oracles(shape: tuple[int, ...], masked: bool, smoothing: float) -> None:
    outputs, targets, some = case(shape)
    mask = some if masked else None
    losses = dice_loss(outputs, targets, mask=mask, smoothing=smoothing)
    assert losses.shape == shape[:2]
    close(losses, [[plain_dice(c, smoothing) for c in row] for row in plain_counts(outputs, targets, mask)])


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("alpha", "beta", "s"), [(0.3, 0.7, 0), (1, 1, 0.5), (0, 1, 0), (2.5, 0, 1)])
def test_tversky_is_the_oracles(shape: tuple[int, ...], masked: bool, alpha: float, beta: float, s: float) -> None:
    outputs, targets, some = case(shape)
    mask = some if masked else None
    losses = tversky_loss(outputs, targets, false_positives=alpha, false_negatives=beta, mask=mask, smoothing=s)
    close(losses, [[plain_tversky(c, alpha, beta, s) for c in row] for row in plain_counts(outputs, targets, mask)])


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("masked", [False, True])
def test_generalized_dice_is_the_oracles(shape: tuple[int, ...], masked: bool) -> None:
    outputs, targets, some = case(shape)
    mask = some if masked else None
    losses = generalized_dice_loss(outputs, targets, mask=mask)
    assert losses.shape == shape[:1]
    close(losses, [plain_generalized_dice(row) for row in plain_counts(outputs, targets, mask)])


@every
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_precision(name: str, dtype: torch.dtype) -> None:
    outputs, targets, mask = case(dtype=dtype)
    double = outputs.detach().double().requires_grad_()
    losses, exact = LOSSES[name](outputs, targets, mask=mask), LOSSES[name](double, targets, mask=mask)
    assert losses.dtype == torch.float32
    close(losses, exact.tolist(), 1e-6)
    ours = gradient(losses, outputs)
    assert ours.dtype == dtype
    torch.testing.assert_close(ours.double(), gradient(exact, double), rtol=1e-2, atol=1e-3)


def test_many_pixels_of_half_precision_do_not_overflow() -> None:
    """90 000 counted in float16 would be infinite."""
    outputs = torch.zeros(1, 2, 300, 300, dtype=torch.float16)
    targets = torch.zeros(1, 300, 300, dtype=torch.long)
    losses = dice_loss(outputs, targets)
    assert losses.tolist() == [[pytest.approx(1 - 2 * 0.5 / 1.5, rel=1e-6), 1]]
    assert generalized_dice_loss(outputs, targets).item() == pytest.approx(1 / 3, rel=1e-6)


def test_a_large_volume_is_not_taken_for_an_empty_one() -> None:
    """Its weight times its size, 1/V, is below the rounding error of one pixel."""
    targets = torch.zeros(1, 10_000_000, dtype=torch.uint8)
    losses = generalized_dice_loss(torch.zeros(1, 2, 10_000_000), targets)
    assert losses.item() == pytest.approx(1 / 3, rel=1e-5)


@every
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64], ids=str)
def test_extreme_logits(name: str, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(2)
    signs = 2 * torch.randint(2, (5, 3, 7), generator=generator) - 1
    outputs = (1e4 * signs).to(dtype).requires_grad_()
    targets = torch.randint(3, (5, 7), generator=generator)
    losses = LOSSES[name](outputs, targets)
    close(losses, LOSSES[name](outputs.detach().double(), targets).tolist(), 1e-6)
    assert ((losses >= 0) & (losses <= 1)).all()
    assert gradient(losses, outputs).isfinite().all()


@every
def test_a_perfect_prediction_costs_nothing_and_its_opposite_everything(name: str) -> None:
    _, targets, _ = case()
    one_hot = torch.nn.functional.one_hot(targets, 4).movedim(-1, 1).float()
    right, wrong = LOSSES[name](1e3 * one_hot, targets), LOSSES[name](1e3 * one_hot.roll(1, dims=1), targets)
    assert right.eq(0).all()
    if name == "generalized dice":
        assert wrong.eq(1).all()
    elif name != "dice, smoothed":
        touched = present_classes(targets, 4) | present_classes((targets + 1) % 4, 4)
        assert torch.equal(wrong, touched.float())


def test_even_prices_are_dice_and_jaccard() -> None:
    outputs, targets, mask = case()
    given: dict[str, Any] = {"targets": targets, "mask": mask}
    assert torch.equal(tversky_loss(outputs, **given), dice_loss(outputs, **given))
    assert torch.equal(tversky_loss(outputs, smoothing=0.5, **given), dice_loss(outputs, smoothing=1, **given))
    hard = torch.tensor([[[9e9, 9e9, 0, 0], [0, 0, 9e9, 9e9]]])  # predicts 0 0 1 1
    jaccard = tversky_loss(hard, torch.tensor([[0, 1, 1, 1]]), false_positives=1, false_negatives=1)
    assert jaccard.tolist() == [[pytest.approx(1 - 1 / 2), pytest.approx(1 - 2 / 3)]]


def test_generalized_dice_of_one_class_is_its_dice() -> None:
    outputs, _, _ = case()
    targets = torch.full((3, 2, 5), 2)
    torch.testing.assert_close(generalized_dice_loss(outputs, targets), dice_loss(outputs, targets)[:, 2])


def test_strides_do_not_matter_and_nothing_is_written_to() -> None:
    outputs, targets, mask = case((3, 4, 2, 5))
    before = outputs.detach().clone(), targets.clone(), mask.clone()
    strided = outputs.detach().contiguous(memory_format=torch.channels_last)
    assert not strided.is_contiguous()
    for loss in LOSSES.values():
        torch.testing.assert_close(loss(strided, targets, mask=mask), loss(outputs, targets, mask=mask))
    assert all(torch.equal(now, then) for now, then in zip((outputs, targets, mask), before, strict=True))


# Absent classes


@every
@pytest.mark.parametrize("logit", [-0.5, -5.0, -15.0, -30.0, -87.5, -95.0, -103.0, -200.0, -1e4, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_an_absent_class_is_finite_however_little_of_it_is_predicted(
    name: str, logit: float, dtype: torch.dtype
) -> None:
    """Also where its probability is a denormal number, whose inverse is infinite."""
    outputs = torch.tensor([[[0.3, 1.0], [0.0, -0.4], [logit, logit]]], dtype=dtype, requires_grad=True)
    losses = LOSSES[name](outputs, torch.tensor([[0, 1]]))
    assert ((losses >= 0) & (losses <= 1)).all()
    first = torch.autograd.grad(losses.sum(), outputs, create_graph=True)[0]
    assert first.isfinite().all()
    (second,) = torch.autograd.grad(first.square().sum(), outputs)
    assert second.isfinite().all()


def test_an_absent_class_has_loss_1_if_predicted_and_0_if_not() -> None:
    outputs = torch.tensor([[[0.0, 0.0], [-10.0, -10.0]], [[0.0, 0.0], [-30.0, -30.0]]], requires_grad=True)
    targets = torch.zeros(2, 2, dtype=torch.long)
    losses = dice_loss(outputs, targets)
    assert losses[:, 1].tolist() == [1, 0]
    assert torch.autograd.grad(losses[:, 1].sum(), outputs)[0].eq(0).all()
    smoothed = dice_loss(outputs, targets, smoothing=0.01)
    predicted = 2 / (1 + math.exp(10))
    assert smoothed[0, 1].item() == pytest.approx(predicted / (predicted + 0.01), rel=1e-5)
    assert torch.autograd.grad(smoothed[0, 1], outputs)[0][0, 1].gt(0).all()


def test_an_absent_class_is_mined_first_unless_masked() -> None:
    outputs, targets, _ = case()
    present = present_classes(targets, 4)
    assert not present.all()
    losses = dice_loss(outputs, targets)
    assert losses[~present].eq(1).all()
    taught = torch.autograd.grad(average_top_k(losses, k=1), outputs, retain_graph=True)[0]
    assert taught.abs().max() < 1e-15
    hardest = average_top_k(losses, k=1, mask=present)
    assert hardest == losses[present].max()
    assert torch.autograd.grad(hardest, outputs)[0].abs().max() > 1e-3


def test_an_absent_class_weighs_nothing_in_generalized_dice() -> None:
    outputs, targets, _ = case((2, 3, 6))
    more = torch.cat([outputs, torch.full((2, 1, 6), -1e4)], dim=1)
    torch.testing.assert_close(generalized_dice_loss(more, targets), generalized_dice_loss(outputs, targets))


def test_what_is_predicted_as_an_absent_class_is_still_wrong() -> None:
    targets = torch.zeros(1, 4, dtype=torch.long)
    losses = [generalized_dice_loss(torch.tensor([[[0.0] * 4, [p] * 4]]), targets).item() for p in (-5.0, 0.0, 5.0)]
    assert losses == sorted(losses)
    assert losses[0] < 0.1 < 0.9 < losses[2]


@every
def test_a_sample_of_which_nothing_counts_costs_nothing(name: str) -> None:
    outputs, targets, mask = case()
    mask[1] = False
    losses = LOSSES[name](outputs, targets, mask=mask)
    assert losses[1].eq(0).all()
    assert gradient(losses, outputs)[1].eq(0).all()
    others = [0, 2]
    torch.testing.assert_close(losses[others], LOSSES[name](outputs[others], targets[others], mask=mask[others]))


def test_present_classes() -> None:
    _, targets, mask = case()
    for given in (None, mask):
        counted = torch.ones_like(mask) if given is None else given
        expected = [
            [c in labels[kept].tolist() for c in range(4)] for labels, kept in zip(targets, counted, strict=True)
        ]
        assert present_classes(targets, 4, mask=given).tolist() == expected
    assert not present_classes(targets, 4, mask=torch.zeros_like(mask)).any()
    assert present_classes(targets.to(torch.uint8), 7).shape == (3, 7)


# Gradient


@every
@pytest.mark.parametrize("masked", [False, True])
def test_first_and_second_derivatives(name: str, masked: bool) -> None:
    outputs, targets, some = case((2, 3, 5))
    mask = some if masked else None
    assert not present_classes(targets, 3, mask=mask).all()
    torch.autograd.gradcheck(lambda x: LOSSES[name](x, targets, mask=mask), outputs)
    torch.autograd.gradgradcheck(lambda x: LOSSES[name](x, targets, mask=mask), outputs)


# Mask (law 4)


@every
@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf, 1e30])
@pytest.mark.parametrize("illegal", [-100, 4, 255])
def test_what_is_masked_never_matters(name: str, poison: float, illegal: int) -> None:
    clean, targets, mask = case()
    spots = mask.unsqueeze(1).expand_as(clean)
    outputs = clean.detach().masked_fill(~spots, poison).requires_grad_()
    poisoned = targets.masked_fill(~mask, illegal)
    losses, expected = LOSSES[name](outputs, poisoned, mask=mask), LOSSES[name](clean, targets, mask=mask)
    assert torch.equal(losses, expected)
    ours = gradient(losses, outputs)
    assert torch.equal(ours, gradient(expected, clean))
    assert ours[~spots].eq(0).all()
    assert torch.equal(present_classes(poisoned, 4, mask=mask), present_classes(targets, 4, mask=mask))


@every
def test_masked_is_the_loss_of_what_counts(name: str) -> None:
    outputs, targets, _ = case((2, 3, 8))
    mask = torch.arange(8).expand(2, 8) >= 3
    ours = LOSSES[name](outputs, targets, mask=mask)
    torch.testing.assert_close(ours, LOSSES[name](outputs[..., 3:], targets[..., 3:]))


@every
def test_a_nan_that_counts_shows_in_its_sample_alone(name: str) -> None:
    outputs, targets, _ = case()
    with torch.no_grad():
        outputs[1, 2, 0, 0] = math.nan
    losses = LOSSES[name](outputs, targets)
    assert losses[1].isnan().all()
    assert losses[[0, 2]].isfinite().all()


# torch.compile (law 11)


@every
@pytest.mark.parametrize("masked", [False, True])
def test_compiles_whole(name: str, masked: bool) -> None:
    torch._dynamo.reset()
    outputs, targets, some = case()
    mask = some if masked else None
    compiled = torch.compile(LOSSES[name], fullgraph=True, backend="aot_eager")
    ours, theirs = compiled(outputs, targets, mask=mask), LOSSES[name](outputs, targets, mask=mask)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(gradient(ours, outputs), gradient(theirs, outputs))


@every
def test_an_illegal_target_that_cannot_be_read_is_nan_in_its_sample_alone(name: str) -> None:
    torch._dynamo.reset()
    outputs, targets, _ = case()
    clean = LOSSES[name](outputs, targets)
    targets[1, 0, 0] = 4
    losses = torch.compile(LOSSES[name], fullgraph=True, backend="eager")(outputs, targets)
    assert losses[1].isnan().all()
    assert torch.equal(losses[[0, 2]], clean[[0, 2]])


def test_present_classes_compile_whole_and_pass_over_what_is_illegal() -> None:
    torch._dynamo.reset()
    targets = torch.tensor([[0, 2, 255], [-1, 1, 1]])
    compiled = torch.compile(present_classes, fullgraph=True, backend="eager")
    assert compiled(targets, 3).tolist() == [[True, False, True], [False, True, False]]


# Errors

LOGITS, TARGETS = torch.zeros(2, 3, 4), torch.zeros(2, 4, dtype=torch.long)
NOT_A_CLASS = (
    "`targets` must be classes in [0, 3) where counted; got 255. To leave such elements out pass mask=targets != 255."
)

BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"targets": torch.full((2, 4), 255)}, ValueError, NOT_A_CLASS),
    (
        {"outputs": torch.zeros(2, 3), "targets": torch.zeros(2, dtype=torch.long)},
        ValueError,
        "`outputs` must have shape (N, C, d1, ...), with pixels; got (2, 3). "
        "For one region per class over the whole batch pass outputs.T[None] and targets[None].",
    ),
    (
        {"targets": torch.full((2, 4), 0.5)},
        ValueError,
        "`targets` of one number per element must be class indices, whole numbers where counted; got 0.5. "
        "For probabilities pass one of each class, in the shape of the outputs.",
    ),
    (
        {"outputs": torch.zeros(2, 1, 4)},
        ValueError,
        "`outputs` must have two classes or more, in dimension 1; got (2, 1, 4), whose softmax is 1 whatever they "
        "are. For a sigmoid of one channel pass torch.cat([torch.zeros_like(outputs), outputs], dim=1).",
    ),
    (
        {"mask": torch.ones(2, dtype=torch.bool)},
        ValueError,
        "`targets` and `mask` must have the same shape; got (2, 4) and (2,). Pass mask[:, None].expand(2, 4).",
    ),
]
BAD_NUMBERS: list[tuple[dict[str, Any], type[Exception], str]] = [
    (
        {"smoothing": -1},
        ValueError,
        "`smoothing` must satisfy 0 <= smoothing < inf; got -1. For none pass smoothing=0.",
    ),
    (
        {"smoothing": math.nan},
        ValueError,
        "`smoothing` must satisfy 0 <= smoothing < inf; got nan. For none pass smoothing=0.",
    ),
    (
        {"smoothing": "1"},
        TypeError,
        "`smoothing` must be a real number; got str. Pass a Python number, e.g. float(smoothing).",
    ),
]
BAD_PRICES: list[tuple[dict[str, Any], type[Exception], str]] = [
    (
        {"false_positives": math.inf},
        ValueError,
        "`false_positives` must satisfy 0 <= false_positives < inf; got inf. For none pass false_positives=0.",
    ),
    (
        {"false_negatives": -0.5},
        ValueError,
        "`false_negatives` must satisfy 0 <= false_negatives < inf; got -0.5. For none pass false_negatives=0.",
    ),
    (
        {"false_positives": 0, "false_negatives": 0.0},
        ValueError,
        "one of `false_positives` and `false_negatives` must be above 0; got 0 for both. For Dice pass neither.",
    ),
]


@pytest.mark.parametrize(
    ("loss", "given", "error", "message"),
    [(loss, *bad) for loss in (dice_loss, tversky_loss, generalized_dice_loss) for bad in BAD]
    + [(loss, *bad) for loss in (dice_loss, tversky_loss) for bad in BAD_NUMBERS]
    + [(tversky_loss, *bad) for bad in BAD_PRICES],
)
def test_errors(loss: Callable[..., Tensor], given: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^{re.escape(message)}$"):
        loss(**{"outputs": LOGITS, "targets": TARGETS} | given)


def test_errors_of_present_classes() -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(NOT_A_CLASS)}$"):
        present_classes(torch.full((2, 4), 255), 3)
    with pytest.raises(TypeError, match=r"^`targets` must be a tensor of an integer type; got torch\.float32\."):
        present_classes(torch.zeros(2, 4), 3)
    message = "`targets` must have shape (N, d1, ...), with pixels; got (4,). For one sample pass targets[None]."
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        present_classes(TARGETS[0], 3)
    with pytest.raises(TypeError, match=r"^`mask` must be a bool tensor"):
        present_classes(TARGETS, 3, mask=torch.ones(2, 4))


def test_the_way_out_of_logits_without_pixels() -> None:
    outputs, targets = torch.tensor([[2.0, 0.0], [0.0, 1.0], [0.5, 0.0]]), torch.tensor([0, 1, 1])
    losses = dice_loss(outputs.T[None], targets[None])
    close(losses, [[plain_dice(c, 0) for c in plain_counts(outputs.T[None], targets[None])[0]]], 1e-6)
