"""Easy examples need no back-propagation: rank a batch without gradient, then train on the examples that have weight.

The weight of an example that is not selected is exactly zero, and so is its part of the gradient. Leaving it out of
the backward pass changes nothing but the time, wherever the model treats each example by itself. The weights are those
of the whole batch, so the micro-batches add up to its gradient, and the batch may be larger than the memory.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from topkloss.base.arguments import check_tensors, is_whole
from topkloss.base.processes import Ranks, Work, ranks_of
from topkloss.base.tensors import computing_dtype
from topkloss.criteria.compound import CompoundLoss, DeepSupervisionLoss, group_of, parts_of, wholes_of
from topkloss.criteria.criterion import Criterion, OfElements
from topkloss.criteria.dual import DualAverageTopKLoss
from topkloss.loop.batches import Batch, Inputs, batch_of, pieces
from topkloss.losses.elements import Elements
from topkloss.ranking.selection import Selection
from topkloss.ranking.tensor_ranking import weighted_sum

__all__ = ["SelectiveStep", "StepResult"]

Selecting: TypeAlias = Criterion | DualAverageTopKLoss | CompoundLoss | DeepSupervisionLoss

# Above this share there is nothing to win: a forward pass costs 1, a backward pass 2, and all is ranked first.
MOST_THAT_PAYS = 0.6

# These talk to the other processes in every forward pass, so all would need the same number of micro-batches.
TALKING = ("FSDPModule", "FullyShardedDataParallel", "SyncBatchNorm")


@dataclass(frozen=True, eq=False)
class StepResult:
    """What a `SelectiveStep` did with one batch.

    Attributes:
        loss: Scalar, that of the whole batch, without gradient.
        selection: What ``criterion.select`` returns of the whole batch, without gradient.
        examples: How many examples the batch had, in this process.
        backpropagated: How many of them went through the backward pass; 0 where none had weight.

    Example:
        >>> model, criterion = nn.Linear(2, 3), AverageTopKCrossEntropyLoss(fraction=0.25)
        >>> stepped = SelectiveStep(model, criterion, micro_batch=4)(torch.randn(8, 2), torch.arange(8) % 3)
        >>> stepped.examples, stepped.backpropagated
        (8, 2)
    """

    loss: Tensor
    selection: Any
    examples: int
    backpropagated: int


class SelectiveStep:
    r"""The gradient of ``criterion(model(inputs), targets).backward()``, without the backward pass of easy examples.

    Every micro-batch is ranked without gradient; the examples that have any weight then go forward and backward. The
    gradient is that of the whole batch where the model treats each example by itself: not under ``BatchNorm`` in
    training, and up to the draw under dropout. Ranking leaves no trace in the model's buffers nor in torch's random
    state.

    A batch of one micro-batch of which a `fraction` above 60 % is selected is not ranked first: a plain step is sooner.

    With ``process_group`` in the criterion, one threshold holds for all processes, and the gradients are right once
    they are averaged, as ``DistributedDataParallel`` does: it talks once a step, however many micro-batches each
    process runs.

    Args:
        model: Called as ``model(inputs)``, ``model(*inputs)`` or ``model(**inputs)``; its outputs have the examples in
            the first dimension. In several processes the ``DistributedDataParallel`` itself, without ``static_graph``;
            what talks in its forward pass, ``fully_shard`` and ``SyncBatchNorm``, is refused.
        criterion: Any of this package; its losses have the examples in the first dimension. An example is selected if
            any of its elements is.
        micro_batch: Most examples in one pass, >= 1.
        start: First step (from 0) that skips; a full step back-propagates every example, to the same gradient.
        end: First step that skips no more. None = never.
        full_every: Every so many steps one is full; 0 = none.
        ranking_dtype: ``torch.bfloat16`` or ``float16``: ranks under autocast, so near ties may flip. None = as called.
        backward: Called with each micro-batch's loss: ``lambda loss: scaler.scale(loss).backward()``, or Lightning's
            ``manual_backward``. None = ``loss.backward()``.

    Raises:
        TypeError, ValueError: If the model is no module or sharded, the criterion is none of this package, or a number
            is out of range; when called, if tensors differ in their number of examples.

    Example:
        >>> model, criterion = nn.Linear(2, 3), AverageTopKCrossEntropyLoss(fraction=0.25)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> step = SelectiveStep(model, criterion, micro_batch=4)
        >>> stepped = step(torch.randn(8, 2), torch.arange(8) % 3)
        >>> optimizer.step(); optimizer.zero_grad()
        >>> step.report()
        '1 step: 25.0 % of 8 examples back-propagated, about 58 % of the work of full steps.'

    Cost: (1 + 3 q) / 3 of a full step, where q is the share of examples back-propagated: 43 % at q = 10 %, 63 % at
        30 %, more than a full step above two thirds. It waits for the device once, to learn which they are.
    Reference: Jiang et al. Accelerating Deep Learning by Focusing on the Biggest Losers. 2019 (Selective-Backprop; it
        draws what it skips, so its gradient is another); Shrivastava, Gupta, Girshick. OHEM. CVPR 2016, section 4.
    """

    def __init__(
        self,
        model: nn.Module,
        criterion: Selecting,
        *,
        micro_batch: int,
        start: int = 0,
        end: int | None = None,
        full_every: int = 0,
        ranking_dtype: torch.dtype | None = None,
        backward: Callable[[Tensor], object] | None = None,
    ) -> None:
        _check(model, criterion)
        _check_count("micro_batch", micro_batch, 1, "For one example at a time pass 1.")
        _check_count("start", start, 0, "To skip from the first step pass 0.")
        _check_count("end", 0 if end is None else end, 0, "To skip until the last step pass None.")
        _check_count("full_every", full_every, 0, "For no full steps pass 0.")
        if ranking_dtype not in (None, torch.bfloat16, torch.float16):
            raise ValueError(
                f"`ranking_dtype` must be torch.bfloat16, torch.float16 or None; got {ranking_dtype}. "
                "To rank in the precision of the model pass None."
            )
        self.model, self.micro_batch = model, micro_batch
        self.criterion: Any = criterion  # whose elements and selections are single or in lists
        self.start, self.end, self.full_every = start, end, full_every
        self.ranking_dtype, self.backward = ranking_dtype, backward or Tensor.backward
        original = getattr(model, "_orig_mod", model)  # what torch.compile wraps
        self._parallel = original if isinstance(original, DistributedDataParallel) else None
        self.steps = self.examples = self.ranked = self.backpropagated = 0
        if start == 0 and _asked(criterion) > MOST_THAT_PAYS:
            warnings.warn(
                f"`fraction` should be at most {MOST_THAT_PAYS:g} for a selective step to save time; got "
                f"{_asked(criterion):g}: with forward 1 and backward 2 it would be {_work(1, _asked(criterion)):.2f} "
                "of a full step. Batches of one micro-batch get plain steps until the fraction is smaller.",
                stacklevel=2,
            )

    def __call__(
        self, inputs: Inputs, targets: Tensor, *, mask: Tensor | None = None, sample_weight: Tensor | None = None
    ) -> StepResult:
        """Adds the gradient of this batch to the parameters' ``grad``.

        Args:
            inputs: A tensor, or a tuple, list or dict of what the model takes. Tensors have the examples in the first
                dimension, here and below; anything else is handed on as it is.
            targets, mask, sample_weight: See ``criterion.forward``.
        """
        if sample_weight is not None and not isinstance(self.criterion, OfElements):
            raise TypeError(
                f"`sample_weight` must be None for a {type(self.criterion).__name__}, whose parts differ in shape; got "
                "a tensor. Pass a mask, or one criterion."
            )
        skips = self.start <= self.steps and (self.end is None or self.steps < self.end)
        full = not skips or (self.full_every > 0 and (self.steps + 1) % self.full_every == 0)
        ranks = ranks_of(group_of(self.criterion))
        batch = _together(ranks, lambda: batch_of(inputs, targets, mask, sample_weight))
        plain = len(targets) <= self.micro_batch and (full or _asked(self.criterion) > MOST_THAT_PAYS)
        if ranks is not None:  # all take the same way, for DistributedDataParallel talks in its forward pass too
            plain = not ranks.max(torch.tensor([not plain], dtype=torch.int64, device=ranks.message_device())).item()
        elements = _together(ranks, partial(self._elements, self.model, batch) if plain else partial(self._rank, batch))
        stepped = self._plain(batch, elements) if plain else self._selective(batch, elements, full)
        self.steps += 1
        self.examples += stepped.examples
        self.ranked += 0 if plain else stepped.examples
        self.backpropagated += stepped.backpropagated
        return stepped

    def report(self) -> str:
        """How much was skipped so far, in one sentence; the work is counted as forward 1, backward 2."""
        examples = max(1, self.examples)
        share = self.backpropagated / examples
        return (
            f"{self.steps} step{'' if self.steps == 1 else 's'}: {share:.1%} of {self.examples} examples "
            f"back-propagated, about {_work(self.ranked / examples, share):.0%} of the work of full steps."
        ).replace("%", " %")

    def state_dict(self) -> dict[str, int]:
        """The number of steps, and the totals of `report`: for a checkpoint."""
        return {name: getattr(self, name) for name in ("steps", "examples", "ranked", "backpropagated")}

    def load_state_dict(self, state_dict: Mapping[str, int]) -> None:
        """Goes on where `state_dict` was taken."""
        if state_dict.keys() != self.state_dict().keys():
            raise ValueError(
                f"`state_dict` must hold {', '.join(self.state_dict())}; got {', '.join(state_dict) or 'nothing'}. "
                "Pass what SelectiveStep.state_dict() returned."
            )
        for name, number in state_dict.items():
            setattr(self, name, int(number))

    @torch.no_grad()
    def _rank(self, batch: Batch) -> Any:
        """The elements of the whole batch."""
        model = self.model if self._parallel is None else self._parallel.module
        device, dtype = next(self.model.parameters(), batch.targets).device, self.ranking_dtype
        if dtype is None and torch.is_autocast_enabled(device.type):
            dtype = torch.get_autocast_dtype(device.type)
        # without the cache: parameters that were cast here have no gradient, and must not be met again
        autocast = torch.autocast(device.type, dtype, enabled=dtype is not None, cache_enabled=False)
        with _untouched(model, device), autocast:
            parts = [self._elements(model, batch, one) for one in pieces(len(batch.targets), self.micro_batch)]
        return _joined(parts)

    def _elements(self, model: nn.Module, batch: Batch, rows: slice | Tensor = slice(None)) -> Any:
        """The elements of these examples."""
        some = batch.of(rows)
        beside = {"mask": some.mask, "sample_weight": some.sample_weight}
        given: dict[str, Any] = {name: one for name, one in beside.items() if one is not None}
        elements = self.criterion.elements(model(*some.arguments, **some.named), some.targets, **given)
        for own in _leaves(elements):
            check_tensors(own.losses, mask=own.mask, sample_weight=own.sample_weight)
            if len(own.losses) != len(some.targets):
                raise ValueError(
                    "the losses must have the examples in their first dimension; got losses of shape "
                    f"{tuple(own.losses.shape)} for {len(some.targets)} examples. Let the model return (N, ...)."
                )
        return elements

    def _plain(self, batch: Batch, elements: Any) -> StepResult:
        """Backward of the whole batch, whose elements were computed with gradient."""
        selection = self.criterion.select_elements(elements)
        loss = self.criterion.total(selection)
        self._backward(loss)
        return StepResult(loss.detach(), _mapped(Selection.detached, selection), len(batch.targets), len(batch.targets))

    def _selective(self, batch: Batch, elements: Any, full: bool) -> StepResult:
        """Forward and backward of what has weight among the whole batch, or of all; in micro-batches."""
        with torch.enable_grad():
            elements = _mapped(_as_leaf, elements)
            selection = self.criterion.select_elements(elements)
            loss = self.criterion.total(selection)
            losses = [one.losses for one in _leaves(elements)]
            own = [one for one in self.criterion.parameters() if one.requires_grad]  # a learned threshold
            weights = torch.autograd.grad(loss, losses, retain_graph=True)
            gradients = torch.autograd.grad(loss, own, allow_unused=True) if own else ()
            pull = sum((one * grad).sum() for one, grad in zip(own, gradients, strict=True) if grad is not None)
        rows = torch.arange(len(batch.targets), device=batch.targets.device)
        if not full:
            rows = rows[torch.stack([(one != 0).unsqueeze(-1).flatten(1).any(1) for one in weights]).any(0)]
        stepped = StepResult(loss.detach(), _mapped(Selection.detached, selection), len(batch.targets), len(rows))
        if len(rows) == 0:  # still one, of weight 0: gradients are then 0, not None, and no other process waits
            rows = torch.arange(min(1, len(batch.targets)), device=rows.device)
        slices = pieces(len(rows), self.micro_batch)
        for number, piece in enumerate(slices, start=1):
            last = number == len(slices)
            taken = piece if len(rows) == len(batch.targets) else rows[piece]
            # with others, the gradients are averaged in the last micro-batch only
            with self._parallel.no_sync() if self._parallel and not last else contextlib.nullcontext():
                parts = zip(weights, _leaves(self._elements(self.model, batch, taken)), strict=True)
                values = [weighted_sum(weight[taken], one.losses) for weight, one in parts]
                self._backward(sum(values[1:], values[0]) + (pull if last else 0))
        return stepped

    def _backward(self, loss: Tensor) -> None:
        with torch.autocast(loss.device.type, enabled=False):  # torch advises against a backward pass under it
            self.backward(loss)


def _together(ranks: Ranks | None, work: Callable[[], Work]) -> Work:
    return work() if ranks is None else ranks.together(work, lambda _: "a selective step")


def _leaves(elements: Any) -> Iterator[Elements]:
    """Those of each criterion, which a sum has in lists of lists; None stands for a criterion of weight 0."""
    if isinstance(elements, list):
        for own in elements:
            yield from _leaves(own)
    elif elements is not None:
        yield elements


def _mapped(function: Callable[[Any], Any], tree: Any) -> Any:
    """The function's answers in the place of the leaves."""
    if isinstance(tree, list):
        return [_mapped(function, own) for own in tree]
    return tree and function(tree)


