"""Criteria: ``nn.Module`` = individual loss, then aggregate. They hold parameters and call functions."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, cast

from torch import Tensor, nn

from topkloss.base.arguments import NanPolicy, check_loss, check_nan_policy, check_tensors, check_word
from topkloss.base.processes import HeldGroup, ProcessGroup, Ranks, own_group, ranks_of
from topkloss.losses.elements import (
    CrossEntropy,
    ElementLoss,
    Elements,
    IndividualLoss,
    RegionLoss,
)
from topkloss.ranking.groups import sample_numbers
from topkloss.ranking.rank import rank
from topkloss.ranking.ranking import Rankings, Rule
from topkloss.ranking.selection import Selection, selection_of
from topkloss.ranking.tensor_ranking import TensorRanking, tensor_ranking

if TYPE_CHECKING:
    from topkloss.losses.foreign import ForeignLoss
    from topkloss.ranking.shared import SharedRanking

Level = Literal["element", "sample"]
Within = Literal["batch", "sample", "class"]

# What a criterion says of itself, in this order.
SHOWN = (
    *("k", "fraction", "drop", "drop_fraction", "threshold", "probability", "min_kept", "min_fraction", "ratio"),
    *("min_negatives", "smoothing", "weight", "ignore_index", "label_smoothing", "level", "within"),
)

# And of how it computes, where that is not as usual.
UNUSUAL = {"nan_policy": "propagate", "backend": "auto", "inplace": False}


class OfElements(nn.Module):
    """What every criterion is made of: the individual loss, what is ranked, and NaN.

    A loss that is no `ElementLoss` is taken to give each element a loss of its own outputs and target. Where a mask, a
    mass of 0, its ``ignore_index`` or ``nan_policy="omit"`` leaves elements out, outputs and targets there are replaced
    before it is computed: everywhere for torch's own losses; for others where they are not finite, are no class, or
    made a loss that is not finite, for which the loss is computed once more (on accelerators and under torch.compile
    always, the first time without gradient).

    Args:
        loss: Called as ``loss(outputs, targets)``; returns one number per element, not reduced: for a torch
            loss, ``nn.L1Loss(reduction="none")``. What it was made of holds, as read at each call: targets equal to its
            ``ignore_index`` are not counted; class weights of an ``nn.CrossEntropyLoss`` or ``nn.NLLLoss`` are masses,
            all other weights are part of the loss. An `ElementLoss`, like `CrossEntropy`, says itself what counts.
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
        check_word("level", level, "element", "sample", hint='To rank single losses pass "element".')
        check_nan_policy(nan_policy)
        self.loss = loss
        self.level = level
        self.nan_policy: NanPolicy = nan_policy
        self.process_group = process_group
        self._foreign = None if loss is None or isinstance(loss, ElementLoss) else foreign_loss(loss)

    @property
    def process_group(self) -> ProcessGroup | None:
        """The processes whose elements are ranked together; None = its own."""
        return cast("ProcessGroup | None", self._group.group)

    @process_group.setter
    def process_group(self, process_group: ProcessGroup | None) -> None:
        self._group = HeldGroup(own_group(process_group))

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
            elements = self._samples(outputs, targets, mask, sample_weight)
        if scores is not None:
            elements = elements._replace(scores=scores)
        ranked_by = self._scores(elements, targets)
        if ranked_by is not elements.scores:
            elements = elements._replace(scores=ranked_by)
        of_pixels = self.level == "element" and not isinstance(self.loss, RegionLoss)
        return elements._replace(scale=scale) if of_pixels and scale != 1.0 else elements

    def total(self, selection: Selection) -> Tensor:
        """The loss, of what `select` returned."""
        return selection.value

    def _elements(self, outputs: Tensor, targets: Tensor, mask: Tensor | None, mass: Tensor | None) -> Elements:
        """One loss per element, and what counts."""
        loss = self.loss  # once: a module looks for it each time
        if isinstance(loss, ElementLoss):
            elements: Elements = loss(outputs, targets, mask=mask, sample_weight=mass)
            return elements
        if loss is None:
            raise NotImplementedError(f"{type(self).__name__} has no `loss`, and must define `_elements`.")
        return self._foreign_elements(outputs, targets, mask, mass, None)

    def _samples(self, outputs: Tensor, targets: Tensor, mask: Tensor | None, mass: Tensor | None) -> Elements:
        """One loss per sample, and what counts."""
        if self.loss is None or isinstance(self.loss, ElementLoss):
            elements = self._elements(outputs, targets, mask, None)
        else:
            rows = None
            if isinstance(mass, Tensor) and isinstance(outputs, Tensor) and mass.shape == outputs.shape[:1]:
                rows = mass != 0
            elements = self._foreign_elements(outputs, targets, mask, None, rows)
        return elements.of_samples()._replace(sample_weight=mass)

    def _foreign_elements(
        self, outputs: Any, targets: Any, mask: Tensor | None, mass: Tensor | None, rows: Tensor | None
    ) -> Elements:
        """Those of a loss that knows nothing of masks; `rows`: which examples count, of those whose mass is known."""
        if self._foreign is None or self._foreign.loss is not self.loss:
            self._foreign = foreign_loss(self.loss)
        by_sample = "sample" in (self.level, getattr(self, "within", "batch"))
        given: dict[str, Any] = {"mask": mask, "sample_weight": mass, "rows": rows, "by_sample": by_sample}
        return self._foreign.elements(outputs, targets, **given, omit=self.nan_policy == "omit")

    def _of_cross_entropy(self) -> bool:
        """Whether its loss is a cross-entropy, this package's or torch's."""
        return isinstance(self.loss, CrossEntropy) or (self._foreign is not None and self._foreign.is_cross_entropy)

    def _scores(self, elements: Elements, targets: Tensor) -> Tensor | None:
        """What is ranked by; None = the losses."""
        return elements.scores

    def _rank_alone(self, elements: Elements, groups: Tensor | None) -> TensorRanking:
        """What counts in this process."""
        losses, mask, mass, scores = elements[:4]
        given = {"mask": mask, "sample_weight": mass, "scores": scores}
        check_tensors(losses, **given, groups=groups)
        return tensor_ranking(losses, **given, nan_policy=self.nan_policy)

    def _rank_together(
        self, work: Callable[[], tuple[Elements, Tensor | None]], ranks: Ranks, method: str
    ) -> tuple[Elements, SharedRanking]:
        """The elements of this process, and what counts on all of them: all ask for the same, or all raise.

        Args:
            work: Returns the elements and their groups, here.
            ranks: The processes.
            method: What was called, for the error.
        """
        from topkloss.ranking.shared import SharedRanking  # only here: most programs are one process

        def alone() -> tuple[Elements, Tensor | None, TensorRanking]:
            elements, groups = work()
            return elements, groups, self._rank_alone(elements, groups)

        def request(done: tuple[Elements, Tensor | None, TensorRanking]) -> str:
            elements, groups, ranking = done
            scores = "" if elements.scores is None else f" ranked by scores of {ranking.scores.dtype}"
            in_groups = "" if groups is None else " in groups"
            return f"{self._request(elements, method)} of {elements.losses.dtype}{scores}{in_groups}"

        elements, groups, ranking = ranks.together(alone, request)
        return elements, SharedRanking(ranking, groups, ranks)

    def _request(self, elements: Elements, method: str) -> str:
        """What is asked, in words."""
        scale = "" if elements.scale == 1.0 else f" at the scale {elements.scale:g}"
        loss = f", loss={self.loss}" if isinstance(self.loss, ElementLoss) else ""
        return f'{type(self).__name__}({self._asked()}, nan_policy="{self.nan_policy}"{loss}).{method}{scale}'

    def extra_repr(self) -> str:
        """Parameters as they were given; a loss that is a module follows by itself."""
        shown = [] if self.process_group is None else [f"process_group={self._group}"]
        for name, usual in UNUSUAL.items():
            if getattr(self, name, usual) != usual:
                shown.append(f"{name}={getattr(self, name)!r}")
        return ", ".join([*filter(None, [self._asked()]), *shown])

    def _asked(self) -> str:
        """What decides the value, the same on all processes."""
        given = {name: value for name, value in vars(self).items() if name in SHOWN and value is not None}
        if isinstance(self._buffers.get("weight"), Tensor):
            given["weight"] = tuple(self._buffers["weight"].shape)  # type: ignore[union-attr]
        return ", ".join(f"{name}={given[name]!r}" for name in SHOWN if name in given)


