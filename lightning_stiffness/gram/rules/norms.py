"""Rules of normalisations."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lightning_stiffness.errors import MixedSamplesError
from lightning_stiffness.gram.factors import Explicit, Factors
from lightning_stiffness.gram.graph import Layout
from lightning_stiffness.gram.rules.registry import SlotFactors, SlotShapes, rule


def _scale_and_shift(slots: SlotShapes, scale: Callable[[], Tensor], shift: Tensor) -> SlotFactors:
    """The factors of a norm's weight (slot 1) and bias (slot 2)."""
    found: dict[tuple[int, ...], Factors] = {}
    if 1 in slots:
        found[1,] = Explicit(scale())
    if 2 in slots:
        found[2,] = Explicit(shift)
    return found


@rule("NativeBatchNormBackward0", "CudnnBatchNormBackward0", "MiopenBatchNormBackward0")
def batch_norm(node: Any, slots: SlotShapes, output_gradient: Tensor, layout: Layout) -> SlotFactors:
    """Batch normalisation by its running statistics, or by those of the batch where the layout says so.

    The nodes of cuDNN and MIOpen, which torch takes in training mode, have the statistics of the batch.
    """
    by_batch = not node.name().startswith("Native") or node._saved_training
    if by_batch and not layout.batch_statistics:
        raise MixedSamplesError(
            "per-sample gradients do not exist under BatchNorm in training mode, which mixes the samples of a batch; "
            "call module.eval() before measuring"
        )
    gradient = _channels(output_gradient, layout)
    shift = gradient.sum((1, 3))

    def scale() -> Tensor:
        mean: Tensor = node._saved_result1 if by_batch else node._saved_running_mean
        deviation = node._saved_result2 if by_batch else torch.rsqrt(node._saved_running_var + node._saved_eps)
        product: Tensor = (_inner(gradient, _channels(node._saved_input, layout)) - shift * mean) * deviation
        return product

    return _scale_and_shift(slots, scale, shift)


@rule("NativeGroupNormBackward0")
def group_norm(node: Any, slots: SlotShapes, output_gradient: Tensor, layout: Layout) -> SlotFactors:
    """Group normalisation."""
    channels, groups = node._saved_C, node._saved_group
    gradient = layout.frames(output_gradient.reshape(node._saved_N, channels, -1))

    def scale() -> Tensor:
        inputs = layout.frames(node._saved_input.reshape(node._saved_N, channels, -1))
        per_channel: list[Tensor] = [
            layout.frames(statistic.reshape(node._saved_N, groups)).repeat_interleave(channels // groups, 2)
            for statistic in (node._saved_result1, node._saved_result2)
        ]
        mean, deviation = per_channel
        if gradient.shape[1] == 1:
            return (_inner(gradient, inputs) - gradient.sum(3)[:, 0] * mean[:, 0]) * deviation[:, 0]
        return (((gradient * inputs).sum(3) - gradient.sum(3) * mean) * deviation).sum(1)

    return _scale_and_shift(slots, scale, gradient.sum((1, 3)))


@rule("NativeLayerNormBackward0")
def layer_norm(node: Any, slots: SlotShapes, output_gradient: Tensor, layout: Layout) -> SlotFactors:
    """Layer normalisation."""
    width = math.prod(node._saved_normalized_shape)
    gradient = output_gradient.reshape(-1, width)

    def scale() -> Tensor:
        normalised: Tensor = node._saved_input.reshape(-1, width) - node._saved_result1.reshape(-1, 1)
        normalised = normalised.mul_(node._saved_result2.reshape(-1, 1)).mul_(gradient)
        return layout.rows(normalised).sum(1)

    return _scale_and_shift(slots, scale, layout.rows(gradient).sum(1))


@rule("FusedRmsNormBackward0")
def rms_norm(node: Any, slots: SlotShapes, output_gradient: Tensor, layout: Layout) -> SlotFactors:
    """Normalisation by the root mean square, where it is one operation; elsewhere torch multiplies by the weight."""
    width = math.prod(node._saved_normalized_shape)
    product = output_gradient * node._saved_input * node._saved_result1
    return {(1,): Explicit(layout.rows(product.reshape(-1, width)).sum(1))}


def _channels(tensor: Tensor, layout: Layout) -> Tensor:
    """As [n, k, channels, positions], k images of each sample."""
    return layout.frames(tensor.flatten(2) if tensor.ndim > 2 else tensor[..., None])


def _inner(first: Tensor, second: Tensor, step: int = 32) -> Tensor:
    """Sum over all but samples and channels of the product, in blocks of samples that stay in the cache."""
    result = first.new_empty(len(first), first.shape[2])
    for start in range(0, len(first), step):
        part = slice(start, start + step)
        torch.sum(first[part] * second[part], (1, 3), out=result[part])
    return result
