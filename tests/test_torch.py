"""What torch does around us: compile, vmap, second derivatives, accelerators, tracing."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils._python_dispatch import TorchDispatchMode

from topkloss import (
    AverageRankedRangeLoss,
    AverageTopKCrossEntropyLoss,
    AverageTopKLoss,
    CrossEntropy,
    DualAverageTopKLoss,
    HardNegativeLoss,
    OHEMLoss,
    RegionLoss,
    average,
    average_above,
    average_hard_negatives,
    average_ranked_range,
    average_tilted,
    average_top_k,
    average_top_k_dual,
    kth_largest,
    maximum,
    topk_select,
    topk_threshold,
    topk_weights,
)
from topkloss.kernels import native
from topkloss.losses import dice_loss

AGGREGATES: dict[str, Callable[..., Tensor]] = {
    "average": average,
    "maximum": maximum,
    "average_top_k": lambda losses, **given: average_top_k(losses, fraction=0.3, **given),
    "average_top_k, k": lambda losses, **given: average_top_k(losses, k=2.5, **given),
    "average_ranked_range": lambda losses, **given: average_ranked_range(losses, k=2.5, drop=1.5, **given),
    "topk_weights": lambda losses, **given: topk_weights(losses, k=2.5, **given),
    "topk_threshold": lambda losses, **given: topk_threshold(losses, k=2.5, **given),
    "topk_select": lambda losses, **given: topk_select(losses, k=2.5, **given).weights,
    "kth_largest": lambda losses, **given: kth_largest(losses, k=2.5, **given),
    "average_above": lambda losses, **given: average_above(losses, threshold=0.5, min_kept=2.5, **given),
    "average_hard_negatives": lambda losses, **given: average_hard_negatives(losses, every_third(losses), **given),
    "average_top_k_dual": lambda losses, **given: average_top_k_dual(losses, half_of(losses), fraction=0.3, **given),
    "average_tilted": lambda losses, **given: average_tilted(losses, tilt=0.5, **given),
}
IN_GROUPS: dict[str, Callable[..., Tensor]] = {
    f"{name} in groups": lambda losses, aggregate=aggregate, **given: aggregate(losses, groups=thirds(losses), **given)
    for name, aggregate in AGGREGATES.items()
    if name not in ("topk_weights", "topk_threshold", "average_top_k_dual", "average_tilted")
}


def thirds(losses: Tensor) -> Tensor:
    """Three groups."""
    return torch.arange(losses.numel(), device=losses.device) % 3


def half_of(losses: Tensor) -> Tensor:
    """The number 1/2 in their type."""
    return torch.full((), 0.5, dtype=losses.dtype, device=losses.device)


def every_third(losses: Tensor) -> Tensor:
    """A few positives."""
    return thirds(losses) == 1


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


# torch.compile (law 11)


@pytest.mark.parametrize("name", [*AGGREGATES, *IN_GROUPS])
def test_compiles_whole_and_once_for_any_number_counted(name: str) -> None:
    aggregate = {**AGGREGATES, **IN_GROUPS}[name]
    backend = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(aggregate, fullgraph=True, backend=backend)
    torch.manual_seed(0)
    for share in (0.0, 0.3, 0.7, 1.0, 2.0):
        losses = torch.randn(50, requires_grad=True)
        mask, mass = torch.rand(50) >= share, torch.rand(50)
        given = {"mask": mask} if name == "topk_threshold" else {"mask": mask, "sample_weight": mass}
        ours, theirs = compiled(losses, **given), aggregate(losses, **given)
        torch.testing.assert_close(ours, theirs)
        if ours.requires_grad:
            gradients = [torch.autograd.grad(value, losses)[0] for value in (ours, theirs)]
            torch.testing.assert_close(*gradients)
    assert backend.frame_count == 1


@pytest.mark.parametrize("name", ["k", "fraction"])
def test_a_schedule_of_k_does_not_recompile_for_every_step(name: str) -> None:
    backend = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(lambda x, number: average_top_k(x, **{name: number}), fullgraph=True, backend=backend)
    losses = torch.randn(50)
    for step in range(12):
        number = 1.25 + step if name == "k" else (1.25 + step) / 50
        torch.testing.assert_close(compiled(losses, number), average_top_k(losses, **{name: number}))  # type: ignore[arg-type]
    assert backend.frame_count <= 2  # for the first number, and for any


@pytest.mark.parametrize(
    "criterion",
    [
        AverageTopKCrossEntropyLoss(fraction=0.3, weight=torch.tensor([0.5, 1.0, 0.0]), label_smoothing=0.1),
        AverageTopKLoss(nn.CrossEntropyLoss(reduction="none"), k=2.5),
        AverageTopKLoss(nn.CrossEntropyLoss(reduction="none"), k=2.5, level="sample"),
        AverageRankedRangeLoss(nn.CrossEntropyLoss(reduction="none"), k=2.5, drop=1),
        AverageTopKCrossEntropyLoss(fraction=0.3, within="sample"),
        AverageTopKCrossEntropyLoss(fraction=0.3, within="class"),
        OHEMLoss(CrossEntropy(), threshold=0.7, min_fraction=0.1),
        HardNegativeLoss(CrossEntropy(), within="sample"),
        AverageTopKLoss(RegionLoss(dice_loss), fraction=0.5),
        DualAverageTopKLoss(CrossEntropy(), fraction=0.3, smoothing=0.01),
    ],
    ids=lambda criterion: repr(criterion).replace("\n", ""),
)
def test_a_criterion_compiles_whole_and_once(criterion: nn.Module) -> None:
    backend = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(criterion, fullgraph=True, backend=backend)
    torch.manual_seed(0)
    for ignored in (0, 5, 16):
        outputs = torch.randn(4, 3, 4, requires_grad=True)
        targets = torch.randint(3, (4, 4))
        mask = torch.arange(16).reshape(4, 4) >= ignored
        torch.testing.assert_close(compiled(outputs, targets, mask=mask), criterion(outputs, targets, mask=mask))
    assert backend.frame_count == 1


def test_compiles_to_machine_code() -> None:
    compiled = torch.compile(lambda losses, mask: average_top_k(losses, fraction=0.3, mask=mask), fullgraph=True)
    torch.manual_seed(0)
    losses, mask = torch.randn(1000, requires_grad=True), torch.rand(1000) > 0.5
    ours, theirs = compiled(losses, mask), average_top_k(losses, fraction=0.3, mask=mask)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(torch.autograd.grad(ours, losses), torch.autograd.grad(theirs, losses))


def test_bisection_compiles_whole() -> None:
    """What an accelerator runs: a meta tensor takes the same way."""
    compiled = torch.compile(AGGREGATES["average_top_k"], fullgraph=True, backend="aot_eager")
    value = compiled(torch.zeros(50, device="meta"), mask=torch.ones(50, dtype=torch.bool, device="meta"))
    assert value.device.type == "meta"


# vmap and torch.func


@pytest.mark.parametrize("name", [*AGGREGATES, *IN_GROUPS])
def test_vmap_is_a_loop(name: str) -> None:
    torch.manual_seed(0)
    losses, mask = torch.randn(4, 30), torch.rand(4, 30) > 0.3
    aggregate = {**AGGREGATES, **IN_GROUPS}[name]
    batched = torch.vmap(lambda losses, mask: aggregate(losses, mask=mask))(losses, mask)
    looped = torch.stack([aggregate(row, mask=counts) for row, counts in zip(losses, mask, strict=True)])
    torch.testing.assert_close(batched, looped)


def test_vmap_over_masses_alone() -> None:
    losses, mass = torch.randn(30), torch.rand(4, 30)
    batched = torch.vmap(lambda mass: average_top_k(losses, k=3, sample_weight=mass))(mass)
    torch.testing.assert_close(batched, torch.stack([average_top_k(losses, k=3, sample_weight=row) for row in mass]))


def test_per_sample_gradients() -> None:
    losses, mask = torch.randn(4, 30), torch.rand(4, 30) > 0.3
    gradients = torch.vmap(torch.func.grad(lambda row, counts: average_top_k(row, k=3, mask=counts)))(losses, mask)
    looped = torch.stack([topk_weights(row, k=3, mask=counts) for row, counts in zip(losses, mask, strict=True)])
    torch.testing.assert_close(gradients, looped)


# Derivatives


@pytest.mark.parametrize("name", [name for name in [*AGGREGATES, *IN_GROUPS] if not name.startswith("topk_")])
def test_gradcheck_away_from_ties(name: str) -> None:
    torch.manual_seed(0)
    losses = torch.randperm(20).double().requires_grad_()
    mask, mass = torch.rand(20) > 0.3, torch.rand(20, dtype=torch.float64) + 0.1
    aggregate = {**AGGREGATES, **IN_GROUPS}[name]
    assert torch.autograd.gradcheck(lambda x: aggregate(x, mask=mask, sample_weight=mass), losses)


def test_second_derivative_of_a_smooth_loss() -> None:
    """The weights are constants, so the Hessian is theirs with the losses' own."""
    torch.manual_seed(0)
    weight = torch.randn(3, dtype=torch.float64, requires_grad=True)
    x, y = torch.randn(20, 3, dtype=torch.float64), torch.randn(20, dtype=torch.float64)

    def mined(weight: Tensor) -> Tensor:
        return average_top_k((x @ weight - y).square(), fraction=0.3)

    assert torch.autograd.gradgradcheck(mined, weight)
    chosen = topk_weights((x @ weight - y).square(), fraction=0.3)
    torch.testing.assert_close(torch.autograd.functional.hessian(mined, weight), 2 * (x * chosen[:, None]).t() @ x)


