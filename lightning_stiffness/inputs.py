"""What goes into the network: the inputs of a batch, and the same as vectors."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_stiffness.structure import tensors


def inputs_of(batch: Any, samples: int) -> Tensor | None:
    """The first part of a batch that can be an input with distances: numbers [n, ...], or images of bytes.

    Returns:
        The tensor [n, ...], detached; None where there is none, as for token numbers.

    >>> inputs_of((torch.ones(3, 2), torch.arange(3)), samples=3).shape
    torch.Size([3, 2])
    """
    for part in tensors(batch):
        is_bytes = part.dtype == torch.uint8 and part.ndim >= 3
        if part.ndim >= 2 and len(part) == samples and part[0].numel() > 1 and (part.is_floating_point() or is_bytes):
            return part.detach()
    return None


def input_vectors(batch: Any, samples: int) -> Float[Tensor, "n d"] | None:
    """The inputs as vectors, on the CPU; None where there are none, or where they are not finite.

    >>> input_vectors((torch.ones(3, 2, 2), torch.arange(3)), samples=3).shape
    torch.Size([3, 4])
    """
    inputs = inputs_of(batch, samples)
    if inputs is None:
        return None
    vectors = inputs.flatten(1).float().cpu()
    return vectors if bool(vectors.isfinite().all()) else None
