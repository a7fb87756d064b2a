"""Runs compared example by example, over seeds and in families: known answers, oracles, and what nothing shows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binom, binomtest, ttest_rel, wilcoxon
from sklearn.metrics import balanced_accuracy_score, f1_score, log_loss, r2_score, roc_auc_score

from tests.test_report import AVERAGE, MINED
from topkloss.app.errors import InputError
from topkloss.app.report.arms import arms_of
from topkloss.app.report.verdicts import verdicts
from topkloss.app.runs.comparison import holm, mcnemar, on_the_same, over_seeds, over_unlike_seeds, swapped_f1
from topkloss.app.runs.held_out import MODEL, PLAIN, HeldOut, Outputs, example
from topkloss.app.runs.metrics import UNITS
from topkloss.app.runs.scores import Floats, contributions, of_classes, of_numbers
from topkloss.app.tasks.images.records import RunRecord
from topkloss.app.tasks.images.text import groups, table

NAMES = ("a", "b", "c")

# Of so many draws a test of level 5 % finds more than this in 1 % of all cases.
DRAWN = 600
MOST_FOUND = int(binom.ppf(0.99, DRAWN, 0.05))


def said(labels: Sequence[str], predictions: Sequence[str], *, shift: int = 0) -> HeldOut:
    keys = tuple(example(place + shift, label) for place, label in enumerate(labels))
    places = tuple(f"{place}.png" for place in range(len(labels)))
    return HeldOut(keys, places, tuple(labels), (), {MODEL: Outputs(tuple(predictions))})


def four(both: int, first: int, second: int, neither: int) -> tuple[HeldOut, HeldOut]:
    """Two models of which so many images both, one, the other and neither is right about."""
    labels = ["a"] * (both + first + second + neither)
    ours = ["a"] * (both + first) + ["b"] * (second + neither)
    theirs = ["a"] * both + ["b"] * first + ["a"] * second + ["b"] * neither
    return said(labels, ours), said(labels, theirs)


def runs(*held: HeldOut | None, seeds: Sequence[int] = (), lr: Sequence[float] = ()) -> list[RunRecord]:
    """A record for each, with the average and the mined loss in turn, and the recalls of two classes."""
    found = []
    for place, one in enumerate(held):
        n = 100 if one is None else len(one.labels)
        record = replace((AVERAGE, MINED)[place % 2], data={**AVERAGE.data, "held_out": n})
        config = replace(record.config, out=f"runs/{place}", seed=seeds[place] if seeds else 0, split_seed=0)
        config = replace(config, lr=lr[place] if lr else config.lr)
        found.append(replace(record, config=config))
    return found


# one pair


@pytest.mark.parametrize(
    ("cells", "p"),
    [
        (
            (794, 150, 86, 570),
            3.716e-05,
        ),  # Agresti. Categorical Data Analysis: approval of a minister
        (
            (1, 1, 7, 12),
            0.0703,
        ),  # Fagerland, Lydersen, Laake. BMC Med. Res. Methodol. 2013
        ((50, 0, 0, 50), 1.0),
        ((0, 5, 0, 0), 0.0625),
    ],
)
def test_mcnemars_exact_test_has_its_known_answer(cells: tuple[int, int, int, int], p: float) -> None:
    ours, theirs = four(*cells)
    _, first, second, _ = cells
    assert mcnemar(first, second) == pytest.approx(p, rel=1e-3)
    if first + second:
        assert mcnemar(first, second) == pytest.approx(binomtest(first, first + second).pvalue, rel=1e-9)
    text = table(runs(ours, theirs), [ours, theirs])
    assert f"p {p:.2g} by McNemar's exact test" in " ".join(text.split())
    assert f"Measured on the same {sum(cells)} images, with one seed each." in text
    assert ("beyond what the choice of images explains" in " ".join(text.split())) == (p < 0.05)


def test_the_interval_of_accuracies_is_bonett_and_prices() -> None:
    ours, theirs = (contributions(one, MODEL, "accuracy") for one in four(794, 150, 86, 570))
    assert ours is not None
    assert theirs is not None
    found = on_the_same(ours, theirs, share=True, right_or_wrong=True)
    up, down, n = 151 / 1602, 87 / 1602, 1602
    half = 1.959964 * math.sqrt((up + down - (up - down) ** 2) / n)
    assert (found.low, found.high) == pytest.approx((up - down - half, up - down + half), abs=1e-6)
    assert found.value == pytest.approx(64 / 1600)


def test_pairing_sees_what_two_samples_do_not() -> None:
    """A point of 1000 images, and all of it on one side."""
    ours, theirs = four(900, 10, 0, 90)
    paired = table(runs(ours, theirs), [ours, theirs])
    alike = [
        replace(record, epochs=(replace(record.last, accuracy=accuracy),))
        for record, accuracy in zip(runs(ours, theirs), (0.91, 0.9), strict=True)
    ]
    apart = table(alike, [ours, None])
    assert "better, beyond what the choice of images explains" in " ".join(paired.split())
    assert "no difference that can be shown here" in " ".join(apart.split())
    assert "Not paired, for runs/1 has not recorded" in apart


def test_the_order_of_the_images_does_not_matter() -> None:
    ours, theirs = four(60, 12, 3, 25)
    turned = HeldOut(
        theirs.examples[::-1],
        theirs.names[::-1],
        theirs.labels[::-1],
        (),
        {MODEL: Outputs(theirs.models[MODEL].predictions[::-1])},
    )
    for score in ("accuracy", "balanced-accuracy", "f1"):
        straight, other = (table(runs(ours, one), [ours, one], score=score) for one in (theirs, turned))
        assert straight == other


def test_the_same_number_of_other_images_is_not_paired() -> None:
    ours, theirs = four(60, 12, 3, 25)
    moved = replace(theirs, examples=tuple(example("other", key) for key in theirs.examples))
    text = table(runs(ours, moved), [ours, moved])
    assert "z test of two samples" in " ".join(text.split())
    assert "not measured on the same images (other data or split)" in text


def test_other_classes_are_not_compared() -> None:
    first, second = runs(None, None)
    text = table([first, replace(second, recall={"bird": 0.5, "dog": 0.9})])
    assert "other classes: their figures do not compare." in text


def test_what_could_have_been_shown_is_found_four_times_in_five() -> None:
    """Of a difference as large as is named, planted in as many images."""
    ours, theirs = (contributions(one, MODEL, "accuracy") for one in four(200, 20, 20, 60))
    assert ours is not None
    assert theirs is not None
    least = on_the_same(ours, theirs, share=True, right_or_wrong=True).detectable()
    chance, n, moved = np.random.default_rng(0), 300, 40 / 300
    up, down = (moved + least) / 2, (moved - least) / 2
    drawn = chance.multinomial(n, [up, down, 1 - moved], size=2000)
    power = np.mean([mcnemar(int(first), int(second)) < 0.05 for first, second, _ in drawn])
    assert 0.7 < power < 0.85


def test_five_images_can_show_nothing() -> None:
    """Fewer than six on which one alone is right are never significant, so no less is said to be found."""
    ours, theirs = four(1, 0, 0, 0)
    first, second = (contributions(one, MODEL, "accuracy") for one in (ours, theirs))
    assert first is not None
    assert second is not None
    assert on_the_same(first, second, right_or_wrong=True).detectable() >= 6


# scores


def drawn(chance: np.random.Generator, n: int, shares: Sequence[float]) -> tuple[list[str], list[Outputs]]:
    """Labels, and what two models say that are alike; ties among the scores, too."""
    true = chance.choice(3, size=n, p=shares)
    true[:3] = [0, 1, 2]
    common, outputs = chance.normal(size=(n, 3)), []
    for _ in range(2):
        logits = np.round(2 * np.eye(3)[true] + 0.7 * common + 0.7 * chance.normal(size=(n, 3)), 1)
        probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        losses = -np.log(probabilities[np.arange(n), true])
        predictions = tuple(NAMES[place] for place in logits.argmax(1))
        outputs.append(Outputs(predictions, tuple(losses.tolist()), tuple(map(tuple, probabilities.tolist()))))
    return [NAMES[place] for place in true], outputs


def of(labels: Sequence[str], outputs: Outputs, score: str) -> Floats:
    found = of_classes(labels, outputs, NAMES, score)
    assert found is not None
    return found


def test_a_score_is_the_sum_of_what_examples_add() -> None:
    labels, (outputs, _) = drawn(np.random.default_rng(1), 200, [0.8, 0.15, 0.05])
    probabilities = np.array(outputs.scores)
    oracle = {
        "accuracy": np.mean([label == one for label, one in zip(labels, outputs.predictions, strict=True)]),
        "balanced-accuracy": balanced_accuracy_score(labels, outputs.predictions),
        "f1": f1_score(labels, outputs.predictions, average="macro"),
        "auroc": roc_auc_score(labels, probabilities, multi_class="ovr"),
        "cross-entropy": -log_loss(labels, probabilities),
    }
    assert {score: of(labels, outputs, score).sum() for score in oracle} == pytest.approx(oracle)
    true, predicted = np.arange(9.0), np.arange(9.0) ** 1.1
    for score, expected in (("r2", r2_score(true, predicted)), ("absolute-error", -np.abs(predicted - true).mean())):
        parts = of_numbers(true, predicted, score)
        assert parts is not None
        assert parts.sum() == pytest.approx(expected)


@pytest.mark.parametrize("score", ["accuracy", "balanced-accuracy", "f1", "auroc", "cross-entropy"])
def test_the_order_of_the_classes_does_not_matter(score: str) -> None:
    labels, (outputs, _) = drawn(np.random.default_rng(9), 60, [0.5, 0.3, 0.2])
    turned = replace(outputs, scores=tuple(row[::-1] for row in outputs.scores))
    found = of_classes(labels, turned, NAMES[::-1], score)
    assert found is not None
    np.testing.assert_allclose(found, of(labels, outputs, score), rtol=1e-12)


@pytest.mark.parametrize("score", ["f1", "auroc"])
def test_the_variance_of_no_sum_is_the_jackknifes(score: str) -> None:
    labels, outputs = drawn(np.random.default_rng(2), 150, [0.5, 0.3, 0.2])
    d = of(labels, outputs[0], score) - of(labels, outputs[1], score)
    left_out = []
    for place in range(len(labels)):
        fewer = [*labels[:place], *labels[place + 1 :]]
        sums = [
            of(fewer, Outputs(*(each[:place] + each[place + 1 :] for each in vars(one).values())), score).sum()
            for one in outputs
        ]
        left_out.append(sums[0] - sums[1])
    n = len(labels)
    jackknife = (n - 1) ** 2 / n * np.var(left_out, ddof=1)
    assert ((d - d.mean()) ** 2).sum() * n / (n - 1) == pytest.approx(jackknife, rel=0.05)


def test_labels_that_are_all_the_same_have_no_r2() -> None:
    assert of_numbers(np.ones(5), np.arange(5.0), "r2") is None
    held = HeldOut(("x", "y"), ("1", "2"), ("3.0", "3.0"), (), {MODEL: Outputs(("1.0", "2.0"))})
    assert contributions(held, MODEL, "r2") is None


@pytest.mark.parametrize("score", ["accuracy", "balanced-accuracy", "f1", "auroc", "cross-entropy"])
def test_models_that_are_alike_differ_once_in_twenty_times(score: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a class of few images."""
    monkeypatch.setattr("topkloss.app.runs.comparison.DRAWS", 499)
    chance, found = np.random.default_rng(7), 0
    for _ in range(DRAWN):
        labels, outputs = drawn(chance, 80, [0.6, 0.3, 0.1])
        if score == "f1":
            found += swapped_f1(labels, *(one.predictions for one in outputs)) < 0.05
        else:
            parts = [of(labels, one, score) for one in outputs]
            found += on_the_same(*parts, share=UNITS[score].share, right_or_wrong=score == "accuracy").p < 0.05
    assert found <= MOST_FOUND


