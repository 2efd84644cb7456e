"""Groups of classes that a classifier confuses: those that fight each other at its last layer, beyond chance."""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lightning_stiffness.errors import StiffnessError
from lightning_stiffness.functional.class_tree import ClassTree, class_tree
from lightning_stiffness.functional.tally import class_sums
from lightning_stiffness.levels import StiffnessLevels

_LEARNT: Final = 0.05  # mean probability that a class must get from its own samples beyond what it gets from others


@dataclass(frozen=True)
class ClassGroups:
    """Groups of classes that fight each other at the classifier more than chance.

    Attributes:
        assignment: The group of each class, numbered by their first classes: a super-class map. A class that fights
            nobody has a group of its own.
        order: All classes, so that those that merge early are neighbours; for pictures.
        excess: For each merge that was made, by how much its classes fight beyond chance (a difference of cosines).
        errors: Its bootstrap standard error.
        reason: Why it is these groups, in a sentence.
    """

    assignment: tuple[int, ...]
    order: tuple[int, ...]
    excess: tuple[float, ...]
    errors: tuple[float, ...]
    reason: str

    @property
    def groups(self) -> tuple[tuple[int, ...], ...]:
        """The groups of two and more classes."""
        members = [[k for k, group in enumerate(self.assignment) if group == g] for g in sorted(set(self.assignment))]
        return tuple(tuple(classes) for classes in members if len(classes) > 1)


