"""Who computes the cross-entropy of the hardest elements: this library, plain torch, and other people's own code."""

from __future__ import annotations

import functools
import importlib
import math
import types
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.peers import mmseg_loss_file, version_of
from benchmarks.problem import IGNORED, SMALL, Loss, Problem, Weights, ranked
from topkloss import average_top_k_cross_entropy, topk_weights
from topkloss.kernels import native

__all__ = [
    "BASELINE",
    "COMPILED",
    "COPY",
    "FRESH_COPY",
    "KERNEL",
    "Provider",
    "in_kept_buffer",
    "native_providers",
    "plain",
    "providers",
]

KERNEL = "top-k cross-entropy"
BASELINE = "F.cross_entropy, mean"
COMPILED = "F.cross_entropy, mean, compiled"
COPY, FRESH_COPY = "copy of the logits", "copy into fresh memory"

# In ranks: a number of elements that is not whole, or so many of each image, is another one for some packages.
SLACK = 3

Value = Callable[[Tensor, Tensor, float], Tensor]


@dataclass(frozen=True)
class Provider:
    """Who computes, and what of.

    Attributes:
        value: From outputs, targets and a fraction to the loss.
        averages_all: Whether the loss is the plain mean, whatever the fraction.
        divides_by_all: Whether the sum is divided by the number of all elements, selected or not.
    """

    value: Value
    averages_all: bool = False
    divides_by_all: bool = False

    def at(self, fraction: float) -> Loss:
        """What computes the loss of this fraction."""
        return lambda outputs, targets: self.value(outputs, targets, fraction)

    def weights(self, problem: Problem, fraction: float) -> Weights:
        """What it makes of the losses."""
        k = problem.k(fraction)
        right = ranked(problem.losses, problem.counted if self.averages_all else k, slack=SLACK, margin=problem.margin)
        return right.scaled(k / problem.targets.numel()) if self.divides_by_all else right


def providers(problem: Problem, *, compiles: bool) -> dict[str, Provider]:
    """Who is there, and fit for the problem; the baseline first."""
    found = {BASELINE: Provider(plain, averages_all=True)}
    found |= {name: Provider(value) for name, value in native_providers().items()}
    found["torch"] = Provider(_ours(backend="torch"))
    if problem.logits.numel() <= SMALL:
        found["auto"] = Provider(_ours(backend="auto"))
    found["cross-entropy, topk, mean"] = Provider(lambda x, y, f: _naive(x, y, problem.k(f)))
    if compiles:
        found[COMPILED] = Provider(torch.compile(plain), averages_all=True)
        naive = torch.compile(_naive)
        found["cross-entropy, topk, mean, compiled"] = Provider(lambda x, y, f: naive(x, y, problem.k(f)))
    found |= _peers(problem)
    if problem.logits.dim() == 2 and problem.logits.numel() <= SMALL:
        found["the notebook's loop"] = Provider(lambda x, y, f: _loop(x, y, problem.k(f)))
    return found


def native_providers() -> dict[str, Value]:
    """The native kernels, where they are: as they are called, and in place."""
    if not native.is_available():
        return {}
    return {"native": _ours(backend="native"), "native, in place": _ours(backend="native", inplace=True)}


def in_kept_buffer(problem: Problem, fraction: float) -> Callable[[Tensor], None]:
    """The native kernels, writing their gradient into memory that is there already; the caller gives the logits."""
    kept, targets = torch.zeros_like(problem.logits), problem.targets
    settings: dict[str, Any] = {"class_weight": None, "smoothing": 0.0}

    def step(logits: Tensor) -> None:
        counts = targets != IGNORED
        losses, _ = native.cross_entropy(logits, targets, counts=counts, **settings)
        weights = topk_weights(losses, fraction=fraction, mask=counts)
        native.gradient(weights, logits, targets, counts=counts, **settings, out=kept)

    return step


def _ours(**given: Any) -> Value:
    return lambda x, y, f: average_top_k_cross_entropy(x, y, fraction=f, ignore_index=IGNORED, **given)


