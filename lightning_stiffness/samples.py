"""Samples of a DataLoader, read in the main process beside the loader: it is not iterated, nor is its sampler."""

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Int
from torch import Generator, Tensor
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, SequentialSampler
from typing_extensions import override

from lightning_stiffness.batching import batch_size, join, take
from lightning_stiffness.drawable import drawable_positions, innermost_sampler
from lightning_stiffness.errors import StiffnessError


@dataclass(frozen=True)
class Samples(ABC):
    """The samples of a loader. Each is stood for by an entry; `gather` makes one batch of some entries."""

    loader: DataLoader[Any]

    @abstractmethod
    def shuffled(self, generator: Generator) -> Iterator[Any]:
        """Entries in a random order (a stream: in its own order), leaving loader, sampler and stream untouched."""

    @abstractmethod
    def in_order(self) -> Iterator[Any]:
        """Entries in the loader's own order, which iterates its sampler."""

    @abstractmethod
    def gather(self, entries: Sequence[Any]) -> Any:
        """One batch of these samples, made by the loader's own collate function."""

    def ids(self, entries: Sequence[Any]) -> tuple[int | None, ...]:
        """Positions in the dataset; None in a stream."""
        return (None,) * len(entries)

    def collate(self, items: Any) -> Any:
        """The loader's own collate function, with its failure explained."""
        return _explained(
            "The loader's collate_fn must make a batch of the probe's samples", self.loader.collate_fn, items
        )


@final
@dataclass(frozen=True)
class IndexedSamples(Samples):
    """Samples of a map-style dataset; an entry is a position in the dataset.

    Attributes:
        positions: Those that are trained on; None for all.
    """

    positions: Int[Tensor, "k"] | None = None

    @override
    def shuffled(self, generator: Generator) -> Iterator[int]:
        used = torch.arange(dataset_length(self.loader)) if self.positions is None else self.positions
        yield from used[torch.randperm(len(used), generator=generator)].tolist()

    @override
    def in_order(self) -> Iterator[Any]:
        # a sampler beside batch_size=None yields lists of positions, as a batch sampler does
        for positions in self.loader.sampler if self.loader.batch_sampler is None else self.loader.batch_sampler:
            yield from positions

    @override
    def gather(self, entries: Sequence[Any]) -> Any:
        return self.collate(_explained("Every sample of the dataset must be readable", self._fetch, list(entries)))

    @override
    def ids(self, entries: Sequence[Any]) -> tuple[int | None, ...]:
        return tuple(int(key) if hasattr(key, "__index__") else None for key in entries)

    def _fetch(self, positions: list[Any]) -> Any:
        dataset: Any = self.loader.dataset
        if self.loader.batch_sampler is None:
            return dataset[positions]
        if getattr(dataset, "__getitems__", None):  # as the DataLoader does
            return dataset.__getitems__(positions)
        return [dataset[position] for position in positions]


@final
class StreamedSamples(Samples):
    """Samples of an iterable dataset; an entry is the item itself."""

    @override
    def shuffled(self, generator: Generator) -> Iterator[Any]:
        del generator
        return _items(copied_stream(self.loader))

    @override
    def in_order(self) -> Iterator[Any]:
        return _items(self.loader.dataset)

    @override
    def gather(self, entries: Sequence[Any]) -> Any:
        # a collate function may take labels out of the items, which are collated more than once
        return self.collate([copy.copy(item) if isinstance(item, dict | list) else item for item in entries])


@dataclass(frozen=True, eq=False)
class Row:
    """One sample of a batch that the dataset holds ready-made."""

    batch: Any
    position: int


@final
class ReadyBatches(Samples):
    """Samples of a dataset whose items are batches (``batch_size=None``); an entry is a row of one of them."""

    @override
    def shuffled(self, generator: Generator) -> Iterator[Row]:
        if isinstance(self.loader.dataset, IterableDataset):
            return self._rows(_items(copied_stream(self.loader)))
        return self._rows(self._at(torch.randperm(dataset_length(self.loader), generator=generator).tolist()))

    @override
    def in_order(self) -> Iterator[Row]:
        stream = isinstance(self.loader.dataset, IterableDataset)
        return self._rows(_items(self.loader.dataset) if stream else self._at(self.loader.sampler))

    @override
    def gather(self, entries: Sequence[Row]) -> Any:
        batches = {id(entry.batch): entry.batch for entry in entries}
        sizes = [batch_size(batch) for batch in batches.values()]
        starts = dict(zip(batches, torch.tensor([0, *sizes]).cumsum(0).tolist(), strict=False))
        return take(join(list(batches.values())), [starts[id(entry.batch)] + entry.position for entry in entries])

    def _at(self, positions: Iterable[int]) -> Iterator[Any]:
        for position in positions:
            yield _explained("Every item of the dataset must be readable", self.loader.dataset.__getitem__, position)

    def _rows(self, items: Iterator[Any]) -> Iterator[Row]:
        for item in items:
            batch = self.collate(item)
            yield from (Row(batch, position) for position in range(batch_size(batch)))


