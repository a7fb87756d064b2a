"""Every layout that a data set may have: text and Parquet, label columns, folders; parts by column, class and group."""

from __future__ import annotations

import hashlib
import itertools
import math
import random
import shutil
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import pyarrow
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pyarrow import parquet

from tests.pictures import LABELS, write_pictures
from topkloss.app.data.dataset import DataOptions, Example, ImageTable, read_table, split
from topkloss.app.data.decoding import FORMATS, MOST_PIXELS, suffixes
from topkloss.app.data.listing import Listing
from topkloss.app.errors import InputError


@pytest.fixture
def table(tmp_path: Path) -> Path:
    return write_pictures(tmp_path)


def pairs(read: ImageTable) -> list[tuple[str, str]]:
    """Name and class of every image."""
    return [(example.path.name, read.classes[example.label]) for example in read.examples]


def rows(table: Path) -> list[list[str]]:
    return [line.split(",") for line in table.read_text().splitlines()[1:]]


# Tables


def test_tabs_and_parquet_say_the_same_as_commas(table: Path, tmp_path: Path) -> None:
    plain = read_table(table)
    (tmp_path / "t.tsv").write_text(table.read_text().replace(",", "\t"))
    images, labels = zip(*rows(table), strict=True)
    parquet.write_table(pyarrow.table({"label": labels, "image": images}), tmp_path / "t.parquet")
    tabs, packed = read_table(tmp_path / "t.tsv"), read_table(tmp_path / "t.parquet")
    assert tabs.examples == plain.examples
    assert pairs(packed) == pairs(plain)
    assert [example.line for example in packed.examples] == list(range(1, 31))
    assert packed.listing.unit == "row"
    assert packed.digest == hashlib.sha256((tmp_path / "t.parquet").read_bytes()).hexdigest()


def test_parquet_may_hold_numbers_and_categories(table: Path, tmp_path: Path) -> None:
    images, labels = zip(*rows(table), strict=True)
    numbers = [LABELS.index(label) for label in labels]
    groups = pyarrow.array([str(number % 5) for number in range(30)]).dictionary_encode()
    parquet.write_table(
        pyarrow.table({"image": images, "label": numbers, "scanner": groups}), tmp_path / "t.parquet", row_group_size=7
    )
    read = read_table(tmp_path / "t.parquet", DataOptions(group_by="scanner"))
    assert read.classes == ("0", "1", "2")
    assert [example.group for example in read.examples] == [str(number % 5) for number in range(30)]


