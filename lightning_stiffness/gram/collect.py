"""From output gradients to factors: applies the rules, and joins the uses of a parameter that has several."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import Node

from lightning_stiffness.errors import MixedSamplesError
from lightning_stiffness.gram.factors import Factors
from lightning_stiffness.gram.graph import Consumer, Layout, NotCovered, Operand, Use, backpropagate, consumers
from lightning_stiffness.gram.joining import Placed, join
from lightning_stiffness.gram.memory import is_out_of_memory
from lightning_stiffness.gram.operands import pulled_back
from lightning_stiffness.gram.owned import Owned, owned_gradients
from lightning_stiffness.gram.plan import UNKNOWN, Plan, users_of
from lightning_stiffness.gram.positions import positions_of, shape_of
from lightning_stiffness.gram.rules import rule_of
from lightning_stiffness.gram.trimming import trimmed


class Declined(Exception):  # noqa: N818 (the engine answers it by another route)
    """The parameters of a node cannot take the graph route after all."""

    def __init__(self, parameters: Sequence[int], reason: str) -> None:
        """Remembers whom it concerns."""
        super().__init__(reason)
        self.parameters = tuple(parameters)


class GraphChanged(Exception):  # noqa: N818 (the same)
    """The graph is not the one that the plan was made for."""

    def __init__(self, parameters: Iterable[int], reason: str) -> None:
        """Remembers whom it concerns."""
        super().__init__(reason)
        self.parameters = tuple(parameters)


@dataclass(frozen=True, eq=False)
class Found:
    """The per-sample gradients of one parameter, or of several that one form covers (a weight and its bias).

    `key` tells apart what the same graph emits: a parameter used in disjoint parts is found once for each part.
    """

    key: tuple[int, ...]
    parameters: tuple[int, ...]
    operation: str
    factors: Factors

    @property
    def identity(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """What the same graph emits again for other samples has the same."""
        return self.key, self.parameters


@dataclass(frozen=True)
class FoundSize:
    """What is found of one sample, without its values.

    Attributes:
        parameters: As `Found`.
        kept: Bytes that are kept of a sample, in the smallest form.
        copied: Bytes of a sample that the products need beside it at once.
        columns: Entries of the explicit gradient.
        pair_cost: Multiply-adds in the Gram for each pair of samples.
    """

    parameters: tuple[int, ...]
    kept: int
    copied: int
    columns: int
    pair_cost: int


def size_of(found: Found) -> FoundSize:
    """How large it is."""
    factors = found.factors
    kept = (factors.elements if factors.is_compact else factors.columns) * factors.dtype.itemsize
    copied = factors.copied * factors.dtype.itemsize
    return FoundSize(found.parameters, kept, copied, factors.columns, factors.pair_cost)


@dataclass(frozen=True, eq=False)
class Collector:
    """Emits the factors of the covered parameters, as they come up in the backward pass of some losses.

    Attributes:
        plan: The routes.
        parameters: The trainable parameters, in the order which the plan counts.
        dense_bytes: How large the explicit gradients of a parameter with uses of different kinds may become.
        emit: Takes what is found.
        only: The parameters that are wanted; all covered ones by default.
    """

    plan: Plan
    parameters: Sequence[Tensor]
    dense_bytes: int
    emit: Callable[[Found], None]
    only: set[int] | None = None
    _pending: dict[int, list[Placed]] = field(default_factory=dict)
    _operands: dict[int, Operand] = field(default_factory=dict)

    def run(self, losses: Tensor, weights: Tensor) -> None:
        """Back-propagates weights_i * losses_i and frees the graph.

        Raises:
            GraphChanged: The graph differs from the plan's.
            Declined: A rule does not cover its node after all.
        """
        if not any(self._wants(parameter) for parameter in range(len(self.parameters))):
            return
        found = consumers(losses, self.parameters, self.plan.frontier)
        samples = len(losses)
        number = self.plan.numbers(found, samples)
        if number is None:
            raise GraphChanged(
                self.plan.changed(found) or range(len(self.parameters)), "its use differs from batch to batch"
            )
        selected = self._selected(found, is_owned=False)
        if any(self._wants(parameter) for parameter in self.plan.owned):
            # Their graph is that of this batch: what is computed from parameters alone is not known there.
            owned = self._selected(consumers(losses, self.parameters), is_owned=True)
            if owned:  # these samples may use none of the parameters that are asked for
                self._receive_owned(owned, losses, weights)
        if selected:

            def receive(consumer: Consumer, gradient: Tensor) -> None:
                prefix = self.plan.prefixes[number[consumer.node]]
                assert prefix is not None
                self.receive(consumer, number[consumer.node], gradient, Layout(prefix, samples))

            backpropagate(losses, weights, selected, receive)
        self.finish()

    def _wants(self, parameter: int) -> bool:
        return parameter not in self.plan.fallback and (self.only is None or parameter in self.only)

    def _wanted(self, use: Use) -> list[int]:
        """The parameters which are wanted of those that a use sees."""
        return [parameter for parameter in users_of(use) if self._wants(parameter)]

    def _selected(self, found: Sequence[Consumer], is_owned: bool) -> list[Consumer]:
        """The consumers of wanted parameters that are measured row by row, or of the others."""
        owned = self.plan.owned.keys()
        wanted = [consumer for consumer in found if any(self._wanted(use) for use in consumer.uses)]
        return [
            consumer for consumer in wanted if is_owned != all(owned.isdisjoint(users_of(use)) for use in consumer.uses)
        ]

    def _receive_owned(self, owned: Sequence[Consumer], losses: Tensor, weights: Tensor) -> None:
        """Takes the uses of parameters that are measured row by row, all together at the end."""
        try:
            gradients = owned_gradients(losses, weights, [consumer.node for consumer in owned])
        except NotCovered as cause:
            concerned = [parameter for consumer in owned for use in consumer.uses for parameter in users_of(use)]
            raise Declined(concerned, f"{self.plan.owned[concerned[0]]}: {cause}") from cause
        for consumer, found in zip(owned, gradients, strict=True):
            if found is not None:
                self.receive(consumer, -3, *found)

    def finish(self) -> None:
        """Emits what waits for a use that the losses do not depend on, which never reports."""
        while self._pending:
            self._emit_joined(max(self._pending))  # values computed from parameters come after these

    def receive(self, consumer: Consumer, number: int, gradient: Tensor, layout: Layout) -> None:
        """Takes the output gradient of a consumer, the plan's by ``number``, while its saved tensors are there.

        Raises:
            Declined: Its rule does not cover it after all.
            GraphChanged: The plan does not know its batch axis.
        """
        if layout.prefix == UNKNOWN:
            if bool(gradient.any()):
                reason = "no gradient reached it when its batch axis was looked for"
                raise GraphChanged([index for use in consumer.uses for index in users_of(use)], reason)
            return
        operation = short_name(consumer.node)
        use_of = {use.slot: use for use in consumer.uses}
        for slots, factors in self._apply(consumer, gradient, layout).items():
            parameters = tuple(use_of[slot].parameter for slot in slots)
            if isinstance(layout, Owned):
                for slot, part in zip(slots, factors.split(), strict=True):
                    places = positions_of(use_of[slot], self._shape(use_of[slot]))
                    self._pending.setdefault(use_of[slot].parameter, []).append(Placed(part, places))
            elif self.plan.joint.keys().isdisjoint(parameters):
                self.emit(Found((number, *slots), parameters, operation, factors))
            else:
                for slot, parameter, part in zip(slots, parameters, factors.split(), strict=True):
                    self._pass_on(Found((number, slot), (parameter,), operation, part))

    def _pass_on(self, found: Found) -> None:
        """Takes what one use of a parameter contributes, or of a value that is computed from parameters."""
        (parameter,) = found.parameters
        if parameter in self.plan.owned:
            whole = torch.arange(self.parameters[parameter].numel()).view(self.parameters[parameter].shape)
            self._pending.setdefault(parameter, []).append(Placed(found.factors, whole))
        elif parameter in self.plan.joint:
            self._keep(parameter, Placed(found.factors, self.plan.joint[parameter][found.key[0], found.key[1]]))
        else:
            self.emit(found)

    def _pull_back(self, index: int, operand: Operand, joined: Placed) -> None:
        """From a value to the parameters it is computed from."""
        wanted = [parameter for parameter in operand.parameters if self._wants(parameter)]
        leaves = [self.parameters[parameter] for parameter in wanted]
        try:
            parts = pulled_back(operand, joined, leaves, self.dense_bytes)
        except (NotCovered, RuntimeError) as cause:
            if is_out_of_memory(cause):
                raise
            raise Declined(operand.parameters, f"{operand.node.name()}: {str(cause).splitlines()[0]}") from cause
        for parameter, part in zip(wanted, parts, strict=True):
            if part is not None:
                self._pass_on(Found((-1, index, parameter), (parameter,), f"behind {short_name(operand.node)}", part))

    def _apply(self, consumer: Consumer, gradient: Tensor, layout: Layout) -> dict[tuple[int, ...], Factors]:
        """The rule of a node, by input slots."""
        name = consumer.node.name()
        uses = [use for use in consumer.uses if self._wanted(use)]
        slots = {use.slot: shape_of(use, self._shape(use)) for use in uses}
        self._operands.update((use.parameter, use.operand) for use in uses if use.operand is not None)
        try:
            if gradient.is_complex():
                raise NotCovered("complex numbers")
            with torch.no_grad():
                covered = rule_of(name)(consumer.node, slots, gradient, layout)
                return {key: trimmed(_without_graph(factors)) for key, factors in covered.items()}
        except MixedSamplesError:
            raise
        except (NotCovered, RuntimeError, AttributeError) as cause:
            if is_out_of_memory(cause):
                raise
            concerned = [parameter for use in uses for parameter in users_of(use)]
            raise Declined(concerned, f"{name}: {str(cause).splitlines()[0]}") from cause

    def _shape(self, use: Use) -> tuple[int, ...]:
        return tuple(self.parameters[use.parameter].shape) if use.operand is None else use.operand.shape

    def _keep(self, parameter: int, use: Placed) -> None:
        """Keeps the uses of a parameter until the last one has come."""
        self._pending.setdefault(parameter, []).append(use)
        if len(self._pending[parameter]) == len(self.plan.joint[parameter]):
            self._emit_joined(parameter)

    def _emit_joined(self, parameter: int) -> None:
        uses = self._pending.pop(parameter)
        operand = self._operands.get(parameter)
        entries = self.parameters[parameter].numel() if operand is None else math.prod(operand.shape)
        try:
            with torch.no_grad():
                joined = join(uses, entries, self.dense_bytes)
        except NotCovered as cause:
            raise Declined([parameter] if operand is None else operand.parameters, str(cause)) from cause
        if operand is None:
            self.emit(Found((-1, parameter), (parameter,), f"{len(uses)} uses", joined.factors))
        else:
            self._pull_back(parameter, operand, joined)


def short_name(node: Node) -> str:
    """The operation of a node, for people."""
    return node.name().rstrip("0123").removesuffix("Backward")


def _without_graph(factors: Factors) -> Factors:
    """Detached, so that keeping them keeps no activations below alive; in float32 where they are in half precision."""
    values: Any = factors
    tensors = {
        entry.name: tensor.detach()
        for entry in fields(values)
        if entry.init and isinstance(tensor := getattr(factors, entry.name), Tensor)
    }
    half = (torch.float16, torch.bfloat16)
    changed: Factors = replace(values, **{name: t.float() if t.dtype in half else t for name, t in tensors.items()})
    return changed
