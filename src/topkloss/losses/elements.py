"""Individual losses as modules that know which elements count, and with which mass: what a criterion is made of."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from topkloss.base.arguments import (
    ClassWeights,
    check_label_smoothing,
    check_number_of_weights,
    check_tensors,
    check_word,
    class_weights,
)
from topkloss.base.tensors import computing_dtype, dense
from topkloss.kernels import native, operators
from topkloss.kernels.operators import Backend
from topkloss.losses.regions import present_in
from topkloss.losses.targets import TWO_CHANNELS, Batch, read_batch

__all__ = ["CrossEntropy", "ElementLoss", "Elements", "RegionLoss"]


class Elements(NamedTuple):
    """One loss per element, and what a criterion needs to know of each. The other tensors may be None.

    Example:
        >>> Elements(torch.tensor([1.0, 2.0]), mask=torch.tensor([True, False])).mask
        tensor([ True, False])
    """

    losses: Tensor  # not reduced
    mask: Tensor | None = None  # True = counts
    sample_weight: Tensor | None = None  # mass
    scores: Tensor | None = None  # to rank by
    classes: Tensor | None = None  # integers
    scale: float = 1.0  # on counts of pixels: that of a coarser resolution

    def of_samples(self) -> Elements:
        """The mean of each sample's counted losses, by mass, and of its scores; a sample without any does not count."""
        losses, scores = self.losses, self.scores
        check_tensors(losses, mask=self.mask, sample_weight=self.sample_weight)
        flat = (losses.flatten(1) if losses.dim() > 1 else losses.unsqueeze(1)).to(computing_dtype(losses))
        mass = torch.ones_like(flat) if self.sample_weight is None else self.sample_weight.reshape(flat.shape)
        mass = mass.double()
        if self.mask is not None:
            mass = mass.masked_fill(~self.mask.reshape(flat.shape), 0)
        total = mass.sum(dim=1)
        share = (mass / total.clamp(min=torch.finfo(mass.dtype).tiny).unsqueeze(1)).to(flat.dtype)

        def mean(values: Tensor) -> Tensor:
            return (values.reshape(flat.shape).to(flat.dtype).masked_fill(share == 0, 0) * share).sum(dim=1)

        return Elements(mean(losses), total > 0, scores=None if scores is None else mean(scores))

    def own_classes(self) -> Tensor:
        """For each element the number of its class."""
        check_tensors(self.losses, mask=None, sample_weight=None)
        classes = self.classes
        if classes is None or classes.shape != self.losses.shape or classes.is_floating_point():
            got = "no classes" if classes is None else f"{classes.dtype} of shape {tuple(classes.shape)}"
            raise ValueError(
                f'`targets` must be integers shaped like the losses, {tuple(self.losses.shape)}, for within="class"; '
                f"got {got}. Other groups can be passed as `groups`."
            )
        return classes


class ElementLoss(nn.Module):
    """An individual loss that says itself what counts: derive from it, and return `Elements` from ``forward``.

    Example:
        >>> class Labelled(ElementLoss):
        ...     def forward(self, outputs, targets, *, mask=None, sample_weight=None):
        ...         known = targets.isfinite()  # NaN marks what nobody measured
        ...         error = (outputs - targets.nan_to_num()).abs()
        ...         return Elements(error, known if mask is None else known & mask, sample_weight)
        >>> from topkloss import AverageTopKLoss
        >>> criterion = AverageTopKLoss(Labelled(), fraction=0.5)
        >>> criterion(torch.tensor([1.0, 2.0, 9.0]), torch.tensor([0.0, 0.0, torch.nan]))
        tensor(2.)
    """

    def forward(
        self, outputs: Tensor, targets: Tensor, *, mask: Tensor | None = None, sample_weight: Tensor | None = None
    ) -> Elements:
        """The losses of this batch.

        Args:
            outputs, targets: As the loss defines them.
            mask: Bool, True = counts: elements that the caller leaves out. What stands there never matters.
            sample_weight: Mass of each element.
        """
        raise NotImplementedError


