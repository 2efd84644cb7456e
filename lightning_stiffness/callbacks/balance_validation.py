"""What validation says of each class: its recall, also at the natural frequencies, and who takes its probability."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lightning_stiffness.callbacks.agreement import attempted
from lightning_stiffness.callbacks.balancing_classes import require_labels
from lightning_stiffness.callbacks.layer_hooks import LayerHook, forget_compiled_code


@dataclass(frozen=True, eq=False)
class Validated:
    """Of one pass over the validation data.

    Attributes:
        recall: Share of the samples of each class that are recognised, in [0, 1]; nan for a class without any.
        natural_recall: The same with the logits at the natural class frequencies.
        probabilities: Mean predicted ones of the samples of class a in row a, nan without any.
    """

    recall: Float[Tensor, "c"]
    natural_recall: Float[Tensor, "c"]
    probabilities: Float[Tensor, "c c"]


class ValidationTally:
    """Counts what the network says of the validation samples of each class, by a hook on its classifier in eval mode.

    Only the first validation loader counts, and of each batch the first call of the classifier that gives a row for
    each label.

    Args:
        layer: The classifier.
        num_classes: Number c of classes.
        targets: batch -> classes [n].
        natural: Logits [n, c] -> numbers whose largest is the class at the natural frequencies.
        report: Is told why, where something fails.
    """

    def __init__(
        self,
        layer: nn.Module,
        num_classes: int,
        targets: Callable[[Any], Tensor],
        natural: Callable[[Tensor], Tensor],
        report: Callable[[Exception], None],
    ) -> None:
        """See the class."""
        self._num_classes, self._targets, self._natural, self._report = num_classes, targets, natural, report
        self._labels: Tensor | None = None
        self._sums = self._nothing()
        self._handle = layer.register_forward_hook(LayerHook(layer, self._on_output))
        forget_compiled_code()

    def begin(self) -> None:
        """A pass over the validation data begins."""
        self._labels, self._sums = None, self._nothing()

    def expect(self, batch: Any, loader: int = 0) -> None:
        """The next call of the classifier is about this batch."""
        self._labels = None
        if loader == 0:
            self._survive(lambda: self._remember(batch))

    def result(self, reduce: Callable[[Tensor], Tensor]) -> Validated | None:
        """What was counted since `begin`; None where nothing was. All processes have to ask.

        Args:
            reduce: Sums -> their sum over all processes.
        """
        self._labels = None
        sums = reduce(self._sums.clone())
        with torch.inference_mode(False):  # what is kept must not be a tensor of inference alone
            total, recall, natural, *probabilities = sums.clone().cpu()
            if not total.sum():
                return None
            return Validated(recall / total, natural / total, torch.stack(probabilities, 1) / total[:, None])

    def remove(self) -> None:
        """Takes the hook off the layer."""
        self._handle.remove()
        forget_compiled_code()

    def _remember(self, batch: Any) -> None:
        labels = self._targets(batch)
        require_labels(labels, self._num_classes)
        self._labels = labels

    def _on_output(self, layer: nn.Module, inputs: Any, output: Any) -> None:
        labels = self._labels
        if labels is None or layer.training or not isinstance(output, Tensor):
            return
        if output.shape == (len(labels), self._num_classes):
            self._labels = None
            self._survive(lambda: self._count(output.detach().float(), labels))

    def _count(self, logits: Tensor, labels: Tensor) -> None:
        labels = labels.to(logits.device)
        guesses = (labels, logits.argmax(1), self._natural(logits).argmax(1))
        values = torch.stack([(guess == labels).float() for guess in guesses])
        self._sums = self._sums.to(logits.device).index_add_(1, labels, torch.cat([values, logits.softmax(1).T]))

    def _nothing(self) -> Tensor:
        """Rows: samples, recognised, recognised at the natural frequencies, probability of each class."""
        return torch.zeros(3 + self._num_classes, self._num_classes)

    def _survive(self, work: Callable[[], None]) -> None:
        cause = attempted(work)
        if isinstance(cause, Exception):
            self._report(cause)
