"""The experiment with skipping, at toy size; and the page that states its numbers."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import skipping


def test_the_benchmark_at_toy_size(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ledger, figure = tmp_path / "skipping.csv", tmp_path / "skipping.png"
    small = ["--steps", "8", "--every", "4", "--seeds", "2", "--width", "8"]
    skipping.main([*small, "--ledger", str(ledger), "--figure", str(figure)])
    rows = skipping.read(ledger)
    assert len(rows) == 2 * 3 * 2 * 3
    losses = {(row.norm, row.way, row.seed): row.cross_entropy for row in rows if row.step == 8}
    for seed in (0, 1):
        mean, whole, skipping_ = (losses["group", way, seed] for way in skipping.LOOKS)
        assert skipping_ == pytest.approx(whole, rel=1e-3)
        assert mean != whole
    coupled = [[losses["batch", way, seed] for seed in (0, 1)] for way in ("top 30 %", "top 30 %, skipping")]
    assert coupled[0] != coupled[1]
    assert figure.read_bytes().startswith(b"\x89PNG")
    assert capsys.readouterr().out == f"{skipping.summary(rows)}\n"


def test_the_page_states_what_was_measured() -> None:
    """The table of docs/selective.md is what the script prints of the committed ledger."""
    page = (skipping.ROOT / "docs" / "selective.md").read_text(encoding="utf-8")
    assert f"```text\n{skipping.summary(skipping.read(skipping.LEDGER))}\n```" in page
