"""Trains in worker processes: a training that fails, or takes its process with it, is an outcome and not the end."""

import json
import multiprocessing
import signal
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from cells import digest
from stopping_grid import Setting
from stopping_training import HISTORY, PROBE_SIZE, SIGNALS, Order, Part, train

VERSION = "2"  # raise it when trainings that are finished no longer count


@dataclass(frozen=True)
class Outcome:
    """What came of a training; `error` is empty if it finished, and then there are its costs in seconds."""

    error: str = ""
    costs: dict[str, float] | None = None


@dataclass(frozen=True)
class Store:
    """The folder of trainings: a history and an outcome for each."""

    folder: Path
    data: str | None = None

    def order(self, setting: Setting, part: Part) -> Order:
        """How this training is asked for."""
        return Order(setting, part, str(self.folder / setting.name / part), self.data)

    def history(self, setting: Setting, part: Part) -> Path:
        """The file of its history."""
        return self.folder / setting.name / part / f"{HISTORY}.jsonl"

    def find(self, setting: Setting, part: Part) -> Outcome | None:
        """Its outcome; None if it has none that counts."""
        path = self.folder / setting.name / part / "outcome.json"
        if not path.exists():
            return None
        contents = json.loads(path.read_text())
        return Outcome(**contents["outcome"]) if contents["fingerprint"] == fingerprint(setting, part) else None

    def is_finished(self, setting: Setting, part: Part) -> bool:
        """Whether its history can be judged."""
        outcome = self.find(setting, part)
        return outcome is not None and not outcome.error

    def keep(self, order: Order, outcome: Outcome) -> None:
        """Writes an outcome."""
        folder = Path(order.folder)
        folder.mkdir(parents=True, exist_ok=True)
        contents = {
            "setting": asdict(order.setting),
            "part": order.part,
            "fingerprint": fingerprint(order.setting, order.part),
            "outcome": asdict(outcome),
        }
        temporary = folder / "outcome.part"
        temporary.write_text(json.dumps(contents, indent=1))
        temporary.replace(folder / "outcome.json")


def fingerprint(setting: Setting, part: Part) -> str:
    """What a training depends on."""
    return digest(VERSION, setting.name, part, str(PROBE_SIZE), *SIGNALS)


@dataclass
class Worker:
    """A process that trains what it is sent, one after another."""

    process: BaseProcess
    pipe: Connection
    order: Order | None = None
    since: float = 0.0

    def send(self, order: Order) -> None:
        """Hands it a training."""
        self.order, self.since = order, time.perf_counter()
        self.pipe.send(order)

    def receive(self) -> Outcome:
        """What came of the training; that it died, if it did."""
        try:
            outcome = self.pipe.recv()
        except (EOFError, OSError):
            self.process.join()
            outcome = Outcome(f"the process of the training ended with exit code {self.process.exitcode}")
        assert isinstance(outcome, Outcome)
        return outcome

    def end(self) -> None:
        """Ends the process, in the middle of a training too; Lightning would catch a milder signal and train on."""
        self.process.kill()
        self.process.join()
        self.pipe.close()


def run_all(orders: Sequence[Order], jobs: int) -> Iterator[tuple[Order, Outcome]]:
    """Trains all, `jobs` at a time, in about this order; each with its outcome when it has one."""
    waiting = list(reversed(orders))
    workers: list[Worker] = []
    try:
        while waiting or workers:
            while waiting and len(workers) < jobs:
                workers.append(started())
                workers[-1].send(waiting.pop())
            ready = wait([worker.pipe for worker in workers])
            for worker in [worker for worker in workers if worker.pipe in ready]:
                order, outcome = worker.order, worker.receive()
                assert order is not None
                if waiting and worker.process.is_alive():
                    worker.send(waiting.pop())
                else:
                    worker.end()
                    workers.remove(worker)
                yield order, outcome
    finally:
        for worker in workers:
            worker.end()


def started() -> Worker:
    """A new worker."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=serve, args=(there,), daemon=True)
    process.start()
    there.close()
    return Worker(process, here)


def serve(pipe: Any) -> None:
    """Trains what comes through the pipe until it is ended."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that asked decides when to end
    with suppress(EOFError, BrokenPipeError):  # the process that asked is gone
        while True:
            pipe.send(attempt(pipe.recv()))


def attempt(order: Order) -> Outcome:
    """Trains; an error becomes an outcome."""
    try:
        return Outcome(costs=asdict(train(order)))
    except (Exception, SystemExit) as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        return Outcome(f"{type(error).__name__}: {error} ({Path(place.filename).name}:{place.lineno})")
