"""What becomes of a measurement that fails: a run must not die of it, and should hear of it once."""

from collections.abc import Callable
from dataclasses import dataclass

from lightning_stiffness.callbacks.agreement import attempted
from lightning_stiffness.callbacks.namespace import rank_zero_warn


@dataclass
class Failures:
    """The failures of one run.

    Attributes:
        is_strict: Whether the user wants each of them raised.
        has_warned: Whether the user has heard of one.
    """

    is_strict: bool
    has_warned: bool = False

    def report(self, cause: Exception, step: int, is_fatal: bool = False) -> None:
        """Warns of the first one.

        Raises:
            Exception: The cause, where it is fatal or the user is strict.
        """
        if is_fatal or self.is_strict:
            raise cause
        if not self.has_warned:
            rank_zero_warn(
                f"Stiffness could not be measured at step {step} ({type(cause).__name__}: {cause}). Training goes on; "
                "later failures are not reported. Pass strict=True to stop instead."
            )
        self.has_warned = True

    def survive(self, work: Callable[[], None], step: int) -> None:
        """Does what may fail."""
        outcome = attempted(work)
        if isinstance(outcome, Exception):
            self.report(outcome, step)
