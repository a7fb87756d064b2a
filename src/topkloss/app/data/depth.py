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
    """

    bits: int
    kind: Literal["unsigned", "signed", "float"] = "unsigned"
    white_is_zero: bool = False

    @property
    def is_plain(self) -> bool:
        """Whether black and white are known: 8 bits or fewer, from 0."""
        return self.bits <= 8 and self.kind == "unsigned"

    @property
    def largest(self) -> float:
        """The largest number that a channel can hold."""
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
            return Depth(file.read(25)[24])  # in IHDR, which comes first
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


def _of_tiff(image: Image.Image) -> Depth:
    tags = image.tag_v2  # type: ignore[attr-defined] # of Pillow's class for TIFF
    formats = {1: "unsigned", 2: "signed", 3: "float"}
    kinds = {formats.get(number, "float") for number in tags.get(SAMPLE_FORMAT, (1,))}
    kind: Literal["unsigned", "signed", "float"] = "unsigned"
    if kinds != {"unsigned"}:
        kind = "float" if "float" in kinds else "signed"
    return Depth(max(tags.get(BITS_PER_SAMPLE, (1,))), kind, tags.get(PHOTOMETRIC) == 0)


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
    return Depth(max((size & 0x7F) + 1 for size in sizes), "signed" if signed else "unsigned")


def _of_ppm(path: Path) -> Depth:
    with path.open("rb") as file:
        head = file.read(FIRST_BOXES)
    found = PPM_HEADER.match(head)
    if found is None and head[:2] in (b"P2", b"P3", b"P5", b"P6"):
        raise ValueError("no depth in the header")
    if found is None or found[1] in b"14":
        return EIGHT
    return Depth(max(8, int(found[2]).bit_length()))
