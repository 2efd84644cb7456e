"""One batch of one model: its factors, chunk by chunk and group by group, within a budget of memory."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from lightning_stiffness.batching import take
from lightning_stiffness.gram.class_sums import ClassSums, mean_cosines
from lightning_stiffness.gram.collect import Collector, Found
from lightning_stiffness.gram.factors import Explicit, Factors, runs_of
from lightning_stiffness.gram.fallback import Fallback
from lightning_stiffness.gram.plan import Plan
from lightning_stiffness.gram.products import GramAccumulator
from lightning_stiffness.gram.results import ClassCosine, Explanation, ExplanationRow, Gram
from lightning_stiffness.gram.scale import unit_weights

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
        """How many samples go forward and backward at once within the budget."""
        return self._chunk(0)

    def _chunk(self, kept: int) -> int:
        """The same where `kept` bytes a sample are held beside the activations."""
        return max(1, min(self.samples, int(self.budget / (BACKWARD_SHARE * self.plan.bytes_per_sample + kept))))

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
    def gram(self) -> Gram:
        """The Gram matrix, in one pass where the batch fits the budget."""
        routes = dict.fromkeys(self.names, "not used by the loss")
        names = list(self.names)

        def noted(found: Found) -> Factors:
            routes.update((names[index], found.factors.route) for index in found.parameters)
            return found.factors

        values, weights, total = self._whole(noted) if self.chunk >= self.samples else self._in_chunks(noted)
        if self.uncovered:
            fallback = Fallback(self.module, self.loss, self.budget)
            for block in fallback.blocks(self.batch, self.uncovered, weights):
                total.add_dense(block.detach().to(total.matrix.dtype))
            routes.update(
                (names[k], f"fallback: {reason}; {fallback.route}") for k, reason in self.plan.fallback.items()
            )
        return Gram(_unscaled(total.result(), weights), values, routes)

    def _whole(self, noted: Callable[[Found], Factors]) -> tuple[Tensor, Tensor, GramAccumulator]:
        losses = self.losses_of(self.batch)
        values, weights, total = losses.detach(), unit_weights(losses), self._accumulator()
        self.collect(losses, weights, lambda found: noted(found).add_gram(total))
        return values, weights, total

    def _in_chunks(self, noted: Callable[[Found], Factors]) -> tuple[Tensor, Tensor, GramAccumulator]:
        """Keeps the factors of one group of parameters for all samples, then the next group's."""
        total = self._accumulator()
        everyone = list(range(self.samples))
        values, weights = self._losses_and_weights(everyone)
        for group in self._groups(self._trial(), lambda factors: factors.elements * self.samples * 4):
            kept: dict[tuple[int, ...], list[Factors]] = {}
            for samples in self._chunks(everyone):

                def keep(found: Found, kept: dict[tuple[int, ...], list[Factors]] = kept) -> None:
                    noted(found)
                    kept.setdefault(found.key, []).append(found.factors.compact())

                losses = self._losses(samples)
                self.collect(losses, weights[samples].to(losses), keep, group)
                del losses
            for key in list(kept):
                stacked(kept.pop(key)).add_gram(total)
        return values, weights, total

    @torch.no_grad()
    def class_cosine(self, targets: Int[Tensor, "n"], num_classes: int) -> ClassCosine:
        """The class matrix from sums over classes."""
        order = torch.argsort(targets.cpu(), stable=True).tolist()
        trial = self._trial()
        groups = self._groups(trial, lambda factors: factors.columns * num_classes * 4)
        kept = sum(one.factors.elements for one in trial) + sum(parameter.numel() for parameter in self.uncovered)
        chunks = self._chunks(order, kept * 4)
        norms: Tensor | None = None
        values = torch.empty(0)
        products: Tensor | None = None
        if len(groups) > 1:
            values, norms = self._norms(chunks)
        for group in groups:
            sums = ClassSums(num_classes)
            found_values, found_norms = self._add_class_sums(
                sums, chunks, targets, None if len(groups) == 1 else group, norms
            )
            values, norms = (found_values, found_norms) if norms is None else (values, norms)
            products = sums.products() if products is None else products + sums.products()
        assert norms is not None
        assert products is not None
        alive = (norms > 0).to(targets.device)
        counts = torch.bincount(targets[alive], minlength=num_classes).double()
        return ClassCosine(mean_cosines(products, counts.to(products.device)), counts, ~alive, values)

    def _norms(self, chunks: Sequence[list[int]]) -> tuple[Tensor, Tensor]:
        """The losses and the norms of the weighted gradients of all samples, by one pass."""
        values, norms = [], []
        for samples in chunks:
            found, losses = self._found(samples)
            values.append(losses)
            norms.append(_norms_of(found, losses))
        return _reordered(values, chunks), _reordered(norms, chunks)

    def _add_class_sums(
        self,
        sums: ClassSums,
        chunks: Sequence[list[int]],
        targets: Tensor,
        group: set[int] | None,
        norms: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """Adds all samples, class by class; returns losses and norms in the order of the batch."""
        values, all_norms = [], []
        for samples in chunks:
            found, losses = self._found(samples, group)
            own = _norms_of(found, losses) if norms is None else norms[samples]
            weights = torch.where(own > 0, 1 / own, torch.zeros_like(own))
            sums.add(found, weights, runs_of(targets.cpu()[samples].tolist()))
            values.append(losses)
            all_norms.append(own)
        return _reordered(values, chunks), _reordered(all_norms, chunks)

    def _found(self, samples: Sequence[int], group: set[int] | None = None) -> tuple[list[Found], Tensor]:
        """The factors of some samples, those of the fallback included, and their losses."""
        found: list[Found] = []
        losses = self._losses(samples)
        weights = unit_weights(losses)
        self.collect(
            losses,
            weights,
            lambda one: found.append(_compact(one)),
            group,
        )
        uncovered = [k for k in sorted(self.plan.fallback) if group is None or k in group]
        if uncovered:
            part = take(self.batch, list(samples), self.samples)
            parameters = [self.parameters[k] for k in uncovered]
            blocks = Fallback(self.module, self.loss, self.budget).blocks(part, parameters, weights)
            found.append(
                Found((-2,), tuple(uncovered), "fallback", Explicit(torch.cat([block.detach() for block in blocks], 1)))
            )
        return found, losses.detach()

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

        losses = self._losses(samples)
        self.collect(losses, unit_weights(losses), emit)
        for index, reason in sorted(self.plan.fallback.items()):
            stored = self.parameters[index].numel() * self.samples * 4
            rows.append(ExplanationRow(names[index], "?", f"fallback: {reason}", None, stored))
        return Explanation(tuple(rows), self.samples, self.plan.bytes_per_sample * len(samples), len(samples))

    def _trial(self) -> list[Found]:
        """The factors of two samples, which tell how large those of all samples will be."""
        found: list[Found] = []
        losses = self._losses(list(range(min(self.samples, 2))))
        self.collect(losses, torch.ones_like(losses), lambda one: found.append(_compact(one)))
        return found

    def _groups(self, trial: Sequence[Found], bytes_of: Callable[[Factors], int]) -> list[set[int]]:
        """Groups of parameters which need no more than half the budget together, in the order in which they come."""
        groups: list[set[int]] = [set()]
        filled = 0
        for one in trial:
            known = next((group for group in groups if not group.isdisjoint(one.parameters)), None)
            if known is not None:  # another part of a parameter stays with the first
                known.update(one.parameters)
                continue
            size = bytes_of(one.factors)
            if filled and filled + size > self.budget // 2:
                groups.append(set())
                filled = 0
            groups[-1].update(one.parameters)
            filled += size
        groups[0].update(self.plan.fallback)
        return groups

    def _chunks(self, order: Sequence[int], kept: int = 0) -> list[list[int]]:
        """Parts of nearly equal size; none of a single sample, a special case in many models, if it can be helped."""
        count = max(1, min(-(-self.samples // self._chunk(kept)), self.samples // 2))
        bounds = [k * len(order) // count for k in range(count + 1)]
        return [list(order[start:stop]) for start, stop in pairwise(bounds)]

    def _losses(self, samples: Sequence[int]) -> Tensor:
        if list(samples) == list(range(self.samples)):
            return self.losses_of(self.batch)
        return self.losses_of(take(self.batch, list(samples), self.samples))

    def _losses_and_weights(self, order: Sequence[int]) -> tuple[Tensor, Tensor]:
        values, weights = [], []
        for samples in self._chunks(order):
            losses = self._losses(samples)
            values.append(losses.detach())
            weights.append(unit_weights(losses))
        return torch.cat(values), torch.cat(weights)

    def _accumulator(self) -> GramAccumulator:
        parameter = self.parameters[0]
        dtype = torch.promote_types(parameter.dtype, torch.float32)
        return GramAccumulator(self.samples, dtype, parameter.device, self.budget // 4)


def stacked(parts: Sequence[Any]) -> Any:
    """Factors of consecutive chunks of samples as one."""
    if len(parts) == 1:
        return parts[0]
    changed: dict[str, Any] = {}
    for entry in fields(parts[0]):
        values = [getattr(part, entry.name) for part in parts]
        if entry.init and isinstance(values[0], Tensor):
            changed[entry.name] = torch.cat(values)
        elif entry.init and isinstance(values[0], Factors):
            changed[entry.name] = stacked(values)
    return replace(parts[0], **changed)


def _unscaled(matrix: Float[Tensor, "n n"], weights: Float[Tensor, "n"]) -> Float[Tensor, "n n"]:
    """Undoes the weights, in float64 where the device has it."""
    scale = 1 / (weights if weights.device.type == "mps" else weights.double())
    return matrix.to(scale.dtype) * scale[:, None] * scale


def _norms_of(found: Sequence[Found], losses: Tensor) -> Tensor:
    total = torch.zeros(
        len(losses), dtype=torch.float64 if losses.device.type != "mps" else torch.float32, device=losses.device
    )
    for one in found:
        total += one.factors.square_norms()
    return total.sqrt()


def _reordered(values: Sequence[Tensor], chunks: Sequence[list[int]]) -> Tensor:
    """Values that were computed chunk by chunk, in the order of the batch."""
    joined = torch.cat(list(values))
    result = torch.empty_like(joined)
    result[[sample for chunk in chunks for sample in chunk]] = joined
    return result


def _compact(found: Found) -> Found:
    """The same in the form which needs the least memory to keep."""
    return replace(found, factors=found.factors.compact())
