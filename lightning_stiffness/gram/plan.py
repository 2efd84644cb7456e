"""What is found out once about a computation: the batch axis of each node, and which parameters are covered."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, Node, saved_tensors_hooks

from lightning_stiffness.errors import StiffnessError
from lightning_stiffness.gram.fallback import VECTORISED
from lightning_stiffness.gram.graph import Consumer, NotCovered, Use, consumers, layouts_of
from lightning_stiffness.gram.operands import frontier_of
from lightning_stiffness.gram.positions import disjoint, positions_of
from lightning_stiffness.gram.rules import RULES

# Two sizes that share no factor, so that an axis which only happens to fit one of them is seen through.
TRIAL_SIZES = (3, 5)
UNKNOWN = 0  # the prefix of a consumer to which no sample of the trial handed a gradient

_Signed: TypeAlias = tuple[Any, tuple[int, ...]]
"""The signature of a consumer and its parameters."""


@dataclass
class Plan:
    """The routes of all parameters; `fallback` grows when a rule declines."""

    signature: tuple[Any, ...]
    users: tuple[tuple[int, ...], ...]
    """The parameters that each consumer uses."""
    prefixes: tuple[int | None, ...]
    joint: dict[int, dict[tuple[int, int], Tensor]]
    """Parameters with several uses that overlap: the positions of each use, by consumer and slot.

    A value computed from parameters, counted on after them, is a use of each by the consumer -1, its place the slot.
    """
    frontier: frozenset[tuple[int, int]] = frozenset()
    """Where the graph uses values computed from parameters alone, as `consumers` takes it."""
    fallback: dict[int, str] = field(default_factory=dict)
    """Parameters without a rule, and why."""
    owned: dict[int, str] = field(default_factory=dict)
    """Parameters whose operations have rows of one sample each, but no batch axis, and why: see `owned_gradients`."""
    bytes_per_sample: int = 1
    sizes: tuple[int, ...] = ()
    """The entries that the output of each consumer holds for a sample; 0 where that is not known."""
    is_checked: bool = False
    """Whether plain autograd has agreed with it."""
    is_used: bool = False
    """Whether something was measured by it: if a graph contradicts it later, the model has changed."""
    found_sizes: dict[tuple[int, int], Any] = field(default_factory=dict)
    """How large what is found of a sample is, by how many parameters are left to the fallback or measured apart."""
    fallback_route: str = VECTORISED

    def on(self, found: Sequence[Consumer], parameters: Sequence[Tensor]) -> "Plan":
        """The same for another graph with these consumers, which may see its parameters through other views."""
        plan: Plan = replace(
            self, signature=signature_of(found), users=tuple(map(_users, found)), joint={}, fallback=dict(self.fallback)
        )
        _dispose(plan, found, parameters)
        return plan

    def numbers(self, found: Sequence[Consumer], samples: int) -> dict[Node, int] | None:
        """The places in the plan of the consumers of another graph; None where the plan is not made for that graph.

        Consumers of parameters that are left to the fallback may be others than they were. Where the samples do not
        come first in an output, the number of entries before them must be the same.
        """
        own = [k for k, users in enumerate(self.users) if not self._apart >= set(users)]
        other = self.selected(found)
        if [self.signature[k] for k in own] != list(signature_of([found[k] for k in other])):
            return None
        places = dict(zip((found[k].node for k in other), own, strict=True))
        for k, node in zip(own, places, strict=True):
            if self.prefixes[k] not in (None, UNKNOWN, 1) and self.sizes[k] * samples != _output_entries(node):
                return None
        return places

    def changed(self, found: Sequence[Consumer]) -> set[int]:
        """The parameters whose use in another graph is not the plan's, and those that share an operation with them."""
        return _changed(list(zip(self.signature, self.users, strict=True)), _signed(found))

    def selected(self, found: Sequence[Consumer]) -> list[int]:
        """The consumers which have a parameter that is measured by the plan."""
        return [k for k, consumer in enumerate(found) if not self._apart >= set(_users(consumer))]

    @property
    def _apart(self) -> set[int]:
        return {*self.fallback, *self.owned}

    def set_apart(self, parameters: Iterable[int], reason: str) -> None:
        """Parameters that the plan is wrong about are measured row by row; if they are already, by the fallback."""
        for index in parameters:
            route = self.fallback if index in self._apart else self.owned
            route.setdefault(index, reason)
        self.leave_to_fallback((), reason)

    def leave_to_fallback(self, parameters: Iterable[int], reason: str) -> None:
        """Parameters that no rule covers, or that a rule is wrong about."""
        self.fallback.update(dict.fromkeys(parameters, reason))
        for index in self.fallback:
            self.owned.pop(index, None)


