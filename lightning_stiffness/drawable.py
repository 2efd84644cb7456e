"""Which samples of its dataset a loader can draw, as far as its sampler tells: the others may be held out."""

import contextlib
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)


def drawable_positions(loader: DataLoader[Any]) -> Int[Tensor, "k"] | None:
    """Positions in the dataset that a loader can draw, in whatever epoch.

    PyTorch's own samplers are known, and lists of positions. A sampler of another class is asked for
    `drawable_positions`, which need not be there.

    Args:
        loader: A loader of a map-style dataset, whose sampler is not iterated.

    Returns:
        Each position once, rising, int64; None where the sampler does not tell, or its positions are none of the
        dataset.

    >>> from torch.utils.data import TensorDataset
    >>> data = TensorDataset(torch.arange(5))
    >>> drawable_positions(DataLoader(data, sampler=SubsetRandomSampler([3, 1])))
    tensor([1, 3])
    >>> drawable_positions(DataLoader(data, shuffle=True))
    tensor([0, 1, 2, 3, 4])
    """
    dataset: Any = loader.dataset
    with contextlib.suppress(TypeError, ValueError, RuntimeError):  # keys that are no positions, a dataset of no length
        found = torch.as_tensor(_positions(innermost_sampler(loader)))
        positions: Tensor = torch.unique(found.long())
        is_within = len(positions) == 0 or (int(positions[0]) >= 0 and int(positions[-1]) < len(dataset))
        if found.ndim == 1 and not found.is_floating_point() and is_within:
            return positions
    return None


def draws_evenly(sampler: Any) -> bool:
    """Whether a sampler draws all samples that it can draw equally often: classes as often as they occur in them.

    >>> draws_evenly(WeightedRandomSampler([1.0, 2.0], 2)), draws_evenly(SubsetRandomSampler([2, 0]))
    (False, True)
    """
    if type(sampler) is SubsetRandomSampler:
        return len(torch.unique(torch.as_tensor(sampler.indices))) == len(sampler.indices)
    return type(sampler) in (RandomSampler, SequentialSampler, DistributedSampler)


def innermost_sampler(loader: DataLoader[Any]) -> Any:
    """The sampler that chooses single samples, inside a plain BatchSampler and what Lightning puts around it under DDP.

    Returns:
        The sampler; None for a batch sampler of another class, which may do anything.
    """
    found: Any = loader.sampler
    if loader.batch_sampler is not None:
        if type(loader.batch_sampler) is not BatchSampler:
            return None
        found = loader.batch_sampler.sampler
    if type(found) is BatchSampler:  # beside batch_size=None
        found = found.sampler
    wrapped = getattr(found.dataset, "_sampler", None) if isinstance(found, DistributedSampler) else None
    return found if wrapped is None else wrapped


def _positions(sampler: Any) -> Any:
    kind = type(sampler)
    if kind in (RandomSampler, SequentialSampler):
        return torch.arange(len(sampler.data_source))
    if kind is DistributedSampler:
        return torch.arange(len(sampler.dataset))
    if kind is SubsetRandomSampler:
        return list(sampler.indices)
    if kind is WeightedRandomSampler:
        return (sampler.weights > 0).nonzero().flatten()
    if isinstance(sampler, list | tuple | range | Tensor):
        return sampler
    return getattr(sampler, "drawable_positions", None)