def _joined(parts: Sequence[Any]) -> Any:
    """The elements of several micro-batches as those of one."""
    first = parts[0]
    if isinstance(first, list):
        return [_joined(own) for own in zip(*parts, strict=True)]
    if first is None or len(parts) == 1:
        return first
    columns = zip(Elements._fields, zip(*parts, strict=True), strict=True)
    return first._replace(**{name: torch.cat(one) for name, one in columns if isinstance(one[0], Tensor)})


def _as_leaf(elements: Elements) -> Elements:
    """In the precision of weights: 1/k of a million is no float16 number."""
    losses = elements.losses
    return elements._replace(losses=losses.detach().to(computing_dtype(losses)).requires_grad_())


def _work(ranked: float, backpropagated: float) -> float:
    """Forward of a share, forward and backward of a share, over forward and backward of all."""
    return (ranked + 3 * backpropagated) / 3


@contextlib.contextmanager
def _untouched(model: nn.Module, device: torch.device) -> Iterator[None]:
    """What runs inside sees copies of the model's buffers, and leaves no trace in the random state."""
    originals = [(owner._buffers, dict(owner._buffers)) for owner in model.modules()]
    copies: dict[int, Tensor] = {}
    with torch.random.fork_rng([] if device.type == "cpu" else [device], device_type=device.type):
        try:
            for buffers, kept in originals:
                for name, one in kept.items():
                    buffers[name] = None if one is None else copies.setdefault(id(one), one.clone())
            yield
        finally:
            for buffers, kept in originals:
                for name in set(buffers.keys()) - kept.keys():
                    del buffers[name]
                for name, one in kept.items():
                    buffers[name] = one


