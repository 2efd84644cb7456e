"""What a matrix of pairs says of each sample and of the spread of the pairs: for pictures, beside the class matrix."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lightning_stiffness.functional.distance import DistanceCurve, distance_curve
from lightning_stiffness.functional.stiffness import class_alignment
from lightning_stiffness.functional.tally import pair_tally
from lightning_stiffness.functional.validation import require_integers, require_matrix

BINS = 40


@dataclass(frozen=True, eq=False)
class Detail:
    """What a reading says beyond its summaries.

    Attributes:
        own: mean cosine of each of the n row samples with the other samples of its own class, in [-1, 1]; nan where
            there is none.
        rival: the highest mean cosine with the samples of any other class; nan where there is none.
        rival_class: the class with which it is reached; -1 where there is none.
        opposed_class: the other class with which the mean cosine is lowest; -1 where there is none. A sample with a
            wrong label works against the class that it truly belongs to.
        within_counts: numbers of pairs of the same class in b bins of equal width over cosines from -1 to 1.
        between_counts: numbers of pairs of different classes in the same bins.
        distance: stiffness of the same class against the distance of the inputs; None where inputs have no distance.
    """

    own: Float[Tensor, "n"]
    rival: Float[Tensor, "n"]
    rival_class: Int[Tensor, "n"]
    opposed_class: Int[Tensor, "n"]
    within_counts: Float[Tensor, "b"]
    between_counts: Float[Tensor, "b"]
    distance: DistanceCurve | None = None


def pair_detail(
    pairs: Float[Tensor, "n m"],
    row_targets: Int[Tensor, "n"],
    column_targets: Int[Tensor, "m"],
    num_classes: int,
    distances: Float[Tensor, "n m"] | None = None,
) -> Detail:
    """What pairs say of each row sample and of their own spread.

    Args:
        pairs: cosine of each pair of a row and a column sample, nan where it does not count (`cosine_pairs`).
        row_targets: class of each row sample.
        column_targets: class of each column sample.
        num_classes: number of classes, those without a sample included.
        distances: of the inputs of the same pairs, or None.

    Raises:
        StiffnessError: shapes that do not fit, or classes out of range.

    Source: ours.

    >>> pairs = torch.tensor([[torch.nan, 0.5, 0.1], [0.5, torch.nan, 0.3], [0.1, 0.3, torch.nan]])
    >>> targets = torch.tensor([0, 0, 1])
    >>> pair_detail(pairs, targets, targets, num_classes=2).rival
    tensor([0.1000, 0.3000, 0.2000])
    """
    alignment = class_alignment(pairs, row_targets, column_targets, num_classes)
    mine = torch.arange(num_classes, device=pairs.device) == row_targets[:, None]
    unknown = mine | alignment.isnan()
    rival, rival_class = alignment.masked_fill(unknown, -torch.inf).max(dim=1)
    opposed_class = alignment.masked_fill(unknown, torch.inf).argmin(dim=1)
    has_rival = rival.isfinite()
    within, between = pair_histograms(pairs, row_targets, column_targets)
    curve = None if distances is None else distance_curve(pairs, distances, row_targets, column_targets)
    return Detail(
        own=alignment.masked_fill(~mine, 0).sum(dim=1),
        rival=rival.masked_fill(~has_rival, torch.nan),
        rival_class=rival_class.masked_fill(~has_rival, -1),
        opposed_class=opposed_class.masked_fill(~has_rival, -1),
        within_counts=within,
        between_counts=between,
        distance=curve,
    )


def pair_histograms(
    pairs: Float[Tensor, "n m"], row_targets: Int[Tensor, "n"], column_targets: Int[Tensor, "m"], bins: int = BINS
) -> tuple[Float[Tensor, "b"], Float[Tensor, "b"]]:
    """Numbers of pairs of the same class and of different classes, in bins of equal width over [-1, 1].

    A pair of samples that are in both rows and columns counts twice, as in the class matrix.

    Raises:
        StiffnessError: shapes that do not fit.

    Source: ours.

    >>> pairs = torch.tensor([[torch.nan, 0.5, 0.1], [0.5, torch.nan, 0.3], [0.1, 0.3, torch.nan]])
    >>> targets = torch.tensor([0, 0, 1])
    >>> pair_histograms(pairs, targets, targets, bins=4)
    (tensor([0., 0., 0., 2.]), tensor([0., 0., 4., 0.]))
    """
    require_matrix(pairs, "pairs")
    require_integers(row_targets, pairs.shape[0], "row_targets")
    require_integers(column_targets, pairs.shape[1], "column_targets")
    counted = pair_tally(pairs).count > 0
    same = row_targets[:, None] == column_targets
    places = ((pairs.nan_to_num() + 1) / 2 * bins).long().clamp(0, bins - 1)

    def count(chosen: Tensor) -> Tensor:
        return torch.bincount(places[chosen], minlength=bins).float()

    return count(counted & same), count(counted & ~same)