def test_signs_are_flipped_as_wilcoxon_would_have_it() -> None:
    """All signs of a few differences that are their own ranks."""
    d = np.array([1.0, -2.0, 3.0, 4.0, 5.0, 6.0, -7.0, 8.0])
    assert on_the_same(d, np.zeros(8)).p == pytest.approx(wilcoxon(d, method="exact").pvalue)


def test_nothing_that_differs_is_said_so() -> None:
    ours, _ = four(30, 4, 0, 10)
    text = table(runs(ours, ours), [ours, ours], score="balanced-accuracy")
    assert "the same on each of the images: nothing differs." in text


# several pairs


def test_every_pair_is_named_and_holm_is_over_all() -> None:
    held = [four(60, 25, 2, 13)[0], four(60, 25, 2, 13)[1], four(60, 25, 2, 13)[0]]
    text = table(runs(*held, lr=(1e-3, 1e-3, 1e-2)), held)
    assert [line for line in text.splitlines() if line.endswith(":") and " against " in line] == [
        "runs/0 against runs/1:",
        "runs/0 against runs/2:",
        "runs/1 against runs/2:",
    ]
    assert "Each p is Holm's, over these 3 comparisons" in text
    assert f"p {3 * mcnemar(25, 2):.2g} by" in text
    assert holm([0.01, 0.02, 0.03, 0.005]) == pytest.approx([0.03, 0.04, 0.04, 0.02])
    assert holm([]) == []


