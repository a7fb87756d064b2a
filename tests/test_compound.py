"""Sums with losses of other libraries, scales in lists and by name, OHEM by probability, a threshold nobody trains."""

from __future__ import annotations

import copy
import math
import pickle
import warnings
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from topkloss import (
    WORLD,
    AverageTopKCrossEntropyLoss,
    CompoundLoss,
    CrossEntropy,
    DeepSupervisionLoss,
    DualAverageTopKLoss,
    Monitor,
    OHEMLoss,
    RegionLoss,
    SelectiveStep,
    average_above,
)
from topkloss.losses import dice_loss, tversky_loss

MINED = AverageTopKCrossEntropyLoss(fraction=0.3)


class Dice(nn.Module):
    """A stranger's: one number for the whole batch, with a buffer and a weight of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("epsilon", torch.tensor(1e-3))
        self.scale = nn.Parameter(torch.tensor(2.0))

    def forward(self, prediction: Tensor, truth: Tensor) -> Tensor:
        p, there = prediction.softmax(1), F.one_hot(truth, prediction.shape[1]).movedim(-1, 1)
        value: Tensor = 1 - 2 * (p * there).sum() / (p.sum() + there.sum() + 1e-3)
        return self.scale * value


def pictures(side: int = 8) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    outputs = torch.randn(2, 3, side, side, generator=generator).requires_grad_()
    return outputs, torch.randint(3, (2, side, side), generator=generator)


# A sum with losses that return one number


def test_a_sum_takes_any_loss_of_one_number() -> None:
    outputs, targets = pictures()
    dice = Dice()
    both = CompoundLoss(
        [MINED, dice, lambda outputs, targets: outputs.square().mean(), nn.CrossEntropyLoss()],
        weights=[1, 0.5, 0.25, 0],
    )
    whole: Tensor = dice(outputs, targets)
    expected = MINED(outputs, targets) + 0.5 * whole + 0.25 * outputs.square().mean()
    assert_equal_with_gradients(both(outputs, targets), expected, outputs)
    selections = both.select(outputs, targets)
    assert [one is None for one in selections] == [False, True, True, True]
    assert both.total(selections) == expected
    assert both.total(both.select_elements(both.elements(outputs, targets))) == expected
    assert CompoundLoss([both, both], weights=[1, 2])(outputs, targets).item() == pytest.approx(3 * expected.item())
    compiled = torch.compile(both, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(outputs, targets), expected)


def assert_equal_with_gradients(ours: Tensor, theirs: Tensor, outputs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(*(torch.autograd.grad(one, outputs, retain_graph=True)[0] for one in (ours, theirs)))


def test_selections_never_lose_the_number() -> None:
    outputs, targets = pictures()
    both = CompoundLoss([MINED, Dice()])
    with torch.no_grad():
        selections, expected = both.select(outputs, targets), both(outputs, targets)
    for one in (copy.copy(selections), copy.deepcopy(selections), pickle.loads(pickle.dumps(selections))):
        assert both.total(one) == expected
    with pytest.raises(TypeError, match=r"`selections` must be what `select` returned.*Dice"):
        both.total(list(selections))
    monitor = Monitor()
    monitor.update(selections[0])
    assert monitor.compute().value == pytest.approx(MINED(outputs, targets).item())
    with pytest.raises(TypeError, match=r"`selection` must be what a criterion selected; got NoneType.*pass over it"):
        monitor.update(selections[1])


def test_what_a_part_holds_moves_with_the_sum() -> None:
    both = CompoundLoss([MINED, Dice()]).double()
    assert sorted(both.state_dict()) == ["criteria.1.loss.epsilon", "criteria.1.loss.scale"]
    assert all(one.dtype == torch.float64 for one in both.state_dict().values())
    assert [name for name, _ in both.named_parameters()] == ["criteria.1.loss.scale"]
    assert "Dice()" in repr(both)
    assert "zero" in repr(CompoundLoss([MINED, zero]))


def zero(outputs: Tensor, targets: Tensor) -> Tensor:
    return 0 * outputs.sum()


def masked(outputs: Tensor, targets: Tensor, mask: Tensor | None = None) -> Tensor:
    losses = F.cross_entropy(outputs, targets, reduction="none")
    return losses.mean() if mask is None else losses[mask].mean()


def test_a_mask_is_handed_to_who_takes_one_and_refused_for_who_does_not() -> None:
    outputs, targets = pictures()
    mask = targets > 0
    expected = MINED(outputs, targets, mask=mask) + masked(outputs, targets, mask)
    torch.testing.assert_close(CompoundLoss([MINED, masked])(outputs, targets, mask=mask), expected)
    with pytest.raises(TypeError, match=r"`mask` must be None for Dice, which takes none"):
        CompoundLoss([MINED, Dice()])(outputs, targets, mask=mask)
    assert CompoundLoss([MINED, Dice()], weights=[1, 0])(outputs, targets, mask=mask).isfinite()


@pytest.mark.parametrize("loss", [nn.L1Loss(reduction="none"), nn.L1Loss, CrossEntropy(), "dice", None])
@pytest.mark.parametrize("kind", [lambda one: CompoundLoss([one]), lambda one: DeepSupervisionLoss(one, weights=[1])])
def test_what_returns_no_number_is_refused_when_the_sum_is_made(kind: Any, loss: Any) -> None:
    with pytest.raises(TypeError, match=r"must be of topkloss.*or return one number; got .*fraction=1"):
        kind(loss)


@pytest.mark.parametrize("loss", [lambda o, t: o, lambda o, t: o.sum().reshape(1), lambda o, t: 0.0, lambda o, t: None])
def test_what_turns_out_to_be_no_number_is_refused(loss: Any) -> None:
    with pytest.raises(ValueError, match=r"must return one number, a 0-dim tensor, to be part of a sum; got"):
        CompoundLoss([MINED, loss])(*pictures())


def test_a_selective_step_refuses_what_needs_the_whole_batch() -> None:
    with pytest.raises(ValueError, match=r"`criterion` must rank examples in all its parts.*got Dice"):
        SelectiveStep(nn.Linear(2, 3), CompoundLoss([MINED, Dice()]), micro_batch=2)
    step = SelectiveStep(nn.Linear(2, 3), CompoundLoss([MINED, Dice()], weights=[1, 0]), micro_batch=2)
    assert step(torch.randn(4, 2), torch.tensor([0, 1, 2, 0])).examples == 4


# Several scales


def test_scales_take_losses_of_one_number_and_targets_of_their_own() -> None:
    (fine, targets), (coarse, own) = pictures(8), pictures(4)
    weights = [1.0, 0.5]
    for loss in (nn.CrossEntropyLoss(), CompoundLoss([MINED, nn.CrossEntropyLoss()]), MINED):
        criterion = DeepSupervisionLoss(loss, weights=weights)
        expected = (loss(fine, targets) + 0.5 * loss(coarse, own)) / 1.5
        assert_equal_with_gradients(criterion([fine, coarse], [targets, own]), expected, fine)
        assert criterion([fine, coarse], (targets, own)) == expected
        nearest = (loss(fine, targets) + 0.5 * loss(coarse, targets[:, 1::2, 1::2])) / 1.5
        torch.testing.assert_close(criterion([fine, coarse], targets), nearest)
        assert criterion.total(criterion.select([fine, coarse], targets)) == criterion([fine, coarse], targets)
        elements = criterion.elements([fine, coarse], targets)
        assert criterion.total(criterion.select_elements(elements)) == criterion([fine, coarse], targets)


def test_a_mask_of_each_scale() -> None:
    (fine, targets), (coarse, own) = pictures(8), pictures(4)
    criterion = DeepSupervisionLoss(MINED, weights=[1, 1])
    masks = [targets > 0, own > 0]
    expected = (MINED(fine, targets, mask=masks[0]) + MINED(coarse, own, mask=masks[1])) / 2
    torch.testing.assert_close(criterion([fine, coarse], [targets, own], mask=masks), expected)
    beside = criterion([fine, coarse], targets, mask=targets > 0)
    torch.testing.assert_close(criterion([fine, coarse], [targets, targets[:, 1::2, 1::2]], mask=targets > 0), beside)


def test_targets_with_a_channel_are_taken_at_the_nearest_pixel() -> None:
    (fine, targets), (coarse, _) = pictures(8), pictures(4)
    loss = CompoundLoss([lambda outputs, targets: F.cross_entropy(outputs, targets[:, 0])])
    criterion = DeepSupervisionLoss(loss, weights=[1, 1])
    expected = (F.cross_entropy(fine, targets) + F.cross_entropy(coarse, targets[:, 1::2, 1::2])) / 2
    torch.testing.assert_close(criterion([fine, coarse], targets.unsqueeze(1)), expected)


def test_outputs_by_name() -> None:
    """torchvision's: weights by name, or in order."""
    (out, targets), aux = pictures(8), torch.zeros(2, 3, 8, 8)
    expected = (MINED(out, targets) + 0.4 * MINED(aux, targets)) / 1.4
    by_name = DeepSupervisionLoss(MINED, weights={"aux": 0.4, "out": 1})
    outputs = OrderedDict(out=out, aux=aux)
    assert_equal_with_gradients(by_name(outputs, targets), expected, out)
    torch.testing.assert_close(by_name(outputs, {"out": targets, "aux": targets}), expected)
    torch.testing.assert_close(DeepSupervisionLoss(MINED, weights=[1, 0.4])(outputs, targets), expected)
    assert "weights={'aux': 0.4, 'out': 1.0}" in repr(by_name)
    for wrong in ({"out": out}, {"out": out, "aux": aux, "more": aux}):
        with pytest.raises(ValueError, match=r"`outputs` must have the names of `weights`, aux, out; got out"):
            by_name(wrong, targets)
    with pytest.raises(TypeError, match=r"`outputs` must be by name where the weights are, aux, out; got list"):
        by_name([out, aux], targets)


