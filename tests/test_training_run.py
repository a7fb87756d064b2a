"""Opening a run: what comes back, and one sentence for every folder that is none."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor

from tests.pictures import LABELS
from topkloss.training.errors import InputError
from topkloss.training.run import load_run


@pytest.fixture
def folder(trained: Path, tmp_path: Path) -> Path:
    """A run to spoil."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


def saved(folder: Path) -> dict[str, Tensor]:
    """The weights of the model in the checkpoint, by the names that the model gives them."""
    weights = torch.load(folder / "last.ckpt", weights_only=True)["state_dict"]
    return {name[len("model.") :]: value for name, value in weights.items() if name.startswith("model.")}


def test_a_run_is_what_was_trained(trained: Path) -> None:
    run = load_run(trained)
    assert run.classes == LABELS
    assert (run.config.model, run.image_size) == ("test_convnext", 32)
    assert (run.mean, run.std) == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    assert not run.model.training
    weights, expected = run.model.state_dict(), saved(trained)
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name].cpu(), expected[name]) for name in weights)


def test_the_device_can_be_chosen(trained: Path) -> None:
    assert load_run(trained, device="cpu").device == torch.device("cpu")


def test_safetensors_come_first(folder: Path) -> None:
    weights = {name: torch.full_like(value, 0.5) for name, value in saved(folder).items()}
    safetensors.torch.save_file(weights, folder / "model.safetensors")
    (folder / "last.ckpt").unlink()
    assert all(bool((value == 0.5).all()) for value in load_run(folder).model.state_dict().values())


class Payload:
    """Unpickled by an old `torch.load`, it would leave a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[Path], None], tuple[Path]]:
        return Path.touch, (self.path,)


def test_a_checkpoint_cannot_run_code(folder: Path, tmp_path: Path) -> None:
    state = torch.load(folder / "last.ckpt", weights_only=True)
    torch.save({**state, "more": Payload(tmp_path / "harm")}, folder / "last.ckpt")
    with pytest.raises(InputError, match=r"got a file that cannot be read as tensors \(UnpicklingError\)\."):
        load_run(folder)
    assert not (tmp_path / "harm").exists()
    torch.load(folder / "last.ckpt", weights_only=False)
    assert (tmp_path / "harm").exists(), "the payload would not have done anything: the test proves nothing"


def set_config(folder: Path, **change: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))


def set_data(folder: Path, **change: object) -> None:
    data = json.loads((folder / "config.json").read_text())["data"]
    set_config(folder, data={**data, **change})


def checkpoint(folder: Path, content: object) -> None:
    torch.save(content, folder / "last.ckpt")


def become_a_file(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.touch()


SPOILED: dict[str, tuple[Callable[[Path], object], str]] = {
    "no folder": (lambda folder: shutil.rmtree(folder), "must be the folder of a finished run"),
    "a file": (become_a_file, "must be the folder of a finished run"),
    "no config": (lambda folder: (folder / "config.json").unlink(), "must be the folder of a finished run"),
    "half a config": (
        lambda folder: (folder / "config.json").write_text((folder / "config.json").read_text()[:90]),
        "must be the folder of a finished run",
    ),
    "another program's config": (lambda folder: (folder / "config.json").write_text("{}"), "finished run"),
    "no metrics": (lambda folder: (folder / "metrics.json").unlink(), "must be the folder of a finished run"),
    "no classes": (lambda folder: set_data(folder, classes=None), "got no names of classes and digest of the data."),
    "one class": (lambda folder: set_data(folder, classes=["2"]), "got no names of classes and digest"),
    "classes twice": (lambda folder: set_data(folder, classes=["2", "2", "3"]), "got no names of classes and digest"),
    "no digest": (lambda folder: set_data(folder, digest=None), "got no names of classes and digest of the data."),
    "data of another kind": (lambda folder: set_config(folder, data=[]), "got no names of classes and digest"),
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
    "a model that is a number": (lambda folder: set_config(folder, model=5), "got model: 5."),
    "no image size": (lambda folder: set_config(folder, image_size=None), "got image_size: None."),
    "no size at all": (lambda folder: set_config(folder, image_size=0), "got image_size: 0."),
    "a size beyond memory": (lambda folder: set_config(folder, image_size=10**6), "got image_size: 1000000."),
    "a seed in words": (lambda folder: set_config(folder, seed="zero"), "got seed: 'zero'."),
    "no checkpoint": (lambda folder: (folder / "last.ckpt").unlink(), "last.ckpt must hold the weights of "),
    "an empty checkpoint": (lambda folder: (folder / "last.ckpt").write_bytes(b""), "(EOFError)"),
    "half a checkpoint": (
        lambda folder: (folder / "last.ckpt").write_bytes((folder / "last.ckpt").read_bytes()[:5000]),
        "got a file that cannot be read as tensors (",
    ),
    "a checkpoint of text": (lambda folder: (folder / "last.ckpt").write_text("weights"), "(UnpicklingError)"),
    "a checkpoint without weights": (lambda folder: checkpoint(folder, {"epoch": 1}), "(KeyError)"),
    "a checkpoint that is a list": (lambda folder: checkpoint(folder, [1]), "(TypeError)"),
    "another's checkpoint": (lambda folder: checkpoint(folder, {"state_dict": {}}), "weights of another shape or name"),
    "NaN in the weights": (
        lambda folder: checkpoint(
            folder, {"state_dict": {f"model.{name}": value / 0 for name, value in saved(folder).items()}}
        ),
        "must hold finite weights; got NaN or infinity. Train again, with a smaller --lr.",
    ),
    "half a safetensors file": (
        lambda folder: (folder / "model.safetensors").write_bytes(b"\x40\0\0\0\0\0\0\0{"),
        "model.safetensors must hold the weights of ",
    ),
}


@pytest.mark.parametrize(("spoil", "sentence"), SPOILED.values(), ids=SPOILED.keys())
def test_what_is_no_run_is_said(folder: Path, spoil: Callable[[Path], object], sentence: str) -> None:
    spoil(folder)
    with pytest.raises(InputError) as caught:
        load_run(folder)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)
