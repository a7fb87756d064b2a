"""What other packages answer in the situations of `benchmarks.situations`: run, not quoted.

``python -m benchmarks.peers`` writes ``benchmarks/peers.csv``; with ``--readme README.md`` it also renews the
table there. Each peer runs in a process of its own, so that neither its imports nor its death touch the rest.
"""

from __future__ import annotations

import argparse
import csv
import importlib
import importlib.metadata
import math
import os
import subprocess
import sys
import tempfile
import types
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.situations import IGNORED, SITUATIONS, Situation, average_of_largest, through_network

__all__ = ["ADAPTERS", "Row", "measure", "mmseg_loss_file", "read", "render", "replace_block", "version_of", "write"]

ROOT = Path(__file__).resolve().parent.parent
CSV = ROOT / "benchmarks" / "peers.csv"
BEGIN, END = "<!-- peers:begin -->", "<!-- peers:end -->"
OURS = "topkloss"
RIGHT, NOT_CLAIMED, NOT_INSTALLED = "right", "–", "not installed"  # noqa: RUF001
SECONDS_PER_PEER = 300


@dataclass(frozen=True)
class Row:
    """What one peer does in one situation; numbers are text, empty where there is none."""

    peer: str
    version: str
    situation: str
    value: str
    expected: str
    gradient_ok: str
    outcome: str
    torch: str


@dataclass(frozen=True)
class Answer:
    """What an adapter hands back.

    Attributes:
        loss: The peer's loss, a scalar.
        k: What the peer was asked to average, where it cannot be asked for a fraction.
        kept: How many pixels the peer says it kept, where it says so.
    """

    loss: Tensor
    k: float | None = None
    kept: int | None = None


Ask = Callable[[Situation, Tensor], Answer]


@dataclass(frozen=True)
class Adapter:
    """How to ask one peer.

    Attributes:
        distribution: Its name for pip.
        load: Imports it and returns how to ask it: situation and logits in, `Answer` out.
    """

    distribution: str
    load: Callable[[], Ask]


class NotClaimed(Exception):
    """The peer does not say that it handles this situation."""


# how each is asked


def load_topkloss() -> Ask:
    """This library."""
    topkloss = importlib.import_module("topkloss")

    def ask(situation: Situation, logits: Tensor) -> Answer:
        criterion = topkloss.AverageTopKCrossEntropyLoss(fraction=situation.fraction, ignore_index=IGNORED)
        return Answer(criterion(logits, situation.targets))

    return ask


def load_nnunet() -> Ask:
    """``TopKLoss``: k is a percentage, targets have a channel."""
    module = importlib.import_module("nnunetv2.training.loss.robust_ce_loss")

    def ask(situation: Situation, logits: Tensor) -> Answer:
        criterion = module.TopKLoss(ignore_index=IGNORED, k=round(100 * situation.fraction, 9))
        return Answer(criterion(logits, situation.targets.unsqueeze(1)))

    return ask


def load_mmseg_loss() -> Ask:
    """``OhemCrossEntropy`` with its own threshold, .7; `min_kept` is the number asked for."""
    module = mmseg_loss_file("ohem_cross_entropy_loss")

    def ask(situation: Situation, logits: Tensor) -> Answer:
        kept = max(1, _whole(situation.k))
        criterion = module.OhemCrossEntropy(ignore_label=IGNORED, thres=0.7, min_kept=kept)
        return Answer(criterion(logits, situation.targets), k=situation.hard_enough(0.7, kept))

    return ask


def load_mmseg_sampler(threshold: float | None) -> Ask:
    """``OHEMPixelSampler``, and mmseg's ``CrossEntropyLoss`` weighted by it, as its decode heads do."""
    cross_entropy = mmseg_loss_file("cross_entropy_loss").CrossEntropyLoss()
    sampler_type = importlib.import_module("mmseg.structures.sampler").OHEMPixelSampler
    head = types.SimpleNamespace(ignore_index=IGNORED, loss_decode=cross_entropy)

    def ask(situation: Situation, logits: Tensor) -> Answer:
        images = situation.targets.shape[0]
        per_image = max(2, _whole(situation.k / images))  # it takes no fewer than 2
        sampler = sampler_type(head, thresh=threshold, min_kept=per_image)
        weight = sampler.sample(logits, situation.targets.unsqueeze(1))
        loss = cross_entropy(logits, situation.targets, weight=weight, ignore_index=IGNORED)
        k = situation.hard_enough(threshold or 0.0, per_image * images)
        return Answer(loss, k=k, kept=int(weight.count_nonzero()))

    return ask


