"""What is found out once about a computation: the batch axis of each node, and which parameters are covered."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, saved_tensors_hooks

from lightning_stiffness.gram.graph import Consumer, NotCovered, consumers, layouts_of
from lightning_stiffness.gram.positions import disjoint, positions_of
from lightning_stiffness.gram.rules import RULES

TRIAL_SIZES = (
    3,
    5,
)  # two sizes that share no factor, so that an axis which only happens to fit one of them is seen through


@dataclass
class Plan:
    """The routes of all parameters; `fallback` grows when a rule declines."""

    signature: tuple[Any, ...]
    prefixes: tuple[int | None, ...]
    joint: dict[int, dict[tuple[int, int], Tensor]]
    """Parameters with several uses that overlap: the positions of each use, by consumer and slot."""
    fallback: dict[int, str] = field(default_factory=dict)
    """Parameters without a rule, and why."""
    bytes_per_sample: int = 1

    def selected(self, found: Sequence[Consumer]) -> list[int]:
        """The consumers which have a parameter that is not left to the fallback."""
        return [
            k for k, consumer in enumerate(found) if any(use.parameter not in self.fallback for use in consumer.uses)
        ]


def signature_of(found: Sequence[Consumer]) -> tuple[Any, ...]:
    """What must not change for a plan to stay valid."""
    return tuple(consumer.signature for consumer in found)


def make_plan(losses_of: Callable[[int], Tensor], parameters: Sequence[Tensor], samples: int) -> Plan:
    """Runs batches of a few samples and reads their graphs.

    Args:
        losses_of: The losses of the first k samples, with their graph.
        parameters: The trainable parameters.
        samples: How many samples there are.

    Returns:
        The plan; a parameter without a rule or without a clear batch axis is in its `fallback`.
    """
    sizes = sorted({min(size, samples) for size in TRIAL_SIZES})
    with _SavedBytes() as saved:
        losses = losses_of(sizes[-1])
    found = consumers(losses, parameters)
    candidates = _candidates(losses, found)
    for size in sizes[:-1]:
        losses = losses_of(size)
        fewer = consumers(losses, parameters)
        if signature_of(fewer) != signature_of(found):
            return _uncovered(found, parameters, "the computation depends on the size of the batch")
        candidates = [_both(*pair) for pair in zip(candidates, _candidates(losses, fewer), strict=True)]
    plan = Plan(
        signature=signature_of(found),
        prefixes=tuple(1 if some is None else min(some, default=None) for some in candidates),
        joint={},
        bytes_per_sample=max(1, saved.total(parameters) // sizes[-1]),
    )
    _dispose(plan, found, parameters)
    return plan


def _uncovered(found: Sequence[Consumer], parameters: Sequence[Tensor], reason: str) -> Plan:
    return Plan(signature_of(found), (None,) * len(found), {}, dict.fromkeys(range(len(parameters)), reason))


def _candidates(losses: Tensor, found: Sequence[Consumer]) -> list[set[int] | None]:
    """The possible prefixes of each consumer's output gradient; None where no gradient says anything."""
    edges = [GradientEdge(consumer.node, 0) for consumer in found]
    result: list[set[int] | None] = [None] * len(found)
    if not edges:
        return result
    n = len(losses)
    for sample in sorted({min(1, n - 1), n - 1}):
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
    uses: dict[int, list[tuple[int, int]]] = {}
    by_key = {(k, use.slot): use for k, consumer in enumerate(found) for use in consumer.uses}
    for (k, slot), use in by_key.items():
        uses.setdefault(use.parameter, []).append((k, slot))
        if found[k].node.name() not in RULES:
            plan.fallback.setdefault(use.parameter, f"no rule for {found[k].node.name()}")
        elif plan.prefixes[k] is None:
            plan.fallback.setdefault(use.parameter, f"{found[k].node.name()} has no clear batch axis")
    for index, keys in uses.items():
        if len(keys) == 1 or index in plan.fallback:
            continue
        try:
            seen = {key: positions_of(by_key[key], parameters[index]) for key in keys}
        except NotCovered as cause:
            plan.fallback[index] = str(cause)
            continue
        if not disjoint(list(seen.values())):
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