def test_no_gradient_flows_through_scores_or_masses() -> None:
    losses = torch.randn(5, requires_grad=True)
    scores, mass = torch.randn(5, requires_grad=True), torch.rand(5, requires_grad=True)
    average_top_k(losses, k=2, scores=scores, sample_weight=mass).backward()
    assert losses.grad is not None
    assert scores.grad is None
    assert mass.grad is None


DIFFERENTIABLE = [name for name in AGGREGATES if not name.startswith("topk_")]


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")  # torch's own forward mode loads it
@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_many_slopes_at_once_and_forward_mode_are_the_gradient(name: str) -> None:
    torch.manual_seed(0)
    losses, mask = torch.randn(30, dtype=torch.float64, requires_grad=True), torch.rand(30) > 0.3
    value = AGGREGATES[name](losses, mask=mask)
    (gradient,) = torch.autograd.grad(value, losses, retain_graph=True)
    slopes = torch.tensor([1.0, 0.0, -2.0], dtype=torch.float64)
    (batched,) = torch.autograd.grad(value, losses, slopes, is_grads_batched=True, retain_graph=True)
    torch.testing.assert_close(batched, slopes[:, None] * gradient)
    direction = torch.randn(30, dtype=torch.float64)
    with torch.autograd.forward_ad.dual_level():
        dual = AGGREGATES[name](torch.autograd.forward_ad.make_dual(losses.detach(), direction), mask=mask)
        tangent = torch.autograd.forward_ad.unpack_dual(dual).tangent
        slope = torch.autograd.forward_ad.make_dual(torch.ones_like(value.detach()), value.detach())
        (changing,) = torch.autograd.grad(value, losses, slope)
        change = torch.autograd.forward_ad.unpack_dual(changing).tangent
    assert tangent is not None
    torch.testing.assert_close(tangent, gradient @ direction)
    torch.testing.assert_close(change, value.detach() * gradient)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_gradient_of_the_slope_is_the_value_of_its_direction(dtype: torch.dtype) -> None:
    losses = torch.tensor([3.0, 1.0, math.inf, 9.0], dtype=dtype, requires_grad=True)
    slope = torch.tensor(2.0, dtype=torch.float64 if dtype == torch.float64 else torch.float32, requires_grad=True)
    value = average_top_k(losses, k=2, scores=torch.tensor([3.0, 1.0, 0.0, 9.0]))
    (gradient,) = torch.autograd.grad(value, losses, slope, create_graph=True)
    assert gradient.tolist() == [1, 0, 0, 1]
    (second,) = torch.autograd.grad(gradient.sum(), slope)
    assert second == 1


