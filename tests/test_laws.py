"""Every law of every public aggregate and criterion, on every way to the threshold; and each omission's reason."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import topkloss
from tests.laws import LAWS, Batch, Law, Subject, batches
from tests.subjects import OMISSIONS, SUBJECTS
from topkloss.aggregates import average as aggregate
from topkloss.aggregates import dual
from topkloss.base.arguments import check_nan_policy, check_tensors
from topkloss.base.processes import Ranks
from topkloss.criteria import criterion
from topkloss.criteria.criterion import OfElements
from topkloss.ranking import groups, rank, tensor_ranking, threshold
from topkloss.ranking.shared import SharedRanking
from topkloss.ranking.threshold import KthLargest

WAYS = ["native", "native, groups by sorting", "composed", "pivots", "bisection", "sorting", "ranks"]


class OneRank(Ranks):
    """A process group of one: what is added up is there already."""

    def __init__(self) -> None:
        self.size, self.rank = 1, 0

    def _reduce(self, numbers: Tensor, how: object) -> Tensor:
        return numbers.detach().clone()

    def union(self, numbers: Tensor) -> Tensor:
        return torch.unique(numbers)  # type: ignore[no-any-return,no-untyped-call]


def among_ranks(
    losses: Tensor, *, groups: Tensor | None = None, by_sample: bool = False, **given: Any
) -> SharedRanking:
    """What counts, as if on several processes."""
    check_tensors(losses, **{name: given.get(name) for name in ("mask", "sample_weight", "scores")}, groups=groups)
    check_nan_policy(given["nan_policy"])
    return SharedRanking(tensor_ranking.tensor_ranking(losses, **given), groups, OneRank())


@contextlib.contextmanager
def way(name: str) -> Iterator[None]:
    """Inside, every threshold is found in the way named; but for the native ones, torch's operations weigh."""

    def by(find):  # type: ignore[no-untyped-def]
        def kth(scores: Tensor, mass: Tensor | None, wanted: Tensor) -> KthLargest:
            scores, mass = scores.reshape(-1), None if mass is None else mass.reshape(-1)
            return threshold._around(find(scores, mass, wanted * (1 - threshold.SLACK)), scores, mass)

        return kth

    with contextlib.ExitStack() as stack:

        def patch(*what: Any) -> None:
            stack.enter_context(mock.patch.object(*what))

        if name == "native":  # where it was built
            patch(groups, "LONG", 1)  # for groups as short as there are here
        elif name == "ranks":
            patch(aggregate, "rank", among_ranks)
            patch(criterion, "rank", among_ranks)
        elif name != "native, groups by sorting":
            patch(rank, "native", mock.Mock(is_available=lambda: False))
        if name == "pivots":  # on as few elements as there are here
            patch(threshold, "SMALL", 2)
            patch(threshold, "native", mock.Mock(is_available=lambda: False))
        elif name in ("bisection", "sorting"):
            patch(tensor_ranking, "kth_largest", by(getattr(threshold, f"_by_{name}")))
        yield


def omitted(subject: Subject) -> set[str]:
    return {omission.law for omission in OMISSIONS.get(subject.name, [])}


OBEYED = [
    pytest.param(subject, law, id=f"{subject.name}-{name}")
    for subject in SUBJECTS
    for name, law in LAWS.items()
    if name not in omitted(subject)
]


@pytest.mark.parametrize(("subject", "law"), OBEYED)
def test_law(subject: Subject, law: Law) -> None:
    @given(batch=batches(positive=subject.positive), name=st.sampled_from(WAYS))
    def holds(batch: Batch, name: str) -> None:
        with way(name):
            law(subject, batch)

    holds()


@pytest.mark.parametrize(
    ("subject", "omission"),
    [
        pytest.param(subject, omission, id=f"{subject.name}-{omission.law}")
        for subject in SUBJECTS
        for omission in OMISSIONS.get(subject.name, [])
    ],
)
def test_an_omitted_law_fails_on_its_counterexample(subject: Subject, omission) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(AssertionError):
        LAWS[omission.law](subject, omission.batch)


def test_every_public_aggregate_and_criterion_is_on_trial() -> None:
    names = {subject.name.split()[0] for subject in SUBJECTS}
    aggregates = {*aggregate.__all__, *dual.__all__}
    public = {name: getattr(topkloss, name) for name in topkloss.__all__}
    criteria = {name for name, one in public.items() if isinstance(one, type) and issubclass(one, OfElements)}
    assert names == aggregates | criteria
    assert aggregates < set(topkloss.__all__)


def test_a_thorough_run_draws_a_hundred_thousand_batches() -> None:
    assert len(OBEYED) * settings.get_profile("thorough").max_examples >= 100_000


def test_only_known_laws_are_omitted() -> None:
    assert {omission.law for omissions in OMISSIONS.values() for omission in omissions} <= set(LAWS)
    assert set(OMISSIONS) <= {subject.name for subject in SUBJECTS}


@settings(max_examples=1)
@given(batch=batches())
def test_batches_can_be_drawn(batch: Batch) -> None:
    assert batch.losses.shape == batch.other.shape
