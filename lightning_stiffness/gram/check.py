"""The engine against plain autograd, and who is at fault when they disagree."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lightning_stiffness.batching import take
from lightning_stiffness.errors import MixedSamplesError, StiffnessError
from lightning_stiffness.gram.collect import Found
from lightning_stiffness.gram.factors import Run
from lightning_stiffness.gram.fallback import COPIES, gradients_of, scale_ratio
from lightning_stiffness.gram.measurement import Measurement
from lightning_stiffness.gram.modes import in_training_mode
from lightning_stiffness.gram.products import Block, GramAccumulator
from lightning_stiffness.gram.results import Gram
from lightning_stiffness.gram.scale import unit_weights
from lightning_stiffness.gram.unsteady import remedy

# Of |g_i| |g_j|: float32 gradients of deep networks differ by 1e-5 to 1e-4 between batch sizes, faults by 1e-2 or more.
TOLERANCE = 1e-3
ROUNDINGS = 16  # a tolerance of so many roundings, where that is more: in bfloat16
# A parameter's gradient that is smaller than this part of the whole gradient counts as having this size: gradients that
# cancel to nothing, such as that of a bias in front of a norm, are all rounding.
NOTICED = 1e-3
ACCUMULATED = 1 << 26  # bytes that the accumulator of a few samples may take
AUDITED = 4  # samples whose gradients are compared parameter by parameter


@dataclass(frozen=True)
class Check:
    """Recomputes gradients with plain autograd, and compares.

    Attributes:
        measurement: What was measured, and how.
        number: How many checks came before: each looks at other samples.
        tolerance: The error that is rounding, relative to the norms of two gradients.
    """

    measurement: Measurement
    number: int
    tolerance: float

    def agrees(self, gram: Gram) -> bool:
        """Whether K is what autograd gives: two samples alone, all samples in one sum, a few parameter by parameter.

        Raises:
            StiffnessError: The loss is random.
            MixedSamplesError: The gradient of one sample's loss changes with the other samples of the batch.
        """
        chosen = self.chosen(gram.norms)
        # Samples that mix leave no batch axis, and then no rule applies that could be wrong about them.
        if (
            None not in self.measurement.plan.prefixes
            and self._agrees_alone(gram, chosen)
            and self._agrees_widely(gram)
        ):
            return True
        return self._agrees_inside(gram, chosen) and self._agrees_widely(gram)

    def chosen(self, norms: Tensor) -> list[int]:
        """Two samples (or the one there is), with a gradient if possible."""
        order = self._order()
        zero = norms.cpu()[order] == 0
        return sorted(order[torch.argsort(zero, stable=True)][:2].tolist())

    def faulty(self) -> list[int]:
        """The parameters, by their place in the plan, which autograd contradicts: on a few samples, or on any."""
        return self.contradicted_on_a_few() or self._contradicted_anywhere()

    def contradicted_on_a_few(self) -> list[int]:
        """The same on samples which change from check to check."""
        few = self._order()[: self._affordable(AUDITED)].sort().values.tolist()
        return contradicted(self._part(few), torch.eye(len(few)), self.tolerance)

    def _contradicted_anywhere(self) -> list[int]:
        """The same on all samples, in parts that fit the budget, with one sum over each."""
        wrong: set[int] = set()
        for samples in self._parts():
            signs = self._signs(len(samples))[None]
            wrong.update(contradicted(self._part(samples), signs, self.tolerance))
        return sorted(wrong)

    def _agrees_alone(self, gram: Gram, chosen: Sequence[int]) -> bool:
        """Whether the entries of K for the chosen samples are those of the samples alone."""
        own = [self._alone(k, gram.losses) for k in chosen]
        return _close(_wide(gram.matrix)[chosen][:, chosen], _products(own), self.tolerance)

    def _agrees_widely(self, gram: Gram) -> bool:
        in_sum = self._agrees_in_sum(gram)
        if not in_sum and self.measurement.plan.fallback:
            # Backward may be more than the sum over samples for a parameter that is left to the fallback, and rightly:
            # scale_grad_by_freq divides by counts of the whole batch. The others are looked at without it.
            in_sum = not self._contradicted_anywhere()
        return in_sum and not self.contradicted_on_a_few()

    def _agrees_in_sum(self, gram: Gram) -> bool:
        """Whether |sum_i v_i g_i|^2 is v K v, with v_i = +-1 / |g_i|: one backward pass sees a fault of any sample."""
        norms = gram.norms
        weights = torch.where(norms > 0, self._signs(len(norms)).to(norms) / norms, torch.zeros_like(norms))
        total: list[Tensor] | None = None
        for samples in self._parts():
            losses = self._losses(samples)
            scale = scale_ratio(gram.losses[samples], losses.detach())
            if bool((scale != 1).any()):  # random, or divided by the number of samples
                again = self._losses(samples).detach()
                _require_repeatable(self.measurement.module, losses.detach(), again, partial(self._losses, samples))
            gradient = gradients_of((losses * scale * weights[samples].to(losses)).sum(), self.measurement.parameters)
            total = gradient if total is None else [a + b for a, b in zip(total, gradient, strict=True)]
        assert total is not None
        wide = _wide(weights)
        found = wide @ (_wide(gram.matrix) @ wide)
        return bool((found - _products([total])[0, 0]).abs() <= self.tolerance * max(1, int((norms > 0).sum())))

    def _agrees_inside(self, gram: Gram, chosen: Sequence[int]) -> bool:
        """Whether they are those of plain autograd on the whole batch.

        Finds out first whether the loss, and not the engine, is at fault.
        """
        measurement = self.measurement
        losses, again = measurement.losses_of(measurement.batch), measurement.losses_of(measurement.batch).detach()
        _require_repeatable(
            measurement.module, losses.detach(), again, partial(measurement.losses_of, measurement.batch)
        )
        scaled = losses * scale_ratio(gram.losses, again)
        inside = [gradients_of(scaled[k], measurement.parameters, True) for k in chosen]
        for k, gradient in zip(chosen, inside, strict=True):
            if not _parallel(gradient, self._alone(k, gram.losses), self.tolerance):
                raise MixedSamplesError(
                    "The loss of a sample must depend on that sample alone; the gradient of the loss of sample "
                    f"{k} changes when the other samples of the batch are taken away"
                    f"{in_training_mode(measurement.module)}. "
                    "Losses that compare samples (contrastive, batch statistics), add random noise or put samples in "
                    "another order (sorting by length) have no gradients of the samples as they stand in the batch: "
                    "pass a loss with one value per sample, in the order of the batch, without noise."
                )
        return _close(_wide(gram.matrix)[chosen][:, chosen], _products(inside), self.tolerance)

    def _alone(self, sample: int, losses: Tensor) -> list[Tensor]:
        """The gradient of one sample's loss, computed from that sample alone and scaled as it is in the batch."""
        one = self._losses([sample] * COPIES)[0]
        return gradients_of(one * scale_ratio(losses[sample], one.detach()), self.measurement.parameters)

    def _losses(self, samples: Sequence[int]) -> Tensor:
        part = self._part(samples)
        return part.losses_of(part.batch)

    def _parts(self) -> list[list[int]]:
        """All samples in parts that fit the budget."""
        return [part.tolist() for part in torch.arange(self.measurement.samples).split(self.measurement.fast_chunk())]

    def _part(self, samples: Sequence[int]) -> Measurement:
        whole = self.measurement
        if list(samples) == list(range(whole.samples)):
            return whole
        return replace(whole, batch=take(whole.batch, list(samples), whole.samples), samples=len(samples))

    def _affordable(self, samples: int) -> int:
        """So many samples, or the two that there must be where more gradients would be beyond the budget."""
        entries = sum(parameter.numel() for parameter in self.measurement.parameters)
        return samples if 8 * samples * entries <= self.measurement.budget else 2

    def _order(self) -> Tensor:
        return torch.randperm(self.measurement.samples, generator=self._generator())

    def _signs(self, count: int) -> Tensor:
        return torch.randint(0, 2, (count,), generator=self._generator()) * 2.0 - 1

    def _generator(self) -> torch.Generator:
        seed = self.measurement.samples + 104_729 * self.number  # of which the generator takes 32 bits
        return torch.Generator().manual_seed(seed % (1 << 32))


