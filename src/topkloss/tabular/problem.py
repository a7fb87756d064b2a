r"""A training problem, and the certificate of how near a model is to its optimum.

The primal and the dual, with A = `strength`, masses s, cap 1/k and *shares* p, what each example has of the average:

.. math::
    P(w, b) &= \max_{p} \sum_i s_i p_i \ell_i(x_i w + b) + \frac{|w|^2}{2A}, \qquad
        0 \le p_i \le \tfrac1k,\ \textstyle\sum_i s_i p_i \le 1 \\
    D(p, \theta) &= -\sum_i s_i p_i \ell_i^*(\theta_i / s_i p_i) - \frac A2 |X^T \theta|^2, \qquad
        \textstyle\sum_i \theta_i = 0 \text{ for a free intercept}

P is the average top-k loss plus the penalty; D is at most P everywhere. If theta is made of the slopes of the losses at
the model itself, the difference is a sum of terms that are all at least 0, so it is computed without cancellation:

.. math:: P - D = \lambda \big(1 - \textstyle\sum_i s_i |p_i|\big) + \sum_i s_i \big( \tfrac1k [\ell_i - \lambda]_+
    + \lambda |p_i| - p_i e_i \big) + \frac A2 \Big| \frac wA + X^T \theta \Big|^2

with the pieces e of the losses and any lambda >= 0; the best lambda is the k-th largest loss. P is strongly convex in
w, so |w - w*| <= sqrt(2 A (P - D)).

An l1 penalty c |w|_1 is the largest h w with |h_j| <= c. h is added to the slopes of the penalty, and c |w|_1 - h w to
P - D.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.special import log_softmax, xlogy

from topkloss.tabular.design import Design
from topkloss.tabular.losses import Array, Loss
from topkloss.tabular.topk import average_top, level

__all__ = ["Certificate", "Problem"]


@dataclass(frozen=True, eq=False)
class Problem:
    """A problem: the average top-k loss of a linear model plus a penalty, to be minimised.

    Attributes:
        design: The features.
        targets: The targets in the form that the loss takes, shape (n,).
        loss: One of `topkloss.tabular.losses`.
        mass: Mass of each example, shape (n,), >= 0, not all 0.
        k: The mass that is averaged, in (0, the mass of all examples].
        strength: A, the weight of the losses against the penalty: |w|^2 / (2 A).
        outputs: m, how many numbers the model gives for each example.
        penalised: Whether the penalty includes the intercept.
        l1: c, the weight of the sum of the absolute values of the coefficients.
    """

    design: Design
    targets: Array
    loss: Loss
    mass: Array
    k: float
    strength: float
    outputs: int = 1
    penalised: bool = False
    l1: float = 0.0

    @property
    def cap(self) -> float:
        """The largest share p of one unit of mass, 1 / k."""
        return 1.0 / self.k

    @cached_property
    def penalties(self) -> Array:
        """The curvature of the penalty in each row of the coefficients, shape (d or d + 1, 1)."""
        each = np.full((self.design.unknowns, 1), 1.0 / self.strength)
        if self.design.intercept and not self.penalised:
            each[-1] = 0.0
        return each

    @cached_property
    def bounds(self) -> Array:
        """The largest h in each row of the coefficients, shape (d or d + 1, 1)."""
        found: Array = self.l1 * (self.penalties > 0).astype(np.float64)
        return found

    @property
    def free_intercept(self) -> bool:
        """Whether there is an intercept outside the penalty."""
        return self.design.intercept and not self.penalised

    @property
    def shape(self) -> tuple[int, int]:
        """The shape of the coefficients."""
        return self.design.unknowns, self.outputs

    def objective(self, coefficients: Array, outputs: Array | None = None) -> float:
        """The average top-k loss of a model, plus its penalty."""
        outputs = self.design.outputs(coefficients) if outputs is None else outputs
        losses = self.loss.value(outputs, self.targets)
        return average_top(losses, self.mass, self.k) + self.penalty(coefficients)

    def penalty(self, coefficients: Array) -> float:
        """The penalty |w|^2 / (2 A) + c |w|_1 of a model."""
        return float((self.penalties * coefficients**2 / 2 + self.bounds * np.abs(coefficients)).sum())

    def norm(self, coefficients: Array) -> float:
        """The length |w| of the coefficients that the penalty includes."""
        return math.sqrt(self.strength * float((self.penalties * coefficients**2).sum()))

    def excess(self, pieces: Array, shares: Array, least: float | None = None) -> tuple[float, float]:
        """How much the shares p lose against the best shares at these pieces, and the k-th largest loss.

        Args:
            pieces: The pieces of the losses, shape (n,).
            shares: Feasible p, shape (n,).
            least: Any number >= 0 in the place of the k-th largest loss. The answer can then only be too large.
        """
        losses = np.abs(pieces) if self.loss.signed else np.maximum(pieces, 0.0)
        if least is None:
            least = max(level(losses, self.mass, self.k), 0.0)
        sizes = np.abs(shares)
        lost = self.cap * np.maximum(losses - least, 0.0)
        lost += least * sizes - shares * pieces
        return float(self.mass @ np.maximum(lost, 0.0)) + least * max(0.0, 1.0 - float(self.mass @ sizes)), least

    def slack(self, coefficients: Array, holds: Array) -> float:
        """How much h loses against the best h for these coefficients."""
        return float((self.bounds * np.abs(coefficients) - holds * coefficients).sum()) if self.l1 else 0.0

    def certify(self, coefficients: Array, outputs: Array, shares: Array) -> Certificate:
        """The certificate of a model: its duality gap with the dual point of the shares, made feasible."""
        # 1. The dual point that the shares make with the slopes at the model.
        slopes = self.loss.slope(outputs, self.targets)
        duals = (self.mass * shares)[:, None] * slopes
        distance = 0.0
        # 2. For a free intercept the duals must sum to 0 in each output.
        if self.free_intercept:
            if self.outputs == 1:
                shares = _balanced(self.mass, self.cap, shares, slopes[:, 0])
                duals = (self.mass * shares)[:, None] * slopes
            else:
                duals, distance = self._mixed(outputs, shares, duals)
        # 3. The sums of P - D in the docstring of this module, what step 2 cost, and what an l1 penalty adds.
        lost, threshold = self.excess(self.loss.piece(outputs, self.targets), shares)
        image = self.design.adjoint(duals)
        if self.free_intercept:
            image[-1] = 0.0
        holds = -np.clip(image, -self.bounds, self.bounds)
        residual = self.strength / 2 * float(((self.penalties * coefficients + image + holds) ** 2).sum())
        gap = lost + distance + residual + self.slack(coefficients, holds)
        return Certificate(gap, self.objective(coefficients, outputs), threshold)

    def _mixed(self, outputs: Array, shares: Array, duals: Array) -> tuple[Array, float]:
        """Softmax duals that sum to 0 in each class, and what they cost in the dual objective.

        The probabilities are mixed with as little as possible of the distribution that the classes lack.
        """
        # 1. In each class, the mass that its own examples have, and the mass that the probabilities give it.
        mass = self.mass * shares
        wanted = np.bincount(self.targets.astype(np.intp), weights=mass, minlength=self.outputs)
        total = float(mass.sum())
        held = wanted + duals.sum(axis=0)
        if total == 0.0:
            return duals, 0.0
        over = held > wanted
        if not over.any():
            return duals, 0.0
        # 2. The smallest mixture for which no class has too much, and what it gives to the others.
        mix = float((1.0 - wanted[over] / held[over]).max())
        lacking = np.maximum(wanted - (1 - mix) * held, 0.0)
        lacking /= lacking.sum()
        # 3. Its cost: the divergence of the mixed probabilities from those of the model.
        logarithms = log_softmax(outputs, axis=1)
        probabilities = np.exp(logarithms)
        mixed = probabilities + mix * (lacking - probabilities)
        divergence = (xlogy(mixed, mixed) - mixed * logarithms).sum(axis=1)
        return duals + mass[:, None] * mix * (lacking - probabilities), max(0.0, float(mass @ divergence))


@dataclass(frozen=True)
class Certificate:
    """What is proved about a model.

    Attributes:
        gap: The objective of the model is at most this much above the optimum.
        objective: P, the objective itself.
        threshold: The k-th largest loss.
    """

    gap: float
    objective: float
    threshold: float


def _balanced(mass: Array, cap: float, shares: Array, slopes: Array) -> Array:
    """The shares, changed so that their duals sum to 0.

    Among the examples with shares between 0 and the cap, those whose duals have the sign of the sum give mass to the
    others. All these examples have the threshold's loss, so nothing is lost. What is left of the sum is scaled away.
    """
    # 1. Which examples can give, and which can take, and how much mass.
    sizes = np.abs(shares)
    duals = mass * shares * slopes
    total = float(duals.sum())
    moving = (sizes > 0) & (sizes < cap)
    giving, taking = moving & (duals * total > 0), moving & (duals * total < 0)
    held, room = mass * sizes * giving, mass * (cap - sizes) * taking
    slope = np.abs(slopes)
    given, taken = float(held @ slope), float(room @ slope)
    # 2. Move the same mass from the first to the second, as much as makes the sum 0 or as there is.
    if given > 0:
        exchange = float(held.sum()) / float(room.sum()) if taken > 0 else 0.0
        moved = min(1.0, abs(total) / (given + exchange * taken), 1.0 / exchange if exchange > 0 else 1.0)
        sizes = sizes - moved * sizes * giving + moved * exchange * (cap - sizes) * taking
        shares = np.copysign(sizes, shares)
        duals = mass * shares * slopes
    # 3. Scale down the duals of the sign that is left over.
    positive = duals > 0
    up, down = float(duals[positive].sum()), -float(duals[~positive].sum())
    if up == down:
        return shares
    return shares * (np.where(positive, down / up, 1.0) if up > down else np.where(positive, 1.0, up / down))
