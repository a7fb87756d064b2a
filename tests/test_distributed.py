"""One answer on any number of processes, or the same sentence on all of them; gloo, a file store."""

from __future__ import annotations

import copy
import math
import os
import pickle
import random
import re
import signal
import time
import warnings
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import topkloss
from tests.ranks import in_processes, results
from tests.steps import CRITERIA, difference, trained
from topkloss import WORLD, AverageTopKCrossEntropyLoss, AverageTopKLoss, CrossEntropy, SelectiveStep
from topkloss.base.processes import Ranks
from topkloss.criteria.criterion import Criterion

pytestmark = pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="no gloo")

# Which of the 12 images each process has. Nothing counts in image 3, so in the third way one process has nothing.
PARTS = {
    "one process": [(0, 12)],
    "two uneven": [(0, 5), (5, 12)],
    "three, one without anything counted": [(0, 3), (3, 4), (4, 12)],
    "three, one empty": [(0, 7), (7, 7), (7, 12)],
}


@pytest.mark.parametrize("parts", PARTS.values(), ids=PARTS)
def test_every_criterion_trains_as_in_one_process(parts: list[tuple[int, int]]) -> None:
    alone = all_trained_alone()
    assert all(losses[-1] < losses[0] for losses, _ in alone.values())
    for one in results(all_trained, [(part,) for part in parts]):
        differences = {name: difference(one[name], alone[name]) for name in CRITERIA}
        assert {name: far for name, far in differences.items() if not far < 1e-12} == {}


def all_trained(part: tuple[int, int]) -> dict[str, tuple[list[float], list[list[float]]]]:
    """`trained` with each criterion."""
    return {name: trained(name, part) for name in CRITERIA}


@cache
def all_trained_alone() -> dict[str, tuple[list[float], list[list[float]]]]:
    """What all parts are compared with."""
    return all_trained((0, 12))


@pytest.mark.parametrize("parts", PARTS.values(), ids=PARTS)
def test_micro_batches_in_every_process_train_as_one_batch_does(parts: list[tuple[int, int]]) -> None:
    """One threshold for all of them, and one conversation of DistributedDataParallel, however many each process has."""
    alone = all_trained_alone()
    for one in results(all_trained_in_micro_batches, [(part,) for part in parts]):
        differences = {name: difference(one[name], alone[name]) for name in CRITERIA}
        assert {name: far for name, far in differences.items() if not far < 1e-12} == {}


def all_trained_in_micro_batches(part: tuple[int, int]) -> dict[str, tuple[list[float], list[list[float]]]]:
    """`trained` in micro-batches of two, with each criterion."""
    return {name: trained(name, part, micro_batch=2) for name in CRITERIA}


def test_in_float32_near_ties_may_fall_otherwise_but_training_is_the_same() -> None:
    alone = trained("top-k", (0, 12), torch.float32)
    for one in results(trained, [("top-k", part, torch.float32) for part in PARTS["two uneven"]]):
        assert difference(one, alone) < 1e-5


def test_ranking_apart_is_another_loss() -> None:
    """Of (9, 1, 1, 1) and (2, 2, 2, 2) the two hardest each have means of 5 and 2; the four hardest of all, 15/4."""
    assert results(apart_and_together, [([9.0, 1.0, 1.0, 1.0],), ([2.0, 2.0, 2.0, 2.0],)]) == [
        (pytest.approx(5), pytest.approx(15 / 4)),
        (pytest.approx(2), pytest.approx(15 / 4)),
    ]


def apart_and_together(losses: list[float]) -> tuple[float, float]:
    """The value of these losses, ranked alone and among all."""
    own = torch.tensor(losses)
    apart, together = (AverageTopKLoss(torch.sub, fraction=0.5, process_group=group) for group in (None, WORLD))
    return apart(own, torch.zeros_like(own)).item(), together(own, torch.zeros_like(own)).item()


def fully_sharded(model: nn.Module) -> nn.Module:
    """FSDP2."""
    fully_shard(model)
    return model


def test_under_fully_shard() -> None:
    alone = trained("top-k", (0, 12))
    for one in results(fully_sharded_training, [(part,) for part in PARTS["two uneven"]]):
        assert difference(one, alone) < 1e-12


def fully_sharded_training(part: tuple[int, int]) -> tuple[list[float], list[list[float]]]:
    """See `trained`."""
    return trained("top-k", part, wrap=fully_sharded)


