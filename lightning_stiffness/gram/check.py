"""The engine against plain autograd on two samples, and who is at fault when they disagree."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightning_stiffness.batching import take
from lightning_stiffness.errors import MixedSamplesError, StiffnessError
from lightning_stiffness.gram.collect import Found
from lightning_stiffness.gram.fallback import flat_gradient
from lightning_stiffness.gram.measurement import Measurement
from lightning_stiffness.gram.products import GramAccumulator

# Of |g_i| |g_j|: float32 gradients of deep networks differ by 1e-5 to 1e-4 between batch sizes, faults by 1e-2 or more.
TOLERANCE = 1e-3
ROUNDINGS = 16  # a tolerance of so many roundings, where that is more: in bfloat16


@dataclass(frozen=True)
class Check:
    """Recomputes two samples' gradients one sample at a time and compares.

    Attributes:
        module: The model, to name layers in messages.
        losses_of: batch -> losses [n] with their graph.
        parameters: The trainable parameters.
        batch: The batch that was measured.
        samples: Its size.
    """

    module: nn.Module
    losses_of: Callable[[Any], Tensor]
    parameters: Sequence[Tensor]
    batch: Any
    samples: int

    @property
    def tolerance(self) -> float:
        """The error that is rounding, relative to the norms of two gradients."""
        return tolerance_of(self.parameters)

    def chosen(self, norms: Tensor) -> list[int]:
        """Two samples (or the one there is), with a gradient if possible, the same ones for the same batch size."""
        order = torch.randperm(self.samples, generator=torch.Generator().manual_seed(self.samples))
        zero = norms.cpu()[order] == 0
        return sorted(order[torch.argsort(zero, stable=True)][:2].tolist())

    def agrees(self, matrix: Tensor, losses: Tensor, chosen: Sequence[int]) -> bool:
        """Whether the entries of K for the chosen samples are those of plain autograd."""
        alone = [self._alone(k, losses) for k in chosen]
        own = torch.stack(alone).double().cpu()
        return _close(matrix.double().cpu()[chosen][:, chosen], own @ own.T, self.tolerance)

    def agrees_inside(self, matrix: Tensor, losses: Tensor, chosen: Sequence[int]) -> bool:
        """Whether they are those of plain autograd on the whole batch, where the loss has the scale that it has.

        Finds out first whether the loss, and not the engine, is at fault.

        Raises:
            StiffnessError: The loss is random.
            MixedSamplesError: The gradient of one sample's loss changes with the other samples of the batch.
        """
        again = self.losses_of(self.batch)
        if not torch.allclose(again.detach(), losses, rtol=1e-4, atol=1e-7):
            raise StiffnessError(
                "The losses must be the same each time a batch is measured; two evaluations of the same batch differ "
                f"by {(again.detach() - losses).abs().max():.1e}{self._in_training_mode()}. "
                "Call module.eval() before measuring, or take the randomness out of the loss."
            )
        inside = torch.stack([flat_gradient(again[k], self.parameters, retain_graph=True) for k in chosen])
        for k, gradient in zip(chosen, inside, strict=True):
            if not _parallel(gradient, self._alone(k, losses), self.tolerance):
                raise MixedSamplesError(
                    "The loss of a sample must depend on that sample alone; the gradient of the loss of sample "
                    f"{k} changes when the other samples of the batch are taken away{self._in_training_mode()}. "
                    "Losses that compare samples (contrastive, batch statistics) or add random noise have no "
                    "per-sample gradient of their own: pass a loss with one value per sample, without noise."
                )
        inside = inside.double().cpu()
        return _close(matrix.double().cpu()[chosen][:, chosen], inside @ inside.T, self.tolerance)

    def _alone(self, sample: int, losses: Tensor) -> Tensor:
        """The gradient of one sample's loss, computed from that sample alone and scaled as it is in the batch."""
        one = self.losses_of(take(self.batch, [sample], self.samples))
        ratio = losses[sample] / one[0].detach()
        scale = ratio if torch.isfinite(ratio) and ratio > 0 else torch.ones_like(ratio)
        return flat_gradient(one[0] * scale, self.parameters)

    def _in_training_mode(self) -> str:
        suspects = (nn.modules.dropout._DropoutNd, nn.modules.batchnorm._BatchNorm)
        names = [name for name, part in self.module.named_modules() if isinstance(part, suspects) and part.training]
        return f" (in training mode: {', '.join(names[:5])})" if names else ""


def contradicted(measurement: Measurement) -> list[int]:
    """The parameters, by their place in the plan, whose part of a small batch's Gram is not that of autograd."""
    parameters, n = measurement.parameters, measurement.samples
    losses = measurement.losses_of(measurement.batch)
    gradients = [torch.autograd.grad(loss, parameters, allow_unused=True, retain_graph=True) for loss in losses]

    def expected(index: int) -> Tensor:
        own = [row[index] for row in gradients]
        flat = torch.stack([torch.zeros_like(parameters[index]) if g is None else g for g in own]).flatten(1).double()
        return flat @ flat.T

    wrong: list[int] = []
    silent = {k for k in range(len(parameters)) if k not in measurement.plan.fallback and bool(expected(k).any())}

    def compare(found: Found) -> None:
        total = GramAccumulator(n, found.factors.dtype, losses.device, measurement.budget)
        found.factors.add_gram(total)
        reference = torch.stack([expected(index) for index in found.parameters]).sum(0)
        silent.difference_update(found.parameters)
        if not _close(total.result().double(), reference, tolerance_of(parameters)):
            wrong.extend(found.parameters)

    measurement.collect(losses, torch.ones_like(losses), compare)
    return sorted({*wrong, *silent})


def tolerance_of(parameters: Sequence[Tensor]) -> float:
    """The error that is rounding for the coarsest of the parameters' types."""
    return max(TOLERANCE, ROUNDINGS * max(torch.finfo(parameter.dtype).eps for parameter in parameters))


def _close(found: Tensor, expected: Tensor, tolerance: float) -> bool:
    norms = expected.diagonal().clamp_min(torch.finfo(expected.dtype).tiny).sqrt()
    return bool(((found - expected).abs() <= tolerance * norms[:, None] * norms).all())


def _parallel(first: Tensor, second: Tensor, tolerance: float) -> bool:
    first, second = first.double(), second.double()
    if not (first.any() and second.any()):
        return not (first.any() or second.any())
    return bool(torch.dot(first, second) > (1 - tolerance) * first.norm() * second.norm())
