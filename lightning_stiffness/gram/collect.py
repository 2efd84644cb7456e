"""From output gradients to factors: applies the rules, and joins the uses of a parameter that has several."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor

from lightning_stiffness.errors import MixedSamplesError
from lightning_stiffness.gram.factors import Factors
from lightning_stiffness.gram.graph import Consumer, Layout, NotCovered, backpropagate, consumers
from lightning_stiffness.gram.joining import Placed, join
from lightning_stiffness.gram.plan import Plan, signature_of
from lightning_stiffness.gram.positions import shape_of
from lightning_stiffness.gram.rules import RULES


class Declined(Exception):  # noqa: N818 (the engine answers it by another route)
    """The parameters of a node cannot take the graph route after all."""

    def __init__(self, parameters: Sequence[int], reason: str) -> None:
        """Remembers whom it concerns."""
        super().__init__(reason)
        self.parameters = tuple(parameters)


class GraphChanged(Exception):  # noqa: N818 (the same)
    """The graph is not the one that the plan was made for."""


@dataclass(frozen=True, eq=False)
class Found:
    """The per-sample gradients of one parameter, or of several that one form covers (a weight and its bias).

    `key` tells apart what the same graph emits: a parameter used in disjoint parts is found once for each part.
    """

    key: tuple[int, ...]
    parameters: tuple[int, ...]
    operation: str
    factors: Factors


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

    def run(self, losses: Tensor, weights: Tensor) -> None:
        """Back-propagates weights_i * losses_i and frees the graph.

        Raises:
            GraphChanged: The graph differs from the plan's.
            Declined: A rule does not cover its node after all.
        """
        if not any(self._wants(parameter) for parameter in range(len(self.parameters))):
            return
        found = consumers(losses, self.parameters)
        if signature_of(found) != self.plan.signature:
            raise GraphChanged
        number = {consumer.node: k for k, consumer in enumerate(found)}
        samples = len(losses)
        selected = [consumer for consumer in found if any(self._wants(use.parameter) for use in consumer.uses)]
        if selected:

            def receive(consumer: Consumer, gradient: Tensor) -> None:
                prefix = self.plan.prefixes[number[consumer.node]]
                assert prefix is not None
                self._receive(consumer, number[consumer.node], gradient, Layout(prefix, samples))

            backpropagate(losses, weights, selected, receive)
        for parameter in list(self._pending):  # a use that the losses do not depend on never reports
            self._emit_joined(parameter)

    def _wants(self, parameter: int) -> bool:
        return parameter not in self.plan.fallback and (self.only is None or parameter in self.only)

    def _receive(self, consumer: Consumer, number: int, gradient: Tensor, layout: Layout) -> None:
        operation = consumer.node.name().rstrip("012").removesuffix("Backward")
        parameter_of = {use.slot: use.parameter for use in consumer.uses}
        for slots, factors in self._apply(consumer, gradient, layout).items():
            parameters = tuple(parameter_of[slot] for slot in slots)
            if self.plan.joint.keys().isdisjoint(parameters):
                self.emit(Found((number, *slots), parameters, operation, factors))
                continue
            for slot, parameter, part in zip(slots, parameters, factors.split(), strict=True):
                if parameter in self.plan.joint:
                    self._keep(parameter, Placed(part, self.plan.joint[parameter][number, slot]))
                else:
                    self.emit(Found((number, slot), (parameter,), operation, part))

    def _apply(self, consumer: Consumer, gradient: Tensor, layout: Layout) -> dict[tuple[int, ...], Factors]:
        """The rule of a node, by input slots."""
        name = consumer.node.name()
        uses = [use for use in consumer.uses if self._wants(use.parameter)]
        slots = {use.slot: shape_of(use, self.parameters[use.parameter]) for use in uses}
        try:
            with torch.no_grad():
                covered = RULES[name](consumer.node, slots, gradient, layout)
                return {key: _without_graph(factors) for key, factors in covered.items()}
        except (MixedSamplesError, torch.OutOfMemoryError):
            raise
        except (NotCovered, RuntimeError, AttributeError) as cause:
            raise Declined([use.parameter for use in uses], f"{name}: {str(cause).splitlines()[0]}") from cause

    def _keep(self, parameter: int, use: Placed) -> None:
        """Keeps the uses of a parameter until the last one has come."""
        self._pending.setdefault(parameter, []).append(use)
        if len(self._pending[parameter]) == len(self.plan.joint[parameter]):
            self._emit_joined(parameter)

    def _emit_joined(self, parameter: int) -> None:
        uses = self._pending.pop(parameter)
        try:
            with torch.no_grad():
                factors = join(uses, self.parameters[parameter].numel(), self.dense_bytes)
        except NotCovered as cause:
            raise Declined([parameter], str(cause)) from cause
        self.emit(Found((-1, parameter), (parameter,), f"{len(uses)} uses", factors))


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
