"""What a run on a table was asked and what came out: a frozen record, written as files, read for a report."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from topkloss.app.errors import InputError
from topkloss.app.options.file import RECORDED, given
from topkloss.app.runs.files import replacing
from topkloss.app.runs.metrics import in_file
from topkloss.app.tasks.tables.config import TableConfig, table_options

__all__ = ["LOSSES", "ModelRecord", "TableRecord"]

# A line for each row: its loss, and whether it was selected.
LOSSES = "losses.csv"


@dataclass(frozen=True)
class ModelRecord:
    """A fitted model, measured on the held-out rows.

    Attributes:
        fraction, drop_fraction, C: Of the average, of what was dropped before, of the losses against the penalty.
        score: Mean over the folds of what fraction and C were chosen by; None where there was no choice.
        tried: How many pairs of fraction and C were to choose from.
        is_zero: Whether it predicts the same for every row.
        threshold: The loss from which a row was averaged, of each problem.
        dual_gap: At most so much is its objective above the optimum, of each problem.
        error: At most so much, relative to their length, are the weights from the best ones; None for the zero model.
        metrics: On the held-out rows, by name; None where undefined.
        recall: Of each class; empty for numbers.
    """

    fraction: float
    drop_fraction: float | None
    C: float
    score: float | None
    tried: int
    is_zero: bool
    threshold: tuple[float, ...]
    dual_gap: tuple[float, ...]
    error: float | None
    metrics: dict[str, float | None]
    recall: dict[str, float | None]

    @property
    def called(self) -> str:
        """The aggregate and its parameters, in a few letters: a column of a report."""
        if self.drop_fraction:
            return f"ranked-range {self.fraction:g} {self.drop_fraction:g}"
        return "average" if self.fraction == 1 else f"top-k {self.fraction:g}"


@dataclass(frozen=True)
class TableRecord:
    """A finished run on a table of features.

    Attributes:
        config: What was asked, what was left open filled in.
        versions: Of the packages that decide the numbers.
        data: Digests (SHA-256) of the table, `digest`, and of which rows are held out, `measured`; numbers of rows
            trained on, `train`, and held out, `held_out`; `classes`; numbers of `features` and of columns.
        model: The one that was chosen.
        plain: The plain average, its C chosen likewise.
        difference: What the model gains on the average on the held-out rows, in the score `judged`.
        chance: As much of it the choice of the held-out rows explains.
        seconds: Of the choice and the fits.
        judged: The score that was chosen by. (Runs of earlier versions chose by R2 and judged by the absolute error, as
            does one whose held-out labels are all the same, which have no R2.)
    """

    config: TableConfig
    versions: dict[str, str]
    data: dict[str, Any]
    model: ModelRecord
    plain: ModelRecord
    difference: float
    chance: float
    seconds: float
    judged: str

    def write(self, folder: Path) -> None:
        """Writes ``config.yaml`` and ``metrics.json``."""
        import yaml

        asked = {one.name: getattr(self.config, one.field) for one in table_options().values() if one.name != "out"}
        asked = {name: list(value) if isinstance(value, tuple) else value for name, value in asked.items()}
        recorded = {"versions": self.versions, "data": self.data}
        with replacing(folder / "config.yaml") as partial:
            text = yaml.safe_dump({**asked, RECORDED: recorded}, sort_keys=False, allow_unicode=True)
            partial.write_text(text, encoding="utf-8")
        metrics: dict[str, Any] = {
            name: {in_file(key): value for key, value in asdict(getattr(self, name)).items()}
            for name in ("model", "plain")
        }
        metrics |= {name: getattr(self, name) for name in ("difference", "chance", "seconds", "judged")}
        with replacing(folder / "metrics.json") as partial:
            partial.write_text(json.dumps(metrics, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> TableRecord:
        """Reads what `write` wrote.

        Raises:
            InputError: If the folder holds no finished run on a table.
        """
        import yaml

        path = folder / "config.yaml"
        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
            recorded = content.pop(RECORDED)
            config = TableConfig(**given(content, str(path), table_options()), out=str(folder))
            metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
            data = recorded["data"]
            if not all(isinstance(data[name], str) for name in ("digest", "measured")):
                raise ValueError("no digests of the data")
            difference, chance, seconds = (float(metrics[name]) for name in ("difference", "chance", "seconds"))
            model, plain = _model(metrics["model"]), _model(metrics["plain"])
            before = "absolute-error" if config.score == "r2" else str(config.score)
            judged = str(metrics.get("judged", before))
            return cls(config, recorded["versions"], data, model, plain, difference, chance, seconds, judged)
        except InputError:
            raise
        except (OSError, ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError) as error:
            reason = " ".join((getattr(error, "strerror", None) or str(error)).split())
            raise InputError(
                f"{folder} must be the folder of a finished run on a table, with config.yaml and metrics.json; got "
                f"{type(error).__name__}: {reason}. Copy it whole, or train again."
            ) from error


def _model(content: Mapping[str, Any]) -> ModelRecord:
    names = [one.name for one in fields(ModelRecord)]
    if content.keys() != set(map(in_file, names)):
        raise ValueError("other figures than those of a model")
    values = {name: content[in_file(name)] for name in names}
    read: dict[str, Any] = {name: tuple(one) if isinstance(one, list) else one for name, one in values.items()}
    return ModelRecord(**read)
