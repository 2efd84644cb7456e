"""Per-sample gradients of linear maps: sums of outer products over positions, formed only where that pays."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from lightning_stiffness.gram.factors import Explicit, Factors, Run, symmetric_flops
from lightning_stiffness.gram.products import GramAccumulator
from lightning_stiffness.gram.workspace import FRESH, Workspace

GRAM_ENTRIES = 1 << 18  # of Gram matrices over positions that are formed at once: they stay in the cache


@final
@dataclass(frozen=True, eq=False)
class Outer(Factors):
    """g_i = sum_t left_it right_it^T, the weight gradient [a, b] of a linear map; with ``bias`` also sum_t right_it."""

    left: Float[Tensor, "n t a"]
    right: Float[Tensor, "n t b"]
    bias: bool = False

    @property
    @override
    def samples(self) -> int:
        return len(self.left)

    @property
    @override
    def dtype(self) -> torch.dtype:
        return self.left.dtype

    @property
    def positions(self) -> int:
        """The number of terms of each sample's sum."""
        return self.left.shape[1]

    @property
    @override
    def columns(self) -> int:
        return (self.left.shape[2] + self.bias) * self.right.shape[2]

    @property
    @override
    def elements(self) -> int:
        return self.positions * (self.left.shape[2] + self.right.shape[2])

    @property
    @override
    def is_compact(self) -> bool:
        return self.elements <= self.columns

    @property
    @override
    def pair_cost(self) -> int:
        return self.elements if self.positions == 1 else self.columns

    @property
    @override
    def has_cheap_norms(self) -> bool:
        """Whether positions are so few that Gram matrices of those of a sample cost half of its gradient or less."""
        t, (a, b) = self.positions, (self.left.shape[2], self.right.shape[2])
        return t == 1 or 2 * t * (a + b) <= a * b

    @property
    @override
    def route(self) -> str:
        if self.positions == 1:
            return "product of two Gram matrices"
        return "Gram over positions" if self._over_positions else "explicit gradients"

    @property
    def _over_positions(self) -> bool:
        """Whether an (n t x n t) product costs less than explicit gradients."""
        n, t = self.left.shape[:2]
        a, b = self.left.shape[2], self.right.shape[2]
        return n * t * t * (a + b) < n * a * b + 2 * t * a * b

    @property
    def _oriented(self) -> tuple[Tensor, Tensor]:
        """Either orientation holds the same entries; the one with the narrower rows runs faster."""
        return (self.left, self.right) if self.left.shape[2] <= self.right.shape[2] else (self.right, self.left)

    @override
    def blocks(self, workspace: Workspace = FRESH) -> Iterator[Float[Tensor, "n q"]]:
        first, second = self._oriented
        row_bytes = self.samples * second.shape[2] * second.element_size()
        step = max(1, workspace.block_bytes // max(1, row_bytes))
        for start in range(0, first.shape[2], step):
            part = first[:, :, start : start + step].transpose(1, 2)
            block = workspace.block((self.samples, part.shape[1], second.shape[2]), second)
            yield torch.bmm(part, second, out=block).flatten(1)
        if self.bias:
            yield self.right.sum(1)

    @override
    def joined_blocks(self, workspace: Workspace = FRESH) -> Float[Tensor, "n p"]:
        if not self.bias:
            return super().joined_blocks(workspace)
        first, second = self._oriented
        weights = first.shape[2] * second.shape[2]
        joined = workspace.block((self.samples, self.columns), second)
        shape = (self.samples, first.shape[2], second.shape[2])
        torch.bmm(first.transpose(1, 2), second, out=joined[:, :weights].view(shape))
        torch.sum(self.right, 1, out=joined[:, weights:])
        return joined

    @override
    def add_gram(self, total: GramAccumulator) -> None:
        if self.positions == 1:
            total.add_outer(self.left[:, 0].contiguous(), self.right[:, 0].contiguous(), self.bias)
        elif self._over_positions:
            total.add_outer_positions(self.left, self.right)
            if self.bias:
                total.add_dense(self.right.sum(1))
        else:
            super().add_gram(total)

    @override
    def square_norms(self) -> Float[Tensor, "n"]:
        if not self.has_cheap_norms:
            return super().square_norms()
        if self.positions == 1:
            left: Tensor = torch.linalg.vector_norm(self.left[:, 0], dim=1)
            right: Tensor = torch.linalg.vector_norm(self.right[:, 0], dim=1)
            return (left.square() + self.bias) * right.square()
        step = max(1, GRAM_ENTRIES // self.positions**2)
        pairs = zip(self.left.split(step), self.right.split(step), strict=True)
        return torch.cat([_norms_over_positions(left, right, self.bias) for left, right in pairs])

    @override
    def add_class_sums(self, sums: Float[Tensor, "c p"], weights: Float[Tensor, "n"], runs: Sequence[Run]) -> None:
        first, second = self._oriented
        weighted = first * weights[:, None, None]  # the narrower one
        a, b = first.shape[2], second.shape[2]
        repeated = weights[:, None].expand(-1, self.positions)
        for run in runs:
            part = slice(run.start, run.stop)
            row = sums[run.target]
            row[: a * b].view(a, b).addmm_(weighted[part].flatten(0, 1).T, second[part].flatten(0, 1))
            if self.bias:
                row[a * b :].addmv_(self.right[part].flatten(0, 1).T, repeated[part].flatten())

    @override
    def products_with(self, vectors: Float[Tensor, "k p"]) -> Float[Tensor, "n k"]:
        if self.positions > 1 and len(vectors) > 1:
            return super().products_with(vectors)
        first, second = self._oriented
        a, b = first.shape[2], second.shape[2]
        products = [((first @ row[: a * b].view(a, b)) * second).sum((1, 2)) for row in vectors]
        if self.bias:
            bias = self.right.sum(1)
            products = [one + bias @ row[a * b :] for one, row in zip(products, vectors, strict=True)]
        return torch.stack(products, 1)

    def dense(self) -> Float[Tensor, "n p"]:
        """The gradients in the order of an [a, b] matrix; without a bias only."""
        assert not self.bias
        return torch.bmm(self.left.transpose(1, 2), self.right).flatten(1)

    @override
    def split(self) -> tuple[Factors, ...]:
        if not self.bias:
            return (self,)
        return Outer(self.left, self.right), Explicit(self.right.sum(1))

    @override
    def pieces(self, columns: int) -> Iterator[Factors]:
        first, second = self._oriented
        step = max(1, columns // second.shape[2])
        for start in range(0, first.shape[2], step):
            yield Outer(first[:, :, start : start + step], second)
        if self.bias:
            yield Explicit(self.right.sum(1))

    @override
    def flops(self) -> int:
        n, t, (a, b) = self.samples, self.positions, (self.left.shape[2], self.right.shape[2])
        if t == 1 or self._over_positions:
            return symmetric_flops(n * t, a + b)
        return 2 * n * t * a * b + symmetric_flops(n, self.columns)


def _norms_over_positions(left: Tensor, right: Tensor, bias: bool) -> Float[Tensor, "n"]:
    """Sum over t and s of <left_t, left_s> <right_t, right_s>."""
    first, second = (torch.bmm(part, part.transpose(1, 2)).flatten(1) for part in (left, right))
    norms: Tensor = torch.linalg.vecdot(first.add_(float(bias)), second)
    return norms.clamp_min(0)
