"""The rule of convolutions."""

from typing import Any

from torch import Tensor

from lightning_stiffness.gram.convolution import Convolution, ConvolutionSettings
from lightning_stiffness.gram.factors import Explicit, Factors
from lightning_stiffness.gram.graph import Layout, NotCovered
from lightning_stiffness.gram.rules.registry import SlotFactors, SlotShapes, rule


@rule("ConvolutionBackward0")
def convolution(node: Any, slots: SlotShapes, output_gradient: Tensor, layout: Layout) -> SlotFactors:
    """Convolution and transposed convolution with 1 to 3 spatial axes, and their bias."""
    frames = layout.frames(output_gradient)
    found: dict[tuple[int, ...], Factors] = {}
    if 1 in slots:
        settings = ConvolutionSettings(
            weight_shape=slots[1],
            stride=tuple(node._saved_stride),
            padding=tuple(node._saved_padding),
            dilation=tuple(node._saved_dilation),
            transposed=node._saved_transposed,
            output_padding=tuple(node._saved_output_padding),
            groups=node._saved_groups,
        )
        inputs = layout.frames(node._saved_input)
        found[1,] = _one_image(inputs, frames, settings) if inputs.shape[1] == 1 else _film(inputs, frames, settings)
    if 2 in slots:
        found[2,] = Explicit(frames.flatten(3).sum((1, 3)))
    return found


def _one_image(inputs: Tensor, frames: Tensor, settings: ConvolutionSettings) -> Convolution:
    return Convolution(inputs[:, 0], frames[:, 0], settings)


def _film(inputs: Tensor, frames: Tensor, settings: ConvolutionSettings) -> Convolution:
    """Several images a sample: a convolution with one more axis, along which the filters have the size one."""
    if len(settings.weight_shape) == 5:
        raise NotCovered("several volumes a sample")
    outputs, channels, *kernel = settings.weight_shape
    longer = ConvolutionSettings(
        weight_shape=(outputs, channels, 1, *kernel),
        stride=(1, *settings.stride),
        padding=(0, *settings.padding),
        dilation=(1, *settings.dilation),
        transposed=settings.transposed,
        output_padding=(0, *settings.output_padding),
        groups=settings.groups,
    )
    return Convolution(inputs.transpose(1, 2), frames.transpose(1, 2), longer)
