"""A table's columns as features, and its models: against scikit-learn, by law, and from the file bit for bit."""

from __future__ import annotations

import csv
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.compose import ColumnTransformer
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import mean_absolute_error, r2_score, roc_auc_score, root_mean_squared_error
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from tests.customers import write_customers, write_real
from topkloss.app.errors import InputError
from topkloss.app.tasks.tables.config import TableConfig, checked
from topkloss.app.tasks.tables.encoding import Encoding
from topkloss.app.tasks.tables.fit import fit_table
from topkloss.app.tasks.tables.measure import gains, measure_rows
from topkloss.app.tasks.tables.model import Linear, load_models
from topkloss.app.tasks.tables.records import TableRecord
from topkloss.app.tasks.tables.search import Training, folds
from topkloss.app.tasks.tables.source import Data, read_data
from topkloss.tabular import AverageTopKClassifier, AverageTopKClassifierCV

ONE: dict[str, Any] = {"fractions": (0.7,), "C": (1.0,)}


@pytest.fixture
def customers(tmp_path: Path) -> TableConfig:
    path = write_customers(tmp_path / "customers.csv")
    return TableConfig(
        csv=str(path), label_column="churn", ignore=("id", "household", "mass"), out=str(tmp_path / "run")
    )


def real(name: str, folder: Path, **given: Any) -> TableConfig:
    task: Any = "regression" if name == "diabetes" else "classification"
    path = write_real(name, folder / f"{name}.csv")
    return TableConfig(task=task, csv=str(path), label_column="target", out=str(folder / "run"), **given)


def encoded(config: TableConfig) -> tuple[Data, Encoding]:
    config = checked(config)
    data = read_data(config)
    return data, Encoding.of(data.rows, data.train, data.kinds, config)


def test_features_are_those_of_scikit_learn(customers: TableConfig) -> None:
    data, encoding = encoded(customers)
    numbers, words = data.kinds.numbers, data.kinds.words
    assert (numbers, words) == (("age", "income", "visits"), ("city", "plan"))
    whole = np.array(
        [*(data.rows.numbers[name] for name in numbers), *(data.rows.words[name] for name in words)], dtype=object
    ).T
    fill = make_pipeline(SimpleImputer(strategy="median"), StandardScaler())
    oracle = ColumnTransformer(
        [("numbers", fill, [0, 1, 2]), ("words", OneHotEncoder(sparse_output=False), [3, 4])],
    ).fit(whole[data.train])
    found = encoding.encode(data.rows, data.held_out)
    gone = encoding.features.index("income missing")
    assert found[:, gone].tolist() == [float(math.isnan(row)) for row in whole[data.held_out, 1]]
    np.testing.assert_allclose(np.delete(found, gone, axis=1), oracle.transform(whole[data.held_out]), atol=1e-12)
    assert encoding.features == [
        *("age", "income", "income missing", "visits"),
        *("city=Bonn", "city=Köln", "city=Ulm", "plan=L", "plan=M", "plan=S"),
    ]


def test_only_training_rows_are_learnt_from(customers: TableConfig) -> None:
    """Else the held-out rows would have been seen."""
    data, encoding = encoded(customers)
    column = np.array(data.rows.numbers["age"])
    column[data.held_out] = 1e6
    data.rows.numbers["age"] = column
    for place in data.held_out:
        data.rows.words["city"][place] = "Paris"
    assert Encoding.of(data.rows, data.train, data.kinds, customers) == encoding
    assert encoding.unknown(data.rows) == {"city": len(data.held_out)}
    of_city = [number for number, name in enumerate(encoding.features) if name.startswith("city=")]
    assert not encoding.encode(data.rows, data.held_out)[:, of_city].any()


def test_a_missing_word_is_a_word(tmp_path: Path) -> None:
    lines = ["a,word,label", *(f"{row % 7},{'x?'[row % 2]},{row % 3}" for row in range(60))]
    (tmp_path / "t.csv").write_text("\n".join(lines))
    _, encoding = encoded(TableConfig(csv=str(tmp_path / "t.csv"), missing=("?",), categorical=("a",)))
    assert encoding.features[-2:] == ["word=missing", "word=x"]
    assert encoding.features[:2] == ["a=0", "a=1"]


