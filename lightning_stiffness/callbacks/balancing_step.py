"""What a ClassGroupingBalancer does at the classifier while a training step runs."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from lightning_stiffness.callbacks.balancing_head import HeadHooks, matrix_of
from lightning_stiffness.callbacks.balancing_statistics import ClassStatistics
from lightning_stiffness.callbacks.loss_check import LogitsCheck
from lightning_stiffness.callbacks.namespace import rank_zero_warn
from lightning_stiffness.errors import StiffnessError
from lightning_stiffness.functional.smoothed_labels import smoothed_label_logits


@dataclass
class Step:
    """One batch on its way through the classifier.

    Attributes:
        offsets: What is added to the logits, or None.
        labels: Class of each sample; None where no features are shifted and no labels smoothed.
        counts: Samples of each class in the data; None where no features are shifted.
        chances: Two even random numbers for each sample, for its shift; None before the end of the warm-up.
        absorbers: Whether the other class of a shift is drawn by absorption.
        smoothing: The share of each label that the loss is made to spread over all classes.
        move: The shift, once it is known: a recomputed forward pass (activation checkpointing) has to get the same.
        features: The features as they came in.
        unmoved: The logits of these, where they are shifted.
        calls: How often the classifier has been called.
        first: What it was given in its first call with gradients since the last backward pass: the samples that the
            labels are of.
        is_anew: Whether the next call is such a first one.
        is_labelled: Whether the present call is that one, or repeats it.
        is_counted: Whether class means have been told of these samples.
    """

    offsets: Float[Tensor, "c"] | None
    labels: Int[Tensor, "n"] | None = None
    counts: Float[Tensor, "c"] | None = None
    chances: Float[Tensor, "n 2"] | None = None
    absorbers: bool = True
    smoothing: float = 0.0
    move: Float[Tensor, "n d"] | None = None
    features: Float[Tensor, "n d"] | None = None
    unmoved: Float[Tensor, "n c"] | None = None
    calls: int = 0
    first: Tensor | None = None
    is_anew: bool = True
    is_labelled: bool = False
    is_counted: bool = False


class BalancedClassifier:
    """The classifier layer with its hooks, which act between `begin` and `end` of a step only.

    Offsets are added in each call of a step. Shifts and smoothing need the labels of the samples, so that they act on
    the first call with gradients only, on its repetition by a checkpoint, and anew after a backward pass.

    Args:
        name: Of the layer, for messages.
        layer: The layer.
        num_classes: Number c of classes.
        statistics: Class means of before, or None.
        is_named: Whether the user has named it.

    Attributes:
        statistics: Class means; None until the first step that asks for them.
    """

    def __init__(
        self, name: str, layer: nn.Module, num_classes: int, statistics: ClassStatistics | None, is_named: bool = False
    ) -> None:
        self.name, self.statistics = name, statistics
        self._layer, self._num_classes = layer, num_classes
        self._step: Step | None = None
        self._was_called = self._has_warned = False
        self._check = LogitsCheck(name, is_named)
        self._hooks = HeadHooks(layer, self._before, self._after, name)

    def begin(self, step: Step) -> None:
        """From now on the hooks act."""
        self._step = step

    def end(self, is_called: bool = True) -> None:
        """From now on they do nothing.

        Args:
            is_called: Whether the step has a loss, so that the classifier must have been called, in training mode.

        Raises:
            StiffnessError: It was never called.
        """
        step, self._step = self._step, None
        self._check.end()
        self._was_called |= step is not None and step.calls > 0
        if is_called and not self._was_called:
            raise StiffnessError(
                f"The classifier {self.name!r} must be called in its training mode by training_step, found no call. "
                'Pass classifier="name" of the layer that makes the logits, and call it as a module, not by its weight.'
            )

    def remove(self) -> None:
        """Takes the hooks off the layer."""
        self._step = None
        self._hooks.remove()

    def before_backward(self, loss: Any, weight: Tensor | None) -> None:
        """Looks at the first loss.

        Args:
            loss: The loss.
            weight: The class weights that are known of, or None.

        Raises:
            StiffnessError: As `LogitsCheck.look`.
        """
        if self._step is not None:
            self._check.look(loss, weight)

    def after_backward(self) -> None:
        """The next call may be of the batch's samples again: a closure, or the second pass of SAM."""
        if self._step is not None:
            self._step.is_anew = True

    def _before(self, given: Any) -> Any:
        step = self._step
        if step is None or step.labels is None:
            return given
        step.is_labelled = self._is_labelled(step, step.labels, given)
        if step.counts is None or not step.is_labelled:
            return given
        features = matrix_of(given, "input", self.name)
        step.features = features.detach()
        if step.chances is None:
            return features
        if step.move is None:
            step.move = self._followed(self._shift(step, step.features), step.features, step.labels)
            step.unmoved = self._logits(step.features)  # here: FSDP has taken the weights away when the layer is done
        return features + step.move.to(features)

    def _is_labelled(self, step: Step, labels: Tensor, given: Any) -> bool:
        """Whether these are the samples of the labels, which only the first call that is trained can tell."""
        if not torch.is_grad_enabled():
            return False
        if not isinstance(given, Tensor):
            matrix_of(given, "input", self.name)
        is_repeated = _is_in_backward()
        if step.first is None and is_repeated:
            raise StiffnessError(
                f"To shift features or smooth labels, the classifier {self.name!r} must be called with gradients, "
                "found a call in a reentrant checkpoint. Pass it use_reentrant=False, or shift=False and smoothing=0."
            )
        if step.first is None or (step.is_anew and not is_repeated):
            if len(given) != len(labels):
                raise StiffnessError(
                    f"To shift features or smooth labels, the classifier {self.name!r} must be given one row for each "
                    f"of the {len(labels)} labels of the batch, found {len(given)} rows. Pass shift=False and "
                    "smoothing=0; labels that a CrossEntropyLoss(label_smoothing=...) of the module smooths are "
                    "accounted for."
                )
            step.first, step.is_anew = given.detach().clone(), False
            return True
        is_same = given.shape == step.first.shape and torch.allclose(given.detach(), step.first, rtol=1e-3)
        if not is_same and not self._has_warned:
            self._has_warned = True
            rank_zero_warn(
                f"The classifier {self.name!r} is called more than once in a training step. Only the samples of its "
                "first call with gradients are taken for those of the batch's labels, and smoothed (and shifted); "
                "the logits of the others get the offsets alone. Are the labels those of all calls, as of two views? "
                "Smooth them in the loss: a CrossEntropyLoss(label_smoothing=...) of the module is accounted for."
            )
        return is_same

    def _after(self, logits: Tensor) -> Tensor:
        step = self._step
        if step is None:
            return logits
        if logits.shape[1] != self._num_classes:
            raise StiffnessError(
                f"The classifier {self.name!r} must have an output for each of {self._num_classes} classes, found "
                f"{logits.shape[1]}. Pass num_classes=, or classifier= as the name of another layer."
            )
        step.calls += 1
        if step.is_labelled and not step.is_counted and step.features is not None and step.labels is not None:
            step.is_counted = True
            unmoved = logits.detach() if step.unmoved is None else step.unmoved
            self._means(step.features).update(step.features, unmoved, step.labels)
        final = logits if step.offsets is None else logits + step.offsets.to(logits)
        if step.smoothing and step.is_labelled and step.labels is not None:
            final = smoothed_label_logits(final, step.labels.to(logits.device), step.smoothing)
        if step.offsets is not None or step.smoothing:
            self._check.saw(final)
        return final

    def _shift(self, step: Step, features: Tensor) -> Tensor:
        assert step.labels is not None
        assert step.counts is not None
        assert step.chances is not None
        means = self._means(features)
        with torch.no_grad(), torch.autocast(features.device.type, enabled=False):
            counts, chances = step.counts.to(means.seen), step.chances.to(means.seen)
            return means.shift(step.labels.to(features.device), counts, chances, step.absorbers)

    def _followed(self, move: Tensor, features: Tensor, labels: Tensor) -> Tensor:
        """The shift: half of it, or none, for a sample that the network would then take for one of another class.

        A shift is a share of the features themselves. One that the network cannot follow makes the loss, and by it the
        features, and by them the next shift grow, until the weights are ruined.
        """
        for share in (0.5, 0.0):
            is_lost = self._logits(features + move.to(features)).argmax(1) != labels.to(features.device)
            move = torch.where(is_lost[:, None], share * move, move)
        return move

    @torch.no_grad()
    def _logits(self, features: Tensor) -> Tensor:
        """Of the layer alone, without its hooks."""
        found: Any = self._layer.forward(features)
        return torch.as_tensor(found)

    def _means(self, features: Tensor) -> ClassStatistics:
        if self.statistics is None or self.statistics.features.shape[1] != features.shape[1]:
            self.statistics = ClassStatistics(self._num_classes, features.shape[1])
        self.statistics.to(features.device)
        return self.statistics


def _is_in_backward() -> bool:
    """Whether a forward pass is repeated by a checkpoint."""
    return torch._C._current_graph_task_id() != -1
