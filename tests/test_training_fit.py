"""A run: its files, its numbers, its repetition, and what is left of it when it fails."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file
from torch import nn

from tests.pictures import LABELS, write_pictures
from topkloss import AverageTopKCrossEntropyLoss
from topkloss.app.data.dataset import Images, preparation, read_table, split
from topkloss.app.data.decoding import decode
from topkloss.app.errors import InputError
from topkloss.app.tasks.images.fit import fit
from topkloss.app.tasks.images.models import colours
from topkloss.app.tasks.images.records import RunRecord, TrainConfig
from topkloss.app.tasks.images.run import load_run


@pytest.fixture
def config(tmp_path: Path) -> TrainConfig:
    """A run of seconds."""
    (tmp_path / "data").mkdir()
    table = write_pictures(tmp_path / "data")
    return TrainConfig(
        csv=str(table), model="test_resnet", image_size=32, epochs=2, batch_size=9, lr=3e-3, out=str(tmp_path / "run")
    )


def beside(config: TrainConfig) -> set[str]:
    """What lies in the folder of the runs."""
    return {path.name for path in config.folder.parent.iterdir()}


def test_a_run_is_a_folder_of_six_files(config: TrainConfig) -> None:
    record = fit(config)
    assert {path.name for path in config.folder.iterdir()} == {
        "config.yaml",
        "held_out.csv",
        "last.ckpt",
        "losses.csv",
        "metrics.csv",
        "metrics.json",
        "model.safetensors",
    }
    assert beside(config) == {"data", "run"}
    assert RunRecord.read(config.folder) == record
    assert record.config == replace(config, fraction=0.7, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    assert set(record.recall) == set(record.support) == set(LABELS)
    assert sum(record.support.values()) == record.data["held_out"] == 3
    assert record.data["train"] == 27
    assert 0 <= record.last.accuracy <= 1
    metrics = json.loads((config.folder / "metrics.json").read_text())
    with (config.folder / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert float(rows[-1]["accuracy"]) == metrics["accuracy"]
    assert 0 <= metrics["time"]["waiting"] <= 1
    assert metrics["time"]["criterion"] > 0
    assert sum(metrics["gradient"].values()) == pytest.approx(1, abs=1e-6)
    assert record.last.kept == pytest.approx(21 / 27)  # 6.3 of 9: the seventh in part
    assert record.last.fraction == 0.7


@pytest.mark.parametrize("change", [{}, {"early_stopping": 1, "lr": 0.3, "epochs": 4}, {"ema": 0.5}], ids=str)
def test_the_loss_of_each_image_is_written(config: TrainConfig, change: dict[str, Any]) -> None:
    """As the model that the run ends with has it, of images that are neither augmented nor smoothed."""
    given = {"augment": "strong", "label_smoothing": 0.1, "class_weights": "balanced", "loss": "ohem", **change}
    record = fit(replace(config, **given))
    with (config.folder / "losses.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert {part: sum(row["part"] == part for row in rows) for part in ("train", "held_out")} == {
        "train": 27,
        "held_out": 3,
    }
    held_out = [float(row["loss"]) for row in rows if row["part"] == "held_out"]
    assert sum(held_out) / 3 == pytest.approx(record.last.cross_entropy, rel=1e-5)
    run, logits = load_run(config.folder), {}
    for row in rows:
        image = Path(config.csv or "").parent / row["image"]
        assert row["label"] == image.name.partition("-")[0]
        with torch.inference_mode():
            logits[row["image"]] = run.model(run.prepare(decode(image))[None])[0]
        label = run.classes.index(row["label"])
        assert float(row["loss"]) == pytest.approx(
            -logits[row["image"]].log_softmax(0)[label].item(), rel=1e-4, abs=1e-6
        )
        assert row["prediction"] == run.classes[int(logits[row["image"]].argmax())]
    assert len(logits) == 30


def test_the_weights_are_the_models_under_timms_names(config: TrainConfig) -> None:
    fit(config)
    weights = load_file(config.folder / "model.safetensors")
    model = timm.create_model("test_resnet", num_classes=3)
    model.load_state_dict(weights)
    checkpoint = torch.load(config.folder / "last.ckpt", weights_only=True)["state_dict"]
    assert all(torch.equal(weights[name], checkpoint[f"model.{name}"]) for name in weights)


def test_it_learns(config: TrainConfig) -> None:
    record = fit(replace(config, epochs=8))
    assert record.last.train_loss < 0.5 * record.epochs[0].train_loss
    assert all(epoch.train_loss > epoch.train_cross_entropy for epoch in record.epochs)


def test_the_checkpoint_is_numbers_only(config: TrainConfig) -> None:
    fit(config)
    checkpoint = torch.load(config.folder / "last.ckpt", weights_only=True)
    assert checkpoint["epoch"] == 1
    assert any(name.startswith("model.") for name in checkpoint["state_dict"])
    assert checkpoint["optimizer_states"]


def numbers(config: TrainConfig) -> bytes:
    return (config.folder / "metrics.csv").read_bytes()


def test_the_same_config_gives_the_same_numbers(config: TrainConfig, tmp_path: Path) -> None:
    again, other = replace(config, out=str(tmp_path / "again")), replace(config, out=str(tmp_path / "other"), seed=1)
    for each in (config, again, other):
        fit(each)
    assert numbers(config) == numbers(again) != numbers(other)


def test_average_is_fraction_one_bit_for_bit(config: TrainConfig, tmp_path: Path) -> None:
    average = replace(config, loss="average")
    whole = replace(config, fraction=1.0, out=str(tmp_path / "whole"))
    records = [fit(average), fit(whole)]
    assert numbers(average) == numbers(whole)
    assert records[0].recall == records[1].recall
    weights = [torch.load(each.folder / "last.ckpt", weights_only=True)["state_dict"] for each in (average, whole)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert all(epoch.train_loss == pytest.approx(epoch.train_cross_entropy, rel=1e-5) for epoch in records[0].epochs)


def test_easy_images_can_be_skipped(config: TrainConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Normalised by layers, the network couples no images: nothing but the time changes."""
    given = replace(config, model="test_convnext", fraction=0.3, batch_size=10)
    records = [fit(given), fit(replace(given, skip_easy=True, out=str(tmp_path / "skipping")))]
    for whole, skipping in zip(*(record.epochs for record in records), strict=True):
        assert skipping.train_loss == pytest.approx(whole.train_loss, rel=1e-4)
        assert skipping.train_cross_entropy == pytest.approx(whole.train_cross_entropy, rel=1e-4)
        assert skipping.cross_entropy == pytest.approx(whole.cross_entropy, rel=1e-4)
    assert capsys.readouterr().out.splitlines()[-1].endswith("of the work of full steps.")


