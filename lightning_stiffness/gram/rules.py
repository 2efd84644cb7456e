"""One function per autograd node: the per-sample gradients of the parameters which it consumes.

A rule is given the node, the input slots that hold wanted parameters, the node's output gradient and the layout of the
batch, and returns factors, keyed by the slots they cover. It states the layer's algebra once; Gram matrices, norms and
class sums follow. A node without a rule, or one whose rule declines, sends its parameters to the fallback route.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor

from lightning_stiffness.errors import MixedSamplesError
from lightning_stiffness.gram.convolution import Convolution, ConvolutionSettings
from lightning_stiffness.gram.embedding import Rows
from lightning_stiffness.gram.factors import Explicit, Factors, Outer
from lightning_stiffness.gram.graph import Layout, NotCovered, signed

SlotFactors: TypeAlias = Mapping[tuple[int, ...], Factors]
SlotShapes: TypeAlias = Mapping[int, tuple[int, ...]]
"""The shape of the (re-indexed) parameter in each slot that holds one."""
Rule: TypeAlias = Callable[[Any, SlotShapes, Tensor, Layout], SlotFactors]

RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Registers a rule under the names of autograd nodes."""

    def register(function: Rule) -> Rule:
        for name in names:
            RULES[name] = function
        return function

    return register


@rule("AddmmBackward0")
def affine(node: Any, slots: SlotShapes, output_gradient: Tensor, layout: Layout) -> SlotFactors:
    """Beta * bias + alpha * inputs @ weight."""
    if 1 in slots:
        raise NotCovered("a parameter is the left factor of a matrix product")
    right = layout.rows(output_gradient)
    scaled = right if node._saved_alpha == 1 else right * node._saved_alpha
    if 0 in slots and (len(slots[0]) != 1 or slots[0][0] != right.shape[2]):
        raise NotCovered("the added term is no vector over the columns")
    if set(slots) == {0, 2} and node._saved_alpha == node._saved_beta == 1:
        return {(2, 0): Outer(layout.rows(node._saved_mat1), right, bias=True)}
    found: dict[tuple[int, ...], Factors] = {}
    if 2 in slots:
        found[2,] = Outer(layout.rows(node._saved_mat1), scaled)
    if 0 in slots:
        found[0,] = Explicit(right.sum(1) * node._saved_beta)
    return found


@rule("MmBackward0")
def matrix_product(node: Any, slots: SlotShapes, output_gradient: Tensor, layout: Layout) -> SlotFactors:
    """Inputs @ weight."""
    if 0 in slots:
        raise NotCovered("a parameter is the left factor of a matrix product")
    return {(1,): Outer(layout.rows(node._saved_self), layout.rows(output_gradient))}


@rule("ConvolutionBackward0")
def convolution(node: Any, slots: SlotShapes, output_gradient: Tensor, layout: Layout) -> SlotFactors:
    """Convolution and transposed convolution with 1 to 3 spatial axes, and their bias."""
    if layout.prefix != 1 or len(output_gradient) != layout.samples:
        raise NotCovered("the first axis of the convolution does not count the samples")
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
        found[1,] = Convolution(node._saved_input, output_gradient, settings)
    if 2 in slots:
        found[2,] = Explicit(output_gradient.flatten(2).sum(2))
    return found


def _scale_and_shift(slots: SlotShapes, scale: Callable[[], Tensor], shift: Tensor) -> SlotFactors:
    """The factors of a norm's weight (slot 1) and bias (slot 2)."""
    found: dict[tuple[int, ...], Factors] = {}
    if 1 in slots:
        found[1,] = Explicit(scale())
    if 2 in slots:
        found[2,] = Explicit(shift)
    return found


