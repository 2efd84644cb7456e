"""LiveFigure: stiffness in a notebook, drawn anew while training goes on."""

import io
import time
from collections.abc import Callable
from typing import Any, Final

from matplotlib.figure import Figure
from typing_extensions import override

from lightning_stiffness.callbacks.following import MonitorFollower
from lightning_stiffness.callbacks.monitor import StiffnessMonitor
from lightning_stiffness.callbacks.namespace import rank_zero_warn
from lightning_stiffness.errors import StiffnessError
from lightning_stiffness.figures import within_and_between
from lightning_stiffness.history import History

DOTS_PER_INCH: Final = 100


class LiveFigure(MonitorFollower):
    """Shows stiffness in a notebook while training goes on: one picture below the cell, drawn anew after readings.

    Works alone, with a StiffnessMonitor of its own, or beside one among the callbacks, whose readings it shares. In a
    program that is no notebook it does nothing, and says so once.

    Args:
        draw: Which picture: a function of a History, such as those of `lightning_stiffness.figures`.
        seconds: Time between two pictures, at least; the last reading is always drawn.
        source: The monitor whose readings are used. Not given: the one among the Trainer's callbacks that has this
            `name`, or one of its own.
        name: Of the monitor.

    Raises:
        StiffnessError: `seconds` is negative.

    Source: ours.

    Example:
        >>> from lightning_stiffness import LiveFigure
        >>> LiveFigure().seconds
        2.0
    """

    def __init__(
        self,
        draw: Callable[[History], Figure] = within_and_between,
        *,
        seconds: float = 2.0,
        source: StiffnessMonitor | None = None,
        name: str = "stiffness",
    ) -> None:
        """See the class."""
        super().__init__()
        if seconds < 0:
            raise StiffnessError(f"seconds is a time between two pictures, 0 or more; found {seconds}.")
        self.draw, self.seconds, self.name = draw, seconds, name
        self._handle: Any = None
        self._shown, self._last = 0, -float("inf")
        self._follow(name, source)

    @property
    @override
    def state_key(self) -> str:
        return self._generate_state_key(name=self.name)

    @override
    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self._shown, self._last = 0, -float("inf")
        self._handle = _display_handle() if trainer.is_global_zero else None
        if trainer.is_global_zero and self._handle is None:
            rank_zero_warn("LiveFigure shows its picture in a notebook, and this program is none: it does nothing.")
        super().on_train_start(trainer, pl_module)
        self._show()

    @override
    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        self._show()

    @override
    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        super().on_train_end(trainer, pl_module)
        self._last = -float("inf")
        self._show()

    def _show(self) -> None:
        readings = len(self.history or ())
        if self._handle is None or readings == self._shown or time.monotonic() - self._last < self.seconds:
            return
        assert self.history is not None
        self._handle.update({"image/png": _png(self.draw(self.history))}, raw=True)
        self._shown, self._last = readings, time.monotonic()


def _png(figure: Figure) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=DOTS_PER_INCH)
    return file.getvalue()


def _display_handle() -> Any | None:
    """A place below the cell of a notebook; None where there is none."""
    try:
        from IPython import get_ipython  # noqa: PLC0415 (a notebook has it)
        from IPython.display import display  # noqa: PLC0415
    except ImportError:
        return None
    shell = get_ipython()
    if shell is None or not hasattr(shell, "kernel"):
        return None
    return display({"text/plain": "Stiffness: no reading yet."}, raw=True, display_id=True)