def class_groups(levels: StiffnessLevels, *, draws: int = 100, error_rate: float = 0.05, seed: int = 0) -> ClassGroups:
    """Groups by average linkage on -cos at the classifier, cut where the fight does not exceed chance.

    Chance is what the cosines would be if each sample's lost probability were split evenly, its features the same. Two
    clusters that the linkage merges stay merged if the mean excess of their fight is beyond the normal quantile of
    error_rate / (number of pairs of classes) in standard errors, from a bootstrap of the samples of each class. An
    untrained network has no groups: its cosines are those of its inputs.

    Args:
        levels: What was measured.
        draws: Of the bootstrap.
        error_rate: Chance of a wrong merge among classes that are confused evenly.
        seed: Of the bootstrap; the global random state is not used.

    Returns:
        The groups, all of one class where there is no evidence; `reason` says so.

    Raises:
        StiffnessError: An argument is out of range.

    Source: ours.
    """
    if draws < 2 or not 0 < error_rate < 1:
        raise StiffnessError(
            f"draws must be at least 2 and error_rate in (0, 1), found {draws} and {error_rate}; 100 and 0.05 are the "
            "defaults."
        )
    tree = class_tree(-levels.classifier_matrix)
    if levels.separation < _LEARNT:
        return _none(
            tree,
            f"no groups: the network does not tell the classes apart yet (a class gets {levels.separation:.2f} more "
            f"probability from its own samples than from others; {_LEARNT} are needed)",
        )
    counted = levels.classifier.isfinite() & levels.chance.isfinite()
    excess = torch.where(counted, levels.chance - levels.classifier, 0)
    counts = torch.cat([torch.ones(1, len(excess)), _resampled(levels.targets, draws, seed)]).to(excess)
    found = _excess_of_merges(tree, excess, counts * counted.any(1), levels)
    threshold = NormalDist().inv_cdf(1 - error_rate / max(1, levels.num_classes * (levels.num_classes - 1) // 2))
    return _cut(tree, found[0], found[1:].std(0), threshold)


def agreement(first: Sequence[int], second: Sequence[int]) -> float:
    """Adjusted Rand index of two groupings of the same classes.

    Returns:
        1 for the same groups, about 0 for what two random groupings have in common; 1 where both are trivial alike.

    Raises:
        StiffnessError: They are not of the same number of classes.

    Source: Hubert & Arabie, Journal of Classification 2 (1985), 193-218.

    >>> agreement([0, 0, 1, 1], [5, 5, 3, 3]), round(agreement([0, 0, 1, 1], [0, 1, 0, 1]), 2)
    (1.0, -0.5)
    """
    if len(first) != len(second) or not first:
        raise StiffnessError(f"Both groupings must have one group per class, found {len(first)} and {len(second)}.")
    rows, columns = (torch.tensor(groups).unique(return_inverse=True)[1] for groups in (first, second))
    width = int(columns.max()) + 1
    table = torch.bincount(rows * width + columns, minlength=width).double()
    together, row_pairs, column_pairs = (_pairs(counts) for counts in (table, rows.bincount(), columns.bincount()))
    expected = row_pairs * column_pairs / max(1.0, _pairs(torch.tensor([len(first)])))
    largest = (row_pairs + column_pairs) / 2
    return 1.0 if largest == expected else (together - expected) / (largest - expected)


def stability(readings: Sequence[ClassGroups]) -> float:
    """Mean agreement of each grouping of a run with the one before it; nan for fewer than two.

    >>> stability([])
    nan
    """
    scores = [agreement(before.assignment, after.assignment) for before, after in itertools.pairwise(readings)]
    return sum(scores) / len(scores) if scores else float("nan")


def _resampled(targets: Int[Tensor, "n"], draws: int, seed: int) -> Float[Tensor, "draws n"]:
    """How often each sample is drawn when those of each class are drawn with replacement; a row for each draw."""
    order = targets.cpu().argsort(stable=True)
    counts = targets.cpu().bincount()
    starts, sizes = (values.repeat_interleave(counts) for values in (counts.cumsum(0) - counts, counts))
    generator = torch.Generator().manual_seed(seed)
    drawn = starts + (torch.rand(draws, len(order), generator=generator, dtype=torch.float64) * sizes).long()
    return torch.zeros(draws, len(order)).scatter_add_(1, order[drawn], torch.ones(draws, len(order)))


def _excess_of_merges(
    tree: ClassTree, excess: Float[Tensor, "n n"], counts: Float[Tensor, "r n"], levels: StiffnessLevels
) -> Float[Tensor, "r m"]:
    """Mean excess between the two clusters of each merge, every pair of classes counting the same; nan without one.

    A row for each row of ``counts``, which tells how often each sample counts. In the order of the tree each cluster is
    a range of classes, and each pair of samples lies between the clusters of one merge: n^2 / 2 products a row.
    """
    totals = class_sums(counts, levels.targets, levels.num_classes, 1)
    shares = torch.where(counts > 0, counts / totals[:, levels.targets], 0)
    order = torch.tensor(tree.order, device=counts.device)
    samples = order.argsort()[levels.targets].argsort(stable=True)
    excess, shares = excess[samples][:, samples], shares[:, samples]
    present = torch.nn.functional.pad((totals[:, order] > 0).cumsum(1), (1, 0))
    sizes = levels.targets.bincount(minlength=levels.num_classes)[order]
    starts = [0, *sizes.cumsum(0).tolist()]

    def between(first: range, second: range) -> Tensor:
        rows, columns = (slice(starts[part.start], starts[part.stop]) for part in (first, second))
        pairs = math.prod(present[:, part.stop] - present[:, part.start] for part in (first, second))
        return ((shares[:, rows] @ excess[rows, columns]) * shares[:, columns]).sum(1) / pairs

    return torch.stack([between(*clusters) for clusters in _merging(tree)], 1).cpu()


def _merging(tree: ClassTree) -> Iterator[tuple[range, range]]:
    """The places in the order of the tree of the two clusters that each merge joins."""
    size = len(tree.order)
    places = [range(0)] * size
    for place, number in enumerate(tree.order):
        places[number] = range(place, place + 1)
    for merge in tree.merges:
        first, second = sorted((places[merge.first], places[merge.second]), key=lambda part: part.start)
        places.append(range(first.start, second.stop))
        yield first, second


def _cut(tree: ClassTree, excess: Tensor, errors: Tensor, threshold: float) -> ClassGroups:
    size = len(tree.order)
    clusters: list[tuple[int, ...] | None] = [(k,) for k in range(size)]  # None: what was not merged
    group_of = list(range(size))
    kept: list[int] = []
    for k, merge in enumerate(tree.merges):
        first, second = clusters[merge.first], clusters[merge.second]
        is_one = first is not None and second is not None and bool(excess[k] > threshold * errors[k])
        clusters.append((*first, *second) if is_one and first is not None and second is not None else None)
        for member in clusters[-1] or ():
            group_of[member] = min(clusters[-1] or ())
        kept += [k] if is_one else []
    numbers = {group: k for k, group in enumerate(sorted(set(group_of)))}
    reason = (
        f"{len(kept)} of {len(tree.merges)} merges fight beyond chance by more than {threshold:.1f} standard errors"
        if kept
        else f"no groups: no classes fight beyond chance by more than {threshold:.1f} standard errors"
    )
    return ClassGroups(
        tuple(numbers[group] for group in group_of),
        tree.order,
        tuple(float(excess[k]) for k in kept),
        tuple(float(errors[k]) for k in kept),
        reason,
    )


def _none(tree: ClassTree, reason: str) -> ClassGroups:
    return ClassGroups(tuple(range(len(tree.order))), tree.order, (), (), reason)


def _pairs(counts: Tensor) -> float:
    return float((counts.double() * (counts.double() - 1) / 2).sum())
