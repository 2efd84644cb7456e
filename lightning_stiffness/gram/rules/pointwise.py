"""Rules of operations that work entry by entry, with broadcasting."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lightning_stiffness.gram.factors import Explicit, Factors
from lightning_stiffness.gram.graph import Layout, NotCovered
from lightning_stiffness.gram.rules.registry import SlotFactors, SlotShapes, rule


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
    """First * second, with broadcasting."""
    if len(slots) > 1:
        raise NotCovered("both factors of a product are parameters")
    ((slot, shape),) = slots.items()
    other = node._saved_other if slot == 0 else node._saved_self
    return {(slot,): Explicit(layout.reduce(output_gradient * other, shape))}


@rule("RsubBackward0")
def reversed_difference(node: Any, slots: SlotShapes, output_gradient: Tensor, layout: Layout) -> SlotFactors:
    """Second - alpha * first."""
    signs = {0: -node._saved_alpha, 1: 1}
    return {(slot,): Explicit(layout.reduce(output_gradient * signs[slot], shape)) for slot, shape in slots.items()}


def _step(difference: Tensor) -> Tensor:
    """1 above zero, a half at it."""
    return torch.heaviside(difference, difference.new_tensor(0.5))


def _power_by_base(node: Any) -> Tensor:
    base, exponent = node._saved_self, node._saved_exponent
    return torch.where(exponent == 0, 0, exponent * base.pow(exponent - 1))


def _power_by_exponent(node: Any) -> Tensor:
    base, result = node._saved_self, node._saved_result
    return torch.where((base == 0) & (node._saved_exponent >= 0), 0, result * base.log())


# How the output of an operation changes with the entry of each slot that may hold a parameter.
_DERIVATIVES: dict[str, dict[int, Callable[[Any], Tensor | float]]] = {
    "DivBackward0": {
        0: lambda node: 1 / node._saved_other,
        1: lambda node: -node._saved_self / node._saved_other.square(),
    },
    "AddcmulBackward0": {
        0: lambda node: 1,
        1: lambda node: node._saved_tensor2 * node._saved_value,
        2: lambda node: node._saved_tensor1 * node._saved_value,
    },
    "AddcdivBackward0": {
        0: lambda node: 1,
        1: lambda node: node._saved_value / node._saved_tensor2,
        2: lambda node: -node._saved_value * node._saved_tensor1 / node._saved_tensor2.square(),
    },
    "LerpBackward0": {
        0: lambda node: 1 - node._saved_weight,
        1: lambda node: node._saved_weight,
    },
    "LerpBackward1": {
        0: lambda node: 1 - node._saved_weight,
        1: lambda node: node._saved_weight,
        2: lambda node: node._saved_end - node._saved_self,
    },
    "PowBackward1": {0: _power_by_base, 1: _power_by_exponent},
    "WhereBackward0": {0: lambda node: node._saved_condition, 1: lambda node: ~node._saved_condition},
    "MaximumBackward0": {
        0: lambda node: _step(node._saved_self - node._saved_other),
        1: lambda node: _step(node._saved_other - node._saved_self),
    },
    "MinimumBackward0": {
        0: lambda node: _step(node._saved_other - node._saved_self),
        1: lambda node: _step(node._saved_self - node._saved_other),
    },
    "ClampBackward0": {
        1: lambda node: (node._saved_self < node._saved_min) & (node._saved_min < node._saved_max),
        2: lambda node: (node._saved_self > node._saved_max) | (node._saved_max < node._saved_min),
    },
    "ClampMinBackward1": {1: lambda node: node._saved_self < node._saved_min},
    "ClampMaxBackward1": {1: lambda node: node._saved_self > node._saved_max},
    "PreluKernelBackward0": {1: lambda node: node._saved_self.clamp_max(0)},
    "LogaddexpBackward0": {
        0: lambda node: torch.sigmoid(node._saved_self - node._saved_other),
        1: lambda node: torch.sigmoid(node._saved_other - node._saved_self),
    },
}


@rule(*_DERIVATIVES)
def entry_by_entry(node: Any, slots: SlotShapes, output_gradient: Tensor, layout: Layout) -> SlotFactors:
    """An operation on single entries, with broadcasting."""
    found: dict[tuple[int, ...], Factors] = {}
    for slot, shape in slots.items():
        derivative = _DERIVATIVES[node.name()].get(slot)
        if derivative is None:
            raise NotCovered(f"input {slot} is a parameter")
        found[slot,] = Explicit(layout.reduce(output_gradient * derivative(node), shape))
    return found


@rule("MaskedFillBackward1")
def masked_fill(node: Any, slots: SlotShapes, output_gradient: Tensor, layout: Layout) -> SlotFactors:
    """One value written where a mask says so."""
    if 1 not in slots:
        raise NotCovered("the filled tensor is a parameter")
    return {(1,): Explicit(layout.reduce(output_gradient * node._saved_mask, slots[1]))}


@rule("ExpandBackward0")
def expand(node: Any, slots: SlotShapes, output_gradient: Tensor, layout: Layout) -> SlotFactors:
    """A parameter repeated over the batch, such as a class token."""
    return {(0,): Explicit(layout.reduce(output_gradient, slots[0]))}


@rule("RepeatBackward0")
def repeat(node: Any, slots: SlotShapes, output_gradient: Tensor, layout: Layout) -> SlotFactors:
    """The same by copies."""
    shape = [1] * (output_gradient.ndim - len(slots[0])) + list(slots[0])
    cut = [size for copies, own in zip(node._saved_repeats, shape, strict=True) for size in (copies, own)]
    kept = [size for own in shape for size in (1, own)]
    return {(0,): Explicit(layout.reduce(output_gradient.reshape(cut), kept))}