def signature_of(found: Sequence[Consumer]) -> tuple[Any, ...]:
    """What must not change for a plan to stay valid."""
    return tuple((consumer.signature, tuple(_moves(use) for use in consumer.uses)) for consumer in found)


def _moves(use: Use) -> tuple[Any, ...]:
    """Which entries of a parameter a use sees, as far as its re-indexing nodes tell."""
    saved = ("_saved_dim", "_saved_start", "_saved_end", "_saved_index")
    moves = tuple((node.name(), output, *(getattr(node, name, None) for name in saved)) for node, output in use.path)
    if use.operand is None:
        return moves
    return (*moves, (use.operand.node.name(), use.operand.shape, use.operand.parameters))


def _users(consumer: Consumer) -> tuple[int, ...]:
    """The parameters of a consumer, those inside its operands included."""
    return tuple(index for use in consumer.uses for index in users_of(use))


def users_of(use: Use) -> tuple[int, ...]:
    """The parameter that a use sees, or those from which what it sees is computed."""
    return (use.parameter,) if use.operand is None else use.operand.parameters


def _signed(found: Sequence[Consumer]) -> list[_Signed]:
    return list(zip(signature_of(found), map(_users, found), strict=True))


def _changed(first: Sequence[_Signed], second: Sequence[_Signed]) -> set[int]:
    """The parameters which are not used alike in two graphs, closed under sharing an operation."""
    uses: tuple[dict[int, list[Any]], dict[int, list[Any]]] = {}, {}
    for graph, of in zip((first, second), uses, strict=True):
        for signature, users in graph:
            for parameter in users:
                of.setdefault(parameter, []).append(signature)
    changed = {k for k in uses[0].keys() | uses[1].keys() if uses[0].get(k) != uses[1].get(k)}
    while True:
        together = {k for _, users in (*first, *second) if changed.intersection(users) for k in users}
        if together <= changed:
            return changed
        changed |= together


def _output_entries(node: Any) -> int:
    """The size of the output of an operation, 0 where its node does not tell."""
    metadata = getattr(node, "_input_metadata", ())
    return math.prod(metadata[0].shape) if metadata else 0


