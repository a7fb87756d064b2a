"""What is misspelt, or called as other programs call it: one sentence that names what was meant, and exit code 2."""

from __future__ import annotations

from pathlib import Path

import pytest

from topkloss.app.cli import main
from topkloss.app.options.nearest import HABITS, nearest
from topkloss.app.tasks.dispatch import option_groups

TRAIN = {one.name for _, group in option_groups() for one in group} | {"config", "resume", "debug", "help"}


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The sentence, after at most a line of usage."""
    try:
        code = main(arguments)
    except SystemExit as end:
        code = int(end.code or 0)
    output, error = capsys.readouterr()
    assert (code, output) == (2, "")
    *usage, sentence = error.splitlines()
    assert len(usage) <= 1
    assert all(line.startswith("usage: topkloss ") for line in usage)
    return sentence


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        *(("--batch_size", "batch-size"), ("--num-epochs", "epochs"), ("--arch", "model"), ("--lr-rate", "lr")),
        *(("--learning-rate", "lr"), ("--learning_rate", "lr"), ("--gpus", "device"), ("--gpu=1", "device")),
        *(("--max_epochs", "epochs"), ("--num_train_epochs", "epochs"), ("-b", "batch-size"), ("-j", "workers")),
        *(("--img-size", "image-size"), ("--output_dir", "out"), ("--accumulate_grad_batches", "accumulate")),
        *(("--Epochs", "epochs"), ("--epoch", "epochs"), ("--opitmizer", "opt"), ("--weightdecay", "weight-decay")),
        *(("--frac", "fraction"), ("--c", "C"), ("--labelcolumn", "label-column"), ("--val_split", "held-out")),
        *(("--random_state", "seed"), ("--schedul", "schedule"), ("--no-skip_easy", "no-skip-easy")),
    ],
)
def test_an_option_that_is_none_is_answered_by_the_nearest(
    given: str, meant: str, capsys: pytest.CaptureFixture[str]
) -> None:
    sentence = refused(["train", "photos.csv", given, "3", "--fraction", "0.5"], capsys)
    name = given.partition("=")[0]
    assert sentence == (
        f"topkloss: `{name}` must be an option of `topkloss train`, which has none of that name. "
        f"Did you mean --{meant}?"
    )


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["predict", "run", "photos", "--output", "x.csv"], "Did you mean --out?"),  # not: --out is missing
        (["inspect", "--loss_column", "x", "y.csv"], "Did you mean --loss-column?"),
        (["evaluate", "run", "--gpu", "0"], "Did you mean --device?"),
        (["evaluate", "run", "--fraction", "0.5"], "It is one of `topkloss train`."),
        (["report", "run", "--plot", "x.png"], "Did you mean --figure?"),
        (["train", "--nothing-like-it", "--debug"], "`topkloss train --help` lists them."),
    ],
)
def test_so_are_those_of_the_other_commands(
    arguments: list[str], hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert refused(arguments, capsys).endswith(hint)


def test_every_habit_is_answered_by_an_option_that_there_is() -> None:
    known = TRAIN | {"figure", "loss-column", "part"}
    assert set(HABITS.values()) <= known
    assert not HABITS.keys() & TRAIN, "an option is no habit"
    assert all(nearest(f"--{habit}", known) == meant for habit, meant in HABITS.items() if habit not in known)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ["trian"],
            "a command must be one of train, check, report, evaluate, predict, export, inspect, doctor; got tri",
        ),
        (["trian"], "Did you mean train?"),
        (["eval", "run"], "Did you mean evaluate?"),
        (["fit"], "got fit. `topkloss --help` says what each does."),
        (["train", "--epochs", "many"], "`--epochs` must be a whole number; got 'many'. `topkloss train --help`"),
        (["train", "--lr", "fast"], "`--lr` must be a number; got 'fast'."),
        (["train", "--epochs"], "`--epochs` must come with one argument; got nothing."),
        (["train", "a.csv", "b.csv"], "`b.csv` must be left out: nothing takes it."),
        (["train", "--config", "a", "--resume", "b"], "`--resume` must stand without --config; got both."),
        (["predict", "run", "photos"], "`--out` must be given; got nothing."),
        (["train", "--sched", "cosin"], "`--sched` must be one of cosine, none; got cosin. Pass --sched cosine, or"),
        (
            ["train", "--loss", "topk"],
            "`--loss` must be one of average, top-k, ranked-range, ohem, focal; got topk. Pass",
        ),
        (["train", "--task", "clasification"], "`--task` must be one of images, classification, regression; got clas"),
        (
            ["train", "t.csv", "--task", "classification", "--score", "f1"],
            "`--score` must be one of accuracy, balanced-accuracy, cross-entropy with --task classification; got f1. ",
        ),
        (
            ["train", "t.csv", "--task", "classification", "--score", "balanced_acc"],
            "Pass --score balanced-accuracy, or",
        ),
        (
            ["train", "t.csv", "--task", "regression", "--score", "rmse"],
            "`--score` must be one of r2, absolute-error wi",
        ),
        (
            ["train", "t.csv", "--task", "regression", "--class-weights", "auto"],
            "must be one of none, balanced; got aut",
        ),
    ],
)
def test_a_word_that_is_none_is_answered_by_those_that_are(
    arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sentence in refused(arguments, capsys)


def test_a_value_may_look_like_an_option_where_argparse_takes_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert "`-1` must" not in refused(["train", "--workers", "-1"], capsys)
    assert "gone.csv" in refused(["inspect", "--", "gone.csv"], capsys)


FEATURES = "age,income,label\n30,1000,good\n40,2000,bad\n"


@pytest.mark.parametrize("command", ["train", "check"])
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("customers.csv", FEATURES),
        ("customers.tsv", FEATURES.replace(",", "\t")),
        ("small.csv", "x,y\n1.5,2\n2,3\n"),
        ("words.csv", "city,sex,label\nBern,f,1\nBasel,m,0\n"),
    ],
)
def test_a_table_of_features_is_answered_by_the_tasks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str, name: str, content: str
) -> None:
    path = tmp_path / name
    path.write_text(content)
    sentence = refused([command, str(path)], capsys)
    assert sentence.startswith(f"topkloss: {path} must have a column `image` with paths of images; got the columns ")
    assert "Pass --task classification or --task regression for a table of features, or --image-column" in sentence
    config = tmp_path / "run.yaml"
    config.write_text(f"csv: {path}\n")
    if command == "train":
        assert refused(["train", "--config", str(config)], capsys) == sentence


@pytest.mark.parametrize(
    "content", ["id_code,diagnosis\nabc,1\n", "file,a,b\nx/1.png,1,0\n", "image,a,b\n1,2,3\n", "", "a,b,c\n", "x\n1\n"]
)
def test_a_table_that_may_be_of_images_is_answered_as_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str
) -> None:
    path = tmp_path / "photos.csv"
    path.write_text(content)
    assert "--task" not in refused(["train", str(path)], capsys)


def test_an_option_of_a_file_is_answered_likewise(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "run.yaml"
    for key, meant in (("learning_rate", "lr"), ("arch", "model"), ("max_epochs", "epochs"), ("gpus", "device")):
        config.write_text(f"{key}: 1\n")
        assert refused(["train", "--config", str(config)], capsys) == (
            f"topkloss: {config}: a key must be an option of `topkloss train`; got {key}. Did you mean {meant}?"
        )


@pytest.mark.parametrize("option", [("--workers", "1"), ("--device", "cpu"), ("--batch-size", "3")])
def test_what_a_run_on_a_table_does_not_take_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], option: tuple[str, str]
) -> None:
    (tmp_path / "config.yaml").write_text("task: classification\n")
    sentence = refused(["evaluate", str(tmp_path), *option], capsys)
    assert sentence.startswith(
        f"topkloss: `{option[0]}` must be left out with a run on tables, which loads no images; got"
    )
