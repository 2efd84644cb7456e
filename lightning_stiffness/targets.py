"""The class of each sample: where batches keep it, and what it must look like."""

import contextlib
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from lightning_stiffness import structure
from lightning_stiffness.batching import batch_size
from lightning_stiffness.errors import StiffnessError

TARGET_NAMES: Final = ("labels", "label", "targets", "target", "y")


def targets_of(batch: object) -> Int[Tensor, "n"]:
    """Class targets of a batch, on the device where they are: what is named labels, label, targets, target or y.

    These are keys of a mapping or fields of a named tuple or dataclass; in other sequences the second element is taken.

    Args:
        batch: What a data loader yields.

    Returns:
        One class index for each sample, int64. Shape [n, 1] is flattened, booleans become 0 and 1.

    Raises:
        StiffnessError: If there are none, or they are not one integer for each sample (regression, one-hot, soft or
            multi-label targets).

    >>> import torch
    >>> targets_of((torch.zeros(3, 2), torch.tensor([2, 0, 1], dtype=torch.uint8)))
    tensor([2, 0, 1])
    """
    place = target_place(batch)
    return as_class_targets(dict(structure.parts(batch))[place], batch_size(batch))


def as_class_targets(found: object, size: int) -> Int[Tensor, "n"]:
    """One class index for each of ``size`` samples, checked.

    Args:
        found: A tensor, array or list of integers.
        size: How many samples there are.

    Returns:
        The class indices, int64; shape [n, 1] is flattened, booleans become 0 and 1. Their range is not checked.

    Raises:
        StiffnessError: If found is anything but one integer for each sample.

    >>> as_class_targets([1, 0, 2], size=3)
    tensor([1, 0, 2])
    """
    targets = _as_tensor(found)
    if targets is not None and targets.shape == (size, 1):
        targets = targets.squeeze(1)
    if targets is None or targets.shape != (size,) or targets.is_floating_point() or targets.is_complex():
        raise StiffnessError(
            f"Class targets must be {size} integers, one for each sample; found {structure.describe(found)}. "
            "Regression values, soft, one-hot and multi-label targets are not class labels: "
            "pass targets=, a callable batch -> [n] integers."
        )
    return targets.detach().long()


def target_place(batch: Any) -> str | int:
    """The name or position in a batch where `targets_of` finds the class targets.

    Args:
        batch: What a data loader yields.

    Raises:
        StiffnessError: If there are none.

    >>> import torch
    >>> target_place({"x": torch.zeros(3, 2), "label": torch.tensor([2, 0, 1])})
    'label'
    """
    if structure.is_container(batch):
        names = [key for key, _ in structure.parts(batch) if isinstance(key, str)]
        for name in TARGET_NAMES:
            if name in names:
                return name
        if isinstance(batch, list | tuple) and len(batch) >= 2:
            _require_unambiguous(batch)
            return 1
    raise StiffnessError(
        f"Class targets must be the second element of the batch or be named one of {', '.join(TARGET_NAMES)}; "
        f"found {structure.describe(batch)}. Pass targets=, a callable batch -> [n] integers."
    )


def class_candidates(parts: Sequence[Any], size: int) -> tuple[int, ...]:
    """Which parts of a sequence, after the first, hold one integer for each of ``size`` samples.

    >>> class_candidates([torch.zeros(2, 3), torch.tensor([0, 1]), torch.zeros(2), torch.tensor([[2], [3]])], 2)
    (1, 3)
    """
    found = [_as_tensor(part) for part in parts[1:]]
    return tuple(
        k
        for k, part in enumerate(found, 1)
        if part is not None and part.shape in ((size,), (size, 1)) and not part.is_floating_point()
    )


def with_targets(batch: Any, labels: Int[Tensor, "n"]) -> Any:
    """The same batch with other class targets, in the place where `targets_of` finds them and in their type.

    Args:
        batch: What a data loader yields; it stays as it is.
        labels: One class for each sample.

    Raises:
        StiffnessError: If there are none, or they are not one integer for each sample.

    >>> import torch
    >>> with_targets([torch.zeros(2, 1), torch.tensor([[3], [1]])], torch.tensor([0, 2]))
    [tensor([[0.],
            [0.]]), tensor([[0],
            [2]])]
    """
    place = target_place(batch)
    as_class_targets(dict(structure.parts(batch))[place], batch_size(batch))
    changed = {key: _alike(labels, part) if key == place else part for key, part in structure.parts(batch)}
    return structure.rebuilt(batch, changed)


def _alike(labels: Tensor, part: Any) -> Any:
    if isinstance(part, Tensor):
        return labels.to(part).reshape(part.shape)
    values = labels.cpu().numpy()
    if isinstance(part, np.ndarray):
        return values.astype(part.dtype).reshape(part.shape)
    return structure.rebuilt_sequence(part, values.tolist())


def _require_unambiguous(batch: Any) -> None:
    """(tokens, lengths, labels) and (inputs, labels, ids) look alike: a guess would be wrong in one of them."""
    integers = class_candidates(batch, batch_size(batch))
    if len(integers) > 1:
        raise StiffnessError(
            f"Class targets must be the only integers, one per sample, after the inputs; found {len(integers)} "
            f"candidates, elements {', '.join(map(str, integers))} of the batch. "
            f"Pass targets=, such as lambda batch: batch[{integers[-1]}]."
        )


def _as_tensor(found: Any) -> Tensor | None:
    with contextlib.suppress(TypeError, ValueError, RuntimeError):
        if isinstance(found, Tensor | list | tuple):
            return torch.as_tensor(found)
        if hasattr(found, "__array__"):
            return torch.as_tensor(np.array(found))  # a copy: torch warns about arrays that are read-only
    return None
