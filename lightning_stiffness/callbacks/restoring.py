"""Copies of a module's weights, for the steps that a criterion may still go back to."""

import copy
from collections.abc import Collection, Iterable, Mapping
from typing import Any, final

from torch import Tensor

from lightning_stiffness.callbacks.namespace import rank_zero_warn
from lightning_stiffness.errors import StiffnessError
from lightning_stiffness.gram.sharding import is_sharded, shared_out, whole_tensor
from lightning_stiffness.history import History
from lightning_stiffness.stopping import Criterion, Decision

# Their processes hold a part of the weights each, and a module's state does not say how to gather them.
SHARDING = ("FSDPStrategy", "DeepSpeedStrategy")
AVERAGING = ("StochasticWeightAveraging", "WeightAveraging")


@final
class WeightCopies:
    """Copies of all parameters and buffers by the step they are of, in the memory of the CPU of the first process.

    Weights that are DTensors, as those of FSDP2, are copied whole.

    Source: ours.

    Example:
        >>> from torch import nn
        >>> module, copies = nn.Linear(1, 1), WeightCopies()
        >>> copies.keep(10, module, wanted={10})
        >>> kept = module.weight.item()
        >>> _ = nn.init.zeros_(module.weight)
        >>> copies.restore(10, module)
        >>> module.weight.item() == kept
        True
    """

    def __init__(self) -> None:
        self._copies: dict[int, dict[str, Any]] = {}

    @property
    def steps(self) -> tuple[int, ...]:
        """Steps of which there is a copy."""
        return tuple(self._copies)

    def keep(self, step: int, module: Any, wanted: Collection[int], is_first: bool = True) -> None:
        """Copies the weights of now, which are those of ``step``, if wanted; forgets copies that are not wanted.

        Args:
            step: Optimizer steps taken.
            module: The module; neither it nor any random state changes.
            wanted: The steps that may still be asked for.
            is_first: Whether this is the first process; the others, which all have to call this, too, keep nothing.
        """
        if step in wanted and step not in self._copies:
            copies = self._copies[step] = dict[str, Any]()
            for name, value in module.state_dict().items():
                whole = whole_tensor(value)
                if is_first:
                    copies[name] = _copied(whole)
        self._copies = {kept: state for kept, state in self._copies.items() if kept in wanted}

    def keep_reading(self, trainer: Any, step: int, wanted: Collection[int]) -> None:
        """As `keep`, for the Trainer's module and a reading of ``step``; copies nothing if training has gone on."""
        if is_sharded(trainer.lightning_module):  # each process has a part of what the first one keeps
            wanted = trainer.strategy.broadcast(set(wanted))
        elif not trainer.is_global_zero:
            return
        known = wanted if step == trainer.global_step else set(wanted) & set(self.steps)
        self.keep(step, trainer.lightning_module, known, trainer.is_global_zero)

    def restore(self, step: int, module: Any) -> None:
        """Puts the copy of that step into the module, which stays on its device and in its dtype.

        Raises:
            KeyError: There is no copy of that step.
        """
        _put_back(self._copies[step], module)

    def restore_agreed(self, trainer: Any, module: Any, step: int | None) -> int | None:
        """As `restore`, in all processes, with the step and the copy of the first; all have to call this.

        Returns:
            The step whose weights are in the module now; None if none was asked for, if it is the last, whose weights
            are there anyway, or if there is no copy of it (then a warning says so).
        """
        state = None if step is None else self._copies.get(step)
        if trainer.world_size > 1:
            step, state = trainer.strategy.broadcast((step, state))
        if step == trainer.global_step:
            return None
        if step is not None and state is None:
            rank_zero_warn(
                f"The weights of step {step}, which the rule for stopping holds for the best, were not kept: the last "
                'weights stay. A run must have restore="best" from its beginning, also before it is resumed.'
            )
        if step is None or state is None:
            return None
        _put_back(state, module)
        return step

    def clear(self) -> None:
        """Forgets all copies."""
        self._copies = {}

    def state_dict(self) -> dict[int, dict[str, Any]]:
        """The copies, for a checkpoint."""
        return dict(self._copies)

    def load_state_dict(self, state: Mapping[int, Mapping[str, Any]]) -> None:
        """Takes the copies of a checkpoint, on the CPU whatever device it was read to."""
        self._copies = {
            int(step): {name: _copied(value) for name, value in entries.items()} for step, entries in state.items()
        }


def wanted_steps(criterion: Criterion, history: History, decision: Decision) -> set[int]:
    """The steps whose weights a criterion, or any part of it, would restore if the run ended now.

    Args:
        criterion: A rule; the ``criteria`` of a combined one are its parts.
        history: The readings until now.
        decision: What the rule says of them.
    """
    decisions = [decision, *(part(history) for part in _parts(criterion))]
    return {one.best_step for one in decisions if one.best_step is not None}


def require_whole_weights(trainer: Any) -> None:
    """Refuses a strategy that shares the weights out among the processes.

    Raises:
        StiffnessError: It does.
    """
    found = next((kind.__name__ for kind in type(trainer.strategy).__mro__ if kind.__name__ in SHARDING), None)
    if found is not None:
        raise StiffnessError(
            f'restore="best" needs a strategy in which each process has all weights, but found {found}, which shards '
            'them. Use restore="stop" with a ModelCheckpoint that keeps all epochs (save_top_k=-1): after the run, '
            "decision.best_step tells which one to load."
        )


def require_last_weights(trainer: Any) -> None:
    """Refuses callbacks that put averaged weights in the place of the last ones when training ends.

    Raises:
        StiffnessError: There is one.
    """
    names = (kind.__name__ for callback in trainer.callbacks for kind in type(callback).__mro__)
    found = next((name for name in names if name in AVERAGING), None)
    if found is not None:
        raise StiffnessError(
            f'restore="best" decides which weights the run ends with, and so does {found}, which was found beside it. '
            'Pass restore="stop" to stop and keep the averaged weights, or leave the averaging out.'
        )


def _parts(criterion: Criterion) -> Iterable[Criterion]:
    for part in getattr(criterion, "criteria", ()):
        yield part
        yield from _parts(part)


def _put_back(state: Mapping[str, Any], module: Any) -> None:
    """In place: devices, dtypes and what the optimizer refers to stay.

    A module may leave weights out of its state, such as those of a frozen backbone: then it does so now, too. If the
    names differ from those of now, this is as strict as Lightning is with checkpoints.
    """
    now = module.state_dict()
    shared = {name: shared_out(value, now[name]) if name in now else value for name, value in state.items()}
    is_strict = shared.keys() != now.keys() and getattr(module, "strict_loading", True)
    module.load_state_dict(shared, strict=is_strict)


def _copied(value: Any) -> Any:
    return value.detach().to("cpu", copy=True) if isinstance(value, Tensor) else copy.deepcopy(value)
