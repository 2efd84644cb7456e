"""Per-sample gradients of the parameters that no rule covers: vectorised by torch.func, else one sample at a time."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lightning_stiffness.batching import take, take_unchecked
from lightning_stiffness.gram.memory import is_out_of_memory

VECTORISED = "torch.func.vmap"
ONE_BY_ONE = "one sample at a time"
VMAP_CHUNK = 64
DIFFERENT = 1e-2  # relative; half-precision gradients differ by less between one sample and many
# Of a sample that is evaluated by itself: a batch of one is a special case in many models, where torch.squeeze takes
# its axis away, and in torch 2.13 gradients of BatchNorm in eval mode are wrong for some.
COPIES = 2
RESCALED = 1e-3  # losses of a sample alone and in a batch differ by less than this through rounding


@dataclass(frozen=True)
class Goals:
    """What the gradients of samples alone are scaled to."""

    weights: Float[Tensor, "n"]
    losses: Float[Tensor, "n"]

    def factors(self, index: Tensor, alone: Float[Tensor, "k"]) -> Float[Tensor, "k"]:
        """What the gradients of some samples are multiplied by, given the loss that each has alone."""
        index = index.to(self.weights.device)
        return self.weights[index] * scale_ratio(self.losses[index], alone)


def scale_ratio(losses: Float[Tensor, "*k"], alone: Float[Tensor, "*k"]) -> Float[Tensor, "*k"]:
    """The losses of samples in a batch to their losses alone; one where that is no positive number, or is rounding."""
    ratio = losses / alone
    is_scale = torch.isfinite(ratio) & (ratio > 0) & ((ratio - 1).abs() > RESCALED)
    return torch.where(is_scale, ratio, torch.ones_like(ratio))


@dataclass
class Fallback:
    """Explicit per-sample gradients of some parameters.

    Attributes:
        module: The model.
        loss: (module, batch) -> losses [n].
        budget: Bytes that the explicit gradients may take; beyond it they are recomputed range by range.
        route: How it was done, once it was done.

    A loss that is divided by the batch size is larger for a sample alone: its gradients are brought to the scale which
    the given losses have.
    """

    module: nn.Module
    loss: Callable[[nn.Module, Any], Tensor]
    budget: int
    route: str = VECTORISED

    def blocks(
        self, batch: Any, parameters: Sequence[Tensor], weights: Tensor, losses: Tensor
    ) -> Iterator[Float[Tensor, "n q"]]:
        """The gradients of weights_i * losses_i in column blocks that fit the budget."""
        goals = Goals(weights, losses.detach())
        entries, n = sum(parameter.numel() for parameter in parameters), len(weights)
        width = max(1, min(entries, self.budget // (n * parameters[0].element_size())))
        for start in range(0, entries, width):
            stop = min(entries, start + width)
            yield torch.cat([rows[:, start:stop] for rows in self._rows(batch, parameters, goals)])

    def _rows(self, batch: Any, parameters: Sequence[Tensor], goals: Goals) -> Iterator[Tensor]:
        """All columns of some samples at a time."""
        if self.route == VECTORISED:
            try:
                yield from self._vectorised(batch, parameters, goals)
                return
            except Exception as cause:  # what vmap cannot do shows in exceptions of every kind
                if is_out_of_memory(cause):
                    raise
                self.route = f"{ONE_BY_ONE} (vmap: {_short(cause)})"
        yield from self._one_by_one(batch, parameters, goals)

    def _vectorised(self, batch: Any, parameters: Sequence[Tensor], goals: Goals) -> list[Tensor]:
        wrapped = _Wrapped(self.module, self.loss)
        wanted = {id(parameter) for parameter in parameters}
        values = {name: value.detach() for name, value in wrapped.named_parameters() if id(value) in wanted}
        n = len(goals.weights)

        def loss_of(values: dict[str, Tensor], index: Tensor) -> Tensor:
            one = take_unchecked(batch, index[None], n)
            losses: Tensor = torch.func.functional_call(wrapped, values, (one,), tie_weights=True)
            return losses[0]

        gradient = torch.func.vmap(torch.func.grad_and_value(loss_of), in_dims=(None, 0))
        rows = []
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore"
            )  # operations without a batching rule are slow there, which is all they warn of
            for index in torch.arange(n, device=goals.weights.device).split(VMAP_CHUNK):
                found, alone = gradient(values, index)
                flat = torch.cat([found[name].reshape(len(index), -1) for name in values], 1)
                rows.append(flat * goals.factors(index, alone)[:, None].to(flat.dtype))
        self._require_same(torch.cat(rows), batch, parameters, goals)
        return rows

    def _require_same(self, rows: Tensor, batch: Any, parameters: Sequence[Tensor], goals: Goals) -> None:
        """Against plain autograd: torch.func does not see a parameter that the user's code holds by reference.

        Nor can the loss see there that it is 0 / 0 for a sample which is not counted.
        """
        if not bool(rows.isfinite().all()):
            raise RuntimeError("its gradients are not finite")
        largest = int(rows.norm(dim=1).argmax())
        expected = self._alone(largest, batch, parameters, goals)[0]
        if (rows[largest] - expected).norm() > DIFFERENT * expected.norm():
            raise RuntimeError("its gradients are not those of plain autograd")

    def _one_by_one(self, batch: Any, parameters: Sequence[Tensor], goals: Goals) -> Iterator[Tensor]:
        for k in range(len(goals.weights)):
            yield self._alone(k, batch, parameters, goals)

    def _alone(self, k: int, batch: Any, parameters: Sequence[Tensor], goals: Goals) -> Float[Tensor, "1 q"]:
        with torch.enable_grad():
            alone = self.loss(self.module, take(batch, [k] * COPIES, len(goals.weights)))
            parts = gradients_of(alone[0], parameters)
        gradient = torch.cat([part.reshape(-1) for part in parts])[None]
        return gradient * goals.factors(torch.tensor([k]), alone.detach()[:1])[:, None].to(gradient.dtype)


def gradients_of(loss: Tensor, parameters: Sequence[Tensor], retain_graph: bool = False) -> list[Tensor]:
    """The gradients of one loss; zeros where it does not depend on a parameter."""
    found = torch.autograd.grad(loss, list(parameters), allow_unused=True, retain_graph=retain_graph)
    return [torch.zeros_like(p) if g is None else g.to_dense() for g, p in zip(found, parameters, strict=True)]


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
