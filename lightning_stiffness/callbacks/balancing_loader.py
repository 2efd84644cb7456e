"""The Trainer's training loader, exchanged for one that draws classes at given rates, and the rates of any loader."""

import contextlib
from collections.abc import Callable
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    ConcatDataset,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
)

from lightning_stiffness.balanced_loader import make_balanced_loader
from lightning_stiffness.callbacks.namespace import rank_zero_info
from lightning_stiffness.errors import StiffnessError
from lightning_stiffness.labels import labels_of
from lightning_stiffness.samples import only_loader
from lightning_stiffness.sampling import ClassRateSampler, Rates, class_counts


class LoaderExchange:
    """Puts a balanced loader in the place of each training loader that is merely shuffled, while a fit lasts.

    It stands before `Strategy.process_dataloader`, which Lightning sends each loader through when it is loaded, from
    `fit`, a module or a datamodule, once or again in each epoch. `remove` puts the strategy back.

    Args:
        trainer: The Trainer, before its loaders are loaded.
        rates: How often each class is to be drawn.
        options: Further arguments of `make_balanced_loader`.
    """

    def __init__(self, trainer: Any, rates: Rates, **options: Any) -> None:
        self._trainer, self._strategy = trainer, trainer.strategy
        self._rates, self._options = rates, options
        self._own: Callable[[Any], Any] | None = vars(self._strategy).get("process_dataloader")
        self._process: Callable[[Any], Any] = self._strategy.process_dataloader
        self._strategy.process_dataloader = self._exchanged

    def remove(self) -> None:
        """Takes it away again."""
        if self._own is not None:
            self._strategy.process_dataloader = self._own
        else:
            vars(self._strategy).pop("process_dataloader", None)

    def _exchanged(self, loader: Any) -> Any:
        if self._trainer.training:
            reason = why_left_alone(loader)
            if reason is None:
                loader = make_balanced_loader(loader, self._rates, **self._options)
            elif reason:
                rank_zero_info(f"The order of the training data stays as it is, since {reason}.")
        return self._process(loader)


def why_left_alone(loader: Any) -> str | None:
    """Why the order of a loader must not be replaced; None if it may be, empty if it is balanced already."""
    if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset):
        return "it is a stream or comes from no torch DataLoader; classes are counted as they come"
    if isinstance(loader.sampler, ClassRateSampler):
        return ""
    if loader.batch_size is None or type(loader.batch_sampler) is not BatchSampler or not is_shuffled(loader.sampler):
        return "the loader is not one with shuffle=True: its own sampler is respected. Use make_balanced_loader instead"
    if labels_of(loader.dataset) is None:
        return (
            "the dataset has no labels that can be read without loading samples. Use make_balanced_loader with labels="
        )
    return None


def is_shuffled(sampler: Any) -> bool:
    """Whether a sampler gives all samples of a dataset once, in a random order."""
    if type(sampler) is DistributedSampler:
        return bool(sampler.shuffle)
    return type(sampler) is RandomSampler and not sampler.replacement


def known_counts(trainer: Any, num_classes: int | None) -> Int[Tensor, "k"] | None:
    """Samples of each class in the training data; None where labels cannot be read without loading samples.

    Raises:
        StiffnessError: There is only one class, or a label lies outside of the classes.
    """
    loader = _loader(trainer)
    if loader is None or isinstance(loader.dataset, IterableDataset):
        return None
    if isinstance(loader.sampler, ClassRateSampler):
        return loader.sampler.counts
    labels = labels_of(loader.dataset)
    return None if labels is None else class_counts(labels, num_classes)


def known_frequencies(trainer: Any, counts: Tensor | None) -> Float[Tensor, "c"] | None:
    """How often each class is drawn, where the sampler tells it; None where it has to be learnt."""
    loader = _loader(trainer)
    if loader is None:
        return None
    if isinstance(loader.sampler, ClassRateSampler):
        return loader.sampler.rates_at(loader.sampler.epoch)
    is_plain = type(loader.batch_sampler) is BatchSampler and (
        is_shuffled(loader.sampler) or type(loader.sampler) in (SequentialSampler, DistributedSampler)
    )
    return counts.double() / counts.sum() if is_plain and counts is not None else None


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


def _loader(trainer: Any) -> DataLoader[Any] | None:
    try:
        return only_loader(trainer.train_dataloader)
    except StiffnessError:
        return None
