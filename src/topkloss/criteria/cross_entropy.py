"""Cross-entropy of the hardest elements, in the place of ``nn.CrossEntropyLoss``."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from topkloss.base.arguments import ClassWeights, NanPolicy, check_label_smoothing, check_word, class_weights
from topkloss.base.processes import ProcessGroup
from topkloss.criteria.average import AverageTopKLoss
from topkloss.criteria.criterion import Level, Within
from topkloss.kernels.operators import Backend
from topkloss.losses.elements import Elements, check_backend, cross_entropy_elements

__all__ = ["AverageTopKCrossEntropyLoss"]


class AverageTopKCrossEntropyLoss(AverageTopKLoss, nn.CrossEntropyLoss):
    """Cross-entropy of the hardest elements, in the place of ``nn.CrossEntropyLoss``. See `average_top_k`.

    At ``fraction=1`` it *is* ``nn.CrossEntropyLoss``: class weights and label smoothing included (but for classes of
    weight 0 under smoothing: torch adds the smoothed part of elements that it does not count). The ranking is by
    the unweighted, unsmoothed loss, since mining elements is not mining classes, and smoothing makes
    confidently right elements look hard; a class weight is the mass of the elements of that class, so `k` and
    `fraction` count it. An element that is ignored, or whose class has weight 0, is not counted at all.

    It is an ``nn.CrossEntropyLoss`` to whoever asks by ``isinstance``, and takes the same targets: class indices or
    probabilities, see `topkloss.losses.cross_entropy`.

    Args:
        k: Mass of the elements averaged, k > 0, real; of each sample or class, where `within` says so.
        fraction: `k` as a share of the counted mass, 0 < fraction <= 1. Exactly one of the two.
        weight, ignore_index, label_smoothing: See `CrossEntropy`.
        level, nan_policy, process_group: See `OfElements`.
        within: See `Criterion`.
        backend, inplace: See `CrossEntropy`.
        reduction: "mean", what is selected; or "none": a call returns the loss of each element as torch does, times its
            class weight, 0 where ignored or masked, and nothing is selected or ranked. It may be set later, as some
            frameworks do to see single losses; `select` and sums of criteria do not look at it.

    Example:
        >>> criterion = AverageTopKCrossEntropyLoss(fraction=0.5)
        >>> outputs = torch.tensor([[3.0, 0.0], [0.0, 0.0], [0.0, 2.0], [0.0, 9.0]])
        >>> criterion(outputs, torch.tensor([0, 0, 0, -100]))  # 1.5 of the 3 labelled ones
        tensor(1.6490)
        >>> criterion.reduction = "none"
        >>> criterion(outputs, torch.tensor([0, 0, 0, -100]))
        tensor([0.0486, 0.6931, 2.1269, 0.0000])
    """

    weight: Tensor | None

    def __init__(
        self,
        *,
        k: float | None = None,
        fraction: float | None = None,
        weight: ClassWeights | None = None,
        ignore_index: int = -100,
        label_smoothing: float = 0.0,
        level: Level = "element",
        within: Within = "batch",
        nan_policy: NanPolicy = "propagate",
        process_group: ProcessGroup | None = None,
        backend: Backend = "auto",
        inplace: bool = False,
        reduction: Literal["mean", "none"] = "mean",
    ) -> None:
        super().__init__(
            None, k=k, fraction=fraction, level=level, within=within, nan_policy=nan_policy, process_group=process_group
        )
        check_label_smoothing(label_smoothing)
        check_backend(backend)
        _check_reduction(reduction)
        # Here, as in nn.CrossEntropyLoss: so their checkpoints are the same.
        self.register_buffer("weight", class_weights(weight))
        self.ignore_index = ignore_index
        self.label_smoothing = label_smoothing
        self.backend: Backend = backend
        self.inplace = inplace
        self.reduction = reduction

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
        """See `Criterion.forward`; with ``reduction="none"`` the losses, times class weight and `sample_weight`."""
        _check_reduction(self.reduction)
        if self.reduction == "mean":
            given = {"mask": mask, "sample_weight": sample_weight, "scores": scores, "groups": groups}
            return super().forward(outputs, targets, **given)
        losses, _, mass, *_ = self._elements(outputs, targets, mask, sample_weight)
        losses = losses if mass is None else losses * mass.masked_fill(losses == 0, 0).to(losses.dtype)
        return losses if outputs.dim() > 1 else losses[0]

    def extra_repr(self) -> str:
        """Parameters as they were given."""
        return super().extra_repr() + ("" if self.reduction == "mean" else f", reduction={self.reduction!r}")

    def _elements(self, outputs: Tensor, targets: Tensor, mask: Tensor | None, mass: Tensor | None) -> Elements:
        return cross_entropy_elements(
            outputs,
            targets,
            weight=self.weight,
            ignore_index=self.ignore_index,
            label_smoothing=self.label_smoothing,
            mask=mask,
            sample_weight=mass,
            backend=self.backend,
            inplace=self.inplace,
        )


def _check_reduction(reduction: str) -> None:
    hint = 'For the sum pass "mean" and multiply the loss by k.'
    check_word("reduction", reduction, "mean", "none", hint=hint)