IndividualLoss = Callable[[Tensor, Tensor], Tensor] | ElementLoss


class CrossEntropy(ElementLoss):
    """Cross-entropy with ``ignore_index``, class weights as mass and label smoothing, for any criterion.

    Args:
        weight: Class weights, finite and >= 0: a tensor of shape (C,), or a list. Default: 1 each. They are masses; of
            targets that are probabilities, part of the loss: see `topkloss.losses.cross_entropy`.
        ignore_index: Target of the elements to leave out; it need not be a legal class. Beside probabilities, which
            have none, it must be negative, as in torch.
        label_smoothing: Share of the target spread evenly over the classes, in [0, 1]; ranked is by the loss without.
        backend: "native", the compiled kernels for the CPU; "torch", the portable ones, in chunks; "auto": the first of
            them that serves, on other devices torch's own operations.
        inplace: Allows backward to overwrite the logits with their gradient, where the native kernels serve. They must
            be computed by the model, and are empty afterwards: a second use of them raises. Where something else reads
            their memory, a detached tensor or a view, they are left as they are.

    Example:
        >>> elements = CrossEntropy(ignore_index=255)(torch.zeros(2, 3), torch.tensor([1, 255]))
        >>> elements.losses, elements.mask
        (tensor([1.0986, 0.0000]), tensor([ True, False]))

    Cost: one read of the logits, and one number for each element is kept; backward reads the logits again where a loss
        gets a gradient, and writes theirs. Measured in docs/speed.md.
    """

    weight: Tensor | None

    def __init__(
        self,
        *,
        weight: ClassWeights | None = None,
        ignore_index: int = -100,
        label_smoothing: float = 0.0,
        backend: Backend = "auto",
        inplace: bool = False,
    ) -> None:
        super().__init__()
        check_label_smoothing(label_smoothing)
        check_backend(backend)
        self.register_buffer("weight", class_weights(weight))
        self.ignore_index = ignore_index
        self.label_smoothing = label_smoothing
        self.backend: Backend = backend
        self.inplace = inplace

    def forward(
        self, outputs: Tensor, targets: Tensor, *, mask: Tensor | None = None, sample_weight: Tensor | None = None
    ) -> Elements:
        """The losses of this batch.

        Args:
            outputs, targets: Logits, and class indices or probabilities: see `topkloss.losses.cross_entropy`.
            mask: Bool, shaped like the losses or the class indices; True = counts. Combined with `ignore_index`.
            sample_weight: Mass of each element, shaped like the mask; multiplied with its class weight.
        """
        return cross_entropy_elements(
            outputs,
            targets,
            weight=self.weight,
            ignore_index=self.ignore_index,
            label_smoothing=self.label_smoothing,
            mask=mask,
            sample_weight=sample_weight,
            backend=self.backend,
            inplace=self.inplace,
        )

    def extra_repr(self) -> str:
        """Parameters as they were given."""
        weight = "" if self.weight is None else f"weight={tuple(self.weight.shape)}, "
        shown = f"{weight}ignore_index={self.ignore_index}, label_smoothing={self.label_smoothing}"
        backend = "" if self.backend == "auto" else f", backend={self.backend!r}"
        return f"{shown}{backend}{', inplace=True' if self.inplace else ''}"


