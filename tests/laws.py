"""The laws of an aggregate, each a function that raises where the law is broken, and the batches to try them on.

A law takes a `Subject` (what is on trial) and a `Batch` (what it is asked). `LAWS` lists all; `tests.subjects` says
which of them each public aggregate and criterion obeys.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

# What is asked of a selection: {"k": ...} or {"fraction": ...}.
Asked = dict[str, Any]


# A function from losses to one number, with the keywords mask, sample_weight, nan_policy and what is asked; and the
# same in Python floats, on flat lists.
Aggregate = Callable[..., Any]
Oracle = Callable[..., Any]


@dataclass(frozen=True)
class Subject:
    """What is on trial.

    Attributes:
        name: As tests call it.
        aggregate: The function, or the criterion made into one.
        oracle: Its answer by sorted().
        positive: It takes losses of [1/8, 16] only (a cross-entropy has no others).
        poison: What may stand in a masked place.
        grouped: It takes the groups of a batch too.
    """

    name: str
    aggregate: Aggregate
    oracle: Oracle
    positive: bool = False
    poison: float = math.nan
    grouped: bool = False

    def value(self, batch: Batch, **change: Any) -> Tensor:
        """The value for a batch, with some of its fields changed."""
        b = replace(batch, **change)
        given = {**b.asked, "groups": b.own_groups()} if self.grouped else b.asked
        value = self.aggregate(b.losses, mask=b.mask, sample_weight=b.sample_weight, nan_policy=b.nan_policy, **given)
        assert isinstance(value, Tensor)
        return value

    def weights(self, batch: Batch, **change: Any) -> Tensor:
        """The gradient in the losses: the weights."""
        losses = change.pop("losses", batch.losses).detach().requires_grad_()
        gradient: Tensor = torch.autograd.grad(self.value(batch, losses=losses, **change), losses)[0]
        return gradient

    def expected(self, batch: Batch) -> float:
        """The oracle's value."""
        given = {**batch.asked, "groups": batch.own_groups().flatten().tolist()} if self.grouped else batch.asked
        value = self.oracle(
            batch.losses.double().flatten().tolist(),
            mask=None if batch.mask is None else batch.mask.flatten().tolist(),
            sample_weight=None if batch.sample_weight is None else batch.sample_weight.flatten().tolist(),
            nan_policy=batch.nan_policy,
            **given,
        )
        return float(value)


@dataclass(frozen=True)
class Batch:
    """What an aggregate is asked, and what a law needs beside it.

    Attributes:
        losses: Any floating dtype, any shape and layout.
        mask: Like `losses`, or None.
        sample_weight: Like `losses`, or None.
        asked: {"k": ...} or {"fraction": ...}.
        nan_policy: As in the library.
        groups: Like `losses`, integers; None = all in one.
        other: Other losses of the same shape, float64, finite.
        order: A permutation of the elements.
        factor: A positive number.
    """

    losses: Tensor
    mask: Tensor | None
    sample_weight: Tensor | None
    asked: Asked
    other: Tensor
    order: Tensor
    factor: float
    nan_policy: str = "propagate"
    groups: Tensor | None = None

    def own_groups(self) -> Tensor:
        """The groups of these losses; one, where a law asks about others."""
        if self.groups is not None and self.groups.shape == self.losses.shape:
            return self.groups
        return torch.zeros_like(self.losses, dtype=torch.long)

    @property
    def counts(self) -> Tensor:
        """Bool, shaped like the losses: what counts."""
        counts = torch.ones_like(self.losses, dtype=torch.bool) if self.mask is None else self.mask
        return counts if self.sample_weight is None else counts & (self.sample_weight > 0)

    @property
    def mass(self) -> Tensor:
        """Float64, shaped like the losses: the mass of each, 0 where not counted."""
        mass = torch.ones_like(self.losses, dtype=torch.float64)
        return (mass if self.sample_weight is None else self.sample_weight.double()).where(self.counts, 0.0)

    @property
    def k(self) -> float:
        """The mass asked for; above what there is, all."""
        total = float(self.mass.sum())
        k: float = min(self.asked["k"], total) if "k" in self.asked else self.asked["fraction"] * total
        return k

    def calm(self) -> Batch:
        """The same in float64 and finite, where a law does sums of its own."""
        losses = self.losses.double().nan_to_num(nan=7.0, posinf=9.0, neginf=-9.0)
        return replace(self, losses=losses)


