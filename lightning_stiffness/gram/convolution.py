"""Per-sample weight gradients of convolutions of any kind: 1 to 3 axes, strided, dilated, grouped, transposed."""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from lightning_stiffness.gram.factors import Factors, symmetric_flops
from lightning_stiffness.gram.workspace import FRESH, Workspace


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
    def is_compact(self) -> bool:
        return self.elements < self.columns

    @property
    @override
    def copied(self) -> int:
        if not self._by_taps:
            return 0
        return self.inputs.shape[1] * math.prod(self.padded_sizes)

    @property
    def padded_sizes(self) -> list[int]:
        """The sizes of an input with its padding of zeros."""
        return [size + 2 * padding for size, padding in zip(self.inputs.shape[2:], self.settings.padding, strict=True)]

    @property
    @override
    def route(self) -> str:
        return "explicit gradients by grouped convolution"

    @property
    def _by_taps(self) -> bool:
        """Whether the gradients are formed tap by tap of the filter, as matrices over the channels."""
        settings = self.settings
        return settings.groups == 1 and not settings.transposed and self.columns > _LARGE_FILTER

    @override
    def blocks(self, workspace: Workspace = FRESH) -> Iterator[Float[Tensor, "n q"]]:
        yield from _blocks_by_taps(self, workspace) if self._by_taps else _blocks_by_groups(self, workspace)

    @override
    def dense(self) -> Float[Tensor, "n p"]:
        """The gradients in the order of the weight."""
        gradients = super().dense()
        if not self._by_taps:
            return gradients
        outputs, inputs = self.settings.weight_shape[:2]
        return gradients.view(self.samples, -1, outputs, inputs).permute(0, 2, 3, 1).flatten(1)

    @override
    def flops(self) -> int:
        per_position = self.columns // self.output_gradients.shape[1]
        return 2 * self.output_gradients.numel() * per_position + symmetric_flops(self.samples, self.columns)


# The filters of this many entries together fit the L2 cache: one grouped convolution over so many samples runs fastest
# (measured).
_CACHED_FILTERS = 300_000
_LARGE_FILTER = 100_000
_SAMPLES_AT_ONCE = 8  # whose shifted inputs fit the cache (measured)


def _parts(factors: Convolution, columns: int, workspace: Workspace) -> Iterator[tuple[int, int]]:
    """Ranges of output channels, each of which brings ``columns`` entries, that fill about a block."""
    outputs = factors.output_gradients.shape[1]
    row_bytes = factors.samples * columns * factors.inputs.element_size()
    count = -(-outputs // max(1, workspace.block_bytes // max(1, row_bytes)))
    for k in range(count):
        yield k * outputs // count, (k + 1) * outputs // count


def _blocks_by_groups(factors: Convolution, workspace: Workspace) -> Iterator[Float[Tensor, "n q"]]:
    """Any convolution: some samples become the groups of one convolution."""
    settings, samples = factors.settings, factors.samples
    outputs = factors.output_gradients.shape[1]
    whole = settings.groups > 1 or settings.transposed  # then channels of input and output cannot be cut apart
    columns = factors.columns // outputs
    for start, stop in ((0, outputs),) if whole else _parts(factors, columns, workspace):
        shape = settings.weight_shape if whole else (stop - start, *settings.weight_shape[1:])
        block = workspace.block((samples, math.prod(shape)), factors.inputs)
        step = max(4, min(64, _CACHED_FILTERS // math.prod(shape)))
        for first in range(0, samples, step):
            some = slice(first, first + step)
            inputs, output_gradients = factors.inputs[some], factors.output_gradients[some, start:stop]
            block[some] = _grouped_gradients(inputs, output_gradients, shape, settings)
        yield block


def _grouped_gradients(
    inputs: Tensor, output_gradients: Tensor, shape: Sequence[int], settings: ConvolutionSettings
) -> Float[Tensor, "m q"]:
    count = len(inputs)
    gradient: Tensor
    _, gradient, _ = torch.ops.aten.convolution_backward(
        _as_one(output_gradients), _as_one(inputs),
        inputs.new_empty(count * shape[0], *shape[1:]), None,
        settings.stride, settings.padding, settings.dilation, settings.transposed, settings.output_padding,
        count * settings.groups, [False, True, False],
    )  # fmt: skip
    return gradient.reshape(count, -1)


def _as_one(tensor: Float[Tensor, "m ..."]) -> Float[Tensor, "1 ..."]:
    """The channels of all samples as those of one, with strides that do not pass for those of channels last."""
    return tensor.reshape(-1).view(1, -1, *tensor.shape[2:])


def _blocks_by_taps(factors: Convolution, workspace: Workspace) -> Iterator[Float[Tensor, "n q"]]:
    """Large filters: at each tap one matrix product a sample, of the output gradient and the input it saw there."""
    settings, samples = factors.settings, factors.samples
    output_gradients = factors.output_gradients.flatten(2)
    channels, *sizes = factors.inputs.shape[1:]
    inside = [slice(padding, padding + size) for padding, size in zip(settings.padding, sizes, strict=True)]
    padded = factors.inputs.new_zeros(samples, *factors.padded_sizes, channels)
    padded[(slice(None), *inside)] = factors.inputs.movedim(1, -1)
    for tap in itertools.product(*(range(size) for size in settings.weight_shape[2:])):
        seen = padded[(slice(None), *_windows(tap, factors.output_gradients.shape[2:], settings))]
        for start, stop in _parts(factors, channels, workspace):
            block = workspace.block((samples, stop - start, channels), padded)
            for first in range(0, samples, _SAMPLES_AT_ONCE):
                some = slice(first, first + _SAMPLES_AT_ONCE)
                torch.bmm(output_gradients[some, start:stop], seen[some].flatten(1, -2), out=block[some])
            yield block.flatten(1)


def _windows(tap: Sequence[int], positions: Sequence[int], settings: ConvolutionSettings) -> list[slice]:
    """Which padded inputs the output positions see through one tap of the filter."""
    starts = [at * apart for at, apart in zip(tap, settings.dilation, strict=True)]
    return [
        slice(start, start + (count - 1) * step + 1, step)
        for start, count, step in zip(starts, positions, settings.stride, strict=True)
    ]
