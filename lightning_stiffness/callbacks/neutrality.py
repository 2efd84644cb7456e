"""Runs a user's module during training as if it had not been run: all that this changes is put back."""

import contextlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lightning_stiffness.callbacks.namespace import DummyLogger, isolate_rng
from lightning_stiffness.errors import StiffnessError
from lightning_stiffness.gram.sharding import whole

_MUTED: Final = ("log", "log_dict", "print")


@contextlib.contextmanager
def measuring(pl_module: nn.Module) -> Iterator[None]:
    """Within this context the module is in eval mode and mute; afterwards all is as it was, also after an exception.

    During the context gradients are recorded and autocast is off, compiled code runs uncompiled, parameters that FSDP2
    has shared out are whole (all processes have to enter), ``log``, ``log_dict`` and ``print`` of the module do
    nothing, and the trainer's loggers are replaced by ones that write nothing.
    Put back are the training flag of each submodule, the global random states (torch, CUDA, numpy, Python), and every
    attribute of every submodule: references, the contents of tensors that are not parameters (buffers, states of
    torchmetrics), and those of lists, dicts, sets and deques at any depth. Attributes that are new are removed.
    ``.grad`` and ``requires_grad`` are not touched. Take gradients inside: a buffer that is put back no longer serves a
    graph in which it was used.

    Not seen are changes inside objects of other classes (an average meter, a numpy array), in class attributes and in
    global variables, and writes through an experiment that the module itself holds (``self.writer``, ``wandb.log``).
    A copy of the tensors that are not parameters is held meanwhile.

    Recurrent layers on CUDA stay in training mode, with dropout at zero: cuDNN has no backward for them in eval mode.

    Args:
        pl_module: A LightningModule, attached to a trainer or not.

    Raises:
        StiffnessError: If a parameter was changed in place meanwhile; parameters are not copied, so it stays changed.
    """
    versions = _versions(pl_module)
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(isolated_random_state())
        stack.enter_context(whole(pl_module))
        stack.callback(_snapshot(pl_module.modules()))
        stack.enter_context(_mute_loggers(attached_trainer(pl_module)))
        stack.enter_context(_evaluation_flags(pl_module))
        _mute(pl_module)
        stack.enter_context(torch.enable_grad())
        stack.enter_context(without_autocast(pl_module))
        stack.enter_context(torch.compiler.set_stance("force_eager"))
        yield
    _require_unchanged(pl_module, versions)


@contextlib.contextmanager
def isolated_random_state() -> Iterator[None]:
    """Puts the global random states of torch, CUDA (once it is in use), numpy and Python back, also after an exception.

    >>> import torch
    >>> before = torch.get_rng_state()
    >>> with isolated_random_state():
    ...     _ = torch.rand(3)
    >>> torch.equal(before, torch.get_rng_state())
    True
    """
    scope = isolate_rng(include_cuda=torch.cuda.is_initialized())
    scope.__enter__()
    try:
        yield
    finally:
        scope.__exit__(None, None, None)  # on an exception, isolate_rng itself would put nothing back


@contextlib.contextmanager
def without_autocast(module: nn.Module) -> Iterator[None]:
    """Autocast off on the CPU and on the devices of the module's parameters."""
    with contextlib.ExitStack() as stack:
        for device_type in sorted({"cpu", *(parameter.device.type for parameter in module.parameters())} - {"meta"}):
            stack.enter_context(torch.autocast(device_type, enabled=False))
        yield


def attached_trainer(module: nn.Module) -> Any | None:
    """The Trainer a LightningModule is attached to; None without one, also under Fabric."""
    if getattr(module, "_fabric", None) is not None:
        return None
    try:
        return module.trainer
    except (RuntimeError, AttributeError):
        return None


def _mute(module: nn.Module) -> None:
    """Hides the logging methods of a LightningModule and of those inside it; the snapshot uncovers them."""
    for part in module.modules():
        if hasattr(type(part), "training_step") and hasattr(type(part), "log_dict"):
            vars(part).update(dict.fromkeys(_MUTED, _do_nothing))


