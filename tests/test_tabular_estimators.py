"""The estimators: scikit-learn's own checks, its models at fraction 1, weights as mass, bad tables."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import sparse
from scipy.optimize import linprog
from sklearn import config_context
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import ElasticNet, LogisticRegression, QuantileRegressor, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC, NuSVC
from sklearn.utils.estimator_checks import parametrize_with_checks

from topkloss.tabular import AverageTopKClassifier, AverageTopKRegressor

Array = NDArray[np.float64]


@parametrize_with_checks(
    [
        AverageTopKClassifier(),
        AverageTopKClassifier("softmax", drop_fraction=0.05),
        AverageTopKRegressor(),
        AverageTopKRegressor("huber", fraction=0.8),
    ]
)
@pytest.mark.filterwarnings("ignore:`fraction` = .* is too small:UserWarning")
def test_scikit_learns_checks(estimator: Any, check: Any) -> None:
    check(estimator)


@pytest.mark.slow
@parametrize_with_checks(
    [
        AverageTopKClassifier("hinge", fraction=0.9, penalize_intercept=True),
        AverageTopKClassifier("squared_hinge", solver="lbfgs"),
        AverageTopKClassifier(fraction=0.9, l1_ratio=0.5),
        AverageTopKRegressor("absolute", k=15, fit_intercept=False),
    ]
)
@pytest.mark.filterwarnings("ignore:`fraction` = .* is too small:UserWarning")
def test_scikit_learns_checks_of_the_others(estimator: Any, check: Any) -> None:
    check(estimator)


# data


def table(seed: int = 0, n: int = 150, d: int = 4, noise: float = 1.0) -> tuple[Array, Array, Array]:
    """Features, labels 0 and 1, and numbers that follow the same line."""
    chance = np.random.default_rng(seed)
    features = chance.normal(size=(n, d))
    signal = features @ chance.normal(size=d) + noise * chance.normal(size=n) + 0.5
    return features, (signal > 0).astype(int), signal


# scikit-learn's models at fraction 1


@pytest.mark.parametrize("strength", [1e-3, 0.1, 1.0, 100.0])
def test_fraction_1_is_logistic_regression(strength: float) -> None:
    features, labels, _ = table()
    weight = np.random.default_rng(1).uniform(0.1, 2, size=len(labels))
    theirs = LogisticRegression(C=strength, tol=1e-12, max_iter=1000, solver="newton-cholesky")
    for sample_weight in (None, weight):
        theirs.fit(features, labels, sample_weight)
        ours = AverageTopKClassifier(C=strength, tol=1e-8).fit(features, labels, sample_weight)
        assert ours.coef_ == pytest.approx(theirs.coef_, rel=1e-6)
        assert ours.intercept_ == pytest.approx(theirs.intercept_, rel=1e-6)
        assert ours.predict_proba(features) == pytest.approx(theirs.predict_proba(features), abs=1e-6)


@pytest.mark.parametrize("class_weight", ["balanced", {"a": 3.0, "c": 0.5}])
def test_fraction_1_is_softmax_regression_with_class_weights(class_weight: Any) -> None:
    features, _, signal = table()
    labels = np.array(["a", "b", "c"])[np.digitize(signal, [-0.5, 1.0])]
    theirs = LogisticRegression(class_weight=class_weight, tol=1e-12, max_iter=1000, solver="newton-cholesky")
    theirs.fit(features, labels)
    ours = AverageTopKClassifier("softmax", class_weight=class_weight, tol=1e-8).fit(features, labels)
    assert ours.coef_ == pytest.approx(theirs.coef_, abs=1e-6)
    assert ours.intercept_ == pytest.approx(theirs.intercept_, abs=1e-6)
    assert ours.predict_proba(features) == pytest.approx(theirs.predict_proba(features), abs=1e-6)


@pytest.mark.parametrize(("loss", "dual"), [("hinge", True), ("squared_hinge", False)])
@pytest.mark.parametrize("strength", [0.01, 0.1])
def test_fraction_1_is_the_linear_support_vector_machine(loss: str, dual: bool, strength: float) -> None:
    features, labels, _ = table(n=80)
    theirs = LinearSVC(loss=loss, C=strength, dual=dual, tol=1e-9, max_iter=10**6).fit(features, labels)
    ours = AverageTopKClassifier(loss, C=strength, penalize_intercept=True, tol=1e-8).fit(features, labels)
    assert ours.coef_ == pytest.approx(theirs.coef_, rel=1e-6, abs=1e-8)
    assert ours.intercept_ == pytest.approx(theirs.intercept_, rel=1e-6)


@pytest.mark.parametrize("l1_ratio", [0.1, 0.5, 0.99])
@pytest.mark.parametrize("solver", ["newton", "lbfgs"])
@pytest.mark.parametrize("strength", [0.01, 0.1])
def test_fraction_1_is_the_elastic_net(l1_ratio: float, solver: str, strength: float) -> None:
    """The coefficients, and exactly the same of them 0."""
    features, labels, numbers = table(d=10)
    logistic = LogisticRegression(C=strength, l1_ratio=l1_ratio, solver="saga", tol=1e-10, max_iter=10**5)
    logistic.fit(features, labels)
    squared = ElasticNet(alpha=1 / (2 * strength * len(numbers)), l1_ratio=l1_ratio, tol=1e-12).fit(features, numbers)
    given: dict[str, Any] = {"C": strength, "l1_ratio": l1_ratio, "solver": solver, "tol": 1e-8}
    for theirs, model, targets in (
        (logistic, AverageTopKClassifier(**given), labels),
        (squared, AverageTopKRegressor(**given), numbers),
    ):
        ours = model.fit(features, targets)
        assert ours.coef_ == pytest.approx(theirs.coef_, rel=1e-6, abs=1e-8)
        assert ((ours.coef_ == 0) == (theirs.coef_ == 0)).all()
        if theirs.coef_.any():  # else saga stops with the intercept on its way
            assert ours.intercept_ == pytest.approx(theirs.intercept_, rel=1e-6)


@pytest.mark.parametrize("alpha", [1e-3, 1.0, 1e3])
def test_fraction_1_is_ridge_regression(alpha: float) -> None:
    features, _, numbers = table()
    theirs = Ridge(alpha=alpha).fit(features, 100 * numbers + 1000)
    ours = AverageTopKRegressor(C=1 / (2 * alpha), tol=1e-8).fit(features, 100 * numbers + 1000)
    assert ours.coef_ == pytest.approx(theirs.coef_, rel=1e-6)
    assert ours.intercept_ == pytest.approx(theirs.intercept_, rel=1e-9)


def test_absolute_at_fraction_1_reaches_median_regression() -> None:
    features, _, numbers = table()
    theirs = QuantileRegressor(quantile=0.5, alpha=0).fit(features, numbers)
    ours = AverageTopKRegressor("absolute", C=1e7).fit(features, numbers)
    reached, least = (np.abs(model.predict(features) - numbers).mean() for model in (ours, theirs))
    assert reached == pytest.approx(least, rel=1e-6)


@pytest.mark.parametrize("nu", [0.5, 0.6, 0.75])
def test_hinge_is_the_nu_support_vector_machine(nu: float) -> None:
    """The paper's Proposition 1: fraction nu and C S = nu, for features of length 1 at most; the same direction."""
    features, labels, _ = table()
    features = features / np.linalg.norm(features, axis=1).max()
    theirs = NuSVC(nu=nu, kernel="linear", tol=1e-10).fit(features, labels).coef_[0]
    ours = AverageTopKClassifier("hinge", fraction=nu, C=nu / len(labels), tol=1e-8).fit(features, labels).coef_[0]
    assert ours @ theirs / np.linalg.norm(ours) / np.linalg.norm(theirs) > 1 - 1e-6


