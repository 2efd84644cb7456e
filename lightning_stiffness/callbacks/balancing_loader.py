"""The Trainer's training loader, exchanged for one that draws classes at given rates, and the rates of any loader."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    ConcatDataset,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    Subset,
)

from lightning_stiffness.balanced_loader import make_balanced_loader
from lightning_stiffness.callbacks.namespace import rank_zero_info
from lightning_stiffness.drawable import drawable_positions, draws_evenly, innermost_sampler
from lightning_stiffness.errors import StiffnessError
from lightning_stiffness.labels import ambiguous_tensors, unambiguous_labels_of
from lightning_stiffness.samples import loaders_within, only_loader
from lightning_stiffness.sampling import ClassRateSampler, Rates, class_counts


class LoaderExchange:
    """Puts a balanced loader in the place of each training loader that is merely shuffled, while a fit lasts.

    Lightning sends each loader through `Strategy.process_dataloader` when it is loaded, from `fit`, a module or a
    datamodule, once or again in each epoch. The exchange stands before it while the fit loop sets up its data, which
    are those for training and no others. `remove` puts the loop back.

    Args:
        trainer: The Trainer, before its loaders are loaded.
        rates: How often each class is to be drawn.
        options: Further arguments of `make_balanced_loader`.
    """

    def __init__(self, trainer: Any, rates: Rates, **options: Any) -> None:
        self._trainer, self._loop = trainer, trainer.fit_loop
        self._rates, self._options = rates, options
        self._setup: Callable[[], None] = self._loop.setup_data
        self._said = set[str]()
        self._replacement = contextlib.ExitStack()
        self._replacement.enter_context(_replaced(self._loop, "setup_data", self._setup_exchanged))

    def remove(self) -> None:
        """Takes it away again."""
        self._replacement.close()

    def _setup_exchanged(self) -> None:
        process: Callable[[Any], Any] = self._trainer.strategy.process_dataloader
        with _replaced(self._trainer.strategy, "process_dataloader", lambda loader: process(self._exchanged(loader))):
            self._setup()

    def _exchanged(self, loader: Any) -> Any:
        reason = why_left_alone(loader)
        if reason is None:
            return make_balanced_loader(loader, self._rates, **self._options)
        if reason and reason not in self._said:
            rank_zero_info(f"The order of the training data stays as it is, since {reason}.")
            self._said.add(reason)
        return loader


def why_left_alone(loader: Any) -> str | None:
    """Why the order of a loader must not be replaced; None if it may be, empty if it is balanced already.

    Raises:
        StiffnessError: It is merely shuffled, and several tensors of its dataset could be the labels.
    """
    if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset):
        return "it is a stream or comes from no torch DataLoader; classes are counted as they come"
    if isinstance(loader.sampler, ClassRateSampler):
        return ""
    if not is_shuffled(loader):
        return "the loader is not one with shuffle=True: its own sampler is respected. Use make_balanced_loader instead"
    require_clear_labels(loader.dataset)
    if unambiguous_labels_of(loader.dataset) is None:
        return (
            "the dataset has no labels that can be read without loading samples. Use make_balanced_loader with labels="
        )
    return None


def is_shuffled(loader: DataLoader[Any]) -> bool:
    """Whether a loader gives all samples of its map-style dataset once, in a random order, as with `shuffle=True`."""
    if loader.batch_size is None or type(loader.batch_sampler) is not BatchSampler:
        return False
    sampler: Any = loader.sampler
    size = len(loader.dataset)  # type: ignore[arg-type]  # a map-style dataset has a length
    if type(sampler) is DistributedSampler:
        return bool(sampler.shuffle) and len(sampler.dataset) == size  # type: ignore[arg-type]  # the same
    is_plain = type(sampler) is RandomSampler and not sampler.replacement
    return is_plain and len(sampler.data_source) == sampler.num_samples == size


def require_clear_labels(dataset: Any) -> None:
    """Raises StiffnessError where several tensors of a dataset could be the labels."""
    if unclear := ambiguous_tensors(dataset):
        last = unclear[-1]
        raise StiffnessError(
            "Labels must be the only integers, one per sample, after the inputs of a TensorDataset; found "
            f"{len(unclear)} candidates, tensors {', '.join(map(str, unclear))}. Pass targets=, such as lambda batch: "
            f"batch[{last}], and a loader of make_balanced_loader(loader, labels=dataset.tensors[{last}])."
        )


def known_counts(trainer: Any, num_classes: int | None, is_stored: bool = True) -> Int[Tensor, "k"] | None:
    """Samples of each class among those that the training loader can draw.

    Args:
        trainer: The Trainer, with its training loader.
        num_classes: Number of classes; that of the labels of the whole dataset if None.
        is_stored: Whether the labels that the dataset stores are those that count.

    Returns:
        The counts; None where labels cannot be read without loading samples, or nobody knows what the loader draws.

    Raises:
        StiffnessError: There is only one class, or a label lies outside of the classes.
    """
    loader = _loader(trainer)
    if loader is None or isinstance(loader.dataset, IterableDataset):
        return None
    sampler = innermost_sampler(loader)
    if isinstance(sampler, ClassRateSampler):
        return sampler.counts
    labels = unambiguous_labels_of(loader.dataset) if is_stored else None
    positions = drawable_positions(loader)
    if labels is None or positions is None:
        return None
    return class_counts(labels[positions], num_classes or _number(labels))


def known_number(trainer: Any) -> int | None:
    """Number of classes by the labels that the training dataset stores; None where there are none to be read.

    Raises:
        StiffnessError: Several tensors could be the labels.
    """
    loader = _loader(trainer)
    if loader is None:
        return None
    require_clear_labels(loader.dataset)
    labels = unambiguous_labels_of(loader.dataset)
    return None if labels is None else _number(labels)


def known_frequencies(trainer: Any, counts: Tensor | None, num_classes: int) -> Float[Tensor, "c"] | None:
    """How often each class is drawn, where the sampler tells it; None where it has to be learnt.

    A class that is never drawn counts as one sample of a pass, since log 0 could not be added to logits.
    """
    loader = _loader(trainer)
    sampler = None if loader is None else innermost_sampler(loader)
    if isinstance(sampler, ClassRateSampler):
        rates = sampler.rates_at(sampler.epoch)
        rates = torch.cat([rates, rates.new_zeros(max(num_classes - len(rates), 0))])
        if bool((rates > 0).all()):
            return rates
        met = rates.clamp(min=1 / sampler.total_size)
        return met / met.sum()
    return counts.double() / counts.sum() if draws_evenly(sampler) and counts is not None else None


def is_natural(trainer: Any) -> bool:
    """Whether what is drawn is as frequent as the classes are in the training data, as far as anybody can tell."""
    return all(
        isinstance(loader.dataset, IterableDataset) or draws_evenly(innermost_sampler(loader))
        for loader in loaders_within(trainer.train_dataloader)
    )


def known_names(trainer: Any, num_classes: int) -> tuple[str, ...] | None:
    """Names of the classes, where the dataset stores them as `classes`; None where it does not."""
    dataset: Any = getattr(_loader(trainer), "dataset", None)
    while isinstance(dataset, Subset | ConcatDataset):
        dataset = dataset.dataset if isinstance(dataset, Subset) else dataset.datasets[0]
    with contextlib.suppress(Exception):  # a property may fail in any way
        found = dataset.classes
        if isinstance(found, list | tuple) and len(found) == num_classes:
            return tuple(map(str, found))
    return None


def _number(labels: Tensor) -> int:
    return int(labels.max()) + 1 if len(labels) else 0


def _loader(trainer: Any) -> DataLoader[Any] | None:
    try:
        return only_loader(trainer.train_dataloader)
    except StiffnessError:
        return None


@contextlib.contextmanager
def _replaced(owner: Any, name: str, method: Callable[..., Any]) -> Iterator[None]:
    own = vars(owner).get(name)
    setattr(owner, name, method)
    try:
        yield
    finally:
        if own is not None:
            setattr(owner, name, own)
        else:
            vars(owner).pop(name, None)