def test_a_negative_view_is_read_as_it_is_where_operations_are_followed() -> None:
    with torch.autograd.forward_ad.dual_level():
        assert average_top_k(torch._neg_view(torch.tensor([1.0, 2.0, 3.0])), k=2) == -1.5


def test_what_was_changed_before_backward_is_noticed() -> None:
    """Where the kernels serve nothing is copied; a silent wrong gradient there must not be."""
    for changed in ("losses", "mask", "mass"):
        given = {"losses": torch.rand(9, requires_grad=True) * 1, "mask": torch.ones(9, dtype=torch.bool)}
        given["mass"] = torch.ones(9)
        value = average_top_k(given["losses"], k=2, mask=given["mask"], sample_weight=given["mass"])
        given[changed].detach().zero_()
        if native.is_available():
            with pytest.raises(RuntimeError, match="modified by an inplace operation"):
                value.backward()
        else:
            value.backward()


def test_masks_of_inference_and_views_of_any_kind_are_read_as_they_are() -> None:
    with torch.inference_mode():
        mask = torch.tensor([True, True, False, True])
    losses = torch.tensor([1 + 2j, 3 + 4j, 5 + 6j, 7 + 8j]).conj().imag.requires_grad_()
    value = average_top_k(losses, k=2, mask=mask)
    assert value == -3
    (gradient,) = torch.autograd.grad(value, losses)
    assert gradient.tolist() == [0.5, 0.5, 0, 0]


