"""Data as strangers bring them: lists of Excel and of Windows, folders of phones and of Macs, names in every coding."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow
import pytest
import torch
from PIL import Image, ImageChops
from pyarrow import parquet

from tests.pictures import LABELS, write_pictures
from topkloss.app.cli import main
from topkloss.app.data import decoding
from topkloss.app.data.dataset import DataOptions, ImageTable, read_table, split
from topkloss.app.data.decoding import decode
from topkloss.app.data.finding import Finder
from topkloss.app.errors import InputError
from topkloss.app.problems import listed
from topkloss.app.tasks.images.check import check
from topkloss.app.tasks.images.fit import _summary
from topkloss.app.tasks.images.predict import find_images

COMPOSED, APART = unicodedata.normalize("NFC", "café"), unicodedata.normalize("NFD", "café")


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return write_pictures(tmp_path)


def pairs(read: ImageTable) -> list[tuple[str, str]]:
    return [(example.path.name, read.classes[example.label]) for example in read.examples]


def swap(text: str) -> str:
    """Commas become semicolons."""
    return text.replace(",", ";")


# Dialects

DIALECTS: dict[str, Callable[[str], bytes]] = {
    "semicolons": lambda text: swap(text).encode(),
    "semicolons after a BOM": lambda text: b"\xef\xbb\xbf" + swap(text).encode(),
    "semicolons and CR LF": lambda text: swap(text).replace("\n", "\r\n").encode(),
    "carriage returns": lambda text: text.replace("\n", "\r").encode(),
    "tabs": lambda text: text.replace(",", "\t").encode(),
    "bars": lambda text: text.replace(",", "|").encode(),
    "Unicode text of Excel": lambda text: text.replace(",", "\t").encode("utf-16"),
    "Excel's first line": lambda text: b"sep=;\r\n" + swap(text).encode(),
    "Excel's first line, of a Mac": lambda text: ("SEP=;\n" + swap(text)).replace("\n", "\r").encode(),
    "lines before": lambda text: ("\n  \n" + text).encode(),
    "32 bits": lambda text: swap(text).encode("utf-32"),
    "a comma in a name": lambda text: "".join(
        f"{line};{'w, h' if line.startswith('image') else '1,5'}\n" for line in swap(text).splitlines()
    ).encode(),
    "quotes": lambda text: swap(text.replace("image", '"image"').replace("2-0.png", '"2-0.png"')).encode(),
}


@pytest.mark.parametrize("write", DIALECTS.values(), ids=DIALECTS.keys())
def test_a_list_is_read_however_its_cells_are_separated(write: Callable[[str], bytes], table: Path) -> None:
    plain = pairs(read_table(table))
    table.write_bytes(write(table.read_text()))
    assert pairs(read_table(table)) == plain


def test_the_name_of_a_file_that_says_tabs_is_no_law(table: Path) -> None:
    plain, tabbed = pairs(read_table(table)), table.with_suffix(".tsv")
    tabbed.write_text(swap(table.read_text()))
    assert pairs(read_table(tabbed)) == plain


def test_a_workbook_is_called_one_though_its_bytes_are_letters(table: Path) -> None:
    table.write_bytes(b"PK\x03\x04" + bytes(60))
    with pytest.raises(InputError, match=r"got an Excel workbook, or another zip\. Save the sheet as CSV UTF-8"):
        read_table(table)


def test_columns_of_parquet_that_are_no_names_are_a_sentence(table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names, labels = pyarrow.array(["2-0.png", "2-1.png"]), pyarrow.array([b"a", b"b"], pyarrow.binary(1))
    parquet.write_table(pyarrow.table({"image": names, "label": labels}), "bytes.parquet")
    with pytest.raises(InputError, match=r"`label` must be a column of text or numbers; got one of fixed_size_binary"):
        read_table(Path("bytes.parquet"))
    twice = pyarrow.Table.from_arrays([names, names, names], names=["image", "label", "label"])
    parquet.write_table(twice, "twice.parquet")
    assert main(["check", "twice.parquet"]) == 2
    assert "there must be one column `label`; got image, label, label." in capsys.readouterr().out


def test_a_separator_within_quotes_separates_nothing(table: Path) -> None:
    (table.parent / "2-0.png").rename(table.parent / "2,0;0.png")
    plain = table.read_text().replace("2-0.png", '"2,0;0.png"')
    table.write_text(plain)
    assert pairs(read_table(table))[0] == ("2,0;0.png", "2")
    table.write_text(swap(plain).replace("2;0;0", "2,0;0"))
    assert pairs(read_table(table))[0] == ("2,0;0.png", "2")


def test_a_line_after_excels_own_keeps_its_number(table: Path) -> None:
    table.write_text("sep=;\n" + swap(table.read_text()).replace("2-1.png;2", "2-1.png;"))
    with pytest.raises(InputError, match=r"pictures\.csv, line 4: `label` must not be empty"):
        read_table(table)


# Paths


def test_backslashes_are_slashes_where_no_file_has_them(table: Path) -> None:
    (table.parent / "sub").mkdir()
    (table.parent / "2-0.png").rename(table.parent / "sub" / "2-0.png")
    table.write_text(table.read_text().replace("2-0.png", r"sub\2-0.png"))
    read = read_table(table)
    assert read.examples[0].path == table.parent.resolve() / "sub" / "2-0.png"
    assert read.notes == ("backslashes taken for slashes in 1 path",)
    (table.parent / r"sub\2-0.png").write_bytes((table.parent / "2-1.png").read_bytes())
    assert read_table(table).examples[0].path.name == r"sub\2-0.png", "a file of this name comes first"


@pytest.mark.parametrize("drive", ["C:\\Users\\me\\", "d:/photos/", "\\\\server\\photos\\"])
def test_a_path_of_a_drive_is_called_one(drive: str, table: Path) -> None:
    table.write_text(table.read_text().replace("2-0.png", f"{drive}2-0.png"))
    with pytest.raises(InputError, match=r"must be a path from .*, the path of a drive\. Leave out what stands before"):
        read_table(table)


def test_backslashes_lead_out_of_no_folder(table: Path) -> None:
    table.write_text(table.read_text().replace("2-0.png", "..\\secret.png"))
    (table.parent.parent / "secret.png").write_bytes((table.parent / "2-0.png").read_bytes())
    with pytest.raises(InputError, match="an image must lie inside"):
        read_table(table)


def test_the_one_image_that_fits_a_name_without_suffix_is_taken_and_said(table: Path) -> None:
    plain = pairs(read_table(table))
    table.write_text(table.read_text().replace(".png", "").replace("image,label", "id_code,diagnosis"))
    (table.parent / "2-0.txt").touch()
    read = read_table(table, DataOptions(image_column="id_code", label_column="diagnosis"))
    assert pairs(read) == plain
    assert read.notes == (".png appended in 30 paths",)
    Image.new("RGB", (4, 4)).save(table.parent / "2-0.jpg")
    with pytest.raises(InputError, match=r"one image must fit 2-0; got 2-0\.jpg and 2-0\.png\. Write which, or pass"):
        read_table(table, DataOptions(image_column="id_code", label_column="diagnosis"))


def test_letter_case_is_the_files(table: Path) -> None:
    table.write_text(table.read_text().replace("blank-0.png", "Blank-0.PNG"))
    read = read_table(table)
    assert ("blank-0.png", "blank") in pairs(read)
    assert read.notes == ("letter case or accents taken as the files have them in 1 path",)
    (table.parent / "BLANK-0.png").write_bytes((table.parent / "2-0.png").read_bytes())
    with pytest.raises(InputError, match=r"one image must fit Blank-0\.PNG; got BLANK-0\.png and blank-0\.png\."):
        read_table(table)


# Names


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_class_in_two_codings_is_one(kind: str, table: Path) -> None:
    lines = [line.split(",") for line in table.read_text().splitlines()[1:]]
    names = [image for image, _ in lines]
    labels = [label if label != "blank" else (COMPOSED, APART)[number % 2] for number, (_, label) in enumerate(lines)]
    path = table.parent / f"t.{kind}"
    if kind == "csv":
        path.write_text("image,label\n" + "".join(f"{a},{b}\n" for a, b in zip(names, labels, strict=True)))
    else:
        parquet.write_table(pyarrow.table({"image": names, "label": labels}), path)
    assert read_table(path).classes == ("2", "10", COMPOSED)


@pytest.mark.parametrize(("on_disk", "in_list"), [(COMPOSED, APART), (APART, COMPOSED)])
def test_a_file_in_another_coding_is_found(on_disk: str, in_list: str, table: Path) -> None:
    (table.parent / on_disk).mkdir()
    (table.parent / "2-0.png").rename(table.parent / on_disk / f"{on_disk}.png")
    table.write_text(table.read_text().replace("2-0.png", f"{in_list}/{in_list}.png"))
    assert read_table(table).examples[0].path == table.parent.resolve() / on_disk / f"{on_disk}.png"


def test_folders_of_a_class_in_two_codings_are_one_class(table: Path, tmp_path: Path) -> None:
    folder = tmp_path / "d"
    for number in range(4):
        for name in ("thé", (COMPOSED, APART)[number % 2]):
            (folder / name).mkdir(parents=True, exist_ok=True)
            Image.effect_noise((8, 8), 50).save(folder / name / f"{number}.png")
    read = read_table(folder)
    assert read.classes == (COMPOSED, unicodedata.normalize("NFC", "thé"))
    assert Counter(example.label for example in read.examples) == {0: 4, 1: 4}


def test_a_column_named_in_another_coding_is_found(table: Path) -> None:
    table.write_text(table.read_text().replace("image,label", f"image,{APART}"))
    assert read_table(table, DataOptions(label_column=COMPOSED)).classes == LABELS


@pytest.mark.parametrize("blank", ["\N{ZERO WIDTH SPACE}", "\N{NO-BREAK SPACE}x", "\N{RIGHT-TO-LEFT MARK}"])
def test_letters_that_nobody_sees_are_no_part_of_a_class(blank: str, table: Path) -> None:
    table.write_text(table.read_text().replace("2-0.png,2", f"2-0.png,2{blank}"))
    with pytest.raises(InputError, match="`label` must be printable text"):
        read_table(table)


def test_classes_that_differ_in_letter_case_are_said(table: Path) -> None:
    lines = table.read_text().splitlines()
    lines[-3:] = [line.replace(",blank", ",Blank") for line in lines[-3:]]
    table.write_text("\n".join(lines))
    assert read_table(table).notes == ("classes that differ in letter case only: Blank, blank",)


# What is passed over


@pytest.fixture
def album(tmp_path: Path) -> Path:
    """What a zip of a Mac unpacks to."""
    folder = tmp_path / "album"
    for label in ("cat", "dog"):
        (folder / label).mkdir(parents=True)
        (folder / "__MACOSX" / label).mkdir(parents=True)
        for number in range(3):
            Image.effect_noise((8, 8), 50).save(folder / label / f"{number}.JPG")
            (folder / "__MACOSX" / label / f"._{number}.JPG").touch()
    (folder / "cat" / ".DS_Store").touch()
    for number in range(5):
        (folder / "dog" / f"{number}.PSD").touch()
    (folder / "notes.txt").touch()
    return folder


def test_files_that_are_no_images_are_counted_by_suffix(album: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = "left out 7 files that are no images: 5 .psd, 1 .txt, 1 hidden"
    assert read_table(album).classes == ("cat", "dog")
    assert read_table(album).notes == (said,)
    train, held_out = split(read_table(album), 0)
    prepared: Any = SimpleNamespace(table=read_table(album), train=train, held_out=held_out)
    assert _summary(prepared).splitlines()[0] == said
    assert main(["check", str(album), "--workers", "0"]) == 0
    assert said in capsys.readouterr().out
    passed: Counter[str] = Counter()
    assert len(find_images([album], passed)) == 6
    assert passed == {".psd": 5, ".txt": 1, "hidden": 1}


def test_a_folder_of_other_files_only_says_which(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a phone's photographs are where the package for them is not installed."""
    plain = decoding.suffixes() - {".heic", ".heif", ".hif", ".heics", ".heifs"}
    monkeypatch.setattr("topkloss.app.data.dataset.suffixes", lambda: plain)
    monkeypatch.setattr("topkloss.app.tasks.images.predict.SUFFIXES", plain)
    for number in range(4):
        (tmp_path / "album" / "cat").mkdir(parents=True, exist_ok=True)
        (tmp_path / "album" / "cat" / f"{number}.HEIC").touch()
    but = r"but 4 \.heic \(\.heic is read after pip install \"topkloss\[heic\]\"\)"
    with pytest.raises(InputError, match=f"a class must have images; got a folder without any, {but}"):
        read_table(tmp_path / "album")
    with pytest.raises(InputError, match=f"with none in it, {but}"):
        find_images([tmp_path / "album"])


