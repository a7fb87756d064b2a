"""What docs/speed.md says, made from the ledger: its tables, its figure, and the README's sentence.

    python -m benchmarks.speed

measures nothing: it reads `results.csv`, draws docs/images/speed.png, and renews the blocks of the page.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks import average_top_k, kth_largest, ways
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
    """Every provider on every input: ratio to plain cross-entropy at each fraction, and memory; processors abreast."""
    chosen = [row for row in rows if row.kernel == KERNEL and row.provider not in (COPY, FRESH_COPY)]
    tables = []
    for group in _groups(chosen, lambda row: (-row.size, row.input, row.mode, row.threads)):
        first = group[0]
        parts = {device: [row for row in group if row.device == device] for device in _devices(group)}
        of_each = "".join(f"{f'{f:.0%}'.replace('%', ' %'):>8}" for f in FRACTIONS)
        of_each += f"   {'spread at 30 %':<16}{'memory':>8}"
        lines = [
            f"{first.input}, {_threads(first)}{first.mode.removeprefix(PLAIN_MODE)}",
            f"{'':<36}"
            + GAP.join(f"{f'{device}, plain {_plain(part)} ms':>{WIDTH}}" for device, part in parts.items()),
            f"{'':<36}" + GAP.join([of_each] * len(parts)),
        ]
        for provider in dict.fromkeys(row.provider for row in group):
            lines.append(f"{provider:<36}" + GAP.join(_cells(part, provider) for part in parts.values()))
        tables.append("\n".join(lines))
    return "\n\n".join(tables)


WIDTH, GAP = 59, "   |"  # of what one processor says, and between two


def _cells(rows: Rows, provider: str) -> str:
    own = {row.fraction: row for row in rows if row.provider == provider}
    cells = "".join(f"{own[f].ratio:>8.2f}" if f in own else f"{'-':>8}" for f in FRACTIONS)
    middle = own.get(0.3)
    spread = f"{middle.ratio_low:.2f} to {middle.ratio_high:.2f}" if middle else "-"
    memory = f"{_in_logits(middle):.2f}" if middle and middle.peak >= 0 else "-"
    return f"{cells}   {spread:<16}{memory:>8}"


# What was to be reached on one thread, of the time of plain cross-entropy: by the native kernels, and by them in place.
AIMS: dict[str, tuple[float, float | None]] = {
    "1 x 150 x 512 x 512 float32": (0.4, 0.2),
    MAIN: (0.4, 0.2),
    "2 x 4 x 128 x 128 x 128 float32": (0.5, 0.3),
    "4096 x 1000 float32": (0.5, None),
}
AIM_OF_TWIN = 1.1


def of_aims(rows: Rows) -> str:
    """The largest ratio at 10, 30 and 70 %, beside what it was to be at most."""
    chosen = [row for row in rows if row.kernel == KERNEL and row.mode == PLAIN_MODE and row.threads == 1]
    devices = _devices(chosen)
    names = ("native", "native, in place", "torch")
    lines = [
        f"{'':<34}" + "".join(f"{way:>{8 + 16 * len(devices)}}" for way in names),
        f"{'':<34}" + (f"{'aim':>8}" + "".join(f"{device:>16}" for device in devices)) * len(names),
    ]
    for input, aims in AIMS.items():
        cells = ""
        for way, aim in zip(names, (*aims, AIM_OF_TWIN), strict=True):
            cells += f"{aim:>8.2f}" if aim is not None else f"{'-':>8}"
            for device in devices:
                own = [row for row in chosen if (row.input, row.provider, row.device) == (input, way, device)]
                cells += (
                    f"{max(row.ratio for row in own if row.fraction in FRACTIONS[:3]):>16.2f}" if own else f"{'-':>16}"
                )
        lines.append(f"{input:<34}{cells}")
    return "\n".join(lines)


def of_ways(rows: Rows) -> str:
    """What every criterion takes of the time of plain cross-entropy, and the same in place."""
    chosen = [row for row in rows if row.kernel == ways.KERNEL]
    heads = f"{'time':>8}   {'spread':<16}{'memory':>8}"
    tables = []
    for group in _groups(chosen, lambda row: (-row.size, row.input, row.mode, row.threads, row.device)):
        first, own = group[0], {row.provider: row for row in group}
        mode = first.mode.removeprefix(PLAIN_MODE)
        lines = [
            f"{first.input}, {_threads(first)}, {first.device}{mode}, plain {_plain(group)} ms",
            f"{'':<48}{'':>45}{GAP}{'in place':>12}",
            f"{'':<48}{'averaged':>10}{heads}{GAP}{heads}",
        ]
        for name in ways.ways():
            if name in own and not name.endswith(ways.IN_PLACE):
                share = f"{own[name].fraction:.0%}".replace("%", " %")
                lines.append(f"{name:<48}{share:>10}{_one(own[name])}{GAP}{_one(own.get(name + ways.IN_PLACE))}")
        tables.append("\n".join(lines))
    return "\n\n".join(tables)


def _one(row: Row | None) -> str:
    if row is None:
        return f"{'-':>8}   {'-':<16}{'-':>8}"
    spread = f"{row.ratio_low:.2f} to {row.ratio_high:.2f}"
    return f"{row.ratio:>8.2f}   {spread:<16}{f'{_in_logits(row):.2f}' if row.peak >= 0 else '-':>8}"


def of_roofline(rows: Rows) -> str:
    """How far from what the memory can do, at 30 %, or else at the next fraction at which a copy was timed."""
    names = ("native", "native, gradient buffer kept", "native, in place")
    lines = [f"{'':<76}{'copy':>10}{'least':>10}" + "".join(f"{name:>30}" for name in names)]
    chosen = [row for row in rows if row.kernel == KERNEL]
    for group in _groups(chosen, lambda row: (-row.size, row.input, row.mode, row.threads, row.device)):
        copied = sorted({row.fraction for row in group if row.provider == COPY} - {0.1})
        own = {row.provider: row for row in group if row.fraction == copied[0]} if copied else {}
        if "native" not in own:
            continue
        first = group[0]
        least = own[COPY].median * _moved(first) / (2 * _bytes(first))
        mode = first.mode.removeprefix(PLAIN_MODE)
        name = f"{first.input}, {copied[0]:.0%}, {_threads(first)}, {first.device}{mode}".replace("%", " %")
        cells = [f"{_ms(own[way].median)} ms, {own[way].median / least:.1f} x" if way in own else "-" for way in names]
        fresh = f"{_ms(own[COPY].median)} ms"
        lines.append(f"{name:<76}{fresh:>10}{_ms(least) + ' ms':>10}" + "".join(f"{cell:>30}" for cell in cells))
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
    "aims": of_aims,
    "ways": of_ways,
    "roofline": of_roofline,
    "k-th largest": of_kth_largest,
    "average_top_k": of_average_top_k,
}


def sentence(rows: Rows) -> str:
    """What the README says of it: of each processor, those who were measured on it."""
    chosen = [row for row in rows if _is_main(row)]
    others = {"in place": "native, in place", "nnU-Net's": "nnU-Net TopKLoss", "mmseg's OHEM": "mmseg OhemCrossEntropy"}
    parts = []
    for device in _devices(chosen):
        own = [row for row in chosen if row.device == device]
        beside = "; ".join(f"{words} {_ratios(own, name)}" for words, name in others.items() if _ratios(own, name))
        parts.append(f"{_ratios(own, 'native')} with {_vectors(device)} ({beside})")
    memory = max(_in_logits(row) for row in chosen if row.provider == "native" and row.fraction == 0.3)
    return (
        f"On logits of {MAIN}, on one thread, at 10, 30 and 70 %, forward and backward of `AverageTopKCrossEntropyLoss`"
        f" take, of the time of plain `F.cross_entropy`, {' and '.join(parts)}, and {memory:.2f} times the memory of "
        "the logits."
    )


def draw(rows: Rows, path: Path) -> None:
    """Time and memory of each provider on the main input, relative to plain cross-entropy and to the logits."""
    from matplotlib.figure import Figure

    chosen = [row for row in rows if _is_main(row) and row.provider not in (COPY, FRESH_COPY)]
    names = list(dict.fromkeys(row.provider for row in chosen))[::-1]
    devices = _devices(chosen)
    figure = Figure(figsize=(5 + 4.5 * len(devices), 0.42 * len(names) + 1.9), layout="constrained")
    *times, memory = figure.subplots(1, len(devices) + 1, sharey=True, width_ratios=(3,) * len(devices) + (1.4,))
    most: dict[str, float] = {}
    for axes, device in zip(times, devices, strict=True):
        own = [row for row in chosen if row.device == device]
        _draw_times(axes, own, names)
        axes.set(title=f"with {_vectors(device)}", xlabel="time / plain cross-entropy, and its deciles")
        axes.set(xlim=(0, 1.05 * max(row.ratio_high for row in chosen if row.fraction in FRACTIONS[:3])))
        of_memory = {row.provider: _in_logits(row) for row in own if row.fraction == 0.3 and row.peak >= 0}
        most |= {name: max(figure, most.get(name, 0.0)) for name, figure in of_memory.items()}
    memory.barh([names.index(name) for name in most], list(most.values()), 0.5, color="#bdbdbd")
    memory.set(xlabel="peak memory / logits, at 30 %")
    times[0].set(yticks=range(len(names)), yticklabels=names)
    times[0].legend(frameon=False, loc="lower right")
    for axes in (*times, memory):
        axes.grid(axis="x", color="#eeeeee")
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(f"Top-k cross-entropy, forward and backward: {MAIN}, one thread")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def _draw_times(axes: Any, rows: Rows, names: Sequence[str]) -> None:
    """A bar for each provider and fraction; where a provider was not measured, the words for it."""
    for fraction, colour in zip(FRACTIONS[:3], ("#9ecae1", "#4292c6", "#08519c"), strict=True):
        own = {row.provider: row for row in rows if row.fraction == fraction}
        shift = 0.27 * (1 - FRACTIONS.index(fraction))
        places = [(i + shift, own[name]) for i, name in enumerate(names) if name in own]
        label = f"{fraction:.0%}".replace("%", " %")
        axes.barh([at for at, _ in places], [row.ratio for _, row in places], 0.25, color=colour, label=label)
        for at, row in places:
            axes.plot([row.ratio_low, row.ratio_high], [at, at], color="#333333", linewidth=0.8)
    for missing in {*names} - {row.provider for row in rows}:
        axes.text(0.02, names.index(missing), "not measured", color="#666666", verticalalignment="center")
    axes.axvline(1, color="#666666", linestyle=":")


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
    return row.kernel == KERNEL and row.input == MAIN and row.mode == PLAIN_MODE and row.threads == 1


def _devices(rows: Rows) -> list[str]:
    return sorted({row.device for row in rows})


def _vectors(device: str) -> str:
    """The instructions of a processor, as they are written in prose."""
    known = {"avx2": "AVX2", "avx512": "AVX-512"}
    return known.get(device.partition(" ")[2], device)


def _plain(rows: Rows) -> str:
    return _ms(min(row.median for row in rows if row.provider == BASELINE))


def _ratios(rows: Rows, provider: str) -> str:
    own = {row.fraction: row.ratio for row in rows if row.provider == provider}
    return ", ".join(f"{own[fraction]:.2f}" for fraction in FRACTIONS[:3] if fraction in own)


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