def test_stacked_scales_are_no_list() -> None:
    """Of as many scales as examples it iterated over the batch, in silence."""
    outputs, targets = pictures(8)
    criterion = DeepSupervisionLoss(MINED, weights=[1, 0.5])
    stacked = torch.stack([outputs, outputs], dim=1)
    with pytest.raises(TypeError, match=r"got a tensor of shape \(2, 2, 3, 8, 8\).*pass outputs.unbind\(1\)"):
        criterion(stacked, targets)
    assert criterion(stacked.unbind(1), targets) == criterion([outputs, outputs], targets)
    with pytest.raises(TypeError, match=r"`outputs` must be one tensor per scale; got dict among them"):
        criterion([{"out": outputs}, outputs], targets)
    with pytest.raises(ValueError, match=r"`targets` and `weights` must be as many; got 1 and 2"):
        criterion([outputs, outputs], [targets])


# OHEM by probability


def test_a_probability_is_its_cross_entropy() -> None:
    outputs, targets = pictures()
    for loss in (CrossEntropy(), nn.CrossEntropyLoss(reduction="none")):
        ours = OHEMLoss(loss, probability=0.7, min_kept=3)
        assert ours(outputs, targets) == OHEMLoss(loss, threshold=-math.log(0.7), min_kept=3)(outputs, targets)
        hard = outputs.softmax(1).gather(1, targets.unsqueeze(1)).squeeze(1) < 0.7
        assert torch.equal(ours.select(outputs, targets).kept, hard)
    assert "probability=0.7" in repr(ours)
    losses = torch.tensor([3.0, 0.1, 0.5])
    assert average_above(losses, probability=0.7) == 1.75
    assert average_above(losses, probability=1.0) == average_above(losses, threshold=0.0)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({}, "exactly one of `threshold`, a loss, and `probability` must be given; got neither. .*probability=0.7"),
        ({"threshold": 1.0, "probability": 0.7}, "exactly one of .* got threshold=1.0 and probability=0.7"),
        ({"probability": 70}, "`probability` must satisfy 0 < probability <= 1; got 70. .*a loss is a threshold="),
        ({"probability": 0.0}, "`probability` must satisfy 0 < probability <= 1; got 0"),
        (
            {"threshold": math.inf},
            r"must be below inf, the most that a cross-entropy can reach; got inf.*probability=0.7.*threshold=-math",
        ),
        (
            {"threshold": math.log(0.7)},
            r"must be >= 0, the least that a cross-entropy can be; got -0.35.*probability=0.7, or its loss",
        ),
    ],
)
def test_a_threshold_that_cannot_work_is_refused(given: dict[str, Any], sentence: str) -> None:
    for loss in (CrossEntropy(), nn.CrossEntropyLoss(reduction="none")):
        with pytest.raises(ValueError, match=sentence):
            OHEMLoss(loss, **given)


