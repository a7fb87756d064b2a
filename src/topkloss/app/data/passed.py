"""Files that are passed over because they are no images, counted by suffix."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from topkloss.app.data.heif import INSTALL, SUFFIXES
from topkloss.app.errors import shown

__all__ = ["counted_kinds", "is_hidden", "kind_of", "passed_over", "walked"]

# So many suffixes are named.
FEW = 8
# The kind of what is no file, yet passed over.
LINKED = "linked folder"


def is_hidden(name: str) -> bool:
    """Whether nobody means a file or folder of this name: hidden ones, and what a Mac packs beside them."""
    return name.startswith(".") or name == "__MACOSX"


def kind_of(name: str) -> str:
    """What a file that is passed over is counted as: its suffix.

    Example:
        >>> kind_of("IMG_1.HEIC"), kind_of("LICENSE"), kind_of("._IMG_1.jpg")
        ('.heic', 'without a suffix', 'hidden')
    """
    if is_hidden(name):
        return "hidden"
    return os.path.splitext(name)[1].lower() or "without a suffix"


def walked(folder: Path, passed: Counter[str], onerror: Callable[[OSError], None]) -> Iterator[tuple[str, list[str]]]:
    """Each folder that nobody hides, from this one on, with the names of its files, all by name.

    Args:
        folder: Where to begin.
        passed: Here the links to folders are counted, which are not followed.
        onerror: Called if a folder cannot be listed.
    """
    for above, folders, files in os.walk(folder, onerror=onerror):
        folders[:] = sorted(name for name in folders if not is_hidden(name))
        passed.update(LINKED for name in folders if os.path.islink(os.path.join(above, name)))
        yield above, sorted(files)


def counted_kinds(passed: Mapping[str, int]) -> str:
    """The kinds with their numbers, the most frequent first, and how to read HEIC.

    Example:
        >>> counted_kinds({".txt": 3, ".heic": 100})
        '100 .heic, 3 .txt (.heic is read after pip install "topkloss[heic]")'
    """
    kinds = sorted(passed, key=lambda kind: (-passed[kind], kind))
    words = [f"{passed[kind]} {shown(kind)}{'s' * (kind == LINKED and passed[kind] > 1)}" for kind in kinds[:FEW]]
    words += [f"{sum(passed[kind] for kind in kinds[FEW:])} others"] if len(kinds) > FEW else []
    phones = [kind for kind in kinds if kind in SUFFIXES]
    return ", ".join(words) + (f" ({phones[0]} is read after {INSTALL})" if phones else "")


def passed_over(passed: Mapping[str, int]) -> str:
    """One line on what was left out; empty for nothing.

    Example:
        >>> passed_over({".txt": 3, "hidden": 1})
        'left out 4 files that are no images: 3 .txt, 1 hidden'
        >>> passed_over({".txt": 1, "linked folder": 2})
        'left out 1 file that is no image: 1 .txt; 2 linked folders, which are not followed'
    """
    kinds = {kind: count for kind, count in passed.items() if kind != LINKED}
    number, linked = sum(kinds.values()), passed.get(LINKED, 0)
    files = "1 file that is no image" if number == 1 else f"{number} files that are no images"
    links = "1 linked folder, which is" if linked == 1 else f"{linked} linked folders, which are"
    said = [*([f"{files}: {counted_kinds(kinds)}"] if number else []), *([f"{links} not followed"] if linked else [])]
    return f"left out {'; '.join(said)}" if said else ""
