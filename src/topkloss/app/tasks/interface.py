"""What a task is: one record for each folder beside this file, which `topkloss.app.tasks.dispatch` lists."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from topkloss.app.options.option import Option, options_of

if TYPE_CHECKING:
    from topkloss.app.runs.metrics import Evaluation

__all__ = ["Checked", "Predicted", "RunLosses", "Task"]


class Checked(Protocol):
    """What `topkloss check` found in a data set."""

    def text(self) -> str:
        """The data set in lines, and all that is wrong with it."""

    def raise_for_problems(self) -> None:
        """Raises an `InputError` where anything is wrong."""


@dataclass(frozen=True)
class Predicted:
    """What `topkloss predict` says: how much was predicted, and notes on what was not."""

    text: str
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class RunLosses:
    """The losses of the examples of a run, for `topkloss inspect`.

    Attributes:
        path: A CSV with the columns `loss` and `part`.
        classes: The column of the classes; None for numbers.
        zero_loss: What a model has on each example that makes no difference between the classes; None for numbers.
        is_cross_entropy: Whether the losses are.
    """

    path: Path
    classes: str | None
    zero_loss: float | None
    is_cross_entropy: bool


class Evaluate(Protocol):
    """Measures the run in a folder; `csv` and `images`: other data than what it held out."""

    def __call__(
        self, run: Path, *, csv: Path | None, images: Path | None, batch_size: int, workers: int | None, device: str
    ) -> Evaluation: ...


class Predict(Protocol):
    """Writes what the run in a folder predicts for `inputs`."""

    def __call__(
        self, run: Path, inputs: Sequence[Path], out: Path, *, batch_size: int, workers: int | None, device: str
    ) -> Predicted: ...


@dataclass(frozen=True)
class Task:
    """A task of ``topkloss train``: its names, its options and its verbs.

    To make one loads no library: each verb imports what it needs when it is called. A verb that a task has not raises
    an `InputError` that says what to do instead.

    Attributes:
        names: Values of ``--task``.
        what: What it learns from, as the help says it: "a table of features".
        detail: What the help of ``--task`` says besides.
        data: What its runs are on, in a word: "tables".
        config: A frozen dataclass; its fields are the options, and `task`, one of `names`, may be among them.
        layout: Options that ``topkloss check`` takes: how the data are laid out, and parted.
        check: From the config, and the number of processes that decode (None for one per core).
        fit: From the config to a run in its folder; returns what the command prints.
        resume: From the folder of a run, and the options that are given anew by field; returns what is printed.
        evaluate: See `Evaluate`.
        predict: See `Predict`.
        export: From the folder of a run to a file for other programs; returns what is printed.
        losses: From the folder of a run to the losses of its examples.
        report: Runs side by side as text, judged by a score (None: the task's own choice); drawn too, where there is a
            path for the picture.
        loading: Options of ``evaluate`` and ``predict`` that its runs take, besides what every run takes.
        instead: Of options of other tasks, what to pass here; where nothing is said, they are to be left out.
    """

    names: tuple[str, ...]
    what: str
    detail: str
    data: str
    config: type[Any]
    layout: frozenset[str]
    check: Callable[[Any, int | None], Checked]
    fit: Callable[[Any], str]
    resume: Callable[[Path, Mapping[str, Any]], str]
    evaluate: Evaluate
    predict: Predict
    export: Callable[[Path, Path], str]
    losses: Callable[[Path], RunLosses]
    report: Callable[[Sequence[Path], Path | None, str | None], str]
    loading: frozenset[str] = frozenset()
    instead: Mapping[str, str] = field(default_factory=dict)

    @property
    def options(self) -> dict[str, Option]:
        """All options, by name, in the order of the help."""
        return options_of(self.config)