def test_a_family_without_a_difference_names_one_once_in_twenty_times() -> None:
    """Five alike, ten pairs: without Holm far more often."""
    chance, found, naive = np.random.default_rng(3), 0, 0
    for _ in range(DRAWN):
        right = [(chance.random(150) < 0.8) / 150 for _ in range(5)]
        ps = [on_the_same(a, b, right_or_wrong=True).p for i, a in enumerate(right) for b in right[i + 1 :]]
        found, naive = found + (min(holm(ps)) < 0.05), naive + (min(ps) < 0.05)
    assert found <= MOST_FOUND
    assert naive > 2 * MOST_FOUND


# seeds


def seeds_of(chance: np.random.Generator, count: int, n: int = 120, gain: float = 0.0) -> list[Floats]:
    """Right answers of each seed of one way of training, to images that are hard for all."""
    hard = np.random.default_rng(99).normal(size=n)
    taste = 0.5 * chance.normal(size=n)
    return [
        (chance.random(n) < 1 / (1 + np.exp(-(1.2 + gain + hard + taste + 0.2 * chance.normal())))) / n
        for _ in range(count)
    ]


@pytest.mark.parametrize("seeds", [3, 5])
def test_ways_of_training_that_are_alike_differ_once_in_twenty_times(seeds: int) -> None:
    chance, paired, apart = np.random.default_rng(4), 0, 0
    for _ in range(DRAWN):
        ours, theirs = seeds_of(chance, seeds), seeds_of(chance, seeds)
        paired += over_seeds(ours, theirs, ratio=None, step=1 / 120).p < 0.05
        sums = [[float(each.sum()) for each in arm] for arm in (ours, theirs)]
        apart += over_unlike_seeds(sums[0], sums[1], ratio=None, parts=(ours, theirs), step=1 / 120).p < 0.05
    assert max(paired, apart) <= MOST_FOUND