@pytest.mark.filterwarnings("ignore:.torch.jit", "ignore:Converting a tensor", "ignore:Using len")
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", [*AGGREGATES, *IN_GROUPS])
def test_a_trace_by_jit_holds_for_other_losses(name: str, masked: bool) -> None:
    torch.manual_seed(0)
    losses, others, mask = torch.randn(30), torch.randn(30), torch.rand(30) > 0.3
    aggregate = {**AGGREGATES, **IN_GROUPS}[name]

    def of(losses: Tensor, mask: Tensor) -> Tensor:
        return aggregate(losses, mask=mask if masked else None)

    traced = torch.jit.trace(of, (losses, mask), check_trace=False)  # type: ignore[no-untyped-call]
    torch.testing.assert_close(traced(others, ~mask), of(others, ~mask))


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_whoever_follows_the_operations_sees_all_of_them(name: str) -> None:
    losses = torch.rand(30)
    with Operations() as operations:
        followed = AGGREGATES[name](losses)
    torch.testing.assert_close(followed, AGGREGATES[name](losses))
    assert operations.names & {"mul", "sum"}


# Accelerators, without one: no value is read back, and nothing is sorted


class Operations(TorchDispatchMode):
    """The names of all operations that run inside."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(str(func.overloadpacket).removeprefix("aten."))
        return func(*args, **(kwargs or {}))


READING = {"_local_scalar_dense", "item", "nonzero", "masked_select", "equal", "is_nonzero"}
SORTING = {"sort", "topk", "kthvalue", "argsort", "unique", "median", "cumsum"}


@pytest.mark.parametrize("name", AGGREGATES)
@pytest.mark.parametrize("weighed", [False, True])
def test_on_an_accelerator_nothing_is_read_back_or_sorted(name: str, weighed: bool) -> None:
    """A meta tensor has no values at all, and takes the way of an accelerator."""
    losses = torch.zeros(100, device="meta", requires_grad=True)
    given = {"mask": torch.zeros(100, dtype=torch.bool, device="meta")}
    if weighed and name != "topk_threshold":
        given["sample_weight"] = torch.zeros(100, device="meta")
    with Operations() as operations:
        value = AGGREGATES[name](losses, **given)
        if value.requires_grad:
            value.backward()
    assert value.device.type == "meta"
    assert operations.names.isdisjoint(READING | SORTING), operations.names
    without = ("average", "maximum", "average_top_k_dual", "average_tilted")
    assert ("bitwise_xor" in operations.names) == (name not in without)


@pytest.mark.parametrize("name", IN_GROUPS)
def test_on_an_accelerator_groups_are_sorted_but_nothing_is_read_back(name: str) -> None:
    losses = torch.zeros(100, device="meta", requires_grad=True)
    with Operations() as operations:
        IN_GROUPS[name](losses, mask=torch.zeros(100, dtype=torch.bool, device="meta"))
    assert operations.names.isdisjoint(READING), operations.names


def test_on_an_accelerator_the_criterion_reads_nothing_back() -> None:
    criterion = AverageTopKCrossEntropyLoss(fraction=0.3, weight=torch.tensor([0.5, 1.0, 2.0]), label_smoothing=0.1)
    criterion.to("meta")
    outputs = torch.zeros(2, 3, 8, 8, device="meta", requires_grad=True)
    with Operations() as operations:
        criterion(outputs, torch.zeros(2, 8, 8, dtype=torch.long, device="meta")).backward()
    assert operations.names.isdisjoint(READING | SORTING), operations.names


def test_reading_back_would_be_noticed() -> None:
    with pytest.raises((RuntimeError, NotImplementedError)):
        topk_weights(torch.zeros(5, device="meta"), k=1, nan_policy="raise")


def test_where_values_cannot_be_read_bad_ones_give_nan() -> None:
    """The twin of an error on the CPU: a compiled function cannot raise on a value, but must not hide it."""
    compiled = torch.compile(lambda x, m: average_top_k(x, k=1, sample_weight=m), fullgraph=True, backend="eager")
    for bad in (-1.0, math.nan, math.inf):
        assert compiled(torch.tensor([1.0, 2.0]), torch.tensor([1.0, bad])).isnan()
    criterion = torch.compile(AverageTopKCrossEntropyLoss(k=1), fullgraph=True, backend="eager")
    outputs, targets = torch.zeros(2, 3), torch.tensor([0, 3])
    with mock.patch.object(native, "SERVES", False):
        assert criterion(outputs, targets).isnan()
    torch._dynamo.reset()
    if native.is_available():  # an operator of the native kernels may look at values even there
        with pytest.raises(ValueError, match=r"`targets` must be classes in \[0, 3\) where counted; got 3"):
            criterion(outputs, targets)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("name", AGGREGATES)
def test_cuda_agrees_with_the_cpu(name: str) -> None:
    torch.manual_seed(0)
    for n in (1, 100, 1_000_003):
        losses = (torch.randn(n) * 4).round() / 4
        given = {"mask": torch.rand(n) > 0.3}
        if name != "topk_threshold":
            given["sample_weight"] = torch.rand(n)
        theirs = AGGREGATES[name](losses.cuda(), **{key: value.cuda() for key, value in given.items()})
        torch.testing.assert_close(theirs.cpu(), AGGREGATES[name](losses, **given))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_never_waits_for_the_host() -> None:
    losses, mask = torch.randn(1000, device="cuda", requires_grad=True), torch.rand(1000, device="cuda") > 0.5
    torch.cuda.set_sync_debug_mode("error")
    try:
        average_top_k(losses, fraction=0.3, mask=mask).backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


# Others


def test_deterministic_algorithms_are_no_obstacle() -> None:
    torch.use_deterministic_algorithms(True)
    try:
        losses = torch.randn(100, requires_grad=True)
        average_top_k(losses, k=3).backward()
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("name", [*AGGREGATES, *IN_GROUPS])
def test_a_default_device_elsewhere_changes_nothing(name: str) -> None:
    aggregate = {**AGGREGATES, **IN_GROUPS}[name]
    losses, mask = torch.randn(4, 30), torch.rand(4, 30) > 0.3

    def answers() -> list[Tensor]:
        row = aggregate(losses[0], mask=mask[0])
        return [row, torch.vmap(lambda losses, mask: aggregate(losses, mask=mask))(losses, mask)]

    expected = answers()
    with torch.device("meta"):
        torch.testing.assert_close(answers(), expected)


def test_inference_mode_works() -> None:
    with torch.inference_mode():
        assert average_top_k(torch.tensor([1.0, 2.0, 3.0]), k=2) == 2.5
