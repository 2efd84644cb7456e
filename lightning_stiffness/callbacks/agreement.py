"""All processes of a run go the same way: what the first one found counts for all."""

from collections.abc import Callable
from typing import Any, TypeVar

from lightning_stiffness.errors import StiffnessError

Result = TypeVar("Result")


def attempted(work: Callable[[], Result]) -> Result | Exception:
    """What comes of it, or why nothing does, for the other processes to learn."""
    try:
        return work()
    except Exception as cause:
        return cause


def agreed(trainer: Any, outcome: Result | Exception) -> Result | Exception:
    """The outcome of the first process, on each of them; all have to call this."""
    if trainer.world_size == 1:
        return outcome
    found: Result | Exception = trainer.strategy.broadcast(
        _portable(outcome) if isinstance(outcome, Exception) else outcome
    )
    return found


def _portable(cause: Exception) -> Exception:
    """An exception that another process can read: those of other packages need not survive pickling."""
    if isinstance(cause, StiffnessError):
        return type(cause)(str(cause))
    return RuntimeError(f"{type(cause).__name__}: {cause}")
