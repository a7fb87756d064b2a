"""Losses of other libraries: what they were made of is honoured, and what does not count never matters (laws 4, 8)."""

from __future__ import annotations

import copy
import functools
import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from topkloss import (
    AverageRankedRangeLoss,
    AverageTopKLoss,
    CompoundLoss,
    CrossEntropy,
    DualAverageTopKLoss,
    HardNegativeLoss,
    OHEMLoss,
)
from topkloss.losses import hinge_loss, logistic_loss, squared_hinge_loss

WEIGHT = torch.tensor([0.5, 1.0, 2.0, 0.0, 7.0], dtype=torch.float64)
GIVEN: list[dict[str, Any]] = [
    {"ignore_index": 255},
    {"ignore_index": 2},
    {"ignore_index": 255, "weight": WEIGHT},
    {"weight": WEIGHT},
    {"ignore_index": 255, "label_smoothing": 0.1},
    {"ignore_index": 255, "label_smoothing": 0.1, "weight": WEIGHT + 0.1},
]


class Labelled(nn.CrossEntropyLoss):
    """One that changes the defaults alone, as many code bases have."""

    def __init__(self, ignore_index: int = 255, **given: Any) -> None:
        super().__init__(reduction="none", ignore_index=ignore_index, **given)


class Squeezed(nn.CrossEntropyLoss):
    """nnU-Net's: a forward pass of its own, over targets of shape (N, 1, ...)."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return super().forward(input, target[:, 0].long())


def logits(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()


def labels(*shape: int, ignored: float = 0.75, ignore_index: int = 255, classes: int = 5) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    targets = torch.randint(classes, shape, generator=generator)
    return targets.masked_fill(torch.rand(shape, generator=generator) < ignored, ignore_index)


def assert_same(ours: Tensor, theirs: Tensor, outputs: Tensor, **given: Any) -> None:
    """The same value, and the same gradient in the outputs."""
    torch.testing.assert_close(ours, theirs, **given)
    torch.testing.assert_close(
        *(torch.autograd.grad(one, outputs, retain_graph=True)[0] for one in (ours, theirs)), **given
    )


# At fraction 1 it is torch's mean (law 8)


def named(loss: Any) -> str:
    """The id of a loss: what `str` makes of a function differs from process to process."""
    return str(loss) if isinstance(loss, nn.Module) else getattr(loss, "__name__", type(loss).__name__)


@pytest.mark.parametrize("given", GIVEN, ids=str)
@pytest.mark.parametrize("make", ["module", "subclass", "partial", "compiled", "bound"])
def test_a_wrapped_cross_entropy_is_torchs_mean(make: str, given: dict[str, Any]) -> None:
    outputs, targets = logits(4, 5, 6), labels(4, 6, ignore_index=given.get("ignore_index", -100))
    module = nn.CrossEntropyLoss(reduction="none", **given)
    losses: dict[str, Any] = {
        "module": module,
        "subclass": Labelled(**{"ignore_index": -100, **given}),
        "partial": functools.partial(functools.partial(F.cross_entropy, reduction="none"), **given),
        "compiled": torch.compile(module, backend="eager"),
        "bound": module.forward,
    }
    theirs = F.cross_entropy(outputs, targets, **given)
    assert_same(AverageTopKLoss(losses[make], fraction=1)(outputs, targets), theirs, outputs)


@pytest.mark.parametrize("given", GIVEN[:4], ids=str)
@pytest.mark.parametrize("make", ["module", "partial"])
def test_a_wrapped_nll_is_torchs_mean(make: str, given: dict[str, Any]) -> None:
    outputs, targets = logits(4, 5, 6), labels(4, 6, ignore_index=given.get("ignore_index", -100))
    module: Any = nn.NLLLoss(reduction="none", **given)
    loss = module if make == "module" else functools.partial(F.nll_loss, reduction="none", **given)
    ours = AverageTopKLoss(loss, fraction=1)(outputs.log_softmax(1), targets)
    assert_same(ours, F.nll_loss(outputs.log_softmax(1), targets, **given), outputs)


CRITERIA: list[Callable[[Any], Any]] = [
    lambda loss: AverageTopKLoss(loss, fraction=0.3),
    lambda loss: AverageTopKLoss(loss, fraction=0.3, level="sample"),
    lambda loss: AverageTopKLoss(loss, k=1, within="class"),
    lambda loss: AverageTopKLoss(loss, k=1, within="sample"),
    lambda loss: OHEMLoss(loss, threshold=1.0, min_kept=2),
    lambda loss: AverageRankedRangeLoss(loss, fraction=0.3, drop_fraction=0.2),
    lambda loss: HardNegativeLoss(loss, ratio=1),
    lambda loss: DualAverageTopKLoss(loss, fraction=0.3, threshold=1.0),
]


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("given", GIVEN[:4], ids=str)
@pytest.mark.parametrize("kind", ["cross-entropy", "nll"])
def test_every_criterion_honours_what_a_loss_was_made_of(
    criterion: Callable[[Any], Any], given: dict[str, Any], kind: str
) -> None:
    """Equal to the same criterion of the loss that this package computes, and defines to be torch's."""
    outputs, targets = logits(4, 5, 6), labels(4, 6, ignored=0.5, ignore_index=given.get("ignore_index", -100))
    theirs = criterion(CrossEntropy(**given))(outputs, targets)
    if kind == "nll":
        ours = criterion(nn.NLLLoss(reduction="none", **given))(outputs.log_softmax(1), targets)
    else:
        ours = criterion(Labelled(**{"ignore_index": -100, **given}))(outputs, targets)
    assert_same(ours, theirs, outputs)


