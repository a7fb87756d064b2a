"""A loss of another library: what it was made of is honoured, and what does not count is kept from it.

Assumed of it is that an element's loss depends on the element's own outputs and target alone. Of torch's losses that is
known, and outputs and targets are replaced wherever they do not count. In the losses of others only what could hurt is
replaced there: what is not finite, labels that are no class, and what made a loss that is not finite. So a loss of
windows or of pairs, whose elements share their neighbours' outputs, keeps its value where its inputs are finite.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from topkloss.base.arguments import check_beside
from topkloss.base.tensors import values_are_readable
from topkloss.losses.elements import Elements, class_mass, cross_entropy_elements
from topkloss.losses.made import IGNORED_BY_TORCH, Made
from topkloss.losses.probes import check_own_examples, check_sees_outputs
from topkloss.losses.shapes import check_examples, check_no_broadcast, losses_of_kept, mapped, spread, tensors_of
from topkloss.losses.targets import check_classes, warn_of_a_square

# What stands where nothing counts: in the domain of every loss (a probability, positive, a margin's label), and apart.
OUTPUT, TARGET = 0.5, 1.0


class ForeignLoss(Made):
    """A module or callable that returns one number per element, and knows nothing of masks and masses."""

    def elements(
        self,
        outputs: Any,
        targets: Any,
        *,
        mask: Tensor | None,
        sample_weight: Tensor | None,
        rows: Tensor | None = None,
        by_sample: bool = False,
        omit: bool = False,
    ) -> Elements:
        """The losses, and what of them counts.

        Args:
            outputs, targets: What the loss takes: tensors, or tuples, lists or dicts of such.
            mask: Bool, shaped like the losses, True = counts.
            sample_weight: Mass, shaped like the losses.
            rows: Bool, which examples count, of those whose mass is known; None = all.
            by_sample: Whether the losses will be told apart by sample.
            omit: Whether a loss that is NaN will not count.
        """
        if self.is_cross_entropy and self._own("reduction") == "none":
            return self._cross_entropy(outputs, targets, mask, sample_weight)
        everything = mask is None and sample_weight is None and rows is None and not omit
        if everything and self._is_plain(outputs, targets):
            return Elements(
                _unselected_cost_nothing(self.loss, self.loss(outputs, targets), outputs, targets), classes=targets
            )
        for name, one in (("mask", mask), ("sample_weight", sample_weight)):
            if one is not None:  # their types
                check_beside(name, one, **{"mask": None, "sample_weight": None, name: one})
        self._check_class_weights()
        elements = self._elements(outputs, targets, mask, sample_weight, rows, omit)
        if by_sample and isinstance(outputs, Tensor):
            check_examples(elements.losses, outputs)
        return elements

    def _is_plain(self, outputs: Any, targets: Any) -> bool:
        """Whether it is one of torch's that is computed of as many outputs as targets, and ignores none."""
        if not (isinstance(outputs, Tensor) and isinstance(targets, Tensor)):
            return False
        if outputs.shape != targets.shape or not targets.is_floating_point() or not self._is_of_torch():
            return False
        return self._own("ignore_index") is None and not self.held and not self._is_known_classifier()

    def _cross_entropy(self, outputs: Any, targets: Any, mask: Tensor | None, sample_weight: Tensor | None) -> Elements:
        return cross_entropy_elements(
            outputs,
            targets,
            weight=self._class_weights(targets),
            ignore_index=self._own("ignore_index", IGNORED_BY_TORCH),
            label_smoothing=self._own("label_smoothing", 0.0),
            mask=mask,
            sample_weight=sample_weight,
        )

    def _elements(
        self,
        outputs: Any,
        targets: Any,
        mask: Tensor | None,
        mass: Tensor | None,
        rows: Tensor | None,
        omit: bool,
    ) -> Elements:
        kept = self._kept(outputs, targets)
        call, mass = self._call(outputs, targets, mass)
        # what does not count: by the caller, whose labels mean nothing to the loss, and by the loss itself
        left_out = [~mask] if mask is not None else []
        if omit and self._is(nn.BCELoss, F.binary_cross_entropy) and outputs.shape == targets.shape:
            left_out.append(outputs.isnan() | targets.isnan())  # which it would refuse rather than return
        left_out += [one == 0 if one.dtype != torch.bool else ~one for one in (mass, rows) if one is not None]
        ignored = [] if kept is None else [~kept]
        shown = self._shown(outputs, targets, left_out, ignored)
        twice = omit or (len(left_out + ignored) > 0 and not self._is_of_torch())
        blind = twice and torch.is_grad_enabled() and not all(map(values_are_readable, tensors_of(outputs)))
        with torch.no_grad() if blind else contextlib.nullcontext():
            losses = self._called(call, *shown)
        if not isinstance(losses, Tensor) or losses.dim() == 0:
            return Elements(losses, mask, mass)  # refused where it is ranked
        check_sees_outputs(call, losses, outputs, targets)
        losses = self._refusing_unsaid(losses, outputs, shown[1])
        if omit:
            losses = _nan_of_nan(losses, outputs, targets)
        if kept is not None:
            kept = ~self._spread(~kept, losses, "what its `ignore_index` leaves out")
        classes = targets if isinstance(targets, Tensor) else None
        mask, mass, classes = (_flat(one, losses, classes) for one in (mask, mass, classes))
        check_beside("losses", losses, mask=mask, sample_weight=mass)
        counts = kept if mask is None or kept is None else mask & kept
        counts = mask if counts is None else counts
        if twice and torch.is_grad_enabled():
            gone = [one for one in (spread(one, losses) for one in left_out + ignored) if one is not None]
            losses = self._once_more(call, losses, shown, gone, omit, blind)
        if omit:  # what was replaced, too, is omitted and not masked
            losses = _nan_of_nan(losses, outputs, targets)
        return Elements(losses, counts, mass, classes=classes)

    def _call(self, outputs: Any, targets: Any, mass: Tensor | None) -> tuple[Callable[..., Any], Tensor | None]:
        """What gives the losses without class weights, and the masses with them."""
        if not self._is(nn.NLLLoss, F.nll_loss):
            return self.loss, mass
        if isinstance(outputs, Tensor) and outputs.dim() > 1:
            check_classes(outputs)
            if _is_index(targets):
                warn_of_a_square(outputs)
        weight = self._class_weights(targets)
        if weight is not None:
            own = class_mass(targets, weight)
            mass = own if mass is None else own * mass
        ignore_index = self._own("ignore_index", IGNORED_BY_TORCH)
        return functools.partial(F.nll_loss, ignore_index=ignore_index, reduction="none"), mass

    def _shown(self, outputs: Any, targets: Any, left_out: list[Tensor], ignored: list[Tensor]) -> tuple[Any, Any]:
        """Outputs and targets as the loss sees them: other values where they do not count."""
        if not (left_out or ignored):
            return outputs, targets
        of_targets = left_out if _is_index(targets) else left_out + ignored
        beside = outputs if isinstance(outputs, Tensor) else None
        return (
            mapped(outputs, lambda one: self._replaced(one, left_out + ignored, OUTPUT)),
            mapped(targets, lambda one: self._replaced(one, of_targets, TARGET, beside)),
        )

    def _once_more(
        self,
        call: Callable[..., Any],
        losses: Tensor,
        shown: tuple[Any, Any],
        gone: list[Tensor],
        omit: bool,
        blind: bool,
    ) -> Tensor:
        """The losses without what made one that does not count infinite or NaN: its gradient would be NaN."""
        uncounted = _any(gone) if gone else torch.zeros_like(losses, dtype=torch.bool)
        nan = losses.isnan() & ~uncounted if omit else None
        wrong = ~losses.isfinite() & uncounted
        wrong = (wrong if nan is None else wrong | nan).expand(losses.shape)
        if not blind and not bool(wrong.any()):
            return losses
        outputs, targets = shown
        known = [spread(wrong, one, self._is_of_torch()) is not None for one in tensors_of(outputs)]
        if not any(known) and not blind:
            shape = ", ".join(str(tuple(one.shape)) for one in tensors_of(outputs))
            raise ValueError(
                "what stands in `outputs` and `targets` where nothing counts must be finite for a loss of shape "
                f"{tuple(losses.shape)} of outputs of shape {shape}, of which it is not known what "
                f"made which number; got a loss of {losses[wrong][0].item():g} there. Replace it before: "
                "torch.where(counted, targets, 0), and the outputs likewise."
            )
        outputs = mapped(outputs, lambda one: self._filled(one, wrong, OUTPUT))
        targets = mapped(targets, lambda one: self._filled(one, wrong, TARGET, outputs))
        again: Tensor = self._called(call, outputs, targets)
        return again if nan is None else again.masked_fill(nan, torch.nan)

    def _filled(self, values: Tensor, gone: Tensor, fill: float, outputs: Any = None) -> Tensor:
        """Other values wherever they are known to belong to what is gone."""
        where = spread(gone, values, self._is_of_torch())
        if where is None or values.is_complex() or values.dtype == torch.bool:
            return values
        return values.masked_fill(where, fill if values.is_floating_point() else self._label(values, outputs))

    def _called(self, call: Callable[..., Any], outputs: Any, targets: Any) -> Any:
        losses = call(outputs, targets)
        if not (isinstance(losses, Tensor) and isinstance(targets, Tensor)) or losses.dim() == 0:
            return losses
        if not isinstance(outputs, Tensor):
            return losses_of_kept(losses, self._kept(outputs, targets), targets)
        check_no_broadcast(losses, outputs, targets)
        check_own_examples(call, losses, outputs, targets)
        losses = _unselected_cost_nothing(call, losses, outputs, targets)
        if losses.dim() == targets.dim() + 1 and losses.squeeze(1).shape == targets.shape:
            losses = losses.squeeze(1)  # who gathers the loss of a class keeps its dimension
        return losses_of_kept(losses, self._kept(outputs, targets), targets)

    def _refusing_unsaid(self, losses: Tensor, outputs: Any, targets: Any) -> Tensor:
        """The losses; what is no class, counts and costs nothing, is ignored in a way that nobody said: NaN.

        Raises:
            ValueError: Instead, where values can be read.
        """
        if not (isinstance(outputs, Tensor) and isinstance(targets, Tensor)):
            return losses
        classes = _number_of_classes(outputs, targets)
        if classes is None or not _is_index(targets) or losses.shape != targets.shape or self._is_of_torch():
            return losses
        kept, labels = self._kept(outputs, targets), targets.long()
        self._check_ignored(losses, kept)
        unknown = (labels < 0) | (labels >= max(classes, 2))
        if classes == 1:  # one logit, whose labels are 0 and 1, or -1 and 1
            unknown = unknown & ((labels != -1) | (labels == 0).any())
        unknown = unknown if kept is None else unknown & kept
        readable = values_are_readable(losses)
        if readable and not bool(unknown.any()):
            return losses
        ignores = ((losses.detach() == 0) | ~unknown).all()
        if readable and bool(ignores):
            label = int(labels[unknown][0])
            raise ValueError(
                f"`targets` must be classes in [0, {max(classes, 2)}) where counted; got {label}, which {self.name} "
                "seems to ignore without an ignore_index that can be read: it would be counted as a loss of 0. Pass "
                f"mask=targets != {label}."
            )
        return losses if readable else losses.masked_fill(unknown & ignores, torch.nan)

    def _check_ignored(self, losses: Tensor, kept: Tensor | None) -> None:
        """What a loss that it holds ignores costs nothing; if not, the label means something else there."""
        ignore_index, is_held = self._ignore_index()
        if kept is None or not is_held or not values_are_readable(losses):
            return
        charged = ~kept & (losses.detach() != 0)
        if bool(charged.any()):
            raise ValueError(
                f"`loss` must cost nothing where it ignores the target; got {self.name}, which holds a loss with "
                f"ignore_index={ignore_index}, and costs {losses.detach()[charged][0].item():g} at such a target, so "
                "it is not known what counts. Give it an ignore_index of its own, or -1 if there is none."
            )

    def _replaced(self, values: Tensor, left_out: list[Tensor], fill: float, outputs: Tensor | None = None) -> Tensor:
        """The outputs, or the targets of these outputs, with other values where they do not count."""
        spreads = [spread(one, values, self._is_of_torch()) for one in left_out]
        where = [one for one in spreads if one is not None]
        if not where or values.is_complex() or values.dtype == torch.bool:
            return values
        gone = _any(where)
        if values.is_floating_point():
            if self._is_of_torch():
                return values.masked_fill(gone, fill)
            if values_are_readable(values) and bool(values.detach().sum().isfinite()):
                return values
            return values.masked_fill(gone & ~values.isfinite(), fill)
        classes = None if outputs is None else _number_of_classes(outputs, values)
        if classes is not None and not self._is_of_torch():
            labels = values.long()
            gone = gone & ((labels < 0) | (labels >= classes))
        return values.masked_fill(gone, self._label(values, outputs))

    def _label(self, targets: Tensor, outputs: Any) -> int:
        """A label that the loss takes: the one it ignores, else class 0, or a 1 beside each output."""
        ignore_index = self._own("ignore_index")
        limits = torch.iinfo(targets.dtype) if targets.dtype != torch.bool else None
        known = _is_whole(ignore_index) and limits is not None and limits.min <= ignore_index <= limits.max
        is_class = isinstance(outputs, Tensor) and _number_of_classes(outputs, targets) is not None
        return int(ignore_index) if known else int(not is_class)

    def _kept(self, outputs: Any, targets: Any) -> Tensor | None:
        """Which targets are not the one that the loss ignores; None where it ignores none."""
        ignore_index, is_held = self._ignore_index()
        if is_held and not _is_index(targets):
            return None
        if not _is_whole(ignore_index) or not isinstance(targets, Tensor):
            return None
        if targets.is_complex() or targets.dtype == torch.bool:
            return None
        if self.is_cross_entropy:
            return None  # of probabilities, torch ignores none
        same = isinstance(outputs, Tensor) and outputs.dim() > 1 and targets.shape == outputs.shape
        channels = outputs.shape[1] if same else 1
        if channels > 1 and 0 <= ignore_index < channels:
            raise ValueError(
                f"`ignore_index` of the loss must be no channel where the targets are shaped like the outputs; got "
                f"{ignore_index} for targets of shape {tuple(targets.shape)}: it might be a value or a channel. Make "
                "the loss without it, and pass what counts as `mask`."
            )
        return torch.ne(targets if targets.is_floating_point() else targets.long(), ignore_index)

    def _spread(self, gone: Tensor, losses: Tensor, what: str) -> Tensor:
        where = spread(gone, losses, self._is_of_torch())
        if where is None:
            raise ValueError(
                f"the losses must have the shape of the targets, {tuple(gone.shape)}, for it to be known which are "
                f"{what}; got {tuple(losses.shape)}. Make the loss without it, and pass what counts as `mask`."
            )
        return where.expand(losses.shape)


