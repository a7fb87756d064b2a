"""A step without the backward pass of easy examples: the gradient of the whole batch, and nothing else touched."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.steps import CRITERIA, Net, difference, problem, trained
from topkloss import (
    AverageTopKCrossEntropyLoss,
    AverageTopKLoss,
    CompoundLoss,
    DualAverageTopKLoss,
    SelectiveStep,
)
from topkloss.base.processes import WORLD
from topkloss.loop.selective import MOST_THAT_PAYS
from topkloss.losses import cross_entropy

pytestmark = pytest.mark.filterwarnings("ignore:`fraction` should be at most")

HARDEST = AverageTopKCrossEntropyLoss(fraction=0.25)


def data(number: int = 16, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.randn(number, 4, dtype=dtype), torch.randint(3, (number,))


def linear(dtype: torch.dtype = torch.float64) -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)).to(dtype)


def gradients(*modules: nn.Module) -> list[Tensor]:
    found = [parameter.grad for module in modules for parameter in module.parameters()]
    assert all(one is not None for one in found)
    return [one.clone() for one in found if one is not None]


def whole(model: nn.Module, criterion: nn.Module, *batch: Tensor) -> list[Tensor]:
    """The gradient that a step must have."""
    model.zero_grad()
    criterion.zero_grad()
    criterion(model(batch[0]), batch[1]).backward()
    found = gradients(model, criterion)
    model.zero_grad()
    criterion.zero_grad()
    return found


class Watched(nn.Module):
    """Notes how many examples each forward pass has, and whether it is one for a backward pass."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.passes: list[tuple[int, bool]] = []

    def forward(self, inputs: Tensor) -> Any:
        self.passes.append((len(inputs), torch.is_grad_enabled()))
        return self.model(inputs)

    def with_gradient(self) -> int:
        """Examples that went through a forward pass for a backward pass."""
        return sum(number for number, gradient in self.passes if gradient)


# The gradient.


@pytest.mark.parametrize("micro_batch", [1, 5, 12, 100])
@pytest.mark.parametrize("name", CRITERIA)
def test_trains_as_the_whole_batch_does(name: str, micro_batch: int) -> None:
    assert difference(trained(name, (0, 12), micro_batch=micro_batch), trained(name, (0, 12))) < 1e-12


def test_only_what_is_selected_goes_backward_in_micro_batches() -> None:
    model = Watched(linear())
    inputs, targets = data(40)
    stepped = SelectiveStep(model, HARDEST, micro_batch=6)(inputs, targets)
    ranking, training = model.passes[:7], model.passes[7:]
    assert [number for number, _ in ranking] == [5, 6, 6, 5, 6, 6, 6]
    assert not any(gradient for _, gradient in ranking)
    assert training == [(5, True), (5, True)]
    assert (stepped.examples, stepped.backpropagated) == (40, 10)
    selection = HARDEST.select(model(inputs), targets)
    assert torch.equal(stepped.selection.kept, selection.kept)
    torch.testing.assert_close(stepped.loss, selection.value.detach())
    assert not stepped.loss.requires_grad
    assert not stepped.selection.value.requires_grad


def test_the_memory_is_that_of_a_micro_batch() -> None:
    """What autograd keeps for the backward pass at any one time."""

    def most_kept(step: Callable[[], object]) -> int:
        kept = most = 0

        class Kept:
            def __init__(self, tensor: Tensor) -> None:
                nonlocal kept, most
                self.tensor = tensor.detach()
                kept += tensor.numel()
                most = max(most, kept)

            def __del__(self) -> None:
                nonlocal kept
                kept -= self.tensor.numel()

        with torch.autograd.graph.saved_tensors_hooks(Kept, lambda one: one.tensor):
            step()
        return most

    model = Net(scales=1).double()
    images, labels = problem()
    criterion = CRITERIA["of samples"](None)
    step = SelectiveStep(model, criterion, micro_batch=1)  # type: ignore[arg-type]
    of_one = most_kept(lambda: criterion(model(images[:1]), labels[:1]).backward())
    of_step = most_kept(lambda: step(images, labels))
    of_all = most_kept(lambda: criterion(model(images), labels).backward())
    assert of_all > 8 * of_one
    assert of_step < 1.5 * of_one


