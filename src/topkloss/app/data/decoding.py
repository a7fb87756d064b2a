"""Image files: found inside their folder, decoded whole, upright and RGB, served to a DataLoader."""

from __future__ import annotations

import hashlib
import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from topkloss.app.data import heif
from topkloss.app.data.bad import MOST_PIXELS, BadImage, too_large, unreadable
from topkloss.app.data.depth import Depth, depth_of
from topkloss.app.data.examples import ImageTable
from topkloss.app.data.finding import Finder
from topkloss.app.data.listing import Listing
from topkloss.app.data.ranged import Range, check_range, ranged
from topkloss.app.errors import InputError, shown
from topkloss.app.options.workers import bearing
from topkloss.app.progress import counted

__all__ = [
    "MOST_PIXELS",
    "BadImage",
    "Decoded",
    "Images",
    "bad_sentence",
    "cut_off",
    "decode",
    "decode_all",
    "locate",
    "preparation",
    "read_header",
    "suffixes",
]

# Pillow logs some of what it then raises.
logging.getLogger("PIL").addHandler(logging.NullHandler())

# What Pillow decodes itself, in no other program; JPEG with several frames is MPO.
FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP", *heif.register())


# Images that are looked at for what the range cuts off, and the share that is said.
SAMPLE, LITTLE = 32, 0.01


@dataclass(frozen=True)
class Decoded:
    """An image that was decoded, or why it was not.

    Attributes:
        digest: SHA-256 of its size and pixels, upright and RGB: the same for copies in other files and formats.
        beyond: The share of its numbers that the range cuts off.
        bad: Why there is none.
    """

    digest: str = ""
    beyond: float = 0.0
    bad: BadImage | None = None


def suffixes() -> frozenset[str]:
    """The suffixes of files that are taken for images, in small letters."""
    return frozenset(suffix for suffix, kind in Image.registered_extensions().items() if kind in (*FORMATS, "MPO"))


def locate(listing: Listing, name: str, finder: Finder | None = None) -> Path:
    """The path of an image.

    Args:
        listing: Its root must hold the image.
        name: Its path from there.
        finder: Of files whose names are written otherwise; None for none.

    Raises:
        InputError: If it lies outside: the sentence without its beginning.
        BadImage: If there is no such file.
    """
    try:
        path = (listing.root / name if finder is None else finder.find(name)).resolve()
        exists = path.is_file()
    except (OSError, ValueError, RuntimeError) as error:  # too long, a NUL, a loop of links
        raise unreadable(Path(name), error) from error
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


def read_header(path: Path, pixel_range: Range | None = None) -> None:
    """Reads the size and the depth of an image.

    Raises:
        BadImage: If they are such that it cannot be used.
    """
    with _opened(path, pixel_range):
        pass


def decode(path: Path, pixel_range: Range | None = None) -> Image.Image | Tensor:
    """A whole image, turned upright: RGB, or under a range a float32 tensor (3, height, width) in [0, 1].

    Args:
        path: Of the image.
        pixel_range: The numbers that become 0 and 1; None for 8 bits as they are.

    Raises:
        BadImage: If it cannot be used.
    """
    return _decoded(path, pixel_range)[0]


def decode_all(paths: Sequence[Path], workers: int, pixel_range: Range | None = None) -> Iterator[Decoded]:
    """Decodes every image, in order, in worker processes; shows how far it is.

    Args:
        paths: Of the images.
        workers: The number of processes; 0 for this one.
        pixel_range: See `decode`.

    Raises:
        InputError: If a process is killed.
    """
    loader: DataLoader[Decoded] = DataLoader(
        _Decoding(paths, pixel_range), batch_size=16, num_workers=workers, collate_fn=list
    )
    with bearing(workers):
        yield from counted((one for batch in loader for one in batch), len(paths), "decoded")