@rule("NativeBatchNormBackward0", "CudnnBatchNormBackward0")
def batch_norm(node: Any, slots: SlotShapes, output_gradient: Tensor, layout: Layout) -> SlotFactors:
    """Batch normalisation by its running statistics."""
    if not node.name().startswith("Native") or node._saved_training:
        raise MixedSamplesError(
            "per-sample gradients do not exist under BatchNorm in training mode, which mixes the samples of a batch; "
            "call module.eval() before measuring"
        )
    if layout.prefix != 1 or len(output_gradient) != layout.samples:
        raise NotCovered("the first axis of the batch norm does not count the samples")
    inputs = node._saved_input.flatten(2) if output_gradient.ndim > 2 else node._saved_input[..., None]
    gradient = output_gradient.reshape(inputs.shape)
    shift = gradient.sum(2)

    def scale() -> Tensor:
        mean: Tensor = node._saved_running_mean
        return (_inner_last(gradient, inputs) - shift * mean) * torch.rsqrt(node._saved_running_var + node._saved_eps)

    return _scale_and_shift(slots, scale, shift)


@rule("NativeGroupNormBackward0")
def group_norm(node: Any, slots: SlotShapes, output_gradient: Tensor, layout: Layout) -> SlotFactors:
    """Group normalisation."""
    if layout.prefix != 1 or node._saved_N != layout.samples:
        raise NotCovered("the first axis of the group norm does not count the samples")
    channels, groups = node._saved_C, node._saved_group
    gradient = output_gradient.reshape(layout.samples, channels, -1)
    shift = gradient.sum(2)

    def scale() -> Tensor:
        inputs = node._saved_input.reshape(layout.samples, channels, -1)
        per_channel: list[Tensor] = [
            statistic.reshape(layout.samples, groups).repeat_interleave(channels // groups, 1)
            for statistic in (node._saved_result1, node._saved_result2)
        ]
        mean, deviation = per_channel
        return (_inner_last(gradient, inputs) - shift * mean) * deviation

    return _scale_and_shift(slots, scale, shift)


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


def _inner_last(first: Tensor, second: Tensor, step: int = 32) -> Tensor:
    """Sum over the last axis of the product, in blocks of samples that stay in the cache."""
    result = first.new_empty(first.shape[:-1])
    for start in range(0, len(first), step):
        part = slice(start, start + step)
        torch.sum(first[part] * second[part], -1, out=result[part])
    return result


@rule("EmbeddingBackward0")
def embedding(node: Any, slots: SlotShapes, output_gradient: Tensor, layout: Layout) -> SlotFactors:
    """Table look-up."""
    if node._saved_scale_grad_by_freq:
        raise NotCovered("scale_grad_by_freq counts tokens over the whole batch")
    values = layout.rows(output_gradient)
    indices = layout.rows(node._saved_indices.unsqueeze(-1)).squeeze(-1)
    padding = signed(node._saved_padding_idx)
    if padding >= 0:
        values = values * (indices != padding).unsqueeze(-1)
    return {(0,): Rows(indices, values, slots[0][0])}


@rule("AddBackward0", "SubBackward0")
def broadcast_sum(node: Any, slots: SlotShapes, output_gradient: Tensor, layout: Layout) -> SlotFactors:
    """First + alpha * second and first - alpha * second, with broadcasting."""
    found: dict[tuple[int, ...], Factors] = {}
    for slot, shape in slots.items():
        reduced = layout.reduce(output_gradient, shape)
        sign = -1 if node.name().startswith("Sub") else 1
        factor = sign * node._saved_alpha if slot == 1 else 1
        found[slot,] = Explicit(reduced if factor == 1 else reduced * factor)
    return found


@rule("MulBackward0")
def broadcast_product(node: Any, slots: SlotShapes, output_gradient: Tensor, layout: Layout) -> SlotFactors:
    """First * second, with broadcasting; a product of two parameters is left to the fallback."""
    if len(slots) > 1:
        raise NotCovered("both factors of a product are parameters")
    ((slot, shape),) = slots.items()
    other = node._saved_other if slot == 0 else node._saved_self
    return {(slot,): Explicit(layout.reduce(output_gradient * other, shape))}


@rule("ExpandBackward0")
def expand(node: Any, slots: SlotShapes, output_gradient: Tensor, layout: Layout) -> SlotFactors:
    """A parameter repeated over the batch, such as a class token."""
    return {(0,): Explicit(layout.reduce(output_gradient, slots[0]))}
