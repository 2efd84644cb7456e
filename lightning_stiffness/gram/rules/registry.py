"""The registry of rules."""

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from torch import Tensor

from lightning_stiffness.gram.factors import Factors
from lightning_stiffness.gram.graph import Layout, NotCovered

SlotFactors: TypeAlias = Mapping[tuple[int, ...], Factors]
SlotShapes: TypeAlias = Mapping[int, tuple[int, ...]]
"""The shape of the (re-indexed) parameter in each slot that holds one."""
Rule: TypeAlias = Callable[[Any, SlotShapes, Tensor, Layout], SlotFactors]

RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Registers a rule under the names of autograd nodes."""

    def register(function: Rule) -> Rule:
        for name in names:
            RULES[name] = function
        return function

    return register


def rule_of(name: str) -> Rule:
    """The rule of a node.

    Raises:
        NotCovered: There is none.
    """
    if name not in RULES:
        raise NotCovered("no rule")
    return RULES[name]
