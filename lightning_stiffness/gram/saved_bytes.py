"""How many bytes an autograd graph keeps for its backward pass."""

import math
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from lightning_stiffness.gram.graph import REINDEXING, below


def with_saved_bytes(compute: Callable[[], Tensor], parameters: Sequence[Tensor]) -> tuple[Tensor, int]:
    """A tensor with its graph, and the bytes that the graph keeps for the backward pass, without the parameters.

    They are counted; where the code calls torch.func, which refuses to run while they are, the outputs of all
    operations are taken for them.
    """
    try:
        with _SavedBytes() as saved:
            computed = compute()
    except RuntimeError as cause:
        if "saved tensor hooks" not in str(cause):
            raise
        computed = compute()
        return computed, _output_bytes(computed)
    return computed, saved.total(parameters)


def _output_bytes(computed: Tensor) -> int:
    total = 0
    for node in below(computed.grad_fn):
        if node.next_functions and node.name() not in REINDEXING:  # no leaf, and no view
            outputs: Any = getattr(node, "_input_metadata", ())
            total += sum(math.prod(one.shape) * one.dtype.itemsize for one in outputs)
    return total


class _SavedBytes:
    """Counts the bytes that the graph keeps for the backward pass."""

    def __init__(self) -> None:
        self._storages: dict[int, int] = {}
        self._hooks = saved_tensors_hooks(self._pack, lambda tensor: tensor)

    def _pack(self, tensor: Tensor) -> Tensor:
        # A view of the whole batch counts with its own size, not with that of the batch.
        size = min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())
        pointer = tensor.untyped_storage().data_ptr()
        self._storages[pointer] = max(size, self._storages.get(pointer, 0))
        return tensor

    def total(self, parameters: Sequence[Tensor]) -> int:
        """The bytes of all distinct storages but those of the parameters."""
        own = {parameter.untyped_storage().data_ptr() for parameter in parameters}
        return sum(size for pointer, size in self._storages.items() if pointer not in own)

    def __enter__(self) -> "_SavedBytes":
        self._hooks.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._hooks.__exit__(*error)
