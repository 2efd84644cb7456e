"""What people look at while a run goes on: boards of all loggers, pictures at some of the readings."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeVar

from matplotlib.figure import Figure

from lightning_stiffness.callbacks.agreement import attempted
from lightning_stiffness.callbacks.namespace import rank_zero_warn
from lightning_stiffness.callbacks.neutrality import isolated_random_state
from lightning_stiffness.figures.dashboard import DASHBOARD
from lightning_stiffness.history import History
from lightning_stiffness.loggers import Board, RunCard, boards_of

Subject = TypeVar("Subject", bound=Sequence[Any])

PICTURES_SHARE: Final = 0.05  # of the time of training
EXPECTED_SECONDS: Final = 1.0  # that pictures take, before any was drawn


class PictureSchedule:
    """When pictures are drawn: ever more rarely as readings go by, and only while they take a small share of the time.

    After a picture at reading k the next is due at reading 1.5 k, or at the first one after it that can afford it.
    """

    def __init__(self) -> None:
        """Nothing is drawn yet."""
        self.drawn_at, self.seconds, self._expected = 0, 0.0, EXPECTED_SECONDS

    def is_due(self, readings: int, elapsed: float) -> bool:
        """Whether pictures are drawn at this reading.

        Args:
            readings: How many there are.
            elapsed: Seconds of training; nan where it is not known, and then plays no part.

        >>> PictureSchedule().is_due(readings=1, elapsed=3.0), PictureSchedule().is_due(readings=1, elapsed=30.0)
        (False, True)
        """
        is_dear = self.seconds + self._expected > PICTURES_SHARE * elapsed
        return readings >= math.ceil(1.5 * self.drawn_at) and readings > self.drawn_at and not is_dear

    def drew(self, readings: int, seconds: float) -> None:
        """Pictures were drawn at this reading."""
        self.drawn_at, self.seconds, self._expected = readings, self.seconds + seconds, seconds


class Boards:
    """The boards of all loggers; one that fails is left out with a warning, and training goes on.

    Args:
        loggers: Of Lightning; on the first process only, others have none.
        name: First part of all logged names.
        what: Who has something to show, in messages.

    Attributes:
        schedule: When pictures are drawn.
    """

    def __init__(self, loggers: Sequence[Any], name: str, what: str = "stiffness") -> None:
        """Nothing is shown yet."""
        self._boards, self._what, self.schedule = boards_of(loggers, name), what, PictureSchedule()
        self._warned: set[str] = set()

    def show(self, how: Callable[[Board], None]) -> None:
        """Shows something on each board."""
        for board in list(self._boards):
            with isolated_random_state():
                cause = attempted(lambda board=board: how(board))  # type: ignore[misc]
            if isinstance(cause, Exception):
                self._boards.remove(board)
                self._warn(f"{type(board.logger).__name__} cannot show what {self._what} has to show", cause)

    def draw(self, pictures: Mapping[str, Callable[[Subject], Figure | None]], subject: Subject, step: int) -> None:
        """Draws pictures of a sequence of readings, which come to all boards that show pictures."""
        if not any(board.shows_pictures for board in self._boards):
            return
        start = time.perf_counter()
        for tag, draw in pictures.items():
            figure = attempted(lambda draw=draw: draw(subject))  # type: ignore[misc]
            if isinstance(figure, Exception):
                self._warn(f"The picture {tag!r} cannot be drawn", figure)
            elif figure is not None:
                self.show(lambda board, tag=tag, figure=figure: board.picture(tag, figure, step))  # type: ignore[misc]
        self.schedule.drew(len(subject), time.perf_counter() - start)

    def _warn(self, what: str, cause: Exception) -> None:
        if what not in self._warned:
            rank_zero_warn(f"{what} ({type(cause).__name__}: {cause}). Training goes on, and all numbers are logged.")
        self._warned.add(what)


class Panels:
    """Shows a run in its loggers.

    Args:
        loggers: Of Lightning; on the first process only, others have none.
        name: First part of all logged names.
        is_full: Whether all of it is wanted, or only what is said in words at a stop.
    """

    def __init__(self, loggers: Sequence[Any], name: str, is_full: bool) -> None:
        """Nothing is shown yet."""
        self._boards, self._is_full = Boards(loggers, name), is_full

    def prepare(self, hyperparameters: Mapping[str, Any], names: Sequence[str]) -> None:
        """Before Lightning logs hyperparameters; ``names`` are those of all monitors of the run."""
        if self._is_full:
            self._boards.show(lambda board: board.prepare(hyperparameters, names))

    def begin(self, run: RunCard) -> None:
        """Before the first reading."""
        if self._is_full:
            self._boards.show(lambda board: board.begin(run))

    def reading(self, history: History, step: int) -> None:
        """The last reading of a history, with pictures where they are due."""
        if not self._is_full:
            return
        self._boards.show(lambda board: board.reading(history, step))
        if self._boards.schedule.is_due(len(history), history[-1].elapsed):
            self._boards.draw(DASHBOARD, history, step)

    def restored(self, epoch: float, text: str, step: int) -> None:
        """That the run ends with the weights of an earlier epoch."""
        self._boards.show(lambda board: board.restored(epoch, text, step))

    def stopped(self, verdict: Mapping[str, Any], text: str, step: int) -> None:
        """That training is stopped, and why."""
        self._boards.show(lambda board: board.stopped(verdict, text, step))

    def end(self, history: History, step: int) -> None:
        """After training: the last pictures, if they are not there yet, and the summary."""
        if not self._is_full or not history:
            return
        if self._boards.schedule.drawn_at < len(history):
            self._boards.draw(DASHBOARD, history, step)
        self._boards.show(lambda board: board.end(history))
