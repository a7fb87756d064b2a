"""`topkloss check`: all that is wrong in one go, then what is there."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from tests.pictures import write_pictures
from tests.processes import forked
from topkloss.app.cli import main
from topkloss.app.data.dataset import DataOptions, read_table
from topkloss.app.data.decoding import BadImage, decode, decode_all
from topkloss.app.errors import InputError, shown
from topkloss.app.tasks.images.check import check


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_pictures(tmp_path)
    return Path("pictures.csv")


def set_lines(table: Path, changes: dict[int, str]) -> None:
    """Replaces lines; the first is 1."""
    lines = [changes.get(number, line) for number, line in enumerate(table.read_text().splitlines(), 1)]
    table.write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize("workers", ["0", "2"])
def test_good_data_is_a_summary(table: Path, workers: str, capsys: pytest.CaptureFixture[str]) -> None:
    set_lines(table, {number: "" for number in range(13, 19)})  # six of the tens
    assert main(["check", str(table), "--held-out", "0.2", "--workers", workers]) == 0
    output, error = capsys.readouterr()
    assert error == ""
    assert output == (
        "pictures.csv: 24 images in 3 classes\n\n"
        "class  train  held out\n"
        "2          8         2\n"
        "10         3         1\n"
        "blank      8         2\n"
        "all       19         5\n\n"
        "imbalance 2.67: from 3 images of 10 to 8 of 2\n"
    )


def test_every_problem_is_listed(table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path.resolve()
    (tmp_path / "2-5.png").write_bytes((tmp_path / "2-5.png").read_bytes()[:-60])
    Image.new("I;16", (4, 4)).save(tmp_path / "10-1.png")
    (tmp_path / "10-2.png").write_text("hello")
    shutil.copy(tmp_path / "2-0.png", tmp_path / "copy.png")
    set_lines(
        table,
        {3: "gone.png,2", 4: "../out.png,2", 6: "2-4.png,", 8: "2-6.png,seldom", 9: "a,b.png,2", 31: "copy.png,blank"},
    )
    assert main(["check", str(table), "--workers", "0"]) == 2
    output, error = capsys.readouterr()
    problems, _, summary = output.partition("\n\n")
    assert problems.splitlines() == [
        "pictures.csv, line 6: `label` must not be empty; got nothing. Fill it in or remove the line.",
        "pictures.csv, line 9: there must be as many cells as columns, 2; got 3. Put a cell that holds a separator in "
        "quotes.",
        "pictures.csv, line 8: a class must have 2 examples or more, one of them to be held out; got 1 of 'seldom'. "
        "Add another or remove the line.",
        f"pictures.csv, line 3: there is no image {folder}/gone.png. Correct the line or pass `--images`.",
        f"pictures.csv, line 4: an image must lie inside {folder}; got ../out.png. Pass its folder as `--images`.",
        f"pictures.csv, line 7: cannot read the image {folder}/2-5.png: image file is truncated. Replace it or remove "
        "the line.",
        f"pictures.csv, line 13: an image must have 8 bits per channel; got {folder}/10-1.png with 16 bits per "
        "channel, whose contrast would be lost. Convert it to 8 bits, or pass --pixel-range with the numbers that are "
        "black and white.",
        f"pictures.csv, line 14: cannot read the image {folder}/10-2.png: no known image format. Replace it or remove "
        "the line.",
        f"pictures.csv, line 31: an image must have one label; got {folder}/copy.png as 'blank', and the same pixels "
        "as '2' in line 2. Correct one or remove it.",
    ]
    assert summary.startswith("pictures.csv: 23 images in 4 classes, 1 of them copies of another\n")
    assert error == "topkloss: pictures.csv must be free of problems; got 9 problems. Correct what is listed.\n"


@pytest.mark.parametrize("kind", ["the same file", "another format", "turned by its metadata"])
def test_the_same_image_in_two_parts_is_found_by_its_pixels(table: Path, tmp_path: Path, kind: str) -> None:
    with Image.open("2-0.png") as image:
        if kind == "the same file":
            shutil.copy("2-0.png", "copy.png")
        elif kind == "another format":
            image.convert("RGB").save("copy.png", "BMP")
        else:
            exif = Image.Exif()
            exif[0x0112] = 3  # half a turn
            image.rotate(180).save("copy.png", exif=exif)
    lines = table.read_text().splitlines()
    parts = ["split", *(["train"] * 8 + ["val"] * 2) * 3]
    table.write_text("\n".join(f"{line},{part}" for line, part in zip(lines, parts, strict=True)) + "\n")
    set_lines(table, {10: "copy.png,2,val"})
    found = check(str(table), DataOptions())
    assert found.problems == (
        f"pictures.csv, line 10: an image must be in one part; got {tmp_path.resolve()}/copy.png in held_out, and the "
        "same pixels in train in line 2. Remove one.",
    )
    assert found.copies == 1
    set_lines(table, {10: "copy.png,2,train"})
    assert check(str(table), DataOptions()).problems == ()


def test_copies_that_the_seed_parts_are_found(table: Path) -> None:
    """As many as training with that seed would part."""
    set_lines(table, {number: "2-0.png,2" for number in range(2, 12)})
    assert len(check(str(table), DataOptions(), seed=0).problems) in (1, 9)
    lines = table.read_text().splitlines()
    groups = ["same", *["one"] * 8, *["other"] * 2, *[f"g{number}" for number in range(20)]]
    table.write_text("\n".join(f"{line},{group}" for line, group in zip(lines, groups, strict=True)) + "\n")
    assert len(check(str(table), DataOptions(group_by="same")).problems) in (2, 8)


def test_problems_before_the_end_of_a_broken_file_are_kept(table: Path) -> None:
    set_lines(table, {3: "2-1.png,", 20: '"10-9.png,10'})
    assert [problem.partition(":")[0] for problem in check(str(table), DataOptions()).problems] == [
        "pictures.csv, line 3",
        "pictures.csv, line 20",
    ]


def test_classes_that_cannot_be_parted_and_bad_images_are_one_list(table: Path) -> None:
    lines = table.read_text().splitlines()
    groups = ["patient", *["a", "b"] * 5, *["b", "c"] * 5, *["a", "c"] * 5]
    table.write_text("\n".join(f"{line},{group}" for line, group in zip(lines, groups, strict=True)) + "\n")
    Path("2-3.png").unlink()
    problems = check(str(table), DataOptions(group_by="patient")).problems
    assert [problem.startswith(word) for problem, word in zip(problems, ("pictures", "`--group-by`"), strict=True)] == [
        True,
        True,
    ]


def test_digits_are_free_of_problems(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "--workers", "0"]) == 0
    assert "digits.csv: 5000 images in 10 classes\n" in capsys.readouterr().out


def test_a_worker_that_is_killed_is_a_sentence(table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("topkloss.app.data.decoding._decoded", lambda *asked: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(
        InputError, match=r"^`--workers` must be as many .*; got 1, and one ended: .*\. Pass --workers 0"
    ):
        list(decode_all([Path("2-0.png")], 1))


def test_a_name_with_control_characters_is_shown_on_one_line() -> None:
    assert (
        shown(Path("a\nb\x1b\udcff\u202e.png"))
        == "a" + "\N{REPLACEMENT CHARACTER}b" + 3 * "\N{REPLACEMENT CHARACTER}" + ".png"
    )
    assert shown("Löffelreiher 赤.png") == "Löffelreiher 赤.png"


def outcome(path: Path) -> str:
    try:
        image = decode(path)
        assert isinstance(image, Image.Image)
        return image.mode
    except BadImage as error:
        bad = error
    assert bad.what.isprintable()
    assert bad.what.endswith(".")
    return "bad"


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "JPEG2000", "AVIF"])
def test_whatever_bytes_are_damaged_an_image_is_decoded_or_bad(tmp_path: Path, kind: str) -> None:
    """A decoder that raises something else would end a run of hours."""
    chance = random.Random(kind)
    path = tmp_path / "image"
    Image.effect_noise((24, 24), 80).convert("RGB").save(path, kind)
    whole = path.read_bytes()
    outcomes = set()
    for _ in range(150):
        content = bytearray(whole)
        for _ in range(chance.choice((1, 3, 30))):
            content[chance.randrange(len(content))] = chance.randrange(256)
        path.write_bytes(content[: chance.choice((len(content), chance.randrange(len(content))))])
        outcomes.add(outcome(path))
    assert "bad" in outcomes <= {"RGB", "bad"}


def test_a_checked_table_is_the_one_that_is_trained_on(table: Path) -> None:
    """The counts of `check` are those of the split that training draws."""
    found = check(str(table), DataOptions(held_out=0.3), seed=7)
    assert {label: row["held_out"] for label, row in found.counts.items()} == dict.fromkeys(
        read_table(table).classes, 3
    )


@example(b'""\x00')  # the reason names the tab of a TSV
@given(content=st.binary(max_size=60) | st.text("image,label\n\t\"'x1.png\r\0 é", max_size=60).map(str.encode))
def test_whatever_a_file_holds_it_is_read_or_refused(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as name:
        for suffix in (".csv", ".tsv", ".parquet"):
            path = Path(name, f"t{suffix}")
            path.write_bytes((b"image,label\n" if suffix == ".csv" else b"") + content)
            found = check(str(path), DataOptions())
            assert found.problems
            assert all(problem.isprintable() for problem in found.problems)


def test_the_command_is_a_process(table: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "topkloss.app.cli", "check", "pictures.csv"]
    good = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (good.returncode, good.stderr) == (0, "")
    Path("2-5.png").unlink()
    bad = forked("check", "pictures.csv", cwd=tmp_path)
    assert (bad.returncode, bad.stderr.count("\n")) == (2, 1)
    assert bad.stdout.startswith("pictures.csv, line 7: there is no image ")
    assert bad.stderr == "topkloss: pictures.csv must be free of problems; got 1 problem. Correct what is listed.\n"


def test_parquet_without_its_package_names_the_extra(table: Path) -> None:
    Path("t.parquet").touch()
    script = (
        "import sys; sys.modules['pyarrow'] = None\n"
        "from topkloss.app.cli import main\n"
        "print([main(['check', '--workers', '0', name]) for name in ('pictures.csv', 't.parquet')])"
    )
    answer = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=True)
    assert answer.stdout.splitlines()[-1] == "[0, 2]"
    assert 'pip install "topkloss[train]"' in answer.stderr
    assert answer.stderr.count("\n") == 1
