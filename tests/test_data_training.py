"""From data to a run: what is left out, what is remembered, what is not looked at."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.pictures import LABELS, write_pictures
from topkloss.app.tasks.images.fit import fit
from topkloss.app.tasks.images.records import RunRecord, TrainConfig


@pytest.fixture
def config(tmp_path: Path) -> TrainConfig:
    """A run of seconds."""
    (tmp_path / "data").mkdir()
    table = write_pictures(tmp_path / "data")
    return TrainConfig(
        csv=str(table), model="test_convnext", image_size=32, epochs=1, batch_size=9, out=str(tmp_path / "run")
    )


def test_bad_images_are_left_out_counted_and_named_once(
    config: TrainConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    assert config.csv is not None
    folder = Path(config.csv).parent
    for number in range(5):
        (folder / f"2-{number}.png").write_bytes(b"no image")
    record = fit(replace(config, on_bad_image="skip"))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "left out 5 of 30 images; the first 3:"
    assert [line.partition(": ")[0] for line in lines[1:4]] == [f"{config.csv}, line {line}" for line in (2, 3, 4)]
    assert lines[4] == "22 images to train on, 3 held out; imbalance 2.25: from 4 images of 2 to 9 of 10"
    assert lines[5].startswith("epoch 1/1")
    assert record.data["skipped"] == 5
    assert record.data["train"] + record.data["held_out"] == 25


def test_a_run_remembers_how_its_data_was_laid_out(config: TrainConfig, tmp_path: Path) -> None:
    table = tmp_path / "data" / "one-hot.tsv"
    lines = ["file\tblank\t10\t2"]
    lines += [
        "\t".join([f"{label}-{number}", *("01"[label == other] for other in ("blank", "10", "2"))])
        for label in LABELS
        for number in range(10)
    ]
    table.write_text("\n".join(lines) + "\n")
    asked = replace(
        config,
        csv=str(table),
        image_column="file",
        label_columns=["blank", "10", "2"],
        image_suffix=".png",
        held_out=0.3,
    )
    record = fit(asked)
    assert list(record.recall) == ["blank", "10", "2"]
    assert record.support == dict.fromkeys(["blank", "10", "2"], 3)
    assert RunRecord.read(asked.folder) == record
    assert record.config.label_columns == ("blank", "10", "2")


def test_images_for_testing_are_not_measured(config: TrainConfig) -> None:
    assert config.csv is not None
    table = Path(config.csv)
    parts = ["split", *(["train"] * 6 + ["val"] * 2 + ["test"] * 2) * 3]
    table.write_text(
        "\n".join(f"{line},{part}" for line, part in zip(table.read_text().splitlines(), parts, strict=True)) + "\n"
    )
    for number in (8, 9):
        (table.parent / f"2-{number}.png").write_bytes((table.parent / f"2-{number}.png").read_bytes()[:-60])
    record = fit(replace(config))  # reads the header of a test image, and no more
    assert (record.data["train"], record.data["held_out"]) == (18, 6)


@pytest.mark.parametrize(
    ("data", "name"),
    [("some/birds.csv", "birds"), ("some/birds", "birds"), ("some/birds/", "birds"), ("some/birds/.", "birds")],
)
def test_a_run_is_called_after_its_data(data: str, name: str) -> None:
    assert TrainConfig(csv=data).folder == Path(f"runs/{name}-top-k-0.7-seed0")


def test_a_run_on_the_folder_here_is_called_after_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "birds").mkdir()
    monkeypatch.chdir(tmp_path / "birds")
    assert TrainConfig(csv=".").folder.name == "birds-top-k-0.7-seed0"
