"""The oracle of the linear models: the same problem, written as a conic program, by a solver that is not ours.

The average top-k loss is the minimum over a level of level + sum of what exceeds it over k (Fan et al., Lemma 1); each
loss is a few cones. Nothing of `topkloss` is used.
"""

from __future__ import annotations

from collections.abc import Callable

import clarabel
import numpy as np
from numpy.typing import NDArray
from scipy import sparse

Array = NDArray[np.float64]
Row = dict[int, float]

__all__ = ["Program", "optimum"]


class Program:
    """min q x + x P x / 2, rows of b - A x in cones; an expression is a dict of coefficients, -1: its constant."""

    def __init__(self) -> None:
        self.variables = 0
        self.rows: list[Row] = []
        self.cones: list[object] = []

    def new(self, number: int = 1) -> list[int]:
        """Numbers of new variables."""
        self.variables += number
        return list(range(self.variables - number, self.variables))

    def nonnegative(self, *rows: Row) -> None:
        """Each expression is at least 0."""
        self.rows += rows
        self.cones.append(clarabel.NonnegativeConeT(len(rows)))

    def second_order(self, *rows: Row) -> None:
        """The first is at least the length of the others."""
        self.rows += rows
        self.cones.append(clarabel.SecondOrderConeT(len(rows)))

    def exponential(self, power: Row, value: Row) -> None:
        """exp(power) <= value."""
        self.rows += [power, {-1: 1.0}, value]
        self.cones.append(clarabel.ExponentialConeT())

    def square(self, root: Row, value: Row) -> None:
        """root^2 <= value."""
        self.second_order(add(value, {-1: 1.0}), scale(root, 2.0), add(value, {-1: -1.0}))

    def minimise(self, linear: Row, quadratic: Row) -> tuple[float, float]:
        """Bounds, from below and above, of the least of linear + sum of quadratic_j x_j^2 / 2."""
        size = self.variables
        matrix, right = sparse.lil_matrix((len(self.rows), size)), np.zeros(len(self.rows))
        for number, row in enumerate(self.rows):
            for variable, coefficient in row.items():
                if variable == -1:
                    right[number] = coefficient
                else:
                    matrix[number, variable] = -coefficient
        costs, curvatures = np.zeros(size), np.zeros(size)
        for variable, coefficient in linear.items():
            costs[variable] = coefficient
        for variable, coefficient in quadratic.items():
            curvatures[variable] = coefficient
        settings = clarabel.DefaultSettings()
        settings.verbose = False
        settings.static_regularization_constant = 1e-12
        settings.tol_gap_abs = settings.tol_gap_rel = settings.tol_feas = 1e-11
        solver = clarabel.DefaultSolver(
            sparse.diags(curvatures).tocsc(), costs, matrix.tocsc(), right, self.cones, settings
        )
        found = solver.solve()
        assert str(found.status) in ("Solved", "AlmostSolved"), found.status
        low, high = float(found.obj_val_dual), float(found.obj_val)
        assert high - low <= 1e-7 * abs(high), "the oracle does not know"
        return low, high


def add(*rows: Row) -> Row:
    """The sum of expressions."""
    total: Row = {}
    for row in rows:
        for variable, coefficient in row.items():
            total[variable] = total.get(variable, 0.0) + coefficient
    return total


def scale(row: Row, factor: float) -> Row:
    """A multiple."""
    return {variable: factor * coefficient for variable, coefficient in row.items()}


def _one(variable: int) -> Row:
    return {variable: 1.0}


def _logistic(program: Program, outputs: list[Row], target: float, loss: Row) -> None:
    _softmax(program, [{}, scale(outputs[0], -target)], 0.0, loss)


def _softmax(program: Program, outputs: list[Row], target: float, loss: Row) -> None:
    own = scale(add(outputs[int(target)], loss), -1.0)
    parts = program.new(len(outputs))
    for output, part in zip(outputs, parts, strict=True):
        program.exponential(add(output, own), _one(part))
    program.nonnegative({-1: 1.0, **dict.fromkeys(parts, -1.0)})


def _hinge(program: Program, outputs: list[Row], target: float, loss: Row) -> None:
    program.nonnegative(loss, add(loss, {-1: -1.0}, scale(outputs[0], target)))


def _squared_hinge(program: Program, outputs: list[Row], target: float, loss: Row) -> None:
    (root,) = program.new()
    _hinge(program, outputs, target, _one(root))
    program.square(_one(root), loss)


def _squared(program: Program, outputs: list[Row], target: float, loss: Row) -> None:
    program.square(add(outputs[0], {-1: -target}), loss)


def _absolute(program: Program, outputs: list[Row], target: float, loss: Row) -> None:
    residual = add(outputs[0], {-1: -target})
    program.nonnegative(add(loss, residual), add(loss, scale(residual, -1.0)))


def _huber(program: Program, outputs: list[Row], target: float, loss: Row) -> None:
    near, square, far = program.new(3)
    program.square(_one(near), _one(square))
    rest = add(outputs[0], {-1: -target, near: -1.0})
    program.nonnegative(add(_one(far), rest), add(_one(far), scale(rest, -1.0)))
    program.nonnegative(add(loss, {square: -0.5, far: -1.0}))


EPIGRAPHS: dict[str, Callable[[Program, list[Row], float, Row], None]] = {
    "logistic": _logistic,
    "hinge": _hinge,
    "squared_hinge": _squared_hinge,
    "softmax": _softmax,
    "squared": _squared,
    "absolute": _absolute,
    "huber": _huber,
}


def optimum(
    loss: str,
    features: Array,
    targets: Array,
    *,
    mass: Array,
    k: float,
    strength: float,
    outputs: int = 1,
    intercept: bool = True,
    penalised: bool = False,
    l1: float = 0.0,
) -> tuple[float, float]:
    """Bounds, from below and above, of the least average top-k loss + |w|^2 / (2 strength) + l1 |w|_1."""
    program = Program()
    size = features.shape[1]
    weights = [program.new(size) for _ in range(outputs)]
    biases = program.new(outputs) if intercept else []
    (level,) = program.new()
    linear, quadratic = _one(level), {one: 1.0 / strength for row in weights for one in row}
    if penalised:
        quadratic |= dict.fromkeys(biases, 1.0 / strength)
    if l1:
        for one in [one for row in weights for one in row] + (biases if penalised else []):
            (size,) = program.new()
            program.nonnegative({size: 1.0, one: 1.0}, {size: 1.0, one: -1.0})
            linear[size] = l1
    for row, target, own in zip(features, targets, mass, strict=True):
        loss_of_row, excess = program.new(2)
        linear[excess] = own / k
        program.nonnegative(_one(excess), {excess: 1.0, loss_of_row: -1.0, level: 1.0})
        expressions: list[Row] = [dict(zip(one, row.tolist(), strict=True)) for one in weights]
        for number, bias in enumerate(biases):
            expressions[number][bias] = 1.0
        EPIGRAPHS[loss](program, expressions, float(target), _one(loss_of_row))
    return program.minimise(linear, quadratic)
