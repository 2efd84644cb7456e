"""The parameters that are measured, by name, and the kinds that cannot be."""

from torch import nn
from torch.nn.parameter import is_lazy

from lightning_stiffness.errors import StiffnessError
from lightning_stiffness.gram.plain import plain_name
from lightning_stiffness.gram.sharding import REMEDY, REQUIRED, is_sharded


def trainable(module: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters with `requires_grad`, named as in the user's own module.

    Raises:
        StiffnessError: There is none, they are complex, or not here: shared out among processes, or not yet made.
    """
    named = named_trainable(module)
    if not named:
        raise StiffnessError(
            f"{type(module).__name__} has no trainable parameter: every requires_grad is False, so there is "
            "no gradient to compare. Measure before freezing, or unfreeze the layers you want to look at."
        )
    unmade = [name for name, parameter in named.items() if is_lazy(parameter)]
    if unmade:
        raise StiffnessError(
            f"All parameters must exist; found {unmade[0]} of a lazy layer that has not seen an input. Run the module "
            "on one batch first."
        )
    complex_ones = [name for name, parameter in named.items() if parameter.is_complex()]
    if complex_ones:
        dtype = str(named[complex_ones[0]].dtype).removeprefix("torch.")
        raise StiffnessError(
            f"All trainable parameters must be real; found {complex_ones[0]}, which is {dtype}. Hold it as "
            "nn.Parameter(torch.view_as_real(w)) and use torch.view_as_complex of it in forward, which trains alike; "
            "or freeze it."
        )
    if is_sharded(module):
        raise StiffnessError(
            f"{REQUIRED} found a module whose parameters are sharded (FSDP1, DeepSpeed's third stage, or DTensor), "
            f"where autograd sees other tensors than the module shows. {REMEDY}"
        )
    return named


def named_trainable(module: nn.Module) -> dict[str, nn.Parameter]:
    """As `trainable`, and also where there is none, or where it would refuse them."""
    named = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
    plain = {plain_name(name): parameter for name, parameter in named.items()}
    return plain if len(plain) == len(named) else named
