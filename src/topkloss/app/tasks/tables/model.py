"""A fitted model as a file of plain numbers, ``model.json``, and the same model made from it again, bit for bit."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.special import log_expit
from torch import Tensor

from topkloss.app.errors import InputError
from topkloss.app.options.option import known
from topkloss.app.runs.files import replacing
from topkloss.app.tasks.tables.columns import Floats
from topkloss.app.tasks.tables.config import TableConfig
from topkloss.app.tasks.tables.encoding import Encoding
from topkloss.tabular import AverageTopKClassifier, AverageTopKRegressor
from topkloss.tabular.losses import CLASSIFICATION, REGRESSION, Huber

__all__ = ["MODEL", "Linear", "estimator", "load_models", "write_models"]

MODEL = "model.json"
PROBABLE = ("logistic", "softmax")


@dataclass(frozen=True)
class Linear:
    """A fitted linear model.

    Attributes:
        row_loss: Of a row, as the command calls it.
        classes: In order; empty for numbers.
        coefficients: Shape (1 or classes, features).
        intercepts: Shape (1 or classes,).
        delta: Of the Huber loss.
    """

    row_loss: str
    classes: tuple[str, ...]
    coefficients: Floats
    intercepts: Floats
    delta: float | None = None

    @classmethod
    def of(cls, fitted: Any, config: TableConfig, classes: tuple[str, ...]) -> Linear:
        """What an estimator of `topkloss.tabular` learnt."""
        # one order in memory, in which a file is read too: products then round alike
        coefficients, intercepts = np.array(np.atleast_2d(fitted.coef_), order="C"), np.atleast_1d(fitted.intercept_)
        return cls(known(config.row_loss, "row-loss"), classes, coefficients, intercepts, config.delta)

    @property
    def is_zero(self) -> bool:
        """Whether it predicts the same for every row."""
        return not self.coefficients.any()

    @property
    def has_probabilities(self) -> bool:
        """Whether its outputs stand for probabilities."""
        return self.row_loss in PROBABLE

    def outputs(self, features: Floats) -> Floats:
        """Shape (n, 1 or classes)."""
        found: Floats = features @ self.coefficients.T + self.intercepts
        return found

    def numbers(self, features: Floats) -> Floats:
        """The predicted numbers, shape (n,)."""
        return self.outputs(features)[:, 0]

    def predicted(self, features: Floats) -> list[str]:
        """What is predicted, as text: classes, or numbers with as many digits as float32 has."""
        if not self.classes:
            return [f"{number:.7g}" for number in self.numbers(features)]
        return [self.classes[place] for place in self.logits(features).argmax(1).tolist()]

    def logits(self, features: Floats) -> Tensor:
        """Shape (n, classes): their softmax are the probabilities; of a loss without such, they rank alone."""
        outputs = self.outputs(features)
        if outputs.shape[1] == 1:
            outputs = np.hstack([np.zeros_like(outputs), outputs])
        elif self.row_loss == "logistic":  # one against the rest: the logistic functions, in proportion
            outputs = log_expit(outputs)
        return torch.from_numpy(outputs)

    def losses(self, features: Floats, labels: Floats) -> Floats:
        """What was minimised, of each row and problem, shape (n, problems): one problem, or one for each class.

        Args:
            features: Encoded.
            labels: Numbers; of classes, their places.
        """
        outputs = self.outputs(features)
        name = self.row_loss.replace("-", "_")
        if not self.classes:
            loss = Huber(self.delta or 1.0) if name == "huber" else REGRESSION[name]
            return loss.value(outputs, labels)[:, None]
        if name == "softmax":
            both = np.hstack([np.zeros_like(outputs), outputs]) if outputs.shape[1] == 1 else outputs
            return CLASSIFICATION[name].value(both, labels)[:, None]
        positive = [1] if outputs.shape[1] == 1 else list(range(len(self.classes)))
        problems = [
            CLASSIFICATION[name].value(outputs[:, [place]], np.where(labels == one, 1.0, -1.0))
            for place, one in enumerate(positive)
        ]
        return np.column_stack(problems)

    def content(self) -> dict[str, Any]:
        """The model as JSON holds it."""
        return {
            "row_loss": self.row_loss,
            "delta": self.delta,
            "classes": list(self.classes),
            "coefficients": self.coefficients.tolist(),
            "intercepts": self.intercepts.tolist(),
        }

    @classmethod
    def from_content(cls, content: Mapping[str, Any], features: int) -> Linear:
        """What `content` wrote.

        Raises:
            KeyError, TypeError, ValueError: If it is something else.
        """
        classes = tuple(map(str, content["classes"]))
        coefficients = np.array(content["coefficients"], dtype=np.float64)
        intercepts = np.array(content["intercepts"], dtype=np.float64)
        outputs = len(classes) if len(classes) > 2 else 1
        if coefficients.shape != (outputs, features) or intercepts.shape != (outputs,):
            raise ValueError(f"coefficients of another shape than {outputs} x {features}")
        if not (np.isfinite(coefficients).all() and np.isfinite(intercepts).all()):
            raise ValueError("coefficients that are not finite")
        loss, delta = content["row_loss"], content["delta"]
        if loss.replace("-", "_") not in (CLASSIFICATION if classes else {*REGRESSION, "huber"}):
            raise ValueError(f"the loss {loss}")
        if delta is not None and not 0 < delta < math.inf:
            raise ValueError(f"the delta {delta}")
        return cls(loss, classes, coefficients, intercepts, delta)


def estimator(config: TableConfig, **given: Any) -> Any:
    """An estimator that is not fitted yet.

    Args:
        config: From `checked`.
        given: `fraction`, `C`.
    """
    loss = known(config.row_loss, "row-loss").replace("-", "_")
    if config.task == "regression":
        return AverageTopKRegressor(loss, delta=config.delta or 1.0, **given)
    weight = "balanced" if config.class_weights == "balanced" else None
    return AverageTopKClassifier(loss, class_weight=weight, **given)


def write_models(folder: Path, encoding: Encoding, model: Linear, plain: Linear) -> None:
    """Writes ``model.json``: numbers as Python prints them, which read back are the same, bit for bit."""
    content = {
        "features": encoding.features,
        "encoding": encoding.content(),
        "model": model.content(),
        "plain_average": plain.content(),
    }
    with replacing(folder / MODEL) as partial:
        text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False)
        partial.write_text(text + "\n", encoding="utf-8")


def load_models(folder: Path) -> tuple[Encoding, Linear, Linear]:
    """What `write_models` wrote: the encoding, the model that was chosen, the plain average.

    Raises:
        InputError: If it cannot be read, or is something else.
    """
    path = folder / MODEL
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        encoding = Encoding.from_content(content["encoding"])
        count = len(encoding.features)
        model, plain = (Linear.from_content(content[name], count) for name in ("model", "plain_average"))
        return encoding, model, plain
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(
            f"{path} must hold the model of a run, as `topkloss train` wrote it; got {type(error).__name__}: {reason}. "
            "Copy the folder of the run whole, or train again."
        ) from error