def test_options_name_the_columns(table: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    moved = tmp_path / "elsewhere" / "t.csv"
    moved.write_text(table.read_text().replace("image,label", "file name,species"))
    options = DataOptions(images=tmp_path, image_column="file name", label_column="species")
    assert pairs(read_table(moved, options)) == pairs(read_table(table))


@pytest.mark.parametrize(
    ("one", "zero"), [("1", "0"), ("1.0", "0.0"), ("True", "False")], ids=["integers", "floats", "Booleans"]
)
def test_label_columns_are_classes_in_their_order(table: Path, tmp_path: Path, one: str, zero: str) -> None:
    """As in the plant-pathology table: no label column, no suffix on the images."""
    order = ("blank", "2", "10")
    lines = [
        ",".join([image.removesuffix(".png"), *(one if label == other else zero for other in order)])
        for image, label in rows(table)
    ]
    (tmp_path / "plants.csv").write_text("\n".join(["image_id,blank,2,10", *lines]) + "\n")
    options = DataOptions(image_column="image_id", label_columns=list(order), image_suffix=".png")
    read = read_table(tmp_path / "plants.csv", options)
    assert read.classes == order
    assert pairs(read) == pairs(read_table(table))


def test_label_columns_of_parquet_are_booleans_or_integers(table: Path, tmp_path: Path) -> None:
    images, labels = zip(*rows(table), strict=True)
    columns = {
        "image": images,
        "2": [label == "2" for label in labels],
        "10": [int(label == "10") for label in labels],
        "blank": [float(label == "blank") for label in labels],
    }
    parquet.write_table(pyarrow.table(columns), tmp_path / "t.parquet")
    read = read_table(tmp_path / "t.parquet", DataOptions(label_columns=LABELS))
    assert pairs(read) == pairs(read_table(table))


def test_a_suffix_is_appended_where_it_lacks(table: Path) -> None:
    whole = pairs(read_table(table))
    table.write_text(table.read_text().replace("2-0.png", "2-0").replace("blank-1.png", "blank-1"))
    assert pairs(read_table(table, DataOptions(image_suffix=".png"))) == whole


# Folders


def sort_into_classes(table: Path, folder: Path, part: str = "", among: range = range(10)) -> Path:
    for image, label in rows(table):
        if int(image.removesuffix(".png").rpartition("-")[2]) in among:
            (folder / part / label).mkdir(parents=True, exist_ok=True)
            shutil.copy(table.parent / image, folder / part / label)
    return folder


def test_a_folder_per_class(table: Path, tmp_path: Path) -> None:
    folder = sort_into_classes(table, tmp_path / "birds")
    (folder / "README.txt").touch()
    (folder / ".cache").mkdir()
    (folder / "2" / ".hidden.png").touch()
    (folder / "2" / "notes.csv").touch()
    (folder / "10" / "deeper").mkdir()
    shutil.move(folder / "10" / "10-3.png", folder / "10" / "deeper" / "10-3.PNG")
    read = read_table(folder)
    assert read.classes == LABELS
    assert Counter(label for _, label in pairs(read)) == dict.fromkeys(LABELS, 10)
    assert ("10-3.PNG", "10") in pairs(read)
    assert split(read, 0) == split(read_table(folder), 0)


def test_a_folder_per_part_and_class(table: Path, tmp_path: Path) -> None:
    folder = tmp_path / "birds"
    for part, among in (("train", range(5)), ("val", range(5, 8)), ("test", range(8, 10))):
        sort_into_classes(table, folder, part, among)
    read = read_table(folder)
    train, held_out = split(read, 0)
    assert read.classes == LABELS
    assert (len(train), len(held_out), len(read.examples)) == (15, 9, 30)
    assert {read.examples[index].path.parts[-3] for index in held_out} == {"val"}


def test_a_class_may_be_called_train(table: Path, tmp_path: Path) -> None:
    folder = sort_into_classes(table, tmp_path / "vehicles")
    (folder / "2").rename(folder / "train")
    assert read_table(folder).classes == ("10", "blank", "train")


@pytest.mark.parametrize(
    ("parts", "named"),
    [
        (("train", "dev"), "dev"),
        (("train", "test", "extra"), "test"),
        (("Train2017", "val2017"), "Train2017"),
        (("training_set", "test_set"), "test_set"),
        (("holdout", "rest"), "holdout"),
        (("train/train", "val"), "train/train"),
    ],
)
def test_a_part_is_no_class(parts: tuple[str, ...], named: str, table: Path, tmp_path: Path) -> None:
    """Each of these was a class, of the images of all classes below it."""
    for part in parts:
        folder = sort_into_classes(table, tmp_path / "birds", part)
    with pytest.raises(InputError) as refused:
        read_table(folder)
    assert str(refused.value) == (
        f"{folder / named}: a class must hold images; got folders only, under the name of a part. Name every folder "
        "beside it train, val or test, or, if it is a class, rename it."
    )


def test_parts_inside_of_classes_are_refused(table: Path, tmp_path: Path) -> None:
    """Or what is for the test would be trained on."""
    folder = sort_into_classes(table, tmp_path / "birds")
    for part in ("test", "train"):
        (folder / "2" / part).mkdir()
        shutil.copy(folder / "2" / "2-0.png", folder / "2" / part)
    assert read_table(folder).classes == LABELS, "images beside them: it is a class"
    for image in (folder / "2").glob("*.png"):
        image.unlink()
    with pytest.raises(InputError, match=r"birds/2: parts must lie around the classes; got test, train inside of a"):
        read_table(folder)
    (folder / "2" / "test").rename(folder / "2" / "far")
    assert read_table(folder).classes == LABELS, "its images may be sorted otherwise"


def test_links_to_folders_are_counted(table: Path, tmp_path: Path) -> None:
    """They are not followed: they may lead out, or round in a circle."""
    folder = sort_into_classes(table, tmp_path / "birds")
    (tmp_path / "more").mkdir()
    shutil.copy(folder / "2" / "2-0.png", tmp_path / "more")
    (folder / "2" / "more").symlink_to(tmp_path / "more")
    assert read_table(folder).notes == ("left out 1 linked folder, which is not followed",)
    (folder / "10" / "round.png").symlink_to(folder)
    (folder / "10" / ".hidden").symlink_to(folder)
    (folder / "10" / "notes.txt").touch()
    read = read_table(folder)
    assert read.notes == ("left out 1 file that is no image: 1 .txt; 2 linked folders, which are not followed",)
    assert len(read.examples) == 30
    (folder / "egret").mkdir()
    for number in range(2):
        (folder / "egret" / str(number)).symlink_to(tmp_path / "more")
    with pytest.raises(InputError, match="got a folder without any, but 2 linked folders"):
        read_table(folder)


def test_a_folder_is_known_by_paths_and_sizes(table: Path, tmp_path: Path) -> None:
    first = read_table(sort_into_classes(table, tmp_path / "one")).digest
    again = sort_into_classes(table, tmp_path / "other")
    assert read_table(again).digest == first
    (again / "2" / "2-0.png").rename(again / "2" / "2-x.png")
    renamed = read_table(again).digest
    Image.new("RGB", (9, 9)).save(again / "2" / "2-x.png")
    assert len({first, renamed, read_table(again).digest}) == 3


def test_images_are_known_by_their_suffix() -> None:
    assert {".jpg", ".jpeg", ".png", ".webp", ".tif", ".bmp", ".mpo"} <= suffixes()
    assert not {".eps", ".txt", ".csv", ".pdf", ".h5", ".svg"} & suffixes()
    Image.init()
    assert set(FORMATS) <= set(Image.OPEN)


# Parts


def with_column(table: Path, name: str, values: list[str]) -> Path:
    lines = table.read_text().splitlines()
    table.write_text("\n".join(f"{line},{value}" for line, value in zip(lines, [name, *values], strict=True)) + "\n")
    return table


def test_a_column_says_the_parts_and_test_is_left_alone(table: Path) -> None:
    words = ["train", "Training", "held_out", "val", "VALIDATION", "valid", "test", "test", "train", "train"] * 3
    read = read_table(with_column(table, "split", words))
    train, held_out = split(read, seed=5, held_out=0.9)
    assert [words[index] for index in train] == ["train", "Training", "train", "train"] * 3
    assert [words[index] for index in held_out] == ["held_out", "val", "VALIDATION", "valid"] * 3


def test_the_column_of_the_parts_may_be_called_otherwise(table: Path) -> None:
    read = read_table(with_column(table, "fold", ["train", "val"] * 15), DataOptions(split_column="fold"))
    assert split(read, 0) == (list(range(0, 30, 2)), list(range(1, 30, 2)))
    assert {example.part for example in read_table(table).examples} == {None}


def test_without_held_out_images_some_of_train_are_drawn(table: Path) -> None:
    read = read_table(with_column(table, "split", (["train"] * 8 + ["test"] * 2) * 3))
    train, held_out = split(read, 0, 0.25)
    assert (len(train), len(held_out)) == (18, 6)
    assert {read.examples[index].part for index in (*train, *held_out)} == {"train"}


@pytest.mark.parametrize(("share", "each"), [(0.1, 1), (0.3, 3), (0.5, 5), (0.99, 9), (0.001, 1)])
def test_the_share_is_that_of_each_class(table: Path, share: float, each: int) -> None:
    """At least one of a class is held out, and at least one is not."""
    read = read_table(table)
    _, held_out = split(read, 0, share)
    assert Counter(read.examples[index].label for index in held_out) == {0: each, 1: each, 2: each}


def test_no_group_is_in_two_parts(table: Path) -> None:
    read = read_table(with_column(table, "patient", [f"p{n % 10}" for n in range(30)]), DataOptions(group_by="patient"))
    seen = set()
    for seed in range(8):
        train, held_out = split(read, seed, 0.2)
        groups = [{read.examples[index].group for index in part} for part in (train, held_out)]
        assert not groups[0] & groups[1]
        assert sorted(train + held_out) == list(range(30))
        assert len(held_out) == 6
        seen.add(frozenset(groups[1]))
    assert len(seen) > 1, "the seed decides"
    assert split(read, 1, 0.2) == split(read, 1, 0.2)


def grouped(members: Sequence[tuple[int, int]]) -> ImageTable:
    """A data set of classes and groups only."""
    examples = tuple(Example(Path(), label, 0, f"g{group}") for label, group in members)
    classes = tuple(str(label) for label in range(1 + max(label for label, _ in members)))
    return ImageTable(Listing(Path(), "", "line", Path(), ()), classes, examples)


def can_be_parted(members: list[tuple[int, int]]) -> bool:
    """By trying every way."""
    classes, groups = {label for label, _ in members}, {group for _, group in members}
    return any(
        {label for label, group in members if group in held} == classes
        and {label for label, group in members if group not in held} == classes
        for size in range(1, len(groups))
        for held in itertools.combinations(groups, size)
    )


@given(
    members=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 6)), min_size=2, max_size=40),
    share=st.floats(0.05, 0.6),
    seed=st.integers(0, 3),
)
def test_groups_are_parted_whole_with_each_class_on_both_sides(
    members: list[tuple[int, int]], share: float, seed: int
) -> None:
    table = grouped(members)
    if not can_be_parted(members):
        with pytest.raises(InputError, match=r"^`--group-by` must leave each class in both parts; "):
            split(table, seed, share)
        return
    train, held_out = split(table, seed, share)
    sides = [{table.examples[index].label for index in part} for part in (train, held_out)]
    assert sides[0] == sides[1] == {label for label, _ in members}
    groups = [{table.examples[index].group for index in part} for part in (train, held_out)]
    assert not groups[0] & groups[1]
    assert sorted(train + held_out) == list(range(len(members)))