def test_the_figures_of_the_complaint() -> None:
    """75 % ignored: not a quarter of torch's mean."""
    outputs, targets = logits(8, 5, 8, 8), labels(8, 8, 8)
    plain = AverageTopKLoss(nn.CrossEntropyLoss(reduction="none", ignore_index=255), fraction=1)(outputs, targets)
    diluted = nn.CrossEntropyLoss(reduction="none", ignore_index=255)(outputs, targets).mean()
    torch.testing.assert_close(plain, F.cross_entropy(outputs, targets, ignore_index=255))
    assert diluted < 0.3 * plain


def test_attributes_are_read_at_every_call() -> None:
    outputs, targets = logits(8, 5), labels(8, ignored=0.4, ignore_index=3)
    for loss in (nn.CrossEntropyLoss(reduction="none"), nn.NLLLoss(reduction="none")):
        criterion = AverageTopKLoss(loss, fraction=1)
        loss.ignore_index = 3
        own = outputs.log_softmax(1)
        torch.testing.assert_close(criterion(own, targets), F.cross_entropy(outputs, targets, ignore_index=3))
    criterion.loss = nn.NLLLoss(reduction="none", ignore_index=2)
    torch.testing.assert_close(criterion(own, targets), F.nll_loss(own, targets, ignore_index=2))


def test_a_copy_reads_its_own_loss() -> None:
    loss = nn.NLLLoss(reduction="none")
    criterion = AverageTopKLoss(loss, fraction=1)
    other = copy.deepcopy(criterion)
    loss.ignore_index = 3
    outputs, targets = logits(8, 5).log_softmax(1), labels(8, ignored=0.3, ignore_index=3)
    torch.testing.assert_close(other(outputs, targets), F.nll_loss(outputs, targets))
    torch.testing.assert_close(criterion(outputs, targets), F.nll_loss(outputs, targets, ignore_index=3))


def test_a_forward_pass_of_its_own_keeps_its_ignored_label() -> None:
    outputs, targets = logits(4, 5, 6), labels(4, 1, 6)
    criterion = AverageTopKLoss(Squeezed(reduction="none", ignore_index=255), fraction=1)
    assert_same(criterion(outputs, targets), F.cross_entropy(outputs, targets[:, 0], ignore_index=255), outputs)
    mask = torch.arange(6).expand(4, 6) % 2 == 0
    wild = targets.masked_fill(~mask.unsqueeze(1), 77)
    expected = F.cross_entropy(outputs, targets[:, 0].masked_fill(~mask, 255), ignore_index=255)
    assert_same(criterion(outputs, wild, mask=mask), expected, outputs)


def test_class_weights_in_a_forward_pass_of_its_own_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"weigh classes in a forward pass of its own; got Squeezed.*`sample_weight`"):
        AverageTopKLoss(Squeezed(reduction="none", weight=WEIGHT), fraction=1)


def test_a_hook_is_a_forward_pass_of_its_own() -> None:
    loss = nn.CrossEntropyLoss(reduction="none", ignore_index=255)
    loss.register_forward_hook(lambda module, given, losses: 2 * losses)
    outputs, targets = logits(8, 5), labels(8, ignored=0.4)
    expected = 2 * F.cross_entropy(outputs, targets, ignore_index=255)
    torch.testing.assert_close(AverageTopKLoss(loss, fraction=1)(outputs, targets), expected)


PART_OF_THE_LOSS: list[tuple[Any, Any]] = [
    (nn.BCEWithLogitsLoss, {"weight": WEIGHT, "pos_weight": WEIGHT + 1}),
    (nn.BCELoss, {"weight": WEIGHT}),
    (nn.MultiLabelSoftMarginLoss, {"weight": WEIGHT}),
    (nn.MultiMarginLoss, {"weight": WEIGHT}),
    (nn.KLDivLoss, {"log_target": True}),
    (nn.HuberLoss, {"delta": 0.3}),
]


@pytest.mark.parametrize(("kind", "given"), PART_OF_THE_LOSS, ids=lambda one: getattr(one, "__name__", ""))
def test_other_weights_are_part_of_the_loss_as_in_torchs_mean(kind: Any, given: dict[str, Any]) -> None:
    outputs = logits(8, 5)
    shown = outputs.sigmoid() if kind is nn.BCELoss else outputs
    targets = labels(8, ignored=0) if kind is nn.MultiMarginLoss else logits(8, 5).detach().cos().square()
    ours = AverageTopKLoss(kind(reduction="none", **given), fraction=1)(shown, targets)
    assert_same(
        ours, kind(reduction="sum", **given)(shown, targets) / kind(reduction="none")(shown, targets).numel(), outputs
    )


class WithReduction(nn.Module):
    """A stranger's, that says in its own words whether it is reduced."""

    def __init__(self, reduction: Any) -> None:
        super().__init__()
        self.reduction = reduction

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return outputs - targets


@pytest.mark.parametrize(
    "loss",
    [
        nn.CrossEntropyLoss(),
        nn.MSELoss(reduction="sum"),
        nn.KLDivLoss(reduction="batchmean"),
        F.mse_loss,
        functools.partial(F.cross_entropy, ignore_index=255),
        nn.MSELoss().forward,
        torch.compile(nn.MSELoss(), backend="eager"),
        WithReduction("MEAN"),
    ],
    ids=lambda one: getattr(one, "__name__", type(one).__name__),
)
def test_a_reduced_loss_is_refused_by_name_when_the_criterion_is_made(loss: Any) -> None:
    with pytest.raises(ValueError, match=r'`loss` must not be reduced; got \w+ with reduction="\w+".*reduction="none"'):
        AverageTopKLoss(loss, fraction=0.5)


