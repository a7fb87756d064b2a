"""What docs/speed.md says, made from the ledger: its tables, its figure, and the README's sentence.

    python -m benchmarks.speed

measures nothing: it reads `results.csv`, draws docs/images/speed.png, and renews the blocks of the page.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from benchmarks import average_top_k, kth_largest
from benchmarks.ledger import LEDGER, Row, read
from benchmarks.providers import BASELINE, COPY, FRESH_COPY, KERNEL

__all__ = ["BLOCKS", "FIGURE", "MAIN", "PAGE", "draw", "main", "renewed", "sentence"]

DOCS = Path(__file__).parent.parent / "docs"
PAGE, FIGURE = DOCS / "speed.md", DOCS / "images" / "speed.png"
MAIN = "2 x 19 x 512 x 1024 float32"
PLAIN_MODE, KEPT_MODE = "forward + backward", "forward + backward, pages kept"
FRACTIONS = (0.1, 0.3, 0.7, 1.0)

Rows = Sequence[Row]


def of_cross_entropy(rows: Rows) -> str:
    """Every provider on every input: ratio to plain cross-entropy at each fraction, and memory."""
    chosen = [row for row in rows if row.kernel == KERNEL and row.provider not in (COPY, FRESH_COPY)]
    tables = []
    for group in _groups(chosen, lambda row: (-row.size, row.input, row.mode, row.threads, row.device)):
        first = group[0]
        mode = first.mode.removeprefix(PLAIN_MODE)
        base = min(row.median for row in group if row.provider == BASELINE)
        lines = [
            f"{first.input}, {_threads(first)}, {first.device}{mode}; plain cross-entropy takes {_ms(base)} ms",
            f"{'':<36}{'10 %':>8}{'30 %':>8}{'70 %':>8}{'100 %':>8}   {'spread at 30 %':<16}{'memory':>8}",
        ]
        for provider in dict.fromkeys(row.provider for row in group):
            own = {row.fraction: row for row in group if row.provider == provider}
            cells = "".join(f"{own[f].ratio:>8.2f}" if f in own else f"{'-':>8}" for f in FRACTIONS)
            middle = own.get(0.3)
            spread = f"{middle.ratio_low:.2f} to {middle.ratio_high:.2f}" if middle else "-"
            memory = f"{_in_logits(middle):.2f}" if middle and middle.peak >= 0 else "-"
            lines.append(f"{provider:<36}{cells}   {spread:<16}{memory:>8}")
        tables.append("\n".join(lines))
    return "\n\n".join(tables)


def of_roofline(rows: Rows) -> str:
    """How far from what the memory can do, at 30 %, or else at the next fraction at which a copy was timed."""
    ways = ("native", "native, gradient buffer kept", "native, in place")
    lines = [f"{'':<62}{'copy':>10}{'least':>10}" + "".join(f"{name:>30}" for name in ways)]
    chosen = [row for row in rows if row.kernel == KERNEL]
    for group in _groups(chosen, lambda row: (-row.size, row.input, row.mode, row.threads, row.device)):
        copied = sorted({row.fraction for row in group if row.provider == COPY} - {0.1})
        own = {row.provider: row for row in group if row.fraction == copied[0]} if copied else {}
        if "native" not in own:
            continue
        first = group[0]
        least = own[COPY].median * _moved(first) / (2 * _bytes(first))
        mode = first.mode.removeprefix(PLAIN_MODE)
        name = f"{first.input}, {copied[0]:.0%}, {_threads(first)}{mode}".replace("%", " %")
        cells = [f"{_ms(own[way].median)} ms, {own[way].median / least:.1f} x" if way in own else "-" for way in ways]
        fresh = f"{_ms(own[COPY].median)} ms"
        lines.append(f"{name:<62}{fresh:>10}{_ms(least) + ' ms':>10}" + "".join(f"{cell:>30}" for cell in cells))
    return "\n".join(lines)


def of_kth_largest(rows: Rows) -> str:
    """The exact k-th largest: ratio to torch.topk at each k, and the worst to the best of topk and kthvalue."""
    chosen = [row for row in rows if row.kernel == kth_largest.KERNEL]
    lines = []
    for group in _groups(chosen, lambda row: (row.size, row.threads, row.device)):
        first = group[0]
        lines += [
            f"{first.size:,} numbers, {_threads(first)}, {first.device}",
            f"{'':<14}" + "".join(f"{f'k {f:.0%}'.replace('%', ' %'):>9}" for f in kth_largest.FRACTIONS)
            + f"{'topk, ms at 10 %':>20}{'numpy.partition':>18}{'worst to the better of topk, kthvalue':>40}",
        ]  # fmt: skip
        for distribution in dict.fromkeys(row.input for row in group):
            of = {(row.provider, row.fraction): row for row in group if row.input == distribution}
            ours = [of.get((kth_largest.OURS, f)) for f in kth_largest.FRACTIONS]
            worst = max(
                row.median / min(one.median for (name, f), one in of.items() if f == row.fraction and name in RIVALS)
                for row in ours
                if row
            )
            cells = "".join(f"{row.ratio:>9.2f}" if row else f"{'-':>9}" for row in ours)
            base, numpy = (of.get((name, 0.1)) for name in (kth_largest.BASELINE, "numpy.partition"))
            lines.append(
                f"{distribution:<14}{cells}{_ms(base.median) if base else '-':>20}"
                f"{f'{numpy.ratio:.2f}' if numpy else '-':>18}{worst:>40.2f}"
            )
        lines.append("")
    return "\n".join(lines).rstrip()


RIVALS = (kth_largest.BASELINE, "torch.kthvalue")


def of_average_top_k(rows: Rows) -> str:
    """`average_top_k` of a million losses, by provider and fraction."""
    chosen = [row for row in rows if row.kernel == average_top_k.KERNEL]
    tables = []
    for group in _groups(chosen, lambda row: (-row.size, row.threads, row.device)):
        first = group[0]
        fractions = sorted({row.fraction for row in group})
        lines = [f"{first.size:,} losses, {_threads(first)}, {first.device}"]
        lines.append(f"{'':<26}" + "".join(f"{f'{f:.0%}'.replace('%', ' %'):>26}" for f in fractions))
        for provider in dict.fromkeys(row.provider for row in group):
            own = {row.fraction: row for row in group if row.provider == provider}
            cells = [f"{own[f].ratio:.2f} ({own[f].ratio_low:.2f} to {own[f].ratio_high:.2f})" for f in fractions]
            lines.append(f"{provider:<26}" + "".join(f"{cell:>26}" for cell in cells))
        tables.append("\n".join(lines))
    return "\n\n".join(tables)


BLOCKS: dict[str, Callable[[Rows], str]] = {
    "cross-entropy": of_cross_entropy,
    "roofline": of_roofline,
    "k-th largest": of_kth_largest,
    "average_top_k": of_average_top_k,
}


def sentence(rows: Rows) -> str:
    """What the README says of it."""
    ours, in_place, nnunet, ohem = (
        _ratios(rows, name) for name in ("native", "native, in place", "nnU-Net TopKLoss", "mmseg OhemCrossEntropy")
    )
    (first,) = [
        row for row in rows if _is_main(row) and row.threads == 1 and row.provider == "native" and row.fraction == 0.3
    ]
    return (
        f"On logits of {MAIN}, at 10, 30 and 70 %, forward and backward of `AverageTopKCrossEntropyLoss` take {ours} "
        f"of the time of plain `F.cross_entropy` (nnU-Net's {nnunet}, mmseg's OHEM {ohem}), {in_place} in place, and "
        f"{_in_logits(first):.2f} times the memory of the logits: one thread, {first.device}."
    )


def draw(rows: Rows, path: Path) -> None:
    """Time and memory of each provider on the main input, relative to plain cross-entropy and to the logits."""
    from matplotlib.figure import Figure

    chosen = [row for row in rows if _is_main(row) and row.threads == 1 and row.provider not in (COPY, FRESH_COPY)]
    names = list(dict.fromkeys(row.provider for row in chosen))[::-1]
    figure = Figure(figsize=(11, 0.42 * len(names) + 1.6), layout="constrained")
    times, memory = figure.subplots(1, 2, sharey=True, width_ratios=(3, 1))
    for fraction, colour in zip(FRACTIONS[:3], ("#9ecae1", "#4292c6", "#08519c"), strict=True):
        own = {row.provider: row for row in chosen if row.fraction == fraction}
        shift = 0.27 * (1 - FRACTIONS.index(fraction))
        places = [(i + shift, own[name]) for i, name in enumerate(names) if name in own]
        label = f"{fraction:.0%}".replace("%", " %")
        times.barh([at for at, _ in places], [row.ratio for _, row in places], 0.25, color=colour, label=label)
        for at, row in places:
            times.plot([row.ratio_low, row.ratio_high], [at, at], color="#333333", linewidth=0.8)
        if fraction == 0.3:
            followed = [
                (i, _in_logits(own[name])) for i, name in enumerate(names) if name in own and own[name].peak >= 0
            ]
            memory.barh([at for at, _ in followed], [most for _, most in followed], 0.5, color="#bdbdbd")
    times.axvline(1, color="#666666", linestyle=":")
    times.set(yticks=range(len(names)), yticklabels=names, xlabel="time / plain cross-entropy, and its deciles")
    times.legend(frameon=False, loc="lower right")
    memory.set(xlabel="peak memory / logits, at 30 %")
    for axes in (times, memory):
        axes.grid(axis="x", color="#eeeeee")
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(f"Top-k cross-entropy, forward and backward: {MAIN}, one thread")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def renewed(page: str, rows: Rows) -> str:
    """The page with each block between its markers.

    Raises:
        ValueError: If the markers of a block are not there.
    """
    for name, block in BLOCKS.items():
        begin, end = f"<!-- {name}:begin -->\n", f"<!-- {name}:end -->"
        before, found, rest = page.partition(begin)
        _, closed, after = rest.partition(end)
        if not found or not closed:
            raise ValueError(f"the page must hold {begin.strip()} and then {end}. Add them where the block goes.")
        page = f"{before}{begin}\n```text\n{block(rows)}\n```\n\n{end}{after}"
    return page


def main(arguments: Sequence[str] | None = None) -> None:
    """Draws, renews the page, prints the README's sentence."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--ledger", type=Path, default=LEDGER)
    parser.add_argument("--page", type=Path, default=PAGE)
    parser.add_argument("--figure", type=Path, default=FIGURE)
    asked = parser.parse_args(arguments)
    rows = read(asked.ledger)
    page = renewed(asked.page.read_text(encoding="utf-8"), rows)
    asked.page.write_text(page, encoding="utf-8")
    draw(rows, asked.figure)
    print(sentence(rows))


