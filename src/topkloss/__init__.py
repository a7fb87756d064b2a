"""The average top-k loss and its kin: exact, never NaN by itself, one line to adopt."""

from topkloss.aggregate import average, average_ranked_range, average_top_k, maximum
from topkloss.criterion import AverageRankedRangeLoss, AverageTopKCrossEntropyLoss, AverageTopKLoss
from topkloss.selection import Selection, topk_select, topk_threshold, topk_weights

__all__ = [
    "AverageRankedRangeLoss",
    "AverageTopKCrossEntropyLoss",
    "AverageTopKLoss",
    "Selection",
    "average",
    "average_ranked_range",
    "average_top_k",
    "maximum",
    "topk_select",
    "topk_threshold",
    "topk_weights",
]
__version__ = "0.1.0"