@pytest.mark.filterwarnings("ignore:size_average and reduce args:UserWarning")
def test_an_unreduced_loss_is_taken_however_it_says_so() -> None:
    for loss in (WithReduction(None), WithReduction("none"), WithReduction("by class"), torch.sub):
        assert AverageTopKLoss(loss, k=1)(torch.tensor([1.0, 2.0]), torch.zeros(2)) == 2
    assert AverageTopKLoss(functools.partial(F.l1_loss, reduce=False), k=1)(torch.ones(2), torch.zeros(2)) == 1


def test_a_loss_that_is_reduced_later_is_refused_when_called() -> None:
    loss = nn.MSELoss(reduction="none")
    criterion = AverageTopKLoss(loss, fraction=0.5)
    loss.reduction = "mean"
    with pytest.raises(ValueError, match="already reduced"):
        criterion(torch.zeros(3), torch.zeros(3))


class Holding(nn.Module):
    """A wrapper, whose own attributes say nothing of what it ignores."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.CrossEntropyLoss(reduction="none", ignore_index=255)
        self.other = nn.NLLLoss(ignore_index=254)  # so it is not known which holds

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        losses: Tensor = self.inner(outputs, targets)
        return losses


@pytest.mark.parametrize(
    "loss", [Holding(), lambda outputs, targets: F.cross_entropy(outputs, targets, reduction="none", ignore_index=255)]
)
def test_a_label_ignored_without_saying_so_is_no_loss_of_0(loss: Any) -> None:
    outputs, targets = logits(8, 5), labels(8, ignored=0.5)
    criterion = AverageTopKLoss(loss, fraction=1)
    with pytest.raises(ValueError, match=r"classes in \[0, 5\) where counted; got 255, which .* mask=targets != 255"):
        criterion(outputs, targets)
    expected = F.cross_entropy(outputs, targets, ignore_index=255)
    assert_same(criterion(outputs, targets, mask=targets != 255), expected, outputs)
    compiled = torch.compile(criterion, fullgraph=True, backend="aot_eager")
    leaf = outputs.detach().requires_grad_()
    assert compiled(leaf, targets).isnan()
    torch.testing.assert_close(compiled(leaf, targets, mask=targets != 255), expected)


def test_counts_are_no_classes() -> None:
    """Whole numbers beside several outputs, of which no loss is 0: quantiles of a count, say."""
    criterion = AverageTopKLoss(lambda outputs, targets: (outputs - targets[:, None]).abs().mean(1), fraction=1)
    assert criterion(torch.zeros(2, 3), torch.tensor([7, 9])) == 8


# What does not count never matters (law 4)


def binary(outputs: Tensor, targets: Tensor) -> Tensor:
    """By hand, as a stranger writes it: NaN at 0 and at 1."""
    p = outputs.sigmoid()
    return -(targets * p.log() + (1 - targets) * (1 - p).log())


class Learned(nn.Module):
    """A loss with a weight of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.7, dtype=torch.float64))

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return self.scale * (outputs - targets).abs() - self.scale.log()


REAL: dict[str, Any] = {
    "mse": nn.MSELoss(reduction="none"),
    "huber": nn.HuberLoss(reduction="none"),
    "smooth l1": nn.SmoothL1Loss(reduction="none"),
    "bce": lambda outputs, targets: F.binary_cross_entropy_with_logits(outputs, targets, reduction="none"),
    "bce of torch": nn.BCEWithLogitsLoss(reduction="none", pos_weight=torch.tensor(3.0, dtype=torch.float64)),
    "bce by hand": binary,
    "kl": nn.KLDivLoss(reduction="none"),
    "poisson": nn.PoissonNLLLoss(reduction="none"),
    "soft margin": nn.SoftMarginLoss(reduction="none"),
    "partial": functools.partial(F.l1_loss, reduction="none"),
    "lambda": lambda outputs, targets: (outputs - targets).square() / targets,
    "exponential": lambda outputs, targets: outputs.exp() * targets,
    "learned": Learned(),
}
GARBAGE = [math.nan, math.inf, -math.inf, 1e6, 0.0]


def gradients(loss: Any, value: Tensor, leaves: list[Tensor]) -> list[Tensor]:
    own = list(loss.parameters()) if isinstance(loss, nn.Module) else []
    return list(torch.autograd.grad(value, [*leaves, *own], retain_graph=True))


