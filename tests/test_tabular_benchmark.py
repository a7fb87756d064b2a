"""The benchmark of the linear models at toy size; and the page that states its numbers."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import tabular


@pytest.mark.parametrize("table", ["dense", "sparse"])
def test_the_benchmark_at_toy_size(table: str) -> None:
    rows = [tabular.measure(table, *case, 4000, 200) for case in tabular.CASES]
    plain, ours, *others = rows
    assert plain.error <= tabular.ACCURACY
    assert (plain.fraction, ours.fraction) == (1.0, 1.0)
    assert all(row.zero == (row.fraction == 0.1) for row in rows)
    assert all(row.error <= tabular.ACCURACY and row.steps > 1 and row.seconds > 0 for row in [ours, *others])


def test_it_writes_what_it_prints(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tabular, "CASES", tabular.CASES[:3])
    ledger = tmp_path / "tabular.csv"
    tabular.main(["--tables", "dense", "--rows", "500", "500", "--columns", "5", "5", "--ledger", str(ledger)])
    rows = tabular.read(ledger)
    assert [row.provider for row in rows] == ["scikit-learn", "topkloss", "topkloss"]
    assert all(row.data >= 0 and row.peak >= 0 for row in rows)
    assert capsys.readouterr().out.endswith(f"{tabular.summary(rows)}\n")


def test_the_page_states_what_was_measured() -> None:
    """The table of docs/tables.md is what the script prints of the committed ledger."""
    page = (tabular.LEDGER.parent.parent / "docs" / "tables.md").read_text(encoding="utf-8")
    assert f"```text\n{tabular.summary(tabular.read(tabular.LEDGER))}\n```" in page
