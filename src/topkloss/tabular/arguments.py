"""Checks of the arguments of an estimator, and the sentences of their errors."""

from __future__ import annotations

import math
import numbers
from collections.abc import Collection
from typing import Any

import numpy as np
import torch
from sklearn.utils.class_weight import compute_class_weight
from sklearn.utils.sparsefuncs import min_max_axis

from topkloss.base.arguments import check_drop, check_k, check_word, real_number
from topkloss.ranking.ranking import requested_mass
from topkloss.tabular.losses import Array

__all__ = ["can_stream", "check_estimator_arguments", "check_magnitude", "check_stream", "masses_of_classes", "resolve"]

# The squares of features, added up over a row, must not overflow; nor their squares again, in the length of a gradient.
LARGEST = 1e70


def check_estimator_arguments(estimator: Any, losses: Collection[str]) -> None:
    """Checks all arguments of an estimator but the data, before anything is computed."""
    check_word("loss", estimator.loss, *losses, hint=f'The usual one is loss="{next(iter(losses))}".')
    check_word("solver", estimator.solver, "auto", "newton", "lbfgs", hint='To have it chosen pass solver="auto".')
    if estimator.k is not None or estimator.fraction is not None:
        check_k(estimator.k, estimator.fraction)
    check_drop(estimator.drop, estimator.drop_fraction)
    if not 0 < real_number("C", estimator.C) < math.inf:
        raise ValueError(f"`C` must satisfy 0 < C < inf; got {estimator.C}. For a weak penalty pass e.g. C=1e4.")
    if not 0 <= real_number("l1_ratio", estimator.l1_ratio) < 1:
        raise ValueError(
            f"`l1_ratio` must satisfy 0 <= l1_ratio < 1, because the squared penalty is what proves w; got "
            f"{estimator.l1_ratio}. For nearly nothing but an l1 penalty pass l1_ratio=0.99."
        )
    if not 0 < real_number("tol", estimator.tol) < 1:
        raise ValueError(
            f"`tol` must satisfy 0 < tol < 1, the relative error of w; got {estimator.tol}. Pass e.g. tol=1e-4."
        )
    if not isinstance(estimator.max_iter, numbers.Integral) or estimator.max_iter < 1:
        raise ValueError(f"`max_iter` must be an integer >= 1; got {estimator.max_iter!r}. Pass e.g. max_iter=1000.")


def can_stream(estimator: Any) -> bool:
    """Whether an estimator has `partial_fit`: it must average a fraction, drop nothing, and have no l1 penalty."""
    if estimator.k is not None:
        raise AttributeError(
            "`partial_fit` needs `fraction` in the place of `k`, because it does not know the mass of all examples; "
            f"got k={estimator.k!r}. Pass fraction=k/n, or use `fit`."
        )
    if estimator.drop or estimator.drop_fraction:
        raise AttributeError(
            "`partial_fit` cannot leave out the largest losses, because it does not call examples back; got "
            f"drop={estimator.drop!r}, drop_fraction={estimator.drop_fraction!r}. Use `fit`."
        )
    if estimator.l1_ratio:
        raise AttributeError(
            f"`partial_fit` has no l1 penalty; got l1_ratio={estimator.l1_ratio!r}. Pass l1_ratio=0, or use `fit`."
        )
    return True


def check_stream(estimator: Any, total: float | None) -> None:
    """Checks `total` and the class weights of `partial_fit`."""
    if total is not None and not 0 < real_number("total", total) < math.inf:
        raise ValueError(f"`total` must satisfy 0 < total < inf; got {total}. Without weights pass the number of rows.")
    begun = [stream.total for stream in getattr(estimator, "_streams", [])]
    if begun and total is not None and total != begun[0]:
        raise ValueError(
            f"`total` must stay what it was at the first call, {begun[0]}; got {total}. Leave it out of later calls."
        )
    if getattr(estimator, "class_weight", None) == "balanced":
        raise ValueError(
            "`class_weight` must be a dict or None for `partial_fit`, which does not know how many examples there will "
            'be of each class; got "balanced". Pass e.g. class_weight={0: 1.0, 1: 9.0}.'
        )


def check_magnitude(features: Any) -> None:
    """Checks that the squares of the features can be added up."""
    low, high = min_max_axis(features, axis=0) if hasattr(features, "tocsr") else (features.min(0), features.max(0))
    most = max(abs(float(np.min(low))), abs(float(np.max(high))))
    if most > LARGEST:
        raise ValueError(
            f"`X` must hold values of at most {LARGEST:g} in size; got {most:g}. "
            "Scale the features, e.g. by sklearn.preprocessing.StandardScaler, or divide by the largest."
        )


def masses_of_classes(class_weight: Any, classes: Any, targets: Any, mass: Array) -> Array:
    """The mass of each example times the weight of its class.

    "balanced" gives all classes the same mass together, as `compute_class_weight` does, whatever the sample weights.
    """
    if class_weight is None:
        return mass
    codes = np.searchsorted(classes, targets)
    if class_weight == "balanced":
        held = np.bincount(codes, weights=mass, minlength=len(classes))
        weights = mass.sum() / (len(classes) * np.where(held > 0, held, 1.0))
    else:
        weights = compute_class_weight(class_weight, classes=classes, y=targets)
    found: Array = mass * weights[codes]
    return found


def resolve(estimator: Any, total: float) -> tuple[float, float]:
    """The mass that is averaged and the mass that is dropped first, out of a total mass."""
    whole = torch.tensor(total, dtype=torch.float64)
    asked = (estimator.k, estimator.fraction)
    k = total if asked == (None, None) else float(requested_mass(whole, *asked))
    if not estimator.drop and not estimator.drop_fraction:
        return k, 0.0
    dropped = float(requested_mass(whole, estimator.drop, estimator.drop_fraction))
    if dropped >= total * (1 - 1e-11):
        raise ValueError(
            f"`drop` must be less than the mass of all examples, {total:g}; got {estimator.drop!r}. "
            "To leave out the 2 % largest pass drop_fraction=0.02."
        )
    return k, dropped