def setup(rows: int, columns: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A model's weights and input, targets in (0, 1), and what counts."""
    generator = torch.Generator().manual_seed(3)
    inputs = torch.randn(rows, 4, dtype=torch.float64, generator=generator)
    weights = torch.randn(4, columns, dtype=torch.float64, generator=generator).requires_grad_()
    targets = torch.rand(rows, columns, dtype=torch.float64, generator=generator) * 0.8 + 0.1
    return inputs, weights, targets, torch.rand(rows, columns, generator=generator) < 0.6


@pytest.mark.parametrize("garbage", GARBAGE)
@pytest.mark.parametrize("where", ["targets", "outputs"])
@pytest.mark.parametrize("name", REAL)
def test_what_a_mask_leaves_out_never_matters(name: str, where: str, garbage: float) -> None:
    """Value and gradient, of the model's weights and the loss's own, are those of the kept elements alone."""
    loss, (inputs, weights, targets, mask) = REAL[name], setup(16, 3)
    criterion = AverageTopKLoss(loss, fraction=0.4)
    expected = criterion((inputs @ weights)[mask], targets[mask])
    poison = torch.zeros_like(targets).masked_fill(~mask, garbage)
    outputs = inputs @ weights
    if where == "outputs":
        outputs = outputs * (1 + poison) if garbage == 0 else torch.where(mask, outputs, outputs.sign() * poison)
    else:
        targets = torch.where(mask, targets, poison)
    value = criterion(outputs, targets, mask=mask)
    torch.testing.assert_close(value, expected)
    leaves = [weights]
    torch.testing.assert_close(gradients(loss, value, leaves), gradients(loss, expected, leaves))


@pytest.mark.parametrize("name", REAL)
def test_what_is_omitted_never_matters(name: str) -> None:
    loss, (inputs, weights, targets, kept) = REAL[name], setup(16, 3)
    criterion = AverageTopKLoss(loss, fraction=0.4, nan_policy="omit")
    selection = criterion.select(inputs @ weights, targets.masked_fill(~kept, math.nan))
    expected = criterion((inputs @ weights)[kept], targets[kept])
    torch.testing.assert_close(selection.value, expected)
    torch.testing.assert_close(gradients(loss, selection.value, [weights]), gradients(loss, expected, [weights]))
    assert selection.omitted == (~kept).sum()
    assert torch.equal(selection.mass > 0, kept)


@pytest.mark.parametrize("policy", ["propagate", "omit"])
@pytest.mark.parametrize("name", ["mse", "bce by hand", "learned", "exponential"])
def test_a_compiled_step_and_a_second_derivative_keep_the_law(name: str, policy: Any) -> None:
    loss, (inputs, weights, targets, mask) = REAL[name], setup(16, 3)
    criterion = AverageTopKLoss(loss, fraction=0.4, nan_policy=policy)
    poisoned, beside = targets.masked_fill(~mask, math.nan), {} if policy == "omit" else {"mask": mask}
    expected = gradients(loss, criterion((inputs @ weights)[mask], targets[mask]), [weights])
    torch._dynamo.reset()

    def step(weights: Tensor, targets: Tensor, **beside: Tensor) -> Tensor:
        value: Tensor = criterion(inputs @ weights, targets, **beside)
        return value

    for one in (step, torch.compile(step, fullgraph=True, backend="aot_eager")):
        value = one(weights, poisoned, **beside)
        torch.testing.assert_close(gradients(loss, value, [weights]), expected)
    value = criterion(inputs @ weights, poisoned, **beside)
    (first,) = torch.autograd.grad(value, weights, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), weights, allow_unused=True, materialize_grads=True)
    assert second.isfinite().all()


@pytest.mark.parametrize(
    ("loss", "outputs_of"),
    [
        (nn.NLLLoss(reduction="none"), lambda outputs: outputs.log_softmax(1)),
        (functools.partial(F.nll_loss, reduction="none", weight=WEIGHT), lambda outputs: outputs.log_softmax(1)),
        (nn.MultiMarginLoss(reduction="none"), lambda outputs: outputs),
        (lambda outputs, targets: F.cross_entropy(outputs, targets, reduction="none"), lambda outputs: outputs),
        (nn.CrossEntropyLoss(reduction="none"), lambda outputs: outputs),
    ],
)
@pytest.mark.parametrize("label", [255, -1, 5])
def test_labels_and_logits_that_do_not_count_never_matter(loss: Any, outputs_of: Any, label: int) -> None:
    outputs, targets = logits(12, 5), labels(12, ignored=0)
    mask = torch.arange(12) % 3 > 0
    criterion = AverageTopKLoss(loss, fraction=0.4)
    expected = criterion(outputs_of(outputs)[mask], targets[mask])
    for counted in ({"mask": mask}, {"sample_weight": mask.double()}):
        poisoned = outputs_of(outputs).masked_fill(~mask[:, None], math.nan)
        assert_same(criterion(poisoned, targets.masked_fill(~mask, label), **counted), expected, outputs)


def test_a_label_that_counts_and_is_no_class_stays_the_losss_own_error() -> None:
    criterion = AverageTopKLoss(nn.NLLLoss(reduction="none"), fraction=1)
    with pytest.raises((IndexError, RuntimeError)):
        criterion(logits(3, 5), torch.tensor([0, 1, 7]), mask=torch.tensor([False, True, True]))


def test_a_nan_that_counts_stays_visible() -> None:
    criterion = AverageTopKLoss(lambda outputs, targets: (outputs - targets).abs(), k=1)
    targets = torch.tensor([math.nan, math.nan, 0.0])
    assert criterion(torch.ones(3), targets, mask=torch.tensor([True, False, True])).isnan()
    assert criterion(torch.ones(3), targets, mask=torch.tensor([False, False, True])) == 1


def test_samples_and_rows_keep_the_law() -> None:
    """A sample of mass 0, a pixel of a sample, and a loss that has one number for a row."""
    inputs, weights, targets, mask = setup(8, 6)
    for loss in (nn.MSELoss(reduction="none"), binary):
        criterion = AverageTopKLoss(loss, fraction=0.5, level="sample")
        mass = torch.tensor([1.0, 0, 1, 1, 0, 1, 1, 1])
        poisoned = targets.masked_fill(~mask, math.nan).masked_fill((mass == 0)[:, None], math.nan)
        value = criterion(inputs @ weights, poisoned, mask=mask, sample_weight=mass)
        expected = criterion((inputs @ weights)[mass > 0], targets[mass > 0], mask=mask[mass > 0])
        assert_same(value, expected, weights)
    rows = AverageTopKLoss(lambda outputs, targets: (outputs - targets).square().mean(1), fraction=0.5)
    counted = torch.arange(8) % 2 == 0
    value = rows(inputs @ weights, targets.masked_fill(~counted[:, None], math.nan), mask=counted)
    assert_same(value, rows((inputs @ weights)[counted], targets[counted]), weights)