def test_a_threshold_above_what_a_region_can_reach_is_refused() -> None:
    for loss in (dice_loss, lambda *given, **named: tversky_loss(*given, **named)):
        known = loss is dice_loss
        if known:
            with pytest.raises(ValueError, match=r"must be below 1, the most that dice_loss can reach; got 1.5"):
                OHEMLoss(RegionLoss(loss), threshold=1.5)
            with pytest.raises(
                ValueError, match=r"`probability` must be that of a cross-entropy; got 0.7 for dice_loss"
            ):
                OHEMLoss(RegionLoss(loss), probability=0.7)
        else:
            OHEMLoss(RegionLoss(loss), threshold=1.5)
    OHEMLoss(RegionLoss(dice_loss), threshold=1.5, min_kept=1)
    OHEMLoss(CrossEntropy(), threshold=math.inf, min_fraction=0.1)
    OHEMLoss(nn.L1Loss(reduction="none"), threshold=-1.0)


# A threshold that no optimiser moves


def train(criterion: Any, parameters: Any, model: nn.Module, steps: int = 30, accumulate: int = 1, **kind: Any) -> None:
    optimizer = torch.optim.SGD(parameters, lr=0.01) if not kind else kind["optimizer"](parameters)
    inputs, targets = torch.randn(16, 2), torch.randn(16, 1)
    for step in range(steps):
        criterion(model(inputs), targets).backward()
        if (step + 1) % accumulate == 0:
            optimizer.step()
            optimizer.zero_grad()