def _nan_of_nan(losses: Tensor, outputs: Any, targets: Any) -> Tensor:
    """The losses, NaN where one of outputs or targets is that the loss makes a number of, as a comparison does."""
    for one in (outputs, targets):
        if isinstance(one, Tensor) and one.is_floating_point() and one.shape == losses.shape:
            nan = one.detach().isnan()
            if not values_are_readable(nan) or bool(nan.any()):
                losses = losses.masked_fill(nan, torch.nan)
    return losses


def _any(conditions: list[Tensor]) -> Tensor:
    found = conditions[0]
    for one in conditions[1:]:
        found = found | one
    return found


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_index(targets: Any) -> bool:
    return isinstance(targets, Tensor) and not targets.is_floating_point()


def _number_of_classes(outputs: Tensor, targets: Tensor) -> int | None:
    """C where the targets are indices of dimension 1 of the outputs."""
    indices = outputs.shape[:1] + outputs.shape[2:], (*outputs.shape[:1], 1, *outputs.shape[2:])
    return outputs.shape[1] if outputs.dim() > 1 and targets.shape in indices else None


def _flat(one: Any, losses: Tensor, targets: Tensor | None) -> Any:
    """What is shaped like the targets, flat where the losses are; what has a dimension too many, without."""
    if one is not None and one.dim() == losses.dim() + 1 and one.squeeze(1).shape == losses.shape:
        return one.squeeze(1)
    if one is None or targets is None:
        return one
    flat = losses.dim() == 1 and one.shape == targets.shape and one.numel() == losses.numel()
    return one.reshape(-1) if flat else one


def _unselected_cost_nothing(call: Callable[..., Any], losses: Any, outputs: Tensor, targets: Tensor) -> Any:
    """The losses, of which an infinite one that gets no gradient passes none on: 0 x inf is NaN."""
    if not (isinstance(losses, Tensor) and losses.requires_grad and losses.shape == outputs.shape):
        return losses
    if not values_are_readable(losses) or math.isfinite(losses.detach().sum().item()):  # the usual case, at one read
        return losses
    if not bool(losses.detach().isinf().any()):
        return losses
    apart: Any = outputs.view_as(outputs)
    again: Any = call(apart, targets)
    unselected: list[Tensor] = []

    def remember(gradient: Tensor) -> None:
        unselected[:] = [gradient == 0]

    again.register_hook(remember)
    apart.register_hook(lambda gradient: gradient.masked_fill(unselected[0], 0))
    return again