@pytest.mark.parametrize("garbage", [math.nan, math.inf, 7.0, -1.0])
@pytest.mark.parametrize(
    "loss", [nn.BCELoss(reduction="none"), functools.partial(F.binary_cross_entropy, reduction="none")]
)
def test_torchs_bce_does_not_see_what_it_would_refuse(loss: Any, garbage: float) -> None:
    inputs, weights, targets, kept = setup(16, 3)
    probabilities = (inputs @ weights).sigmoid()
    expected = AverageTopKLoss(loss, fraction=0.4)(probabilities[kept], targets[kept])
    poisoned = probabilities.masked_fill(~kept, garbage), targets.masked_fill(~kept, garbage)
    assert_same(AverageTopKLoss(loss, fraction=0.4)(*poisoned, mask=kept), expected, weights)
    if math.isnan(garbage):
        selection = AverageTopKLoss(loss, fraction=0.4, nan_policy="omit").select(*poisoned)
        assert_same(selection.value, expected, weights)
        assert selection.omitted == (~kept).sum()
        with pytest.raises(RuntimeError, match="between 0 and 1"):
            AverageTopKLoss(loss, fraction=0.4)(*poisoned)


def test_scores_that_are_nan_omit_and_leave_no_trace() -> None:
    inputs, weights, targets, kept = setup(8, 3)
    criterion = AverageTopKLoss(nn.MSELoss(reduction="none"), fraction=0.5, nan_policy="omit")
    scores = targets.masked_fill(~kept, math.nan)
    value = criterion(inputs @ weights, scores.clone(), scores=scores)
    expected = criterion((inputs @ weights)[kept], targets[kept], scores=targets[kept])
    assert_same(value, expected, weights)


def smoothness(outputs: Tensor, targets: Tensor) -> Tensor:
    """Of windows: each number mixes three neighbours."""
    return F.avg_pool1d((outputs - targets).square().unsqueeze(1), 3, stride=1, padding=1).squeeze(1)


def test_a_loss_of_windows_keeps_its_value_where_its_inputs_are_finite() -> None:
    inputs, weights, targets, mask = setup(8, 6)
    expected = smoothness(inputs @ weights, targets)[mask].mean()
    assert_same(AverageTopKLoss(smoothness, fraction=1)(inputs @ weights, targets, mask=mask), expected, weights)


def test_what_cannot_be_traced_to_the_inputs_is_said() -> None:
    def pairs(outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs[:, 1:] - targets[:, 1:] - outputs[:, :-1]).square()

    outputs, mask = logits(4, 6), torch.ones(4, 5, dtype=torch.bool)
    mask[0, 0] = False
    criterion = AverageTopKLoss(pairs, fraction=1)
    assert criterion(outputs, torch.zeros(4, 6), mask=mask).isfinite()
    targets = torch.zeros(4, 6)
    targets[0, 1] = math.nan
    with pytest.raises(ValueError, match=r"of shape \(4, 5\) of outputs of shape \(4, 6\).*Replace it before"):
        criterion(outputs, targets, mask=mask)
    with torch.no_grad():
        assert criterion(outputs, targets, mask=mask).isfinite()


@pytest.mark.parametrize("kind", [tuple, list, lambda pair: dict(zip(("mean", "variance"), pair, strict=True))])
def test_outputs_of_several_tensors_keep_the_law(kind: Any) -> None:
    """A mean and a variance, for the Gaussian likelihood."""
    inputs, weights, targets, kept = setup(16, 6)

    def gaussian(outputs: Any, targets: Tensor) -> Tensor:
        mean, variance = outputs.values() if isinstance(outputs, dict) else outputs
        return F.gaussian_nll_loss(mean, targets, variance.exp(), reduction="none")

    def outputs(rows: Any = ...) -> Any:
        every = inputs @ weights
        return kind([every[:, :3][rows], every[:, 3:][rows]])

    kept, targets = kept[:, :3], targets[:, :3]
    poisoned = targets.masked_fill(~kept, math.nan)
    expected = AverageTopKLoss(gaussian, fraction=0.4)(outputs(kept), targets[kept])
    assert_same(AverageTopKLoss(gaussian, fraction=0.4)(outputs(), poisoned, mask=kept), expected, weights)
    assert_same(AverageTopKLoss(gaussian, fraction=0.4, nan_policy="omit")(outputs(), poisoned), expected, weights)


@pytest.mark.parametrize("garbage", [math.nan, 77.0, 0.0])
@pytest.mark.parametrize("loss", [hinge_loss, squared_hinge_loss, logistic_loss, nn.SoftMarginLoss(reduction="none")])
def test_a_loss_of_margins_does_not_see_labels_that_do_not_count(loss: Any, garbage: float) -> None:
    inputs, weights, targets, mask = setup(16, 3)
    signs = torch.where(targets > 0.5, 1.0, -1.0).double()
    expected = AverageTopKLoss(loss, fraction=0.4)((inputs @ weights)[mask], signs[mask])
    criterion = AverageTopKLoss(loss, fraction=0.4)
    assert_same(criterion(inputs @ weights, signs.masked_fill(~mask, garbage), mask=mask), expected, weights)
    if not math.isnan(garbage):
        whole = signs.long().masked_fill(~mask, int(garbage))
        assert_same(criterion(inputs @ weights, whole, mask=mask), expected, weights)


