r"""The average top-k loss of linear models, under scikit-learn's conventions.

.. math:: \min_{w, b}\ \frac1k \sum_{i \le k} s_{[i]} \ell_{[i]} + \frac{|w|^2}{2\, C S}, \qquad S = \sum_i s_i

averages the k largest losses by mass, where s are the sample weights times the class weights. C is scikit-learn's: at
fraction 1 the objective times C S is its C sum s l + |w|^2 / 2. So `AverageTopKClassifier(C=C)` is
`LogisticRegression(C=C)`, or `LinearSVC(C=C)` with the loss "hinge" or "squared_hinge" and a penalised intercept, and
`AverageTopKRegressor(C=C)` is `Ridge(alpha=1 / (2 * C))`. The C of the paper is C S.
"""

from __future__ import annotations

from typing import Any, Self

import numpy as np
from sklearn.utils.metaestimators import available_if
from sklearn.utils.multiclass import _check_partial_fit_first_call, check_classification_targets

from topkloss.tabular.arguments import can_stream, check_estimator_arguments, check_stream, masses_of_classes
from topkloss.tabular.linear import LinearClassifier, LinearRegressor, Task
from topkloss.tabular.losses import CLASSIFICATION, REGRESSION, Huber

__all__ = ["AverageTopKClassifier", "AverageTopKRegressor"]


