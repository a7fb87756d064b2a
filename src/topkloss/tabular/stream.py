r"""A linear model for examples that come in chunks and are not kept: what `partial_fit` does.

The joint form of the average top-k loss (Lemma 1 of the paper) is a sum over the examples, jointly convex in the model
and the threshold,

.. math:: J(w, b, \lambda) = \frac{|w|^2}{2C} + \sum_i s_i \Big( \lambda + \tfrac1f [\ell_i(w, b) - \lambda]_+ \Big),

so each example can be replaced by a parabola: its gradient and curvature at the model that saw it. Newton's method
minimises J exactly for a new chunk, added to the parabola of all chunks before; no step size has to be chosen.

The corner of [u]_+ is rounded over a small part of the mean loss. The number of losses at the threshold, which bends J
there, is counted over a wider part, because a chunk has few.

Reference: Luo, Song. Renewable estimation and incremental inference in generalized linear models with streaming data
sets. JRSS B 2020 (for smooth losses).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from topkloss.tabular.design import Design
from topkloss.tabular.directions import blocks, downhill
from topkloss.tabular.losses import Array, Loss
from topkloss.tabular.topk import level

__all__ = ["Stream"]

# In units of the mean loss: the width over which the corner is rounded, and over which losses at the threshold count.
NARROW, WIDE = 0.1, 1.0

# The first model may fit its chunk too well: its mean loss counts as at least this part of the loss without a model.
LEAST = 0.1

# How fast earlier passes fade: after p passes, pass q weighs (q / p) to this power.
FADING = 2.0

# The most Newton steps for one chunk, and the gain of the last one, relative to the loss.
STEPS, PRECISE = 50, 1e-12

# The most coefficients of which a square matrix is kept.
MOST = 4096


@dataclass(frozen=True, eq=False)
class _Chunk:
    """The losses of one chunk as a function of coefficients and threshold.

    Attributes:
        design, targets, mass: As in `Problem`.
        loss: One of `topkloss.tabular.losses`.
        fraction: f.
        width: The width over which the corner is rounded, in units of the loss.
    """

    design: Design
    targets: Array
    mass: Array
    loss: Loss
    fraction: float
    width: float = 0.0

    @property
    def smooth(self) -> bool:
        """Whether nothing has a corner: all losses count, and the loss is not made of linear pieces."""
        return self.fraction == 1.0 and not self.loss.kinked

    def ramps(self, outputs: Array, threshold: float, width: float) -> tuple[Array, Array, Array, Array]:
        """Derivatives of the rounded [loss - threshold]_+, shape (n,) each.

        The first two are with respect to the piece and, negated, the threshold; the last two are the derivatives of the
        first with respect to the same.
        """
        pieces = self.loss.piece(outputs, self.targets)
        if self.smooth:
            return np.ones_like(pieces), np.zeros_like(pieces), np.zeros_like(pieces), np.zeros_like(pieces)
        up, bent = _ramp(pieces - threshold, width)
        if not self.loss.signed:
            return up, up, bent, bent
        down, bent_down = _ramp(-pieces - threshold, width)
        return up - down, up + down, bent + bent_down, bent - bent_down

    def pull(self, outputs: Array, threshold: float) -> tuple[Array, float]:
        """The derivatives of J with respect to the outputs, shape (n, m), and to the threshold."""
        up, out, _, _ = self.ramps(outputs, threshold, self.width)
        duals = (self.mass * up / self.fraction)[:, None] * self.loss.slope(outputs, self.targets)
        rate = 0.0 if self.fraction == 1.0 else float(self.mass.sum() - self.mass @ out / self.fraction)
        return duals, rate

    def gradient(self, outputs: Array, threshold: float) -> Array:
        """The gradient of J with respect to the coefficients, output by output, and the threshold."""
        duals, rate = self.pull(outputs, threshold)
        return np.append(self.design.adjoint(duals).T.ravel(), rate)

    def bend(self, outputs: Array, threshold: float, width: float) -> Array:
        """The second derivatives of J; losses within `width` of the threshold count as lying at it."""
        slopes = self.loss.slope(outputs, self.targets)
        up, _, bent, across = self.ramps(outputs, threshold, self.width)
        _, _, bent, across = self.ramps(outputs, threshold, width)
        mass = self.mass / self.fraction
        curvature = self.loss.curvature(outputs, self.targets)
        whole = blocks(self.design, curvature, mass * np.abs(up), mass * bent, slopes)
        if self.fraction == 1.0:
            return np.pad(whole, (0, 1))
        side = -self.design.adjoint((mass * across)[:, None] * slopes).T.ravel()
        return np.block([[whole, side[:, None]], [side, float(mass @ bent)]])


@dataclass(eq=False)
class Stream:
    """One model, and what is kept of all examples so far: the parabola of J around the model.

    Attributes:
        loss: One of `topkloss.tabular.losses`.
        fraction: f, the fraction of the mass that is averaged.
        strength: C.
        total: The mass of all examples, each of which may be passed many times: the penalty then counts once a pass,
            and earlier passes fade. Default: the mass that was passed, so that passing an example twice is weight 2.
        columns: d, the number of features.
        outputs: m, how many numbers the model gives for each example.
        intercept: Whether there is an intercept.
        penalised: Whether the penalty includes the intercept.
        point: The model: coefficients output by output, and the threshold.
        gradient: The gradient of J at the point.
        curvature: The second derivatives of J at the point.
        mass: The mass of all examples so far, as far as they have not faded.
        losses: The sum of their losses, each at the model that had not seen it.
        seen: The mass that was passed, faded or not.
        passes: The number of complete passes over the total.
        iterations: The number of Newton steps.
    """

    loss: Loss
    fraction: float
    strength: float
    total: float | None
    columns: int
    outputs: int = 1
    intercept: bool = True
    penalised: bool = False
    point: Array = field(init=False)
    gradient: Array = field(init=False)
    curvature: Array = field(init=False)
    mass: float = 0.0
    losses: float = 0.0
    seen: float = 0.0
    passes: int = 0
    iterations: int = 0

    def __post_init__(self) -> None:
        unknowns = self.columns + self.intercept
        if unknowns * self.outputs > MOST:
            raise ValueError(
                "`X` must have few enough columns for `partial_fit`, which keeps a square matrix of all coefficients: "
                f"{MOST} together; got {unknowns * self.outputs}. Use `fit`, or fewer columns, e.g. by "
                "sklearn.decomposition.IncrementalPCA."
            )
        self.point = np.zeros(unknowns * self.outputs + 1)
        self.gradient = np.zeros_like(self.point)
        self.curvature = np.zeros((len(self.point), len(self.point)))
        if self.outputs > 1 and self.intercept and not self.penalised:
            # Raising all outputs together changes nothing, so they are held where they are.
            last = np.arange(1, self.outputs + 1) * unknowns - 1
            self.curvature[np.ix_(last, last)] = 1.0 / self.outputs

    @property
    def coefficients(self) -> Array:
        """The coefficients of the model, shape (d or d + 1, m), intercepts last."""
        return self.point[:-1].reshape(self.outputs, -1).T

    @property
    def threshold(self) -> float:
        """The threshold: the loss above which losses are averaged."""
        return float(self.point[-1])

    def update(self, design: Design, targets: Array, mass: Array) -> None:
        """Takes in a chunk: fits it together with all chunks before, and keeps a parabola of it.

        Args:
            design: The features of the chunk.
            targets: The targets in the form that the loss takes, shape (n,).
            mass: Mass of each example, shape (n,), >= 0, not all 0.
        """
        # 1. The penalty of this mass, and the losses of the chunk at the model that has not seen it.
        whole = float(mass.sum())
        self._penalise(whole)
        chunk = _Chunk(design, targets, mass, self.loss, self.fraction)
        outputs = design.outputs(self.coefficients)
        here = float(mass @ self.loss.value(outputs, targets))
        # 2. The threshold of a first chunk, and the mean loss, which is the unit of all widths.
        first = self.seen == 0.0
        if first and self.fraction < 1.0:
            self.point[-1] = level(self.loss.value(outputs, targets), mass, self.fraction * whole)
        start = self.point.copy()
        least = LEAST * self._without_model(chunk) if first else 0.0
        mean = max(here, least) / whole if first else (self.losses + here) / (self.mass + whole)
        # 3. The minimum of the chunk and the parabola of all before. The mean loss of a first chunk falls with the fit:
        #    repeat with the smaller unit until it has settled.
        for _ in range(STEPS):
            chunk = _Chunk(design, targets, mass, self.loss, self.fraction, max(NARROW * mean, 1e-150))
            outputs = self._minimise(chunk, start, mean * whole)
            if not first or chunk.smooth:
                break
            here = max(float(mass @ self.loss.value(outputs, targets)), least)
            if here >= 0.7 * mean * whole:
                break
            mean = here / whole
        # 4. The parabola of all around the new model; the chunk can go.
        self.gradient = self._gradient(chunk, outputs, start)
        self.curvature += chunk.bend(outputs, self.threshold, WIDE / NARROW * chunk.width)
        self.mass += whole
        self.losses += here
        self.seen += whole
        self._fade()

    def _penalise(self, mass: float) -> None:
        """Adds the part of the penalty that belongs to a mass."""
        part = mass / self.total if self.total is not None else float(self.seen == 0.0)
        each = np.full((self.columns + self.intercept, self.outputs), part / self.strength)
        if self.intercept and not self.penalised:
            each[-1] = 0.0
        penalties = np.append(each.T.ravel(), 0.0)
        self.gradient = self.gradient + penalties * self.point
        self.curvature[np.diag_indices_from(self.curvature)] += penalties

    def _without_model(self, chunk: _Chunk) -> float:
        """The sum of the losses if every output is the mean target, which is a number for targets of 1 and -1 too."""
        mean = float(chunk.mass @ chunk.targets / chunk.mass.sum())
        return float(chunk.mass @ self.loss.value(np.full((len(chunk.targets), self.outputs), mean), chunk.targets))

    def _gradient(self, chunk: _Chunk, outputs: Array, start: Array) -> Array:
        """The gradient of J: of the chunk, and of the parabola of all chunks before around the start."""
        return chunk.gradient(outputs, self.threshold) + self.gradient + self.curvature @ (self.point - start)

    def _minimise(self, chunk: _Chunk, start: Array, losses: float) -> Array:
        """Moves to the minimum of the chunk and the parabola of all chunks before; returns the outputs there."""
        outputs = chunk.design.outputs(self.coefficients)
        for _ in range(STEPS):
            gradient = self._gradient(chunk, outputs, start)
            step = self._step(self.curvature + chunk.bend(outputs, self.threshold, chunk.width), gradient)
            if -float(gradient @ step) <= PRECISE * losses:
                break
            self.iterations += 1
            change = chunk.design.outputs(step[:-1].reshape(self.outputs, -1).T)
            length = self._length(chunk, outputs, change, start, step, float(gradient @ step))
            self.point = self.point + length * step
            outputs = outputs + length * change
        return outputs

    def _step(self, bend: Array, gradient: Array) -> Array:
        """Newton's step to a threshold of at least 0."""
        # 1. With the threshold, if that does not become negative.
        step = np.zeros_like(gradient)
        if self.fraction < 1.0 and (self.threshold > 0 or gradient[-1] < 0):
            step = downhill(bend, gradient)
            if self.threshold + step[-1] >= 0:
                return step
            # 2. Otherwise to the threshold 0, and without the threshold from there.
            step[-1] = -self.threshold
        step[:-1] = downhill(bend[:-1, :-1], gradient[:-1] + step[-1] * bend[:-1, -1])
        return step

    def _length(self, chunk: _Chunk, outputs: Array, change: Array, start: Array, step: Array, before: float) -> float:
        """The length to go along the step: not past the point where J, which is convex, begins to rise."""
        flat = float(step @ (self.gradient + self.curvature @ (self.point - start)))
        rise = float(step @ self.curvature @ step)
        length = 1.0
        for _ in range(60):
            duals, rate = chunk.pull(outputs + length * change, self.threshold + length * float(step[-1]))
            now = float((duals * change).sum()) + rate * float(step[-1]) + flat + length * rise
            if now <= 0.1 * abs(before):
                break
            length /= 2
        return length

    def _fade(self) -> None:
        """Lets what is known fade after a pass over the total, so that the next pass counts more."""
        if self.total is None or self.seen < (self.passes + 1) * self.total * (1 - 1e-9):
            return
        self.passes += 1
        kept = (self.passes / (self.passes + 1)) ** FADING
        self.gradient, self.curvature = kept * self.gradient, kept * self.curvature
        self.mass, self.losses = kept * self.mass, kept * self.losses


def _ramp(above: Array, width: float) -> tuple[Array, Array]:
    """The first and second derivative of the rounded [u]_+, which is 0, then a parabola over the width, then linear."""
    return np.clip(above / width + 0.5, 0.0, 1.0), (np.abs(above) < width / 2) / width