def cut_off(paths: Sequence[Path], pixel_range: Range | None) -> str:
    """A sentence on the share of the numbers that a range cuts off, where it is more than a little; otherwise "".

    Costs the decoding of 32 images at most, taken evenly from all.

    Args:
        paths: Of the images; those that cannot be used are left to who reads them.
        pixel_range: See `decode`.
    """
    if pixel_range is None:
        return ""
    shares = []
    for place in sorted({len(paths) * part // SAMPLE for part in range(SAMPLE)}) if paths else ():
        with suppress(BadImage):
            shares.append(_decoded(paths[place], pixel_range)[1])
    share = sum(shares) / max(1, len(shares))
    if share <= LITTLE:
        return ""
    images = "1 image" if len(shares) == 1 else f"{len(shares)} images"
    return (
        f"{100 * share:.3g} % of the numbers in {images} lie beyond `--pixel-range` {pixel_range[0]:g} "
        f"{pixel_range[1]:g} and are cut off; `topkloss check` measures all."
    )


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
            upright = decode(example.path, self.table.pixel_range)
        except BadImage as bad:
            raise InputError(bad_sentence(self.table.listing, example.line, bad)) from bad
        return self.prepare(upright), example.label


def preparation(size: int, mean: Sequence[float], std: Sequence[float]) -> v2.Transform:
    """From what `decode` returns to a float32 tensor (3, size, size), normalised."""
    return v2.Compose(
        [
            v2.ToImage(),
            v2.Resize((size, size), antialias=True),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(list(mean), list(std)),
        ]
    )


class _Decoding(Dataset[Decoded]):
    def __init__(self, paths: Sequence[Path], pixel_range: Range | None) -> None:
        self.paths = paths
        self.pixel_range = pixel_range

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, place: int) -> Decoded:
        try:
            image, beyond = _decoded(self.paths[place], self.pixel_range)
        except BadImage as bad:
            return Decoded(bad=bad)
        if isinstance(image, Tensor):
            return Decoded(hashlib.sha256(b"%d,%d," % image.shape[1:] + image.numpy().tobytes()).hexdigest(), beyond)
        return Decoded(hashlib.sha256(b"%d,%d," % image.size + image.tobytes()).hexdigest())


def _decoded(path: Path, pixel_range: Range | None) -> tuple[Image.Image | Tensor, float]:
    """The image, and the share of its numbers that the range cuts off."""
    with _opened(path, pixel_range) as (image, depth):
        if pixel_range is None:
            return ImageOps.exif_transpose(image).convert("RGB"), 0.0
        return ranged(path, image, depth, pixel_range)


@contextmanager
def _opened(path: Path, pixel_range: Range | None) -> Iterator[tuple[Image.Image, Depth]]:
    """An image whose header is within the limits, and its depth; what fails inside is a `BadImage` too."""
    if not os.path.isfile(path):  # opening a pipe would wait for ever
        reason = "not a file" if os.path.exists(path) else "no such file"
        raise BadImage(f"cannot read the image {shown(path)}: {reason}.", reason)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # odd metadata; the size is judged below
        try:
            with Image.open(path, formats=FORMATS) as image:
                yield image, _check_header(path, image, pixel_range)
        except Image.DecompressionBombError as error:
            raise too_large(path) from error
        except BadImage:
            raise
        except UnidentifiedImageError as error:
            if "HEIF" not in FORMATS and heif.is_heif(path):
                words = "HEIC, which needs another package"
                raise BadImage(f"cannot read the image {shown(path)}: {words}.", words, f"{heif.INSTALL}.") from error
            if _is_tiff(path):
                raise unreadable(path, ValueError("a TIFF of a kind that is not read")) from error
            raise unreadable(path, error) from error
        except Exception as error:  # Pillow's decoders raise what they meet: IndexError, struct.error, ...
            raise unreadable(path, error) from error


def _is_tiff(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def _check_header(path: Path, image: Image.Image, pixel_range: Range | None) -> Depth:
    if image.width * image.height > MOST_PIXELS:
        raise too_large(path)
    depth = depth_of(path, image)
    if pixel_range is not None:
        check_range(path, image, depth, pixel_range)
    elif not depth.is_plain:
        raise BadImage(
            f"an image must have 8 bits per channel; got {shown(path)} with {depth}, whose contrast would be lost.",
            f"{depth}: it needs --pixel-range in training",
            "Convert it to 8 bits, or pass --pixel-range with the numbers that are black and white.",
        )
    return depth
