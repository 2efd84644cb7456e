"""Reads the autograd graph of per-sample losses: who consumes which parameter, and where the batch axis lies."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, Node

# Nodes whose output holds entries of their one input, moved but unchanged: a parameter seen through them is still that
# parameter.
REINDEXING = frozenset(
    f"{name}Backward{k}"
    for name in (
        *("T", "View", "UnsafeView", "ReshapeAlias", "Alias", "Clone", "ToCopy", "Transpose", "Permute"),
        *("Squeeze", "Unsqueeze", "Slice", "Select", "Split", "SplitWithSizes", "Unbind"),
    )
    for k in (0, 1, 2)
)


@dataclass(frozen=True, eq=False)
class Use:
    """One place where a parameter enters the computation: an input slot of a node, behind re-indexing nodes."""

    parameter: int
    slot: int
    path: tuple[
        tuple[Node, int], ...
    ]  # from the consumer down to the parameter; each a node and the output of it that is used


@dataclass(frozen=True, eq=False)
class Consumer:
    """A node of the graph which consumes parameters."""

    node: Node
    uses: tuple[Use, ...]

    @property
    def signature(self) -> tuple[Any, ...]:
        """What must be the same in two graphs of the same computation."""
        return self.node.name(), tuple((use.slot, use.parameter, len(use.path)) for use in self.uses)


def _trace(node: Node | None, output: int, slot: int, wanted: dict[int, int]) -> Use | None:
    """The use behind an input of a node, or None where that input is not a wanted parameter."""
    path: list[tuple[Node, int]] = []
    while node is not None and node.name() in REINDEXING:
        path.append((node, output))
        node, output = node.next_functions[0]
    variable = getattr(node, "variable", None)  # of the node that stands for a leaf
    if variable is None or id(variable) not in wanted:
        return None
    return Use(wanted[id(variable)], slot, tuple(path))


def consumers(losses: Tensor, parameters: Sequence[Tensor]) -> tuple[Consumer, ...]:
    """All nodes below ``losses`` that consume one of ``parameters``, in an order fixed by the graph's structure."""
    wanted = {id(parameter): index for index, parameter in enumerate(parameters)}
    found: list[Consumer] = []
    seen: set[Node] = set()
    stack = [losses.grad_fn]
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        uses = []
        for slot, (child, output) in enumerate(node.next_functions):
            use = _trace(child, output, slot, wanted)
            if use is None:
                stack.append(child)
            else:
                uses.append(use)
        if uses:
            found.append(Consumer(node, tuple(uses)))
    return tuple(found)


def _nodes_above(root: Node, targets: set[Node]) -> set[Node]:
    """The nodes from which one of ``targets`` is reached by at least one step down."""
    above: set[Node] = set()
    seen: set[Node] = set()
    stack: list[tuple[Node, bool]] = [(root, False)]
    while stack:
        node, finished = stack.pop()
        children = [child for child, _ in node.next_functions if child is not None]
        if finished:
            if any(child in targets or child in above for child in children):
                above.add(node)
        elif node not in seen:
            seen.add(node)
            stack.append((node, True))
            stack.extend((child, False) for child in children if child not in seen)
    return above


def backpropagate(
    losses: Tensor, weights: Tensor, selected: Sequence[Consumer], receive: Callable[[Consumer, Tensor], None]
) -> None:
    """Hands the output gradient of each selected consumer to ``receive``; no weight gradient is computed.

    Only the deepest consumers are asked of autograd; those above them are run on the way there, and a hook sees theirs.
    The graph is freed as it is read.
    """
    assert losses.grad_fn is not None
    above = _nodes_above(losses.grad_fn, {consumer.node for consumer in selected})
    deepest = [consumer for consumer in selected if consumer.node not in above]
    handles = [
        consumer.node.register_prehook(_listener(consumer, receive)) for consumer in selected if consumer.node in above
    ]
    try:
        gradients = list(weighted_gradients(losses, weights, [consumer.node for consumer in deepest]))
    finally:
        for handle in handles:
            handle.remove()
    for consumer in deepest:
        gradient = gradients.pop(0)  # each is freed as soon as it is used
        if gradient is not None:
            receive(consumer, gradient)


