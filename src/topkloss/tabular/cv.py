"""Estimators that choose fraction and C themselves, by cross-validation along warm-started paths."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, Self

import numpy as np
from sklearn.base import is_classifier
from sklearn.metrics import check_scoring
from sklearn.model_selection import check_cv
from sklearn.utils import _safe_indexing
from sklearn.utils.validation import _check_sample_weight

from topkloss.base.arguments import check_k
from topkloss.tabular.estimators import AverageTopKClassifier, AverageTopKRegressor
from topkloss.tabular.linear import LinearClassifier, LinearRegressor
from topkloss.tabular.losses import Array

__all__ = ["AverageTopKClassifierCV", "AverageTopKRegressorCV"]

FRACTIONS = (1.0, 0.8, 0.6, 0.4)
STRENGTHS = (0.01, 0.1, 1.0, 10.0, 100.0)


def _search(search: Any, model: Any, features: Any, targets: Any, sample_weight: Any) -> Any:
    """The model with the best fraction and C, not yet fitted; the scores and the choice are stored in the search."""
    for fraction in search.fractions:
        check_k(None, fraction)
    if len(search.fractions) == 0 or len(search.Cs) == 0:
        raise ValueError(
            "`fractions` and `Cs` must hold at least one number each; got none. Pass e.g. fractions=[1.0]."
        )
    features, targets, _ = model._read(features, targets, None, y_numeric=not is_classifier(model))
    weight = None if sample_weight is None else _check_sample_weight(sample_weight, features, dtype=np.float64)
    folds = list(check_cv(search.cv, targets, classifier=is_classifier(model)).split(features, targets))
    scorer = check_scoring(model, scoring=search.scoring)
    scores = np.array([_paths(search, model, scorer, features, targets, weight, fold) for fold in folds])
    means = scores.mean(axis=0)
    # Of equally good choices, the largest fraction and then the strongest penalty: the plainest model.
    best = max(np.ndindex(means.shape), key=lambda at: (means[at], search.fractions[at[0]], -search.Cs[at[1]]))
    search.scores_ = scores
    search.fraction_, search.C_ = float(search.fractions[best[0]]), float(search.Cs[best[1]])
    return model.set_params(fraction=search.fraction_, C=search.C_, warm_start=False)


def _paths(
    search: Any, model: Any, scorer: Any, features: Any, targets: Any, weight: Array | None, fold: tuple[Any, Any]
) -> Array:
    """The held-out score of each (fraction, C) in one fold; each C starts from the model of the next smaller C."""
    train, held_out = fold
    fitted = {} if weight is None else {"sample_weight": weight[train]}
    judged = {} if weight is None else {"sample_weight": weight[held_out]}
    known, unknown = ((_safe_indexing(features, rows), _safe_indexing(targets, rows)) for rows in fold)
    scores = np.empty((len(search.fractions), len(search.Cs)))
    for row, fraction in enumerate(search.fractions):
        path = type(model)(**model.get_params()).set_params(fraction=fraction, warm_start=True)
        for column in np.argsort(search.Cs):
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="`fraction` = .* is too small")
                path.set_params(C=search.Cs[column]).fit(*known, **fitted)
            scores[row, column] = scorer(path, *unknown, **judged)
    return scores


def _adopt(search: Any, model: Any) -> None:
    """Stores what the model learned in the search."""
    for name, value in vars(model).items():
        if name.endswith("_") and not name.startswith("_"):
            setattr(search, name, value)


class AverageTopKClassifierCV(LinearClassifier):
    """`AverageTopKClassifier` with the fraction and C of the best mean score in cross-validation.

    Args:
        loss: See `AverageTopKClassifier`.
        fractions: The fractions to try, each in (0, 1]; keep 1, the plain model, among them.
        Cs: The values of C to try, each > 0.
        cv: The folds, as `sklearn.model_selection.check_cv` takes them.
        scoring: The score, as `sklearn.metrics.check_scoring` takes it. Default: accuracy, which is blind to rare
            classes.
        l1_ratio, fit_intercept, penalize_intercept, class_weight, solver, tol, max_iter: See
            `AverageTopKClassifier`.

    Attributes:
        fraction_, C_: The chosen values; of equally good ones the largest fraction, then the smallest C.
        scores_: The held-out scores, shape (folds, fractions, Cs).
        classes_, coef_, intercept_, threshold_, dual_gap_, n_iter_: Attributes of the model fitted to all examples; see
            `AverageTopKClassifier`.

    Example:
        >>> import numpy as np
        >>> features = np.random.default_rng(0).normal(size=(60, 2))
        >>> labels = features[:, 0] > 0
        >>> search = AverageTopKClassifierCV(fractions=[1.0, 0.5], Cs=[1.0, 10.0], cv=3).fit(features, labels)
        >>> search.scores_.shape
        (3, 2, 2)
    """

    def __init__(
        self,
        loss: str = "logistic",
        *,
        fractions: Sequence[float] = FRACTIONS,
        Cs: Sequence[float] = STRENGTHS,  # scikit-learn's name
        l1_ratio: float = 0.0,
        cv: Any = None,
        scoring: Any = None,
        fit_intercept: bool = True,
        penalize_intercept: bool = False,
        class_weight: Any = None,
        solver: str = "auto",
        tol: float = 1e-4,
        max_iter: int = 1000,
    ) -> None:
        self.loss = loss
        self.fractions = fractions
        self.Cs = Cs
        self.l1_ratio = l1_ratio
        self.cv = cv
        self.scoring = scoring
        self.fit_intercept = fit_intercept
        self.penalize_intercept = penalize_intercept
        self.class_weight = class_weight
        self.solver = solver
        self.tol = tol
        self.max_iter = max_iter

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Chooses fraction and C, then fits all examples; see `AverageTopKClassifier.fit`."""
        model = AverageTopKClassifier(
            self.loss,
            l1_ratio=self.l1_ratio,
            fit_intercept=self.fit_intercept,
            penalize_intercept=self.penalize_intercept,
            class_weight=self.class_weight,
            solver=self.solver,
            tol=self.tol,
            max_iter=self.max_iter,
        )
        _adopt(self, _search(self, model, X, y, sample_weight).fit(X, y, sample_weight))
        return self


