"""What people look at while a run goes on: boards of all loggers, pictures at some of the readings."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lightning_stiffness.callbacks.agreement import attempted
from lightning_stiffness.callbacks.namespace import rank_zero_warn
from lightning_stiffness.callbacks.neutrality import isolated_random_state
from lightning_stiffness.figures.dashboard import DASHBOARD
from lightning_stiffness.history import History
from lightning_stiffness.loggers import Board, RunCard, boards_of


def is_picture_due(readings: int) -> bool:
    """Whether pictures are drawn at this reading: of 1, 2, 3, 5, 8, 12, 18 ..., so that long runs do not feel them.

    >>> [count for count in range(1, 100) if is_picture_due(count)]
    [1, 2, 3, 5, 8, 12, 18, 27, 41, 62, 93]
    """
    due = 1
    while due < readings:
        due = math.ceil(1.5 * due)
    return due == readings


class Panels:
    """Shows a run in its loggers; a logger that fails is left out with a warning, and training goes on.

    Args:
        loggers: Of Lightning; on the first process only, others have none.
        name: First part of all logged names.
        is_full: Whether all of it is wanted, or only what is said in words at a stop.
    """

    def __init__(self, loggers: Sequence[Any], name: str, is_full: bool) -> None:
        """Nothing is shown yet."""
        self._boards, self._is_full, self._drawn = boards_of(loggers, name), is_full, 0

    def begin(self, run: RunCard) -> None:
        """Before the first reading."""
        if self._is_full:
            self._show(lambda board: board.begin(run))

    def reading(self, history: History, step: int) -> None:
        """The last reading of a history, with pictures where they are due."""
        if not self._is_full:
            return
        self._show(lambda board: board.reading(history, step))
        if is_picture_due(len(history)):
            self._draw(history, step)

    def text(self, tag: str, text: str, step: int) -> None:
        """Some lines for people."""
        self._show(lambda board: board.text(f"{board.name}/{tag}", text, step))

    def stopped(self, verdict: Mapping[str, Any], text: str, step: int) -> None:
        """That training is stopped, and why."""
        self._show(lambda board: board.stopped(verdict, text, step))

    def end(self, history: History, step: int) -> None:
        """After training: the last pictures, if they are not there yet, and the summary."""
        if not self._is_full or not history:
            return
        if self._drawn < len(history):
            self._draw(history, step)
        self._show(lambda board: board.end(history))

    def _draw(self, history: History, step: int) -> None:
        self._drawn = len(history)
        if not self._boards:
            return
        for tag, draw in DASHBOARD.items():
            figure = draw(history)
            if figure is not None:
                self._show(lambda board, tag=tag, figure=figure: board.picture(tag, figure, step))  # type: ignore[misc]

    def _show(self, how: Callable[[Board], None]) -> None:
        for board in list(self._boards):
            with isolated_random_state():
                cause = attempted(lambda board=board: how(board))  # type: ignore[misc]
            if isinstance(cause, Exception):
                self._boards.remove(board)
                rank_zero_warn(
                    f"{type(board.logger).__name__} cannot show what stiffness has to show "
                    f"({type(cause).__name__}: {cause}). Training goes on, and its numbers are logged."
                )
