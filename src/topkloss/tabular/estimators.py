r"""The average top-k loss of linear models, under scikit-learn's conventions.

.. math:: \min_{w, b}\ \frac1k \sum_{i \le k} s_{[i]} \ell_{[i]} + \frac{|w|^2}{2\, C S}, \qquad S = \sum_i s_i

averages the k largest losses by mass, s the sample weights times the class weights. C is scikit-learn's: at fraction 1
the objective times C S is its C sum s l + |w|^2 / 2, so that `AverageTopKClassifier(C=C)` is `LogisticRegression(C=C)`,
with loss "hinge" or "squared_hinge" and a penalised intercept `LinearSVC(C=C)`, and `AverageTopKRegressor(C=C)` is
`Ridge(alpha=1 / (2 * C))`. The C of the paper is C S.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from scipy.special import expit, softmax
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.metaestimators import available_if
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data

from topkloss.tabular.arguments import check_estimator_arguments, check_magnitude, masses_of_classes, resolve
from topkloss.tabular.design import Design
from topkloss.tabular.losses import CLASSIFICATION, REGRESSION, Array, Huber, Loss
from topkloss.tabular.problem import Problem
from topkloss.tabular.proximal import Solution, solve
from topkloss.tabular.ranked_range import solve_ranked_range
from topkloss.tabular.zero import smallest_fraction

__all__ = ["AverageTopKClassifier", "AverageTopKRegressor"]


@dataclass(frozen=True)
class _Task:
    """One problem of an estimator: its loss, targets, and how many outputs."""

    loss: Loss
    targets: Array
    outputs: int = 1


class _Linear(BaseEstimator):
    """What the classifier and the regressor share: from checked data to coefficients."""

    def _read(self, features: Any, targets: Any, sample_weight: Any, **checks: Any) -> tuple[Any, Any, Array]:
        """The examples that count: features, targets, masses."""
        features, targets = validate_data(
            self, features, targets, accept_sparse=["csr", "csc"], dtype=[np.float64, np.float32], **checks
        )
        mass = _check_sample_weight(sample_weight, features, dtype=np.float64, ensure_non_negative=True)
        check_magnitude(features)
        counts = mass > 0
        if not counts.all():
            return features[counts], targets[counts], mass[counts]
        return features, targets, mass

    def _solve(self, features: Any, tasks: list[_Task], mass: Array) -> list[Solution]:
        design = Design(features, intercept=self.fit_intercept)
        k, dropped = resolve(self, float(mass.sum()))
        solutions = []
        for number, task in enumerate(tasks):
            problem = Problem(
                design,
                task.targets,
                task.loss,
                mass,
                k,
                self.C * float(mass.sum()),
                task.outputs,
                penalised=self.fit_intercept and self.penalize_intercept,
            )
            start = self._start(number, task.outputs, design.columns)
            given = {"tol": self.tol, "max_iter": self.max_iter, "method": self.solver, "start": start}
            solution = solve_ranked_range(problem, dropped, **given) if dropped else solve(problem, **given)
            solutions.append(solution)
            self._warn(problem, solution, ranked=dropped > 0)
        return solutions

    def _start(self, number: int, outputs: int, columns: int) -> Array | None:
        """Coefficients of the fit before, where asked for and of the right shape."""
        coefficients = np.atleast_2d(getattr(self, "coef_", np.empty((0, 0))))
        rows = slice(number, number + 1) if outputs == 1 else slice(None)
        if not self.warm_start or coefficients[rows].shape != (outputs, columns):
            return None
        start = coefficients[rows].T.astype(np.float64)
        intercepts = np.atleast_1d(self.intercept_)[rows]
        return np.vstack([start, intercepts]) if self.fit_intercept else start

    def _warn(self, problem: Problem, solution: Solution, *, ranked: bool) -> None:
        if not solution.converged:
            warnings.warn(
                f"`tol`={self.tol:g} was not reached in `max_iter`={self.max_iter} steps: the objective is within "
                f"{solution.certificate.gap:.2g} of its optimum. Scale the features, or raise max_iter.",
                ConvergenceWarning,
                stacklevel=4,
            )
        if solution.zero and not ranked and problem.k < float(problem.mass.sum()) and np.ptp(problem.targets) > 0:
            fraction = smallest_fraction(problem)
            way_out = (
                "No fraction has another optimum."
                if fraction is None
                else f"The smallest fraction for which it is not is about {fraction:.2g}."
            )
            warnings.warn(
                f"`fraction` = {problem.k / float(problem.mass.sum()):.3g} is too small for these data: the optimum is "
                f"to predict the same for every example, with all coefficients 0. {way_out}",
                UserWarning,
                stacklevel=4,
            )

    def _store(self, solutions: list[Solution], columns: int) -> None:
        self.coef_ = np.hstack([one.coefficients[:columns] for one in solutions]).T
        self.intercept_ = np.zeros(len(self.coef_))
        if self.fit_intercept:
            self.intercept_ = np.hstack([one.coefficients[-1] for one in solutions])
        self.threshold_ = np.array([one.certificate.threshold for one in solutions])
        self.dual_gap_ = np.array([one.certificate.gap for one in solutions])
        self.n_iter_ = np.array([max(1, one.iterations) for one in solutions])

    def _outputs(self, features: Any) -> Array:
        check_is_fitted(self)
        features = validate_data(
            self, features, accept_sparse=["csr", "csc"], dtype=[np.float64, np.float32], reset=False
        )
        outputs: Array = features @ self.coef_.T + self.intercept_
        return outputs

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags


def _gives_probabilities(estimator: Any) -> bool:
    if estimator.loss in ("logistic", "softmax"):
        return True
    raise AttributeError(
        f'`predict_proba` needs a loss of probabilities; got loss="{estimator.loss}". Pass loss="logistic" or wrap the '
        "estimator in sklearn.calibration.CalibratedClassifierCV."
    )


class AverageTopKClassifier(ClassifierMixin, _Linear):
    r"""Linear classifier that minimises the average of its k largest losses, to a certified accuracy.

    .. math:: \min_{w, b}\ \frac1k \sum_{i \le k} s_{[i]} \ell_{[i]} + \frac{|w|^2}{2\, C S}, \quad S = \sum_i s_i

    With two classes, or one against the rest for each class; with loss "softmax" all classes together.

    Args:
        loss: "logistic", "hinge", "squared_hinge" or "softmax". With "hinge" k is another C and adds no classifier.
        k: Mass that is averaged, > 0, real; above S it means all.
        fraction: `k` as a share of S, in (0, 1]. At most one of the two; default all: the plain model.
        drop: Mass of the largest losses left out first, >= 0: the ranked range, a stationary point of it.
        drop_fraction: `drop` as a share of S. At most one of the two; default none.
        C: Strength of the losses against the penalty, > 0; at fraction 1 that of scikit-learn.
        fit_intercept: Whether there is an intercept.
        penalize_intercept: Whether the penalty includes it, as in `LinearSVC`.
        class_weight: Weight of each class as a dict, or "balanced"; a factor of the mass of its examples.
        solver: "newton" (a square matrix of all coefficients), "lbfgs", or "auto".
        tol: Relative error of the coefficients that the certificate must show: sqrt(2 C S gap) <= tol |w|.
        max_iter: Steps of the solver, for each problem.
        warm_start: Begin from the coefficients of the fit before.

    Attributes:
        classes_: The labels.
        coef_: Shape (1, d) for two classes, (classes, d) for more.
        intercept_: Shape (1,) or (classes,).
        threshold_: The k-th largest loss, of each problem: what is above it is averaged.
        dual_gap_: Of each problem: the objective is at most this much above its optimum; with a drop, above that of
            all models with the same examples dropped.
        n_iter_: Steps taken, of each problem.
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
        self.fit_intercept = fit_intercept
        self.penalize_intercept = penalize_intercept
        self.class_weight = class_weight
        self.solver = solver
        self.tol = tol
        self.max_iter = max_iter
        self.warm_start = warm_start

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Finds the coefficients.

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
        solutions = self._solve(X, self._tasks(y, classes), mass)
        self.classes_ = classes
        self._store(solutions, X.shape[1])
        if self.loss == "softmax" and len(classes) == 2:
            # two outputs of which only the difference matters
            self.coef_, self.intercept_ = np.diff(self.coef_, axis=0), np.diff(self.intercept_)
        return self

    def _tasks(self, labels: Any, classes: Any) -> list[_Task]:
        loss = CLASSIFICATION[self.loss]
        if self.loss == "softmax":
            return [_Task(loss, np.searchsorted(classes, labels).astype(np.float64), len(classes))]
        positive = classes[1:] if len(classes) == 2 else classes
        return [_Task(loss, np.where(labels == one, 1.0, -1.0)) for one in positive]

    def decision_function(self, X: Any) -> Array:
        """Outputs, shape (n,) for two classes, where > 0 is the second; (n, classes) for more."""
        outputs = self._outputs(X)
        return outputs[:, 0] if outputs.shape[1] == 1 else outputs

    def predict(self, X: Any) -> Any:
        """The label of the largest output."""
        outputs = self.decision_function(X)
        chosen = (outputs > 0).astype(np.intp) if outputs.ndim == 1 else outputs.argmax(axis=1)
        return self.classes_[chosen]

    @available_if(_gives_probabilities)
    def predict_proba(self, X: Any) -> Array:
        """Probabilities, shape (n, classes): of the losses that were averaged, not of the population.

        Below fraction 1 they are tilted towards one half, because easy examples were left out: calibrate them, e.g. by
        `sklearn.calibration.CalibratedClassifierCV`, where their values matter.
        """
        outputs = self.decision_function(X)
        if outputs.ndim == 1:
            positive: Array = expit(outputs)
            return np.column_stack([expit(-outputs), positive])
        if self.loss == "softmax":
            chances: Array = softmax(outputs, axis=1)
            return chances
        each = expit(outputs)
        total = each.sum(axis=1, keepdims=True)
        alike: Array = np.where(total > 0, each / np.where(total > 0, total, 1.0), 1.0 / each.shape[1])
        return alike

    @available_if(_gives_probabilities)
    def predict_log_proba(self, X: Any) -> Array:
        """Logarithms of `predict_proba`."""
        chances: Array = np.log(np.maximum(self.predict_proba(X), np.finfo(np.float64).tiny))
        return chances