def _pick(values: list[float], low: float, high: float, width: int) -> st.SearchStrategy[float]:
    return st.sampled_from(values) | st.floats(low, high, width=width)  # type: ignore[arg-type]


VALUES = {
    torch.float64: _pick([-1.0, -0.0, 0.0, 1.0, 2.0, 3.0, math.inf, -math.inf, 1e-300, 1e150], -1e3, 1e3, 64),
    torch.float32: _pick([-1.0, -0.0, 0.0, 1.0, 2.0, 3.0, math.inf, -math.inf, 1e-38, 1e30], -1e3, 1e3, 32),
    torch.float16: _pick([-1.0, -0.0, 0.0, 1.0, 2.0, 3.0, math.inf, -math.inf, 6e-8, 6e4], -1e3, 1e3, 16),
    torch.bfloat16: _pick([-1.0, -0.0, 0.0, 1.0, 2.0, 3.0, math.inf, -math.inf, 1e-38, 1e30], -1e3, 1e3, 16),
}
EIGHTHS = st.integers(1, 128).map(lambda i: i / 8)
MASSES = st.sampled_from([0.0, 0.1, 0.5, 1.0, 1.0, 2.0, 3.0]) | st.floats(0.001, 1000)
FRACTIONS = st.sampled_from([0.01, 0.29, 0.35, 0.5, 0.7, 1.0]) | st.floats(0.001, 1.0)


@st.composite
def batches(draw: st.DrawFn, positive: bool = False) -> Batch:
    """Ties, one element, none, fractional k, infinities, tiny and huge scales, half precision, strided layouts."""
    n = draw(st.integers(1, 12) | st.integers(0, 40))
    dtype = draw(st.sampled_from(list(VALUES)))
    values = EIGHTHS if positive else VALUES[dtype]

    def tensor(strategy: st.SearchStrategy[Any], dtype: torch.dtype) -> Tensor:
        return torch.tensor(draw(st.lists(strategy, min_size=n, max_size=n)), dtype=dtype)

    losses = tensor(values, dtype)
    mask = tensor(st.booleans(), torch.bool) if draw(st.booleans()) else None
    sample_weight = tensor(MASSES, torch.float64) if draw(st.booleans()) else None
    other = tensor(EIGHTHS if positive else st.integers(-8, 8), torch.float64)
    counts = st.sampled_from([0.3, 1.0, 1.5, 2.0, 2.5]) | st.integers(1, n + 2) | st.floats(0.01, n + 2)
    asked = {"fraction": draw(FRACTIONS)} if draw(st.booleans()) else {"k": float(draw(counts))}
    order = torch.tensor(draw(st.permutations(range(n))), dtype=torch.long)
    factor = draw(st.sampled_from([0.25, 3.0, 1e3]))
    groups = tensor(st.sampled_from([-100, 0, 1, 7]), torch.long)
    batch = Batch(losses, mask, sample_weight, asked, other, order, factor, groups=groups)
    if n > 0 and n % 2 == 0 and draw(st.booleans()):  # a matrix that is not contiguous

        def strided(tensor: Any) -> Any:
            return None if tensor is None else tensor.reshape(2, -1).t()

        change = {
            name: strided(getattr(batch, name)) for name in ("losses", "mask", "sample_weight", "other", "groups")
        }
        batch = replace(batch, **change)
    return batch


def close(ours: Tensor | float, theirs: Tensor | float, *, scale: float = 1.0, single: bool = False) -> None:
    """Equal up to rounding: 2e-6 of the scale where the computation is in float32, 1e-10 in float64."""
    ours, theirs = (torch.as_tensor(x, dtype=torch.float64).detach() for x in (ours, theirs))
    within = (2e-6 if single else 1e-10) * scale
    torch.testing.assert_close(ours, theirs, rtol=0, atol=within, equal_nan=True)


def scale_of(batch: Batch) -> float:
    """The largest finite loss that counts, at least 1."""
    finite = batch.losses.double()[batch.counts & batch.losses.isfinite()].abs()
    return max(1.0, float(finite.max()) if finite.numel() else 1.0)


def is_single(batch: Batch) -> bool:
    """Whether the library computes in float32."""
    return batch.losses.dtype != torch.float64


# Law 1: value


def value_is_the_oracles(subject: Subject, batch: Batch) -> None:
    """The value is the one by sorted(), in the precision of the losses."""
    value = subject.value(batch)
    assert value.shape == ()
    close(value, subject.expected(batch), scale=scale_of(batch), single=is_single(batch))


