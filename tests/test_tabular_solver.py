"""Linear models: the losses, the projection, the certificate, and the optimum against a conic solver."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import optimize, sparse

from benchmarks import tabular as benchmark
from tests.conic import optimum
from topkloss.tabular import directions, problem, proximal, smoothed
from topkloss.tabular.design import Design
from topkloss.tabular.flat import decide
from topkloss.tabular.losses import CLASSIFICATION, REGRESSION, Huber, Loss
from topkloss.tabular.problem import Problem
from topkloss.tabular.proximal import choose, constant, solve
from topkloss.tabular.topk import project

Array = NDArray[np.float64]

LOSSES: dict[str, Loss] = CLASSIFICATION | REGRESSION


def draw(name: str, seed: int, n: int = 30, d: int = 3) -> tuple[Array, Array, Array]:
    """Features, targets and masses of a small problem that no line solves."""
    chance = np.random.default_rng(seed)
    features = chance.normal(size=(n, d))
    signal = features @ chance.normal(size=d) + 0.5 * chance.normal(size=n) + 0.3
    if name == "softmax":
        targets = np.digitize(signal, np.quantile(signal, [0.3, 0.6])).astype(float)
    else:
        targets = np.where(signal > 0, 1.0, -1.0) if name in CLASSIFICATION else 2 * signal + 3
    return features, targets, chance.uniform(0.2, 2.0, size=n)


def make(
    name: str,
    seed: int,
    *,
    share: float,
    strength: float,
    kind: str = "free",
    weighted: bool = True,
    l1: float = 0.0,
) -> Problem:
    features, targets, mass = draw(name, seed)
    if not weighted:
        mass = np.ones_like(mass)
    design = Design(features, intercept=kind != "none")
    outputs = 3 if name == "softmax" else 1
    return Problem(design, targets, LOSSES[name], mass, share * mass.sum(), strength, outputs, kind == "penalised", l1)


def truth(one: Problem, name: str) -> tuple[float, float]:
    """Bounds of the optimum, at most 1e-7 apart; mostly 1e-11."""
    return optimum(
        name,
        one.design.features,
        one.targets,
        mass=one.mass,
        k=one.k,
        strength=one.strength,
        outputs=one.outputs,
        intercept=one.design.intercept,
        penalised=one.penalised,
        l1=one.l1,
    )


# losses


@pytest.mark.parametrize("name", LOSSES)
def test_slopes_and_curvatures_are_derivatives(name: str) -> None:
    loss = LOSSES[name]
    chance = np.random.default_rng(1)
    _, targets, _ = draw(name, 0)
    outputs = chance.normal(size=(len(targets), 3 if name == "softmax" else 1)) * 2 + (0 if name != "squared" else 3)
    step = 1e-6
    for output in range(outputs.shape[1]):
        moved = [outputs.copy(), outputs.copy()]
        moved[0][:, output] -= step
        moved[1][:, output] += step
        below, above = (loss.piece(one, targets) for one in moved)
        assert loss.slope(outputs, targets)[:, output] == pytest.approx((above - below) / (2 * step), abs=1e-6)
        change = (loss.slope(moved[1], targets) - loss.slope(moved[0], targets)) / (2 * step)
        curvature = loss.curvature(outputs, targets).reshape(len(targets), outputs.shape[1], -1)[:, output]
        assert curvature == pytest.approx(change, abs=1e-5)


@pytest.mark.parametrize("name", LOSSES)
def test_the_conjugate_is_that_of_the_loss(name: str) -> None:
    """Fenchel and Young: equality at the slopes of the loss, and nowhere less."""
    loss = LOSSES[name]
    _, targets, _ = draw(name, 0)
    chance = np.random.default_rng(2)
    width = 3 if name == "softmax" else 1
    outputs = chance.normal(size=(len(targets), width)) * 3
    slopes = loss.slope(outputs, targets)
    if name == "hinge":
        slopes = slopes * (loss.value(outputs, targets) > 0)[:, None]
    if name == "absolute":
        slopes = np.sign(loss.piece(outputs, targets))[:, None]
    conjugate = loss.conjugate(slopes, targets)
    assert loss.value(outputs, targets) + conjugate == pytest.approx((slopes * outputs).sum(axis=1), abs=1e-9)
    for _ in range(20):
        other = outputs + chance.normal(size=outputs.shape) * chance.choice([0.1, 3.0])
        assert (loss.value(other, targets) + conjugate >= (slopes * other).sum(axis=1) - 1e-9).all()


def test_no_slope_that_a_loss_cannot_have_has_a_conjugate() -> None:
    targets = np.ones(2)
    for name, slopes in {"logistic": [0.5, -1.5], "hinge": [0.1, -1.1], "absolute": [1.1, -1.1]}.items():
        assert np.isinf(LOSSES[name].conjugate(np.array(slopes)[:, None], targets)).all(), name
    assert np.isinf(Huber(0.5).conjugate(np.array([[0.6], [-0.6]]), targets)).all()
    assert np.isinf(LOSSES["softmax"].conjugate(np.array([[0.5, 0.0, 0.0], [0.5, -1.5, 1.0]]), targets)).all()


# the projection


@given(st.lists(st.tuples(st.floats(-3, 3), st.floats(0.1, 3)), min_size=1, max_size=12), st.floats(0.02, 2))
def test_the_projection_is_the_nearest_point_of_the_capped_simplex(
    pairs: list[tuple[float, float]], cap: float
) -> None:
    wanted, mass = (np.array(column) for column in zip(*pairs, strict=True))
    least = project(wanted, mass, cap, 0.0)
    shares = np.clip(wanted - least, 0.0, cap)
    assert mass @ shares <= 1 + 1e-12
    best = optimize.minimize(
        lambda p: mass @ (p - wanted) ** 2 / 2,
        np.zeros_like(wanted),
        jac=lambda p: mass * (p - wanted),
        bounds=[(0, cap)] * len(wanted),
        constraints={"type": "ineq", "fun": lambda p: 1 - mass @ p, "jac": lambda p: -mass},
        method="SLSQP",
        options={"ftol": 1e-14, "maxiter": 500},
    )
    assert mass @ (shares - wanted) ** 2 / 2 <= best.fun + 1e-9


# the optimum


CASES = [
    (share, strength, kind, weighted)
    for share, strength in [(1.0, 5.0), (0.77, 0.2), (0.62, 50.0), (0.31, 1.0)]
    for kind, weighted in [("free", True), ("penalised", False), ("none", True)]
]


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize(("share", "strength", "kind", "weighted"), CASES)
def test_the_optimum_is_that_of_a_conic_solver(
    name: str, share: float, strength: float, kind: str, weighted: bool
) -> None:
    one = make(name, 3, share=share, strength=strength, kind=kind, weighted=weighted)
    low, high = truth(one, name)
    for method in ("newton", "lbfgs"):
        found = solve(one, tol=1e-5, max_iter=3000, method=method)
        assert found.converged
        assert found.certificate.objective == pytest.approx(one.objective(found.coefficients), rel=1e-14)
        assert low * (1 - 1e-8) <= found.certificate.objective <= high * (1 + 1e-8)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize(
    ("share", "strength", "l1", "kind"),
    [(1.0, 5.0, 0.02, "free"), (0.77, 0.5, 0.1, "penalised"), (0.62, 500.0, 0.05, "free"), (0.8, 50.0, 1e-4, "none")],
)
def test_the_optimum_with_an_l1_penalty_is_that_of_a_conic_solver(
    name: str, share: float, strength: float, l1: float, kind: str
) -> None:
    one = make(name, 3, share=share, strength=strength, kind=kind, l1=l1)
    low, high = truth(one, name)
    models = []
    for method in ("newton", "lbfgs"):
        found = solve(one, tol=1e-5, max_iter=3000, method=method)
        assert found.converged
        assert found.certificate.objective == pytest.approx(one.objective(found.coefficients), rel=1e-14)
        assert low * (1 - 1e-8) <= found.certificate.objective <= high * (1 + 1e-8)
        models.append(found.coefficients)
    assert ((models[0] == 0) == (models[1] == 0)).all()


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("k", [0.4, 1.0, 2.5])
def test_the_maximum_and_less_than_one_example(name: str, k: float) -> None:
    features, targets, _ = draw(name, 5, n=12, d=12)  # more features than it takes to fit every example
    mass = np.ones_like(targets)
    one = Problem(Design(features, intercept=True), targets, LOSSES[name], mass, k, 20.0, 3 if name == "softmax" else 1)
    found = solve(one, tol=1e-5, max_iter=3000)
    low, high = truth(one, name)
    assert low * (1 - 1e-8) <= found.certificate.objective <= high * (1 + 1e-8)
    assert found.converged


# the zero model


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("kind", ["free", "penalised", "none"])
def test_the_best_constant_is_that_of_a_conic_solver(name: str, kind: str) -> None:
    one = make(name, 2, share=0.45, strength=2.0, kind=kind)
    found = constant(one)
    assert not found[:3].any()
    bare = dataclasses.replace(one, design=Design(np.zeros((30, 1)), intercept=kind != "none"))
    low, high = truth(bare, name)
    assert low * (1 - 1e-7) <= one.objective(found) <= high * (1 + 1e-8)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("kind", ["free", "none"])
@pytest.mark.parametrize("l1", [0.0, 0.05])
def test_the_zero_model_is_optimal_where_a_conic_solver_finds_no_better(name: str, kind: str, l1: float) -> None:
    decided = []
    for share in (0.05, 0.2, 0.4, 0.6, 1.0):
        one = make(name, 3, share=share, strength=2.0, kind=kind, l1=l1)
        nothing = one.objective(constant(one))
        for method in ("newton", "lbfgs"):
            found = decide(one, constant(one), choose(one, method), tol=1e-4)
            low, high = truth(one, name)
            if found.optimal:
                assert found.model is not None
                assert nothing <= high * (1 + 1e-7)
                assert found.model[1].objective - found.model[1].gap <= low * (1 + 1e-7)
            elif found.optimal is False:
                assert nothing > low * (1 - 1e-7)
                assert one.objective(found.point.coefficients) < nothing
            decided.append(found.optimal)
    assert False in decided
    assert None not in decided[::2]  # Newton decides


@pytest.mark.parametrize(("share", "weight"), [(0.2, None), (0.3, 8.0), (0.95, 20.0)])
def test_of_many_rows_the_zero_model_takes_a_few_steps(
    share: float, weight: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Classes of the same mass, and others, where the best constant is not 0."""
    chance = np.random.default_rng(0)
    features = chance.normal(size=(4000, 5))
    targets = np.where(features[:, 0] + 4 * chance.normal(size=4000) > 0, 1.0, -1.0)
    mass = np.ones(4000) if weight is None else np.where(targets > 0, weight, 1.0)
    one = Problem(Design(features, intercept=True), targets, LOSSES["logistic"], mass, share * mass.sum(), 5.0)
    direct = solve(one, tol=1e-3, max_iter=500)
    monkeypatch.setattr(proximal, "COARSE", 1000)
    found = solve(one, tol=1e-3, max_iter=500)
    assert found.zero == direct.zero == (share < 0.9)
    assert found.certificate.objective == pytest.approx(direct.certificate.objective, rel=1e-6)
    if found.zero:
        assert found.iterations <= 6
        assert found.certificate.gap <= 1e-6 * found.certificate.objective