def test_heic_is_read_and_turned_once(tmp_path: Path) -> None:
    """The format says by itself how a picture stands; what its EXIF says of it beside is to be ignored."""
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.linear_gradient("L").resize((64, 32)).convert("RGB")
    image.save(tmp_path / "photo.HEIC", "HEIF", exif=exif, quality=100)
    assert ".heic" in decoding.suffixes()
    upright = decode(tmp_path / "photo.HEIC")
    assert isinstance(upright, Image.Image)
    assert (upright.mode, upright.size) == ("RGB", (64, 32))
    assert max(ImageChops.difference(upright, image).tobytes()) <= 4
    shades = decode(tmp_path / "photo.HEIC", (0.0, 255.0))
    assert isinstance(shades, torch.Tensor)
    assert shades.shape == (3, 32, 64)


def test_heic_without_its_package_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("RGB", (16, 16)).save(tmp_path / "photo.jpg", "HEIF")
    monkeypatch.setattr(decoding, "FORMATS", tuple(kind for kind in decoding.FORMATS if kind != "HEIF"))
    with pytest.raises(decoding.BadImage) as refused:
        decode(tmp_path / "photo.jpg")
    assert refused.value.what.endswith(": HEIC, which needs another package.")
    assert refused.value.hint == 'pip install "topkloss[heic]".'


