"""Schedules of the fraction: the values in closed form, a resumed run, what is refused, and training by them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

from topkloss import AverageRankedRangeLoss, AverageTopKCrossEntropyLoss, AverageTopKLoss
from topkloss.loop.schedule import AccuracyFraction, ConstantFraction, CosineFraction, LinearFraction

Schedule = ConstantFraction | LinearFraction | CosineFraction | AccuracyFraction
ENDS = (1.0, 0.7, 0.3, 0.29, 0.1, 1e-4)


def mining(fraction: float = 0.5) -> AverageTopKCrossEntropyLoss:
    return AverageTopKCrossEntropyLoss(fraction=fraction)


def linear(step: int, start: float, end: float, steps: int) -> float:
    return start + (end - start) * min(1.0, step / steps)


def cosine(step: int, start: float, end: float, steps: int) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * min(1.0, step / steps))) / 2


def advance(schedule: Schedule, step: int) -> float:
    """The fraction after a step of a run whose accuracy rises, then falls."""
    if isinstance(schedule, AccuracyFraction):
        schedule.step(1 - abs(step - 12) / 20)
    else:
        schedule.step()
    fraction: float = schedule.criterion.fraction
    return fraction


MAKERS: dict[str, Callable[[Any], Schedule]] = {
    "constant": ConstantFraction,
    "linear": lambda criterion: LinearFraction(criterion, end=0.1, steps=9),
    "cosine": lambda criterion: CosineFraction(criterion, end=0.1, steps=9, start=0.8),
    "accuracy": AccuracyFraction,
}


# values


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("start", ENDS)
@pytest.mark.parametrize(("kind", "formula"), [(LinearFraction, linear), (CosineFraction, cosine)])
def test_a_ramp_has_its_closed_form(
    kind: type[LinearFraction], formula: Callable[..., float], start: float, end: float
) -> None:
    for steps in (1, 2, 7, 30):
        criterion = mining(0.5)
        schedule = kind(criterion, start=start, end=end, steps=steps)
        assert criterion.fraction == start
        for step in range(1, steps + 4):
            schedule.step()
            assert criterion.fraction == pytest.approx(formula(step, start, end, steps), rel=1e-12)
            assert 0 < criterion.fraction <= 1
            assert step < steps or criterion.fraction == end  # not 0.30000000000000004


def test_numbers_of_numpy_are_numbers() -> None:
    schedule = LinearFraction(mining(), end=np.float32(0.5), steps=np.int64(2))  # type: ignore[arg-type]
    schedule.step()
    assert schedule.criterion.fraction == 0.75
    assert [type(number) for number in schedule.state_dict().values()] == [int, float]


def test_linear_is_the_annealing_of_deeplab() -> None:
    """From 100 % to 25 % in 100 000 steps, as its documentation has it."""
    criterion = mining()
    schedule = LinearFraction(criterion, end=0.25, steps=100_000)
    schedule.load_state_dict({"last_step": 49_999, "fraction": 0.6250075})
    schedule.step()
    assert criterion.fraction == 0.625


def test_constant_leaves_the_fraction() -> None:
    criterion = mining(0.3)
    schedule = ConstantFraction(criterion)
    assert [advance(schedule, step) for step in range(3)] == [0.3] * 3
    assert schedule.last_step == 3


@pytest.mark.parametrize(
    ("accuracy", "fraction"),
    [(0.0, 1), (0.799, 1), (0.8, 1 / 2), (0.899, 1 / 2), (0.9, 1 / 4), (0.95, 1 / 8), (0.995, 1 / 16), (1, 1 / 16)],
)  # fmt: skip
def test_accuracy_follows_ordered_sgd(accuracy: float, fraction: float) -> None:
    criterion = mining()
    schedule = AccuracyFraction(criterion)
    assert criterion.fraction == 1
    schedule.step(accuracy)
    assert criterion.fraction == fraction


def test_accuracy_never_makes_the_fraction_larger_again() -> None:
    criterion = mining()
    schedule = AccuracyFraction(criterion)
    seen = []
    for accuracy in (0.5, 0.85, 0.6, 0.96, 0.91, 0.0, 0.999, 0.1):
        schedule.step(accuracy)
        seen.append(criterion.fraction)
    assert seen == [1, 0.5, 0.5, 0.125, 0.125, 0.125, 0.0625, 0.0625]


def test_accuracy_takes_other_levels_in_any_order() -> None:
    criterion = mining()
    schedule = AccuracyFraction(criterion, levels=[(0.7, 0.2), (0.5, 0.6), (0.1, 0.9)], start=0.8)
    seen = []
    for accuracy in (0.2, 0.5, 0.7):
        schedule.step(accuracy)
        seen.append(criterion.fraction)
    assert seen == [0.8, 0.6, 0.2]


# resuming


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("stop", [0, 1, 5, 9, 14])
def test_a_resumed_run_equals_an_uninterrupted_one(name: str, stop: int) -> None:
    whole = MAKERS[name](mining())
    uninterrupted = [advance(whole, step) for step in range(20)]
    first = MAKERS[name](mining())
    begun = [advance(first, step) for step in range(stop)]
    text = json.dumps(first.state_dict())
    criterion = mining(0.77)
    second = MAKERS[name](criterion)
    second.load_state_dict(json.loads(text))
    assert criterion.fraction == first.criterion.fraction
    assert begun + [advance(second, step) for step in range(stop, 20)] == uninterrupted
    assert second.state_dict() == whole.state_dict()


@pytest.mark.parametrize("name", MAKERS)
def test_the_state_is_plain_numbers_and_safe_to_load(name: str, tmp_path: Path) -> None:
    schedule = MAKERS[name](mining())
    advance(schedule, 8)
    assert {key: type(value) for key, value in schedule.state_dict().items()} == {"last_step": int, "fraction": float}
    torch.save(schedule.state_dict(), tmp_path / "state.pt")
    assert torch.load(tmp_path / "state.pt", weights_only=True) == schedule.state_dict()


# errors


@pytest.mark.parametrize(
    ("make", "error", "sentence"),
    [
        (lambda: ConstantFraction(AverageTopKCrossEntropyLoss(k=5)), TypeError,
         "`criterion` must have a number as `fraction`; got AverageTopKCrossEntropyLoss without one. "
         "Build it with fraction=, not k=; of several criteria pass the one that mines."),
        (lambda: LinearFraction(nn.CrossEntropyLoss(), end=0.1, steps=5), TypeError,
         "`criterion` must have a number as `fraction`; got CrossEntropyLoss without one. "
         "Build it with fraction=, not k=; of several criteria pass the one that mines."),
        (lambda: LinearFraction(mining(), end=80, steps=5), ValueError,
         "`end` must satisfy 0 < end <= 1; got 80. For 80 % pass 0.8."),
        (lambda: LinearFraction(mining(), end=0, steps=5), ValueError,
         "`end` must satisfy 0 < end <= 1; got 0. For 80 % pass 0.8."),
        (lambda: CosineFraction(mining(), end=math.nan, steps=5), ValueError,
         "`end` must satisfy 0 < end <= 1; got nan. For 80 % pass 0.8."),
        (lambda: CosineFraction(mining(), end=0.1, steps=5, start=1.5), ValueError,
         "`start` must satisfy 0 < start <= 1; got 1.5. For 80 % pass 0.8."),
        (lambda: CosineFraction(mining(), end="0.1", steps=5), TypeError,  # type: ignore[arg-type]
         "`end` must be a real number; got str. Pass a Python number, e.g. float(end)."),
        (lambda: LinearFraction(mining(), end=0.1, steps=0), ValueError,
         "`steps` must be an integer >= 1; got 0. For no ramp use ConstantFraction."),
        (lambda: LinearFraction(mining(), end=0.1, steps=2.5), ValueError,  # type: ignore[arg-type]
         "`steps` must be an integer >= 1; got 2.5. For no ramp use ConstantFraction."),
        (lambda: LinearFraction(mining(), end=0.1, steps=True), ValueError,
         "`steps` must be an integer >= 1; got True. For no ramp use ConstantFraction."),
        (lambda: AccuracyFraction(mining(), levels=[(80, 0.5)]), ValueError,
         "`accuracy` must satisfy 0 < accuracy <= 1; got 80. For 80 % pass 0.8."),
        (lambda: AccuracyFraction(mining(), levels=[(0.8, 0)]), ValueError,
         "`fraction` must satisfy 0 < fraction <= 1; got 0. For 80 % pass 0.8."),
        (lambda: AccuracyFraction(mining()).step(83.5), ValueError,
         "`accuracy` must satisfy 0 <= accuracy <= 1; got 83.5. For 80 % pass 0.8."),
        (lambda: AccuracyFraction(mining()).step(torch.tensor(0.8)), TypeError,  # type: ignore[arg-type]
         "`accuracy` must be a real number; got Tensor. Pass a Python number, e.g. float(accuracy)."),
        (lambda: ConstantFraction(mining()).load_state_dict({"last_step": 1, "fraction": 2.0}), ValueError,
         "`fraction` must satisfy 0 < fraction <= 1; got 2. For 80 % pass 0.8."),
    ],
)  # fmt: skip
def test_what_is_refused(make: Callable[[], object], error: type[Exception], sentence: str) -> None:
    with pytest.raises(error) as caught:
        make()
    assert str(caught.value) == sentence


@pytest.mark.parametrize(
    "wrong", [{"end": 2.0, "steps": 5}, {"end": 0.1, "steps": 0}, {"end": 0.1, "steps": 5, "start": 0.0}]
)
def test_a_refused_schedule_leaves_the_criterion_alone(wrong: dict[str, Any]) -> None:
    criterion = mining(0.5)
    with pytest.raises(ValueError, match="must"):
        LinearFraction(criterion, **wrong)
    assert criterion.fraction == 0.5


# use


def test_training_by_a_schedule_is_training_with_each_fraction() -> None:
    """Against a loop that builds a criterion for each step, and one in which the schedule is forgotten."""

    def train(fraction_of: Callable[[int], float] | None) -> list[float]:
        torch.manual_seed(0)
        inputs, targets = torch.randn(64, 5), torch.randint(3, (64,))
        model, criterion = nn.Linear(5, 3), mining()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        schedule = LinearFraction(criterion, end=0.1, steps=10)
        losses = []
        for step in range(15):
            now = criterion if fraction_of is None else mining(fraction_of(step))
            loss = now(model(inputs), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
        return losses

    scheduled = train(None)
    assert scheduled == pytest.approx(train(lambda step: linear(step, 1.0, 0.1, 10)), rel=1e-5)
    assert scheduled != pytest.approx(train(lambda step: 1.0), rel=1e-2)


@pytest.mark.parametrize(
    "criterion",
    [
        AverageTopKLoss(nn.CrossEntropyLoss(reduction="none"), fraction=1.0),
        AverageTopKCrossEntropyLoss(fraction=1.0),
        AverageTopKCrossEntropyLoss(fraction=1.0, within="class"),
        AverageRankedRangeLoss(nn.CrossEntropyLoss(reduction="none"), fraction=1.0, drop=1),
    ],
    ids=lambda criterion: repr(criterion).replace("\n", ""),
)
def test_twenty_fractions_compile_twice(criterion: AverageTopKLoss) -> None:
    """For the first number, and for any."""
    torch._dynamo.reset()  # else it knows from another test that the number changes
    backend = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(criterion, fullgraph=True, backend=backend)
    schedule = LinearFraction(criterion, end=0.1, steps=19)
    torch.manual_seed(0)
    outputs, targets = torch.randn(64, 7, requires_grad=True), torch.randint(7, (64,))
    for _ in range(20):
        torch.testing.assert_close(compiled(outputs, targets), criterion(outputs, targets))
        schedule.step()
    assert criterion.fraction == 0.1
    assert backend.frame_count == 2