def test_an_example_is_selected_if_any_of_its_pixels_is() -> None:
    images, labels = problem()
    model, criterion = Net(scales=1).double(), CRITERIA["top-k of k"](None)
    stepped = SelectiveStep(model, criterion, micro_batch=12)(images, labels)  # type: ignore[arg-type]
    some = stepped.selection.kept.flatten(1).any(1)
    assert stepped.backpropagated == int(some.sum()) < 12


def test_of_a_sum_an_example_is_selected_if_any_part_selects_it() -> None:
    inputs, targets = data()
    hardest, easiest = AverageTopKCrossEntropyLoss(k=2), AverageTopKLoss(lambda *given: -brier(*given), k=3)
    model, criterion = linear(), CompoundLoss([hardest, easiest], weights=[1.0, 0.5])
    expected = whole(model, criterion, inputs, targets)
    stepped = SelectiveStep(model, criterion, micro_batch=16)(inputs, targets)
    torch.testing.assert_close(gradients(model), expected, rtol=1e-12, atol=1e-14)
    assert stepped.backpropagated == 5
    assert [int(one.kept.sum()) for one in stepped.selection] == [2, 3]


def brier(outputs: Tensor, targets: Tensor) -> Tensor:
    """A loss of the caller, one number per example."""
    return (outputs - F.one_hot(targets, 3)).square().mean(1)


def test_mask_and_sample_weight_count_as_in_the_criterion() -> None:
    inputs, targets = data()
    model, weight = linear(), torch.rand(16)
    mask = torch.arange(16) % 3 > 0
    HARDEST(model(inputs), targets, mask=mask, sample_weight=weight).backward()
    expected = gradients(model)
    model.zero_grad()
    stepped = SelectiveStep(model, HARDEST, micro_batch=5)(inputs, targets, mask=mask, sample_weight=weight)
    torch.testing.assert_close(gradients(model), expected, rtol=1e-12, atol=1e-14)
    assert not (stepped.selection.kept & ~mask).any()


def test_takes_what_the_model_takes() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = linear()

        def forward(self, first: Tensor, second: Tensor, scale: float = 1.0) -> Tensor:
            return self.body(first + second) * scale  # type: ignore[no-any-return]

    (inputs, targets), model = data(), Two()
    losses = [
        SelectiveStep(model, HARDEST, micro_batch=5)(given, targets).loss
        for given in ((inputs, inputs), [inputs, inputs, 2.0], {"first": inputs, "second": inputs, "scale": 2.0})
    ]
    assert losses[1] == losses[2] != losses[0]


@pytest.mark.parametrize("number", [0, 5])
def test_with_nothing_counted_gradients_are_zero_and_not_none(number: int) -> None:
    model, (inputs, _) = linear(), data(number)
    stepped = SelectiveStep(model, HARDEST, micro_batch=2)(inputs, torch.full((number,), -100))
    assert (stepped.loss.item(), stepped.examples, stepped.backpropagated) == (0, number, 0)
    assert all(not one.any() for one in gradients(model))


def test_a_nan_shows_in_every_gradient() -> None:
    model, (inputs, targets) = linear(), data()
    inputs[3] = math.nan
    stepped = SelectiveStep(model, HARDEST, micro_batch=4)(inputs, targets)
    assert stepped.loss.isnan()
    assert all(one.isnan().any() for one in gradients(model))


def test_gradients_are_added_to_those_that_are_there() -> None:
    model, (inputs, targets) = linear(), data()
    once = whole(model, HARDEST, inputs, targets)
    step = SelectiveStep(model, HARDEST, micro_batch=7)
    step(inputs, targets)
    step(inputs, targets)
    torch.testing.assert_close(gradients(model), [2 * one for one in once], rtol=1e-12, atol=1e-14)


def test_a_scaled_backward_scales_the_learned_threshold_too() -> None:
    model, (inputs, targets) = linear(), data()
    criterion = DualAverageTopKLoss(brier, fraction=0.3, threshold=0.3).double()
    expected = whole(model, criterion, inputs, targets)
    step = SelectiveStep(model, criterion, micro_batch=5, backward=lambda loss: (loss * 1024).backward())
    stepped = step(inputs, targets)
    torch.testing.assert_close(gradients(model, criterion), [1024 * one for one in expected], rtol=1e-12, atol=1e-14)
    assert 0 < stepped.backpropagated < 16


