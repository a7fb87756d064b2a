"""The estimators that choose fraction and C themselves."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sklearn.model_selection import GridSearchCV, KFold
from sklearn.utils.estimator_checks import parametrize_with_checks

from tests.test_tabular_estimators import table
from topkloss.tabular import (
    AverageTopKClassifier,
    AverageTopKClassifierCV,
    AverageTopKRegressor,
    AverageTopKRegressorCV,
)

SMALL: dict[str, Any] = {"fractions": (1.0, 0.7), "Cs": (10.0, 0.1), "cv": 3}


# weights equal repetition as exactly as the models are solved; labels drawn by chance leave the zero model; and where
# the classes weigh 1 to 10 million the losses themselves are below what float64 can tell
@pytest.mark.slow
@parametrize_with_checks([AverageTopKClassifierCV(**SMALL), AverageTopKRegressorCV(**SMALL, tol=1e-8)])
@pytest.mark.filterwarnings("ignore:`fraction` = .* is too small:UserWarning")
@pytest.mark.filterwarnings("ignore:`tol`=0.0001 was not reached:sklearn.exceptions.ConvergenceWarning")
def test_scikit_learns_checks(estimator: Any, check: Any) -> None:
    check(estimator)


@pytest.mark.parametrize("scoring", [None, "balanced_accuracy", "neg_log_loss"])
def test_the_scores_are_those_of_a_grid_search(scoring: str | None) -> None:
    features, labels, _ = table(noise=2.0)
    folds = KFold(4)
    found = AverageTopKClassifierCV(fractions=[1.0, 0.7, 0.6], Cs=[1.0, 1e-3], cv=folds, scoring=scoring, tol=1e-6)
    found.fit(features, labels)
    grid = {"fraction": [1.0, 0.7, 0.6], "C": [1.0, 1e-3]}
    search = GridSearchCV(AverageTopKClassifier(tol=1e-6), grid, cv=folds, scoring=scoring).fit(features, labels)
    for row, parameters in enumerate(search.cv_results_["params"]):
        at = grid["fraction"].index(parameters["fraction"]), grid["C"].index(parameters["C"])
        each = [search.cv_results_[f"split{fold}_test_score"][row] for fold in range(4)]
        assert found.scores_[:, *at] == pytest.approx(each, abs=1e-5)
    assert found.scores_.mean(axis=0).max() == pytest.approx(search.best_score_, abs=1e-5)
    direct = AverageTopKClassifier(fraction=found.fraction_, C=found.C_, tol=1e-6).fit(features, labels)
    assert found.coef_ == pytest.approx(direct.coef_, abs=1e-6)
    assert (found.predict(features) == direct.predict(features)).all()


def test_of_equally_good_ones_the_plainest_is_chosen() -> None:
    features = np.vstack([np.full((20, 1), -1.0), np.full((20, 1), 1.0)])
    labels = features[:, 0] > 0
    found = AverageTopKClassifierCV(fractions=[0.7, 1.0], Cs=[10.0, 0.1]).fit(features, labels)
    assert (found.scores_ == 1).all()
    assert (found.fraction_, found.C_) == (1.0, 0.1)


def test_weights_reach_fit_and_score() -> None:
    features, _, numbers = table()
    weight = np.r_[np.zeros(75), np.ones(75)]
    folds = [(np.arange(0, 150, 2), np.arange(1, 150, 2))]
    found = AverageTopKRegressorCV(fractions=[0.8], Cs=[1.0], cv=folds).fit(features, numbers, sample_weight=weight)
    train, held_out = np.arange(76, 150, 2), np.arange(75, 150, 2)
    one = AverageTopKRegressor(fraction=0.8).fit(features[train], numbers[train])
    assert found.scores_.item() == pytest.approx(one.score(features[held_out], numbers[held_out]), abs=1e-3)
    assert found.coef_ == pytest.approx(AverageTopKRegressor(fraction=0.8).fit(features[75:], numbers[75:]).coef_, 1e-3)


def test_nothing_to_try_is_an_error() -> None:
    features, labels, _ = table()
    with pytest.raises(ValueError, match="at least one number each"):
        AverageTopKClassifierCV(Cs=[]).fit(features, labels)
    with pytest.raises(ValueError, match="0 < fraction <= 1"):
        AverageTopKClassifierCV(fractions=[1.0, 0.0]).fit(features, labels)
