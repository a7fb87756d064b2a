"""The benchmarks of speed, at toy size: they check before they time; and their ledger, and the page that states it."""

from __future__ import annotations

import csv
import re
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import average_top_k, cross_entropy, instructions, kth_largest, probabilities, providers, speed, ways
from benchmarks.cases import BASELINE, FRACTIONS, cases
from benchmarks.ledger import LEDGER, Row, read, rows_of, take_turns, write
from benchmarks.measure import FRESH_PAGES, KEEPING_PAGES, Memory, mode, peak_of
from benchmarks.problem import IGNORED, Problem, peak, ranked
from benchmarks.providers import Provider
from topkloss import average_top_k_cross_entropy
from topkloss.kernels import native

README = Path(__file__).parent.parent / "README.md"

needs_native = pytest.mark.skipif(not native.is_available(), reason="the native kernels were not built")


# the ledger


def row_of(**changed: object) -> Row:
    (row,) = rows_of(
        {"a": [1.0, 2.0, 3.0]}, baseline="a", kernel="k", mode="m", input="i", size=1, fraction=0.5, peaks={}
    )
    return replace(row, **changed)  # type: ignore[arg-type]


def test_a_newer_row_takes_the_place_of_an_older_one(tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    write([row_of(median=1.0), row_of(size=2)], path)
    write([row_of(median=5.0)], path)
    assert [(row.size, row.median) for row in read(path)] == [(1, 5.0), (2, 2000.0)]


def test_ratios_are_to_the_baseline_of_the_same_turn() -> None:
    times = {"base": [1.0, 2.0, 4.0], "twice": [2.0, 4.0, 8.0]}
    given = {"kernel": "k", "mode": "m", "input": "i", "size": 1, "fraction": 0.5}
    base, twice = rows_of(times, baseline="base", peaks={"twice": 3}, **given)  # type: ignore[arg-type]
    assert (twice.ratio, twice.ratio_low, twice.ratio_high) == (2, 2, 2)
    assert (base.median, twice.median) == (2000, 4000)
    assert (base.peak, twice.peak) == (-1, 3)


def test_ways_take_turns() -> None:
    order = []
    ways = {name: lambda name=name: order.append(name) or 0.0 for name in "ab"}  # type: ignore[misc,func-returns-value]
    assert take_turns(ways, 2) == {"a": [0, 0], "b": [0, 0]}
    assert order == ["a", "b", "a", "b"]


def test_the_committed_ledger_can_be_read() -> None:
    with LEDGER.open(newline="", encoding="utf-8") as file:
        assert csv.DictReader(file).fieldnames == [field.name for field in fields(Row)]
    rows = read()
    written = (average_top_k, kth_largest, probabilities, providers, ways)
    assert {row.kernel for row in rows} == {one.KERNEL for one in written}
    assert len({row.key for row in rows}) == len(rows)


# average_top_k


def test_every_provider_gives_the_expected_answer() -> None:
    for case in cases(1000):
        assert case.value(case.losses).item() == pytest.approx(case.expected, rel=1e-5)


def test_average_top_k_at_toy_size(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ledger = tmp_path / "results.csv"
    average_top_k.main(["--size", "1000", "--turns", "3", "--ledger", str(ledger)])
    rows = read(ledger)
    assert len(rows) == len(cases(10)) == capsys.readouterr().out.count("\n")
    assert {row.fraction for row in rows} == set(FRACTIONS)
    assert all(row.ratio == 1 for row in rows if row.provider == BASELINE)
    assert all(row.median > 0 and row.peak > 0 for row in rows)


def test_a_wrong_answer_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = [replace(case, expected=2 * case.expected) for case in cases(100)]
    monkeypatch.setattr(average_top_k, "cases", lambda n: wrong)
    with pytest.raises(AssertionError):
        average_top_k.measure(100, 1)


# cross-entropy


@pytest.mark.parametrize("shape", ["200 10", "2 5 8 8"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_cross_entropy_at_toy_size(shape: str, dtype: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ledger = tmp_path / "results.csv"
    asked = ["--shape", *shape.split(), "--dtype", dtype, "--turns", "3", "--no-compile", "--ledger", str(ledger)]
    cross_entropy.main(asked)
    rows = read(ledger)
    problem = Problem.of([int(size) for size in shape.split()], getattr(torch, dtype))
    expected = {*providers.providers(problem, compiles=False)}
    expected |= {"native, gradient buffer kept"} if native.is_available() else set()
    assert {row.provider for row in rows if row.fraction == 0.3} == expected
    assert {row.fraction for row in rows} == set(cross_entropy.FRACTIONS)
    assert all(row.ratio == 1 for row in rows if row.provider == providers.BASELINE)
    assert capsys.readouterr().out.count("\n") == len(rows)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute")  # which torch.compile reads of outputs that are no leaves
def test_what_torch_compiles_is_right() -> None:
    problem = Problem.of((2, 5, 8, 8), torch.float32)
    for name, provider in providers.providers(problem, compiles=True).items():
        cross_entropy.check(name, provider, problem, 0.3)


@needs_native
def test_the_kept_buffer_holds_the_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = Problem.of((2, 5, 8, 8), torch.float32)
    given: list[torch.Tensor] = []
    find = native.gradient

    def watched(*of: Any, out: torch.Tensor, **more: Any) -> None:
        given.append(out)
        find(*of, out=out, **more)

    monkeypatch.setattr(native, "gradient", watched)
    step = providers.in_kept_buffer(problem, 0.3)
    step(problem.logits.clone())
    step(problem.logits.clone())
    leaf = problem.logits.clone().requires_grad_()
    average_top_k_cross_entropy(leaf, problem.targets, fraction=0.3, ignore_index=IGNORED, backend="torch").backward()
    assert given[0] is given[1]
    assert leaf.grad is not None
    assert torch.allclose(given[0].view_as(leaf), leaf.grad, atol=1e-7)


FLAWS = {
    "value": lambda loss, x: loss * 1.01,
    "gradient": lambda loss, x: loss + (x - x.detach()).mean() * 0.05,
    "not finite": lambda loss, x: loss + 0 * (x - x.detach()).sqrt().sum().nan_to_num(),
}


@pytest.mark.parametrize("flaw", FLAWS)
def test_a_wrong_cross_entropy_is_not_timed(flaw: str) -> None:
    problem = Problem.of((200, 10), torch.float32)
    right = providers.providers(problem, compiles=False)["cross-entropy, topk, mean"]
    cross_entropy.check("right", right, problem, 0.3)
    wrong = Provider(lambda x, y, f: FLAWS[flaw](right.value(x, y, f), x))
    with pytest.raises(AssertionError):
        cross_entropy.check("wrong", wrong, problem, 0.3)


def test_another_selection_is_not_timed() -> None:
    problem = Problem.of((200, 10), torch.float32)
    right = providers.providers(problem, compiles=False)["cross-entropy, topk, mean"]
    with pytest.raises(AssertionError):
        cross_entropy.check("wrong", Provider(lambda x, y, f: right.value(x, y, f + 0.05)), problem, 0.3)


def test_an_allocator_that_keeps_its_pages_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    assert mode() == "forward + backward"
    monkeypatch.setenv("GLIBC_TUNABLES", KEEPING_PAGES)
    assert mode() == "forward + backward, pages kept"


# every way to it


@pytest.mark.parametrize("shape", ["64 10", "2 5 8 8"])
def test_every_way_at_toy_size(
    shape: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GLIBC_TUNABLES", FRESH_PAGES)  # as if it were a process of that allocator
    ledger = tmp_path / "results.csv"
    ways.main(["--shape", *shape.split(), "--turns", "3", "--ledger", str(ledger)])
    rows = read(ledger)
    assert {row.provider for row in rows} == {*ways.ways()}
    assert capsys.readouterr().out.count("\n") == len(rows)
    assert all(0 < row.fraction <= 1 and row.threads == torch.get_num_threads() for row in rows)
    assert all(row.ratio == 1 for row in rows if row.provider == providers.BASELINE)
    table = speed.of_ways(rows)
    assert all(name in table for name in ways.ways() if not name.endswith(ways.IN_PLACE))


def test_nearly_all_weights_of_every_way_are_judged() -> None:
    problem = Problem.of((2, 5, 32, 32), torch.float32)
    for name, way in ways.ways().items():
        right = way.right(problem)
        assert float(right.each.sum()) == pytest.approx(1), name
        assert int(right.sure.sum()) > 0.99 * problem.counted, name


def test_another_loss_of_the_same_logits_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    every = ways.ways()
    wrong = replace(every["OHEMLoss(CrossEntropy())"], loss=every["AverageTopKCrossEntropyLoss"].loss)
    monkeypatch.setattr(ways, "ways", lambda: {providers.BASELINE: every[providers.BASELINE], "wrong": wrong})
    with pytest.raises(AssertionError, match="wrong"):
        ways.measure(Problem.of((64, 10), torch.float32), 2)


def test_the_mass_between_two_ranks() -> None:
    losses = torch.tensor([1.0, -torch.inf, 4.0, 2.0, 3.0], dtype=torch.float64)
    between = ranked(losses, 2.5, start=1.0, margin=0.0)
    assert between.each.tolist() == pytest.approx([0, 0, 0, 0.5 / 1.5, 1 / 1.5])
    assert between.sure.tolist() == [True, False, True, True, True]
    assert ranked(losses, 2.0, margin=0.3).sure.tolist() == [True, False, False, False, False]


# the k-th largest


def test_kth_largest_at_toy_size(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ledger = tmp_path / "results.csv"
    kth_largest.main(["--sizes", "100", "12000", "--turns", "2", "--ledger", str(ledger)])
    rows = read(ledger)
    known = 2 * len(kth_largest.DISTRIBUTIONS) * len(kth_largest.FRACTIONS) * len(kth_largest.ways("random", 1))
    assert len(rows) == known - len(kth_largest.FRACTIONS)  # of the long reversed, without kthvalue
    assert capsys.readouterr().out.count("\n") == len(rows)


def test_another_number_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kth_largest, "ways", lambda *_: {"torch.topk": lambda x, k: float(x.min())})
    with pytest.raises(AssertionError):
        kth_largest.measure("random", 100, 2)


# memory


def test_memory_is_followed() -> None:
    with Memory() as memory:
        first = torch.zeros(2**18)
        del first
        second = torch.zeros(2**18)
        assert second.view(-1).numel() == 2**18
        both = second + second
        assert both.numel() == 2**18
    assert memory.most == 2 * 2**20


def test_peak_memory_is_what_was_held_at_once() -> None:
    def run() -> torch.Tensor:
        first = torch.zeros(2**18)
        del first
        return torch.zeros(2**18) + torch.zeros(2**18)  # 1 MiB each, and 1 for the sum

    assert peak_of(run) == pytest.approx(3 * 2**20, rel=1e-3)


@needs_native
def test_peak_memory_inside_of_an_operator_is_seen() -> None:
    logits, targets = torch.randn(4, 8, 64, 64, requires_grad=True), torch.randint(8, (4, 64, 64))

    def step(backend: str) -> object:
        loss = average_top_k_cross_entropy(logits, targets, fraction=0.3, backend=backend)  # type: ignore[arg-type]
        return torch.autograd.grad(loss, logits)

    step("native")
    of_logits, of_scores = 4 * logits.numel(), 4 * targets.numel()
    # one loss for each element, what it is multiplied with in backward, and a mask of a byte
    assert of_logits + of_scores <= peak_of(lambda: step("native")) < of_logits + 2.3 * of_scores


def test_every_way_needs_one_gradient_and_little_else() -> None:
    """Beside it a loss of each element, what that is multiplied with, and a mask: at 19 classes an eighth of it."""
    problem = Problem.of((2, 19, 112, 112), torch.float32)
    for name, way in ways.ways().items():
        if name != providers.BASELINE:
            limit = 0.3 if name.endswith(ways.IN_PLACE) else 1.15
            assert peak(way.loss, problem) * 2**20 <= limit * 4 * problem.logits.numel(), name


@pytest.mark.parametrize("shape", ["2 3 8 8", "64 60"])
def test_probabilities_are_judged_and_measured(shape: str, tmp_path: Path) -> None:
    probabilities.main(["--shape", *shape.split(), "--turns", "2", "--ledger", str(tmp_path / "ledger.csv")])
    rows = read(tmp_path / "ledger.csv")
    assert {(row.provider, row.fraction) for row in rows} == set(probabilities.ways())
    problem = probabilities.mixed(Problem.of([64, 60], torch.float32))
    with pytest.raises(AssertionError, match="unsorted"):
        probabilities.judge("unsorted", probabilities.ways()["torch", 1.0], problem, 0.25)


# instructions


@pytest.mark.slow
@pytest.mark.skipif(instructions.why_not() != "", reason=instructions.why_not())
def test_the_kernels_take_no_more_instructions() -> None:
    assert 1 < instructions.count() <= instructions.LIMIT


def test_instructions_of_other_objects_and_of_calls_are_left_out() -> None:
    report = "ob=(1) /ours.so\nfn=(1) f\n10 5\n+2 7\ncob=(2) /other.so\ncfn=(2) g\ncalls=1 3\n+1 1000\n* 1\n"
    report += "ob=(2)\nfn=(2)\n3 1000\nob=(1)\nfn=(3) h\n-4 20\ntotals: 1033\n"
    assert instructions._inside(report, "/ours.so") == 5 + 7 + 1 + 20


# the page


def test_the_page_states_what_was_measured(tmp_path: Path) -> None:
    page = speed.PAGE.read_text(encoding="utf-8")
    assert speed.renewed(page, read()) == page
    assert speed.sentence(read()) in " ".join(README.read_text(encoding="utf-8").split())
    speed.draw(read(), tmp_path / "speed.png")
    assert (tmp_path / "speed.png").read_bytes()[:4] == b"\x89PNG"


def test_a_page_without_the_markers_is_refused() -> None:
    with pytest.raises(ValueError, match=re.escape("<!-- cross-entropy:begin -->")):
        speed.renewed("no markers", read())
