"""The benchmark, at toy size: it checks before it times, and its ledger has a line for each case."""

from __future__ import annotations

import csv
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch

from benchmarks import average_top_k
from benchmarks.average_top_k import LEDGER, Row, main
from benchmarks.cases import BASELINE, FRACTIONS, cases
from benchmarks.measure import Memory


def test_every_provider_gives_the_expected_answer() -> None:
    for case in cases(1000):
        assert case.value(case.losses).item() == pytest.approx(case.expected, rel=1e-5)


def test_the_ledger_grows_by_a_line_for_each_case(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ledger = tmp_path / "ledger.csv"
    for times in (1, 2):
        main(["--size", "1000", "--turns", "3", "--ledger", str(ledger)])
        with ledger.open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert len(rows) == times * len(cases(10))
    assert {float(row["fraction"]) for row in rows} == set(FRACTIONS)
    assert all(float(row["ratio"]) == 1 for row in rows if row["provider"] == BASELINE)
    assert all(float(row["median"]) > 0 and float(row["peak"]) > 0 for row in rows)
    assert capsys.readouterr().out.count("\n") == len(rows)


def test_a_wrong_answer_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = [replace(case, expected=2 * case.expected) for case in cases(100)]
    monkeypatch.setattr(average_top_k, "cases", lambda n: wrong)
    with pytest.raises(AssertionError):
        average_top_k.measure(100, 1)


def test_memory_is_followed() -> None:
    with Memory() as memory:
        first = torch.zeros(2**18)
        del first
        second = torch.zeros(2**18)
        assert second.view(-1).numel() == 2**18
        both = second + second
        assert both.numel() == 2**18
    assert memory.most == 2 * 2**20


def test_the_committed_ledger_can_be_read() -> None:
    with LEDGER.open(newline="") as file:
        reader = csv.DictReader(file)
        assert reader.fieldnames == [field.name for field in fields(Row)]
        assert list(reader)
