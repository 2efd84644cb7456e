"""Turns the scalar loss of a batch back into the losses of its samples, and tells when that cannot be done."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.graph import Node

_LEAF: Final = "torch::autograd::AccumulateGrad"
_PENALTY: Final = "such as a penalty on weights"


class NotSeparableError(Exception):
    """The scalar cannot be read as a weighted sum over samples; the message says why, as the end of a sentence."""


class DifferentAloneError(NotSeparableError):
    """A sample's share of the loss is another one when the sample is alone."""


@dataclass(frozen=True, eq=False)
class Step:
    """What one run of a training step gave: its scalar, and all that was reduced to a number on the way there."""

    total: Tensor
    reduced: tuple[Tensor, ...]
    size: int


@dataclass(frozen=True, eq=False)
class Term:
    """Values from which the total is computed, equally many for each sample.

    Attributes:
        index: Which of the step's reduced tensors it is.
        values: The tensor, part of the graph below the total.
        weights: Gradient of the total with respect to values.
        size: Number of samples.
    """

    index: int
    values: Tensor
    weights: Tensor
    size: int

    @property
    def width(self) -> int:
        """Number of values of one sample."""
        return self.values.numel() // self.size

    def value_rows(self, sample_first: bool) -> Float[Tensor, "n t"]:
        """The values of each sample, for either order of samples and positions."""
        return self._rows(self.values, sample_first)

    def weight_rows(self, sample_first: bool) -> Float[Tensor, "n t"]:
        """The weights of the values of each sample."""
        return self._rows(self.weights, sample_first)

    def _rows(self, tensor: Tensor, sample_first: bool) -> Tensor:
        if sample_first:
            return tensor.reshape(self.size, self.width)
        return tensor.reshape(self.width, self.size).T


@dataclass(frozen=True)
class Plan:
    """How the terms of a loss are read.

    Attributes:
        sample_first: For each term whether its samples come before its positions.
        is_mean: Whether the weight of a sample falls as one over their number, as in a mean.
        is_certain: Whether a sample that counts has told so.
    """

    sample_first: tuple[bool, ...]
    is_mean: bool = True
    is_certain: bool = True


def cut(step: Step) -> tuple[Term, ...]:
    """The reduced tensors nearest to the total, through which it gets all of its gradient.

    Raises:
        NotSeparableError: If the total depends on a parameter in another way too.
    """
    found = _nearest(step)
    values = [step.reduced[index] for index in found]
    weights = torch.autograd.grad(step.total, values, retain_graph=True)
    if bool(step.total.detach().isnan()):
        weights = tuple(map(_without_uncounted, weights, values))
    return tuple(Term(*parts, step.size) for parts in zip(found, values, weights, strict=True))


def _without_uncounted(weights: Tensor, values: Tensor) -> Tensor:
    """A sum of zeros over a count of zero adds nothing: its weights are zero instead of infinite."""
    return torch.where(weights.isfinite() | (values.detach() != 0), weights, 0.0)


def _nearest(step: Step) -> list[int]:
    edges = {
        (values.grad_fn, values.output_nr): index
        for index, values in enumerate(step.reduced)
        if values.numel() % step.size == 0
    }
    found: set[int] = set()
    seen: set[Node] = set()
    pending = [(step.total.grad_fn, step.total.output_nr)]
    while pending:
        node, output = pending.pop()
        if (node, output) in edges:
            found.update({edges[node, output]} if step.reduced[edges[node, output]].numel() else ())
        elif node is not None and node not in seen:
            if node.name() == _LEAF:
                raise NotSeparableError(f"a part of it is no sum or mean over samples, {_PENALTY}")
            seen.add(node)
            pending.extend(node.next_functions)
    if not found:
        raise NotSeparableError("no sample of a batch is counted in it")
    return sorted(found)