# the certificate


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("kind", ["free", "penalised", "none"])
@pytest.mark.parametrize("l1", [0.0, 0.03])
def test_the_certificate_is_never_better_than_the_truth(name: str, kind: str, l1: float) -> None:
    """Of models that are not solved to the end, and of models that nobody solved for."""
    for seed, share in enumerate([0.4, 0.7, 1.0]):
        one = make(name, seed, share=share, strength=3.0, kind=kind, l1=l1)
        best = solve(one, tol=1e-7, max_iter=5000)
        lowest = best.certificate.objective - best.certificate.gap
        chance = np.random.default_rng(seed)
        for steps in (1, 2, 4, 7):
            part = solve(one, tol=1e-9, max_iter=steps)
            assert part.certificate.gap >= part.certificate.objective - best.certificate.objective - 1e-13
            distance = one.norm(part.coefficients - best.coefficients)
            assert distance <= (1 + 1e-6) * np.sqrt(2 * one.strength * part.certificate.gap) + 1e-6
            coefficients = part.coefficients + chance.normal(size=part.coefficients.shape)
            outputs = one.design.outputs(coefficients)
            wild = one.certify(coefficients, outputs, best.shares)
            assert wild.objective - wild.gap <= best.certificate.objective + 1e-12
            assert wild.gap >= wild.objective - best.certificate.objective - 1e-12
        assert lowest <= truth(one, name)[1] * (1 + 1e-8)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("kind", ["free", "penalised"])
