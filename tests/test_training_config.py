"""The options of a run: read from a file, checked, and refused in one sentence."""

from __future__ import annotations

from dataclasses import fields, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from topkloss.app.errors import InputError
from topkloss.app.options.file import read_config
from topkloss.app.tasks.images.config import TrainConfig, checked, options
from topkloss.app.tasks.images.records import RunHeader


def test_every_option_may_stand_in_a_file(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(
        "csv: birds.csv\nloss: ranked-range\nfraction: 7e-1\nlr: 1e-3\nprecision: 32\nchannels-last: true\nema: null\n"
        "epochs: '3'\nmodel: 12\n"
    )
    assert read_config(file, options()) == {
        **{"csv": "birds.csv", "loss": "ranked-range", "fraction": 0.7, "lr": 1e-3, "precision": "32"},
        **{"channels_last": True, "ema": None, "epochs": 3, "model": "12"},
    }
    file.write_text("")
    assert read_config(file, options()) == {}


def test_what_a_run_leaves_is_such_a_file(tmp_path: Path) -> None:
    config = checked(TrainConfig(csv="birds.csv", ema=0.99, schedule="linear", out=str(tmp_path)))
    header = RunHeader(config, {"torch": "2.14.1"}, 1, 1, {"classes": ["Ä", "b"]})
    header.write(tmp_path)
    assert TrainConfig(**read_config(tmp_path / "config.yaml", options()), out=str(tmp_path)) == config
    assert RunHeader.read(tmp_path) == header


# Ten lines that stand for more words than fit into any memory.
LAUGHS = "\n".join(
    [
        "lr:",
        "- &a [x, x, x, x, x, x, x, x, x, x]",
        *(f"- &{b} [{', '.join(['*' + a] * 10)}]" for a, b in pairwise("abcdefghij")),
    ]
)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("learning-rate: 1", "a key must be an option of `topkloss train`; got learning-rate. Did you mean lr?"),
        ("batchsize: 1", "a key must be an option of `topkloss train`; got batchsize. Did you mean batch-size?"),
        ("batch_size: 1", "a key must be an option of `topkloss train`; got batch_size. Did you mean batch-size?"),
        ("7: 1", "a key must be an option of `topkloss train`; got 7. "),
        ("epochs: many", "`epochs` must be a whole number; got 'many'. Correct the line."),
        ("epochs: 2.5", "`epochs` must be a whole number; got 2.5. Correct the line."),
        ("epochs: true", "`epochs` must be a whole number; got True. Correct the line."),
        ("epochs:", "`epochs` must be a whole number; got None. Correct the line."),
        ("lr: [1]", "`lr` must be a number; got [1]. Correct the line."),
        ("compile: 1", "`compile` must be true or false; got 1. Correct the line."),
        ("loss: top", "`loss` must be one of average, top-k, ranked-range, ohem, focal; got 'top'. Correct the line."),
        ("lr: 0.1\nloss: ohem\nlr: 0.2", "a key must be given once; got lr twice. Remove one of the lines."),
        (LAUGHS, "`lr` must be a number; got [['x', 'x', 'x', 'x', 'x', 'x', ...], [[...], [...], "),
        ("csv: {a: 1}", "`csv` must be a word; got {'a': 1}. Correct the line."),
        ("- epochs", "`--config` must hold a line per option, like `batch-size: 32`; got list in "),
        ("a: b: c", "`--config` must be a YAML file in UTF-8; got "),
        ("!!python/object/apply:os.getcwd []", "`--config` must be a YAML file in UTF-8; got "),
        ("[" * 1500, "`--config` must be a YAML file in UTF-8; got "),
    ],
)
def test_a_bad_file_is_one_sentence(tmp_path: Path, text: str, sentence: str) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(text)
    with pytest.raises(InputError) as caught:
        read_config(file, options())
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)
    assert str(file) in str(caught.value)


