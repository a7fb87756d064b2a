r"""Losses of whole regions: one number per (sample, class), or per sample, for segmentation.

A region loss is not a sum over pixels, so pixels cannot be mined under it; regions can. The counts are soft. With the
probabilities p, and the pixels of class c in a sample being those whose target is c, they are

.. math:: \mathrm{TP} = \sum_{i: y_i = c} p_{ic}, \qquad \mathrm{FN} = \sum_{i: y_i = c} (1 - p_{ic}), \qquad
    \mathrm{FP} = \sum_{i: y_i \ne c} p_{ic}.
"""

from __future__ import annotations

import torch
from torch import Tensor

from topkloss.base.arguments import check_beside, check_integers, in_range
from topkloss.base.tensors import computing_dtype, values_are_readable
from topkloss.losses.pointwise import legal_classes
from topkloss.losses.targets import TWO_CHANNELS, Batch, read_batch

__all__ = ["dice_loss", "generalized_dice_loss", "present_classes", "tversky_loss"]


def dice_loss(outputs: Tensor, targets: Tensor, *, mask: Tensor | None = None, smoothing: float = 0.0) -> Tensor:
    r"""Soft Dice loss of each class in each sample.

    .. math:: 1 - \frac{2\,\mathrm{TP} + s}{2\,\mathrm{TP} + \mathrm{FP} + \mathrm{FN} + s}

    Without smoothing, a class that is absent from a sample has loss 1 as soon as it is predicted at all, and no
    gradient: it would be mined first and teach nothing. So pass `present_classes` as the mask of the aggregate. With
    smoothing s its loss is FP / (FP + s), which has a gradient: absent classes may then be mined too.

    Args:
        outputs: Logits, shape (N, C, d1, ...), floating point; p is their softmax over the classes.
        targets: Class indices in [0, C), shape (N, d1, ...) or (N, 1, d1, ...), of any integer type, or whole numbers
            of a floating type. Or the share of each class in each pixel, floating point, shaped like `outputs`:
            one-hot, or soft, and then every count is taken by shares. Which of them is decided by the shape.
        mask: Bool, shaped like the class indices; True = counts. Outputs and targets elsewhere never matter, NaN and
            illegal classes included, and get no gradient.
        smoothing: s, in pixels, >= 0; added to numerator and denominator.

    Returns:
        Losses in [0, 1], shape (N, C), float64 for float64 input and float32 otherwise; always finite for finite
        outputs. A region without pixels in target and prediction has loss 0 and gradient 0: the limit for smoothing
        to 0. "Without" means less than the rounding error of one pixel (1.2e-7 of it in float32).

    Raises:
        TypeError: If `outputs` are not floating point, `mask` not bool, or `targets` of a type that cannot be meant.
        ValueError: If shapes do not fit, `smoothing` is out of range, or a readable counted target is not in [0, C).
            Where values cannot be read without waiting (accelerators, torch.compile) the losses of such a sample
            are NaN.

    Example:
        >>> targets = torch.tensor([[[0, 0], [1, 1]]])
        >>> outputs = torch.tensor([[[[4.0, 4.0], [0.0, 0.0]], [[0.0, 0.0], [1.0, 4.0]], [[0.0, 0.0], [0.0, 0.0]]]])
        >>> dice_loss(outputs, targets)
        tensor([[0.0722, 0.1383, 1.0000]])

        The harder half of the regions that are present:

        >>> present = present_classes(targets, classes=3)
        >>> average_top_k(dice_loss(outputs, targets), fraction=0.5, mask=present)
        tensor(0.1383)

    Cost: the softmax, which is kept for the gradient, and a few passes over it.
    Reference: Milletari, Navab, Ahmadi. V-Net. 3DV 2016, without the squares below.
    """
    return tversky_loss(outputs, targets, mask=mask, smoothing=_at_least_0("smoothing", smoothing) / 2)