def k_of_one_is_the_maximum(subject: Subject, batch: Batch) -> None:
    """With mass 1 each, k = 1 and anything below is the largest counted loss."""
    counted = batch.losses[batch.counts]
    largest = counted.amax() if counted.numel() else 0.0
    for k in (1.0, 0.3):
        value = subject.value(batch, sample_weight=batch.counts.double(), asked={"k": k})
        close(value, largest, scale=scale_of(batch), single=is_single(batch))


def everything_is_the_mean(subject: Subject, batch: Batch) -> None:
    """fraction = 1, and any k above what there is, is the weighted mean."""
    batch = batch.calm()
    mean = (batch.mass * batch.losses).sum() / batch.mass.sum() if batch.counts.any() else 0.0
    for asked in ({"fraction": 1.0}, {"k": 1e9}):
        close(subject.value(batch, asked=asked), mean, scale=scale_of(batch))


def value_never_increases_in_k(subject: Subject, batch: Batch) -> None:
    """A larger k averages smaller losses too; and k * AT_k is concave in k."""
    batch = batch.calm()
    ks = [batch.k * share for share in (0.25, 0.5, 0.75, 1.0) if batch.k > 0]
    values = [float(subject.value(batch, asked={"k": k})) for k in ks]
    slack = 1e-9 * scale_of(batch)
    assert all(a >= b - slack for a, b in itertools.pairwise(values))
    sums = [0.0, *(k * value for k, value in zip(ks, values, strict=True))]
    steps = [b - a for a, b in itertools.pairwise(sums)]
    assert all(a >= b - slack * batch.k for a, b in itertools.pairwise(steps))


def value_is_the_minimum_over_lambda(subject: Subject, batch: Batch) -> None:
    """min over lambda of lambda + sum s [l - lambda]_+ / k, which is reached at a counted loss."""
    batch = batch.calm()
    if batch.k == 0:
        return
    lambdas = batch.losses[batch.counts]
    excess = (batch.losses[batch.counts] - lambdas[:, None]).clamp(min=0) * batch.mass[batch.counts]
    dual = (lambdas + excess.sum(dim=1) / batch.k).min()
    close(subject.value(batch), dual, scale=scale_of(batch) * max(1.0, float(batch.mass.sum()) / batch.k))


def value_is_homogeneous_and_moves_with_the_losses(subject: Subject, batch: Batch) -> None:
    """c * losses + a gives c * value + a."""
    batch = batch.calm()
    if not batch.counts.any():
        return
    factor, shift = (0.5, 1.0) if subject.positive else (batch.factor, 5.0)
    value = subject.value(batch, losses=factor * batch.losses + shift)
    close(value, factor * subject.value(batch) + shift, scale=factor * scale_of(batch) + shift)


def value_is_convex(subject: Subject, batch: Batch) -> None:
    """The value half-way is at most half-way between the values."""
    batch = batch.calm()
    halfway = subject.value(batch, losses=(batch.losses + batch.other) / 2)
    assert halfway <= (subject.value(batch) + subject.value(batch, losses=batch.other)) / 2 + 1e-9 * scale_of(batch)


def gradient_is_a_subgradient(subject: Subject, batch: Batch) -> None:
    """value(b) >= value(a) + <weights(a), b - a>, at ties too."""
    batch = batch.calm()
    step = (subject.weights(batch) * (batch.other - batch.losses)).sum()
    bound = subject.value(batch) + step
    assert subject.value(batch, losses=batch.other) >= bound - 1e-9 * scale_of(batch)


def value_grows_with_every_loss(subject: Subject, batch: Batch) -> None:
    """Larger losses never give a smaller value."""
    batch = batch.calm()
    larger = torch.maximum(batch.losses, batch.other)
    assert subject.value(batch, losses=larger) >= subject.value(batch) - 1e-9 * scale_of(batch)


# Law 2: mass


def weights_are_bounded_and_sum_to_one(subject: Subject, batch: Batch) -> None:
    """0 <= w_i <= s_i / k and sum w = 1."""
    weights = subject.weights(batch).double()
    single = is_single(batch)
    eps = 2e-6 if single else 1e-10
    if batch.losses.dtype in (torch.float16, torch.bfloat16):
        eps = 0.01  # autograd rounds the gradient to the type of the losses
    if not batch.counts.any():
        return
    assert weights.min() >= 0
    assert (weights <= batch.mass / batch.k * (1 + eps) + eps).all()
    close(weights.sum(), 1.0, scale=eps / (2e-6 if single else 1e-10), single=single)