def samples_of(loader: DataLoader[Any], batches: float = math.inf) -> Samples:
    """The samples of a loader, whichever kind its dataset is of; of its epochs only so many batches may be used.

    >>> from torch.utils.data import TensorDataset
    >>> loader = DataLoader(TensorDataset(torch.arange(6) * 10), batch_size=2, shuffle=True)
    >>> samples_of(loader).gather([4, 1])
    [tensor([40, 10])]
    """
    if loader.batch_sampler is None and not isinstance(loader.sampler, BatchSampler):
        return ReadyBatches(loader)
    if isinstance(loader.dataset, IterableDataset):
        return StreamedSamples(loader)
    return IndexedSamples(loader, drawn_positions(loader, batches))


def drawn_positions(loader: DataLoader[Any], batches: float = math.inf) -> Int[Tensor, "k"] | None:
    """The positions of a map-style dataset that are used of its loader.

    Those that its sampler can draw (`drawable_positions`); of a loader without shuffling those of the first batches.

    Args:
        loader: The loader, whose sampler is not iterated.
        batches: How many batches of each epoch are used.

    Returns:
        Positions, each once, rising; None where they are all, or where the sampler does not tell.

    >>> from torch.utils.data import SubsetRandomSampler
    >>> drawn_positions(DataLoader(range(9), sampler=SubsetRandomSampler([4, 2, 7])))
    tensor([2, 4, 7])
    >>> drawn_positions(DataLoader(range(9), batch_size=2), batches=2)
    tensor([0, 1, 2, 3])
    """
    found = drawable_positions(loader)
    if found is None:
        return None
    if type(innermost_sampler(loader)) is SequentialSampler and loader.batch_size is not None:
        found = found[: int(min(len(found), batches * loader.batch_size))]
    return None if len(found) == dataset_length(loader) else found


def only_loader(loaders: object) -> DataLoader[Any]:
    """The one DataLoader in what a training loop iterates: itself, or alone in a mapping, list or combined loader.

    Raises:
        StiffnessError: If there is none or more than one.

    >>> loader = DataLoader([1, 2, 3])
    >>> only_loader({"labelled": loader}) is loader
    True
    """
    found = list(loaders_within(loaders))
    if len(found) == 1:
        return found[0]
    raise StiffnessError(
        f"The probe is drawn from one torch DataLoader; found {len(found)} in {type(loaders).__name__}. "
        "Pass probe= as a DataLoader or as a batch."
    )


def dataset_length(loader: DataLoader[Any]) -> int:
    """Number of samples of the map-style dataset of a loader.

    Raises:
        StiffnessError: If the dataset has no length.

    >>> dataset_length(DataLoader([5, 6, 7]))
    3
    """
    dataset: Any = loader.dataset
    return int(_explained("A map-style dataset must have a length to draw a probe from it", len, dataset))


def copied_stream(loader: DataLoader[Any]) -> Any:
    """A deep copy of the iterable dataset of a loader, so that reading it does not move the original on.

    Raises:
        StiffnessError: If the dataset cannot be copied (it holds a generator, a lock or an open file).
    """
    try:
        return copy.deepcopy(loader.dataset)
    except Exception as error:
        raise StiffnessError(
            "To leave the data order as it is, the probe is drawn from a deep copy of the iterable dataset; "
            f"copying {type(loader.dataset).__name__} failed with {type(error).__name__}: {error}. "
            "Pass probe= as a DataLoader or as a batch."
        ) from error


def _items(dataset: Any) -> Iterator[Any]:
    iterator = _explained("An iterable dataset must yield samples", iter, dataset)
    end = object()
    while (item := _explained("An iterable dataset must yield samples", next, iterator, end)) is not end:
        yield item


def loaders_within(loaders: Any) -> Iterator[DataLoader[Any]]:
    """Each torch DataLoader in what a training loop iterates."""
    if isinstance(loaders, DataLoader):
        yield loaders
    elif hasattr(loaders, "iterables"):  # Lightning's CombinedLoader
        yield from loaders_within(loaders.iterables)
    elif isinstance(loaders, Mapping | list | tuple):
        for loader in loaders.values() if isinstance(loaders, Mapping) else loaders:
            yield from loaders_within(loader)


def _explained(requirement: str, call: Callable[..., Any], *arguments: Any) -> Any:
    try:
        return call(*arguments)
    except StiffnessError:
        raise
    except Exception as error:
        raise StiffnessError(
            f"{requirement}; {type(error).__name__}: {error}. Mend it, or pass probe= as a DataLoader or as a batch."
        ) from error
