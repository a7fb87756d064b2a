"""Image files of more than 8 bits per channel, written byte by byte where Pillow cannot."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from pathlib import Path

Numbers = Callable[[int, int, int], int]
COLOURS_OF_PNG = {1: 0, 2: 4, 3: 2, 4: 6}


def write_png(path: Path, width: int, height: int, channels: int, numbers: Numbers) -> None:
    """A PNG of 16 bits; `numbers` of row, column and channel."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    rows = b"".join(
        b"\0" + b"".join(struct.pack(">H", numbers(y, x, c)) for x in range(width) for c in range(channels))
        for y in range(height)
    )
    head = struct.pack(">IIBBBBB", width, height, 16, COLOURS_OF_PNG[channels], 0, 0, 0)
    body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)


def write_tiff(
    path: Path,
    width: int,
    height: int,
    channels: int,
    numbers: Callable[[int, int, int], float],
    *,
    form: str = "H",
    order: str = "<",
    sample_format: int = 1,
    photometric: int | None = None,
) -> None:
    """A TIFF of one strip; `form` and `order` as in `struct`."""
    size = struct.calcsize(form)
    cells = ((y, x, c) for y in range(height) for x in range(width) for c in range(channels))
    pixels = b"".join(struct.pack(order + form, numbers(*cell)) for cell in cells)
    if photometric is None:
        photometric = 2 if channels >= 3 else 1
    after = 8 + len(pixels)  # the directory follows the pixels, and what does not fit in it follows that
    tags: list[tuple[int, int, list[int]]] = [
        (256, 3, [width]),
        (257, 3, [height]),
        (258, 3, [8 * size] * channels),
        (259, 3, [1]),
        (262, 3, [photometric]),
        (273, 4, [8]),
        (277, 3, [channels]),
        (278, 3, [height]),
        (279, 4, [len(pixels)]),
        *([(338, 3, [2])] if channels == 4 and photometric == 2 else []),
        (339, 3, [sample_format] * channels),
    ]
    entries, far = b"", b""
    beyond = after + 2 + 12 * len(tags) + 4
    for tag, kind, values in tags:
        packed = b"".join(struct.pack(order + ("H" if kind == 3 else "I"), value) for value in values)
        if len(packed) > 4:
            where, far = struct.pack(order + "I", beyond + len(far)), far + packed
        else:
            where = packed.ljust(4, b"\0")
        entries += struct.pack(order + "HHI", tag, kind, len(values)) + where
    head = (b"II" if order == "<" else b"MM") + struct.pack(order + "HI", 42, after)
    directory = struct.pack(order + "H", len(tags)) + entries + struct.pack(order + "I", 0)
    path.write_bytes(head + pixels + directory + far)