class RegionLoss(ElementLoss):
    """A loss of whole regions, one number per (sample, class) or per sample; classes absent from a sample do not count.

    Args:
        loss: Called as ``loss(outputs, targets, mask=...)``; returns losses of shape (N, C), or (N,): `dice_loss`,
            `generalized_dice_loss`, or ``functools.partial(tversky_loss, ...)``.
        ignore_index: Target of the pixels to leave out. Beside targets shaped like the outputs, which have none, it
            must be negative.

    Example:
        >>> from topkloss.losses import dice_loss
        >>> outputs, targets = torch.zeros(1, 2, 4), torch.tensor([[0, 0, 255, 255]])
        >>> elements = RegionLoss(dice_loss, ignore_index=255)(outputs, targets)
        >>> elements.losses, elements.mask
        (tensor([[0.3333, 1.0000]]), tensor([[ True, False]]))
    """

    def __init__(self, loss: Callable[..., Tensor], *, ignore_index: int = -100) -> None:
        super().__init__()
        self.loss = loss
        self.ignore_index = ignore_index

    def forward(
        self, outputs: Tensor, targets: Tensor, *, mask: Tensor | None = None, sample_weight: Tensor | None = None
    ) -> Elements:
        """The losses of this batch.

        Args:
            outputs: Logits, shape (N, C, d1, ...).
            targets: Class indices, or the share of each class in each pixel: see `topkloss.losses.dice_loss`.
            mask: Bool, shaped like the class indices: pixels that count. Combined with `ignore_index`.
            sample_weight: Mass of each region, shaped like the losses.
        """
        batch = read_batch(outputs, targets, mask=mask, one_channel=TWO_CHANNELS, of_regions=True)
        batch = batch._replace(mask=_counted(batch, self.ignore_index))
        losses = self.loss(batch.outputs, batch.targets, mask=batch.mask)
        present = present_in(batch)
        if losses.dim() == 1:
            return Elements(losses, present.any(dim=1), sample_weight)
        classes = torch.arange(losses.shape[1], device=losses.device).expand(losses.shape)
        return Elements(losses, present, sample_weight, classes=classes)


def cross_entropy_elements(
    outputs: Tensor,
    targets: Tensor,
    *,
    weight: Tensor | None,
    ignore_index: int,
    label_smoothing: float,
    mask: Tensor | None,
    sample_weight: Tensor | None,
    backend: Backend = "auto",
    inplace: bool = False,
) -> Elements:
    """The elements of `CrossEntropy`, of arguments that were checked when it was made."""
    batch = read_batch(outputs, targets, mask=mask, sample_weight=sample_weight)
    check_number_of_weights(weight, batch.outputs.shape[1])
    outputs, targets, _, mass, _ = batch
    counts = _counted(batch, ignore_index)
    class_weight = None if weight is None else dense(weight, computing_dtype(outputs))
    if weight is not None and not batch.of_probabilities:
        own = class_mass(targets, weight)
        mass = own if mass is None else own * mass
    if mass is not None:
        counts = mass != 0 if counts is None else counts & (mass != 0)  # the loss must not see what does not count
    losses, scores = operators.cross_entropy(
        outputs,
        targets,
        counts=counts,
        class_weight=class_weight,
        smoothing=float(label_smoothing),
        backend=backend,
        inplace=inplace,
    )
    return Elements(losses, counts, mass, scores, None if batch.of_probabilities else targets)


def _counted(batch: Batch, ignore_index: int) -> Tensor | None:
    """What the mask leaves, and is not ignored."""
    if not batch.of_probabilities:
        counts = batch.targets != ignore_index
        return counts if batch.mask is None else counts & batch.mask
    if ignore_index >= 0:
        raise ValueError(
            f"`ignore_index` must be negative beside targets that are probabilities, of which none can be ignored; "
            f"got {ignore_index}. To leave elements out pass `mask` to the call."
        )
    return batch.mask


def check_backend(backend: str) -> None:
    """A word, and where it is "native" kernels that were built."""
    check_word("backend", backend, "auto", "torch", "native", hint='To leave the choice to the machine pass "auto".')
    if backend == "native" and not native.is_available():
        raise ValueError(
            '`backend` must be "auto" or "torch" where the native kernels are missing; got "native". '
            "`topkloss doctor` says why they are; install from source with a C++ compiler."
        )


def scaled(count: float | None, scale: float) -> float | None:
    """What is asked as a count, at another resolution."""
    return count if count is None or scale == 1.0 else count * scale


def class_mass(targets: Tensor, weight: Tensor) -> Tensor:
    """The class weight of each target, float64; 1 where the target is no class, which the loss then reports."""
    legal = (targets >= 0) & (targets < weight.numel())
    return torch.where(legal, weight.detach().double()[targets.masked_fill(~legal, 0)], 1)