def test_the_share_of_each_class_is_met_as_nearly_as_groups_allow() -> None:
    """Two hundred patients with one to five images of a frequent class; every tenth has two of a rare one too."""
    members = [(0, patient) for patient in range(200) for _ in range(1 + patient % 5)]
    members += [(1, patient) for patient in range(0, 200, 10) for _ in range(2)]
    for seed in range(5):
        table = grouped(members)
        _, held_out = split(table, seed, 0.2)
        counts = Counter(table.examples[index].label for index in held_out)
        assert counts[0] == pytest.approx(0.2 * 600, abs=5)
        assert counts[1] == pytest.approx(0.2 * 40, abs=2)


def test_of_few_groups_the_choice_is_near_the_best() -> None:
    """Of ten, by trying all: the shares of four classes that are unevenly spread, from a quarter."""
    for seed in range(5):
        chance = random.Random(seed)
        members = [
            (label, group) for group in range(10) for label in range(4) for _ in range(chance.choice((0, 3, 20)))
        ]
        sizes = Counter(members)
        whole = Counter(label for label, _ in members)

        def far(groups: Iterable[int], sizes: Counter[tuple[int, int]] = sizes, whole: Counter[int] = whole) -> float:
            held = [sum(sizes[label, group] for group in groups) for label in range(4)]
            if any(not 0 < count < whole[label] for label, count in enumerate(held)):
                return math.inf
            return math.hypot(*(count / whole[label] - 0.25 for label, count in enumerate(held)))

        best = min(far(groups) for size in range(1, 10) for groups in itertools.combinations(range(10), size))
        table = grouped(members)
        _, held_out = split(table, seed, 0.25)
        assert far({int((table.examples[index].group or "")[1:]) for index in held_out}) <= 1.25 * best + 0.01


