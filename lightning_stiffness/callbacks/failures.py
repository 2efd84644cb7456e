"""What becomes of a measurement that fails: a run must not die of it, and should hear of it once."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from lightning_stiffness.callbacks.agreement import attempted
from lightning_stiffness.callbacks.namespace import rank_zero_warn
from lightning_stiffness.errors import StiffnessError
from lightning_stiffness.gram.memory import is_out_of_memory

_OWN_CODE: Final = (
    " The module ran in eval mode, on some samples at a time. If its code cannot, as when it returns something else "
    "then, define `stiffness_step(self, batch) -> (losses [n], targets [n])` on it, or pass `loss=`."
)


@dataclass
class Failures:
    """The failures of one run.

    Attributes:
        is_strict: Whether the user wants each of them raised.
        first: What the user has heard of, in a sentence; None where nothing failed.
    """

    is_strict: bool
    first: str | None = None

    def report(self, cause: Exception, step: int, is_fatal: bool = False) -> None:
        """Warns of the first one.

        Raises:
            Exception: The cause, where it is fatal or the user is strict.
        """
        if is_fatal or self.is_strict:
            raise cause
        if self.first is not None:
            return
        self.first = f"Stiffness could not be measured at step {step} ({type(cause).__name__}: {cause})."
        is_known = isinstance(cause, StiffnessError) or is_out_of_memory(cause)
        rank_zero_warn(
            f"{self.first}{'' if is_known else _OWN_CODE} Training goes on; later failures are not reported. Pass "
            "strict=True to stop instead."
        )

    def survive(self, work: Callable[[], None], step: int) -> None:
        """Does what may fail."""
        outcome = attempted(work)
        if isinstance(outcome, Exception):
            self.report(outcome, step)
