"""Factors of some of the samples, and those of several chunks of samples as one."""

from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor

from lightning_stiffness.gram.factors import Explicit, Factors


def part_of(factors: Any, part: slice) -> Factors:
    """The same for some of the samples."""
    found: Factors = _changed(factors, [factors], lambda values: values[0][part])
    return found


def stacked(parts: Sequence[Any]) -> Factors:
    """Factors of consecutive chunks of samples as one; explicit where their forms differ, as those of sequences do."""
    if len({_form(part) for part in parts}) > 1:
        return Explicit(torch.cat([part.joined_blocks() for part in parts]))
    found: Factors = parts[0] if len(parts) == 1 else _changed(parts[0], parts, torch.cat)
    return found


def _form(part: Any) -> tuple[Any, ...]:
    """What is the same in factors that can be stacked as they are."""
    values = [getattr(part, entry.name) for entry in fields(part)]
    shapes = tuple(value.shape[1:] for value in values if isinstance(value, Tensor))
    return type(part), shapes, *(_form(value) for value in values if isinstance(value, Factors))


def _changed(first: Any, parts: Sequence[Any], change: Callable[[list[Tensor]], Tensor]) -> Any:
    """The first value with each tensor, also of factors inside it, changed together with those of the others."""
    changed: dict[str, Any] = {}
    for entry in fields(first):
        values = [getattr(part, entry.name) for part in parts]
        if entry.init and isinstance(values[0], Tensor):
            changed[entry.name] = change(values)
        elif entry.init and isinstance(values[0], Factors):
            changed[entry.name] = _changed(values[0], values, change)
    return replace(first, **changed)
