"""Parameters that are shared out among processes, and whole ones in their place for the time of a measurement."""

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Final

from torch import nn

from lightning_stiffness.errors import StiffnessError

_FSDP: Final = "torch.distributed.fsdp"
_TENSOR: Final = "torch.distributed.tensor"
_MARKS: Final = frozenset({"_fsdp_flattened", "ds_id"})  # on parameters of FSDP1, and of DeepSpeed's third stage
_HOOKS: Final = ("_forward_pre_hooks", "_forward_hooks")

REQUIRED: Final = "All parameters must be whole on each process, or shared out by `fully_shard` (FSDP2) alone;"
REMEDY: Final = (
    "Train with DDP or FSDP2 (ModelParallelStrategy with `fully_shard` in configure_model), or measure a plain copy: "
    "load the state that torch.distributed.checkpoint.state_dict.get_model_state_dict(module, "
    "options=StateDictOptions(full_state_dict=True)) returns into an unsharded module."
)


@dataclass(frozen=True)
class _Whole:
    """What is whole now: parts by their identity, and the parameter that each copy stands for."""

    parts: frozenset[int] = frozenset()
    held: Mapping[int, nn.Parameter] = field(default_factory=dict)


_NOTHING: Final = _Whole()
_whole_now: ContextVar[_Whole] = ContextVar("whole_now", default=_NOTHING)


def is_sharded(module: nn.Module) -> bool:
    """Whether a process has a part of some parameter only; not so inside `whole`."""
    return bool(_fully_sharded(module)) or _are_apart(module.modules())


@contextlib.contextmanager
def whole(module: nn.Module) -> Iterator[None]:
    """Within this context, a module that `fully_shard` (FSDP2) has shared out has all parameters on each process.

    They are copies in the dtype of the parameters themselves, gathered anew each time: memory for all of them is needed
    meanwhile. FSDP's hooks are taken out, so that what runs is what the code reads, whichever policy of mixed precision
    there is. All processes have to enter, and run the same until then. Without `fully_shard` this does nothing.

    Raises:
        StiffnessError: Parameters are shared out in another way, too (tensor parallelism), or something has gathered
            them meanwhile, so that the copies were not what was measured.

    Source: ours.
    """
    parts = _fully_sharded(module)
    if not parts:
        yield
        return
    _require_fully_sharded_alone(module, parts)
    with contextlib.ExitStack() as stack:
        for part in parts:
            stack.callback(_let_go(part))
        slots = _slots(module)
        for slot in slots:
            stack.callback(slot.put_back)
            slot.holder[slot.name] = slot.copy
        known = _whole_now.get()
        held_by_copy = {id(slot.copy): slot.parameter for slot in slots}
        now = _Whole(known.parts | {id(part) for part in parts}, {**known.held, **held_by_copy})
        stack.callback(_whole_now.reset, _whole_now.set(now))
        yield
        if any(slot.holder[slot.name] is not slot.copy for slot in slots):
            raise StiffnessError(
                "The parameters must stay whole while they are measured, but the training step put others in their "
                "place, such as by unshard() or reshard(). Define `stiffness_step(self, batch) -> (losses [n], "
                "targets [n])` that does not."
            )


def held(parameter: nn.Parameter) -> nn.Parameter:
    """The parameter that an optimizer knows: inside `whole`, that of which there is a copy in the module."""
    return _whole_now.get().held.get(id(parameter), parameter)


def whole_tensor(value: Any) -> Any:
    """A tensor that is shared out, all of it on each process, which all have to ask for; any other value as it is."""
    if not isinstance(value, _kinds(_TENSOR, "DTensor")):
        return value
    shared = value.detach()
    return shared.to(shared.device_mesh.device_type).full_tensor()  # from the CPU, where FSDP may have put it


def shared_out(value: Any, like: Any) -> Any:
    """A whole tensor, shared out as another one is, for which all processes have to ask; or the value as it is."""
    kinds = _kinds(_TENSOR, "DTensor")
    if isinstance(value, kinds) or not isinstance(like, kinds):
        return value
    mesh = like.device_mesh
    return sys.modules[_TENSOR].distribute_tensor(value.to(mesh.device_type), mesh, like.placements)


@dataclass(frozen=True, eq=False)
class _Slot:
    """Where a module keeps a parameter that is shared out, and the whole copy that stands there for now."""

    holder: dict[str, nn.Parameter | None]
    name: str
    parameter: nn.Parameter
    copy: nn.Parameter

    def put_back(self) -> None:
        self.holder[self.name] = self.parameter