def test_batch_normalisation_of_one_selected_image_is_answered(config: TrainConfig) -> None:
    with pytest.raises(InputError, match="Leave out --skip-easy: it selected one image"):
        fit(replace(config, skip_easy=True, fraction=0.01, image_size=8))


def test_says_before_it_starts_that_skipping_cannot_pay(config: TrainConfig) -> None:
    with pytest.warns(UserWarning, match="should be at most 0.6 for a selective step to save time; got 0.7"):
        fit(replace(config, skip_easy=True, epochs=1))


def test_images_may_be_loaded_by_other_processes(config: TrainConfig, tmp_path: Path) -> None:
    beside_ = replace(config, workers=2, out=str(tmp_path / "workers"))
    fit(config)
    fit(beside_)
    assert numbers(config) == numbers(beside_)


def test_a_last_batch_of_one_image_is_no_obstacle(config: TrainConfig) -> None:
    """27 images in batches of 13 leave one, whose variance would be 0."""
    assert fit(replace(config, batch_size=13)).last.epoch == 2


def test_the_size_is_the_models_own(config: TrainConfig) -> None:
    assert fit(replace(config, image_size=None, epochs=1)).config.image_size == 160


# Refused or failed: one sentence, nothing left


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            {"fraction": 70.0},
            "`--fraction`: `fraction` must satisfy 0 < fraction <= 1; got 70. "
            "For the 70 % hardest elements pass fraction=0.7.",
        ),
        (
            {"fraction": 0.0},
            "`--fraction`: `fraction` must satisfy 0 < fraction <= 1; got 0. "
            "For the 70 % hardest elements pass fraction=0.7.",
        ),
        (
            {"loss": "average", "fraction": 0.5},
            "`--fraction` must be 1 with --loss average, which averages all; got 0.5. "
            "Leave it out, or pass --loss top-k.",
        ),
        ({"epochs": 0}, "`--epochs` must be 1 or more; got 0. Leave it out for the default."),
        ({"batch_size": 0}, "`--batch-size` must be 1 or more; got 0. Leave it out for the default."),
        ({"image_size": 0}, "`--image-size` must be 1 or more; got 0. Leave it out for the default."),
        ({"seed": -1}, "`--seed` must be 0 or more; got -1. Leave it out for the default."),
        ({"workers": -1}, "`--workers` must be 0 or more; got -1. Leave it out for the default."),
        ({"lr": 0.0}, "`--lr` must satisfy 0 < lr <= 1; got 0. Leave it out for the default."),
        ({"lr": 1e38}, "`--lr` must satisfy 0 < lr <= 1; got 1e+38. Leave it out for the default."),
        ({"lr": float("nan")}, "`--lr` must satisfy 0 < lr <= 1; got nan. Leave it out for the default."),
        (
            {"batch_size": 1, "model": "resnet10t"},
            "`--batch-size` must be larger for this model and image size, whose batch normalisation needs more than "
            "one value; got 1. Pass --batch-size 16.",
        ),
        (
            {"model": "res2net50"},
            "`--model` must be the name of a timm model; got res2net50. Did you mean res2next50, res2net50d, resnet50?",
        ),
        (
            {"precision": "16-mixed"},
            "`--precision` must be 32 or bf16-mixed without a GPU; got 16-mixed. Pass --precision bf16-mixed.",
        ),
        (
            {"model": "hf-hub:someone/something"},
            "`--model` must be the name of a timm model; got hf-hub:someone/something. timm.list_models() lists them.",
        ),
        (
            {"model": "vit_tiny_patch16_224", "image_size": 32},
            "`--image-size` must be one that vit_tiny_patch16_224 takes; got 32: Input height (32) doesn't match model "
            "(224). Pass --image-size 224.",
        ),
    ],
    ids=str,
)
def test_what_cannot_be_done_is_said_at_once(
    config: TrainConfig, change: dict[str, object], sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError) as caught:
        fit(replace(config, **change))  # type: ignore[arg-type]
    assert str(caught.value) == sentence
    assert beside(config) == {"data"}


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_image_met_in_training_leaves_nothing(config: TrainConfig, workers: int) -> None:
    assert config.csv is not None
    broken = Path(config.csv).parent / "2-5.png"
    broken.write_bytes(broken.read_bytes()[:-60])
    with pytest.raises(InputError) as caught:
        fit(replace(config, workers=workers))
    assert str(caught.value).startswith(f"{config.csv}, line 7: cannot read the image {broken}: ")
    assert str(caught.value).endswith("truncated. Replace it or remove the line.")
    assert beside(config) == {"data"}


