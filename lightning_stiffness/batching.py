"""Batches of any make: how many samples they hold, some of their samples, several batches as one."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from lightning_stiffness import structure
from lightning_stiffness.errors import StiffnessError

Batch = TypeVar("Batch")


def batch_size(batch: object) -> int:
    """Number of samples of a batch: the leading size of the first tensor in it that has a dimension.

    Mappings, sequences and dataclasses are searched in their own order, depth first. Tensors without a dimension, and
    tensors of another leading size further on (class weights, a shared mask), are allowed. Where the first tensor is in
    a list of tensors, such as sequences of unequal length, the entries of that list are counted instead if the rest of
    the batch has as many rows, and none as many as the first tensor.

    Args:
        batch: What a data loader yields.

    Returns:
        The number of samples, 0 for an empty batch.

    Raises:
        StiffnessError: If there is no tensor with a dimension, or a packed or nested one is met first.

    >>> import torch
    >>> batch_size({"input_ids": torch.zeros(4, 7), "temperature": torch.tensor(1.0)})
    4
    >>> batch_size(([torch.zeros(5), torch.zeros(7), torch.zeros(6)], torch.tensor([0, 1, 0])))
    3
    """
    for tensor in structure.tensors(batch):
        if tensor.ndim > 0:
            return _entries_around(tensor, batch) or tensor.size(0)
    raise StiffnessError(
        f"A batch must hold a tensor whose first dimension counts the samples; found {structure.describe(batch)}. "
        "Return tensors from the collate function (torch.as_tensor converts arrays)."
    )


def _entries_around(tensor: Tensor, batch: object) -> int | None:
    """The length of the list that holds a tensor, where the rest of the batch says that it has an entry per sample."""
    holder = _holder_of(tensor, batch)
    if holder is None or len(holder) == tensor.size(0) or not all(isinstance(entry, Tensor) for entry in holder):
        return None
    others = set(_lengths(batch, holder))
    return len(holder) if len(holder) in others and tensor.size(0) not in others else None


def _holder_of(tensor: Tensor, value: object) -> list[Any] | tuple[Any, ...] | None:
    """The list in which a tensor is."""
    if isinstance(value, Tensor) or not structure.is_container(value):
        return None
    inside = [part for _, part in structure.parts(value)]
    if any(part is tensor for part in inside):
        return value if isinstance(value, list | tuple) and not structure.is_named_tuple(value) else None
    return next((found for part in inside if (found := _holder_of(tensor, part)) is not None), None)


def _lengths(value: object, without: object) -> Iterator[int]:
    """The leading sizes of tensors and arrays, and the lengths of lists of plain values."""
    if isinstance(value, Tensor | np.ndarray):
        yield from value.shape[:1]
    elif value is not without and structure.is_container(value):
        inside = [part for _, part in structure.parts(value)]
        if isinstance(value, list | tuple) and not any(_has_parts(part) for part in inside):
            yield len(inside)
        for part in inside:
            yield from _lengths(part, without)


def _has_parts(value: object) -> bool:
    return isinstance(value, Tensor | np.ndarray) or structure.is_container(value)


def take(batch: Batch, indices: Tensor | Sequence[int] | slice, size: int | None = None) -> Batch:
    """Only these samples of a batch, in this order, in the same structure.

    Tensors and arrays whose first dimension is ``size`` are indexed, and so are lists and tuples with one entry for
    each sample (names, ids, pieces of unequal length). Mappings, sequences, named tuples and dataclasses are rebuilt,
    and the batch itself stays as it was. Everything else is kept as it is.

    Args:
        batch: What a data loader yields.
        indices: Which samples: an integer tensor [k], integers (negative ones count from the end), or a slice.
        size: Number of samples of the batch; found with `batch_size` when not given.

    Returns:
        A batch of the same type with the chosen samples; a slice yields views of its tensors, indices yield copies.

    Raises:
        StiffnessError: If indices are not integers of the batch, or the batch holds a packed or nested tensor.

    >>> import torch
    >>> take({"x": torch.arange(4) * 10, "name": list("abcd"), "scale": 2.0}, [3, 0])
    {'x': tensor([30,  0]), 'name': ['d', 'a'], 'scale': 2.0}
    """
    count = batch_size(batch) if size is None else size
    rows = _Rows(indices if isinstance(indices, slice) else _as_indices(indices, count), count)
    taken: Batch = rows.of_structure(batch)
    return taken


def take_unchecked(batch: Batch, indices: Int[Tensor, "k"], size: int) -> Batch:
    """`take` without a look at the values of the indices, so that torch.func can vectorise it.

    Raises:
        RuntimeError: Under torch.func, if the batch holds entries that are not tensors, such as names.
    """
    taken: Batch = _Rows(indices, size).of_structure(batch)
    return taken


def join(batches: Sequence[Batch]) -> Batch:
    """Several batches of one structure as a single batch; the inverse of cutting a batch up with `take`.

    Args:
        batches: At least one batch. What `take` would index is concatenated, other tensors must be equal in all, and
            everything else is taken from the first.

    Returns:
        A batch of the type of the first one.

    Raises:
        StiffnessError: If there is no batch, or the batches differ in structure, in the shape of a sample, or in a
            tensor that they share.

    >>> import torch
    >>> join([{"x": torch.tensor([1, 2]), "name": ["a", "b"]}, {"x": torch.tensor([3]), "name": ["c"]}])
    {'x': tensor([1, 2, 3]), 'name': ['a', 'b', 'c']}
    """
    if not batches:
        raise StiffnessError("At least one batch is needed to join; found none.")
    rows = [_Rows(slice(None), batch_size(batch)) for batch in batches]
    joined: Batch = batches[0] if len(batches) == 1 else _join_structure(list(batches), rows)
    return joined


@dataclass(frozen=True)
class _Rows:
    """Which samples are taken of a batch of ``size``."""

    indices: Tensor | slice
    size: int

    def of(self, value: Any) -> Any:
        if isinstance(value, np.ndarray) and value.shape[:1] == (self.size,):
            return value[self._positions()]
        if isinstance(value, list | tuple) and self.has_one_entry_per_sample(value):
            return structure.rebuilt_sequence(value, [value[position] for position in self._positions()])
        return self.of_structure(value)

    def of_structure(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return self.of_tensor(value)
        if not structure.is_container(value):
            return value
        return structure.rebuilt(value, {key: self.of(part) for key, part in structure.parts(value)})

    def of_tensor(self, tensor: Tensor) -> Tensor:
        if structure.require_indexable(tensor).shape[:1] != (self.size,):
            return tensor
        if isinstance(self.indices, slice):
            return tensor[self.indices]
        return tensor.index_select(0, self.indices.to(tensor.device))

    def has_one_entry_per_sample(self, value: Any) -> bool:
        """Whether the entries are samples, not parts of the batch: ``[x, y]`` of two samples has two entries too."""
        if len(value) != self.size or structure.is_named_tuple(value):
            return False
        in_rows = [any(tensor.shape[:1] == (self.size,) for tensor in structure.tensors(entry)) for entry in value]
        alike = len({type(entry) for entry in value}) <= 1
        return not (all(in_rows) if alike else any(in_rows))

    def _positions(self) -> list[int]:
        return list(range(self.size)[self.indices]) if isinstance(self.indices, slice) else self.indices.tolist()


def _as_indices(indices: Tensor | Sequence[int], size: int) -> Int[Tensor, "k"]:
    found = torch.as_tensor(indices)
    if found.numel() == 0:
        return torch.zeros(0, dtype=torch.long)
    if found.ndim != 1 or found.is_floating_point() or found.dtype == torch.bool:
        raise StiffnessError(
            f"indices must be integers in one dimension; found {structure.describe(found)}. "
            "Pass positions; mask.nonzero().flatten() turns a mask into them."
        )
    if int(found.min()) < -size or int(found.max()) >= size:
        raise StiffnessError(
            f"indices must lie in a batch of {size} samples; found {int(found.min())} to {int(found.max())}. "
            f"Pass integers from {-size} to {size - 1}."
        )
    return found.long() % size


def _join(values: list[Any], rows: list[_Rows]) -> Any:
    if all(isinstance(value, np.ndarray) and value.shape[:1] == (row.size,) for value, row in _zip(values, rows)):
        return np.concatenate(values)
    if all(
        isinstance(value, list | tuple) and row.has_one_entry_per_sample(value) for value, row in _zip(values, rows)
    ):
        return structure.rebuilt_sequence(values[0], [entry for value in values for entry in value])
    return _join_structure(values, rows)


def _join_structure(values: list[Any], rows: list[_Rows]) -> Any:
    first = values[0]
    if isinstance(first, Tensor):
        return _join_tensors(values, rows)
    if not structure.is_container(first):
        return first
    if not all(structure.is_container(value) for value in values):
        raise _not_joinable(values)
    columns = [dict(structure.parts(value)) for value in values]
    if any(column.keys() != columns[0].keys() for column in columns):
        raise _not_joinable(values)
    return structure.rebuilt(first, {key: _join([column[key] for column in columns], rows) for key in columns[0]})


def _join_tensors(values: list[Any], rows: list[_Rows]) -> Tensor:
    first: Tensor = values[0]
    if all(isinstance(value, Tensor) and value.shape[:1] == (row.size,) for value, row in _zip(values, rows)):
        if any(value.shape[1:] != first.shape[1:] or value.dtype != first.dtype for value in values):
            raise _not_joinable(values)
        return torch.cat(values)
    if not all(isinstance(value, Tensor) and torch.equal(value, first) for value in values):
        raise _not_joinable(values)
    return first


def _zip(values: list[Any], rows: list[_Rows]) -> Any:
    return zip(values, rows, strict=True)


def _not_joinable(values: list[Any]) -> StiffnessError:
    found = sorted({structure.describe(value) for value in values})
    return StiffnessError(
        "Batches can be joined when they have the same parts, samples of the same shape and equal shared tensors; "
        f"found {' and '.join(found[:3])}. Pass the probe as one batch, padded to one length."
    )
