"""What a batch is made of: its parts, rebuilding it from changed parts, describing it in a message."""

import copy
import dataclasses
from collections import UserDict
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from lightning_stiffness.errors import StiffnessError


def is_container(value: object) -> bool:
    """Whether a value has parts: a mapping, list, tuple or dataclass.

    Raises:
        StiffnessError: If the value is a PackedSequence, whose parts do not follow the samples.

    >>> is_container({"x": 1}), is_container("text")
    (True, False)
    """
    if isinstance(value, PackedSequence):
        raise StiffnessError(
            "A batch must be indexable by sample; found a PackedSequence. "
            "Pass the padded tensor and its lengths, and pack them inside the module (pack_padded_sequence)."
        )
    return isinstance(value, Mapping | list | tuple) or _is_dataclass_value(value)


def is_named_tuple(value: object) -> bool:
    """Whether a value is a tuple whose entries have names.

    >>> is_named_tuple((1, 2))
    False
    """
    return isinstance(value, tuple) and hasattr(value, "_fields")


def parts(value: Any) -> Iterator[tuple[Any, Any]]:
    """Name or position, and value, of each part of a container.

    >>> list(parts(["a", "b"]))
    [(0, 'a'), (1, 'b')]
    """
    if isinstance(value, Mapping):
        yield from value.items()
    elif is_named_tuple(value):
        yield from zip(value._fields, value, strict=True)
    elif isinstance(value, list | tuple):
        yield from enumerate(value)
    else:
        names = [field.name for field in dataclasses.fields(value)]
        yield from ((name, getattr(value, name)) for name in names if hasattr(value, name))


def rebuilt(value: Any, changed: dict[Any, Any]) -> Any:
    """A container like ``value`` with ``changed`` in place of its parts; the value stays as it is.

    Raises:
        StiffnessError: If a container of an unusual type cannot be made from its content.

    >>> rebuilt((1, 2), {0: 10, 1: 20})
    (10, 20)
    """
    if isinstance(value, list | tuple):
        return rebuilt_sequence(value, list(changed.values()))
    if isinstance(value, Mapping) and not isinstance(value, dict | UserDict):
        return _constructed(type(value), changed)  # a shallow copy of any other mapping may share its storage
    result = copy.copy(value)
    for name, part in changed.items():
        if isinstance(value, Mapping):
            result[name] = part
        else:
            object.__setattr__(result, name, part)  # frozen dataclasses refuse setattr
    return result


def rebuilt_sequence(value: Any, items: list[Any]) -> Any:
    """A list or tuple of the type of ``value`` that holds ``items``.

    Raises:
        StiffnessError: If a sequence of an unusual type cannot be made from its items.

    >>> rebuilt_sequence((1, 2, 3), [5])
    (5,)
    """
    if is_named_tuple(value):
        return type(value)._make(items)
    return items if type(value) is list else _constructed(type(value), items)


def tensors(value: object) -> Iterator[Tensor]:
    """The tensors in a value, depth first.

    Raises:
        StiffnessError: If one of them is nested or packed and cannot be indexed by sample.

    >>> import torch
    >>> [list(tensor.shape) for tensor in tensors({"x": torch.zeros(4, 2), "rest": (torch.ones(3), "text")})]
    [[4, 2], [3]]
    """
    if isinstance(value, Tensor):
        yield require_indexable(value)
    elif is_container(value):
        for _, part in parts(value):
            yield from tensors(part)


def require_indexable(tensor: Tensor) -> Tensor:
    """The tensor itself.

    Raises:
        StiffnessError: If it is a nested tensor.

    >>> import torch
    >>> require_indexable(torch.tensor([1, 2]))
    tensor([1, 2])
    """
    if tensor.is_nested:
        raise StiffnessError(
            "A batch must be indexable by sample; found a nested tensor. Pad it (torch.nested.to_padded_tensor)."
        )
    return tensor


def describe(value: Any) -> str:
    """Types, names and shapes of a value in one line, for messages; at most eight parts of a container are listed.

    >>> import torch
    >>> describe({"x": torch.zeros(4, 2), "names": ["a", "b"]})
    "dict('x': float32 tensor [4, 2], 'names': list(str, str))"
    """
    name = type(value).__name__
    if isinstance(value, Tensor):
        size = "nested" if value.is_nested else list(value.shape)
        return f"{str(value.dtype).removeprefix('torch.')} tensor {size}"
    if isinstance(value, np.ndarray):
        return f"{value.dtype} array {list(value.shape)}"
    if isinstance(value, PackedSequence) or not is_container(value):
        return name
    inside = list(parts(value))
    shown = [f"{key!r}: {describe(part)}" if isinstance(key, str) else describe(part) for key, part in inside[:8]]
    more = [f"and {len(inside) - 8} more"] if len(inside) > 8 else []
    return f"{name}({', '.join(shown + more)})"


def _is_dataclass_value(value: object) -> bool:
    return dataclasses.is_dataclass(value) and not isinstance(value, type)


def _constructed(kind: Any, content: Any) -> Any:
    try:
        return kind(content)
    except Exception as error:
        raise StiffnessError(
            f"A part of a batch must be rebuildable from its content; {kind.__name__}(...) failed with: {error}. "
            "Return a dict, list, tuple or dataclass from the collate function."
        ) from error
