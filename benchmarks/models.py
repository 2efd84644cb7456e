"""The models and data of the benchmarks: one value a model in `MODELS`.

A fixture is what every method of a model is measured on: the module, trained for a few steps so that its gradients are
not degenerate, and a probe of samples it has not seen. Without `--data` the samples are drawn from a seeded generator,
in the shapes of MNIST, CIFAR-10 and 64-token texts; each class has its own pattern under noise, to be learned.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

NUM_CLASSES = 10
TRAINING_BATCH = 64
VOCABULARY = 1000
POSITIONS = 64


@dataclass(frozen=True)
class Samples:
    """Inputs and their classes, first dimension n."""

    inputs: Tensor
    targets: Tensor

    def __getitem__(self, part: slice) -> "Samples":
        return Samples(self.inputs[part], self.targets[part])

    def __len__(self) -> int:
        return len(self.targets)


@dataclass(frozen=True)
class BenchmarkModel:
    """A model of the benchmark; `draw(count, generator)` makes its synthetic samples."""

    title: str
    description: str
    build: Callable[[], nn.Module]
    draw: Callable[[int, torch.Generator], Samples]
    image_shape: tuple[int, ...] = ()  # channels, height, width; () when the inputs are not images


@dataclass(frozen=True)
class Fixture:
    """A trained module in evaluation mode and the samples it is measured on."""

    module: nn.Module
    probe: Samples


def sample_losses(module: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Cross-entropy of each sample of `(inputs, targets)`, shape [n]; the one loss that all methods differentiate."""
    inputs, targets = batch
    return F.cross_entropy(module(inputs), targets, reduction="none")


def mlp() -> nn.Module:
    """784-512-512-10, the usual fully connected MNIST classifier."""
    hidden = [nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU()]
    return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(512, NUM_CLASSES))