def load_sqwash() -> Ask:
    """``reduce_superquantile`` over unreduced losses; GPL-3, so it is only ever run here."""
    sqwash = importlib.import_module("sqwash")

    def ask(situation: Situation, logits: Tensor) -> Answer:
        losses = _unreduced(situation, logits)
        return Answer(sqwash.reduce_superquantile(losses, superquantile_tail_fraction=situation.fraction))

    return ask


def load_pfhedge() -> Ask:
    """``expected_shortfall`` of profits, which are losses turned around."""
    functional = importlib.import_module("pfhedge.nn.functional")

    def ask(situation: Situation, logits: Tensor) -> Answer:
        return Answer(functional.expected_shortfall(-_unreduced(situation, logits), situation.fraction))

    return ask


ADAPTERS: dict[str, Adapter] = {
    OURS: Adapter("topkloss", load_topkloss),
    "nnU-Net TopKLoss": Adapter("nnunetv2", load_nnunet),
    "mmseg OhemCrossEntropy": Adapter("mmsegmentation", load_mmseg_loss),
    "mmseg sampler, thresh=0.7": Adapter("mmsegmentation", lambda: load_mmseg_sampler(0.7)),
    "mmseg sampler, thresh=None": Adapter("mmsegmentation", lambda: load_mmseg_sampler(None)),
    "sqwash": Adapter("sqwash", load_sqwash),
    "pfhedge": Adapter("pfhedge", load_pfhedge),
}


def mmseg_loss_file(name: str) -> types.ModuleType:
    """One of mmseg's own loss files.

    ``mmseg.models`` and ``mmseg.models.losses`` import mmcv's compiled operators, for which no wheel fits
    today's torch. The files wanted here use none. So the two packages are entered without running their
    ``__init__``; no operator and no code of theirs is replaced.
    """
    root = Path(str(importlib.import_module("mmseg").__file__)).parent
    for package in ("models", "models/losses"):
        bare = types.ModuleType(f"mmseg.{package.replace('/', '.')}")
        bare.__path__ = [str(root / package)]
        sys.modules.setdefault(bare.__name__, bare)
    return importlib.import_module(f"mmseg.models.losses.{name}")


def _whole(k: float) -> int:
    """`k` for a peer that counts pixels; less than one is one."""
    if k > 1 and not k.is_integer():
        raise NotClaimed("keeps a whole number of pixels")
    return math.ceil(k)


def _unreduced(situation: Situation, logits: Tensor) -> Tensor:
    """Losses for a peer that only reduces them."""
    if not bool(situation.counted.all()):
        raise NotClaimed("knows no ignored pixels")
    return F.cross_entropy(logits, situation.targets, reduction="none").flatten()


# what is judged, how


@dataclass(frozen=True)
class Verdict:
    """Value, what it should be, whether the gradient is sound (None: not judged), and a sentence."""

    value: float
    expected: float
    gradient_ok: bool | None
    outcome: str


def judge(situation: Situation, ask: Ask) -> Verdict:
    """Ask once, forward and backward, and say by rule what is wrong."""
    weight, logits = through_network(situation)
    logits.retain_grad()
    answer = ask(situation, logits)
    value, expected = float(answer.loss.detach()), situation.expected(answer.k)
    if math.isnan(expected):
        return Verdict(value, expected, None, RIGHT if math.isnan(value) else f"NaN hidden ({value:.2g})")
    if answer.kept == 0 and situation.losses():
        return Verdict(value, expected, False, "0 pixels kept")
    if not math.isfinite(value):
        return Verdict(value, expected, False, "NaN" if math.isnan(value) else "infinite")
    wrong_value = _wrong_value(situation, answer, value, expected)
    wrong_gradient = _wrong_gradient(situation, answer.loss, weight, logits)
    complaints = [complaint for complaint in (wrong_value, wrong_gradient) if complaint]
    return Verdict(value, expected, not wrong_gradient, ", ".join(complaints) or RIGHT)


