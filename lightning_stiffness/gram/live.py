"""The Gram matrix of a batch from a backward pass that runs anyway: hooks read it, nothing is computed twice.

A rehearsal on a few samples finds the batch axis of each node. Then the training step's own graph is hooked: while its
owner runs backward, each consumer of parameters hands over its output gradient, and its factors go into K at once.

With BatchNorm in training mode, samples have no gradients of their own. What is read is the part of the batch's
gradient that flows through the activations of each sample, the statistics of the batch taken as constants where a
scale is differentiated: the parts still add up to the gradient of the batch.
"""

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, final

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge

from lightning_stiffness.batching import batch_size, take
from lightning_stiffness.errors import StiffnessError
from lightning_stiffness.gram.alike import Make, consumers_alike, makes_of
from lightning_stiffness.gram.check import ROUNDINGS, TOLERANCE
from lightning_stiffness.gram.collect import Collector, Found
from lightning_stiffness.gram.engine import GramEngine
from lightning_stiffness.gram.graph import Consumer, Layout, NotCovered, consumers
from lightning_stiffness.gram.memory import scratch_of
from lightning_stiffness.gram.plan import TRIAL_SIZES, Plan, make_plan, users_of
from lightning_stiffness.gram.products import GramAccumulator, whole
from lightning_stiffness.gram.trainable import trainable

Kind: TypeAlias = tuple[str, tuple[tuple[int, int], ...]]

# Nodes on a parameter alone, as penalties on weights have them; none of them can be part of a layer.
PENALTIES = frozenset(
    f"{name}Backward{k}" for name in ("Pow", "Abs", "Norm", "LinalgVectorNorm", "Sum", "Mean", "Var") for k in range(4)
)
MODERATE = (1e-8, 1e8)  # sizes of gradients whose products need no scaling in float32


@dataclass(frozen=True, eq=False)
class Rehearsal:
    """What a few samples told about a model.

    Attributes:
        plan: The batch axis of each consumer of parameters.
        kinds: What each consumer is, in whatever mode the module is.
        names: The parameters by name, in the plan's order.
        makes: How values are made that are computed from parameters alone, such as normalised weights.
    """

    plan: Plan
    kinds: tuple[Kind, ...]
    names: Mapping[str, nn.Parameter]
    makes: frozenset[Make]

    def is_about(self, module: nn.Module) -> bool:
        """Whether the same parameters are trainable now; not so after a layer is unfrozen."""
        now = trainable(module)
        return now.keys() == self.names.keys() and all(now[name] is self.names[name] for name in now)


def rehearsed(module: nn.Module, loss: Callable[[Any, Any], Tensor], batch: Any) -> Rehearsal:
    """What has to be known of a model beforehand, from a few samples; put it in eval mode first.

    Args:
        module: The model; all its parameters with `requires_grad` count.
        loss: (module, batch) -> losses [n].
        batch: At least two samples.

    Raises:
        StiffnessError: The losses are not usable, or a parameter has no rule: then its part of K is not in the graph.
        MixedSamplesError: The loss of one sample depends on the others.
    """
    few = take(batch, slice(0, min(max(TRIAL_SIZES), batch_size(batch))))
    names = trainable(module)
    routes = GramEngine(module, loss).gram(few).routes  # compared with plain autograd
    parameters = list(names.values())
    plan = make_plan(lambda k: loss(module, take(few, slice(0, k))), parameters, batch_size(few))
    reasons = {name: reason for k, name in enumerate(names) if (reason := plan.fallback.get(k))}
    reasons |= {name: reason for k, name in enumerate(names) if (reason := plan.owned.get(k))}
    _require_covered(reasons | {name: route for name, route in routes.items() if route.startswith("fallback")})
    found = consumers(loss(module, few), parameters, plan.frontier)
    return Rehearsal(plan, tuple(map(_kind, found)), names, makes_of(found, parameters))


