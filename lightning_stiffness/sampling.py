"""Drawing the classes of a dataset at given rates, in one process or many."""

from collections.abc import Iterator
from typing import Any, Final

import numpy as np
import torch
import torch.distributed as dist
from jaxtyping import Float, Int
from torch import Generator, Tensor
from torch.utils.data import DistributedSampler
from typing_extensions import override

from lightning_stiffness.errors import StiffnessError
from lightning_stiffness.functional.class_rates import (
    ClassRates,
    DeferredRates,
    inverse_frequency_rates,
    require_rates,
)
from lightning_stiffness.labels import ambiguous_tensors, labels_of
from lightning_stiffness.targets import as_class_targets

Rates = ClassRates | DeferredRates | Tensor
_ROUNDING: Final = 1e-9


class ClassRateSampler(DistributedSampler[Any]):
    """Positions in a dataset, drawn so that class c makes up the share q_c of them; uniform inside a class.

    A pass of n samples has floor(n q_c) or ceil(n q_c) samples of class c, n q_c on average, in a random order.

    Works in a plain loop, and under Lightning in one process or many. Lightning leaves it alone under DDP: each process
    takes every world-size-th position of one common order. The number of processes is read when the sampler is used, so
    that it may be made before the processes are started.

    The order depends on `seed` and epoch alone. Under Lightning the epoch is set; in a plain loop it goes on by itself
    at the next pass, whether the last one has been read to its end or was left before it. The rest of a pass that was
    left comes where its state is loaded.

    Args:
        data: The dataset, whose labels are read without loading its samples (`targets`, `labels`, TensorDataset, Subset
            ...), or the labels themselves: one integer for each sample.
        rates: How often each class is drawn: a strategy of `functional.class_rates`, any function of the class sizes
            [c], a `DeferredRates` schedule, or one number for each class, made to sum to 1.
        num_samples: Length of a pass, over all processes. Not given: that of the dataset, or without replacement as far
            as the class that runs out first allows.
        replacement: Whether a sample may occur more than once in a pass. If so, the samples of a small class are
            repeated equally often, up to one. If not, each occurs at most once, in whichever process.
        positions: Positions of the samples that may be drawn, each once; all when not given. Held-out samples of the
            same dataset are left out by it.
        num_classes: Number of classes; the largest label of these samples + 1 when not given. Given: a class may be
            without a sample, and is then drawn never by a strategy, which takes it for a class of one.
        seed: Of the draws; the global random state is not used.
        num_replicas: Number of processes; found when not given.
        rank: Which of them this is; found when not given.

    Raises:
        StiffnessError: There are no labels to be read, or they are no integers in [0, num_classes), there is only one
            class, a class that is to be drawn has no sample, `positions` are none of the dataset, or there are fewer
            samples than a pass is to have.

    Attributes:
        counts: Samples of each class among those that may be drawn, [c].
        drawable_positions: The positions of these samples, rising.
        epoch: The epoch of the next pass.
        start: How many samples of this process the next pass leaves out, since they were drawn before an interruption.

    Source: ours; the number of samples of a class by systematic sampling.

    >>> labels = torch.tensor([0] * 90 + [1] * 10)
    >>> sampler = ClassRateSampler(labels, inverse_frequency_rates)
    >>> torch.bincount(labels[list(sampler)])
    tensor([50, 50])
    """

    def __init__(  # noqa: PLR0913  # what a pass is made of, each by its name
        self,
        data: Any,
        rates: Rates = inverse_frequency_rates,
        *,
        num_samples: int | None = None,
        replacement: bool = True,
        positions: Any = None,
        num_classes: int | None = None,
        seed: int = 0,
        num_replicas: int | None = None,
        rank: int | None = None,
    ) -> None:
        # That of DistributedSampler asks for running processes, which Lightning starts after the loaders are made.
        self.dataset, self.labels = data, _labels(data)
        self.drawable_positions = _places(positions, len(self.labels))
        drawable = self.labels[self.drawable_positions]
        self.counts = class_counts(drawable, num_classes)
        self._may_be_empty = num_classes is not None
        self.rates, self.replacement, self.seed = rates, replacement, seed
        self.shuffle, self.drop_last = True, not replacement
        self._process = num_replicas, rank
        self._members = self.drawable_positions[drawable.argsort(stable=True)].split(self.counts.tolist())
        self.epoch = self.start = self._position = 0
        self._is_unfinished = False
        self._length = num_samples
        self._require_enough()

    @property
    def num_replicas(self) -> int:  # type: ignore[override]  # an attribute there, which would be outdated here
        """Number of processes that share a pass."""
        given = self._process[0]
        return given if given is not None else dist.get_world_size() if _is_distributed() else 1

    @property
    def rank(self) -> int:  # type: ignore[override]  # the same
        """Which of the processes this is."""
        given = self._process[1]
        return given if given is not None else dist.get_rank() if _is_distributed() else 0

    @property
    def num_samples(self) -> int:  # type: ignore[override]  # the same
        """Samples of a pass for each process."""
        whole, replicas = self._pass_length(), self.num_replicas
        return whole // replicas if self.drop_last else -(-whole // replicas)

    @property
    def total_size(self) -> int:  # type: ignore[override]  # the same
        """Samples of a pass over all processes."""
        return self.num_samples * self.num_replicas

    @override
    def __len__(self) -> int:
        return self.num_samples

    @override
    def __iter__(self) -> Iterator[int]:
        self.leave_pass()
        epoch, start = self.epoch, self.start
        mine = self.order(epoch)[self.rank :: self.num_replicas].tolist()
        self.start, self._position, self._is_unfinished = 0, start, True
        for position in mine[start:]:
            self._position += 1
            yield position
        if self.epoch == epoch:
            self.set_epoch(epoch + 1)

    def leave_pass(self) -> None:
        """Goes on to the next epoch where a pass has begun and nobody has said since which one comes next."""
        if self._is_unfinished:
            self.set_epoch(self.epoch + 1)

    def rates_at(self, epoch: int) -> Float[Tensor, "c"]:
        """The class rates of an epoch, which sum to 1.

        >>> ClassRateSampler(torch.tensor([0, 0, 0, 1]), torch.tensor([3, 1])).rates_at(0)
        tensor([0.7500, 0.2500], dtype=torch.float64)
        """
        rates = self.rates.at(epoch) if isinstance(self.rates, DeferredRates) else self.rates
        if callable(rates):
            rates = _rates_with_gaps(rates, self.counts) if self._may_be_empty else rates(self.counts)
        return require_rates(rates, self.counts)

    def order(self, epoch: int) -> Int[Tensor, "k"]:
        """The positions of a pass over all processes."""
        generator = generator_of(self.seed, epoch)
        drawn = _quotas(self.rates_at(epoch), self.total_size, generator)
        chosen = [_repeated(members, int(k), generator) for members, k in zip(self._members, drawn, strict=True)]
        positions = torch.cat(chosen)
        return positions[torch.randperm(len(positions), generator=generator)]

    @override
    def set_epoch(self, epoch: int) -> None:
        """The next pass is that of this epoch; from its beginning, unless a state of the same epoch was loaded."""
        self._is_unfinished = False
        if epoch != self.epoch:
            self.epoch, self.start, self._position = epoch, 0, 0

    def state_dict(self) -> dict[str, int]:
        """Epoch, and how many of its samples this process has been given.

        A loader with workers asks for samples ahead of the batches it hands out; its own state counts those.
        """
        return {"epoch": self.epoch, "position": self._position}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """The next pass is the rest of the one that was interrupted."""
        self.epoch = state_dict["epoch"]
        self.start = self._position = state_dict["position"]
        self._is_unfinished = False

    def _pass_length(self) -> int:
        if self._length is not None:
            return self._length
        return len(self.drawable_positions) if self.replacement else self._longest()

    def _longest(self) -> int:
        """Samples of a pass without replacement: in each epoch of a schedule, so that its length stays the same."""
        starts = (0, self.rates.start) if isinstance(self.rates, DeferredRates) else (0,)
        return min(_until_one_runs_out(self.rates_at(epoch), self.counts) for epoch in starts)

    def _require_enough(self) -> None:
        self.rates_at(0)
        if self._length is not None and self._length < 1:
            raise StiffnessError(f"num_samples must be at least 1, found {self._length}.")
        if self._length is not None and not self.replacement and self._length > self._longest():
            raise StiffnessError(
                f"Without replacement a pass has at most {self._longest()} samples at these class rates, since a class "
                f"runs out then; found num_samples={self._length}. Pass replacement=True, or leave num_samples out."
            )