def cnn() -> nn.Module:
    """Three 3x3 convolutions of 32, 64, 64 channels, each followed by pooling, and two linear layers."""
    layers: list[nn.Module] = []
    for channels_in, channels_out in ((3, 32), (32, 64), (64, 64)):
        layers += [nn.Conv2d(channels_in, channels_out, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(64 * 4 * 4, 128), nn.ReLU(), nn.Linear(128, NUM_CLASSES))


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut; every ReLU is a module of its own because BackPACK asks for that."""

    def __init__(self, channels_in: int, channels_out: int, stride: int, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.first = nn.Sequential(
            nn.Conv2d(channels_in, channels_out, 3, stride, 1, bias=False), norm(channels_out), nn.ReLU()
        )
        self.second = nn.Sequential(nn.Conv2d(channels_out, channels_out, 3, 1, 1, bias=False), norm(channels_out))
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels_in != channels_out:
            projection = nn.Conv2d(channels_in, channels_out, 1, stride, bias=False)
            self.shortcut = nn.Sequential(projection, norm(channels_out))
        self.activation = nn.ReLU()

    def forward(self, images: Tensor) -> Tensor:
        """Feature maps of the block."""
        activated: Tensor = self.activation(self.second(self.first(images)) + self.shortcut(images))
        return activated


def resnet20(norm: Callable[[int], nn.Module]) -> nn.Module:
    """ResNet-20 for 32x32 images with the given normalisation."""
    blocks: list[nn.Module] = []
    channels = 16
    for width, stride in ((16, 1), (32, 2), (64, 2)):
        for position in range(3):
            blocks.append(ResidualBlock(channels, width, stride if position == 0 else 1, norm))
            channels = width
    stem = [nn.Conv2d(3, 16, 3, 1, 1, bias=False), norm(16), nn.ReLU()]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, NUM_CLASSES))


class LearnedPositions(nn.Module):
    """Adds a learned vector per position; a module of its own, as TorchJD and Opacus ask of parameters."""

    def __init__(self, positions: int, width: int) -> None:
        super().__init__()
        self.vectors = nn.Parameter(torch.randn(positions, width) * 0.02)

    def forward(self, embedded: Tensor) -> Tensor:
        """Embedded tokens plus the vectors of their positions."""
        return embedded + self.vectors


class MeanOverPositions(nn.Module):
    """Mean over the second dimension."""

    def forward(self, hidden: Tensor) -> Tensor:
        """Mean hidden state of each sample."""
        return hidden.mean(1)


def transformer(width: int = 128, layers: int = 4, heads: int = 4) -> nn.Module:
    """Pre-norm encoder over 64 tokens, mean pooling, linear classifier; dropout 0, as TorchJD needs."""
    layer = nn.TransformerEncoderLayer(width, heads, 4 * width, dropout=0.0, batch_first=True, norm_first=True)
    encoder = nn.TransformerEncoder(layer, layers, norm=nn.LayerNorm(width), enable_nested_tensor=False)
    embedding = [nn.Embedding(VOCABULARY, width), LearnedPositions(POSITIONS, width)]
    return nn.Sequential(*embedding, encoder, MeanOverPositions(), nn.Linear(width, NUM_CLASSES))


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
    return Samples(signal * patterns[targets] + noise, targets)


def draw_tokens(count: int, generator: torch.Generator) -> Samples:
    """Texts of 64 tokens, frequent ones more often; one token in seven comes from the words of the class."""
    targets = balanced_targets(count)
    tokens = (torch.rand(count, POSITIONS, generator=generator).square() * VOCABULARY).long()
    own = tokens % (VOCABULARY // 20) + targets[:, None] * (VOCABULARY // NUM_CLASSES)
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


def train(module: nn.Module, samples: Samples) -> None:
    """One pass of Adam over the samples in batches of 64, at a learning rate of 1e-3."""
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-3)
    for start in range(0, len(samples), TRAINING_BATCH):
        batch = samples[start : start + TRAINING_BATCH]
        optimizer.zero_grad()
        sample_losses(module, (batch.inputs, batch.targets)).mean().backward()
        optimizer.step()


def build_fixture(name: str, probe_size: int, training_steps: int, seed: int, archives: Iterable[Path]) -> Fixture:
    """Train the model `name` and draw its probe, from the archive of the model's image shape if there is one."""
    model = MODELS[name]
    count = probe_size + training_steps * TRAINING_BATCH
    generator = torch.Generator().manual_seed(seed)
    archive = next((path for path in archives if image_shape(path) == model.image_shape), None)
    samples = read_images(archive, count, generator) if archive else model.draw(count, generator)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = model.build()
    train(module, samples[probe_size:])
    module.zero_grad()
    return Fixture(module.eval(), samples[:probe_size])


MNIST_SHAPE = (1, 28, 28)
CIFAR_SHAPE = (3, 32, 32)

# The signals leave each model unsure after its few steps: the gradient of a fitted sample is rounding noise in float32.
MODELS = {
    "mlp": BenchmarkModel(
        "MLP", "784-512-512-10, 670k parameters", mlp, partial(draw_images, MNIST_SHAPE, 0.08), MNIST_SHAPE
    ),
    "cnn": BenchmarkModel(
        "CNN",
        "three convolutions of 32, 64, 64 channels, 189k parameters",
        cnn,
        partial(draw_images, CIFAR_SHAPE, 0.12),
        CIFAR_SHAPE,
    ),
    "resnet20_bn": BenchmarkModel(
        "ResNet-20 BN",
        "ResNet-20 with batch norm in evaluation mode, 272k parameters",
        partial(resnet20, nn.BatchNorm2d),
        partial(draw_images, CIFAR_SHAPE, 0.3),
        CIFAR_SHAPE,
    ),
    "resnet20_gn": BenchmarkModel(
        "ResNet-20 GN",
        "ResNet-20 with group norm, 272k parameters",
        partial(resnet20, partial(nn.GroupNorm, 8)),
        partial(draw_images, CIFAR_SHAPE, 0.3),
        CIFAR_SHAPE,
    ),
    "transformer": BenchmarkModel(
        "Transformer", "encoder, width 128, 4 layers, 64 tokens, 931k parameters", transformer, draw_tokens
    ),
}
