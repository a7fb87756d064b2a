"""The kernels: as exact as torch on every layout and precision, the same on any number of threads, and their laws."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from functools import partial
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.measure import Memory
from topkloss import AverageTopKCrossEntropyLoss, average_top_k, average_top_k_cross_entropy, topk_select
from topkloss.kernels import native, operators, portable
from topkloss.losses.elements import class_mass
from topkloss.ranking.threshold import kth_largest

built = pytest.mark.skipif(not native.is_available(), reason="the native kernels were not built for this processor")
BACKENDS = ["torch", pytest.param("native", marks=built)]
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]

# Planes whole and in part, rows long and short, two classes, one place, nothing in common with a tile of 256.
SHAPES = [(2, 5, 7, 9), (2, 3, 256), (1, 4, 700), (300, 10), (40, 70), (3, 60, 5, 5), (5, 2), (2, 3, 1, 1), (1, 2, 20)]


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def logits_and_targets(shape: tuple[int, ...], dtype: torch.dtype, scale: float = 3.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    outputs = (scale * torch.randn(shape, generator=generator, dtype=torch.float64)).to(dtype)
    targets = torch.randint(shape[1], (shape[0], *shape[2:]), generator=generator)
    targets.view(-1)[::5] = -100
    return outputs, targets


def value_and_gradient(outputs: Tensor, targets: Tensor, **settings: Any) -> tuple[Tensor, Tensor]:
    leaf = outputs.detach().requires_grad_()
    value = average_top_k_cross_entropy(leaf, targets, **settings)
    (gradient,) = torch.autograd.grad(value, leaf)
    return value.detach(), gradient


def by_plain_torch(
    outputs: Tensor,
    targets: Tensor,
    *,
    weight: Tensor | None = None,
    label_smoothing: float = 0.0,
    ignore_index: int = -100,
    mask: Tensor | None = None,
    **asked: Any,
) -> tuple[Tensor, Tensor]:
    """The same in float64, composed of what torch has."""
    leaf = outputs.detach().double().requires_grad_()
    counts = targets != ignore_index if mask is None else (targets != ignore_index) & mask
    mass = None if weight is None else class_mass(targets, weight)
    counts = counts if mass is None else counts & (mass != 0)
    smoothed: dict[str, Any] = {"class_weight": weight, "smoothing": label_smoothing}
    losses, scores = portable.composed(leaf, targets, counts=counts, **smoothed)
    value = average_top_k(losses, mask=counts, sample_weight=mass, scores=scores, **asked)
    (gradient,) = torch.autograd.grad(value, leaf)
    return value.detach(), gradient


# The same answer as plain torch


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("backend", BACKENDS)
def test_every_layout_and_precision(shape: Any, dtype: torch.dtype, channels_last: bool, backend: str) -> None:
    if channels_last and len(shape) != 4:
        return
    outputs, targets = logits_and_targets(shape, dtype)
    outputs = outputs.contiguous(memory_format=torch.channels_last) if channels_last else outputs
    weight = torch.linspace(0, 2, shape[1]) if shape[1] > 1 else torch.ones(1)
    for fraction, smoothing, weights in itertools.product([0.05, 0.37, 1.0], [0.0, 0.1], [None, weight]):
        settings: dict[str, Any] = {"fraction": fraction, "label_smoothing": smoothing, "weight": weights}
        value, gradient = value_and_gradient(outputs, targets, **settings, backend=backend)
        expected, slope = by_plain_torch(outputs, targets, **settings)
        assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert gradient.dtype == dtype
        torch.testing.assert_close(value.double(), expected, rtol=3e-6, atol=1e-7)
        rounded = 2 * torch.finfo(dtype).eps * slope.abs().max()
        weighed = 1e-14 if dtype == torch.float64 else 1e-7  # of the weights, at most 1: a slope may be a difference
        assert (gradient.double() - slope).abs().max() <= rounded + weighed, settings


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "of",
    [
        lambda x: x[:, ::2],
        lambda x: x.transpose(2, 3),
        lambda x: x[:, :, 1:-1],
        lambda x: x[:1, :, :1].expand(3, 6, 8, 9),
        lambda x: x.flip(1),
        lambda x: torch._neg_view(x),
    ],
    ids=["strided classes", "transposed", "a part", "expanded", "flipped", "negative"],
)
def test_views_of_any_kind(of: Callable[[Tensor], Tensor], backend: str) -> None:
    base, _ = logits_and_targets((3, 6, 8, 9), torch.float64)
    outputs = of(base)
    targets = torch.randint(outputs.shape[1], (outputs.shape[0], *outputs.shape[2:]))
    ours = value_and_gradient(outputs, targets, fraction=0.3, backend=backend)
    torch.testing.assert_close(ours, by_plain_torch(outputs, targets, fraction=0.3), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_class_weight_that_is_a_negative_view(backend: str) -> None:
    outputs, targets = logits_and_targets((2, 3, 256), torch.float64)
    weight = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)
    settings = {"fraction": 0.3, "label_smoothing": 0.2, "backend": backend}
    ours = value_and_gradient(outputs, targets, weight=torch._neg_view(-weight), **settings)
    torch.testing.assert_close(ours, value_and_gradient(outputs, targets, weight=weight, **settings), rtol=0, atol=0)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("factor", [1e-50, 1e-40, 1e40, 1e50])
def test_class_weights_tiny_or_huge_are_masses_like_others(factor: float, backend: str) -> None:
    """In float32 one over such a mass is infinite or nothing."""
    outputs, targets = logits_and_targets((2, 3, 256), torch.float32)
    weight = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)
    given: dict[str, Any] = {"fraction": 0.3, "backend": backend}
    ours = value_and_gradient(outputs, targets, weight=factor * weight, **given)
    torch.testing.assert_close(ours, value_and_gradient(outputs, targets, weight=weight, **given))


@pytest.mark.parametrize("backend", BACKENDS)
@given(data=st.data())
def test_masks_counts_and_ties(backend: str, data: st.DataObject) -> None:
    shape = data.draw(st.sampled_from([(9,), (3, 5), (2, 2, 5)]))
    classes = data.draw(st.integers(2, 4))
    numbers = st.lists(
        st.sampled_from([-2.0, -0.0, 0.0, 1.0, 30.0]),
        min_size=math.prod(shape) * classes,
        max_size=math.prod(shape) * classes,
    )
    outputs = torch.tensor(data.draw(numbers)).reshape(shape[0], classes, *shape[1:])
    labels = st.lists(st.integers(-1, classes - 1), min_size=math.prod(shape), max_size=math.prod(shape))
    targets = torch.tensor(data.draw(labels)).reshape(shape)
    mask = torch.tensor(data.draw(st.lists(st.booleans(), min_size=targets.numel(), max_size=targets.numel())))
    k = data.draw(st.sampled_from([0.5, 1.0, 2.5, 7.0, 100.0]))
    settings: dict[str, Any] = {
        "k": k,
        "ignore_index": -1,
        "mask": data.draw(st.sampled_from([None, mask.reshape(shape)])),
    }
    value, _ = value_and_gradient(outputs, targets, **settings, backend=backend)
    expected, _ = by_plain_torch(outputs, targets, **settings)
    torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=1e-6)


# As exact as torch's own


@np.errstate(over="ignore")
def in_long_double(outputs: Tensor, targets: Tensor) -> tuple[Any, Any]:
    """Losses, and the gradient of their mean, with a longer mantissa than float64 where the machine has one."""
    x = np.moveaxis(outputs.double().numpy().astype(np.longdouble), 1, -1)
    labels = targets.numpy()[..., None]
    powers = np.exp(x - x.max(axis=-1, keepdims=True))
    own = np.take_along_axis(x, labels, -1)
    rest = np.exp(x - own)
    np.put_along_axis(rest, labels, 0, -1)
    below = x.max(axis=-1) - own[..., 0]
    losses = np.where(below == 0, np.log1p(rest.sum(-1)), below + np.log(powers.sum(-1)))
    probabilities = powers / powers.sum(-1, keepdims=True)
    others = probabilities.copy()
    np.put_along_axis(others, labels, 0, -1)
    slope = others.copy()
    np.put_along_axis(slope, labels, -others.sum(-1, keepdims=True), -1)
    return losses, np.moveaxis(slope / targets.numel(), -1, 1)


def assert_no_less_exact(ours: Tensor, stock: Tensor, exact: Any, dtype: torch.dtype) -> None:
    """At most twice the largest error of torch, or four units in the last place."""
    unit = torch.finfo(dtype).eps * np.abs(exact)
    error, theirs = (np.abs(x.double().numpy().astype(np.longdouble) - exact) for x in (ours, stock))
    assert (error <= np.maximum(2 * theirs.max(), 4 * unit)).all(), (float(error.max()), float(theirs.max()))


@built
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(400, 5), (60, 100), (2, 7, 300)], ids=str)
@pytest.mark.parametrize("scale", [0.01, 3.0, 200.0, 1e4])
def test_no_less_exact_than_torch(dtype: torch.dtype, shape: Any, scale: float) -> None:
    """Each loss by itself, and the gradient of their mean."""
    outputs, targets = logits_and_targets(shape, dtype, scale)
    targets = targets.abs() % shape[1]
    losses, slope = in_long_double(outputs, targets)
    wide = outputs if dtype == torch.float64 else outputs.float()
    stock = F.cross_entropy(wide, targets, reduction="none")
    assert_no_less_exact(scores_of(outputs, targets), stock, losses, wide.dtype)
    leaf = outputs.detach().requires_grad_()
    (theirs,) = torch.autograd.grad(F.cross_entropy(leaf, targets), leaf)
    _, ours = value_and_gradient(outputs, targets, fraction=1, backend="native")
    assert_no_less_exact(ours, theirs, slope, dtype)


@built
@pytest.mark.parametrize("seed", range(20))
def test_ties_are_no_less_exact_than_torch(seed: int) -> None:
    """Equal small terms round the same way: added one by one to a large sum their errors pile up."""
    levels = torch.tensor([-2.0, 0.0, 1.0, 30.0], dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    outputs = levels[torch.randint(4, (80, 33), generator=generator)].requires_grad_()
    targets = torch.randint(33, (80,), generator=generator)
    _, slope = in_long_double(outputs.detach(), targets)
    (theirs,) = torch.autograd.grad(F.cross_entropy(outputs, targets), outputs)
    _, ours = value_and_gradient(outputs.detach(), targets, fraction=1, backend="native")
    assert_no_less_exact(ours, theirs, slope, torch.float64)


def scores_of(outputs: Tensor, targets: Tensor) -> Tensor:
    """What the native kernel ranks by."""
    return native.cross_entropy(outputs, targets, counts=None, class_weight=None, smoothing=0.0)[0]


@built
@pytest.mark.parametrize("margin", [1e-3, 5.0, 12.0, 20.0, 60.0, 80.0])
def test_tiny_losses_are_relatively_exact(margin: float) -> None:
    """Where torch's own float32 cross-entropy is 0 or wrong by its whole size, and makes ties."""
    outputs = torch.tensor([[margin, 0.0, -1.0], [margin, 0.5, 0.25]])
    scores = scores_of(outputs, torch.zeros(2, dtype=torch.long))
    wide = outputs.double()
    exact = torch.log1p((wide[:, 1:] - wide[:, :1]).exp().sum(dim=1))
    torch.testing.assert_close(scores.double(), exact, rtol=5e-7, atol=0)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("rows", [True, False])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_infinite_logits_are_what_they_are_to_torch(backend: str, rows: bool, smoothing: float) -> None:
    inf = math.inf
    outputs = torch.tensor(
        [[-inf, 0.0, 1.0], [0.0, -inf, -inf], [1.0, 2.0, -inf], [3e4, -3e4, 0.0]], dtype=torch.float64
    )
    outputs = outputs if rows else outputs.t().contiguous()[None]
    for labels in ([1, 0, 1, 0], [0, 1, 2, 1], [2, 2, 0, 2]):
        targets = torch.tensor(labels) if rows else torch.tensor([labels])
        for k in (1.0, 2.5, 4.0):
            settings: dict[str, Any] = {"k": k, "label_smoothing": smoothing}
            ours = value_and_gradient(outputs, targets, **settings, backend=backend)
            torch.testing.assert_close(ours, by_plain_torch(outputs, targets, **settings), equal_nan=True)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_a_counted_nan_shows_and_an_ignored_one_never_matters(backend: str, poison: float) -> None:
    outputs, targets = logits_and_targets((2, 4, 300), torch.float32)
    right = value_and_gradient(outputs, targets, fraction=0.5, backend=backend)
    ignored = targets == -100
    outputs.masked_fill_(ignored.unsqueeze(1), poison)
    wild = targets.masked_fill(ignored, 7777)
    for labels, settings in ((targets, {}), (wild, {"mask": ~ignored}), (wild, {"ignore_index": 7777})):
        ours = value_and_gradient(outputs, labels, fraction=0.5, backend=backend, **settings)
        torch.testing.assert_close(ours, right, rtol=0, atol=0)
        assert (ours[1].masked_select(ignored.unsqueeze(1)) == 0).all()
    outputs[0, 1, 1] = math.nan
    value, gradient = value_and_gradient(outputs, targets, fraction=0.5, backend=backend)
    assert value.isnan()
    assert gradient.masked_select(~ignored.unsqueeze(1)).isnan().all()
    assert (gradient.masked_select(ignored.unsqueeze(1)) == 0).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_nothing_counted_is_zero_and_connected(backend: str) -> None:
    outputs, targets = logits_and_targets((2, 4, 300), torch.float32)
    value, gradient = value_and_gradient(outputs, torch.full_like(targets, -100), fraction=0.5, backend=backend)
    assert value == 0
    assert (gradient == 0).all()