def class_counts(labels: Int[Tensor, "n"], num_classes: int | None = None) -> Int[Tensor, "c"]:
    """How many samples each class has; 0 for a class without one.

    Args:
        labels: Class of each sample.
        num_classes: Number of classes; the largest label + 1 when not given.

    Raises:
        StiffnessError: There are fewer than two classes, or a label lies outside of [0, num_classes).

    >>> class_counts(torch.tensor([0, 2, 2]))
    tensor([1, 0, 2])
    """
    lowest, highest = (int(labels.min()), int(labels.max())) if len(labels) else (0, -1)
    if lowest < 0 or (num_classes is not None and highest >= num_classes):
        bound = "0 and above" if num_classes is None else f"in [0, {num_classes})"
        raise StiffnessError(
            f"Class labels must lie {bound}, found {lowest} to {highest}. Leave out unlabelled samples, number the "
            "classes from 0, or pass a larger num_classes=."
        )
    counts = torch.bincount(labels, minlength=num_classes or 0)
    if int((counts > 0).sum()) < 2:
        raise StiffnessError(
            f"There must be samples of at least two classes to balance, found {int((counts > 0).sum())}."
        )
    return counts


def generator_of(*numbers: int) -> Generator:
    """A generator seeded by several numbers, such as seed and epoch: another one for each combination.

    Args:
        numbers: Not negative. PyTorch's own seeds have 32 bits, so they cannot be packed in one.

    >>> bool(torch.rand((), generator=generator_of(0, 1)) == torch.rand((), generator=generator_of(1, 0)))
    False
    """
    return Generator().manual_seed(int(np.random.SeedSequence(numbers).generate_state(1)[0]))


