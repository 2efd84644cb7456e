"""One batch of one model: its factors, chunk by chunk and group by group, within a budget of memory."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from lightning_stiffness.batching import take
from lightning_stiffness.gram.collect import Collector, Found, FoundSize, size_of
from lightning_stiffness.gram.fallback import Fallback
from lightning_stiffness.gram.kept import Kept
from lightning_stiffness.gram.memory import scratch_of
from lightning_stiffness.gram.plan import Plan
from lightning_stiffness.gram.products import SYMMETRIC_ROWS, one_blas_thread
from lightning_stiffness.gram.results import CrossGram, Explanation, ExplanationRow, Gram
from lightning_stiffness.gram.scale import unit_weights
from lightning_stiffness.gram.totals import Request, Totals, everything

ITEM_BYTES = 4
FEW = 8  # samples that tell how large what is found is
CHUNK_BYTES = 64 << 20  # activations of a chunk: beyond, the allocator takes fresh pages for each tensor (measured)
SMALL_CHUNK = 64
SMALL_CHUNK_SHARE = 1 / 12  # of the budget, which so many samples may take if it is more than CHUNK_BYTES
SMALL_BYTES = 128 << 20
WORTH_KEEPING = 0.75  # more than this share of the activations is not
BACKWARD_SHARE = 1.5  # gradients and temporaries of a backward pass, beside the activations that the forward pass keeps
COUNTED_SHARE = (
    4 / 5
)  # of the budget: the rest is for holes that the allocator leaves, and scratch of single operations


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
    def room(self) -> int:
        """The part of the budget that products, and what cannot be counted, leave."""
        tile = ITEM_BYTES * min(self.samples, SYMMETRIC_ROWS) ** 2
        counted = int(COUNTED_SHARE * self.budget)
        return max(counted - 2 * scratch_of(self.budget) - tile, self.budget // 4)

    @property
    def chunk(self) -> int:
        """How many samples may go forward and backward at once within the budget."""
        return max(1, min(self.samples, int(self.room / (BACKWARD_SHARE * self.plan.bytes_per_sample))))

    def fast_chunk(self, kept: int = 0) -> int:
        """So many that go fast, beside what fills half the budget and ``kept`` bytes a sample."""
        fit = int(self.budget / 2 / (BACKWARD_SHARE * self.plan.bytes_per_sample + kept))
        small = min(SMALL_CHUNK * self.plan.bytes_per_sample, int(SMALL_CHUNK_SHARE * self.budget))
        fast = max(small, CHUNK_BYTES) // self.plan.bytes_per_sample
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
        totals = Totals(request, names, like, scratch_of(self.budget))
        with one_blas_thread():
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
        sizes = [size.kept * self.samples for size in self.found_sizes()]
        chunk = self.fast_chunk()
        copied = max((size.copied for size in self.found_sizes()), default=0) * self.samples
        beside = max(int(BACKWARD_SHARE * chunk * self.plan.bytes_per_sample), copied)
        groups = self.groups(sizes, self.room - beside)
        if fits and (len(groups) > 1 or sum(sizes) > activations * WORTH_KEEPING):
            return self.pass_chunk(order, totals.add)
        chunks = self.chunks(order, chunk)
        done = [self._pass_chunks(chunks, totals, group) for group in groups]
        return done[0]

    def _pass_chunks(
        self, chunks: Sequence[Sequence[int]], totals: Totals, group: set[int] | None
    ) -> tuple[Tensor, Tensor]:
        """Keeps what is found of some parameters, chunk by chunk, and adds it for all samples together."""
        kept, done = Kept([len(samples) for samples in chunks]), []
        for number, samples in enumerate(chunks):

            def keep(found: Found, number: int = number) -> None:
                for part in totals.cut(found):
                    kept.add(number, part)

            done.append(self.pass_chunk(samples, keep, group))
        for found in kept.take():
            totals.add(found)
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
        """How large what is found of one sample is; found out once, with a few samples."""
        known, key = self.plan.found_sizes, (len(self.plan.fallback), len(self.plan.owned))
        if key not in known:
            found: list[FoundSize] = []
            losses = self._losses(range(0, self.samples, max(1, self.samples // FEW)))
            self.collect(losses, torch.ones_like(losses), lambda one: found.append(size_of(one)))
            known[key] = tuple(found)
        sizes: tuple[FoundSize, ...] = known[key]
        return sizes

    def groups(self, sizes: Sequence[int], most: int) -> list[set[int] | None]:
        """Groups of parameters whose sizes add up to no more than that; one group of all is None.

        They are filled from the first layer on: what remains is a group of the last layers, and a backward pass to
        those alone is short.
        """
        groups: list[set[int]] = [set()]
        filled = 0
        for found, size in reversed(list(zip(self.found_sizes(), sizes, strict=True))):
            known = next((group for group in groups if not group.isdisjoint(found.parameters)), None)
            if known is not None:  # another part of a parameter stays with the first
                known.update(found.parameters)
                filled += size if known is groups[-1] else 0
                continue
            if filled and filled + size > most:
                groups.append(set())
                filled = 0
            groups[-1].update(found.parameters)
            filled += size
        groups[0].update(self.plan.fallback)
        groups[0].update(set(range(len(self.parameters))).difference(*groups))  # a few samples need not use them all
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
