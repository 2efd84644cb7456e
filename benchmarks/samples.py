"""The data of the benchmarks: synthetic images and texts from a seeded generator, or the images of an archive.

The shapes are those of MNIST, CIFAR-10 and 64-token texts; each class has its own pattern under noise, to be learned.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

NUM_CLASSES = 10
POSITIONS = 64


@dataclass(frozen=True)
class Samples:
    """Inputs and their classes, first dimension n."""

    inputs: Tensor
    targets: Tensor

    def __getitem__(self, part: slice | Tensor) -> "Samples":
        return Samples(self.inputs[part], self.targets[part])

    def __len__(self) -> int:
        return len(self.targets)

    def to(self, device: torch.device) -> "Samples":
        """Copies on a device."""
        return Samples(self.inputs.to(device), self.targets.to(device))


def balanced_targets(count: int) -> Tensor:
    """0, 1, ..., 9, 0, 1, ...: every class has its share in every beginning of the samples."""
    return torch.arange(count) % NUM_CLASSES


def draw_images(shape: tuple[int, int, int], signal: float, count: int, generator: torch.Generator) -> Samples:
    """Images of the given shape: a smooth pattern per class, times `signal`, in noise of unit variance."""
    channels, height, width = shape
    coarse = torch.randn(NUM_CLASSES, channels, height // 4, width // 4, generator=generator)
    patterns = F.interpolate(coarse, size=(height, width), mode="bilinear")
    targets = balanced_targets(count)
    noise = torch.randn(count, channels, height, width, generator=generator)
    return Samples(noise.add_(patterns[targets], alpha=signal), targets)


def draw_tokens(vocabulary: int, count: int, generator: torch.Generator) -> Samples:
    """Texts of 64 tokens, frequent ones more often; one token in seven comes from the words of the class."""
    targets = balanced_targets(count)
    tokens = (torch.rand(count, POSITIONS, generator=generator).square() * vocabulary).long()
    own = tokens % (vocabulary // 20) + targets[:, None] * (vocabulary // NUM_CLASSES)
    is_own = torch.rand(count, POSITIONS, generator=generator) < 1 / 7
    return Samples(torch.where(is_own, own, tokens), targets)


def read_images(path: Path, count: int, generator: torch.Generator) -> Samples:
    """`count` images of an .npz with x_train and y_train (as Keras ships mnist.npz), in random order, about centred."""
    with np.load(path) as archive:
        images, targets = archive["x_train"], archive["y_train"].reshape(-1)
    if count > len(targets):
        raise SystemExit(f"{path} has {len(targets)} images; this run needs {count}. Ask for fewer --samples.")
    chosen = torch.randperm(len(targets), generator=generator)[:count].numpy()
    pixels = torch.from_numpy(images[chosen]).float() / 255
    pixels = pixels[:, None] if pixels.ndim == 3 else pixels.permute(0, 3, 1, 2)
    return Samples((pixels - pixels.mean()).contiguous(), torch.from_numpy(targets[chosen]).long())


def image_shape(path: Path) -> tuple[int, ...]:
    """Channels, height and width of the images of an .npz."""
    with np.load(path) as archive:
        shape = archive["x_train"].shape[1:]
    return (1, *shape) if len(shape) == 2 else (shape[2], *shape[:2])