@pytest.mark.parametrize("fraction", [0.6, 0.8])
def test_hinge_at_a_fraction_is_the_plain_hinge_at_another_strength(fraction: float) -> None:
    """With rho = 1 - threshold: C / (fraction rho); so k adds no classifier."""
    features, labels, _ = table()
    model = AverageTopKClassifier("hinge", fraction=fraction, tol=1e-8).fit(features, labels)
    plain = AverageTopKClassifier("hinge", C=1 / (fraction * (1 - model.threshold_[0])), tol=1e-8).fit(features, labels)
    cosine = model.coef_[0] @ plain.coef_[0] / np.linalg.norm(model.coef_) / np.linalg.norm(plain.coef_)
    assert cosine > 1 - 1e-6


# weights are mass


MODELS = [
    AverageTopKClassifier(fraction=0.8),
    AverageTopKClassifier("hinge", fraction=0.7),
    AverageTopKClassifier("squared_hinge", k=151.5),
    AverageTopKClassifier("softmax", fraction=0.9),
    AverageTopKClassifier(fraction=0.6, drop_fraction=0.1),
    AverageTopKRegressor(fraction=0.33),
    AverageTopKRegressor("absolute", fraction=0.41),
    AverageTopKRegressor("huber", k=70, drop=5),
]