def dual(**given: Any) -> DualAverageTopKLoss:
    return DualAverageTopKLoss(nn.L1Loss(reduction="none"), fraction=0.5, **given)


@pytest.mark.parametrize("optimizer", [torch.optim.AdamW, lambda p: torch.optim.Adam(p, fused=True)])
def test_a_threshold_that_nobody_trains_is_warned_of_once(optimizer: Any) -> None:
    torch.manual_seed(0)
    model, criterion = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1)), dual()
    with pytest.warns(
        UserWarning, match=r"must be trained; got 0 still after 10 steps.*criterion.parameters\(\)"
    ) as seen:
        train(criterion, model.parameters(), model, optimizer=optimizer)
    assert len(seen) == 1
    train(criterion, model.parameters(), model)
    with pytest.warns(UserWarning, match=r"must be trained"):
        train(copy.deepcopy(criterion), model.parameters(), model)


def test_no_false_alarm_of_a_threshold() -> None:
    model = nn.Linear(2, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        criterion = dual()
        train(criterion, [*model.parameters(), *criterion.parameters()], model)
        train(dual(), model.parameters(), model, steps=9)  # too early to tell
        train(dual(), model.parameters(), model, steps=90, accumulate=10)
        frozen = dual()
        frozen.threshold.requires_grad_(False)
        train(frozen, model.parameters(), model)
        criterion = dual()
        train(criterion, criterion.parameters(), nn.Linear(2, 1).requires_grad_(False))
        with torch.no_grad():
            for _ in range(30):
                criterion(model(torch.randn(4, 2)), torch.randn(4, 1))
        for _ in range(30):  # gradients without steps
            dual()(model(torch.randn(4, 2)), torch.randn(4, 1)).backward()


def test_a_watched_criterion_is_pickled() -> None:
    model, criterion = nn.Linear(2, 1), dual()
    train(criterion, [*model.parameters(), *criterion.parameters()], model, steps=3)
    other = pickle.loads(pickle.dumps(criterion))
    assert other.threshold == criterion.threshold


# What a criterion says of itself, and its copies


def test_repr_shows_what_is_not_as_usual() -> None:
    criterion = OHEMLoss(CrossEntropy(), threshold=1.0, nan_policy="omit", process_group=WORLD)
    assert "process_group=WORLD" in repr(criterion)
    assert "nan_policy='omit'" in repr(criterion)
    assert "backend='torch'" in repr(AverageTopKCrossEntropyLoss(k=1, backend="torch"))
    for name in ("nan_policy", "process_group", "backend", "inplace"):
        assert name not in repr(AverageTopKCrossEntropyLoss(k=1))


def test_a_process_group_survives_copies(tmp_path: Path) -> None:
    """torch's own WORLD becomes ours; a smaller group is shared by a copy, and no pickle can name it."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        outputs, targets = pictures()
        for kind in (AverageTopKCrossEntropyLoss, dual):
            given: dict[str, Any] = {"process_group": dist.group.WORLD}
            criterion = kind(**given) if kind is dual else kind(fraction=0.5, **given)
            assert criterion.process_group is WORLD
            assert "process_group=WORLD" in repr(criterion)
            for other in (copy.deepcopy(criterion), pickle.loads(pickle.dumps(criterion))):
                assert other.process_group is WORLD
        assert copy.deepcopy(Monitor(process_group=dist.group.WORLD)).process_group is WORLD
        group: Any = dist.new_group([0])
        criterion = AverageTopKCrossEntropyLoss(fraction=0.3, process_group=group)
        other = copy.deepcopy(criterion)
        assert other.process_group is group
        assert other(outputs, targets).item() == pytest.approx(MINED(outputs, targets).item())
        assert "process_group=<process group of 1>" in repr(criterion)
        with pytest.raises(
            TypeError, match=r"`process_group` must be WORLD or a mesh to be pickled; got <process group"
        ):
            pickle.dumps(criterion)
        other.process_group = None
        assert pickle.loads(pickle.dumps(other)).process_group is None
    finally:
        dist.destroy_process_group()
