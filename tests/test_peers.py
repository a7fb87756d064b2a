"""The table of peers: situations, verdicts, rendering. No peer is needed; those installed are run again."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks import peers
from benchmarks.peers import ADAPTERS, Adapter, Answer, Ask, NotClaimed, Row
from benchmarks.situations import IGNORED, SITUATIONS, Situation, average_of_largest, through_network

README = Path(__file__).parent.parent / "README.md"
BY_NAME = {build().name: build for build in SITUATIONS}


# situations


def test_the_situations_of_the_issue_are_there() -> None:
    assert {
        "all_ignored",
        "four_easy_pixels",
        "saturated_float16",
        "one_nan_pixel",
        "ninety_five_percent_ignored",
        "fractional_k",
    } <= set(BY_NAME)


@pytest.mark.parametrize("build", SITUATIONS, ids=lambda build: build.__name__)
def test_a_situation_is_well_formed(build: Callable[[], Situation]) -> None:
    situation = build()
    assert situation.name == getattr(build, "__name__")  # noqa: B009
    assert situation.logits.isfinite().all()
    n, _, height, width = situation.logits.shape
    assert situation.targets.shape == situation.broken.shape == (n, height, width)
    assert situation.targets[situation.counted].lt(situation.logits.shape[1]).all()
    assert torch.equal(build().logits, situation.logits)
    assert torch.equal(build().targets, situation.targets)


def test_a_situation_is_what_its_name_says() -> None:
    assert not BY_NAME["all_ignored"]().counted.any()
    assert BY_NAME["four_easy_pixels"]().targets.numel() == 4
    assert BY_NAME["four_easy_pixels"]().k < 1
    assert BY_NAME["one_nan_pixel"]().broken.sum() == 1
    assert not BY_NAME["nan_at_an_ignored_pixel"]().broken[BY_NAME["nan_at_an_ignored_pixel"]().counted].any()
    assert (~BY_NAME["ninety_five_percent_ignored"]().counted).float().mean() == pytest.approx(0.95)
    assert BY_NAME["ninety_five_percent_ignored"]().k == 8
    assert BY_NAME["fractional_k"]().targets.numel() == 10
    assert BY_NAME["fractional_k"]().k == 3.5


@pytest.mark.parametrize("name", ["saturated_float16", "saturated_bfloat16"])
def test_saturated_probabilities_are_one_and_their_losses_differ(name: str) -> None:
    situation = BY_NAME[name]()
    of_truth = situation.logits.softmax(1).gather(1, situation.targets.unsqueeze(1))
    assert of_truth.eq(1).all()
    losses = situation.losses()
    assert 0 < min(losses) < situation.expected() < max(losses)


@pytest.mark.parametrize("k", [1.0, 2.0, 2.5, 3.9, 5.0])
def test_the_expected_value_is_the_least_of_its_dual(k: float) -> None:
    losses = [0.5, 3.0, 3.0, 0.25, 1.0]
    dual = min(level + sum(max(loss - level, 0.0) for loss in losses) / k for level in losses)
    assert average_of_largest(losses, k) == pytest.approx(dual, rel=1e-12)


def test_the_expected_value_at_the_edges() -> None:
    assert average_of_largest([], 3.0) == 0
    assert average_of_largest([1.0, 4.0], 0.2) == 4
    assert average_of_largest([1.0, 4.0], 9.0) == 2.5
    assert math.isnan(average_of_largest([1.0, math.nan], 1.0))


@pytest.mark.parametrize("build", SITUATIONS, ids=lambda build: build.__name__)
def test_the_losses_are_cross_entropy(build: Callable[[], Situation]) -> None:
    situation = build()
    expected = _losses(situation, situation.logits.double()).view_as(situation.targets)
    expected[situation.broken] = math.nan
    losses = torch.tensor(situation.losses(), dtype=torch.float64)
    torch.testing.assert_close(losses, expected[situation.counted], equal_nan=True)


def test_the_network_passes_the_logits_through_unchanged() -> None:
    situation = BY_NAME["one_nan_pixel"]()
    weight, logits = through_network(situation)
    assert weight.requires_grad
    expected = situation.logits.masked_fill(situation.broken.unsqueeze(1), math.nan)
    torch.testing.assert_close(logits, expected, rtol=0, atol=0, equal_nan=True)


# verdicts


def _losses(situation: Situation, logits: Tensor) -> Tensor:
    return F.cross_entropy(logits, situation.targets, ignore_index=IGNORED, reduction="none").flatten()


def truncates(situation: Situation, logits: Tensor) -> Answer:
    losses = _losses(situation, logits)
    return Answer(losses.topk(int(situation.fraction * losses.numel())).values.mean())


def detaches(situation: Situation, logits: Tensor) -> Answer:
    return Answer(logits.new_tensor(situation.expected()))


def swaps_the_leaf(situation: Situation, logits: Tensor) -> Answer:
    return Answer(torch.tensor(situation.expected(), requires_grad=True))


def raises(situation: Situation, logits: Tensor) -> Answer:
    raise IndexError


def raises_backward(situation: Situation, logits: Tensor) -> Answer:
    roots = logits.exp()
    loss = roots.sum() * 0 + situation.expected()
    roots.detach().add_(1)
    return Answer(loss)


def drops_nan(situation: Situation, logits: Tensor) -> Answer:
    losses = _losses(situation, logits)
    return Answer(losses[~losses.isnan()].max())


def keeps_none(situation: Situation, logits: Tensor) -> Answer:
    return Answer(logits.sum() * 0, kept=0)


def averages_over_all(situation: Situation, logits: Tensor) -> Answer:
    k = int(situation.k)
    return Answer(_losses(situation, logits).topk(k).values.sum() / situation.targets.numel(), kept=k)


def goes_negative(situation: Situation, logits: Tensor) -> Answer:
    losses = _losses(situation, logits).sort(descending=True).values
    return Answer((losses[:3].sum() + 0.6 * losses[3] - 0.1 * losses[4]) / 3.5)


def learns_from_ignored(situation: Situation, logits: Tensor) -> Answer:
    nothing = logits.sum() - logits.sum().detach()
    losses = _losses(situation, logits)[situation.counted.flatten()]
    return Answer(losses.topk(int(situation.k)).values.mean() + nothing)


def overflows(situation: Situation, logits: Tensor) -> Answer:
    return Answer(logits.sum() + math.inf)


@pytest.mark.parametrize(
    ("ask", "name", "sentence"),
    [
        (truncates, "all_ignored", "right"),
        (truncates, "four_easy_pixels", "NaN"),
        (truncates, "fractional_k", "5.4 instead of 5.3 (top 3)"),
        (truncates, "ninety_five_percent_ignored", "1.3 instead of 6.8"),
        (truncates, "nan_at_an_ignored_pixel", "gradient NaN"),
        (truncates, "one_nan_pixel", "right"),
        (drops_nan, "one_nan_pixel", "NaN hidden (12)"),
        (detaches, "all_ignored", "no gradient to the network"),
        (swaps_the_leaf, "all_ignored", "no gradient to the network"),
        (raises_backward, "all_ignored", "backward raises RuntimeError"),
        (keeps_none, "saturated_float16", "0 pixels kept"),
        (keeps_none, "all_ignored", "right"),
        (averages_over_all, "saturated_float16", "right pixels, loss x 0.1"),
        (learns_from_ignored, "ninety_five_percent_ignored", "gradient at ignored pixels"),
        (overflows, "four_easy_pixels", "infinite"),
    ],
)
def test_the_verdict_follows_from_the_run(ask: Ask, name: str, sentence: str) -> None:
    assert peers.judge(BY_NAME[name](), ask).outcome == sentence


def test_a_negative_weight_is_named() -> None:
    verdict = peers.judge(BY_NAME["fractional_k"](), goes_negative)
    assert verdict.outcome.endswith("negative weight -0.029")
    assert verdict.gradient_ok is False


# running


def test_an_error_becomes_an_outcome(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ADAPTERS, "fake", Adapter("torch", lambda: raises))
    rows = peers.measure("fake")
    assert [row.situation for row in rows] == list(BY_NAME)
    assert {row.outcome for row in rows} == {"raises IndexError"}
    assert {row.value for row in rows} == {""}


def test_a_peer_may_decline(monkeypatch: pytest.MonkeyPatch) -> None:
    def declines(situation: Situation, logits: Tensor) -> Answer:
        raise NotClaimed("takes no pixels")

    monkeypatch.setitem(ADAPTERS, "fake", Adapter("torch", lambda: declines))
    row = peers.measure("fake")[0]
    assert row.outcome == f"{peers.NOT_CLAIMED} takes no pixels"
    assert row.expected == row.gradient_ok == ""


def test_a_peer_that_is_not_installed_gets_no_result(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ADAPTERS, "fake", Adapter("no-such-distribution-of-topkloss", lambda: truncates))
    rows = peers.measure("fake")
    assert {(row.value, row.version, row.outcome) for row in rows} == {("", "", "not installed")}


def test_a_peer_that_cannot_be_imported_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def load() -> Ask:
        raise ImportError

    monkeypatch.setitem(ADAPTERS, "fake", Adapter("torch", load))
    assert {row.outcome for row in peers.measure("fake")} == {"import raises ImportError"}


def test_the_death_of_a_process_is_its_outcome(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    dies = tmp_path / "dies"
    dies.write_text("#!/bin/sh\nexit 7\n")
    dies.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(dies))
    assert {row.outcome for row in peers.measure_apart("topkloss")} == {"process dies (7)"}


def test_one_peer_alone_does_not_replace_the_ledger(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        peers.main(["--only", "topkloss"])
    assert "--only needs --csv PATH" in capsys.readouterr().err


# table


ROWS = [
    Row("topkloss", "1.0", "fractional_k", "2", "2", "yes", "right", "2.14.1"),
    Row("topkloss", "1.0", "all_ignored", "0", "0", "yes", "right", "2.14.1"),
    Row("other", "3.1", "fractional_k", "", "", "", "– keeps whole pixels", "2.14.1"),  # noqa: RUF001
    Row("other", "3.1", "all_ignored", "nan", "0", "no", "NaN", "2.14.1"),
]


def test_the_table_is_markdown() -> None:
    assert peers.render(ROWS).splitlines() == [
        "| | topkloss | other (3.1) |",
        "|---|---|---|",
        "| n = 10 at fraction .35 | right | – |",  # noqa: RUF001
        "| all ignored | right | NaN |",
    ]


def test_rows_come_back_from_the_file(tmp_path: Path) -> None:
    peers.write(ROWS, tmp_path / "rows.csv")
    assert peers.read(tmp_path / "rows.csv") == ROWS
    assert [path.name for path in tmp_path.iterdir()] == ["rows.csv"]


def test_the_block_is_replaced_and_nothing_else() -> None:
    text = f"above\n{peers.BEGIN}\nold\n{peers.END}\nbelow\n"
    renewed = peers.replace_block(text, "| new |")
    assert renewed == f"above\n{peers.BEGIN}\n| new |\n{peers.END}\nbelow\n"
    assert peers.replace_block(renewed, "| new |") == renewed


BLOCK = f"{peers.BEGIN} {peers.END}"


@pytest.mark.parametrize("text", ["", peers.BEGIN, f"{peers.END} {peers.BEGIN}", 2 * BLOCK])
def test_a_text_without_the_markers_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="peers:begin"):
        peers.replace_block(text, "| new |")


def test_the_ledger_is_complete() -> None:
    rows = peers.read()
    assert [(row.peer, row.situation) for row in rows] == [(peer, name) for peer in ADAPTERS for name in BY_NAME]
    assert len({row.torch for row in rows}) == 1
    assert all(row.version for row in rows)
    assert not [row for row in rows if row.outcome == "hangs" or row.outcome.startswith(("import", "process"))]


def test_the_readme_holds_the_table_of_the_ledger() -> None:
    text = README.read_text(encoding="utf-8")
    assert peers.replace_block(text, peers.render(peers.read())) == text, (
        "run `python -m benchmarks.peers --readme README.md`"
    )


# truth


@pytest.mark.parametrize("build", SITUATIONS, ids=lambda build: build.__name__)
def test_ours_is_right(build: Callable[[], Situation]) -> None:
    verdict = peers.judge(build(), ADAPTERS[peers.OURS].load())
    assert verdict.outcome == peers.RIGHT
    assert verdict.gradient_ok is not False


@pytest.mark.parametrize("peer", ADAPTERS)
def test_a_peer_still_does_what_the_ledger_says(peer: str) -> None:
    ledger = [row for row in peers.read() if row.peer == peer]
    installed = peers.version_of(ADAPTERS[peer].distribution)
    if peer != peers.OURS and installed != ledger[0].version:
        pytest.skip(f"{peer} {ledger[0].version} is not installed (extra `bench`)")
    outcomes = [replace(row, version="", torch="", value="") for row in peers.measure_apart(peer)]
    assert outcomes == [replace(row, version="", torch="", value="") for row in ledger]
