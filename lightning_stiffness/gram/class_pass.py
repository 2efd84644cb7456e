"""Passes over the samples of a batch in chunks: their norms, their sums over classes, their products with such sums."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lightning_stiffness.batching import take
from lightning_stiffness.gram.class_sums import ClassSums
from lightning_stiffness.gram.collect import Found
from lightning_stiffness.gram.factors import Explicit, runs_of
from lightning_stiffness.gram.fallback import Fallback
from lightning_stiffness.gram.measurement import ITEM_BYTES, Measurement
from lightning_stiffness.gram.slicing import compact, part_of
from lightning_stiffness.gram.workspace import Arena

EXPLICIT_BYTES = (
    48 << 20
)  # explicit gradients of so many samples at once: they are used twice, from the cache (measured)
SUMS_SHARE = 1 / 3  # of the budget
# Samples of small networks: so many go at once, and more in chunks, whose sums have to be kept beside them. With larger
# chunks it takes more memory and no less time (measured).
AT_ONCE, MOST = 2048, 1024
FEWEST = 8  # samples whose explicit gradients are formed at once

_Visit = Callable[[Sequence[int], Tensor, Sequence[Found]], Tensor]


@dataclass(frozen=True, eq=False)
class Passed:
    """What a pass found out, in the order of the batch.

    Attributes:
        losses: The losses of the samples, detached.
        norms: |g_i| over the parameters of the pass, or those that were given to it. The losses may be weighted, in
            every pass alike.
        products: <g_i, S_a> over the parameters of the pass, a column for each class that was asked for.
    """

    losses: Float[Tensor, "n"]
    norms: Float[Tensor, "n"]
    products: Float[Tensor, "n k"]


@dataclass(frozen=True)
class ClassPass:
    """Passes over one batch.

    Attributes:
        measurement: The batch, and how it is measured.
    """

    measurement: Measurement

    @torch.no_grad()
    def groups(self, num_classes: int) -> list[set[int] | None]:
        """Groups of parameters whose sums over so many classes fit the budget; [None] where all do."""
        sizes = [one.columns * num_classes * ITEM_BYTES for one in self.measurement.found_sizes()]
        return self.measurement.groups(sizes, int(self.measurement.budget * SUMS_SHARE))

    def norms(self, group: set[int] | None = None) -> Passed:
        """The norms over some parameters, all when not given."""
        return self._pass(range(self.measurement.samples), group, None, lambda samples, norms, found: norms[:, None])

    def add(
        self, sums: ClassSums, targets: Int[Tensor, "n"], group: set[int] | None = None, norms: Tensor | None = None
    ) -> Passed:
        """Adds the unit gradients of all samples to the sums over their classes.

        Args:
            sums: What is added to.
            targets: The class of each sample, on the CPU.
            group: The parameters that count; all when not given.
            norms: |g_i| over all parameters; over those of the group when not given.
        """

        def add(samples: Sequence[int], own: Tensor, found: Sequence[Found]) -> Tensor:
            weights = torch.where(own > 0, 1 / own, torch.zeros_like(own))
            sums.add(found, weights, runs_of(targets[samples].tolist()))
            return own[:, None]

        return self._pass(torch.argsort(targets, stable=True).tolist(), group, norms, add)

    def multiply(self, sums: ClassSums, classes: Sequence[int], group: set[int] | None = None) -> Passed:
        """The products of the gradients of all samples with the sums over some classes.

        Raises:
            UnknownForm: The sums were not made of gradients of this form.
        """

        def multiply(samples: Sequence[int], norms: Tensor, found: Sequence[Found]) -> Tensor:
            return sums.products_with(found, classes, len(samples))

        return self._pass(range(self.measurement.samples), group, None, multiply)

    @torch.no_grad()
    def _pass(
        self,
        order: Sequence[int],
        group: set[int] | None,
        norms: Tensor | None,
        visit: _Visit,
    ) -> Passed:
        """Visits all samples a few at a time; ``visit`` takes which they are, their norms and what is found of them."""
        chunks = self._chunks(order)
        visited = [self._visited(self._chunk(samples, group), norms, visit) for samples in chunks]
        return Passed(*(_reordered(values, chunks) for values in zip(*visited, strict=True)))

    def _visited(self, chunk: "Chunk", norms: Tensor | None, visit: _Visit) -> tuple[Tensor, Tensor, Tensor]:
        """Losses, norms and products of a chunk, which is forgotten before there is another."""
        own, products = [], []
        for part, found in chunk.pieces():
            some = list(chunk.samples[part])
            own.append(norms_of(found, chunk.losses[part]) if norms is None else norms[some])
            products.append(visit(some, own[-1], found))
        return chunk.losses, torch.cat(own), torch.cat(products)

    def _chunks(self, order: Sequence[int]) -> list[list[int]]:
        measurement = self.measurement
        kept = sum(one.kept for one in measurement.found_sizes())
        kept += sum(parameter.numel() * parameter.element_size() for parameter in measurement.uncovered)
        most = AT_ONCE if measurement.samples <= AT_ONCE else MOST
        return measurement.chunks(order, min(most, measurement.fast_chunk(kept)))

    def _chunk(self, samples: Sequence[int], group: set[int] | None) -> "Chunk":
        """What is found of some samples, the parameters of the fallback included."""
        measurement, found = self.measurement, []
        values, weights = measurement.pass_chunk(samples, lambda one: found.append(_compact(one)), group)
        uncovered = [k for k in sorted(measurement.plan.fallback) if group is None or k in group]
        if uncovered:
            batch = take(measurement.batch, list(samples), measurement.samples)
            parameters = [measurement.parameters[k] for k in uncovered]
            fallback = Fallback(
                measurement.module, measurement.loss, measurement.budget, measurement.plan.fallback_route
            )
            blocks = [block.detach() for block in fallback.blocks(batch, parameters, weights, values)]
            found.append(Found((-2,), tuple(uncovered), "fallback", Explicit(torch.cat(blocks, 1))))
        return Chunk(samples, found, values)


@dataclass(frozen=True)
class Chunk:
    """Some samples: which they are, what is found of them, and their losses."""

    samples: Sequence[int]
    found: Sequence[Found]
    losses: Tensor

    def pieces(self) -> Iterator[tuple[slice, list[Found]]]:
        """So few samples at a time that their explicit gradients, where needed, stay small.

        Those are formed once, in memory which the next ones overwrite.
        """
        costly = sum(one.factors.columns for one in self.found if not one.factors.has_cheap_norms)
        step = max(FEWEST, EXPLICIT_BYTES // (costly * ITEM_BYTES)) if costly else len(self.samples)
        step = min(step, len(self.samples))
        arena = Arena(step * costly)
        for start in range(0, len(self.samples), step):
            part = slice(start, min(len(self.samples), start + step))
            arena.take_back()
            yield part, [_piece(one, part, part.stop - part.start == len(self.samples), arena) for one in self.found]


def _piece(found: Found, part: slice, is_whole: bool, arena: Arena) -> Found:
    factors = found.factors if is_whole else part_of(found.factors, part)
    if not factors.has_cheap_norms:
        factors = Explicit(factors.joined_blocks(arena))
    return replace(found, factors=factors)


def _compact(found: Found) -> Found:
    return replace(found, factors=compact(found.factors))


def norms_of(found: Sequence[Found], losses: Tensor) -> Float[Tensor, "n"]:
    """|g_i| over what is found of these samples, in float64 where the device has it."""
    wide = torch.float32 if losses.device.type == "mps" else torch.float64
    total = torch.zeros(len(losses), dtype=wide, device=losses.device)
    for one in found:
        total += one.factors.square_norms()
    return total.sqrt()


def _reordered(values: Sequence[Tensor], chunks: Sequence[Sequence[int]]) -> Tensor:
    """Values that were computed chunk by chunk, in the order of the batch."""
    joined = torch.cat(list(values))
    result = torch.empty_like(joined)
    result[[sample for chunk in chunks for sample in chunk]] = joined
    return result