def scaling_the_mass_changes_nothing_under_fraction(subject: Subject, batch: Batch) -> None:
    """Only the ratios of the masses matter to a fraction."""
    asked = {"fraction": batch.asked.get("fraction", 0.37)}
    scaled = subject.value(batch, asked=asked, sample_weight=batch.mass * 0.001)
    close(
        scaled,
        subject.value(batch, asked=asked, sample_weight=batch.mass),
        scale=scale_of(batch),
        single=is_single(batch),
    )


def weight_zero_is_mask_false(subject: Subject, batch: Batch) -> None:
    """An element of mass 0 is not counted, whatever stands there."""
    losses = batch.losses.where(batch.counts, subject.poison)
    value = subject.value(batch, losses=losses, mask=None, sample_weight=batch.mass)
    masked = subject.value(batch, losses=losses, mask=batch.counts)
    close(value, masked, scale=scale_of(batch), single=is_single(batch))


def integer_mass_is_repetition(subject: Subject, batch: Batch) -> None:
    """Law 8: an element of mass 3 is three elements."""
    times = (batch.mass * 2).ceil().clamp(max=4).long().flatten()
    repeated = batch.losses.flatten().repeat_interleave(times)
    groups = None if batch.groups is None else batch.groups.flatten().repeat_interleave(times)
    weighed = subject.value(batch, mask=None, sample_weight=times.double().reshape(batch.losses.shape))
    close(
        weighed,
        subject.value(batch, losses=repeated, mask=None, sample_weight=None, groups=groups),
        scale=scale_of(batch),
        single=is_single(batch),
    )


# Law 3: ties