def test_class_weights_in_a_list() -> None:
    outputs, targets = logits(8, 5), labels(8, ignored=0.3, ignore_index=-100)
    weight: Any = [0.5, 1.0, 2.0, 0.0, 7.0]
    theirs = F.cross_entropy(outputs, targets, weight=torch.tensor(weight, dtype=torch.float64))
    loss = functools.partial(F.cross_entropy, reduction="none", weight=weight)
    assert_same(AverageTopKLoss(loss, fraction=1)(outputs, targets), theirs, outputs)


# Shapes


@pytest.mark.parametrize(
    ("outputs", "targets", "hint"),
    [
        ((8, 1), (8,), r"outputs\[:, 0\], or targets.unsqueeze\(1\)"),
        ((8,), (8, 1), r"targets\[:, 0\], or outputs.unsqueeze\(1\)"),
        ((4, 1, 6, 6), (4, 6, 6), r"outputs\[:, 0\]"),
        ((4, 6, 6), (4, 1, 6, 6), r"targets\[:, 0\]"),
        ((8, 8), (8,), r"targets.expand_as\(outputs\)"),
        ((8,), (1,), r"targets.expand_as\(outputs\)"),
        ((8, 3), (3,), r"targets.expand_as\(outputs\)"),
    ],
)
@pytest.mark.parametrize("loss", [torch.sub, nn.L1Loss(reduction="none"), nn.SmoothL1Loss(reduction="none")])
@pytest.mark.filterwarnings("ignore:Using a target size:UserWarning")
def test_a_broadcast_is_refused(loss: Any, outputs: tuple[int, ...], targets: tuple[int, ...], hint: str) -> None:
    with pytest.raises(ValueError, match=rf"must have the same shape for this loss; got .* losses\. .*{hint}"):
        AverageTopKLoss(loss, fraction=0.5)(torch.zeros(outputs), torch.ones(targets))


def test_shapes_that_differ_for_a_reason_are_taken() -> None:
    zeros = torch.zeros
    assert AverageTopKLoss(torch.sub, k=1)(zeros(1, 1), zeros(1)) == 0
    assert AverageTopKLoss(torch.sub, k=1)(zeros(3, 4), torch.tensor(1.0)) == -1
    assert AverageTopKLoss(nn.MultiMarginLoss(reduction="none"), k=1)(zeros(3, 3), torch.tensor([0, 1, 2])) > 0
    one_hot = AverageTopKLoss(lambda o, t: (o - F.one_hot(t, 3)).abs(), fraction=1)
    torch.testing.assert_close(one_hot(zeros(3, 3), torch.tensor([0, 1, 2])), torch.tensor(1 / 3))


def test_samples_must_be_told_apart_by_the_losses() -> None:
    flat = AverageTopKLoss(lambda o, t: (o - t).abs().flatten(), fraction=0.5, within="sample")
    with pytest.raises(ValueError, match=r"examples in their first dimension.*shape \(12,\) for outputs of shape"):
        flat(torch.zeros(3, 4), torch.zeros(3, 4))


def test_flat_losses_take_a_mask_of_the_targets() -> None:
    criterion = AverageTopKLoss(lambda o, t: (o - t).abs().flatten(), fraction=1)
    mask = torch.tensor([[True, False], [False, True]])
    targets = torch.tensor([[1.0, math.nan], [math.nan, 3.0]])
    assert criterion(torch.zeros(2, 2), targets, mask=mask) == 2
    assert criterion(torch.zeros(2, 2), targets, mask=mask.flatten()) == 2


def test_an_ignored_value_that_may_be_a_channel_is_refused() -> None:
    class Channels(nn.Module):
        ignore_index = 1

        def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
            return outputs - targets

    with pytest.raises(ValueError, match=r"`ignore_index` of the loss must be no channel.*got 1.*`mask`"):
        AverageTopKLoss(Channels(), fraction=1)(torch.zeros(2, 3), torch.ones(2, 3))
    assert AverageTopKLoss(Channels(), fraction=1)(torch.ones(3), torch.tensor([1.0, 0.0, 3.0])) == -0.5


# What a loss holds


class Held(nn.Module):
    """A module around another loss, as that of many code bases."""

    def __init__(self, loss: Any, shift: int = 0) -> None:
        super().__init__()
        self.loss, self.shift = loss, shift

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return self.loss(outputs, targets + self.shift)  # type: ignore[no-any-return]


GLOBAL = nn.CrossEntropyLoss(reduction="none", ignore_index=0)


def calls_a_global(outputs: Tensor, targets: Tensor) -> Tensor:
    return GLOBAL(outputs, targets)  # type: ignore[no-any-return]


class Object:
    """What is no module, and can be called."""

    def __init__(self, loss: Any) -> None:
        self.loss = loss

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return self.loss(outputs, targets)  # type: ignore[no-any-return]


def around(loss: Any) -> dict[str, Any]:
    """What calls a loss, and shows that it does."""

    def inner(outputs: Tensor, targets: Tensor) -> Tensor:
        return loss(outputs, targets)  # type: ignore[no-any-return]

    with warnings.catch_warnings(action="ignore", category=FutureWarning):  # of torch.jit
        scripted = torch.jit.script(loss)
    return {
        "lambda": lambda outputs, targets: loss(outputs, targets),
        "function in a function": lambda outputs, targets: inner(outputs, targets),
        "module": Held(Held(loss)),
        "method": Held(loss).__call__,
        "parallel": nn.DataParallel(loss),
        "object": Object(loss),
        "partial": functools.partial(lambda own, outputs, targets: own(outputs, targets), loss),
        "scripted": scripted,
    }


AROUND = list(around(GLOBAL))


