"""Classes and their groups as rows, for loggers that show tables."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

from torch import Tensor

from lightning_stiffness.balance import BalanceReading
from lightning_stiffness.balance_words import HEADINGS, class_rows
from lightning_stiffness.functional.class_tree import class_tree
from lightning_stiffness.history import History, ProbeSummary

MOST_ROWS: Final = 5_050  # all pairs of 100 classes; more take the loggers seconds


@dataclass(frozen=True)
class Rows:
    """A table: names and kinds of its columns, and its rows; None where there is no value."""

    columns: dict[str, type]
    rows: list[list[Any]]


def names_of(probe: ProbeSummary) -> list[str]:
    """The names of the classes, or their numbers."""
    return [str(name) for name in probe.class_names or range(probe.num_classes)]


def matrix_rows(history: History) -> Rows:
    """The class matrix of the last reading, a row for each pair; of too many pairs those farthest from 0.

    Of a symmetric matrix each pair is there once; in cross mode class a is that of the training samples.
    """
    reading, names = history[-1], names_of(history.probe)
    matrix, is_symmetric = reading.cosine.matrix.double().cpu().tolist(), history.probe.mode != "cross"
    rows = [
        [reading.epoch, names[first], names[second], entry]
        for first, entries in enumerate(matrix)
        for second, entry in enumerate(entries)
        if math.isfinite(entry) and (first <= second or not is_symmetric)
    ]
    if len(rows) > MOST_ROWS:
        rows = sorted(rows, key=lambda row: -abs(row[3]))[:MOST_ROWS]
    return Rows({"epoch": float, "class a": str, "class b": str, "mean cosine": float}, rows)


def group_rows(history: History) -> Rows:
    """The groups of classes that the last reading shows, and the super-classes if there are any, a row for each."""
    probe, matrix = history.probe, history[-1].cosine.matrix.double().cpu()
    kinds: dict[str, Iterable[Sequence[int]]] = {"found": class_groups(matrix)}
    if probe.superclasses is not None:
        kinds["given"] = [_places(probe.superclasses, label) for label in sorted(set(probe.superclasses))]
    names = names_of(probe)
    rows = [
        [history[-1].epoch, kind, ", ".join(names[label] for label in group), len(group), *_means(matrix, group)]
        for kind, groups in kinds.items()
        for group in groups
    ]
    means = ("within classes", "between classes inside", "to other classes")
    return Rows({"epoch": float, "groups": str, "classes": str, "size": int, **dict.fromkeys(means, float)}, rows)


def balance_rows(readings: Sequence[BalanceReading]) -> Rows:
    """How a balancer's last reading sees each class, the smallest first."""
    kinds: dict[str, type] = dict.fromkeys(HEADINGS, float) | {"class": str, "taken by": str}
    return Rows(kinds, [list(row) for row in class_rows(readings[-1])])


def class_groups(matrix: Tensor) -> list[list[int]]:
    """Classes that are stiff to each other: the hierarchy, cut where the stiffness of merging groups falls the most.

    Where nothing stands out, with one or two classes or all pairs alike, each class is a group of its own.

    >>> import torch
    >>> class_groups(torch.tensor([[1, 0.5, 0, 0], [0.5, 1, 0, 0], [0, 0, 1, 0.4], [0, 0, 0.4, 1]]))
    [[0, 1], [2, 3]]
    """
    merges = class_tree(matrix).merges
    falls = [before.stiffness - after.stiffness for before, after in pairwise(merges)]
    kept = falls.index(max(falls)) + 1 if falls and max(falls) > 0 else 0
    clusters = {label: [label] for label in range(len(matrix))}
    for index, merge in enumerate(merges[:kept]):
        clusters[len(matrix) + index] = clusters.pop(merge.first) + clusters.pop(merge.second)
    return sorted(sorted(group) for group in clusters.values())


def _places(labels: Sequence[int], wanted: int) -> list[int]:
    return [place for place, label in enumerate(labels) if label == wanted]


def _means(matrix: Tensor, group: Sequence[int]) -> list[float | None]:
    """Within its classes, between them, and to all others."""
    others = [label for label in range(len(matrix)) if label not in set(group)]
    inside = matrix[list(group)][:, list(group)]
    pairs = inside.clone().fill_diagonal_(math.nan)
    return [finite(part.nanmean().item()) for part in (inside.diagonal(), pairs, matrix[list(group)][:, others])]


def finite(number: float) -> float | None:
    """The number, or None where it is none: not every table and file can hold nan."""
    return number if math.isfinite(number) else None
