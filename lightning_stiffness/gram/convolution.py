"""Per-sample weight gradients of convolutions of any kind: 1 to 3 axes, strided, dilated, grouped, transposed."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from lightning_stiffness.gram.factors import BLOCK_BYTES, Explicit, Factors, owned, symmetric_flops


@dataclass(frozen=True)
class ConvolutionSettings:
    """The arguments of a convolution, as its backward takes them."""

    weight_shape: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    transposed: bool
    output_padding: tuple[int, ...]
    groups: int


@final
@dataclass(frozen=True, eq=False)
class Convolution(Factors):
    """The weight gradients of a convolution, from its input and its output gradient."""

    inputs: Float[Tensor, "n ..."]
    output_gradients: Float[Tensor, "n ..."]
    settings: ConvolutionSettings

    @property
    @override
    def samples(self) -> int:
        return len(self.inputs)

    @property
    @override
    def dtype(self) -> torch.dtype:
        return self.inputs.dtype

    @property
    @override
    def columns(self) -> int:
        return math.prod(self.settings.weight_shape)

    @property
    @override
    def elements(self) -> int:
        return self.inputs[0].numel() + self.output_gradients[0].numel()

    @property
    @override
    def route(self) -> str:
        return "explicit gradients by grouped convolution"

    @override
    def blocks(self, block_bytes: int = BLOCK_BYTES) -> Iterator[Float[Tensor, "n q"]]:
        settings, itemsize = self.settings, self.inputs.element_size()
        outputs = self.output_gradients.shape[1]
        whole = settings.groups > 1 or settings.transposed  # then channels of input and output cannot be cut apart
        step = outputs if whole else max(1, block_bytes * outputs // max(1, self.samples * self.columns * itemsize))
        for start in range(0, outputs, step):
            yield _convolution_gradients(self.inputs, self.output_gradients[:, start : start + step], settings)

    @override
    def compact(self) -> Factors:
        if self.elements < self.columns:
            return Convolution(owned(self.inputs), owned(self.output_gradients), self.settings)
        return Explicit(self.dense())

    @override
    def flops(self) -> int:
        per_position = self.columns // self.output_gradients.shape[1]
        return 2 * self.output_gradients.numel() * per_position + symmetric_flops(self.samples, self.columns)


# The filters of this many entries together fit the L2 cache: one grouped convolution over so many samples runs fastest
# (measured).
_CACHED_FILTERS = 300_000
_LARGE_FILTER = 40_000


def _convolution_gradients(
    inputs: Float[Tensor, "n ..."], output_gradients: Float[Tensor, "n ..."], settings: ConvolutionSettings
) -> Float[Tensor, "n q"]:
    """Weight gradients [n, q]: the samples become the groups of one convolution."""
    shape = settings.weight_shape
    if not settings.transposed:
        shape = (output_gradients.shape[1], *shape[1:])
    size = math.prod(shape)
    if size > _LARGE_FILTER and _is_plain(settings):
        return _unfolded_gradients(inputs, output_gradients, settings)
    step = max(4, min(64, _CACHED_FILTERS // size))
    inputs, output_gradients = inputs.contiguous(), output_gradients.contiguous()
    result = inputs.new_empty(len(inputs), size)
    for start in range(0, len(inputs), step):
        x, d = inputs[start : start + step], output_gradients[start : start + step]
        weight = x.new_empty(len(x) * shape[0], *shape[1:])
        _, gradient, _ = torch.ops.aten.convolution_backward(
            d.reshape(1, -1, *d.shape[2:]), x.reshape(1, -1, *x.shape[2:]), weight, None,
            settings.stride, settings.padding, settings.dilation, settings.transposed, settings.output_padding,
            len(x) * settings.groups, [False, True, False],
        )  # fmt: skip
        result[start : start + step] = gradient.reshape(len(x), size)
    return result


def _is_plain(settings: ConvolutionSettings) -> bool:
    """Whether unfolding two spatial axes describes the convolution."""
    return (
        len(settings.weight_shape) == 4
        and settings.groups == 1
        and not settings.transposed
        and all(step == 1 for step in settings.dilation)
    )


def _unfolded_gradients(
    inputs: Float[Tensor, "n ..."], output_gradients: Float[Tensor, "n ..."], settings: ConvolutionSettings
) -> Float[Tensor, "n q"]:
    """The same for large filters: patches as a matrix, one matrix product a sample."""
    outputs, channels, (height, width) = output_gradients.shape[1], settings.weight_shape[1], settings.weight_shape[2:]
    (top, left), (down, right) = settings.padding, settings.stride
    padded = torch.nn.functional.pad(inputs, (left, left, top, top))
    flat = output_gradients.flatten(2)
    positions, patch = flat.shape[2], channels * height * width
    result = inputs.new_empty(len(inputs), outputs * patch)
    step = max(1, min(32, (4 << 20) // (positions * patch * inputs.element_size())))
    for start in range(0, len(inputs), step):
        windows = padded[start : start + step].unfold(2, height, down).unfold(3, width, right)
        patches = windows.permute(0, 2, 3, 1, 4, 5).reshape(-1, positions, patch)
        torch.bmm(flat[start : start + step], patches, out=result[start : start + step].view(-1, outputs, patch))
    return result
