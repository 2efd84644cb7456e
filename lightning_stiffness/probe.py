"""The fixed samples that stiffness is measured on, and their class-balanced draw from a data loader."""

import dataclasses
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final

import torch
from jaxtyping import Int
from torch import Generator, Tensor

from lightning_stiffness.batching import batch_size
from lightning_stiffness.errors import StiffnessError
from lightning_stiffness.labels import balanced_positions, labels_of
from lightning_stiffness.random_states import isolated_randomness
from lightning_stiffness.samples import IndexedSamples, Samples, only_loader, samples_of
from lightning_stiffness.targets import as_class_targets, targets_of

LARGEST_PROBE: Final = 10_000  # samples, and so classes: their Gram matrix takes 800 MB

TargetsOf = Callable[[Any], Any]


@dataclass(frozen=True, eq=False)
class Probe:
    """The samples that stiffness is measured on.

    Args:
        batch: The samples, as the loader's own collate function made them.
        targets: Class of each sample, int64, on the CPU.
        num_classes: How many classes there are, with or without samples in the probe.
        ids: Position of each sample in the dataset; None in streams and where the collate function reorders samples.
        missing: Classes with fewer than two samples: their within-class stiffness is undefined (nan).

    >>> from torch.utils.data import DataLoader, TensorDataset
    >>> loader = DataLoader(TensorDataset(torch.randn(90, 5), torch.arange(90) % 3), batch_size=8, shuffle=True)
    >>> Probe.draw(loader, size=6).targets
    tensor([0, 0, 1, 1, 2, 2])
    """

    batch: Any
    targets: Int[Tensor, "n"]
    num_classes: int
    ids: tuple[int | None, ...]
    missing: tuple[int, ...]

    @classmethod
    def draw(  # noqa: PLR0913  # what to draw, and how to read it
        cls,
        loader: object,
        size: int = 200,
        *,
        seed: int = 0,
        targets: TargetsOf | None = None,
        num_classes: int | None = None,
        batches: float = math.inf,
    ) -> "Probe":
        """A class-balanced probe from the dataset of a data loader, which goes on as if nothing had been read.

        Every class gets an equal share of ``size``, rare classes all they have, and what they leave goes to the others.
        Every class gets at least two samples: with more than size/2 classes the probe is larger than ``size``, up to
        10,000. Samples are grouped by class, in a random order within it (unless the collate function reorders them).

        Samples that the loader's sampler never draws are left out where that can be told (`drawn_positions`).

        The samples are read in the main process, without the loader's workers, sampler or batch size, under seeded
        global random states that are put back afterwards, and so are generators that the dataset or the collate
        function hold (`generators_within`): the draw depends on ``seed`` and the dataset alone. A stream is read from a
        deep copy. Other state that reading an item changes, such as a counter, is changed.

        Labels are taken from the dataset where it stores them. Otherwise samples are read, in a random order or the
        order of the stream, until every class seen has enough, but no more than max(10 size, 2000).

        Args:
            loader: A torch DataLoader, or a mapping, list or Lightning CombinedLoader with exactly one.
            size: How many samples.
            seed: Draws the samples, 0 to 2^32 - 1.
            targets: Reads the class of each sample from a batch, batch -> [n] integers; `targets.targets_of` if None.
            num_classes: How many classes there are; the largest label known + 1 if None.
            batches: How many batches of each epoch are used, as Lightning's `limit_train_batches` sets it: of a loader
                that does not shuffle, the samples after these are left out.

        Raises:
            StiffnessError: If there is not one loader, a sample cannot be read or collated, class targets cannot be
                found or lie outside the classes, or no class has two samples.
        """
        if size < 2:
            raise StiffnessError(f"size must be at least 2 samples; found {size}. 200 is the default.")
        generator, source = torch.Generator().manual_seed(seed), only_loader(loader)
        with isolated_randomness(seed, source.dataset, source.collate_fn):
            draw = _Draw(samples_of(source, batches), size, generator, _Classes(targets, num_classes))
            return draw.by_stored_labels() or draw.by_reading()

    @classmethod
    def draw_by_chance(  # noqa: PLR0913  # those of draw, and the variant
        cls,
        loader: object,
        size: int = 500,
        *,
        seed: int = 0,
        targets: TargetsOf | None = None,
        num_classes: int | None = None,
        variant: int = 0,
        batches: float = math.inf,
    ) -> "Probe":
        """Samples drawn with equal chances, whatever their class; a smaller dataset is taken whole.

        Read as in `draw`, with the same arguments and errors. Of a stream the first samples are taken. With another
        ``variant`` the same samples are read under other random numbers: what differs is augmentation.
        """
        generator, source = torch.Generator().manual_seed(seed), only_loader(loader)
        with isolated_randomness((seed + variant) % 2**32, source.dataset, source.collate_fn):
            draw = _Draw(samples_of(source, batches), size, generator, _Classes(targets, num_classes))
            return draw.by_chance()

    @classmethod
    def from_loader(
        cls, loader: object, *, targets: TargetsOf | None = None, num_classes: int | None = None
    ) -> "Probe":
        """Every sample of a loader made for this purpose, in the loader's order, collated as one batch.

        The loader's sampler is iterated, under seeded global random states that are put back afterwards.

        Args:
            loader: A torch DataLoader of at most 10,000 samples.
            targets: As in `draw`.
            num_classes: As in `draw`.

        Raises:
            StiffnessError: As `draw`.
        """
        source = only_loader(loader)
        with isolated_randomness(0, source.dataset, source.collate_fn, source.sampler):
            samples = samples_of(source)
            entries = list(islice(samples.in_order(), LARGEST_PROBE + 1))
            _require_samples(len(entries))
            return _Classes(targets, num_classes).all_of(samples.gather(entries), samples.ids(entries))

    @classmethod
    def from_batch(cls, batch: object, *, targets: TargetsOf | None = None, num_classes: int | None = None) -> "Probe":
        """All samples of a batch.

        Args:
            batch: What a data loader yields, at most 10,000 samples.
            targets: As in `draw`.
            num_classes: As in `draw`.

        Raises:
            StiffnessError: As `draw`.

        >>> Probe.from_batch((torch.zeros(5, 2), torch.tensor([0, 0, 2, 2, 3]))).missing
        (1, 3)
        """
        size = batch_size(batch)
        _require_samples(size)
        return _Classes(targets, num_classes).all_of(batch, (None,) * size)

    def with_batch(self, batch: object) -> "Probe":
        """The same probe with its batch replaced, such as by its copy on another device.

        >>> probe = Probe.from_batch((torch.zeros(2, 2), torch.tensor([0, 0])))
        >>> probe.with_batch([part.double() for part in probe.batch]).batch[0].dtype
        torch.float64
        """
        return dataclasses.replace(self, batch=batch)


