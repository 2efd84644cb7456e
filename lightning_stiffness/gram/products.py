"""Symmetric products: K += G G^T, each entry above the diagonal computed once, and only where it is asked for."""

import contextlib
import functools
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TypeAlias

import torch
from threadpoolctl import ThreadpoolController
from torch import Tensor

from lightning_stiffness.gram.workspace import BLOCK_BYTES, Workspace

# Below this width explicit gradients are kept until enough of them fill one product: many thin products cost more than
# one wide one.
THIN = 1024
# On the CPU so many rows are one symmetric product; without one, rows are cut to save most of the lower triangle.
SYMMETRIC_ROWS = 2048
MIRRORED_ROWS = 1024


@dataclass(frozen=True)
class Block:
    """A part of the Gram matrix that is asked for: these rows and these columns, the same or apart."""

    rows: range
    columns: range

    @property
    def symmetric(self) -> bool:
        """Whether it lies on the diagonal."""
        return self.rows == self.columns


Tile: TypeAlias = tuple[slice, slice]


class GramAccumulator:
    """Sums the Gram contributions of all parameters; of blocks on the diagonal the lower triangle comes at the end.

    Attributes:
        blocks: What is asked for.
        matrices: The sum so far, for each block.
        workspace: Memory for blocks of explicit gradients, which the next one overwrites.
        scratch: Bytes that blocks of explicit gradients may take, and thin gradients and temporaries again as many.
    """

    def __init__(self, blocks: Sequence[Block], like: Tensor, scratch: int, workspace: Workspace | None = None) -> None:
        """Starts at zero, in the dtype and on the device of ``like``."""
        self.blocks = tuple(blocks)
        self.scratch = scratch
        self.matrices = [like.new_zeros(len(block.rows), len(block.columns)) for block in self.blocks]
        self.workspace = workspace or Workspace(min(BLOCK_BYTES, scratch))
        self._thin: list[Tensor] = []
        self._thin_bytes = 0

    def add_dense(self, gradients: Tensor) -> None:
        """Adds G G^T of explicit gradients [n, columns]."""
        if gradients.shape[1] >= THIN:
            self._add_product(gradients)
            return
        self._thin.append(gradients.clone())  # what a workspace lends does not last
        self._thin_bytes += gradients.numel() * gradients.element_size()
        if 2 * self._thin_bytes > self.scratch:  # twice: they are there twice while they become one
            self._flush()

    def add_outer(self, left: Tensor, right: Tensor, bias: bool) -> None:
        """Adds the Gram of g_i = right_i left_i^T (and of the bias gradient right_i): (A A^T + bias) * (D D^T)."""
        left, right = left.contiguous(), right.contiguous()
        for target, rows, columns in self._tiles():
            product = _product(left, rows, columns)
            if bias:
                product += 1
            target.addcmul_(product, _product(right, rows, columns))

    def add_outer_positions(self, left: Tensor, right: Tensor) -> None:
        """Adds the Gram of g_i = sum_t right_it left_it^T, without any g_i: an (n t x n t) product, in row blocks."""
        t = left.shape[1]
        for block, matrix in zip(self.blocks, self.matrices, strict=True):
            step = max(1, self.scratch // max(1, 2 * t * t * len(block.columns) * left.element_size()))
            for start in range(0, len(block.rows), step):
                rows = block.rows[start : start + step]
                first = start if block.symmetric else 0
                columns = block.columns[first:]
                product = _flat(left, rows) @ _flat(left, columns).T
                product *= _flat(right, rows) @ _flat(right, columns).T
                total = product.view(len(rows), t, len(columns), t).sum((1, 3))
                matrix[start : start + step, first:] += total

    def add_scattered(self, rows: Tensor, columns: Tensor, values: Tensor) -> None:
        """Adds single entries; both (i, j) and (j, i) must be given for i != j."""
        rows, columns, values = (part.reshape(-1) for part in torch.broadcast_tensors(rows, columns, values))
        for block, matrix in zip(self.blocks, self.matrices, strict=True):
            row, column, value = rows - block.rows.start, columns - block.columns.start, values
            if len(self.blocks) > 1 or not block.symmetric:
                inside = (row >= 0) & (row < len(block.rows)) & (column >= 0) & (column < len(block.columns))
                row, column, value = row[inside], column[inside], value[inside]
            matrix.view(-1).index_add_(0, row * len(block.columns) + column, value)

    def add_matrix(self, matrix: Tensor) -> None:
        """Adds a full symmetric [n, n] contribution."""
        for block, total in zip(self.blocks, self.matrices, strict=True):
            total.add_(matrix[block.rows.start : block.rows.stop, block.columns.start : block.columns.stop])

    def results(self) -> list[Tensor]:
        """The sum in each block, full."""
        self._flush()
        return [
            _mirrored(matrix) if block.symmetric else matrix
            for block, matrix in zip(self.blocks, self.matrices, strict=True)
        ]

    def _add_product(self, gradients: Tensor) -> None:
        gradients = gradients.contiguous()
        for target, rows, columns in self._tiles():
            if rows == columns and has_symmetric_product(gradients):
                target.add_(symmetric_product(gradients[rows]))
            else:
                target.addmm_(gradients[rows], gradients[columns].T)

    def _tiles(self) -> Iterator[tuple[Tensor, slice, slice]]:
        """Parts of the blocks that together cover what must be computed: the sum there, its rows and its columns."""
        for block, matrix in zip(self.blocks, self.matrices, strict=True):
            for rows, columns in _tiles_of(block, has_symmetric_product(matrix)):
                yield matrix[rows, columns], _shifted(rows, block.rows), _shifted(columns, block.columns)

    def _flush(self) -> None:
        if self._thin:
            self._add_product(torch.cat(self._thin, 1))
        self._thin, self._thin_bytes = [], 0


def whole(samples: int) -> tuple[Block]:
    """The Gram matrix of all pairs."""
    return (Block(range(samples), range(samples)),)


def has_symmetric_product(tensor: Tensor) -> bool:
    """Whether `symmetric_product` is the fastest for such a tensor.

    With more threads it is not: those of torch and those of numpy's BLAS wait for work on the same cores, and make a
    perceptron's Gram take five times as long (measured).
    """
    return (
        tensor.device.type == "cpu" and tensor.dtype in (torch.float32, torch.float64) and torch.get_num_threads() == 1
    )


def symmetric_product(rows: Tensor) -> Tensor:
    """`rows @ rows.T` by BLAS's symmetric product, which torch does not offer and numpy takes for this expression.

    It computes one triangle: 1.8 times as fast as torch's product (500 x 4,096 float32, one thread of an AMD EPYC).
    """
    array = rows.detach().numpy()
    with one_blas_thread():
        return torch.from_numpy(array @ array.T)


@contextlib.contextmanager
def one_blas_thread() -> Iterator[None]:
    """Within this context, where torch has one thread, numpy's BLAS has one, too; it knows nothing of torch's setting.

    To ask it of the library takes as long as a small product, so it is done once for many.
    """
    if _is_limited.get() or torch.get_num_threads() > 1:
        yield
        return
    token = _is_limited.set(True)
    try:
        with _blas().limit(limits=1):
            yield
    finally:
        _is_limited.reset(token)


_is_limited: ContextVar[bool] = ContextVar("is_limited", default=False)


@functools.cache
def _blas() -> ThreadpoolController:
    """Numpy's BLAS."""
    return ThreadpoolController().select(user_api="blas")


def row_products(rows: Tensor) -> Tensor:
    """`rows @ rows.T`, the fastest way for such a tensor."""
    return symmetric_product(rows) if has_symmetric_product(rows) else rows @ rows.T


def _product(rows: Tensor, first: slice, second: slice) -> Tensor:
    return row_products(rows[first]) if first == second else rows[first] @ rows[second].T


def _tiles_of(block: Block, symmetric_product: bool) -> Iterator[Tile]:
    """Row and column ranges inside a block that cover it, on the diagonal its upper triangle.

    With a symmetric product at hand the tiles on the diagonal are squares that cost half; without, each range of rows
    takes all columns from its first on.
    """
    height, width = len(block.rows), len(block.columns)
    if not block.symmetric:
        yield slice(0, height), slice(0, width)
        return
    count = -(-height // SYMMETRIC_ROWS) if symmetric_product else _row_ranges(height)
    step = max(1, -(-height // max(1, count)))
    for start in range(0, height, step):
        rows = slice(start, min(height, start + step))
        if not symmetric_product:
            yield rows, slice(start, width)
            continue
        yield rows, rows
        if rows.stop < width:
            yield rows, slice(rows.stop, width)


def _row_ranges(samples: int) -> int:
    """How finely to cut: more ranges save more of the lower triangle, but small products run slower (measured)."""
    for limit, count in ((96, 1), (256, 2), (1200, 4)):
        if samples < limit:
            return count
    return 8


def _shifted(part: slice, by: range) -> slice:
    return slice(part.start + by.start, part.stop + by.start)


def _flat(tensor: Tensor, samples: range) -> Tensor:
    return tensor[samples.start : samples.stop].flatten(0, 1)


def _mirrored(matrix: Tensor) -> Tensor:
    """The upper triangle written over the lower one, without a copy of the matrix."""
    for start in range(0, len(matrix), MIRRORED_ROWS):
        rows = slice(start, start + MIRRORED_ROWS)
        square = matrix[rows, rows].triu()
        matrix[rows, rows] = square + square.triu(1).T
        matrix[start + MIRRORED_ROWS :, rows] = matrix[rows, start + MIRRORED_ROWS :].T
    return matrix
