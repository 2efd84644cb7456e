"""Whether what a classifier gives is what the softmax of the loss is computed of, read from the first loss."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction

from lightning_stiffness.callbacks.namespace import rank_zero_warn
from lightning_stiffness.errors import StiffnessError

_ROWS: Final = 16  # of a softmax that are looked for
_SHARE: Final = 0.05  # of a gradient may be other than that of a cross entropy
_OF_BINARY: Final = ("BinaryCrossEntropyWithLogitsBackward0", "BinaryCrossEntropyBackward0")


@dataclass
class LossGraph:
    """What lies between a loss and the outputs of a classifier.

    Attributes:
        log_softmax: Results [m, c] of all softmax functions.
        weights: Class weights of the losses.
        is_reached: Whether the loss depends on one of the outputs.
        is_binary: Whether there is a binary cross entropy.
        is_opaque: Whether there are functions that cannot be looked into: compiled code, functions of the user's.
    """

    log_softmax: list[Tensor] = field(default_factory=list)
    weights: list[Tensor] = field(default_factory=list)
    is_reached: bool = False
    is_binary: bool = False
    is_opaque: bool = False


class LogitsCheck:
    """Looks at the first loss that depends on a classifier, once.

    The rows of the classifier's output are looked for among those that a softmax was computed of, in the autograd graph
    of the loss: a subset of them (without the unlabelled), several calls in one matrix, mixed labels are all right. No
    softmax can be seen in compiled code: there the gradient of the output is compared with that of a cross entropy.

    Args:
        name: Of the classifier.
        is_named: Whether the user has named it: then what is found is a warning, not an error.
    """

    def __init__(self, name: str, is_named: bool) -> None:
        self._name, self._is_named = name, is_named
        self._outputs: list[tuple[Tensor, Any]] = []
        self._gradients: list[tuple[Tensor, Tensor]] = []
        self._is_open, self._asks_gradients = True, False

    def saw(self, output: Tensor) -> None:
        """The classifier has given this, as it goes on into the loss."""
        if not self._is_open:
            return
        plain = output.detach()
        self._outputs.append((plain, output.grad_fn))
        if output.requires_grad:
            output.register_hook(lambda gradient: self._gradients.append((plain, gradient.detach())))

    def look(self, loss: Any, weight: Tensor | None) -> None:
        """Before the backward pass of a loss.

        Args:
            loss: The loss.
            weight: The class weights that are known of, or None.

        Raises:
            StiffnessError: The classifier, which nobody has named, gives other logits than those of the loss.
        """
        if not self._is_open or not self._outputs or not isinstance(loss, Tensor):
            return
        classes = self._outputs[0][0].shape[1]
        graph = graph_of(loss, [node for _, node in self._outputs], classes)
        rows = torch.cat([_log_softmax(plain) for plain, _ in self._outputs])
        if not bool(rows.isfinite().all()):
            return
        if any(_has_rows_of(rows, found) for found in graph.log_softmax):
            self._close()
            self._compare_weights(graph.weights, weight, classes)
        elif graph.is_reached and graph.log_softmax:
            self._close()
            self._object("its softmax is computed of others")
        elif graph.is_reached and graph.is_binary and not graph.is_opaque:
            self._close()
            self._object("the loss is a binary cross entropy, without a softmax over classes")
        else:
            self._asks_gradients |= graph.is_reached

    def end(self) -> None:
        """The step is over."""
        if not self._outputs:
            return
        gradients, asked = self._gradients, self._asks_gradients
        self._close()
        if asked and gradients and not any(_is_of_cross_entropy(*pair) for pair in gradients):
            rank_zero_warn(
                f"The output of the classifier {self._name!r} must be the logits of a softmax cross entropy; its "
                "gradient in the first step does not look like it. With another loss, pass logits=False and "
                'smoothing=0; with another layer, classifier="name".'
            )

    def _close(self) -> None:
        self._is_open, self._outputs, self._gradients, self._asks_gradients = False, [], [], False

    def _object(self, found: str) -> None:
        message = (
            f"The output of the classifier {self._name!r} must be the logits [n, c] that the cross entropy of the "
            f"training loss is given, unchanged; found that {found}. What is added to the output would do something "
            "else there. "
        )
        if self._is_named:
            rank_zero_warn(f"{message}Ignore this if it is meant, or pass logits=False and smoothing=0.")
            return
        raise StiffnessError(
            f'{message}Pass classifier="name" of the layer that makes these logits (any kind of layer; '
            f"{self._name!r} itself if this is meant), or logits=False and smoothing=0 for what sampling does alone."
        )

    def _compare_weights(self, weights: list[Tensor], known: Tensor | None, classes: int) -> None:
        expected = torch.ones(classes) if known is None else known.detach().float().cpu()
        others = [weight for weight in weights if weight.numel() == classes]
        for found in others:
            if not torch.allclose(_shares(found), _shares(expected), rtol=1e-3):
                rank_zero_warn(
                    f"Class weights of the training loss must be those of a CrossEntropyLoss(weight=) that the module "
                    f"holds, found {[round(value, 3) for value in _shares(found).tolist()][:10]} in the loss and "
                    f"{'none' if known is None else [round(value, 3) for value in _shares(expected).tolist()][:10]} "
                    "in the module. What is added to the logits does not account for the former, which would balance "
                    "the classes twice. Take the weights out, or make them such a module."
                )
                return


def graph_of(loss: Tensor, outputs: list[Any], classes: int) -> LossGraph:
    """What lies between a loss and some outputs of a classifier.

    Args:
        loss: The loss, before its backward pass.
        outputs: The autograd nodes of the outputs.
        classes: Number c of classes.
    """
    graph = LossGraph()
    for node in _nodes(loss.grad_fn, {id(output) for output in outputs if output is not None}, graph):
        name = node.name()
        graph.is_binary |= name in _OF_BINARY
        graph.is_opaque |= isinstance(node, BackwardCFunction) or "CppNode" in name
        result = _softmax_of(node, name)
        if result is not None and result.ndim == 2 and result.shape[1] == classes:
            graph.log_softmax.append(result)
        weight = getattr(node, "_saved_weight", None) if name == "NllLossBackward0" else None
        if isinstance(weight, Tensor):
            graph.weights.append(weight.detach())
    return graph


def _nodes(start: Any, ends: set[int], graph: LossGraph) -> Iterator[Any]:
    seen, waiting = {id(None)}, [start]
    kept = []  # a node that nobody holds may lend its id to another
    while waiting:
        node = waiting.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        kept.append(node)
        if id(node) in ends:
            graph.is_reached = True
            continue
        yield node
        waiting += [other for other, _ in node.next_functions]


def _softmax_of(node: Any, name: str) -> Tensor | None:
    """The log-softmax that a node stands for, if it is one whose tensors can be had."""
    try:
        if name == "LogSoftmaxBackward0":
            return torch.as_tensor(node._saved_result).detach()
        if name == "SoftmaxBackward0":
            return torch.as_tensor(node._saved_result).detach().log()
        if name == "LogsumexpBackward0":
            return _log_softmax(torch.as_tensor(node._saved_self).detach())
    except RuntimeError:  # changed in place, or freed
        return None
    return None


def _log_softmax(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)


def _has_rows_of(rows: Tensor, found: Tensor) -> bool:
    """Whether one of the found rows, or more, is among the rows, up to the rounding of their type."""
    sample = found[torch.linspace(0, len(found) - 1, min(_ROWS, len(found))).long()].to(rows)
    exact = torch.finfo(found.dtype).eps < 1e-6
    allowed = 1e-3 * (1 + sample.abs()) if exact else 0.05 * (1 + sample.abs())
    near = (sample[:, None] - rows[None]).abs() <= allowed[:, None]
    return bool(near.all(2).any())


def _is_of_cross_entropy(logits: Tensor, gradient: Tensor) -> bool:
    """Whether each row is a multiple of p - e_y, of whatever class y: only there it is negative."""
    probabilities = _log_softmax(logits).exp()
    errors = probabilities.scatter_add(1, gradient.argmin(1, keepdim=True), -torch.ones_like(probabilities[:, :1]))
    gradient = gradient.to(errors)
    sizes = (gradient * errors).sum(1, keepdim=True) / errors.square().sum(1, keepdim=True).clamp(min=1e-30)
    return bool((gradient - sizes * errors).norm() <= _SHARE * gradient.norm())


def _shares(weight: Tensor) -> Tensor:
    return (weight / weight.mean()).float().cpu()