def test_half_precision_weights_do_not_vanish() -> None:
    """1/k of 200 000 elements is no float16 number."""
    model = nn.Linear(1, 50_000).half()
    inputs, targets = torch.randn(8, 1).half(), torch.zeros(8, 50_000).half()
    criterion = AverageTopKLoss(nn.L1Loss(reduction="none"), fraction=0.5)
    expected = whole(model, criterion, inputs, targets)
    SelectiveStep(model, criterion, micro_batch=3)(inputs, targets)
    for one, other in zip(gradients(model), expected, strict=True):
        assert one.any()
        torch.testing.assert_close(one, other, rtol=1e-2, atol=1e-6)


# What couples examples, and what must not be touched.


def test_ranking_leaves_no_trace_in_batch_normalisation_and_random_state() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3)).double()
    twin = copy.deepcopy(model)
    inputs, targets = data()
    torch.manual_seed(5)
    stepped = SelectiveStep(model, HARDEST, micro_batch=16)(inputs, targets)
    torch.manual_seed(5)
    rows = stepped.selection.kept
    (stepped.selection.weights[rows] * cross_entropy(twin(inputs[rows]), targets[rows])[0]).sum().backward()
    for one, other in zip(model.state_dict().values(), twin.state_dict().values(), strict=True):
        assert torch.equal(one, other)
    assert model.state_dict()["1.num_batches_tracked"] == 1
    torch.testing.assert_close(gradients(model), gradients(twin), rtol=0, atol=0)


def test_a_failure_while_ranking_leaves_no_trace_either() -> None:
    class Breaks(nn.Module):
        def forward(self, inputs: Tensor) -> Tensor:
            raise ZeroDivisionError

    model = nn.Sequential(nn.BatchNorm1d(4), Breaks())
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ZeroDivisionError):
        SelectiveStep(model, HARDEST, micro_batch=4)(*data(dtype=torch.float32))
    assert all(torch.equal(one, before[name]) for name, one in model.state_dict().items())


def test_a_buffer_that_the_forward_pass_makes_is_made_of_the_training_pass() -> None:
    class Remembers(nn.Module):
        def forward(self, inputs: Tensor) -> Tensor:
            self.register_buffer("seen", inputs.detach().mean(0))
            return inputs

    model, (inputs, targets) = nn.Sequential(Remembers(), linear()), data()
    stepped = SelectiveStep(model, HARDEST, micro_batch=16)(inputs, targets)
    torch.testing.assert_close(model.state_dict()["0.seen"], inputs[stepped.selection.kept].mean(0))


def test_batch_normalisation_couples_examples_so_the_gradient_is_another_but_not_in_evaluation() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)).double()
    inputs, targets = data()
    step = SelectiveStep(model, HARDEST, micro_batch=16)
    for training, same in ((True, False), (False, True)):
        model.train(training)
        expected = whole(model, HARDEST, inputs, targets)
        step(inputs, targets)
        close = [torch.allclose(one, other, rtol=1e-9) for one, other in zip(gradients(model), expected, strict=True)]
        assert all(close) == same
        model.zero_grad()


# Which steps skip.


def test_start_end_and_full_every() -> None:
    model = linear()
    step = SelectiveStep(model, HARDEST, micro_batch=4, start=2, end=8, full_every=3)
    shares = [step(*data()).backpropagated for _ in range(10)]
    assert shares == [16, 16, 16, 4, 4, 16, 4, 4, 16, 16]


