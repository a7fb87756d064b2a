"""A CSV of images: read, checked line by line before anything is trained, split, and served to a DataLoader."""

from __future__ import annotations

import csv
import hashlib
import math
import random
import warnings
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import v2

from topkloss.training.config import TrainConfig
from topkloss.training.errors import InputError

__all__ = ["Example", "ImageTable", "Images", "preparation", "read_table", "split", "table_of"]

# An image that would decode to more pixels than this is refused from its header.
MOST_PIXELS = 50_000_000
HELD_OUT = 0.1


@dataclass(frozen=True)
class Example:
    """A line of the table.

    Attributes:
        path: Of the image.
        label: Index into the classes.
        line: Where the CSV names it.
    """

    path: Path
    label: int
    line: int


@dataclass(frozen=True)
class ImageTable:
    """A checked CSV.

    Attributes:
        csv: Where it was read from.
        digest: SHA-256 of its bytes.
        classes: Names of the classes, numbers in numerical order.
        examples: In the order of the file.
    """

    csv: Path
    digest: str
    classes: tuple[str, ...]
    examples: tuple[Example, ...]


def read_table(table: Path, images: Path | None = None, *, classes: Sequence[str] | None = None) -> ImageTable:
    """Reads a CSV with the columns `image` and `label` and checks every line and the header of every image.

    Args:
        table: UTF-8, first line the names of the columns; others than `image` and `label` are allowed.
        images: The folder that the paths in `image` start from; default: the folder of the CSV.
        classes: Names of the classes of a model: each label must be among them. Default: the labels, two or more.

    Returns:
        The table. Each image lies inside `images`; without `classes`, each class has two examples or more.

    Raises:
        InputError: One sentence with the file and the line.
    """
    root = (table.parent if images is None else images).resolve()
    if not root.is_dir():
        raise InputError(f"`--images` must be a folder; got {root}, which is none. Pass the folder of the images.")
    rows = _rows(table)
    classes = _found(table, rows) if classes is None else _known(table, rows, classes)
    index = {name: number for number, name in enumerate(classes)}
    examples = tuple(Example(_image(table, line, root, image), index[label], line) for line, image, label in rows)
    return ImageTable(table, hashlib.sha256(table.read_bytes()).hexdigest(), classes, examples)


def table_of(config: TrainConfig, *, classes: Sequence[str] | None = None) -> ImageTable:
    """The table that a config names; without one the embedded digits. See `read_table`."""
    if config.csv is not None:
        table = Path(config.csv)
    else:
        from topkloss.training.digits import write_digits

        table = write_digits()
    return read_table(table, None if config.images is None else Path(config.images), classes=classes)


def split(table: ImageTable, seed: int) -> tuple[list[int], list[int]]:
    """Indices to train on and to hold out: a tenth of each class, at least one example in both parts.

    (scikit-learn's stratified splits refuse a table with fewer held-out places than classes.)
    """
    places: dict[int, list[int]] = defaultdict(list)
    for index, example in enumerate(table.examples):
        places[example.label].append(index)
    chance = random.Random(seed)
    held_out: set[int] = set()
    for _, members in sorted(places.items()):
        held_out.update(chance.sample(members, max(1, round(HELD_OUT * len(members)))))
    return [index for index in range(len(table.examples)) if index not in held_out], sorted(held_out)


class Images(Dataset[tuple[Tensor, int]]):
    """Some of the images of a table, decoded and prepared on request.

    Raises:
        InputError: On access, if an image cannot be decoded after all.
    """

    def __init__(self, table: ImageTable, indices: Sequence[int], prepare: v2.Transform) -> None:
        self.table = table
        self.indices = indices
        self.prepare = prepare

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, place: int) -> tuple[Tensor, int]:
        example = self.table.examples[self.indices[place]]
        try:
            with Image.open(example.path) as image:
                upright = ImageOps.exif_transpose(image).convert("RGB")
        except (OSError, SyntaxError, ValueError) as error:
            raise _unreadable(self.table.csv, example.line, example.path, error) from error
        return self.prepare(upright), example.label


def preparation(size: int, mean: Sequence[float], std: Sequence[float]) -> v2.Transform:
    """From a PIL image to a float32 tensor (3, size, size), normalised."""
    return v2.Compose(
        [
            v2.ToImage(),
            v2.Resize((size, size), antialias=True),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(list(mean), list(std)),
        ]
    )


