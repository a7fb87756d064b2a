"""`partial_fit`: derivatives, laws, and how near to the optimum a stream of chunks comes."""

from __future__ import annotations

import pickle
import re
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import sparse
from sklearn.base import clone
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits
from sklearn.preprocessing import StandardScaler

from tests.test_tabular_estimators import table
from tests.test_tabular_solver import LOSSES, draw
from topkloss.tabular import AverageTopKClassifier, AverageTopKClassifierCV, AverageTopKRegressor
from topkloss.tabular.design import Design
from topkloss.tabular.stream import _Chunk

Array = NDArray[np.float64]


def feed(model: Any, features: Any, targets: Any, *, rows: int = 40, passes: int = 1, **given: Any) -> Any:
    """The model after some passes over the examples, a few rows at a time."""
    weight = given.pop("sample_weight", None)
    if isinstance(model, AverageTopKClassifier):
        given["classes"] = np.unique(targets)
    for _ in range(passes):
        for start in range(0, features.shape[0], rows):
            part = slice(start, start + rows)
            own = {} if weight is None else {"sample_weight": weight[part]}
            model.partial_fit(features[part], targets[part], **own, **given)
    return model


# the parabola


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("fraction", [0.6, 1.0])
def test_gradient_and_curvature_are_derivatives(name: str, fraction: float) -> None:
    """Of the rounded joint form, written out here."""
    features, targets, mass = draw(name, 1)
    outputs = 3 if name == "softmax" else 1
    design, loss, width = Design(features, intercept=True), LOSSES[name], 0.7
    chunk = _Chunk(design, targets, mass, loss, fraction, width)
    place = np.random.default_rng(2).normal(size=4 * outputs + 1)
    place[-1] = 1.0 if fraction < 1 else 0.0

    def rounded(above: Array) -> Array:
        near = np.clip(above + width / 2, 0.0, width)
        return near**2 / (2 * width) + np.maximum(above - width / 2, 0.0)

    def objective(at: Array) -> float:
        pieces = loss.piece(design.outputs(at[:-1].reshape(outputs, -1).T), targets)
        if chunk.smooth:
            return float(mass @ pieces)
        sums = rounded(pieces - at[-1]) + (rounded(-pieces - at[-1]) if loss.signed else 0.0)
        return float(mass @ sums / fraction + mass.sum() * at[-1] * (fraction < 1))

    def gradient(at: Array) -> Array:
        return chunk.gradient(design.outputs(at[:-1].reshape(outputs, -1).T), float(at[-1]))

    count = len(place) - (fraction == 1.0)  # the threshold does not move at fraction 1
    steps = 1e-6 * np.eye(len(place))[:count]
    slopes = [(objective(place + step) - objective(place - step)) / 2e-6 for step in steps]
    assert gradient(place)[:count] == pytest.approx(slopes, rel=1e-5, abs=1e-5)
    bend = chunk.bend(design.outputs(place[:-1].reshape(outputs, -1).T), float(place[-1]), width)
    rows = [(gradient(place + step) - gradient(place - step)) / 2e-6 for step in steps]
    assert bend[:count, :count] == pytest.approx(np.array(rows)[:, :count], rel=1e-4, abs=1e-4)


# laws


@pytest.mark.parametrize("form", [np.asarray, sparse.csr_array, lambda x: x.astype(np.float32)])
@pytest.mark.parametrize("rows", [7, 150])
def test_one_pass_of_the_squared_loss_is_exact(form: Any, rows: int) -> None:
    """Its parabola is the loss itself."""
    features, _, numbers = table()
    features = features.astype(np.float32).astype(np.float64)
    exact = AverageTopKRegressor(tol=1e-9).fit(features, numbers)
    streamed = feed(AverageTopKRegressor(), form(features), numbers, rows=rows)
    assert streamed.coef_ == pytest.approx(exact.coef_, rel=1e-8)
    assert streamed.intercept_ == pytest.approx(exact.intercept_, rel=1e-8)
    assert not hasattr(streamed, "dual_gap_")


def test_a_second_pass_is_weight_2_and_with_a_total_another_look() -> None:
    features, _, numbers = table()
    twice = feed(AverageTopKRegressor(C=0.01), features, numbers, passes=2)
    doubled = AverageTopKRegressor(C=0.02, tol=1e-9).fit(features, numbers)
    assert twice.coef_ == pytest.approx(doubled.coef_, rel=1e-8)
    looked = feed(AverageTopKRegressor(C=0.01), features, numbers, passes=2, total=150)
    once = AverageTopKRegressor(C=0.01, tol=1e-9).fit(features, numbers)
    assert looked.coef_ == pytest.approx(once.coef_, rel=1e-8)


MODELS = [
    AverageTopKClassifier(fraction=0.7),
    AverageTopKClassifier("hinge", fraction=0.8, penalize_intercept=True),
    AverageTopKClassifier("softmax", fraction=0.8),
    AverageTopKRegressor("absolute", fraction=0.5, fit_intercept=False),
    AverageTopKRegressor("huber", fraction=0.4),
]


