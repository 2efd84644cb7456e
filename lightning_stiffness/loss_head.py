"""The end of a training step, where losses are computed: in double precision, and without losing the samples."""

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

_Function = Callable[..., Any]

_DOUBLE: Final[frozenset[_Function]] = frozenset(
    {
        F.cross_entropy,
        F.nll_loss,
        F.kl_div,
        F.log_softmax,
        torch.log_softmax,
        torch.special.log_softmax,
        Tensor.log_softmax,
        F.logsigmoid,
        F.binary_cross_entropy,
        F.binary_cross_entropy_with_logits,
        F.soft_margin_loss,
        F.multi_margin_loss,
        F.multilabel_margin_loss,
        F.multilabel_soft_margin_loss,
    }
)
_WITHOUT_DOUBLE: Final = frozenset({"mps"})  # device types that know no float64

_COUNTED_BY_TARGET: Final[frozenset[_Function]] = frozenset({F.cross_entropy, F.nll_loss})
_DIVIDED_BY_WEIGHT: Final[frozenset[_Function]] = frozenset({F.mse_loss, F.l1_loss, F.smooth_l1_loss, F.huber_loss})
_LOSSES: Final[frozenset[_Function]] = (
    _COUNTED_BY_TARGET
    | _DIVIDED_BY_WEIGHT
    | {
        F.binary_cross_entropy,
        F.binary_cross_entropy_with_logits,
        F.cosine_embedding_loss,
        F.gaussian_nll_loss,
        F.hinge_embedding_loss,
        F.kl_div,
        F.margin_ranking_loss,
        F.multi_margin_loss,
        F.multilabel_margin_loss,
        F.multilabel_soft_margin_loss,
        F.poisson_nll_loss,
        F.soft_margin_loss,
        F.triplet_margin_loss,
        F.triplet_margin_with_distance_loss,
    }
)
_MEANS: Final[frozenset[_Function]] = frozenset({torch.mean, Tensor.mean, torch.nanmean, Tensor.nanmean})
_REDUCTIONS: Final[frozenset[_Function]] = _MEANS | {torch.sum, Tensor.sum, torch.nansum, Tensor.nansum}

_signature = functools.cache(inspect.signature)


@contextlib.contextmanager
def double_precision_loss_heads(enabled: bool = True) -> Iterator[None]:
    """Within this context, losses and log-softmax are computed in float64, whatever the precision of the network.

    The gradient of a fitted sample's cross-entropy with respect to its logits, p - onehot, is a difference of numbers
    next to each other: in float32 it is rounding noise from losses of about 1e-4 downwards. Only the few numbers that
    enter the loss function are cast, and the gradient flows back through the cast into the network's own precision.
    Softmax itself, as in attention, stays as it is, and so does everything on devices without float64.

    The losses that come out are float64. Code that combines log-probabilities with float32 matrices may fail on that:
    run it again with ``enabled=False``, which makes this context do nothing.

    Args:
        enabled: Whether to compute in float64.

    Source: ours.

    >>> import torch
    >>> logits, target = torch.tensor([[18.0, 0.0]]), torch.tensor([0])
    >>> float(torch.nn.functional.cross_entropy(logits, target))
    0.0
    >>> with double_precision_loss_heads():
    ...     print(f"{torch.nn.functional.cross_entropy(logits, target):.2e}")
    1.52e-08
    """
    with _DoubleHeads() if enabled else contextlib.nullcontext():
        yield


