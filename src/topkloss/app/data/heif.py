"""HEIC, in which phones save photographs: read by the optional package pillow-heif."""

from __future__ import annotations

from pathlib import Path

__all__ = ["INSTALL", "SUFFIXES", "is_heif", "register"]

SUFFIXES = (".heic", ".heif", ".hif")
INSTALL = 'pip install "topkloss[heic]"'
BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")


def register() -> tuple[str, ...]:
    """Teaches Pillow the format where the package is installed; returns its name, or nothing."""
    try:
        import pillow_heif
    except ImportError:
        return ()
    pillow_heif.register_heif_opener()
    return ("HEIF",)


def is_heif(path: Path) -> bool:
    """Whether a file begins as HEIC does."""
    with path.open("rb") as file:
        head = file.read(12)
    return head[4:8] == b"ftyp" and head[8:] in BRANDS
