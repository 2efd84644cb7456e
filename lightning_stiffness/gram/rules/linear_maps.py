"""Rules of matrix products, with the parameter on either side."""

import math
from typing import Any

from torch import Tensor

from lightning_stiffness.gram.batched import BatchedOuter
from lightning_stiffness.gram.factors import Explicit, Factors
from lightning_stiffness.gram.graph import Layout, NotCovered
from lightning_stiffness.gram.outer import Outer
from lightning_stiffness.gram.rules.registry import SlotFactors, SlotShapes, rule


@rule("AddmmBackward0")
def affine(node: Any, slots: SlotShapes, output_gradient: Tensor, layout: Layout) -> SlotFactors:
    """Beta * added + alpha * first @ second: a linear layer where added is a bias and second its weight."""
    is_plain = node._saved_alpha == node._saved_beta == 1
    if set(slots) == {0, 2} and is_plain and slots[0] == tuple(output_gradient.shape[1:]):
        return {(2, 0): Outer(layout.rows(node._saved_mat1), layout.rows(output_gradient), bias=True)}
    found: dict[tuple[int, ...], Factors] = {}
    scaled = output_gradient if node._saved_alpha == 1 else output_gradient * node._saved_alpha
    if 1 in slots:
        found[1,] = _left_factor(node._saved_mat2[None], scaled[None], layout)
    if 2 in slots:
        found[2,] = Outer(layout.rows(node._saved_mat1), layout.rows(scaled))
    if 0 in slots:
        found[0,] = _added(node, slots[0], output_gradient, layout)
    return found


@rule("MmBackward0")
def matrix_product(node: Any, slots: SlotShapes, output_gradient: Tensor, layout: Layout) -> SlotFactors:
    """First @ second."""
    if 0 in slots:
        return {(0,): _left_factor(node._saved_mat2[None], output_gradient[None], layout)}
    return {(1,): Outer(layout.rows(node._saved_self), layout.rows(output_gradient))}


@rule("BmmBackward0")
def batched_product(node: Any, slots: SlotShapes, output_gradient: Tensor, layout: Layout) -> SlotFactors:
    """Several products side by side; the parameter holds a matrix for each of them, such as one for each expert."""
    if 0 in slots:
        return {(0,): _left_factor(node._saved_mat2, output_gradient, layout)}
    return {(1,): _right_factor(node._saved_self, output_gradient, layout)}


@rule("BaddbmmBackward0")
def batched_affine(node: Any, slots: SlotShapes, output_gradient: Tensor, layout: Layout) -> SlotFactors:
    """Beta * added + alpha * first @ second, several side by side."""
    found: dict[tuple[int, ...], Factors] = {}
    scaled = output_gradient if node._saved_alpha == 1 else output_gradient * node._saved_alpha
    if 1 in slots:
        found[1,] = _left_factor(node._saved_batch2, scaled, layout)
    if 2 in slots:
        found[2,] = _right_factor(node._saved_batch1, scaled, layout)
    if 0 in slots:
        found[0,] = _added(node, slots[0], output_gradient, layout)
    return found


@rule("MvBackward0", "AddmvBackward0")
def vector_product(node: Any, slots: SlotShapes, output_gradient: Tensor, layout: Layout) -> SlotFactors:
    """Matrix @ vector, the vector a parameter, and a parameter added to it."""
    is_sum = node.name().startswith("Add")
    if (1 in slots and is_sum) or (0 in slots and not is_sum):
        raise NotCovered("the matrix of a product with a vector is a parameter")
    found: dict[tuple[int, ...], Factors] = {}
    if 1 + is_sum in slots:
        scale = node._saved_alpha if is_sum else 1
        inputs = layout.rows(node._saved_mat if is_sum else node._saved_self)
        found[1 + is_sum,] = Outer(inputs, layout.rows(output_gradient[:, None] * scale))
    if is_sum and 0 in slots:
        found[0,] = _added(node, slots[0], output_gradient, layout)
    return found


@rule("TrilinearBackward0")
def bilinear(node: Any, slots: SlotShapes, output_gradient: Tensor, layout: Layout) -> SlotFactors:
    """The form sum_ij first_i weight_oij second_j."""
    is_bilinear = (node._saved_expand1, node._saved_expand2, node._saved_expand3) == ((1, 3), (0,), (1, 2))
    if set(slots) != {1} or not is_bilinear or tuple(node._saved_sumdim) != (2, 3):
        raise NotCovered("not the product of a bilinear layer")
    first, second = layout.rows(node._saved_i1), layout.rows(node._saved_i3)
    pairs = (first.unsqueeze(3) * second.unsqueeze(2)).flatten(2)
    return {(1,): Outer(layout.rows(output_gradient), pairs)}


def _added(node: Any, shape: tuple[int, ...], output_gradient: Tensor, layout: Layout) -> Explicit:
    gradient = layout.reduce(output_gradient, shape)
    return Explicit(gradient if node._saved_beta == 1 else gradient * node._saved_beta)


def _right_factor(first: Tensor, gradient: Tensor, layout: Layout) -> Factors:
    """The gradient [b, k, j] of second in first @ second, first [b, i, k]."""
    return _products(first, gradient, layout, math.prod(gradient.shape[:1]))


def _left_factor(second: Tensor, gradient: Tensor, layout: Layout) -> Factors:
    """The gradient [b, i, k] of first in first @ second, second [b, k, j]."""
    return _products(gradient.mT, second.mT, layout, math.prod(gradient.shape[:2]))


def _products(left: Tensor, right: Tensor, layout: Layout, passed: int) -> Factors:
    """Outer products of the rows of left [b, m, p] and right [b, m, q], whose axis m holds the samples.

    ``passed`` is the number of entries of the output before that axis.
    """
    batches, rows = left.shape[:2]
    before, remainder = divmod(layout.prefix, passed)
    if layout.samples == 1:
        before, remainder = 1, 0
    if remainder or rows % max(1, before * layout.samples):
        raise NotCovered("the rows of the product do not hold the samples")

    def split(tensor: Tensor) -> Tensor:
        view = tensor.reshape(batches, before, layout.samples, -1, tensor.shape[2])
        return view.permute(2, 0, 1, 3, 4).reshape(layout.samples, batches, -1, tensor.shape[2])

    left, right = split(left), split(right)
    return Outer(left[:, 0], right[:, 0]) if batches == 1 else BatchedOuter(left, right)