@pytest.mark.parametrize("model", MODELS, ids=str)
def test_integer_weights_are_repetition_and_weight_0_leaves_out(model: Any) -> None:
    features, labels, numbers = table(noise=0.5)
    targets = numbers if isinstance(model, AverageTopKRegressor) else labels
    counts = np.random.default_rng(3).integers(0, 3, size=len(labels))
    tight = clone(model).set_params(tol=1e-7)
    weighted = clone(tight).fit(features, targets, sample_weight=counts)
    repeated = clone(tight).fit(np.repeat(features, counts, axis=0), np.repeat(targets, counts))
    assert weighted.coef_ == pytest.approx(repeated.coef_, abs=1e-6)
    assert weighted.threshold_ == pytest.approx(repeated.threshold_, abs=1e-6)
    assert np.abs(weighted.coef_).max() > 0.01


@pytest.mark.parametrize("model", [MODELS[0], MODELS[1], MODELS[3]], ids=str)
def test_a_fraction_does_not_see_the_scale_of_the_weights(model: Any) -> None:
    features, labels, _ = table(noise=0.5)
    weight = np.random.default_rng(4).uniform(0.1, 2, size=len(labels))
    one = clone(model).set_params(tol=1e-7).fit(features, labels, sample_weight=weight)
    other = clone(model).set_params(tol=1e-7, C=0.1).fit(features, labels, sample_weight=10 * weight)
    assert one.coef_ == pytest.approx(other.coef_, abs=1e-6)


# the rest of what an estimator does


def test_the_threshold_and_the_gap_are_those_of_the_model() -> None:
    features, labels, _ = table()
    model = AverageTopKClassifier(k=100).fit(features, labels)
    losses = np.logaddexp(0, -np.where(labels == 1, 1, -1) * model.decision_function(features))
    assert model.threshold_[0] == pytest.approx(np.sort(losses)[-100])
    value = np.sort(losses)[-100:].mean() + (model.coef_**2).sum() / (2 * len(labels))
    exact = AverageTopKClassifier(k=100, tol=1e-8).fit(features, labels)
    losses = np.logaddexp(0, -np.where(labels == 1, 1, -1) * exact.decision_function(features))
    least = np.sort(losses)[-100:].mean() + (exact.coef_**2).sum() / (2 * len(labels))
    assert -1e-12 <= value - least <= model.dual_gap_[0]
    assert np.linalg.norm(model.coef_ - exact.coef_) <= 1e-4 * np.linalg.norm(exact.coef_)


def test_a_warm_start_begins_where_the_fit_before_ended() -> None:
    features, labels, numbers = table()
    for model, targets in ((AverageTopKClassifier(fraction=0.7), labels), (AverageTopKRegressor("huber"), numbers)):
        model.set_params(warm_start=True).fit(features, targets)
        first, steps = model.coef_.copy(), np.sum(model.n_iter_)
        model.fit(features, targets)
        assert model.coef_ == pytest.approx(first, rel=1e-3)
        assert np.sum(model.n_iter_) <= steps
        model.fit(features[:, :2], targets)  # another shape: from nothing
        assert model.coef_.shape[-1] == 2


def test_the_ranked_range_is_never_worse_than_its_start_and_leaves_outliers_out() -> None:
    features, _, numbers = table(noise=0.1)
    numbers[:15] += 50
    plain = AverageTopKRegressor(C=10).fit(features, numbers)
    trimmed = AverageTopKRegressor(C=10, drop=15).fit(features, numbers)
    clean = AverageTopKRegressor(C=10).fit(features[15:], numbers[15:])
    assert trimmed.coef_ == pytest.approx(clean.coef_, rel=1e-2)
    assert np.abs(plain.coef_ - clean.coef_).max() > 0.5

    def objective(model: Any) -> float:
        errors = np.sort((model.predict(features) - numbers) ** 2)[::-1]
        return float(errors[15:].mean() + (model.coef_**2).sum() / (2 * 10 * len(numbers)))

    for start in (plain, clean):
        model = AverageTopKRegressor(C=10, drop=15, warm_start=True)
        model.coef_, model.intercept_ = start.coef_, start.intercept_
        assert objective(model.fit(features, numbers)) <= objective(start) + 1e-12


