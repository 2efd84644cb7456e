"""Brings the gradients of all samples to the same size, so that products of tiny ones do not underflow."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.graph import Node

from lightning_stiffness.gram.graph import weighted_gradients


def unit_weights(losses: Float[Tensor, "n"]) -> Float[Tensor, "n"]:
    """1 / the size of each sample's gradient where the loss head hands it to the network.

    Where that is not known, the size of the loss serves. A fitted sample's gradient may be 1e-20 and its square beyond
    float32; multiplied by this weight it is of order one. Samples without a gradient get weight one.
    """
    size = _head_gradient_norms(losses)
    if size is None:
        size = losses.detach().abs()
    return torch.where(size > torch.finfo(size.dtype).tiny, 1 / size, torch.ones_like(size)).to(losses.dtype)


def _head_gradient_norms(losses: Tensor) -> Tensor | None:
    """The norms of the gradients at the casts which lead into a double-precision loss head; None without such casts."""
    casts = _casts(losses)
    if not casts:
        return None
    n = len(losses)
    gradients = weighted_gradients(losses, torch.ones_like(losses), casts, retain_graph=True)
    total = torch.zeros_like(losses)
    for gradient in gradients:
        if gradient is None:
            continue
        if gradient.ndim == 0 or len(gradient) % n:
            return None
        total += gradient.reshape(n, -1).square().sum(1)
    return total.sqrt()


def _casts(losses: Tensor) -> list[Node]:
    """The casts to float64 which are nearest to the losses."""
    if losses.dtype != torch.float64 or losses.grad_fn is None:
        return []
    found: list[Node] = []
    seen: set[Node] = set()
    stack: list[Node] = [losses.grad_fn]
    while stack:
        node = stack.pop()
        if node in seen:
            continue
        seen.add(node)
        below = [child for child, _ in node.next_functions if child is not None]
        if node.name() == "ToCopyBackward0":
            found.append(node)
        elif all(_is_double(child) for child in below):
            stack.extend(below)
        else:
            return []
    return found


def _is_double(node: Node) -> bool:
    metadata = getattr(node, "_input_metadata", ())
    return any(entry.dtype == torch.float64 for entry in metadata)