def test_too_many_features_are_refused(customers: TableConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("topkloss.app.tasks.tables.encoding.MOST", 1000)
    with pytest.raises(InputError, match=r"must hold at most 1,000 numbers, 4 GB; got 240 rows x 10 features\."):
        encoded(customers)


@pytest.mark.parametrize(
    ("name", "asked"),
    [
        ("cancer", {}),
        ("cancer", {"row_loss": "softmax"}),
        ("cancer", {"row_loss": "hinge"}),
        ("wine", {"row_loss": "squared-hinge"}),
        ("wine", {"row_loss": "softmax", "class_weights": "balanced"}),
        ("wine", {}),
        ("diabetes", {}),
        ("diabetes", {"row_loss": "huber", "delta": 50.0, "drop_fraction": 0.05}),
    ],
    ids=str,
)
def test_the_file_holds_the_model_bit_for_bit(tmp_path: Path, name: str, asked: dict[str, Any]) -> None:
    """And the losses are those that were minimised, the selected ones k of them above the threshold."""
    config = real(name, tmp_path, held_out=0.3, **ONE, **asked)
    record = fit_table(config)
    data, encoding = encoded(replace(config, csv=record.config.csv))
    again, model, plain = load_models(tmp_path / "run")
    assert again == encoding
    features, labels = encoding.encode(data.rows, data.held_out), data.labels[data.held_out]
    metrics = measure_rows(model, features, labels, resamples=0).metrics
    measured = {one: metric.value for one, metric in metrics.items()}
    assert measured == record.model.metrics
    assert gains(model, plain, features, labels, record.config.score or "") == (record.difference, record.chance)
    assert TableRecord.read(tmp_path / "run") == record
    with (tmp_path / "run" / "losses.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["part"] == "train"]
    problems = 3 if name == "wine" and config.row_loss != "softmax" else 1
    losses = model.losses(encoding.encode(data.rows, data.train), data.labels[data.train])
    assert losses.shape == (len(data.train), problems)
    np.testing.assert_allclose([float(row["loss"]) for row in rows], losses.sum(axis=1), rtol=1e-6)
    if "class_weights" not in asked:
        share = 0.7
        assert sum(float(row["selected"]) for row in rows) == pytest.approx(share * len(rows), rel=1e-3)
    if problems == 1 and "drop_fraction" not in asked:
        for row in rows:
            above = float(row["loss"]) > record.model.threshold[0] * 1.001
            assert not above or float(row["selected"]) > 0.99


def test_the_file_is_text(tmp_path: Path) -> None:
    """Nothing in it can be executed."""
    fit_table(real("cancer", tmp_path, **ONE))
    for path in (tmp_path / "run").iterdir():
        assert path.read_text(encoding="utf-8").isprintable() or "\n" in path.read_text(encoding="utf-8")
        assert path.suffix in {".json", ".csv", ".yaml"}


@pytest.mark.parametrize("name", ["cancer", "diabetes"])
def test_fraction_1_is_the_model_of_scikit_learn(tmp_path: Path, name: str) -> None:
    record = fit_table(real(name, tmp_path, fractions=(1.0,), C=(0.5,)))
    data, encoding = encoded(record.config)
    _, model, plain = load_models(tmp_path / "run")
    assert model.content() == plain.content()
    peer: Any = LogisticRegression(C=0.5, tol=1e-8, max_iter=1000) if name == "cancer" else Ridge(alpha=1.0)
    peer.fit(encoding.encode(data.rows, data.train), data.labels[data.train])
    distance = np.linalg.norm(model.coefficients - peer.coef_) / np.linalg.norm(peer.coef_)
    assert record.model.error is not None
    assert distance <= record.model.error + 1e-6


def test_the_choice_is_that_of_the_estimator(customers: TableConfig) -> None:
    config = checked(replace(customers, fractions=(0.8, 1.0), C=(1.0, 0.1), score="balanced-accuracy"))
    record = fit_table(config)
    data, encoding = encoded(config)
    training = Training(encoding.encode(data.rows, data.train), data.labels[data.train], None, None, data.classes)
    search = AverageTopKClassifierCV(
        fractions=[1.0, 0.8], Cs=[0.1, 1.0], cv=folds(training, config), scoring="balanced_accuracy"
    ).fit(training.features, training.labels)
    assert (record.model.fraction, record.model.C, record.model.tried) == (search.fraction_, search.C_, 4)
    assert record.model.score == search.scores_.mean(axis=0).max()
    assert record.plain.fraction == 1
    assert search.Cs[search.scores_.mean(axis=0)[0].argmax()] == record.plain.C
    _, model, _ = load_models(config.folder)
    np.testing.assert_array_equal(model.coefficients, search.coef_)


def test_a_drop_is_chosen_for_too_and_weighted_alike(customers: TableConfig) -> None:
    """Along another way: its scores are those that the estimator has with these rows and weights."""
    config = replace(customers, fractions=(1.0, 0.7), C=(1.0,), drop_fraction=0.05, weight_column="mass")
    config = checked(replace(config, ignore=("id", "household"), folds=3))
    record = fit_table(config)
    assert record.model.drop_fraction == 0.05
    assert record.plain.drop_fraction is None
    data, encoding = encoded(config)
    assert data.rows.weights is not None
    features, labels = encoding.encode(data.rows, data.train), data.labels[data.train]
    weights = data.rows.weights[data.train]
    scores = {}
    for fraction in (1.0, 0.7):
        parts = []
        for known, unknown in folds(Training(features, labels, weights, None, data.classes), config):
            model = AverageTopKClassifier(fraction=fraction, drop_fraction=0.05).fit(
                features[known], labels[known], weights[known]
            )
            parts.append(model.score(features[unknown], labels[unknown], weights[unknown]))
        scores[fraction] = np.mean(parts)
    assert record.model.score == pytest.approx(max(scores.values()), abs=1e-12)


def test_a_whole_weight_is_a_repetition_and_0_none(tmp_path: Path, customers: TableConfig) -> None:
    """Of the encoding as of the model: another scale would be another penalty."""
    with Path(customers.csv or "").open(encoding="utf-8", newline="") as file:
        names, *body = csv.reader(file)
    often = []
    for number, row in enumerate(body):
        row[6] = str(number % 3)
        often += [[*row, "train" if number < 180 else "val"]] * (number % 3)
    once = [[*row, "train" if number < 180 else "val"] for number, row in enumerate(body)]
    models, counts = [], []
    for name, rows in (("once", once), ("often", often)):
        with (tmp_path / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([[*names, "split"], *rows])
        weighted = name == "once"
        config = replace(
            customers,
            csv=str(tmp_path / f"{name}.csv"),
            out=str(tmp_path / name),
            weight_column="mass" if weighted else None,
            ignore=("id", "household", *(() if weighted else ("mass",))),
            **ONE,
        )
        record = fit_table(config)
        counts.append((record.data["train"], record.data["held_out"]))
        models.append(load_models(tmp_path / name))
    assert counts == [(120, 40), (180, 60)]
    (first, model, _), (second, same, _) = models
    assert first.features == second.features
    for one, other in zip(first.numbers, second.numbers, strict=True):
        assert (one.median, one.missing) == (other.median, other.missing)
        assert (one.mean, one.scale) == pytest.approx((other.mean, other.scale), rel=1e-12)
    np.testing.assert_allclose(
        model.coefficients, same.coefficients, atol=3e-4 * float(np.linalg.norm(same.coefficients))
    )


def test_the_zero_model_is_said(tmp_path: Path) -> None:
    config = replace(real("wine", tmp_path), task="classification", fractions=(0.01,), C=(1.0,))
    lines = Path(config.csv or "").read_text().splitlines()
    half = [line.rpartition(",")[0] + f",{'ab'[number % 2]}" for number, line in enumerate(lines[1:])]
    Path(config.csv or "").write_text("\n".join([lines[0], *half]))
    with pytest.warns(UserWarning, match=r"`fraction` = 0\.01.* is too small for these data: .* about 0\."):
        record = fit_table(config)
    assert record.model.is_zero
    assert record.model.error is None
    assert not record.plain.is_zero


def test_no_group_is_in_two_parts_or_folds(customers: TableConfig) -> None:
    config = checked(replace(customers, group_by="household", ignore=("id", "mass"), held_out=0.2))
    data, encoding = encoded(config)
    groups = data.rows.groups
    assert not {groups[place] for place in data.train} & {groups[place] for place in data.held_out}
    own = [groups[place] or "" for place in data.train]
    training = Training(encoding.encode(data.rows, data.train), data.labels[data.train], None, own, data.classes)
    for train, held_out in folds(training, config):
        assert not {own[place] for place in train} & {own[place] for place in held_out}
        assert len(set(training.labels[train])) == 2


def test_figures_are_those_of_scikit_learn(tmp_path: Path) -> None:
    chance = np.random.default_rng(0)
    features, labels = chance.normal(size=(300, 1)), chance.normal(size=300)
    model = Linear("squared", (), np.array([[0.5]]), np.array([0.1]))
    predicted = 0.5 * features[:, 0] + 0.1
    found = measure_rows(model, features, labels).metrics
    oracle = {
        "r2": r2_score(labels, predicted),
        "mean_absolute_error": mean_absolute_error(labels, predicted),
        "root_mean_square_error": root_mean_squared_error(labels, predicted),
    }
    assert {name: metric.value for name, metric in found.items()} == pytest.approx(oracle)
    for name, metric in found.items():
        assert metric.low is not None
        assert metric.high is not None
        assert metric.low < oracle[name] < metric.high
    assert measure_rows(model, features, np.ones(300)).metrics["r2"].value is None

    places = (labels > 0).astype(float)
    classes = Linear("hinge", ("no", "yes"), np.array([[2.0]]), np.array([0.1]))
    metrics = measure_rows(classes, features, places, resamples=0).metrics
    assert metrics.keys() == {"accuracy", "balanced_accuracy", "f1", "auroc"}
    assert metrics["auroc"].value == pytest.approx(roc_auc_score(places, features[:, 0]), abs=1e-6)


def test_a_gain_is_judged_on_the_same_rows() -> None:
    """By hand: of three rows of a class two are won, of five of the other none."""
    features = np.array([[1.0], [1.0], [1.0], [1.0], [1.0], [-1.0], [1.0], [-1.0]])
    labels = np.array([1.0, 1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0])
    right = Linear("logistic", ("a", "b"), np.array([[1.0]]), np.array([0.0]))
    always = Linear("logistic", ("a", "b"), np.array([[0.0]]), np.array([1.0]))
    gain, chance = gains(right, always, features, labels, "accuracy")
    assert gain == pytest.approx(2 / 8)
    assert chance == pytest.approx(1.96 * math.sqrt((2 / 8 - (2 / 8) ** 2) / 8))
    gain, chance = gains(right, always, features, labels, "balanced-accuracy")
    assert gain == pytest.approx((2 / 3 + 0) / 2)
    assert chance == pytest.approx(1.96 * math.sqrt((2 / 3 - 4 / 9) / 3) / 2)
    gain, _ = gains(always, right, features, labels, "cross-entropy")
    costs = [math.log1p(math.exp(-score)) for score in (1, 1, 1, 1, 1, 1, -1, 1)]
    assert gain == pytest.approx((sum(costs) - 5 * math.log1p(math.exp(-1)) - 3 * math.log1p(math.exp(1))) / 8)
    assert gains(right, right, features, labels, "accuracy") == (0, 0)


@pytest.mark.parametrize("name", ["cancer", "wine"])
def test_probabilities_are_those_of_the_estimator(tmp_path: Path, name: str) -> None:
    for loss in ("logistic", "softmax"):
        config = real(name, tmp_path, row_loss=loss, **ONE)
        config = replace(config, out=str(tmp_path / loss))
        fit_table(config)
        data, encoding = encoded(config)
        features = encoding.encode(data.rows)
        _, model, _ = load_models(tmp_path / loss)
        peer = AverageTopKClassifier(loss, fraction=0.7).fit(features[data.train], data.labels[data.train])
        logits = model.logits(features)
        np.testing.assert_allclose(logits.softmax(1), peer.predict_proba(features), atol=1e-9)
        np.testing.assert_array_equal(logits.argmax(1), peer.predict(features).astype(int))
