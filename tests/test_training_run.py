"""Opening a run: what comes back, and one sentence for every folder that is none."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.pictures import LABELS
from topkloss.app.errors import InputError
from topkloss.app.tasks.images.checkpoints import load
from topkloss.app.tasks.images.fit import fit
from topkloss.app.tasks.images.records import RunRecord
from topkloss.app.tasks.images.run import load_run


@pytest.fixture
def folder(trained: Path, tmp_path: Path) -> Path:
    """A run to spoil."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


def test_a_run_is_what_was_trained(trained: Path) -> None:
    """Its weights are those of the last checkpoint."""
    run = load_run(trained)
    assert run.classes == LABELS
    assert (run.config.model, run.image_size) == ("test_convnext", 32)
    assert (run.mean, run.std) == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    assert not run.model.training
    checkpoint = load(trained)
    assert checkpoint is not None
    weights = {f"model.{name}": value.cpu() for name, value in run.model.state_dict().items()}
    assert weights.keys() == checkpoint["state_dict"].keys()
    assert all(torch.equal(value, checkpoint["state_dict"][name]) for name, value in weights.items())


def test_the_checkpoint_is_not_needed(folder: Path) -> None:
    (folder / "last.ckpt").unlink()
    assert load_run(folder).classes == LABELS


def test_averaged_weights_are_those_of_the_run(trained: Path, tmp_path: Path) -> None:
    """In another memory format, too."""
    config = RunRecord.read(trained).config
    fit(replace(config, ema=0.9, channels_last=True, out=str(tmp_path / "run")))
    weights, checkpoint = load_run(tmp_path / "run").model.state_dict(), load(tmp_path / "run")
    assert checkpoint is not None
    assert all(torch.equal(value.cpu(), checkpoint["ema"][name]) for name, value in weights.items())
    assert any(
        not torch.equal(value.cpu(), checkpoint["state_dict"][f"model.{name}"]) for name, value in weights.items()
    )


def test_the_device_can_be_chosen(trained: Path) -> None:
    assert load_run(trained, device="cpu").device == torch.device("cpu")


def test_a_run_that_is_not_finished_says_how_to_finish_it(folder: Path) -> None:
    for name in ("metrics.json", "model.safetensors"):
        (folder / name).unlink()
    with pytest.raises(InputError, match=rf"a finished run.*`topkloss train --resume {folder}` finishes it\.$"):
        load_run(folder)


def set_config(folder: Path, **change: object) -> None:
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), **change}))


def set_data(folder: Path, **change: object) -> None:
    recorded = yaml.safe_load((folder / "config.yaml").read_text())["recorded"]
    set_config(folder, recorded={**recorded, "data": {**recorded["data"], **change}})


def set_recorded(folder: Path, **change: object) -> None:
    recorded = yaml.safe_load((folder / "config.yaml").read_text())["recorded"]
    set_config(folder, recorded={**recorded, **change})


def set_weights(folder: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    save_file(change(load_file(folder / "model.safetensors")), folder / "model.safetensors")


def cut(path: Path, kept: int) -> None:
    path.write_bytes(path.read_bytes()[:kept])


def become_a_file(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.touch()


NO_RUN = "must be the folder of a run, with config.yaml; got "
NO_CLASSES = "got no names of classes and digests of the data."
UNREADABLE = "got a file that cannot be read as tensors ("

SPOILED: dict[str, tuple[Callable[[Path], object], str]] = {
    "no folder": (lambda folder: shutil.rmtree(folder), NO_RUN),
    "a file": (become_a_file, NO_RUN),
    "no config": (lambda folder: (folder / "config.yaml").unlink(), NO_RUN),
    "half a config": (lambda folder: cut(folder / "config.yaml", 90), NO_RUN),
    "another program's config": (lambda folder: (folder / "config.yaml").write_text("{}"), NO_RUN),
    "half the metrics": (
        lambda folder: cut(folder / "metrics.json", 90),
        "must be the folder of a finished run, with ",
    ),
    "no classes": (lambda folder: set_data(folder, classes=None), NO_CLASSES),
    "one class": (lambda folder: set_data(folder, classes=["2"]), NO_CLASSES),
    "classes twice": (lambda folder: set_data(folder, classes=["2", "2", "3"]), NO_CLASSES),
    "no digest": (lambda folder: set_data(folder, digest=None), NO_CLASSES),
    "data of another kind": (lambda folder: set_recorded(folder, data=[]), NO_CLASSES),
    "another number of classes": (
        lambda folder: set_data(folder, classes=["a", "b"]),
        "the weights of test_convnext for 2 classes; got weights of another shape or name.",
    ),
    "another model": (
        lambda folder: set_config(folder, model="test_vit"),
        "the weights of test_vit for 3 classes; got weights of another shape or name.",
    ),
    "a model that is none": (lambda folder: set_config(folder, model="birdnet9"), "must be the name of a timm model"),
    "a model from elsewhere": (
        lambda folder: set_config(folder, model="hf-hub:someone/something"),
        "must be the name of a timm model; got hf-hub:someone/something.",
    ),
    "a model that is a list": (lambda folder: set_config(folder, model=[5]), "`model` must be a word; got [5]."),
    "no image size": (lambda folder: set_config(folder, **{"image-size": None}), "got image-size: None."),
    "no size at all": (lambda folder: set_config(folder, **{"image-size": 0}), "got image-size: 0."),
    "a size beyond memory": (lambda folder: set_config(folder, **{"image-size": 10**6}), "got image-size: 1000000."),
    "a seed in words": (lambda folder: set_config(folder, seed="zero"), "`seed` must be a whole number; got 'zero'."),
    "no weights": (
        lambda folder: (folder / "model.safetensors").unlink(),
        "model.safetensors must hold the weights of test_convnext for 3 classes; got no such file.",
    ),
    "an empty file of weights": (lambda folder: (folder / "model.safetensors").write_bytes(b""), UNREADABLE),
    "half the weights": (lambda folder: cut(folder / "model.safetensors", 9000), UNREADABLE),
    "a header that is none": (
        lambda folder: (folder / "model.safetensors").write_bytes(b"\x40\0\0\0\0\0\0\0{"),
        UNREADABLE,
    ),
    "a checkpoint in their place": (
        lambda folder: (folder / "last.ckpt").replace(folder / "model.safetensors"),
        UNREADABLE,
    ),
    "no tensors": (lambda folder: set_weights(folder, lambda _: {}), "got weights of another shape or name."),
    "NaN in the weights": (
        lambda folder: set_weights(folder, lambda weights: {name: value / 0 for name, value in weights.items()}),
        "must hold finite weights; got NaN or infinity. Train again, with a smaller --lr.",
    ),
}


@pytest.mark.parametrize(("spoil", "sentence"), SPOILED.values(), ids=SPOILED.keys())
def test_what_is_no_run_is_said(folder: Path, spoil: Callable[[Path], object], sentence: str) -> None:
    spoil(folder)
    with pytest.raises(InputError) as caught:
        load_run(folder)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)
