"""From the words of the command to losses, optimisers, schedules, weights and chance."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from torch.nn import functional as F
from torch.utils.data import Dataset

from topkloss.app.data.dataset import preparation
from topkloss.app.errors import InputError
from topkloss.app.tasks.images.config import PARAMETERS, TrainConfig, checked
from topkloss.app.tasks.images.criterion import CRITERIA, create_criterion
from topkloss.app.tasks.images.models import create_model, load_weights
from topkloss.app.tasks.images.optimisation import create_fraction_schedule, create_optimizer, create_schedule
from topkloss.app.tasks.images.sampling import Drawn, Order, augmentation

COUNTS = (10, 20, 30)


def value(config: TrainConfig, logits: torch.Tensor, labels: torch.Tensor) -> float:
    return float(create_criterion(checked(config), COUNTS)(logits, labels))


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor]:
    chance = torch.Generator().manual_seed(0)
    return torch.randn(20, 3, generator=chance), torch.randint(3, (20,), generator=chance)


def test_each_word_is_its_loss(batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    logits, labels = batch
    losses = F.cross_entropy(logits, labels, reduction="none")
    largest = losses.sort(descending=True).values
    p = torch.exp(-losses)
    assert CRITERIA.keys() == PARAMETERS.keys()
    expected = {
        "average": losses.mean(),
        "top-k": largest[:14].mean(),
        "ranked-range": largest[2:16].mean(),
        "ohem": losses[losses > 0.3567].mean(),
        "focal": ((1 - p) ** 2 * losses).mean(),
    }
    for word, loss in expected.items():
        assert value(TrainConfig(loss=word), logits, labels) == pytest.approx(loss.item(), rel=1e-5)  # type: ignore[arg-type]


def test_ohem_keeps_at_least_the_fraction(batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    logits, labels = batch
    losses = F.cross_entropy(logits, labels, reduction="none")
    kept = losses.sort(descending=True).values[:5].mean().item()
    assert value(TrainConfig(loss="ohem", threshold=99.0, fraction=0.25), logits, labels) == pytest.approx(kept)


@pytest.mark.parametrize("word", ["average", "focal"])
def test_balanced_class_weights_are_mass(word: Any, batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    logits, labels = batch
    weight = torch.tensor([60 / (3 * count) for count in COUNTS])
    losses = F.cross_entropy(logits, labels, reduction="none")
    if word == "focal":
        losses = losses * (1 - torch.exp(-losses)) ** 2
    expected = (weight[labels] * losses).sum() / weight[labels].sum()
    given = value(TrainConfig(loss=word, class_weights="balanced"), logits, labels)
    assert given == pytest.approx(expected.item(), rel=1e-5)


def test_smoothing_is_torchs(batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    expected = F.cross_entropy(*batch, label_smoothing=0.1).item()
    assert value(TrainConfig(loss="average", label_smoothing=0.1), *batch) == pytest.approx(expected, rel=1e-5)


def test_the_focal_loss_has_a_finite_slope_where_it_is_0() -> None:
    logits = torch.tensor([[200.0, 0.0, 0.0]], requires_grad=True)
    create_criterion(checked(TrainConfig(loss="focal", focal_gamma=0.5)), COUNTS)(logits, torch.tensor([0])).backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


# Optimisation


@pytest.mark.parametrize(("word", "kind"), [("adam", "Adam"), ("adamw", "AdamW"), ("sgd", "SGD")])
def test_the_optimiser_is_timms(word: Any, kind: str) -> None:
    model = timm.create_model("test_resnet", num_classes=3)
    optimizer = create_optimizer(TrainConfig(opt=word, weight_decay=0.1), model)
    assert type(optimizer).__name__ == kind
    assert sorted(group["weight_decay"] for group in optimizer.param_groups) == [0.0, 0.1]


def test_the_learning_rate_is_a_function_of_the_step() -> None:
    def rates(**given: Any) -> list[float]:
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
        schedule = create_schedule(checked(TrainConfig(lr=0.1, epochs=4, **given)), optimizer, 10)
        found = []
        for step in range(40):
            schedule.step_update(step)
            found.append(optimizer.param_groups[0]["lr"])
        return found

    cosine = rates()
    assert cosine == pytest.approx([0.05 * (1 + math.cos(math.pi * step / 40)) for step in range(40)])
    assert rates(sched="none") == [0.1] * 40
    warm = rates(warmup_epochs=1)
    assert warm[:10] == pytest.approx([1e-5 + (0.1 - 1e-5) * step / 10 for step in range(10)])
    assert warm[10:] == pytest.approx(cosine[10:])


def test_the_fraction_comes_down_in_the_epochs_asked() -> None:
    config = checked(TrainConfig(fraction=0.5, schedule="linear", schedule_epochs=2))
    criterion: Any = create_criterion(config, COUNTS)
    schedule = create_fraction_schedule(config, criterion, 5)
    assert schedule is not None
    assert criterion.fraction == 1
    for _ in range(5):
        schedule.step()
    assert criterion.fraction == 0.75
    for _ in range(9):
        schedule.step()
    assert criterion.fraction == 0.5
    assert create_fraction_schedule(checked(TrainConfig()), criterion, 5) is None


# Weights to begin from


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_weights_are_loaded_but_for_a_last_layer_of_other_classes(tmp_path: Path, suffix: str) -> None:
    torch.manual_seed(1)
    state = create_model("test_resnet", 7).state_dict()
    file = tmp_path / f"weights{suffix}"
    save_file(state, file) if suffix == ".safetensors" else torch.save({"state_dict": state}, file)
    model = create_model("test_resnet", 3)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    load_weights(model, "test_resnet", file)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name] if name.startswith("fc.") else state[name]), name
    same = create_model("test_resnet", 7)
    load_weights(same, "test_resnet", file)
    assert all(torch.equal(tensor, state[name]) for name, tensor in same.state_dict().items())


class Evil:
    """Would run a program if it were unpickled."""

    def __reduce__(self) -> Any:
        return (exec, ("raise SystemExit('executed')",))


def write_evil(file: Path) -> None:
    torch.save({"state_dict": Evil()}, file)


def write_other_model(file: Path) -> None:
    torch.save(create_model("test_vit", 3).state_dict(), file)


def write_text(file: Path) -> None:
    file.write_text("no weights")


def write_numbers(file: Path) -> None:
    torch.save([1, 2], file)


def write_nothing(file: Path) -> None:
    """There is no file."""


@pytest.mark.parametrize(
    ("write", "name", "sentence"),
    [
        (write_evil, "w.pth", "must be a file of weights, .safetensors or .pth; got "),
        (write_text, "w.pth", "must be a file of weights, .safetensors or .pth; got "),
        (write_text, "w.safetensors", "must be a file of weights, .safetensors or .pth; got "),
        (write_numbers, "w.pth", "must be a file of weights, .safetensors or .pth; got "),
        (write_nothing, "w.pth", "must be a file of weights, .safetensors or .pth; got "),
        (write_other_model, "w.pth", "must hold the weights of test_resnet; got "),
    ],
)
def test_what_are_no_weights_of_the_model_is_said(tmp_path: Path, write: Any, name: str, sentence: str) -> None:
    write(tmp_path / name)
    with pytest.raises(InputError) as caught:
        load_weights(create_model("test_resnet", 3), "test_resnet", tmp_path / name)
    assert str(caught.value).startswith(f"`--weights` {sentence}{tmp_path / name}")
    assert "\n" not in str(caught.value)


def test_pretrained_weights_that_cannot_be_had_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object, **__: object) -> None:
        raise ConnectionError("no route to host\nand more")

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(InputError) as caught:
        create_model("test_resnet", 3, pretrained=True)
    assert str(caught.value) == (
        "`--pretrained` must find the weights of test_resnet in the cache or download them; got ConnectionError. "
        "Connect to the network, pass --weights with a file, or leave it out."
    )
    monkeypatch.setattr(timm, "is_model_pretrained", lambda _: False)
    with pytest.raises(InputError, match="must come with a model that timm has weights of; got test_resnet,"):
        create_model("test_resnet", 3, pretrained=True)


# Chance


def test_processes_share_the_order_of_one() -> None:
    whole = list(Order(10, seed=3))
    assert sorted(place for _, place, _ in whole) == list(range(10))
    assert all(counts for *_, counts in whole)
    shares = [list(Order(10, seed=3, processes=4, rank=rank)) for rank in range(4)]
    dealt = [chosen for turn in zip(*shares, strict=True) for chosen in turn]
    assert dealt[:10] == whole
    assert [(place, counts) for _, place, counts in dealt[10:]] == [(place, False) for _, place, _ in whole[:2]]
    later = Order(10, seed=3)
    later.set_epoch(1)
    assert [place for _, place, _ in later] != [place for _, place, _ in whole]
    assert {epoch for epoch, *_ in later} == {1}


class Coins(Dataset[tuple[torch.Tensor, int]]):
    """Images that are nothing but chance."""

    def __getitem__(self, place: int) -> tuple[torch.Tensor, int]:
        return torch.rand(1), place


def test_what_is_drawn_for_an_image_depends_on_nothing_else() -> None:
    drawn = Drawn(Coins(), seed=0)
    before = torch.get_rng_state()
    first = drawn[0, 5, True][0]
    torch.rand(3)
    assert torch.equal(drawn[0, 5, True][0], first)
    assert not torch.equal(drawn[1, 5, True][0], first)
    assert not torch.equal(drawn[0, 6, True][0], first)
    assert not torch.equal(Drawn(Coins(), seed=1)[0, 5, True][0], first)
    torch.set_rng_state(before)
    expected = torch.rand(1)
    torch.set_rng_state(before)
    drawn[0, 5, True]
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize("name", ["none", "light", "strong"])
def test_augmented_images_are_prepared_images(name: str) -> None:
    image = Image.effect_mandelbrot((40, 30), (-2, -1, 1, 1), 50).convert("RGB")
    prepare = preparation(16, (0.5,) * 3, (0.5,) * 3)
    changed = augmentation(name, 16, prepare)
    pictures = [changed(image) for _ in range(8)]
    assert all(picture.shape == (3, 16, 16) and picture.dtype == torch.float32 for picture in pictures)
    same = [torch.equal(picture, prepare(image)) for picture in pictures]
    assert all(same) if name == "none" else not any(same)
