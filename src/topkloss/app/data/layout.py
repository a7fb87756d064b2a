"""How a data set is laid out: the options that every command shares that reads one."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from topkloss.app.errors import InputError, shown
from topkloss.app.options import shared
from topkloss.app.options.shared import HELD_OUT

__all__ = ["DataOptions", "check_options", "check_pixel_range", "check_share"]


@dataclass(frozen=True)
class DataOptions:
    """How a data set is laid out. Its fields are the options of each command that reads one, its defaults theirs.

    Attributes:
        images: The folder that image paths start from; None for the folder of the table.
        image_column: The column of the paths.
        label_column: The column of the classes.
        label_columns: One column per class instead, a single 1 in each row; None for `label_column`.
        image_suffix: Appended to the paths that do not end in it, ".jpg" for one.
        split_column: The column that says train, held_out (or val) or test; None for `split` if there is one.
        group_by: The column whose values must not be in two parts, the patient for one; None for no such column.
        held_out: The share that is held out where no row says which, in (0, 1).
        pixel_range: The two numbers of the files that are black and white; None for 8 bits as they are.
    """

    images: str | os.PathLike[str] | None = shared.images()  # noqa: RUF009, it makes a field
    image_column: str = shared.image_column()
    label_column: str = shared.label_column("classes")
    label_columns: Sequence[str] | None = shared.label_columns()
    image_suffix: str = shared.image_suffix()
    split_column: str | None = shared.split_column()
    group_by: str | None = shared.group_by()
    held_out: float = shared.held_out()
    pixel_range: Sequence[float] | None = shared.pixel_range()

    @property
    def shades(self) -> tuple[float, float] | None:
        """The range as a pair."""
        if self.pixel_range is None:
            return None
        low, high = self.pixel_range
        return low, high


def check_options(data: Path | None, options: DataOptions) -> None:
    """What can be refused before a table is read.

    Args:
        data: The table or the folder; None for the embedded digits.
        options: How it is laid out.

    Raises:
        InputError: One sentence that names the option.
    """
    if data is None or os.path.isdir(data):  # Path.is_dir raises where a name is too long
        _check_no_table(data, options)
    check_share(options.held_out)
    check_pixel_range(options.pixel_range)
    suffix = options.image_suffix
    if suffix and not (suffix[0] == "." and suffix[1:].isalnum()):
        raise InputError(f"`--image-suffix` must be a dot and letters; got {shown(suffix)}. Pass .jpg, for one.")
    columns = options.label_columns
    if columns is None:
        return
    if options.label_column != DataOptions.label_column:
        raise InputError(
            f"`--label-columns` must stand without --label-column; got {shown(options.label_column)} for the latter. "
            "Leave one of them out."
        )
    if len(set(columns)) < max(2, len(columns)):
        raise InputError(
            f"`--label-columns` must be 2 columns or more, each once; got {shown(', '.join(columns))}. "
            "For one column of names pass --label-column."
        )


def check_share(held_out: float) -> None:
    """The share that is held out.

    Raises:
        InputError: If it is none.
    """
    if not 0 < held_out < 1:
        share = held_out / 100 if 1 <= held_out < 100 else HELD_OUT
        raise InputError(
            f"`--held-out` must satisfy 0 < share < 1; got {held_out:g}. "
            f"For {100 * share:g} % of each class pass --held-out {share:g}."
        )


def check_pixel_range(pixel_range: Sequence[float] | None) -> None:
    """The numbers that are black and white.

    Raises:
        InputError: If they are no range.
    """
    if pixel_range is None:
        return
    if len(pixel_range) != 2 or not all(map(math.isfinite, pixel_range)) or not pixel_range[0] < pixel_range[1]:
        got = " ".join(f"{number:g}" for number in pixel_range) or "nothing"
        raise InputError(
            f"`--pixel-range` must be two numbers, black and then white, the smaller one first; got {got}. "
            "For all that 16 bits hold pass --pixel-range 0 65535."
        )


def _check_no_table(data: Path | None, options: DataOptions) -> None:
    for field in fields(DataOptions):
        if field.name not in ("held_out", "pixel_range") and getattr(options, field.name) != field.default:
            got = "none" if data is None else f"the folder {shown(data)}"
            raise InputError(
                f"`--{field.name.replace('_', '-')}` must come with a table of images; got {got}. "
                "Leave it out, or pass the table first."
            )