def foreign_loss(loss: Any) -> ForeignLoss:
    """What there is to know of a loss that is no `ElementLoss`."""
    from topkloss.losses.foreign import ForeignLoss  # only here: what is imported at once is to be light

    return ForeignLoss(loss)


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
        check_word("within", within, "batch", "sample", "class", hint='To rank all together pass "batch".')
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
        elements, rankings = self._rank(partial(self.elements, outputs, targets, **given), groups, "forward")
        return rankings.dot(rankings.by(self._rule(elements.scale)), elements.losses)

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
        """What the criterion selects of this batch; ``select(...).value`` is the loss, to call ``backward()`` on.

        Args:
            outputs, targets, mask, sample_weight, scores, groups: See `forward`.
            scale: See `elements`.
        """
        given: dict[str, Any] = {"mask": mask, "sample_weight": sample_weight, "scores": scores, "scale": scale}
        return self._selection(partial(self.elements, outputs, targets, **given), groups)

    def select_elements(self, elements: Elements, *, groups: Tensor | None = None) -> Selection:
        """What the criterion selects of `elements`, whose parts may have been computed one after the other."""
        return self._selection(lambda: elements, groups)

    def _selection(self, elements: Callable[[], Elements], groups: Tensor | None) -> Selection:
        made, rankings = self._rank(elements, groups, "select")
        return selection_of(rankings, made.losses, rankings.by(self._rule(made.scale)))

    def _rule(self, scale: float) -> Rule:
        """Which interval of a ranking weighs, where counts of pixels are taken times a scale."""
        raise NotImplementedError

    def _rank(self, elements: Callable[[], Elements], groups: Tensor | None, method: str) -> tuple[Elements, Rankings]:
        """The elements, and what counts of them, ranked: here, or on all processes."""
        ranks = ranks_of(self.process_group)
        if ranks is not None:

            def work() -> tuple[Elements, Tensor | None]:
                made = elements()
                own = self._groups(made, groups)
                if self.within == "sample":  # no two processes share a sample
                    own = sample_numbers(made.losses) * ranks.size + ranks.rank
                return made, own

            return self._rank_together(work, ranks, method)
        made = elements()
        losses, mask, mass, scores = made[:4]
        given: dict[str, Any] = {"mask": mask, "sample_weight": mass, "scores": scores, "nan_policy": self.nan_policy}
        return made, rank(losses, **given, groups=self._groups(made, groups), by_sample=self.within == "sample")

    def _groups(self, elements: Elements, groups: Tensor | None) -> Tensor | None:
        """Among what each element is ranked; None = all, or those of its sample."""
        if self.within == "batch":
            return groups
        if groups is not None:
            raise ValueError(f'`groups` must not be given beside within="{self.within}"; got both. Leave one out.')
        return elements.own_classes() if self.within == "class" else None