def plain(outputs: Tensor, targets: Tensor, fraction: float = 1.0) -> Tensor:
    """The baseline: all elements, whatever the fraction."""
    return F.cross_entropy(outputs, targets, ignore_index=IGNORED)


def _naive(outputs: Tensor, targets: Tensor, k: int) -> Tensor:
    losses = F.cross_entropy(outputs, targets, ignore_index=IGNORED, reduction="none")
    return torch.topk(losses.flatten(), k, sorted=False)[0].mean()


def _loop(outputs: Tensor, targets: Tensor, k: int) -> Tensor:
    """Sample by sample, as in the notebook."""
    losses = []
    for i in range(len(targets)):
        if targets[i] != IGNORED:
            losses.append(F.cross_entropy(outputs[i : i + 1], targets[i : i + 1]))
    return torch.topk(torch.stack(losses), k)[0].mean()


def _peers(problem: Problem) -> dict[str, Provider]:
    """Other packages, each asked for the same elements, of what it can compute with."""
    n = problem.targets.numel()
    found: dict[str, Provider] = {}
    if version_of("nnunetv2"):
        top_k_loss = importlib.import_module("nnunetv2.training.loss.robust_ce_loss").TopKLoss

        @functools.cache
        def criterion(fraction: float) -> Any:
            with warnings.catch_warnings(action="ignore"):  # it passes arguments that torch deprecates
                return top_k_loss(ignore_index=IGNORED, k=100 * (problem.k(fraction) + 0.5) / n)

        def nnunet(outputs: Tensor, targets: Tensor, fraction: float) -> Tensor:
            return criterion(fraction)(outputs, targets.unsqueeze(1))  # type: ignore[no-any-return]

        found["nnU-Net TopKLoss"] = Provider(nnunet)
    if version_of("sqwash") and problem.logits.dtype == torch.float32:
        reduce = importlib.import_module("sqwash").reduce_superquantile

        def sqwash(outputs: Tensor, targets: Tensor, fraction: float) -> Tensor:
            losses = F.cross_entropy(outputs, targets, ignore_index=IGNORED, reduction="none").flatten()
            return reduce(losses, superquantile_tail_fraction=problem.k(fraction) / n)  # type: ignore[no-any-return]

        found["sqwash"] = Provider(sqwash)
    if version_of("mmsegmentation") and problem.logits.dim() > 2 and problem.logits.dtype == torch.float32:
        found |= _mmseg(problem)
    return found


def _mmseg(problem: Problem) -> dict[str, Provider]:
    ohem = mmseg_loss_file("ohem_cross_entropy_loss").OhemCrossEntropy
    with warnings.catch_warnings(action="ignore"):  # about what its mean divides by
        cross_entropy = mmseg_loss_file("cross_entropy_loss").CrossEntropyLoss()
    sampler_type = importlib.import_module("mmseg.structures.sampler").OHEMPixelSampler
    head = types.SimpleNamespace(ignore_index=IGNORED, loss_decode=cross_entropy)

    def by_threshold(outputs: Tensor, targets: Tensor, fraction: float) -> Tensor:
        """With the threshold 0, `min_kept` alone decides: as many elements as everyone else keeps."""
        return ohem(ignore_label=IGNORED, thres=0.0, min_kept=problem.k(fraction))(outputs, targets)  # type: ignore[no-any-return]

    def by_sampler(outputs: Tensor, targets: Tensor, fraction: float) -> Tensor:
        kept = math.ceil(problem.k(fraction) / len(targets))
        weight = sampler_type(head, thresh=None, min_kept=kept).sample(outputs, targets.unsqueeze(1))
        return cross_entropy(outputs, targets, weight=weight, ignore_index=IGNORED)  # type: ignore[no-any-return]

    return {
        "mmseg OhemCrossEntropy": Provider(by_threshold),
        "mmseg sampler": Provider(by_sampler, divides_by_all=True),
    }
