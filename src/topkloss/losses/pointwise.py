"""Individual losses: one number per element, never reduced.

A loss that torch already has unreduced (``F.mse_loss(..., reduction="none")``, ``F.l1_loss``, ...) is used as it
is. What is here is what torch's own form does not give: a cross-entropy whose uncounted elements never matter,
and whose class weights are mass rather than part of the loss; and margin losses of any shape that do not overflow.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from topkloss.base.arguments import ClassWeights, check_beside, check_number_of_weights, class_weights
from topkloss.base.tensors import computing_dtype, dense, only_counted, values_are_readable
from topkloss.kernels import operators
from topkloss.losses.targets import MARGIN, read_batch

__all__ = [
    "cross_entropy",
    "hinge_loss",
    "logistic_loss",
    "multiclass_hinge_loss",
    "multiclass_squared_hinge_loss",
    "squared_hinge_loss",
]


def cross_entropy(
    outputs: Tensor,
    targets: Tensor,
    *,
    mask: Tensor | None = None,
    weight: ClassWeights | None = None,
    label_smoothing: float = 0.0,
) -> tuple[Tensor, Tensor]:
    r"""Cross-entropy of each element, and the score to rank it by: its loss without smoothing and class weights.

    .. math:: \ell = -(1 - \epsilon) \log p_y - \frac{\epsilon}{C} \sum_c \frac{w_c}{w_y} \log p_c, \qquad
        \mathrm{score} = -\log p_y, \qquad p = \mathrm{softmax}(\mathrm{outputs})

    so that :math:`w_y \ell` is torch's own weighted loss of the element: the class weight of the target is its mass.
    A confidently right element has a *large* smoothed loss; ranking by the score keeps it out of the hardest.

    Of probabilities t (mixup, cutmix, distillation) class weights are part of the loss, as they are in torch, and the
    score is less the target's own entropy: an element is not hard because its target is mixed.

    .. math:: \ell = -\sum_c w_c \left[(1 - \epsilon)\, t_c + \frac{\epsilon}{C}\right] \log p_c, \qquad
        \mathrm{score} = \sum_c t_c \log \frac{t_c}{p_c}

    Args:
        outputs: Logits, shape (N, C), (N, C, d1, ...) or (C,), floating point. Half precision is computed in float32.
            The classes are dimension 1: of a language model's (N, T, C) pass outputs.movedim(-1, 1).
        targets: Class indices in [0, C), shape (N,), (N, d1, ...) or (N, 1, d1, ...), or a scalar beside (C,): of any
            integer type, or whole numbers of a floating type. Or probabilities t >= 0, floating point, shaped like
            `outputs`. Which of them is decided by the shape.
        mask: Bool, shaped like the losses or the class indices; True = counts. Outputs and targets elsewhere never
            matter, NaN and illegal classes included, and get no gradient from what counts. Default: all count.
        weight: Class weights w, non-negative: a tensor of shape (C,), or a list.
        label_smoothing: Share of the target spread evenly over the classes, in [0, 1].

    Returns:
        Losses and scores in nats, one for each element: shape (N,) or (N, d1, ...), 0 where not counted; float64 for
        float64 input and float32 otherwise. The scores carry no gradient; the targets get one if they ask for it.

    Raises:
        TypeError: If `outputs` are not floating point, or `targets` of a type that cannot be meant.
        ValueError: If shapes do not fit, there is one class alone, or a readable counted target is not in [0, C), is no
            whole number, or is a probability below 0. Where values cannot be read without waiting (accelerators,
            torch.compile) the loss of such an element is NaN.

    Example:
        >>> outputs = torch.tensor([[2.0, 0.0], [0.0, 0.0]])
        >>> cross_entropy(outputs, torch.tensor([0, 1]))[0]
        tensor([0.1269, 0.6931])

        A mixed-up target costs its entropy, and is not ranked by it:

        >>> cross_entropy(torch.tensor([[1.0, 1.0]]), torch.tensor([[0.5, 0.5]]))
        (tensor([0.6931]), tensor([0.]))

    Cost: one read of the logits, and one number for each element is kept; backward reads the logits again where a loss
        gets a gradient, and writes theirs. Probabilities are read as the logits are, and kept as they are given (a copy
        where they lie otherwise than the logits, or are of half precision). On devices without kernels, that of
        ``F.cross_entropy``.
    Reference: Szegedy et al. Rethinking the Inception Architecture. CVPR 2016, section 7 (label smoothing).
    """
    outputs, targets, mask, _, is_batched = read_batch(outputs, targets, mask=mask)
    weight = weight if isinstance(weight, Tensor) else class_weights(weight)
    check_number_of_weights(weight, outputs.shape[1])
    weight = None if weight is None else dense(weight, computing_dtype(outputs)).to(outputs.device)
    given: dict[str, Any] = {"class_weight": weight, "smoothing": float(label_smoothing)}
    losses, scores = operators.cross_entropy(outputs, targets, counts=mask, **given)
    scores = losses.detach() if scores is None else scores
    return (losses, scores) if is_batched else (losses[0], scores[0])


def hinge_loss(outputs: Tensor, targets: Tensor, *, mask: Tensor | None = None) -> Tensor:
    """Hinge loss of each element, :math:`[1 - y f]_+`; the gradient at the kink is 0. Errors: see `cross_entropy`.

    Args:
        outputs: Decision values f, any shape. Half precision is computed in float32.
        targets: y, -1 or +1, shaped like `outputs`, floating point or integer.
        mask: Bool, shaped like `outputs`; True = counts. What stands elsewhere never matters; its loss is 0.

    >>> hinge_loss(torch.tensor([3.0, 0.2, -1.0]), torch.tensor([1, 1, 1]))
    tensor([0.0000, 0.8000, 2.0000])
    """
    return F.relu(1 - _margin(outputs, targets, mask))


def squared_hinge_loss(outputs: Tensor, targets: Tensor, *, mask: Tensor | None = None) -> Tensor:
    """The square of `hinge_loss`.

    >>> squared_hinge_loss(torch.tensor([-1.0]), torch.tensor([1]))
    tensor([4.])
    """
    return hinge_loss(outputs, targets, mask=mask).square()


def logistic_loss(outputs: Tensor, targets: Tensor, *, mask: Tensor | None = None) -> Tensor:
    r"""Logistic loss of each element, :math:`\log(1 + e^{-y f})` in nats. See `hinge_loss`.

    ``F.soft_margin_loss`` computes the exponential itself: in float32 it is infinite from y f = -89 on.

    >>> logistic_loss(torch.tensor([0.0, -200.0]), torch.tensor([1, 1]))
    tensor([  0.6931, 200.0000])
    """
    # Above its threshold softplus drops a term: 4e-18 here, but 2e-9 at its default of 20.
    return F.softplus(-_margin(outputs, targets, mask), threshold=40)


def multiclass_hinge_loss(outputs: Tensor, targets: Tensor, *, mask: Tensor | None = None) -> Tensor:
    r"""Crammer and Singer's hinge loss of each element, :math:`\max_{j \ne y} [1 + f_j - f_y]_+`. See `hinge_loss`.

    Shapes of class indices as in `cross_entropy`; tied rivals share the gradient. ``F.multi_margin_loss`` is
    Weston and Watkins' loss, the sum over the rivals, over C. Reference: Crammer, Singer. JMLR 2001, section 3.

    >>> multiclass_hinge_loss(torch.tensor([[2.0, 1.5, 0.0], [0.0, 3.0, 1.0]]), torch.tensor([0, 2]))
    tensor([0.5000, 3.0000])
    """
    batch = read_batch(outputs, targets, mask=mask, one_channel=MARGIN)
    if batch.of_probabilities:
        raise TypeError(
            f"`targets` must be class indices, not probabilities; got {targets.dtype} of shape {tuple(targets.shape)}. "
            "A margin has one right class: for soft targets take `cross_entropy`."
        )
    outputs, targets, mask, _, is_batched = batch
    index, illegal = legal_classes(targets, outputs.shape[1], mask)
    outputs = outputs.to(computing_dtype(outputs))
    if mask is not None:
        outputs = only_counted(outputs, mask)
    own = outputs.gather(1, index.unsqueeze(1)).squeeze(1)
    rival = outputs.scatter(1, index.unsqueeze(1), -torch.inf).amax(dim=1)
    losses = F.relu(1 - _settled(own - rival, illegal, mask))
    return losses if is_batched else losses[0]


def multiclass_squared_hinge_loss(outputs: Tensor, targets: Tensor, *, mask: Tensor | None = None) -> Tensor:
    """The square of `multiclass_hinge_loss`.

    >>> multiclass_squared_hinge_loss(torch.tensor([[2.0, 1.5, 0.0]]), torch.tensor([0]))
    tensor([0.2500])
    """
    return multiclass_hinge_loss(outputs, targets, mask=mask).square()


def legal_classes(targets: Tensor, classes: int, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Classes as int64, 0 where not counted or illegal, and what is counted and illegal: nothing, where readable."""
    targets = targets.long() if mask is None else targets.long().masked_fill(~mask, 0)
    illegal = (targets < 0) | (targets >= classes)
    if values_are_readable(targets) and bool(illegal.any()):
        got = int(targets[illegal][0])
        raise ValueError(
            f"`targets` must be classes in [0, {classes}) where counted; got {got}. "
            f"To leave such elements out pass mask=targets != {got}."
        )
    return targets.masked_fill(illegal, 0), illegal


