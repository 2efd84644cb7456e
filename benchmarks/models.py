"""The models of the benchmarks: one value a model in `MODELS`, larger ones in `WIDER` and `LARGE`.

A fixture is what every method of a model is measured on: the module, trained for a few steps so that its gradients are
not degenerate, and a probe of samples it has not seen.
"""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from samples import NUM_CLASSES, POSITIONS, Samples, draw_images, draw_tokens, image_shape, read_images
from torch import Tensor, nn

TRAINING_BATCH = 64
VOCABULARY = 1000
LARGE_VOCABULARY = 8000


@dataclass(frozen=True)
class BenchmarkModel:
    """A model of the benchmark; `draw(count, generator)` makes its synthetic samples.

    `peer_factor` says how much costlier than usual, as multiples of the floor, explicit gradients are: planning only.
    """

    title: str
    description: str
    build: Callable[[], nn.Module]
    draw: Callable[[int, torch.Generator], Samples]
    image_shape: tuple[int, ...] = ()  # channels, height, width; () when the inputs are not images
    peer_factor: float = 1.0


@dataclass(frozen=True)
class Fixture:
    """A trained module in evaluation mode, the samples it is measured on, and what a training step took a sample."""

    module: nn.Module
    probe: Samples
    seconds_per_sample: float