def _wrong_value(situation: Situation, answer: Answer, value: float, expected: float) -> str:
    # Losses of half logits come back with 8 (bfloat16) or 11 bits: only a gross error is the peer's fault.
    tolerance = 1e-4 if situation.logits.dtype == torch.float32 else 5e-2
    if math.isclose(value, expected, rel_tol=tolerance):
        return ""
    if answer.kept is not None:
        share = answer.kept / situation.targets.numel()
        if math.isclose(value, share * expected, rel_tol=tolerance):
            return f"right pixels, loss x {share:.2g}"
    losses = situation.losses()
    averages = {m: average_of_largest(losses, m) for m in range(1, len(losses))}
    other = [m for m, average in averages.items() if math.isclose(value, average, rel_tol=1e-6)]
    return _instead(value, expected) + (f" (top {other[0]})" if other else "")


def _wrong_gradient(situation: Situation, loss: Tensor, weight: Tensor, logits: Tensor) -> str:
    if not loss.requires_grad:
        return "no gradient to the network"
    try:
        torch.autograd.backward(loss)
    except Exception as error:
        return f"backward raises {type(error).__name__}"
    if weight.grad is None or logits.grad is None:
        return "no gradient to the network"
    gradient = logits.grad.movedim(1, -1)
    if not bool(gradient.isfinite().all() and weight.grad.isfinite().all()):
        return "gradient NaN"
    if bool(gradient[~situation.counted].any()):
        return "gradient at ignored pixels"
    if situation.logits.dtype != torch.float32 or not situation.losses():
        return ""
    least = _implied_weights(situation, gradient).min().item()
    return f"negative weight {least:.2g}" if least < -1e-5 else ""


def _implied_weights(situation: Situation, gradient: Tensor) -> Tensor:
    """How much each counted loss weighs: d loss / d logits is that weight times (softmax - one-hot)."""
    logits = situation.logits.movedim(1, -1)[situation.counted].double()
    slope = logits.softmax(-1) - F.one_hot(situation.targets[situation.counted], logits.shape[-1])
    return (gradient[situation.counted].double() * slope).sum(-1) / (slope * slope).sum(-1)


def _instead(value: float, expected: float) -> str:
    """Both numbers with just as many digits as it takes to tell them apart."""
    digits = next((d for d in range(2, 9) if f"{value:.{d}g}" != f"{expected:.{d}g}"), 9)
    return " instead of ".join(f"{number:#.{digits}g}".rstrip(".") for number in (value, expected))


# running and table


def measure(peer: str) -> list[Row]:
    """One peer in every situation, in this process."""
    adapter = ADAPTERS[peer]
    version = version_of(adapter.distribution)
    if version is None:
        return _rows(peer, "", NOT_INSTALLED)
    try:
        ask = adapter.load()
    except Exception as error:
        return _rows(peer, version, f"import raises {type(error).__name__}")
    return [_row(peer, version, build(), ask) for build in SITUATIONS]


def _row(peer: str, version: str, situation: Situation, ask: Ask) -> Row:
    blank = Row(peer, version, situation.name, "", "", "", "", _torch_version())
    try:
        verdict = judge(situation, ask)
    except NotClaimed as reason:
        return replace(blank, outcome=f"{NOT_CLAIMED} {reason}")
    except Exception as error:
        return replace(blank, expected=f"{situation.expected():.6g}", outcome=f"raises {type(error).__name__}")
    return replace(
        blank,
        value=f"{verdict.value:.6g}",
        expected=f"{verdict.expected:.6g}",
        gradient_ok={None: "", True: "yes", False: "no"}[verdict.gradient_ok],
        outcome=verdict.outcome,
    )


def _rows(peer: str, version: str, outcome: str) -> list[Row]:
    return [Row(peer, version, build().name, "", "", "", outcome, _torch_version()) for build in SITUATIONS]


