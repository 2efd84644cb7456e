"""The Gram matrix of the gradients of a model's logits, from those of sums of the logits with random signs."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_stiffness.errors import StiffnessError
from lightning_stiffness.gram.results import Gram

Logits = Callable[[Any, Any], Tensor]
OCTAVE_PARTS = 4  # rates within a quarter of an octave count as one


class Projection:
    """A loss that is a sum of each sample's logits with the weights of one direction after the other.

    Attributes:
        number: Which direction comes next.
        count: How many there are, once the number of logits is known.
    """

    def __init__(self, logits: Logits, most: int, seed: int) -> None:
        """``logits`` maps (module, batch) to a tensor [n, c]; ``most`` directions."""
        self.logits, self._most, self._seed = logits, most, seed
        self.number = 0
        self.count = 1

    def __call__(self, module: Any, batch: Any) -> Float[Tensor, "n"]:
        """The weighted sums.

        Raises:
            StiffnessError: The logits are no matrix.
        """
        found = self.logits(module, batch)
        if not isinstance(found, Tensor) or found.ndim != 2 or not found.is_floating_point():
            shape = list(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise StiffnessError(f"logits must return floating point values of shape [n, c], found {shape}.")
        wanted = directions(found.shape[1], self._most, self._seed)
        self.count = len(wanted)
        return found @ wanted[self.number].to(found)


def directions(classes: int, most: int, seed: int) -> Float[Tensor, "k c"]:
    """Directions d whose mean d d^T is the unit matrix / c: the axes if there are few classes, else random signs.

    Example:
        >>> directions(2, 3, 0)
        tensor([[1., 0.],
                [0., 1.]])
    """
    if classes <= most:
        return torch.eye(classes)
    signs = torch.randint(0, 2, (most, classes), generator=torch.Generator().manual_seed(seed)) * 2.0 - 1
    return signs / math.sqrt(classes)


def projected_gram(
    gram: Callable[..., Gram], projection: Projection, batch: Any, rates: Mapping[str, float] | None
) -> Float[Tensor, "n n"]:
    """The mean of the Gram matrices of all directions.

    Args:
        gram: That of an engine whose loss is the projection.
        projection: The directions.
        batch: The samples.
        rates: How much each parameter counts, by its name; None for 1 each.
    """
    total, number = gram_along(gram, projection, batch, rates, 0), 1
    while number < projection.count:
        total = total + gram_along(gram, projection, batch, rates, number)
        number += 1
    return total / number


def gram_along(
    gram: Callable[..., Gram], projection: Projection, batch: Any, rates: Mapping[str, float] | None, number: int
) -> Float[Tensor, "n n"]:
    """The Gram matrix of one direction; arguments as for `projected_gram`."""
    by = None if rates is None else _by_rate(rates)
    projection.number = number
    try:
        found = gram(batch, by=by)
    finally:
        projection.number = 0
    return found.matrix if by is None else _weighted(found)


def _weighted(gram: Gram) -> Tensor:
    parts = [matrix * (0.0 if group == "none" else 2.0 ** float(group)) for group, matrix in gram.parts.items()]
    return torch.stack(parts).sum(0)


def _by_rate(rates: Mapping[str, float]) -> Callable[[str], str]:
    """Groups of parameters with about the same rate, named by the power of two that it is."""

    def group(name: str) -> str:
        rate = rates.get(name, 0.0)
        return str(round(OCTAVE_PARTS * math.log2(rate)) / OCTAVE_PARTS) if rate > 0 else "none"

    return group
