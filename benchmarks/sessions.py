"""Cells that are compared with one another, measured together: a process each, their calls taken in turn.

All methods on one batch are started first, then called once each, then again and again in an order that rotates, so
that a machine which slows down for a while slows all of them down. One process at a time computes; the others wait.
"""

import json
import selectors
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, final

from cells import Cell, CellOrder, FixtureOrder, Outcome, outcome_of
from machine import CELL, variables
from peers import METHODS

LONG_SECONDS = 15.0  # a call that takes longer is made once, or twice where its first one plans and checks
AT_ONCE = 2  # processes that are started together: they import, nothing is timed


@dataclass(frozen=True)
class Patience:
    """How often and how long cells are measured.

    Attributes:
        repeats: Calls (or bursts of quick calls) after the first.
        cell_seconds: What repeats may fill; those of our own cells and the yardsticks more, at least one.
        timeout: Seconds after which a call is given up.
        longest: Seconds that a call may be expected to take and still be made; of a peer at n > 500 a quarter of that.
    """

    repeats: int = 4
    cell_seconds: float = 4.0
    timeout: float = 90.0
    longest: float = 60.0

    def wanted(self, cell: Cell, first: float) -> int:
        """Calls after the first one, which took so many seconds."""
        within_time = min(self.repeats, int(self.cell_seconds / max(first, 1e-9)))
        return max(within_time, min(self.repeats, self._least(cell, first)))

    @staticmethod
    def _least(cell: Cell, first: float) -> int:
        if METHODS[cell.method].kind == "peer":
            return 0
        return 2 if cell.samples <= 500 and first <= LONG_SECONDS else 1

    def longest_of(self, cell: Cell) -> float:
        """The longest call that is made in a cell."""
        is_peer = METHODS[cell.method].kind == "peer"
        return self.longest / 4 if is_peer and cell.samples > 500 else self.longest


@final
class Session:
    """One cell's process, and what it has said so far."""

    def __init__(self, order: CellOrder) -> None:
        """Starts it."""
        self.order = order
        self.outcome: Outcome | None = None
        self.seconds: list[float] = []
        self.processor_seconds: list[float] = []
        self.first: tuple[float, float] | None = None
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 (closed by `close`)
        command = [sys.executable, str(CELL), "measure", json.dumps(asdict(order))]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(
            command, env=variables(order.cell.threads), stdin=pipe, stdout=pipe, stderr=self._errors, text=True
        )

    def wait(self, timeout: float) -> None:
        """Takes the answer that is due."""
        if self.outcome is not None:
            return
        stream = self._process.stdout
        assert stream is not None
        with selectors.DefaultSelector() as selector:
            selector.register(stream, selectors.EVENT_READ)
            if not selector.select(timeout):
                self._end(Outcome("timeout", f"longer than {timeout:g} s"))
                return
        line = stream.readline()
        if not line:
            self._end(self._death())
            return
        self._take(json.loads(line))

    def ask(self, command: str, timeout: float) -> None:
        """Gives a command and takes the answer."""
        if self.outcome is not None:
            return
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(command + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            self._end(self._death())
            return
        self.wait(timeout)

    def close(self) -> None:
        """Ends the process."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._errors):
            assert stream is not None
            stream.close()

    def _take(self, answer: dict[str, Any]) -> None:
        kind = answer.pop("kind")
        if kind == "outcome":
            self._end(outcome_of(answer))
        elif kind == "called" and self.first is None:
            self.first = answer["seconds"][0], answer["processor_seconds"][0]
        elif kind == "called":
            self.seconds += answer["seconds"]
            self.processor_seconds += answer["processor_seconds"]

    def _end(self, outcome: Outcome) -> None:
        if self._process.poll() is None and outcome.status == "timeout":
            self._process.kill()
        if outcome.is_measured and self.first is not None:
            outcome = replace(
                outcome,
                seconds=tuple(self.seconds) or self.first[:1],
                processor_seconds=tuple(self.processor_seconds) or self.first[1:],
                first_seconds=self.first[0],
                first_processor_seconds=self.first[1],
            )
        self.outcome = outcome

    def _death(self) -> Outcome:
        status = self._process.wait()
        if status == -signal.SIGKILL:
            return Outcome("out of memory", "ended by the system")
        self._errors.seek(0)
        last_line = (self._errors.read().strip().splitlines() or [f"exit status {status}"])[-1]
        return Outcome("out of memory" if "MemoryError" in last_line else "raises", last_line[:200])


@dataclass
class Group:
    """The sessions of some cells that are measured in turn."""

    patience: Patience
    sessions: list[Session] = field(default_factory=list)

    def run(self, orders: Sequence[CellOrder], told: Callable[[str], None] = lambda _: None) -> dict[Cell, Outcome]:
        """Measures all cells; `told` hears what is being done."""
        try:
            return self._run(orders, told)
        finally:
            for session in self.sessions:
                session.close()

    def _run(self, orders: Sequence[CellOrder], told: Callable[[str], None]) -> dict[Cell, Outcome]:
        for start in range(0, len(orders), AT_ONCE):
            started = [Session(order) for order in orders[start : start + AT_ONCE]]
            self.sessions += started
            for session in started:
                session.wait(max(60.0, self.patience.timeout))
        for session in self.sessions:
            told(f"{session.order.cell.method}, first call")
            session.ask("call", self.patience.timeout)
        for turn in range(self.patience.repeats):
            for session in rotated(self.sessions, turn):
                if session.first and turn < self.patience.wanted(session.order.cell, session.first[0]):
                    told(f"{session.order.cell.method}, repeat {turn + 1}")
                    session.ask("call", self.patience.timeout)
        for session in self.sessions:
            told(f"{session.order.cell.method}, accuracy")
            session.ask("finish", max(60.0, self.patience.timeout))
        found = {session.order.cell: session.outcome for session in self.sessions}
        return beside_the_floor({cell: outcome for cell, outcome in found.items() if outcome is not None})


def rotated(sessions: Sequence[Session], turn: int) -> list[Session]:
    """The same in an order that starts elsewhere each turn and goes back every second one."""
    start = (3 * turn + 1) % max(1, len(sessions))
    order = [*sessions[start:], *sessions[:start]]
    return order[::-1] if turn % 2 else order


def beside_the_floor(outcomes: dict[Cell, Outcome]) -> dict[Cell, Outcome]:
    """The outcomes with the floor's times of the same session."""
    floor = next((outcome for cell, outcome in outcomes.items() if cell.method == "floor"), None)
    if floor is None or not floor.is_measured:
        return outcomes
    beside = {"floor_seconds": floor.seconds, "floor_processor_seconds": floor.processor_seconds}
    return {cell: replace(outcome, **beside) for cell, outcome in outcomes.items()}


def make_fixture(order: FixtureOrder) -> None:
    """Trains a model and writes its fixture, in a process of its own.

    Raises:
        SystemExit: It failed.
    """
    command = [sys.executable, str(CELL), "prepare", json.dumps(asdict(order))]
    done = subprocess.run(command, env=variables(order.threads), capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"The model {order.model} could not be prepared:\n{done.stderr.strip()[-2000:]}")


def in_groups(cells: Iterable[Cell]) -> list[list[Cell]]:
    """Cells on one batch (the same model, n and number of threads) together, in the order of their first."""
    groups: dict[tuple[str, int, int], list[Cell]] = {}
    for cell in cells:
        groups.setdefault((cell.model, cell.samples, cell.threads), []).append(cell)
    return list(groups.values())
