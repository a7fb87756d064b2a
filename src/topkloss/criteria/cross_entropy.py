"""Cross-entropy of the hardest elements: the function, and the criterion in the place of ``nn.CrossEntropyLoss``."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd import forward_ad

from topkloss.base.arguments import (
    NanPolicy,
    check_beside,
    check_class_weights,
    check_k,
    check_label_smoothing,
    check_word,
)
from topkloss.base.processes import ProcessGroup, ranks_of
from topkloss.base.tensors import computing_dtype, values_are_readable
from topkloss.criteria.criterion import AverageTopKLoss, Level, Within
from topkloss.kernels import native
from topkloss.kernels.operators import native_serves, top_k_cross_entropy
from topkloss.losses.elements import Elements, class_mass, cross_entropy_elements
from topkloss.losses.pointwise import check_logits
from topkloss.ranking.ranking import dense, line
from topkloss.ranking.selection import ranked_weights, value_of

__all__ = ["AverageTopKCrossEntropyLoss", "average_top_k_cross_entropy"]

Backend = Literal["auto", "torch", "native"]


def average_top_k_cross_entropy(
    outputs: Tensor,
    targets: Tensor,
    *,
    k: float | None = None,
    fraction: float | None = None,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    mask: Tensor | None = None,
    sample_weight: Tensor | None = None,
    backend: Backend = "auto",
    inplace: bool = False,
) -> Tensor:
    r"""Cross-entropy of the hardest elements: `average_top_k` of `topkloss.losses.cross_entropy`, faster and leaner.

    .. math:: \max \{ \langle w, \ell \rangle : 0 \le w_i \le s_i / k,\ \textstyle\sum_i w_i = 1 \}, \qquad
        \ell_i = -\log \mathrm{softmax}(x_i)_{y_i}

    Args:
        outputs: Logits x, shape (N, C) or (N, C, d1, ...), floating point. Half precision is computed in float32.
        targets: Class indices y in [0, C), shape (N,) or (N, d1, ...), any integer type.
        k: Mass of the elements averaged, k > 0, real. Above S it means all.
        fraction: `k` as a share of the counted mass S, 0 < fraction <= 1. Exactly one of the two.
        weight: Class weights, shape (C,), finite and >= 0: the mass s of the elements of each class.
        ignore_index: Target of the elements to leave out; it need not be a legal class.
        label_smoothing: Share of the target spread evenly over the classes, in [0, 1]; ranked is by the loss without.
        mask: Bool, shaped like `targets`; True = counts. Combined with `ignore_index`.
        sample_weight: Mass of each element, shaped like `targets`; multiplied with its class weight.
        backend: "native", the compiled kernels for the CPU; "torch", the portable ones, in chunks; or "auto": the
            native ones where they are there, and on other devices and with `sample_weight` neither.
        inplace: Allows backward to overwrite the logits with their gradient, where the native kernels serve. They must
            be computed by the model, and are empty afterwards: a second use of them raises.

    Returns:
        See `average_top_k`.

    Raises:
        TypeError, ValueError: See `topk_threshold` and `topkloss.losses.cross_entropy`; also if `backend` is not there.
        RuntimeError: In backward, if the logits were changed or overwritten since.

    Example:
        >>> outputs = torch.tensor([[3.0, 0.0], [0.0, 0.0], [0.0, 2.0], [0.0, 9.0]])
        >>> average_top_k_cross_entropy(outputs, torch.tensor([0, 0, 0, -100]), fraction=0.5)
        tensor(1.6490)

    Cost: with a backend two reads of the logits (at most) and one write; memory for the gradient and one number for
        each element. Measured in docs/speed.md.
    Reference: see `average_top_k`.
    """
    check_k(k, fraction)
    check_label_smoothing(label_smoothing)
    if weight is not None and (not isinstance(weight, Tensor) or values_are_readable(weight)):
        check_class_weights(weight)
    _check_backend(backend)
    check_logits(outputs, targets, weight)
    check_beside("targets", targets, mask=mask, sample_weight=sample_weight)
    if sample_weight is not None or not _serves(backend, outputs):
        given: dict[str, Any] = {"weight": weight, "ignore_index": ignore_index, "label_smoothing": label_smoothing}
        elements = cross_entropy_elements(outputs, targets, mask=mask, sample_weight=sample_weight, **given)
        losses, mask, mass, scores = elements[:4]
        counted = line(losses, mask=mask, sample_weight=mass, scores=scores)
        return value_of(counted, ranked_weights(counted, k=k, fraction=fraction)[0], losses)
    targets = targets.long()  # in uint8, -100 would be the class 156
    counts, mass = mask, None
    if weight is not None:
        mass = class_mass(targets, weight)
        counts = (mass != 0) if mask is None else (mass != 0) & mask
        mass = mass.masked_fill(~(counts & (targets != ignore_index)), 0)
    return top_k_cross_entropy(
        outputs,
        targets,
        counts=counts,
        mass=mass,
        class_weight=None if weight is None else dense(weight, computing_dtype(outputs)),
        k=k,
        fraction=fraction,
        ignore_index=ignore_index,
        smoothing=float(label_smoothing),
        use_native=backend != "torch" and native_serves(outputs),
        inplace=inplace,
    )


class AverageTopKCrossEntropyLoss(AverageTopKLoss):
    """Cross-entropy of the hardest elements, in the place of ``nn.CrossEntropyLoss``. See `average_top_k`.

    At ``fraction=1`` it *is* ``nn.CrossEntropyLoss``: class weights and label smoothing included (but for classes of
    weight 0 under smoothing: torch adds the smoothed part of elements that it does not count). The ranking is by
    the unweighted, unsmoothed loss, since mining elements is not mining classes, and smoothing makes
    confidently right elements look hard; a class weight is the mass of the elements of that class, so `k` and
    `fraction` count it. An element that is ignored, or whose class has weight 0, is not counted at all.

    Args:
        k: Mass of the elements averaged, k > 0, real; of each sample or class, where `within` says so.
        fraction: `k` as a share of the counted mass, 0 < fraction <= 1. Exactly one of the two.
        weight, ignore_index, label_smoothing: See `CrossEntropy`.
        level, nan_policy, process_group: See `OfElements`.
        within: See `Criterion`.
        backend, inplace: See `average_top_k_cross_entropy`; they concern elements that are ranked all together here.

    Example:
        >>> criterion = AverageTopKCrossEntropyLoss(fraction=0.5)
        >>> outputs = torch.tensor([[3.0, 0.0], [0.0, 0.0], [0.0, 2.0], [0.0, 9.0]])
        >>> criterion(outputs, torch.tensor([0, 0, 0, -100]))  # 1.5 of the 3 labelled ones
        tensor(1.6490)
    """

    weight: Tensor | None

    def __init__(
        self,
        *,
        k: float | None = None,
        fraction: float | None = None,
        weight: Tensor | None = None,
        ignore_index: int = -100,
        label_smoothing: float = 0.0,
        level: Level = "element",
        within: Within = "batch",
        nan_policy: NanPolicy = "propagate",
        process_group: ProcessGroup | None = None,
        backend: Backend = "auto",
        inplace: bool = False,
    ) -> None:
        super().__init__(
            None, k=k, fraction=fraction, level=level, within=within, nan_policy=nan_policy, process_group=process_group
        )
        check_label_smoothing(label_smoothing)
        check_class_weights(weight)
        _check_backend(backend)
        self.register_buffer("weight", weight)  # here, as in nn.CrossEntropyLoss: so their checkpoints are the same
        self.ignore_index = ignore_index
        self.label_smoothing = label_smoothing
        self.backend: Backend = backend
        self.inplace = inplace

    def forward(
        self,
        outputs: Tensor,
        targets: Tensor,
        *,
        mask: Tensor | None = None,
        sample_weight: Tensor | None = None,
        scores: Tensor | None = None,
        groups: Tensor | None = None,
    ) -> Tensor:
        """See `Criterion.forward`."""
        given: dict[str, Any] = {"mask": mask, "sample_weight": sample_weight}
        one_line = (self.level, self.within, self.nan_policy) == ("element", "batch", "propagate")
        if not one_line or scores is not None or groups is not None or ranks_of(self.process_group) is not None:
            return super().forward(outputs, targets, scores=scores, groups=groups, **given)
        return average_top_k_cross_entropy(
            outputs,
            targets,
            k=self.k,
            fraction=self.fraction,
            weight=self.weight,
            ignore_index=self.ignore_index,
            label_smoothing=self.label_smoothing,
            backend=self.backend,
            inplace=self.inplace,
            **given,
        )

    def _elements(self, outputs: Tensor, targets: Tensor, mask: Tensor | None, mass: Tensor | None) -> Elements:
        return cross_entropy_elements(
            outputs,
            targets,
            weight=self.weight,
            ignore_index=self.ignore_index,
            label_smoothing=self.label_smoothing,
            mask=mask,
            sample_weight=mass,
        )


def _check_backend(backend: str) -> None:
    """A word, and where it is "native" kernels that were built."""
    check_word("backend", backend, "auto", "torch", "native", way_out='To leave the choice to the machine pass "auto".')
    if backend == "native" and not native.is_available():
        raise ValueError(
            '`backend` must be "auto" or "torch" where the native kernels are missing; got "native". '
            "`topkloss doctor` says why they are; install from source with a C++ compiler."
        )


def _serves(backend: str, outputs: Tensor) -> bool:
    """Whether the kernels are called: not by vmap, torch.func and forward mode, which see through plain torch only."""
    if torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0 or outputs.numel() == 0:
        return False
    return backend != "auto" or native_serves(outputs)