@pytest.mark.parametrize("content", [None, b"\xff\xfe\x00"])
def test_a_file_that_cannot_be_read_is_said(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "run.yaml").write_bytes(content)
    with pytest.raises(InputError, match=r"^`--config` must be a YAML file in UTF-8; got .*Pass another\.$"):
        read_config(tmp_path / "run.yaml", options())


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"loss": "focal", "fraction": 0.5}, "`--fraction` must be left out with --loss focal, which takes none; got"),
        ({"threshold": 0.5}, "`--threshold` must be left out with --loss top-k, which takes none; got 0.5. "),
        ({"loss": "ohem", "drop_fraction": 0.1}, "`--drop-fraction` must be left out with --loss ohem, which takes"),
        ({"loss": "average", "focal_gamma": 2.0}, "`--focal-gamma` must be left out with --loss average, which takes"),
        (
            {"loss": "ranked-range", "drop_fraction": 1.0},
            "`--drop-fraction`: `drop_fraction` must satisfy 0 <= drop_fraction < 1; got 1",
        ),
        ({"loss": "ohem", "threshold": -1.0}, "`--threshold` must satisfy 0 <= threshold <= 1000; got -1. "),
        ({"loss": "focal", "focal_gamma": -1.0}, "`--focal-gamma` must satisfy 0 <= focal-gamma <= 1000; got -1."),
        ({"loss": "focal", "label_smoothing": 0.1}, "`--label-smoothing` must be 0 with --loss focal, which knows"),
        ({"label_smoothing": 1.0}, "`--label-smoothing` must satisfy 0 <= label-smoothing < 1; got 1. Leave it out"),
        ({"weight_decay": -0.1}, "`--weight-decay` must satisfy 0 <= weight-decay <= 1000; got -0.1. Leave it"),
        ({"weight_decay": 1e308}, "`--weight-decay` must satisfy 0 <= weight-decay <= 1000; got 1e+308. Leave it"),
        ({"batch_size": 10**21}, "`--batch-size` must be 2147483647 or fewer; got 1000000000000000000000. Leave it"),
        ({"accumulate": 2**63}, "`--accumulate` must be 2147483647 or fewer; got 9223372036854775808. Leave it out"),
        ({"seed": 2**32}, "`--seed` must be 4294967295 or fewer; got 4294967296. Leave it out for the default."),
        ({"ema": 1.0}, "`--ema` must satisfy 0 < ema < 1; got 1. Leave it out for the default."),
        ({"accumulate": 0}, "`--accumulate` must be 1 or more; got 0. Leave it out for the default."),
        ({"early_stopping": 0}, "`--early-stopping` must be 1 or more; got 0. Leave it out for the default."),
        ({"warmup_epochs": 4}, "`--warmup-epochs` must be fewer than --epochs; got 4 of 4. Pass --warmup-epochs 3, "),
        ({"schedule_epochs": 2}, "`--schedule-epochs` must come with a schedule; got 2 without one. Pass --schedule"),
        ({"loss": "ohem", "schedule": "linear"}, "`--schedule` must be constant with --loss ohem, whose fraction does"),
        ({"pretrained": True, "weights": "w.pth"}, "`--weights` must be left out with --pretrained, which are weights"),
        ({"skip_easy": True, "loss": "focal"}, "`--skip-easy` must be left out with --loss focal, which selects all;"),
        ({"loss": "hinge"}, "`--loss` must be one of average, top-k, ranked-range, ohem, focal; got hinge. "),
    ],
    ids=str,
)
def test_options_that_contradict_are_refused(change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError) as caught:
        checked(replace(TrainConfig(), **change))
    assert str(caught.value).startswith(sentence)


def test_more_processes_than_any_machine_carries_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for cores, most in ((1, 64), (8, 64), (100, 800)):
        monkeypatch.setattr("topkloss.app.options.option.cores", lambda cores=cores: cores)
        assert checked(TrainConfig(workers=most)).workers == most
        with pytest.raises(InputError, match=rf"^`--workers` must be {most} or fewer; got {most + 1}\."):
            checked(TrainConfig(workers=most + 1))


def test_what_was_left_open_is_filled_in() -> None:
    def filled(**given: Any) -> dict[str, Any]:
        before = TrainConfig(**given)
        after = checked(before)
        assert checked(after) == after
        return {name: value for name, value in vars(after).items() if value != getattr(before, name)}

    assert filled() == {"fraction": 0.7}
    assert filled(loss="average") == {"fraction": 1.0}
    assert filled(loss="ranked-range") == {"fraction": 0.7, "drop_fraction": 0.1}
    assert filled(loss="ohem") == {"threshold": 0.3567}
    assert filled(loss="focal") == {"focal_gamma": 2.0}
    assert filled(schedule="cosine", epochs=9) == {"fraction": 0.7, "schedule_epochs": 4}


def test_every_option_says_what_it_means() -> None:
    known = options()
    assert [one.field for one in known.values()] == [one.name for one in fields(TrainConfig)]
    assert all(one.help and one.help[-1] != "." for one in known.values())
