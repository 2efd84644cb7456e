"""Per-sample gradients of embedding tables, alone and tied to an output layer."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor
from typing_extensions import override

from lightning_stiffness.gram.factors import Factors, Run, symmetric_flops
from lightning_stiffness.gram.outer import Outer
from lightning_stiffness.gram.products import GramAccumulator
from lightning_stiffness.gram.workspace import BLOCK_BYTES, FRESH, Workspace


@final
@dataclass(frozen=True, eq=False)
class Rows(Factors):
    """g_i adds values_it to row indices_it of a table [rows, d]: the gradient of an embedding."""

    indices: Int[Tensor, "n t"]
    values: Float[Tensor, "n t d"]
    rows: int

    @property
    @override
    def samples(self) -> int:
        return len(self.indices)

    @property
    @override
    def dtype(self) -> torch.dtype:
        return self.values.dtype

    @property
    @override
    def columns(self) -> int:
        return self.rows * self.values.shape[2]

    @property
    @override
    def elements(self) -> int:
        return self.values[0].numel() + 2 * self.indices.shape[1]

    @property
    @override
    def has_cheap_norms(self) -> bool:
        return True

    @property
    @override
    def copied(self) -> int:
        return 2 * self.elements

    @property
    @override
    def route(self) -> str:
        return "rows shared by two samples"

    @override
    def blocks(self, workspace: Workspace = FRESH) -> Iterator[Float[Tensor, "n q"]]:
        n, width = self.samples, self.values.shape[2]
        step = max(1, workspace.block_bytes // max(1, n * width * self.values.element_size()))
        sample = torch.arange(n, device=self.indices.device)[:, None].expand_as(self.indices)
        for start in range(0, self.rows, step):
            rows = min(step, self.rows - start)
            inside = (self.indices >= start) & (self.indices < start + rows)
            block = self.values.new_zeros(n * rows, width)
            block.index_add_(0, (sample * rows + self.indices - start)[inside], self.values[inside])
            yield block.view(n, rows * width)

    @override
    def add_gram(self, total: GramAccumulator) -> None:
        if bool((self.indices == self.indices[:1]).all()):
            total.add_dense(self._same_rows())
            return
        summed, sample, row = self._aggregated()
        order = torch.argsort(row, stable=True)
        summed, sample, row = summed[order], sample[order], row[order]
        counts = torch.unique_consecutive(row, return_counts=True)[1]
        starts = counts.cumsum(0) - counts
        for count in counts.unique().tolist():
            first = starts[counts == count]
            step = max(1, BLOCK_BYTES // (4 * count * (count + summed.shape[1])))
            for part in first.split(step):
                members = part[:, None] + torch.arange(count, device=part.device)
                vectors, samples = summed[members], sample[members]
                total.add_scattered(samples[:, :, None], samples[:, None, :], vectors @ vectors.transpose(1, 2))

    @override
    def square_norms(self) -> Float[Tensor, "n"]:
        summed, sample, _ = self._aggregated()
        return summed.new_zeros(self.samples).index_add_(0, sample, summed.square().sum(1))

    @override
    def add_class_sums(self, sums: Float[Tensor, "c p"], weights: Float[Tensor, "n"], runs: Sequence[Run]) -> None:
        weighted = self.values * weights[:, None, None]
        for run in runs:
            part = slice(run.start, run.stop)
            table = sums[run.target].view(self.rows, -1)
            table.index_add_(0, self.indices[part].flatten(), weighted[part].flatten(0, 1))

    @override
    def products_with(self, vectors: Float[Tensor, "k p"]) -> Float[Tensor, "n k"]:
        tables = vectors.view(len(vectors), self.rows, -1)
        return torch.stack([(table[self.indices] * self.values).sum((1, 2)) for table in tables], 1)

    def _same_rows(self) -> Float[Tensor, "n q"]:
        """The gradients of the rows that occur, where all samples have the same ones, such as positions."""
        rows, place = self.indices[0].unique(return_inverse=True)
        gradients = self.values.new_zeros(self.samples, len(rows), self.values.shape[2])
        return gradients.index_add_(1, place, self.values).flatten(1)

    def _aggregated(self) -> tuple[Tensor, Tensor, Tensor]:
        """The summed value of each (sample, row) that occurs, and that sample and row."""
        offset = self.rows * torch.arange(self.samples, device=self.indices.device)[:, None]
        keys, inverse = (self.indices + offset).flatten().unique(return_inverse=True)
        summed = self.values.new_zeros(len(keys), self.values.shape[2])
        summed.index_add_(0, inverse, self.values.flatten(0, 1))
        return summed, keys // self.rows, keys % self.rows

    @override
    def flops(self) -> int:
        return symmetric_flops(
            self.samples, self.values[0].numel()
        )  # at most: every position shares its row with all samples


@final
@dataclass(frozen=True, eq=False)
class TiedEmbedding(Factors):
    """One table [rows, d] used both as an embedding and, transposed, as the weight of an output layer."""

    embedding: Rows
    output: Outer  # left [n, t, d], right [n, t, rows]
    parts: tuple[Factors, ...] = field(init=False)

    def __post_init__(self) -> None:
        """Names the two parts."""
        object.__setattr__(self, "parts", (self.embedding, self.output))

    @property
    @override
    def samples(self) -> int:
        return self.embedding.samples

    @property
    @override
    def dtype(self) -> torch.dtype:
        return self.embedding.dtype

    @property
    @override
    def columns(self) -> int:
        return self.embedding.columns

    @property
    @override
    def elements(self) -> int:
        return self.embedding.elements + self.output.elements

    @property
    @override
    def copied(self) -> int:
        return self.embedding.copied

    @property
    @override
    def route(self) -> str:
        return "embedding and output layer with their cross terms"

    @override
    def blocks(self, workspace: Workspace = FRESH) -> Iterator[Float[Tensor, "n q"]]:
        width = self.embedding.values.shape[2]
        start = 0
        for block in self.embedding.blocks(workspace):
            rows = block.shape[1] // width
            part = self.output.right[:, :, start : start + rows].transpose(1, 2)
            yield block + torch.bmm(part, self.output.left).flatten(1)
            start += rows

    @override
    def add_gram(self, total: GramAccumulator) -> None:
        for part in self.parts:
            part.add_gram(total)
        cross = self._cross(total.scratch)
        total.add_matrix(cross + cross.T)

    def _cross(self, scratch: int) -> Tensor:
        """<embedding gradient of i, output gradient of j> = sum_ts (v_it . a_js) d_js[row_it]."""
        (n, t), s = self.embedding.indices.shape, self.output.positions
        left = self.output.left.flatten(0, 1)
        right = self.output.right.flatten(0, 1)
        step = max(1, min(n, scratch // (2 * t * s * n * left.element_size())))
        cross = left.new_empty(n, n)
        for start in range(0, n, step):
            stop = min(n, start + step)
            product = self.embedding.values[start:stop].flatten(0, 1) @ left.T
            product *= right[:, self.embedding.indices[start:stop].flatten()].T
            cross[start:stop] = product.view(stop - start, t, n, s).sum((1, 3))
        return cross

    @override
    def flops(self) -> int:
        (n, t), s = self.embedding.indices.shape, self.output.positions
        return self.embedding.flops() + self.output.flops() + 2 * n * n * t * s * self.output.left.shape[2]
