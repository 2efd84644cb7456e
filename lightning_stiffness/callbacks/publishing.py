"""Where a reading goes: the Trainer's metrics, its loggers and their panels, files beside the logs, the terminal."""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import torch
from rich.console import Console
from torch import nn

from lightning_stiffness import loggers
from lightning_stiffness.callbacks.namespace import rank_zero_warn
from lightning_stiffness.callbacks.panels import Panels
from lightning_stiffness.callbacks.progress import logged_step
from lightning_stiffness.callbacks.run_card import Schedule, registered_hyperparameters, run_card
from lightning_stiffness.callbacks.run_folder import run_folder
from lightning_stiffness.figures.thumbnails import thumbnails
from lightning_stiffness.history import History, Reading
from lightning_stiffness.run_files import save_probe
from lightning_stiffness.tables import readings_table


class Audience(Schedule, Protocol):
    """The settings of a monitor that say to whom a run is shown."""

    name: str
    save_dir: str | None
    prog_bar: bool
    panels: bool
    show_table: bool


def prepare_panels(trainer: Any, pl_module: nn.Module, audience: Audience) -> None:
    """In `setup`, before Lightning logs hyperparameters."""
    if trainer.is_global_zero:
        registered = registered_hyperparameters(trainer, pl_module)
        others = (one for one in trainer.callbacks if isinstance(one, type(audience)) and one.panels)
        names = dict.fromkeys([*(one.name for one in others), audience.name])
        Panels(trainer.loggers, audience.name, audience.panels).prepare(registered, list(names))


class Publisher:
    """Shows the readings of one run; all processes have to make one, and to call its methods.

    Args:
        trainer: The Trainer.
        audience: To whom.
        history: The readings so far.
    """

    def __init__(self, trainer: Any, audience: Audience, history: History) -> None:
        """Writes the history as it is."""
        self._trainer, self._audience, self._history = trainer, audience, history
        folder = run_folder(trainer, audience.save_dir)
        self._path = folder / f"{audience.name}.jsonl" if folder is not None and trainer.is_global_zero else None
        self._panels = Panels(trainer.loggers if trainer.is_global_zero else (), audience.name, audience.panels)
        past = history[-1].elapsed if history else 0.0
        self._began = time.perf_counter() - (past if math.isfinite(past) else 0.0)
        self._verdict = ""
        self._try(history.save)

    def begin(self, pl_module: nn.Module, batch: Any) -> None:
        """Shows what is known before the first reading: the settings, and small pictures of the samples."""
        if not (self._audience.panels and self._trainer.is_global_zero):
            return
        probe = self._history.probe
        card = run_card(self._trainer, pl_module, probe, self._audience)
        self._try(lambda path: save_probe(path, card.settings, thumbnails(batch, len(probe.ids))))
        self._panels.begin(card)

    def completed(self, reading: Reading | None) -> Reading | None:
        """The reading with what this process knows of the run by now; that of the first process counts for all."""
        if reading is None:
            return None
        return replace(reading, logged=self._logged(), elapsed=time.perf_counter() - self._began)

    def publish(self, reading: Reading, at_epoch_end: bool = False) -> None:
        """Adds a reading to the history, the same one on all processes, and shows it."""
        trainer, name = self._trainer, self._audience.name
        self._history.append(reading)
        step = logged_step(trainer, at_epoch_end)
        values = {f"{name}/{key}": value for key, value in reading.metrics().items()}
        trainer.callback_metrics.update({key: torch.tensor(value) for key, value in values.items()})
        if self._audience.prog_bar:
            trainer.progress_bar_metrics[f"{name}/within"] = reading.cosine.within
        self._try(self._history.append_line)
        if trainer.is_global_zero:
            loggers.log_scalars(trainer.loggers, values, step)
            self._panels.reading(self._history, step)

    def stopped(self, verdict: Mapping[str, Any], text: str, step: int) -> None:
        """That training is stopped, and why."""
        self._verdict = text.split(". ", maxsplit=1)[0] + "."
        self._panels.stopped(verdict, text, step)

    def restored(self, epoch: float, text: str) -> None:
        """That the run ends with the weights of an earlier epoch."""
        self._panels.restored(epoch, text, logged_step(self._trainer))

    def end(self) -> None:
        """After training: the last pictures, summaries, and a table in the terminal if there is a progress bar."""
        self._panels.end(self._history, logged_step(self._trainer))
        trainer = self._trainer
        wants_words = (
            self._audience.show_table and trainer.progress_bar_callback is not None and not trainer.fast_dev_run
        )
        if wants_words and trainer.is_global_zero and self._history:
            Console().print(readings_table(self._history, verdict=self._verdict), highlight=False)

    def _logged(self) -> dict[str, float]:
        prefix, values = f"{self._audience.name}/", self._trainer.callback_metrics
        others = {key: torch.as_tensor(value) for key, value in values.items() if not key.startswith(prefix)}
        found = {key: float(value) for key, value in others.items() if value.numel() == 1}
        return {key: value if math.isfinite(value) else math.nan for key, value in found.items()}

    def _try(self, how: Callable[[Path], None]) -> None:
        """Writes a file; where that fails once, no more is written."""
        if self._path is None:
            return
        try:
            how(self._path)
        except OSError as error:
            rank_zero_warn(f"The stiffness history cannot be written to {self._path}: {error}. Training goes on.")
            self._path = None