def contradicted(measurement: Measurement, rows: Float[Tensor, "m n"], tolerance: float) -> list[int]:
    """The parameters, by their place in the plan, whose part of rows K rows^T is not that of autograd.

    Where rows is the identity, the norms and the sums over classes are compared too.
    """
    parameters, losses = measurement.parameters, measurement.losses_of(measurement.batch)
    weights = unit_weights(losses)
    combined = rows.to(losses) @ (losses * weights)
    gradients = [gradients_of(one, parameters, True) for one in combined]
    expected = [_products([[row[k]] for row in gradients]) for k in range(len(parameters))]
    floor = NOTICED * torch.stack(expected).sum(0).diagonal().clamp_min(0).sqrt()
    silent = {k for k in range(len(parameters)) if k not in measurement.plan.fallback and bool(expected[k].any())}
    parts: list[_Part] = []

    def compare(found: Found) -> None:
        silent.difference_update(found.parameters)
        part = _Part(frozenset(found.parameters), _answers_or_none(found, rows))
        for other in [other for other in parts if other.parameters & part.parameters]:
            parts.remove(other)
            part = part.with_(other)
        parts.append(part)

    measurement.collect(losses, weights, compare)
    wrong: set[int] = set()
    for part in parts:
        reference = torch.stack([expected[k] for k in part.parameters]).sum(0)
        if not part.answers or not all(answer.is_close(reference, floor, tolerance) for answer in part.answers):
            wrong |= part.parameters
    return sorted(wrong | silent)


