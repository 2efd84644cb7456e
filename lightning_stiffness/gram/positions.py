"""Where the entries of a parameter end up when its uses see it transposed, sliced or split."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from lightning_stiffness.gram.graph import NotCovered, Use, signed


def _reshaped(index: Tensor, node: Any, output: int) -> Tensor:
    return index.reshape(node._input_metadata[output].shape)


def _sliced(index: Tensor, node: Any, output: int) -> Tensor:
    selection = [slice(None)] * index.ndim
    selection[signed(node._saved_dim)] = slice(signed(node._saved_start), signed(node._saved_end), node._saved_step)
    return index[tuple(selection)]


_REPLAY: dict[str, Callable[[Tensor, Any, int], Tensor]] = {
    "T": lambda index, node, output: index.t(),
    "View": _reshaped,
    "UnsafeView": _reshaped,
    "ReshapeAlias": _reshaped,
    "Squeeze": _reshaped,
    "Unsqueeze": _reshaped,
    "Alias": lambda index, node, output: index,
    "Clone": lambda index, node, output: index,
    "ToCopy": lambda index, node, output: index,
    "Transpose": lambda index, node, output: index.transpose(signed(node._saved_dim0), signed(node._saved_dim1)),
    "Permute": lambda index, node, output: index.permute([signed(axis) for axis in node._saved_dims]),
    "Slice": _sliced,
    "Select": lambda index, node, output: index.select(signed(node._saved_dim), signed(node._saved_index)),
    "Split": lambda index, node, output: index.split(node._saved_split_size, signed(node._saved_dim))[output],
    "SplitWithSizes": lambda index, node, output: index.split(list(node._saved_split_sizes), signed(node._saved_dim))[
        output
    ],
    "Unbind": lambda index, node, output: index.unbind(signed(node._saved_dim))[output],
}


def positions_of(use: Use, shape: Sequence[int]) -> Int[Tensor, "..."]:
    """For each entry of a parameter of some shape as its consumer sees it, its place in the flattened parameter.

    Raises:
        NotCovered: A node on the way does not say what it did.
    """
    index = torch.arange(math.prod(shape)).view(tuple(shape))
    for node, output in reversed(use.path):
        name = node.name().rstrip("012").removesuffix("Backward")
        try:
            index = _REPLAY[name](index, node, output)
        except (AttributeError, RuntimeError, IndexError) as cause:
            raise NotCovered(f"{node.name()} does not say what it did: {cause}") from cause
    return index


def shape_of(use: Use, shape: Sequence[int]) -> tuple[int, ...]:
    """The shape of a parameter of some shape as its consumer sees it."""
    if not use.path:
        return tuple(shape)
    node, output = use.path[0]
    metadata: Any = node
    return tuple(metadata._input_metadata[output].shape)


def disjoint(parts: list[Tensor]) -> bool:
    """Whether no entry is seen twice."""
    flat = torch.cat([part.flatten() for part in parts])
    return len(flat.unique()) == len(flat)
