"""From output gradients to factors: applies the rules, and merges the uses of a parameter that is used more than once."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from lightning_stiffness.errors import MixedSamplesError
from lightning_stiffness.gram.embedding import Rows, TiedEmbedding
from lightning_stiffness.gram.factors import Explicit, Factors, Outer
from lightning_stiffness.gram.graph import Consumer, Layout, NotCovered, backpropagate, consumers
from lightning_stiffness.gram.plan import Plan, signature_of
from lightning_stiffness.gram.positions import shape_of
from lightning_stiffness.gram.rules import RULES


class Declined(Exception):  # noqa: N818 (the engine answers it by another route)
    """The parameters of a node cannot take the graph route after all."""

    def __init__(self, parameters: Sequence[int], reason: str) -> None:
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


@dataclass(frozen=True, eq=False)
class _Placed:
    """One use of a parameter with several, and where its entries lie in the parameter."""

    factors: Factors
    positions: Tensor


class GraphChanged(Exception):  # noqa: N818
    """The graph is not the one that the plan was made for."""


@dataclass(frozen=True)
class Collector:
    """Collects the factors of all covered parameters from the graph of some losses."""

    plan: Plan
    parameters: Sequence[Tensor]
    dense_bytes: int
    """How large the explicit gradients of a parameter with uses of different kinds may become."""

    def collect(
        self, losses: Tensor, weights: Tensor, emit: Callable[[Found], None], only: set[int] | None = None
    ) -> None:
        """Back-propagates ``weights`` and emits each parameter's factors as they come; frees the graph.

        Args:
            losses: The losses [n] with their graph.
            weights: The factor [n] of each loss.
            emit: Takes what is found.
            only: The parameters that are wanted; all covered ones by default.

        Raises:
            GraphChanged: The graph differs from the plan's.
            Declined: A rule does not cover its node after all.
        """
        found = consumers(losses, self.parameters)
        if signature_of(found) != self.plan.signature:
            raise GraphChanged
        number = {consumer.node: k for k, consumer in enumerate(found)}
        pending: dict[int, list[_Placed]] = {}

        def wanted(parameter: int) -> bool:
            return parameter not in self.plan.fallback and (only is None or parameter in only)

        def receive(consumer: Consumer, gradient: Tensor) -> None:
            for covered, factors in self._apply(consumer, number[consumer.node], gradient, len(losses), wanted):
                self._sort(covered, factors, consumer, number[consumer.node], pending, emit)

        selected = [consumer for consumer in found if any(wanted(use.parameter) for use in consumer.uses)]
        if selected:
            backpropagate(losses, weights, selected, receive)
        for parameter in list(pending):  # a use that the losses do not depend on never reports
            emit(self._joined(parameter, pending.pop(parameter)))

    def _apply(
        self, consumer: Consumer, number: int, gradient: Tensor, samples: int, wanted: Callable[[int], bool]
    ) -> list[tuple[tuple[int, ...], Factors]]:
        name = consumer.node.name()
        slots = {
            use.slot: shape_of(use, self.parameters[use.parameter]) for use in consumer.uses if wanted(use.parameter)
        }
        prefix = self.plan.prefixes[number]
        assert prefix is not None
        try:
            with torch.no_grad():
                covered = RULES[name](consumer.node, slots, gradient, Layout(prefix, samples))
                return [(key, _in_full_precision(factors)) for key, factors in covered.items()]
        except (MixedSamplesError, torch.OutOfMemoryError):
            raise
        except (NotCovered, RuntimeError, AttributeError) as cause:
            concerned = [use.parameter for use in consumer.uses if use.slot in slots]
            raise Declined(concerned, f"{name}: {str(cause).splitlines()[0]}") from cause

    def _sort(
        self,
        slots: tuple[int, ...],
        factors: Factors,
        consumer: Consumer,
        number: int,
        pending: dict[int, list[_Placed]],
        emit: Callable[[Found], None],
    ) -> None:  # fmt: skip
        """Emits what stands alone; keeps the uses of a parameter with several until the last one has come."""
        parameter_of = {use.slot: use.parameter for use in consumer.uses}
        names = tuple(parameter_of[slot] for slot in slots)
        operation = consumer.node.name().rstrip("012").removesuffix("Backward")
        if not any(name in self.plan.joint for name in names):
            emit(Found((number, *slots), names, operation, factors))
            return
        for slot, parameter, part in zip(slots, names, factors.split(), strict=True):
            if parameter not in self.plan.joint:
                emit(Found((number, slot), (parameter,), operation, part))
                continue
            uses = self.plan.joint[parameter]
            pending.setdefault(parameter, []).append(_Placed(part, uses[number, slot]))
            if len(pending[parameter]) == len(uses):
                emit(self._joined(parameter, pending.pop(parameter)))

    def _joined(self, parameter: int, parts: list[_Placed]) -> Found:
        try:
            with torch.no_grad():
                factors = join(parts, self.parameters[parameter].numel(), self.dense_bytes)
        except NotCovered as cause:
            raise Declined([parameter], str(cause)) from cause
        return Found((-1, parameter), (parameter,), f"{len(parts)} uses", factors)


def _in_full_precision(factors: Factors) -> Factors:
    """Half-precision gradients are multiplied in float32."""
    values: Any = factors
    half = {
        name: tensor.float()
        for name in (entry.name for entry in fields(values) if entry.init)
        if isinstance(tensor := getattr(factors, name), Tensor) and tensor.dtype in (torch.float16, torch.bfloat16)
    }
    return replace(values, **half) if half else factors


def join(parts: Sequence[_Placed], entries: int, dense_bytes: int) -> Factors:
    """The gradients of one parameter from those of its uses: they add up, so cross terms are included.

    Raises:
        NotCovered: Uses of different kinds, and too large for explicit gradients.
    """
    if len(parts) == 1:
        return parts[0].factors
    merged: list[_Placed] = []
    for group in _by_positions(parts):
        factors = _concatenated(group)
        merged.extend(group if factors is None else [_Placed(factors, group[0].positions)])
    if len(merged) == 1:
        return merged[0].factors
    tied = _tied_embedding(merged)
    if tied is not None:
        return tied
    sample = parts[0].factors
    if 2 * sample.samples * entries * 4 > dense_bytes:
        raise NotCovered("used in several ways, and too large for explicit gradients")
    total: Tensor | None = None
    for part in parts:
        explicit = part.factors.dense()
        if total is None:
            total = explicit.new_zeros(sample.samples, entries)
        total.index_add_(1, part.positions.flatten().to(total.device), explicit)
    assert total is not None
    return Explicit(total)


def _by_positions(parts: Sequence[_Placed]) -> list[list[_Placed]]:
    groups: list[list[_Placed]] = []
    for part in parts:
        for group in groups:
            if torch.equal(group[0].positions, part.positions):
                group.append(part)
                break
        else:
            groups.append([part])
    return groups


def _concatenated(group: Sequence[_Placed]) -> Factors | None:
    """One value for uses with equal positions, where their kind allows it."""
    factors = [part.factors for part in group]
    if len(factors) == 1:
        return factors[0]
    if all(isinstance(part, Explicit) for part in factors):
        return Explicit(sum((part.dense() for part in factors[1:]), factors[0].dense()))
    outers = [part for part in factors if isinstance(part, Outer)]
    if len(outers) == len(factors):
        return Outer(torch.cat([part.left for part in outers], 1), torch.cat([part.right for part in outers], 1))
    rows = [part for part in factors if isinstance(part, Rows)]
    if len(rows) == len(factors):
        indices, values = torch.cat([part.indices for part in rows], 1), torch.cat([part.values for part in rows], 1)
        return Rows(indices, values, rows[0].rows)
    return None


def _tied_embedding(merged: Sequence[_Placed]) -> TiedEmbedding | None:
    """An embedding and an output layer that share their table, if that is what these are."""
    rows = [part for part in merged if isinstance(part.factors, Rows)]
    outers = [part for part in merged if isinstance(part.factors, Outer)]
    if len(merged) != 2 or len(rows) != 1 or len(outers) != 1:
        return None
    (row,), (outer,) = rows, outers
    if outer.positions.ndim != 2 or not torch.equal(outer.positions.t(), row.positions):
        return None
    assert isinstance(row.factors, Rows)
    assert isinstance(outer.factors, Outer)
    return TiedEmbedding(row.factors, outer.factors)
