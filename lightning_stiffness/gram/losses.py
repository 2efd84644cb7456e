"""The losses of a batch, as the user's function gives them, with what is required of them checked."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from lightning_stiffness.batching import batch_size
from lightning_stiffness.errors import StiffnessError
from lightning_stiffness.loss_head import double_precision_loss_heads


class LossSource:
    """Calls the loss with its head in double precision, and without where the user's code cannot take that."""

    def __init__(self, module: nn.Module, loss: Callable[[Any, Any], Tensor]) -> None:
        """`loss` maps (module, batch) to losses [n]."""
        self._module = module
        self._loss = loss
        self._double = True

    def __call__(self, batch: Any) -> Tensor:
        """The losses [n] of a batch, with their graph.

        Raises:
            StiffnessError: They are no finite vector [n] with a gradient.
        """
        losses = self._evaluate(batch)
        _require_per_sample(losses, batch_size(batch))
        return losses

    def raw(self, module: Any, batch: Any) -> Tensor:
        """The losses of another module (the same with other parameter values), unchecked."""
        with torch.enable_grad(), double_precision_loss_heads(self._double):
            return self._loss(module, batch)

    def _evaluate(self, batch: Any) -> Tensor:
        try:
            return self.raw(self._module, batch)
        except RuntimeError as cause:
            if not self._double or isinstance(cause, torch.OutOfMemoryError):
                raise
            self._double = False
        try:
            return self.raw(self._module, batch)
        except RuntimeError:
            self._double = True  # precision was not the reason
            raise


def _require_per_sample(losses: Any, n: int) -> None:
    if not isinstance(losses, Tensor):
        raise StiffnessError(
            f"The loss must return a tensor [{n}], one value per sample; found {type(losses).__name__}."
        )
    if losses.shape != (n,):
        kind = "a scalar, which is a mean or sum over samples" if losses.ndim == 0 else f"shape {list(losses.shape)}"
        raise StiffnessError(
            f"The loss must return one value per sample, shape [{n}]; found {kind}. "
            'Use reduction="none" (and average over positions, if each sample has several).'
        )
    if not losses.is_floating_point():
        raise StiffnessError(f"The loss must return floating point values, found {losses.dtype}.")
    if losses.grad_fn is None:
        raise StiffnessError(
            "The loss has no gradient: it does not depend on a trainable parameter, or was computed under "
            "torch.no_grad(), or detached."
        )
    finite = torch.isfinite(losses.detach())
    if not bool(finite.all()):
        bad = (~finite).nonzero().flatten().tolist()
        raise StiffnessError(
            f"All losses must be finite; found {losses[bad[0]].item()} for sample {bad[0]} ({len(bad)} of {n} in all). "
            "Look at that sample's input, and at the learning rate."
        )
