"""Metrics of a classifier from its logits, with intervals over the choice of images."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics.functional.classification import (
    multiclass_auroc,
    multiclass_confusion_matrix,
    multiclass_f1_score,
    multiclass_precision,
    multiclass_recall,
)

from topkloss.app.runs.metrics import Bin, ClassMetrics, Metric

__all__ = ["BINS", "RESAMPLES", "Measures", "measure"]

BINS = 15
RESAMPLES = 1000
# Resamples x images at a time: 32 MB in float64.
AT_ONCE = 4_000_000
# Resamples x images x classes: beyond, the interval of the AUROC, which ranks, would take longer than the model.
MOST_RANKED = 500_000_000


@dataclass(frozen=True)
class Measures:
    """See the attributes of the same names of `topkloss.app.runs.metrics.Evaluation`."""

    metrics: dict[str, Metric]
    classes: tuple[ClassMetrics, ...]
    confusion: tuple[tuple[int, ...], ...]
    bins: tuple[Bin, ...]


def measure(
    logits: Tensor, labels: Tensor, names: Sequence[str], *, resamples: int = RESAMPLES, seed: int = 0
) -> Measures:
    r"""All metrics of some images.

    The predicted class is the most probable, the first of equals; its probability is the confidence. The expected
    calibration error sorts the images by confidence into `BINS` bins of equal width, each with its lower bound (1 is in
    the last), and is

    .. math:: \sum_b \frac{n_b}{n} |\mathrm{accuracy}_b - \mathrm{confidence}_b|

    Balanced accuracy is the mean recall of the classes that have images. A class without images has no recall, and no
    AUROC, nor has one without others beside it; one that is never predicted has no precision; the means over classes
    leave these out.

    An interval runs from the 2.5 % to the 97.5 % quantile of the metric over sets of n images drawn from the n with
    replacement (Efron's percentile bootstrap). It holds for other images, not for another training; that of the
    calibration error lies high, as chance adds to every bin's difference.

    Args:
        logits: (N, C), finite.
        labels: (N,), int64.
        names: Of the C classes.
        resamples: Sets that are drawn; 0 = no intervals.
        seed: Decides which.
    """
    logits, count = logits.double(), len(names)
    probabilities = logits.softmax(1)
    predicted = logits.argmax(1)
    confusion = multiclass_confusion_matrix(predicted, labels, count)
    images = _Images(
        labels=labels,
        right=(predicted == labels).double(),
        predicted=predicted,
        confidence=probabilities.amax(1),
        cross_entropy=F.cross_entropy(logits, labels, reduction="none"),
        classes=count,
    )
    support = confusion.sum(1)
    per_class = [*_of_classes(predicted, labels, confusion), _auroc(probabilities, labels, support)]
    classes = tuple(
        ClassMetrics(
            name, int(support[label]), int(confusion[:, label].sum()), *(_number(row[label]) for row in per_class)
        )
        for label, name in enumerate(names)
    )
    whole = {**images.metrics(torch.ones(1, len(labels), dtype=torch.float64)), "auroc": per_class[-1].nanmean()[None]}
    drawn = _resampled(images, probabilities, resamples, seed)
    return Measures(
        {name: Metric(_number(value[0]), *_interval(drawn.get(name))) for name, value in whole.items()},
        classes,
        tuple(tuple(row) for row in confusion.tolist()),
        images.bins(),
    )


@dataclass(frozen=True)
class _Images:
    """What is known of each image; the metrics of any resamples of them follow by weighted sums.

    Weights are (B, N): how often image n is in resample b.
    """

    labels: Tensor
    right: Tensor
    predicted: Tensor
    confidence: Tensor
    cross_entropy: Tensor
    classes: int

    def metrics(self, weights: Tensor) -> dict[str, Tensor]:
        """All but the AUROC, (B,) each."""
        n = weights.sum(1)
        right = weights * self.right
        support = _sums(weights, self.labels, self.classes)
        predicted = _sums(weights, self.predicted, self.classes)
        of_class = _sums(right, self.labels, self.classes)
        gap = _sums(weights * (self.right - self.confidence), self.bin, BINS)
        return {
            "accuracy": right.sum(1) / n,
            "balanced_accuracy": (of_class / support).nanmean(1),  # 0 / 0: no image of the class
            "f1": (2 * of_class / (support + predicted)).nanmean(1),
            "cross_entropy": weights @ self.cross_entropy / n,
            "calibration_error": gap.abs().sum(1) / n,
        }

    @property
    def bin(self) -> Tensor:
        """The bin of each image."""
        inner = torch.arange(1, BINS, dtype=torch.float64) / BINS
        return torch.bucketize(self.confidence, inner, right=True)

    def bins(self) -> tuple[Bin, ...]:
        """The reliability diagram."""
        each = torch.stack([torch.ones_like(self.right), self.confidence, self.right])
        images, confidence, right = _sums(each, self.bin, BINS)
        return tuple(
            Bin(
                b / BINS,
                (b + 1) / BINS,
                int(images[b]),
                *(_number(total[b] / images[b]) for total in (confidence, right)),
            )
            for b in range(BINS)
        )


def _sums(values: Tensor, index: Tensor, size: int) -> Tensor:
    """The sum at each index of each row: (B, N) to (B, size)."""
    return values.new_zeros(len(values), size).index_add_(1, index, values)


def _of_classes(predicted: Tensor, labels: Tensor, confusion: Tensor) -> list[Tensor]:
    """Precision, recall and F1 of each class, NaN where 0 / 0."""
    right, support, taken = confusion.diagonal(), confusion.sum(1), confusion.sum(0)
    measured = []
    for metric, total in (
        (multiclass_precision, taken),
        (multiclass_recall, support),
        (multiclass_f1_score, support + taken),
    ):
        value = metric(predicted, labels, num_classes=len(right), average="none").double()
        measured.append(value.masked_fill(total == 0, math.nan))
    return measured


def _auroc(probabilities: Tensor, labels: Tensor, support: Tensor) -> Tensor:
    """The area under the ROC curve of each class against the rest, NaN where there is no pair to rank."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "No (positive|negative) samples in targets", UserWarning)
        area = multiclass_auroc(probabilities, labels, len(support), average="none")
    return area.double().masked_fill((support == 0) | (support == len(labels)), math.nan)


def _resampled(images: _Images, probabilities: Tensor, resamples: int, seed: int) -> dict[str, Tensor]:
    """Each metric of each resample."""
    n = len(images.labels)
    chance = torch.Generator().manual_seed(seed)
    ranked = resamples * n * images.classes <= MOST_RANKED
    parts: list[dict[str, Tensor]] = []
    done = 0
    while done < resamples:
        size = min(resamples - done, max(1, AT_ONCE // n))
        drawn = torch.randint(n, (size, n), generator=chance)
        weights = torch.zeros(size, n, dtype=torch.float64).scatter_add_(
            1, drawn, torch.ones((), dtype=torch.float64).expand(size, n)
        )
        part = images.metrics(weights)
        if ranked:
            part["auroc"] = _mean_auroc(weights, probabilities, images.labels)
        parts.append(part)
        done += size
    return {name: torch.cat([part[name] for part in parts]) for name in (parts[0] if parts else ())}


def _mean_auroc(weights: Tensor, probabilities: Tensor, labels: Tensor) -> Tensor:
    """The mean over the classes of the AUROC under weights (B, N): of positives over negatives, ties half."""
    areas = []
    for label, scores in enumerate(probabilities.T):
        order = scores.argsort()
        scores, positive = scores[order], (labels == label)[order]
        heavy = weights[:, order]
        below = F.pad((heavy * ~positive).cumsum(1), (1, 0))  # negatives before each place
        mine = scores[positive]
        first, last = torch.searchsorted(scores, mine), torch.searchsorted(scores, mine, right=True)
        over = (below[:, first] + below[:, last]) / 2
        positives = heavy[:, positive]
        areas.append((positives * over).sum(1) / (positives.sum(1) * below[:, -1]))
    return torch.stack(areas).nanmean(0)


def _interval(drawn: Tensor | None) -> tuple[float | None, float | None]:
    """Between the 2.5 % and 97.5 % quantiles of the resamples in which the metric is defined."""
    defined = drawn[~drawn.isnan()] if drawn is not None else torch.empty(0)
    if not len(defined):
        return None, None
    low, high = defined.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64))
    return _number(low), _number(high)


def _number(value: Tensor) -> float | None:
    """The value with as many digits as float32 has; None for NaN."""
    return None if bool(value.isnan()) else round(value.item(), 7)
