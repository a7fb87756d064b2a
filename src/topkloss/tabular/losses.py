r"""The element losses of linear models, as a solver needs them: a linear *piece* or a smooth curve.

Each loss is written as what the dual variables multiply. For a smooth loss that is the loss itself. A loss with a kink
is a maximum of linear pieces, and the dual chooses among them, so the solver never meets the kink:

.. math:: [1 - m]_+ = \max_{0 \le p \le 1} p\,(1 - m), \qquad |r| = \max_{-1 \le p \le 1} p\,r

All losses are at least 0 and convex in the outputs. Outputs have the shape (n, m): m = 1, or one per class for softmax.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, log_softmax, logsumexp

__all__ = [
    "CLASSIFICATION",
    "REGRESSION",
    "Absolute",
    "Array",
    "Hinge",
    "Huber",
    "Logistic",
    "Loss",
    "Softmax",
    "Squared",
    "SquaredHinge",
]

Array = NDArray[np.float64]


class Loss(Protocol):
    """The questions of a solver to a loss.

    Targets are -1 and 1, class numbers for `Softmax`, real numbers for regression. m is the number of outputs.
    """

    signed: bool
    """Whether the loss is the absolute value of its piece, so that dual variables may be negative. Otherwise the loss
    is the positive part of its piece."""

    kinked: bool
    """Whether the piece is linear."""

    def value(self, outputs: Array, targets: Array) -> Array:
        """The losses, shape (n,)."""

    def piece(self, outputs: Array, targets: Array) -> Array:
        """The piece that the dual variables multiply, shape (n,): the loss, or a linear piece of it."""

    def slope(self, outputs: Array, targets: Array) -> Array:
        """The gradient of the piece with respect to the outputs, shape (n, m)."""

    def curvature(self, outputs: Array, targets: Array) -> Array:
        """The second derivative of the piece, shape (n,), or (n, m, m) for m > 1."""

    def conjugate(self, slopes: Array, targets: Array) -> Array:
        """The supremum over z of <slope, z> - loss(z), shape (n,); infinite where the loss cannot have that slope."""


class _Smooth:
    """Base of the differentiable losses: the piece is the loss itself."""

    signed = kinked = False

    def value(self, outputs: Array, targets: Array) -> Array:
        raise NotImplementedError

    def piece(self, outputs: Array, targets: Array) -> Array:
        return self.value(outputs, targets)


class _Kinked:
    """Base of the losses made of linear pieces: they have no curvature."""

    kinked = True

    def curvature(self, outputs: Array, targets: Array) -> Array:
        return np.zeros(len(targets))


class Logistic(_Smooth):
    """The logistic loss log(1 + exp(-y z)), in nats."""

    def value(self, outputs: Array, targets: Array) -> Array:
        margins: Array = targets * outputs[:, 0]
        losses: Array = np.logaddexp(0.0, -margins)
        return losses

    def slope(self, outputs: Array, targets: Array) -> Array:
        slopes: Array = -targets * expit(-targets * outputs[:, 0])
        return slopes[:, None]

    def curvature(self, outputs: Array, targets: Array) -> Array:
        wrong: Array = expit(-np.abs(outputs[:, 0]))
        return wrong * (1 - wrong)

    def conjugate(self, slopes: Array, targets: Array) -> Array:
        wrong = -targets * slopes[:, 0]
        return np.where((wrong >= 0) & (wrong <= 1), _entropy(wrong) + _entropy(1 - wrong), np.inf)


class Hinge(_Kinked):
    """The hinge loss max(0, 1 - y z); its piece is 1 - y z, which the dual leaves out where it is negative."""

    signed = False

    def value(self, outputs: Array, targets: Array) -> Array:
        return np.maximum(self.piece(outputs, targets), 0.0)

    def piece(self, outputs: Array, targets: Array) -> Array:
        return 1.0 - targets * outputs[:, 0]

    def slope(self, outputs: Array, targets: Array) -> Array:
        return -targets[:, None]

    def conjugate(self, slopes: Array, targets: Array) -> Array:
        dual = -targets * slopes[:, 0]
        return np.where((dual >= 0) & (dual <= 1), -dual, np.inf)


class SquaredHinge(_Smooth):
    """The squared hinge loss max(0, 1 - y z)^2."""

    def value(self, outputs: Array, targets: Array) -> Array:
        return np.maximum(1.0 - targets * outputs[:, 0], 0.0) ** 2

    def slope(self, outputs: Array, targets: Array) -> Array:
        return (-2.0 * targets * np.maximum(1.0 - targets * outputs[:, 0], 0.0))[:, None]

    def curvature(self, outputs: Array, targets: Array) -> Array:
        return np.where(targets * outputs[:, 0] < 1.0, 2.0, 0.0)

    def conjugate(self, slopes: Array, targets: Array) -> Array:
        dual = -targets * slopes[:, 0]
        return np.where(dual >= 0, dual**2 / 4 - dual, np.inf)


class Softmax(_Smooth):
    """The cross-entropy of the softmax of m outputs, in nats; targets are class numbers."""

    def value(self, outputs: Array, targets: Array) -> Array:
        target: Array = np.take_along_axis(outputs, targets.astype(np.intp)[:, None], axis=1)[:, 0]
        losses: Array = np.maximum(logsumexp(outputs, axis=1) - target, 0.0)
        return losses

    def slope(self, outputs: Array, targets: Array) -> Array:
        slopes: Array = np.exp(log_softmax(outputs, axis=1))
        slopes[np.arange(len(targets)), targets.astype(np.intp)] -= 1.0
        return slopes

    def curvature(self, outputs: Array, targets: Array) -> Array:
        probabilities: Array = np.exp(log_softmax(outputs, axis=1))
        return probabilities[:, :, None] * (np.eye(outputs.shape[1]) - probabilities[:, None, :])

    def conjugate(self, slopes: Array, targets: Array) -> Array:
        probabilities = slopes.copy()
        probabilities[np.arange(len(targets)), targets.astype(np.intp)] += 1.0
        legal = (probabilities >= -1e-12).all(axis=1) & (np.abs(probabilities.sum(axis=1) - 1) < 1e-9)
        return np.where(legal, _entropy(np.maximum(probabilities, 0.0)).sum(axis=1), np.inf)


class Squared(_Smooth):
    """The squared error (z - y)^2, without a half."""

    def value(self, outputs: Array, targets: Array) -> Array:
        return (outputs[:, 0] - targets) ** 2

    def slope(self, outputs: Array, targets: Array) -> Array:
        return 2.0 * (outputs - targets[:, None])

    def curvature(self, outputs: Array, targets: Array) -> Array:
        return np.full(len(targets), 2.0)

    def conjugate(self, slopes: Array, targets: Array) -> Array:
        return slopes[:, 0] ** 2 / 4 + slopes[:, 0] * targets


class Absolute(_Kinked):
    """The absolute error |z - y|; its piece is z - y."""

    signed = True

    def value(self, outputs: Array, targets: Array) -> Array:
        return np.abs(self.piece(outputs, targets))

    def piece(self, outputs: Array, targets: Array) -> Array:
        return outputs[:, 0] - targets

    def slope(self, outputs: Array, targets: Array) -> Array:
        return np.ones((len(targets), 1))

    def conjugate(self, slopes: Array, targets: Array) -> Array:
        return np.where(np.abs(slopes[:, 0]) <= 1, slopes[:, 0] * targets, np.inf)


@dataclass(frozen=True)
class Huber(_Smooth):
    """The Huber loss: half the square of z - y up to `delta`, linear with slope `delta` beyond."""

    delta: float = 1.0

    def value(self, outputs: Array, targets: Array) -> Array:
        distance = np.abs(outputs[:, 0] - targets)
        near = np.minimum(distance, self.delta)
        return near * (distance - near / 2)

    def slope(self, outputs: Array, targets: Array) -> Array:
        return np.clip(outputs - targets[:, None], -self.delta, self.delta)

    def curvature(self, outputs: Array, targets: Array) -> Array:
        return np.where(np.abs(outputs[:, 0] - targets) <= self.delta, 1.0, 0.0)

    def conjugate(self, slopes: Array, targets: Array) -> Array:
        return np.where(np.abs(slopes[:, 0]) <= self.delta, slopes[:, 0] ** 2 / 2 + slopes[:, 0] * targets, np.inf)


def _entropy(probabilities: Array) -> Array:
    """The product of each probability and its logarithm, which is 0 at 0."""
    positive = probabilities > 0
    return np.where(positive, probabilities * np.log(np.where(positive, probabilities, 1.0)), 0.0)


CLASSIFICATION: dict[str, Loss] = {
    "logistic": Logistic(),
    "hinge": Hinge(),
    "squared_hinge": SquaredHinge(),
    "softmax": Softmax(),
}
REGRESSION: dict[str, Loss] = {"squared": Squared(), "absolute": Absolute(), "huber": Huber()}
