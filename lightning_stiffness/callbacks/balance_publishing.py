"""Where the readings of a ClassGroupingBalancer go: numbers and pictures in the loggers, a file beside the logs."""

from collections.abc import Sequence
from typing import Any, Final

from lightning_stiffness import loggers
from lightning_stiffness.balance import BALANCE, BalanceReading, save_readings
from lightning_stiffness.callbacks.namespace import rank_zero_warn
from lightning_stiffness.callbacks.panels import Boards
from lightning_stiffness.callbacks.progress import logged_step
from lightning_stiffness.callbacks.run_folder import run_folder
from lightning_stiffness.figures.balancing import BALANCE_PICTURES

NAME: Final = "balancing"


class BalancePublisher:
    """Shows the readings of one run; all processes have to make one.

    Args:
        trainer: The Trainer.
        panels: Whether pictures and tables are wanted, too.
        save_dir: Folder of the file; that of the first logger when None.
        readings: Those of a run that is taken up again.
    """

    def __init__(self, trainer: Any, panels: bool, save_dir: str | None, readings: Sequence[BalanceReading]) -> None:
        """Replaces the file of an older run."""
        self._trainer = trainer
        folder = run_folder(trainer, save_dir)
        self._path = folder / BALANCE if folder is not None and trainer.is_global_zero else None
        has_boards = panels and trainer.is_global_zero
        self._boards = Boards(trainer.loggers if has_boards else (), NAME, "the balancer")
        if self._path is not None and self._path.exists():
            self._save(readings)

    def publish(self, readings: Sequence[BalanceReading], at_epoch_end: bool = False) -> None:
        """Shows the last reading."""
        if not self._trainer.is_global_zero:
            return
        reading, step = readings[-1], logged_step(self._trainer, at_epoch_end)
        self._save(readings)
        values = {f"{NAME}/{key}": value for key, value in reading.metrics().items()}
        loggers.log_scalars(self._trainer.loggers, values, step)
        if self._boards.schedule.is_due(len(readings), reading.elapsed):
            self._boards.draw(BALANCE_PICTURES, readings, step)

    def end(self, readings: Sequence[BalanceReading]) -> None:
        """After training: the last pictures, if they are not there yet, and what a table says of the classes."""
        if not readings:
            return
        step = logged_step(self._trainer)
        if self._boards.schedule.drawn_at < len(readings):
            self._boards.draw(BALANCE_PICTURES, readings, step)
        self._boards.show(lambda board: board.balance(readings, step))

    def _save(self, readings: Sequence[BalanceReading]) -> None:
        """Writes the file; where that fails once, no more is written."""
        if self._path is None:
            return
        try:
            save_readings(self._path, readings)
        except OSError as error:
            rank_zero_warn(f"The readings of balance cannot be written to {self._path}: {error}. Training goes on.")
            self._path = None
