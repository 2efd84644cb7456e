"""Values computed from parameters alone, found again in the graph of another batch: by how they are made."""

from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

from torch import Tensor
from torch.autograd.graph import Node

from lightning_stiffness.gram.graph import Consumer, Walk, consumers, places
from lightning_stiffness.gram.operands import alone

Make: TypeAlias = tuple[Any, ...]
"""The operations behind a value and how they are connected, down to the parameters."""


def makes_of(found: Iterable[Consumer], parameters: Sequence[Tensor]) -> frozenset[Make]:
    """How the values are made that some consumers take and that are computed from parameters alone."""
    wanted = places(parameters)
    uses = [use for consumer in found for use in consumer.uses if use.operand is not None]
    return frozenset(_make(use.path[0][0] if use.path else use.operand.node, wanted) for use in uses if use.operand)


def consumers_alike(losses: Tensor, parameters: Sequence[Tensor], makes: frozenset[Make]) -> tuple[Consumer, ...]:
    """All nodes that consume a parameter, or a value which is made from parameters alone in one of these ways.

    Such a value was seen to be the same for all batches, so it is so here. One that is made in another way, as with
    dropout on a weight, is none: its parameters are consumed where it is made.
    """
    if not makes:
        return consumers(losses, parameters)
    wanted = places(parameters)
    candidates = alone(losses.grad_fn, wanted, lambda node: True)
    walk = Walk(wanted, lambda number, slot, node: node in candidates and _make(node, wanted) in makes)
    return tuple(walk.run(losses.grad_fn))


def _make(root: Node, wanted: dict[int, int]) -> Make:
    """Without casts, which autocast puts anywhere."""
    inputs: dict[Node, list[tuple[Node | None, int]]] = {}
    stack: list[Node | None] = [_uncast(root, 0)[0]]
    while stack:
        node = stack.pop()
        if node is not None and node not in inputs:
            inputs[node] = [_uncast(child, output) for child, output in node.next_functions]
            stack.extend(child for child, _ in reversed(inputs[node]))
    numbers: dict[Node | None, int] = {node: number for number, node in enumerate(inputs)}
    return tuple(
        (node.name(), _leaf(node, wanted), tuple((numbers.get(child), output) for child, output in inputs[node]))
        for node in inputs
    )


def _uncast(node: Node | None, output: int) -> tuple[Node | None, int]:
    while node is not None and node.name() == "ToCopyBackward0":
        node, output = node.next_functions[0]
    return node, output


def _leaf(node: Node, wanted: dict[int, int]) -> int | None:
    return wanted.get(id(getattr(node, "variable", None)))
