"""A score as a sum over examples, so that the difference of two models on the same examples has a variance."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from topkloss.app.runs.held_out import HeldOut, Outputs

__all__ = ["Floats", "contributions", "of_classes", "of_numbers", "ordered"]

Floats = NDArray[np.float64]


def contributions(held: HeldOut, model: str, score: str) -> Floats | None:
    r"""What each held-out example adds to a score, the larger the better, shape (n,); their sum is the score.

    Accuracy, balanced accuracy, cross-entropy and absolute error (both negative) and R2 are sums. Mean F1 and AUROC are
    not: an example adds :math:`(\mathrm{score} + \psi_i) / n`, where :math:`\psi_i` is the influence of the example,
    whose mean is 0 (of the AUROC, DeLong et al.'s placements. Biometrics 1988). The differences of two models' sums
    then vary as those of the scores do, to first order.

    Args:
        held: The examples.
        model: Which of its models.
        score: "accuracy", "balanced-accuracy", "f1", "auroc", "cross-entropy", "r2" or "absolute-error".

    Returns:
        In the order of the examples; None where the score is undefined, or what it needs was not recorded.
    """
    outputs = held.models[model]
    if score in ("r2", "absolute-error"):
        return of_numbers(_floats(held.labels), _floats(outputs.predictions), score)
    return of_classes(held.labels, outputs, held.classes, score)


def ordered(held: HeldOut, model: str, score: str) -> Floats | None:
    """See `contributions`: in the order of what tells the examples apart, the same in all runs on the same."""
    parts = contributions(held, model, score)
    return None if parts is None else parts[np.argsort(np.array(held.examples), kind="stable")]


def of_numbers(labels: Floats, predictions: Floats, score: str) -> Floats | None:
    """See `contributions`: of labels that are numbers."""
    errors = predictions - labels
    if score == "absolute-error":
        found: Floats = -np.abs(errors) / len(errors)
        return found
    spread = float(((labels - labels.mean()) ** 2).sum())
    explained: Floats = 1 / len(errors) - errors**2 / spread if spread > 0 else np.empty(0)
    return explained if len(explained) else None


def of_classes(labels: Sequence[str], outputs: Outputs, classes: Sequence[str], score: str) -> Floats | None:
    """See `contributions`: of labels that are classes."""
    n = len(labels)
    if score == "cross-entropy":
        return -_floats(outputs.losses) / n if outputs.losses else None
    names = sorted({*labels, *outputs.predictions, *classes})
    place = {name: number for number, name in enumerate(names)}
    true = np.array([place[label] for label in labels])
    predicted = np.array([place[label] for label in outputs.predictions])
    right = (true == predicted).astype(np.float64)
    support = np.bincount(true, minlength=len(names))
    if score == "accuracy":
        each: Floats = right / n
        return each
    if score == "balanced-accuracy":
        balanced: Floats = right / (support[true] * (support > 0).sum())
        return balanced
    if score == "f1":
        return _f1(true, predicted, right, len(names))
    if not outputs.scores:
        return None
    return _auroc(true, np.array(outputs.scores), [place[name] for name in classes], support)


def _f1(true: NDArray[np.intp], predicted: NDArray[np.intp], right: Floats, count: int) -> Floats:
    """Of a class 2 TP / (support + predicted); the mean over those where that is not 0 / 0."""
    hits = np.bincount(true, weights=right, minlength=count)
    total = np.bincount(true, minlength=count) + np.bincount(predicted, minlength=count)
    known = total > 0
    each = np.divide(2 * hits, total, out=np.zeros(count), where=known)
    rate = np.divide(1.0, total, out=np.zeros(count), where=known)
    influence = 2 * right * rate[true] - each[true] * rate[true] - each[predicted] * rate[predicted]
    found: Floats = each[known].mean() / len(true) + influence / known.sum()
    return found


def _auroc(true: NDArray[np.intp], scores: Floats, places: Sequence[int], support: NDArray[np.intp]) -> Floats | None:
    """Of a class the share of pairs that are ranked right, ties half; the mean over those that have a pair."""
    n = len(true)
    areas, influence = [], np.zeros(n)
    for column, label in enumerate(places):
        m = int(support[label])
        if not 0 < m < n:
            continue
        mine, positive = scores[:, column], true == label
        ranks = _ranks(mine)
        above = np.empty(n)  # of an example the share of the other kind that it is on the right side of
        above[positive] = (ranks[positive] - _ranks(mine[positive])) / (n - m)
        above[~positive] = 1 - (ranks[~positive] - _ranks(mine[~positive])) / m
        area = float(above[positive].mean())
        areas.append(area)
        influence += (above - area) / np.where(positive, m, n - m)
    return np.mean(areas) / n + influence / len(areas) if areas else None


def _ranks(values: Floats) -> Floats:
    """From 1 on; equal values share the mean of theirs."""
    ordered = np.sort(values)
    found: Floats = (np.searchsorted(ordered, values) + np.searchsorted(ordered, values, side="right") + 1) / 2
    return found


def _floats(cells: Sequence[str] | Sequence[float]) -> Floats:
    return np.array([float(cell) for cell in cells], dtype=np.float64)