def weighted_gradients(
    losses: Tensor, weights: Tensor, nodes: Sequence[Node], retain_graph: bool = False
) -> tuple[Tensor | None, ...]:
    """The gradients of sum_i weights_i losses_i with respect to the outputs of nodes."""
    with torch.enable_grad():
        total = (
            losses * weights
        ).sum()  # given as grad_outputs, the weights would make torch import sympy, for a second
    return torch.autograd.grad(
        total, [GradientEdge(node, 0) for node in nodes], allow_unused=True, retain_graph=retain_graph
    )


def _listener(
    consumer: Consumer, receive: Callable[[Consumer, Tensor], None]
) -> Callable[[tuple[Tensor | None, ...]], None]:
    def hook(gradients: tuple[Tensor | None, ...]) -> None:
        if gradients[0] is not None:
            receive(consumer, gradients[0])

    return hook


@dataclass(frozen=True)
class Layout:
    """Where the samples lie in a tensor whose entries are ordered (prefix, sample, rest).

    ``prefix`` is 1 for batch-first tensors and the sequence length for time-first ones.
    """

    prefix: int
    samples: int

    def rows(self, tensor: Tensor) -> Tensor:
        """The tensor as [n, t, d], with its last axis kept as d."""
        width = tensor.shape[-1]
        split = tensor.reshape(self.prefix, self.samples, -1)
        split = split[0] if self.prefix == 1 else split.transpose(0, 1)
        return split.reshape(self.samples, -1, width)

    def reduce(self, gradient: Tensor, shape: Sequence[int]) -> Tensor:
        """Per-sample gradients [n, prod(shape)] of an operand of ``shape`` that was broadcast to the gradient's shape.

        Raises:
            NotCovered: The operand itself varies over the batch axis.
        """
        axis, before = self._batch_axis(gradient.shape)
        size = gradient.shape[axis]
        operand = [1] * (gradient.ndim - len(shape)) + list(shape)
        if operand[axis] != 1:
            raise NotCovered("the parameter varies over the batch axis")
        after = size // (before * self.samples)
        view = gradient.reshape(*gradient.shape[:axis], before, self.samples, after, *gradient.shape[axis + 1 :])
        operand[axis : axis + 1] = [1, self.samples, 1]
        summed = [k for k, (have, want) in enumerate(zip(view.shape, operand, strict=True)) if want == 1 and have != 1]
        total = view.sum(summed, keepdim=True) if summed else view
        return total.movedim(axis + 1, 0).reshape(self.samples, -1)

    def _batch_axis(self, shape: Sequence[int]) -> tuple[int, int]:
        """The axis that holds the samples, and how many of its entries come before them."""
        passed = 1
        for axis, size in enumerate(shape):
            before = self.prefix // passed
            if self.prefix % passed == 0 and size % (before * self.samples) == 0 and before <= size:
                return axis, before
            passed *= size
        raise NotCovered(f"no batch axis in shape {tuple(shape)}")


class NotCovered(Exception):  # noqa: N818 (it is a decision, not an error)
    """A rule declines: the parameters of this node take the fallback route."""


def _prefixes(shape: Sequence[int], n: int) -> Iterator[int]:
    passed = 1
    for size in shape[: max(1, len(shape) - 1)]:
        for factor in range(1, size // n + 1):
            if size % (factor * n) == 0:
                yield passed * factor
        passed *= size


def layouts_of(gradient: Tensor, n: int, sample: int) -> set[int]:
    """The prefixes under which all of ``gradient``, that of one sample's loss, belongs to that sample alone."""
    support = gradient != 0
    total = support.sum()
    return {
        prefix
        for prefix in _prefixes(gradient.shape, n)
        if torch.equal(support.reshape(prefix, n, -1)[:, sample].sum(), total)
    }


def signed(value: int) -> int:
    """A saved attribute of a node as it was: autograd shows negative integers as unsigned ones of 64 bits."""
    return value - (1 << 64) if value >= 1 << 63 else value
