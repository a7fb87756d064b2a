"""The situations in which losses over the hardest pixels fail, by name, with the right answer to each.

Inputs are made with torch from a fixed seed. The answers are Python floats, by ``math`` and ``sorted``, so
that they depend on nothing that is measured against them. Losses are in nats.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["IGNORED", "SITUATIONS", "Situation", "average_of_largest", "through_network"]

IGNORED = 255
CLASSES = 4


@dataclass(frozen=True)
class Situation:
    """One batch of pixels, and the share of them that is asked for.

    Attributes:
        name: What tests and tables call it.
        title: What a reader calls it.
        logits: Shape (N, C, H, W), finite; `through_network` puts the NaN in.
        targets: Class indices, shape (N, H, W); `IGNORED` where a pixel does not count.
        fraction: The share of the counted pixels whose mean loss is asked for.
        broken: Bool, shape (N, H, W): pixels whose logits are NaN.
    """

    name: str
    title: str
    logits: Tensor
    targets: Tensor
    fraction: float
    broken: Tensor

    @property
    def counted(self) -> Tensor:
        """Bool, shape (N, H, W): pixels that are not ignored."""
        return self.targets != IGNORED

    @property
    def k(self) -> float:
        """How many pixels are asked for; below 1, where few are counted."""
        return round(self.fraction * int(self.counted.sum()), 9)

    def losses(self) -> list[float]:
        """Cross-entropy of every counted pixel, in pixel order, computed in Python floats."""
        logits = self.logits.movedim(1, -1)[self.counted].tolist()
        classes = self.targets[self.counted].tolist()
        broken = self.broken[self.counted].tolist()
        return [
            math.nan if bad else math.log1p(sum(math.exp(z - row[y]) for c, z in enumerate(row) if c != y))
            for row, y, bad in zip(logits, classes, broken, strict=True)
        ]

    def expected(self, k: float | None = None) -> float:
        """The mean loss of the `k` hardest counted pixels; of as many as asked for, without `k`."""
        return average_of_largest(self.losses(), self.k if k is None else k)

    def hard_enough(self, threshold: float, at_least: int) -> int:
        """How many pixels OHEM keeps: those whose true class has less than `threshold`, or `at_least`."""
        return max(at_least, sum(math.exp(-loss) < threshold for loss in self.losses()))


def average_of_largest(losses: list[float], k: float) -> float:
    """Mean of the `k` largest: whole ones, then a part of the next. Of none it is 0; of a NaN, NaN.

    Example:
        >>> average_of_largest([1.0, 2.0, 3.0, 4.0], k=2.5)
        3.2
    """
    if any(map(math.isnan, losses)):
        return math.nan
    if not losses:
        return 0.0
    k = min(max(k, 1.0), float(len(losses)))
    ranked = sorted(losses, reverse=True)
    whole = int(k)
    part = (k - whole) * ranked[whole] if k > whole else 0.0
    return (math.fsum(ranked[:whole]) + part) / k


def through_network(situation: Situation) -> tuple[Tensor, Tensor]:
    """The logits as the output of a network with one weight per class, and that weight.

    A loss that is cut off from the network shows: `weight` has no gradient. The NaN is added behind the
    weight, so that a pixel without a gradient leaves the weight's gradient finite.

    Returns:
        ``(weight, logits)``, shapes (C,) and (N, C, H, W), in the dtype of the situation.
    """
    weight = torch.ones(situation.logits.shape[1], dtype=situation.logits.dtype, requires_grad=True)
    noise = torch.zeros_like(situation.logits).masked_fill(situation.broken.unsqueeze(1), math.nan)
    return weight, situation.logits * weight.view(1, -1, 1, 1) + noise


def all_ignored() -> Situation:
    """Nothing is counted: the loss is 0, and the network still gets a gradient, which is 0."""
    logits, targets = _unsure(2, 8, 8)
    return _situation("all_ignored", "all ignored", logits, targets.fill_(IGNORED), 0.1)


def four_easy_pixels() -> Situation:
    """A tenth of four pixels is less than one pixel."""
    logits, targets = _confident(1, 2, 2, gap=6.0)
    return _situation("four_easy_pixels", "four easy pixels", logits, targets, 0.1)


def saturated_float16() -> Situation:
    """A confident network in float16: every probability of a true class rounds to 1, the losses differ."""
    logits, targets = _confident(1, 20, 20, gap=12.0)
    return _situation("saturated_float16", "saturated, float16", logits.half(), targets, 0.1)


def saturated_bfloat16() -> Situation:
    """The same network in bfloat16."""
    logits, targets = _confident(1, 20, 20, gap=12.0)
    return _situation("saturated_bfloat16", "saturated, bfloat16", logits.bfloat16(), targets, 0.1)


def one_nan_pixel() -> Situation:
    """One counted pixel is NaN: that must stay visible."""
    logits, targets = _unsure(1, 1, 400)
    broken = torch.zeros(targets.shape, dtype=torch.bool)
    broken[0, 0, 200] = True
    return _situation("one_nan_pixel", "one NaN pixel (must show)", logits, targets, 0.1, broken)


def nan_at_an_ignored_pixel() -> Situation:
    """One ignored pixel is NaN: that must not matter, in the value or in the gradient."""
    logits, targets = _unsure(1, 1, 401)
    broken = torch.zeros(targets.shape, dtype=torch.bool)
    broken[0, 0, 200] = True
    targets[broken] = IGNORED
    title = "NaN at an ignored pixel (must not)"
    return _situation("nan_at_an_ignored_pixel", title, logits, targets, 0.1, broken)


def ninety_five_percent_ignored() -> Situation:
    """80 of 1600 pixels count: a tenth is 8, not 160."""
    logits, targets = _unsure(1, 40, 40)
    targets.view(-1)[torch.randperm(1600, generator=torch.Generator().manual_seed(1))[80:]] = IGNORED
    return _situation("ninety_five_percent_ignored", "95 % ignored", logits, targets, 0.1)


def fractional_k() -> Situation:
    """The share .35 of ten losses is three and a half of them."""
    logits, targets = _unsure(1, 2, 5)
    return _situation("fractional_k", "n = 10 at fraction .35", logits, targets, 0.35)


SITUATIONS: tuple[Callable[[], Situation], ...] = (
    all_ignored,
    four_easy_pixels,
    saturated_float16,
    saturated_bfloat16,
    one_nan_pixel,
    nan_at_an_ignored_pixel,
    ninety_five_percent_ignored,
    fractional_k,
)


def _situation(
    name: str, title: str, logits: Tensor, targets: Tensor, fraction: float, broken: Tensor | None = None
) -> Situation:
    nowhere = torch.zeros(targets.shape, dtype=torch.bool)
    return Situation(name, title, logits, targets, fraction, nowhere if broken is None else broken)


def _unsure(n: int, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Logits that know nothing about the targets."""
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(n, CLASSES, height, width, generator=generator)
    return logits, torch.randint(CLASSES, (n, height, width), generator=generator)


def _confident(n: int, height: int, width: int, gap: float) -> tuple[Tensor, Tensor]:
    """Logits that are right everywhere, by `gap` and a little noise."""
    generator = torch.Generator().manual_seed(0)
    targets = torch.randint(CLASSES, (n, height, width), generator=generator)
    noise = 0.3 * torch.randn(n, CLASSES, height, width, generator=generator)
    return noise.scatter_add_(1, targets.unsqueeze(1), torch.full((n, 1, height, width), gap)), targets
