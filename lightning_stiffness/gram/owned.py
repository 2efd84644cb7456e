"""Rows that each belong to one sample, in any order: packed sequences, tokens sent to experts, samples sorted by value.

Such an operation has no batch axis, and where a sample's rows lie may change from batch to batch. Two backward passes
tell: the second weights the losses by a code, and the ratio of the two gradients of a row is the code of its sample.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.graph import Node
from typing_extensions import override

from lightning_stiffness.gram.graph import Layout, NotCovered, weighted_gradients

TOLERANCE = 1e-4  # of the largest entry of a row: rounding of a backward pass in float32, not another sample's part
NOBODY = -1  # the owner of a row without a gradient


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Owned(Layout):
    """The owner of each row of a tensor, all of whose axes but the last are rows."""

    owners: Int[Tensor, "m"]

    @cached_property
    def _members(self) -> Int[Tensor, "n t"]:
        return _members(self.owners, self.samples)

    @override
    def rows(self, tensor: Tensor) -> Tensor:
        """The tensor as [n, t, d], filled up with zeros."""
        count = tensor[..., 0].numel()
        if count % len(self.owners):
            raise NotCovered("the rows of an input are not those of the output")
        flat = tensor.reshape(len(self.owners), -1)
        return _taken(flat, self._members).reshape(self.samples, -1, tensor.shape[-1])

    @override
    def frames(self, tensor: Tensor) -> Tensor:
        """The tensor as [n, k, ...], filled up with zeros.

        Raises:
            NotCovered: The entries of its first axis have several owners each.
        """
        if len(self.owners) % len(tensor):
            raise NotCovered("the rows of an input are not those of the output")
        owners = self.owners.view(len(tensor), -1)
        first = owners.amax(1)
        if bool(((owners != first[:, None]) & (owners != NOBODY)).any()):
            raise NotCovered("the samples lie along several axes")
        members = _members(first, self.samples)
        return _taken(tensor.reshape(len(tensor), -1), members).reshape(*members.shape, *tensor.shape[1:])

    @override
    def reduce(self, gradient: Tensor, shape: Sequence[int]) -> Tensor:
        """Per-sample gradients [n, prod(shape)] of an operand of ``shape`` that was broadcast to the gradient's shape.

        Raises:
            NotCovered: The operand itself varies over the rows.
        """
        operand = [1] * (gradient.ndim - len(shape)) + list(shape)
        if all(size == 1 for size in operand[:-1]):
            total = self.rows(gradient).sum(1)
        elif operand[0] == 1:
            total = self.frames(gradient).sum(1)
        else:
            raise NotCovered("the parameter varies over the rows")
        return total.sum_to_size(self.samples, *operand[1 - total.ndim :]).reshape(self.samples, -1)


def owned_gradients(losses: Tensor, weights: Tensor, nodes: Sequence[Node]) -> list[tuple[Tensor, Owned] | None]:
    """The output gradients of nodes, and the owners of their rows; None where the losses do not depend on a node.

    Raises:
        NotCovered: A row belongs to several samples.
    """
    n = len(losses)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(n)).to(losses.device)
    code = 1 + order.to(losses.dtype) / n
    plain = weighted_gradients(losses, weights, nodes, retain_graph=True)
    coded = weighted_gradients(losses, weights * code, nodes, retain_graph=True)
    found: list[tuple[Tensor, Owned] | None] = []
    for first, second in zip(plain, coded, strict=True):
        if first is None or second is None or not bool(second.any()):
            found.append(None)
            continue
        width = first.shape[-1] if first.ndim > 1 else 1
        level = _levels(first.reshape(-1, width), second.reshape(-1, width), n)
        owners = torch.where(level >= 0, order.argsort()[level.clamp_min(0)], NOBODY)
        found.append((first, Owned(-1, n, owners=owners)))
    return found


def _levels(plain: Float[Tensor, "m d"], coded: Float[Tensor, "m d"], samples: int) -> Int[Tensor, "m"]:
    """The code of each row in units of 1 / samples above one."""
    size = plain.abs().amax(1)
    is_alive = size > 0
    scale = torch.where(is_alive, size, torch.ones_like(size))[:, None]
    plain, coded = plain / scale, coded / scale
    ratio = (plain * coded).sum(1) / plain.square().sum(1).clamp_min(torch.finfo(plain.dtype).tiny)
    exact = (ratio - 1) * samples
    level = exact.round().long().clamp(0, samples - 1)
    code = 1 + level.to(plain.dtype) / samples
    is_one = ((coded - plain * code[:, None]).abs().amax(1) <= TOLERANCE) & ((exact - level).abs() < 0.25)
    if not bool(torch.where(is_alive, is_one, coded.abs().amax(1) == 0).all()):
        raise NotCovered("a row belongs to several samples")
    return torch.where(is_alive, level, NOBODY)


def _members(owners: Int[Tensor, "m"], samples: int) -> Int[Tensor, "n t"]:
    """The rows of each sample, filled up with the number of rows."""
    rows = (owners != NOBODY).nonzero().flatten()
    rows = rows[torch.argsort(owners[rows], stable=True)]
    counts = torch.bincount(owners[rows], minlength=samples)
    place = torch.arange(len(rows), device=rows.device) - (counts.cumsum(0) - counts)[owners[rows]]
    members = rows.new_full((samples, max(1, int(counts.max()))), len(owners))
    members[owners[rows], place] = rows
    return members


def _taken(flat: Tensor, members: Int[Tensor, "n t"]) -> Tensor:
    return torch.cat([flat, flat.new_zeros(1, flat.shape[1])])[members]
