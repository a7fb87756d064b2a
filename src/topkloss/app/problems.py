"""Many problems as few lines: of those that are equal but for names and numbers the first three, and their number."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

__all__ = ["kind_of_problem", "listed"]

# So many of a kind are shown.
FEW = 3

PLACE = re.compile(r"^.*?(?:, (?:line|row) \d+)?: ")
QUOTED = re.compile(r"'(?:[^'\\]|\\.)*'|\"[^\"]*\"")
NAME = re.compile(
    r"(?<=no image )/.*?(?=\. [A-Z])"
    r"|(?<=the image ).*?(?=: (?!.*: ))"
    r"|(?<=got ).*?(?=, |\. [A-Z]|; | with | as |$)"
)


def listed(problems: Sequence[str]) -> list[str]:
    """The problems, a line each, in their order.

    Example:
        >>> rows = [f"t.csv, line {n}: there is no image /d/{n}.png. Correct the line." for n in range(2, 9)]
        >>> for line in listed([rows[0], "t.csv: there must be 2 classes.", *rows[1:]]):
        ...     print(line)
        t.csv, line 2: there is no image /d/2.png. Correct the line.
        t.csv: there must be 2 classes.
        t.csv, line 3: there is no image /d/3.png. Correct the line.
        t.csv, line 4: there is no image /d/4.png. Correct the line.
        ... and 4 like this one, the last: t.csv, line 8: there is no image /d/8.png. Correct the line.
    """
    kinds = [kind_of_problem(problem) for problem in problems]
    whole, last = Counter(kinds), dict(zip(kinds, problems, strict=True))
    seen: Counter[str] = Counter()
    lines = []
    for kind, problem in zip(kinds, problems, strict=True):
        seen[kind] += 1
        if seen[kind] <= FEW or whole[kind] == FEW + 1:
            lines.append(problem)
        if seen[kind] == FEW and whole[kind] > FEW + 1:
            lines.append(f"... and {whole[kind] - FEW} like this one, the last: {last[kind]}")
    return lines


def kind_of_problem(problem: str) -> str:
    """What is the same in equal problems: the sentence without its place, its names and its numbers."""
    return re.sub(r"\d+", "#", NAME.sub("*", QUOTED.sub("*", PLACE.sub("", problem, count=1))))
