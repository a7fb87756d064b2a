"""Weights to begin from: by name, by order where no name is timm's, and what is refused; colours."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.pictures import write_pictures
from topkloss.app.data.dataset import DataOptions, read_table
from topkloss.app.errors import InputError
from topkloss.app.tasks.images.fit import fit, resume
from topkloss.app.tasks.images.models import create_model, load_weights
from topkloss.app.tasks.images.records import RunRecord, TrainConfig
from topkloss.app.tasks.images.run import load_run

MODEL = "test_resnet"
State = dict[str, Tensor]


def weights(classes: int = 3) -> State:
    """Of another seed than those they are loaded into."""
    torch.manual_seed(1)
    state: State = timm.create_model(MODEL, num_classes=classes).state_dict()
    return {name: torch.rand_like(value) if value.is_floating_point() else value for name, value in state.items()}


def renamed(state: State) -> State:
    """As another package calls them: other layers, the same kinds."""
    return {f"_net.{number:03}.{name.rpartition('.')[2]}": value for number, (name, value) in enumerate(state.items())}


def test_other_names_are_taken_in_their_order(tmp_path: Path) -> None:
    given = weights()
    torch.save(renamed(given), tmp_path / "other.pth")
    model = create_model(MODEL, 3)
    said = r"other\.pth has none of the names of test_resnet: its \d+ tensors are taken in their order"
    with pytest.warns(UserWarning, match=said):
        load_weights(model, MODEL, tmp_path / "other.pth")
    assert all(torch.equal(value, given[name]) for name, value in model.state_dict().items())


def test_a_last_layer_of_other_classes_stays_new_by_order_too(tmp_path: Path) -> None:
    given = weights(classes=1000)
    torch.save(renamed(given), tmp_path / "other.pth")
    model = create_model(MODEL, 3)
    fresh = model.state_dict()["fc.weight"].clone()
    with pytest.warns(UserWarning, match="taken in their order"):
        load_weights(model, MODEL, tmp_path / "other.pth")
    loaded = model.state_dict()
    assert torch.equal(loaded["fc.weight"], fresh)
    assert all(torch.equal(value, given[name]) for name, value in loaded.items() if not name.startswith("fc."))


def test_names_of_timm_are_taken_by_name(tmp_path: Path) -> None:
    """In any order, and without a word."""
    given = weights()
    torch.save(dict(reversed(given.items())), tmp_path / "own.pth")
    model = create_model(MODEL, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_weights(model, MODEL, tmp_path / "own.pth")
    assert all(torch.equal(value, given[name]) for name, value in model.state_dict().items())


def swapped(state: State, one: str, other: str) -> State:
    """The same with two tensors in each other's place."""
    names = [{one: other, other: one}.get(name, name) for name in state]
    return {name: state[name] for name in names}


UNLIKE: dict[str, Callable[[State], State]] = {
    "one missing": lambda state: renamed(dict(list(state.items())[1:])),
    "one more": lambda state: {**renamed(state), "_more.weight": torch.zeros(3)},
    "another shape": lambda state: renamed({**state, "conv1.0.weight": torch.zeros(1, 2)}),
    "shapes fit and kinds do not": lambda state: renamed(swapped(state, "bn1.weight", "bn1.running_mean")),
    "some names are timm's": lambda state: {**renamed(dict(list(state.items())[1:])), "conv1.0.weight": torch.zeros(1)},
    "empty": lambda state: {},
}


def test_a_safetensors_keeps_no_order(tmp_path: Path) -> None:
    save_file(renamed(weights()), tmp_path / "other.safetensors")
    with pytest.raises(InputError, match="names or shapes differ"):
        load_weights(create_model(MODEL, 3), MODEL, tmp_path / "other.safetensors")


@pytest.mark.parametrize("spoil", UNLIKE.values(), ids=UNLIKE.keys())
def test_what_fits_neither_way_is_refused(tmp_path: Path, spoil: Callable[[State], State]) -> None:
    own = weights()
    assert {"conv1.0.weight", "bn1.weight", "bn1.running_mean"} <= own.keys(), "the cases are about these"
    torch.save(spoil(own), tmp_path / "other.pth")
    model = create_model(MODEL, 3)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(
        InputError, match=r"^`--weights` must hold the weights of test_resnet; got .*names or shapes differ\."
    ):
        load_weights(model, MODEL, tmp_path / "other.pth")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


# colours


@pytest.fixture
def config(tmp_path: Path) -> TrainConfig:
    (tmp_path / "data").mkdir()
    table = write_pictures(tmp_path / "data")
    return TrainConfig(csv=str(table), model=MODEL, image_size=16, epochs=1, batch_size=9, out=str(tmp_path / "run"))


def test_images_are_normalised_as_asked_wherever_they_enter(config: TrainConfig, tmp_path: Path) -> None:
    """In training, in its measures, and in the run that is opened later; from a config file too."""
    plain = fit(config)
    assert plain.config.mean == load_run(config.folder).mean == (0.5, 0.5, 0.5)
    asked = replace(config, mean=[0.1, 0.2, 0.3], std=[0.4, 0.5, 0.6], out=str(tmp_path / "asked"))
    record = fit(asked)
    assert record.last.train_loss != plain.last.train_loss
    assert RunRecord.read(asked.folder).config.mean == (0.1, 0.2, 0.3)
    run = load_run(asked.folder)
    white = run.prepare(torch.ones(3, 16, 16))
    assert white[:, 0, 0].tolist() == pytest.approx([0.9 / 0.4, 0.8 / 0.5, 0.7 / 0.6])
    assert resume(asked.folder, {"mean": [0.1, 0.2, 0.3]}).last == record.last


@pytest.mark.parametrize(
    ("name", "numbers"),
    [
        *[("mean", (0.5,)), ("mean", ()), ("mean", (0.5, 0.5, 127.5)), ("mean", (0.5, 0.5, float("nan")))],
        *[("std", (0.0, 0.5, 0.5)), ("std", (0.5, 0.5, -0.5)), ("std", (0.2, 0.2, 0.2, 0.2))],
    ],
)
def test_colours_that_are_none_are_refused(config: TrainConfig, name: str, numbers: tuple[float, ...]) -> None:
    with pytest.raises(InputError, match=rf"^`--{name}` must be three numbers that satisfy 0 <=? {name} <= 1; got "):
        fit(replace(config, mean=numbers) if name == "mean" else replace(config, std=numbers))
    assert not config.folder.exists()


def test_a_resumed_run_takes_the_same_columns_again(tmp_path: Path) -> None:
    """As a command line gives them: a list, where the record holds a tuple."""
    table = write_pictures(tmp_path)
    rows = [line.split(",") for line in table.read_text().splitlines()[1:]]
    names = ["2", "10", "blank"]
    lines = [f"{image},{','.join('01'[label == name] for name in names)}" for image, label in rows]
    table.write_text("\n".join(["image,2,10,blank", *lines]))
    assert len(read_table(table, DataOptions(label_columns=names)).classes) == 3
    asked = TrainConfig(
        csv=str(table),
        label_columns=names,
        model=MODEL,
        image_size=16,
        epochs=1,
        batch_size=9,
        out=str(tmp_path / "run"),
    )
    record = fit(asked)
    (asked.folder / "metrics.json").unlink()
    assert resume(asked.folder, {"label_columns": list(names)}).last.train_loss == record.last.train_loss
    (asked.folder / "metrics.json").unlink()
    with pytest.raises(InputError, match=r"^`--label-columns` must be that of the run"):
        resume(asked.folder, {"label_columns": names[::-1]})