def test_a_large_difference_over_seeds_is_found() -> None:
    chance = np.random.default_rng(5)
    ours, theirs = seeds_of(chance, 5, n=1000, gain=0.8), seeds_of(chance, 5, n=1000)
    assert over_seeds(ours, theirs, ratio=None, step=1e-3).p < 0.001


def test_over_splits_it_is_the_corrected_t_test() -> None:
    """Students's where no image is trained on twice, wider by 1 + J n2 / n1 otherwise."""
    chance = np.random.default_rng(6)
    ours, theirs = ([np.array([chance.normal()]) for _ in range(6)] for _ in range(2))
    plain = ttest_rel(np.ravel(ours), np.ravel(theirs))
    assert over_seeds(ours, theirs, ratio=0.0).p == pytest.approx(plain.pvalue)
    found = over_seeds(ours, theirs, ratio=1 / 3)
    assert found.error == pytest.approx(over_seeds(ours, theirs, ratio=0.0).error * math.sqrt(1 + 6 / 3))


def grouped(seeds: Sequence[int], *, splits: bool = False) -> tuple[list[RunRecord], list[HeldOut]]:
    chance = np.random.default_rng(8)
    held = []
    for seed in seeds:
        for _ in range(2):
            predictions = chance.choice(["a", "b"], size=50, p=[0.8, 0.2]).tolist()
            held.append(said(["a"] * 50, predictions, shift=1000 * seed if splits else 0))
    return runs(*held, seeds=[seed for seed in seeds for _ in range(2)]), held


