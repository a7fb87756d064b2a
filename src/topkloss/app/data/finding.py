"""From a name in a list to a file: exactly, or as another system wrote it, or without its suffix."""

from __future__ import annotations

import os
import re
import unicodedata
from collections import Counter, defaultdict
from functools import lru_cache
from pathlib import Path

from topkloss.app.data.bad import BadImage
from topkloss.app.errors import shown

__all__ = ["Finder"]

SLASHES = "backslashes taken for slashes"
WINDOWS = re.compile(r"[A-Za-z]:[\\/]|\\\\")


def _folded(name: str) -> str:
    """What names are equal in that differ in letter case, or in how accents are coded, only."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


class Finder:
    """Finds listed images below a folder, and counts what it took for what was written.

    Args:
        root: The folder.
        suffixes: Of images, in small letters.
    """

    def __init__(self, root: Path, suffixes: frozenset[str]) -> None:
        self.root = root
        self.suffixes = suffixes
        self.taken: Counter[str] = Counter()
        self._names = lru_cache(maxsize=1024)(self._read)

    def find(self, name: str) -> Path:
        """The path of an image; where none fits, the path as it stands.

        Args:
            name: Its path from the root.

        Raises:
            BadImage: If several files fit, or the path is one of another machine.
            OSError, ValueError: If the system does not know such a path.
        """
        path = self.root / name
        if os.path.lexists(path):
            return path
        if WINDOWS.match(name):
            raise BadImage(
                f"an image must be a path from {shown(self.root)}; got {shown(name)}, the path of a drive.",
                "the path of a drive",
                "Leave out what stands before that folder, or pass `--images`.",
            )
        asked = name.replace("\\", "/") if "\\" in name else name
        if os.path.isabs(asked) or ".." in Path(asked).parts:
            self.taken.update({SLASHES} if asked != name else ())
            return self.root / asked
        found, how = self._below(Path(asked).parts)
        if found is None:
            return path
        if asked != name:
            how.add(SLASHES)
        self.taken.update(how)
        return found

    def other_suffix(self, name: str) -> str:
        """The suffix of the one image that has the name of a missing one and another suffix; empty for none."""
        path = Path(name.replace("\\", "/"))
        fits = self._names(self.root / path.parent).get(f"/{_folded(path.stem)}", [])
        return os.path.splitext(fits[0])[1] if len(fits) == 1 else ""

    def notes(self) -> list[str]:
        """A line for each way in which files were found under other names than are listed."""
        return [f"{how} in {count} path{'' if count == 1 else 's'}" for how, count in sorted(self.taken.items())]

    def _below(self, parts: tuple[str, ...]) -> tuple[Path | None, set[str]]:
        folder, how = self.root, set[str]()
        for place, part in enumerate(parts, 1):
            names = self._names(folder)
            fits = names.get(_folded(part), [])
            if part in fits:
                fits = [part]
            elif same := [one for one in fits if unicodedata.normalize("NFC", one) == part]:
                fits = same
            if not fits and place == len(parts):
                fits = [one for one in names.get(f"/{_folded(part)}", [])]
                how |= {f"{os.path.splitext(one)[1]} appended" for one in fits}
            if not fits:
                return None, how
            if len(fits) > 1:
                raise BadImage(
                    f"one image must fit {shown('/'.join(parts))}; got {shown(' and '.join(fits[:3]))}.",
                    "several files fit",
                    "Write which, or pass `--image-suffix`.",
                )
            if fits[0] != part and not any("appended" in one for one in how):
                how.add("letter case or accents taken as the files have them")
            folder = folder / fits[0]
        return folder, how

    def _read(self, folder: Path) -> dict[str, list[str]]:
        """The names in a folder by their folded forms; those of images without their suffix too, behind a slash."""
        found: dict[str, list[str]] = defaultdict(list)
        try:
            names = sorted(os.listdir(folder))
        except OSError:
            return found
        for name in names:
            found[_folded(name)].append(name)
            stem, suffix = os.path.splitext(name)
            if suffix.lower() in self.suffixes and not name.startswith("."):
                found[f"/{_folded(stem)}"].append(name)
        return found