@pytest.mark.parametrize("name", AROUND)
@pytest.mark.parametrize("ignored", [0, 255])
@pytest.mark.parametrize("kind", [nn.CrossEntropyLoss, nn.NLLLoss])
def test_the_label_that_a_held_loss_ignores_is_not_counted(kind: Any, ignored: int, name: str) -> None:
    """Also where it is a class, at which the loss of 0 would be counted unseen."""
    outputs, targets = logits(4, 5, 6), labels(4, 6, ignore_index=ignored)
    criterion = AverageTopKLoss(around(kind(reduction="none", ignore_index=ignored))[name], fraction=1)
    given = outputs.log_softmax(1) if kind is nn.NLLLoss else outputs
    assert_same(criterion(given, targets), F.cross_entropy(outputs, targets, ignore_index=ignored), outputs)


def test_a_function_shows_what_it_calls_of_its_module() -> None:
    outputs, targets = logits(4, 5, 6), labels(4, 6, ignore_index=0)
    theirs = F.cross_entropy(outputs, targets, ignore_index=0)
    assert_same(AverageTopKLoss(calls_a_global, fraction=1)(outputs, targets), theirs, outputs)


@pytest.mark.parametrize("name", AROUND)
def test_class_weights_of_a_held_loss_are_refused_by_name(name: str) -> None:
    """Its mean divides by their sum, of which a function of it says nothing."""
    loss = around(nn.CrossEntropyLoss(reduction="none", weight=WEIGHT))[name]
    with pytest.raises(ValueError, match=r"weigh classes.*sample_weight"):
        AverageTopKLoss(loss, fraction=1)
    outputs, targets = logits(4, 5, 6), labels(4, 6, ignored=0)
    plain = AverageTopKLoss(around(nn.CrossEntropyLoss(reduction="none"))[name], fraction=1)
    theirs = F.cross_entropy(outputs, targets, weight=WEIGHT)
    assert_same(plain(outputs, targets, sample_weight=WEIGHT[targets]), theirs, outputs)


def test_a_held_loss_that_is_given_other_labels_is_refused() -> None:
    criterion = AverageTopKLoss(Held(nn.CrossEntropyLoss(reduction="none", ignore_index=0), shift=1), fraction=1)
    outputs, targets = logits(8, 5), torch.tensor([0, 1, 2, 3, -1, 0, 1, 2])
    with pytest.raises(ValueError, match="which holds a loss with ignore_index=0"):
        criterion(outputs, targets)
    criterion.loss.ignore_index = -1  # type: ignore[union-attr]
    theirs = F.cross_entropy(outputs, targets + 1, ignore_index=0)
    assert_same(criterion(outputs, targets), theirs, outputs)


def test_a_target_that_is_nan_is_omitted_though_the_loss_is_a_number() -> None:
    """A comparison makes a label of it: torch's hinge embedding, and many a focal loss."""

    def compared(outputs: Tensor, targets: Tensor) -> Tensor:
        return torch.where(targets == 1, -outputs, outputs).exp()

    outputs, known = logits(6, 4), torch.rand(6, 4, generator=torch.Generator().manual_seed(2)) > 0.4
    targets = torch.where(outputs.detach() > 0, 1.0, -1.0)
    for loss in (nn.HingeEmbeddingLoss(reduction="none"), compared):
        criterion = AverageTopKLoss(loss, fraction=1, nan_policy="omit")
        theirs = loss(outputs, targets)[known].mean()
        given = torch.where(known, targets, torch.nan)
        assert_same(criterion(outputs, given), theirs, outputs)
        leaf = outputs.detach().requires_grad_()
        value = torch.compile(criterion, backend="aot_eager")(leaf, given)
        value.backward()  # once: what is compiled may free what it saved
        torch.testing.assert_close(value, theirs)
        torch.testing.assert_close(leaf.grad, torch.autograd.grad(theirs, outputs, retain_graph=True)[0])


# Losses that are wrong for the shapes they get


def unreduced(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs, targets, reduction="none")


@pytest.mark.parametrize(
    "loss",
    [unreduced, nn.NLLLoss(reduction="none"), nn.MultiMarginLoss(reduction="none"), nn.CrossEntropyLoss()],
    ids=named,
)
@pytest.mark.parametrize("shape", [(8, 1), (8, 1, 3)], ids=str)
def test_one_channel_is_not_0_in_silence(loss: Any, shape: tuple[int, ...]) -> None:
    targets = torch.zeros(shape[0], *shape[2:], dtype=torch.long)
    if isinstance(loss, nn.MultiMarginLoss) and len(shape) > 2:
        return
    whole = getattr(loss, "reduction", "none") == "mean"
    criterion = CompoundLoss([loss]) if whole else AverageTopKLoss(loss, fraction=1)
    with pytest.raises(ValueError, match=r"two classes or more.*BCEWithLogitsLoss"):
        criterion(logits(*shape), targets)


def test_a_loss_of_one_channel_that_is_0_for_its_outputs_is_taken() -> None:
    """One that is right everywhere, and one of a batch in which nothing counts."""
    outputs, targets = logits(8, 1).detach() - 9, torch.zeros(8, 1, dtype=torch.long)
    assert AverageTopKLoss(lambda o, t: (1 + o * (1 - 2 * t)).relu(), fraction=1)(outputs, targets) == 0

    def ignoring(outputs: Tensor, targets: Tensor) -> Tensor:
        return outputs.exp() * (targets != -1)

    assert AverageTopKLoss(ignoring, fraction=1)(outputs, targets - 1) == 0
    with pytest.raises(ValueError, match=r"classes in \[0, 2\) where counted; got -1"):
        AverageTopKLoss(ignoring, fraction=1)(outputs, torch.tensor([0, 1, -1, 0] * 2)[:, None])