def tversky_loss(
    outputs: Tensor,
    targets: Tensor,
    *,
    false_positives: float = 0.5,
    false_negatives: float = 0.5,
    mask: Tensor | None = None,
    smoothing: float = 0.0,
) -> Tensor:
    r"""Tversky loss of each class in each sample: Dice loss with a price for each kind of error.

    .. math:: 1 - \frac{\mathrm{TP} + s}{\mathrm{TP} + \alpha\,\mathrm{FP} + \beta\,\mathrm{FN} + s}

    With both prices 0.5 it is the Dice loss (of twice the smoothing), with both 1 the Jaccard loss. A larger
    `false_negatives` favours recall.

    Args:
        outputs: See `dice_loss`.
        targets: See `dice_loss`.
        false_positives: alpha, >= 0.
        false_negatives: beta, >= 0; not both 0.
        mask: See `dice_loss`.
        smoothing: s, in pixels, >= 0: as if this many more pixels were right.

    Returns:
        See `dice_loss`.

    Raises:
        TypeError: See `dice_loss`.
        ValueError: See `dice_loss`; also if a price is negative or both are 0.

    Example:
        >>> outputs, targets = torch.tensor([[[0.0, 2.0, 0.0], [0.0, 0.0, 3.0]]]), torch.tensor([[0, 0, 1]])
        >>> tversky_loss(outputs, targets, false_positives=0.3, false_negatives=0.7)
        tensor([[0.2448, 0.1869]])

    Cost: that of `dice_loss`.
    Reference: Salehi, Erdogmus, Gholipour. Tversky loss function for image segmentation using 3D fully convolutional
    deep networks. MLMI 2017.
    """
    smoothing = _at_least_0("smoothing", smoothing)
    prices = _at_least_0("false_positives", false_positives), _at_least_0("false_negatives", false_negatives)
    if prices == (0, 0):
        raise ValueError(
            "one of `false_positives` and `false_negatives` must be above 0; got 0 for both. For Dice pass neither."
        )
    right, wrong, _, illegal = _counts(outputs, targets, mask, *prices)
    return _share(wrong, right + wrong + smoothing).masked_fill(illegal.unsqueeze(1), torch.nan)


def generalized_dice_loss(outputs: Tensor, targets: Tensor, *, mask: Tensor | None = None) -> Tensor:
    r"""Generalized Dice loss of each sample: one Dice loss over all its classes, in which rare classes weigh more.

    .. math:: 1 - 2 \frac{\sum_c w_c\,\mathrm{TP}_c}{\sum_c w_c\,(2\,\mathrm{TP}_c + \mathrm{FP}_c + \mathrm{FN}_c)},
        \qquad w_c = \frac{1}{V_c^2}

    where V is the number of pixels of the class in the sample. A class that is absent from the sample has weight 0, not
    infinity: pixels that are predicted as this class are still errors of their own class.

    Args:
        outputs: See `dice_loss`.
        targets: See `dice_loss`.
        mask: See `dice_loss`.

    Returns:
        Losses in [0, 1], shape (N,); 0 with gradient 0 for a sample in which no pixel counts. For dtype and
        finiteness see `dice_loss`.

    Raises:
        TypeError: See `dice_loss`.
        ValueError: See `dice_loss`.

    Example:
        >>> outputs, targets = torch.tensor([[[0.0, 2.0, 0.0], [0.0, 0.0, 3.0]]]), torch.tensor([[0, 0, 1]])
        >>> generalized_dice_loss(outputs, targets)
        tensor([0.2430])

    Cost: that of `dice_loss`.
    Reference: Sudre et al. Generalised Dice overlap as a deep learning loss function for highly unbalanced
    segmentations. DLMIA 2017.
    """
    right, wrong, volumes, illegal = _counts(outputs, targets, mask, 0.5, 0.5)
    volumes = volumes.to(right.dtype)
    # Times the square of their sum, which cancels: of a large volume 1/V is less than rounding error.
    weights = torch.where(volumes > 0, volumes.sum(dim=1, keepdim=True) / volumes, 0).square()
    wrong, right = (weights * wrong).sum(dim=1), (weights * right).sum(dim=1)
    return _share(wrong, right + wrong).masked_fill(illegal, torch.nan)


def present_classes(targets: Tensor, classes: int, *, mask: Tensor | None = None) -> Tensor:
    """Which classes have a counted pixel in each sample: the mask with which to mine regions.

    Args:
        targets: Class indices in [0, `classes`), shape (N, d1, ...), any integer type.
        classes: The number of classes, C.
        mask: Bool, shaped like `targets`; True = counts.

    Returns:
        Bool, shape (N, C).

    Raises:
        TypeError: If `targets` are not integers, or `mask` not bool.
        ValueError: If shapes do not fit, or a readable counted target is not in [0, C). Where targets
            cannot be read without waiting, such a target is ignored.

    Example:
        >>> targets = torch.tensor([[0, 0, 2], [1, 1, 255]])
        >>> present_classes(targets, 3, mask=targets != 255)
        tensor([[ True, False,  True],
                [False,  True, False]])

    Cost: one pass over the targets.
    """
    check_integers("targets", targets, "Pass class indices, e.g. targets.long().")
    check_beside("targets", targets, mask=mask)
    if targets.dim() < 2:
        raise ValueError(
            f"`targets` must have shape (N, d1, ...), with pixels; got {tuple(targets.shape)}. "
            "For one sample pass targets[None]."
        )
    return _present(targets, classes, mask)