def test_takes_a_device_mesh_and_a_group_of_some() -> None:
    """Four processes, two by two: each pair ranks by itself."""
    rows = [[9.0, 1.0], [8.0, 7.0], [3.0, 1.0], [2.0, 5.0]]
    for values in zip(*results(in_pairs, [(row,) for row in rows]), strict=True):
        assert values == (8.5, 8.5, 4.0, 4.0)


def in_pairs(losses: list[float]) -> tuple[float, float]:
    """The two hardest of the pair, which is a mesh and a group."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("copies", "pair"))["pair"]
    own = torch.tensor(losses)
    of_mesh, of_group = (AverageTopKLoss(torch.sub, k=2, process_group=one) for one in (mesh, mesh.get_group()))
    return of_mesh(own, 0 * own).item(), of_group(own, 0 * own).item()


def test_without_processes_world_is_this_one() -> None:
    criterion = AverageTopKLoss(torch.sub, k=2, process_group=WORLD)
    assert criterion(torch.tensor([1.0, 3.0, 5.0]), torch.zeros(3)) == 4
    assert repr(WORLD) == "WORLD"


# Random batches: whole in one process, and in shards.

CASES = 150


def test_random_batches_in_shards_are_the_whole() -> None:
    assert results(sharded_cases, [(rank, 3) for rank in range(3)]) == [CASES] * 3


def sharded_cases(rank: int, size: int) -> int:
    """Compares value, weights and what a monitor reads, case by case; all processes draw the same cases."""
    draw = random.Random(0)
    alone, together = topkloss.Monitor(3), topkloss.Monitor(3, process_group=WORLD)
    for _ in range(CASES):
        number = draw.randrange(1, 30)
        dtype = draw.choice([torch.float16, torch.float32, torch.float64])
        values = draw.choice([[0.0, -0.0, 1.0], [-1.0, 2.0, math.inf, -math.inf, 0.5], None])
        losses = torch.tensor([draw.choice(values) if values else draw.gauss(0, 3) for _ in range(number)], dtype=dtype)
        mask = draw.choice([None, torch.tensor([draw.random() < 0.7 for _ in range(number)])])
        mass = draw.choice([None, torch.tensor([draw.choice([0.0, 0.1, 2.0, 1e6]) for _ in range(number)])])
        groups = draw.choice([None, torch.tensor([draw.choice([-5, 0, 7]) for _ in range(number)])])
        if draw.random() < 0.1:
            losses[draw.randrange(number)] = math.nan
        policy = draw.choice(["propagate", "omit"])
        asked: dict[str, Any] = draw.choice([{"k": 0.4}, {"k": 3}, {"k": 2.5}, {"fraction": 0.3}, {"fraction": 1}])
        rule: Callable[..., Criterion] = partial(AverageTopKLoss, torch.sub, **asked)
        if draw.random() < 0.4:
            dropped: dict[str, Any] = draw.choice([{"drop": 0}, {"drop": 1.5}, {"drop_fraction": 0.4}])
            rule = partial(topkloss.AverageRankedRangeLoss, torch.sub, **asked, **dropped)
        ends = sorted(draw.randrange(number + 1) for _ in range(size - 1))
        part = slice([0, *ends][rank], [*ends, number][rank])
        given: dict[str, Any] = {"mask": mask, "sample_weight": mass, "groups": groups}
        whole = rule(nan_policy=policy).select(losses, torch.zeros_like(losses), **given)
        own: dict[str, Any] = {name: None if one is None else one[part] for name, one in given.items()}
        shard = rule(nan_policy=policy, process_group=WORLD).select(losses[part], torch.zeros_like(losses[part]), **own)
        same = partial(torch.testing.assert_close, rtol=2e-5, atol=1e-6, equal_nan=True)
        same(shard.value, whole.value)
        same(shard.average, whole.average)
        same(shard.threshold, whole.threshold)
        same(shard.weights, whole.weights[part])
        assert torch.equal(shard.kept, whole.kept[part])
        assert torch.equal(Ranks(dist.group.WORLD).sum(shard.omitted), whole.omitted)
        for batch, monitor in ((whole, alone), (shard, together)):
            own_classes = torch.arange(number) % 3
            monitor.update(batch, own_classes if batch is whole else own_classes[part])
        if draw.random() < 0.3:
            same(torch.tensor(numbers(together)), torch.tensor(numbers(alone)))
            alone.reset()
            together.reset()
    return CASES


def numbers(monitor: topkloss.Monitor) -> list[float]:
    mined = monitor.compute()
    return [
        *(mined.batches, mined.value, mined.average, mined.threshold, mined.kept, mined.omitted),
        *(mined.kept_of_class + mined.gradient_of_class),
    ]


# Traffic.


def traffic(number: int, dtype: torch.dtype) -> int:
    """Bytes that this process hands to the group for one call on so many elements."""
    handed = 0
    reduce = dist.all_reduce

    def counting(numbers: Tensor, *arguments: Any, **keywords: Any) -> Any:
        nonlocal handed
        handed += numbers.numel() * numbers.element_size()
        return reduce(numbers, *arguments, **keywords)

    dist.all_reduce = counting  # type: ignore[assignment]
    losses = torch.randn(number, dtype=dtype)
    AverageTopKLoss(torch.sub, fraction=0.1, process_group=WORLD)(losses, torch.zeros_like(losses))
    return handed


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_traffic_does_not_depend_on_the_number_of_elements(dtype: torch.dtype) -> None:
    few, many = (set(results(traffic, [(number, dtype)] * 2)) for number in (100, 100_000))
    assert few == many
    assert max(few) < (42_000 if dtype == torch.float32 else 87_000)


# Failures.

TIMEOUT = 2.0
KINDS = ["raises", "is killed", "is killed inside", "stalls", "has another dtype", "has another k", "has a NaN"]
HAPPENS_IN_TURN = list(range(50))


def failing(kind: str, victim: int, step: int, inside: int) -> None:
    """Three calls; in one of them something happens to one process."""
    rank = dist.get_rank()
    for now in range(3):
        happens = kind if (rank, now) == (victim, step) else ""
        losses = torch.randn(50, requires_grad=True)
        loss: Callable[[Tensor, Tensor], Tensor] = torch.sub
        if happens == "is killed":
            os.kill(os.getpid(), signal.SIGKILL)
        elif happens == "is killed inside":
            kill_at(inside)
        elif happens == "stalls":
            time.sleep(1.5 * TIMEOUT)
        elif happens == "raises":
            loss = broken
        elif happens == "has another dtype":
            losses = losses.double()
        elif happens == "has a NaN":
            losses = losses * math.nan
        k = 5.5 if happens == "has another k" else 5
        policy: Any = "raise"
        criterion = AverageTopKLoss(loss, k=k, process_group=WORLD, nan_policy=policy)
        criterion(losses, torch.zeros_like(losses)).backward()


def broken(outputs: Tensor, targets: Tensor) -> Tensor:
    """A loss of the caller that fails."""
    raise ZeroDivisionError("the caller's own mistake.")


def kill_at(number: int) -> None:
    """The process ends in so many reductions from now."""
    reduce = Ranks._reduce
    left = number

    def killing(self: Ranks, *arguments: Any) -> Tensor:
        nonlocal left
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return reduce(self, *arguments)

    Ranks._reduce = killing  # type: ignore[assignment,method-assign]


@pytest.mark.parametrize("seed", [pytest.param(one, marks=[pytest.mark.slow] * (one >= 14)) for one in HAPPENS_IN_TURN])
def test_a_failure_of_one_is_a_sentence_on_all(seed: int) -> None:
    draw = random.Random(seed)
    kind, size = KINDS[seed % len(KINDS)], draw.choice([2, 3])
    victim = draw.randrange(size)
    step, inside = draw.randrange(3), draw.randrange(6)
    own = {"raises": "ZeroDivisionError", "has a NaN": "ValueError", "is killed": "", "is killed inside": ""}
    ended = in_processes(failing, [(kind, victim, step, inside)] * size, timeout=TIMEOUT)
    for rank, one in enumerate(ended):
        sentence = one.error.splitlines()[0] if one.error else ""
        assert one.kind == (own.get(kind, "DistributedError") if rank == victim else "DistributedError"), one
        assert one.seconds < 3 * TIMEOUT
        if one.kind == "DistributedError":
            assert "must" in sentence or f"rank {victim} of {size} could not take part" in sentence
            assert sentence.endswith(".")
    if kind == "has another k" and victim == 1:
        assert "k=5," in ended[0].error
        assert "k=5.5," in ended[0].error


def test_a_rank_that_raises_tells_the_others_why() -> None:
    ended = in_processes(failing, [("raises", 1, 0, 0)] * 2)
    assert "rank 1 of 2 could not take part: ZeroDivisionError: the caller's own mistake." in ended[0].error
    assert ended[1].kind == "ZeroDivisionError"


def ranking_a_model_that_breaks(victim: int, fraction: float) -> None:
    """A selective step whose model fails on one process; with a large fraction it is a plain step."""
    if dist.get_rank() == victim:
        model: nn.Module = Broken()
    else:
        model = nn.Linear(2, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        step = SelectiveStep(model, AverageTopKCrossEntropyLoss(fraction=fraction, process_group=WORLD), micro_batch=4)
    step(torch.randn(4, 2), torch.zeros(4).long())


class Broken(nn.Linear):
    """It has parameters, and fails."""

    def __init__(self) -> None:
        super().__init__(2, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        """Fails."""
        raise ZeroDivisionError("the caller's own mistake.")


@pytest.mark.parametrize("fraction", [0.3, 0.9])
def test_a_model_that_fails_in_a_selective_step_is_a_sentence_on_all(fraction: float) -> None:
    ended = in_processes(ranking_a_model_that_breaks, [(1, fraction)] * 2)
    assert ended[1].kind == "ZeroDivisionError"
    assert "rank 1 of 2 could not take part: ZeroDivisionError: the caller's own mistake." in ended[0].error


# What must not differ silently.


def asking_for_something_else(what: str) -> None:
    """The second process asks for something else in the same call."""
    second = dist.get_rank() == 1
    losses, zeros = torch.randn(8, generator=torch.Generator().manual_seed(0)), torch.zeros(8)
    criterion = AverageTopKLoss(torch.sub, k=2, process_group=WORLD)
    if what == "select":
        (criterion.select if second else criterion)(losses, zeros)
    elif what == "scores":
        criterion(losses, zeros, scores=losses if second else None)
    elif what == "precision of scores":
        criterion(losses, zeros, scores=losses.double() if second else losses)
    elif what == "groups":
        criterion(losses, zeros, groups=zeros.long() if second else None)
    elif what == "labels":
        loss = CrossEntropy(ignore_index=0 if second else 1)
        AverageTopKLoss(loss, k=2, process_group=WORLD)(torch.randn(8, 3), zeros.long())
    elif what == "scales":
        outputs = [torch.randn(1, 3, 4, 4), torch.randn(1, 3, 2, 2)]
        CRITERIA["deep supervision"](WORLD)(outputs[: 1 if second else 2], torch.zeros(1, 4, 4).long())
    elif what == "a mask":
        mask = torch.ones(1, 4) > 0 if second else None
        CRITERIA["deep supervision"](WORLD)([torch.randn(1, 3, 4, 4)] * 2, torch.zeros(1, 4, 4).long(), mask=mask)
    elif what == "a name that is no text" and second:
        AverageTopKLoss(nameless, k=2, process_group=WORLD)(losses, zeros)
    elif what == "a name that is no text":
        criterion(losses, zeros)


def nameless(outputs: Tensor, targets: Tensor) -> Tensor:
    """Fails with what cannot be encoded, as the name of a file may be."""
    raise ValueError("no such file: \udcff.")


@pytest.mark.parametrize(
    ("what", "sentence"),
    [
        ("select", "got AverageTopKLoss.*forward of torch.float32 on rank 0 and .*select of torch.float32 on rank 1."),
        ("scores", "of torch.float32 ranked by scores of torch.float32 on rank 1."),
        ("precision of scores", "by scores of torch.float32 on rank 0 and .* by scores of torch.float64 on rank 1."),
        ("groups", "of torch.float32 in groups on rank 1."),
        ("labels", r"loss=CrossEntropy\(ignore_index=1, .* on rank 0 and .*loss=CrossEntropy\(ignore_index=0, "),
        ("scales", "rank 1 of 2 could not take part: ValueError: "),
        ("a mask", "rank 1 of 2 could not take part: ValueError: `targets` and `mask` must have the same shape"),
        ("a name that is no text", r"rank 1 of 2 could not take part: ValueError: no such file: \?\."),
    ],
)
def test_processes_that_ask_for_something_else_are_told(what: str, sentence: str) -> None:
    first, second = in_processes(asking_for_something_else, [(what,)] * 2, timeout=10)
    assert re.search(sentence, first.error), first
    assert first.kind == "DistributedError"
    assert second.kind == ("ValueError" if "ValueError" in sentence else "DistributedError")


def masses_of_different_size(mass: float) -> tuple[float, float]:
    """k = 1 of (3, 2, 1, 0), of which the first has the mass 0.1: 0.1 * 3 + 0.9 * 2, two of them in each process."""
    part = slice(2 * dist.get_rank(), 2 * dist.get_rank() + 2)
    losses, masses = (
        torch.tensor(one, dtype=torch.float64)[part] for one in ([3.0, 2.0, 1.0, 0.0], [0.1, mass, 1.0, 1.0])
    )
    criterion = AverageTopKLoss(torch.sub, k=1, process_group=WORLD)
    value = criterion(losses, 0 * losses, sample_weight=masses)
    return value.item(), criterion(losses, 0 * losses, sample_weight=masses, groups=torch.zeros(2).long()).item()


@pytest.mark.parametrize("mass", [1.0, 1e6, 1e10])
def test_a_light_mass_beside_a_heavy_one_is_not_lost(mass: float) -> None:
    for values in results(masses_of_different_size, [(mass,)] * 2):
        assert values == (pytest.approx(2.1, rel=1e-12), pytest.approx(2.1, rel=1e-12))


def seen_without_gradient() -> list[float]:
    """The dual form, as a validation loop calls it."""
    outputs, targets = torch.tensor([1.0, 2.0, 3.0, 9.0]), torch.zeros(4)
    values = []
    for smoothing in (0.0, 0.5):
        criterion = topkloss.DualAverageTopKLoss(
            torch.sub, fraction=0.5, threshold=2.0, smoothing=smoothing, process_group=WORLD
        )
        for without in (torch.no_grad, torch.inference_mode):
            with without():
                values += [criterion(outputs, targets).item(), criterion.select(outputs, targets).value.item()]
    return values


def test_the_dual_form_needs_no_gradient() -> None:
    for values in results(seen_without_gradient, [()] * 2):
        assert values[:4] == [6.0] * 4
        assert len(set(values[4:])) == 1


def wrapped_wrongly(how: str) -> None:
    """A selective step whose conversation would not be that of all."""
    model: nn.Module = nn.Sequential(nn.Linear(2, 3), nn.SyncBatchNorm(3)) if how == "layer" else nn.Linear(2, 3)
    if how != "layer":
        model = DistributedDataParallel(model, static_graph=how == "static")
    if how == "inside":
        model = nn.Sequential(model)
    SelectiveStep(model, AverageTopKCrossEntropyLoss(fraction=0.3, process_group=WORLD), micro_batch=4)


@pytest.mark.parametrize(
    ("how", "sentence"),
    [
        ("layer", "`model` must have no layer that talks to other processes in its forward pass; got SyncBatchNorm."),
        ("inside", "`model` must be the DistributedDataParallel itself; got Sequential, which holds one."),
        ("static", "`model` must be wrapped without static_graph;"),
    ],
)
def test_a_selective_step_refuses_what_would_hang(how: str, sentence: str) -> None:
    for one in in_processes(wrapped_wrongly, [(how,)] * 2):
        assert one.kind == "ValueError"
        assert one.error.startswith(sentence)


def test_world_is_itself_when_copied_or_saved() -> None:
    criterion = AverageTopKLoss(torch.sub, k=2, process_group=WORLD)
    assert copy.deepcopy(criterion).process_group is WORLD
    assert pickle.loads(pickle.dumps(criterion)).process_group is WORLD


def test_what_is_no_group_is_refused() -> None:
    with pytest.raises(TypeError, match=r"`process_group` must be WORLD, a process group or .*; got 'world'."):
        AverageTopKLoss(torch.sub, k=2, process_group="world")  # type: ignore[arg-type]
    for one in in_processes(with_a_mesh_of_two_dimensions, [()] * 2):
        assert one.kind == "TypeError"
        assert "got a mesh of 2 dimensions." in one.error


def with_a_mesh_of_two_dimensions() -> None:
    """Which of its lines would it be?"""
    AverageTopKLoss(torch.sub, k=2, process_group=init_device_mesh("cpu", (2, 1), mesh_dim_names=("a", "b")))
