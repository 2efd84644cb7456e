"""The layer of a module that makes the logits, and hooks on it that are there for a time only."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from lightning_stiffness.errors import StiffnessError

_SHOWN = 8


def classifier_of(module: nn.Module, num_classes: int | None, name: str | None = None) -> tuple[str, nn.Module]:
    """The classifier layer and its name: the one Linear layer with an output for each class.

    Frozen layers (a teacher network) count only where no other has as many outputs.

    Args:
        module: The model.
        num_classes: Number of classes; None where only a name can tell.
        name: Its name in the module, which may be a layer of any kind that maps [n, d] to [n, c].

    Raises:
        StiffnessError: There is no such layer, or more than one.

    >>> classifier_of(nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 3)), num_classes=3)
    ('2', Linear(in_features=4, out_features=3, bias=True))
    """
    if name is not None:
        return name, _named(module, name)
    linear = {key: layer for key, layer in module.named_modules() if isinstance(layer, nn.Linear)}
    fitting = {key: layer for key, layer in linear.items() if layer.out_features == num_classes}
    fitting = {key: layer for key, layer in fitting.items() if _is_trainable(layer)} or fitting
    if len(fitting) == 1:
        return next(iter(fitting.items()))
    wanted = "with an output for each class" if num_classes is None else f"with {num_classes} outputs"
    shown = fitting or linear
    raise StiffnessError(
        f"The classifier must be the only Linear layer {wanted}; found {len(fitting)} of {len(linear)} Linear layers: "
        f'{_listed(shown)}. Pass classifier="name", as in named_modules.'
    )


class HeadHooks:
    """Two hooks on a layer: one changes its input, the other its output. `remove` takes them away.

    Args:
        layer: The classifier.
        before: Input [n, d] -> the input to be used instead.
        after: Output [n, c] -> the output to be used instead.
        name: Of the layer, for messages.
    """

    def __init__(
        self, layer: nn.Module, before: Callable[[Tensor], Tensor], after: Callable[[Tensor], Tensor], name: str
    ) -> None:
        self._name = name
        self._before, self._after = before, after
        # They count and remember, which must not become a part of compiled code.
        uncompiled: Callable[[Any], Any] = torch.compiler.disable
        self._handles = (
            layer.register_forward_pre_hook(uncompiled(self._on_input)),
            layer.register_forward_hook(uncompiled(self._on_output)),
        )

    def remove(self) -> None:
        """Takes the hooks off the layer."""
        for handle in self._handles:
            handle.remove()

    def _on_input(self, layer: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if not layer.training or not inputs:
            return None
        return (self._before(self._matrix(inputs[0], "input")), *inputs[1:])

    def _on_output(self, layer: nn.Module, inputs: tuple[Any, ...], output: Any) -> Tensor | None:
        return self._after(self._matrix(output, "output")) if layer.training else None

    def _matrix(self, value: Any, what: str) -> Tensor:
        if isinstance(value, Tensor) and value.ndim == 2:
            return value
        found = f"shape {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise StiffnessError(
            f"The {what} of the classifier {self._name!r} must be a matrix with a row for each sample, found {found}. "
            "Classes of positions (tokens, pixels) cannot be balanced by this callback; use "
            "functional.logit_offsets in the loss."
        )


def _named(module: nn.Module, name: str) -> nn.Module:
    try:
        return module.get_submodule(name)
    except AttributeError:
        layers = dict(list(module.named_modules())[1:])
        raise StiffnessError(
            f"classifier= must be the name of a layer, found {name!r}. The layers are: {_listed(layers)}."
        ) from None


def _is_trainable(layer: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in layer.parameters())


def _listed(layers: dict[str, Any]) -> str:
    shown = [
        f"{key!r} ({layer.out_features} outputs)" if isinstance(layer, nn.Linear) else repr(key)
        for key, layer in list(layers.items())[-_SHOWN:]
    ]
    return ("... " if len(layers) > _SHOWN else "") + (", ".join(shown) or "none")
