"""All signals of a run: begins them, measures them at each reading, and keeps their state."""

from collections.abc import Callable, Sequence
from typing import Any, Final

from lightning_stiffness.callbacks.agreement import agreed, attempted
from lightning_stiffness.callbacks.namespace import rank_zero_info, rank_zero_warn
from lightning_stiffness.callbacks.signals.gradients import EvidenceSignal, GradientDisparitySignal
from lightning_stiffness.callbacks.signals.leave_one_out import LeaveOneOutSignal
from lightning_stiffness.callbacks.signals.predictions import GradientWeightAlignmentSignal, PredictionChangesSignal
from lightning_stiffness.callbacks.signals.signal import Scene, Signal
from lightning_stiffness.errors import StiffnessError
from lightning_stiffness.gram import Gram

SIGNALS: Final[dict[str, Callable[[Scene], Signal]]] = {
    "leave_one_out": LeaveOneOutSignal,
    "gradient_disparity": GradientDisparitySignal,
    "evidence": EvidenceSignal,
    "prediction_changes": PredictionChangesSignal,
    "gradient_weight_alignment": GradientWeightAlignmentSignal,
}


def require_known(names: Sequence[str]) -> tuple[str, ...]:
    """The names, each once.

    Raises:
        StiffnessError: One is not known.
    """
    unknown = [name for name in names if name not in SIGNALS]
    if unknown:
        raise StiffnessError(f"There is no signal {unknown[0]!r}; choose of {', '.join(SIGNALS)}.")
    return tuple(dict.fromkeys(names))


class SignalBoard:
    """The signals of one run. One that fails is given up with a warning; the others and the training go on.

    Args:
        names: Which ones.
        wished: Others, which are left out with a word where they cannot be measured.
        strict: Raise instead, but for those that are wished.
    """

    def __init__(self, names: Sequence[str], wished: Sequence[str], strict: bool) -> None:
        """No signal has begun."""
        self._names, self._wished, self._strict = (*names, *wished), wished, strict
        self._signals: dict[str, Signal] = {}

    def begin(self, scene: Scene, states: dict[str, Any]) -> None:
        """Begins all signals, or takes them up again from their states; all processes have to call this.

        Raises:
            StiffnessError: A signal cannot be measured here, and training has not begun.
        """
        for name in self._names:
            outcome = agreed(scene.trainer, attempted(lambda name=name: self._begin(name, scene, states)))  # type: ignore[misc]
            if isinstance(outcome, Exception):
                self._give_up(name, outcome, is_fatal=scene.trainer.global_step == 0)

    def before_step(self) -> None:
        """Lets them look, before each optimizer step."""
        self._let_all(lambda signal: signal.before_step())

    def before_reading(self) -> None:
        """Lets them ask other processes, before a reading."""
        self._let_all(lambda signal: signal.before_reading())

    def read(self, gram: Gram) -> dict[str, float]:
        """The numbers of all, at a reading."""
        found: dict[str, float] = {}
        for name, signal in list(self._signals.items()):
            outcome = attempted(lambda signal=signal: signal.read(gram))  # type: ignore[misc]
            if isinstance(outcome, Exception):
                self._give_up(name, outcome)
            else:
                found.update(outcome)
        return found

    def state_dict(self) -> dict[str, Any]:
        """The states of all that are alive, by name."""
        return {name: signal.state_dict() for name, signal in self._signals.items()}

    def _let_all(self, act: Callable[[Signal], None]) -> None:
        for name, signal in list(self._signals.items()):
            outcome = attempted(lambda signal=signal: act(signal))  # type: ignore[misc]
            if isinstance(outcome, Exception):
                self._give_up(name, outcome)

    def _begin(self, name: str, scene: Scene, states: dict[str, Any]) -> None:
        signal = SIGNALS[name](scene)
        if name in states:
            signal.load_state_dict(states[name])
        self._signals[name] = signal

    def _give_up(self, name: str, cause: Exception, is_fatal: bool = False) -> None:
        self._signals.pop(name, None)
        if name in self._wished:
            rank_zero_info(
                f"The signal {name!r} cannot be measured ({type(cause).__name__}: {cause}). The rule that wished it "
                "goes without."
            )
            return
        if self._strict or is_fatal:
            raise cause
        rank_zero_warn(
            f"The signal {name!r} cannot be measured any more ({type(cause).__name__}: {cause}). Training goes on "
            "without it. Pass strict=True to the monitor to stop instead."
        )