def test_the_gap_is_primal_minus_dual(name: str, kind: str) -> None:
    """The sum of terms that are never negative is the difference of two numbers computed by their definitions."""
    one = make(name, 4, share=0.6, strength=2.0, kind=kind)
    part = solve(one, tol=1e-9, max_iter=3)
    outputs = one.design.outputs(part.coefficients)
    shares = part.shares
    if one.free_intercept and one.outputs == 1:
        shares = problem._balanced(one.mass, one.cap, shares, one.loss.slope(outputs, one.targets)[:, 0])
    taken = one.mass * np.abs(shares)
    assert taken.sum() <= 1 + 1e-12
    assert (np.abs(shares) <= one.cap * (1 + 1e-12)).all()
    duals = (one.mass * shares)[:, None] * one.loss.slope(outputs, one.targets)
    if one.free_intercept and one.outputs > 1:
        duals, _ = one._mixed(outputs, shares, duals)
    if one.free_intercept:
        assert duals.sum(axis=0) == pytest.approx(0.0, abs=1e-13)
    some = taken > 0
    # of the dual points of one example the best has its share of the cap as a whole, where the loss is made of pieces
    conjugate = one.loss.conjugate(duals[some] / taken[some, None], one.targets[some])
    image = one.design.adjoint(duals)
    if one.free_intercept:
        image = image[:-1]
    dual = -float(taken[some] @ conjugate) - one.strength / 2 * float((image**2).sum())
    certificate = one.certify(part.coefficients, outputs, part.shares)
    assert certificate.gap == pytest.approx(certificate.objective - dual, abs=1e-12)