def make_plan(losses_of: Callable[[int], Tensor], parameters: Sequence[Tensor], samples: int) -> Plan:
    """Runs batches of a few samples and reads their graphs.

    Args:
        losses_of: The losses of the first k samples, with their graph.
        parameters: The trainable parameters.
        samples: How many samples there are.

    Returns:
        The plan; a parameter without a rule or without a clear batch axis is in its `fallback`.

    Raises:
        StiffnessError: The losses depend on none of the parameters.
    """
    sizes = sorted({min(size, samples) for size in TRIAL_SIZES})
    with _SavedBytes() as saved:
        losses = losses_of(sizes[-1])
    smaller = losses_of(sizes[0]) if len(sizes) > 1 else None
    frontier = frozenset() if smaller is None else frontier_of(losses, smaller, parameters)
    found = consumers(losses, parameters, frontier)
    if not found:
        raise StiffnessError(
            "The loss depends on none of the trainable parameters of the module. Compute it with the module that is "
            "handed to it, and measure the module itself, not a copy."
        )
    candidates = _candidates(losses, found)
    owned: dict[int, str] = {}
    if smaller is not None:
        fewer = consumers(smaller, parameters, frontier)
        changed = _changed(_signed(found), _signed(fewer))
        kept, also = (
            [k for k, consumer in enumerate(graph) if changed.isdisjoint(_users(consumer))] for graph in (found, fewer)
        )
        if signature_of([found[k] for k in kept]) != signature_of([fewer[k] for k in also]):
            changed, kept, also = set(range(len(parameters))), [], []
        owned.update(dict.fromkeys(changed, "its use depends on the samples of a batch, or on their number"))
        others = _candidates(smaller, fewer)
        for k, other in zip(kept, also, strict=True):
            candidates[k] = _both(candidates[k], others[other])
    plan = Plan(
        signature=signature_of(found),
        users=tuple(map(_users, found)),
        prefixes=tuple(UNKNOWN if some is None else min(some, default=None) for some in candidates),
        joint={},
        frontier=frontier,
        owned=owned,
        bytes_per_sample=max(1, saved.total(parameters) // sizes[-1]),
        sizes=tuple(_output_entries(consumer.node) // sizes[-1] for consumer in found),
    )
    _dispose(plan, found, parameters)
    return plan


def _candidates(losses: Tensor, found: Sequence[Consumer]) -> list[set[int] | None]:
    """The possible prefixes of each consumer's output gradient; None where no gradient says anything."""
    edges = [GradientEdge(consumer.node, 0) for consumer in found]
    result: list[set[int] | None] = [None] * len(found)
    if not edges:
        return result
    n = len(losses)
    for turn, sample in enumerate(dict.fromkeys([min(1, n - 1), n - 1, *range(n)])):
        if turn >= 2 and None not in result:
            break  # two samples tell; the others are asked where those had no gradient
        gradients = torch.autograd.grad(losses[sample], edges, retain_graph=True, allow_unused=True)
        for k, gradient in enumerate(gradients):
            if gradient is not None and bool((gradient != 0).any()):
                result[k] = _both(result[k], layouts_of(gradient, n, sample))
    return result


def _both(first: set[int] | None, second: set[int] | None) -> set[int] | None:
    if first is None or second is None:
        return first if second is None else second
    return first & second


def _dispose(plan: Plan, found: Sequence[Consumer], parameters: Sequence[Tensor]) -> None:
    """Decides for each parameter: each use alone, its uses jointly, or the fallback."""
    uses: dict[int, dict[tuple[int, int], Use]] = {}
    for k, consumer in enumerate(found):
        for use in consumer.uses:
            uses.setdefault(use.parameter, {})[k, use.slot] = use
            name = consumer.node.name()
            if name not in RULES:  # what looks like computed from parameters alone may be rows of some samples
                route = plan.fallback if use.operand is None else plan.owned
                route.update(dict.fromkeys(users_of(use), f"no rule for {name}"))
            elif plan.prefixes[k] is None:
                plan.owned.update(dict.fromkeys(users_of(use), f"{name} has no clear batch axis"))
    derived: dict[int, list[tuple[int, int]]] = {}
    for index in sorted(uses, reverse=True):  # what is computed from parameters first
        operand = next(iter(uses[index].values())).operand
        for parameter in () if operand is None else operand.parameters:
            derived.setdefault(parameter, []).append((-1, index))
        _dispose_of(plan, index, uses[index], derived.pop(index, []), parameters)
    for index, keys in derived.items():  # parameters without a use of their own
        _dispose_of(plan, index, {}, keys, parameters)
    _close(plan, found)


def _close(plan: Plan, found: Sequence[Consumer]) -> None:
    """What shares an operation with a parameter that is measured row by row is so too."""
    users = [set(_users(consumer)) for consumer in found]
    before = -1
    while len(plan.owned) > before:
        before = len(plan.owned)
        for shared in users:
            reasons = [plan.owned[index] for index in shared if index in plan.owned]
            if reasons:
                plan.owned.update({index: reasons[0] for index in shared if index not in plan.owned})
    for index in plan.fallback:
        plan.owned.pop(index, None)


def _dispose_of(
    plan: Plan,
    index: int,
    uses: Mapping[tuple[int, int], Use],
    derived: Sequence[tuple[int, int]],
    parameters: Sequence[Tensor],
) -> None:
    """Decides for one parameter, or one value computed from parameters, that is used in these places."""
    operand = next((use.operand for use in uses.values()), None)
    if operand is None and len(uses) + len(derived) == 1:
        return
    shape = parameters[index].shape if operand is None else operand.shape
    try:
        seen = {key: positions_of(use, shape) for key, use in uses.items()}
    except NotCovered as cause:
        plan.fallback.update({k: str(cause) for k in ((index,) if operand is None else operand.parameters)})
        return
    whole = torch.arange(math.prod(shape)).view(shape)
    seen.update(dict.fromkeys(derived, whole))
    if operand is not None or not disjoint(list(seen.values())):
        plan.joint[index] = seen


class _SavedBytes:
    """Counts the bytes that the graph keeps for the backward pass."""

    def __init__(self) -> None:
        self._storages: dict[int, int] = {}
        self._hooks = saved_tensors_hooks(self._pack, lambda tensor: tensor)

    def _pack(self, tensor: Tensor) -> Tensor:
        # A view of the whole batch counts with its own size, not with that of the batch.
        size = min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())
        pointer = tensor.untyped_storage().data_ptr()
        self._storages[pointer] = max(size, self._storages.get(pointer, 0))
        return tensor

    def total(self, parameters: Sequence[Tensor]) -> int:
        """The bytes of all distinct storages but those of the parameters."""
        own = {parameter.untyped_storage().data_ptr() for parameter in parameters}
        return sum(size for pointer, size in self._storages.items() if pointer not in own)

    def __enter__(self) -> "_SavedBytes":
        self._hooks.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._hooks.__exit__(*error)