class AverageTopKRegressorCV(LinearRegressor):
    """`AverageTopKRegressor` with the fraction and C of the best mean score in cross-validation.

    Args:
        loss, delta: See `AverageTopKRegressor`.
        fractions, Cs, cv, scoring: See `AverageTopKClassifierCV`; by default the score is R2.
        l1_ratio, fit_intercept, penalize_intercept, solver, tol, max_iter: See `AverageTopKClassifier`.

    Attributes:
        fraction_, C_, scores_: See `AverageTopKClassifierCV`.
        coef_, intercept_, threshold_, dual_gap_, n_iter_: Attributes of the model fitted to all examples; see
            `AverageTopKRegressor`.

    Example:
        >>> import numpy as np
        >>> features = np.random.default_rng(0).normal(size=(60, 2))
        >>> search = AverageTopKRegressorCV(fractions=[1.0], Cs=[1.0, 100.0]).fit(features, features @ [1.0, 2.0])
        >>> search.fraction_, search.C_
        (1.0, 100.0)
    """

    def __init__(
        self,
        loss: str = "squared",
        *,
        fractions: Sequence[float] = FRACTIONS,
        Cs: Sequence[float] = STRENGTHS,
        l1_ratio: float = 0.0,
        cv: Any = None,
        scoring: Any = None,
        delta: float = 1.0,
        fit_intercept: bool = True,
        penalize_intercept: bool = False,
        solver: str = "auto",
        tol: float = 1e-4,
        max_iter: int = 1000,
    ) -> None:
        self.loss = loss
        self.fractions = fractions
        self.Cs = Cs
        self.l1_ratio = l1_ratio
        self.cv = cv
        self.scoring = scoring
        self.delta = delta
        self.fit_intercept = fit_intercept
        self.penalize_intercept = penalize_intercept
        self.solver = solver
        self.tol = tol
        self.max_iter = max_iter

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Chooses fraction and C, then fits all examples; see `AverageTopKRegressor.fit`."""
        model = AverageTopKRegressor(
            self.loss,
            delta=self.delta,
            l1_ratio=self.l1_ratio,
            fit_intercept=self.fit_intercept,
            penalize_intercept=self.penalize_intercept,
            solver=self.solver,
            tol=self.tol,
            max_iter=self.max_iter,
        )
        _adopt(self, _search(self, model, X, y, sample_weight).fit(X, y, sample_weight))
        return self
