"""One form for a parameter that is used more than once: the gradients of its uses add up."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_stiffness.gram.embedding import Rows, TiedEmbedding
from lightning_stiffness.gram.factors import Explicit, Factors
from lightning_stiffness.gram.graph import NotCovered
from lightning_stiffness.gram.outer import Outer


@dataclass(frozen=True, eq=False)
class Placed:
    """One use of a parameter, and where its entries lie in the flattened parameter: as they come, without positions."""

    factors: Factors
    positions: Tensor | None


def join(parts: Sequence[Placed], entries: int, dense_bytes: int) -> Placed:
    """The gradients of one parameter from those of its uses: they add up, so cross terms are included.

    Raises:
        NotCovered: Uses of different kinds, and too large for explicit gradients.
    """
    if len(parts) == 1:
        return parts[0]
    merged: list[Placed] = []
    for group in _by_positions(parts):
        factors = _concatenated(group)
        merged.extend(group if factors is None else [Placed(factors, group[0].positions)])
    if len(merged) == 1:
        return merged[0]
    tied = _tied_embedding(merged)
    if tied is not None:
        return tied
    sample = parts[0].factors
    if 2 * sample.samples * entries * 4 > dense_bytes:
        raise NotCovered("used in several ways, and too large for explicit gradients")
    total: Tensor | None = None
    for part in parts:
        explicit = in_order(part, part.factors.dense(), entries)
        total = explicit if total is None else total + explicit
    assert total is not None
    return Placed(Explicit(total), None)


def in_order(part: Placed, explicit: Float[Tensor, "n q"], entries: int) -> Float[Tensor, "n p"]:
    """Explicit gradients of a use in the order of the flattened parameter, zero where the use does not see it."""
    if part.positions is None:
        return explicit
    total = explicit.new_zeros(len(explicit), entries)
    return total.index_add_(1, part.positions.flatten().to(total.device), explicit)


def _by_positions(parts: Sequence[Placed]) -> list[list[Placed]]:
    groups: list[list[Placed]] = []
    for part in parts:
        for group in groups:
            if _same(group[0].positions, part.positions):
                group.append(part)
                break
        else:
            groups.append([part])
    return groups


def _same(first: Tensor | None, second: Tensor | None) -> bool:
    if first is None or second is None:
        return first is second
    return torch.equal(first, second)


def _concatenated(group: Sequence[Placed]) -> Factors | None:
    """One value for uses with equal positions, where their kind allows it."""
    factors = [part.factors for part in group]
    if len(factors) == 1:
        return factors[0]
    if all(isinstance(part, Explicit) for part in factors):
        return Explicit(sum((part.dense() for part in factors[1:]), factors[0].dense()))
    outers = [part for part in factors if isinstance(part, Outer)]
    if len(outers) == len(factors):
        return Outer(torch.cat([part.left for part in outers], 1), torch.cat([part.right for part in outers], 1))
    rows = [part for part in factors if isinstance(part, Rows)]
    if len(rows) == len(factors):
        indices, values = torch.cat([part.indices for part in rows], 1), torch.cat([part.values for part in rows], 1)
        return Rows(indices, values, rows[0].rows)
    return None


def _tied_embedding(merged: Sequence[Placed]) -> Placed | None:
    """An embedding and an output layer that share their table, if that is what these are."""
    rows = [part for part in merged if isinstance(part.factors, Rows)]
    outers = [part for part in merged if isinstance(part.factors, Outer)]
    if len(merged) != 2 or len(rows) != 1 or len(outers) != 1:
        return None
    (row,), (outer,) = rows, outers
    if row.positions is None or outer.positions is None or outer.positions.ndim != 2:
        return None
    if not torch.equal(outer.positions.t(), row.positions):
        return None
    assert isinstance(row.factors, Rows)
    assert isinstance(outer.factors, Outer)
    return Placed(TiedEmbedding(row.factors, outer.factors), row.positions)
