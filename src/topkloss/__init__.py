"""The average top-k loss and its kin: exact, never NaN by itself, one line to adopt."""

from topkloss.aggregate import (
    average,
    average_above,
    average_hard_negatives,
    average_ranked_range,
    average_top_k,
    kth_largest,
    maximum,
)
from topkloss.compound import CompoundLoss, DeepSupervisionLoss
from topkloss.criterion import (
    AverageRankedRangeLoss,
    AverageTopKCrossEntropyLoss,
    AverageTopKLoss,
)
from topkloss.elements import CrossEntropy, ElementLoss, Elements, RegionLoss
from topkloss.mining import HardNegativeLoss, OHEMLoss
from topkloss.monitor import Mined, Monitor
from topkloss.selection import Selection, topk_select, topk_threshold, topk_weights
from topkloss.soft import DualAverageTopKLoss, average_top_k_dual, tilted

__all__ = [
    "AverageRankedRangeLoss",
    "AverageTopKCrossEntropyLoss",
    "AverageTopKLoss",
    "CompoundLoss",
    "CrossEntropy",
    "DeepSupervisionLoss",
    "DualAverageTopKLoss",
    "ElementLoss",
    "Elements",
    "HardNegativeLoss",
    "Mined",
    "Monitor",
    "OHEMLoss",
    "RegionLoss",
    "Selection",
    "average",
    "average_above",
    "average_hard_negatives",
    "average_ranked_range",
    "average_top_k",
    "average_top_k_dual",
    "kth_largest",
    "maximum",
    "tilted",
    "topk_select",
    "topk_threshold",
    "topk_weights",
]
__version__ = "0.1.0"
