"""Leaves out positions that no gradient reaches: those behind a class token or a last token, and padding."""

import torch
from jaxtyping import Bool
from torch import Tensor

from lightning_stiffness.gram.factors import Factors
from lightning_stiffness.gram.outer import Outer

WORTHWHILE = 0.75  # more than this share of the positions is not worth moving the others
LOOKED_AT = 8  # entries of a position which tell in most cases that there is a gradient


def trimmed(factors: Factors) -> Factors:
    """The same gradients, with as few positions as the sample with the most needs; others add exactly zero.

    Source: ours.
    """
    if not isinstance(factors, Outer) or factors.positions == 1:
        return factors
    right = factors.right
    step = max(1, right.shape[2] // LOOKED_AT)
    if _most(right[:, :, ::step] != 0) > WORTHWHILE * factors.positions:  # the others can only be more
        return factors
    is_reached = right.any(2)
    count = max(1, _most(is_reached))
    if count > WORTHWHILE * factors.positions:
        return factors
    if bool((is_reached == is_reached[:1]).all()):
        places = torch.argsort(is_reached[0].int(), descending=True, stable=True)[:count]
        return Outer(factors.left[:, places], right[:, places], factors.bias)
    places = torch.argsort(is_reached.int(), dim=1, descending=True, stable=True)[:, :count]
    samples = torch.arange(len(right), device=right.device)[:, None]
    return Outer(factors.left[samples, places], right[samples, places], factors.bias)


def _most(is_reached: Bool[Tensor, "n t *d"]) -> int:
    """The largest number of positions of a sample of which some entry is reached."""
    each = is_reached if is_reached.ndim == 2 else is_reached.any(2)
    return int(each.sum(1).max()) if len(each) else 0
