"""Letters of any script in a picture: of the installed fonts those that have them."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from functools import cache

from matplotlib import font_manager, rcParams
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.ft2font import FT2Font
from matplotlib.text import Text

__all__ = ["use_fonts_for"]

# These have a box for every letter.
NO_LETTERS = ("Last Resort", "LastResort", "Adobe Blank", "Unifont Upper")


def use_fonts_for(figure: Figure) -> None:
    """Lets each text of a picture fall back on installed fonts for letters that its own has not.

    Warns in one sentence of letters that no font has: they are boxes.
    """
    texts = [text for text in figure.findobj(Text) if isinstance(text, Text)]
    letters = {letter for text in texts for letter in text.get_text() if ord(letter) > 127 and letter.isprintable()}
    own = FontProperties(family=rcParams["font.family"])
    missing = letters - _letters_of(font_manager.findfont(own))
    if not missing:
        return
    names, left = _fonts_with(missing)
    for text in texts:
        if not missing.isdisjoint(text.get_text()):
            text.set_fontfamily([*own.get_family(), *names])
    if left:
        some = "".join(sorted(left)[:10])
        warnings.warn(
            f"A font must have the letters of the names; got none with {some}: they are boxes in the picture. Install "
            "one, Noto Sans CJK for Chinese and Japanese.",
            UserWarning,
            stacklevel=1,
        )


def _fonts_with(missing: Iterable[str]) -> tuple[list[str], set[str]]:
    """Names of fonts that have the letters, as few as will do, and the letters that none has."""
    left, names = set(missing), list[str]()
    entries = {entry.name: entry.fname for entry in font_manager.fontManager.ttflist if entry.style == "normal"}
    entries = {name: path for name, path in entries.items() if not name.lstrip(".").startswith(NO_LETTERS)}
    while left:
        best = max(sorted(entries), key=lambda name: (len(left & _letters_of(entries[name])), "Sans" in name))
        found = left & _letters_of(entries[best])
        if not found:
            break
        names.append(best)
        left -= found
    return names, left


@cache
def _letters_of(path: str) -> frozenset[str]:
    """What a font file has; nothing where it cannot be read."""
    try:
        return frozenset(map(chr, FT2Font(path).get_charmap()))
    except (OSError, RuntimeError, ValueError):
        return frozenset()
