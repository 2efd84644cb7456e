"""A loader that draws classes at given rates, made from any other one."""

from collections.abc import Iterator
from typing import Any, Final

from jaxtyping import Int
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset
from typing_extensions import override

from lightning_stiffness.drawable import drawable_positions, innermost_sampler
from lightning_stiffness.errors import StiffnessError
from lightning_stiffness.functional.class_rates import inverse_frequency_rates
from lightning_stiffness.sampling import ClassRateSampler, Rates

_COPIED: Final = (
    *("num_workers", "collate_fn", "pin_memory", "drop_last", "timeout", "worker_init_fn", "multiprocessing_context"),
    *("generator", "prefetch_factor", "persistent_workers", "pin_memory_device", "in_order"),
)


class ClassRateLoader(DataLoader[Any]):
    """A DataLoader over a ClassRateSampler, with a state: Lightning resumes it in the middle of an epoch.

    `make_balanced_loader` makes it from any loader. The state counts the batches that were handed out, whatever workers
    have read ahead. A pass that is left before its end (a `break`, `islice`) is followed by the next one; its rest
    comes only where its state is loaded.
    """

    sampler: ClassRateSampler

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._epoch = self._batches = 0

    @override
    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]  # a count has to go around the iterator
        self.sampler.leave_pass()
        self._epoch = self.sampler.epoch
        self._batches = self.sampler.start // (self.batch_size or 1)
        for batch in super().__iter__():
            self._batches += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """Epoch, and how many of its batches were handed out."""
        if self._batches >= len(self):
            return {"epoch": self._epoch + 1, "batches": 0}
        return {"epoch": self._epoch, "batches": self._batches}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """The next pass is the rest of the one that was interrupted; the batch size must be the same."""
        self._epoch, self._batches = state_dict["epoch"], state_dict["batches"]
        position = self._batches * (self.batch_size or 1)
        self.sampler.load_state_dict({"epoch": self._epoch, "position": position})


def make_balanced_loader(
    loader: DataLoader[Any],
    rates: Rates = inverse_frequency_rates,
    *,
    labels: Any = None,
    batch_size: int | None = None,
    **sampling: Any,
) -> ClassRateLoader:
    """A loader of the same samples that draws the classes at given rates.

    Batch size, workers, collate function, pinned memory, `drop_last` and all other settings are those of the given
    loader; its sampler, and so its order, is replaced. The given loader stays as it is. Samples that its sampler never
    draws are held out here too: those outside of the indices of a SubsetRandomSampler or of the data source of a
    RandomSampler, and those of weight 0. A pass is as long as there are samples left.

    Args:
        loader: Any loader of a map-style dataset.
        rates: As for `ClassRateSampler`; classes equally often when not given.
        labels: Class of each sample of the dataset, one integer each; read from the dataset when not given.
        batch_size: Needed where the given loader has a batch sampler of its own, whose batches may be of any size.
        sampling: Further arguments of `ClassRateSampler`: `replacement`, `num_samples`, `seed` ...

    Raises:
        StiffnessError: The dataset is a stream, has no labels that can be read cheaply, the loader has a sampler of
            another class than PyTorch's, which does not tell what it draws, or as `ClassRateSampler`.

    Example:
        >>> import torch
        >>> from torch.utils.data import TensorDataset
        >>> dataset = TensorDataset(torch.zeros(100, 2), torch.tensor([0] * 90 + [1] * 10))
        >>> loader = make_balanced_loader(DataLoader(dataset, batch_size=20, shuffle=True))
        >>> torch.bincount(torch.cat([y for _, y in loader]))
        tensor([50, 50])
    """
    if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset):
        found = type(loader.dataset).__name__ if isinstance(loader, DataLoader) else type(loader).__name__
        raise StiffnessError(
            "Classes can be drawn at given rates from a torch DataLoader of a map-style dataset, which has positions; "
            f"found {found}. Balance a stream where it is made, or by its loss."
        )
    size = loader.batch_size if batch_size is None else batch_size
    if size is None:
        raise StiffnessError(
            "The batch size must be known, found a loader with batches of its own (batch_sampler=, or "
            "batch_size=None). Pass batch_size=."
        )
    if labels is not None and len(labels) != len(loader.dataset):  # type: ignore[arg-type]  # a map-style dataset has a length
        raise StiffnessError(f"labels= must be one for each of {len(loader.dataset)} samples, found {len(labels)}.")  # type: ignore[arg-type]
    if sampling.get("positions") is None:
        sampling["positions"] = _drawn_by(loader)
    sampler = ClassRateSampler(loader.dataset if labels is None else labels, rates, **sampling)
    copied = {name: getattr(loader, name) for name in _COPIED if hasattr(loader, name)}
    return ClassRateLoader(loader.dataset, batch_size=size, sampler=sampler, **copied)


def _drawn_by(loader: DataLoader[Any]) -> Int[Tensor, "k"]:
    found = drawable_positions(loader)
    if found is None:
        sampler = innermost_sampler(loader)
        name = type(loader.batch_sampler if sampler is None else sampler).__name__
        raise StiffnessError(
            f"It must be known which samples the loader draws, since the others may be held out; {name} does not tell. "
            "Make the loader of torch.utils.data.Subset(dataset, positions), with shuffle=True, or pass positions=, "
            "which are range(len(dataset)) for all."
        )
    return found
