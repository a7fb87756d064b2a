"""What the mining did, averaged over an epoch, from selections that were made anyway."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from topkloss.base.arguments import check_same_shape
from topkloss.base.processes import ProcessGroup, own_group, ranks_of
from topkloss.ranking.selection import Selection

__all__ = ["MiningStatistics", "Monitor"]


@dataclass(frozen=True)
class MiningStatistics:
    """What the mining did over some batches. Numbers are NaN where nothing was counted.

    Attributes:
        batches: How many batches counted something.
        value: Mean over these batches of what was minimised.
        average: Mean over all counted elements of the loss: what an unmined model would minimise.
        threshold: Mean over these batches of the loss from which an element was kept.
        kept: Share of the counted mass that was kept, in [0, 1].
        kept_of_class: Share of each class that was kept: 1 where all of its elements were kept.
        gradient_of_class: Share of each class in the weights, so in the gradient; they sum to 1.
        omitted: How many elements were left out as NaN.
    """

    batches: int
    value: float
    average: float
    threshold: float
    kept: float
    kept_of_class: list[float]
    gradient_of_class: list[float]
    omitted: int


class Monitor:
    """Adds up what selections say, on their device and without waiting for it, until `compute` is asked.

    Args:
        classes: How many classes to tell apart; 0 = none.
        process_group: That of the criterion: what all of them did is then added up, so each
            calls `update` for every batch, and `compute`.

    Example:
        >>> from topkloss import AverageTopKCrossEntropyLoss
        >>> criterion, monitor = AverageTopKCrossEntropyLoss(fraction=0.5), Monitor(classes=2)
        >>> outputs = torch.tensor([[2.0, 0.0], [0.0, 0.0], [0.0, 2.0], [0.0, 1.0]], requires_grad=True)
        >>> targets = torch.tensor([0, 0, 1, 1])
        >>> selection = criterion.select(outputs, targets)
        >>> selection.value.backward()  # the training step, as with criterion(outputs, targets)
        >>> monitor.update(selection, targets)
        >>> mined = monitor.compute()
        >>> round(mined.value, 4), round(mined.average, 4), mined.kept, mined.gradient_of_class
        (0.5032, 0.3151, 0.5, [0.5, 0.5])
    """

    def __init__(self, classes: int = 0, *, process_group: ProcessGroup | None = None) -> None:
        self.classes = classes
        self.process_group = own_group(process_group)
        self.reset()

    def reset(self) -> None:
        """Begins anew: a new epoch."""
        self._sums: Tensor | None = None
        self._of_classes: Tensor | None = None

    def update(self, selection: Selection, classes: Tensor | None = None) -> None:
        """Adds one batch.

        Args:
            selection: From ``criterion.select(...)`` or `topk_select`.
            classes: The class of each element, integers shaped like ``selection.weights``; what is not in [0, classes)
                is not told apart.

        Raises:
            ValueError: If the shapes differ.
        """
        if not isinstance(selection, Selection):
            raise TypeError(
                f"`selection` must be what a criterion selected; got {type(selection).__name__}. A part of a sum that "
                "returns one number, or has the weight 0, selects nothing: pass over it."
            )
        if self.classes and classes is not None:
            check_same_shape("selection.weights", selection.weights, "classes", classes)
        mass, kept = selection.mass, selection.mass * selection.kept
        total = mass.sum()
        ranks = ranks_of(self.process_group)
        counts = ((total if ranks is None else ranks.sum(total)) > 0).double()  # of all, if nothing of this process
        average = torch.where(total > 0, selection.average.double() * total, 0)
        batch = [
            counts,
            selection.value.detach() * counts,
            average,
            total,
            torch.where(counts > 0, selection.threshold, 0),
            kept.sum(),
        ]
        sums = torch.stack([*(number.double() for number in batch), selection.omitted.double()])
        self._sums = sums if self._sums is None else self._sums + sums
        if self.classes and classes is not None:
            classes = classes.long()  # in uint8 there is no class 300
            legal = (classes >= 0) & (classes < self.classes)
            place = torch.where(legal, classes, self.classes).flatten()
            weights = selection.weights.double()
            rows = [
                torch.zeros(self.classes + 1, dtype=torch.float64, device=place.device).scatter_add(
                    0, place, row.flatten()
                )
                for row in (mass, kept, weights)
            ]
            added = torch.stack(rows)[:, : self.classes]
            self._of_classes = added if self._of_classes is None else self._of_classes + added

    def compute(self) -> MiningStatistics:
        """What the mining did since the last reset."""
        nan = float("nan")
        sums = torch.zeros(7, dtype=torch.float64) if self._sums is None else self._sums
        of_classes = torch.zeros(3, self.classes, dtype=torch.float64) if self._of_classes is None else self._of_classes
        ranks = ranks_of(self.process_group)
        if ranks is not None:
            device = ranks.message_device()
            sums, of_classes = ranks.sum(sums.to(device)), ranks.sum(of_classes.to(device))
            sums[[0, 1, 4]] /= ranks.size  # these are of all in each process
        batches, value, average, total, threshold, kept, omitted = sums.tolist()
        mass_of, kept_of, weight_of = of_classes.tolist()
        weight = sum(weight_of)

        def ratio(part: float, whole: float) -> float:
            return part / whole if whole != 0 else nan

        return MiningStatistics(
            batches=int(batches),
            value=ratio(value, batches),
            average=ratio(average, total),
            threshold=ratio(threshold, batches),
            kept=ratio(kept, total),
            kept_of_class=[ratio(part, whole) for part, whole in zip(kept_of, mass_of, strict=True)],
            gradient_of_class=[ratio(part, weight) for part in weight_of],
            omitted=int(omitted),
        )
