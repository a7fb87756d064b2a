"""Which elements count, with which mass, ranked by which score, in which group: what every aggregate begins with."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from topkloss.base.arguments import NanPolicy, check_nan_policy, check_tensors
from topkloss.base.processes import Ranks, SharedPlaces
from topkloss.base.tensors import computing_dtype, memory_is_readable, values_are_readable
from topkloss.kernels import native
from topkloss.losses.elements import Elements
from topkloss.ranking.groups import Places, places

# Elements and their groups, as one process has them.
Prepare = Callable[[Ranks | None], tuple[Elements, Tensor | None]]


class Counted(NamedTuple):
    """The elements that count, ready to be ranked. All tensors are detached; the caller's are never written to."""

    scores: Tensor  # float32 or float64, shaped like the losses; -inf where not counted
    mask: Tensor | None  # True = counted; None = all
    mass: Tensor | None  # float64, 0 where not counted; None = 1 each
    total: Tensor  # float64: the counted mass S, 0-dim; with `places` that of each group, in their form
    places: Places | SharedPlaces | None  # where each element lies on the line of its group or of all processes
    poisoned: Tensor  # 0-dim bool: a NaN is among the counted and must stay visible
    omitted: Tensor  # 0-dim int64
    dtype: torch.dtype  # of weights and value
    ranks: Ranks | None = None  # the processes that rank together

    def each_mass(self) -> Tensor:
        """The mass of each element, 0 where not counted."""
        mass = torch.ones_like(self.scores, dtype=torch.float64) if self.mass is None else self.mass
        return mass if self.mask is None else mass.masked_fill(~self.mask, 0)

    def in_tensors(self) -> Counted:
        """Itself."""
        return self

    def mass_of(self, chosen: Tensor) -> Tensor:
        """The counted mass of these shares of the elements: 0-dim, or each group's own, in the form of `total`."""
        mass = chosen if self.mass is None else self.mass * chosen
        mass = mass if self.mask is None else mass.masked_fill(~self.mask, 0)
        return mass.sum(dtype=torch.float64) if self.places is None else self.places.sum(mass.double())


class Line(NamedTuple):
    """The same where the native kernels serve: the inputs as they are, and what one look at them told, in numbers."""

    memory: native.Line  # scores, mass and mask; anything where not counted
    total: float  # the counted mass S; 0 where poisoned
    poisoned: bool
    omitted: int
    dtype: torch.dtype  # of weights and value

    @property
    def scores(self) -> Tensor:
        """What is ranked by."""
        return self.memory.tensors[0]

    def in_tensors(self) -> Counted:
        """As `count` returns it."""
        scores, mass, mask = self.memory.tensors
        if mass is not None:
            mask = mass > 0 if mask is None else mask & (mass > 0)
            mass = mass.double().masked_fill(~mask, 0)
        scores = scores if mask is None else _uncounted_last(scores, mask)
        total = torch.tensor(self.total, dtype=torch.float64, device="cpu")
        poisoned, omitted = (torch.tensor(number, device="cpu") for number in (self.poisoned, self.omitted))
        return Counted(scores, mask, mass, total, None, poisoned, omitted, self.dtype)


def line(
    losses: Tensor,
    *,
    mask: Tensor | None = None,
    sample_weight: Tensor | None = None,
    scores: Tensor | None = None,
    groups: Tensor | None = None,
    nan_policy: NanPolicy = "propagate",
) -> Line | Counted:
    """The same as `count`, as a `Line` where the native kernels serve: without groups, on the CPU, untraced."""
    given = {"mask": mask, "sample_weight": sample_weight, "scores": scores, "groups": groups}
    if not native.is_available() or groups is not None:
        return count(losses, **given, nan_policy=nan_policy)
    check_tensors(losses, **given)
    if not memory_is_readable(losses, mask, sample_weight, scores):
        return count(losses, **given, nan_policy=nan_policy)
    check_nan_policy(nan_policy)
    losses = dense(losses)
    ranked = losses if scores is None else dense(scores)
    mask = None if mask is None else dense(mask, torch.bool)
    own = torch.float32 if sample_weight is not None and sample_weight.dtype == torch.float32 else torch.float64
    mass = None if sample_weight is None else dense(sample_weight, own)
    memory = native.line(ranked, mass, mask)
    total, poisoned, wrong = native.count(memory)
    if wrong >= 0:
        assert mass is not None
        raise _unusable(mass.view(-1)[wrong])
    omitted = 0
    if nan_policy == "omit":
        nan = losses.isnan() if scores is None else losses.isnan() | ranked.isnan()
        counts = torch.ones_like(nan) if mask is None else mask
        omitted = int((nan & counts if mass is None else nan & counts & (mass > 0)).sum())
        mask = counts & ~nan
        memory = native.line(ranked, mass, mask)
        total, poisoned, _ = native.count(memory)
    elif scores is not None:
        poisoned = poisoned or native.count(native.line(losses, mass, mask))[1]
    poisoned = poisoned or total == math.inf
    _raise_if(nan_policy == "raise" and poisoned)
    return Line(memory, 0.0 if poisoned else total, poisoned, omitted, computing_dtype(losses))


