"""What the zoo is made of: a model with a batch, registered under the name of its quirk."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

N, CLASSES = 12, 4
MODELS: dict[str, Callable[[], "Specimen"]] = {}


@dataclass
class Specimen:
    """A model, its inputs, and the parameters which are expected on the fallback route."""

    model: nn.Module
    inputs: object
    fallback: tuple[str, ...] = ()

    @property
    def batch(self):
        return self.inputs, torch.arange(N) % CLASSES


def specimen(function):
    MODELS[function.__name__] = function
    return function


def vectors(*shape: int) -> Tensor:
    return torch.randn(N, *(shape or (8,)), generator=torch.Generator().manual_seed(1))


def tokens(length: int = 6, vocabulary: int = 11) -> Tensor:
    return torch.randint(0, vocabulary, (N, length), generator=torch.Generator().manual_seed(1))


class Applied(nn.Module):
    """A module whose forward is a function of itself and the input."""

    def __init__(self, forward: Callable[["Applied", object], Tensor], **parts):
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)
        self._function = forward

    def forward(self, x):
        return self._function(self, x)


def parameter(*shape: int, scale: float = 0.3) -> nn.Parameter:
    return nn.Parameter(torch.randn(*shape) * scale)


def head(width: int = 8) -> nn.Linear:
    return nn.Linear(width, CLASSES)


def build(name: str) -> Specimen:
    """The specimen with weights drawn from a fixed seed, without moving the global random state."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return MODELS[name]()


def of_function(forward, inputs, fallback: tuple[str, ...] = (), **parts) -> Specimen:
    """A specimen whose forward is a function of the module and the input."""
    return Specimen(Applied(forward, **parts), inputs, fallback)
