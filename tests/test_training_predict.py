"""Predictions: the model's own, in order, as they come; what is bad is counted, and nothing is half written."""

from __future__ import annotations

import csv
import errno
import os
import shutil
import struct
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from topkloss.app.errors import InputError
from topkloss.app.tasks.images import predict as module
from topkloss.app.tasks.images.predict import Prediction, find_images, predict, write_predictions
from topkloss.app.tasks.images.run import Run, load_run


@pytest.fixture(scope="module")
def run(trained: Path) -> Run:
    return load_run(trained)


@pytest.fixture
def pictures(trained: Path, tmp_path: Path) -> Path:
    """A folder with six images and a table."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name in ("2-0", "2-1", "10-0", "10-1", "blank-0", "blank-1"):
        shutil.copy(trained.parent / "data" / f"{name}.png", folder)
    shutil.copy(trained.parent / "data" / "pictures.csv", folder)
    return folder


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def by_hand(run: Run, path: Path) -> list[float]:
    """The probabilities of one image, without the loader, the batches and the file."""
    with torch.no_grad(), Image.open(path) as image:
        logits = run.model(run.prepare(image.convert("RGB"))[None].to(run.device))
    probabilities: list[float] = logits[0].double().softmax(0).tolist()
    return probabilities


@pytest.mark.parametrize(("batch_size", "workers"), [(64, 0), (4, 0), (1, 0), (2, 2)])
def test_predictions_are_the_models(run: Run, pictures: Path, tmp_path: Path, batch_size: int, workers: int) -> None:
    out = tmp_path / "predictions.csv"
    assert write_predictions(run, [pictures], out, batch_size=batch_size, workers=workers) == (6, 0)
    written = rows(out)
    assert list(written[0]) == ["image", "class", "probability", "error", "p_2", "p_10", "p_blank"]
    assert [row["image"] for row in written] == sorted(str(path) for path in pictures.glob("*.png"))
    for row in written:
        expected = by_hand(run, Path(row["image"]))
        assert [float(row[f"p_{name}"]) for name in run.classes] == pytest.approx(expected, abs=1e-5)
        assert row["class"] == run.classes[expected.index(max(expected))]
        assert float(row["probability"]) == pytest.approx(max(expected), abs=1e-5)
        assert row["error"] == ""
    assert {path.name for path in tmp_path.iterdir()} == {"pictures", "predictions.csv"}


def test_from_python_they_come_one_by_one(run: Run, pictures: Path) -> None:
    predictions = predict(run, [pictures / "2-0.png", str(pictures / "blank-0.png")], batch_size=1)
    first = next(predictions)
    assert isinstance(first, Prediction)
    assert first.path == pictures / "2-0.png"
    assert first.label in run.classes
    assert sum(first.probabilities) == pytest.approx(1)
    assert [one.path.name for one in predictions] == ["blank-0.png"]


def test_how_far_it_is_is_told(
    run: Run, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A line every ten seconds, so nothing of few images; on a terminal a bar."""
    write_predictions(run, [pictures], tmp_path / "p.csv", batch_size=2)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr("topkloss.app.progress.SECONDS", 0)
    write_predictions(run, [pictures], tmp_path / "p.csv", batch_size=2)
    assert capsys.readouterr().err.splitlines() == [f"classified {number} of 6 images" for number in range(1, 7)]
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    write_predictions(run, [pictures], tmp_path / "p.csv", batch_size=2)
    assert "classified:   0%|" in capsys.readouterr().err


def test_no_more_is_read_than_is_asked_for(run: Run, pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Thousands of files never are in memory together."""
    opened = []
    open_ = Image.open

    def seen(path: Path, **options: Any) -> Image.Image:
        opened.append(path)
        return open_(path, **options)

    monkeypatch.setattr(Image, "open", seen)
    next(predict(run, [pictures] * 3, batch_size=2))
    assert len(opened) == 2


# What is found


def test_folders_are_searched_and_paths_taken_once(pictures: Path) -> None:
    (pictures / "more").mkdir()
    shutil.copy(pictures / "2-0.png", pictures / "more" / "UPPER.PNG")
    for hidden in (".hidden.png", ".cache/2.png", "__notes.txt"):
        (pictures / hidden).parent.mkdir(exist_ok=True)
        (pictures / hidden).touch()
    found = list(find_images([pictures / "2-1.png", pictures, pictures / "pictures.csv"]))
    assert found[0] == pictures / "2-1.png"
    assert found[-1] == pictures / "pictures.csv", "a file that is named is tried, whatever its name"
    assert {path.name for path in found[:-1]} == {
        *("2-0.png", "2-1.png", "10-0.png", "10-1.png", "blank-0.png", "blank-1.png", "UPPER.PNG")
    }
    assert len(found) == 8


def test_a_link_out_of_the_folder_is_not_followed(run: Run, pictures: Path, tmp_path: Path) -> None:
    outside = shutil.copy(pictures / "2-0.png", tmp_path / "outside.png")
    (pictures / "out.png").symlink_to(outside)
    (pictures / "in.png").symlink_to(pictures / "2-0.png")
    (pictures / "loop").symlink_to(pictures)
    out = tmp_path / "predictions.csv"
    passed: Counter[str] = Counter()
    assert write_predictions(run, [pictures], out, passed=passed) == (8, 1)
    assert passed == {".csv": 1, "linked folder": 1}
    errors = {Path(row["image"]).name: row["error"] for row in rows(out)}
    assert errors["out.png"] == "a link out of the folder"
    assert errors["in.png"] == ""


# Bad images


def png(width: int, height: int) -> bytes:
    """The header of an image of any size, and no pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"")


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-60])


