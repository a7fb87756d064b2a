"""Bad data of every kind: one sentence that names the place, exit code 2, no traceback, and nothing written."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow
import pytest
from PIL import Image
from pyarrow import parquet

from tests.pictures import LABELS, write_pictures
from tests.test_training_data import bomb
from topkloss.app.cli import main

# Lines 1 to 10 of the table that each case spoils.
LINES = ["image,label", *(f"{label}-{number}.png,{label}" for label in LABELS for number in range(3))]
IMAGES = [line.split(",")[0] for line in LINES[1:]]
NAMES = [line.split(",")[1] for line in LINES[1:]]
TOP = ["2", "10", "blank"]


@dataclass(frozen=True)
class Case:
    """Something bad.

    Attributes:
        cause: What kind of mistake it is.
        make: Writes it into a folder, and returns the arguments.
        sentence: How the answer begins.
        decoded: Whether it shows only when the images are decoded, so not before training.
    """

    cause: str
    make: Callable[[Path], Sequence[str]]
    sentence: str
    decoded: bool = False


def table(
    changes: dict[int, str] | None = None, *options: str, extra: Sequence[str] = (), name: str = "t.csv"
) -> Callable[[Path], Sequence[str]]:
    """The table with some lines replaced, or with another column."""

    def make(folder: Path) -> Sequence[str]:
        lines = [",".join(pair) for pair in zip(LINES, extra, strict=True)] if extra else LINES
        lines = [(changes or {}).get(number, line) for number, line in enumerate(lines, 1)]
        (folder / name).write_bytes(os.fsencode("\n".join(lines) + "\n"))
        return [name, *options]

    return make


def content(text: str | bytes, *options: str, name: str = "t.csv") -> Callable[[Path], Sequence[str]]:
    """Something else in the place of the table."""

    def make(folder: Path) -> Sequence[str]:
        (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
        return [name, *options]

    return make


def image(spoil: Callable[[Path], object]) -> Callable[[Path], Sequence[str]]:
    """Spoils the image of line 3."""

    def make(folder: Path) -> Sequence[str]:
        (folder / "2-1.png").unlink()
        spoil(folder / "2-1.png")
        return table()(folder)

    return make


def columns(values: Mapping[str, Sequence[object]], *options: str) -> Callable[[Path], Sequence[str]]:
    """A Parquet file."""

    def make(folder: Path) -> Sequence[str]:
        parquet.write_table(pyarrow.table(dict(values)), folder / "t.parquet")
        return ["t.parquet", *options]

    return make


def cut_parquet(folder: Path) -> Sequence[str]:
    columns({"image": list(IMAGES), "label": list(NAMES)})(folder)
    whole = (folder / "t.parquet").read_bytes()
    (folder / "t.parquet").write_bytes(whole[: len(whole) // 2])
    return ["t.parquet"]


def one_hot(changes: dict[int, str], *options: str) -> Callable[[Path], Sequence[str]]:
    """One column per class, with some lines replaced."""

    def make(folder: Path) -> Sequence[str]:
        rows = [
            f"{name},{','.join('01'[label == other] for other in TOP)}"
            for name, label in zip(IMAGES, NAMES, strict=True)
        ]
        lines = ["image,2,10,blank", *rows]
        lines = [changes.get(number, line) for number, line in enumerate(lines, 1)]
        (folder / "t.csv").write_text("\n".join(lines) + "\n")
        return ["t.csv", *(options or ("--label-columns", *TOP))]

    return make


def classes(
    spoil: Callable[[Path], object], *options: str, parts: Sequence[str] = ("",)
) -> Callable[[Path], Sequence[str]]:
    """The images in a folder `d`, in a folder per class, and then spoilt."""

    def make(folder: Path) -> Sequence[str]:
        for part in parts:
            for name, label in zip(IMAGES, NAMES, strict=True):
                (folder / "d" / part / label).mkdir(parents=True, exist_ok=True)
                shutil.copy(folder / name, folder / "d" / part / label / name)
        spoil(folder / "d")
        return ["d", *options]

    return make


def link_out(path: Path) -> None:
    outside = path.parents[2] / "secret.png"
    Image.new("L", (4, 4)).save(outside)
    path.symlink_to(outside)


def cut(path: Path, kind: str) -> None:
    Image.effect_noise((64, 64), 60).save(path, kind)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def damage(path: Path) -> None:
    """A wrong checksum in the middle."""
    Image.effect_noise((64, 64), 60).save(path)
    whole = bytearray(path.read_bytes())
    whole[len(whole) // 2] ^= 255
    path.write_bytes(whole)


def pipe(folder: Path) -> Sequence[str]:
    os.mkfifo(folder / "t.csv")
    return ["t.csv"]


def empty_folder(folder: Path) -> Sequence[str]:
    (folder / "d").mkdir()
    return ["d"]


def empty_val(d: Path) -> None:
    shutil.rmtree(d / "val")
    (d / "val").mkdir()


def notes_only(d: Path) -> None:
    (d / "egret").mkdir()
    (d / "egret" / "notes.txt").touch()


def leave_one_image(d: Path) -> None:
    for number in (0, 1):
        (d / "2" / f"2-{number}.png").unlink()


def leave_one_class(d: Path) -> None:
    for name in ("2", "10"):
        shutil.rmtree(d / name)


def nothing(_: Path) -> None:
    """Leaves it as it is."""


def split(*values: str) -> list[str]:
    return ["split", *values]


HALVES = ("train", "train", "val") * 3
PATIENTS = ["patient", *"abcabcabc"]

TABLES = [
    Case("no file", lambda folder: ["gone.csv"], "gone.csv must be a CSV file in UTF-8; got No such file"),
    Case("no file", lambda folder: ["gone/"], "gone must be a CSV file in UTF-8; got No such file"),
    Case("no file", lambda folder: ["gone.parquet"], "gone.parquet must be a CSV file in UTF-8; got No such file"),
    Case("no file", lambda folder: ["x" * 300], "x" * 300 + " must be a CSV file in UTF-8; got File name too long"),
    Case("no plain file", pipe, "t.csv must be a file or a folder"),
    Case("nothing in it", content(""), "t.csv, line 1: there must be one column `image`; got nothing."),
    Case("nothing in it", content("", name="t.parquet"), "t.parquet must be a whole Parquet file; got "),
    Case("only the header", content("image,label\n"), "t.csv, line 2: there must be an example; "),
    Case("only the header", content("image,label\n\n\n"), "t.csv, line 2: there must be an example; "),
    Case("only the header", columns({"image": [], "label": []}), "t.parquet, row 1: there must be an example; "),
    Case(
        "encoding", table({3: "2-1.png,caf\udce9"}), "t.csv, line 3: a table must be text in UTF-8; got the byte 0xe9."
    ),
    Case(
        "encoding",
        content("image,label\n".encode("utf-16-le")[:-1]),
        "t.csv, line 1: a table must be text in UTF-8; got UTF-16 that does not say so. Save it as CSV in UTF-8.",
    ),
    Case("encoding", content(b"\xff\xfei\0m"), "t.csv, line 1: a table must be text in UTF-8; got UTF-16 that is cut"),
    Case(
        "no text",
        content(b"PK\x03\x04\x14\xff", name="t.xlsx"),
        "t.xlsx, line 1: a table must be text in UTF-8; got an Excel workbook, or another zip. Save the sheet as CSV",
    ),
    Case(
        "no text",
        content(b"\xd0\xcf\x11\xe0\xa1\xb1", name="t.xls"),
        "t.xls, line 1: a table must be text in UTF-8; got an Excel workbook. Save the sheet as CSV",
    ),
    Case("no text", content(b"\x1f\x8b\x08", name="t.csv"), "t.csv, line 1: a table must be text in UTF-8; got a file"),
    Case("open quote", table({4: '"2-2.png,2'}), "t.csv, line 4: a row must be cells as CSV has them; "),
    Case("open quote", table({4: '2-2.png,"2"0'}), "t.csv, line 4: a row must be cells as CSV has them; "),
    Case("open quote", table({1: '"image,label'}), "t.csv, line 1: a row must be cells as CSV has them; "),
    Case(
        "endless cell", table({4: f"2-2.png,{'x' * 200_000}"}), "t.csv, line 4: a row must be cells as CSV has them; "
    ),
    Case(
        "too many cells", table({5: "a,b.png,10"}), "t.csv, line 5: there must be as many cells as columns, 2; got 3."
    ),
    Case(
        "no such column", table({1: "file,label"}), "t.csv, line 1: there must be one column `image`; got file, label."
    ),
    Case(
        "no such column",
        table({1: "image,class"}),
        "t.csv, line 1: there must be one column `label`; got image, class.",
    ),
    Case("no such column", columns({"image": ["a"]}), "t.parquet: there must be one column `label`; got image. "),
    Case(
        "no header",
        content("\n".join(LINES[1:])),
        "t.csv, line 1: the first line must name the columns, like image,label; got 2-0.png, an image. Add a line with",
    ),
    Case("column twice", table({1: "image,label,label"}), "t.csv, line 1: there must be one column `label`; "),
    Case("separator", table({1: "image:label"}), "t.csv, line 1: there must be one column `image`; got image:label."),
    Case(
        "option's column",
        table({}, "--image-column", "file"),
        "t.csv, line 1: there must be one column `file`; got image",
    ),
    Case("option's column", table({}, "--label-column", "class"), "t.csv, line 1: there must be one column `class`; "),
    Case("option's column", table({}, "--group-by", "patient"), "t.csv, line 1: there must be one column `patient`; "),
    Case("option's column", table({}, "--split-column", "fold"), "t.csv, line 1: there must be one column `fold`; "),
    Case(
        "empty cell", table({5: "10-0.png, "}), "t.csv, line 5: `label` must not be empty; got nothing. Fill it in or "
    ),
    Case("empty cell", table({5: ",10"}), "t.csv, line 5: `image` must not be empty; "),
    Case("empty cell", table({5: ",,"}), "t.csv, line 5: `image` must not be empty; "),
    Case("empty cell", table({5: "10-0.png,10,"}, extra=split(*HALVES)), "t.csv, line 5: `split` must not be empty; "),
    Case(
        "empty cell",
        table({5: "10-0.png,10,"}, "--group-by", "patient", extra=PATIENTS),
        "t.csv, line 5: `patient` must not be empty; ",
    ),
    Case("missing cell", table({5: "10-0.png"}), "t.csv, line 5: `label` must not be empty; "),
    Case(
        "missing cell",
        columns({"image": list(IMAGES), "label": [None, *NAMES[1:]]}),
        "t.parquet, row 1: `label` must not be empty; got nothing. Fill it in or remove the row.",
    ),
    Case(
        "missing cell",
        columns({"image": list(IMAGES), "label": [1.0, float("nan")] + [2.0] * 7}),
        "t.parquet, row 2: `label` must not be empty; ",
    ),
    Case(
        "unprintable label",
        table({5: "10-0.png,\x1b[31m"}),
        r"t.csv, line 5: `label` must be printable text; got '\x1b[31m'",
    ),
    Case(
        "unprintable label", table({5: '10-0.png,"1\n0"'}), r"t.csv, line 5: `label` must be printable text; got '1\n0'"
    ),
    Case("broken Parquet", cut_parquet, "t.parquet must be a whole Parquet file; got "),
    Case("broken Parquet", content("image,label\n", name="t.parquet"), "t.parquet must be a whole Parquet file; got "),
    Case(
        "images in the table",
        columns({"image": [b"\x89PNG"] * 9, "label": list(NAMES)}),
        "t.parquet: `image` must be a column of text or numbers; got one of binary.",
    ),
    Case(
        "images in the table",
        columns({"image": [{"bytes": b"", "path": "a"}] * 9, "label": list(NAMES)}),
        "t.parquet: `image` must be a column of text or numbers; got one of struct<bytes: binary, path: string>.",
    ),
]

LABEL_COLUMNS = [
    Case(
        "not one 1",
        one_hot({4: "2-2.png,1,1,0"}),
        "t.csv, line 4: one label column must be 1, the others 0; got 2 and 10 at 1.",
    ),
    Case(
        "not one 1",
        one_hot({4: "2-2.png,0,0,0"}),
        "t.csv, line 4: one label column must be 1, the others 0; got none at 1.",
    ),
    Case("not 0 or 1", one_hot({4: "2-2.png,0.5,0.5,0"}), "t.csv, line 4: `2` must be 0 or 1; got '0.5'."),
    Case("not 0 or 1", one_hot({4: "2-2.png,yes,no,no"}), "t.csv, line 4: `2` must be 0 or 1; got 'yes'."),
    Case("empty cell of one", one_hot({4: "2-2.png,1,,0"}), "t.csv, line 4: `10` must not be empty; "),
    Case(
        "label column never 1",
        one_hot({8: "blank-0.png,1,0,0", 9: "blank-1.png,1,0,0", 10: "blank-2.png,1,0,0"}),
        "t.csv, line 1: a class must have examples; got none of 'blank'. Leave its column out.",
    ),
    Case(
        "option's label column",
        one_hot({}, "--label-columns", "2", "scab"),
        "t.csv, line 1: there must be one column `scab`; ",
    ),
    Case(
        "label columns",
        one_hot({}, "--label-columns", "2"),
        "`--label-columns` must be 2 columns or more, each once; got 2.",
    ),
    Case(
        "label columns",
        one_hot({}, "--label-columns", "2", "10", "2"),
        "`--label-columns` must be 2 columns or more, each once; ",
    ),
    Case(
        "label columns",
        one_hot({}, "--label-columns", "2", "10", "--label-column", "blank"),
        "`--label-columns` must stand without --label-column; got blank for the latter.",
    ),
    Case(
        "options without a table",
        lambda folder: ["--label-columns", "2", "10", "t.csv"],
        "`--label-columns` must come with a table of images; got none. Leave it out, or pass the table first.",
    ),
    Case(
        "options without a table",
        lambda folder: ["--group-by", "patient"],
        "`--group-by` must come with a table of images; ",
    ),
    Case(
        "options without a table",
        classes(nothing, "--label-column", "x"),
        "`--label-column` must come with a table of images; got the folder d.",
    ),
]

PICTURES = [
    Case(
        "no image",
        table({3: "gone.png,2"}),
        "t.csv, line 3: there is no image {folder}/gone.png. Correct the line or pass",
    ),
    Case("no image", image(lambda path: path.mkdir()), "t.csv, line 3: there is no image {folder}/2-1.png. "),
    Case(
        "no image",
        columns({"image": ["gone.png", *IMAGES[1:]], "label": list(NAMES)}),
        "t.parquet, row 1: there is no image ",
    ),
    Case("no suffix", table({}, "--image-suffix", ".jpg"), "t.csv, line 2: there is no image {folder}/2-0.png.jpg. "),
    Case("impossible name", table({3: f"{'x' * 300}.png,2"}), "t.csv, line 3: cannot read the image xxx"),
    Case(
        "impossible name",
        table({3: "2-\0.png,2"}),
        "t.csv, line 3: cannot read the image 2-\N{REPLACEMENT CHARACTER}.png: ",
    ),
    Case(
        "impossible name",
        image(lambda path: path.symlink_to(path)),
        "t.csv, line 3: cannot read the image 2-1.png: Symlink loop",
    ),
    Case(
        "outside",
        table({3: "../secret.png,2"}),
        "t.csv, line 3: an image must lie inside {folder}; got ../secret.png. Pass",
    ),
    Case(
        "outside",
        table({3: "/etc/hostname,2"}),
        "t.csv, line 3: an image must lie inside {folder}; got /etc/hostname. ",
    ),
    Case("outside", image(link_out), "t.csv, line 3: an image must lie inside {folder}; got 2-1.png. "),
    Case("outside", table({}, "--images", "sub"), "t.csv, line 2: there is no image {folder}/sub/2-0.png. "),
    Case(
        "terminal codes",
        table({3: "\x1b[2J.png,2"}),
        "t.csv, line 3: there is no image {folder}/\N{REPLACEMENT CHARACTER}[2J.png. ",
    ),
    Case(
        "terminal codes",
        table({3: '"2\n1.png",2'}),
        "t.csv, line 3: there is no image {folder}/2\N{REPLACEMENT CHARACTER}1.png. ",
    ),
    Case(
        "no bytes",
        image(lambda path: path.touch()),
        "t.csv, line 3: cannot read the image {folder}/2-1.png: no known image format.",
    ),
    Case("no image format", image(lambda path: path.write_text("hello")), "t.csv, line 3: cannot read the image "),
    Case("no image format", image(lambda path: path.write_text("<svg/>")), "t.csv, line 3: cannot read the image "),
    Case(
        "no image format",
        image(lambda path: path.write_text("<html>404</html>")),
        "t.csv, line 3: cannot read the image ",
    ),
    Case(
        "a program decodes it",
        image(lambda path: Image.new("L", (4, 4)).save(path, "EPS")),
        "t.csv, line 3: cannot read the image ",
    ),
    Case(
        "header cut",
        image(lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n\0\0")),
        "t.csv, line 3: cannot read the image ",
    ),
    Case(
        "header cut", image(lambda path: path.write_bytes(b"\xff\xd8\xff\xe0")), "t.csv, line 3: cannot read the image "
    ),
    Case("cut", image(lambda path: cut(path, "PNG")), "t.csv, line 3: cannot read the image ", decoded=True),
    Case("cut", image(lambda path: cut(path, "JPEG")), "t.csv, line 3: cannot read the image ", decoded=True),
    Case("cut", image(lambda path: cut(path, "BMP")), "t.csv, line 3: cannot read the image ", decoded=True),
    Case("cut", image(lambda path: cut(path, "WEBP")), "t.csv, line 3: cannot read the image "),
    Case("damaged", image(damage), "t.csv, line 3: cannot read the image ", decoded=True),
    Case(
        "too large",
        image(lambda path: bomb(path, 10_000, 10_000)),
        "t.csv, line 3: an image must have 50 million pixels or fewer; ",
    ),
    Case(
        "too large",
        image(lambda path: bomb(path, 100_000, 100_000)),
        "t.csv, line 3: an image must have 50 million pixels or fewer; ",
    ),
    Case(
        "mode",
        image(lambda path: Image.new("I;16", (4, 4)).save(path)),
        "t.csv, line 3: an image must have 8 bits per channel; got {folder}/2-1.png with 16 bits",
    ),
    Case(
        "mode",
        image(lambda path: Image.new("F", (4, 4)).save(path, "TIFF")),
        "t.csv, line 3: an image must have 8 bits per channel; ",
    ),
    Case(
        "mode",
        image(lambda path: Image.new("I", (4, 4)).save(path, "TIFF")),
        "t.csv, line 3: an image must have 8 bits per channel; ",
    ),
]

PARTS = [
    Case(
        "one class",
        content("image,label\n2-0.png,2\n2-1.png,2\n"),
        "t.csv, line 2: there must be 2 classes or more; got only '2'.",
    ),
    Case(
        "class of one",
        table({6: "10-1.png,ten"}),
        "t.csv, line 6: a class must have 2 examples or more, one of them to be held out; got 1 of 'ten'.",
    ),
    Case(
        "class of one",
        table(extra=split(*["train"] * 8, "test"), changes={8: "blank-0.png,blank,test", 9: "blank-1.png,blank,test"}),
        "t.csv, line 8: a class must have 2 examples or more, one of them to be held out; got 0 of 'blank'.",
    ),
    Case(
        "word for a part",
        table({4: "2-2.png,2,holdout"}, extra=split(*HALVES)),
        "t.csv, line 4: `split` must be train, held_out (or val) or test; got 'holdout'.",
    ),
    Case(
        "word for a part",
        table({4: "2-2.png,2,1"}, "--split-column", "fold", extra=["fold", *HALVES]),
        "t.csv, line 4: `fold` must be train, held_out (or val) or test; got '1'.",
    ),
    Case(
        "class not in both",
        table(extra=split(*["train", "val", "val"] * 2, *["train"] * 3)),
        "t.csv, line 8: a class must have examples in train and in held_out; got none of 'blank' in held_out.",
    ),
    Case(
        "class not in both",
        table(extra=split(*["train", "val", "val"] * 2, *["val"] * 3)),
        "t.csv, line 8: a class must have examples in train and in held_out; got none of 'blank' in train.",
    ),
    Case(
        "class not in both",
        classes(lambda d: shutil.rmtree(d / "val" / "10"), parts=("train", "val")),
        "d: a class must have examples in train and in held_out; got none of '10' in held_out.",
    ),
    Case(
        "class in one group",
        table({}, "--group-by", "patient", extra=["patient", *"aabbcdddd"]),
        "t.csv, line 8: a class must be in 2 groups or more, one of them to be held out; got 'blank' in 'd' only.",
    ),
    Case(
        "groups not to be parted",
        table({}, "--group-by", "patient", extra=["patient", *"abbaccbcc"]),
        "`--group-by` must leave each class in both parts; got groups of which no choice was found ",
    ),
    Case(
        "group in two parts",
        content(
            "\n".join(map(",".join, zip(LINES, split(*HALVES), PATIENTS, strict=True))).replace("val,c", "val,a"),
            *("--group-by", "patient"),
        ),
        "t.csv, line 4: a group must lie in one part; got 'a' in held_out here and in train in line 2.",
    ),
    Case(
        "share",
        table({}, "--held-out", "0"),
        "`--held-out` must satisfy 0 < share < 1; got 0. For 10 % of each class pass --held-out 0.1.",
    ),
    Case(
        "share",
        table({}, "--held-out", "20"),
        "`--held-out` must satisfy 0 < share < 1; got 20. For 20 % of each class pass --held-out 0.2.",
    ),
    Case("share", table({}, "--held-out", "nan"), "`--held-out` must satisfy 0 < share < 1; got nan."),
    Case(
        "suffix",
        table({}, "--image-suffix", "jpg"),
        "`--image-suffix` must be a dot and letters; got jpg. Pass .jpg, for one.",
    ),
    Case("suffix", table({}, "--image-suffix", "./../x"), "`--image-suffix` must be a dot and letters; got ./../x."),
    Case(
        "images", table({}, "--images", "nowhere"), "`--images` must be a folder; got {folder}/nowhere, which is none."
    ),
    Case("images", table({}, "--images", "t.csv"), "`--images` must be a folder; got {folder}/t.csv, which is none."),
    Case("seed", table({}, "--seed", "-1"), "`--seed` must be 0 or more; got -1."),
]

FOLDERS = [
    Case(
        "no classes",
        empty_folder,
        "d must hold a folder for each class; got no folder.",
    ),
    Case("no classes", lambda folder: ["sub"], "sub must hold a folder for each class; got no folder."),
    Case(
        "no classes",
        classes(empty_val, parts=("train", "val")),
        "d/val must hold a folder for each class; ",
    ),
    Case(
        "empty class",
        classes(lambda d: (d / "egret").mkdir()),
        "d/egret: a class must have images; got a folder without any.",
    ),
    Case(
        "empty class",
        classes(notes_only),
        "d/egret: a class must have images; ",
    ),
    Case(
        "image in no class",
        classes(lambda d: shutil.copy(d.parent / "2-0.png", d / "x.png")),
        "d/x.png: an image must lie in the folder of its class; ",
    ),
    Case(
        "folder's class of one",
        classes(leave_one_image),
        "d: a class must have 2 examples or more, one of them to be held out; got 1 of '2'. Add "
        "another or remove the file.",
    ),
    Case(
        "folder's one class",
        classes(leave_one_class),
        "d: there must be 2 classes or more; got only 'blank'.",
    ),
    Case(
        "folder's name",
        classes(lambda d: os.rename(d / "2", os.fsencode(d) + b"/\xff")),
        r"d: a class must have a printable name; got '\udcff'.",
    ),
    Case(
        "folder's link",
        classes(lambda d: link_out(d / "2" / "link.png")),
        "d: an image must lie inside {folder}/d; got 2/link.png. Copy it there.",
    ),
    Case(
        "folder's link",
        classes(lambda d: (d / "2" / "link.png").symlink_to("/etc/hostname")),
        "d: an image must lie inside {folder}/d; got 2/link.png. Copy it there.",
    ),
    Case(
        "folder's link",
        classes(lambda d: (d / "2" / "link.png").symlink_to("gone.png")),
        "d: there is no image {folder}/d/2/gone.png. Remove the link.",
    ),
    Case(
        "folder's image",
        classes(lambda d: (d / "2" / "2-1.png").write_text("hello")),
        "d: cannot read the image {folder}/d/2/2-1.png: no known image format. Replace it or remove the file.",
    ),
    Case(
        "folder's image",
        classes(lambda d: cut(d / "2" / "2-1.png", "PNG")),
        "d: cannot read the image {folder}/d/2/2-1.png: ",
        decoded=True,
    ),
]

CASES = [*TABLES, *LABEL_COLUMNS, *PICTURES, *PARTS, *FOLDERS]


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    write_pictures(folder, each=3).unlink()
    (folder / "sub").mkdir()
    return folder


def listing(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.cause}: {case.sentence[:50]}")
def test_bad_data_is_one_sentence(
    case: Case, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`train` says it before it trains; `check` says the same, in its list or instead of it."""
    folder = (tmp_path / "work").resolve()
    shutil.copytree(pictures, folder)
    monkeypatch.chdir(folder)
    arguments = case.make(folder)
    sentence = case.sentence.format(folder=folder)
    before = listing(folder)
    if not case.decoded:
        assert main(["train", *arguments]) == 2
        output, error = capsys.readouterr()
        assert error.startswith(f"topkloss: {sentence}")
        assert (output, error.count("\n"), error[-2:]) == ("", 1, ".\n")
    assert main(["check", *arguments, "--workers", "0"]) == 2
    output, error = capsys.readouterr()
    assert error.count("\n") == 1
    assert any(line.startswith(sentence) for line in [*output.splitlines(), error.removeprefix("topkloss: ")])
    assert listing(folder) == before


def test_there_are_many_kinds_of_bad_data() -> None:
    causes = Counter(case.cause for case in CASES)
    assert len(CASES) >= 100
    assert len(causes) >= 40
    assert max(causes.values()) <= 5
