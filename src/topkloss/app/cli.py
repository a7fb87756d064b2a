"""The command ``topkloss``: parses, calls, prints."""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

import topkloss
from topkloss.app.errors import InputError
from topkloss.app.loading import loading
from topkloss.app.options.devices import MEANING
from topkloss.app.options.option import Option
from topkloss.app.options.parser import Parser, refuse_unknown
from topkloss.app.tasks.dispatch import changes, losses_at, option_groups, request, task_of_run, task_of_runs
from topkloss.app.tasks.interface import RunLosses, Task

__all__ = ["main"]

# What evaluate and predict do where nothing is said.
LOADING = {"batch_size": 64, "workers": None, "device": "auto"}

_show = warnings.showwarning


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command.

    Args:
        argv: Arguments; default: those of the process.

    Returns:
        The exit code: 0, or 2 for bad input, or 130 after Ctrl-C, or 141 where nobody reads the output any more.
    """
    try:
        arguments = _arguments(sys.argv[1:] if argv is None else argv)
        warnings.showwarning = _warn
        if arguments.command == "train":
            _train(arguments)
        elif arguments.command == "check":
            _check(arguments)
        elif arguments.command == "report":
            _report(arguments.runs, arguments.figure, arguments.score)
        elif arguments.command == "evaluate":
            _evaluate(arguments)
        elif arguments.command == "predict":
            _predict(arguments)
        elif arguments.command == "export":
            _export(arguments)
        elif arguments.command == "doctor":
            _doctor()
        else:
            _inspect(arguments)
        if sys.stdout is not None:  # as it is where it was closed
            sys.stdout.flush()
    except BrokenPipeError:  # whoever read the output, `head` for one, has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except KeyboardInterrupt as interrupt:
        print(f"topkloss: interrupted; {str(interrupt) or 'nothing was written.'}", file=sys.stderr)
        return 130
    except (InputError, ModuleNotFoundError) as error:
        if arguments.debug:
            raise
        print(f"topkloss: {_sentence(error)}", file=sys.stderr)
        return 2
    return 0


def _arguments(words: Sequence[str]) -> argparse.Namespace:
    parser, commands = _parser()
    refuse_unknown(parser, commands, words)
    arguments, rest = parser.parse_known_args(words)
    if rest:
        command = commands[arguments.command]
        command.error(f"`{rest[0]}` must be left out: nothing takes it. `{command.prog} --help` says what goes where.")
    return arguments


def _train(arguments: argparse.Namespace) -> None:
    asked = _asked(arguments)
    if arguments.resume is not None:
        task = task_of_run(arguments.resume)
        text = task.resume(arguments.resume, changes(task, asked))
    else:
        task, config = request(asked, arguments.config)
        text = task.fit(config)
    if text:  # of several processes one speaks
        print(text)


def _check(arguments: argparse.Namespace) -> None:
    task, config = request(_asked(arguments, layout_only=True), None)
    checked = task.check(config, arguments.workers)
    print(checked.text())
    checked.raise_for_problems()


def _asked(arguments: argparse.Namespace, *, layout_only: bool = False) -> dict[str, Any]:
    """The options that were given, by field."""
    options = (one for _, group in option_groups(layout_only=layout_only) for one in group)
    return {one.field: getattr(arguments, one.field) for one in options if one.field in arguments}


def _report(runs: Sequence[Path], figure: Path | None, score: str | None) -> None:
    print(task_of_runs(runs).report(runs, figure, score))
    if figure is not None:
        print(f"figure: {figure}")


def _evaluate(arguments: argparse.Namespace) -> None:
    from topkloss.app.report.evaluation import text
    from topkloss.app.runs.metrics import check_out_folder, write_evaluation

    if arguments.out is not None or arguments.run.is_dir():
        check_out_folder(arguments.out or arguments.run)
    if arguments.figure is not None:
        from topkloss.app.report.picture import check
        from topkloss.app.report.plot_evaluation import draw_evaluation

        check(arguments.figure)
    task = task_of_run(arguments.run)
    asked = _loading(arguments, task)
    evaluation = task.evaluate(arguments.run, csv=arguments.data, images=arguments.images, **asked)
    if arguments.figure is not None:
        draw_evaluation(evaluation, arguments.figure)
    path = write_evaluation(evaluation, arguments.out)
    print(text(evaluation))
    print(f"\nresults: {path}")
    if arguments.figure is not None:
        print(f"figure: {arguments.figure}")


def _predict(arguments: argparse.Namespace) -> None:
    task = task_of_run(arguments.run)
    predicted = task.predict(arguments.run, arguments.inputs, arguments.out, **_loading(arguments, task))
    print(predicted.text)
    for note in predicted.notes:
        print(f"topkloss: {note}", file=sys.stderr)


def _loading(arguments: argparse.Namespace, task: Task) -> dict[str, Any]:
    """How images are loaded; what was given for nothing is refused."""
    for name in LOADING:
        word = name.replace("_", "-")
        if getattr(arguments, name, None) is not None and word not in task.loading:
            raise InputError(
                f"`--{word}` must be left out with a run on {task.data}, which loads no images; got "
                f"{getattr(arguments, name)}. Leave it out."
            )
    return {
        name: default if (given := getattr(arguments, name)) is None else given for name, default in LOADING.items()
    }


def _export(arguments: argparse.Namespace) -> None:
    print(task_of_run(arguments.run).export(arguments.run, arguments.out))


def _doctor() -> None:
    with loading():
        from topkloss.app.doctor import report
    print(report())


def _inspect(arguments: argparse.Namespace) -> None:
    from topkloss.app.report.inspection import inspect, text

    known = losses_at(arguments.losses) or RunLosses(arguments.losses, None, None, False)
    inspection = inspect(
        known.path,
        loss_column=arguments.loss_column,
        class_column=arguments.class_column or known.classes,
        constant_loss=known.zero_loss if arguments.constant_loss is None else arguments.constant_loss,
        fractions=arguments.fractions,
        part=arguments.part,
        is_cross_entropy=known.is_cross_entropy,
    )
    if arguments.figure is not None:
        from topkloss.app.report.plot_inspection import draw_inspection

        draw_inspection(inspection, arguments.figure)
    print(text(inspection))
    if arguments.figure is not None:
        print(f"figure: {arguments.figure}")


def _warn(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """A warning of our own is the sentence alone: which line of the program said it helps nobody here."""
    if Path(filename).is_relative_to(Path(topkloss.__file__).parent):
        print(f"topkloss: {message}", file=sys.stderr)
    else:
        _show(message, category, filename, lineno, file, line)


def _sentence(error: Exception) -> str:
    """A missing package is answered with the extra that brings it."""
    if not isinstance(error, ModuleNotFoundError):
        return str(error)
    package = str(error.name).partition(".")[0]
    extras = {"matplotlib": "report", "tensorboard": "tensorboard"}
    extras |= dict.fromkeys(("onnx", "onnxruntime", "onnxscript"), "export")
    extras["sklearn"] = "tabular"
    extra = extras.get(package, "train")
    return f'this needs the package {package}; got an installation without it. pip install "topkloss[{extra}]"'


def _parser() -> tuple[Parser, dict[str, Parser]]:
    """The parser, and those of the commands by name."""
    parser = Parser(prog="topkloss", description=topkloss.__doc__, allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"topkloss {topkloss.__version__}")
    common = Parser(add_help=False)
    common.add_argument("--debug", action="store_true", help="show the traceback of an error")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_train(
        commands.add_parser("train", parents=[common], help="train on images, or on a table", allow_abbrev=False)
    )
    _add_check(
        commands.add_parser(
            "check", parents=[common], help="list all that is wrong with a data set", allow_abbrev=False
        )
    )
    report = commands.add_parser("report", parents=[common], help="compare finished runs", allow_abbrev=False)
    report.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folder of a finished run")
    report.add_argument("--figure", type=Path, help="draw them too: a path that ends in .png or .svg")
    report.add_argument(
        "--score", help="judge by accuracy, balanced-accuracy, f1, auroc, cross-entropy; r2, absolute-error"
    )
    _add_evaluate(commands.add_parser("evaluate", parents=[common], help="measure a run", allow_abbrev=False))
    _add_predict(
        commands.add_parser("predict", parents=[common], help="classify images, or predict rows", allow_abbrev=False)
    )
    export = commands.add_parser(
        "export", parents=[common], help="write a model for other programs", allow_abbrev=False
    )
    export.add_argument("run", type=Path, metavar="RUN", help="folder of a finished run")
    export.add_argument("--out", type=Path, required=True, metavar="FILE", help="ends in .onnx or .pt2")
    _add_inspect(commands.add_parser("inspect", parents=[common], help="choose a fraction", allow_abbrev=False))
    commands.add_parser(
        "doctor", parents=[common], help="say which kernels serve, and what is installed", allow_abbrev=False
    )
    return parser, dict(commands.choices)


def _add_evaluate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a finished run")
    parser.add_argument("--data", type=Path, metavar="CSV", help="columns as in training (default: what was held out)")
    parser.add_argument("--images", type=Path, help="folder that image paths start from (default: where they were)")
    parser.add_argument("--out", type=Path, help="folder for evaluation.json (default: the run's, or one in it)")
    parser.add_argument("--figure", type=Path, help="draw it too: a path that ends in .png or .svg")
    _add_loading(parser)


def _add_predict(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a finished run")
    parser.add_argument(
        "inputs", nargs="+", type=Path, metavar="IMAGES", help="files, and folders with all they hold; or one table"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="ends in .csv")
    _add_loading(parser)


def _add_loading(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--batch-size", type=int, help=f"images that pass together (default: {LOADING['batch_size']})")
    workers = "processes that load images (default: one per core, at most 4; none where loading is a matter of seconds)"
    parser.add_argument("--workers", type=int, help=workers)
    parser.add_argument("--device", help=f"{MEANING} (default: {LOADING['device']})")


def _add_inspect(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "losses", type=Path, metavar="LOSSES", help="folder of a run, or a CSV (or .tsv) with one loss per line"
    )
    parser.add_argument("--part", help="train, held_out, or all of the lines (default: held_out, where lines say that)")
    parser.add_argument("--loss-column", default="loss", help="its name in the first line (default: loss)")
    parser.add_argument("--class-column", help="show the share of each class in the hardest (of a run: label)")
    parser.add_argument(
        "--constant-loss",
        type=float,
        help="loss of the zero model, log C for C classes: adds the bounds (of a run: known)",
    )
    parser.add_argument("--fractions", type=float, nargs="+", metavar="F", help="each in (0, 1] (default: from 0.01)")
    parser.add_argument("--figure", type=Path, help="draw it too: a path that ends in .png or .svg")


def _add_train(parser: argparse.ArgumentParser) -> None:
    """The options of the config; one that is not given is not there."""
    before = parser.add_mutually_exclusive_group()
    before.add_argument("--config", type=Path, metavar="FILE", help="options in YAML; those given here come first")
    before.add_argument("--resume", type=Path, metavar="RUN", help="go on with the run in this folder")
    _add_options(parser)


def _add_check(parser: argparse.ArgumentParser) -> None:
    _add_options(parser, layout_only=True)
    parser.add_argument("--workers", type=int, help="processes that decode (default: one per core)")


def _add_options(parser: argparse.ArgumentParser, *, layout_only: bool = False) -> None:
    """Adds the options of the first task, then a group for what each other one has besides."""
    (_, options), *others = option_groups(layout_only=layout_only)
    for one in options:
        _add_option(parser, one)
    for task, options in others:
        group = parser.add_argument_group(f"of {task.what}, with --task {' or '.join(task.names)}")
        for one in options:
            _add_option(group, one)


def _add_option(parser: argparse._ActionsContainer, one: Option) -> None:
    """One that is not given is not there."""
    rest: dict[str, Any] = {"type": one.kind}
    if one.choices:
        rest["metavar"] = f"{{{','.join(one.choices)}}}"
    if one.kind is bool:
        rest = {"action": argparse.BooleanOptionalAction}
    elif one.many:
        rest["nargs"] = "+"
    elif one.name == "csv":
        rest |= {"nargs": "?", "metavar": "DATA"}
    name = "csv" if one.name == "csv" else f"--{one.name}"
    parser.add_argument(name, default=argparse.SUPPRESS, help=one.help, **rest)


if __name__ == "__main__":
    sys.exit(main())