@dataclass(frozen=True)
class _Answer:
    """What the algebra of a form says of the products of sums of gradients."""

    products: Float[Tensor, "k k"]
    sums: Float[Tensor, "k m"]

    def is_close(self, reference: Float[Tensor, "m m"], floor: Tensor, tolerance: float) -> bool:
        """Whether it is what the products of the gradients in these sums make it."""
        sizes = self.sums.abs() @ (reference.diagonal().clamp_min(0).sqrt() + floor)
        sizes = torch.maximum(sizes, self.products.diagonal().clamp_min(0).sqrt())
        difference = (self.products - self.sums @ reference @ self.sums.T).abs()
        return bool((difference <= tolerance * sizes[:, None] * sizes).all())


@dataclass(frozen=True)
class _Part:
    """The answers for some parameters, added up over the parts in which their gradients came; none if one failed."""

    parameters: frozenset[int]
    answers: tuple[_Answer, ...]

    def with_(self, other: "_Part") -> "_Part":
        both = zip(self.answers, other.answers, strict=True) if self.answers and other.answers else ()
        return _Part(
            self.parameters | other.parameters,
            tuple(replace(one, products=one.products + more.products) for one, more in both),
        )


def _answers_or_none(found: Found, rows: Float[Tensor, "m n"]) -> tuple[_Answer, ...]:
    """The answers; none where shapes do not fit one another, which is as wrong as numbers can be."""
    try:
        return tuple(_answers(found, rows))
    except RuntimeError:
        return ()


def _answers(found: Found, rows: Float[Tensor, "m n"]) -> Iterator[_Answer]:
    """By the Gram; where each row is one sample also by the norms, and by sums over the two halves of the samples."""
    factors, samples = found.factors, rows.shape[1]
    norms = factors.square_norms()
    whole = Block(range(samples), range(samples))
    like = norms.new_empty(0, dtype=torch.promote_types(factors.dtype, torch.float32))
    total = GramAccumulator([whole], like, ACCUMULATED)
    factors.add_gram(total)
    gram, each = _wide(total.results()[0]), torch.eye(len(rows), dtype=torch.float64)
    yield _Answer(rows.double() @ gram @ rows.double().T, each)
    if len(rows) < samples:
        return
    yield _Answer(gram - torch.diag(gram.diagonal()) + torch.diag(_wide(norms)), each)
    half = (samples + 1) // 2
    runs = [run for run in (Run(0, 0, half), Run(1, half, samples)) if run.stop > run.start]
    sums = torch.zeros(2, factors.columns, dtype=factors.dtype, device=norms.device)
    factors.add_class_sums(sums, torch.ones_like(norms, dtype=factors.dtype), runs)
    members = torch.stack([torch.arange(samples) < half, torch.arange(samples) >= half]).double()
    yield _Answer(_wide(sums) @ _wide(sums).T, members)


def tolerance_of(tensors: Iterable[Tensor]) -> float:
    """The error that is rounding, of |g_i| |g_j|, for the coarsest of the tensors' types."""
    return max(TOLERANCE, ROUNDINGS * max(torch.finfo(tensor.dtype).eps for tensor in tensors))


def _require_repeatable(module: nn.Module, losses: Tensor, again: Tensor, evaluate: Callable[[], object]) -> None:
    if not torch.allclose(again, losses, rtol=1e-4, atol=1e-7):
        raise StiffnessError(
            "The losses must be the same each time a batch is measured; two evaluations of the same batch differ "
            f"by {(again - losses).abs().max():.1e}{in_training_mode(module)}. {remedy(module, evaluate)}"
        )


def _wide(tensor: Tensor) -> Tensor:
    """In float64 on the CPU; the order matters where the device has no float64."""
    return tensor.detach().cpu().double()


def _products(rows: Sequence[Sequence[Tensor]]) -> Float[Tensor, "m m"]:
    """The products of gradients, each given as one tensor a parameter, in float64 where the device has it."""
    total = torch.zeros(len(rows), len(rows), dtype=torch.float64)
    for parts in zip(*rows, strict=True):
        flat = torch.stack([part.flatten() for part in parts])
        flat = flat.float() if flat.device.type == "mps" else flat.double()
        total += (flat @ flat.T).cpu()
    return total


def _close(found: Tensor, expected: Tensor, tolerance: float) -> bool:
    norms = expected.diagonal().clamp_min(torch.finfo(expected.dtype).tiny).sqrt()
    return bool(((found - expected).abs() <= tolerance * norms[:, None] * norms).all())


def _parallel(first: Sequence[Tensor], second: Sequence[Tensor], tolerance: float) -> bool:
    products = _products([first, second])
    norms = products.diagonal().sqrt()
    if not bool(norms.all()):
        return not bool(norms.any())
    return bool(products[0, 1] > (1 - tolerance) * norms[0] * norms[1])
