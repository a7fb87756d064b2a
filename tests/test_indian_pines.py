"""The script that writes the second set of real images, on a small scene: what it claims of its patches."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from scripts.indian_pines import BLOCK, CROPS, PATCH, false_colours, main, write_patches
from topkloss.app import cli

SIDE = 2 * BLOCK + 3


def write(folder: Path) -> list[dict[str, str]]:
    """Three fields: two over all blocks, one within the first."""
    chance = np.random.default_rng(0)
    crops = np.where(np.arange(SIDE)[:, None] % 2 == 0, 1, 2) * np.ones((SIDE, SIDE), dtype=int)
    crops[6:9, 6:9] = 3
    crops[:, 10] = 0
    assert write_patches(chance.normal(size=(SIDE, SIDE, 6)), crops, folder) > 0
    with (folder / "pines.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def pixels(row: dict[str, str]) -> set[tuple[int, int]]:
    """Of a patch, by the middle that its name says."""
    y, x = map(int, Path(row["image"]).stem.split("-"))
    reach = range(-(PATCH // 2), PATCH // 2 + 1)
    return {(y + down, x + right) for down in reach for right in reach}


def test_no_pixel_is_in_two_blocks(tmp_path: Path) -> None:
    by_block: dict[str, set[tuple[int, int]]] = {}
    for row in write(tmp_path):
        by_block.setdefault(row["block"], set()).update(pixels(row))
    assert len(by_block) == 4
    assert sum(map(len, by_block.values())) == len(set().union(*by_block.values()))
    assert all(0 <= place < SIDE for place in {place for pair in set().union(*by_block.values()) for place in pair})


def test_a_class_of_one_block_and_what_has_none_are_left_out(tmp_path: Path) -> None:
    rows = write(tmp_path)
    assert {row["label"] for row in rows} == {CROPS[1], CROPS[2]}
    assert not any(row["image"].endswith("-010.png") for row in rows)
    assert set((tmp_path / "patches").iterdir()) == {tmp_path / row["image"] for row in rows}


def test_a_patch_is_what_lies_around_its_middle(tmp_path: Path) -> None:
    chance = np.random.default_rng(0)
    colours = false_colours(chance.normal(size=(SIDE, SIDE, 6)))
    row = write(tmp_path)[0]
    y, x = map(int, Path(row["image"]).stem.split("-"))
    with Image.open(tmp_path / row["image"]) as image:
        assert image.size == (PATCH, PATCH)
        assert image.getpixel((PATCH // 2, PATCH // 2)) == tuple(colours[y, x])
        assert image.getpixel((0, PATCH - 1)) == tuple(colours[y + PATCH // 2, x - PATCH // 2])


def test_colours_are_the_largest_components() -> None:
    """Of bands that are independent, by their spread."""
    chance = np.random.default_rng(0)
    scene = chance.normal(size=(30, 30, 5)) * np.array([1.0, 100.0, 0.1, 10.0, 0.01])
    found = false_colours(scene).reshape(-1, 3).astype(float)
    for channel, band in enumerate((1, 3, 0)):
        assert abs(np.corrcoef(found[:, channel], scene[..., band].ravel())[0, 1]) > 0.95


def test_the_command_takes_what_it_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path)
    table = [str(tmp_path / "pines.csv"), "--group-by", "block", "--held-out", "0.25"]
    assert cli.main(["check", *table, "--workers", "0"]) == 0
    assert " in 2 classes" in capsys.readouterr().out


def test_what_is_missing_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main([str(tmp_path / "pines")]) == 2
    assert "pip install --no-deps tensorly==0.10.0" in capsys.readouterr().err
    assert main([]) == 2
    assert capsys.readouterr().err.startswith("usage: ")
    assert list(tmp_path.iterdir()) == []
