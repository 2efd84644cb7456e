"""What the losses of a module do to its classes by themselves: class weights, smoothed labels."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lightning_stiffness.functional.logit_offsets import smoothed_frequencies


@dataclass(frozen=True, eq=False)
class LossSettings:
    """Of the cross entropies that a module holds.

    Attributes:
        smoothing: The share of each label that they spread over all classes.
        weight: The weight of each class, or None.
    """

    smoothing: float = 0.0
    weight: Float[Tensor, "c"] | None = None

    def met(self, drawn: Float[Tensor, "c"], smoothing: float) -> Float[Tensor, "c"]:
        """How often each class is met in the loss, up to a factor.

        A cross entropy that weighs class c by w_c and meets it with frequency q_c is, in the mean, -sum_c f_c log p_c
        with f_c = w_c q_c: it has its minimum where one without weights has it that meets classes with frequencies f.
        Labels that the loss smooths itself spread before they are weighed, f_c = w_c ((1 - s) q_c + s / c); those that
        are smoothed in the logits spread after it, with f_c = w_c q_c made to sum to 1: (1 - s) f_c + s / c.

        Args:
            drawn: How often each class is drawn.
            smoothing: What is done by the logits where the loss itself smooths nothing.
        """
        weight = torch.ones_like(drawn) if self.weight is None else self.weight.detach().to(drawn)
        if self.smoothing:
            return weight * smoothed_frequencies(drawn, self.smoothing)
        return smoothed_frequencies(weight * drawn, smoothing)


def loss_settings_of(module: nn.Module, num_classes: int) -> LossSettings:
    """The settings of the losses that a module holds.

    Args:
        module: The module.
        num_classes: Number c of classes.

    Returns:
        The largest smoothing of any `CrossEntropyLoss`, and the weights of the first one, or of an `NLLLoss`, that has
        one for each class.

    >>> loss_settings_of(nn.ModuleList([nn.CrossEntropyLoss(label_smoothing=0.1)]), 3).smoothing
    0.1
    """
    losses = [part for part in module.modules() if isinstance(part, nn.CrossEntropyLoss | nn.NLLLoss)]
    weights = [loss.weight for loss in losses if loss.weight is not None and len(loss.weight) == num_classes]
    smoothing = max((float(getattr(loss, "label_smoothing", 0.0)) for loss in losses), default=0.0)
    return LossSettings(smoothing, weights[0].detach().cpu().clone() if weights else None)