@final
class LiveGram:
    """Hooks on the graph below a batch's loss; run its backward, then `result` has the Gram matrix.

    K_ij = <g_i, g_j>, where the g_i add up to the gradient of the loss: g_i is sample i's loss gradient times its
    weight in the loss, such as 1 / n in a mean. Cosines and signs are those of the loss gradients. Nothing raises while
    backward runs, and the graph is not kept alive after it: call `result` or `close` then.

    Args:
        root: The loss of a batch of n samples, before its backward.
        samples: Their number n.
        rehearsal: From `rehearsed`.
        budget: Bytes for temporaries, beside the [n, n] result.

    Raises:
        StiffnessError: The graph is not that of the rehearsal, was compiled, or is recomputed in checkpoints.

    Source: ours.

    >>> model = nn.Linear(2, 1, bias=False)
    >>> x = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 2.0]])
    >>> rehearsal = rehearsed(model, lambda model, batch: model(batch)[:, 0], x)
    >>> loss = model(x).sum()
    >>> live = LiveGram(loss, 3, rehearsal)
    >>> loss.backward()
    >>> live.result()
    tensor([[1., 1., 0.],
            [1., 2., 2.],
            [0., 2., 4.]], dtype=torch.float64)
    """

    def __init__(self, root: Tensor, samples: int, rehearsal: Rehearsal, budget: int = 1 << 30) -> None:
        """See the class."""
        plan, parameters = rehearsal.plan, list(rehearsal.names.values())
        found, self._has_penalty = _matched(consumers_alike(root, parameters, rehearsal.makes), rehearsal.kinds)
        _require_saved(found)
        _require_no_hooks(found, parameters)
        own = plan.on(found, parameters)
        if own.fallback or own.numbers(found, samples) is None:
            reason = next(iter(own.fallback.values()), "the number of positions before the samples changes")
            raise StiffnessError(f"The training step must use its parameters as in the rehearsal: {reason}.")
        self.seconds = 0.0
        """Time in the hooks so far."""
        self._samples, self._parameters = samples, parameters
        self._device = parameters[0].device
        dtype = torch.promote_types(parameters[0].dtype, torch.float32)
        self._gram = GramAccumulator(whole(samples), parameters[0].new_empty(0, dtype=dtype), scratch_of(budget))
        self._weights: Tensor | None = None
        self._is_scaled = False
        self._coarsest = 0.0
        self._failure = ""
        self._squares: list[Tensor] = []
        self._collector = Collector(own, parameters, budget, self._add)
        self._handles = [
            consumer.node.register_prehook(self._listener(consumer, k, plan.prefixes[k]))
            for k, consumer in enumerate(found)
        ]

    def watch_total(self) -> None:
        """Lets `result` check that the parts add up to the gradient of the batch, at the cost of that one's norm."""
        if self._has_penalty or any(parameter._backward_hooks for parameter in self._parameters):
            return
        with torch.enable_grad():
            nodes = [get_gradient_edge(parameter).node for parameter in self._parameters]
        self._squares.append(torch.zeros((), dtype=self._gram.matrices[0].dtype, device=self._device))
        self._handles += [node.register_prehook(self._add_square) for node in nodes]

    def result(self) -> Float[Tensor, "n n"]:
        """K, in float64 where the device has it; takes the hooks away.

        Raises:
            StiffnessError: A hook failed, or the parts do not add up to the gradient of the batch.
        """
        self.close()
        with torch.no_grad():
            if not self._failure:
                self._guarded(self._collector.finish)
            if self._failure:
                raise StiffnessError(f"The gradients of the batch could not be read ({self._failure}).")
            matrix = self._gram.results()[0]
            matrix = matrix if matrix.device.type == "mps" else matrix.double()
            if self._weights is not None:
                matrix = matrix / self._weights.to(matrix)[:, None] / self._weights.to(matrix)
            if self._squares:
                self._require_total(matrix, float(torch.stack([one.to(matrix) for one in self._squares]).sum()))
        return matrix

    def close(self) -> None:
        """Takes the hooks away, after backward or in its place."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _listener(
        self, consumer: Consumer, number: int, prefix: int | None
    ) -> Callable[[tuple[Tensor | None, ...]], None]:
        def receive(gradient: Tensor) -> None:
            self._coarsest = max(self._coarsest, torch.finfo(gradient.dtype).eps)
            if prefix:
                layout = Layout(prefix, self._samples, batch_statistics=True)
                self._collector.receive(consumer, number, self._scaled(gradient, layout), layout)
            elif bool(gradient.any()):  # no sample of the rehearsal had a gradient there
                raise NotCovered(f"where the samples lie in {consumer.node.name()} is not known")

        def hook(gradients: tuple[Tensor | None, ...]) -> None:
            gradient = gradients[0]
            if gradient is not None and not self._failure:
                self._guarded(lambda: receive(gradient))

        return hook

    def _guarded(self, work: Callable[[], None]) -> None:
        """Keeps the words of a failure only: the exception itself would keep the graph alive."""
        start = time.perf_counter()
        try:
            with torch.no_grad(), torch.autocast(self._device.type, enabled=False):
                work()
        except Exception as cause:
            self._failure = f"{type(cause).__name__}: {str(cause).splitlines()[0] if str(cause) else ''}"
        self.seconds += time.perf_counter() - start

    def _add(self, found: Found) -> None:
        found.factors.add_gram(self._gram)

    def _add_square(self, gradients: tuple[Tensor | None, ...]) -> None:
        gradient = gradients[0]
        if gradient is None or self._failure:
            return

        def add() -> None:
            values = gradient.coalesce().values() if gradient.is_sparse else gradient
            self._squares.append(torch.linalg.vector_norm(values.detach().to(self._gram.matrices[0].dtype)).square())

        self._guarded(add)

    def _scaled(self, gradient: Tensor, layout: Layout) -> Tensor:
        """Of order one for each sample where some are so small or large that products would leave float32."""
        rows = gradient.reshape(layout.prefix, layout.samples, -1)
        if not self._is_scaled:
            self._is_scaled = True
            sizes = rows.abs().amax((0, 2)).to(self._gram.matrices[0].dtype)
            sizes = torch.where(sizes > 0, sizes, torch.ones_like(sizes))
            if not MODERATE[0] < float(sizes.min()) <= float(sizes.max()) < MODERATE[1]:
                self._weights = 1 / sizes
        if self._weights is None:
            return gradient
        return (rows * self._weights[None, :, None]).to(self._weights.dtype).reshape(gradient.shape)

    @property
    def _tolerance(self) -> float:
        """The error that is rounding, half-precision factors included."""
        return max(TOLERANCE, ROUNDINGS * self._coarsest)

    def _require_total(self, matrix: Tensor, expected: float) -> None:
        found, scale = float(matrix.sum()), max(expected, float(matrix.trace()))
        # Not tiny gradients alone: their squares are lost in single precision.
        if not abs(found - expected) <= self._tolerance * scale and scale > 1e-30:
            raise StiffnessError(
                "The samples' parts must add up to the gradient of the batch; their sum has the squared norm "
                f"{found:.6g}, the gradient {expected:.6g}. A part of the loss that is not of single samples reaches "
                'the parameters, or a hook changes gradients: measure on a probe instead, without probe="batch".'
            )


def _require_covered(reasons: Mapping[str, str]) -> None:
    if reasons:
        shown = "; ".join(f"{name} ({reason.removeprefix('fallback: ')})" for name, reason in list(reasons.items())[:3])
        raise StiffnessError(
            f"The backward pass of the training step does not hold the samples' gradients of {len(reasons)} parameters:"
            f' {shown}{" ..." if len(reasons) > 3 else ""}. Measure on a probe instead: leave out probe="batch".'
        )


def _matched(found: Sequence[Consumer], expected: Sequence[Kind]) -> tuple[tuple[Consumer, ...], bool]:
    """The consumers of the plan in their order, without those of penalties on weights, and whether there were any."""
    kept: list[Consumer] = []
    has_penalty = False
    for consumer in found:
        if len(kept) < len(expected) and _kind(consumer) == expected[len(kept)]:
            kept.append(consumer)
        elif consumer.node.name() in PENALTIES:
            has_penalty = True
        else:
            raise _differs(consumer.node.name())
    if len(kept) < len(expected):
        raise _differs(f"no {expected[len(kept)][0]}")
    return tuple(kept), has_penalty


def _kind(consumer: Consumer) -> Kind:
    """What the same layer has in common in eval and in training mode, and with and without casts of its weights."""
    name = consumer.node.name().replace("CudnnBatchNorm", "NativeBatchNorm").replace("MiopenBatch", "NativeBatch")
    return name, tuple(sorted((use.slot, use.parameter) for use in consumer.uses))


def _differs(found: str) -> StiffnessError:
    if found.startswith("CompiledFunction"):
        return StiffnessError(
            "The graph of compiled code cannot be read; found a function under torch.compile in the training step. "
            'Measure on a probe instead, which runs it uncompiled: leave out probe="batch".'
        )
    return StiffnessError(
        f"The training step must use its parameters as it does in eval mode; found {found} where the rehearsal had "
        "something else. Layers that are left out at random, losses for training alone and branches by the data have "
        'no fixed place to read: measure on a probe instead, without probe="batch".'
    )


def _require_saved(found: Sequence[Consumer]) -> None:
    """What a checkpoint saves can be unpacked only once, by backward itself."""
    for consumer in found:
        for name in _raw_saved(type(consumer.node)):
            if _is_checkpointed(getattr(consumer.node, name)):
                raise StiffnessError(
                    "Activations must be kept until backward; found activation checkpointing around "
                    f"{consumer.node.name()}, which recomputes them for backward alone. Measure on a probe instead: "
                    'leave out probe="batch".'
                )


def _require_no_hooks(found: Sequence[Consumer], parameters: Sequence[Tensor]) -> None:
    """What differentiates a value that is computed from parameters would run their hooks once more."""
    uses = [use for consumer in found for use in consumer.uses if use.operand is not None]
    if any(parameters[index]._backward_hooks for use in uses for index in users_of(use)):
        raise StiffnessError(
            "Parameters from which another value is computed, such as a normalised weight, must have no hooks: reading "
            'calls them; found one by Tensor.register_hook. Measure on a probe instead: leave out probe="batch".'
        )


@functools.cache
def _raw_saved(kind: type) -> tuple[str, ...]:
    return tuple(name for name in dir(kind) if name.startswith("_raw_saved_"))


def _is_checkpointed(saved: Any) -> bool:
    hooks = [getattr(one, "unpack_hook", None) for one in (saved if isinstance(saved, list | tuple) else [saved])]
    return any("checkpoint" in getattr(hook, "__qualname__", "") for hook in hooks)
