"""The parameters that are measured, by name, and the kinds that cannot be."""

import sys
from typing import Any

from torch import nn
from torch.nn.parameter import is_lazy

from lightning_stiffness.errors import StiffnessError
from lightning_stiffness.gram.plain import plain_name

_SHARDING = {
    "torch.distributed.fsdp": ("FullyShardedDataParallel", "FSDPModule"),
    "torch.distributed.tensor": ("DTensor",),
}


def trainable(module: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters with `requires_grad`, named as in the user's own module.

    Raises:
        StiffnessError: There is none, or they are not here: sharded over processes, or not yet made.
    """
    named = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
    if not named:
        raise StiffnessError(
            f"{type(module).__name__} has no trainable parameter: every requires_grad is False, so there is "
            "no gradient to compare. Measure before freezing, or unfreeze the layers you want to look at."
        )
    _require_whole(module, named)
    plain = {plain_name(name): parameter for name, parameter in named.items()}
    return plain if len(plain) == len(named) else named


def _require_whole(module: nn.Module, named: dict[str, nn.Parameter]) -> None:
    unmade = [name for name, parameter in named.items() if is_lazy(parameter)]
    if unmade:
        raise StiffnessError(
            f"All parameters must exist; found {unmade[0]} of a lazy layer that has not seen an input. Run the module "
            "on one batch first."
        )
    kinds = _sharding_types()
    if kinds and any(isinstance(value, kinds) for value in (*module.modules(), *named.values())):
        raise StiffnessError(
            "All parameters must be whole on each process; found a module whose parameters are sharded (FSDP or "
            "DTensor), where autograd sees other tensors than the module shows. Train with DDP, or measure a plain "
            "copy: load the state that torch.distributed.checkpoint.state_dict.get_model_state_dict(module, "
            "options=StateDictOptions(full_state_dict=True)) returns into an unsharded module."
        )


def _sharding_types() -> tuple[type, ...]:
    """The types that mark sharding, of the modules that are imported."""
    found: list[Any] = [
        getattr(sys.modules[module], name, None)
        for module, names in _SHARDING.items()
        if module in sys.modules
        for name in names
    ]
    return tuple(kind for kind in found if kind is not None)
