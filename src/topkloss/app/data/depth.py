"""How many bits a channel of an image has: from the file's own header, whatever a library makes of it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from PIL import Image

__all__ = ["EIGHT", "Depth", "depth_of"]

# Numbers of these tags of TIFF.
BITS_PER_SAMPLE, PHOTOMETRIC, SAMPLE_FORMAT = 258, 262, 339
# What they, and PNG, call numbers of colours in a palette, which are of 8 bits.
TIFF_PALETTE, PNG_PALETTE = 3, 3
# The header of a codestream of JPEG 2000, SOC and SIZ, begins in the first boxes of its file.
SIZ, FIRST_BOXES = b"\xff\x4f\xff\x51", 1 << 20
PPM_HEADER = re.compile(rb"P([1-6])(?:(?:\s|#[^\r\n]*[\r\n])+(\d+)){3}")


@dataclass(frozen=True)
class Depth:
    """What the numbers of an image are.

    Attributes:
        bits: Of the widest channel.
        kind: Of the numbers.
        white_is_zero: Whether the smallest number is white.
        is_scaled: Whether its largest number is another than 255, and Pillow brings it there.
    """

    bits: int
    kind: Literal["unsigned", "signed", "float"] = "unsigned"
    white_is_zero: bool = False
    is_scaled: bool = False

    @property
    def is_plain(self) -> bool:
        """Whether black and white are known: 8 bits or fewer, from 0."""
        return self.bits <= 8 and self.kind == "unsigned"

    @property
    def largest(self) -> float:
        """The largest number that a channel can hold, as it is read."""
        if self.is_scaled:
            return 255.0
        if self.kind == "float":
            return float("inf")
        return float(2 ** (self.bits - (self.kind == "signed")) - 1)

    def __str__(self) -> str:
        """In a few words: ``16 bits per channel``."""
        kind = {"unsigned": "", "signed": ", signed", "float": ", floating-point"}[self.kind]
        return f"{self.bits} bits per channel{kind}"


EIGHT = Depth(8)


def depth_of(path: Path, image: Image.Image) -> Depth:
    """The depth of the numbers in a file.

    AVIF and HEIC of 10 or 12 bits count as 8: their decoders map the whole range, which is that of the picture.

    Args:
        path: Of the file.
        image: The same, opened by Pillow, not loaded.
    """
    if image.format == "PNG":
        with path.open("rb") as file:
            bits, colour = file.read(26)[24:]  # in IHDR, which comes first
        return EIGHT if colour == PNG_PALETTE else _unsigned(bits)
    if image.format == "TIFF":
        return _of_tiff(image)
    if image.format == "JPEG2000":
        return _of_jpeg2000(path)
    if image.format == "PPM" and image.mode != "F":
        return _of_ppm(path)
    if image.mode.startswith(("I", "F")):
        bits = 16 if image.mode.startswith("I;16") else 32
        return Depth(bits, "float" if image.mode.startswith("F") else "unsigned")
    return EIGHT


def _unsigned(bits: int) -> Depth:
    return Depth(bits, is_scaled=bits < 8)


def _of_tiff(image: Image.Image) -> Depth:
    tags = image.tag_v2  # type: ignore[attr-defined] # of Pillow's class for TIFF
    formats = {1: "unsigned", 2: "signed", 3: "float"}
    kinds = {formats.get(number, "float") for number in tags.get(SAMPLE_FORMAT, (1,))}
    kind: Literal["unsigned", "signed", "float"] = "unsigned"
    if kinds != {"unsigned"}:
        kind = "float" if "float" in kinds else "signed"
    bits, photometric = max(tags.get(BITS_PER_SAMPLE, (1,))), tags.get(PHOTOMETRIC)
    if photometric == TIFF_PALETTE and bits <= 8:
        return EIGHT
    return Depth(bits, kind, photometric == 0, is_scaled=bits < 8 and kind == "unsigned")


def _of_jpeg2000(path: Path) -> Depth:
    """From SIZ, whose last bytes say of each component its bits less one, and in the first bit whether it is signed."""
    with path.open("rb") as file:
        head = file.read(FIRST_BOXES)
    at = head.find(SIZ)
    if at < 0 or len(head) < at + 42:
        raise ValueError("no header of a JPEG 2000 codestream")
    count = int.from_bytes(head[at + 40 : at + 42], "big")
    sizes = head[at + 42 : at + 42 + 3 * count : 3]
    signed = any(size & 0x80 for size in sizes)
    bits = max((size & 0x7F) + 1 for size in sizes)
    return Depth(bits, "signed") if signed else _unsigned(bits)


def _of_ppm(path: Path) -> Depth:
    with path.open("rb") as file:
        head = file.read(FIRST_BOXES)
    found = PPM_HEADER.match(head)
    if found is None and head[:2] in (b"P2", b"P3", b"P5", b"P6"):
        raise ValueError("no depth in the header")
    if head[:2] in (b"P1", b"P4"):  # black and white
        return _unsigned(1)
    if found is None:
        return EIGHT
    largest = int(found[2])
    return Depth(largest.bit_length(), is_scaled=largest < 255)