class _DoubleHeads(TorchFunctionMode):
    def __torch_function__(
        self, func: _Function, types: object, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func not in _DOUBLE or not _has_double((*args, *kwargs.values())):
            return func(*args, **kwargs)
        return func(*map(_in_double, args), **{name: _in_double(value) for name, value in kwargs.items()})


def _has_double(values: Sequence[Any]) -> bool:
    return not any(isinstance(value, Tensor) and value.device.type in _WITHOUT_DOUBLE for value in values)


def _in_double(value: Any) -> Any:
    if isinstance(value, Tensor) and value.is_floating_point():
        return value.to(torch.float64)
    if isinstance(value, torch.dtype) and value.is_floating_point:
        return torch.float64
    return value


class PerSampleReductions(TorchFunctionMode):
    """Within this context, what is summed or averaged to one number is kept as it was just before that.

    PyTorch's loss functions called with ``reduction="mean"`` or ``"sum"`` are computed with ``reduction="none"`` and
    reduced in a step of its own, to the same number up to rounding: means with class weights or ``ignore_index`` are
    divided by what PyTorch divides them by. A mean over nothing, as of a single sample that is ignored, is zero instead
    of 0 / 0. Sums and means of any tensor to one number are watched too. Only what requires a gradient is
    kept. Loss functions that are not known, or called with the old ``size_average``, run
    unchanged.

    Attributes:
        reduced: The tensors, in the order in which they were reduced. Each is used by its reduction and by nothing
            else, so that a gradient with respect to it is the weight it has in that one sum.

    Source: ours.

    >>> import torch
    >>> logits = torch.zeros(3, 4, requires_grad=True)
    >>> with PerSampleReductions() as watched:
    ...     loss = torch.nn.functional.cross_entropy(logits, torch.tensor([0, 1, 2]))
    >>> [tuple(values.shape) for values in watched.reduced], round(loss.item(), 4)
    ([(3,)], 1.3863)
    """

    def __init__(self) -> None:
        super().__init__()
        self.reduced: list[Tensor] = []

    def __torch_function__(
        self, func: _Function, types: object, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _LOSSES:
            return self._loss(func, args, kwargs)
        result = func(*args, **kwargs)
        if func in _REDUCTIONS and isinstance(result, Tensor) and result.requires_grad and result.numel() == 1:
            values = args[0] if args else kwargs["input"]
            if func in _MEANS and values.numel() == 0:
                return self._watch(values).sum(dtype=result.dtype).reshape(result.shape)
            return self._repeat_watched(func, args, kwargs)
        return result

    def _loss(self, func: _Function, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        call = _signature(func).bind(*args, **kwargs)
        call.apply_defaults()
        reduction = call.arguments["reduction"]
        if not _is_known(func, call.arguments):
            return func(*args, **kwargs)
        call.arguments["reduction"] = "none"
        values = func(*call.args, **call.kwargs)
        if not values.requires_grad or values.ndim == 0:
            return func(*args, **kwargs)
        total = self._watch(values).sum()
        return total if reduction == "sum" else _over(total, _divisor(func, reduction, call.arguments, values))

    def _repeat_watched(self, func: _Function, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        if args:
            return func(self._watch(args[0]), *args[1:], **kwargs)
        return func(**{**kwargs, "input": self._watch(kwargs["input"])})

    def _watch(self, values: Tensor) -> Tensor:
        alias = values.view_as(values)
        self.reduced.append(alias)
        return alias


def _is_known(func: _Function, arguments: Mapping[str, Any]) -> bool:
    """Whether the reduction is one that can be done by hand."""
    if arguments["reduction"] not in ("mean", "sum", "batchmean"):
        return False
    if arguments.get("size_average") is not None or arguments.get("reduce") is not None:
        return False
    return func not in _DIVIDED_BY_WEIGHT or arguments.get("weight") is None


def _divisor(func: _Function, reduction: str, arguments: Mapping[str, Any], values: Tensor) -> Tensor | int:
    """What PyTorch divides the sum of the values by."""
    if reduction == "batchmean":
        return int(arguments["input"].shape[0])
    target = arguments["target"] if func in _COUNTED_BY_TARGET else None
    if target is None or target.is_floating_point():
        return values.numel()
    counted: Tensor = target != arguments["ignore_index"]
    weight: Tensor | None = arguments["weight"]
    if weight is None:
        return counted.sum()
    weights = weight.to(values.dtype)[torch.where(counted, target, 0)]  # torch.func.vmap cannot index by a mask
    return torch.where(counted, weights, 0.0).sum()


def _over(total: Tensor, divisor: Tensor | int) -> Tensor:
    """The mean, and zero with a gradient of zero where nothing is counted, which PyTorch makes 0 / 0."""
    if isinstance(divisor, int):
        return total / max(divisor, 1)
    is_counted = divisor != 0
    return total * is_counted / torch.where(is_counted, divisor, 1)