class AverageTopKRegressor(RegressorMixin, _Linear):
    r"""Linear regression that minimises the average of its k largest losses, to a certified accuracy.

    .. math:: \min_{w, b}\ \frac1k \sum_{i \le k} s_{[i]} \ell_{[i]} + \frac{|w|^2}{2\, C S}, \quad S = \sum_i s_i

    Args:
        loss: "squared", (z - y)^2 without a half; "absolute"; "huber", (z - y)^2 / 2 up to `delta` and a line beyond.
        k, fraction, drop, drop_fraction, C, fit_intercept, penalize_intercept, solver, tol, max_iter, warm_start: See
            `AverageTopKClassifier`.
        delta: Where the Huber loss becomes a line, > 0, in units of y.

    Attributes:
        coef_: Shape (d,).
        intercept_: A number.
        threshold_, dual_gap_, n_iter_: Numbers; see `AverageTopKClassifier`.

    Example:
        >>> import numpy as np
        >>> features = np.array([[0.0], [1.0], [2.0], [3.0]])
        >>> model = AverageTopKRegressor("absolute", k=1, C=1e4).fit(features, [0.0, 1.0, 2.0, 7.0])
        >>> model.predict(features).round(3)  # the maximum of the errors is least
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
        self.delta = delta
        self.fit_intercept = fit_intercept
        self.penalize_intercept = penalize_intercept
        self.solver = solver
        self.tol = tol
        self.max_iter = max_iter
        self.warm_start = warm_start

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Finds the coefficients.

        Args:
            X: Features, dense or sparse, shape (n, d), finite.
            y: Numbers, shape (n,).
            sample_weight: Mass of each example, >= 0; an integer is repetition, 0 leaves an example out.
        """
        check_estimator_arguments(self, REGRESSION)
        if not 0 < self.delta < np.inf:
            raise ValueError(f"`delta` must satisfy 0 < delta < inf; got {self.delta}. Pass a usual error.")
        X, y, mass = self._read(X, y, sample_weight, y_numeric=True)
        y = y.astype(np.float64, copy=False)
        loss = Huber(float(self.delta)) if self.loss == "huber" else REGRESSION[self.loss]
        self._store(self._solve(X, [_Task(loss, y)], mass), X.shape[1])
        self.coef_ = self.coef_[0]
        for name in ("intercept_", "threshold_", "dual_gap_", "n_iter_"):
            setattr(self, name, getattr(self, name)[0].item())
        return self

    def predict(self, X: Any) -> Array:
        """Shape (n,)."""
        return self._outputs(X)
