"""Each metric against scikit-learn or by hand, on random and degenerate images; each interval against its resamples."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator

import pytest
import torch
from sklearn import metrics
from torch import Tensor
from torchmetrics.functional.classification import multiclass_calibration_error

from topkloss.app.runs import classification as measures
from topkloss.app.runs.classification import BINS, Measures, measure
from topkloss.app.runs.metrics import Metric

NAMES = ("a", "b", "c", "d")


def images(n: int, *, seed: int = 0, ties: bool = False, absent: int | None = None) -> tuple[Tensor, Tensor]:
    """Logits that know a little of the labels; with ties, from a handful of values."""
    chance = torch.Generator().manual_seed(seed)
    labels = torch.randint(len(NAMES), (n,), generator=chance)
    if absent is not None:
        labels[labels == absent] = (absent + 1) % len(NAMES)
    logits = torch.randn(n, len(NAMES), generator=chance)
    logits[torch.arange(n), labels] += 1
    return logits.round() if ties else logits, labels


CASES = {
    "random": images(200),
    "ties": images(150, seed=1, ties=True),
    "one class absent": images(120, seed=2, absent=2),
    "few images": images(5, seed=3),
    "all right": (10 * torch.eye(4)[[0, 1, 2, 3, 1]], torch.tensor([0, 1, 2, 3, 1])),
    "all wrong": (10 * torch.eye(4)[[1, 2, 3, 0, 0]], torch.tensor([0, 1, 2, 3, 1])),
    "all alike": (torch.zeros(9, 4), torch.tensor([0, 1, 2, 3, 1, 0, 0, 0, 0])),
    "one class only": (torch.randn(6, 4, generator=torch.Generator().manual_seed(4)), torch.full((6,), 2)),
    "one image": (torch.tensor([[0.0, 1.0, 2.0, 3.0]]), torch.tensor([0])),
    "certain beyond float32": (1000 * torch.eye(4)[[0, 1, 2, 0]], torch.tensor([0, 1, 2, 3])),
}


@pytest.fixture(params=list(CASES.values()), ids=list(CASES))
def case(request: pytest.FixtureRequest) -> tuple[Tensor, Tensor]:
    logits, labels = request.param
    return logits, labels


def oracle_auroc(probabilities: Tensor, labels: Tensor) -> list[float]:
    """Of each class, NaN where scikit-learn has no answer either."""
    areas = []
    for label in range(probabilities.shape[1]):
        positive = labels == label
        undefined = bool(positive.all()) or not bool(positive.any())
        areas.append(math.nan if undefined else float(metrics.roc_auc_score(positive, probabilities[:, label])))
    return areas


def oracle(logits: Tensor, labels: Tensor) -> dict[str, float]:
    """The headline metrics of one set of images, by scikit-learn and by hand."""
    probabilities = logits.double().softmax(1)
    confidence, predicted = probabilities.max(1).values, logits.argmax(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # classes without images
        every = range(logits.shape[1])
        f1 = metrics.f1_score(labels, predicted, average=None, labels=list(every), zero_division=math.nan)
        balanced = metrics.balanced_accuracy_score(labels, predicted)
    gap = 0.0
    for low in range(BINS):
        inside = (confidence * BINS >= low) & ((confidence * BINS < low + 1) | (low == BINS - 1))
        if bool(inside.any()):
            right = (predicted == labels)[inside].double()
            gap += abs(float(right.sum() - confidence[inside].sum())) / len(labels)
    areas = torch.tensor(oracle_auroc(probabilities, labels), dtype=torch.float64)
    return {
        "accuracy": float(metrics.accuracy_score(labels, predicted)),
        "balanced_accuracy": float(balanced),
        "f1": float(torch.tensor(f1).nanmean()),
        "auroc": float(areas.nanmean()),
        "cross_entropy": float(-logits.double().log_softmax(1)[torch.arange(len(labels)), labels].mean()),
        "calibration_error": gap,
    }


def same(value: float | None, expected: float) -> None:
    if math.isnan(expected):
        assert value is None
    else:
        assert value == pytest.approx(expected, abs=2e-7)


def test_the_headline_is_scikit_learns(case: tuple[Tensor, Tensor]) -> None:
    metrics = measure(*case, NAMES, resamples=0).metrics
    expected = oracle(*case)
    assert metrics.keys() == expected.keys()
    for name, value in expected.items():
        same(metrics[name].value, value)
        assert (metrics[name].low, metrics[name].high) == (None, None)


def test_the_classes_are_scikit_learns(case: tuple[Tensor, Tensor]) -> None:
    logits, labels = case
    measured, predicted = measure(*case, NAMES, resamples=0), logits.argmax(1)
    every = list(range(len(NAMES)))
    assert measured.confusion == tuple(map(tuple, metrics.confusion_matrix(labels, predicted, labels=every).tolist()))
    precision, recall, f1, support = metrics.precision_recall_fscore_support(
        labels, predicted, labels=every, zero_division=math.nan
    )
    area = oracle_auroc(logits.double().softmax(1), labels)
    for label, one in enumerate(measured.classes):
        assert (one.name, one.support) == (NAMES[label], support[label])
        assert one.predicted == int((predicted == label).sum())
        same(one.precision, precision[label])
        same(one.recall, recall[label])
        same(one.f1, f1[label])
        same(one.auroc, area[label])


def test_the_bins_add_up_to_the_calibration_error(case: tuple[Tensor, Tensor]) -> None:
    measured = measure(*case, NAMES, resamples=0)
    n = len(case[1])
    assert sum(one.images for one in measured.bins) == n
    assert [one.low for one in measured.bins[1:]] == [one.high for one in measured.bins[:-1]]
    assert (measured.bins[0].low, measured.bins[-1].high) == (0, 1)
    gaps = 0.0
    for one in measured.bins:
        assert (one.confidence is None) == (one.accuracy is None) == (one.images == 0)
        if one.confidence is not None and one.accuracy is not None:
            assert one.low - 1e-7 <= one.confidence <= one.high + 1e-7
            gaps += one.images / n * abs(one.accuracy - one.confidence)
    assert measured.metrics["calibration_error"].value == pytest.approx(gaps, abs=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_the_calibration_error_is_that_of_torchmetrics_below_one(seed: int) -> None:
    """Which has a sixteenth bin for a confidence of exactly 1."""
    logits, labels = images(300, seed=seed)
    theirs = multiclass_calibration_error(logits.double().softmax(1), labels, len(NAMES), n_bins=BINS)
    same(measure(logits, labels, NAMES, resamples=0).metrics["calibration_error"].value, float(theirs))


def test_a_confidence_on_a_bound_is_in_the_upper_bin() -> None:
    logits = torch.tensor([[0.6, 0.4], [1.0, 0.0]], dtype=torch.float64).log().clamp(min=-1e4)
    bins = measure(logits, torch.tensor([0, 0]), ("a", "b"), resamples=0).bins
    assert [place for place, one in enumerate(bins) if one.images] == [9, 14]


def test_the_first_of_equals_is_predicted() -> None:
    measured = measure(torch.zeros(3, 2), torch.tensor([0, 0, 1]), ("a", "b"), resamples=0)
    assert measured.confusion == ((2, 0), (1, 0))
    assert measured.classes[1].precision is None
    assert [one.auroc for one in measured.classes] == [0.5, 0.5]


# Intervals


def drawn(n: int, resamples: int, seed: int) -> Iterator[Tensor]:
    """The resamples, as numbers of images."""
    yield from torch.randint(n, (resamples, n), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", ["random", "ties", "one class absent", "few images", "all right", "all wrong"])
def test_an_interval_holds_the_middle_of_its_resamples(name: str) -> None:
    logits, labels = CASES[name]
    metrics = measure(logits, labels, NAMES, resamples=60, seed=7).metrics
    each = [oracle(logits[chosen], labels[chosen]) for chosen in drawn(len(labels), 60, 7)]
    for key, metric in metrics.items():
        values = torch.tensor([one[key] for one in each], dtype=torch.float64)
        low, high = values[~values.isnan()].quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
        same(metric.low, low)
        same(metric.high, high)


def test_resamples_are_drawn_in_parts_as_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, labels = images(50)
    at_once = measure(logits, labels, NAMES, resamples=40)
    monkeypatch.setattr(measures, "AT_ONCE", 50 * 7)
    assert measure(logits, labels, NAMES, resamples=40) == at_once


def test_the_seed_decides_the_intervals_and_nothing_else() -> None:
    logits, labels = images(50)

    def both(seed: int) -> tuple[Measures, list[float | None]]:
        measured = measure(logits, labels, NAMES, seed=seed)
        return measured, [metric.value for metric in measured.metrics.values()]

    assert both(0) == both(0)
    assert both(0)[0] != both(1)[0]
    assert both(0)[1] == both(1)[1]


def test_an_interval_covers_what_it_should() -> None:
    """Of 200 sets of 100 images from one distribution, 95 % of the intervals hold its accuracy, 2/3."""
    inside = 0
    for seed in range(200):
        chance = torch.Generator().manual_seed(seed)
        labels = torch.zeros(100, dtype=torch.int64)
        right = torch.rand(100, generator=chance) < 2 / 3
        logits = torch.stack([right.float(), 1 - right.float()], 1)
        metric = measure(logits, labels, ("a", "b"), resamples=400, seed=seed).metrics["accuracy"]
        assert metric.low is not None
        assert metric.high is not None
        inside += metric.low <= 2 / 3 <= metric.high
    assert 180 <= inside <= 199  # a binomial of 200 and 0.95 is outside once in 1000 times


def test_ranking_again_and_again_has_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measures, "MOST_RANKED", 10 * 50 * 4 - 1)
    metrics = measure(*images(50), NAMES, resamples=10).metrics
    assert metrics["auroc"] == Metric(metrics["auroc"].value, None, None)
    assert metrics["accuracy"].low is not None
