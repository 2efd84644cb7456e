"""What is asked of the Gram matrix: all of it or some blocks, in one sum over the parameters or one for each group."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import TypeAlias

import torch
from torch import Tensor

from lightning_stiffness.errors import StiffnessError
from lightning_stiffness.gram.collect import Found
from lightning_stiffness.gram.products import Block, GramAccumulator, whole
from lightning_stiffness.gram.results import CrossGram, Gram
from lightning_stiffness.gram.workspace import Workspace

EVERYTHING = ""

Grouping: TypeAlias = str | Callable[[str], str] | None
"""How parameters are grouped: "layer", "parameter", or from the name of one to that of its group; None for not."""


def layer_of(parameter: str) -> str:
    """The module that holds a parameter: its name up to the last dot; `(root)` for one of the model itself."""
    return parameter.rpartition(".")[0] or "(root)"


@dataclass(frozen=True)
class Request:
    """Blocks of the Gram matrix of samples in some order, and how the parameters are grouped.

    Attributes:
        order: The samples, in the order in which the blocks count them.
        blocks: Rows and columns that are wanted.
        group_of: parameter name -> the group whose Gram it adds to; None for one sum over all.
        norms: Whether the norms of the gradients are wanted as well, which blocks off the diagonal do not tell.
    """

    order: tuple[int, ...]
    blocks: tuple[Block, ...]
    group_of: Callable[[str], str] | None = None
    norms: bool = False


def everything(samples: int) -> Request:
    """All pairs."""
    return Request(tuple(range(samples)), whole(samples))


def by_class(targets: Sequence[int]) -> Request:
    """The pairs of samples of the same class."""
    order = sorted(range(len(targets)), key=lambda sample: targets[sample])
    blocks, start = [], 0
    for _, members in groupby(targets[sample] for sample in order):
        stop = start + len(list(members))
        blocks.append(Block(range(start, stop), range(start, stop)))
        start = stop
    return Request(tuple(order), tuple(blocks))


def across(first: int, second: int, with_first: bool = False) -> Request:
    """Each of the first samples with each of the second ones, which follow them in the batch, or with all."""
    rows, both = range(first), first + second
    own = (Block(rows, rows),) if with_first else ()
    return Request(tuple(range(both)), (*own, Block(rows, range(first, both))), norms=True)


def grouped(request: Request, by: Grouping) -> Request:
    """The same blocks of each group of parameters.

    Raises:
        StiffnessError: ``by`` is not known.
    """
    known: dict[str, Callable[[str], str]] = {"layer": layer_of, "parameter": lambda name: name}
    if by is None or callable(by):
        return replace(request, group_of=by)
    if by not in known:
        raise StiffnessError(
            f'by must be "layer", "parameter", or a function from the name of a parameter to that of its group; '
            f"found {by!r}."
        )
    return replace(request, group_of=known[by])


class Totals:
    """Sums what is found into one accumulator for each group of parameters.

    Attributes:
        parts: The sums, by group.
        routes: How each parameter was measured, by its name.
        losses: Of the samples in the order of the request, once they are known.
        weights: What gradients were multiplied by while they were collected, likewise.
    """

    def __init__(self, request: Request, names: Sequence[str], like: Tensor, scratch: int) -> None:
        """Starts at zero, in the dtype and on the device of ``like``."""
        self._request, self._names = request, list(names)
        group_of = request.group_of or (lambda name: EVERYTHING)
        self._groups = [group_of(name) for name in names]
        workspace = Workspace(scratch)
        self.parts = {
            group: GramAccumulator(request.blocks, like, scratch, workspace) for group in dict.fromkeys(self._groups)
        }
        self._squares = like.new_zeros(len(request.order))
        self.routes = dict.fromkeys(names, "not used by the loss")
        self.losses = self.weights = torch.ones_like(self._squares)

    def cut(self, found: Found) -> Iterable[Found]:
        """One value for each group, where one form covers parameters of several."""
        if len({self._groups[index] for index in found.parameters}) == 1:
            return (found,)
        pairs = zip(found.parameters, found.factors.split(), strict=True)
        return [replace(found, parameters=(index,), factors=factors) for index, factors in pairs]

    def add(self, found: Found) -> None:
        """Adds what all samples contribute to some parameters."""
        for one in self.cut(found):
            self._add(one)

    def _add(self, found: Found) -> None:
        self.routes.update((self._names[index], found.factors.route) for index in found.parameters)
        found.factors.add_gram(self.parts[self._groups[found.parameters[0]]])
        if self._request.norms:
            self._squares += found.factors.square_norms()

    def add_dense(self, index: int, gradients: Iterable[Tensor]) -> None:
        """Adds explicit gradients of the parameter with that number, or some that share its group."""
        total = self.parts[self._groups[index]]
        for block in gradients:
            dense = block.detach().to(self._squares.dtype)
            total.add_dense(dense)
            if self._request.norms:
                self._squares += dense.square().sum(1)

    def grouped(self, indices: Iterable[int]) -> list[list[int]]:
        """The same parameters, those of a group together."""
        ordered = sorted(indices, key=lambda index: self._groups[index])
        return [list(members) for _, members in groupby(ordered, lambda index: self._groups[index])]

    def gram(self) -> Gram:
        """What was asked for, in the order of the batch."""
        parts = {group: self._placed(self._blocks(total)) for group, total in self.parts.items()}
        losses = torch.empty_like(self.losses)
        losses[list(self._request.order)] = self.losses
        total, parts = self._summed(parts)
        return Gram(total, losses, self.routes, parts)

    def cross(self) -> CrossGram:
        """The blocks between the samples of two batches, side by side."""
        first, last = self._request.blocks[0], self._request.blocks[-1]
        norms = self._squares.to(self._scale.dtype).sqrt() * self._scale
        parts = {group: _side_by_side(self._blocks(total)) for group, total in self.parts.items()}
        total, parts = self._summed(parts)
        rows, columns = _slice(first.rows), slice(first.columns.start, last.columns.stop)
        losses = self.losses
        return CrossGram(total, norms[rows], norms[columns], losses[rows], losses[columns], self.routes, parts)

    def _summed(self, parts: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """The sum over all parameters, and that of each group if groups were asked for."""
        if self._request.group_of is None:
            return parts[EVERYTHING], {}
        first, *others = parts.values()
        total = first.clone()
        for part in others:
            total += part
        return total, parts

    @property
    def _scale(self) -> Tensor:
        """What undoes the weights which gradients were multiplied by, in float64 where the device has it."""
        return 1 / (self.weights if self.weights.device.type == "mps" else self.weights.double())

    def _blocks(self, total: GramAccumulator) -> list[Tensor]:
        scale = self._scale
        return [
            matrix.to(scale.dtype).mul_(scale[_slice(block.rows)][:, None]).mul_(scale[_slice(block.columns)])
            for block, matrix in zip(self._request.blocks, total.results(), strict=True)
        ]

    def _placed(self, blocks: Sequence[Tensor]) -> Tensor:
        """The matrix [n, n] in the order of the batch, nan outside the blocks."""
        n = len(self._request.order)
        if self._request.blocks == whole(n) and self._request.order == tuple(range(n)):
            return blocks[0]
        matrix = blocks[0].new_full((n, n), torch.nan)
        order = torch.tensor(self._request.order, device=matrix.device)
        for block, values in zip(self._request.blocks, blocks, strict=True):
            matrix[order[_slice(block.rows)][:, None], order[_slice(block.columns)]] = values
        return matrix


def _side_by_side(blocks: Sequence[Tensor]) -> Tensor:
    return blocks[0] if len(blocks) == 1 else torch.cat(tuple(blocks), 1)


def _slice(part: range) -> slice:
    return slice(part.start, part.stop)