def present_in(batch: Batch) -> Tensor:
    """The same of a batch, whose targets may be shares."""
    if not batch.of_probabilities:
        return _present(batch.targets, batch.outputs.shape[1], batch.mask)
    there = batch.targets > 0
    there = there if batch.mask is None else there & batch.mask.unsqueeze(1)
    return there.flatten(2).any(dim=2)


def _present(targets: Tensor, classes: int, mask: Tensor | None) -> Tensor:
    labels, _ = _labels(targets, classes, mask)
    found = torch.zeros(len(labels), classes + 1, dtype=torch.bool, device=labels.device)
    return found.scatter(1, labels.flatten(1), True)[:, :classes]


def _labels(targets: Tensor, classes: int, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """The class of each pixel, or C where it is not counted or illegal; and which samples hold an illegal target."""
    labels, illegal = legal_classes(targets, classes, mask)
    nowhere = illegal if mask is None else illegal | ~mask
    return labels.masked_fill(nowhere, classes), illegal.flatten(1).any(dim=1)


def _counts(
    outputs: Tensor, targets: Tensor, mask: Tensor | None, false_positives: float, false_negatives: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """TP, priced errors and numbers of target pixels, (N, C) each; and which samples hold an illegal target, (N,)."""
    batch = read_batch(outputs, targets, mask=mask, one_channel=TWO_CHANNELS, of_regions=True)
    outputs, targets, mask, _, is_batched = batch
    if outputs.dim() < 3 or not is_batched:
        raise ValueError(
            f"`outputs` must have shape (N, C, d1, ...), with pixels; got {tuple(outputs.shape)}. "
            "For one region per class over the whole batch pass outputs.T[None] and targets[None]."
        )
    classes, pixels = outputs.shape[1], tuple(range(2, outputs.dim()))
    outputs = outputs.to(computing_dtype(outputs))
    if mask is not None:
        # Masked here for the gradient, where 0 x NaN is NaN; and again below, since the softmax of zeros is not zero.
        outputs = outputs.masked_fill(~mask.unsqueeze(1), 0)
    probabilities = outputs.softmax(dim=1)
    if mask is not None:
        probabilities = probabilities.masked_fill(~mask.unsqueeze(1), 0)
    if batch.of_probabilities:
        return _counts_by_shares(probabilities, batch, false_positives, false_negatives)
    labels, illegal = _labels(targets, classes, mask)
    there = labels.unsqueeze(1) == torch.arange(classes, device=labels.device).view(-1, *(1,) * len(pixels))
    right = torch.where(there, probabilities, 0).sum(dim=pixels)
    wrong = torch.where(there, false_negatives * (1 - probabilities), false_positives * probabilities).sum(dim=pixels)
    return right, wrong, there.sum(dim=pixels), illegal


def _counts_by_shares(
    probabilities: Tensor, batch: Batch, false_positives: float, false_negatives: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The same of targets that are the share of each class in each pixel."""
    shares = batch.targets.to(probabilities.dtype)
    if batch.mask is not None:
        shares = shares.masked_fill(~batch.mask.unsqueeze(1), 0)
    pixels = tuple(range(2, shares.dim()))
    illegal = ((shares < 0) | (shares > 1)).flatten(1).any(dim=1)
    if values_are_readable(shares) and bool(illegal.any()):
        got = shares[(shares < 0) | (shares > 1)][0].item()
        raise ValueError(
            f"`targets` shaped like the outputs must be shares in [0, 1] where counted; got {got:g}. If they are "
            "logits pass targets.softmax(dim=1)."
        )
    right = (shares * probabilities).sum(dim=pixels)
    missed, added = shares * (1 - probabilities), (1 - shares) * probabilities
    wrong = (false_negatives * missed + false_positives * added).sum(dim=pixels)
    return right, wrong, shares.sum(dim=pixels), illegal


def _share(part: Tensor, whole: Tensor) -> Tensor:
    """The ratio of part to whole, without cancellation and never below 0; 0 if the whole is 0, NaN if it is NaN."""
    nothing = whole <= torch.finfo(whole.dtype).eps
    return torch.where(nothing, 0, part / torch.where(nothing, 1, whole))


def _at_least_0(name: str, value: float) -> float:
    return in_range(name, value, "0 <=", "< inf", hint=f"For none pass {name}=0.")
