"""The benchmarks of selective steps and of accumulation, at toy size; and the page that states their numbers."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import accumulation, selective

PAGE = Path(__file__).parent.parent / "docs" / "selective.md"


def test_the_benchmark_at_toy_size(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ledger = tmp_path / "selective.csv"
    small = ["--batch", "8", "--micro-batch", "4", "--width", "4", "--rounds", "2", "--steps", "1"]
    selective.main([*small, "--ledger", str(ledger)])
    selective.main([*small, "--channels-last", "--amp", "--ledger", str(ledger)])
    rows = selective.read(ledger)
    assert len(rows) == 2 * 4 * len(selective.FRACTIONS)
    assert [row.amp for row in rows] == [False] * 16 + [True] * 16
    exact = {(row.way, row.fraction): row for row in rows[:16]}
    for fraction in selective.FRACTIONS:
        whole, stepped = exact["whole batch", fraction], exact["selective", fraction]
        assert stepped.difference < 1e-5
        assert exact["micro-batches", fraction].difference > 1e-2  # of the plain mean
        assert stepped.peak < whole.peak
    assert capsys.readouterr().out == f"{selective.summary(rows[:16])}\n{selective.summary(rows[16:])}\n"


def test_accumulation_at_toy_size(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ledger = tmp_path / "accumulation.csv"
    accumulation.main(["--batch", "64", "--width", "8", "--steps", "76", "--ledger", str(ledger)])
    rows = accumulation.read(ledger)
    assert len(rows) == 2 * 3
    for row in rows:
        exactly = row.rule.startswith("ranked first")
        assert (abs(row.loss - row.exact) < 1e-5) == (row.difference < 1e-5) == exactly
        if row.rule.startswith("above"):
            assert row.loss > row.exact
        if row.rule.startswith("each"):
            assert row.loss < row.exact
    assert capsys.readouterr().out == f"{accumulation.summary(rows)}\n"


@pytest.mark.parametrize("benchmark", [selective, accumulation])
def test_the_page_states_what_was_measured(benchmark) -> None:  # type: ignore[no-untyped-def]
    page = PAGE.read_text(encoding="utf-8")
    assert f"```text\n{benchmark.summary(benchmark.read(benchmark.LEDGER))}\n```" in page