def test_too_small_a_fraction_is_the_zero_model_and_says_which_is_not() -> None:
    features, labels, _ = table(noise=3.0)
    with pytest.warns(UserWarning, match=r"`fraction` = 0.1 is too small .* not is about 0\.\d+\.") as caught:
        zero = AverageTopKClassifier(fraction=0.1).fit(features, labels)
    assert not zero.coef_.any()
    smallest = float(re.findall(r"about (0\.\d+)\.", str(caught[0].message))[0])
    assert AverageTopKClassifier(fraction=smallest + 0.02).fit(features, labels).coef_.any()
    with pytest.warns(UserWarning, match="too small"):
        assert not AverageTopKClassifier(fraction=smallest - 0.02).fit(features, labels).coef_.any()


def test_the_smallest_fraction_is_that_of_the_hinge_without_penalty() -> None:
    """Of losses of a margin, without intercept: k is the least sum of hinge losses, a linear program."""
    features, labels, _ = table(noise=3.0)
    signed = features * np.where(labels == 1, 1.0, -1.0)[:, None]
    n, d = signed.shape
    costs = np.r_[np.zeros(d), np.ones(n)]
    program = linprog(
        costs, A_ub=-np.hstack([signed, np.eye(n)]), b_ub=-np.ones(n), bounds=[(None, None)] * d + [(0, None)] * n
    )
    expected = program.fun / n
    for loss in ("logistic", "hinge", "squared_hinge"):
        with pytest.warns(UserWarning, match="not is about") as caught:
            AverageTopKClassifier(loss, fraction=0.05, fit_intercept=False).fit(features, labels)
        found = float(re.findall(r"about (0\.\d+)\.", str(caught[0].message))[0])
        assert found == pytest.approx(expected, abs=0.015)


def test_of_many_rows_a_part_says_which_fraction_is_the_smallest(monkeypatch: pytest.MonkeyPatch) -> None:
    features, labels, _ = table(n=2000, noise=3.0)
    found = []
    for rows in (10_000, 500):
        monkeypatch.setattr("topkloss.tabular.zero.ROWS", rows)
        with pytest.warns(UserWarning, match="not is about") as caught:
            AverageTopKClassifier(fraction=0.05).fit(features, labels)
        found.append(float(re.findall(r"about (0\.\d+)\.", str(caught[0].message))[0]))
    assert found[1] == pytest.approx(found[0], abs=0.05)


def test_probabilities_below_fraction_1_are_tilted_towards_one_half() -> None:
    features, labels, _ = table(n=2000, noise=2.0)
    for fraction, tilted in ((1.0, False), (0.5, True)):
        chances = AverageTopKClassifier(fraction=fraction, C=100).fit(features, labels).predict_proba(features)
        confidence, accuracy = chances.max(axis=1).mean(), (chances.argmax(axis=1) == labels).mean()
        assert (accuracy - confidence > 0.05) == tilted


def test_only_losses_of_probabilities_give_them() -> None:
    assert hasattr(AverageTopKClassifier(), "predict_proba")
    assert not hasattr(AverageTopKClassifier("hinge"), "predict_proba")
    with pytest.raises(AttributeError) as raised:
        AverageTopKClassifier("hinge").predict_proba  # noqa: B018
    assert "CalibratedClassifierCV" in str(raised.value.__cause__)


def test_two_classes_by_softmax_are_one_output() -> None:
    features, labels, _ = table()
    both = AverageTopKClassifier("softmax", fraction=0.8, tol=1e-7).fit(features, labels)
    one = AverageTopKClassifier(fraction=0.8, C=2.0, tol=1e-7).fit(features, labels)
    assert both.coef_ == pytest.approx(one.coef_, abs=1e-5)
    assert both.predict_proba(features) == pytest.approx(one.predict_proba(features), abs=1e-5)


# bad tables


