"""Cross-entropy of the hardest elements, as a function."""

from __future__ import annotations

from torch import Tensor

from topkloss.aggregates.average import average_top_k
from topkloss.base.arguments import ClassWeights, check_k, check_label_smoothing, class_weights
from topkloss.base.tensors import values_are_readable
from topkloss.kernels.operators import Backend
from topkloss.losses.elements import check_backend, cross_entropy_elements

__all__ = ["average_top_k_cross_entropy"]


def average_top_k_cross_entropy(
    outputs: Tensor,
    targets: Tensor,
    *,
    k: float | None = None,
    fraction: float | None = None,
    weight: ClassWeights | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    mask: Tensor | None = None,
    sample_weight: Tensor | None = None,
    backend: Backend = "auto",
    inplace: bool = False,
) -> Tensor:
    r"""Cross-entropy of the hardest elements: `average_top_k` of `topkloss.losses.cross_entropy`, faster and leaner.

    .. math:: \max \{ \langle w, \ell \rangle : 0 \le w_i \le s_i / k,\ \textstyle\sum_i w_i = 1 \}, \qquad
        \ell_i = -\log \mathrm{softmax}(x_i)_{y_i}

    Args:
        outputs: Logits x, shape (N, C), (N, C, d1, ...) or (C,), floating point. Half precision is computed in float32.
        targets: Class indices y in [0, C), or probabilities shaped like `outputs`: see `topkloss.losses.cross_entropy`.
        k: Mass of the elements averaged, k > 0, real. Above S it means all.
        fraction: `k` as a share of the counted mass S, 0 < fraction <= 1. Exactly one of the two.
        weight: Class weights, finite and >= 0, a tensor of shape (C,) or a list: the mass s of the elements of each
            class; of targets that are probabilities, part of the loss.
        ignore_index: Target of the elements to leave out; it need not be a legal class. Beside probabilities, which
            have none, it must be negative, as in torch.
        label_smoothing: Share of the target spread evenly over the classes, in [0, 1]; ranked is by the loss without.
        mask: Bool, shaped like the losses or the class indices; True = counts. Combined with `ignore_index`.
        sample_weight: Mass of each element, shaped like the mask; multiplied with its class weight.
        backend: "native", the compiled kernels for the CPU; "torch", the portable ones, in chunks; or "auto": the
            first that serves, on other devices neither.
        inplace: Allows backward to overwrite the logits with their gradient, where the native kernels serve. They must
            be computed by the model, and are empty afterwards: a second use of them raises. Where something else reads
            their memory, a detached tensor or a view, they are left as they are.

    Returns:
        See `average_top_k`.

    Raises:
        TypeError, ValueError: See `topk_threshold` and `topkloss.losses.cross_entropy`; also if `backend` is not there.
        RuntimeError: In backward, if the logits were changed or overwritten since.

    Example:
        >>> outputs = torch.tensor([[3.0, 0.0], [0.0, 0.0], [0.0, 2.0], [0.0, 9.0]])
        >>> average_top_k_cross_entropy(outputs, torch.tensor([0, 0, 0, -100]), fraction=0.5)
        tensor(1.6490)

    Cost: with a backend two reads of the logits (at most) and one write; memory for the gradient and one number for
        each element. Measured in docs/speed.md.
    Reference: see `average_top_k`.
    """
    check_k(k, fraction)
    check_label_smoothing(label_smoothing)
    if weight is not None and not isinstance(weight, Tensor):
        weight = class_weights(weight).to(outputs.device)  # type: ignore[union-attr]
    elif weight is not None and values_are_readable(weight):
        class_weights(weight)
    check_backend(backend)
    elements = cross_entropy_elements(
        outputs,
        targets,
        weight=weight,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        mask=mask,
        sample_weight=sample_weight,
        backend=backend,
        inplace=inplace,
    )
    losses, mask, mass, scores = elements[:4]
    return average_top_k(losses, k=k, fraction=fraction, mask=mask, sample_weight=mass, scores=scores)
