"""The estimators: scikit-learn's own checks, its models at fraction 1, weights as mass, bad tables."""

from __future__ import annotations

from typing import Any

import pytest
from sklearn.utils.estimator_checks import parametrize_with_checks

from topkloss.tabular import AverageTopKClassifier, AverageTopKRegressor


@parametrize_with_checks(
    [
        AverageTopKClassifier(),
        AverageTopKClassifier("hinge", fraction=0.9, penalize_intercept=True),
        AverageTopKClassifier("squared_hinge", solver="lbfgs"),
        AverageTopKClassifier("softmax", drop_fraction=0.05),
        AverageTopKRegressor(),
        AverageTopKRegressor("absolute", k=15, fit_intercept=False),
        AverageTopKRegressor("huber", fraction=0.8),
    ]
)
@pytest.mark.filterwarnings("ignore:`fraction` = .* is too small:UserWarning")
def test_scikit_learns_checks(estimator: Any, check: Any) -> None:
    check(estimator)
