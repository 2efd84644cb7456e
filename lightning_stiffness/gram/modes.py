"""Parts of a model whose training mode leaves samples without a gradient of their own."""

from collections.abc import Callable, Mapping

from torch import nn

from lightning_stiffness.errors import MixedSamplesError, StiffnessError

NAMED = 5  # modules in a message


def require_measurable_mode(module: nn.Module) -> None:
    """Looks for what is known to fail before anything runs: random state and running statistics stay untouched.

    Raises:
        MixedSamplesError: Batch normalisation in training mode.
        StiffnessError: Dropout in training mode.
    """
    training = _training(module)
    mixing = _names(training, _normalises_by_batch)
    if mixing:
        raise MixedSamplesError(
            "Per-sample gradients do not exist under BatchNorm in training mode, which mixes the samples of a batch "
            f"(in training mode: {mixing}). Call module.eval() before measuring."
        )
    random = _names(training, _drops)
    if random:
        raise StiffnessError(
            "The losses must be the same each time a batch is measured, and dropout is on "
            f"(in training mode: {random}). Call module.eval() before measuring."
        )


def in_training_mode(module: nn.Module) -> str:
    """Who may be to blame, for a message; empty where nobody is known."""
    names = _names(_training(module), lambda part: _normalises_by_batch(part) or _drops(part) or _is_suspect(part))
    return f" (in training mode: {names})" if names else ""


def _training(module: nn.Module) -> dict[str, nn.Module]:
    return {name or type(part).__name__: part for name, part in module.named_modules() if part.training}


def _names(parts: Mapping[str, nn.Module], is_meant: Callable[[nn.Module], bool]) -> str:
    names = [name for name, part in parts.items() if is_meant(part)]
    return ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")


def _normalises_by_batch(part: nn.Module) -> bool:
    return isinstance(part, nn.modules.batchnorm._BatchNorm)


def _drops(part: nn.Module) -> bool:
    """Dropout modules, and attention and recurrent layers with dropout inside."""
    if isinstance(part, nn.modules.dropout._DropoutNd):
        return part.p > 0
    if isinstance(part, nn.RNNBase):
        return part.dropout > 0 and part.num_layers > 1
    return isinstance(part, nn.MultiheadAttention) and part.dropout > 0


def _is_suspect(part: nn.Module) -> bool:
    """Parts of other libraries which are dropout by their name, such as DropPath and StochasticDepth."""
    name = type(part).__name__.lower()
    return ("drop" in name or "stochastic" in name) and next(part.children(), None) is None
