"""The table to choose a fraction from: against plain Python floats, and the exact crossing of a constant model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from topkloss import average_top_k, reference
from topkloss.loop.inspect import FractionTable, inspect_fractions

# Quarters and small masses: every sum of them is exact in float64.
QUARTERS = st.integers(0, 40).map(lambda quarters: quarters / 4)
ELEMENTS = st.lists(st.tuples(QUARTERS, st.integers(0, 4), st.integers(-1, 3), st.booleans()), min_size=1, max_size=12)
FRACTIONS = st.lists(st.sampled_from([0.01, 0.1, 0.29, 1 / 3, 0.5, 0.75, 1.0]), max_size=4)


def columns(elements: Sequence[tuple[float, int, int, bool]]) -> dict[str, Any]:
    losses, mass, classes, mask = zip(*elements, strict=True)
    return {
        "losses": torch.tensor(losses, dtype=torch.float64),
        "sample_weight": torch.tensor(mass),
        "classes": torch.tensor(classes),
        "mask": torch.tensor(mask),
    }


def counts(elements: Sequence[tuple[float, int, int, bool]]) -> bool:
    return any(mass > 0 and mask for _, mass, _, mask in elements)


def exact_crossing(pairs: Sequence[tuple[float, float]], constant: float) -> Fraction | None:
    """Along the line from the largest loss, in whole numbers: where the surplus over the constant is used up."""
    total, walked, surplus = sum(Fraction(mass) for _, mass in pairs), Fraction(0), Fraction(0)
    ranked = sorted(((Fraction(loss), Fraction(mass)) for loss, mass in pairs), reverse=True)
    if ranked[0][0] <= Fraction(constant):
        return Fraction(0)
    for loss, mass in ranked:
        change = loss - Fraction(constant)
        if surplus + change * mass <= 0:
            return (walked - surplus / change) / total
        walked, surplus = walked + mass, surplus + change * mass
    return None


@given(ELEMENTS.filter(counts), FRACTIONS)
@example([(1.0, 1, 0, True), (1.0, 1, 1, True)], [0.5])
@example([(4.0, 3, 5, True), (math.inf, 1, 2, False)], [0.29, 1.0])
def test_the_table_is_that_of_plain_floats(
    elements: list[tuple[float, int, int, bool]], fractions: list[float]
) -> None:
    table = inspect_fractions(**columns(elements), fractions=fractions)
    losses, mass, classes, mask = (list(column) for column in zip(*elements, strict=True))
    beside: dict[str, Any] = {"mask": mask, "sample_weight": [float(width) for width in mass]}
    counted = [width if there else 0 for width, there in zip(mass, mask, strict=True)]
    assert table.mass == sum(counted)
    assert table.average == pytest.approx(reference.average(losses, **beside))
    assert [row.fraction for row in table.rows] == fractions
    assert table.shares == pytest.approx(of_classes(classes, [width / sum(counted) for width in counted], counted))
    for row in table.rows:
        assert row.k == pytest.approx(row.fraction * sum(counted))
        assert row.threshold == reference.topk_threshold(losses, fraction=row.fraction, **beside)
        assert row.value == pytest.approx(reference.average_top_k(losses, fraction=row.fraction, **beside))
        weights = reference.topk_weights(losses, fraction=row.fraction, **beside)
        assert row.shares == pytest.approx(of_classes(classes, weights, counted))


def of_classes(classes: Sequence[int], weights: Sequence[float], counted: Sequence[float]) -> dict[int, float]:
    present = {label for label, width in zip(classes, counted, strict=True) if width > 0}
    return {
        label: sum(weight for other, weight in zip(classes, weights, strict=True) if other == label)
        for label in present
    }


@given(ELEMENTS.filter(counts), st.integers(1, 41).map(lambda quarters: quarters / 4))
@example([(4.0, 1, 0, True), (2.0, 1, 0, True), (0.0, 2, 0, True)], 3.0)
@example([(3.0, 1, 0, True), (1.0, 1, 0, True)], 2.0)  # the average itself: at fraction 1
@example([(2.0, 1, 0, True), (2.0, 1, 0, True)], 2.0)
def test_the_crossing_is_exact(elements: list[tuple[float, int, int, bool]], constant: float) -> None:
    table = inspect_fractions(**columns(elements), fractions=[], constant_loss=constant)
    pairs = [(loss, float(mass)) for loss, mass, _, mask in elements if mass > 0 and mask]
    exact = exact_crossing(pairs, constant)
    assert table.crossing == (math.inf if exact is None else pytest.approx(float(exact), rel=1e-15, abs=0))
    assert table.bound is not None
    assert table.crossing is not None
    assert table.bound == pytest.approx(table.average / constant)
    assert table.crossing == math.inf or table.crossing <= table.bound * (1 + 1e-12)
    assert (table.crossing == math.inf) == (sum((loss - constant) * mass for loss, mass in pairs) > 0)


LOSSES = st.lists(st.floats(0, 100, width=32), min_size=2, max_size=30)


@given(LOSSES, st.floats(0.01, 99.0))
def test_the_objectives_cross_there(losses: list[float], constant: float) -> None:
    """Just below it AT_k is above the constant, at it they are equal, and just above it AT_k is below."""
    tensor = torch.tensor(losses, dtype=torch.float64)
    crossing = inspect_fractions(tensor, fractions=[], constant_loss=constant).crossing
    assert crossing is not None
    if crossing == 0:
        assert max(losses) <= constant
    elif crossing == math.inf:
        assert average_top_k(tensor, fraction=1).item() >= constant * (1 - 1e-12)
    else:
        below, at = (average_top_k(tensor, fraction=share * crossing).item() for share in (0.99, 1.0))
        assert at == pytest.approx(constant, rel=1e-9)
        assert below >= at * (1 - 1e-12)  # both are rounded
        if crossing < 0.99:
            assert average_top_k(tensor, fraction=1.01 * crossing).item() <= at


def test_the_zero_model_wins_below_the_crossing() -> None:
    """Hinge losses (1 for the zero model): the average is 0.5, and the two hardest of six cost 1 together."""
    hinge = torch.tensor([1.5, 0.5, 0.5, 0.5, 0.0, 0.0])
    table = inspect_fractions(hinge, constant_loss=1)
    assert table.bound == 0.5
    assert table.crossing == pytest.approx(2 / 6)
    assert average_top_k(hinge, fraction=0.3) > 1 > average_top_k(hinge, fraction=0.4)


def test_infinite_losses_are_losses() -> None:
    table = inspect_fractions(torch.tensor([math.inf, 1.0, 0.0, 0.0]), fractions=[0.25, 0.5], constant_loss=1)
    assert [(row.threshold, row.value) for row in table.rows] == [(math.inf, math.inf), (1.0, math.inf)]
    assert (table.average, table.bound, table.crossing) == (math.inf, math.inf, math.inf)
    assert inspect_fractions(torch.tensor([3.0, -math.inf]), constant_loss=1).crossing == 0.5


def test_any_shape_and_precision_and_nothing_is_written_to() -> None:
    losses = torch.tensor([[3.0, 1.0], [2.0, 9.0]], dtype=torch.bfloat16, requires_grad=True)
    classes = torch.tensor([[0, 0], [7, 7]], dtype=torch.uint8)
    table = inspect_fractions(losses, fractions=[0.5], classes=classes)
    assert table == inspect_fractions(losses.detach().double().flatten(), fractions=[0.5], classes=classes.flatten())
    assert (table.rows[0].value, table.rows[0].shares) == (6.0, {0: 0.5, 7: 0.5})
    assert losses.grad is None


def test_a_masked_class_is_no_class_and_a_masked_nan_is_none() -> None:
    losses, classes = torch.tensor([1.0, math.nan, 3.0]), torch.tensor([0, -100, 1])
    table = inspect_fractions(losses, fractions=[0.5], classes=classes, mask=classes >= 0)
    assert table.shares == {0: 0.5, 1: 0.5}
    assert table.rows[0].shares == {0: 0.0, 1: 1.0}


def test_a_count_near_a_whole_number_is_that_number() -> None:
    assert inspect_fractions(torch.arange(100.0), fractions=[0.29]).rows[0].k == 29


def test_without_a_constant_there_is_no_bound() -> None:
    table: FractionTable = inspect_fractions(torch.ones(3))
    assert (table.constant_loss, table.bound, table.crossing) == (None, None, None)
    assert len(table.rows) == 9


BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"losses": torch.tensor([1.0, math.nan, math.nan])}, ValueError, "NaN where counted; got 2 NaN"),
    ({"mask": torch.zeros(3, dtype=torch.bool)}, ValueError, "must have something that counts; got nothing"),
    ({"losses": torch.ones(0)}, ValueError, "must have something that counts; got nothing"),
    ({"sample_weight": torch.tensor([1.0, -1.0, 1.0])}, ValueError, "`sample_weight` must be finite and >= 0"),
    ({"losses": torch.tensor(1.0)}, ValueError, "already reduced"),
    ({"losses": [1.0, 2.0]}, TypeError, "`losses` must be a floating-point tensor; got list"),
    ({"fractions": [0.5, 70]}, ValueError, "0 < fraction <= 1; got 70"),
    ({"classes": torch.ones(3)}, TypeError, "`classes` must be a tensor of an integer type"),
    ({"classes": torch.ones(2, dtype=torch.int64)}, ValueError, r"the same shape; got \(3,\) and \(2,\)"),
    ({"constant_loss": 0}, ValueError, "0 < constant_loss < inf; got 0"),
    ({"constant_loss": math.inf}, ValueError, "0 < constant_loss < inf; got inf"),
    ({"constant_loss": math.nan}, ValueError, "0 < constant_loss < inf; got nan"),
    ({"constant_loss": "log 10"}, TypeError, "`constant_loss` must be a real number; got str"),
]


@pytest.mark.parametrize(("arguments", "error", "sentence"), BAD, ids=lambda value: value if type(value) is str else "")
def test_what_cannot_be_is_refused(arguments: dict[str, Any], error: type[Exception], sentence: str) -> None:
    with pytest.raises(error, match=sentence):
        inspect_fractions(**({"losses": torch.tensor([1.0, 2.0, 3.0])} | arguments))
