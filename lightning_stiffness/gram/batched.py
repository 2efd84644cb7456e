"""Per-sample gradients of several matrices in one parameter, each of a linear map of its own."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from lightning_stiffness.gram.factors import Factors
from lightning_stiffness.gram.outer import Outer
from lightning_stiffness.gram.products import GramAccumulator
from lightning_stiffness.gram.workspace import FRESH, Workspace


@final
@dataclass(frozen=True, eq=False)
class BatchedOuter(Factors):
    """g_i = (sum_t left_iet right_iet^T) for each matrix e of a parameter [e, a, b]."""

    left: Float[Tensor, "n e t a"]
    right: Float[Tensor, "n e t b"]

    @property
    @override
    def samples(self) -> int:
        return len(self.left)

    @property
    @override
    def dtype(self) -> torch.dtype:
        return self.left.dtype

    @property
    @override
    def columns(self) -> int:
        return self.left.shape[1] * self.left.shape[3] * self.right.shape[3]

    @property
    @override
    def elements(self) -> int:
        return self.left[0].numel() + self.right[0].numel()

    @property
    @override
    def is_compact(self) -> bool:
        return self.elements <= self.columns

    @property
    @override
    def route(self) -> str:
        return f"{self.left.shape[1]} matrices, each: {self._matrix(0).route}"

    def _matrix(self, index: int) -> Outer:
        return Outer(self.left[:, index], self.right[:, index])

    def _matrices(self) -> Iterator[Outer]:
        return map(self._matrix, range(self.left.shape[1]))

    @override
    def blocks(self, workspace: Workspace = FRESH) -> Iterator[Float[Tensor, "n q"]]:
        for matrix in self._matrices():
            yield matrix.dense()

    @override
    def add_gram(self, total: GramAccumulator) -> None:
        for matrix in self._matrices():
            matrix.add_gram(total)

    @override
    def square_norms(self) -> Float[Tensor, "n"]:
        norms = [matrix.square_norms() for matrix in self._matrices()]
        return torch.stack(norms).sum(0)

    @override
    def flops(self) -> int:
        return sum(matrix.flops() for matrix in self._matrices())
