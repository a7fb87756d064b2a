"""Images under an explicit range: the numbers of their files, whatever their depth, from black = 0 to white = 1."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.io import decode_png
from torchvision.transforms.v2 import functional

from topkloss.app.data.bad import MOST_PIXELS, BadImage, too_large, unreadable
from topkloss.app.data.depth import Depth
from topkloss.app.errors import shown

__all__ = ["Range", "check_range", "ranged"]

# The numbers that become black and white.
Range = tuple[float, float]


def check_range(path: Path, image: Image.Image, depth: Depth, pixel_range: Range) -> None:
    """Whether the numbers of an image can be read, and can reach what should be white.

    Raises:
        BadImage: If not.
    """
    if max(pixel_range) > depth.largest:
        raise BadImage(
            f"an image must hold numbers up to {max(pixel_range):g}, as `--pixel-range` says; got {shown(path)} with "
            f"{depth}.",
            f"{depth}, too few for the range of numbers",
            "Pass the range of all images, and train on others apart.",
        )
    if depth.is_scaled and sorted(pixel_range) != [0, 255]:
        raise BadImage(
            f"an image whose largest number is below 255 is scaled to 0 to 255, so `--pixel-range` must be 0 255; "
            f"got {shown(path)} with {depth}, and {pixel_range[0]:g} {pixel_range[1]:g}.",
            f"{depth}, scaled to 0 to 255, under another range",
            "Save it with 8 bits per channel and the numbers that you mean.",
        )
    gray = image.mode.startswith(("I", "F")) and image.format != "PPM"
    if not (depth.is_plain or gray or (image.format == "PNG" and depth.bits == 16)):
        raise BadImage(
            f"an image of more than 8 bits per channel must be a PNG, or a gray TIFF or JPEG 2000; got {shown(path)}, "
            f"{image.format} with {depth}.",
            f"{image.format} with {depth} in channels that cannot be read one by one",
            "Save it as a PNG with 16 bits per channel.",
        )


def ranged(path: Path, image: Image.Image, depth: Depth, pixel_range: Range) -> tuple[Tensor, float]:
    """A whole image, upright, three channels in [0, 1], and the share of its numbers that lay beyond and were cut off.

    Args:
        path: Of the image.
        image: The same, opened by Pillow, from `check_range`.
        depth: Of its numbers.
        pixel_range: What becomes 0 and 1.

    Raises:
        BadImage: If it cannot be decoded, or holds NaN.
    """
    if depth.is_plain:
        numbers = _tensor(ImageOps.exif_transpose(image).convert("RGB")).double()
    elif image.format == "PNG":
        numbers = _of_png(path)
    else:
        numbers = _of_gray(image, depth)
    if bool(numbers.isnan().any()):
        raise BadImage(
            f"an image must hold numbers; got NaN in {shown(path)}.",
            "NaN among its numbers",
            "Fill in what is missing.",
        )
    low, high = pixel_range
    colours = numbers[: 3 if len(numbers) >= 3 else 1]  # without alpha, as of 8 bits
    shares = (colours - low) / (high - low)
    beyond = float(((shares < 0) | (shares > 1)).double().mean())
    if depth.white_is_zero and not depth.is_plain:  # Pillow turns 8 bits itself
        shares = 1 - shares
    return shares.clamp(0, 1).float().expand(3, -1, -1).contiguous(), beyond


def _of_png(path: Path) -> Tensor:
    if path.stat().st_size > 8 * MOST_PIXELS:
        raise too_large(path)
    whole = torch.frombuffer(bytearray(path.read_bytes()), dtype=torch.uint8)
    try:
        numbers: Tensor = decode_png(whole, apply_exif_orientation=True)
    except RuntimeError as error:  # that of torch names lines of its own source
        raise unreadable(path, ValueError("the PNG is cut off or damaged")) from error
    return numbers.double()


def _of_gray(image: Image.Image, depth: Depth) -> Tensor:
    """One channel, undoing what Pillow does beside decoding."""
    upright = ImageOps.exif_transpose(image)
    if upright.mode.startswith("F"):
        return _tensor(upright).double()
    numbers = _tensor(upright.convert("I")).long()
    if image.format == "JPEG2000":  # moved up to 16 bits, and from 0 on
        numbers >>= 16 - depth.bits
        numbers -= 2 ** (depth.bits - 1) if depth.kind == "signed" else 0
    elif depth.kind == "unsigned":  # Pillow has 32 bits with a sign only
        numbers &= 0xFFFFFFFF
    return numbers.double()


def _tensor(image: Image.Image) -> Tensor:
    numbers: Tensor = functional.pil_to_tensor(image)
    return numbers
