"""`docs/migrate.md` is true: each line of its table beside the package, or beside the package's rule in plain Python.

The lines are taken from the page, so a line that changes there is tested as it stands. Rules are written out from what
each package documents, on lists of Python floats; a package that is not installed (extra `bench`) is a skip.
"""

from __future__ import annotations

import math
import random
import re
import types
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks import peers
from topkloss import OHEMLoss, average_top_k

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "migrate.md").read_text(encoding="utf-8")
IGNORED = 255
NOTHING: Mapping[str, str] = {}


# the page


@dataclass(frozen=True)
class Line:
    """One row of the table."""

    version: str
    before: str
    here: str
    same: str


def read_table() -> dict[str, Line]:
    rows = re.findall(r"^\| ([^|]+) \| ([^|]+) \| ([^|]+) \| ([^|]+) \| ([^|]+) \|$", PAGE, flags=re.MULTILINE)
    assert rows[0][0] == "from"
    return {row[0].replace("`", ""): Line(*(cell.strip("`") for cell in row[1:])) for row in rows[1:]}


TABLE = read_table()


def names_of_the_page() -> dict[str, Any]:
    """What its definitions define."""
    names: dict[str, Any] = {}
    for code in re.findall(r"^```python\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL):
        if not code.startswith(">>> "):
            exec(code, names)
    return names


def here(row: str, instead: Mapping[str, str] = NOTHING, **values: Any) -> Any:
    """What the line of the page makes, with other numbers `instead`, for `values` of the names it leaves open."""
    line = TABLE[row].here
    for number, other in instead.items():
        assert number in line
        line = line.replace(number, other)
    return eval(line, names_of_the_page() | values)


# batches


@dataclass(frozen=True)
class Batch:
    """Logits (N, C, H, W) in float64, and labels."""

    logits: Tensor
    labels: Tensor

    def ignoring(self, share: float) -> Batch:
        """The same with the first rows of pixels ignored."""
        labels = self.labels.clone()
        labels[:, : round(share * labels.shape[1])] = IGNORED
        return replace(self, labels=labels)

    def images(self) -> list[list[float]]:
        """Cross-entropy of each labelled pixel of each image, in Python floats."""
        return [
            [
                math.log1p(sum(math.exp(z - row[label]) for c, z in enumerate(row) if c != label))
                for row, label in zip(pixels.tolist(), labels.tolist(), strict=True)
                if label >= 0 and label != IGNORED
            ]
            for pixels, labels in zip(self.logits.movedim(1, -1).flatten(1, 2), self.labels.flatten(1), strict=True)
        ]

    def losses(self) -> list[float]:
        return [loss for image in self.images() for loss in image]

    def leaf(self) -> Tensor:
        return self.logits.clone().requires_grad_()


def batch(lead: float = 0.0, spread: float = 3.0) -> Batch:
    """160 pixels of 2 images; with a `lead` for the true class the pixels are easy."""
    generator = torch.Generator().manual_seed(5)
    logits = spread * torch.randn(2, 5, 8, 10, generator=generator, dtype=torch.float64)
    labels = torch.randint(5, (2, 8, 10), generator=generator)
    return Batch(logits + lead * F.one_hot(labels, 5).movedim(-1, 1), labels)


HARD, EASY = batch(), batch(lead=12.0)
CONFIDENT = batch(lead=12.0, spread=1.0)  # probabilities that bfloat16 rounds to 1
FEW = {"100_000": "20"}


def number(value: Any) -> float:
    return float(value.detach() if isinstance(value, Tensor) else value)


def same(ours: Any, theirs: Any) -> None:
    assert number(ours) == pytest.approx(number(theirs), rel=1e-6, abs=0)


def differs(ours: Any, theirs: Any) -> None:
    assert number(ours) != pytest.approx(number(theirs), rel=1e-3)


# plain Python


def mean(values: list[float]) -> float:
    return math.fsum(values) / len(values) if values else math.nan


def largest(values: list[float], count: int) -> float:
    return mean(sorted(values, reverse=True)[:count])


def above(values: list[float], threshold: float, at_least: int) -> float:
    """Mean of the losses above the threshold, or of the `at_least` largest if those are more."""
    return largest(values, max(at_least, sum(value > threshold for value in values)))


def tail(values: list[float], share: float) -> float:
    """Each of the largest whole ones weighs one over the share of n, the next what is left."""
    weight, rest, total = 1 / (share * len(values)), 1.0, 0.0
    for value in sorted(values, reverse=True):
        total += min(weight, rest) * value
        rest -= min(weight, rest)
    return total


def deeplab(batch: Batch, share: float, *, by_number_kept: bool) -> float:
    """The largest of all pixels, ignored ones as zeros; divided by k, or by how many of them are not zero."""
    count = int(share * batch.labels.numel())
    kept = sorted(batch.losses() + [0.0] * int((batch.labels == IGNORED).sum()), reverse=True)[:count]
    return math.fsum(kept) / (sum(loss != 0 for loss in kept) if by_number_kept else len(kept))


def paddle_ohem(batch: Batch, min_kept: int) -> float:
    """Those less probable than .7, or than the `min_kept`-th if that is more; 1e-5 is added to the share kept."""
    losses = sorted(batch.losses(), reverse=True)
    kept = [loss for loss in losses if loss > min(-math.log(0.7), losses[min_kept - 1])]
    share = len(kept) / batch.labels.numel()
    return mean(kept) * share / (share + 1e-5)


def bootstrapped(batch: Batch, min_k: int) -> float:
    """In each image those above .3, or the `min_k` largest, ignored ones as zeros; the mean over the images."""
    size = batch.labels[0].numel()
    return mean([above(losses + [0.0] * (size - len(losses)), 0.3, min_k) for losses in batch.images()])


def ssd(batch: Batch) -> float:
    """The sum over positives and three negatives for each, image by image, over the number of positives."""
    total, positives = 0.0, 0
    for losses, labels in zip(batch.images(), batch.labels.flatten(1).tolist(), strict=True):
        own = [loss for loss, label in zip(losses, labels, strict=True) if label > 0]
        rest = [loss for loss, label in zip(losses, labels, strict=True) if label == 0]
        total += sum(own) + sum(sorted(rest, reverse=True)[: 3 * len(own)])
        positives += len(own)
    return total / positives


def notebook(losses: list[float]) -> float:
    return largest(losses, int(0.7 * len(losses)))


def with_positives(*numbers: int) -> Batch:
    """So many pixels of class 1 in each image, the rest background."""
    labels = torch.zeros_like(HARD.labels)
    for image, number in zip(labels, numbers, strict=True):
        image.view(-1)[:number] = 1
    return replace(HARD, labels=labels)


CRITERIA: list[tuple[str, Mapping[str, str], Batch, float]] = [
    ("PaddleSeg OhemCrossEntropyLoss", {"10_000": "20"}, HARD, paddle_ohem(HARD, 20)),
    ("PaddleSeg OhemCrossEntropyLoss", {"10_000": "20"}, HARD.ignoring(0.5), paddle_ohem(HARD.ignoring(0.5), 20)),
    ("PaddleSeg CrossEntropyLoss", NOTHING, HARD, largest(HARD.losses(), 32)),
    ("PaddleSeg BootstrappedCrossEntropyLoss", {"4096": "7"}, HARD, bootstrapped(HARD, 7)),
    ("PaddleSeg BootstrappedCrossEntropyLoss", {"4096": "7"}, EASY, bootstrapped(EASY, 7)),
    ("PaddleSeg BootstrappedCrossEntropyLoss", {"4096": "7"}, EASY.ignoring(0.5), bootstrapped(EASY.ignoring(0.5), 7)),
    ("BiSeNet OhemCELoss", NOTHING, HARD, above(HARD.losses(), -math.log(0.7), 160 // 16)),
    ("BiSeNet OhemCELoss", NOTHING, EASY, above(EASY.losses(), -math.log(0.7), 160 // 16)),
    ("BiSeNet OhemCELoss", NOTHING, EASY.ignoring(0.5), above(EASY.ignoring(0.5).losses(), -math.log(0.7), 80 // 16)),
    ("HRNet OhemCrossEntropy", FEW, HARD, above(HARD.losses(), -math.log(0.7), 20)),
    ("HRNet OhemCrossEntropy", FEW, EASY, above(EASY.losses(), -math.log(0.7), 20)),
    ("HRNet OhemCrossEntropy", FEW, EASY.ignoring(0.5), above(EASY.ignoring(0.5).losses(), -math.log(0.7), 20)),
    ("detectron2 DeepLabCE", NOTHING, HARD, deeplab(HARD, 0.2, by_number_kept=False)),
    ("super-gradients OhemCELoss", NOTHING, HARD, above(HARD.losses(), -math.log(0.7), int(0.1 * 160))),
    ("super-gradients OhemCELoss", NOTHING, EASY, above(EASY.losses(), -math.log(0.7), int(0.1 * 160))),
    (
        "super-gradients OhemCELoss",
        NOTHING,
        EASY.ignoring(0.5),
        above(EASY.ignoring(0.5).losses(), -math.log(0.7), int(0.1 * 80)),
    ),
    ("The notebook's own class", NOTHING, HARD, notebook(HARD.losses())),
]


@pytest.mark.parametrize(("row", "instead", "batch", "expected"), CRITERIA)
def test_the_value_is_that_of_the_rule(row: str, instead: Mapping[str, str], batch: Batch, expected: float) -> None:
    criterion = here(row, instead)
    if row.startswith("PaddleSeg Ohem"):  # it adds 1e-5 to the share by which it divides
        share = sum(loss > -math.log(0.7) for loss in batch.losses()) / 160
        assert float(criterion(batch.logits, batch.labels)) == pytest.approx(expected, rel=1.01e-5 / share)
        return
    same(criterion(batch.logits, batch.labels), expected)


def test_the_batches_let_the_threshold_decide_and_the_floor() -> None:
    hard, easy = (sum(loss > -math.log(0.7) for loss in batch.losses()) for batch in (HARD, EASY))
    assert hard > 40
    assert 0 < easy < 4
    assert len(set(HARD.losses())) == len(set(EASY.losses())) == 160


# those that pip has


def require(distribution: str, version: str) -> None:
    if peers.version_of(distribution) != version:
        pytest.skip(f"{distribution} {version} is not installed (extra `bench`)")


@pytest.fixture
def quiet() -> Any:
    """What the packages warn of when they are imported and built is theirs."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def check(ours: nn.Module, theirs: Callable[[Tensor, Tensor], Tensor], batch: Batch, factor: float = 1.0) -> None:
    """Value and gradient."""
    mine, other = batch.leaf(), batch.leaf()
    value, expected = factor * ours(mine, batch.labels), theirs(other, batch.labels)
    same(value, expected)
    value.backward()
    expected.backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(mine.grad, other.grad, rtol=1e-5, atol=1e-9)


def nnunet(**arguments: Any) -> Callable[[Tensor, Tensor], Tensor]:
    row = TABLE["nnU-Net TopKLoss"]
    require("nnunetv2", row.version)
    module = pytest.importorskip("nnunetv2.training.loss.robust_ce_loss")
    assert row.before == "TopKLoss(k=10)"
    criterion = module.TopKLoss(**{"k": 10} | arguments)
    return lambda logits, labels: criterion(logits, labels.unsqueeze(1))


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("batch", [HARD, EASY])
def test_nnunet_top_k(batch: Batch) -> None:
    check(here("nnU-Net TopKLoss"), nnunet(), batch)


@pytest.mark.usefixtures("quiet")
def test_nnunet_counts_ignored_voxels_as_zeros() -> None:
    ours = here("nnU-Net TopKLoss", {"fraction=0.1": "fraction=0.1, ignore_index=255"})
    half, rare = HARD.ignoring(0.5), HARD.ignoring(1.0)
    rare.labels[0, 0] = 1  # 10 of 160 pixels: 6 of the 16 largest are zeros
    theirs = nnunet(ignore_index=IGNORED)
    differs(ours(half.logits, half.labels), theirs(half.logits, half.labels))
    same(theirs(half.logits, half.labels), largest(half.losses(), 16))
    divided = here("nnU-Net TopKLoss", {"fraction=0.1": "fraction=0.1 / 0.5, ignore_index=255"})
    same(divided(half.logits, half.labels), theirs(half.logits, half.labels))
    same(theirs(rare.logits, rare.labels), mean(rare.losses() + [0.0] * 6))
    same(ours(rare.logits, rare.labels), max(rare.losses()))


@pytest.mark.usefixtures("quiet")
def test_nnunet_of_nine_voxels_is_nan() -> None:
    logits, labels = HARD.logits[:1, :, :1, :9], HARD.labels[:1, :1, :9]
    assert nnunet()(logits, labels).isnan()
    same(here("nnU-Net TopKLoss")(logits, labels), max(replace(HARD, logits=logits, labels=labels).losses()))


@pytest.mark.usefixtures("quiet")
def test_nnunet_does_not_divide_by_the_class_weights() -> None:
    weight = torch.tensor([10.0, 1.0, 1.0, 1.0, 1.0], dtype=torch.float64)
    ours = here("nnU-Net TopKLoss", {"fraction=0.1": "fraction=1.0, weight=weight"}, weight=weight)
    value = ours(HARD.logits, HARD.labels)
    same(value, F.cross_entropy(HARD.logits, HARD.labels, weight=weight))
    same(nnunet(k=100, weight=weight)(HARD.logits, HARD.labels), value * weight[HARD.labels].mean())
    differs(value, value * weight[HARD.labels].mean())


@pytest.mark.usefixtures("quiet")
def test_nnunet_with_smoothing_mines_what_is_right() -> None:
    confident = batch(lead=20.0)
    smoothed = F.cross_entropy(confident.logits, confident.labels, label_smoothing=0.1, reduction="none")
    same(nnunet(label_smoothing=0.1)(confident.logits, confident.labels), largest(smoothed.flatten().tolist(), 16))
    ours = here("nnU-Net TopKLoss", {"fraction=0.1": "fraction=0.1, label_smoothing=0.1"})
    plain = F.cross_entropy(confident.logits, confident.labels, reduction="none")
    value = ours(confident.logits, confident.labels)
    same(value, smoothed.flatten()[plain.flatten().topk(16).indices].mean())
    differs(value, largest(smoothed.flatten().tolist(), 16))


def dice_and_top_k(**dice: Any) -> Callable[[Tensor, Tensor], Tensor]:
    row = TABLE["nnU-Net DC_and_topk_loss"]
    require("nnunetv2", row.version)
    module = pytest.importorskip("nnunetv2.training.loss.compound_losses")
    assert row.before == 'DC_and_topk_loss({"do_bg": False, "smooth": 1e-5}, {"k": 10})'
    criterion = module.DC_and_topk_loss({"do_bg": False, "smooth": 1e-5, "ddp": False} | dice, {"k": 10})
    return lambda logits, labels: criterion(logits, labels.unsqueeze(1)) + 1


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("batch", [HARD, EASY])
def test_nnunet_dice_and_top_k(batch: Batch) -> None:
    check(here("nnU-Net DC_and_topk_loss"), dice_and_top_k(), batch)


@pytest.mark.usefixtures("quiet")
def test_nnunet_dice_of_the_batch() -> None:
    class OfTheBatch(names_of_the_page()["Foreground"]):  # type: ignore[misc]
        def forward(self, outputs: Tensor, targets: Tensor, **beside: Any) -> Any:
            outputs, targets = outputs.transpose(0, 1).flatten(1)[None], targets.flatten()[None]
            return super().forward(outputs, targets, **beside)

    criterion = here("nnU-Net DC_and_topk_loss", {"Foreground()": "OfTheBatch()"}, OfTheBatch=OfTheBatch)
    check(criterion, dice_and_top_k(batch_dice=True), HARD)


@pytest.mark.usefixtures("quiet")
def test_nnunet_counts_absent_classes() -> None:
    without = replace(HARD, labels=HARD.labels.clamp(max=3))
    ours = here("nnU-Net DC_and_topk_loss")(without.logits, without.labels)
    top = largest(without.losses(), 16)
    # 3 of 4 foreground classes are there, the fourth costs 1
    same(dice_and_top_k()(without.logits, without.labels) - top, (3 * (ours - top) + 1) / 4)
    differs(ours, dice_and_top_k()(without.logits, without.labels))


def mmseg_ohem(min_kept: int, **arguments: Any) -> Callable[[Tensor, Tensor], Tensor]:
    row = TABLE["mmseg OhemCrossEntropy"]
    require("mmsegmentation", row.version)
    assert row.before == "OhemCrossEntropy(ignore_label=255, thres=0.7, min_kept=100_000)"
    module = peers.mmseg_loss_file("ohem_cross_entropy_loss")
    criterion: Callable[[Tensor, Tensor], Tensor] = module.OhemCrossEntropy(
        ignore_label=IGNORED, thres=0.7, min_kept=min_kept, **arguments
    )
    return criterion


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("batch", [HARD, EASY, HARD.ignoring(0.5), EASY.ignoring(0.5)])
def test_mmseg_ohem(batch: Batch) -> None:
    check(here("mmseg OhemCrossEntropy", FEW), mmseg_ohem(20), batch)


@pytest.mark.usefixtures("quiet")
def test_mmseg_ohem_loses_the_easiest_of_few() -> None:
    losses = EASY.losses()
    same(mmseg_ohem(500)(EASY.logits, EASY.labels), largest(losses, 159))
    same(here("mmseg OhemCrossEntropy", {"100_000": "500"})(EASY.logits, EASY.labels), mean(losses))
    differs(mean(losses), largest(losses, 159))


@pytest.mark.usefixtures("quiet")
def test_mmseg_ohem_in_half_precision() -> None:
    logits, labels = CONFIDENT.logits.bfloat16(), CONFIDENT.labels
    ours = here("mmseg OhemCrossEntropy", FEW)
    assert mmseg_ohem(20)(logits, labels).isnan()
    value = float(ours(logits, labels))
    assert value == pytest.approx(largest(replace(CONFIDENT, logits=logits.double()).losses(), 20), rel=1e-2)


@pytest.mark.usefixtures("quiet")
def test_mmseg_ohem_of_nothing() -> None:
    nothing = HARD.ignoring(1.0)
    logits = nothing.leaf()
    theirs = mmseg_ohem(20)(logits, nothing.labels)
    assert theirs == 0
    assert not theirs.requires_grad
    ours = here("mmseg OhemCrossEntropy", FEW)(logits, nothing.labels)
    assert ours == 0
    ours.backward()
    assert logits.grad is not None
    assert not logits.grad.any()


@pytest.mark.usefixtures("quiet")
def test_mmseg_ohem_does_not_divide_by_the_class_weights() -> None:
    weight = torch.tensor([10.0, 1.0, 1.0, 1.0, 1.0], dtype=torch.float64)
    theirs = mmseg_ohem(20, class_weight=weight.tolist())(HARD.logits, HARD.labels)
    line = {"100_000": "20", "ignore_index=255": "ignore_index=255, weight=weight"}
    ours = here("mmseg OhemCrossEntropy", line, weight=weight)
    selection = ours.select(HARD.logits, HARD.labels)
    same(theirs, selection.value * weight[HARD.labels][selection.kept].mean())
    differs(theirs, selection.value)


def mmseg_sampler(threshold: float | None, per_image: int) -> Callable[[Tensor, Tensor], Tensor]:
    row = TABLE["mmseg OHEMPixelSampler"]
    require("mmsegmentation", row.version)
    cross_entropy = peers.mmseg_loss_file("cross_entropy_loss").CrossEntropyLoss()
    head = types.SimpleNamespace(ignore_index=IGNORED, loss_decode=cross_entropy)
    samplers = pytest.importorskip("mmseg.structures.sampler")
    sampler = samplers.OHEMPixelSampler(head, thresh=threshold, min_kept=per_image)

    def criterion(logits: Tensor, labels: Tensor) -> Tensor:
        weight = sampler.sample(logits, labels.unsqueeze(1))
        loss: Tensor = cross_entropy(logits, labels, weight=weight, ignore_index=IGNORED)
        return loss

    return criterion


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("batch", [HARD, EASY, HARD.ignoring(0.5), EASY.ignoring(0.5)])
@pytest.mark.parametrize("threshold", [0.7, None])
def test_mmseg_sampler(batch: Batch, threshold: float | None) -> None:
    row = "mmseg OHEMPixelSampler" + (" with thresh" if threshold else "")
    assert ("thresh=0.7" in TABLE[row].before) == bool(threshold)
    hard = sum(loss > -math.log(0.7) for loss in batch.losses()) if threshold else 0
    ours = here(row, {"100_000": "10"}, images=2)
    check(ours, mmseg_sampler(threshold, 10), batch, factor=max(hard, 20) / 160)


@pytest.mark.usefixtures("quiet")
def test_mmseg_sampler_as_a_share_of_the_pixels() -> None:
    ours = here("mmseg OHEMPixelSampler", {"k=100_000 * images": "fraction=10 / (8 * 10)"})
    check(ours, mmseg_sampler(None, 10), HARD, factor=20 / 160)


@pytest.mark.usefixtures("quiet")
def test_mmseg_sampler_keeps_none_in_half_precision() -> None:
    logits, labels = CONFIDENT.logits.bfloat16(), CONFIDENT.labels
    assert mmseg_sampler(0.7, 10)(logits, labels) == 0
    ours = here("mmseg OHEMPixelSampler with thresh", {"100_000": "10"}, images=2)
    assert ours.select(logits, labels).kept.sum() >= 20


def superquantile() -> Callable[[Tensor, float], Tensor]:
    require("sqwash", TABLE["sqwash"].version)
    assert TABLE["sqwash"].before == "reduce_superquantile(losses, 0.3)"
    reduce: Callable[[Tensor, float], Tensor] = pytest.importorskip("sqwash").reduce_superquantile
    return reduce


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("batch", [HARD, EASY])
def test_sqwash(batch: Batch) -> None:
    losses = torch.tensor(batch.losses(), dtype=torch.float64)
    same(here("sqwash", losses=losses), superquantile()(losses, 0.3))


@pytest.mark.usefixtures("quiet")
def test_sqwash_at_a_k_that_is_not_whole() -> None:
    leaf = torch.tensor(HARD.losses()[:10], requires_grad=True)
    theirs, ours = superquantile()(leaf, 0.35), here("sqwash", {"0.3": "0.35"}, losses=leaf)
    differs(ours, theirs)
    same(ours, tail(leaf.tolist(), 0.35))
    assert min(torch.autograd.grad(theirs, leaf)[0]) < -0.01
    assert min(torch.autograd.grad(ours, leaf)[0]) == 0
    with pytest.raises(RuntimeError):
        superquantile()(leaf.half(), 0.3)


def shortfall() -> Callable[[Tensor, float], Tensor]:
    require("pfhedge", TABLE["pfhedge"].version)
    assert TABLE["pfhedge"].before == "expected_shortfall(profits, p=0.3)"
    reduce: Callable[[Tensor, float], Tensor] = pytest.importorskip("pfhedge.nn.functional").expected_shortfall
    return reduce


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("batch", [HARD, EASY])
def test_pfhedge(batch: Batch) -> None:
    profits = -torch.tensor(batch.losses(), dtype=torch.float64)
    same(here("pfhedge", profits=profits), shortfall()(profits, 0.3))


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize(("n", "share", "theirs"), [(10, 0.35, 4), (100, 0.07, 8)])
def test_pfhedge_rounds_up(n: int, share: float, theirs: int) -> None:
    losses = HARD.losses()[:n]
    profits = -torch.tensor(losses, dtype=torch.float64)
    ours = here("pfhedge", {"0.3": str(share)}, profits=profits)
    same(shortfall()(profits, share), largest(losses, theirs))
    same(ours, tail(losses, share))
    differs(ours, largest(losses, theirs))


# the others: where their rules differ


def test_paddle_ohem_keeps_one_less_where_the_floor_decides() -> None:
    share = 19 / 160
    same(paddle_ohem(EASY, 20), largest(EASY.losses(), 19) * share / (share + 1e-5))
    ours = here("PaddleSeg OhemCrossEntropyLoss", {"10_000": "20"})
    same(ours(EASY.logits, EASY.labels), largest(EASY.losses(), 20))
    differs(ours(EASY.logits, EASY.labels), paddle_ohem(EASY, 20))


def test_paddle_bootstrapped_averages_zeros_in() -> None:
    few = EASY.ignoring(0.9)
    few.labels[0] = IGNORED
    few.labels[1, -1, :-4] = IGNORED
    ours = here("PaddleSeg BootstrappedCrossEntropyLoss", {"4096": "8"})(few.logits, few.labels)
    assert len(few.losses()) == 4
    assert max(few.losses()) < 0.3
    same(ours, mean(few.losses()))
    same(bootstrapped(few, 8), mean(few.losses()) * 4 / 8 / 2)  # 4 zeros, and an image of 0


@pytest.mark.parametrize(
    ("row", "n", "floor"),
    [("BiSeNet OhemCELoss", 15, 15 // 16), ("super-gradients OhemCELoss", 9, int(0.1 * 9))],
)
def test_a_floor_that_is_rounded_down(row: str, n: int, floor: int) -> None:
    logits, labels = EASY.logits.flatten(2)[:1, :, -n:], EASY.labels.flatten(1)[:1, -n:]
    losses = F.cross_entropy(logits, labels, reduction="none").flatten().tolist()
    assert max(losses) < -math.log(0.7)
    assert math.isnan(above(losses, -math.log(0.7), floor))
    same(here(row)(logits, labels), max(losses))


def test_super_gradients_keeps_all_but_one_of_everything() -> None:
    ours = here("super-gradients OhemCELoss", {"min_fraction=0.1": "min_fraction=1"})
    theirs = above(EASY.losses(), -math.log(0.7), min(160, 160 - 1))
    same(ours(EASY.logits, EASY.labels), mean(EASY.losses()))
    differs(ours(EASY.logits, EASY.labels), theirs)


@pytest.mark.parametrize("row", ["detectron2 DeepLabCE", "PaddleSeg CrossEntropyLoss"])
def test_deeplab_counts_ignored_pixels(row: str) -> None:
    rare = HARD.ignoring(7 / 8)  # 20 of 160 pixels; 32 are kept
    ours = here(row)(rare.logits, rare.labels)
    same(deeplab(rare, 0.2, by_number_kept=False), math.fsum(rare.losses()) / 32)
    same(ours, largest(rare.losses(), 4))


@pytest.mark.parametrize("step", [0, 40, 100, 160])
def test_tensorflow_deeplab_at_every_step(step: int) -> None:
    schedule = here("TF DeepLab", {"100_000": "100"})
    for _ in range(step):
        schedule.step()
    reached = min(1.0, step / 100)
    share = reached * 0.25 + (1.0 - reached)
    value = schedule.criterion(HARD.logits, HARD.labels)
    same(value, deeplab(HARD, share, by_number_kept=True))
    same(value, largest(HARD.losses(), {0: 160, 40: 112, 100: 40, 160: 40}[step]))


def test_tensorflow_deeplab_by_number() -> None:
    row, rare = "TF DeepLab", HARD.ignoring(7 / 8)
    theirs = deeplab(rare, 0.25, by_number_kept=True)
    by_number = "k=0.25 * labels.numel()"
    assert f"AverageTopKCrossEntropyLoss({by_number})" in PAGE
    ours = here(row, {"fraction=1.0": "fraction=0.25"}).criterion
    ours.fraction = 0.25
    differs(ours(rare.logits, rare.labels), theirs)
    criterion = eval(
        f"AverageTopKCrossEntropyLoss({by_number}, ignore_index=255)", names_of_the_page() | {"labels": rare.labels}
    )
    same(criterion(rare.logits, rare.labels), theirs)


@pytest.mark.parametrize("n", [10, 13, 160])
@pytest.mark.parametrize("share", [0.3, 0.05, 0.29, 1.0])
def test_fast_dro(n: int, share: float) -> None:
    losses = HARD.losses()[:n]
    ours = here("fast-dro, dro RobustLoss", {"0.3": str(share)}, losses=torch.tensor(losses, dtype=torch.float64))
    same(ours, tail(losses, share))


@pytest.mark.parametrize("eta", [0.0, 1.5, 8.0])
def test_fast_dro_dual(eta: float) -> None:
    criterion = here("fast-dro DualRobustLoss")
    criterion.threshold.data.fill_(eta)
    expected = eta + mean([max(loss - eta, 0.0) for loss in HARD.losses()]) / 0.3
    same(criterion(HARD.logits, HARD.labels), expected)


def test_composer_draws_no_larger_loss() -> None:
    losses = HARD.losses()[:20]
    logits, labels = HARD.logits.movedim(1, -1).flatten(0, 2)[:20], HARD.labels.flatten()[:20]
    ours = float(here("Composer SelectiveBackprop")(logits, labels))
    generator, keep, drawn = random.Random(3), 0.5, []
    for _ in range(300):  # int(keep * N), one after the other, by percentile ** (1 / keep - 1)
        left = [(loss, ((rank + 0.5) / 20) ** (1 / keep - 1)) for rank, loss in enumerate(sorted(losses))]
        chosen = []
        for _ in range(int(keep * 20)):
            place = generator.choices(range(len(left)), [chance for _, chance in left])[0]
            chosen.append(left.pop(place)[0])
        drawn.append(mean(chosen))
    assert max(drawn) < ours + 1e-9
    assert mean(losses) < mean(drawn) < ours
    same(ours, largest(losses, 10))


def test_the_papers_code() -> None:
    generator = torch.Generator().manual_seed(2)
    outputs = torch.randn(20, generator=generator, dtype=torch.float64)
    y = torch.where(torch.rand(20, generator=generator) < 0.5, -1.0, 1.0).double()
    k, n, c, level, squares = 6, 20, 3.0, 0.6, 1.7
    losses = [math.log1p(math.exp(-s * o)) for s, o in zip(y.tolist(), outputs.tolist(), strict=True)]
    objective = c / n * sum(max(loss - level, 0.0) for loss in losses) + squares / 2 + c * k * level / n
    criterion = here("The paper's MATLAB code", K=k, N=n)
    criterion.threshold.data.fill_(level)
    same(c * k / n * criterion(outputs, y) + squares / 2, objective)
    criterion.threshold.data.fill_(sorted(losses, reverse=True)[k])  # where theirs starts
    without = average_top_k(nn.functional.soft_margin_loss(outputs, y, reduction="none"), fraction=k / n)
    same(criterion(outputs, y), without)


@pytest.mark.parametrize(("unclassified", "whole"), [(60, True), (57, False)])
def test_mtcnn(unclassified: int, whole: bool) -> None:
    labels = HARD.labels.clamp(max=1)
    labels.view(-1)[:unclassified] = -1
    labels.view(-1)[:20] = -2
    faces = Batch(HARD.logits[:, :2], labels)
    ours = here("MTCNN, Seanlinx/mtcnn")(faces.logits, labels, mask=labels >= 0)
    theirs = largest(faces.losses(), int(0.7 * (160 - unclassified)))
    if whole:
        same(ours, theirs)
    else:
        same(ours, tail(faces.losses(), 0.7))
        assert float(ours) != pytest.approx(theirs, rel=1e-6)


def test_ssd() -> None:
    ours = here("SSD, ssd.pytorch MultiBoxLoss")
    even, uneven, all_background = with_positives(5, 5), with_positives(2, 9), with_positives(0, 0)
    same(4 * ours(even.logits, even.labels), ssd(even))
    differs(4 * ours(uneven.logits, uneven.labels), ssd(uneven))
    kept = ours.select(uneven.logits, uneven.labels).kept
    losses = F.cross_entropy(uneven.logits, uneven.labels, reduction="none")
    same(losses[kept].sum() / (uneven.labels > 0).sum(), ssd(uneven))
    with pytest.raises(ZeroDivisionError):
        ssd(all_background)
    assert ours(all_background.logits, all_background.labels) == 0


@pytest.mark.parametrize("n", [64, 16, 9])
def test_ordered_sgd(n: int) -> None:
    logits, labels = HARD.logits.movedim(1, -1).flatten(0, 2)[:n], HARD.labels.flatten()[:n]
    same(here("Ordered SGD (qSGD)", q=16)(logits, labels), largest(HARD.losses()[:n], min(16, n)))


def test_the_notebooks_own_class() -> None:
    logits, labels = HARD.logits.movedim(1, -1).flatten(0, 2), HARD.labels.flatten()
    ours = here("The notebook's own class")
    for n in (10, 20, 30):
        same(ours(logits[:n], labels[:n]), notebook(HARD.losses()[:n]))
    four = HARD.losses()[:4]
    same(notebook(four), largest(four, 2))
    same(ours(logits[:4], labels[:4]), tail(four, 0.7))
    differs(ours(logits[:4], labels[:4]), notebook(four))
    assert math.isnan(notebook(four[:1]))
    same(ours(logits[:1], labels[:1]), four[0])


# the page itself


def test_every_row_has_its_check() -> None:
    asked = re.findall(r'here\("([^"]+)"', Path(__file__).read_text(encoding="utf-8"))
    assert {*asked, *(row for row, *_ in CRITERIA)} == set(TABLE)


def test_the_versions_are_those_of_the_ledger() -> None:
    ledger = {row.peer: row.version for row in peers.read()}
    for row, peer in {
        "nnU-Net TopKLoss": "nnU-Net TopKLoss",
        "mmseg OhemCrossEntropy": "mmseg OhemCrossEntropy",
        "mmseg OHEMPixelSampler": "mmseg sampler, thresh=None",
        "sqwash": "sqwash",
        "pfhedge": "pfhedge",
    }.items():
        assert TABLE[row].version == ledger[peer]


def test_a_probability_becomes_a_loss() -> None:
    for row, line in TABLE.items():
        if "threshold=-math.log" in line.here:
            assert isinstance(here(row, images=2), OHEMLoss)
            assert re.search(r"thresh?o?l?d?=0\.7|thres=0\.7", line.before)
