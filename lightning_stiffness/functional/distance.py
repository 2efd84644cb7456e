"""Stiffness against the distance of the inputs: over which distance a step on one sample helps another of its class."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lightning_stiffness.errors import StiffnessError
from lightning_stiffness.functional.validation import require_integers, require_matrix

BINS = 12


@dataclass(frozen=True, eq=False)
class DistanceCurve:
    """Stiffness of pairs of the same class against the distance of their inputs.

    Attributes:
        edges: the b + 1 borders of the bins, ascending, over the distances that occur; they hold equally many pairs.
        means: mean pair value in each bin; nan where there is none.
        counts: pairs in each bin.
        slope: of the straight line that fits all pairs best; nan with fewer than two distances.
        intercept: of the same line.
    """

    edges: Float[Tensor, " borders"]
    means: Float[Tensor, "b"]
    counts: Float[Tensor, "b"]
    slope: float
    intercept: float

    @property
    def critical_length(self) -> float:
        """Distance at which the line falls to zero; nan when it does not within the distances that occur.

        Beyond the data a crossing would be an extrapolation, and no measurement.

        Source: Fort et al., Stiffness, arXiv:1901.09491 (v3), dynamical critical length; fitted to all pairs, ours.
        """
        crossing = -self.intercept / self.slope if self.slope < 0 else torch.nan
        lowest, highest = float(self.edges[0]), float(self.edges[-1])
        return crossing if lowest <= crossing <= highest else torch.nan


def input_distances(rows: Float[Tensor, "n d"], columns: Float[Tensor, "m d"]) -> Float[Tensor, "n m"]:
    """1 - cos of each two inputs, in [0, 2]; nan for an input that is zero everywhere.

    Raises:
        StiffnessError: the inputs are no matrices of equal width.

    Source: Fort et al., Stiffness, arXiv:1901.09491, distance of inputs.

    >>> input_distances(torch.eye(2), torch.tensor([[1.0, 0.0], [-2.0, 0.0]]))
    tensor([[0., 2.],
            [1., 1.]])
    """
    require_matrix(rows, "rows")
    require_matrix(columns, "columns")
    if rows.shape[1] != columns.shape[1]:
        raise StiffnessError(
            f"rows and columns must be inputs of one size, but have {rows.shape[1]} and {columns.shape[1]} entries."
        )
    return 1 - (_unit(rows) @ _unit(columns).T).clamp(-1, 1)


def distance_curve(
    pairs: Float[Tensor, "n m"],
    distances: Float[Tensor, "n m"],
    row_targets: Int[Tensor, "n"],
    column_targets: Int[Tensor, "m"],
    bins: int = BINS,
) -> DistanceCurve:
    """Pair values of the same class against the distances of the inputs.

    Args:
        pairs: one value for each pair of a row and a column sample, nan where it does not count (`cosine_pairs`).
        distances: of the same pairs (`input_distances`); nan where unknown.
        row_targets: class of each row sample.
        column_targets: class of each column sample.
        bins: how many.

    Raises:
        StiffnessError: shapes that do not fit.

    Source: Fort et al., Stiffness, arXiv:1901.09491 (v3); bins of equal numbers of pairs, ours.

    >>> pairs = torch.tensor([[torch.nan, 0.5, -0.1], [0.5, torch.nan, 0.2], [-0.1, 0.2, torch.nan]])
    >>> distances = torch.tensor([[0.0, 0.2, 0.8], [0.2, 0.0, 0.5], [0.8, 0.5, 0.0]])
    >>> same = torch.zeros(3, dtype=torch.int64)
    >>> round(distance_curve(pairs, distances, same, same, bins=2).critical_length, 3)
    0.7
    """
    require_matrix(pairs, "pairs")
    if distances.shape != pairs.shape or bins < 1:
        raise StiffnessError(
            f"distances must have the shape {tuple(pairs.shape)} of the pairs, and bins must be at least 1; found "
            f"{tuple(distances.shape)} and {bins}."
        )
    require_integers(row_targets, pairs.shape[0], "row_targets")
    require_integers(column_targets, pairs.shape[1], "column_targets")
    counted = (row_targets[:, None] == column_targets) & ~pairs.isnan() & ~distances.isnan()
    values, lengths = pairs[counted].double(), distances[counted].double()
    if len(values) == 0:
        empty = torch.full((bins,), torch.nan, dtype=torch.float64)
        return DistanceCurve(
            torch.full((bins + 1,), torch.nan).double(), empty, torch.zeros(bins), torch.nan, torch.nan
        )
    edges = torch.quantile(_sample(lengths), torch.linspace(0, 1, bins + 1, dtype=torch.float64))
    places = torch.bucketize(lengths, edges[1:-1], right=True)
    counts = torch.bincount(places, minlength=bins).double()
    means = torch.bincount(places, values, minlength=bins) / counts
    return DistanceCurve(edges, means, counts, *_line(lengths, values))


def _line(lengths: Tensor, values: Tensor) -> tuple[float, float]:
    """Slope and intercept of the least-squares line."""
    centred = lengths - lengths.mean()
    spread = float(centred @ centred)
    if not spread > 0:
        return torch.nan, torch.nan
    slope = float(centred @ values) / spread
    return slope, float(values.mean()) - slope * float(lengths.mean())


def _sample(lengths: Tensor, most: int = 1 << 20) -> Tensor:
    """`torch.quantile` takes 16 million values at most; every k-th is as good."""
    return lengths[:: max(1, len(lengths) // most)]


def _unit(inputs: Tensor) -> Tensor:
    norms = inputs.norm(dim=1, keepdim=True)
    return inputs / torch.where(norms > 0, norms, torch.nan)
