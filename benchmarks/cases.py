"""Losses to average, made once from a fixed seed, and what each provider is asked to do with them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from topkloss import average_top_k

__all__ = ["BASELINE", "FRACTIONS", "Case", "cases"]

FRACTIONS = (0.1, 0.5, 0.7)
BASELINE = "torch.topk, mean"


@dataclass(frozen=True)
class Case:
    """One provider on one input.

    Attributes:
        provider: Who computes.
        fraction: The share averaged.
        losses: Float32, shape (n,).
        value: From the losses to the average of the hardest share.
        expected: Its answer, computed in float64 by a full sort.
    """

    provider: str
    fraction: float
    losses: Tensor
    value: Callable[[Tensor], Tensor]
    expected: float


def cases(n: int) -> list[Case]:
    """The baseline, and the library unmasked, masked and weighted, at each fraction of n exponential losses."""
    generator = torch.Generator().manual_seed(0)
    losses = torch.empty(n).exponential_(generator=generator)
    mask = torch.rand(n, generator=generator) < 0.7
    mass = torch.rand(n, generator=generator) + 0.5
    found = []
    for fraction in FRACTIONS:
        k = int(n * fraction)
        providers: dict[str, tuple[Callable[[Tensor], Tensor], float]] = {
            BASELINE: (lambda x, k=k: torch.topk(x, k, sorted=False)[0].mean(), _by_sorting(losses, k)),  # type: ignore[misc]
            "average_top_k": (lambda x, k=k: average_top_k(x, k=k), _by_sorting(losses, k)),  # type: ignore[misc]
            "average_top_k, masked": (
                lambda x, f=fraction: average_top_k(x, fraction=f, mask=mask),  # type: ignore[misc]
                _by_sorting(losses[mask], fraction * int(mask.sum())),
            ),
            "average_top_k, weighted": (
                lambda x, f=fraction: average_top_k(x, fraction=f, sample_weight=mass),  # type: ignore[misc]
                _by_sorting(losses, fraction * float(mass.double().sum()), mass),
            ),
        }
        found += [Case(name, fraction, losses, value, expected) for name, (value, expected) in providers.items()]
    return found


def _by_sorting(losses: Tensor, k: float, mass: Tensor | None = None) -> float:
    ordered, order = losses.double().sort(descending=True)
    widths = torch.ones_like(ordered) if mass is None else mass.double()[order]
    before = widths.cumsum(0) - widths
    shares = (k - before).clamp(min=0).minimum(widths)
    return float((shares * ordered).sum()) / k
