"""What the engine must agree with: per-sample gradients by one plain backward pass a sample."""

import copy

import torch
from torch import nn

from lightning_stiffness.batching import batch_size, take


def loop_gradients(module, loss, batch):
    """[n, p] gradients, one sample at a time, in the module's own precision."""
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    rows = []
    for sample in range(batch_size(batch)):
        value = loss(module, take(batch, [sample]))[0]
        gradients = torch.autograd.grad(value, parameters, allow_unused=True)
        pairs = zip(gradients, parameters, strict=True)
        rows.append(torch.cat([(torch.zeros_like(p) if g is None else g.to_dense()).flatten() for g, p in pairs]))
    return torch.stack(rows)


def loop_gram(module, loss, batch):
    """The same in float64: K and the gradients, from a copy of the module."""
    double = copy.deepcopy(module).double()
    gradients = loop_gradients(double, loss, in_double(batch))
    return gradients @ gradients.T, gradients


def in_double(batch):
    """The batch with its floating point tensors in float64."""
    if isinstance(batch, torch.Tensor):
        return batch.double() if batch.is_floating_point() else batch
    if isinstance(batch, dict):
        return {key: in_double(value) for key, value in batch.items()}
    if isinstance(batch, (tuple, list)):
        return type(batch)(in_double(value) for value in batch)
    return batch


def cross_entropy(module: nn.Module, batch):
    """One cross entropy per sample of (x, y)."""
    return nn.functional.cross_entropy(module(batch[0]), batch[1], reduction="none")