# Many problems


def test_equal_problems_are_three_and_a_number(table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (table.parent / "moved").mkdir()
    for image in table.parent.glob("*.png"):
        image.rename(table.parent / "moved" / image.name)
    assert main(["check", str(table), "--workers", "0"]) == 2
    output, error = capsys.readouterr()
    wrong = output.partition("\n\n")[0].splitlines()
    assert [line.partition(":")[0] for line in wrong[:3]] == [f"{table}, line {line}" for line in (2, 3, 4)]
    assert wrong[3].startswith(f"... and 27 like this one, the last: {table}, line 31: there is no image ")
    assert wrong[4] == f"`--images {table.parent.resolve()}/moved` would find 30 of the 30 that are not there."
    assert len(wrong) == 5
    assert "got 30 problems" in error


def test_images_with_another_suffix_than_listed_are_said(table: Path) -> None:
    table.write_text(table.read_text().replace(".png", ".jpg"))
    assert (
        "30 of the 30 that are not there are there with .png: correct the list."
        in check(str(table), DataOptions()).text()
    )


@pytest.mark.parametrize(("suffix", "named"), [("", False), ("", True), (".png", False)])
def test_a_list_without_names_is_said_to_need_them(suffix: str, named: bool, table: Path) -> None:
    text = table.read_text().partition("\n")[2].replace(suffix or "\0", "")
    table.write_text(text)
    first, label = text.splitlines()[0].split(",")
    options = DataOptions(image_suffix=suffix)
    if named:
        options = DataOptions(image_column=first, label_column=label)
    assert check(str(table), options).problems == (
        f"{table}, line 1: the first line must name the columns, like image,label; got {first}, an image. "
        "Add a line with the names above it.",
    )
    table.write_text("image,label\n" + text)
    assert check(str(table), DataOptions(image_suffix=suffix)).problems == ()


def test_many_bad_images_have_a_way_out(table: Path) -> None:
    for number in range(6):
        (table.parent / f"2-{number}.png").write_text("hello")
    text = check(str(table), DataOptions()).text()
    assert text.count("no known image format") == 4
    assert f"`topkloss train {table} --on-bad-image skip`, with the options of this check, would leave out" in text
    table = table.rename(table.with_name("my list.csv"))
    assert f"`topkloss train '{table}' --on-bad-image skip`, " in check(str(table), DataOptions()).text()


@pytest.mark.parametrize(
    "sentence",
    [
        "t.csv, line {n}: there is no image /a b/{n} x.png. Correct the line or pass `--images`.",
        "t.csv, line {n}: `label` must not be empty; got nothing. Fill it in or remove the line.",
        "t.csv, line {n}: cannot read the image /a/{n}.b.png: image file is truncated. Replace it or remove the line.",
        "t.csv, line {n}: an image must have one label; got /a/{n}.png as 'x{n}', and the same pixels as 'y' in "
        "line 2. Correct one or remove it.",
        "t.csv, row {n}: `split` must be train, held_out (or val) or test; got 'fold {n}'. Correct it.",
        "d/{n}.png: an image must lie in the folder of its class; got it beside them. Move it or remove it.",
    ],
)
def test_what_differs_in_names_only_is_one_kind(sentence: str) -> None:
    other = "t.csv, line 7: `image` must not be empty; got nothing. Fill it in or remove the line."
    problems = [sentence.format(n=n) for n in range(10, 440)]
    lines = listed([*problems[:200], other, *problems[200:]])
    assert lines[:3] == problems[:3]
    assert lines[3] == f"... and 427 like this one, the last: {problems[-1]}"
    assert lines[4:] == [other]


def test_names_are_looked_up_once_a_folder(table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A list of a million names would otherwise read its folder a million times."""
    reads, read = [], Finder._read

    def seen(finder: Finder, folder: Path) -> dict[str, list[str]]:
        reads.append(folder)
        return read(finder, folder)

    monkeypatch.setattr(Finder, "_read", seen)
    table.write_text(table.read_text().replace(".png", ".PNG"))
    assert len(read_table(table).examples) == 30
    assert len(reads) == 1
