"""Rules of look-ups: embeddings, and parameters read at indices."""

import math
from typing import Any

import torch
from torch import Tensor

from lightning_stiffness.errors import MixedSamplesError
from lightning_stiffness.gram.embedding import Rows
from lightning_stiffness.gram.graph import Layout, NotCovered, signed
from lightning_stiffness.gram.rules.registry import SlotFactors, SlotShapes, rule


@rule("EmbeddingBackward0")
def embedding(node: Any, slots: SlotShapes, output_gradient: Tensor, layout: Layout) -> SlotFactors:
    """Table look-up."""
    _require_no_counts(node)
    values = layout.rows(output_gradient)
    indices = layout.rows(node._saved_indices.unsqueeze(-1)).squeeze(-1)
    padding = signed(node._saved_padding_idx)
    if padding >= 0:
        values = values * (indices != padding).unsqueeze(-1)
    return {(0,): Rows(indices, values, slots[0][0])}


def _require_no_counts(node: Any) -> None:
    if node._saved_scale_grad_by_freq:
        raise MixedSamplesError(
            "per-sample gradients do not exist under scale_grad_by_freq=True, which divides the gradient of a token by "
            "its count in the whole batch; set scale_grad_by_freq=False on the embedding before measuring"
        )


_MEAN, _MAX = 1, 2


@rule("EmbeddingBagBackward0")
def embedding_bag(node: Any, slots: SlotShapes, output_gradient: Tensor, layout: Layout) -> SlotFactors:
    """Sums, means or maxima of rows of a table, bag by bag; the bags may differ in size."""
    _require_no_counts(node)
    if set(slots) != {0}:
        raise NotCovered("the weights of the samples of a bag are a parameter")
    if layout.prefix < 0:
        raise NotCovered("the bags of a sample do not lie side by side")
    rows, width = slots[0]
    if node._saved_mode == _MAX:
        largest = node._saved_result3  # the row of each entry
        positions = layout.frames(largest.clamp_min(0) * width + torch.arange(width, device=largest.device)).flatten(1)
        values = layout.frames(output_gradient * (largest >= 0)).flatten(1)
        return {(0,): Rows(positions, values.unsqueeze(2), rows * width)}
    indices, bag = node._saved_indices, _bags(node, len(output_gradient))
    scale = (indices != signed(node._saved_padding_idx)).to(output_gradient.dtype)
    if node._saved_mode == _MEAN:
        scale = scale / scale.new_zeros(len(output_gradient)).index_add_(0, bag, scale).clamp_min(1)[bag]
    if node._saved_per_sample_weights is not None:
        scale = scale * node._saved_per_sample_weights
    owner = layout.frames(torch.arange(len(output_gradient), device=bag.device)).flatten(1)
    return {(0,): Rows(*_by_sample(indices, output_gradient[bag] * scale[:, None], bag, owner), rows)}


def _bags(node: Any, bags: int) -> Tensor:
    """The bag of each index."""
    starts = node._saved_offsets[:bags]
    places = torch.arange(len(node._saved_indices), device=starts.device)
    return torch.searchsorted(starts, places.to(starts.dtype), right=True) - 1


def _by_sample(indices: Tensor, values: Tensor, bag: Tensor, bags_of: Tensor) -> tuple[Tensor, Tensor]:
    """Indices [n, t] and values [n, t, d] of each sample, filled up with zeros."""
    samples = len(bags_of)
    sample_of = bag.new_empty(bags_of.numel())
    sample_of[bags_of] = torch.arange(samples, device=bag.device)[:, None].expand_as(bags_of)
    sample = sample_of[bag]
    order = torch.argsort(sample, stable=True)
    counts = torch.bincount(sample, minlength=samples)
    length = max(1, int(counts.max()))
    place = torch.arange(len(sample), device=bag.device) - (counts.cumsum(0) - counts)[sample[order]]
    filled = indices.new_zeros(samples, length), values.new_zeros(samples, length, values.shape[1])
    filled[0][sample[order], place] = indices[order]
    filled[1][sample[order], place] = values[order]
    return filled


@rule("IndexBackward0", "IndexSelectBackward0", "GatherBackward0", "TakeBackward0")
def look_up(node: Any, slots: SlotShapes, output_gradient: Tensor, layout: Layout) -> SlotFactors:
    """Entries of a parameter, read at indices that depend on the sample."""
    if set(slots) != {0}:
        raise NotCovered("the indices are a parameter")
    shape = slots[0]
    whole_rows = _row_indices(node, output_gradient.ndim - len(shape) + 1)
    if whole_rows is not None and len(shape) > 1:
        gradient = output_gradient.flatten(whole_rows.ndim)
        indices = layout.rows(whole_rows.unsqueeze(-1)).squeeze(-1)
        return {(0,): Rows(indices % shape[0], layout.rows(gradient), shape[0])}
    source = torch.arange(math.prod(shape), device=output_gradient.device).reshape(shape)
    positions = layout.rows(_replayed(node, source).unsqueeze(-1)).squeeze(-1)
    return {(0,): Rows(positions, layout.rows(output_gradient.unsqueeze(-1)), math.prod(shape))}


def _row_indices(node: Any, ndim: int) -> Tensor | None:
    """The indices, where they say which row of the parameter is read."""
    if node.name() == "IndexSelectBackward0" and signed(node._saved_dim) == 0:
        found: Tensor = node._saved_index
        return found
    if node.name() == "IndexBackward0" and len(node._saved_indices) == 1:
        (found,) = node._saved_indices
        return found if found.dtype == torch.int64 and found.ndim == ndim else None
    return None


def _replayed(node: Any, source: Tensor) -> Tensor:
    """The same operation on the places of the entries."""
    name = node.name()
    if name == "IndexBackward0":
        found: Tensor = torch.ops.aten.index(source, list(node._saved_indices))
        return found
    if name == "TakeBackward0":
        return source.take(node._saved_index)
    operation = source.index_select if name == "IndexSelectBackward0" else source.gather
    return operation(signed(node._saved_dim), node._saved_index)