def test_a_full_step_of_one_micro_batch_is_a_plain_one() -> None:
    model = Watched(linear())
    inputs, targets = data()
    expected = whole(model, HARDEST, inputs, targets)
    model.passes.clear()
    step = SelectiveStep(model, HARDEST, micro_batch=16, start=1)
    stepped = step(inputs, targets)
    assert model.passes == [(16, True)]
    assert stepped.backpropagated == 16
    assert not stepped.selection.value.requires_grad
    assert step.report() == "1 step: 100.0 % of 16 examples back-propagated, about 100 % of the work of full steps."
    torch.testing.assert_close(gradients(model), expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(("micro_batch", "ranked"), [(16, 0), (8, 16)])
def test_where_skipping_cannot_pay_nothing_is_ranked_first_but_to_split_a_batch(micro_batch: int, ranked: int) -> None:
    model, criterion = Watched(linear()), AverageTopKCrossEntropyLoss(fraction=0.7)
    with pytest.warns(UserWarning, match=r"`fraction` should be at most 0.6 .* got 0.7: .* 1.03 of a full step"):
        step = SelectiveStep(model, criterion, micro_batch=micro_batch)
    step(*data())
    assert sum(number for number, gradient in model.passes if not gradient) == ranked
    criterion.fraction = 0.25  # as a schedule does
    step(*data())
    assert model.passes[-1] == (4, True)


def test_says_so_where_a_rounded_corner_gives_all_some_weight() -> None:
    criterion = DualAverageTopKLoss(brier, fraction=0.1, smoothing=0.1)
    with pytest.warns(UserWarning, match="got 1: "):
        SelectiveStep(linear(), criterion, micro_batch=4)


def test_says_nothing_where_it_pays_or_starts_later() -> None:
    mean = AverageTopKCrossEntropyLoss(fraction=1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        SelectiveStep(linear(), CompoundLoss([HARDEST, mean], weights=[1.0, 0.0]), micro_batch=1)
        SelectiveStep(linear(), AverageTopKCrossEntropyLoss(fraction=MOST_THAT_PAYS), micro_batch=1)
        SelectiveStep(linear(), AverageTopKCrossEntropyLoss(fraction=1.0), micro_batch=1, start=100)
        SelectiveStep(linear(), AverageTopKCrossEntropyLoss(k=3), micro_batch=1)


def test_reports_what_was_skipped_and_goes_on_from_a_checkpoint() -> None:
    step = SelectiveStep(linear(), HARDEST, micro_batch=16)
    assert step.report().startswith("0 steps: 0.0 % of 0 examples")
    step(*data())
    step(*data())
    assert step.report() == "2 steps: 25.0 % of 32 examples back-propagated, about 58 % of the work of full steps."
    again = SelectiveStep(linear(), HARDEST, micro_batch=16)
    again.load_state_dict(step.state_dict())
    assert again.report() == step.report()
    with pytest.raises(ValueError, match=r"`state_dict` must hold steps, examples, ranked, backpropagated; got steps"):
        again.load_state_dict({"steps": 1})


# Precision.


def test_ranking_in_bfloat16_selects_nearly_the_same_and_trains_in_full_precision() -> None:
    model, (inputs, targets) = linear(torch.float32), data(256, torch.float32)
    exact = HARDEST.select(model(inputs), targets).kept
    stepped = SelectiveStep(model, HARDEST, micro_batch=64, ranking_dtype=torch.bfloat16)(inputs, targets)
    agreement = (stepped.selection.kept & exact).sum() / exact.sum()
    assert 0.9 <= agreement <= 1
    rows = stepped.selection.kept
    twin = copy.deepcopy(model)
    twin.zero_grad()
    (stepped.selection.weights[rows] * cross_entropy(twin(inputs[rows]), targets[rows])[0]).sum().backward()
    torch.testing.assert_close(gradients(model), gradients(twin))


def test_under_autocast_every_parameter_gets_its_gradient() -> None:
    """The cache of autocast would hand the parameters cast while ranking, which have none, to the training pass."""
    model, (inputs, targets) = linear(torch.float32), data(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        expected = whole(model, HARDEST, inputs, targets)
        SelectiveStep(model, HARDEST, micro_batch=16)(inputs, targets)
    for one, other in zip(gradients(model), expected, strict=True):
        assert one.any()
        torch.testing.assert_close(one, other, rtol=0.05, atol=0.01)


def test_with_channels_last_and_a_compiled_model() -> None:
    torch._dynamo.reset()
    images, labels = problem(torch.float32)
    model, criterion = Net(scales=1), CRITERIA["of samples"](None)
    expected = whole(model, criterion, images, labels)
    compiled = torch.compile(model, backend="eager")
    step = SelectiveStep(compiled, criterion, micro_batch=4)  # type: ignore[arg-type]
    step(images.contiguous(memory_format=torch.channels_last), labels)
    torch.testing.assert_close(gradients(model), expected, rtol=1e-4, atol=1e-6)


def test_numbers_of_numpy_are_numbers() -> None:
    model, inputs, targets = nn.Linear(4, 3), torch.randn(8, 4), torch.randint(3, (8,))
    step = SelectiveStep(model, AverageTopKCrossEntropyLoss(fraction=0.25), micro_batch=np.int64(3))  # type: ignore[arg-type]
    assert step(inputs, targets).backpropagated == 2


# Errors.


class FullyShardedDataParallel(nn.Linear):
    """Named as what must be refused."""


@pytest.mark.parametrize(
    ("model", "criterion", "given", "error", "sentence"),
    [
        (len, HARDEST, {}, TypeError, "`model` must be an nn.Module; got builtin_function_or_method."),
        (
            FullyShardedDataParallel(4, 3),
            HARDEST,
            {},
            ValueError,
            "`model` must have no layer that talks .*; got Fully",
        ),
        (None, nn.CrossEntropyLoss(), {}, TypeError, "`criterion` must be one of topkloss.*; got CrossEntropyLoss."),
        (None, HARDEST, {"micro_batch": 0}, ValueError, "`micro_batch` must be a whole number >= 1; got 0."),
        (None, HARDEST, {"micro_batch": True}, ValueError, "`micro_batch` must be a whole number >= 1; got True."),
        (None, HARDEST, {"start": -1}, ValueError, "`start` must be a whole number >= 0; got -1."),
        (None, HARDEST, {"end": 0.9}, ValueError, "`end` must be a whole number >= 0; got 0.9."),
        (None, HARDEST, {"full_every": "2"}, ValueError, "`full_every` must be a whole number >= 0; got '2'."),
        (None, HARDEST, {"ranking_dtype": torch.float64}, ValueError, "`ranking_dtype` must be .*; got torch.float64."),
        (
            None,
            CompoundLoss([HARDEST, AverageTopKCrossEntropyLoss(k=1, process_group=WORLD)]),
            {},
            ValueError,
            "`criterion` must rank everything with the same processes; got parts with different process_group=.",
        ),
    ],
)
def test_what_cannot_be_is_refused(
    model: Any, criterion: Any, given: dict[str, Any], error: type[Exception], sentence: str
) -> None:
    with pytest.raises(error, match=sentence):
        SelectiveStep(model or linear(), criterion, **{"micro_batch": 4, **given})


@pytest.mark.parametrize(
    ("targets", "came"), [([0, 1], "list"), ({"a": torch.zeros(2)}, "dict"), (torch.tensor(1), "a scalar")]
)
def test_targets_that_cannot_be_cut_are_refused(targets: Any, came: str) -> None:
    with pytest.raises(TypeError, match=f"`targets` must be a tensor with the examples in .* dimension; got {came}\\."):
        SelectiveStep(linear(torch.float32), HARDEST, micro_batch=2)(torch.zeros(2, 4), targets)


def test_masses_beside_a_sum_are_refused() -> None:
    step = SelectiveStep(linear(torch.float32), CompoundLoss([HARDEST, HARDEST]), micro_batch=2)
    with pytest.raises(TypeError, match="`sample_weight` must be None for a CompoundLoss"):
        step(*data(dtype=torch.float32), sample_weight=torch.ones(16))


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (
            (torch.zeros(3, 4), torch.zeros(2).long()),
            r"`inputs\[0\]` and `targets` must have as many examples.*\(3, 4\)",
        ),
        (({"x": torch.zeros(())}, torch.zeros(2).long()), r"`x` and `targets` must have as many examples.*got \(\)"),
    ],
)
def test_tensors_with_other_numbers_of_examples_are_refused(given: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        SelectiveStep(linear(torch.float32), HARDEST, micro_batch=2)(*given)


def test_flat_losses_are_refused() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.Unflatten(1, (2, 3)), nn.Flatten(0, 1))
    criterion = AverageTopKLoss(
        lambda outputs, targets: F.cross_entropy(outputs, targets.flatten(), reduction="none"), k=2
    )
    with pytest.raises(ValueError, match=r"in their first dimension; got losses of shape \(8,\) for 4 examples"):
        SelectiveStep(model, criterion, micro_batch=9)(torch.randn(4, 4), torch.zeros(4, 2).long())