def test_another_run_is_never_overwritten(config: TrainConfig) -> None:
    config.folder.mkdir()
    (config.folder / "precious").touch()
    with pytest.raises(InputError, match=r"^`--out` must be a new or empty folder; got .*, which exists\."):
        fit(config)
    assert [path.name for path in config.folder.iterdir()] == ["precious"]
    (config.folder / "config.yaml").touch()
    with pytest.raises(InputError, match=r"which exists\. Pass another, or --resume .*run\.$"):
        fit(config)


def test_divergence_is_said(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    elements = AverageTopKCrossEntropyLoss.elements

    def diverged(self: AverageTopKCrossEntropyLoss, logits: torch.Tensor, labels: torch.Tensor, **rest: Any) -> Any:
        return elements(self, logits * float("nan"), labels, **rest)

    monkeypatch.setattr(AverageTopKCrossEntropyLoss, "elements", diverged)
    with pytest.raises(InputError) as caught:
        fit(config)
    assert str(caught.value) == (
        "`--lr` must be small enough for training to converge; got 0.003, and in epoch 1 the loss is nan. "
        "Pass --lr 0.0003."
    )
    assert beside(config) == {"data"}


def test_an_empty_folder_may_be_filled(config: TrainConfig) -> None:
    config.folder.mkdir()
    fit(replace(config, epochs=1))
    assert (config.folder / "last.ckpt").is_file()


def test_the_folder_may_be_the_current_one(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    fit(replace(config, epochs=1, out="."))
    assert (here / "metrics.json").is_file()


def test_a_folder_that_cannot_be_made_is_said(config: TrainConfig) -> None:
    with pytest.raises(
        InputError, match=r"^`--out` must be a folder that can be made; got .*: (Not a directory|File exists)\."
    ):
        fit(replace(config, out=f"{config.csv}/run"))


def test_the_default_folder_says_what_was_asked() -> None:
    assert TrainConfig().folder == Path("runs/digits-top-k-0.7-seed0")
    assert TrainConfig(loss="average", csv="some/birds.csv", seed=3).folder == Path("runs/birds-average-seed3")
    assert TrainConfig(loss="ranked-range").folder == Path("runs/digits-ranked-range-0.7-0.1-seed0")
    assert TrainConfig(loss="ohem", threshold=0.5).folder == Path("runs/digits-ohem-0.5-seed0")


def test_steps_of_several_batches_are_those_of_one(config: TrainConfig, tmp_path: Path) -> None:
    """Ranked together: which images are selected does not depend on how many fit into the memory."""
    given = replace(config, model="test_convnext", fraction=0.4, batch_size=12)
    records = [fit(given), fit(replace(given, batch_size=3, accumulate=4, out=str(tmp_path / "parts")))]
    for whole, parts in zip(*(record.epochs for record in records), strict=True):
        assert vars(parts) == pytest.approx(vars(whole), rel=1e-4, abs=1e-5)


def test_the_average_of_the_weights_is_measured_and_kept(config: TrainConfig) -> None:
    record = fit(replace(config, ema=0.5))
    checkpoint = torch.load(config.folder / "last.ckpt", weights_only=True)
    weights = load_file(config.folder / "model.safetensors")
    assert all(torch.equal(weights[name], tensor) for name, tensor in checkpoint["ema"].items())
    assert not torch.equal(weights["fc.weight"], checkpoint["state_dict"]["model.fc.weight"])
    model = timm.create_model("test_resnet", num_classes=3).eval()
    model.load_state_dict(weights)
    table = read_table(Path(config.csv or ""))
    _, held_out = split(table, config.seed)
    images = Images(table, held_out, preparation(32, *colours(model)))
    with torch.no_grad():
        pairs = [images[place] for place in range(len(images))]
        losses = [nn.functional.cross_entropy(model(x[None]), torch.tensor([y])) for x, y in pairs]
    assert torch.stack(losses).mean().item() == pytest.approx(record.last.cross_entropy, rel=1e-5)


def test_a_run_begins_from_given_weights(config: TrainConfig, tmp_path: Path) -> None:
    record = fit(replace(config, epochs=8))
    again = replace(config, weights=str(config.folder / "model.safetensors"), epochs=1, out=str(tmp_path / "again"))
    assert fit(again).last.train_loss < 0.5 * record.epochs[0].train_loss


def test_the_fraction_comes_down(config: TrainConfig) -> None:
    record = fit(replace(config, schedule="linear", schedule_epochs=1, fraction=0.4, batch_size=10))
    assert [epoch.fraction for epoch in record.epochs] == [0.6, 0.4]  # in the last of three steps each
    assert record.epochs[0].kept > record.epochs[1].kept


def test_epochs_are_written_for_tensorboard(config: TrainConfig) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    record = fit(replace(config, log="tensorboard"))
    events = EventAccumulator(str(config.folder / "tensorboard"))
    events.Reload()
    shown = [(event.step, event.value) for event in events.Scalars("accuracy")]
    assert shown == [(epoch.epoch, pytest.approx(epoch.accuracy)) for epoch in record.epochs]
    assert {"threshold", "kept", "train_loss", "waiting", "criterion"} <= set(events.Tags()["scalars"])


@pytest.mark.slow
def test_the_criterion_takes_little_of_a_step(config: TrainConfig) -> None:
    """Of a small residual network on 32 x 32 pixels: less than 2 %; of anything larger still less."""
    record = fit(replace(config, model="resnet10t", batch_size=27))
    assert record.time["criterion"] < 0.02


@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_a_compiled_model_learns_the_same(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backend: str
) -> None:
    """A backend that captures and then runs the graph as it is takes seconds, the usual one minutes."""
    given = replace(config, model="test_convnext", epochs=1)
    plain = fit(given)
    compiled: list[str] = []
    original = nn.Module.compile

    def by_backend(self: nn.Module) -> None:
        compiled.append(backend)
        original(self, backend=backend)

    monkeypatch.setattr(nn.Module, "compile", by_backend)
    again = fit(replace(given, compile=True, out=str(tmp_path / "compiled")))
    assert compiled == [backend]
    assert again.last.train_loss == pytest.approx(plain.last.train_loss, rel=1e-3)
    names = [load_file(folder / "model.safetensors").keys() for folder in (config.folder, tmp_path / "compiled")]
    assert names[0] == names[1]


@pytest.mark.slow
def test_res2net50d_trains(config: TrainConfig) -> None:
    record = fit(replace(config, model="res2net50d", epochs=1))
    assert record.config.model == "res2net50d"
    assert record.last.train_loss > 0