def order_never_matters(subject: Subject, batch: Batch) -> None:
    """Permuted losses: the same value, the weights permuted with them."""

    def permuted(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor.flatten()[batch.order]

    change = {name: permuted(getattr(batch, name)) for name in ("losses", "mask", "sample_weight", "groups")}
    close(subject.value(batch, **change), subject.value(batch), scale=scale_of(batch), single=is_single(batch))
    eps = 0.01 if batch.losses.dtype in (torch.float16, torch.bfloat16) else 1e-6
    torch.testing.assert_close(
        subject.weights(batch, **change), subject.weights(batch).flatten()[batch.order], rtol=eps, atol=eps
    )


def ties_share_in_proportion_to_their_mass(subject: Subject, batch: Batch) -> None:
    """Equal losses (of one group) have weights in the ratio of their masses, 0.0 and -0.0 too."""
    batch = batch.calm()
    rates = subject.weights(batch) / batch.mass
    groups = batch.own_groups() if subject.grouped else torch.zeros_like(batch.losses)
    for group in groups.unique():
        own = batch.counts & (groups == group)
        for loss in batch.losses[own].unique():
            tied = rates[own & (batch.losses == loss)]
            close(tied, tied[:1].expand_as(tied), scale=max(1.0, float(tied.abs().max())))


# Law 4: mask


def masked_is_the_same_as_left_out(subject: Subject, batch: Batch) -> None:
    """value(l, mask) is value(l[mask]), and so is its gradient; NaN in a masked place never matters."""
    mask = batch.counts
    poisoned = batch.losses.where(mask, subject.poison)
    kept = {
        "losses": batch.losses[mask],
        "mask": None,
        "sample_weight": None if batch.sample_weight is None else batch.sample_weight[mask],
        "groups": None if batch.groups is None else batch.groups[mask],
    }
    close(
        subject.value(batch, losses=poisoned, mask=mask),
        subject.value(batch, **kept),
        scale=scale_of(batch),
        single=is_single(batch),
    )
    weights = subject.weights(batch, losses=poisoned, mask=mask)
    torch.testing.assert_close(weights[mask], subject.weights(batch, **kept), rtol=1e-5, atol=1e-7)
    assert (weights[~mask] == 0).all()


def unselected_infinity_costs_nothing(subject: Subject, batch: Batch) -> None:
    """A counted loss of -inf that is not selected adds exactly 0 to value and gradient (not 0 x inf)."""
    losses = torch.tensor([3.0, -math.inf, 2.0, 1.0], dtype=torch.float64)
    change = {"losses": losses, "mask": None, "sample_weight": None, "groups": None, "asked": {"k": 2.0}}
    assert subject.value(batch, **change).isfinite()
    weights = subject.weights(batch, **change)
    assert weights.isfinite().all()
    assert weights[1] == 0


# Law 5: nothing counted


def nothing_counted_is_a_connected_zero(subject: Subject, batch: Batch) -> None:
    """The value is 0 on the graph, its gradient exactly 0, whatever stands there; of no elements too."""
    losses = torch.full_like(batch.losses, subject.poison)
    nobody = torch.zeros_like(losses, dtype=torch.bool)
    empty = torch.zeros(0, dtype=batch.losses.dtype)
    changes: list[Asked] = [
        {"losses": losses, "mask": nobody},
        {"losses": losses, "mask": None, "sample_weight": nobody.double()},
        {"losses": empty, "mask": None, "sample_weight": None, "groups": None},
    ]
    for change in changes:
        leaf = change["losses"].clone().requires_grad_()
        value = subject.value(batch, **{**change, "losses": leaf})
        assert value.requires_grad
        assert value == 0
        value.backward()
        assert leaf.grad is not None
        assert (leaf.grad == 0).all()


# Law 6: NaN


def counted_nan_is_visible_omitted_or_refused(subject: Subject, batch: Batch) -> None:
    """propagate: NaN; raise: ValueError; omit: as if masked."""
    batch = batch.calm()
    if not batch.counts.any():
        return
    place = tuple(batch.counts.nonzero()[0])
    losses, without = batch.losses.clone(), batch.counts.clone()
    losses[place], without[place] = math.nan, False
    assert subject.value(batch, losses=losses).isnan()
    assert subject.weights(batch, losses=losses)[batch.counts].isnan().all()
    close(
        subject.value(batch, losses=losses, nan_policy="omit"),
        subject.value(batch, mask=without),
        scale=scale_of(batch),
    )
    try:
        subject.value(batch, losses=losses, nan_policy="raise")
    except ValueError as error:
        assert "NaN" in str(error)  # noqa: PT017
    else:
        raise AssertionError("a NaN was not refused")


# Law 7: precision


def computes_in_float32_at_least(subject: Subject, batch: Batch) -> None:
    """float64 stays float64, all else is float32: a large half batch neither overflows nor loses its small weights."""
    assert subject.value(batch).dtype == (torch.float64 if batch.losses.dtype == torch.float64 else torch.float32)
    n = 70_001
    losses = torch.full((n,), 4.0, dtype=torch.float16)
    change = {"losses": losses, "mask": None, "sample_weight": None, "asked": {"fraction": 0.9}}
    close(subject.value(batch, **change), 4.0, scale=100, single=True)
    doubled = subject.weights(batch, **{**change, "losses": losses.float()})
    close(doubled.double().sum(), 1.0, scale=100, single=True)


# Law 12: inputs


def inputs_are_never_written_to(subject: Subject, batch: Batch) -> None:
    """Neither the values nor the version counter of any input changes."""
    inputs = [t for t in (batch.losses, batch.mask, batch.sample_weight, batch.groups) if t is not None]
    before = [(t.clone(), t._version) for t in inputs]
    subject.value(batch)
    for tensor, (values, version) in zip(inputs, before, strict=True):
        assert tensor._version == version
        assert torch.equal(tensor.nan_to_num(), values.nan_to_num())


# Law 13: scalars


def a_scalar_is_refused(subject: Subject, batch: Batch) -> None:
    """An already reduced loss is a mistake, and is told so."""
    try:
        subject.value(batch, losses=torch.tensor(1.0), mask=None, sample_weight=None)
    except ValueError as error:
        assert "already reduced" in str(error)  # noqa: PT017
    else:
        raise AssertionError("a scalar was not refused")


Law = Callable[[Subject, Batch], None]
LAWS: dict[str, Law] = {
    law.__name__: law
    for law in (
        value_is_the_oracles,
        k_of_one_is_the_maximum,
        everything_is_the_mean,
        value_never_increases_in_k,
        value_is_the_minimum_over_lambda,
        value_is_homogeneous_and_moves_with_the_losses,
        value_is_convex,
        gradient_is_a_subgradient,
        value_grows_with_every_loss,
        weights_are_bounded_and_sum_to_one,
        scaling_the_mass_changes_nothing_under_fraction,
        weight_zero_is_mask_false,
        integer_mass_is_repetition,
        order_never_matters,
        ties_share_in_proportion_to_their_mass,
        masked_is_the_same_as_left_out,
        unselected_infinity_costs_nothing,
        nothing_counted_is_a_connected_zero,
        counted_nan_is_visible_omitted_or_refused,
        computes_in_float32_at_least,
        inputs_are_never_written_to,
        a_scalar_is_refused,
    )
}