def _asked(criterion: Selecting) -> float:
    """The largest share that is asked, 0 where none is; a rounded corner gives every element some weight."""
    parts = parts_of(criterion)
    return max(1.0 if getattr(one, "smoothing", 0.0) else getattr(one, "fraction", None) or 0.0 for one in parts)


def _check(model: nn.Module, criterion: nn.Module) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"`model` must be an nn.Module; got {type(model).__name__}. Wrap a function in a module.")
    for module in model.modules():
        if any(kind.__name__ in TALKING for kind in type(module).__mro__):
            raise ValueError(
                "`model` must have no layer that talks to other processes in its forward pass; got "
                f"{type(module).__name__}. Wrap a model without it in DistributedDataParallel; normalise by groups."
            )
        if isinstance(module, DistributedDataParallel) and module is not getattr(model, "_orig_mod", model):
            raise ValueError(
                f"`model` must be the DistributedDataParallel itself; got {type(model).__name__}, which holds one. "
                "Pass what is inside."
            )
        if getattr(module, "static_graph", False):
            raise ValueError(
                "`model` must be wrapped without static_graph; got a DistributedDataParallel with static_graph=True. "
                "Micro-batches change the graph: leave it out."
            )
    if not isinstance(criterion, Selecting):
        raise TypeError(
            f"`criterion` must be one of topkloss, like AverageTopKLoss; got {type(criterion).__name__}. For a plain "
            "mean pass AverageTopKLoss(loss, fraction=1)."
        )
    for whole in wholes_of(criterion):
        raise ValueError(
            "`criterion` must rank examples in all its parts, so that some can be skipped; got "
            f"{whole.name}, one number of the whole batch, which needs them all. Take a plain step, or a RegionLoss."
        )
    groups = [part.process_group for part in parts_of(criterion)]
    if any(group is not groups[0] for group in groups):
        raise ValueError(
            "`criterion` must rank everything with the same processes; got parts with different process_group=. "
            "Give all of them the same."
        )


def _check_count(name: str, number: int, least: int, hint: str) -> None:
    if not is_whole(number) or number < least:
        raise ValueError(f"`{name}` must be a whole number >= {least}; got {number!r}. {hint}")
