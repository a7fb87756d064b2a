"""The average top-k loss and its kin: exact, never NaN by itself, one line to adopt."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the rooms, and the names of _MODULES, for type checkers and editors
    from topkloss import aggregates as aggregates
    from topkloss import base as base
    from topkloss import criteria as criteria
    from topkloss import kernels as kernels
    from topkloss import loop as loop
    from topkloss import losses as losses
    from topkloss import ranking as ranking
    from topkloss.aggregates.average import (
        average,
        average_above,
        average_hard_negatives,
        average_ranked_range,
        average_top_k,
        kth_largest,
        maximum,
    )
    from topkloss.aggregates.cross_entropy import average_top_k_cross_entropy
    from topkloss.aggregates.dual import average_tilted, average_top_k_dual
    from topkloss.base.processes import WORLD, DistributedError
    from topkloss.criteria.average import AverageRankedRangeLoss, AverageTopKLoss
    from topkloss.criteria.compound import CompoundLoss, DeepSupervisionLoss
    from topkloss.criteria.cross_entropy import AverageTopKCrossEntropyLoss
    from topkloss.criteria.dual import DualAverageTopKLoss
    from topkloss.criteria.mining import HardNegativeLoss, OHEMLoss
    from topkloss.loop.monitor import MiningStatistics, Monitor
    from topkloss.loop.schedule import AccuracyFraction, ConstantFraction, CosineFraction, LinearFraction
    from topkloss.loop.selective import SelectiveStep, StepResult
    from topkloss.losses.elements import CrossEntropy, ElementLoss, Elements, RegionLoss
    from topkloss.ranking.selection import Selection, topk_select, topk_threshold, topk_weights

# The modules whose own `__all__` is public here. They load torch, so they wait until the first name is used: the
# command says its version, its help and a report without it.
_MODULES = (
    "topkloss.aggregates.average",
    "topkloss.aggregates.cross_entropy",
    "topkloss.aggregates.dual",
    "topkloss.base.processes",
    "topkloss.criteria.average",
    "topkloss.criteria.compound",
    "topkloss.criteria.cross_entropy",
    "topkloss.criteria.dual",
    "topkloss.criteria.mining",
    "topkloss.loop.monitor",
    "topkloss.loop.schedule",
    "topkloss.loop.selective",
    "topkloss.losses.elements",
    "topkloss.ranking.selection",
)
_ROOMS = frozenset({"aggregates", "base", "criteria", "kernels", "loop", "losses", "ranking"})

__all__ = [
    "WORLD",
    "AccuracyFraction",
    "AverageRankedRangeLoss",
    "AverageTopKCrossEntropyLoss",
    "AverageTopKLoss",
    "CompoundLoss",
    "ConstantFraction",
    "CosineFraction",
    "CrossEntropy",
    "DeepSupervisionLoss",
    "DistributedError",
    "DualAverageTopKLoss",
    "ElementLoss",
    "Elements",
    "HardNegativeLoss",
    "LinearFraction",
    "MiningStatistics",
    "Monitor",
    "OHEMLoss",
    "RegionLoss",
    "Selection",
    "SelectiveStep",
    "StepResult",
    "average",
    "average_above",
    "average_hard_negatives",
    "average_ranked_range",
    "average_tilted",
    "average_top_k",
    "average_top_k_cross_entropy",
    "average_top_k_dual",
    "kth_largest",
    "maximum",
    "topk_select",
    "topk_threshold",
    "topk_weights",
]
__version__ = "0.1.0"

if not TYPE_CHECKING:  # a type checker would take every other name for known, too

    def __getattr__(name: str) -> Any:
        """A public name or a room, when it is first used: all of `_MODULES` are loaded then."""
        if name not in __all__ and name not in _ROOMS:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        for module in map(importlib.import_module, _MODULES):
            globals().update({public: getattr(module, public) for public in module.__all__})
        return globals()[name]


def __dir__() -> list[str]:
    """What `dir` says, whether or not anything has been loaded."""
    return sorted({*globals(), *__all__, *_ROOMS})
