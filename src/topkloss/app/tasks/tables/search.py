"""Which fraction and C: by cross-validation on the training rows, with the estimators of `topkloss.tabular`."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn import config_context
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import get_scorer
from sklearn.model_selection import GridSearchCV, GroupKFold, KFold, StratifiedGroupKFold, StratifiedKFold

from topkloss.app.errors import InputError
from topkloss.app.options.option import known
from topkloss.app.tasks.tables.columns import Floats
from topkloss.app.tasks.tables.config import TableConfig
from topkloss.app.tasks.tables.model import estimator
from topkloss.tabular import AverageTopKClassifierCV, AverageTopKRegressorCV

__all__ = ["Fitted", "Training", "search"]

SCORERS = {
    "accuracy": "accuracy",
    "balanced-accuracy": "balanced_accuracy",
    "cross-entropy": "neg_log_loss",
    "r2": "r2",
    "absolute-error": "neg_mean_absolute_error",
}

Fold = tuple[NDArray[np.intp], NDArray[np.intp]]


@dataclass(frozen=True)
class Training:
    """The training rows, encoded.

    Attributes:
        features: Shape (n, features).
        labels: Numbers; of classes, their places.
        weights: None for 1 each.
        groups: None where nothing is grouped.
        classes: Their names; empty for numbers.
    """

    features: Floats
    labels: Floats
    weights: Floats | None
    groups: Sequence[str] | None
    classes: tuple[str, ...]


@dataclass(frozen=True)
class Fitted:
    """A model of all training rows, and how it was chosen.

    Attributes:
        model: The estimator.
        fraction, C: Chosen.
        score: Mean over the folds of what was chosen by, the larger the better; None where there was no choice.
        tried: Pairs of fraction and C.
    """

    model: Any
    fraction: float
    C: float
    score: float | None
    tried: int


def search(training: Training, config: TableConfig, fractions: Sequence[float], *, drop: float | None) -> Fitted:
    """Chooses among fractions and C, then fits all training rows.

    Args:
        training: The rows.
        config: From `checked`.
        fractions: Among which is chosen.
        drop: Share of the largest losses that is left out first.

    Raises:
        InputError: If the rows do not allow it.
    """
    weight = {} if training.weights is None else {"sample_weight": training.weights}
    score, tried = None, len(fractions) * len(config.C)
    fraction, strength = fractions[0], config.C[0]
    try:
        if tried > 1:
            with warnings.catch_warnings():  # what goes on in a fold; the model of all rows says it again
                warnings.filterwarnings("ignore", message="`fraction`")
                warnings.filterwarnings("ignore", category=ConvergenceWarning)
                choose = _choose if drop is None else _choose_with_drop
                fraction, strength, score = choose(training, config, fractions, drop, weight)
        model = estimator(config, fraction=fraction, C=strength, drop_fraction=drop)
        with warnings.catch_warnings():  # the report says what was proved
            warnings.filterwarnings("ignore", category=ConvergenceWarning)
            model.fit(training.features, training.labels, **weight)
        return Fitted(model, fraction, strength, score, tried)
    except InputError:
        raise
    except ValueError as error:  # a sentence of the estimators
        raise InputError(str(error)) from error


def folds(training: Training, config: TableConfig) -> list[Fold]:
    """Each class in each part, no group in two.

    Raises:
        InputError: If that cannot be.
    """
    hint = "Pass one --fractions and one --C, which takes no choice, or add rows."
    places, most = np.arange(len(training.labels)), config.folds
    whole = len(places) // 2  # of numbers: a score needs two
    if training.groups is not None:
        of_class = _groups_of_classes(training, training.groups)
        most = min(most, *of_class.values())
        if most < 2:
            raise InputError(f"Cross-validation must find each class in 2 training groups or more; got one. {hint}")
        kind = StratifiedGroupKFold if training.classes else GroupKFold
    else:
        most = min(most, *(Counter(training.labels.tolist()).values() if training.classes else [whole]))
        if most < 2:
            what = "2 training rows of each class; got 1" if training.classes else f"4 training rows; got {len(places)}"
            raise InputError(f"Cross-validation must find {what}. {hint}")
        kind = StratifiedKFold if training.classes else KFold
    parted = kind(most, shuffle=True, random_state=config.seed)
    found: list[Fold] = list(parted.split(places, training.labels, training.groups))
    for train, held_out in found:
        if len(np.unique(training.labels[train])) < len(training.classes) or len(held_out) < 2:
            raise InputError(
                "Cross-validation must find each class, or two rows, in each part; got groups that leave too little. "
                f"{hint}"
            )
    return found


def _groups_of_classes(training: Training, groups: Sequence[str]) -> dict[float, int]:
    """The number of groups that each class is in; of numbers, the number of groups."""
    labels = training.labels.tolist() if training.classes else [0.0] * len(training.labels)
    return Counter(label for label, _ in set(zip(labels, groups, strict=True)))


def _choose(
    training: Training, config: TableConfig, fractions: Sequence[float], drop: float | None, weight: dict[str, Any]
) -> tuple[float, float, float]:
    """Along warm-started paths."""
    kind: Any = AverageTopKRegressorCV
    own: dict[str, Any] = {"delta": config.delta or 1.0}
    if config.task == "classification":
        kind = AverageTopKClassifierCV
        own = {"class_weight": None if config.class_weights == "none" else "balanced"}
    chosen = kind(
        known(config.row_loss, "row-loss").replace("-", "_"),
        fractions=fractions,
        Cs=config.C,
        cv=folds(training, config),
        scoring=SCORERS[known(config.score, "score")],
        **own,
    ).fit(training.features, training.labels, **weight)
    return chosen.fraction_, chosen.C_, float(chosen.scores_.mean(axis=0).max())


def _choose_with_drop(
    training: Training, config: TableConfig, fractions: Sequence[float], drop: float | None, weight: dict[str, Any]
) -> tuple[float, float, float]:
    """The estimators that choose know no drop: scikit-learn's grid does, each model from its beginning."""
    with config_context(enable_metadata_routing=True):
        routed = bool(weight)
        model = estimator(config, drop_fraction=drop).set_fit_request(sample_weight=routed)
        scorer = get_scorer(SCORERS[known(config.score, "score")]).set_score_request(sample_weight=routed)
        grid = {"fraction": list(fractions), "C": list(config.C)}
        chosen = GridSearchCV(model, grid, scoring=scorer, cv=folds(training, config), refit=False)
        chosen.fit(training.features, training.labels, **weight)
    means, pairs = chosen.cv_results_["mean_test_score"], chosen.cv_results_["params"]
    # of equally good ones the largest fraction, then the strongest penalty: the plainest model
    best = max(range(len(pairs)), key=lambda at: (means[at], pairs[at]["fraction"], -pairs[at]["C"]))
    return pairs[best]["fraction"], pairs[best]["C"], float(means[best])