class AverageTopKClassifier(LinearClassifier):
    r"""Linear classifier that minimises the average of its k largest losses, to a certified accuracy.

    .. math:: \min_{w, b}\ \frac1k \sum_{i \le k} s_{[i]} \ell_{[i]} + \frac{|w|^2}{2\, C S}, \quad S = \sum_i s_i

    More than two classes are fitted one against the rest, or all together with the loss "softmax".

    Args:
        loss: "logistic", "hinge", "squared_hinge" or "softmax". With "hinge" k is another C and adds no classifier.
        k: The mass that is averaged, > 0, real; above S it means all.
        fraction: `k` as a fraction of S, in (0, 1]. At most one of the two; by default all, which is the plain model.
        drop: The mass of the largest losses that is left out first, >= 0: a stationary point of the ranked range.
        drop_fraction: `drop` as a fraction of S. At most one of the two; by default nothing is left out.
        C: The strength of the losses against the penalty, > 0; at fraction 1 that of scikit-learn.
        l1_ratio: The ratio of absolute values in the penalty, (1 - l1_ratio) |w|^2 / 2 + l1_ratio |w|_1, in [0, 1).
        fit_intercept: Whether there is an intercept.
        penalize_intercept: Whether the penalty includes it, as in `LinearSVC`.
        class_weight: The weight of each class as a dict, or "balanced": a factor of the mass of its examples.
        solver: "newton" (a square matrix of all coefficients), "lbfgs", or "auto".
        tol: The relative error of the coefficients that the certificate must prove: sqrt(2 C S gap / (1 - l1_ratio)) <=
            tol |w|.
        max_iter: The most steps of the solver, for each problem.
        warm_start: Whether to start from the coefficients of the last fit.

    Attributes:
        classes_: The labels.
        coef_: The coefficients, shape (1, d) for two classes, (classes, d) for more.
        intercept_: The intercepts, shape (1,) or (classes,).
        threshold_: The k-th largest loss of each problem: losses above it are averaged.
        dual_gap_: How far the objective of each problem may be above its optimum, at most; with a drop, above the
            optimum of all models that drop the same examples.
        n_iter_: The steps taken for each problem.
        n_features_in_, feature_names_in_: As in scikit-learn.

    Example:
        >>> import numpy as np
        >>> features = np.array([[0.0], [1.0], [2.0], [3.0]])
        >>> model = AverageTopKClassifier(fraction=0.75).fit(features, ["no", "yes", "no", "yes"])
        >>> model.predict([[-1.0], [4.0]])
        array(['no', 'yes'], dtype='<U3')

    Cost: some ten to fifty steps; one of Newton's takes n d^2, one of L-BFGS n d operations. No copy of the features.
    Reference: Fan, Lyu, Ying, Hu. Learning with Average Top-k Loss. NeurIPS 2017.
    """

    def __init__(
        self,
        loss: str = "logistic",
        *,
        k: float | None = None,
        fraction: float | None = None,
        drop: float | None = None,
        drop_fraction: float | None = None,
        C: float = 1.0,  # scikit-learn's name
        l1_ratio: float = 0.0,
        fit_intercept: bool = True,
        penalize_intercept: bool = False,
        class_weight: Any = None,
        solver: str = "auto",
        tol: float = 1e-4,
        max_iter: int = 1000,
        warm_start: bool = False,
    ) -> None:
        self.loss = loss
        self.k = k
        self.fraction = fraction
        self.drop = drop
        self.drop_fraction = drop_fraction
        self.C = C
        self.l1_ratio = l1_ratio
        self.fit_intercept = fit_intercept
        self.penalize_intercept = penalize_intercept
        self.class_weight = class_weight
        self.solver = solver
        self.tol = tol
        self.max_iter = max_iter
        self.warm_start = warm_start

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Fits the classifier.

        Args:
            X: Features, dense or sparse, shape (n, d), finite.
            y: Labels, shape (n,).
            sample_weight: Mass of each example, >= 0; an integer is repetition, 0 leaves an example out.
        """
        check_estimator_arguments(self, CLASSIFICATION)
        X, y, mass = self._read(X, y, sample_weight)
        check_classification_targets(y)
        classes = np.unique(y)
        if len(classes) < 2:
            raise ValueError(
                f"`y` must hold at least two classes; got one class, {classes[0]!r}. Check how the labels were read."
            )
        mass = masses_of_classes(self.class_weight, classes, y, mass)
        self._solve(X, self._tasks(y, classes), mass)
        self.classes_ = classes
        self._merge()
        return self

    @available_if(can_stream)
    def partial_fit(
        self, X: Any, y: Any, classes: Any = None, sample_weight: Any = None, *, total: float | None = None
    ) -> Self:
        """Takes in one chunk of a table that is larger than memory; see `topkloss.tabular.stream`.

        The objective is that of `fit` for all examples so far; after a `fit` the first call starts again. A chunk is
        not kept: a parabola replaces its losses. So the coefficients are near the optimum but not certified, and there
        is no `dual_gap_`. Chunks should have several times as many rows as X has columns.

        Cost: three to ten Newton steps on the chunk, and (d + 1)^2 numbers kept for each problem; with "softmax"
        (m (d + 1))^2 numbers for all m classes together.

        Args:
            X, y, sample_weight: The chunk; see `fit`.
            classes: All labels that will ever be passed; needed at the first call, unless `fit` saw them.
            total: The mass of all examples (without weights, their number), if each will be passed more than once:
                every pass then brings the coefficients nearer to those of `fit`. Needed at the first call. By default
                an example that is passed twice has weight 2.
        """
        check_estimator_arguments(self, CLASSIFICATION)
        first = not hasattr(self, "_streams")
        check_stream(self, total)
        X, y, mass = self._read(X, y, sample_weight, reset=first)
        check_classification_targets(y)
        known = np.unique(classes) if classes is not None else getattr(self, "classes_", np.unique(y))
        unknown = np.setdiff1d(y, known).tolist()
        if unknown:
            raise ValueError(
                f"`y` must hold labels of `classes`, {known}; got {unknown[0]!r}. Name all labels at the first call."
            )
        _check_partial_fit_first_call(self, classes)
        mass = masses_of_classes(self.class_weight, self.classes_, y, mass)
        self._feed(X, self._tasks(y, self.classes_), mass, total)
        self._merge()
        return self

    def _merge(self) -> None:
        """Replaces two outputs of which only the difference matters by one."""
        if self.loss == "softmax" and len(self.classes_) == 2:
            self.coef_, self.intercept_ = np.diff(self.coef_, axis=0), np.diff(self.intercept_)

    def _tasks(self, labels: Any, classes: Any) -> list[Task]:
        loss = CLASSIFICATION[self.loss]
        if self.loss == "softmax":
            return [Task(loss, np.searchsorted(classes, labels).astype(np.float64), len(classes))]
        positive = classes[1:] if len(classes) == 2 else classes
        return [Task(loss, np.where(labels == one, 1.0, -1.0)) for one in positive]


class AverageTopKRegressor(LinearRegressor):
    r"""Linear regression that minimises the average of its k largest losses, to a certified accuracy.

    .. math:: \min_{w, b}\ \frac1k \sum_{i \le k} s_{[i]} \ell_{[i]} + \frac{|w|^2}{2\, C S}, \quad S = \sum_i s_i

    Args:
        loss: "squared", (z - y)^2 without a half; "absolute"; "huber", (z - y)^2 / 2 up to `delta` and linear beyond.
        k, fraction, drop, drop_fraction, C, l1_ratio, fit_intercept, penalize_intercept, solver, tol, max_iter,
            warm_start: See `AverageTopKClassifier`.
        delta: The error beyond which the Huber loss is linear, > 0, in units of y.

    Attributes:
        coef_: The coefficients, shape (d,).
        intercept_: The intercept, a number.
        threshold_, dual_gap_, n_iter_: Numbers; see `AverageTopKClassifier`.

    Example:
        >>> import numpy as np
        >>> features = np.array([[0.0], [1.0], [2.0], [3.0]])
        >>> model = AverageTopKRegressor("absolute", k=1, C=1e4).fit(features, [0.0, 1.0, 2.0, 7.0])
        >>> model.predict(features).round(3)  # the smallest possible maximum of the errors
        array([-1.333,  1.   ,  3.333,  5.667])

    Cost, Reference: See `AverageTopKClassifier`.
    """

    def __init__(
        self,
        loss: str = "squared",
        *,
        k: float | None = None,
        fraction: float | None = None,
        drop: float | None = None,
        drop_fraction: float | None = None,
        C: float = 1.0,
        l1_ratio: float = 0.0,
        delta: float = 1.0,
        fit_intercept: bool = True,
        penalize_intercept: bool = False,
        solver: str = "auto",
        tol: float = 1e-4,
        max_iter: int = 1000,
        warm_start: bool = False,
    ) -> None:
        self.loss = loss
        self.k = k
        self.fraction = fraction
        self.drop = drop
        self.drop_fraction = drop_fraction
        self.C = C
        self.l1_ratio = l1_ratio
        self.delta = delta
        self.fit_intercept = fit_intercept
        self.penalize_intercept = penalize_intercept
        self.solver = solver
        self.tol = tol
        self.max_iter = max_iter
        self.warm_start = warm_start

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Fits the regression.

        Args:
            X: Features, dense or sparse, shape (n, d), finite.
            y: Numbers, shape (n,).
            sample_weight: Mass of each example, >= 0; an integer is repetition, 0 leaves an example out.
        """
        task, X, mass = self._prepare(X, y, sample_weight)
        self._solve(X, [task], mass)
        self._flatten("coef_", "intercept_", "threshold_", "dual_gap_", "n_iter_")
        return self

    @available_if(can_stream)
    def partial_fit(self, X: Any, y: Any, sample_weight: Any = None, *, total: float | None = None) -> Self:
        """Takes in one chunk of a table that is larger than memory; see `AverageTopKClassifier.partial_fit`."""
        check_stream(self, total)
        task, X, mass = self._prepare(X, y, sample_weight, reset=not hasattr(self, "_streams"))
        self._feed(X, [task], mass, total)
        self._flatten("coef_", "intercept_", "threshold_", "n_iter_")
        return self

    def _prepare(self, features: Any, targets: Any, sample_weight: Any, *, reset: bool = True) -> tuple[Task, Any, Any]:
        """The problem that the data make, the checked features, and the masses."""
        check_estimator_arguments(self, REGRESSION)
        if not 0 < self.delta < np.inf:
            raise ValueError(f"`delta` must satisfy 0 < delta < inf; got {self.delta}. Pass a usual error.")
        features, targets, mass = self._read(features, targets, sample_weight, y_numeric=True, reset=reset)
        loss = Huber(float(self.delta)) if self.loss == "huber" else REGRESSION[self.loss]
        return Task(loss, targets.astype(np.float64, copy=False)), features, mass

    def _flatten(self, *names: str) -> None:
        """Replaces the arrays over problems by the row or number of the only problem."""
        for name in names:
            only = getattr(self, name)[0]
            setattr(self, name, only if name == "coef_" else only.item())