def deep(path: Path) -> None:
    Image.new("I;16", (16, 16)).save(path)


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated": (truncate, "truncated"),
    "empty": (lambda path: path.write_bytes(b""), "no known image format"),
    "not an image": (lambda path: path.write_text("image,label\n"), "no known image format"),
    "huge by its header": (lambda path: path.write_bytes(png(60_000, 60_000)), "more than 50 million pixels"),
    "large by its header": (lambda path: path.write_bytes(png(10_000, 5_001)), "more than 50 million pixels"),
    "no pixels": (lambda path: path.write_bytes(png(16, 16)), ""),
    "16 bits": (deep, "16 bits per channel: it needs --pixel-range in training"),
    "gone": (lambda path: path.unlink(), "no such file"),
    "a pipe": (pipe, "not a file"),
    "a program": (lambda path: path.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"), "no known image"),
}


@pytest.mark.parametrize("workers", [0, 1])
def test_bad_images_are_lines_with_a_reason(run: Run, pictures: Path, tmp_path: Path, workers: int) -> None:
    good = tmp_path / "good.png"
    shutil.copy(pictures / "2-0.png", good)
    paths = []
    for name, (spoil, _) in BAD.items():
        paths.append(Path(shutil.copy(good, pictures / f"{name}.png")))
        spoil(paths[-1])
    out = tmp_path / "predictions.csv"
    asked = [good, *paths, pictures / "2-1.png"]
    assert write_predictions(run, asked, out, batch_size=3, workers=workers) == (len(asked), len(paths))
    written = rows(out)
    assert [row["error"] == "" for row in written] == [True, *[False] * len(paths), True]
    for row in written[1:-1]:
        assert BAD[Path(row["image"]).stem][1] in row["error"]
        assert {row[name] for name in row if name not in ("image", "error")} == {""}
    assert float(written[0]["p_2"]) == pytest.approx(by_hand(run, good)[0], abs=1e-5)
    assert float(written[-1]["p_2"]) == pytest.approx(by_hand(run, pictures / "2-1.png")[0], abs=1e-5)


def test_a_name_that_is_no_text_is_written(run: Run, pictures: Path, tmp_path: Path) -> None:
    odd = os.fsencode(pictures) + b'/caf\xe9,"\n.png'
    with open(odd, "wb") as file:
        file.write((pictures / "2-0.png").read_bytes())
    out = tmp_path / "predictions.csv"
    assert write_predictions(run, [pictures], out) == (7, 0)
    assert any(row["image"].endswith('caf\\udce9,"\n.png') for row in rows(out))


# Refused: nothing is written, and what was there stays


@pytest.fixture
def out(tmp_path: Path) -> Iterator[Path]:
    """Predictions of yesterday, which a failure leaves as they are."""
    path = tmp_path / "predictions.csv"
    path.write_text("yesterday")
    before = set(tmp_path.iterdir()) | {tmp_path / "pictures"}
    yield path
    assert path.read_text() == "yesterday"
    assert set(tmp_path.iterdir()) <= before


def test_nothing_but_bad_images_is_an_error(run: Run, pictures: Path, out: Path) -> None:
    broken = pictures / "2-0.png"
    truncate(broken)
    with pytest.raises(InputError) as caught:
        write_predictions(run, [broken, "gone.png"], out)
    assert str(caught.value).startswith(
        f"`IMAGES` must be images that can be read; got 2, none of which can, the first {broken}: "
    )


def test_a_folder_without_images_is_an_error(run: Run, tmp_path: Path, pictures: Path, out: Path) -> None:
    (pictures / "empty").mkdir()
    with pytest.raises(InputError, match=r"^`IMAGES` must be images or folders of images; got .*empty, with none"):
        write_predictions(run, [pictures / "empty"], out)


def test_a_full_disk_leaves_what_was_there(
    run: Run, pictures: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = module._row

    def full(prediction: Prediction, classes: int) -> list[object]:
        if prediction.path.name == "blank-1.png":
            raise OSError(errno.ENOSPC, "No space left on device")
        return row(prediction, classes)

    monkeypatch.setattr(module, "_row", full)
    with pytest.raises(InputError) as caught:
        write_predictions(run, [pictures], out)
    assert str(caught.value) == (
        f"`--out` must be a path that can be written; got {out}: No space left on device. Pass another."
    )


def test_an_interruption_leaves_what_was_there(
    run: Run, pictures: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(prediction: Prediction, classes: int) -> list[object]:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "_row", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_predictions(run, [pictures], out)


def test_a_process_that_is_killed_is_said(run: Run, pictures: Path, out: Path) -> None:
    """As by a system that runs out of memory."""

    class Killed(torch.nn.Module):
        def forward(self, image: Image.Image) -> torch.Tensor:
            os.kill(os.getpid(), 9)
            raise AssertionError

    class Fatal(Run):
        @property
        def prepare(self) -> Any:
            return Killed()

    fatal = Fatal(**vars(run))
    with pytest.raises(InputError, match=r"^`--workers` must be as many processes as the machine bears; got 1, and"):
        write_predictions(fatal, [pictures], out, workers=1)


@pytest.mark.parametrize(
    ("path", "sentence"),
    [
        ("predictions.txt", r"^`--out` must end in \.csv; got .*predictions\.txt\. Pass .*predictions\.csv\.$"),
        ("nowhere/predictions.csv", r"^`--out` must lie in a folder; got .*, and there is no .*nowhere\. Make it"),
        ("folder.csv", r"^`--out` must be a file; got .*folder\.csv, which is a folder\."),
    ],
)
def test_where_it_cannot_go_is_said_before_the_work(
    run: Run, pictures: Path, tmp_path: Path, path: str, sentence: str
) -> None:
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(InputError, match=sentence):
        write_predictions(run, [pictures], tmp_path / path)