# mutants: each is the solver with one mistake in it, and the certificate or the conic solver must say so


def _no_masses(self: smoothed.Smoothed, pieces: Array, guess: float) -> Any:
    plain = dataclasses.replace(self.problem, mass=np.ones_like(self.problem.mass))
    return RIGHT_SHARES(dataclasses.replace(self, problem=plain), pieces, guess)


def _whole_k(self: Problem) -> float:
    return float(1.0 / max(1.0, np.floor(self.k)))


RIGHT_SHARES = smoothed.Smoothed.shares
RIGHT_EXCESS = Problem.excess
WRONG: dict[str, tuple[Any, str, Any]] = {
    "the masses are forgotten in the projection": (smoothed.Smoothed, "shares", _no_masses),
    "k is rounded down": (Problem, "cap", property(_whole_k)),
    "the duals of the intercept sum to anything": (problem, "_balanced", lambda mass, cap, shares, slopes: shares),
    "the gap forgets the residual": (Problem, "certify", lambda self, *given: _without(self, *given)),
    "the gap forgets the slack of the l1 penalty": (Problem, "slack", lambda self, coefficients, holds: 0.0),
    "the l1 penalty is half of it": (Problem, "bounds", property(lambda self: self.l1 / 2 * (self.penalties > 0))),
    "the gap forgets the excess": (Problem, "excess", lambda self, *given: (0.0, RIGHT_EXCESS(self, *given)[1])),
}


def _without(self: Problem, coefficients: Array, outputs: Array, shares: Array) -> problem.Certificate:
    excess, threshold = RIGHT_EXCESS(self, self.loss.piece(outputs, self.targets), shares)
    return problem.Certificate(excess, self.objective(coefficients, outputs), threshold)


def _right_and_honest() -> bool:
    """Whether the solver reaches the optimum of the conic solver, and no certificate is better than the truth."""
    for strength, l1 in ((5.0, 0.0), (0.01, 0.0), (5.0, 0.1)):
        one = make("logistic", 3, share=0.77, strength=strength, l1=l1)
        low, high = truth(one, "logistic")
        found = solve(one, tol=1e-5, max_iter=200)
        if not (found.converged and low * (1 - 1e-8) <= found.certificate.objective <= high * (1 + 1e-8)):
            return False
        wild = [np.array([[0.0], [0.0], [0.0], [bias]]) for bias in (0.0, 3.0)]
        near = found.coefficients + 0.01 * (found.coefficients == 0)
        plain = np.full(len(one.targets), 1 / one.mass.sum())
        for model, shares in [*((model, plain) for model in wild), (near, found.shares)]:
            certificate = one.certify(model, one.design.outputs(model), shares)
            if certificate.gap < certificate.objective - high - 1e-9:
                return False
    return True


def test_the_solver_is_right_and_honest() -> None:
    assert _right_and_honest()


@pytest.mark.parametrize("name", WRONG)
def test_a_mistake_is_noticed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(*WRONG[name])
    assert not _right_and_honest()


# the rest


def test_sparse_and_float32_are_the_same_numbers() -> None:
    features, targets, mass = draw("logistic", 6, n=100, d=6)
    features = np.where(np.abs(features) > 0.7, features, 0.0).astype(np.float32).astype(np.float64)
    forms: list[Callable[[Array], Any]] = [
        lambda x: x,
        sparse.csr_array,
        sparse.csr_matrix,
        sparse.csc_array,
        np.asfortranarray,
        lambda x: x.astype(np.float32),
        lambda x: sparse.csr_array(x.astype(np.float32)),
    ]
    models = []
    for form in forms:
        for method in ("newton", "lbfgs"):
            one = Problem(
                Design(form(features), intercept=True), targets, LOSSES["logistic"], mass, 0.7 * mass.sum(), 5.0
            )
            models.append(solve(one, tol=1e-7, max_iter=2000, method=method).coefficients)
    for model in models[1:]:
        assert model == pytest.approx(models[0], abs=1e-6)


