"""On batches of 8 the dual form reaches the population's average top-k, and the batch's own top-k does not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from scipy.integrate import quad
from scipy.optimize import minimize_scalar

pytest.importorskip("matplotlib")

from benchmarks import dual
from benchmarks.dual import average_top_k_of, bias, bound, losses_of, maximum_of, minimum, optimum, train
from topkloss import average_top_k, topk_threshold

ROOT = Path(__file__).resolve().parent.parent
LINES = [(1.0, 0.0), (1.0, 0.434), (0.3, 0.2), (1.2, -0.4)]


@pytest.mark.parametrize("fraction", [0.05, 0.1, 0.3, 1.0])
@pytest.mark.parametrize("line", LINES, ids=str)
def test_the_populations_average_top_k_is_that_of_a_large_sample(line: tuple[float, float], fraction: float) -> None:
    slope, intercept = line
    x, y = dual.sample(400_000, torch.Generator().manual_seed(0))
    losses = (y - slope * x - intercept).abs().flatten().double()
    pieces = losses_of(slope, intercept)
    assert sum(mass for mass, _, _ in pieces) == pytest.approx(1)
    assert average_top_k_of(pieces, fraction) == pytest.approx(
        average_top_k(losses, fraction=fraction).item(), abs=0.008
    )
    if fraction < 1:
        found = topk_threshold(losses, fraction=fraction).item()
        assert dual.share_above(pieces, dual.threshold_of(pieces, fraction)) == pytest.approx(fraction)
        assert dual.share_above(pieces, found) == pytest.approx(fraction, abs=0.003)


@pytest.mark.parametrize("batch", [1, 8, 64])
def test_the_expected_maximum_is_that_of_quadrature(batch: int) -> None:
    pieces = losses_of(0.3, 0.2)
    ends = sorted({end for _, low, high in pieces for end in (low, high)})
    expected, _ = quad(lambda t: 1 - (1 - dual.share_above(pieces, t)) ** batch, 0, ends[-1], points=ends, limit=200)
    assert maximum_of(pieces, batch) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("fraction", dual.FRACTIONS)
def test_the_optimum_is_one(fraction: float) -> None:
    """Against a search over the intercept; and no slope near 1 is better, which convexity makes enough."""
    found = minimize_scalar(
        lambda at: average_top_k_of(losses_of(1, at), fraction),
        bounds=(0, 1),
        method="bounded",
        options={"xatol": 1e-9},
    )
    assert minimum(fraction) == pytest.approx(found.fun, abs=1e-9)
    intercept, threshold = optimum(fraction)
    assert intercept == pytest.approx(found.x, abs=1e-3)
    assert threshold == pytest.approx(dual.threshold_of(losses_of(1, intercept), fraction), abs=1e-9)
    for slope in (0.95, 0.99, 1.01, 1.05):
        for shift in (-0.02, 0.0, 0.02):
            assert average_top_k_of(losses_of(slope, intercept + shift), fraction) >= minimum(fraction) - 1e-12


def test_the_dual_form_arrives_where_the_batchs_own_top_k_does_not() -> None:
    """Batches of 8, 10 %: the same stream for each."""
    ends = {
        method: train(method, 0.1, rate, seed=0, steps=1200, at=[1200])[-1]
        for method, rate in (("batch top-k", 0.1), ("dual", 0.03), ("smoothed dual", 0.03))
    }
    above = {method: row.value / minimum(0.1) - 1 for method, row in ends.items()}
    assert above["dual"] < 0.01
    assert above["smoothed dual"] < 0.01
    assert above["batch top-k"] > 0.1
    assert ends["dual"].intercept == pytest.approx(optimum(0.1)[0], abs=0.02)
    assert ends["dual"].threshold == pytest.approx(optimum(0.1)[1], abs=0.02)
    assert ends["batch top-k"].intercept < 0.3


def test_a_batchs_top_k_is_too_low_within_the_bound_and_the_dual_is_not() -> None:
    rows = [row for size in (1, 8, 64) for seed in range(5) for row in dual.estimate(0.1, size, seed, 40_000)]
    for size in (1, 8, 64):
        low, _ = bias(rows, "batch top-k", 0.1, size)
        off, error = bias(rows, "dual", 0.1, size)
        assert -bound(0.1, size) <= low < 0
        assert abs(off) < max(6 * error, 0.002)
    expected = maximum_of(losses_of(1, optimum(0.1)[0]), 8)
    assert bias(rows, "batch top-k", 0.1, 8)[0] == pytest.approx(expected - minimum(0.1), abs=0.003)


def test_the_page_states_what_the_ledger_holds() -> None:
    page = (ROOT / "docs" / "dataset.md").read_text(encoding="utf-8")
    training, _, estimates = dual.summary(dual.read(dual.LEDGER)).partition("\n\n")
    assert training.splitlines()[0].strip() in page
    for line in training.splitlines():
        assert line.rstrip() in page
    for line in estimates.splitlines()[1:]:
        assert line[:32].rstrip() in page


def test_the_benchmark_runs_at_toy_size(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = ["--ledger", str(tmp_path / "dual.csv"), "--figure", str(tmp_path / "dual.png")]
    dual.main(
        [
            "--steps",
            "20",
            "--seeds",
            "2",
            "--rates",
            "0.03",
            "--sizes",
            "1",
            "8",
            "--blocks",
            "2",
            "--draws",
            "800",
            *files,
        ]
    )
    assert "10%: least possible" in capsys.readouterr().out
    assert (tmp_path / "dual.png").stat().st_size > 10_000
    assert len(dual.read(tmp_path / "dual.csv")) > 20
