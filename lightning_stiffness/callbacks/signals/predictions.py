"""Signals from the predictions for training samples: how many change, and how gradients align with weights."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lightning_stiffness.callbacks.signals.signal import Scene, Stateless
from lightning_stiffness.errors import StiffnessError
from lightning_stiffness.gram import Gram


class PredictionChangesSignal:
    """Share of the tracked training samples whose predicted class is another one than at the reading before.

    Source: Yuan et al. (Label Wave), arXiv:2502.07551; theirs counts over all training samples, each epoch.
    """

    def __init__(self, scene: Scene) -> None:
        """Nothing is predicted yet."""
        self._tracked = scene.tracked
        self._predicted: Tensor | None = None

    def before_step(self) -> None:
        """Nothing to do."""

    def before_reading(self) -> None:
        """Nothing to do."""

    def read(self, gram: Gram) -> dict[str, float]:
        """The share, in [0, 1]; nan at the first reading."""
        before, self._predicted = self._predicted, self._tracked.logits().argmax(1)
        changed = math.nan if before is None else float((self._predicted != before).double().mean())
        return {"prediction_changes": changed}

    def state_dict(self) -> dict[str, Any]:
        """The predictions at the last reading."""
        return {"fingerprint": self._tracked.fingerprint, "predicted": self._predicted}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from them if they are of the same samples."""
        if state.get("fingerprint") == self._tracked.fingerprint:
            self._predicted = state["predicted"]


class GradientWeightAlignmentSignal(Stateless):
    """How well the samples' steps on the classifier's weight W point along W.

    With c_i the cosine of -dl_i/dW and W: mean c / (excess kurtosis of c + 1.2).

    Source: gradient-weight alignment, arXiv:2510.25480.
    """

    def __init__(self, scene: Scene) -> None:
        """Finds the classifier, the last Linear layer with an output for each class."""
        self._tracked = scene.tracked
        self._classifier = _classifier_of(scene.module, scene.num_classes)

    def read(self, gram: Gram) -> dict[str, float]:
        """The alignment; nan where all samples have the same."""
        with _inputs_of(self._classifier) as parts:
            logits = self._tracked.logits()
        features = torch.cat(parts).cpu().double()
        bias = 0.0 if self._classifier.bias is None else self._classifier.bias.detach().cpu().double()
        weight = self._classifier.weight.detach().cpu().double()
        return {
            "gradient_weight_alignment": alignment(
                logits, logits - bias, features, self._tracked.targets, weight.norm()
            )
        }


def alignment(logits: Tensor, linear: Tensor, features: Tensor, targets: Tensor, weight_norm: Tensor) -> float:
    """Mean cosine of -dl/dW = (onehot - p) h^T and W over its excess kurtosis + 1.2; cross-entropy is assumed.

    Args:
        logits: Of the samples, [n, c].
        linear: W h, the logits without the bias.
        features: h.
        targets: Given labels.
        weight_norm: |W|.
    """
    residual = torch.nn.functional.one_hot(targets, logits.shape[1]) - logits.softmax(1)
    norms = residual.norm(dim=1) * features.norm(dim=1) * weight_norm
    cosines = (residual * linear).sum(1) / norms.clamp_min(1e-30)
    centred = cosines - cosines.mean()
    variance = centred.square().mean()
    if not variance > 0:
        return math.nan
    kurtosis = centred.pow(4).mean() / variance.square() - 3
    return float(cosines.mean() / (kurtosis + 1.2))


def _classifier_of(module: nn.Module, num_classes: int) -> nn.Linear:
    found = [part for part in module.modules() if isinstance(part, nn.Linear) and part.out_features == num_classes]
    if not found:
        raise StiffnessError(
            f"Gradient-weight alignment needs a torch.nn.Linear with {num_classes} outputs as classifier; found none."
        )
    return found[-1]


@contextmanager
def _inputs_of(layer: nn.Linear) -> Iterator[list[Tensor]]:
    """Keeps what goes into a layer meanwhile."""
    parts: list[Tensor] = []
    handle = layer.register_forward_pre_hook(lambda _, inputs: parts.append(inputs[0].detach().flatten(0, -2)))
    try:
        yield parts
    finally:
        handle.remove()
