"""What the engine returns."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Gram:
    """The Gram matrix of per-sample loss gradients.

    Attributes:
        matrix: K_ij = <g_i, g_j>, g_i the gradient of sample i's loss with respect to all trainable parameters. float64
            where the device has it. Symmetric, positive semi-definite up to the rounding of the model's precision. nan
            for pairs that were not asked for.
        losses: The losses of the samples, detached.
        routes: For each trainable parameter, by its name in the module, how its contribution was computed.
        parts: The Gram matrix of each group of parameters, where groups were asked for; they add up to ``matrix``.
    """

    matrix: Float[Tensor, "n n"]
    losses: Float[Tensor, "n"]
    routes: Mapping[str, str]
    parts: Mapping[str, Float[Tensor, "n n"]] = field(default_factory=dict)

    @property
    def norms(self) -> Float[Tensor, "n"]:
        """|g_i|, in units of loss per unit of weight."""
        return self.matrix.diagonal().clamp_min(0).sqrt()

    @property
    def zero(self) -> Bool[Tensor, "n"]:
        """Samples whose gradient is exactly zero: they have no direction and take no part in stiffness."""
        return self.matrix.diagonal() == 0

    @property
    def cosines(self) -> Float[Tensor, "n n"]:
        """K_ij / (|g_i| |g_j|), in [-1, 1].

        nan for a sample with itself, for samples without a direction, and for pairs that were not asked for: what
        `lightning_stiffness.functional.class_matrix` leaves out of its means.
        """
        return _cosines(self.matrix, self.norms, self.norms).fill_diagonal_(torch.nan)


@dataclass(frozen=True, eq=False)
class CrossGram:
    """Inner products of the gradients of the samples of one batch with those of another.

    Attributes:
        matrix: K_ij = <g_i, h_j>, float64 where the device has it.
        row_norms: |g_i|; with ``column_norms`` they make cosines of ``matrix``. 0 for a sample without a direction.
        column_norms: |h_j|.
        row_losses: The losses of the first batch, detached.
        column_losses: Those of the second.
        routes: For each trainable parameter, by its name in the module, how its contribution was computed.
        parts: As ``matrix``, of each group of parameters, where groups were asked for; they add up to ``matrix``.
    """

    matrix: Float[Tensor, "n m"]
    row_norms: Float[Tensor, "n"]
    column_norms: Float[Tensor, "m"]
    row_losses: Float[Tensor, "n"]
    column_losses: Float[Tensor, "m"]
    routes: Mapping[str, str]
    parts: Mapping[str, Float[Tensor, "n m"]] = field(default_factory=dict)

    @property
    def cosines(self) -> Float[Tensor, "n m"]:
        """K_ij / (|g_i| |h_j|), in [-1, 1]; nan where a sample has no direction."""
        return _cosines(self.matrix, self.row_norms, self.column_norms)


@dataclass(frozen=True, eq=False)
class ClassCosine:
    """Mean cosines of per-sample gradients between classes.

    Attributes:
        matrix: Mean cosine over pairs of different samples, the first of the row's class and the second of the
            column's; in [-1, 1], float64; nan where there is no such pair.
        counts: Samples of each class with a gradient that is not zero.
        zero: Samples whose gradient is exactly zero, which are left out.
        losses: The losses of the samples, detached.
    """

    matrix: Float[Tensor, "c c"]
    counts: Float[Tensor, "c"]
    zero: Bool[Tensor, "n"]
    losses: Float[Tensor, "n"]


@dataclass(frozen=True, eq=False)
class ClassAlignment:
    """How well the gradient of each sample's loss agrees with those of the samples of each class.

    Attributes:
        matrix: Mean cosine of sample i's gradient with the gradients of the other samples of class a; in [-1, 1],
            float64; nan for a sample whose gradient is zero and where the class has no other sample. Where labels were
            tried, sample i's gradient is the one that it has under label a.
        targets: The class that each sample is given.
        losses: The losses of the samples under the given labels, or [n, c] where labels were tried; detached.
        counts: Samples of each class with a gradient that is not zero.
    """

    matrix: Float[Tensor, "n c"]
    targets: Int[Tensor, "n"]
    losses: Float[Tensor, "n *c"]
    counts: Float[Tensor, "c"]


@dataclass(frozen=True)
class ExplanationRow:
    """One parameter of an explanation (or several, where one product covers them)."""

    parameters: str
    operation: str
    route: str
    flops: int | None
    bytes: int | None


@dataclass(frozen=True)
class Explanation:
    """How a batch's Gram is computed; `str()` is a table.

    FLOPs and bytes are those of the products, without forward and backward.
    """

    rows: tuple[ExplanationRow, ...]
    samples: int
    graph_bytes: int
    chunk: int

    def __str__(self) -> str:
        """The table."""
        head = ("parameters", "operation", "route", "MFLOP", "MB")
        lines = [
            (row.parameters, row.operation, row.route, _millions(row.flops, 1e6), _millions(row.bytes, 2.0**20))
            for row in self.rows
        ]
        lines.append(("total", "", "", _millions(self.flops, 1e6), ""))
        widths = [max(len(line[k]) for line in [head, *lines]) for k in range(5)]
        table = [
            _padded(head, widths),
            "  ".join("-" * width for width in widths),
            *(_padded(line, widths) for line in lines),
        ]
        passes = f"{self.samples} samples at once" if self.chunk >= self.samples else f"{self.chunk} samples at a time"
        return "\n".join(
            [*table, f"forward and backward: {passes}, {self.graph_bytes / 2.0**20:.1f} MB of activations"]
        )

    __repr__ = __str__

    @property
    def flops(self) -> int:
        """Sum over the parameters that take the graph route."""
        return sum(row.flops or 0 for row in self.rows)


def _cosines(matrix: Tensor, row_norms: Tensor, column_norms: Tensor) -> Tensor:
    rows, columns = (torch.where(norms > 0, norms, torch.nan) for norms in (row_norms, column_norms))
    return (matrix / rows[:, None] / columns).clamp_(-1, 1)


def _millions(value: int | None, unit: float) -> str:
    return "?" if value is None else f"{value / unit:,.1f}"


def _padded(cells: tuple[str, ...], widths: list[int]) -> str:
    left = [cell.ljust(width) for cell, width in zip(cells[:3], widths[:3], strict=True)]
    return "  ".join([*left, *(cell.rjust(width) for cell, width in zip(cells[3:], widths[3:], strict=True))]).rstrip()
