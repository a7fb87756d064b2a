"""More than 8 bits per channel: refused by the file's own header, or read number by number under a range."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, ImageOps
from torchvision.transforms import v2

from tests.wide import write_png, write_tiff
from topkloss.app.cli import main
from topkloss.app.data import bad
from topkloss.app.data.bad import BadImage
from topkloss.app.data.decoding import cut_off, decode, read_header
from topkloss.app.data.layout import DataOptions, check_options
from topkloss.app.errors import InputError
from topkloss.app.tasks.images.check import check


def twelve(y: int, x: int, c: int) -> int:
    """Of 12 bits, each another: the high byte of 16 says nearly nothing of them."""
    return (997 * y + 131 * x + 577 * c) % 4096


def png(channels: int) -> Callable[[Path], None]:
    return lambda path: write_png(path, 5, 4, channels, twelve)


def tiff(channels: int, **options: Any) -> Callable[[Path], None]:
    return lambda path: write_tiff(path, 5, 4, channels, twelve, **options)


def jpeg2000(bits: int, channels: int, *, signed: bool = False, box: bool = True) -> Callable[[Path], None]:
    """Only as much of a codestream as says how deep it is; Pillow writes 8 bits, of which the header is changed."""

    def write(path: Path) -> None:
        Image.new("L" if channels == 1 else "RGB", (5, 4)).save(path, "JPEG2000", no_jp2=not box)
        whole = bytearray(path.read_bytes())
        at = whole.index(b"\xff\x4f\xff\x51") + 42
        for place in range(at, at + 3 * channels, 3):
            whole[place] = (bits - 1) | (0x80 if signed else 0)
        path.write_bytes(whole)

    return write


def ppm(path: Path) -> None:
    path.write_bytes(b"P6 # a comment with 1 number\n5 4\n65535\n" + bytes(5 * 4 * 6))


def jpeg2000_gray(path: Path) -> None:
    image = Image.new("I;16", (5, 4))
    for y in range(4):
        for x in range(5):
            image.putpixel((x, y), twelve(y, x, 0))
    image.save(path, "JPEG2000", irreversible=False)


WIDE: dict[str, tuple[Callable[[Path], None], str]] = {
    **{f"PNG of {n} channels": (png(n), "16 bits per channel") for n in (1, 2, 3, 4)},
    **{f"TIFF of {n} channels": (tiff(n), "16 bits per channel") for n in (1, 3, 4)},
    "TIFF, big-endian": (tiff(3, order=">"), "16 bits per channel"),
    "TIFF, gray, big-endian": (tiff(1, order=">"), "16 bits per channel"),
    "TIFF, CMYK": (tiff(4, photometric=5), "16 bits per channel"),
    "TIFF, 32 bits": (tiff(1, form="I"), "32 bits per channel"),
    "TIFF, signed": (tiff(1, form="h", sample_format=2), "16 bits per channel, signed"),
    "TIFF, floats": (tiff(1, form="f", sample_format=3), "32 bits per channel, floating-point"),
    "TIFF, 8 bits with a sign": (
        lambda path: write_tiff(path, 5, 4, 1, lambda y, x, c: x - 2, form="b", sample_format=2),
        "8 bits per channel, signed",
    ),
    "JPEG 2000": (jpeg2000(16, 3), "16 bits per channel"),
    "JPEG 2000, gray": (jpeg2000(12, 1), "12 bits per channel"),
    "JPEG 2000, a bare codestream": (jpeg2000(10, 3, box=False), "10 bits per channel"),
    "JPEG 2000, signed": (jpeg2000(12, 3, signed=True), "12 bits per channel, signed"),
    "PPM": (ppm, "16 bits per channel"),
}


@pytest.mark.parametrize(("write", "depth"), WIDE.values(), ids=WIDE.keys())
def test_more_than_8_bits_are_refused_by_the_header(write: Callable[[Path], None], depth: str, tmp_path: Path) -> None:
    path = tmp_path / "image"
    write(path)
    with pytest.raises(BadImage) as refused:
        read_header(path)
    assert f"image with {depth}, whose contrast would be lost." in refused.value.what
    assert "--pixel-range" in str(refused.value.hint)


@pytest.mark.parametrize("channels", [3, 13])
def test_a_tiff_of_unknown_kind_is_called_one(channels: int, tmp_path: Path) -> None:
    write_tiff(tmp_path / "image", 4, 4, channels, lambda y, x, c: x / 4, form="f", sample_format=3)
    with pytest.raises(BadImage, match=r"cannot read the image .*: a TIFF of a kind that is not read"):
        read_header(tmp_path / "image")


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA", "CMYK"])
def test_8_bits_and_fewer_are_read_as_ever(mode: str, tmp_path: Path) -> None:
    kinds = ["TIFF"] if mode == "CMYK" else ["PNG", "TIFF"]
    for kind in kinds:
        Image.effect_noise((6, 5), 80).convert("RGB").convert(mode).save(tmp_path / "image", kind)
        with Image.open(tmp_path / "image") as image:
            assert decode(tmp_path / "image") == image.convert("RGB")


READ: dict[str, tuple[Callable[[Path], None], int]] = {
    **{f"PNG of {n} channels": (png(n), n) for n in (1, 2, 3, 4)},
    "TIFF": (tiff(1), 1),
    "TIFF, big-endian": (tiff(1, order=">"), 1),
    "TIFF, 32 bits": (tiff(1, form="I"), 1),
    "TIFF, 32 bits, signed": (tiff(1, form="i", sample_format=2), 1),
    "TIFF, 16 bits, signed": (tiff(1, form="h", sample_format=2), 1),
    "TIFF, floats": (tiff(1, form="f", sample_format=3), 1),
    "JPEG 2000": (jpeg2000_gray, 1),
}


@pytest.mark.parametrize(("write", "channels"), READ.values(), ids=READ.keys())
def test_under_a_range_each_number_counts(write: Callable[[Path], None], channels: int, tmp_path: Path) -> None:
    path = tmp_path / "image"
    write(path)
    shades = decode(path, (100.0, 3900.0))
    assert isinstance(shades, torch.Tensor)
    assert (shades.shape, shades.dtype) == ((3, 4, 5), torch.float32)
    for c in range(3):
        for y in range(4):
            for x in range(5):
                number = twelve(y, x, c if channels >= 3 else 0)
                assert float(shades[c, y, x]) == pytest.approx(min(1.0, max(0.0, (number - 100) / 3800)), abs=1e-6)


def test_numbers_beyond_31_bits_keep_their_sign(tmp_path: Path) -> None:
    write_tiff(tmp_path / "image", 2, 1, 1, lambda y, x, c: (2**32 - 1, 2**31)[x], form="I")
    shades = decode(tmp_path / "image", (0.0, 2.0**32 - 1))
    assert isinstance(shades, torch.Tensor)
    assert shades[0, 0].tolist() == pytest.approx([1.0, 0.5])


def test_negative_numbers_have_a_range(tmp_path: Path) -> None:
    """As of computed tomography."""
    write_tiff(tmp_path / "image", 3, 1, 1, lambda y, x, c: (-1000, 0, 3000)[x], form="h", sample_format=2)
    shades = decode(tmp_path / "image", (-1000.0, 1000.0))
    assert isinstance(shades, torch.Tensor)
    assert shades[0, 0].tolist() == [0.0, 0.5, 1.0]


def test_where_zero_is_white_it_is_white(tmp_path: Path) -> None:
    write_tiff(tmp_path / "image", 2, 1, 1, lambda y, x, c: (0, 4000)[x], photometric=0)
    shades = decode(tmp_path / "image", (0.0, 4000.0))
    assert isinstance(shades, torch.Tensor)
    assert shades[0, 0].tolist() == [1.0, 0.0]


@pytest.mark.parametrize("turned", range(1, 9))
def test_a_wide_image_is_turned_upright(turned: int, tmp_path: Path) -> None:
    write_png(tmp_path / "plain.png", 5, 4, 1, twelve)
    exif = Image.Exif()
    exif[0x0112] = turned
    with Image.open(tmp_path / "plain.png") as image:
        image.save(tmp_path / "turned.png", exif=exif)
    with Image.open(tmp_path / "turned.png") as image:
        upright = ImageOps.exif_transpose(image).convert("I")
    shades = decode(tmp_path / "turned.png", (0.0, 4095.0))
    assert isinstance(shades, torch.Tensor)
    there = [[upright.getpixel((x, y)) for x in range(upright.width)] for y in range(upright.height)]
    assert torch.equal((shades[0] * 4095).round().long(), torch.tensor(there))


def test_8_bits_have_a_range_that_they_can_reach(tmp_path: Path) -> None:
    Image.new("RGB", (2, 2), (50, 100, 250)).save(tmp_path / "image.png")
    shades = decode(tmp_path / "image.png", (50.0, 150.0))
    assert isinstance(shades, torch.Tensor)
    assert shades[:, 0, 0].tolist() == [0.0, 0.5, 1.0]
    with pytest.raises(BadImage, match=r"must hold numbers up to 4095, as `--pixel-range` says; got .* with 8 bits"):
        read_header(tmp_path / "image.png", (0.0, 4095.0))


@pytest.mark.parametrize(
    "write",
    [tiff(3), tiff(3, order=">"), tiff(4, photometric=5), jpeg2000(16, 3), ppm],
    ids=["TIFF", "TIFF, big-endian", "TIFF, CMYK", "JPEG 2000", "PPM"],
)
def test_what_no_decoder_reads_whole_is_refused_too(write: Callable[[Path], None], tmp_path: Path) -> None:
    write(tmp_path / "image")
    with pytest.raises(BadImage, match=r"must be a PNG, or a gray TIFF or JPEG 2000; got .* with 16 bits per channel"):
        read_header(tmp_path / "image", (0.0, 4095.0))


def test_nan_is_refused_and_infinity_is_white(tmp_path: Path) -> None:
    write_tiff(tmp_path / "image", 2, 1, 1, lambda y, x, c: (float("inf"), 0.5)[x], form="f", sample_format=3)
    shades = decode(tmp_path / "image", (0.0, 1.0))
    assert isinstance(shades, torch.Tensor)
    assert shades[0, 0].tolist() == [1.0, 0.5]
    write_tiff(tmp_path / "image", 2, 1, 1, lambda y, x, c: (float("nan"), 0.5)[x], form="f", sample_format=3)
    with pytest.raises(BadImage, match="must hold numbers; got NaN"):
        decode(tmp_path / "image", (0.0, 1.0))


def test_a_wide_png_that_is_cut_or_huge_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "image.png"
    write_png(path, 40, 40, 3, lambda y, x, c: (7919 * y * x + c) % 65536)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BadImage, match=r"cannot read the image .*: the PNG is cut off or damaged\."):
        decode(path, (0.0, 65535.0))
    path.write_bytes(whole)
    monkeypatch.setattr(bad, "MOST_PIXELS", 1500)
    monkeypatch.setattr("topkloss.app.data.decoding.MOST_PIXELS", 1500)
    with pytest.raises(BadImage, match="million pixels or fewer"):
        decode(path, (0.0, 65535.0))


@pytest.mark.parametrize("given", [(), (1.0,), (4095.0, 0.0), (1.0, 1.0), (0.0, float("nan")), (0.0, 1.0, 2.0)])
def test_what_is_no_range_is_a_sentence(given: tuple[float, ...]) -> None:
    with pytest.raises(InputError, match="`--pixel-range` must be two numbers, black and then white"):
        check_options(None, DataOptions(pixel_range=given))


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes that differ in the lower 8 of 12 bits only: read as 8 bits, they would be all black and the same."""
    folder = tmp_path_factory.mktemp("scans")
    rows = ["image,label"]
    for number in range(24):
        label = ("dim", "faint")[number % 2]
        level = 20 if label == "dim" else 220
        write_png(folder / f"{number}.png", 8, 8, 3, lambda y, x, c, n=number, at=level: at + (y * x + n) % 20)  # type: ignore[misc]
        rows.append(f"{number}.png,{label}")
    (folder / "scans.csv").write_text("\n".join(rows) + "\n")
    return folder


