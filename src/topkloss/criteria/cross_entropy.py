"""Cross-entropy of the hardest elements, in the place of ``nn.CrossEntropyLoss``."""

from __future__ import annotations

from torch import Tensor

from topkloss.base.arguments import NanPolicy, check_class_weights, check_label_smoothing
from topkloss.base.processes import ProcessGroup
from topkloss.criteria.average import AverageTopKLoss
from topkloss.criteria.criterion import Level, Within
from topkloss.kernels.operators import Backend
from topkloss.losses.elements import Elements, check_backend, cross_entropy_elements

__all__ = ["AverageTopKCrossEntropyLoss"]


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
        backend, inplace: See `CrossEntropy`.

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
        check_backend(backend)
        self.register_buffer("weight", weight)  # here, as in nn.CrossEntropyLoss: so their checkpoints are the same
        self.ignore_index = ignore_index
        self.label_smoothing = label_smoothing
        self.backend: Backend = backend
        self.inplace = inplace

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
