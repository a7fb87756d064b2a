"""The door to the rankings: checks what is to be ranked, and chooses who ranks it."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from topkloss.base.arguments import NanPolicy, check_nan_policy, check_tensors
from topkloss.base.tensors import memory_is_readable
from topkloss.kernels import native
from topkloss.ranking.groups import SortedGroups, native_groups, sample_numbers
from topkloss.ranking.native_ranking import native_ranking
from topkloss.ranking.ranking import Ranking, Rankings
from topkloss.ranking.tensor_ranking import tensor_ranking


def rank_all(
    losses: Tensor,
    *,
    mask: Tensor | None = None,
    sample_weight: Tensor | None = None,
    scores: Tensor | None = None,
    nan_policy: NanPolicy = "propagate",
) -> Ranking:
    """All that counts in one ranking; see `rank`."""
    check_tensors(losses, mask=mask, sample_weight=sample_weight, scores=scores)
    check_nan_policy(nan_policy)
    served = native.is_available() and memory_is_readable(losses, mask, sample_weight, scores)
    ranking = native_ranking if served else tensor_ranking
    return ranking(losses, mask=mask, sample_weight=sample_weight, scores=scores, nan_policy=nan_policy)


def rank(
    losses: Tensor,
    *,
    mask: Tensor | None = None,
    sample_weight: Tensor | None = None,
    scores: Tensor | None = None,
    groups: Tensor | None = None,
    by_sample: bool = False,
    nan_policy: NanPolicy = "propagate",
) -> Rankings:
    """What counts, ranked.

    Args:
        losses: Floating point, any shape except 0-dim.
        mask: Bool, shaped like `losses`; True = counts. None = all.
        sample_weight: Mass of each element, shaped like `losses`; 0 = not counted. None = 1 each.
        scores: What to rank by, shaped like `losses`; None = the losses.
        groups: Integers, shaped like `losses`: elements of one number are ranked among themselves.
        by_sample: Each sample, an index of the first dimension, is a group.
        nan_policy: See `topk_weights`.

    Raises:
        TypeError, ValueError: See `topk_threshold`.
    """
    if groups is None and not by_sample:
        return rank_all(losses, mask=mask, sample_weight=sample_weight, scores=scores, nan_policy=nan_policy)
    given: dict[str, Any] = {"mask": mask, "sample_weight": sample_weight, "scores": scores, "nan_policy": nan_policy}
    check_tensors(losses, mask=mask, sample_weight=sample_weight, scores=scores, groups=groups)
    check_nan_policy(nan_policy)
    if native.is_available() and memory_is_readable(losses, mask, sample_weight, scores, groups):
        rankings = native_groups(native_ranking(losses, **given), groups)
        if rankings is not None:
            return rankings
    return SortedGroups(tensor_ranking(losses, **given), sample_numbers(losses) if groups is None else groups)
