"""Class labels of a dataset, without loading its samples, and class-balanced choices among them."""

import contextlib
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import torch
from jaxtyping import Int
from torch import Generator, Tensor
from torch.utils.data import ConcatDataset, Subset, TensorDataset

from lightning_stiffness.errors import StiffnessError
from lightning_stiffness.targets import as_class_targets, class_candidates


def labels_of(dataset: object) -> Int[Tensor, "n"] | None:
    """Class labels of a map-style dataset, read without loading a sample.

    They come from ``targets`` or ``labels`` of the dataset, the second tensor of a TensorDataset, the column label or
    labels of a table with ``column_names`` or ``features``, and through any nesting of Subset and ConcatDataset. They
    are what the dataset stores: a target transform is not applied.

    Args:
        dataset: A map-style dataset.

    Returns:
        One integer for each sample, int64; None when there are none to be read, they are not integers, or their number
        is not the length of the dataset (multi-label targets, class names). The second tensor is a guess where others
        could be meant as well: who cannot compare it with the labels of a batch takes `unambiguous_labels_of`.

    >>> from torch.utils.data import ConcatDataset, Subset, TensorDataset
    >>> digits = TensorDataset(torch.zeros(4, 2), torch.tensor([3, 1, 2, 0]))
    >>> labels_of(Subset(ConcatDataset([digits, digits]), [0, 5, 6]))
    tensor([3, 1, 2])
    """
    if isinstance(dataset, Subset):
        whole = labels_of(dataset.dataset)
        return None if whole is None else whole[torch.as_tensor(list(dataset.indices), dtype=torch.long)]
    if isinstance(dataset, ConcatDataset):
        pieces = [labels_of(piece) for piece in dataset.datasets]
        known = [piece for piece in pieces if piece is not None]
        return torch.cat(known) if len(known) == len(pieces) else None
    return _stored_labels(dataset)


def unambiguous_labels_of(dataset: object) -> Int[Tensor, "n"] | None:
    """As `labels_of`, and None too where more than one tensor of a TensorDataset could be the labels.

    >>> inputs, domain, labels = torch.zeros(2, 3), torch.tensor([0, 0]), torch.tensor([0, 1])
    >>> unambiguous_labels_of(TensorDataset(inputs, domain, labels)) is None
    True
    """
    return None if ambiguous_tensors(dataset) else labels_of(dataset)


def ambiguous_tensors(dataset: object) -> tuple[int, ...]:
    """Which tensors of a TensorDataset, inside of any Subset and ConcatDataset, could be the labels, if several could.

    >>> ambiguous_tensors(TensorDataset(torch.zeros(2, 3), torch.tensor([0, 1]), torch.tensor([2, 0])))
    (1, 2)
    """
    if isinstance(dataset, Subset):
        return ambiguous_tensors(dataset.dataset)
    if isinstance(dataset, ConcatDataset):
        return next((found for found in map(ambiguous_tensors, dataset.datasets) if found), ())
    if not isinstance(dataset, TensorDataset) or hasattr(dataset, "targets") or hasattr(dataset, "labels"):
        return ()
    found = class_candidates(dataset.tensors, len(dataset))
    return found if len(found) > 1 else ()


def balanced_positions(labels: Int[Tensor, "n"], size: int, generator: Generator) -> Int[Tensor, "k"]:
    """Positions of about ``size`` samples with equal shares of the classes, as far as the classes go.

    Classes that are larger than their share differ by at most one sample. Every class has at least two samples where
    it has two, even when these are more than ``size`` in all.

    Args:
        labels: Class of each sample, any integers.
        size: How many samples.
        generator: Draws the samples, and the classes that get one more.

    Returns:
        Distinct positions, grouped by rising class, in a random order within a class.

    Source: ours.

    >>> labels = torch.tensor([0, 1, 1, 1, 0, 1, 1, 2])
    >>> labels[balanced_positions(labels, 6, torch.Generator().manual_seed(0))]
    tensor([0, 0, 1, 1, 1, 2])
    """
    order = torch.randperm(len(labels), generator=generator)
    order = order[labels[order].argsort(stable=True)]
    if len(order) == 0:
        return order
    counts = torch.unique(labels, return_counts=True)[1]
    starts = counts.cumsum(0) - counts
    shares = _shares(counts, size, generator)
    return torch.cat([order[start : start + share] for start, share in zip(starts, shares, strict=True)])


def _shares(counts: Int[Tensor, "c"], size: int, generator: Generator) -> Int[Tensor, "c"]:
    level = 2
    while level < int(counts.max()) and int(counts.clamp(max=level + 1).sum()) <= size:
        level += 1
    shares = counts.clamp(max=level)
    larger = (counts > level).nonzero().flatten()
    left = max(0, size - int(shares.sum()))
    shares[larger[torch.randperm(len(larger), generator=generator)[:left]]] += 1
    return shares


def _stored_labels(dataset: Any) -> Int[Tensor, "n"] | None:
    with contextlib.suppress(Exception):  # a property or a column may fail in any way: then nothing can be read cheaply
        size = len(dataset)
        for stored in _candidates(dataset):
            with contextlib.suppress(StiffnessError):
                return as_class_targets(stored, size).cpu()
    return None


def _candidates(dataset: Any) -> Iterator[object]:
    yield getattr(dataset, "targets", None)
    yield getattr(dataset, "labels", None)
    if isinstance(dataset, TensorDataset) and len(dataset.tensors) >= 2:
        yield dataset.tensors[1]
    columns = getattr(dataset, "column_names", None) or getattr(dataset, "features", None)
    for name in ("label", "labels"):
        if isinstance(columns, Mapping | list | tuple | set) and name in columns:
            yield _column(dataset, name)


def _column(dataset: Any, name: str) -> object:
    column = dataset[name]
    return list(column) if isinstance(column, Collection) and not isinstance(column, Tensor) else column