def test_runs_that_differ_in_their_seeds_are_one_column() -> None:
    records, held = grouped([0, 1, 2])
    records[0] = replace(records[0], epochs=(replace(AVERAGE.last, accuracy=0.8),))
    text = table(records, held)
    assert text.splitlines()[0].split() == ["average", "top-k", "0.5"]
    assert text.splitlines()[1].split() == ["seeds", "3", "3"]
    assert "86.7 (80.0 to 90.0)" in text
    assert "by the paired t test over seeds and examples" in " ".join(text.split())
    assert "3 seeds, the same of both, on the same 50 images." in text


def test_a_split_for_each_seed_is_said() -> None:
    records, held = grouped([0, 1, 2], splits=True)
    text = table(records, held)
    assert "3 seeds, each with its own split, the same of both." in text
    assert "by the corrected t test over seeds and splits" in " ".join(text.split())


def test_two_seeds_show_nothing_and_one_neither() -> None:
    records, held = grouped([0, 1])
    text = " ".join(table(records, held).split())
    assert "with two seeds nothing can be shown over seeds. Train 3 or more of each, better 5." in text
    assert " p " not in text
    assert "with one seed nothing can be shown over seeds" in " ".join(table(records[:3], held[:3]).split())


def test_seeds_that_only_one_has_are_left_out_and_unlike_ones_not_paired() -> None:
    records, held = grouped([0, 1, 2, 3])
    assert "1 runs of seeds that only one has are left out." in table(records[:-1], held[:-1])
    moved = [
        replace(record, config=replace(record.config, seed=record.config.seed + 10)) if place % 2 else record
        for place, record in enumerate(records)
    ]
    text = table(moved, held)
    assert "4 and 4 seeds, not paired, on the same 50 images." in text
    assert "by Welch's t test over seeds" in " ".join(text.split())


def test_three_ways_and_five_seeds() -> None:
    records, held = grouped(range(5))
    third = [
        replace(record, config=replace(record.config, lr=0.01, out=f"{record.config.out}-c")) for record in records[::2]
    ]
    text = table([*records, *third], [*held, *held[::2]])
    head = text.splitlines()[0]
    assert "average, lr 0.001" in head
    assert "average, lr 0.01" in head
    assert text.count(" against ") == 3


def test_a_run_that_is_given_twice_counts_once() -> None:
    ours, theirs = four(60, 12, 3, 25)
    first, second = runs(ours, theirs)
    copy = replace(first, config=replace(first.config, out="copies/0", csv="elsewhere.csv", workers=3))
    text = table([first, second, first, copy], [ours, theirs, ours, ours])
    assert "runs/0 was given twice: it is counted once." in text
    assert "copies/0 has the options and the seed of runs/0: it is left out." in text
    assert text.count(" against ") == 1
    alone = table([first, first], [ours, ours])
    assert "Measured on 100 held-out images, with one seed." in alone


