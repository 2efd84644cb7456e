"""Classes ordered by how stiff they are to each other: a dendrogram by average linkage."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from scipy.cluster.hierarchy import leaves_list, linkage
from scipy.spatial.distance import squareform
from torch import Tensor

from lightning_stiffness.functional.validation import require_square


@dataclass(frozen=True)
class Merge:
    """Two clusters become one. Clusters 0 ... c - 1 are the classes, c + k is what merge k makes.

    Attributes:
        first: one of the two.
        second: the other one.
        stiffness: mean class-matrix entry between their members, in the range of the matrix; nan is counted as the
            lowest entry that there is.
    """

    first: int
    second: int
    stiffness: float


@dataclass(frozen=True)
class ClassTree:
    """A hierarchy of classes.

    Attributes:
        order: all classes, so that those that merge early are neighbours.
        merges: c - 1 of them, the stiffest first.
    """

    order: tuple[int, ...]
    merges: tuple[Merge, ...]


def class_tree(matrix: Float[Tensor, "c c"]) -> ClassTree:
    """Cluster classes by average linkage: first the two that are stiffest to each other, and so on.

    Args:
        matrix: class matrix; its diagonal plays no part, and where it is not symmetric the mean of both entries counts.

    Raises:
        StiffnessError: `matrix` is not square or empty.

    Source: average linkage, Sokal & Michener (1958), with the leaf order of Bar-Joseph et al. (2001), by SciPy.

    >>> class_tree(torch.tensor([[0.9, 0.0, 0.4], [0.0, 0.9, 0.1], [0.4, 0.1, 0.9]])).merges[0]
    Merge(first=0, second=2, stiffness=0.4)
    """
    require_square(matrix, "matrix")
    if len(matrix) == 1:
        return ClassTree((0,), ())
    entries = matrix.detach().cpu().double()
    entries = (entries + entries.T) / 2
    finite = entries.fill_diagonal_(torch.nan)[entries.isfinite()]
    lowest, highest = (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 0.0)
    distances = (highest - entries.nan_to_num(lowest)).fill_diagonal_(0).clamp_min(0)
    links = linkage(squareform(distances.numpy(), checks=False), "average", optimal_ordering=len(matrix) <= 200)
    merges = tuple(Merge(int(min(a, b)), int(max(a, b)), round(highest - float(d), 6)) for a, b, d, _ in links)
    return ClassTree(tuple(int(leaf) for leaf in leaves_list(links)), merges)