@pytest.mark.parametrize("model", MODELS, ids=str)
def test_integer_weights_are_repetition_and_weight_0_leaves_out(model: Any) -> None:
    features, labels, numbers = table()
    targets = numbers if isinstance(model, AverageTopKRegressor) else labels
    counts = np.random.default_rng(3).integers(0, 3, size=len(labels))
    weighted = feed(clone(model), features, targets, rows=75, sample_weight=counts)
    repeated = clone(model)
    for part in (slice(0, 75), slice(75, 150)):
        own = {"classes": [0, 1]} if targets is labels else {}
        rows = np.repeat(np.arange(150)[part], counts[part])
        repeated.partial_fit(features[rows], targets[rows], **own)
    assert weighted.coef_ == pytest.approx(repeated.coef_, rel=1e-5, abs=1e-7)
    assert weighted.threshold_ == pytest.approx(repeated.threshold_, rel=1e-5)


@pytest.mark.parametrize("model", MODELS, ids=str)
def test_it_resumes_bit_for_bit(model: Any) -> None:
    features, labels, numbers = table()
    targets = numbers if isinstance(model, AverageTopKRegressor) else labels
    whole = feed(clone(model), features, targets, rows=50)
    own = {"classes": [0, 1]} if targets is labels else {}
    part = clone(model).partial_fit(features[:50], targets[:50], **own)
    resumed = feed(pickle.loads(pickle.dumps(part)), features[50:], targets[50:], rows=50)
    assert (resumed.coef_ == whole.coef_).all()
    assert np.all(resumed.threshold_ == whole.threshold_)


@pytest.mark.parametrize("loss", ["squared", "absolute"])
def test_the_unit_of_the_targets_does_not_matter(loss: str) -> None:
    """There is no step size that would know it."""
    features, _, numbers = table()
    small, large = (
        feed(AverageTopKRegressor(loss, fraction=0.6, C=strength), features, unit * numbers, passes=2)
        for unit, strength in ((1.0, 1.0), (1e4, 1.0 if loss == "squared" else 1e4))
    )
    assert large.coef_ == pytest.approx(1e4 * small.coef_, rel=1e-5)


def test_after_a_fit_it_begins_anew() -> None:
    features, labels, _ = table()
    model = AverageTopKClassifier(fraction=0.8).fit(features[:100], labels[:100])
    fresh = AverageTopKClassifier(fraction=0.8).partial_fit(features, labels, classes=[0, 1])
    model.partial_fit(features, labels)
    assert (model.coef_ == fresh.coef_).all()
    assert not hasattr(model, "dual_gap_")
    again = model.fit(features, labels).coef_.copy()
    assert (again == AverageTopKClassifier(fraction=0.8).fit(features, labels).coef_).all()
    assert (model.partial_fit(features, labels).coef_ == fresh.coef_).all()


def test_a_class_may_come_late() -> None:
    features, labels, _ = table(n=400)
    order = np.argsort(labels, kind="stable")
    late = feed(AverageTopKClassifier(fraction=0.9), features[order], labels[order], rows=100, passes=30, total=400)
    exact = AverageTopKClassifier(fraction=0.9).fit(features, labels)
    assert late.coef_ == pytest.approx(exact.coef_, rel=0.05)


@pytest.mark.parametrize("loss", ["squared", "absolute", "huber"])
@pytest.mark.parametrize("value", [0.0, 5.0])
def test_targets_that_are_all_the_same_are_found(loss: str, value: float) -> None:
    features, _, _ = table()
    model = feed(AverageTopKRegressor(loss, fraction=0.5), features, np.full(150, value), passes=3, total=150)
    assert model.predict(features) == pytest.approx(value, abs=0.05)
    assert model.coef_ == pytest.approx(0, abs=0.02)


def test_a_chunk_without_mass_changes_nothing() -> None:
    features, labels, _ = table()
    model = AverageTopKClassifier(class_weight={0: 0.0, 1: 1.0, 2: 1.0}).partial_fit(features, labels + 1, [0, 1, 2])
    before = model.coef_.copy()
    assert (model.partial_fit(features, np.zeros(150)).coef_ == before).all()


# how near it comes


def scaled(data: tuple[Any, Any]) -> tuple[Array, Any]:
    return StandardScaler().fit_transform(data[0]), data[1]


def large() -> tuple[Array, Array]:
    chance = np.random.default_rng(0)
    features = chance.standard_normal((50_000, 50))
    weights = chance.normal(size=50) * 3 / np.sqrt(50)
    return features, (features @ weights + chance.logistic(size=50_000) > 0).astype(float)


def cancer() -> tuple[Array, Any]:
    return scaled(load_breast_cancer(return_X_y=True))


def diabetes() -> tuple[Array, Any]:
    return scaled(load_diabetes(return_X_y=True))


def digit() -> tuple[Array, Any]:
    pixels, digits = load_digits(return_X_y=True)
    return pixels / 16, digits == 8


