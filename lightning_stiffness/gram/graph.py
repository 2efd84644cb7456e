"""Reads the autograd graph of per-sample losses: who consumes which parameter, and where the batch axis lies."""

import math
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass, field
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
class Operand:
    """A value computed from parameters alone, such as a normalised weight, which counts as one more parameter."""

    node: Node
    output: int
    parameters: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the value."""
        return tuple(self.metadata.shape)

    @property
    def metadata(self) -> Any:
        """What autograd knows of the value: shape, dtype, device."""
        node: Any = self.node
        return node._input_metadata[self.output]


@dataclass(frozen=True, eq=False)
class Use:
    """One place where a parameter enters the computation: an input slot of a node, behind re-indexing nodes.

    ``path`` leads from the consumer down to the parameter; each a node and the output of it that is used. Operands are
    counted on after the parameters.
    """

    parameter: int
    slot: int
    path: tuple[tuple[Node, int], ...]
    operand: Operand | None = None


@dataclass(frozen=True, eq=False)
class Consumer:
    """A node of the graph which consumes parameters."""

    node: Node
    uses: tuple[Use, ...]

    @property
    def signature(self) -> tuple[Any, ...]:
        """What must be the same in two graphs of the same computation."""
        return self.node.name(), tuple((use.slot, use.parameter, len(use.path)) for use in self.uses)


def _behind(node: Node | None, output: int) -> tuple[tuple[tuple[Node, int], ...], Node | None, int]:
    """The re-indexing nodes behind an input of a node, and what they lead to."""
    path: list[tuple[Node, int]] = []
    while node is not None and node.name() in REINDEXING:
        path.append((node, output))
        node, output = node.next_functions[0]
    return tuple(path), node, output


def below(node: Node | None) -> Iterator[Node]:
    """The node and all that it leads to."""
    seen: set[Node] = set()
    stack = [node]
    while stack:
        found = stack.pop()
        if found is not None and found not in seen:
            seen.add(found)
            stack.extend(child for child, _ in found.next_functions)
            yield found


@dataclass(eq=False)
class Walk:
    """A walk from losses down to the consumers of parameters, in an order fixed by the graph's structure.

    Attributes:
        wanted: The place of each parameter, by id.
        is_operand: Whether an input depends on parameters alone, by the number of its node in the walk, its slot and
            the node behind it.
        operands: Those that were met.
        frontier: Where.
    """

    wanted: dict[int, int]
    is_operand: Callable[[int, int, Node], bool]
    operands: dict[tuple[Node, int], tuple[int, Operand]] = field(default_factory=dict)
    frontier: set[tuple[int, int]] = field(default_factory=set)

    def run(self, root: Node | None) -> Iterator[Consumer]:
        """All consumers."""
        seen: set[Node] = set()
        stack = [root]
        while stack:
            node = stack.pop()
            if node is None or node in seen:
                continue
            number = len(seen)
            seen.add(node)
            uses = []
            for slot, (child, output) in enumerate(node.next_functions):
                use = None if child is None else self._use(number, slot, child, output)
                if use is None:
                    stack.append(child)
                else:
                    uses.append(use)
            if uses:
                yield Consumer(node, tuple(uses))

    def _use(self, number: int, slot: int, child: Node, output: int) -> Use | None:
        """The use behind an input of a node, or None where that input is no parameter and no operand."""
        path, node, last = _behind(child, output)
        variable = getattr(node, "variable", None)  # of the node that stands for a leaf
        if id(variable) in self.wanted and variable is not None:
            return Use(self.wanted[id(variable)], slot, path)
        if node is None or variable is not None or not self.is_operand(number, slot, child):
            return None
        if (node, last) not in self.operands:
            leaves = {id(getattr(one, "variable", None)) for one in below(node)}
            parameters = tuple(sorted(self.wanted[leaf] for leaf in leaves & self.wanted.keys()))
            self.operands[node, last] = len(self.wanted) + len(self.operands), Operand(node, last, parameters)
        self.frontier.add((number, slot))
        index, operand = self.operands[node, last]
        return Use(index, slot, path, operand)


def consumers(
    losses: Tensor, parameters: Sequence[Tensor], frontier: Container[tuple[int, int]] = ()
) -> tuple[Consumer, ...]:
    """All nodes below ``losses`` that consume one of ``parameters``, in an order fixed by the graph's structure.

    ``frontier`` names the inputs that are computed from parameters alone, by node and slot; see ``operands``.
    """
    walk = Walk(places(parameters), lambda number, slot, node: (number, slot) in frontier)
    return tuple(walk.run(losses.grad_fn))


def places(parameters: Sequence[Tensor]) -> dict[int, int]:
    """The place of each parameter, by id."""
    return {id(parameter): index for index, parameter in enumerate(parameters)}


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

    ``prefix`` is 1 for batch-first tensors and the sequence length for time-first ones. With ``batch_statistics`` a
    BatchNorm in training mode counts as one by constant statistics, those of the batch, and is no error.
    """

    prefix: int
    samples: int
    batch_statistics: bool = False

    def rows(self, tensor: Tensor) -> Tensor:
        """The tensor as [n, t, d], with its last axis kept as d."""
        width = tensor.shape[-1]
        if math.prod(tensor.shape[:-1]) % (self.prefix * self.samples):
            raise NotCovered("the last axis holds the samples")
        split = tensor.reshape(self.prefix, self.samples, -1)
        split = split[0] if self.prefix == 1 else split.transpose(0, 1)
        return split.reshape(self.samples, -1, width)

    def frames(self, tensor: Tensor) -> Tensor:
        """The tensor as [n, k, ...], its first axis cut into samples and k entries of each.

        Raises:
            NotCovered: Its first axis does not hold the samples.
        """
        if tensor.shape[0] % (self.prefix * self.samples):
            raise NotCovered("the first axis does not hold the samples")
        split = tensor.reshape(self.prefix, self.samples, -1, *tensor.shape[1:])
        return split[0] if self.prefix == 1 else split.transpose(0, 1).flatten(1, 2)

    def reduce(self, gradient: Tensor, shape: Sequence[int]) -> Tensor:
        """Per-sample gradients [n, prod(shape)] of an operand of ``shape`` that was broadcast to the gradient's shape.

        Raises:
            NotCovered: The operand itself varies over the batch axis.
        """
        if self.samples == 1:
            return gradient.sum_to_size(tuple(shape)).reshape(1, -1)
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
    for size in shape:
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
