"""The part of a ClassGroupingBalancer that has to do with the module's losses: what they weigh, and a look at one."""

from typing import Any

from jaxtyping import Float
from torch import Tensor, nn
from typing_extensions import override

from lightning_stiffness.callbacks.balancing_counts import CountedBalancing
from lightning_stiffness.callbacks.balancing_step import BalancedClassifier
from lightning_stiffness.callbacks.loss_settings import LossSettings, loss_settings_of
from lightning_stiffness.functional.logit_offsets import training_logit_adjustment


class BalancingOfLosses(CountedBalancing):
    """Knows the losses of the module, and is told of their backward passes.

    Attributes:
        losses: Their class weights and smoothing, as they were when the epoch began.
    """

    logits: bool
    smoothing: float
    losses = LossSettings()
    _head: BalancedClassifier | None = None

    @property
    @override
    def offsets(self) -> Float[Tensor, "c"] | None:
        """What is added to the logits in training; None for nothing, and until training starts."""
        drawn = self.frequencies
        return None if drawn is None or not self.logits else training_logit_adjustment(self.met(drawn))

    def look_at_losses(self, pl_module: nn.Module) -> None:
        """Reads class weights and smoothing of the losses that a module holds."""
        self.losses = loss_settings_of(pl_module, len(self.sizes))

    def met(self, drawn: Float[Tensor, "c"]) -> Float[Tensor, "c"]:
        """How often the loss meets each class, up to a factor, where classes are drawn so often."""
        return self.losses.met(drawn, self.smoothing)

    @override
    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        super().on_train_epoch_start(trainer, pl_module)
        if len(self.sizes):
            self.look_at_losses(pl_module)

    @override
    def on_before_backward(self, trainer: Any, pl_module: Any, loss: Any) -> None:
        if self._head is not None:
            self._head.before_backward(loss, self.losses.weight)

    @override
    def on_after_backward(self, trainer: Any, pl_module: Any) -> None:
        if self._head is not None:
            self._head.after_backward()