def label_entropy(targets: Int[Tensor, "n"]) -> float:
    """Entropy of the class frequencies, in nats, from 0 (one class) to ln c.

    It is the lowest mean cross-entropy that a prediction which ignores the input can reach.

    Returns:
        -sum_c p_c ln p_c, p_c the share of class c; nan when there are no samples. Source: Shannon (1948), section 6.

    >>> round(label_entropy(torch.tensor([0, 1, 0, 1])), 4)
    0.6931
    """
    if targets.numel() == 0:
        return float("nan")
    shares = torch.unique(targets, return_counts=True)[1].double() / targets.numel()
    return max(0.0, -float((shares * shares.log()).sum()))


@dataclass(frozen=True)
class _Classes:
    """What the user says about the classes."""

    targets: TargetsOf | None
    num_classes: int | None

    def of(self, batch: Any, expected: int) -> Int[Tensor, "n"]:
        found = targets_of(batch) if self.targets is None else as_class_targets(self.targets(batch), batch_size(batch))
        if len(found) != expected:
            raise StiffnessError(
                f"The collate function must make one sample of each item; found {len(found)} samples from {expected} "
                "items. Pass probe= as a batch."
            )
        return found.cpu()

    def all_of(self, batch: Any, ids: tuple[int | None, ...]) -> Probe:
        found = self.of(batch, len(ids))
        return self.probe(batch, found, found, ids)

    def probe(self, batch: Any, targets: Tensor, known: Tensor, ids: tuple[int | None, ...]) -> Probe:
        num_classes = self._count(torch.cat((known, targets)))
        counts = torch.bincount(targets, minlength=num_classes)
        missing = tuple((counts < 2).nonzero().flatten().tolist())
        if len(missing) == num_classes:
            raise StiffnessError(
                f"At least one class must have two samples; found {len(targets)} samples of {int((counts > 0).sum())} "
                "classes. Pass more samples, or targets= if these are not the classes."
            )
        return Probe(batch, targets, num_classes, ids, missing)

    def _count(self, known: Tensor) -> int:
        lowest, highest = int(known.min()), int(known.max())
        limit = LARGEST_PROBE if self.num_classes is None else self.num_classes
        if lowest < 0 or highest >= limit:
            raise StiffnessError(
                f"Class targets must lie between 0 and {limit - 1}; found {lowest} to {highest}. Leave out unlabelled "
                "samples (pass probe=), number the classes from 0 (pass targets=), or pass a larger num_classes=."
            )
        return highest + 1 if self.num_classes is None else self.num_classes


