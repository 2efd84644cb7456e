"""Hooks on one layer for a time: never compiled, and nothing in copies of the layer."""

import sys
import weakref
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import nn


class LayerHook:
    """A forward hook, or forward pre-hook, that acts on one layer alone.

    A copy of the layer, by `copy.deepcopy` or by `pickle`, gets a hook of the standard library's in its place, which
    does nothing: copies can be used and saved without this package.

    Args:
        layer: The layer that it is registered on.
        work: What the hook does; its result is the hook's.

    >>> import copy
    >>> layer = nn.Linear(1, 1)
    >>> handle = layer.register_forward_hook(LayerHook(layer, lambda layer, inputs, output: 0 * output + 9))
    >>> layer(torch.ones(1, 1)).item(), copy.deepcopy(layer)(torch.ones(1, 1)).item() < 9
    (9.0, True)
    """

    def __init__(self, layer: nn.Module, work: Callable[..., Any]) -> None:
        self._layer, self._work = weakref.ref(layer), work

    # It may count and remember, which must not become a part of compiled code.
    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def __call__(self, layer: nn.Module, *values: Any) -> Any:
        """What the work makes of the layer's call; None, for no change, on any other layer."""
        return self._work(layer, *values) if layer is self._layer() else None

    def __deepcopy__(self, memo: dict[int, Any]) -> Callable[..., None]:
        return _nothing()

    def __reduce__(self) -> tuple[Any, ...]:
        return getattr, (nullcontext(), "__exit__")


def _nothing() -> Callable[..., None]:
    """Takes any arguments and returns None."""
    return nullcontext().__exit__


def forget_compiled_code() -> None:
    """Makes code that was compiled before hooks came or went be compiled anew when it is next called.

    torch.compile looks for hooks when it compiles, and never again
    (`torch._dynamo.config.skip_nnmodule_hook_guards`). Does nothing where nothing has been compiled.
    """
    compiler = sys.modules.get("torch._dynamo.convert_frame")
    if compiler is None:  # importing it takes seconds
        return
    compiled = getattr(compiler, "output_codes", None)
    if compiled is None or len(getattr(compiled, "seen", "unknown")):
        torch.compiler.reset()