def dense(tensor: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """As a kernel reads it: contiguous, and in the type that is computed in unless another is given."""
    dtype = dtype or computing_dtype(tensor)
    if tensor.requires_grad:
        tensor = tensor.detach()
    if tensor.dtype != dtype:
        tensor = tensor.to(dtype)
    return tensor.resolve_neg().contiguous()


def count(
    losses: Tensor,
    *,
    mask: Tensor | None = None,
    sample_weight: Tensor | None = None,
    scores: Tensor | None = None,
    groups: Tensor | None = None,
    nan_policy: NanPolicy = "propagate",
) -> Counted:
    """Checks the inputs and settles which elements count, with which mass, ranked by which score in which group."""
    check_tensors(losses, mask=mask, sample_weight=sample_weight, scores=scores, groups=groups)
    check_nan_policy(nan_policy)
    losses, mask = losses.detach(), None if mask is None else mask.detach()
    ranked = losses if scores is None else scores.detach()
    ranked = ranked.to(computing_dtype(ranked)).resolve_neg()
    poisoned = losses.new_zeros((), dtype=torch.bool)
    omitted = losses.new_zeros((), dtype=torch.int64)
    mass = None
    if sample_weight is not None:
        mass = sample_weight.detach().double()
        poisoned = _is_unusable(mass, mask)
        mask = mass > 0 if mask is None else mask & (mass > 0)
    if nan_policy == "omit":
        nan = losses.isnan() if scores is None else losses.isnan() | ranked.isnan()
        omitted = (nan if mask is None else nan & mask).sum()
        mask = ~nan if mask is None else mask & ~nan
    if mask is not None:
        ranked = _uncounted_last(ranked, mask)
    if nan_policy != "omit" and losses.numel() > 0:
        poisoned = poisoned | ranked.amax().isnan()
        if scores is not None:
            poisoned = poisoned | (losses if mask is None else losses.masked_fill(~mask, 0)).amax().isnan()
    _raise_if(nan_policy == "raise" and bool(poisoned))
    if mask is None:
        total = torch.full((), losses.numel(), dtype=torch.float64, device=losses.device)
    elif mass is None:
        total = mask.sum().double()
    else:
        mass = mass.masked_fill(~mask, 0)
        total = mass.sum()
    at = None
    if groups is not None:
        at = places(ranked, mask, mass, groups)
        total = at.total
    return Counted(ranked, mask, mass, total, at, poisoned, omitted, computing_dtype(losses))


def count_together(
    prepare: Prepare, ranks: Ranks | None, *, request: Callable[[Elements], str], nan_policy: NanPolicy
) -> tuple[Elements, Counted | Line]:
    """The elements, and how they count: here, or among all processes, which then all ask for the same or all raise.

    Args:
        prepare: Returns the elements and their groups, here.
        ranks: The processes that rank together; None = this one alone.
        request: Says in words what is asked.
        nan_policy: See `topk_weights`.
    """

    def alone() -> tuple[Elements, Tensor | None, Counted]:
        elements, groups = prepare(ranks)
        losses, mask, mass, scores = elements[:4]
        check_tensors(losses, mask=mask, sample_weight=mass, scores=scores, groups=groups)
        counted = count(losses, mask=mask, sample_weight=mass, scores=scores, nan_policy=nan_policy)
        return elements, groups, counted

    if ranks is None:
        elements, groups = prepare(None)
        losses, mask, mass, scores = elements[:4]
        given = {"mask": mask, "sample_weight": mass, "scores": scores, "groups": groups}
        return elements, line(losses, **given, nan_policy=nan_policy)

    def asked(done: tuple[Elements, Tensor | None, Counted]) -> str:
        elements, groups, counted = done
        scores = "" if elements.scores is None else f" ranked by scores of {counted.scores.dtype}"
        return f"{request(elements)} of {elements.losses.dtype}{scores}{'' if groups is None else ' in groups'}"

    elements, groups, counted = ranks.together(alone, asked)
    return elements, over_ranks(counted, groups, ranks)


def over_ranks(counted: Counted, groups: Tensor | None, ranks: Ranks) -> Counted:
    """The same among what counts on all processes; what was counted without groups gets them here."""
    at = SharedPlaces(counted.scores, counted.mask, counted.mass, groups, ranks)
    poisoned = ranks.max(counted.poisoned.long()) > 0
    return counted._replace(total=at.total, places=at, poisoned=poisoned, ranks=ranks)


def _uncounted_last(scores: Tensor, mask: Tensor) -> Tensor:
    """The scores, -inf where not counted.

    Adding 0 or -inf, which is -huge * huge, is several times faster on the CPU than choosing by a mask. It differs
    where NaN or inf stands in a place that is not counted, which shows as a NaN.
    """
    if values_are_readable(scores) and scores.numel() > 0:
        huge = torch.finfo(scores.dtype).max
        counts = mask.view(torch.uint8).to(scores.dtype)
        ranked = counts.sub_(1).mul_(huge).mul_(huge).add_(scores)
        if not bool(ranked.amax().isnan()):
            return ranked
    return scores.masked_fill(~mask, -torch.inf)


def _is_unusable(mass: Tensor, mask: Tensor | None) -> Tensor:
    """Whether a counted mass is negative, infinite or NaN: an error where values may be read, NaN elsewhere."""
    wrong = ~((mass >= 0) & (mass < torch.inf))
    if mask is not None:
        wrong = wrong & mask
    if values_are_readable(mass) and bool(wrong.any()):
        raise _unusable(mass[wrong][0])
    return wrong.any() | (mass if mask is None else mass.masked_fill(~mask, 0)).sum().isinf()


def _unusable(mass: Tensor) -> ValueError:
    return ValueError(
        f"`sample_weight` must be finite and >= 0 where counted; got {mass.item():g}. "
        "To leave an element out give it weight 0 or mask=False."
    )


def _raise_if(poisoned: bool) -> None:
    if poisoned:
        raise ValueError(
            "`losses` (or `scores`) must not be NaN where counted; got NaN. "
            'Pass nan_policy="omit" to leave such elements out.'
        )
