"""What the models of a run say of each example that it held out: a file, so that runs are compared example by example.

Nothing here needs a package, so that a report says in an instant whether there is such a file.
"""

from __future__ import annotations

import csv
import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from topkloss.app.errors import InputError
from topkloss.app.runs.cells import name_in, name_of
from topkloss.app.runs.files import replacing

__all__ = ["FIRST", "HELD_OUT", "MODEL", "PLAIN", "HeldOut", "Outputs", "example"]

# In the folder of a run.
HELD_OUT = "held_out.csv"

# Which model a line is of: the run's, or, of a table, the plain average beside it.
MODEL, PLAIN = "model", "plain_average"

# The names of its first columns.
FIRST = ("model", "example", "name", "label", "prediction", "loss")

# Examples x classes: beyond, the probabilities would fill the disk, and are left out (40 MB).
MOST_SCORES = 2_000_000


@dataclass(frozen=True)
class Outputs:
    """What a model says of examples, in their order.

    Attributes:
        predictions: Names of classes, or numbers as Python writes them.
        losses: Cross-entropies in nats; empty where the model has no probabilities.
        scores: Of each example one for each class, that of a larger probability the larger; empty where they were too
            many, or say nothing.
    """

    predictions: tuple[str, ...]
    losses: tuple[float, ...] = ()
    scores: tuple[tuple[float, ...], ...] = ()


@dataclass(frozen=True)
class HeldOut:
    """The held-out examples of a run, and what its models say of them.

    Attributes:
        examples: Of each one what `example` makes of it: the same in two runs where the example is.
        names: Of each one what a reader calls it: a path, or a line of a table.
        labels: Names of classes, or numbers as Python writes them.
        classes: In the order of the scores; empty for numbers.
        models: By `MODEL` and, of a table, `PLAIN`.
    """

    examples: tuple[str, ...]
    names: tuple[str, ...]
    labels: tuple[str, ...]
    classes: tuple[str, ...]
    models: dict[str, Outputs]

    def write(self, folder: Path) -> None:
        """Writes ``held_out.csv``, whole or not at all."""
        scored = any(outputs.scores for outputs in self.models.values())
        scored = scored and len(self.examples) * len(self.classes) <= MOST_SCORES
        heads = [f"p_{name}" for name in self.classes] if scored else []
        with (
            replacing(folder / HELD_OUT) as partial,
            partial.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file,
        ):
            writer = csv.writer(file)
            writer.writerow([*FIRST, *heads])
            for model, outputs in self.models.items():
                for place, key in enumerate(self.examples):
                    loss = repr(outputs.losses[place]) if outputs.losses else ""
                    label, prediction = name_in(self.labels[place]), name_in(outputs.predictions[place])
                    scores = map(repr, outputs.scores[place]) if scored else ()
                    writer.writerow([model, key, name_in(self.names[place]), label, prediction, loss, *scores])

    @classmethod
    def read(cls, folder: Path, count: int | None = None) -> HeldOut | None:
        """Reads what `write` wrote; None where there is no such file.

        Args:
            folder: Of the run.
            count: How many examples it held out, if that is known.

        Raises:
            InputError: If it is something else.
        """
        path = folder / HELD_OUT
        try:
            with path.open(newline="", encoding="utf-8") as file:
                reader = csv.reader(file, strict=True)
                head = next(reader, [])
                rows = list(reader)
            classes = tuple(name.removeprefix("p_") for name in head[len(FIRST) :])
            if tuple(head[: len(FIRST)]) != FIRST or any(len(row) != len(head) for row in rows) or not rows:
                raise ValueError("other columns, or no line")
            found: dict[str, list[list[str]]] = {}
            for row in rows:
                found.setdefault(row[0], []).append(row)
            columns = {model: list(zip(*of_model, strict=True)) for model, of_model in found.items()}
            _, examples, names, labels, *_ = columns[MODEL]
            if any(one[1:4] != columns[MODEL][1:4] for one in columns.values()):
                raise ValueError("other examples of one model than of the other")
            if count is not None and len(examples) != count:
                raise ValueError(f"{len(examples)} examples of {count}")
            models = {model: _outputs(one[4:]) for model, one in columns.items()}
            return cls(examples, tuple(map(name_of, names)), tuple(map(name_of, labels)), classes, models)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, csv.Error) as error:
            raise InputError(
                f"{path} must be what a run wrote; got {type(error).__name__}: {error}. Copy it whole, or remove it: "
                "`topkloss evaluate` writes it again."
            ) from error


def _outputs(columns: Sequence[tuple[str, ...]]) -> Outputs:
    predictions, losses, *scores = columns
    numbers = [[float(cell) for cell in column] for column in scores]
    if any(not math.isfinite(number) for column in numbers for number in column):
        raise ValueError("a score that is not finite")
    return Outputs(
        tuple(map(name_of, predictions)),
        () if losses[0] == "" else tuple(map(float, losses)),
        tuple(zip(*numbers, strict=True)),
    )


def example(*parts: object) -> str:
    """What tells an example from others, in 16 letters: the same for the same parts.

    Args:
        parts: The content of the image, or where the row stands in which table; and the label.

    Example:
        >>> example(b"pixels", "cat") == example(b"pixels", "cat") != example(b"pixels", "dog")
        True
    """
    whole = hashlib.sha256()
    for part in parts:
        content = part if isinstance(part, bytes) else str(part).encode("utf-8", "surrogateescape")
        whole.update(b"%d:" % len(content) + content)
    return whole.hexdigest()[:16]
