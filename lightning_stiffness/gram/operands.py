"""Values that are computed from parameters alone: where the graph uses them, and how gradients go on to the parameters.

The rule of a consumer gives the per-sample gradients of the value: a normalised weight, a merged adapter, a softmax
over mixing weights, a table of biases. The vector-Jacobian product of the part of the graph that computes the value
carries them on. Until then, the value counts as one more parameter.
"""

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.graph import GradientEdge, Node

from lightning_stiffness.gram.embedding import Rows
from lightning_stiffness.gram.factors import Explicit, Factors
from lightning_stiffness.gram.graph import NotCovered, Operand, Walk, places, signed
from lightning_stiffness.gram.joining import Placed, in_order
from lightning_stiffness.gram.memory import is_out_of_memory
from lightning_stiffness.gram.slicing import part_of
from lightning_stiffness.gram.workspace import BLOCK_BYTES


def frontier_of(more: Tensor, fewer: Tensor, parameters: Sequence[Tensor]) -> frozenset[tuple[int, int]]:
    """Where the graph of the losses of two batches of different size uses a value computed from parameters alone.

    That is a value of the same shape in both, all of whose inputs with a gradient are such values too. A value that is
    computed from all samples of a batch would have one shape as well: then the losses mix samples, and the comparison
    with plain autograd says so.

    Returns:
        The inputs by the number of their node in the walk and their slot, as ``consumers`` takes them.
    """
    wanted = places(parameters)
    same = _same_shape(more.grad_fn, fewer.grad_fn)
    found = alone(more.grad_fn, wanted, lambda node: node in same)
    walk = Walk(wanted, lambda number, slot, node: node in found)
    for _ in walk.run(more.grad_fn):
        pass
    return frozenset(walk.frontier)


def alone(root: Node | None, wanted: dict[int, int], is_possible: Callable[[Node], bool]) -> set[Node]:
    """The possible nodes that lead to parameters alone, and to one at least."""
    found: set[Node] = set()
    seen: set[Node] = set()
    stack: list[tuple[Node | None, bool]] = [(root, False)]
    while stack:
        node, finished = stack.pop()
        if node is None:
            continue
        children = [child for child, _ in node.next_functions if child is not None]
        if finished:
            is_leaf = id(getattr(node, "variable", None)) in wanted
            if is_possible(node) and (is_leaf or (children and all(child in found for child in children))):
                found.add(node)
        elif node not in seen:
            seen.add(node)
            stack.append((node, True))
            stack.extend((child, False) for child in children)
    return found


def _same_shape(more: Node | None, fewer: Node | None) -> set[Node]:
    """The nodes of the first graph whose counterpart in the second has the same shape."""
    same: set[Node] = set()
    seen: set[Node] = set()
    stack = [(more, fewer)]
    while stack:
        first, second = stack.pop()
        if first is None or second is None or first in seen or first.name() != second.name():
            continue
        seen.add(first)
        if _shapes(first) == _shapes(second) is not None:
            same.add(first)
        if len(first.next_functions) == len(second.next_functions):
            pairs = zip(first.next_functions, second.next_functions, strict=True)
            stack.extend((one, other) for (one, _), (other, _) in pairs)
    return same


def _shapes(node: Any) -> tuple[Any, ...] | None:
    variable = getattr(node, "variable", None)
    if variable is not None:
        return (id(variable),)
    metadata = getattr(node, "_input_metadata", ())
    return tuple(tuple(entry.shape) for entry in metadata) or None


def pulled_back(
    operand: Operand, joined: Placed, parameters: Sequence[Tensor], budget: int
) -> tuple[Factors | None, ...]:
    """The per-sample gradients of parameters from those of a value that is computed from them.

    Args:
        operand: The value.
        joined: Its per-sample gradients.
        parameters: Those that are wanted.
        budget: Bytes that the explicit gradients may take.

    Returns:
        One for each parameter; None where the value does not depend on it.

    Raises:
        NotCovered: They are too large, or the graph cannot be run backward.
    """
    looked_up = _looked_up(operand, joined)
    if looked_up is not None:
        return (looked_up,)
    dtypes = [torch.promote_types(parameter.dtype, torch.float32) for parameter in parameters]
    entries = sum(parameter.numel() * dtype.itemsize for parameter, dtype in zip(parameters, dtypes, strict=True))
    if 2 * joined.factors.samples * entries > budget:
        raise NotCovered("computed from parameters, and too large for explicit gradients")
    rows = [_rows(operand, part, parameters) for part in _parts(operand, joined, budget)]
    return tuple(
        None if column[0] is None else Explicit(torch.cat([part.reshape(len(part), -1) for part in column]).to(dtype))
        for column, dtype in zip(zip(*rows, strict=True), dtypes, strict=True)
    )


def _looked_up(operand: Operand, joined: Placed) -> Factors | None:
    """Rows of one table at indices that are the same for all samples, such as position embeddings."""
    node: Any = operand.node
    if node.name() != "EmbeddingBackward0" or node._saved_scale_grad_by_freq:
        return None
    if getattr(node.next_functions[0][0], "variable", None) is None:
        return None
    n, width = joined.factors.samples, operand.shape[-1]
    explicit = in_order(joined, joined.factors.dense(), math.prod(operand.shape))
    values = explicit.view(n, -1, width)
    indices = node._saved_indices.reshape(1, -1)
    padding = signed(node._saved_padding_idx)
    if padding >= 0:
        values = values * (indices != padding).unsqueeze(-1)
    return Rows(indices.expand(n, -1), values, int(node._saved_weight_sym_argsize_0))


def _parts(operand: Operand, joined: Placed, budget: int) -> Iterator[Float[Tensor, "n ..."]]:
    """The explicit gradients of the value, for as many samples at a time as stay small."""
    factors, entries = joined.factors, math.prod(operand.shape)
    step = max(1, min(BLOCK_BYTES, budget // 8) // max(1, entries * factors.dtype.itemsize))
    for start in range(0, factors.samples, step):
        part = factors if step >= factors.samples else part_of(factors, slice(start, start + step))
        gradients = in_order(joined, part.dense(), entries).to(operand.metadata.dtype)
        yield gradients.reshape(len(gradients), *operand.shape)


def _rows(operand: Operand, gradients: Tensor, parameters: Sequence[Tensor]) -> tuple[Tensor | None, ...]:
    """J^T g for each of some gradients g, batched where every operation below allows it."""
    edge = GradientEdge(operand.node, operand.output)

    def product(gradient: Tensor, batched: bool) -> tuple[Tensor | None, ...]:
        return torch.autograd.grad(
            [edge], list(parameters), [gradient], retain_graph=True, allow_unused=True, is_grads_batched=batched
        )

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # operations without a batching rule are slow, which is all they warn of
        try:
            return product(gradients, True)
        except Exception as cause:  # what vmap cannot do shows in exceptions of every kind
            if is_out_of_memory(cause):
                raise
            each = [product(gradient, False) for gradient in gradients]
    return tuple(None if column[0] is None else torch.stack(column) for column in zip(*each, strict=True))
