"""What the models of a run say of each row that it held out, as a report compares it with another run."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch.nn import functional as F

from topkloss.app.runs.held_out import HeldOut, Outputs, example
from topkloss.app.tasks.tables.columns import Floats
from topkloss.app.tasks.tables.model import Linear
from topkloss.app.tasks.tables.source import Data

__all__ = ["held_out_of"]


def held_out_of(data: Data, features: Floats, models: Mapping[str, Linear]) -> HeldOut:
    """The held-out rows, each known by its place in its table and its label, with what each model says of them.

    Args:
        data: The table.
        features: Of its held-out rows, encoded.
        models: By what `HeldOut` calls them.
    """
    lines = [data.rows.lines[place] for place in data.held_out]
    labels = [data.rows.labels[place] for place in data.held_out]
    numbers = data.labels[data.held_out]
    return HeldOut(
        examples=tuple(example(data.table.digest, line, label) for line, label in zip(lines, labels, strict=True)),
        names=tuple(f"{data.table.unit} {line}" for line in lines),
        labels=tuple(labels) if data.classes else tuple(map(repr, numbers.tolist())),
        classes=data.classes,
        models={name: _outputs(model, features, numbers) for name, model in models.items()},
    )


def _outputs(model: Linear, features: Floats, labels: Floats) -> Outputs:
    if not model.classes:
        return Outputs(tuple(map(repr, model.numbers(features).tolist())))
    predictions, logits = tuple(model.predicted(features)), model.logits(features)
    if not model.has_probabilities and len(model.classes) > 2:
        return Outputs(predictions)  # they rank nothing
    scores = tuple(map(tuple, logits.softmax(1).tolist()))
    if not model.has_probabilities:
        return Outputs(predictions, (), scores)
    losses = F.cross_entropy(logits, torch.from_numpy(labels).long(), reduction="none")
    return Outputs(predictions, tuple(losses.tolist()), scores)