def version_of(distribution: str) -> str | None:
    """What is installed; None where it is not."""
    if distribution == OURS:  # may run from the checkout, where pip knows no version
        return str(importlib.import_module("topkloss").__version__)
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _torch_version() -> str:
    return str(torch.__version__).partition("+")[0]


def measure_apart(peer: str) -> list[Row]:
    """`measure` in a process of its own."""
    version = version_of(ADAPTERS[peer].distribution) or ""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.csv"
        arguments = ["-m", "benchmarks.peers", "--only", peer, "--csv", str(path)]
        command = [sys.executable, "-W", "ignore", *arguments]
        try:
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=SECONDS_PER_PEER)
        except subprocess.TimeoutExpired:
            return _rows(peer, version, "hangs")
        if done.returncode or not path.exists():
            print(done.stderr, file=sys.stderr)
            return _rows(peer, version, f"process dies ({done.returncode})")
        return read(path)


def read(path: Path = CSV) -> list[Row]:
    """The rows of a CSV file that `write` wrote."""
    with path.open(newline="", encoding="utf-8") as file:
        return [Row(**line) for line in csv.DictReader(file)]


def write(rows: Sequence[Row], path: Path = CSV) -> None:
    """Write the rows, whole or not at all."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Row)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(row) for row in rows)
    os.replace(temporary, path)


def render(rows: Sequence[Row]) -> str:
    """A Markdown table: a line for each situation, a column for each peer.

    Example:
        >>> row = Row("sqwash", "0.1.0", "fractional_k", "1", "2", "yes", "1 instead of 2", "2.14.1")
        >>> print(render([row]))
        | | sqwash (0.1.0) |
        |---|---|
        | n = 10 at fraction .35 | 1 instead of 2 |
    """
    titles = {build().name: build().title for build in SITUATIONS}
    peers = {row.peer: row.version for row in rows}
    cells = {(row.situation, row.peer): _cell(row.outcome) for row in rows}
    names = [f"{peer} ({version})" if version and peer != OURS else peer for peer, version in peers.items()]
    lines = [["", *names], ["---"] * (1 + len(names))]
    for situation in dict.fromkeys(row.situation for row in rows):
        lines.append([titles[situation], *(cells[situation, peer] for peer in peers)])
    return "\n".join(_line(line) for line in lines)


def _line(cells: Sequence[str]) -> str:
    if set(cells) == {"---"}:
        return "|" + "|".join(cells) + "|"
    return "|" + "".join(f" {cell} |" if cell else " |" for cell in cells)


def _cell(outcome: str) -> str:
    return NOT_CLAIMED if outcome.startswith(NOT_CLAIMED) else outcome.replace(" x ", " × ")  # noqa: RUF001


def replace_block(text: str, table: str) -> str:
    """`text` with `table` between the two markers.

    Raises:
        ValueError: If the markers are not there, once each and in order.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end or BEGIN in rest or END in after:
        raise ValueError(f"the text must hold {BEGIN} and then {END}, once each. Add them where the table goes.")
    return f"{before}{BEGIN}\n{table}\n{END}{after}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the peers, write the CSV and, if asked, the README's table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=__doc__)
    parser.add_argument("--csv", type=Path, default=CSV, help="where the rows go")
    parser.add_argument("--readme", type=Path, help="a Markdown file whose table is to be renewed")
    parser.add_argument("--only", choices=ADAPTERS, metavar="PEER", help="one peer alone; needs --csv")
    options = parser.parse_args(arguments)
    if options.only:
        if options.csv == CSV:
            parser.error("--only needs --csv PATH: the ledger holds every peer.")
        write(measure(options.only), options.csv)
        return 0
    rows = [row for peer in ADAPTERS for row in measure_apart(peer)]
    write(rows, options.csv)
    table = render(rows)
    print(table)
    if options.readme:
        renewed = replace_block(options.readme.read_text(encoding="utf-8"), table)
        temporary = options.readme.with_name(options.readme.name + ".tmp")
        temporary.write_text(renewed, encoding="utf-8")
        os.replace(temporary, options.readme)
    return 0


if __name__ == "__main__":
    sys.exit(main())