def test_measured_images_have_a_digest_of_their_own(table: Path) -> None:
    read = read_table(table)
    by_share: dict[str, set[float]] = defaultdict(set)
    for share in (0.1, 0.11, 0.5):
        by_share[read.digest_of(split(read, 0, share)[1])].add(share)
    assert sorted(map(sorted, by_share.values())) == [[0.1, 0.11], [0.5]]
    assert read.digest_of([1, 2]) == read.digest_of([2, 1]) != read.digest_of([1, 3])
    other = replace(read, listing=replace(read.listing, digest="x"))
    assert other.digest_of([1, 2]) != read.digest_of([1, 2])


# Bad images left out


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_images_can_be_skipped(table: Path, tmp_path: Path, workers: int) -> None:
    (tmp_path / "2-5.png").write_bytes((tmp_path / "2-5.png").read_bytes()[:-60])
    (tmp_path / "10-0.png").write_text("hello")
    (tmp_path / "blank-9.png").unlink()
    read = read_table(table, skip_bad=True, workers=workers)
    assert len(read.examples) == 27
    assert not {"2-5.png", "10-0.png", "blank-9.png"} & {name for name, _ in pairs(read)}
    assert sorted(sentence.partition(":")[0] for sentence in read.skipped) == [
        f"{table}, line {line}" for line in (12, 31, 7)
    ]


def test_a_class_that_skipping_leaves_too_small_is_said(table: Path, tmp_path: Path) -> None:
    for number in range(1, 10):
        (tmp_path / f"2-{number}.png").unlink()
    with pytest.raises(InputError, match=r"line 2: a class must have 2 examples or more, .* got 1 of '2'"):
        read_table(table, skip_bad=True)


def test_when_all_are_bad_nothing_is_left(table: Path, tmp_path: Path) -> None:
    for image in tmp_path.glob("*.png"):
        image.unlink()
    with pytest.raises(InputError, match=r"pictures\.csv, line 1: there must be an image that can be used; got none"):
        read_table(table, skip_bad=True)


def test_an_image_outside_is_never_skipped(table: Path) -> None:
    table.write_text(table.read_text().replace("2-5.png", "../2-5.png"))
    with pytest.raises(InputError, match="line 7: an image must lie inside"):
        read_table(table, skip_bad=True)


def test_the_limit_is_reached_and_not_exceeded(table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert MOST_PIXELS == 50_000_000
    for module in ("bad", "decoding"):
        monkeypatch.setattr(f"topkloss.app.data.{module}.MOST_PIXELS", 16 * 16)
    assert len(read_table(table).examples) == 30
    Image.new("L", (16, 17)).save(tmp_path / "2-5.png")
    with pytest.raises(InputError, match="line 7: an image must have 0 million pixels or fewer"):
        read_table(table)
