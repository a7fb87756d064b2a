"""The experiment with schedules, at toy size; and the page that states its numbers."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import schedules


def test_the_benchmark_at_toy_size(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ledger, figure = tmp_path / "schedules.csv", tmp_path / "schedules.png"
    asked = ["--ledger", str(ledger), "--figure", str(figure)]
    schedules.main([*asked, "--steps", "4", "--every", "2", "--seeds", "2", "--rates", "0.01", "0.1"])
    rows = schedules.read(ledger)
    assert len(rows) == 4 * 2 * 2 * 3
    last = {row.schedule: row.fraction for row in rows if row.step == 4}
    assert list(last.values()) == [1.0, 0.1, 0.1, 0.1]
    assert {row.fraction for row in rows if row.step == 0} == {1.0, 0.1}
    assert figure.read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    assert printed.count("*") == len(schedules.SCHEDULES)
    schedules.main([*asked, "--draw-only"])
    assert capsys.readouterr().out == printed


def test_the_page_states_what_was_measured() -> None:
    """The table of docs/schedules.md is what the script prints of the committed ledger."""
    page = (schedules.ROOT / "docs" / "schedules.md").read_text(encoding="utf-8")
    assert f"```text\n{schedules.summary(schedules.read(schedules.LEDGER))}\n```" in page
