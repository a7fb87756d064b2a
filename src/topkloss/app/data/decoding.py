"""Image files: found inside their folder, decoded whole, upright and RGB, served to a DataLoader."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from topkloss.app.data.examples import ImageTable
from topkloss.app.data.listing import Listing
from topkloss.app.errors import InputError, shown
from topkloss.app.options.workers import bearing
from topkloss.app.progress import counted

__all__ = [
    "MOST_PIXELS",
    "BadImage",
    "Decoded",
    "Images",
    "bad_sentence",
    "decode",
    "decode_all",
    "locate",
    "preparation",
    "read_header",
    "suffixes",
]

# An image that would decode to more pixels than this is refused from its header.
MOST_PIXELS = 50_000_000

# What Pillow decodes itself, in no other program; JPEG with several frames is MPO.
FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")


class BadImage(Exception):
    """An image that cannot be used.

    Attributes:
        what: The middle of a sentence.
        reason: The same in a few words, without the name of the file.
        hint: The end of the sentence; None for leaving the image out.
    """

    def __init__(self, what: str, reason: str, hint: str | None = None) -> None:
        super().__init__(what, reason, hint)  # so it can be pickled
        self.what = what
        self.reason = reason
        self.hint = hint


@dataclass(frozen=True)
class Decoded:
    """An image that was decoded, or why it was not.

    Attributes:
        digest: SHA-256 of its size and pixels, upright and RGB: the same for copies in other files and formats.
        bad: Why there is none.
    """

    digest: str = ""
    bad: BadImage | None = None


def suffixes() -> frozenset[str]:
    """The suffixes of files that are taken for images, in small letters."""
    return frozenset(suffix for suffix, kind in Image.registered_extensions().items() if kind in (*FORMATS, "MPO"))


def locate(listing: Listing, name: str) -> Path:
    """The path of an image.

    Args:
        listing: Its root must hold the image.
        name: Its path from there.

    Raises:
        InputError: If it lies outside: the sentence without its beginning.
        BadImage: If there is no such file.
    """
    try:
        path = (listing.root / name).resolve()
        exists = path.is_file()
    except (OSError, ValueError, RuntimeError) as error:  # too long, a NUL, a loop of links
        raise _unreadable(Path(name), error) from error
    if not path.is_relative_to(listing.root):
        hint = "Pass its folder as `--images`." if listing.unit else "Copy it there."
        raise InputError(f"an image must lie inside {shown(listing.root)}; got {shown(name)}. {hint}")
    if not exists:
        hint = f"Correct the {listing.unit} or pass `--images`." if listing.unit else "Remove the link."
        raise BadImage(f"there is no image {shown(path)}.", "no such file", hint)
    return path


def bad_sentence(listing: Listing, line: int, bad: BadImage) -> str:
    """The sentence about a bad image: where, what, and a hint."""
    return f"{listing.place(line)}: {bad.what} {bad.hint or f'Replace it or {listing.removal}.'}"


def read_header(path: Path) -> None:
    """Reads the size and the mode of an image.

    Raises:
        BadImage: If they are such that it cannot be used.
    """
    with _opened(path):
        pass


def decode(path: Path) -> Image.Image:
    """A whole image, turned upright, RGB.

    Raises:
        BadImage: If it cannot be used.
    """
    with _opened(path) as image:
        return ImageOps.exif_transpose(image).convert("RGB")


def decode_all(paths: Sequence[Path], workers: int) -> Iterator[Decoded]:
    """Decodes every image, in order, in worker processes; shows how far it is.

    Args:
        paths: Of the images.
        workers: The number of processes; 0 for this one.

    Raises:
        InputError: If a process is killed.
    """
    loader: DataLoader[Decoded] = DataLoader(_Decoding(paths), batch_size=16, num_workers=workers, collate_fn=list)
    with bearing(workers):
        yield from counted((one for batch in loader for one in batch), len(paths), "decoded")


class Images(Dataset[tuple[Tensor, int]]):
    """Some of the images of a data set, decoded and prepared on request.

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
            upright = decode(example.path)
        except BadImage as bad:
            raise InputError(bad_sentence(self.table.listing, example.line, bad)) from bad
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


class _Decoding(Dataset[Decoded]):
    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, place: int) -> Decoded:
        try:
            image = decode(self.paths[place])
        except BadImage as bad:
            return Decoded(bad=bad)
        return Decoded(hashlib.sha256(b"%d,%d," % image.size + image.tobytes()).hexdigest())


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """An image whose header is within the limits; what fails inside is a `BadImage` too."""
    if not os.path.isfile(path):  # opening a pipe would wait for ever
        reason = "not a file" if os.path.exists(path) else "no such file"
        raise BadImage(f"cannot read the image {shown(path)}: {reason}.", reason)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # odd metadata; the size is judged below
        try:
            with Image.open(path, formats=FORMATS) as image:
                _check_header(path, *image.size, image.mode)
                yield image
        except Image.DecompressionBombError as error:
            raise _too_large(path) from error
        except BadImage:
            raise
        except Exception as error:  # Pillow's decoders raise what they meet: IndexError, struct.error, ...
            raise _unreadable(path, error) from error


def _check_header(path: Path, width: int, height: int, mode: str) -> None:
    if width * height > MOST_PIXELS:
        raise _too_large(path)
    if mode.startswith(("I", "F")):
        raise BadImage(
            f"an image must have 8 bits per channel; got {shown(path)} of mode {mode}, which would lose its contrast.",
            f"mode {mode}: more than 8 bits per channel",
            "Convert it to 8 bits.",
        )


def _too_large(path: Path) -> BadImage:
    most = MOST_PIXELS // 1_000_000
    return BadImage(
        f"an image must have {most} million pixels or fewer; got more in {shown(path)}.",
        f"more than {most} million pixels",
        "Scale it down.",
    )


def _unreadable(path: Path, error: Exception) -> BadImage:
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    if isinstance(error, UnidentifiedImageError):
        reason = "no known image format"
    reason = shown(" ".join(reason.split()))
    return BadImage(f"cannot read the image {shown(path)}: {reason}.", reason)
