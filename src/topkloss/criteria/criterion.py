"""Criteria: ``nn.Module`` = individual loss, then aggregate. They hold parameters and call functions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from torch import Tensor, nn

from topkloss.base.arguments import (
    NanPolicy,
    check_drop,
    check_k,
    check_loss,
    check_nan_policy,
    check_word,
)
from topkloss.base.processes import ProcessGroup, Ranks, check_process_group, ranks_of
from topkloss.base.tensors import Scalar
from topkloss.losses.elements import ElementLoss, Elements, IndividualLoss, RegionLoss, scaled
from topkloss.ranking.ranking import Counted, Line, Prepare, count_together
from topkloss.ranking.selection import Selection, ranked_weights, selection_of, value_of
from topkloss.ranking.stretch import Weights

__all__ = ["AverageRankedRangeLoss", "AverageTopKLoss"]

Level = Literal["element", "sample"]
Within = Literal["batch", "sample", "class"]

# What a criterion says of itself, in this order.
SHOWN = (
    *("k", "fraction", "drop", "drop_fraction", "threshold", "min_kept", "min_fraction", "ratio", "min_negatives"),
    *("smoothing", "weight", "ignore_index", "label_smoothing", "level", "within"),
)


class OfElements(nn.Module):
    """What every criterion is made of: the individual loss, what is ranked, and NaN.

    Args:
        loss: Called as ``loss(outputs, targets)``; returns one number per element, not reduced: for a torch
            loss, ``nn.L1Loss(reduction="none")``. It sees masked elements too: outputs there must be finite and
            targets legal. An `ElementLoss`, like `CrossEntropy`, knows what counts, and has no such limits.
        level: What is ranked: "element", each loss by itself, or "sample", the mean of each sample's counted
            losses (the first dimension is the batch).
        nan_policy: See `topk_weights`.
        process_group: The processes whose elements are ranked together: a group, a one-dimensional device mesh, or
            `WORLD` for all. The value is then the same on each, and the gradients are those of one process once they
            are averaged over the group, as ``DistributedDataParallel`` and ``fully_shard`` do. None = its own.
    """

    def __init__(
        self,
        loss: IndividualLoss | None,
        *,
        level: Level,
        nan_policy: NanPolicy,
        process_group: ProcessGroup | None = None,
    ) -> None:
        super().__init__()
        check_loss(loss)
        check_word("level", level, "element", "sample", way_out='To rank single losses pass "element".')
        check_nan_policy(nan_policy)
        check_process_group(process_group)
        self.loss = loss
        self.level = level
        self.nan_policy: NanPolicy = nan_policy
        self.process_group = process_group

    def elements(
        self,
        outputs: Tensor,
        targets: Tensor,
        *,
        mask: Tensor | None = None,
        sample_weight: Tensor | None = None,
        scores: Tensor | None = None,
        scale: float = 1.0,
    ) -> Elements:
        """What is ranked, before anything is: of a batch, or of a part that is joined with others before it is ranked.

        Args:
            outputs, targets, mask, sample_weight, scores: See `Criterion.forward`.
            scale: Factor on what is asked as a count of pixels (`k`, `drop`, `min_kept`): that of a coarser resolution.
                The numbers of samples and of regions do not change with it.
        """
        if self.level == "element":
            elements = self._elements(outputs, targets, mask, sample_weight)
        else:
            elements = self._elements(outputs, targets, mask, None).of_samples()._replace(sample_weight=sample_weight)
        if scores is not None:
            elements = elements._replace(scores=scores)
        of_pixels = self.level == "element" and not isinstance(self.loss, RegionLoss)
        return elements._replace(scores=self._scores(elements, targets), scale=scale if of_pixels else 1.0)

    def total(self, selection: Selection) -> Tensor:
        """The loss, of what `select` returned."""
        return selection.value

    def _elements(self, outputs: Tensor, targets: Tensor, mask: Tensor | None, mass: Tensor | None) -> Elements:
        """One loss per element, and what counts."""
        if isinstance(self.loss, ElementLoss):
            elements = self.loss(outputs, targets, mask=mask, sample_weight=mass)
            assert isinstance(elements, Elements)
            return elements
        assert self.loss is not None
        return Elements(self.loss(outputs, targets), mask, mass, classes=targets)

    def _scores(self, elements: Elements, targets: Tensor) -> Tensor | None:
        """What is ranked by; None = the losses."""
        return elements.scores

    def _count(self, prepare: Prepare, method: str) -> tuple[Elements, Counted | Line]:
        """The elements, and how they count; see `count_together`."""

        def request(elements: Elements) -> str:
            scale = "" if elements.scale == 1.0 else f" at the scale {elements.scale:g}"
            loss = f", loss={self.loss}" if isinstance(self.loss, ElementLoss) else ""
            return f'{type(self).__name__}({self.extra_repr()}, nan_policy="{self.nan_policy}"{loss}).{method}{scale}'

        return count_together(prepare, ranks_of(self.process_group), request=request, nan_policy=self.nan_policy)

    def extra_repr(self) -> str:
        """Parameters as they were given; a loss that is a module follows by itself."""
        given = {name: value for name, value in vars(self).items() if name in SHOWN and value is not None}
        if isinstance(self._buffers.get("weight"), Tensor):
            given["weight"] = tuple(self._buffers["weight"].shape)  # type: ignore[union-attr]
        return ", ".join(f"{name}={given[name]!r}" for name in SHOWN if name in given)


class Criterion(OfElements):
    """A criterion that selects: what is ranked among what, by a rule that each one states.

    Args:
        loss, level, nan_policy: See `OfElements`.
        within: Among what: all elements of the "batch", those of each "sample", or those of each "class" of the
            targets. The value is the plain mean over the samples or classes that count something.
    """

    def __init__(
        self,
        loss: IndividualLoss | None,
        *,
        level: Level,
        within: Within,
        nan_policy: NanPolicy,
        process_group: ProcessGroup | None = None,
    ) -> None:
        super().__init__(loss, level=level, nan_policy=nan_policy, process_group=process_group)
        check_word("within", within, "batch", "sample", "class", way_out='To rank all together pass "batch".')
        if level == "sample" and within != "batch":
            raise ValueError(
                f'`within` must be "batch" at level="sample"; got {within!r}. To rank the elements of each sample '
                'pass level="element".'
            )
        self.within = within

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
        """The aggregate of this batch.

        Args:
            outputs, targets: What the loss takes.
            mask: Bool, shaped like the losses (for a region loss, like the targets); True = counts.
            sample_weight: Mass of what is ranked: shaped like the losses, or (N,) for ``level="sample"``.
            scores: What to rank by instead of the losses; shaped like `sample_weight`.
            groups: Integers shaped like the losses, instead of `within`: see `average_top_k`. Equal numbers on several
                processes are one group.

        Returns:
            See `average_top_k`.
        """
        given: dict[str, Any] = {"mask": mask, "sample_weight": sample_weight, "scores": scores}
        elements, counted = self._counted(lambda: self.elements(outputs, targets, **given), groups, "forward")
        return value_of(counted, self._weights(counted, elements.scale)[0], elements.losses)

    def select(
        self,
        outputs: Tensor,
        targets: Tensor,
        *,
        mask: Tensor | None = None,
        sample_weight: Tensor | None = None,
        scores: Tensor | None = None,
        groups: Tensor | None = None,
        scale: float = 1.0,
    ) -> Selection:
        """The same with all that a monitor reads; ``select(...).value`` is the loss, to call ``backward()`` on.

        Args:
            outputs, targets, mask, sample_weight, scores, groups: See `forward`.
            scale: See `elements`.
        """
        given: dict[str, Any] = {"mask": mask, "sample_weight": sample_weight, "scores": scores, "scale": scale}
        return self._selection(lambda: self.elements(outputs, targets, **given), groups)

    def select_elements(self, elements: Elements, *, groups: Tensor | None = None) -> Selection:
        """The same of what `elements` returned, whose parts may have been computed one after the other."""
        return self._selection(lambda: elements, groups)

    def _selection(self, elements: Callable[[], Elements], groups: Tensor | None) -> Selection:
        made, counted = self._counted(elements, groups, "select")
        return selection_of(counted, made.losses, *self._weights(counted, made.scale))

    def _weights(self, counted: Counted | Line, scale: float) -> tuple[Weights, Scalar]:
        """The rule: weights, and the lowest score chosen."""
        raise NotImplementedError

    def _counted(
        self, elements: Callable[[], Elements], groups: Tensor | None, method: str
    ) -> tuple[Elements, Counted | Line]:
        """What is ranked, and how it counts in its groups."""

        def prepare(ranks: Ranks | None) -> tuple[Elements, Tensor | None]:
            made = elements()
            return made, self._groups(made, groups, ranks)

        return self._count(prepare, method)

    def _groups(self, elements: Elements, groups: Tensor | None, ranks: Ranks | None) -> Tensor | None:
        """Among what each element is ranked; None = all."""
        if self.within == "batch":
            return groups
        if groups is not None:
            raise ValueError(f'`groups` must not be given beside within="{self.within}"; got both. Leave one out.')
        if self.within == "class":
            return elements.own_classes()
        samples = elements.samples()
        return samples if ranks is None else samples * ranks.size + ranks.rank  # no two processes share a sample


class AverageTopKLoss(Criterion):
    """The average top-k of any loss that returns one number per element. See `average_top_k`.

    Args:
        loss, level, within, nan_policy, process_group: See `Criterion`.
        k: Mass of the elements averaged, k > 0, real; of each sample or class, where `within` says so.
        fraction: `k` as a share of the counted mass, 0 < fraction <= 1. Exactly one of the two.

    Example:
        >>> criterion = AverageTopKLoss(nn.L1Loss(reduction="none"), fraction=0.5)
        >>> criterion(torch.tensor([1.0, 2.0, 3.0, 9.0]), torch.zeros(4))
        tensor(6.)
    """

    def __init__(
        self,
        loss: IndividualLoss | None,
        *,
        k: float | None = None,
        fraction: float | None = None,
        level: Level = "element",
        within: Within = "batch",
        nan_policy: NanPolicy = "propagate",
        process_group: ProcessGroup | None = None,
    ) -> None:
        super().__init__(loss, level=level, within=within, nan_policy=nan_policy, process_group=process_group)
        check_k(k, fraction)
        self.k = k
        self.fraction = fraction

    def _weights(self, counted: Counted | Line, scale: float) -> tuple[Weights, Scalar]:
        return ranked_weights(counted, k=scaled(self.k, scale), fraction=self.fraction)


class AverageRankedRangeLoss(Criterion):
    """The average of a ranked range of any per-element loss: hard, but not outliers. See `average_ranked_range`.

    Args:
        loss, level, within, nan_policy, process_group: See `Criterion`.
        k: Mass of the elements averaged after dropping, k > 0, real.
        fraction: `k` as a share of the counted mass, 0 < fraction <= 1. Exactly one of the two.
        drop: Mass of the largest left out first, >= 0, real.
        drop_fraction: `drop` as a share of the counted mass, 0 <= drop_fraction < 1. Exactly one of the two.

    Example:
        >>> criterion = AverageRankedRangeLoss(nn.L1Loss(reduction="none"), k=2, drop=1)
        >>> criterion(torch.tensor([1.0, 2.0, 3.0, 900.0]), torch.zeros(4))
        tensor(2.5000)
    """

    def __init__(
        self,
        loss: IndividualLoss,
        *,
        k: float | None = None,
        fraction: float | None = None,
        drop: float | None = None,
        drop_fraction: float | None = None,
        level: Level = "element",
        within: Within = "batch",
        nan_policy: NanPolicy = "propagate",
        process_group: ProcessGroup | None = None,
    ) -> None:
        super().__init__(loss, level=level, within=within, nan_policy=nan_policy, process_group=process_group)
        check_k(k, fraction)
        check_drop(drop, drop_fraction, required=True)
        self.k = k
        self.fraction = fraction
        self.drop = drop
        self.drop_fraction = drop_fraction

    def _weights(self, counted: Counted | Line, scale: float) -> tuple[Weights, Scalar]:
        k, drop = scaled(self.k, scale), scaled(self.drop, scale)
        return ranked_weights(counted, k=k, fraction=self.fraction, drop=drop, drop_fraction=self.drop_fraction)