# The k-th largest


def distributions(n: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(n)
    random = torch.randn(n, generator=generator)
    zeros = torch.where(torch.rand(n, generator=generator) < 0.7, torch.tensor(-0.0), random.abs())
    return {
        "random": random,
        "wide": (40 * random).exp(),
        "zeros": zeros,
        "sorted": random.sort().values,
        "reversed": random.sort(descending=True).values,
        "constant": torch.full((n,), 0.5),
        "two": torch.where(random > 0, 1.0, 2.0),
        "infinite": torch.where(random > 1, torch.inf, torch.where(random < -1, -torch.inf, random)),
        "alternating": torch.arange(n).remainder(2).float(),
    }


@built
@pytest.mark.parametrize("n", [1, 2, 100, 8192, 8193, 30_000, 200_001])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_kth_largest_of_any_distribution(n: int, dtype: torch.dtype, threads: Callable[[int], None]) -> None:
    for name, scores in distributions(n).items():
        scores = scores.to(dtype)
        ordered = scores.sort(descending=True).values
        for share, number in itertools.product([1e-9, 0.003, 0.1, 0.5, 0.9, 1.0], [1, 3]):
            threads(number)
            k = max(1, round(share * n))
            found = native.kth_largest(native.Line(scores), k)
            expected = ordered[k - 1]
            assert found[0] == expected, (name, k)
            assert found[1] == (scores > expected).sum()
            assert found[2] == (scores == expected).sum()


@built
@pytest.mark.parametrize(("n", "number"), [(1, 1), (1025, 1), (70_000, 1), (70_000, 3)])
def test_what_counts_and_what_an_interval_of_it_weighs(n: int, number: int, threads: Callable[[int], None]) -> None:
    threads(number)
    generator = torch.Generator().manual_seed(n)
    every = distributions(n)
    for name, own, masked, weighing in itertools.product(
        ["random", "zeros", "infinite"], DTYPES[:2], [False, True], [None, *DTYPES[:2]]
    ):
        scores = every[name].to(own)
        counts = torch.rand(n, generator=generator) < 0.6 if masked else None
        mass = None if weighing is None else torch.randint(0, 4, (n,), generator=generator).to(weighing) / 2
        held = torch.ones(n, dtype=torch.float64) if mass is None else mass.double()
        held = held if counts is None else held * counts
        spoiled = scores.masked_fill(held == 0, math.nan)
        line = native.Line(spoiled, mass, counts)
        total, nan, wrong = native.count(line)
        assert (total, nan, wrong) == (float(held.sum()), False, -1), name
        if total == 0:
            continue
        end, start = (native.kth_largest(line, share * total)[0] for share in (0.7, 0.2))
        ordered, order = scores.masked_fill(held == 0, -math.inf).sort(descending=True)
        assert end == ordered[(held[order].cumsum(0) < 0.7 * total).sum()], name
        above = (held > 0) & (scores > end)
        lowest = float(scores[above].min()) if above.any() else math.inf
        assert native.above(line, end) == (float(held[above].sum()), lowest)
        before = (scores > end) + 0.25 * (scores == end)
        behind = (scores < start) + 0.75 * (scores == start)
        intervals = [native.Interval(end, 0.25, 0.3, start, 0.75)]
        for dtype in DTYPES[:2]:
            expected = (0.3 * torch.minimum(before.double(), behind.double()) * held).to(dtype)
            weights = torch.empty(n, dtype=dtype)
            native.weights(line, intervals, weights)
            torch.testing.assert_close(weights, expected)
            losses = torch.rand(n, dtype=dtype, generator=generator).masked_fill(expected == 0, math.nan)
            value = native.weighted_sum(line, intervals, losses)
            assert value == pytest.approx(float((expected.double() * losses.nan_to_num().double()).sum()), rel=1e-6)


@built
@pytest.mark.parametrize(("n", "number"), [(6, 1), (70_002, 1), (70_002, 3)])
@pytest.mark.parametrize("weighing", [None, torch.float32, torch.float64])
def test_groups_are_laid_side_by_side_and_weighed_by_their_own_interval(
    n: int, number: int, weighing: torch.dtype | None, threads: Callable[[int], None]
) -> None:
    """By an index, of which what does not count may be anywhere; and one after the other."""
    threads(number)
    generator = torch.Generator().manual_seed(n)
    scores = torch.randn(n, generator=generator)
    counts = torch.rand(n, generator=generator) < 0.7
    mass = None if weighing is None else torch.randint(0, 3, (n,), generator=generator).to(weighing)
    held = counts.double() if mass is None else counts * mass.double()
    index = torch.randint(-2, 4, (n,), generator=generator).masked_fill(held == 0, 2**40)
    line = native.Line(scores, mass, counts)
    groups = native.groups_by(line, index)
    numbers = index[held > 0].unique().tolist()
    assert (groups.first, groups.number) == (numbers[0], numbers[-1] - numbers[0] + 1)
    for own, part in zip(
        range(groups.first, groups.first + groups.number), native.partition(line, groups), strict=True
    ):
        inside = (index == own) & (held > 0)
        assert torch.equal(part.tensors[0], scores[inside])
        assert mass is None or torch.equal(torch.as_tensor(part.tensors[1]), mass[inside])
    in_three = torch.arange(n) // (n // 3)
    for of, each, least in ((groups, index, groups.first), (native.Groups(None, 0, 3), in_three, 0)):
        intervals = [native.Interval(end / 4, 0.5, 1 / (end + 1), 1.0, 0.0) for end in range(of.number)]
        ends = torch.tensor([interval.end for interval in intervals])[(each - least).clamp(0, of.number - 1)]
        scales = torch.tensor([interval.scale for interval in intervals], dtype=torch.float64)
        scales = scales[(each - least).clamp(0, of.number - 1)]
        expected = ((scores > ends) & (scores < 1.0)) * scales * held
        weights = torch.empty(n, dtype=torch.float64)
        native.weights(line, intervals, weights, of)
        torch.testing.assert_close(weights, expected)
        value = native.weighted_sum(line, intervals, scores.double(), of)
        assert value == pytest.approx(float((expected * scores).sum()), rel=1e-9, abs=1e-9)


@built
def test_groups_far_apart_are_more_than_there_are_elements() -> None:
    line = native.Line(torch.zeros(3))
    assert native.groups_by(line, torch.tensor([-(2**63), 0, 2**63 - 1])).number == 4
    nothing = native.Line(torch.zeros(3), None, torch.zeros(3, dtype=torch.bool))
    assert native.groups_by(nothing, torch.tensor([1, 2, 3])).number == 0


@built
def test_a_mass_that_is_none_is_found_where_it_counts() -> None:
    scores, counts = torch.zeros(100_000), torch.ones(100_000, dtype=torch.bool)
    for bad in (-1.0, math.nan, math.inf):
        mass = torch.ones(100_000)
        mass[[70_000, 90_000]] = bad
        counts[70_000] = True
        assert native.count(native.Line(scores, mass, counts))[2] == 70_000
        counts[70_000] = False
        assert native.count(native.Line(scores, mass, counts))[2] == 90_000


@built
@pytest.mark.parametrize("n", [1, 7, 5000, 100_000])
@pytest.mark.parametrize("number", [1, 3])
def test_the_kth_largest_by_mass(n: int, number: int, threads: Callable[[int], None]) -> None:
    threads(number)
    mass = torch.randint(0, 4, (n,), generator=torch.Generator().manual_seed(n)).double()
    mass[0] = 1
    for name, scores in distributions(n).items():
        scores = torch.where(mass > 0, scores, -torch.inf)
        ordered, order = scores.sort(descending=True, stable=True)
        reached = mass[order].cumsum(0)
        for share in (1e-9, 0.1, 0.5, 1.0):
            need = share * float(mass.sum())
            expected = ordered[(reached < need).sum()]
            found = native.kth_largest(native.Line(scores, mass), need)
            assert found[0] == expected, (name, share)
            assert found[1] == mass[scores > expected].sum()
            assert found[2] == mass[scores == expected].sum()


@built
def test_pivots_that_miss_are_made_good() -> None:
    """All that the sample sees is small: the answer lies above both pivots."""
    n = 2**17
    step = round(n * 0.6180339887498949)
    while math.gcd(step, n) > 1:
        step += 1
    seen = torch.arange(round(n ** (2 / 3))) * step % n
    scores = torch.rand(n, generator=torch.Generator().manual_seed(0)) + 1
    scores[seen] = 0.0
    for k in (1, 1000, n // 2, n - 10):
        assert native.kth_largest(native.Line(scores), k)[0] == scores.sort(descending=True).values[k - 1]


@built
def test_the_threshold_is_the_natives_on_tensors_that_are_not_contiguous() -> None:
    scores = torch.randn(50, 4).t()
    found = kth_largest(scores[1], None, torch.tensor(7.0, dtype=torch.float64))
    assert found.score == scores[1].sort(descending=True).values[6]


# The same on any number of threads


@built
@pytest.mark.parametrize("shape", [(2, 19, 130, 70), (3000, 100)], ids=str)
def test_threads_change_nothing(shape: Any, threads: Callable[[int], None]) -> None:
    outputs, targets = logits_and_targets(shape, torch.float32)
    threads(1)
    value, gradient = value_and_gradient(outputs, targets, fraction=0.3, backend="native")
    for number in (2, 3, 5):
        threads(number)
        again, slope = value_and_gradient(outputs, targets, fraction=0.3, backend="native")
        torch.testing.assert_close(slope, gradient, rtol=0, atol=0)
        torch.testing.assert_close(again, value, rtol=2e-7, atol=0)  # sums of parts round otherwise


@built
def test_the_runtime_of_torch_is_shared() -> None:
    assert native.LIBRARY is not None
    assert native.LIBRARY.shares_openmp == (
        "OpenMP" in torch.__config__.parallel_info().split("ATen parallel backend:")[1]
    )


# What torch does around them


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_first_and_second_derivatives(backend: Any, smoothing: float) -> None:
    outputs, targets = logits_and_targets((30, 4), torch.float64)
    weight = torch.tensor([0.5, 1.0, 2.0, 0.3], dtype=torch.float64)
    value = partial(
        average_top_k_cross_entropy, targets=targets, k=7.5, label_smoothing=smoothing, weight=weight, backend=backend
    )
    assert torch.autograd.gradcheck(value, (outputs.requires_grad_(),))
    assert torch.autograd.gradgradcheck(value, (outputs,))


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")  # torch's own forward mode loads it
@pytest.mark.parametrize("backend", ["auto", *BACKENDS])
def test_forward_mode_is_the_gradient(backend: Any) -> None:
    outputs, targets = logits_and_targets((30, 4), torch.float64)
    _, gradient = value_and_gradient(outputs, targets, k=7.5, backend=backend)
    direction = torch.randn(30, 4, dtype=torch.float64)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(outputs, direction)
        value = average_top_k_cross_entropy(dual, targets, k=7.5, backend=backend)
        tangent = torch.autograd.forward_ad.unpack_dual(value).tangent
    assert tangent is not None
    torch.testing.assert_close(tangent, (gradient * direction).sum())


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # that opcheck itself reads
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_operators_keep_torchs_contract(backend: str) -> None:
    outputs, targets = logits_and_targets((2, 4, 33), torch.float32)
    counts = targets != -100
    settings = (counts, None, 0.1, backend == "native")
    forward, backward = torch.ops.topkloss.cross_entropy, torch.ops.topkloss.cross_entropy_backward
    torch.library.opcheck(forward.default, (outputs.requires_grad_(), targets, *settings))
    across = targets.t().contiguous().t()  # as no kernel lays out what it returns
    torch.library.opcheck(forward.default, (outputs, across, counts.t().contiguous().t(), *settings[1:]))
    grad_output = torch.rand(2, 33).masked_fill(~counts, 0).requires_grad_()
    known = ("test_schema", "test_autograd_registration", "test_faketensor")  # a second derivative is not compiled
    torch.library.opcheck(backward.default, (grad_output, outputs, targets, *settings), test_utils=known)
    if native.is_available():
        need = torch.tensor(20.0, dtype=torch.float64)
        for mass in (None, torch.rand(66, dtype=torch.float64)):
            torch.library.opcheck(torch.ops.topkloss.kth_largest.default, (torch.rand(66), mass, need))


@pytest.mark.parametrize("backend", BACKENDS)
def test_compiles_whole_with_any_k(backend: str) -> None:
    from torch._dynamo.testing import CompileCounterWithBackend

    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")

    def train(outputs: Tensor, targets: Tensor, k: float) -> Tensor:
        return average_top_k_cross_entropy(2 * outputs, targets, k=k, backend=backend)  # type: ignore[arg-type]

    compiled = torch.compile(train, fullgraph=True, backend=counter)
    outputs, targets = logits_and_targets((2, 4, 300), torch.float32)
    for k in (10.0, 20.5, 31.0, 4.0):
        leaf = outputs.requires_grad_()
        ours, theirs = compiled(leaf, targets, k), train(leaf, targets, k)
        torch.testing.assert_close(ours, theirs)
        torch.testing.assert_close(*(torch.autograd.grad(value, leaf)[0] for value in (ours, theirs)))
    torch._dynamo.reset()
    assert counter.frame_count <= 2


@pytest.mark.parametrize("backend", BACKENDS)
def test_under_autocast_it_is_float32(backend: str) -> None:
    model = nn.Conv2d(3, 5, 1)
    targets = torch.randint(5, (2, 20, 20))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = model(torch.rand(2, 3, 20, 20))
        loss = average_top_k_cross_entropy(outputs, targets, fraction=0.5, backend=backend)  # type: ignore[arg-type]
    assert (outputs.dtype, loss.dtype) == (torch.bfloat16, torch.float32)
    loss.backward()  # type: ignore[no-untyped-call]
    assert model.weight.grad is not None
    assert model.weight.grad.isfinite().all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_nothing_is_written_to(backend: str) -> None:
    outputs, targets = logits_and_targets((2, 4, 300), torch.float32)
    weight = torch.rand(4)
    before = [tensor.clone() for tensor in (outputs, targets, weight)]
    value_and_gradient(outputs, targets, fraction=0.5, weight=weight, label_smoothing=0.1, backend=backend)
    assert all(torch.equal(*pair) for pair in zip(before, (outputs, targets, weight), strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("place", [0, 200, 599])
def test_a_label_out_of_range_is_refused(backend: str, place: int) -> None:
    outputs, targets = logits_and_targets((2, 4, 300), torch.float32)
    targets.view(-1)[place] = 4
    with pytest.raises(ValueError, match=r"`targets` must be classes in \[0, 4\) where counted; got 4. If that marks"):
        value_and_gradient(outputs, targets, fraction=0.5, backend=backend)


@pytest.mark.parametrize("shape", [(2, 64, 100, 100), (20_000, 64)], ids=str)
def test_the_portable_kernels_need_one_gradient_and_little_else(shape: Any) -> None:
    outputs, targets = logits_and_targets(shape, torch.float32)
    leaf = outputs.requires_grad_()
    with Memory() as memory:
        memory.known.update(tensor.untyped_storage().data_ptr() for tensor in (leaf, targets))
        average_top_k_cross_entropy(leaf, targets, fraction=0.5, backend="torch").backward()  # type: ignore[no-untyped-call]
    logits = leaf.numel() * 4
    assert logits <= memory.most <= 2.4 * logits  # the chunks are as large as these logits are small


@pytest.mark.parametrize("beside", ["targets", "mask"])
def test_what_lies_on_another_device_is_read_by_no_kernel(beside: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An address there is none here: torch says which tensor is where."""
    outputs, targets = logits_and_targets((2, 5, 300), torch.float32)
    given: dict[str, Any] = {"targets": targets, "mask": targets >= 0}
    given[beside] = given[beside].to("meta")

    def fail(*_: Any, **__: Any) -> None:
        raise AssertionError("a kernel was called")

    monkeypatch.setattr("topkloss.kernels.native.cross_entropy", fail)
    with pytest.raises(RuntimeError, match="is not on the expected device"):
        average_top_k_cross_entropy(outputs, k=3, **given)
    operators.cross_entropy(outputs, given["targets"], counts=given["mask"])  # what becomes of it is torch's affair


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_default_device_elsewhere_changes_nothing(backend: str) -> None:
    outputs, targets = logits_and_targets((2, 5, 300), torch.float32)
    settings: dict[str, Any] = {"fraction": 0.3, "weight": torch.arange(5.0), "label_smoothing": 0.1}
    expected = value_and_gradient(outputs, targets, **settings, backend=backend)
    with torch.device("meta"):
        torch.testing.assert_close(value_and_gradient(outputs, targets, **settings, backend=backend), expected)


# The gradient in the place of the logits


@built
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("fraction", [0.1, 0.9])
def test_in_place_is_the_same_gradient(channels_last: bool, dtype: torch.dtype, fraction: float) -> None:
    inputs, targets = logits_and_targets((2, 5, 20, 33), dtype)
    inputs = inputs.contiguous(memory_format=torch.channels_last) if channels_last else inputs
    gradients = []
    for inplace in (True, False):
        leaf = inputs.detach().requires_grad_()
        outputs = leaf * 2
        storage = outputs.untyped_storage().data_ptr()
        loss = average_top_k_cross_entropy(outputs, targets, fraction=fraction, backend="native", inplace=inplace)
        seen: list[int] = []
        outputs.register_hook(lambda slope, seen=seen: seen.append(slope.untyped_storage().data_ptr()))
        loss.backward()  # type: ignore[no-untyped-call]
        assert (seen == [storage]) == inplace
        assert (outputs.numel() == 0) == inplace
        gradients.append(leaf.grad)
    torch.testing.assert_close(*gradients, rtol=0, atol=0)


@built
@pytest.mark.parametrize(
    "second",
    [
        lambda outputs, loss: loss(outputs, inplace=True),
        lambda outputs, loss: loss(outputs),
        lambda outputs, loss: outputs.square().sum(),
        lambda outputs, loss: (outputs * outputs.exp()).sum(),
    ],
    ids=["in place", "a loss", "a square", "a product"],
)
@pytest.mark.parametrize("together", [True, False])
def test_a_second_use_of_overwritten_logits_raises(second: Callable[..., Tensor], together: bool) -> None:
    inputs, targets = logits_and_targets((2, 5, 300), torch.float32)
    loss = partial(average_top_k_cross_entropy, targets=targets, fraction=0.5, backend="native")
    outputs = inputs.requires_grad_() * 2
    other = second(outputs, loss)
    value = loss(outputs, inplace=True)  # the last to be computed is the first to be differentiated
    if not together:
        value.backward(retain_graph=True)  # type: ignore[no-untyped-call]
    late = other + value if together else other
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        late.backward()  # type: ignore[no-untyped-call]
    with pytest.raises(IndexError):
        outputs.argmax(dim=1)


@built
def test_a_second_backward_through_overwritten_logits_raises() -> None:
    inputs, targets = logits_and_targets((2, 5, 300), torch.float32)
    outputs = inputs.requires_grad_() * 2
    value = average_top_k_cross_entropy(outputs, targets, fraction=0.5, backend="native", inplace=True)
    value.backward(retain_graph=True)  # type: ignore[no-untyped-call]
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        value.backward()  # type: ignore[no-untyped-call]


@built
def test_a_layer_that_keeps_the_logits_does_not_lose_them() -> None:
    inputs, targets = logits_and_targets((2, 5, 300), torch.float32)
    gradients = []
    for inplace in (True, False):
        leaf = inputs.detach().requires_grad_()
        outputs = leaf.sigmoid()  # its derivative is computed of its result
        value = average_top_k_cross_entropy(outputs, targets, fraction=0.5, backend="native", inplace=inplace)
        value.backward()  # type: ignore[no-untyped-call]
        assert torch.equal(outputs, leaf.sigmoid())
        gradients.append(leaf.grad)
    torch.testing.assert_close(*gradients, rtol=0, atol=0)


@built
def test_leaves_are_never_overwritten() -> None:
    outputs, targets = logits_and_targets((2, 5, 300), torch.float32)
    with pytest.raises(ValueError, match="`outputs` must be computed by the model for inplace=True; got a leaf"):
        average_top_k_cross_entropy(outputs.requires_grad_(), targets, fraction=0.5, backend="native", inplace=True)
    with pytest.raises(ValueError, match="got a leaf or a view of one"):
        average_top_k_cross_entropy(outputs[:, 1:], targets % 4, fraction=0.5, backend="native", inplace=True)
    with torch.no_grad():  # nothing will be differentiated
        average_top_k_cross_entropy(outputs, targets, fraction=0.5, backend="native", inplace=True)


@pytest.mark.skipif(not native.is_available(), reason="the native kernels were not built")
def test_in_place_overwrites_nothing_that_will_be_differentiated_again() -> None:
    outputs, targets = logits_and_targets((20, 4), torch.float64)
    leaf, seconds = outputs.requires_grad_(), []
    for inplace in (True, False):
        logits = 2 * leaf
        loss = average_top_k_cross_entropy(logits, targets, k=7.5, backend="native", inplace=inplace)
        (first,) = torch.autograd.grad(loss, leaf, create_graph=True)
        seconds.append(torch.autograd.grad(first.square().sum(), leaf)[0])
        assert torch.equal(logits, 2 * leaf)
    assert torch.equal(*seconds)


@built
@pytest.mark.parametrize("parts", [1, 2])
def test_in_place_overwrites_nothing_that_hooks_of_saved_tensors_hand_out(parts: int) -> None:
    """Under checkpointing and offloading autograd counts no versions: a second use would read the gradient."""
    inputs, targets = logits_and_targets((2, 5, 300), torch.float32)
    gradients = []
    for inplace in (True, False):
        leaf = inputs.detach().requires_grad_()
        with torch.autograd.graph.saved_tensors_hooks(lambda x: x, lambda x: x):
            outputs = leaf * 2
            losses = [
                average_top_k_cross_entropy(outputs, targets, fraction=f, backend="native", inplace=inplace)
                for f in (0.3, 0.9)[:parts]
            ]
        sum(losses[1:], losses[0]).backward()  # type: ignore[no-untyped-call]
        assert outputs.numel() > 0
        gradients.append(leaf.grad)
    torch.testing.assert_close(*gradients, rtol=0, atol=0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_third_derivatives_are_those_of_torch(backend: Any) -> None:
    outputs, targets = logits_and_targets((6, 3), torch.float64)
    answers = []
    for loss in (
        lambda x: average_top_k_cross_entropy(x, targets, fraction=1, backend=backend),
        lambda x: F.cross_entropy(x, targets),
    ):
        leaf = outputs.detach().requires_grad_()
        (first,) = torch.autograd.grad(loss(leaf), leaf, create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum(), leaf, create_graph=True)
        answers.append(torch.autograd.grad(second.square().sum(), leaf)[0])
    torch.testing.assert_close(*answers)


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_was_made_in_inference_mode_serves(backend: Any) -> None:
    outputs, _ = logits_and_targets((30, 4), torch.float32)
    with torch.inference_mode():
        targets, mask, weight = torch.randint(4, (30,)), torch.rand(30) < 0.7, torch.rand(4)
        scores = torch.rand(30)
    leaf = outputs.requires_grad_()
    given: dict[str, Any] = {"fraction": 0.5, "weight": weight, "label_smoothing": 0.1, "mask": mask}
    average_top_k_cross_entropy(leaf, targets, **given, backend=backend).backward()  # type: ignore[no-untyped-call]
    average_top_k(leaf.sum(1), k=3, scores=scores).backward()  # type: ignore[no-untyped-call]
    selection = topk_select(torch.rand(10), k=3)
    with torch.inference_mode():
        kept = selection.kept
    assert not kept.is_inference()


# Which kernel serves


def test_auto_takes_the_native_kernels_where_they_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise AssertionError("a kernel was called")

    monkeypatch.setattr("topkloss.kernels.native.cross_entropy", fail)
    outputs, targets = logits_and_targets((64, 10), torch.float32)
    average_top_k_cross_entropy(outputs, targets, fraction=0.5, backend="torch")
    torch.vmap(partial(average_top_k_cross_entropy, fraction=0.5))(outputs[None], targets[None])
    if native.is_available():
        with pytest.raises(AssertionError, match="a kernel was called"):
            average_top_k_cross_entropy(outputs, targets, fraction=0.5)


def test_without_the_library_the_portable_kernels_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "SERVES", False)
    outputs, targets = logits_and_targets((2, 5, 40, 50), torch.float32)
    ours = value_and_gradient(outputs, targets, fraction=0.3)
    torch.testing.assert_close(ours[0].double(), by_plain_torch(outputs, targets, fraction=0.3)[0])
    with pytest.raises(ValueError, match='`backend` must be "auto" or "torch" where the native kernels are missing'):
        average_top_k_cross_entropy(outputs, targets, fraction=0.3, backend="native")
    losses = torch.rand(50_000)
    torch.testing.assert_close(average_top_k(losses, k=10), losses.topk(10)[0].mean())


def test_a_library_that_cannot_be_opened_is_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broken = tmp_path / "_native.so"
    broken.write_bytes(b"of another system")
    found = ModuleSpec("topkloss.kernels._native", None, origin=str(broken))
    monkeypatch.setattr("importlib.util.find_spec", lambda _: found)
    assert native._open() is None


def test_a_criterion_says_which_kernel_it_wants() -> None:
    with pytest.raises(ValueError, match=r"`backend` must be .auto., .torch. or .native.; got .cuda."):
        AverageTopKCrossEntropyLoss(fraction=0.5, backend="cuda")  # type: ignore[arg-type]
    outputs, targets = logits_and_targets((2, 5, 300), torch.float32)
    criterion = AverageTopKCrossEntropyLoss(fraction=0.5, backend="torch", nan_policy="omit")
    plain = AverageTopKCrossEntropyLoss(fraction=0.5, backend="torch")
    torch.testing.assert_close(criterion(outputs, targets), plain(outputs, targets))


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_of_many_slopes_at_once_are_those_of_each(backend: Any) -> None:
    torch.manual_seed(0)
    outputs, targets = torch.randn(6, 4, requires_grad=True), torch.randint(4, (6,))
    value = average_top_k_cross_entropy(outputs, targets, fraction=0.5, backend=backend)
    (gradient,) = torch.autograd.grad(value, outputs, retain_graph=True)
    slopes = torch.tensor([1.0, 0.0, -2.0])
    (batched,) = torch.autograd.grad(value, outputs, slopes, is_grads_batched=True)
    torch.testing.assert_close(batched, slopes.view(3, 1, 1) * gradient)


@pytest.mark.parametrize("backend", [*BACKENDS, pytest.param("losses", marks=built)])
def test_a_slope_that_is_nan_reaches_what_is_selected_alone(backend: Any) -> None:
    outputs, targets = logits_and_targets((300, 5), torch.float32)
    inputs = (F.cross_entropy(outputs, targets, reduction="none") if backend == "losses" else outputs).requires_grad_()
    if backend == "losses":
        value = average_top_k(inputs, fraction=0.3, mask=targets != -100)
    else:
        value = average_top_k_cross_entropy(inputs, targets, fraction=0.3, backend=backend)
    (gradient,) = torch.autograd.grad(value, inputs, retain_graph=True)
    (spoiled,) = torch.autograd.grad(value, inputs, torch.tensor(math.nan))
    torch.testing.assert_close(spoiled, gradient.masked_fill(gradient != 0, math.nan), equal_nan=True)
