"""The layer of a module that makes the logits, and hooks on it that are there for a time only."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from lightning_stiffness.callbacks.layer_hooks import LayerHook, forget_compiled_code
from lightning_stiffness.errors import StiffnessError

_SHOWN = 8


def classifier_of(module: nn.Module, num_classes: int | None, name: str | None = None) -> tuple[str, nn.Module]:
    """The classifier layer and its name: the one Linear layer with an output for each class.

    Frozen layers (a teacher network) count only where no other has as many outputs. A frozen layer whose adapter of as
    many outputs (LoRA) is held by the same module makes one head with it: that module is the classifier.

    Args:
        module: The model.
        num_classes: Number of classes; None where only a name can tell.
        name: Its name in the module, which may be a layer of any kind that gives [n, c].

    Raises:
        StiffnessError: There is no such layer, or more than one.

    >>> classifier_of(nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 3)), num_classes=3)
    ('2', Linear(in_features=4, out_features=3, bias=True))
    """
    if name is not None:
        return name, _named(module, name)
    linear = {key: layer for key, layer in module.named_modules() if isinstance(layer, nn.Linear)}
    fitting = {key: layer for key, layer in linear.items() if layer.out_features == num_classes}
    heads = _heads(module, fitting)
    heads = {key: head for key, head in heads.items() if _is_trainable(head)} or heads
    if len(heads) == 1:
        return next(iter(heads.items()))
    if num_classes is None:
        raise StiffnessError(
            "The number of classes must be known to find the classifier, the only Linear layer with an output for each "
            f"of them; found {len(linear)} Linear layers: {_listed(linear)}. Pass num_classes= or counts=."
        )
    single = [key for key, layer in linear.items() if layer.out_features == 1]
    if num_classes == 2 and not heads and single:
        raise StiffnessError(one_output(single[-1]))
    raise StiffnessError(
        f"The classifier must be the only Linear layer with {num_classes} outputs; found {len(heads)} of "
        f'{len(linear)} Linear layers: {_listed(heads or linear)}. Pass classifier="name", as in named_modules.'
    )


def one_output(name: str) -> str:
    """What to do about a layer that gives one logit for two classes."""
    return (
        f"The classifier must have an output for each of 2 classes, found 1 output of {name!r}: one logit for two "
        "classes is not supported. Give it two outputs and the loss cross_entropy, or pass logits=False, smoothing=0 "
        "for what sampling does alone."
    )


def matrix_of(value: Any, what: str, name: str) -> Tensor:
    """The value, if it is a matrix.

    Raises:
        StiffnessError: It is none.
    """
    if isinstance(value, Tensor) and value.ndim == 2:
        return value
    found = f"shape {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
    raise StiffnessError(
        f"The {what} of the classifier {name!r} must be a matrix with a row for each sample, found {found}. Classes of "
        "positions (tokens, pixels) cannot be balanced by this callback; use functional.logit_offsets in the loss. "
        "Where a Flatten or a pooling follows, pass its name as classifier=."
    )


class HeadHooks:
    """Two hooks on a layer: one changes its input, the other its output. `remove` takes them away.

    Args:
        layer: The classifier.
        before: First input -> the input to be used instead.
        after: Output [n, c] -> the output to be used instead.
        name: Of the layer, for messages.
    """

    def __init__(
        self, layer: nn.Module, before: Callable[[Any], Any], after: Callable[[Tensor], Tensor], name: str
    ) -> None:
        self._name = name
        self._before, self._after = before, after
        self._handles = (
            layer.register_forward_pre_hook(LayerHook(layer, self._on_input), with_kwargs=True),
            layer.register_forward_hook(LayerHook(layer, self._on_output)),
        )
        forget_compiled_code()

    def remove(self) -> None:
        """Takes the hooks off the layer."""
        for handle in self._handles:
            handle.remove()
        forget_compiled_code()

    def _on_input(self, layer: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> Any:
        if not layer.training:
            return None
        if inputs:
            return (self._before(inputs[0]), *inputs[1:]), named
        name, first = next(iter(named.items()))
        return inputs, {**named, name: self._before(first)}

    def _on_output(self, layer: nn.Module, inputs: tuple[Any, ...], output: Any) -> Tensor | None:
        return self._after(matrix_of(output, "output", self._name)) if layer.training else None


def _heads(module: nn.Module, fitting: dict[str, nn.Linear]) -> dict[str, nn.Module]:
    """The layers, where a frozen one and its adapter are taken together for the module that holds both."""
    heads: dict[str, nn.Module] = dict(fitting)
    for key, layer in fitting.items():
        parent = key.rpartition(".")[0]
        holder = module.get_submodule(parent)
        if not parent or _is_trainable(layer) or isinstance(holder, nn.Sequential | nn.ModuleList | nn.ModuleDict):
            continue
        inner = [other for other in fitting if other.startswith(f"{parent}.")]
        if any(_is_trainable(fitting[other]) for other in inner):
            heads = {other: head for other, head in heads.items() if other not in inner} | {parent: holder}
    return heads


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