def test_check_says_what_a_range_cuts_off(scans: Path) -> None:
    assert check(str(scans / "scans.csv"), DataOptions()).problems
    found = check(str(scans / "scans.csv"), DataOptions(pixel_range=(0, 255)))
    assert found.problems == ()
    assert "0 % of all numbers lie beyond --pixel-range" in found.text()
    cut = check(str(scans / "scans.csv"), DataOptions(pixel_range=(0, 100)))
    assert "50 % of all numbers lie beyond --pixel-range" in cut.text()


def test_a_run_remembers_its_range(
    scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    table = str(scans / "scans.csv")
    asked = ["--model", "test_convnext", "--image-size", "32", "--epochs", "6", "--batch-size", "6", "--lr", "0.01"]
    assert main(["train", table, *asked, "--pixel-range", "0", "255", "--augment", "strong", "--out", "run"]) == 0
    assert main(["evaluate", "run", "--data", table]) == 0
    assert json.loads(next(Path("run").rglob("evaluation.json")).read_text())["images"] == 24
    assert main(["predict", "run", str(scans), "--out", "out.csv"]) == 0
    lines = Path("out.csv").read_text().splitlines()[1:]
    assert len(lines) == 24
    assert not any("bits" in line for line in lines)
    assert len({line.split(",")[2] for line in lines}) > 1, "not all the same black"
    said = capsys.readouterr().err
    assert "left out 1 file that is no image: 1 .csv." in said
    assert "beyond" not in said, "nothing is cut off"
    assert main(["export", "run", "--out", "model.pt2"]) == 0
    extra = {"metadata.json": ""}
    torch.export.load("model.pt2", extra_files=extra)
    assert json.loads(extra["metadata.json"])["pixel_range"] == [0.0, 255.0]


def test_each_verb_says_what_a_range_cuts_off(
    scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Half of the images, all of one class, are white."""
    monkeypatch.chdir(tmp_path)
    table = str(scans / "scans.csv")
    asked = ["--model", "test_convnext", "--image-size", "32", "--epochs", "1", "--pixel-range", "0", "100"]
    verbs = (
        ["train", table, *asked, "--out", "run"],
        ["evaluate", "run", "--data", table],
        ["predict", "run", str(scans), "--out", "out.csv"],
    )
    for verb in verbs:
        assert main(verb) == 0
        lines = [line for line in capsys.readouterr().err.splitlines() if "beyond" in line]
        assert lines == [
            "topkloss: 50 % of the numbers in 24 images lie beyond `--pixel-range` 0 100 and are cut off; "
            "`topkloss check` measures all."
        ], verb


def test_few_images_are_looked_at_for_what_is_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """1 % is a little; bad images are no share."""
    shares = {"at": 0.0099, "above": 0.0202}
    asked: list[Path] = []

    def decoded(path: Path, pixel_range: object) -> tuple[None, float]:
        asked.append(path)
        if path.name == "bad":
            raise BadImage("bad", "bad")
        return None, shares[path.name]

    monkeypatch.setattr("topkloss.app.data.decoding._decoded", decoded)
    assert cut_off([tmp_path / "at"] * 1000, (0.0, 1.0)) == ""
    assert len(asked) == 32
    assert cut_off([], (0.0, 1.0)) == cut_off([tmp_path / "above"], None) == cut_off([tmp_path / "bad"], (0, 1)) == ""
    assert "2.02 % of the numbers in 1 image " in cut_off([tmp_path / "above", tmp_path / "bad"], (0.0, 1.0))
    late = [*[tmp_path / "at"] * 500, *[tmp_path / "above"] * 500]
    assert "in 32 images" in cut_off(late, (0.0, 1.0)), "not the first alone, which are of one class in a folder"


@pytest.mark.parametrize("comment", [b"# of a Mac\r", b"#" + bytes(5000).replace(b"\0", b"x") + b"\n"])
def test_a_comment_hides_no_depth(comment: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.pgm").write_bytes(b"P5\n" + comment + b"2 2\n65535\n" + bytes(8))
    with pytest.raises(BadImage, match="16 bits per channel"):
        read_header(tmp_path / "a.pgm")


def packed_png(bits: int, colour: int = 0, palette: bytes = b"") -> bytes:
    """One row of 16 numbers, 0 to 15, cut to so many bits."""
    row = int("".join(f"{n % 2**bits:0{bits}b}" for n in range(16)), 2).to_bytes(2 * bits, "big")
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", 16, 1, bits, colour, 0, 0, 0))]
    chunks += [(b"PLTE", palette)] if palette else []
    chunks += [(b"IDAT", zlib.compress(b"\0" + row)), (b"IEND", b"")]
    whole = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(whole)


PACKED = {
    **{
        f"PNG of {bits} bits": (packed_png(bits), [n % 2**bits / (2**bits - 1) for n in range(16)])
        for bits in (1, 2, 4)
    },
    "PGM up to 15": (b"P5\n16 1\n15\n" + bytes(range(16)), [n / 15 for n in range(16)]),
    "PGM up to 200": (b"P5\n3 1\n200\n" + bytes((0, 100, 200)), [0, 128 / 255, 1]),
    "PBM": (b"P4\n8 1\n\x0f", [1] * 4 + [0] * 4),
}


@pytest.mark.parametrize(("content", "shades"), PACKED.values(), ids=PACKED.keys())
def test_fewer_numbers_are_of_8_bits_or_refused(content: bytes, shades: list[float], tmp_path: Path) -> None:
    """Black and white are the smallest and the largest number of the file, under 0 255 as without a range."""
    path = tmp_path / "image"
    path.write_bytes(content)
    read = decode(path, (0.0, 255.0))
    assert isinstance(read, torch.Tensor)
    assert read[0, 0].tolist() == pytest.approx(shades, abs=1e-6)
    assert v2.functional.pil_to_tensor(decode(path)).div(255).equal(read)
    for other in ((0.0, 15.0), (0.0, 1.0), (0.0, 200.0)):
        with pytest.raises(BadImage, match=r"is scaled to 0 to 255, so `--pixel-range` must be 0 255; got .* bits "):
            decode(path, other)
    with pytest.raises(BadImage, match=r"too few|must hold numbers up to 256"):
        decode(path, (0.0, 256.0))


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_colours_of_a_palette_are_of_8_bits(bits: int, tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(packed_png(bits, 3, bytes(10 * n for n in range(2**bits) for _ in range(3))))
    for white in (255.0, 100.0):
        read = decode(path, (0.0, white))
        assert isinstance(read, torch.Tensor)
        assert read[1, 0].tolist() == pytest.approx([min(1, 10 * (n % 2**bits) / white) for n in range(16)])


@pytest.mark.parametrize("mode", ["1", "P"])
def test_a_tiff_of_few_bits_is_told_apart_from_a_palette(mode: str, tmp_path: Path) -> None:
    path = tmp_path / "image"
    Image.linear_gradient("L").convert(mode).save(path, "TIFF")
    if mode == "P":
        assert isinstance(decode(path, (0.0, 200.0)), torch.Tensor)
        return
    with pytest.raises(BadImage, match=r"must be 0 255; got .* with 1 bits per channel"):
        decode(path, (0.0, 200.0))
