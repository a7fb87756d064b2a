"""Reading a CSV of images: what is accepted, and one sentence with file and line for all that is not."""

from __future__ import annotations

import csv
import struct
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from tests.pictures import LABELS, write_pictures
from topkloss.app.data import digits
from topkloss.app.data.dataset import DataOptions, Images, ImageTable, preparation, read_table, split
from topkloss.app.errors import InputError


@pytest.fixture
def table(tmp_path: Path) -> Path:
    return write_pictures(tmp_path)


PREPARE = preparation(8, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def set_line(table: Path, number: int, text: str) -> None:
    """Replaces a line; the first is 1."""
    lines = table.read_text().splitlines()
    lines[number - 1 : number] = [text]
    table.write_text("\n".join(lines) + "\n")


# Accepted


def test_a_table_has_classes_in_order_and_knows_its_lines(table: Path) -> None:
    read = read_table(table)
    assert read.classes == ("2", "10", "blank")
    assert len(read.examples) == 30
    assert read.examples[0].line == 2
    assert read.examples[-1].line == 31
    assert Counter(example.label for example in read.examples) == {0: 10, 1: 10, 2: 10}


@pytest.mark.parametrize(
    "change",
    [
        lambda text: "\ufeff" + text,
        lambda text: text.replace("\n", "\r\n"),
        lambda text: text.replace("image,label", " image , label ,note").replace(".png,", ".png, "),
        lambda text: text + "\n\n",
    ],
    ids=["byte order mark", "Windows line ends", "spaces and another column", "blank lines"],
)
def test_usual_forms_of_csv_are_one(table: Path, change: Callable[[str], str]) -> None:
    plain = read_table(table)
    table.write_bytes(change(table.read_text()).encode())
    assert read_table(table).examples == plain.examples


def test_a_quoted_line_break_does_not_shift_the_line_numbers(table: Path) -> None:
    text = table.read_text().replace("image,label", "image,label,note").replace("2-0.png,2", '2-0.png,2,"a\nb"')
    table.write_text(text.replace("2-1.png", "gone.png"))
    with pytest.raises(InputError, match="line 4: there is no image"):
        read_table(table)


def test_labels_that_look_like_nothing_are_labels(table: Path) -> None:
    table.write_text(table.read_text().replace(",blank", ",NA"))
    assert read_table(table).classes == ("2", "10", "NA")


def test_the_order_of_classes_is_not_that_of_the_file(table: Path) -> None:
    text = table.read_text().replace(",blank", ",nan").replace(",10", ",-1e3")
    table.write_text(text)
    assert read_table(table).classes == ("-1e3", "2", "nan")
    head, *lines = text.splitlines()
    table.write_text("\n".join([head, *lines[::-1]]) + "\n")
    assert read_table(table).classes == ("-1e3", "2", "nan")


def test_images_may_lie_elsewhere(table: Path, tmp_path: Path) -> None:
    (tmp_path / "csv").mkdir()
    moved = table.rename(tmp_path / "csv" / "pictures.csv")
    assert read_table(moved, DataOptions(images=tmp_path)).examples[0].path == tmp_path / "2-0.png"


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"])
def test_every_common_mode_becomes_three_channels(table: Path, tmp_path: Path, mode: str) -> None:
    name = "picture.tiff" if mode == "CMYK" else "picture.png"
    Image.new("RGB", (20, 10), (255, 0, 0)).convert(mode).save(tmp_path / name)
    set_line(table, 2, f"{name},2")
    image, label = Images(read_table(table), [0], PREPARE)[0]
    assert image.shape == (3, 8, 8)
    assert label == 0


def test_a_photograph_is_turned_upright(table: Path, tmp_path: Path) -> None:
    photograph = Image.new("RGB", (20, 10))
    photograph.paste((255, 255, 255), (0, 0, 10, 10))  # the left half
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise
    photograph.save(tmp_path / "photograph.jpg", exif=exif)
    set_line(table, 2, "photograph.jpg,2")
    image, _ = Images(read_table(table), [0], PREPARE)[0]
    assert image[:, 0].mean() > 0.8
    assert image[:, -1].mean() < -0.8


# The split


def test_a_tenth_of_each_class_is_held_out(table: Path) -> None:
    read = read_table(table)
    train, held_out = split(read, seed=0)
    assert sorted(train + held_out) == list(range(30))
    assert Counter(read.examples[index].label for index in held_out) == {0: 1, 1: 1, 2: 1}


def test_a_class_of_two_is_in_both_parts(table: Path, tmp_path: Path) -> None:
    lines = table.read_text().splitlines()
    table.write_text("\n".join(lines[:13]) + "\n")  # 10 of the first class, 2 of the second
    read = read_table(table)
    train, held_out = split(read, seed=3)
    assert {read.examples[index].label for index in held_out} == {read.examples[index].label for index in train}


def test_the_seed_decides_the_split(table: Path) -> None:
    read = read_table(table)
    assert split(read, seed=1) == split(read, seed=1)
    assert len({tuple(split(read, seed=seed)[1]) for seed in range(5)}) > 1


# Refused


def bomb(path: Path, width: int, height: int) -> None:
    """A PNG of a hundred bytes whose header promises more than anyone can hold."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"0")) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)


def remove(table: Path) -> None:
    table.unlink()


def make_empty(table: Path) -> None:
    table.write_text("")


def only_header(table: Path) -> None:
    table.write_text("image,label\n")


def no_label_column(table: Path) -> None:
    set_line(table, 1, "image,class")


def two_label_columns(table: Path) -> None:
    set_line(table, 1, "image,label,label")


def not_utf8(table: Path) -> None:
    table.write_bytes(b"image,label\n\xff\xfe,1\n")


def empty_label(table: Path) -> None:
    set_line(table, 5, "2-3.png, ")


def short_line(table: Path) -> None:
    set_line(table, 5, "2-3.png")


def empty_image(table: Path) -> None:
    set_line(table, 5, ",2")


def lonely_class(table: Path) -> None:
    set_line(table, 7, "2-5.png,seldom")


def one_class(table: Path) -> None:
    table.write_text("image,label\n2-0.png,2\n2-1.png,2\n")


def missing_image(table: Path) -> None:
    set_line(table, 7, "gone.png,2")


def above_the_root(table: Path) -> None:
    Image.new("L", (4, 4)).save(table.parent.parent / "secret.png")
    set_line(table, 7, "../secret.png,2")


def absolute(table: Path) -> None:
    Image.new("L", (4, 4)).save(table.parent.parent / "secret.png")
    set_line(table, 7, f"{table.parent.parent / 'secret.png'},2")


def by_link(table: Path) -> None:
    Image.new("L", (4, 4)).save(table.parent.parent / "secret.png")
    (table.parent / "link.png").symlink_to(table.parent.parent / "secret.png")
    set_line(table, 7, "link.png,2")


def by_a_loop_of_links(table: Path) -> None:
    (table.parent / "loop.png").symlink_to(table.parent / "loop.png")
    set_line(table, 7, "loop.png,2")


def too_long_a_name(table: Path) -> None:
    set_line(table, 7, f"{'x' * 300}.png,2")


def a_folder(table: Path) -> None:
    (table.parent / "folder.png").mkdir()
    set_line(table, 7, "folder.png,2")


def of_no_bytes(table: Path) -> None:
    (table.parent / "2-5.png").write_bytes(b"")


def no_image_at_all(table: Path) -> None:
    (table.parent / "2-5.png").write_text("hello")


def too_large(table: Path) -> None:
    bomb(table.parent / "2-5.png", 10_000, 10_000)


def far_too_large(table: Path) -> None:
    bomb(table.parent / "2-5.png", 100_000, 100_000)


def sixteen_bits(table: Path) -> None:
    Image.new("I;16", (4, 4)).save(table.parent / "2-5.png")


REFUSED: list[tuple[Callable[[Path], None], str]] = [
    (
        remove,
        "{table} must be a CSV file in UTF-8; got No such file or directory. Pass a file with the columns image,label.",
    ),
    (
        make_empty,
        "{table}, line 1: there must be one column `image`; got nothing. Pass its name as `--image-column`.",
    ),
    (
        only_header,
        "{table}, line 2: there must be an example; got the names of the columns only. Add images.",
    ),
    (
        no_label_column,
        "{table}, line 1: there must be one column `label`; got image, class. Pass its name as `--label-column`.",
    ),
    (
        two_label_columns,
        "{table}, line 1: there must be one column `label`; got image, label, label. "
        "Pass its name as `--label-column`.",
    ),
    (
        not_utf8,
        "{table}, line 2: a table must be text in UTF-8; got the byte 0xff. Save it as CSV in UTF-8 (in "
        "Excel: CSV UTF-8).",
    ),
    (empty_label, "{table}, line 5: `label` must not be empty; got nothing. Fill it in or remove the line."),
    (short_line, "{table}, line 5: `label` must not be empty; got nothing. Fill it in or remove the line."),
    (empty_image, "{table}, line 5: `image` must not be empty; got nothing. Fill it in or remove the line."),
    (
        lonely_class,
        "{table}, line 7: a class must have 2 examples or more, one of them to be held out; got 1 of 'seldom'. "
        "Add another or remove the line.",
    ),
    (
        one_class,
        "{table}, line 2: there must be 2 classes or more; got only '2'. Add another class.",
    ),
    (
        missing_image,
        "{table}, line 7: there is no image {folder}/gone.png. Correct the line or pass `--images`.",
    ),
    (
        above_the_root,
        "{table}, line 7: an image must lie inside {folder}; got ../secret.png. Pass its folder as `--images`.",
    ),
    (
        absolute,
        "{table}, line 7: an image must lie inside {folder}; got {above}/secret.png. Pass its folder as `--images`.",
    ),
    (
        by_link,
        "{table}, line 7: an image must lie inside {folder}; got link.png. Pass its folder as `--images`.",
    ),
    (
        by_a_loop_of_links,
        "{table}, line 7: cannot read the image loop.png: Symlink loop from '{folder}/loop.png'. "
        "Replace it or remove the line.",
    ),
    (
        too_long_a_name,
        "{table}, line 7: cannot read the image " + "x" * 300 + ".png: File name too long. "
        "Replace it or remove the line.",
    ),
    (a_folder, "{table}, line 7: there is no image {folder}/folder.png. Correct the line or pass `--images`."),
    (
        of_no_bytes,
        "{table}, line 7: cannot read the image {folder}/2-5.png: no known image format. "
        "Replace it or remove the line.",
    ),
    (
        no_image_at_all,
        "{table}, line 7: cannot read the image {folder}/2-5.png: no known image format. "
        "Replace it or remove the line.",
    ),
    (
        too_large,
        "{table}, line 7: an image must have 50 million pixels or fewer; got more in {folder}/2-5.png. Scale it down.",
    ),
    (
        far_too_large,
        "{table}, line 7: an image must have 50 million pixels or fewer; got more in {folder}/2-5.png. Scale it down.",
    ),
    (
        sixteen_bits,
        "{table}, line 7: an image must have 8 bits per channel; got {folder}/2-5.png with 16 bits per channel, "
        "whose contrast would be lost. Convert it to 8 bits, or pass --pixel-range with the numbers that are black and "
        "white.",
    ),
]


@pytest.mark.parametrize(("spoil", "sentence"), REFUSED, ids=[spoil.__name__ for spoil, _ in REFUSED])
def test_bad_input_is_one_sentence(tmp_path: Path, spoil: Callable[[Path], None], sentence: str) -> None:
    folder = (tmp_path / "data").resolve()
    folder.mkdir()
    table = write_pictures(folder)
    spoil(table)
    with pytest.raises(InputError) as caught:
        read_table(table)
    assert str(caught.value) == sentence.format(table=table, folder=folder, above=folder.parent)


def test_a_nul_in_a_name_is_one_sentence(table: Path) -> None:
    set_line(table, 7, "2-\0.png,2")
    with pytest.raises(InputError, match=r"line 7: cannot read the image .*null (byte|character)|must be a CSV file"):
        read_table(table)


def test_a_folder_of_images_that_is_none(table: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^`--images` must be a folder; got .*nowhere, which is none\."):
        read_table(table, DataOptions(images=tmp_path / "nowhere"))


def test_an_image_that_breaks_off_names_its_line(table: Path, tmp_path: Path) -> None:
    """Its header is whole, so it is found when it is decoded."""
    content = (tmp_path / "2-5.png").read_bytes()
    (tmp_path / "2-5.png").write_bytes(content[:-60])
    images = Images(read_table(table), range(30), PREPARE)
    with pytest.raises(InputError, match=r"pictures\.csv, line 7: cannot read the image .*2-5\.png: .*truncated"):
        images[5]
    assert LABELS[images[6][1]] == "2"


def test_every_label_name_is_kept(table: Path) -> None:
    assert isinstance(read_table(table), ImageTable)
    assert set(read_table(table).classes) == set(LABELS)


# The embedded digits


def test_digits_are_written_once_and_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digits, "user_cache_path", lambda name: tmp_path / name)
    table = digits.write_digits()
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert Counter(row["label"] for row in rows) == {str(digit): 500 for digit in range(10)}
    assert len(list(table.parent.glob("*.png"))) == 5000
    with Image.open(table.parent / rows[0]["image"]) as image:
        assert image.size == (28, 28)
        assert image.getextrema() == (0, 255)
    written = table.stat().st_mtime_ns
    assert digits.write_digits() == table
    assert table.stat().st_mtime_ns == written
    assert [path.name for path in (tmp_path / "topkloss").iterdir()] == ["digits"]


def test_digits_that_could_not_be_written_leave_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(folder: Path) -> None:
        (folder / "0000.png").touch()
        raise OSError("no space left")

    monkeypatch.setattr(digits, "user_cache_path", lambda name: tmp_path / name)
    monkeypatch.setattr(digits, "_write", full)
    with pytest.raises(OSError, match="no space left"):
        digits.write_digits()
    assert list((tmp_path / "topkloss").iterdir()) == []


def test_digits_written_by_another_process_meanwhile_are_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def late(folder: Path) -> None:
        (folder / "digits.csv").touch()
        (tmp_path / "topkloss/digits").mkdir()
        (tmp_path / "topkloss/digits/digits.csv").write_text("theirs")

    monkeypatch.setattr(digits, "user_cache_path", lambda name: tmp_path / name)
    monkeypatch.setattr(digits, "_write", late)
    assert digits.write_digits().read_text() == "theirs"
    assert [path.name for path in (tmp_path / "topkloss").iterdir()] == ["digits"]