def _labels(data: Any) -> Int[Tensor, "n"]:
    if isinstance(data, Tensor | list | tuple) or hasattr(data, "__array__"):
        return as_class_targets(data, len(data)).cpu()
    if unclear := ambiguous_tensors(data):
        raise StiffnessError(
            "Labels must be the only integers, one per sample, after the inputs of a TensorDataset; found "
            f"{len(unclear)} candidates, tensors {', '.join(map(str, unclear))}. Give the labels themselves, such as "
            f"dataset.tensors[{unclear[-1]}]: as data of a sampler, as labels= of make_balanced_loader."
        )
    labels = labels_of(data)
    if labels is None:
        raise StiffnessError(
            f"Labels must be readable without loading samples, found none in {type(data).__name__}: they are looked "
            "for in `targets`, `labels`, the second tensor of a TensorDataset and the column `label`, through Subset "
            "and ConcatDataset. Pass labels=, one integer for each sample."
        )
    return labels


def _places(positions: Any, size: int) -> Int[Tensor, "k"]:
    if positions is None:
        return torch.arange(size)
    found = torch.as_tensor(positions).detach().cpu()
    distinct: Tensor = torch.unique(found)
    is_within = len(distinct) == 0 or (int(distinct[0]) >= 0 and int(distinct[-1]) < size)
    if (
        found.ndim != 1
        or found.is_floating_point()
        or found.dtype == torch.bool
        or len(distinct) != len(found)
        or not is_within
    ):
        raise StiffnessError(
            f"positions= must be distinct integers in [0, {size}), those of the samples that may be drawn; found "
            f"{found.dtype} of shape {tuple(found.shape)}, {len(distinct)} of them distinct. A mask's are "
            "mask.nonzero().flatten()."
        )
    return distinct.long()


def _rates_with_gaps(strategy: ClassRates, counts: Int[Tensor, "c"]) -> Float[Tensor, "c"]:
    """Strategies need at least one sample of each class; one that has none cannot be drawn."""
    found = torch.as_tensor(strategy(counts.clamp(min=1))).detach().cpu().double()
    return torch.where(counts > 0, found, 0.0) if found.shape == counts.shape else found


def _quotas(rates: Float[Tensor, "c"], size: int, generator: Generator) -> Int[Tensor, "c"]:
    """Systematic sampling: whole numbers that sum to `size`, each next to size * rate, which it is on average."""
    offset = torch.rand((), generator=generator, dtype=torch.float64)
    marks = (rates.cumsum(0) * size + offset + _ROUNDING).floor().long().clamp(max=size)
    marks[int(rates.nonzero()[-1]) :] = size  # what rounding may have missed; not for a class that is never drawn
    return marks.diff(prepend=marks.new_zeros(1))


def _repeated(members: Int[Tensor, "n"], size: int, generator: Generator) -> Int[Tensor, "k"]:
    whole, rest = divmod(size, len(members)) if len(members) else (0, 0)
    extra = torch.randperm(len(members), generator=generator)[:rest]
    return torch.cat([members.repeat(whole), members[extra]])


def _until_one_runs_out(rates: Float[Tensor, "c"], counts: Int[Tensor, "c"]) -> int:
    drawn = rates > 0
    return int((counts[drawn] / rates[drawn] + _ROUNDING).min())


def _is_distributed() -> bool:
    return dist.is_available() and dist.is_initialized()
