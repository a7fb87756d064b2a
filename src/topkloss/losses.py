"""Individual losses: one number per element, never reduced.

A loss that torch already has unreduced (``F.mse_loss(..., reduction="none")``, ``F.l1_loss``, ...) is used as it
is. What is here is what torch's own form does not give: a cross-entropy whose uncounted elements never matter,
and whose class weights are mass rather than part of the loss.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from topkloss.arguments import check_beside
from topkloss.tensors import computing_dtype, values_are_readable

__all__ = ["cross_entropy"]


def cross_entropy(
    outputs: Tensor,
    targets: Tensor,
    *,
    mask: Tensor | None = None,
    weight: Tensor | None = None,
    label_smoothing: float = 0.0,
) -> tuple[Tensor, Tensor]:
    r"""Cross-entropy of each element and the score to rank it by: the same without smoothing and class weights.

    .. math:: \ell = -(1 - \epsilon) \log p_y - \frac{\epsilon}{C} \sum_c \frac{w_c}{w_y} \log p_c, \qquad
        \mathrm{score} = -\log p_y, \qquad p = \mathrm{softmax}(\mathrm{outputs})

    so that :math:`w_y \ell` is torch's own weighted loss of the element: the class weight of the target is its mass.
    A confidently right element has a *large* smoothed loss; ranking by the score keeps it out of the hardest.

    Args:
        outputs: Logits, shape (N, C) or (N, C, d1, ...), floating point. Half precision is computed in float32.
        targets: Class indices in [0, C), shape (N,) or (N, d1, ...), any integer type.
        mask: Bool, shaped like `targets`; True = counts. Outputs and targets elsewhere never matter, NaN and
            illegal classes included, and get no gradient from what counts. Default: all count.
        weight: Class weights w, shape (C,), non-negative.
        label_smoothing: Share of the target spread evenly over the classes, in [0, 1].

    Returns:
        Losses and scores in nats, both shaped like `targets`, float64 for float64 input and float32 otherwise; the
        scores carry no gradient.

    Raises:
        TypeError: If `targets` are not integers, or `outputs` not floating point.
        ValueError: If shapes do not fit, or a readable counted target is not in [0, C). Where values cannot be read
            without waiting (accelerators, torch.compile) the loss of such an element is NaN.

    Example:
        >>> outputs = torch.tensor([[2.0, 0.0], [0.0, 0.0]])
        >>> cross_entropy(outputs, torch.tensor([0, 1]))[0]
        tensor([0.1269, 0.6931])

    Cost: that of ``F.cross_entropy``; with smoothing, one more copy of the log-probabilities.
    Reference: Szegedy et al. Rethinking the Inception Architecture. CVPR 2016, section 7 (label smoothing).
    """
    check_logits(outputs, targets, weight)
    check_beside("targets", targets, mask=mask)
    classes = outputs.shape[1]
    targets = targets.long()
    outputs = outputs.to(computing_dtype(outputs))
    if mask is not None:
        targets = targets.masked_fill(~mask, 0)
        outputs = _without_poison(outputs, mask)
    illegal = (targets < 0) | (targets >= classes)
    if values_are_readable(targets):
        if bool(illegal.any()):
            raise ValueError(
                f"`targets` must be classes in [0, {classes}) where counted; got {int(targets[illegal][0])}. "
                "If that marks elements to leave out, pass it as `ignore_index`."
            )
    else:
        targets = targets.masked_fill(illegal, 0)

    if label_smoothing == 0.0:
        losses = F.cross_entropy(outputs, targets, reduction="none")
        scores = losses.detach()
    else:
        log_probabilities = F.log_softmax(outputs, dim=1)
        nll = F.nll_loss(log_probabilities, targets, reduction="none")
        if weight is None:
            spread = -log_probabilities.sum(dim=1)
        else:
            weight = weight.detach().to(outputs.dtype)
            column = weight.view(1, -1, *(1,) * (outputs.dim() - 2))
            own = weight[targets]
            spread = -(log_probabilities * column).sum(dim=1) / torch.where(own > 0, own, 1)
        losses = (1 - label_smoothing) * nll + label_smoothing / classes * spread
        scores = nll.detach()
    if not values_are_readable(targets):
        losses = losses.masked_fill(illegal, torch.nan)
    return losses, scores


def _without_poison(outputs: Tensor, mask: Tensor) -> Tensor:
    """The outputs, with 0 where not counted. A finite logit is harmless there: its loss is dropped, its gradient 0."""
    if values_are_readable(outputs) and bool(outputs.detach().sum().isfinite()):
        return outputs
    return outputs.masked_fill(~mask.unsqueeze(1), 0)


def check_logits(outputs: Tensor, targets: Tensor, weight: Tensor | None) -> None:
    """Types and shapes that fit: logits, classes, and one weight per class."""
    if not outputs.is_floating_point():
        raise TypeError(f"`outputs` must be floating-point logits; got {outputs.dtype}. Pass outputs.float().")
    if targets.is_floating_point() or targets.is_complex() or targets.dtype == torch.bool:
        raise TypeError(
            f"`targets` must be class indices of an integer type; got {targets.dtype}. "
            "For one-hot targets pass targets.argmax(dim=1)."
        )
    if outputs.dim() < 2 or targets.shape != outputs.shape[:1] + outputs.shape[2:]:
        raise ValueError(
            "`outputs` must have shape (N, C) or (N, C, d1, ...) and `targets` the same without C; "
            f"got {tuple(outputs.shape)} and {tuple(targets.shape)}. The classes are dimension 1: move them there."
        )
    if weight is not None and weight.numel() != outputs.shape[1]:
        raise ValueError(
            f"`weight` must hold one number per class; got {weight.numel()} for {outputs.shape[1]} classes. "
            "The classes are dimension 1 of the outputs."
        )
