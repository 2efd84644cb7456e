"""Block-symmetric products: K += G G^T computed on the upper block triangle only."""

from collections.abc import Iterator

import torch
from torch import Tensor

# Below this width a block is kept until enough of them fill one product: many thin products cost more than one wide
# one.
THIN = 1024


class GramAccumulator:
    """Sums the Gram contributions of all parameters in one [n, n] buffer; the lower triangle is filled at the end."""

    def __init__(self, samples: int, dtype: torch.dtype, device: torch.device, scratch: int) -> None:
        """Starts at zero; ``scratch`` bounds the bytes that thin blocks and temporaries may take."""
        self.samples = samples
        self.scratch = scratch
        self.matrix = torch.zeros(samples, samples, dtype=dtype, device=device)
        self._thin: list[Tensor] = []
        self._thin_bytes = 0

    def row_blocks(self) -> Iterator[tuple[int, int]]:
        """Row ranges of the upper block triangle; a range (i, j) stands for the block matrix[i:j, i:]."""
        step = -(-self.samples // _block_count(self.samples))
        for start in range(0, self.samples, step):
            yield start, min(self.samples, start + step)

    def add_dense(self, gradients: Tensor) -> None:
        """Adds G G^T of explicit gradients [n, columns]."""
        if gradients.shape[1] >= THIN:
            self._add_product(gradients)
            return
        self._thin.append(gradients)
        self._thin_bytes += gradients.numel() * gradients.element_size()
        if self._thin_bytes > self.scratch:
            self._flush()

    def add_outer(self, left: Tensor, right: Tensor, bias: bool) -> None:
        """Adds the Gram of g_i = right_i left_i^T (and of the bias gradient right_i): (A A^T + bias) * (D D^T)."""
        for start, stop in self.row_blocks():
            product = left[start:stop] @ left[start:].T
            if bias:
                product += 1
            self.matrix[start:stop, start:] += product.mul_(right[start:stop] @ right[start:].T)

    def add_outer_positions(self, left: Tensor, right: Tensor) -> None:
        """Adds the Gram of g_i = sum_t right_it left_it^T, without any g_i: an (n t x n t) product, in row blocks."""
        n, t = left.shape[:2]
        flat_left, flat_right = left.reshape(n * t, -1), right.reshape(n * t, -1)
        step = max(1, min(n, self.scratch // (2 * t * t * n * left.element_size())))
        for start in range(0, n, step):
            stop = min(n, start + step)
            product = flat_left[start * t : stop * t] @ flat_left[start * t :].T
            product *= flat_right[start * t : stop * t] @ flat_right[start * t :].T
            self.matrix[start:stop, start:] += product.view(stop - start, t, n - start, t).sum((1, 3))

    def add_scattered(self, rows: Tensor, columns: Tensor, values: Tensor) -> None:
        """Adds single entries; both (i, j) and (j, i) must be given for i != j."""
        self.matrix.view(-1).index_add_(0, (rows * self.samples + columns).reshape(-1), values.reshape(-1))

    def add_matrix(self, matrix: Tensor) -> None:
        """Adds a full symmetric [n, n] contribution."""
        self.matrix += matrix

    def result(self) -> Tensor:
        """The full symmetric sum [n, n]."""
        self._flush()
        upper = self.matrix.triu_()
        return upper + upper.triu(1).T

    def _add_product(self, gradients: Tensor) -> None:
        gradients = gradients.contiguous()
        for start, stop in self.row_blocks():
            self.matrix[start:stop, start:].addmm_(gradients[start:stop], gradients[start:].T)

    def _flush(self) -> None:
        if self._thin:
            self._add_product(torch.cat(self._thin, 1))
        self._thin, self._thin_bytes = [], 0


def _block_count(samples: int) -> int:
    """How finely to cut: more blocks save more of the lower triangle, but small products run slower (measured)."""
    for limit, count in ((96, 1), (256, 2), (1200, 4)):
        if samples < limit:
            return count
    return 8