def relative(model: Any, exact: Any, features: Array, targets: Any) -> float:
    """How much larger the objective of one model is than that of another, relatively."""
    values = []
    for one in (model, exact):
        outputs = features @ one.coef_.ravel() + one.intercept_
        if isinstance(one, AverageTopKRegressor):
            losses = np.abs(outputs - targets) ** (2 if one.loss == "squared" else 1)
        else:
            margins = np.where(targets, 1, -1) * outputs
            losses = np.logaddexp(0, -margins) if one.loss == "logistic" else np.maximum(1 - margins, 0)
        count = one.fraction * len(targets)
        ordered = np.sort(losses)[::-1]
        taken = np.clip(count - np.arange(len(losses)), 0.0, 1.0)
        values.append(taken @ ordered / count + (one.coef_**2).sum() / (2 * one.C * len(targets)))
    return float(values[0] / values[1] - 1)


@pytest.mark.parametrize(
    ("data", "model", "once", "ten_times"),
    [
        (cancer, AverageTopKClassifier(fraction=0.8), 0.1, 1e-3),
        (cancer, AverageTopKClassifier("hinge", fraction=0.8), 5.0, 0.5),
        (digit, AverageTopKClassifier(fraction=0.7), 0.02, 2e-4),
        (digit, AverageTopKClassifier("hinge", fraction=0.7), 2.0, 0.1),
        (diabetes, AverageTopKRegressor(fraction=0.5), 6e-3, 5e-4),
        (diabetes, AverageTopKRegressor("absolute", fraction=0.5), 5e-3, 5e-4),
        (large, AverageTopKClassifier(fraction=0.6), 5e-5, 4e-6),
        (large, AverageTopKClassifier("hinge", fraction=0.6), 4e-4, 4e-5),
    ],
    ids=lambda one: getattr(one, "__name__", str(one)),
)
def test_how_near_it_comes_to_the_optimum(data: Any, model: Any, once: float, ten_times: float) -> None:
    """The bounds are three times what docs/tables.md states; ten chunks a pass, the rows in the order of chance."""
    features, targets = data()
    order = np.random.default_rng(1).permutation(len(targets))
    features, targets = features[order], targets[order]
    exact = clone(model).set_params(tol=1e-5).fit(features, targets)
    streamed = clone(model)
    given = {"rows": len(targets) // 10, "total": len(targets)}
    assert -1e-6 <= relative(feed(streamed, features, targets, **given), exact, features, targets) <= once
    feed(streamed, features, targets, passes=9, **given)
    assert relative(streamed, exact, features, targets) <= ten_times


# bad input


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"k": 3}, "`partial_fit` needs `fraction` in the place of `k`"),
        ({"drop": 2}, "`partial_fit` cannot leave out the largest losses"),
        ({"l1_ratio": 0.5}, "`partial_fit` has no l1 penalty; got l1_ratio=0.5"),
    ],
)
def test_what_a_stream_cannot_do_is_no_method(arguments: dict[str, Any], sentence: str) -> None:
    assert not hasattr(AverageTopKClassifier(**arguments), "partial_fit")
    with pytest.raises(AttributeError) as raised:
        AverageTopKRegressor(**arguments).partial_fit  # noqa: B018
    assert sentence in str(raised.value.__cause__)
    assert not hasattr(AverageTopKClassifierCV(), "partial_fit")


@pytest.mark.parametrize(
    ("arguments", "given", "sentence"),
    [
        ({}, {}, "classes must be passed on the first call"),
        ({}, {"classes": [0, 2]}, "`y` must hold labels of `classes`, [0 2]; got 1."),
        ({"class_weight": "balanced"}, {"classes": [0, 1]}, "`class_weight` must be a dict or None"),
        ({}, {"classes": [0, 1], "total": 0}, "`total` must satisfy 0 < total < inf; got 0."),
        ({"fraction": 70}, {"classes": [0, 1]}, "pass fraction=0.7"),
    ],
)
def test_bad_arguments_get_a_sentence(arguments: dict[str, Any], given: dict[str, Any], sentence: str) -> None:
    features, labels, _ = table()
    with pytest.raises(ValueError, match=re.escape(sentence)):
        AverageTopKClassifier(**arguments).partial_fit(features, labels, **given)


def test_later_calls_must_agree_with_the_first() -> None:
    features, labels, numbers = table()
    model = AverageTopKRegressor().partial_fit(features, numbers, total=300)
    with pytest.raises(ValueError, match=re.escape("`total` must stay what it was at the first call, 300; got 200.")):
        model.partial_fit(features, numbers, total=200)
    with pytest.raises(ValueError, match="expecting 4 features"):
        model.partial_fit(features[:, :2], numbers)
    wide = np.zeros((2, 5000))
    with pytest.raises(ValueError, match="4096 together; got 5001"):
        AverageTopKClassifier().partial_fit(wide, labels[:2], classes=[0, 1])
