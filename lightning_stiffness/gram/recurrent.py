"""Recurrent layers step by step: what torch runs as one fused operation has no gradient of its own for each sample."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from typing_extensions import override


@contextlib.contextmanager
def recurrent_layers_by_steps(module: Any) -> Iterator[None]:
    """Within this context, an LSTM, GRU or RNN is a sequence of matrix products, as it is where nothing is fused.

    That of oneDNN hides the steps, and so does that of cuDNN, which has no backward pass in eval mode besides.

    Args:
        module: The model; the context does nothing where it has no recurrent layer.

    Source: ours.
    """
    has_any = isinstance(module, nn.Module) and any(isinstance(part, nn.RNNBase) for part in module.modules())
    with _BySteps() if has_any else contextlib.nullcontext():
        yield


_FUSED = frozenset({torch._VF.lstm, torch._VF.gru, torch._VF.rnn_tanh, torch._VF.rnn_relu})


class _BySteps(TorchFunctionMode):
    @override
    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func not in _FUSED:
            return func(*args, **(kwargs or {}))
        with _off("cudnn"), _off("mkldnn"):
            return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def _off(backend: str) -> Iterator[None]:
    """Without a backend; torch.backends would set other flags as well, and warn of devices that are not there."""
    switches: Any = torch._C
    before = getattr(switches, f"_get_{backend}_enabled")()
    getattr(switches, f"_set_{backend}_enabled")(False)
    try:
        yield
    finally:
        getattr(switches, f"_set_{backend}_enabled")(before)
