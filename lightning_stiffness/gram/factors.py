"""Per-sample gradients of one parameter in the form in which its operation gives them, and the algebra on that form.

Every form knows its explicit gradients in column blocks; Gram matrices, norms and class sums follow from them, and a
form overrides what it can do cheaper.
"""

import abc
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from lightning_stiffness.gram.products import GramAccumulator
from lightning_stiffness.gram.workspace import FRESH, Workspace


@dataclass(frozen=True)
class Run:
    """Consecutive samples start:stop of the same class."""

    target: int
    start: int
    stop: int


class Factors(abc.ABC):
    """The per-sample gradients g_1 ... g_n of one use of a parameter, each of ``columns`` entries."""

    @property
    @abc.abstractmethod
    def samples(self) -> int:
        """The number n of samples."""

    @property
    @abc.abstractmethod
    def columns(self) -> int:
        """The number of entries of one sample's gradient."""

    @property
    @abc.abstractmethod
    def dtype(self) -> torch.dtype:
        """The type of the gradients."""

    @property
    @abc.abstractmethod
    def elements(self) -> int:
        """The number of stored entries per sample."""

    @abc.abstractmethod
    def blocks(self, workspace: Workspace = FRESH) -> Iterator[Float[Tensor, "n q"]]:
        """The explicit gradients, in column blocks that together hold each entry once, always in the same order.

        Blocks have about the size that the workspace names and may be written to it: then the next block overwrites
        the last one.
        """

    @abc.abstractmethod
    def flops(self) -> int:
        """Floating point operations of ``add_gram``, counting a multiply-add as two."""

    @property
    def pair_cost(self) -> int:
        """Multiply-adds for each pair of samples in ``add_gram``."""
        return self.columns

    @property
    def has_cheap_norms(self) -> bool:
        """Whether ``square_norms`` goes without explicit gradients."""
        return False

    @property
    def is_compact(self) -> bool:
        """Whether no form has fewer entries."""
        return True

    @property
    def copied(self) -> int:
        """The number of entries per sample that ``add_gram`` copies at once, beside blocks of explicit gradients."""
        return 0

    @property
    @abc.abstractmethod
    def route(self) -> str:
        """How ``add_gram`` goes about it, for people."""

    def add_gram(self, total: GramAccumulator) -> None:
        """Adds <g_i, g_j> to the accumulator."""
        for block in self.blocks(total.workspace):
            total.add_dense(block)

    def square_norms(self) -> Float[Tensor, "n"]:
        """|g_i|^2."""
        norms = [torch.linalg.vector_norm(block, dim=1).square_() for block in self.blocks(Workspace())]
        return torch.stack(norms).sum(0)

    def add_class_sums(self, sums: Float[Tensor, "c p"], weights: Float[Tensor, "n"], runs: Sequence[Run]) -> None:
        """Adds sum_i weights_i g_i over each run of samples to the row of its class."""
        start = 0
        for block in self.blocks():
            part = sums[:, start : start + block.shape[1]]
            for run in runs:
                part[run.target].addmv_(block[run.start : run.stop].T, weights[run.start : run.stop])
            start += block.shape[1]

    def products_with(self, vectors: Float[Tensor, "k p"]) -> Float[Tensor, "n k"]:
        """<g_i, v> for vectors v in the order of ``blocks`` and of ``add_class_sums``."""
        start, products = 0, vectors.new_zeros(self.samples, len(vectors))
        for block in self.blocks(Workspace()):
            products += block @ vectors[:, start : start + block.shape[1]].T
            start += block.shape[1]
        return products

    def joined_blocks(self, workspace: Workspace = FRESH) -> Float[Tensor, "n p"]:
        """All explicit gradients at once, in the order of ``blocks`` and of ``add_class_sums``.

        The workspace must be one that lends several blocks at a time.
        """
        blocks = list(self.blocks(workspace))
        return blocks[0] if len(blocks) == 1 else torch.cat(blocks, 1)

    def dense(self) -> Float[Tensor, "n p"]:
        """The same in the order of the parameter."""
        return self.joined_blocks()

    def split(self) -> tuple["Factors", ...]:
        """One value for each parameter, where the form covers several."""
        return (self,)

    def pieces(self, columns: int) -> Iterator["Factors"]:
        """The same entries in values of about so many columns, where that costs nothing."""
        yield self


def symmetric_flops(samples: int, columns: int) -> int:
    """Multiply-adds, times two, of the upper triangle of an [n, columns] Gram."""
    return samples * (samples + 1) * columns


@final
@dataclass(frozen=True, eq=False)
class Explicit(Factors):
    """The gradients themselves."""

    gradients: Float[Tensor, "n p"]

    @property
    @override
    def samples(self) -> int:
        return len(self.gradients)

    @property
    @override
    def dtype(self) -> torch.dtype:
        return self.gradients.dtype

    @property
    @override
    def columns(self) -> int:
        return self.gradients.shape[1]

    @property
    @override
    def elements(self) -> int:
        return self.columns

    @property
    @override
    def has_cheap_norms(self) -> bool:
        return True

    @property
    @override
    def route(self) -> str:
        return "explicit gradients"

    @override
    def blocks(self, workspace: Workspace = FRESH) -> Iterator[Float[Tensor, "n q"]]:
        yield self.gradients

    @override
    def flops(self) -> int:
        return symmetric_flops(self.samples, self.columns)


def runs_of(targets: Sequence[int]) -> list[Run]:
    """The runs of equal neighbours in ``targets``."""
    runs: list[Run] = []
    for target, members in groupby(targets):
        start = runs[-1].stop if runs else 0
        runs.append(Run(target, start, start + len(list(members))))
    return runs
