"""Runs a model as its code reads: not compiled, not checkpointed, not autocast; and leaves it as it was."""

import contextlib
import functools
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Final

import torch
import torch.utils.checkpoint
from torch import Tensor, nn

from lightning_stiffness.gram.sharding import whole

_Function = Callable[..., Any]
_ORIGINAL: Final = "_orig_mod"  # where torch.compile keeps the module that it wraps
_WRAPPERS: Final = frozenset({"_orig_mod", "_checkpoint_wrapped_module"})  # parts of names that users did not give

_without_checkpoints: ContextVar[bool] = ContextVar("without_checkpoints", default=False)
_without_autocast: ContextVar[bool] = ContextVar("without_autocast", default=False)


def unwrapped(module: nn.Module) -> nn.Module:
    """The user's own module inside torch.compile, DistributedDataParallel and DataParallel."""
    while True:
        if _ORIGINAL in module._modules:
            module = module.get_submodule(_ORIGINAL)
        elif isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
            module = module.module
        else:
            return module


def plain_name(name: str) -> str:
    """The qualified name of a parameter without the parts that wrappers add.

    >>> plain_name("encoder._orig_mod.0.weight")
    'encoder.0.weight'
    """
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


@contextlib.contextmanager
def plainly(module: nn.Module) -> Iterator[None]:
    """Within this context, what this thread computes is computed as the code reads.

    Compiled modules and functions run uncompiled (torch knows this switch for all threads only), activation
    checkpointing keeps its activations, autocast does nothing, neither around the context nor inside the model's own
    code, gradients are recorded, and no process waits for another, but for parameters that FSDP2 has shared out, which
    are `whole` meanwhile. Buffers of parts in training mode and the random
    state are put back at the end, also after an exception.

    Args:
        module: The model; its device and its buffers count.

    Source: ours.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(whole(module))
        stack.enter_context(torch.enable_grad())
        if "torch._dynamo" in sys.modules:  # nothing can be compiled without it, and its import takes seconds
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        parts = list(module.modules())
        devices = {
            parameter.device for part in parts for parameter in part._parameters.values() if parameter is not None
        }
        for device_type in sorted({"cpu", *(device.type for device in devices)} - {"meta"}):
            if torch.is_autocast_enabled(device_type):
                stack.enter_context(torch.autocast(device_type, enabled=False))
        for part in parts:
            if isinstance(part, nn.parallel.DistributedDataParallel):
                stack.callback(_without_communication(part))
        stack.callback(_random_state(devices))
        stack.callback(_buffers(parts))
        stack.enter_context(_switches.installed())
        for variable in (_without_checkpoints, _without_autocast):
            stack.callback(variable.reset, variable.set(True))
        yield


@contextlib.contextmanager
def with_autocast(allowed: bool) -> Iterator[None]:
    """Within `plainly`, lets the model's own autocast work after all."""
    token = _without_autocast.set(_without_autocast.get() and not allowed)
    try:
        yield
    finally:
        _without_autocast.reset(token)


@dataclass
class _Switches:
    """Functions of torch that do something else for a thread which measures; put there while one does.

    Users import `checkpoint` and `autocast` by name, so that replacing those would reach nobody. What they call in turn
    is looked up on classes at each call: that is where the switches are.
    """

    lock: threading.Lock
    users: int = 0

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        with self.lock:
            self.users += 1
            if self.users == 1:
                self._undo = [_replaced(*switch) for switch in _switched()]
        try:
            yield
        finally:
            with self.lock:
                self.users -= 1
                if self.users == 0:
                    for undo in self._undo:
                        undo()


_switches = _Switches(threading.Lock())


def _switched() -> Iterator[tuple[type, str, Any]]:
    """Class, attribute, and what stands there during a measurement."""
    checkpoint: Any = torch.utils.checkpoint
    autocast: Any = torch.autocast
    yield autocast, "__enter__", _unless(_without_autocast, autocast.__enter__, lambda self: self)
    yield autocast, "__exit__", _unless(_without_autocast, autocast.__exit__, lambda self, *error: None)
    reentrant = getattr(checkpoint, "CheckpointFunction", None)
    if reentrant is not None:
        apply = _unless(_without_checkpoints, reentrant.apply, _run_reentrant)
        yield reentrant, "apply", staticmethod(apply)
    hook = getattr(checkpoint, "_checkpoint_hook", None)  # of all checkpointing without reentry
    if hook is not None:
        yield hook, "__enter__", _unless(_without_checkpoints, hook.__enter__, lambda self: None)
        yield hook, "__exit__", _unless(_without_checkpoints, hook.__exit__, lambda self, *error: None)


def _unless(switch: ContextVar[bool], original: _Function, instead: _Function) -> _Function:
    @functools.wraps(original)
    def chosen(*args: Any, **kwargs: Any) -> Any:
        return (instead if switch.get() else original)(*args, **kwargs)

    return chosen


def _run_reentrant(function: _Function, preserve_random_state: bool, *args: Any) -> Any:
    """What `CheckpointFunction.apply` computes: where no input has a gradient, its parameters get none either."""
    has_gradient = any(isinstance(argument, Tensor) and argument.requires_grad for argument in args)
    with torch.set_grad_enabled(has_gradient and torch.is_grad_enabled()):
        return function(*args)


def _replaced(owner: Any, name: str, value: Any) -> Callable[[], None]:
    """Sets an attribute of a class; what it returns puts it back."""
    if name not in vars(owner):  # inherited
        setattr(owner, name, value)
        return lambda: delattr(owner, name)
    before = vars(owner)[name]
    setattr(owner, name, value)
    return lambda: setattr(owner, name, before)


def _without_communication(part: nn.parallel.DistributedDataParallel) -> Callable[[], None]:
    """Lets a forward pass send no buffers and expect no backward pass; what it returns puts that back."""
    names = ("require_forward_param_sync", "require_backward_grad_sync")
    before = {name: getattr(part, name) for name in names}
    vars(part).update(dict.fromkeys(names, False))
    return lambda: vars(part).update(before)


def _random_state(devices: Iterable[torch.device]) -> Callable[[], None]:
    """Remembers the random states of the CPU and of these devices; what it returns puts them back."""
    state = torch.get_rng_state()
    undo: list[Callable[[], None]] = [lambda: torch.set_rng_state(state)]
    for device in devices:
        backend: Any = getattr(torch, device.type, None)
        if device.type == "cuda":
            undo.append(functools.partial(backend.set_rng_state, backend.get_rng_state(device), device))
        elif device.type == "mps":
            undo.append(functools.partial(backend.set_rng_state, backend.get_rng_state()))

    def put_back() -> None:
        for action in undo:
            action()

    return put_back


def _buffers(parts: Iterable[nn.Module]) -> Callable[[], None]:
    """Remembers the buffers of those parts that are in training mode; what it returns puts them back."""
    kept = [
        (part, name, buffer, buffer.detach().clone())
        for part in parts
        if part.training
        for name, buffer in part._buffers.items()
        if buffer is not None
    ]

    @torch.no_grad()
    def put_back() -> None:
        for part, name, buffer, copy in kept:
            if not torch.equal(buffer, copy):
                buffer.copy_(copy)
            part._buffers[name] = buffer

    return put_back
