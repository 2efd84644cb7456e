"""Factors of some of the samples, and in the memory of others."""

from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from typing import Any

from torch import Tensor

from lightning_stiffness.gram.factors import Explicit, Factors


def part_of(factors: Any, part: slice) -> Factors:
    """The same for some of the samples."""
    found: Factors = _changed([factors], lambda values: values[0][part])
    return found


def zeros_like(factors: Any, samples: int) -> Factors:
    """Gradients that are all zero, of so many samples, in the form of others."""
    found: Factors = _changed([factors], lambda values: values[0].new_zeros(samples, *values[0].shape[1:]))
    return found


def write(into: Any, rows: slice, factors: Any) -> None:
    """Writes gradients over those of some samples, in the same form."""
    _changed([into, factors], lambda values: values[0][rows].copy_(values[1]))


def small(factors: Factors) -> Factors:
    """The same gradients in the form of fewer entries."""
    return factors if factors.is_compact else Explicit(factors.joined_blocks())


def compact(factors: Factors) -> Factors:
    """The same, which keeps no larger memory alive than its own."""
    found: Factors = _changed([small(factors)], lambda values: _owned(values[0]))
    return found


def form_of(factors: Any) -> tuple[Any, ...]:
    """What is the same in factors that can be written over one another."""
    values = [getattr(factors, entry.name) for entry in fields(factors) if entry.init]
    return type(factors), *(_form_of_entry(value) for value in values)


def _form_of_entry(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.shape[1:]
    return form_of(value) if isinstance(value, Factors) else value


def _owned(tensor: Tensor) -> Tensor:
    return tensor if tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size() else tensor.clone()


def _changed(parts: Sequence[Any], change: Callable[[list[Tensor]], Tensor]) -> Any:
    """The first value with each tensor, also of factors inside it, changed together with those of the others."""
    changed: dict[str, Any] = {}
    for entry in fields(parts[0]):
        values = [getattr(part, entry.name) for part in parts]
        if entry.init and isinstance(values[0], Tensor):
            changed[entry.name] = change(values)
        elif entry.init and isinstance(values[0], Factors):
            changed[entry.name] = _changed(values, change)
    return replace(parts[0], **changed)
