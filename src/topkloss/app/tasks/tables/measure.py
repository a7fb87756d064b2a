"""Metrics of a model on labelled rows, with intervals over the choice of rows."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch

from topkloss.app.runs.classification import RESAMPLES, measure
from topkloss.app.runs.metrics import Bin, ClassMetrics, Metric
from topkloss.app.tasks.tables.columns import Floats
from topkloss.app.tasks.tables.model import Linear

__all__ = ["Metrics", "gains", "judged_by", "measure_rows"]

# Resamples x rows at a time: 32 MB.
AT_ONCE = 4_000_000


@dataclass(frozen=True)
class Metrics:
    """See the attributes of the same names of `topkloss.app.runs.metrics.Evaluation`."""

    metrics: dict[str, Metric]
    classes: tuple[ClassMetrics, ...] = ()
    confusion: tuple[tuple[int, ...], ...] = ()
    bins: tuple[Bin, ...] = ()


def measure_rows(
    model: Linear, features: Floats, labels: Floats, *, resamples: int = RESAMPLES, seed: int = 0
) -> Metrics:
    r"""All metrics of some rows; each row counts alike.

    Of classes those of `images.measure.measure`; a loss without probabilities has no cross-entropy, no
    calibration, and with more than two classes no AUROC. Of numbers, with errors e,

    .. math:: \mathrm{MAE} = \overline{|e|}, \qquad \mathrm{RMSE} = \sqrt{\overline{e^2}}, \qquad
        R^2 = 1 - \sum e^2 / \sum (y - \bar y)^2

    Args:
        model: Of the run.
        features: Encoded, shape (n, features).
        labels: Numbers; of classes, their places.
        resamples: Sets of rows that are drawn for the intervals; 0 = none.
        seed: Decides which.
    """
    if not model.classes:
        return Metrics(_of_numbers(model.numbers(features), labels, resamples, seed))
    logits, places = model.logits(features), torch.from_numpy(labels.astype(np.int64))
    found = measure(logits, places, model.classes, resamples=resamples, seed=seed)
    if model.has_probabilities:
        return Metrics(found.metrics, found.classes, found.confusion, found.bins)
    ranks = len(model.classes) == 2
    unfit = {"cross_entropy", "calibration_error", *(() if ranks else ("auroc",))}
    metrics = {name: metric for name, metric in found.metrics.items() if name not in unfit}
    classes = tuple(one if ranks else replace(one, auroc=None) for one in found.classes)
    return Metrics(metrics, classes, found.confusion)


def judged_by(score: str, labels: Floats) -> str:
    """The score that a model was chosen by; where labels are all the same there is no R2, but an absolute error."""
    return "absolute-error" if score == "r2" and labels.var() == 0 else score


def gains(model: Linear, plain: Linear, features: Floats, labels: Floats, score: str) -> tuple[float, float]:
    r"""What a model gains on another on the same rows, and as much of it as the choice of the rows explains.

    The gain of a row is 1, 0 or -1 by which of the two is right; under the score "cross-entropy" it is by how much its
    cross-entropy is smaller, under "absolute-error" by how much its absolute error is, under "r2" by how much its
    squared error is, over the variance of the labels. The first number is the mean g, under "balanced-accuracy" that of
    the classes' means; the second is twice its standard error,

    .. math:: 1.96 \sqrt{\mathrm{var} / n}, \qquad 1.96 \sqrt{\textstyle\sum_c \mathrm{var}_c / n_c} / C
    """
    if not model.classes:
        errors = [one.numbers(features) - labels for one in (plain, model)]
        powers = [error**2 if score == "r2" else np.abs(error) for error in errors]
        each = (powers[0] - powers[1]) / (labels.var() if score == "r2" else 1.0)
    elif score == "cross-entropy":
        own = labels.astype(np.intp), np.arange(len(labels))
        costs = [-one.logits(features).log_softmax(1).numpy()[own[1], own[0]] for one in (model, plain)]
        each = costs[1] - costs[0]
    else:
        right = [(one.logits(features).argmax(1).numpy() == labels).astype(np.float64) for one in (model, plain)]
        each = right[0] - right[1]
    parts = [each[labels == label] for label in np.unique(labels)] if score == "balanced-accuracy" else [each]
    spread = math.sqrt(sum(float(part.var()) / len(part) for part in parts))
    return float(np.mean([part.mean() for part in parts])), 1.96 * spread / len(parts)


def _of_numbers(predicted: Floats, labels: Floats, resamples: int, seed: int) -> dict[str, Metric]:
    error = predicted - labels
    centred = labels - labels.mean()
    columns = np.column_stack([np.abs(error), error**2, centred, centred**2])
    whole = _metrics(columns.mean(axis=0, keepdims=True))
    chance, parts, done, n = np.random.default_rng(seed), [], 0, len(labels)
    while done < resamples:
        size = min(resamples - done, max(1, AT_ONCE // n))
        drawn = chance.integers(n, size=(size, n))
        counts = np.stack([np.bincount(row, minlength=n) for row in drawn]).astype(np.float64)
        parts.append(_metrics(counts @ columns / n))
        done += size
    found = {}
    for name, value in whole.items():
        sets = np.concatenate([part[name] for part in parts]) if parts else np.empty(0)
        sets = sets[np.isfinite(sets)]
        low, high = np.quantile(sets, [0.025, 0.975]) if len(sets) else (None, None)
        found[name] = Metric(*(_number(one) for one in (value[0], low, high)))
    return found


def _metrics(means: Floats) -> dict[str, Floats]:
    """From the means of |e|, e^2, y - c and (y - c)^2, a row for each set."""
    absolute, squared, label, label_squared = means.T
    spread = label_squared - label**2
    with np.errstate(divide="ignore", invalid="ignore"):
        explained = np.where(spread > 0, 1 - squared / spread, np.nan)
    return {"r2": explained, "mean_absolute_error": absolute, "root_mean_square_error": np.sqrt(squared)}


def _number(value: float | None) -> float | None:
    """None for what is undefined."""
    return None if value is None or not math.isfinite(value) else float(value)
