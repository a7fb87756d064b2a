"""What may be concluded of runs side by side: every pair of ways of training, in words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from statistics import fmean
from textwrap import wrap

from topkloss.app.errors import shown
from topkloss.app.report.arms import Arm, Trial
from topkloss.app.runs.comparison import (
    Compared,
    holm,
    independent,
    on_the_same,
    over_seeds,
    over_unlike_seeds,
    swapped_f1,
)
from topkloss.app.runs.held_out import MODEL, PLAIN, HeldOut
from topkloss.app.runs.metrics import UNITS
from topkloss.app.runs.scores import Floats, contributions, ordered

__all__ = ["against_average", "verdicts"]

# With fewer seeds their spread is not known well enough to say anything.
FEWEST_SEEDS = 3
WIDTH = 116


def verdicts(arms: Sequence[Arm], scores: Sequence[str], unit: str) -> list[str]:
    """A paragraph for each score: every pair of arms, then what holds for all.

    Args:
        arms: Two or more.
        scores: By which the runs are judged: all pairs under all of them are one family for Holm's rule.
        unit: What was measured: "images" or "rows".
    """
    found = [
        (score, f"{first.name} against {second.name}", _compare(first, second, score, unit))
        for score in scores
        for first, second in combinations(arms, 2)
    ]
    tested = [one.compared for _, _, one in found if one.compared is not None]
    adjusted = iter(holm([one.p for one in tested]))
    says = {one.says for _, _, one in found}
    common = len(says) == 1 and len(tested) == len(found)
    lines: list[str] = []
    for score in scores:
        words = UNITS[score].words.removeprefix("of ").partition(" of ")
        better = "smaller" if UNITS[score].smaller else "larger"
        lines += ["", f"By {words[2] or words[0]} (the {better} the better), every pair:"]
        for of_score, pair, one in found:
            if of_score == score:
                p = None if one.compared is None else next(adjusted)
                said = f"{_said(one, score, p, len(tested), unit)}{'' if common else one.says}".strip()
                lines += [f"{shown(pair)}:", *_wrapped(said, "  ")]
    notes = [says.pop().strip()] if common else []
    if len(tested) > 1:
        notes.append(f"Each p is Holm's, over these {len(tested)} comparisons; a 95 % interval is of its pair alone.")
    elif tested:
        notes.append("In brackets a 95 % interval.")
    return [*lines[1:], *([""] if notes else []), *(line for note in notes for line in _wrapped(note))]


def against_average(arm: Arm, score: str, unit: str) -> list[str]:
    """What an arm of several seeds gains on the plain average that was tuned beside each of its runs."""
    held = [trial.held for trial in arm.trials]
    if any(one is None or PLAIN not in one.models for one in held):
        return ["Not compared with the plain average over the seeds, for a run has not recorded what both say."]
    trials = [
        replace(trial, held=replace(trial.held, models={MODEL: trial.held.models[PLAIN]}), values={})
        for trial in arm.trials
        if trial.held is not None
    ]
    return verdicts(
        [
            replace(arm, name=f"{arm.name}: chosen" if arm.name else "chosen"),
            Arm("the plain average", (), tuple(trials)),
        ],
        [score],
        unit,
    )


class _Found:
    """What a pair came to: a comparison, or why there is none; and what it holds for."""

    def __init__(self, compared: Compared | None, says: str) -> None:
        self.compared, self.says = compared, says


def _said(found: _Found, score: str, p: float | None, tests: int, unit: str) -> str:
    compared, kind = found.compared, UNITS[score]
    if compared is None or p is None:
        return ""
    factor = kind.factor * (-1 if kind.smaller else 1)
    low, high = sorted((factor * compared.low, factor * compared.high))
    large = kind.factor * max(map(abs, (compared.value, compared.low, compared.high)))
    head = f"{_number(factor * compared.value, large)} {kind.words} [{_number(low, large)}, {_number(high, large)}]"
    if compared.test == "no example differs":
        return f"the same on each of the {unit}: nothing differs."
    least = f"{_digits(kind.factor * compared.detectable(tests)):g}"
    chance = f"p {p:.2g} by {compared.test}"
    if p < 0.05:
        # of one run each, chance in training is not in the p
        chosen = f"the choice of {unit}" if math.isinf(compared.freedom) else "chance"
        said = f"{'better' if compared.value > 0 else 'worse'}, beyond what {chosen} explains"
    else:
        said = f"no difference that can be shown here; about {least} could have been"
    return f"{head}, {chance}: {said}."


def _wrapped(sentence: str, indent: str = "") -> list[str]:
    return wrap(sentence, WIDTH, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False)


def _number(value: float, large: float) -> str:
    """With a sign, and digits as the largest beside it needs them: three that count."""
    digits = max(0, 3 - math.ceil(math.log10(large))) if large > 0 else 1
    return f"{value:+.{min(digits, 12)}f}"


def _digits(value: float) -> float:
    return float(f"{value:.2g}")


def _compare(one: Arm, other: Arm, score: str, unit: str) -> _Found:
    if one.trials[0].classes != other.trials[0].classes:
        return _Found(None, "other classes: their figures do not compare.")
    fewest, most = sorted((len(one.trials), len(other.trials)))
    if most > 1 and fewest < FEWEST_SEEDS:
        return _of_few(one, other, score, fewest)
    return _of_single(one.trials[0], other.trials[0], score, unit) if most == 1 else _of_seeds(one, other, score, unit)


def _of_few(one: Arm, other: Arm, score: str, fewest: int) -> _Found:
    """One seed or two of an arm: their spread is unknown."""
    values = [[_value(trial, score) for trial in arm.trials] for arm in (one, other)]
    known = [[value for value in row if value is not None] for row in values]
    if not all(known):
        return _Found(None, f"{score} was not recorded of all.")
    kind = UNITS[score]
    value = kind.factor * (fmean(known[0]) - fmean(known[1])) * (-1 if kind.smaller else 1)
    seeds = "one seed" if fewest == 1 else "two seeds"
    return _Found(
        None,
        f"{_number(value, abs(value))} {kind.words} between the means; with {seeds} nothing can be shown over seeds. "
        f"Train {FEWEST_SEEDS} or more of each, better 5.",
    )


def _of_single(one: Trial, other: Trial, score: str, unit: str) -> _Found:
    pair = _aligned([one, other], score)
    if pair is not None:
        share = UNITS[score].share
        compared = on_the_same(*pair, share=share, right_or_wrong=score == "accuracy")
        if score == "f1" and one.held is not None and other.held is not None:
            compared = replace(compared, p=swapped_f1(*_predictions(one.held, other.held)), test="the swap test")
        return _Found(compared, f" Measured on the same {len(pair[0])} {unit}, with one seed each.")
    values = [_with_variance(trial, score) for trial in (one, other)]
    if values[0] is None or values[1] is None:
        return _Found(None, _not_recorded([one, other], score))
    (a, b), (u, v) = zip(*values, strict=True)
    return _Found(independent((a, b), (u, v)), f" {_why_unpaired([one, other], unit)}")


def _of_seeds(one: Arm, other: Arm, score: str, unit: str) -> _Found:
    """Over three seeds or more of each."""
    ours, theirs = ({trial.seeds: trial for trial in arm.trials} for arm in (one, other))
    both = [seeds for seeds in ours if seeds in theirs]
    runs = [ours[seeds] for seeds in both] + [theirs[seeds] for seeds in both]
    ratio = max(trial.held_out / trial.train for trial in (*one.trials, *other.trials))
    step = 1 / min(trial.held_out for trial in (*one.trials, *other.trials)) if UNITS[score].share else 0.0
    n = len(both)
    if n >= FEWEST_SEEDS:
        left_out = len(one.trials) + len(other.trials) - 2 * n
        without = f" {left_out} runs of seeds that only one has are left out." if left_out else ""
        whole = _aligned(runs, score)
        if whole is not None:
            compared = over_seeds(whole[:n], whole[n:], ratio=None, step=step)
            return _Found(compared, f" {n} seeds, the same of both, on the same {len(whole[0])} {unit}.{without}")
        pairs = [_aligned([ours[seeds], theirs[seeds]], score) for seeds in both]
        known = [pair for pair in pairs if pair is not None]
        if len(known) == n:
            compared = over_seeds([a for a, _ in known], [b for _, b in known], ratio=ratio, step=step)
            return _Found(compared, f" {n} seeds, each with its own split, the same of both.{without}")
    return _of_unlike_seeds(one, other, score, unit, ratio, step)


def _of_unlike_seeds(one: Arm, other: Arm, score: str, unit: str, ratio: float, step: float) -> _Found:
    runs, n = [*one.trials, *other.trials], len(one.trials)
    whole = _aligned(runs, score)
    if whole is not None:
        first, second = ([float(each.sum()) for each in part] for part in (whole[:n], whole[n:]))
        compared = over_unlike_seeds(first, second, ratio=None, parts=(whole[:n], whole[n:]), step=step)
        return _Found(compared, f" {n} and {len(runs) - n} seeds, not paired, on the same {len(whole[0])} {unit}.")
    values = [_value(trial, score) for trial in runs]
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return _Found(None, _not_recorded(runs, score))
    compared = over_unlike_seeds(known[:n], known[n:], ratio=ratio, step=step)
    return _Found(compared, f" {n} and {len(runs) - n} seeds, not paired. {_why_unpaired(runs, unit)}")


def _aligned(trials: Sequence[Trial], score: str) -> list[Floats] | None:
    """What each example adds to the score of each run, in one order; None where they are not the same examples."""
    held = [trial.held for trial in trials]
    if any(one is None for one in held):
        return None
    recorded = [one for one in held if one is not None]
    if len({tuple(sorted(one.examples)) for one in recorded}) > 1:
        return None
    parts = [ordered(one, MODEL, score) for one in recorded]
    found = [part for part in parts if part is not None]
    return found if len(found) == len(parts) else None


def _predictions(one: HeldOut, other: HeldOut) -> tuple[list[str], list[str], list[str]]:
    """The labels, and what either says, in the same order of the examples."""
    orders = [sorted(range(len(held.examples)), key=held.examples.__getitem__) for held in (one, other)]
    said = [
        [held.models[MODEL].predictions[at] for at in order] for held, order in zip((one, other), orders, strict=True)
    ]
    return [one.labels[at] for at in orders[0]], said[0], said[1]


def _value(trial: Trial, score: str) -> float | None:
    if trial.held is not None and (parts := contributions(trial.held, MODEL, score)) is not None:
        return float(parts.sum())
    known = trial.values.get(score)
    return None if known is None else known[0]


def _with_variance(trial: Trial, score: str) -> tuple[float, float] | None:
    """A score and its variance over the choice of the examples, by itself."""
    if score in trial.values:  # of right or wrong examples
        return trial.values[score]
    parts = None if trial.held is None else contributions(trial.held, MODEL, score)
    if parts is None or len(parts) < 2:
        return None
    n = len(parts)
    return float(parts.sum()), float(((parts - parts.mean()) ** 2).sum()) * n / (n - 1)


def _why_unpaired(trials: Sequence[Trial], unit: str) -> str:
    old = [trial.folder for trial in trials if trial.held is None]
    if old:
        return (
            f"Not paired, for {old[0]} has not recorded what it says of each of the {unit}: `topkloss evaluate` "
            "records it."
        )
    return (
        f"Not paired, for they were not measured on the same {unit} (other data or split), which may be easier or "
        "harder: give all runs one --split-seed."
    )


def _not_recorded(trials: Sequence[Trial], score: str) -> str:
    without = next((trial for trial in trials if _value(trial, score) is None), trials[0])
    hint = "`topkloss evaluate` records what it needs" if without.held is None else "Pass another --score"
    return f"{score} is not defined or not recorded of {without.folder}. {hint}."