@dataclass(frozen=True)
class _Draw:
    samples: Samples
    size: int
    generator: Generator
    classes: _Classes

    def by_stored_labels(self) -> Probe | None:
        """None when the dataset stores no labels, or not those that its batches hold (a target transform)."""
        if not isinstance(self.samples, IndexedSamples):
            return None
        labels, used = labels_of(self.samples.loader.dataset), self.samples.positions
        if labels is None or len(labels) == 0:
            return None
        positions = torch.arange(len(labels)) if used is None else used
        chosen = positions[self._choose(labels[positions])]
        batch = self.samples.gather(chosen.tolist())
        targets = self.classes.of(batch, len(chosen))
        if not torch.equal(targets, labels[chosen]):
            return None
        return self.classes.probe(batch, targets, labels, self.samples.ids(chosen.tolist()))

    def by_chance(self) -> Probe:
        """Samples in the order in which a stream or a shuffled dataset gives them."""
        entries = list(islice(self.samples.shuffled(self.generator), self.size))
        _require_samples(len(entries))
        return self.classes.all_of(self.samples.gather(entries), self.samples.ids(entries))

    def by_reading(self) -> Probe:
        entries, labels = self._read()
        chosen = self._choose(labels)
        picked = [entries[position] for position in chosen.tolist()]
        batch = self.samples.gather(picked)
        targets = self.classes.of(batch, len(picked))
        ids = self.samples.ids(picked) if torch.equal(targets, labels[chosen]) else (None,) * len(picked)
        return self.classes.probe(batch, targets, labels, ids)

    def _choose(self, labels: Int[Tensor, "n"]) -> Int[Tensor, "k"]:
        chosen = balanced_positions(labels, self.size, self.generator)
        _require_samples(len(chosen))
        return chosen

    def _read(self) -> tuple[list[Any], Int[Tensor, "n"]]:
        entries: list[Any] = []
        labels: list[int] = []
        tally: Counter[int] = Counter()
        newest = 0
        for count, entry in enumerate(islice(self.samples.shuffled(self.generator), max(10 * self.size, 2000)), 1):
            label = int(self.classes.of(self.samples.gather([entry]), 1))
            newest = newest if label in tally else count
            tally[label] += 1
            if tally[label] <= self.size:  # the memory of a stream that starts with one class
                entries.append(entry)
                labels.append(label)
            if self._is_enough(tally, count - newest):
                break
        _require_samples(len(entries))
        return entries, torch.tensor(labels)

    def _is_enough(self, tally: Counter[int], since_new_class: int) -> bool:
        expected = self.classes.num_classes
        seen_all = since_new_class >= self.size and len(tally) > 1 if expected is None else len(tally) >= expected
        return seen_all and min(tally.values()) >= max(2, -(-self.size // len(tally)))


def _require_samples(count: int) -> None:
    if not 0 < count <= LARGEST_PROBE:
        raise StiffnessError(
            f"A probe takes 1 to {LARGEST_PROBE} samples; found {count}{'' if count <= LARGEST_PROBE else ' or more'}. "
            "Pass probe= as a DataLoader or batch of some samples."
        )
