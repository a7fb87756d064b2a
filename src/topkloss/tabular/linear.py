"""Base classes of the linear models: from checked data to coefficients, and from coefficients to predictions."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import expit, softmax
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data

from topkloss.tabular.arguments import check_magnitude, resolve
from topkloss.tabular.design import Design
from topkloss.tabular.losses import Array, Loss
from topkloss.tabular.problem import Problem
from topkloss.tabular.proximal import Solution, solve
from topkloss.tabular.ranked_range import solve_ranked_range
from topkloss.tabular.stream import Stream
from topkloss.tabular.zero import smallest_fraction

__all__ = ["LinearClassifier", "LinearRegressor", "Task"]


@dataclass(frozen=True)
class Task:
    """One problem of an estimator: its loss, its targets, and its number of outputs."""

    loss: Loss
    targets: Array
    outputs: int = 1


class _Linear(BaseEstimator):
    """Base of the classifier and the regressor: from checked data to coefficients."""

    def _read(self, features: Any, targets: Any, sample_weight: Any, **checks: Any) -> tuple[Any, Any, Array]:
        """The examples with mass: their features, targets and masses."""
        features, targets = validate_data(
            self, features, targets, accept_sparse=["csr", "csc"], dtype=[np.float64, np.float32], **checks
        )
        mass = _check_sample_weight(sample_weight, features, dtype=np.float64, ensure_non_negative=True)
        check_magnitude(features)
        counts = mass > 0
        if not counts.all():
            return features[counts], targets[counts], mass[counts]
        return features, targets, mass

    def _solve(self, features: Any, tasks: list[Task], mass: Array) -> None:
        """Solves each problem of `fit`, and stores what was learned."""
        design = Design(features, intercept=self.fit_intercept)
        k, dropped = resolve(self, float(mass.sum()))
        self.__dict__.pop("_streams", None)
        solutions: list[Solution] = []
        for number, task in enumerate(tasks):
            problem = Problem(
                design,
                task.targets,
                task.loss,
                mass,
                k,
                self.C * float(mass.sum()) / (1.0 - self.l1_ratio),
                task.outputs,
                penalised=self.fit_intercept and self.penalize_intercept,
                l1=self.l1_ratio / (self.C * float(mass.sum())),
            )
            start = self._start(number, task.outputs, design.columns)
            given = {"tol": self.tol, "max_iter": self.max_iter, "method": self.solver, "start": start}
            solution = solve_ranked_range(problem, dropped, **given) if dropped else solve(problem, **given)
            solutions.append(solution)
            self._warn(problem, solution, ranked=dropped > 0)
        learned = [(one.coefficients, one.certificate.threshold, one.iterations) for one in solutions]
        self._store(learned, features.shape[1])
        self.dual_gap_ = np.array([one.certificate.gap for one in solutions])

    def _start(self, number: int, outputs: int, columns: int) -> Array | None:
        """The coefficients of the last fit, if they are asked for and have the right shape."""
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
            hint = (
                "No fraction has another optimum."
                if fraction is None
                else f"The smallest fraction for which it is not is about {fraction:.2g}."
            )
            warnings.warn(
                f"`fraction` = {problem.k / float(problem.mass.sum()):.3g} is too small for these data: the optimum is "
                f"to predict the same for every example, with all coefficients 0. {hint}",
                UserWarning,
                stacklevel=4,
            )

    def _store(self, learned: list[tuple[Array, float, int]], columns: int) -> None:
        """Stores the coefficients, threshold and number of steps of each problem."""
        models, thresholds, steps = zip(*learned, strict=True)
        self.coef_ = np.hstack([one[:columns] for one in models]).T
        self.intercept_ = np.zeros(len(self.coef_))
        if self.fit_intercept:
            self.intercept_ = np.hstack([one[-1] for one in models])
        self.threshold_ = np.array(thresholds)
        self.n_iter_ = np.array([max(1, one) for one in steps])

    def _feed(self, features: Any, tasks: list[Task], mass: Array, total: float | None) -> None:
        """Takes a chunk into the streams of `partial_fit`, one for each problem."""
        if not hasattr(self, "_streams"):
            self.__dict__.pop("dual_gap_", None)
            self._streams = [
                Stream(
                    task.loss,
                    1.0 if self.fraction is None else float(self.fraction),
                    float(self.C),
                    total,
                    features.shape[1],
                    task.outputs,
                    self.fit_intercept,
                    self.penalize_intercept,
                )
                for task in tasks
            ]
        if mass.sum() > 0:
            design = Design(features, intercept=self.fit_intercept)
            for stream, task in zip(self._streams, tasks, strict=True):
                stream.update(design, task.targets, mass)
        learned = [(one.coefficients, one.threshold, one.iterations) for one in self._streams]
        self._store(learned, features.shape[1])

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


class LinearClassifier(ClassifierMixin, _Linear):
    """Base of the classifiers: from outputs to labels and probabilities."""

    def decision_function(self, X: Any) -> Array:
        """The outputs: shape (n,) for two classes, where > 0 means the second; (n, classes) for more."""
        outputs = self._outputs(X)
        return outputs[:, 0] if outputs.shape[1] == 1 else outputs

    def predict(self, X: Any) -> Any:
        """The label of the largest output."""
        outputs = self.decision_function(X)
        chosen = (outputs > 0).astype(np.intp) if outputs.ndim == 1 else outputs.argmax(axis=1)
        return self.classes_[chosen]

    @available_if(_gives_probabilities)
    def predict_proba(self, X: Any) -> Array:
        """The probabilities, shape (n, classes): of the losses that were averaged, not of the population.

        Below fraction 1 they are tilted towards one half, because easy examples were left out: calibrate them, e.g. by
        `sklearn.calibration.CalibratedClassifierCV`, where their values matter.
        """
        outputs = self.decision_function(X)
        if outputs.ndim == 1:
            positive: Array = expit(outputs)
            return np.column_stack([expit(-outputs), positive])
        if self.loss == "softmax":
            probabilities: Array = softmax(outputs, axis=1)
            return probabilities
        each = expit(outputs)
        total = each.sum(axis=1, keepdims=True)
        alike: Array = np.where(total > 0, each / np.where(total > 0, total, 1.0), 1.0 / each.shape[1])
        return alike

    @available_if(_gives_probabilities)
    def predict_log_proba(self, X: Any) -> Array:
        """The logarithms of `predict_proba`."""
        logarithms: Array = np.log(np.maximum(self.predict_proba(X), np.finfo(np.float64).tiny))
        return logarithms


class LinearRegressor(RegressorMixin, _Linear):
    """Base of the regressors: the output is the prediction."""

    def predict(self, X: Any) -> Array:
        """The predictions, shape (n,)."""
        return self._outputs(X)
