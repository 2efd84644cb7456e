"""What a page shows of class matrices: some readings, the order of the classes, their tree, pairs that stand out."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from lightning_stiffness.functional import superclass_between, superclass_within
from lightning_stiffness.functional.class_tree import ClassTree, class_tree
from lightning_stiffness.history import History
from lightning_stiffness.report.words import class_names

MOST_CLASSES: Final = 100  # a drawing of more cells than their square is too slow
MOST_ENTRIES: Final = 400_000  # of all readings together; with four bytes each the page stays small
SCALE: Final = 1000  # entries are stored in thousandths
ALL: Final = slice(None)


@dataclass(frozen=True)
class Segment:
    """A line of the dendrogram: at places of the ordered classes, 0 ... c, and at stiffnesses.

    Attributes:
        place: where it begins.
        end_place: where it ends.
        stiffness: where it begins.
        end_stiffness: where it ends.
        members: the classes that are joined there.
    """

    place: float
    end_place: float
    stiffness: float
    end_stiffness: float
    members: tuple[int, ...]


@dataclass(frozen=True)
class Frames:
    """Class matrices of some readings.

    Attributes:
        readings: which ones.
        classes: which classes, all of them unless there are too many.
        entries: thousandths, row by row, of each reading; None where no pair counts.
        limit: the largest absolute entry of all.
    """

    readings: tuple[int, ...]
    classes: tuple[int, ...]
    entries: tuple[tuple[int | None, ...], ...]
    limit: float


@dataclass(frozen=True)
class ClassPair:
    """Two classes with their stiffness, at the last reading and by how much it has changed since the first."""

    first: str
    second: str
    stiffness: float
    change: float


def frames(history: History) -> Frames:
    """Class matrices for a slider: of all readings, or so many that the page stays small."""
    classes = shown_classes(history)
    readings = _spread(len(history), max(2, MOST_ENTRIES // max(1, len(classes) ** 2)))
    chosen = torch.tensor(classes)
    matrices = [history[index].cosine.matrix[chosen][:, chosen] for index in readings]
    finite = [matrix[matrix.isfinite()].abs() for matrix in matrices]
    limit = max((float(values.max()) for values in finite if len(values)), default=1.0)
    return Frames(tuple(readings), classes, tuple(map(_entries, matrices)), max(limit, 1 / SCALE))


def shown_classes(history: History) -> tuple[int, ...]:
    """All classes, or of too many those that are stiffest to another one at the last reading."""
    total = history.probe.num_classes
    if total <= MOST_CLASSES or not history:
        return tuple(range(total))
    matrix = _off_diagonal(history[-1].cosine.matrix).nan_to_num(-math.inf)
    return tuple(sorted(matrix.max(dim=1).values.topk(MOST_CLASSES).indices.tolist()))


def orders(history: History, classes: Sequence[int], tree: ClassTree) -> dict[str, list[int]]:
    """Places of the shown classes in each order that can be chosen: by similarity, as given, by super-class."""
    found = {"tree": list(tree.order), "given": list(range(len(classes)))}
    groups = history.probe.superclasses
    if groups is not None:
        rank = {place: index for index, place in enumerate(tree.order)}
        found["super"] = sorted(found["given"], key=lambda place: (groups[classes[place]], rank[place]))
    return found


def tree_of(history: History, classes: Sequence[int]) -> ClassTree:
    """The hierarchy of the shown classes at the last reading."""
    chosen = torch.tensor(list(classes))
    return class_tree(history[-1].cosine.matrix[chosen][:, chosen])


def dendrogram(tree: ClassTree) -> list[Segment]:
    """Lines that draw a tree beside the ordered classes; three for each merge."""
    places = {label: index + 0.5 for index, label in enumerate(tree.order)}
    top = max((merge.stiffness for merge in tree.merges), default=0.0)
    low = min((merge.stiffness for merge in tree.merges), default=0.0)
    start = top + 0.08 * max(top - low, 1e-6)
    nodes: dict[int, tuple[float, float, tuple[int, ...]]] = {
        label: (place, start, (label,)) for label, place in places.items()
    }
    segments = []
    for index, merge in enumerate(tree.merges):
        (place_a, at_a, in_a), (place_b, at_b, in_b) = nodes[merge.first], nodes[merge.second]
        here, members = merge.stiffness, (*in_a, *in_b)
        segments.append(Segment(place_a, place_a, at_a, here, members))
        segments.append(Segment(place_b, place_b, at_b, here, members))
        segments.append(Segment(place_a, place_b, here, here, members))
        nodes[len(tree.order) + index] = ((place_a + place_b) / 2, here, members)
    return segments


def class_pairs(history: History, places: slice = ALL) -> list[ClassPair]:
    """Pairs of different classes that have a stiffness at the last reading, the stiffest first.

    Args:
        history: at least one reading.
        places: which of them; a thousand classes have half a million.
    """
    names = class_names(history.probe)
    last, first = _symmetric(history[-1].cosine.matrix), _symmetric(history[0].cosine.matrix)
    pairs = torch.triu_indices(len(names), len(names), offset=1)
    values = last[pairs[0], pairs[1]]
    known = pairs[:, values.isfinite()]
    order = values[values.isfinite()].argsort(descending=True, stable=True)[places]
    return [
        ClassPair(names[row], names[column], float(last[row, column]), float(last[row, column] - first[row, column]))
        for row, column in known[:, order].T.tolist()
    ]


def within_by_class(history: History, index: int) -> dict[str, float]:
    """Stiffness within each class at a reading, the lowest first; classes without one are left out."""
    values = history[index].cosine.matrix.diagonal().tolist()
    found = [pair for pair in zip(class_names(history.probe), values, strict=True) if math.isfinite(pair[1])]
    return dict(sorted(found, key=lambda pair: pair[1]))


def superclass_series(history: History) -> dict[str, list[float]]:
    """Mean stiffness of different classes in the same super-class and in different ones, at each reading."""
    if history.probe.superclasses is None:
        return {}
    groups = torch.tensor(history.probe.superclasses)
    matrices = [reading.cosine.matrix for reading in history]
    return {
        "in the same super-class": [float(superclass_within(matrix, groups)) for matrix in matrices],
        "in different super-classes": [float(superclass_between(matrix, groups)) for matrix in matrices],
    }


def _spread(total: int, most: int) -> list[int]:
    """Places at equal distances, the first and the last among them."""
    if total <= most:
        return list(range(total))
    return sorted({round(index * (total - 1) / (most - 1)) for index in range(most)})


def _entries(matrix: Tensor) -> tuple[int | None, ...]:
    flat = (matrix.double() * SCALE).flatten().tolist()
    return tuple(round(entry) if math.isfinite(entry) else None for entry in flat)


def _symmetric(matrix: Tensor) -> Tensor:
    return (matrix.double() + matrix.double().T) / 2


def _off_diagonal(matrix: Tensor) -> Tensor:
    return matrix.double().clone().fill_diagonal_(math.nan)