def _do_nothing(*_: Any, **__: Any) -> None:
    """Stands where a method is muted."""


@contextlib.contextmanager
def _mute_loggers(trainer: Any | None) -> Iterator[None]:
    if trainer is None:
        yield
        return
    loggers = trainer.loggers
    trainer.loggers = [DummyLogger() for _ in loggers]
    try:
        yield
    finally:
        trainer.loggers = loggers


@contextlib.contextmanager
def _evaluation_flags(module: nn.Module) -> Iterator[None]:
    """Sets flags one by one: train() and eval() can be overridden, to merge weights or to keep layers frozen."""
    flags = [(part, part.training) for part in module.modules()]
    try:
        for part, _ in flags:
            part.training = _needs_training_mode(part)
            if part.training:
                vars(part)["dropout"] = 0.0
        yield
    finally:
        for part, flag in flags:
            part.training = flag


def _needs_training_mode(part: nn.Module) -> bool:
    return isinstance(part, nn.RNNBase) and any(parameter.is_cuda for parameter in part.parameters())


def _versions(module: nn.Module) -> dict[str, int]:
    return {name: p._version for name, p in module.named_parameters() if not (is_lazy(p) or p.is_inference())}


def _require_unchanged(module: nn.Module, versions: dict[str, int]) -> None:
    changed = [name for name, version in _versions(module).items() if versions.get(name, version) != version]
    if changed:
        raise StiffnessError(
            f"A training step that is measured must leave the parameters as they are; it changed {changed[0]!r} in "
            f"place. {_remedy(module, changed[0])}"
        )


def _remedy(module: nn.Module, name: str) -> str:
    if getattr(module.get_submodule(name.rpartition(".")[0]), "max_norm", None) is not None:
        return (
            "An embedding with max_norm= does that in its forward pass: leave max_norm out, and in the hook "
            "on_train_batch_end call `weight.data.renorm_(2, 0, max_norm)` instead."
        )
    return (
        "Move that to a hook such as on_before_zero_grad, or define "
        "`stiffness_step(self, batch) -> (losses [n], targets [n])` without it."
    )


def _snapshot(modules: Iterable[nn.Module]) -> Callable[[], None]:
    """Remembers the attributes of modules and all that can be changed inside them; what it returns puts it all back."""
    undo: dict[int, Callable[[], None]] = {}
    pending: list[Any] = [vars(module) for module in modules]
    while pending:
        value = pending.pop()
        if id(value) in undo:
            continue
        if isinstance(value, Tensor) and _can_change(value):
            undo[id(value)] = _keep_tensor(value)
        elif isinstance(value, (dict, list, set, deque)):
            undo[id(value)] = _keep_container(value)
        pending.extend(_contents(value))

    def put_back() -> None:
        for action in undo.values():
            action()

    return put_back


def _contents(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, (list, set, deque, tuple, frozenset)) else ()


def _can_change(tensor: Tensor) -> bool:
    return (
        not (isinstance(tensor, nn.Parameter) or is_lazy(tensor) or tensor.is_meta) and tensor.layout == torch.strided
    )


def _keep_tensor(tensor: Tensor) -> Callable[[], None]:
    copy = tensor.detach().clone()

    def put_back() -> None:
        if tensor.shape != copy.shape:
            tensor.data = copy
        elif not torch.equal(tensor, copy):
            with torch.inference_mode(tensor.is_inference()), torch.no_grad():
                tensor.detach().copy_(copy)

    return put_back


def _keep_container(container: Any) -> Callable[[], None]:
    copy = list(container.items()) if isinstance(container, dict) else list(container)

    def put_back() -> None:
        if isinstance(container, dict):
            if not _same([part for item in container.items() for part in item], [p for item in copy for p in item]):
                container.clear()
                container.update(copy)
        elif not _same(list(container), copy):
            container.clear()
            container.update(copy) if isinstance(container, set) else container.extend(copy)

    return put_back


def _same(first: list[Any], second: list[Any]) -> bool:
    return len(first) == len(second) and all(a is b for a, b in zip(first, second, strict=True))