def _groups(rows: Iterable[Row], key: Callable[[Row], tuple[object, ...]]) -> list[list[Row]]:
    groups: dict[tuple[object, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    return [groups[found] for found in sorted(groups, key=lambda found: tuple(map(_sortable, found)))]


def _sortable(part: object) -> tuple[float, str]:
    return (part, "") if isinstance(part, int | float) else (0.0, str(part))


def _is_main(row: Row) -> bool:
    return row.kernel == KERNEL and row.input == MAIN and row.mode == PLAIN_MODE


def _ratios(rows: Rows, provider: str) -> str:
    own = {row.fraction: row.ratio for row in rows if _is_main(row) and row.threads == 1 and row.provider == provider}
    return ", ".join(f"{own[fraction]:.2f}" for fraction in FRACTIONS[:3])


def _bytes(row: Row) -> int:
    return row.size * (2 if row.input.endswith("16") else 4)


def _moved(row: Row) -> int:
    """Bytes that must pass: logits read twice and their gradient written, the scores written and read, targets read."""
    classes = int(row.input.split(" ")[2])
    elements = row.size // classes
    return 3 * _bytes(row) + elements * (4 * 4 + 2 * 8)


def _in_logits(row: Row) -> float:
    return row.peak * 2**20 / _bytes(row)


def _ms(milliseconds: float) -> str:
    return f"{milliseconds:.3g}" if milliseconds < 100 else f"{milliseconds:.0f}"


def _threads(row: Row) -> str:
    return f"{row.threads} thread{'s' if row.threads > 1 else ''}"


if __name__ == "__main__":
    main()