def test_bad_tables_get_a_right_answer() -> None:
    features, labels, numbers = table()
    constant = np.hstack([features, np.full((len(labels), 1), 7.0), np.zeros((len(labels), 1))])
    collinear = np.hstack([features, features[:, :1] * 2])
    plain = AverageTopKClassifier(fraction=0.8, tol=1e-7).fit(features, labels)
    for wide in (constant, collinear):
        model = AverageTopKClassifier(fraction=0.8, tol=1e-7).fit(wide, labels)
        assert (model.predict(wide) == plain.predict(features)).mean() > 0.99
    assert model.coef_[0, -1] == pytest.approx(2 * model.coef_[0, 0], rel=1e-4)
    assert AverageTopKClassifier(fraction=0.8, tol=1e-7).fit(constant, labels).coef_[0, -1] == 0.0
    few = AverageTopKRegressor(k=10**6, tol=1e-8).fit(features, numbers)  # n < k: all
    assert few.coef_ == pytest.approx(AverageTopKRegressor(tol=1e-8).fit(features, numbers).coef_, rel=1e-6)
    large = AverageTopKClassifier(fraction=0.8, C=1e-12).fit(features * 1e6, labels)
    small = AverageTopKClassifier(fraction=0.8, C=1e12, tol=1e-3).fit(features * 1e-6, labels)
    for model, scale in ((large, 1e6), (small, 1e-6)):
        assert (model.predict(features * scale) == plain.predict(features)).mean() > 0.95


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda x, y: (np.where(np.arange(len(x))[:, None] == 3, np.nan, x), y), "contains NaN"),
        (lambda x, y: (x.astype(object).astype(str) + "x", y), "could not convert"),
        (lambda x, y: (x, np.zeros(len(x))), "at least two classes"),
        (lambda x, y: (x[:0], y[:0]), "0 sample"),
        (lambda x, y: (x * 1e300, y), "1e\\+70 in size"),
        (lambda x, y: (sparse.csr_array(x * 1e300), y), "1e\\+70 in size"),
        (lambda x, y: (x * np.inf, y), "infinity"),
        (lambda x, y: (x, y[:-1]), "inconsistent"),
        (lambda x, y: (x, np.linspace(0, 1, len(x))), "Unknown label type"),
    ],
)
def test_bad_tables_get_a_value_error(change: Any, error: str) -> None:
    features, labels, _ = table()
    with pytest.raises(ValueError, match=error), np.errstate(invalid="ignore"):
        AverageTopKClassifier().fit(*change(features, labels))


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"fraction": 70}, "pass fraction=0.7"),
        ({"fraction": 0.5, "k": 3}, "exactly one of"),
        ({"k": 0}, "`k` must satisfy k > 0"),
        ({"drop": 1, "drop_fraction": 0.1}, "at most one of"),
        ({"drop": 150}, "less than the mass of all examples, 150; got 150"),
        ({"C": 0.0}, "`C` must satisfy"),
        ({"l1_ratio": 1.0}, "`l1_ratio` must satisfy 0 <= l1_ratio < 1, because the squared penalty"),
        ({"tol": 1.0}, "`tol` must satisfy"),
        ({"max_iter": 0}, "`max_iter` must be"),
        ({"solver": "sgd"}, '"newton" or "lbfgs"; got \'sgd\''),
        ({"loss": "log"}, "\"softmax\"; got 'log'"),
    ],
)
def test_bad_arguments_get_a_sentence(arguments: dict[str, Any], error: str) -> None:
    features, labels, _ = table()
    with pytest.raises(ValueError, match=re.escape(error)):
        AverageTopKClassifier(**arguments).fit(features, labels)
    with pytest.raises(ValueError, match="`delta` must satisfy"):
        AverageTopKRegressor("huber", delta=0.0).fit(features, labels)


def test_too_few_steps_warn() -> None:
    features, labels, _ = table()
    with pytest.warns(ConvergenceWarning, match="was not reached in `max_iter`=2 steps"):
        AverageTopKClassifier(fraction=0.7, max_iter=2).fit(features, labels)


def test_metadata_is_routed() -> None:
    features, labels, _ = table()
    weight = np.random.default_rng(0).integers(0, 2, size=len(labels)).astype(float)
    with config_context(enable_metadata_routing=True):
        model = AverageTopKClassifier().set_fit_request(sample_weight=True)
        scaler = StandardScaler().set_fit_request(sample_weight=False)
        found = make_pipeline(scaler, model).fit(features, labels, sample_weight=weight)
        scaled = StandardScaler().fit_transform(features)
        direct = AverageTopKClassifier().fit(scaled, labels, sample_weight=weight)
    assert found[-1].coef_ == pytest.approx(direct.coef_)
