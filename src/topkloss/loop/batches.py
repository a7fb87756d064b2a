"""A batch that can be cut by its examples: what a selective step hands to the model, piece by piece."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

from torch import Tensor

Inputs: TypeAlias = Tensor | Sequence[Any] | Mapping[str, Any]


class Batch(NamedTuple):
    """What a step is called with; every tensor has the examples in the first dimension."""

    arguments: list[Any]
    named: dict[str, Any]
    targets: Tensor
    mask: Tensor | None
    sample_weight: Tensor | None

    def of(self, rows: slice | Tensor) -> Batch:
        """The batch of some of its examples."""

        def some(one: Any) -> Any:
            return one[rows] if isinstance(one, Tensor) else one

        named = {name: some(one) for name, one in self.named.items()}
        return Batch([some(one) for one in self.arguments], named, *(some(one) for one in self[2:]))


def batch_of(inputs: Inputs, targets: Tensor, mask: Tensor | None, sample_weight: Tensor | None) -> Batch:
    """What a step was called with, which has as many examples in every tensor."""
    if not isinstance(targets, Tensor) or targets.dim() == 0:
        came = "a scalar" if isinstance(targets, Tensor) else type(targets).__name__
        raise TypeError(
            f"`targets` must be a tensor with the examples in the first dimension; got {came}. For several targets "
            "join them in one tensor."
        )
    named = dict(inputs) if isinstance(inputs, Mapping) else {}
    arguments = [inputs] if isinstance(inputs, Tensor) else [] if isinstance(inputs, Mapping) else list(inputs)
    every = {f"inputs[{number}]": one for number, one in enumerate(arguments)} | named
    for name, one in (every | {"mask": mask, "sample_weight": sample_weight}).items():
        if isinstance(one, Tensor) and (one.dim() == 0 or len(one) != len(targets)):
            raise ValueError(
                f"`{name}` and `targets` must have as many examples, in the first dimension; got {tuple(one.shape)} "
                f"and {tuple(targets.shape)}. What all examples share belongs into the model."
            )
    return Batch(arguments, named, targets, mask, sample_weight)


def pieces(examples: int, most: int) -> list[slice]:
    """The fewest slices of at most so many examples, of nearly the same length; at least one."""
    number = max(1, -(-examples // most))
    return [slice(examples * i // number, examples * (i + 1) // number) for i in range(number)]