def sample_losses(module: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Cross-entropy of each sample of `(inputs, targets)`, shape [n]; the one loss that all methods differentiate."""
    inputs, targets = batch
    return F.cross_entropy(module(inputs), targets, reduction="none")


def mlp(width: int = 512) -> nn.Module:
    """784-512-512-10, the usual fully connected MNIST classifier."""
    hidden = [nn.Linear(784, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU()]
    return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(width, NUM_CLASSES))


def cnn(factor: int = 1) -> nn.Module:
    """Three 3x3 convolutions of 32, 64, 64 channels, each followed by pooling, and two linear layers."""
    narrow, wide, hidden = 32 * factor, 64 * factor, 128 * factor
    layers: list[nn.Module] = []
    for channels_in, channels_out in ((3, narrow), (narrow, wide), (wide, wide)):
        layers += [nn.Conv2d(channels_in, channels_out, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    head = [nn.Linear(wide * 4 * 4, hidden), nn.ReLU(), nn.Linear(hidden, NUM_CLASSES)]
    return nn.Sequential(*layers, nn.Flatten(), *head)


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


def residual_network(norm: Callable[[int], nn.Module], widths: tuple[int, ...], blocks_each: int) -> nn.Module:
    """A residual network for 32x32 images: stages of the given widths, each after the first at half the resolution."""
    blocks: list[nn.Module] = []
    channels = widths[0]
    for stage, width in enumerate(widths):
        for position in range(blocks_each):
            blocks.append(ResidualBlock(channels, width, 2 if stage and not position else 1, norm))
            channels = width
    stem = [nn.Conv2d(3, widths[0], 3, 1, 1, bias=False), norm(widths[0]), nn.ReLU()]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, NUM_CLASSES)]
    return nn.Sequential(*stem, *blocks, *head)


def resnet20(norm: Callable[[int], nn.Module]) -> nn.Module:
    """ResNet-20 for 32x32 images with the given normalisation."""
    return residual_network(norm, (16, 32, 64), 3)


def resnet18() -> nn.Module:
    """ResNet-18 as it is used for 32x32 images, with batch norm."""
    return residual_network(nn.BatchNorm2d, (64, 128, 256, 512), 2)


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


def encoder(width: int, layers: int, heads: int) -> nn.Module:
    """Pre-norm encoder with a final norm; dropout 0, as TorchJD needs."""
    layer = nn.TransformerEncoderLayer(width, heads, 4 * width, dropout=0.0, batch_first=True, norm_first=True)
    return nn.TransformerEncoder(layer, layers, norm=nn.LayerNorm(width), enable_nested_tensor=False)


def transformer(width: int = 128, layers: int = 4, heads: int = 4) -> nn.Module:
    """Encoder over 64 tokens, mean pooling, linear classifier."""
    embedding = [nn.Embedding(VOCABULARY, width), LearnedPositions(POSITIONS, width)]
    return nn.Sequential(*embedding, encoder(width, layers, heads), MeanOverPositions(), nn.Linear(width, NUM_CLASSES))


class Patches(nn.Module):
    """Non-overlapping patches of an image as a sequence of vectors, by a convolution."""

    def __init__(self, width: int, size: int) -> None:
        super().__init__()
        self.projection = nn.Conv2d(3, width, size, size)

    def forward(self, images: Tensor) -> Tensor:
        """Vectors [n, positions, width]."""
        projected: Tensor = self.projection(images)
        return projected.flatten(2).transpose(1, 2)


class ClassToken(nn.Module):
    """Puts a learned vector before the sequence."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.randn(1, 1, width) * 0.02)

    def forward(self, hidden: Tensor) -> Tensor:
        """The sequence, one position longer."""
        return torch.cat([self.token.expand(hidden.shape[0], -1, -1), hidden], 1)


class OnePosition(nn.Module):
    """One position of a sequence: the first for a class token, the last for a causal decoder."""

    def __init__(self, position: int) -> None:
        super().__init__()
        self.position = position

    def forward(self, hidden: Tensor) -> Tensor:
        """Its vector [n, width]."""
        return hidden[:, self.position]


def vision_transformer(width: int = 192, layers: int = 6, heads: int = 3) -> nn.Module:
    """The widths of ViT-tiny with half its layers, on 4x4 patches of a 32x32 image."""
    embedding = [Patches(width, 4), ClassToken(width), LearnedPositions(65, width)]
    return nn.Sequential(*embedding, encoder(width, layers, heads), OnePosition(0), nn.Linear(width, NUM_CLASSES))


class CausalBlock(nn.Module):
    """A pre-norm block of GPT-2: causal attention from one fused projection, then a wider perceptron."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.mixing, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.perceptron = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU("tanh"), nn.Linear(4 * width, width))

    def forward(self, hidden: Tensor) -> Tensor:
        """Hidden states [n, positions, width]."""
        n, positions, width = hidden.shape
        mixed = self.mixing(self.norms[0](hidden)).view(n, positions, 3, self.heads, width // self.heads)
        query, key, value = mixed.permute(2, 0, 3, 1, 4).unbind()
        attended = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        hidden = hidden + self.out(attended.transpose(1, 2).reshape(n, positions, width))
        return hidden + self.perceptron(self.norms[1](hidden))


class FirstLogits(nn.Module):
    """The logits of the first ten words of a vocabulary: the labels of a tied language model."""

    def forward(self, logits: Tensor) -> Tensor:
        """Logits [n, 10]."""
        return logits[:, :NUM_CLASSES]


def causal_decoder(tied: bool = False, width: int = 128, layers: int = 4) -> nn.Module:
    """Like GPT-2, small: learned positions, causal attention, the last token is classified.

    Args:
        tied: Whether the classifier is the language-model head on the embedding's own weights, of whose 8,000 logits
            the first ten count; else a linear layer.
        width: Width of the hidden states.
        layers: Number of blocks.
    """
    words = nn.Embedding(LARGE_VOCABULARY, width)
    nn.init.normal_(words.weight, std=0.1)
    blocks = [CausalBlock(width, 4) for _ in range(layers)]
    head = [nn.Linear(width, NUM_CLASSES)]
    if tied:
        logits = nn.Linear(width, LARGE_VOCABULARY, bias=False)
        logits.weight = words.weight
        head = [logits, FirstLogits()]
    return nn.Sequential(
        words, LearnedPositions(POSITIONS, width), *blocks, nn.LayerNorm(width), OnePosition(-1), *head
    )


def train(module: nn.Module, samples: Samples) -> float:
    """One pass of Adam over the samples in batches of 64, at a learning rate of 1e-3.

    Returns:
        Seconds a sample of the fastest step.
    """
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-3)
    seconds = []
    for first in range(0, len(samples), TRAINING_BATCH):
        batch = samples[first : first + TRAINING_BATCH]
        start = time.perf_counter()
        optimizer.zero_grad()
        sample_losses(module, (batch.inputs, batch.targets)).mean().backward()
        optimizer.step()
        seconds.append((time.perf_counter() - start) / len(batch))
    return min(seconds, default=0.0)


def build_fixture(name: str, probe_size: int, training_steps: int, seed: int, archives: Iterable[Path]) -> Fixture:
    """Train the model `name` and draw its probe, from the archive of the model's image shape if there is one."""
    model = ALL_MODELS[name]
    count = probe_size + training_steps * TRAINING_BATCH
    generator = torch.Generator().manual_seed(seed)
    archive = next((path for path in archives if image_shape(path) == model.image_shape), None)
    samples = read_images(archive, count, generator) if archive else model.draw(count, generator)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = model.build()
    seconds = train(module, samples[probe_size:])
    module.zero_grad()
    return Fixture(module.eval(), samples[:probe_size], seconds)


# The signals leave each model unsure after its few steps: the gradient of a fitted sample is rounding noise in float32.
def digits(title: str, description: str, build: Callable[[], nn.Module]) -> BenchmarkModel:
    """A model of images like MNIST's."""
    shape = (1, 28, 28)
    return BenchmarkModel(title, description, build, partial(draw_images, shape, 0.08), shape, peer_factor=40.0)


def photographs(title: str, description: str, build: Callable[[], nn.Module], signal: float = 0.3) -> BenchmarkModel:
    """A model of images like CIFAR-10's."""
    shape = (3, 32, 32)
    return BenchmarkModel(title, description, build, partial(draw_images, shape, signal), shape)


def texts(title: str, description: str, build: Callable[[], nn.Module], vocabulary: int) -> BenchmarkModel:
    """A model of 64 tokens."""
    return BenchmarkModel(title, description, build, partial(draw_tokens, vocabulary))


MODELS = {
    "mlp": digits("MLP", "784-512-512-10, 670k parameters", mlp),
    "cnn": photographs("CNN", "three convolutions of 32, 64, 64 channels, 189k parameters", cnn, signal=0.12),
    "resnet20_bn": photographs(
        "ResNet-20 BN",
        "ResNet-20 with batch norm in evaluation mode, 272k parameters",
        partial(resnet20, nn.BatchNorm2d),
    ),
    "resnet20_gn": photographs(
        "ResNet-20 GN", "ResNet-20 with group norm, 272k parameters", partial(resnet20, partial(nn.GroupNorm, 8))
    ),
    "transformer": texts(
        "Transformer", "encoder, width 128, 4 layers, 64 tokens, 931k parameters", transformer, VOCABULARY
    ),
    "vit": photographs(
        "ViT", "ViT-tiny's width 192 and 3 heads, 6 layers, 4x4 patches, 2.7M parameters", vision_transformer
    ),
    "gpt": texts(
        "GPT",
        "causal decoder, width 128, 4 layers, 64 of 8,000 tokens, 1.8M parameters",
        causal_decoder,
        LARGE_VOCABULARY,
    ),
}

TIED = texts(
    "GPT, tied", "the same with the embedding as its classifier", partial(causal_decoder, tied=True), LARGE_VOCABULARY
)

WIDER = {
    **{f"mlp_x{k}": digits(f"MLP x{k}", f"{k} times as wide", partial(mlp, 512 * k)) for k in (2, 4, 8)},
    **{f"cnn_x{k}": photographs(f"CNN x{k}", f"{k} times as wide", partial(cnn, k), signal=0.12) for k in (2, 4, 8)},
}

LARGE = {
    "resnet18": photographs("ResNet-18", "for 32x32 images, batch norm in evaluation mode, 11.2M parameters", resnet18),
    "transformer_wide": texts(
        "Transformer x4",
        "encoder, width 512, 6 layers, 64 tokens, 19.5M parameters",
        partial(transformer, 512, 6, 8),
        VOCABULARY,
    ),
}

ALL_MODELS = {**MODELS, "gpt_tied": TIED, **WIDER, **LARGE}
