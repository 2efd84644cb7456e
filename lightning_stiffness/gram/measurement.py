"""One batch of one model: its factors, chunk by chunk and group by group, within a budget of memory."""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from lightning_stiffness.batching import take
from lightning_stiffness.gram.collect import Collector, Found, FoundSize, size_of
from lightning_stiffness.gram.factors import Explicit
from lightning_stiffness.gram.fallback import Fallback
from lightning_stiffness.gram.plan import Plan
from lightning_stiffness.gram.results import CrossGram, Explanation, ExplanationRow, Gram
from lightning_stiffness.gram.scale import unit_weights
from lightning_stiffness.gram.slicing import stacked
from lightning_stiffness.gram.totals import Request, Totals, everything

ITEM_BYTES = 4
CHUNK_BYTES = 64 << 20  # activations of a chunk: beyond, the allocator takes fresh pages for each tensor (measured)
SMALL_CHUNK = 64
SMALL_BYTES = 128 << 20
WORTH_KEEPING = 0.75  # more than this share of the activations is not
KEPT_SHARE = 1 / 3  # of the budget; the largest of what is kept is there twice when its chunks are joined
BACKWARD_SHARE = 1.5  # gradients and temporaries of a backward pass, beside the activations that the forward pass keeps


@dataclass(frozen=True)
class Measurement:
    """Computes on one batch, by a plan.

    Attributes:
        module: The model.
        losses_of: batch -> losses [n] with their graph, validated.
        loss: (module, batch) -> losses [n], not validated, for the fallback.
        plan: The routes.
        names: The trainable parameters by name.
        batch: The samples.
        samples: Their number n.
        budget: Bytes for activations and factors.
    """

    module: nn.Module
    losses_of: Callable[[Any], Tensor]
    loss: Callable[[Any, Any], Tensor]
    plan: Plan
    names: dict[str, nn.Parameter]
    batch: Any
    samples: int
    budget: int

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The trainable parameters, in the order which the plan counts."""
        return list(self.names.values())

    @property
    def chunk(self) -> int:
        """How many samples may go forward and backward at once within the budget."""
        return max(1, min(self.samples, int(self.budget / (BACKWARD_SHARE * self.plan.bytes_per_sample))))

    def fast_chunk(self, kept: int = 0) -> int:
        """So many that go fast, beside what fills half the budget and ``kept`` bytes a sample."""
        fit = int(self.budget / 2 / (BACKWARD_SHARE * self.plan.bytes_per_sample + kept))
        fast = max(SMALL_CHUNK, CHUNK_BYTES // self.plan.bytes_per_sample)
        return max(1, min(self.samples, fit, fast))

    def collect(
        self, losses: Tensor, weights: Tensor, emit: Callable[[Found], None], only: set[int] | None = None
    ) -> None:
        """Emits the factors of the covered parameters (of those in `only`); frees the graph of the losses."""
        Collector(self.plan, self.parameters, self.budget, emit, only).run(losses, weights)

    @property
    def uncovered(self) -> list[nn.Parameter]:
        """The parameters of the fallback."""
        return [parameter for index, parameter in enumerate(self.parameters) if index in self.plan.fallback]

    @torch.no_grad()
    def gram(self, request: Request | None = None) -> Gram:
        """The Gram matrix, or what is asked of it."""
        return self._totals(request or everything(self.samples)).gram()

    @torch.no_grad()
    def cross_gram(self, request: Request) -> CrossGram:
        """The one block that is asked for, between two batches that are joined in this one."""
        return self._totals(request).cross()

    def _totals(self, request: Request) -> Totals:
        names, parameter = list(self.names), self.parameters[0]
        like = parameter.new_empty(0, dtype=torch.promote_types(parameter.dtype, torch.float32))
        totals = Totals(request, names, like, self.budget // 4)
        totals.losses, totals.weights = self._pass_all(request.order, totals)
        batch = self._take(request.order) if self.plan.fallback else None
        for indices in totals.grouped(sorted(self.plan.fallback)):
            fallback = Fallback(self.module, self.loss, self.budget, self.plan.fallback_route)
            parameters = [self.parameters[index] for index in indices]
            totals.add_dense(indices[0], fallback.blocks(batch, parameters, totals.weights, totals.losses))
            reasons = ((names[index], self.plan.fallback[index]) for index in indices)
            totals.routes.update((name, f"fallback: {reason}; {fallback.route}") for name, reason in reasons)
        return totals

    def _pass_all(self, order: Sequence[int], totals: Totals) -> tuple[Tensor, Tensor]:
        """Adds what all samples in this order contribute to each parameter; returns their losses and weights.

        Small batches go through the model at once, and so do those of which what is found takes as much memory as the
        activations. Others go in chunks, which run faster since their memory is used again, and what is found is kept
        for all samples: of all parameters if that fits the budget, else of one group after the other.
        """
        activations = self.samples * self.plan.bytes_per_sample
        fits = self.chunk >= self.samples
        if activations <= SMALL_BYTES and fits:
            return self.pass_chunk(order, totals.add)
        sizes = self.found_sizes()
        kept = sum(size.elements for size in sizes) * self.samples * ITEM_BYTES
        if fits and kept > min(activations * WORTH_KEEPING, self.budget * KEPT_SHARE):
            return self.pass_chunk(order, totals.add)
        chunks = self.chunks(order, self.fast_chunk())
        groups = self.groups([size.elements * self.samples * ITEM_BYTES for size in sizes])
        done = [self._pass_chunks(chunks, totals, group) for group in groups]
        return done[0]

    def _pass_chunks(
        self, chunks: Sequence[Sequence[int]], totals: Totals, group: set[int] | None
    ) -> tuple[Tensor, Tensor]:
        """Keeps what is found of some parameters, chunk by chunk, and adds it for all samples together."""
        kept: dict[Hashable, dict[int, Found]] = {}
        done = []
        for number, samples in enumerate(chunks):

            def keep(found: Found, number: int = number) -> None:
                for part in totals.cut(found):
                    kept.setdefault(part.identity, {})[number] = compact(part)

            done.append(self.pass_chunk(samples, keep, group))
        sizes = [len(samples) for samples in chunks]
        for identity in list(kept):
            totals.add(_joined(kept.pop(identity), sizes))
        values, weights = zip(*done, strict=True)
        return torch.cat(values), torch.cat(weights)

    def pass_chunk(
        self, samples: Sequence[int], emit: Callable[[Found], None], group: set[int] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Emits what some samples contribute to some parameters; returns their losses and weights."""
        losses = self._losses(samples)
        values, weights = losses.detach(), unit_weights(losses)
        self.collect(losses, weights, emit, group)
        return values, weights

    @torch.no_grad()
    def explain(self) -> Explanation:
        """What the graph route would do, from a pass over as many samples as fit at once."""
        names, rows = list(self.names), []
        samples = list(range(min(self.samples, max(2, self.chunk))))

        def emit(found: Found) -> None:
            label = " + ".join(names[index] for index in found.parameters)
            flops = found.factors.flops() * self.samples // len(samples)
            stored = found.factors.elements * self.samples * 4
            rows.append(ExplanationRow(label, found.operation, found.factors.route, flops, stored))

        self.pass_chunk(samples, emit)
        named = {name for row in rows for name in row.parameters.split(" + ")}
        for index, name in enumerate(names):
            if index in self.plan.fallback:
                stored = self.parameters[index].numel() * self.samples * 4
                rows.append(ExplanationRow(name, "?", f"fallback: {self.plan.fallback[index]}", None, stored))
            elif name not in named:
                rows.append(ExplanationRow(name, "-", "not used by the loss", 0, 0))
        return Explanation(tuple(rows), self.samples, self.plan.bytes_per_sample * len(samples), len(samples))

    def found_sizes(self) -> tuple[FoundSize, ...]:
        """How large what is found of one sample is; found out once, with two samples."""
        known, key = self.plan.found_sizes, (len(self.plan.fallback), len(self.plan.owned))
        if key not in known:
            found: list[FoundSize] = []
            losses = self._losses(range(min(self.samples, 2)))
            self.collect(losses, torch.ones_like(losses), lambda one: found.append(size_of(one)))
            known[key] = tuple(found)
        sizes: tuple[FoundSize, ...] = known[key]
        return sizes

    def groups(self, sizes: Sequence[int]) -> list[set[int] | None]:
        """Groups of parameters which need no more than their share of the budget together, in the order they come in.

        One group of all is None.
        """
        groups: list[set[int]] = [set()]
        filled = 0
        for found, size in zip(self.found_sizes(), sizes, strict=True):
            known = next((group for group in groups if not group.isdisjoint(found.parameters)), None)
            if known is not None:  # another part of a parameter stays with the first
                known.update(found.parameters)
                continue
            if filled and filled + size > self.budget * KEPT_SHARE:
                groups.append(set())
                filled = 0
            groups[-1].update(found.parameters)
            filled += size
        groups[0].update(self.plan.fallback)
        groups[-1].update(set(range(len(self.parameters))).difference(*groups))  # two samples need not use them all
        return [None] if len(groups) == 1 else list(groups)

    def chunks(self, order: Sequence[int], most: int) -> list[list[int]]:
        """Parts of nearly equal size; none of a single sample, a special case in many models, if it can be helped."""
        count = max(1, min(-(-self.samples // most), self.samples // 2))
        bounds = [k * len(order) // count for k in range(count + 1)]
        return [list(order[start:stop]) for start, stop in pairwise(bounds)]

    def _losses(self, samples: Sequence[int]) -> Tensor:
        return self.losses_of(self._take(samples))

    def _take(self, samples: Sequence[int]) -> Any:
        if list(samples) == list(range(self.samples)):
            return self.batch
        return take(self.batch, list(samples), self.samples)


def compact(found: Found) -> Found:
    """The same in the form which needs the least memory to keep."""
    return replace(found, factors=found.factors.compact())


def _joined(parts: dict[int, Found], sizes: Sequence[int]) -> Found:
    """What was found in chunks of these sizes as one; zero for a chunk that does not use the parameter."""
    first = next(iter(parts.values()))
    if len(parts) == len(sizes):
        return replace(first, factors=stacked([part.factors for part in parts.values()]))
    some = first.factors.joined_blocks()
    rows = [
        parts[k].factors.joined_blocks() if k in parts else some.new_zeros(size, some.shape[1])
        for k, size in enumerate(sizes)
    ]
    return replace(first, factors=Explicit(torch.cat(rows)))