def test_rows_are_read_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    features, _, mass = draw("squared", 7, n=50, d=4)
    design = Design(features, intercept=True)
    ones = np.hstack([features, np.ones((50, 1))])
    signed = np.random.default_rng(0).normal(size=50)
    for block in (2**20, 12):
        monkeypatch.setattr("topkloss.tabular.design.BLOCK", block)
        assert design.gram(mass) == pytest.approx(ones.T @ (mass[:, None] * ones))
        assert design.gram(mass, signed) == pytest.approx(ones.T @ ((mass * signed)[:, None] * ones))
        assert design.gram(mass * (mass > 1)) == pytest.approx(ones.T @ ((mass * (mass > 1))[:, None] * ones))
        assert design.squared_norms() == pytest.approx((features**2).sum(axis=1))


def test_newton_is_chosen_where_its_matrix_is_small() -> None:
    small, large = make("hinge", 0, share=0.5, strength=1.0), make("hinge", 0, share=0.5, strength=1.0)
    large = dataclasses.replace(large, design=Design(np.zeros((30, proximal.MANY)), intercept=True))
    assert isinstance(proximal.choose(small, "auto"), directions.Newton)
    assert isinstance(proximal.choose(large, "auto"), directions.LimitedMemory)


@pytest.mark.parametrize("name", ["logistic", "absolute", "softmax"])
def test_a_start_from_a_part_of_the_rows_changes_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    features, targets, mass = draw(name, 8, n=300, d=4)
    outputs = 3 if name == "softmax" else 1
    one = Problem(Design(features, intercept=True), targets, LOSSES[name], mass, 0.7 * mass.sum(), 5.0, outputs)
    whole = solve(one, tol=1e-7, max_iter=2000)
    monkeypatch.setattr(proximal, "COARSE", 60)
    coefficients = solve(proximal._part(one), tol=1e-3, max_iter=2000).coefficients
    assert coefficients != pytest.approx(whole.coefficients, abs=1e-3)
    part = solve(one, tol=1e-7, max_iter=2000)
    assert part.converged
    assert part.coefficients == pytest.approx(whole.coefficients, abs=1e-6)


@pytest.mark.parametrize("name", ["squared", "absolute", "logistic", "softmax"])
def test_a_part_of_the_rows_may_lack_what_the_whole_has(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """All its targets are the same; and so may be those of the whole."""
    features = np.random.default_rng(0).normal(size=(300, 3))
    monkeypatch.setattr(proximal, "COARSE", 60)
    for others in (40, 0) if name in REGRESSION else (40,):
        targets = np.full(300, 1.0)
        targets[np.arange(others) * 5 + 2] = -1.0 if name == "logistic" else 0.0
        outputs = 2 if name == "softmax" else 1
        one = Problem(Design(features, intercept=True), targets, LOSSES[name], np.ones(300), 290.0, 5.0, outputs)
        found = solve(one, tol=1e-3, max_iter=500)
        assert found.converged
        monkeypatch.setattr(proximal, "COARSE", 1000)
        direct = solve(one, tol=1e-3, max_iter=500)
        monkeypatch.setattr(proximal, "COARSE", 60)
        assert found.certificate.objective == pytest.approx(direct.certificate.objective, rel=1e-5, abs=1e-9)


@pytest.mark.parametrize("share", [0.55, 0.6])
def test_a_part_that_ended_sharp_does_not_hold_up_the_whole(share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sparse, nearly the zero model: from so sharp a start L-BFGS takes up to a thousand steps."""
    features, labels = benchmark.draw("sparse", 1000, 500)
    monkeypatch.setattr(proximal, "COARSE", 500)
    one = Problem(Design(features, intercept=True), labels, LOSSES["logistic"], np.ones(1000), share * 1000, 1.0)
    found = solve(one, tol=1e-3, max_iter=300, method="lbfgs")
    assert found.converged
    assert not found.zero


@settings(max_examples=10)
@given(seed=st.integers(0, 10**6))
def test_the_answer_is_the_same_every_time(seed: int) -> None:
    one = make("hinge", seed, share=0.6, strength=4.0)
    first, second = (solve(one, tol=1e-4, max_iter=500).coefficients for _ in range(2))
    assert (first == second).all()