def _rows(table: Path) -> list[tuple[int, str, str]]:
    """Line, image and label of every row that is not blank."""
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file)
            names = [name.strip() for name in next(reader, [])]
            for column in ("image", "label"):
                if names.count(column) != 1:
                    raise InputError(
                        f"{table}, line 1: there must be one column `{column}`; got {', '.join(names) or 'nothing'}. "
                        "The first line names the columns: image,label."
                    )
            places = names.index("image"), names.index("label")
            rows = [(reader.line_num, *_cells(table, reader.line_num, row, places)) for row in reader if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(
            f"{table} must be a CSV file in UTF-8; got {_reason(error)}. Pass a file with the columns image,label."
        ) from error
    if not rows:
        raise InputError(f"{table}, line 2: there must be an example; got the names of the columns only. Add images.")
    return rows


def _found(table: Path, rows: list[tuple[int, str, str]]) -> tuple[str, ...]:
    """The classes of a table to train on."""
    lines: dict[str, list[int]] = defaultdict(list)
    for line, _, label in rows:
        lines[label].append(line)
    for label, places in lines.items():
        if len(places) == 1:
            raise InputError(
                f"{table}, line {places[0]}: a class must have 2 examples or more, one of them to be held out; "
                f"got 1 of {label!r}. Add another or remove the line."
            )
    if len(lines) < 2:
        raise InputError(
            f"{table}, line 2: `label` must have 2 classes or more; got only {next(iter(lines))!r}. "
            "Add examples of another class."
        )
    return tuple(sorted(lines, key=_numerically))


def _known(table: Path, rows: list[tuple[int, str, str]], classes: Sequence[str]) -> tuple[str, ...]:
    """The classes of a model, each label being one of them."""
    known = set(classes)
    for line, _, label in rows:
        if label not in known:
            raise InputError(
                f"{table}, line {line}: `label` must be a class of the model ({_some(classes)}); got {label!r}. "
                "Correct the line or remove it."
            )
    return tuple(classes)


def _some(classes: Sequence[str]) -> str:
    return ", ".join(classes) if len(classes) <= 10 else f"{', '.join(classes[:9])} and {len(classes) - 9} others"


def _cells(table: Path, line: int, row: list[str], places: tuple[int, int]) -> tuple[str, str]:
    image, label = (row[place].strip() if place < len(row) else "" for place in places)
    for column, cell in (("image", image), ("label", label)):
        if not cell:
            raise InputError(
                f"{table}, line {line}: `{column}` must not be empty; got nothing. Fill it in or remove the line."
            )
    return image, label


def _image(table: Path, line: int, root: Path, name: str) -> Path:
    """The path of an image inside the root, with its header read."""
    try:
        path = (root / name).resolve()
        exists = path.is_file()
    except (OSError, ValueError, RuntimeError) as error:  # too long, a NUL, a loop of links
        raise _unreadable(table, line, Path(name), error) from error
    if not path.is_relative_to(root):
        raise InputError(
            f"{table}, line {line}: an image must lie inside {root}; got {name}. Pass its folder as `--images`."
        )
    if not exists:
        raise InputError(f"{table}, line {line}: there is no image {path}. Correct the line or pass `--images`.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                (width, height), mode = image.size, image.mode
    except Image.DecompressionBombError:
        width, height, mode = MOST_PIXELS, 2, "RGB"
    except (OSError, SyntaxError, ValueError) as error:
        raise _unreadable(table, line, path, error) from error
    if width * height > MOST_PIXELS:
        raise InputError(
            f"{table}, line {line}: an image must have {MOST_PIXELS // 1_000_000} million pixels or fewer; got more in "
            f"{path}. Scale it down."
        )
    if mode.startswith(("I", "F")):
        raise InputError(
            f"{table}, line {line}: an image must have 8 bits per channel; got {path} of mode {mode}, which would lose "
            "its contrast. Convert it to 8 bits."
        )
    return path


def _unreadable(table: Path, line: int, path: Path, error: Exception) -> InputError:
    reason = "no known image format" if isinstance(error, UnidentifiedImageError) else _reason(error)
    return InputError(f"{table}, line {line}: cannot read the image {path}: {reason}. Replace it or remove the line.")


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


def _numerically(label: str) -> tuple[int, float, str]:
    """Numbers first, by value; then words, "nan" among them: it has no place in an order."""
    try:
        value = float(label)
    except ValueError:
        value = math.nan
    return (1, 0.0, label) if math.isnan(value) else (0, value, label)