def test_another_size_of_the_images_is_another_way_on_the_same() -> None:
    ours, theirs = four(60, 12, 3, 25)
    first, second = runs(ours, theirs)
    second = replace(second, config=replace(first.config, image_size=64, out="runs/1"))
    assert "Measured on the same 100 images" in table([first, second], [ours, theirs])


def test_uneven_classes_under_accuracy_are_said() -> None:
    uneven = [replace(record, support={"cat": 91, "dog": 9}) for record in runs(None, None)]
    assert "Pass --score balanced-accuracy" in table(uneven)
    assert "Pass --score balanced-accuracy" not in table(uneven, score="balanced-accuracy")
    assert "Pass --score balanced-accuracy" not in table(runs(None, None))


def test_a_pair_in_words_of_a_score_that_is_the_smaller_the_better() -> None:
    held = [
        HeldOut(tuple(map(str, range(9))), ("",) * 9, ("1.0",) * 9, (), {MODEL: Outputs(tuple(map(str, predicted)))})
        for predicted in ([1.1] * 9, [3.0] * 9)
    ]
    trials = [arm.trials[0] for arm in groups(runs(*held), held)]
    lines = " ".join(verdicts(arms_of(trials), ["absolute-error"], "rows"))
    assert "By mean absolute error (the smaller the better), every pair:" in lines
    assert "-1.90 of mean absolute error [-1.90, -1.90]" in lines
    assert "better, beyond what the choice of rows explains" in " ".join(lines.split())


# the file


def test_what_was_said_is_read_as_it_was_written(tmp_path: Path) -> None:
    held = HeldOut(
        ("k1", "k2"),
        ("=HYPERLINK(1).png", "-x/2.png"),
        ("=cat", "-1"),
        ("=cat", "-1"),
        {
            MODEL: Outputs(("-1", "=cat"), (0.1 + 0.2, 1e-17), ((0.1, 0.9), (1 - 1e-16, 1e-16))),
            PLAIN: Outputs(("=cat", "'=odd"), (1.0, 2.0), ((0.5, 0.5), (0.25, 0.75))),
        },
    )
    held.write(tmp_path)
    assert HeldOut.read(tmp_path) == HeldOut.read(tmp_path, 2) == held
    with pytest.raises(InputError, match=r"got ValueError: 2 examples of 3\."):  # a line that was cut off
        HeldOut.read(tmp_path, 3)
    text = (tmp_path / "held_out.csv").read_text()
    assert ",=" not in text
    assert [path.name for path in tmp_path.iterdir()] == ["held_out.csv"]
    assert HeldOut.read(tmp_path / "nowhere") is None


def test_too_many_probabilities_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("topkloss.app.runs.held_out.MOST_SCORES", 3)
    held = HeldOut(
        ("k",) * 2, ("1", "2"), ("a", "b"), ("a", "b"), {MODEL: Outputs(("a", "b"), (1.0, 2.0), ((0.5, 0.5),) * 2)}
    )
    held.write(tmp_path)
    read = HeldOut.read(tmp_path)
    assert read is not None
    assert read.models[MODEL] == Outputs(("a", "b"), (1.0, 2.0))
    assert contributions(read, MODEL, "auroc") is None
    assert contributions(read, MODEL, "cross-entropy") is not None


HEAD = "model,example,name,label,prediction,loss\n"


@pytest.mark.parametrize(
    "content",
    ["", "a,b\n", HEAD, "\0", f"{HEAD}model,1,2,3,4\n", f"{HEAD}model,k,n,a,a,x\n", f"{HEAD}other,k,n,a,a,1\n"],
)
def test_another_file_in_its_place_is_said(tmp_path: Path, content: str) -> None:
    (tmp_path / "held_out.csv").write_text(content)
    with pytest.raises(
        InputError, match=r"held_out\.csv must be what a run wrote; got .*`topkloss evaluate` writes it"
    ):
        HeldOut.read(tmp_path)
