"""Per-sample gradients of the parameters that no rule covers: vectorised by torch.func, else one sample at a time."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lightning_stiffness.batching import take, take_unchecked

VMAP_CHUNK = 64


@dataclass
class Fallback:
    """Explicit per-sample gradients of some parameters.

    Attributes:
        module: The model.
        loss: (module, batch) -> losses [n].
        budget: Bytes that the explicit gradients may take; beyond it they are recomputed range by range.
        route: How it was done, once it was done.
    """

    module: nn.Module
    loss: Callable[[nn.Module, Any], Tensor]
    budget: int
    route: str = "torch.func.vmap"

    def blocks(self, batch: Any, parameters: Sequence[Tensor], weights: Tensor) -> Iterator[Float[Tensor, "n q"]]:
        """The gradients of weights_i * losses_i in column blocks that fit the budget."""
        entries, n = sum(parameter.numel() for parameter in parameters), len(weights)
        width = max(1, min(entries, self.budget // (n * parameters[0].element_size())))
        for start in range(0, entries, width):
            stop = min(entries, start + width)
            yield torch.cat([rows[:, start:stop] for rows in self._rows(batch, parameters, weights)])

    def _rows(self, batch: Any, parameters: Sequence[Tensor], weights: Tensor) -> Iterator[Tensor]:
        """All columns of some samples at a time."""
        if self.route == "torch.func.vmap":
            try:
                yield from self._vectorised(batch, parameters, weights)
                return
            except torch.OutOfMemoryError:
                raise
            except Exception as cause:  # what vmap cannot do shows in exceptions of every kind
                self.route = f"one sample at a time (vmap: {_short(cause)})"
        yield from self._one_by_one(batch, parameters, weights)

    def _vectorised(self, batch: Any, parameters: Sequence[Tensor], weights: Tensor) -> list[Tensor]:
        wrapped = _Wrapped(self.module, self.loss)
        wanted = {id(parameter) for parameter in parameters}
        values = {name: value.detach() for name, value in wrapped.named_parameters() if id(value) in wanted}
        n = len(weights)

        def loss_of(values: dict[str, Tensor], index: Tensor) -> Tensor:
            one = take_unchecked(batch, index[None], n)
            losses: Tensor = torch.func.functional_call(wrapped, values, (one,), tie_weights=True)
            return losses[0]

        gradient = torch.func.vmap(torch.func.grad(loss_of), in_dims=(None, 0))
        rows = []
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore"
            )  # operations without a batching rule are slow there, which is all they warn of
            for index in torch.arange(n, device=weights.device).split(VMAP_CHUNK):
                found = gradient(values, index)
                flat = torch.cat([found[name].reshape(len(index), -1) for name in values], 1)
                rows.append(flat * weights[index, None].to(flat.dtype))
        return rows

    def _one_by_one(self, batch: Any, parameters: Sequence[Tensor], weights: Tensor) -> Iterator[Tensor]:
        n = len(weights)
        for k in range(n):
            losses = self.loss(self.module, take(batch, [k], n))
            yield (flat_gradient(losses, parameters) * weights[k])[None]


def flat_gradient(loss: Tensor, parameters: Sequence[Tensor], retain_graph: bool = False) -> Float[Tensor, "p"]:
    """Gradient of one loss (shape [] or [1]) with respect to all parameters; zero where it does not depend on one."""
    gradients = torch.autograd.grad(loss, list(parameters), allow_unused=True, retain_graph=retain_graph)
    pairs = zip(gradients, parameters, strict=True)
    return torch.cat([(torch.zeros_like(p) if gradient is None else gradient).reshape(-1) for gradient, p in pairs])


def _short(cause: BaseException) -> str:
    text = str(cause).strip().splitlines()
    return f"{type(cause).__name__}: {text[0][:80] if text else ''}"


class _Wrapped(nn.Module):
    """A module whose forward is the loss, so that torch.func can replace the parameters below it."""

    def __init__(self, module: nn.Module, loss: Callable[[nn.Module, Any], Tensor]) -> None:
        super().__init__()
        self.module = module
        self.loss = loss

    def forward(self, batch: Any) -> Tensor:
        return self.loss(self.module, batch)
