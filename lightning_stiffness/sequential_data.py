"""Data of any make, read again and again in the same order: what several passes over a data set need."""

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, Dataset, IterableDataset

from lightning_stiffness.errors import StiffnessError
from lightning_stiffness.labels import unambiguous_labels_of
from lightning_stiffness.random_states import isolated_randomness
from lightning_stiffness.samples import copied_stream, only_loader


@dataclass(frozen=True, eq=False)
class SequentialData:
    """All samples of a loader in the order of its data set, in batches of its own collate function.

    Samplers, workers and ``drop_last`` are left aside. Transforms that draw random numbers draw the same ones each
    time. A stream is read from a deep copy.

    Attributes:
        loader: The loader.
        transfer: batch -> the batch where the model is.
        size: Samples in a batch; what the data set holds as ready batches stays as it is.

    >>> from torch.utils.data import TensorDataset
    >>> data = SequentialData(DataLoader(TensorDataset(torch.arange(5)), batch_size=1, shuffle=True), size=3)
    >>> [batch[0].tolist() for batch in data], [batch[0].tolist() for batch in data]
    ([[0, 1, 2], [3, 4]], [[0, 1, 2], [3, 4]])
    """

    loader: DataLoader[Any]
    transfer: Callable[[Any], Any] = lambda batch: batch
    size: int = 256

    def __iter__(self) -> Iterator[Any]:
        """The batches, where the model is.

        Raises:
            StiffnessError: A sample cannot be read or collated.
        """
        with isolated_randomness(0, self.loader.dataset, self.loader.collate_fn):
            batches = iter(self._sequential())
            while (batch := _read(batches)) is not None:
                yield self.transfer(batch)

    def __len__(self) -> int:
        """The number of samples; 0 where it is not known beforehand."""
        with suppress(TypeError, NotImplementedError):
            return len(self.loader.dataset) if self._in_batches else 0  # type: ignore[arg-type]  # found out here
        return 0

    @property
    def _in_batches(self) -> bool:
        """Whether the loader makes batches of samples; else the data set holds them ready-made."""
        return self.loader.batch_sampler is not None or isinstance(self.loader.sampler, BatchSampler)

    def _sequential(self) -> DataLoader[Any]:
        stream = isinstance(self.loader.dataset, IterableDataset)
        dataset = copied_stream(self.loader) if stream else self.loader.dataset
        size = self.size if self._in_batches else None
        return DataLoader(dataset, batch_size=size, collate_fn=self.loader.collate_fn)


def is_data(value: Any) -> bool:
    """Whether it is a loader, a data set or a LightningDataModule: something that `loader_of` takes.

    >>> is_data(DataLoader([1, 2])), is_data([1, 2])
    (True, False)
    """
    return (
        isinstance(value, (DataLoader, Dataset))
        or callable(getattr(value, "train_dataloader", None))
        or hasattr(value, "iterables")  # Lightning's CombinedLoader
        or (hasattr(value, "__getitem__") and hasattr(value, "column_names"))  # a table of Hugging Face
    )


def loader_of(data: Any) -> DataLoader[Any]:
    """The loader of all samples of a data set, of a LightningDataModule's training data, or the loader itself.

    Raises:
        StiffnessError: It is none of these.

    >>> from torch.utils.data import TensorDataset
    >>> len(loader_of(TensorDataset(torch.arange(5))))
    5
    """
    if callable(getattr(data, "train_dataloader", None)):
        return only_loader(_training_loader(data))
    if isinstance(data, DataLoader) or hasattr(data, "iterables"):
        return only_loader(data)
    if is_data(data):
        return DataLoader(data)
    raise StiffnessError(
        f"The data must be a DataLoader, a Dataset or a LightningDataModule; found {type(data).__name__}. "
        "Wrap tensors in torch.utils.data.TensorDataset(inputs, labels)."
    )


def transfer_to(module: nn.Module) -> Callable[[Any], Any]:
    """Batch -> the batch on the device of a module, through its transfer hooks where it has some."""
    device = next((parameter.device for parameter in module.parameters()), torch.device("cpu"))
    if not hasattr(module, "_apply_batch_transfer_handler"):
        return lambda batch: apply_to_collection(batch, Tensor, lambda tensor: tensor.to(device))
    lightning_module: Any = module

    def transferred(batch: Any) -> Any:
        batch = lightning_module._on_before_batch_transfer(batch, dataloader_idx=0)
        return lightning_module._apply_batch_transfer_handler(batch, device=device, dataloader_idx=0)

    return transferred


def number_of_classes(data: SequentialData, targets: Callable[[Any], Tensor]) -> int:
    """The largest label + 1: of the labels that the data set stores, else of all samples, which are read for it.

    Raises:
        StiffnessError: There is no sample, or a label is negative.
    """
    stored = None if isinstance(data.loader.dataset, IterableDataset) else unambiguous_labels_of(data.loader.dataset)
    found = [targets(batch).cpu() for batch in data] if stored is None or len(stored) == 0 else [stored]
    if not found:
        raise StiffnessError("The data must hold at least one sample, found none.")
    lowest, highest = (int(bound) for bound in torch.cat(found).aminmax())
    if lowest < 0:
        raise StiffnessError(
            f"Labels must be 0 or more; found {lowest}. Leave unlabelled samples out (torch.utils.data.Subset)."
        )
    return highest + 1


def _training_loader(data: Any) -> Any:
    try:
        data.prepare_data()
        data.setup("fit")
        return data.train_dataloader()
    except Exception as cause:
        raise StiffnessError(
            f"The training data of {type(data).__name__} must load without a Trainer; {type(cause).__name__}: {cause}. "
            "Pass its DataLoader instead."
        ) from cause


def _read(batches: Iterator[Any]) -> Any:
    try:
        return next(batches, None)
    except StiffnessError:
        raise
    except Exception as cause:
        raise StiffnessError(
            f"Every sample must be readable, in batches of another size too; {type(cause).__name__}: {cause}."
        ) from cause
