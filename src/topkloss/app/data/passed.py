"""Files that are passed over because they are no images, counted by suffix."""

from __future__ import annotations

import os
from collections.abc import Mapping

from topkloss.app.data.heif import INSTALL, SUFFIXES
from topkloss.app.errors import shown

__all__ = ["counted_kinds", "is_hidden", "kind_of", "passed_over"]

# So many suffixes are named.
FEW = 8


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


def counted_kinds(passed: Mapping[str, int]) -> str:
    """The kinds with their numbers, the most frequent first, and how to read HEIC.

    Example:
        >>> counted_kinds({".txt": 3, ".heic": 100})
        '100 .heic, 3 .txt (.heic is read after pip install "topkloss[heic]")'
    """
    kinds = sorted(passed, key=lambda kind: (-passed[kind], kind))
    words = [f"{passed[kind]} {shown(kind)}" for kind in kinds[:FEW]]
    words += [f"{sum(passed[kind] for kind in kinds[FEW:])} others"] if len(kinds) > FEW else []
    phones = [kind for kind in kinds if kind in SUFFIXES]
    return ", ".join(words) + (f" ({phones[0]} is read after {INSTALL})" if phones else "")


def passed_over(passed: Mapping[str, int]) -> str:
    """One line on what was left out; empty for nothing.

    Example:
        >>> passed_over({".txt": 3, "hidden": 1})
        'left out 4 files that are no images: 3 .txt, 1 hidden'
    """
    number = sum(passed.values())
    if not number:
        return ""
    files = "1 file that is no image" if number == 1 else f"{number} files that are no images"
    return f"left out {files}: {counted_kinds(passed)}"