def telling_samples(terms: Sequence[Term]) -> list[int]:
    """Up to three samples by which to try a plan, first, middle and last of those that count in all terms, if any do.

    Samples that are ignored, or have weight zero, do not tell how those that count are weighted.
    """
    size = terms[0].size
    counted = [(term.weight_rows(True) * term.value_rows(True)).detach().cpu() != 0 for term in terms]
    everywhere = torch.stack([rows.any(dim=1) for rows in counted]).all(dim=0).nonzero().flatten().tolist()
    chosen = everywhere or list(range(size))
    return sorted({chosen[0], chosen[len(chosen) // 2], chosen[-1]})


def is_reordered(terms: Sequence[Term], alone: Sequence[Sequence[Term]], tolerance: float) -> bool:
    """Whether each row of values of a batch is that of one of its samples alone, but not in their order.

    Args:
        terms: Terms of the batch.
        alone: Terms of batches of copies of one sample, for each sample of the batch.
        tolerance: Largest relative difference between values that count as equal.
    """
    if any([one.width for one in single] != [term.width for term in terms] for single in alone):
        return False
    together = torch.cat([term.value_rows(True) for term in terms], 1)
    single = torch.stack([torch.cat([one.value_rows(True)[0] for one in singles]) for singles in alone])
    order, expected = _sorted(together), _sorted(single)
    return not torch.equal(order, expected) and _equal(together[order], single[expected], tolerance)


def _sorted(rows: Float[Tensor, "n t"]) -> Int[Tensor, "n"]:
    """The order of the rows by their sums."""
    return rows.detach().sum(dim=1).argsort(stable=True)


def plan(terms: Sequence[Term], alone: Mapping[int, Sequence[Term]], tolerance: float) -> Plan:
    """How to read the terms of a batch, found from what some of its samples give alone.

    Args:
        terms: Terms of the batch.
        alone: Terms of batches of copies of one sample, by the position of that sample; not as many copies as the
            batch has samples, or what does not depend on their number would not be seen.
        tolerance: Largest relative difference between values that count as equal.

    Raises:
        DifferentAloneError: If values of a sample are not found again when it is alone.
        NotSeparableError: If the loss is put together in another way for one sample.
    """
    for singles in alone.values():
        _require_same_make(terms, singles, tolerance)
    found = []
    for position, term in enumerate(terms):
        pairs = [(sample, singles[position]) for sample, singles in alone.items()]
        fitting = [first for first in (True, False) if _agree(term, pairs, first, tolerance)]
        if not fitting:
            raise DifferentAloneError("the loss of a sample is another one when the sample is alone")
        found.append(fitting[0])
    size, copies = terms[0].size, next(iter(alone.values()))[0].size
    assert size != copies
    tried = [_growth(terms, singles, found, sample) for sample, singles in alone.items()]
    growths = [growth for growth in tried if growth is not None]
    is_sum = bool(growths) and all(abs(growth * copies / size - 1) < 1e-3 for growth in growths)
    return Plan(tuple(found), not is_sum, bool(growths))


def _require_same_make(terms: Sequence[Term], singles: Sequence[Term], tolerance: float) -> None:
    if [term.index for term in terms] != [single.index for single in singles]:
        raise NotSeparableError("it is computed in another way for a single sample")
    for term, single in zip(terms, singles, strict=True):
        if term.width == single.width:
            continue
        if term.values.shape != single.values.shape:
            raise NotSeparableError("its samples have unequal numbers of values")
        if not _equal(term.values, single.values, tolerance):
            raise DifferentAloneError("it is computed from statistics of the batch")
        raise NotSeparableError(f"a part of it is the same for every sample, {_PENALTY}")


def _agree(term: Term, pairs: Sequence[tuple[int, Term]], sample_first: bool, tolerance: float) -> bool:
    rows = term.value_rows(sample_first)
    return all(_equal(rows[sample], single.value_rows(sample_first)[0], tolerance) for sample, single in pairs)


def _equal(first: Tensor, second: Tensor, tolerance: float) -> bool:
    first, second = first.detach(), second.detach()
    scale = torch.maximum(first.abs().amax(), second.abs().amax()).nan_to_num(posinf=1.0)
    return torch.allclose(first, second, rtol=tolerance, atol=tolerance * float(scale), equal_nan=True)


def _growth(terms: Sequence[Term], singles: Sequence[Term], sample_first: Sequence[bool], sample: int) -> float | None:
    """The one factor between a sample's weights in the batch and alone, each times the number of samples.

    None where nothing of the sample is counted, so that alone its mean is 0 / 0, or its weights are zero.

    Raises:
        NotSeparableError: If each term has a factor of its own: then the sample's gradient has another direction.
    """
    pairs = [
        (_weights(term, first, sample), _weights(single, first, 0))
        for term, single, first in zip(terms, singles, sample_first, strict=True)
        if _is_counted(single, first)
    ]
    if not pairs:
        return None
    together, alone = map(torch.cat, zip(*pairs, strict=True))
    if not bool(alone.isfinite().all()) or not bool(alone.any() or together.any()):
        return None
    factor = float((together * alone).sum() / alone.square().sum())
    if not (factor > 0 and _equal(together, factor * alone, 1e-3)):
        raise NotSeparableError("the shares of its terms depend on the other samples")
    return factor


def _is_counted(single: Term, sample_first: bool) -> bool:
    return bool(single.weight_rows(sample_first)[0].any() or single.value_rows(sample_first)[0].any())


def _weights(term: Term, sample_first: bool, sample: int) -> Tensor:
    return term.weight_rows(sample_first)[sample].cpu().double() * term.size


def join(terms: Sequence[Term], how: Plan) -> Float[Tensor, "n"]:
    """Losses of the samples, whose mean (for a loss that is a sum: whose sum) has the gradient of the total."""
    losses = sum((_shares(term, first) for term, first in zip(terms, how.sample_first, strict=True)), start=0.0)
    assert isinstance(losses, Tensor)
    return losses * terms[0].size if how.is_mean else losses


def _shares(term: Term, sample_first: bool) -> Float[Tensor, "n"]:
    return (term.weight_rows(sample_first) * term.value_rows(sample_first)).sum(dim=1)
