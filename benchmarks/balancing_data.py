"""The samples of a setting: classes of unequal size to train on, classes of equal size to test on."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from balancing_settings import Setting
from stopping_data import ARCHIVES, Images, archive, digits
from torch import Generator, Tensor
from torch.utils.data import DataLoader, Dataset

TEST_SAMPLES = 500  # of each class, at most
PAIRS = ((4, 9), (3, 5), (7, 1))
GROUPS, TWINS, WIDTH = 10, 3, 32
CENTERS, SPREAD = 1.0, 0.6  # of the groups, and of the classes in a group, in units of the noise


@dataclass(frozen=True)
class Split:
    """Samples to train on, samples to test on, and the sizes of the classes of the former."""

    train: Images
    test: Images
    counts: Tensor


class TrainingSet(Dataset[tuple[Tensor, Tensor]]):
    """Samples that are fetched a batch at a time: any sampler, and no cost for each sample."""

    def __init__(self, images: Images) -> None:
        """Takes the samples."""
        self.images, self.targets = images, images.targets

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """One sample and its class."""
        return self.images.inputs[index], self.targets[index]

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        """A batch, ready-made."""
        return self.images.inputs[indices], self.targets[indices]


def as_it_is(batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """The collate function of such batches."""
    return batch


def loader(images: Images, batch: int, seed: int) -> DataLoader[tuple[Tensor, Tensor]]:
    """Shuffled batches, as a user would ask for them."""
    generator = Generator().manual_seed(seed)
    return DataLoader(TrainingSet(images), batch, shuffle=True, collate_fn=as_it_is, generator=generator)


def split_of(setting: Setting, seed: int, folder: Path | None, is_tuning: bool = False) -> Split:
    """The samples of a setting and a seed; the same whatever method is trained.

    Which class has which size is drawn by the seed, too. Tuning never looks at a test set of its own: it is judged on
    samples of the training archive that are not trained on.

    Raises:
        SystemExit: an archive is missing, or a class has too few samples.
    """
    generator = Generator().manual_seed(seed)
    pool, own_test = sources(setting, folder, generator)
    sizes = class_sizes(setting, int(pool.targets.max()) + 1, generator)
    chosen, others = drawn(pool.targets, sizes, generator)
    train = pool[chosen]
    if own_test is None or is_tuning:
        test = pool[even(pool.targets[others], generator, others)]
    else:
        test = own_test[even(own_test.targets, generator, torch.arange(len(own_test)))]
    return Split(*standardised(train, test, by_feature=pool.inputs.ndim == 2), sizes)


def sources(setting: Setting, folder: Path | None, generator: Generator) -> tuple[Images, Images | None]:
    """All samples to draw from, and those of a test set of its own where there is one."""
    if setting.data in ARCHIVES:
        if folder is None:
            raise SystemExit(f"{setting.name} needs {ARCHIVES[setting.data]}: pass its folder by --data DIR.")
        return archive(folder / ARCHIVES[setting.data])
    if setting.data == "look-alike":
        return look_alike(setting.largest + TEST_SAMPLES, generator), None
    return (digits() if setting.data == "digits" else shipped(setting.data)), None


@cache
def shipped(name: str) -> Images:
    """A table that comes with scikit-learn."""
    import sklearn.datasets

    inputs, targets = getattr(sklearn.datasets, f"load_{name}")(return_X_y=True)
    return Images(torch.as_tensor(inputs, dtype=torch.float32), torch.as_tensor(targets).long())


def look_alike(samples: int, generator: Generator) -> Images:
    """Ten groups of three classes that look alike: clouds around points near a common one, bent by a random layer."""
    groups = CENTERS * torch.randn(GROUPS, 1, WIDTH, generator=generator)
    points = (groups + SPREAD * torch.randn(GROUPS, TWINS, WIDTH, generator=generator)).flatten(0, 1)
    targets = torch.arange(GROUPS * TWINS).repeat_interleave(samples)
    clouds = points[targets] + torch.randn(len(targets), WIDTH, generator=generator)
    return Images((clouds @ torch.randn(WIDTH, WIDTH, generator=generator) / WIDTH**0.5).tanh(), targets)


def class_sizes(setting: Setting, classes: int, generator: Generator) -> Tensor:
    """Training samples of each class."""
    if setting.profile == "pairs":
        sizes = torch.full((classes,), setting.largest)
        sides = torch.randint(0, 2, (len(PAIRS),), generator=generator).tolist()
        for pair, side in zip(PAIRS, sides, strict=True):
            sizes[pair[side]] = round(setting.largest / setting.imbalance)
        return sizes
    ranks = torch.randperm(classes, generator=generator) / (classes - 1)
    return (setting.largest * setting.imbalance**-ranks).round().long().clamp(min=2)


def drawn(targets: Tensor, sizes: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
    """Positions of so many samples of each class, and of the others."""
    order = torch.randperm(len(targets), generator=generator)
    members = [order[targets[order] == label] for label in range(len(sizes))]
    short = [label for label, (found, size) in enumerate(zip(members, sizes, strict=True)) if len(found) < size]
    if short:
        raise SystemExit(f"class {short[0]} has {len(members[short[0]])} samples, fewer than {int(sizes[short[0]])}.")
    wanted = sizes.tolist()
    return joined([m[:k] for m, k in zip(members, wanted, strict=True)]), joined(
        [m[k:] for m, k in zip(members, wanted, strict=True)]
    )


def joined(parts: Sequence[Tensor]) -> Tensor:
    return torch.cat(list(parts))


def even(targets: Tensor, generator: Generator, positions: Tensor) -> Tensor:
    """As many positions of each class as the smallest has, up to TEST_SAMPLES."""
    size = min(int(torch.bincount(targets).min()), TEST_SAMPLES)
    order = torch.randperm(len(targets), generator=generator)
    return joined([positions[order[targets[order] == label][:size]] for label in range(int(targets.max()) + 1)])


def standardised(train: Images, test: Images, by_feature: bool) -> tuple[Images, Images]:
    """Inputs with mean 0 and spread 1 in the training samples: each feature of a table, all pixels of images alike."""
    axes = (0,) if by_feature else tuple(range(train.inputs.ndim))
    center, scale = train.inputs.mean(axes), train.inputs.std(axes).clamp(min=1e-6)
    return Images((train.inputs - center) / scale, train.targets), Images((test.inputs - center) / scale, test.targets)
