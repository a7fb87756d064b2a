"""What a run is asked: the options of ``topkloss train``, each once, with its default, its values and its meaning.

The command builds its options from this table, a file of options is read against it, and a report reads it: none of
that needs torch. `checked` asks the library for its ranges.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Literal

from topkloss.app.data.layout import DataOptions
from topkloss.app.errors import InputError
from topkloss.app.options import shared
from topkloss.app.options.option import Option, check_choices, check_count, option, options_of, refusals_of

__all__ = ["FREE", "TrainConfig", "check_colours", "checked", "options"]

# Of each loss the options that it takes, and what they are where they are not given.
PARAMETERS: dict[str, dict[str, float | None]] = {
    "average": {},
    "top-k": {"fraction": 0.7},
    "ranked-range": {"fraction": 0.7, "drop_fraction": 0.1},
    "ohem": {"threshold": round(-math.log(0.7), 4), "fraction": None},
    "focal": {"focal_gamma": 2.0},
}
SCHEDULED = ("top-k", "ranked-range")

# These change no number: they may be given anew when a run is resumed. The data may have moved.
FREE = frozenset({"csv", "images", "workers", "device", "log"})


@dataclass(frozen=True)
class TrainConfig:
    """What a run is asked. Its fields are the options of ``topkloss train``, its defaults theirs.

    Each field's ``metadata["help"]`` says what it means, as ``topkloss train --help`` does. None is "not given":
    `checked` fills in what follows from the rest.
    """

    csv: str | None = shared.csv(
        "or a folder with a sub-folder per class", shown="default: 5000 embedded handwritten digits"
    )
    images: str | None = shared.images()
    image_column: str = shared.image_column()
    label_column: str = shared.label_column("classes")
    label_columns: Sequence[str] | None = shared.label_columns()
    image_suffix: str = shared.image_suffix()
    split_column: str | None = shared.split_column()
    group_by: str | None = shared.group_by()
    held_out: float = shared.held_out()
    pixel_range: Sequence[float] | None = shared.pixel_range()
    on_bad_image: Literal["fail", "skip"] = option(
        "fail", str, "what cannot be decoded: fail, or leave it out and count it", ("fail", "skip")
    )
    loss: Literal["top-k", "average", "ranked-range", "ohem", "focal"] = option(
        "top-k",
        str,
        "what of each batch is averaged: the hardest, all, a range, what is above a "
        "threshold; or focal, for comparison",
        tuple(PARAMETERS),
    )
    fraction: float | None = option(
        None,
        float,
        "share of each batch that is averaged, in (0, 1]; under ohem the least share kept",
        shown="default: 0.7; under ohem none",
    )
    drop_fraction: float | None = shared.drop_fraction("each batch", "ranked-range drops first", "default: 0.1")
    threshold: float | None = option(
        None, float, "loss, in nats, above which ohem keeps an image", shown="default: 0.3567, a probability of 0.7"
    )
    focal_gamma: float | None = option(None, float, "exponent of the focal loss", shown="default: 2")
    class_weights: Literal["none", "balanced"] = shared.class_weights("images")
    label_smoothing: float = option(0.0, float, "share of the target spread evenly over the classes, in [0, 1)")
    schedule: Literal["constant", "linear", "cosine"] = option(
        "constant", str, "the fraction over training: at once, or down from 1", ("constant", "linear", "cosine")
    )
    schedule_epochs: int | None = option(
        None, int, "epochs until the fraction is reached", shown="default: half of --epochs", least=1
    )
    model: str = option("resnet10t", str, "name of a timm model")
    pretrained: bool = option(False, bool, "begin from timm's weights, which are downloaded once")
    weights: str | None = option(None, str, "begin from the weights in this .safetensors or .pth file")
    image_size: int | None = option(
        None,
        int,
        "height and width that images are resized to",
        shown="default: the model's own; 32 for the digits",
        least=1,
    )
    mean: Sequence[float] | None = option(
        None,
        float,
        "of red, green and blue in [0, 1]: what is subtracted from images",
        shown="default: the model's own",
        many=True,
    )
    std: Sequence[float] | None = option(
        None,
        float,
        "of red, green and blue: what they are then divided by",
        shown="default: the model's own",
        many=True,
    )
    augment: Literal["none", "light", "strong"] = option(
        "none",
        str,
        "light: small shifts, turns, scales, brightness; strong: crops, mirror images, TrivialAugment, erasing",
        ("none", "light", "strong"),
    )
    epochs: int = option(4, int, "passes over the training images", least=1)
    batch_size: int = option(64, int, "images of a forward pass, per process", least=1)
    accumulate: int = option(1, int, "batches of a step, ranked together", least=1)
    opt: Literal["adam", "adamw", "sgd"] = option("adam", str, "optimiser of timm", ("adam", "adamw", "sgd"))
    lr: float = option(1e-3, float, "highest learning rate, in (0, 1]")
    weight_decay: float = option(0.0, float, "weight decay; not of biases and normalisations")
    sched: Literal["cosine", "none"] = option(
        "cosine", str, "the learning rate over training: down to 0, or constant", ("cosine", "none")
    )
    warmup_epochs: int = option(0, int, "epochs over which the learning rate rises to --lr", least=0)
    precision: Literal["32", "bf16-mixed", "16-mixed"] = option(
        "32", str, "of the computation, as Lightning has it", ("32", "bf16-mixed", "16-mixed")
    )
    channels_last: bool = option(False, bool, "keep images and weights with the channels last in memory")
    compile: bool = option(False, bool, "compile the model by torch.compile")
    ema: float | None = option(
        None, float, "average the weights with this decay, in (0, 1), and measure and keep the average"
    )
    early_stopping: int | None = option(
        None, int, "stop after so many epochs without a lower held-out cross-entropy; keep the best", least=1
    )
    seed: int = shared.seed("split, initial weights, order and augmentation")
    split_seed: int | None = shared.split_seed()
    device: str = shared.device()
    workers: int | None = shared.workers()
    skip_easy: bool = option(
        False, bool, "rank each batch first, without gradient, and back-propagate the selected images only"
    )
    log: Literal["none", "tensorboard"] = option(
        "none", str, "write the epochs for TensorBoard too", ("none", "tensorboard")
    )
    out: str | None = shared.out()

    def __post_init__(self) -> None:
        for name in ("label_columns", "mean", "std", "pixel_range"):
            if (several := getattr(self, name)) is not None:
                object.__setattr__(self, name, tuple(several))

    @property
    def data_options(self) -> DataOptions:
        """How the data set is laid out."""
        return DataOptions(**{one.name: getattr(self, one.name) for one in fields(DataOptions)})

    @property
    def split(self) -> int:
        """The seed that decides which images are held out."""
        return self.seed if self.split_seed is None else self.split_seed

    @property
    def share(self) -> float:
        """The fraction in effect: 1 is the average."""
        value = self.fraction if self.fraction is not None else PARAMETERS[self.loss].get("fraction")
        return 1.0 if value is None else value

    @property
    def called(self) -> str:
        """The loss and its parameters, in a few letters: a column of a report."""
        if self.loss in ("average", "top-k"):
            return "average" if self.share == 1 else f"top-k {self.share:g}"
        asked = [(getattr(self, name), default) for name, default in PARAMETERS[self.loss].items()]
        numbers = [default if number is None else number for number, default in asked]
        return " ".join([self.loss, *(f"{number:g}" for number in numbers if number is not None)])

    @property
    def folder(self) -> Path:
        """The folder of the run."""
        if self.out is not None:
            return Path(self.out)
        data = "digits" if self.csv is None else Path(os.path.abspath(self.csv)).stem
        return Path("runs") / f"{data}-{self.called.replace(' ', '-')}-seed{self.seed}"


def options() -> dict[str, Option]:
    """All options, by name, in the order of the help."""
    return options_of(TrainConfig)


def checked(config: TrainConfig) -> TrainConfig:
    """The config with what was left open filled in, where nothing has to be read to know it.

    Raises:
        InputError: If an option is out of range, or two contradict each other.
    """
    check_choices(config)
    _check_parameters(config)
    _check_numbers(config)
    check_colours(config)
    _check_pairs(config)
    filled = {name: value for name, value in PARAMETERS[config.loss].items() if getattr(config, name) is None}
    if config.loss == "average":
        filled["fraction"] = 1.0
    if config.schedule != "constant" and config.schedule_epochs is None:
        filled["schedule_epochs"] = max(1, config.epochs // 2)
    return replace(config, **filled)  # type: ignore[arg-type]


def _check_parameters(config: TrainConfig) -> None:
    """Checks that each loss gets its own parameters; `average` is fraction 1."""
    if config.loss == "average" and config.share != 1:
        raise InputError(
            f"`--fraction` must be 1 with --loss average, which averages all; got {config.share:g}. "
            "Leave it out, or pass --loss top-k."
        )
    for name in ("fraction", "drop_fraction", "threshold", "focal_gamma"):
        value = getattr(config, name)
        if value is None or name in PARAMETERS[config.loss] or (config.loss == "average" and name == "fraction"):
            continue
        takes = next(loss for loss, own in PARAMETERS.items() if name in own)
        word = name.replace("_", "-")
        raise InputError(
            f"`--{word}` must be left out with --loss {config.loss}, which takes none; got {value:g}. "
            f"Pass --loss {takes}, or leave it out."
        )


def _check_numbers(config: TrainConfig) -> None:
    from topkloss.base.arguments import check_drop, check_k  # here: it loads torch

    with refusals_of("fraction"):
        check_k(None, config.share)
    with refusals_of("drop-fraction"):
        check_drop(None, config.drop_fraction)
    for one in fields(TrainConfig):
        value, least = getattr(config, one.name), one.metadata["least"]
        if least is not None:
            check_count(one.name, value, least)
    ranges = (
        ("lr", "0 < lr <= 1", 0 < config.lr <= 1),
        ("threshold", "0 <= threshold <= 1000", 0 <= (config.threshold or 0) <= 1000),
        ("focal_gamma", "0 <= focal-gamma <= 1000", 0 <= (config.focal_gamma or 0) <= 1000),
        ("label_smoothing", "0 <= label-smoothing < 1", 0 <= config.label_smoothing < 1),
        ("weight_decay", "0 <= weight-decay <= 1000", 0 <= config.weight_decay <= 1000),
        ("ema", "0 < ema < 1", config.ema is None or 0 < config.ema < 1),
    )
    for name, rule, holds in ranges:
        if not holds:
            word, value = name.replace("_", "-"), getattr(config, name)
            raise InputError(f"`--{word}` must satisfy {rule}; got {value:g}. Leave it out for the default.")


def check_colours(config: TrainConfig) -> None:
    """Whether mean and standard deviation, where they are given, can be those of colours.

    Raises:
        InputError: If not.
    """
    for name, rule, holds in (
        ("mean", "0 <= mean <= 1", lambda value: 0 <= value <= 1),
        ("std", "0 < std <= 1", lambda value: 0 < value <= 1),
    ):
        numbers = getattr(config, name)
        if numbers is not None and not (len(numbers) == 3 and all(map(holds, numbers))):
            got = " ".join(f"{number:g}" for number in numbers) or "nothing"
            raise InputError(
                f"`--{name}` must be three numbers that satisfy {rule}; got {got}. For channels in [0, 255] divide "
                "by 255; leave it out for the model's own."
            )


def _check_pairs(config: TrainConfig) -> None:
    if config.schedule != "constant" and config.loss not in SCHEDULED:
        raise InputError(
            f"`--schedule` must be constant with --loss {config.loss}, whose fraction does not move; got "
            f"{config.schedule}. Leave it out, or pass --loss top-k."
        )
    if config.schedule == "constant" and config.schedule_epochs is not None:
        raise InputError(
            f"`--schedule-epochs` must come with a schedule; got {config.schedule_epochs} without one. "
            "Pass --schedule linear, or leave it out."
        )
    if config.loss == "focal" and config.label_smoothing:
        raise InputError(
            f"`--label-smoothing` must be 0 with --loss focal, which knows no other target; got "
            f"{config.label_smoothing:g}. Leave it out, or pass another loss."
        )
    if config.pretrained and config.weights is not None:
        raise InputError(
            f"`--weights` must be left out with --pretrained, which are weights too; got {config.weights}. "
            "Leave one of them out."
        )
    if config.warmup_epochs >= config.epochs and config.warmup_epochs > 0:
        raise InputError(
            f"`--warmup-epochs` must be fewer than --epochs; got {config.warmup_epochs} of {config.epochs}. "
            f"Pass --warmup-epochs {config.epochs - 1}, or more epochs."
        )
    if config.skip_easy and config.loss in ("average", "focal"):
        raise InputError(
            f"`--skip-easy` must be left out with --loss {config.loss}, which selects all; got both. "
            "Leave it out, or pass --loss top-k."
        )
