"""A small set of real image files to train on."""

from __future__ import annotations

import random
from pathlib import Path

from PIL import Image

LABELS = ("2", "10", "blank")


def write_pictures(folder: Path, each: int = 10) -> Path:
    """Bars, crosses and nothing, 16 x 16 pixels, with noise; `each` of every class. Returns the CSV."""
    chance = random.Random(0)
    lines = ["image,label"]
    for label in LABELS:
        for number in range(each):
            image = Image.new("L", (16, 16))
            for x in range(16):
                for y in range(16):
                    drawn = {"2": x in (4, 5), "10": x == y or x == 15 - y, "blank": False}[label]
                    image.putpixel((x, y), 200 * drawn + chance.randrange(40))
            image.save(folder / f"{label}-{number}.png")
            lines.append(f"{label}-{number}.png,{label}")
    table = folder / "pictures.csv"
    table.write_text("\n".join(lines) + "\n")
    return table
