"""Indian Pines as a folder of small images and a table: a field of crops from the air, strongly imbalanced.

The scene is 145 x 145 pixels of 200 bands, with a map of what grows where. Each image is a patch of 9 x 9 pixels in the
colours of the three largest principal components; its class is what grows in the middle. Patches overlap, so the scene
is cut into blocks, no patch reaches over the edge of its block, and the column ``block`` keeps those of a block in one
part. A class that lies in one block only is left out: it cannot be both trained on and held out.

``python -m scripts.indian_pines FOLDER`` after ``pip install --no-deps tensorly==0.10.0``, which ships the scene
(Baumgardner, Biehl, Landgrebe. 220 Band AVIRIS Hyperspectral Image Data Set. 2015; CC BY 3.0).
"""

from __future__ import annotations

import csv
import importlib.util
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

CROPS = (
    *("none", "alfalfa", "corn-notill", "corn-mintill", "corn", "grass-pasture", "grass-trees", "grass-mowed"),
    *("hay-windrowed", "oats", "soybean-notill", "soybean-mintill", "soybean-clean", "wheat", "woods", "buildings"),
    "stone-steel",
)

PATCH, BLOCK = 9, 17


def main(arguments: Sequence[str]) -> int:
    """Writes ``patches/`` and ``pines.csv`` into the folder that is named."""
    if len(arguments) != 1:
        print("usage: python -m scripts.indian_pines FOLDER", file=sys.stderr)
        return 2
    found = importlib.util.find_spec("tensorly")
    if found is None or not found.submodule_search_locations:
        print("the scene comes with tensorly: pip install --no-deps tensorly==0.10.0", file=sys.stderr)
        return 2
    data = Path(found.submodule_search_locations[0]) / "datasets" / "data"
    scene, crops = (np.load(data / f"Indian_pines_{name}.npy") for name in ("corrected", "gt"))
    patches = write_patches(scene.astype(float), crops.astype(int), Path(arguments[0]))
    print(f"{patches} patches: {Path(arguments[0]) / 'pines.csv'}")
    return 0


def write_patches(scene: NDArray[np.float64], crops: NDArray[np.int64], folder: Path) -> int:
    """Writes the patches and the table.

    Args:
        scene: (height, width, bands).
        crops: (height, width), indices into `CROPS`; 0 where nobody knows.
        folder: Where to; made if need be.

    Returns:
        The number of patches.
    """
    (folder / "patches").mkdir(parents=True, exist_ok=True)
    colours, half = false_colours(scene), PATCH // 2
    blocks: dict[int, set[str]] = defaultdict(set)
    found = []
    for y, x in zip(*np.nonzero(crops), strict=True):
        inside = all(half <= place % BLOCK < BLOCK - half for place in (y, x))
        whole = all(half <= place < length - half for place, length in zip((y, x), crops.shape, strict=True))
        if inside and whole:
            block = f"{y // BLOCK}-{x // BLOCK}"
            blocks[int(crops[y, x])].add(block)
            found.append((int(y), int(x), int(crops[y, x]), block))
    rows = []
    for y, x, crop, block in found:
        if len(blocks[crop]) > 1:
            name = f"{y:03}-{x:03}.png"
            patch = colours[y - half : y + half + 1, x - half : x + half + 1]
            Image.fromarray(patch).save(folder / "patches" / name)
            rows.append((f"patches/{name}", CROPS[crop], block))
    with (folder / "pines.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("image", "label", "block"), *rows])
    return len(rows)


def false_colours(scene: NDArray[np.float64]) -> NDArray[np.uint8]:
    """The three largest principal components of the bands, each stretched from its 1st to its 99th percentile."""
    pixels = scene.reshape(-1, scene.shape[-1])
    pixels = pixels - pixels.mean(axis=0)
    _, directions = np.linalg.eigh(pixels.T @ pixels)
    parts = (pixels @ directions[:, :-4:-1]).reshape(*scene.shape[:2], 3)
    low, high = np.percentile(parts, (1, 99), axis=(0, 1))
    stretched: NDArray[np.float64] = np.clip((parts - low) / (high - low), 0, 1)
    return (255 * stretched).round().astype(np.uint8)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