def _slots(module: nn.Module) -> list[_Slot]:
    """Of all shared parameters; one that stands in two places has one copy."""
    kinds, copies, found = _kinds(_TENSOR, "DTensor"), dict[int, nn.Parameter](), []
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is None or not isinstance(parameter, kinds):
                continue
            if id(parameter) not in copies:
                copies[id(parameter)] = nn.Parameter(whole_tensor(parameter), parameter.requires_grad)
            found.append(_Slot(part._parameters, name, parameter, copies[id(parameter)]))
    return found


def _let_go(part: Any) -> Callable[[], None]:
    """Takes all that FSDP does when a part runs away from it; what it returns puts that back."""
    part.reshard()  # it may be gathered between two batches, in the dtype of the policy
    undo = [*(_without_hooks(getattr(part, kind)) for kind in _HOOKS), _with_own_methods(vars(part))]

    def put_back() -> None:
        for action in undo:
            action()
        part.reshard()  # if the training step has gathered it

    return put_back


def _without_hooks(hooks: dict[int, Any]) -> Callable[[], None]:
    """Takes FSDP's own hooks out; what it returns puts them back, in their order."""
    before = list(hooks.items())
    for key, hook in before:
        if _origin(hook).startswith(_FSDP):
            del hooks[key]

    def put_back() -> None:
        if len(hooks) != len(before):
            hooks.clear()
            hooks.update(before)

    return put_back


def _with_own_methods(attributes: dict[str, Any]) -> Callable[[], None]:
    """Uncovers methods that `register_fsdp_forward_method` has wrapped; what it returns covers them again."""
    wrapped = {
        name: value
        for name, value in attributes.items()
        if hasattr(value, "__wrapped__") and getattr(value, "__globals__", {}).get("__name__", "").startswith(_FSDP)
    }
    attributes.update({name: value.__wrapped__ for name, value in wrapped.items()})
    return lambda: attributes.update(wrapped)


def _require_fully_sharded_alone(module: nn.Module, parts: list[Any]) -> None:
    covered = {id(each) for part in parts for each in part.modules()}
    is_outside = _are_apart(part for part in module.modules() if id(part) not in covered)
    is_parallel = any(
        _origin(hook).startswith(_TENSOR)
        for part in module.modules()
        for kind in _HOOKS
        for hook in getattr(part, kind).values()
    )
    if is_parallel or is_outside or _is_split_twice(module):
        raise StiffnessError(f"{REQUIRED} found tensor parallelism, which module code is written for. {REMEDY}")


def _are_apart(parts: Iterator[nn.Module]) -> bool:
    """Whether own parameters of one of the parts are not whole, FSDP2 aside."""
    shards, wrappers = _kinds(_TENSOR, "DTensor"), _kinds(_FSDP, "FullyShardedDataParallel")

    def is_apart(parameter: nn.Parameter | None) -> bool:
        if parameter is None:
            return False
        return isinstance(parameter, shards) or not _MARKS.isdisjoint(vars(parameter))

    return any(isinstance(part, wrappers) or any(map(is_apart, part._parameters.values())) for part in parts)


def _is_split_twice(module: nn.Module) -> bool:
    """Whether a parameter is split along more than one dimension of a mesh; FSDP splits along one."""
    kinds = _kinds(_TENSOR, "DTensor")
    found: list[Any] = [parameter for parameter in module.parameters() if isinstance(parameter, kinds)]
    return any(sum(not placement.is_replicate() for placement in one.placements) > 1 for one in found)


def _fully_sharded(module: nn.Module) -> list[Any]:
    """The parts that FSDP2 holds in its hands, without those that are whole now."""
    kinds, whole_now = _kinds(_FSDP, "FSDPModule"), _whole_now.get().parts
    if not kinds:
        return []
    return [part for part in module.modules() if isinstance(part, kinds) and id(part) not in whole_now]


def _kinds(module: str, name: str) -> tuple[Any, ...]:
    """A class of a module of torch, if that has been imported: nothing is of this class otherwise."""
    kind: Any = getattr(sys.modules.get(module), name, None)
    return () if kind is None else (kind,)


def _origin(hook: Any) -> str:
    """The module whose code a hook is."""
    return str(getattr(hook, "__module__", None) or type(hook).__module__)