def _margin(outputs: Tensor, targets: Tensor, mask: Tensor | None) -> Tensor:
    """How far each element lies on its target's side, y f."""
    if targets.shape != outputs.shape:
        raise ValueError(
            "`outputs` and `targets` must have the same shape; "
            f"got {tuple(outputs.shape)} and {tuple(targets.shape)}. For outputs of shape (N, 1) pass outputs[:, 0]."
        )
    check_beside("outputs", outputs, mask=mask)
    outputs = outputs.to(computing_dtype(outputs))
    targets = targets.detach().to(outputs.dtype)
    targets = targets if mask is None else targets.masked_fill(~mask, 1)
    illegal = targets.abs() != 1
    if values_are_readable(targets) and bool(illegal.any()):
        raise ValueError(
            f"`targets` must be -1 or +1 where counted; got {targets[illegal][0]:g}. "
            "For labels 0 and 1 pass 2.0 * targets - 1."
        )
    return _settled(outputs * targets, illegal, mask)


def _settled(margins: Tensor, illegal: Tensor, mask: Tensor | None) -> Tensor:
    """The margins, NaN for an illegal target, and infinite, which costs nothing, where not counted."""
    margins = margins.masked_fill(illegal, torch.nan)
    return margins if mask is None else margins.masked_fill(~mask, torch.inf)
