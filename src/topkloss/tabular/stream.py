r"""A linear model of examples that come in chunks and are not kept: what `partial_fit` does.

The joint form of the average top-k loss (Lemma 1 of the paper) is a sum over the examples, jointly convex in the model
and the threshold,

.. math:: J(w, b, \lambda) = \frac{|w|^2}{2C} + \sum_i s_i \Big( \lambda + \tfrac1f [\ell_i(w, b) - \lambda]_+ \Big),

so that each example can be let go for a parabola: its gradient and curvature at the model that saw it. Of a new chunk J
is minimised exactly, on top of the parabola of all that came before, by Newton's method; no step size is to be chosen.

The corner of [u]_+ is rounded over a small part of the mean loss. How many losses lie at the threshold, which bends J
there, is counted over a wider part, because a chunk has few.

Reference: Luo, Song. Renewable estimation and incremental inference in generalized linear models with streaming data
sets. JRSS B 2020 (of smooth losses).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from topkloss.tabular.design import Design
from topkloss.tabular.directions import blocks, downhill
from topkloss.tabular.losses import Array, Loss
from topkloss.tabular.topk import level

__all__ = ["Stream"]

# The corner is rounded over so much of the mean loss, and the losses near the threshold are counted over so much.
NARROW, WIDE = 0.1, 1.0

# Of the first chunk, whose model may fit it too well, the mean loss counts at least this part of that without a model.
LEAST = 0.1

# How fast earlier passes fade: pass q of p weighs (q / p) to this power.
FADING = 2.0

# Newton's steps for one chunk, and how small the gain of the last one is, as a part of the loss.
STEPS, PRECISE = 50, 1e-12

# Coefficients of the largest square matrix that is kept.
MOST = 4096


@dataclass(frozen=True, eq=False)
class _Chunk:
    """The losses of one chunk as a function of coefficients and threshold.

    Attributes:
        design, targets, mass: As in `Problem`.
        loss: One of `topkloss.tabular.losses`.
        fraction: f.
        width: Of what is rounded, in units of the loss.
    """

    design: Design
    targets: Array
    mass: Array
    loss: Loss
    fraction: float
    width: float = 0.0

    @property
    def smooth(self) -> bool:
        """Whether nothing has a corner: all losses count, and none is made of lines."""
        return self.fraction == 1.0 and not self.loss.kinked

    def ramps(self, outputs: Array, threshold: float, width: float) -> tuple[Array, Array, Array, Array]:
        """Of the rounded [loss - threshold]_+, shape (n,) each.

        Its derivatives in the piece and, negated, in the threshold; then those of the first of these.
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
        """Derivatives in the outputs, shape (n, m), and in the threshold."""
        up, out, _, _ = self.ramps(outputs, threshold, self.width)
        duals = (self.mass * up / self.fraction)[:, None] * self.loss.slope(outputs, self.targets)
        rate = 0.0 if self.fraction == 1.0 else float(self.mass.sum() - self.mass @ out / self.fraction)
        return duals, rate

    def gradient(self, outputs: Array, threshold: float) -> Array:
        """In the coefficients, output by output, and the threshold."""
        duals, rate = self.pull(outputs, threshold)
        return np.append(self.design.adjoint(duals).T.ravel(), rate)

    def bend(self, outputs: Array, threshold: float, width: float) -> Array:
        """The second derivatives, with as many losses at the threshold as lie within a width around it."""
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
    """What is known of all examples so far, for one model: where it stands, and the parabola of J around it.

    Attributes:
        loss: One of `topkloss.tabular.losses`.
        fraction: f, the share of the mass that is averaged.
        strength: C.
        total: Mass of all examples, each of which may be passed many times: the penalty then counts once a pass, and
            earlier passes fade. Default: the mass that came, so that passing an example twice is weight 2.
        columns: d.
        outputs: How many numbers the model gives for each example.
        intercept: Whether there is one.
        penalised: Whether the penalty includes it.
        place: Coefficients output by output, and the threshold.
        tilt: The gradient of J there.
        curvature: The second derivatives of J there.
        mass: Of all examples so far, as far as they have not faded.
        losses: Sum of their losses, each at the model that had not seen it.
        came: Mass that came, faded or not.
        passes: Passes over the total that are complete.
        iterations: Newton's steps.
    """

    loss: Loss
    fraction: float
    strength: float
    total: float | None
    columns: int
    outputs: int = 1
    intercept: bool = True
    penalised: bool = False
    place: Array = field(init=False)
    tilt: Array = field(init=False)
    curvature: Array = field(init=False)
    mass: float = 0.0
    losses: float = 0.0
    came: float = 0.0
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
        self.place = np.zeros(unknowns * self.outputs + 1)
        self.tilt = np.zeros_like(self.place)
        self.curvature = np.zeros((len(self.place), len(self.place)))
        if self.outputs > 1 and self.intercept and not self.penalised:
            # all outputs may be raised together, which changes nothing: held where they are
            last = np.arange(1, self.outputs + 1) * unknowns - 1
            self.curvature[np.ix_(last, last)] = 1.0 / self.outputs

    @property
    def coefficients(self) -> Array:
        """Shape (d or d + 1, m), intercepts last."""
        return self.place[:-1].reshape(self.outputs, -1).T

    @property
    def threshold(self) -> float:
        """The loss above which losses are averaged."""
        return float(self.place[-1])

    def update(self, design: Design, targets: Array, mass: Array) -> None:
        """Takes a chunk in: all that came before and the chunk are fitted together, then the chunk is let go.

        Args:
            design: Its features.
            targets: As the loss wants them, shape (n,).
            mass: Mass of each example, shape (n,), >= 0, not all 0.
        """
        whole = float(mass.sum())
        self._penalise(whole)
        chunk = _Chunk(design, targets, mass, self.loss, self.fraction)
        outputs = design.outputs(self.coefficients)
        here = float(mass @ self.loss.value(outputs, targets))
        first = self.came == 0.0
        if first and self.fraction < 1.0:
            self.place[-1] = level(self.loss.value(outputs, targets), mass, self.fraction * whole)
        start = self.place.copy()
        least = LEAST * self._without_model(chunk) if first else 0.0
        mean = max(here, least) / whole if first else (self.losses + here) / (self.mass + whole)
        for _ in range(STEPS):
            chunk = _Chunk(design, targets, mass, self.loss, self.fraction, max(NARROW * mean, 1e-150))
            outputs = self._minimise(chunk, start, mean * whole)
            if not first or chunk.smooth:
                break
            here = max(float(mass @ self.loss.value(outputs, targets)), least)
            if here >= 0.7 * mean * whole:
                break
            mean = here / whole
        self.tilt = self._gradient(chunk, outputs, start)
        self.curvature += chunk.bend(outputs, self.threshold, WIDE / NARROW * chunk.width)
        self.mass += whole
        self.losses += here
        self.came += whole
        self._fade()

    def _penalise(self, mass: float) -> None:
        """The part of the penalty that comes with so much mass."""
        part = mass / self.total if self.total is not None else float(self.came == 0.0)
        each = np.full((self.columns + self.intercept, self.outputs), part / self.strength)
        if self.intercept and not self.penalised:
            each[-1] = 0.0
        penalties = np.append(each.T.ravel(), 0.0)
        self.tilt = self.tilt + penalties * self.place
        self.curvature[np.diag_indices_from(self.curvature)] += penalties

    def _without_model(self, chunk: _Chunk) -> float:
        """The sum of losses where every output is the mean target: 1 and -1 make it a number too."""
        mean = float(chunk.mass @ chunk.targets / chunk.mass.sum())
        return float(chunk.mass @ self.loss.value(np.full((len(chunk.targets), self.outputs), mean), chunk.targets))

    def _gradient(self, chunk: _Chunk, outputs: Array, start: Array) -> Array:
        """Of the chunk and, as a parabola around the start, of all that came before."""
        return chunk.gradient(outputs, self.threshold) + self.tilt + self.curvature @ (self.place - start)

    def _minimise(self, chunk: _Chunk, start: Array, losses: float) -> Array:
        """Moves to the minimum of the chunk and all that came before; the outputs there."""
        outputs = chunk.design.outputs(self.coefficients)
        for _ in range(STEPS):
            gradient = self._gradient(chunk, outputs, start)
            step = self._step(self.curvature + chunk.bend(outputs, self.threshold, chunk.width), gradient)
            if -float(gradient @ step) <= PRECISE * losses:
                break
            self.iterations += 1
            change = chunk.design.outputs(step[:-1].reshape(self.outputs, -1).T)
            length = self._length(chunk, outputs, change, start, step, float(gradient @ step))
            self.place = self.place + length * step
            outputs = outputs + length * change
        return outputs

    def _step(self, bend: Array, gradient: Array) -> Array:
        """Newton's, to a threshold of at least 0."""
        step = np.zeros_like(gradient)
        if self.fraction < 1.0 and (self.threshold > 0 or gradient[-1] < 0):
            step = downhill(bend, gradient)
            if self.threshold + step[-1] >= 0:
                return step
            step[-1] = -self.threshold
        step[:-1] = downhill(bend[:-1, :-1], gradient[:-1] + step[-1] * bend[:-1, -1])
        return step

    def _length(self, chunk: _Chunk, outputs: Array, change: Array, start: Array, step: Array, before: float) -> float:
        """How far to go along the step: not past where J, which is convex, has begun to rise."""
        flat = float(step @ (self.tilt + self.curvature @ (self.place - start)))
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
        """After a pass over the total: what is known from it counts less than what the next one will tell."""
        if self.total is None or self.came < (self.passes + 1) * self.total * (1 - 1e-9):
            return
        self.passes += 1
        kept = (self.passes / (self.passes + 1)) ** FADING
        self.tilt, self.curvature = kept * self.tilt, kept * self.curvature
        self.mass, self.losses = kept * self.mass, kept * self.losses


def _ramp(above: Array, width: float) -> tuple[Array, Array]:
    """First and second derivative of the rounded [u]_+: 0, a parabola over the width, a line."""
    return np.clip(above / width + 0.5, 0.0, 1.0), (np.abs(above) < width / 2) / width