@pytest.mark.parametrize("labels", [(0, 1), (-1, 1)])
def test_a_label_of_one_logit_may_cost_nothing(labels: tuple[int, int]) -> None:
    """Beside one channel, 1 and -1 are labels, of which a margin may be kept."""
    outputs, targets = logits(8, 1), torch.tensor([*labels] * 4)[:, None]
    far = torch.where(targets == 1, 9 + outputs, outputs)

    def hinge(outputs: Tensor, targets: Tensor) -> Tensor:
        return (1 - outputs * torch.where(targets == 1, 1, -1)).relu()

    expected = hinge(far, targets).mean()
    assert_same(AverageTopKLoss(hinge, fraction=1)(far, targets), expected, outputs)


@pytest.mark.parametrize(
    "loss",
    [
        lambda outputs, targets: ((outputs - targets) ** 2).sum(-1),
        lambda outputs, targets: (outputs - targets).abs().mean(1),
        lambda outputs, targets: (outputs - targets).abs().flatten(),
    ],
)
@pytest.mark.parametrize("number", [2, 8])
def test_a_broadcast_that_is_reduced_again_is_refused(loss: Any, number: int) -> None:
    outputs, targets = logits(number, 1), logits(number).detach() + 1
    criterion = AverageTopKLoss(loss, fraction=1)
    with pytest.raises(ValueError, match=r"same shape for this loss.*outputs\[:, 0\], or targets\.unsqueeze\(1\)"):
        criterion(outputs, targets)
    theirs = loss(outputs, targets[:, None]).mean()
    assert_same(criterion(outputs, targets.unsqueeze(1)), theirs, outputs)


def test_a_loss_that_fits_the_shapes_itself_is_taken() -> None:
    outputs, targets = logits(8, 1), logits(8).detach().sigmoid()
    criterion = AverageTopKLoss(lambda o, t: F.binary_cross_entropy_with_logits(o[:, 0], t, reduction="none"), k=8)
    assert_same(criterion(outputs, targets), F.binary_cross_entropy_with_logits(outputs[:, 0], targets), outputs)


@pytest.mark.filterwarnings("ignore:Using a target size:UserWarning")
@pytest.mark.parametrize(
    "loss", [nn.MSELoss(), nn.PoissonNLLLoss(), F.huber_loss, functools.partial(F.l1_loss)], ids=named
)
def test_a_part_of_a_sum_does_not_broadcast(loss: Any) -> None:
    outputs, targets = logits(8, 1), logits(8).detach()
    with pytest.raises(ValueError, match=r"\(8, 1\) and \(8,\), which it broadcasts to \(8, 8\)"):
        CompoundLoss([loss])(outputs, targets)
    assert_same(CompoundLoss([loss])(outputs[:, 0], targets), loss(outputs[:, 0], targets), outputs)


def test_positives_of_probabilities_have_to_be_given() -> None:
    loss, targets = nn.CrossEntropyLoss(reduction="none"), logits(4, 5).detach().softmax(1)
    with pytest.raises(ValueError, match=r"`positives` must be given beside targets that are probabilities"):
        HardNegativeLoss(loss)(logits(4, 5), targets)


def test_the_way_out_of_a_mask_of_rows_is_no_mask_of_columns() -> None:
    outputs, mask = logits(4, 4), torch.tensor([True, False, True, True])
    criterion = AverageTopKLoss(nn.L1Loss(reduction="none"), fraction=1)
    with pytest.raises(ValueError, match=r"Pass mask\[:, None\]\.expand\(4, 4\)\."):
        criterion(outputs, outputs.detach() * 2, mask=mask)
    theirs = F.l1_loss(outputs[mask], outputs[mask].detach() * 2)
    assert_same(criterion(outputs, outputs.detach() * 2, mask=mask[:, None].expand(4, 4)), theirs, outputs)


def test_an_attribute_is_found_wherever_a_module_keeps_it() -> None:
    outputs, targets = logits(8, 5), labels(8, ignored=0)

    class Derived(nn.CrossEntropyLoss):
        reduction = property(lambda self: "none", lambda self, value: None)  # type: ignore[assignment]

    loss = Derived()
    loss.weight = nn.Parameter(WEIGHT, requires_grad=False)
    theirs = F.cross_entropy(outputs, targets, weight=WEIGHT)
    assert_same(AverageTopKLoss(loss, fraction=1)(outputs, targets), theirs, outputs)


@pytest.mark.parametrize("loss", [nn.MSELoss(reduction="none"), lambda outputs, targets: (outputs - targets).square()])
def test_an_infinite_loss_that_is_not_selected_costs_nothing(loss: Any) -> None:
    outputs = torch.tensor([1.0, 2.0, 3.0, 4.0], requires_grad=True)
    criterion = AverageRankedRangeLoss(loss, k=2, drop=1)
    value = criterion(outputs, torch.tensor([0.0, 0.0, torch.inf, 0.0]))
    (gradient,) = torch.autograd.grad(value, outputs, create_graph=True)
    assert value.item() == (16 + 4) / 2
    assert gradient.tolist() == [0.0, 2.0, 0.0, 4.0]
    (second,) = torch.autograd.grad(gradient.sum(), outputs)
    assert second.tolist() == [0.0, 1.0, 0.0, 1.0]
    selected = AverageTopKLoss(loss, k=1)(outputs, torch.tensor([0.0, 0.0, torch.inf, 0.0]))
    assert selected.item() == torch.inf  # an infinite loss is a loss
