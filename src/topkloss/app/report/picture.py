"""What every picture has: its colours, how long a name may be, and a file that is written whole."""

from __future__ import annotations

import warnings
from pathlib import Path

from matplotlib.figure import Figure

from topkloss.app.alignment import shortened
from topkloss.app.errors import InputError, shown
from topkloss.app.report.fonts import use_fonts_for
from topkloss.app.runs.files import replacing

__all__ = ["COLOURS", "LETTER", "MOST_NAMES", "check", "end_of", "save", "start_of"]

# Okabe and Ito: told apart by the colour-blind.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
# More classes than these have no room for their names.
MOST_NAMES = 60
LONGEST_CLASS, LONGEST_RUN = 18, 40
# Inches of a letter.
LETTER = 0.09


def check(path: Path) -> None:
    """What can be said of the path of a picture before there is one.

    Raises:
        InputError: If it ends otherwise than ``.png`` or ``.svg``, is a folder, or lies in none.
    """
    if path.suffix not in (".png", ".svg"):
        raise InputError(f"`--figure` must end in .png or .svg; got {path}. Pass {path.with_suffix('.png')}.")
    says = f"`--figure` must be a path that can be written; got {path}"
    if path.is_dir():
        raise InputError(f"{says}, which is a folder. Pass {path / path.name}.")
    if not path.parent.is_dir():
        raise InputError(f"{says}, and there is no {path.parent}. Make it first.")


def save(figure: Figure, path: Path) -> None:
    """Writes a picture whole or not at all.

    Args:
        figure: The picture.
        path: See `draw`.

    Raises:
        InputError: See `draw`.
    """
    check(path)
    use_fonts_for(figure)
    try:
        with replacing(path) as partial, warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph", UserWarning)  # said already, once
            figure.savefig(partial, dpi=150, format=path.suffix[1:])
    except OSError as error:
        raise InputError(
            f"`--figure` must be a path that can be written; got {path}: {error.strerror}. Pass another."
        ) from error


def start_of(name: str) -> str:
    """A class, as a picture has room for it."""
    return shortened(shown(name), LONGEST_CLASS)


def end_of(name: str) -> str:
    """A model or a run: of one that is too long the end, which has the last folder."""
    clean = shown(name)
    return clean if len(clean) <= LONGEST_RUN else f"\N{HORIZONTAL ELLIPSIS}{clean[1 - LONGEST_RUN :]}"
