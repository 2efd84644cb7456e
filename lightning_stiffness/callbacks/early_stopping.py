"""StiffnessEarlyStopping: training stops when same-class stiffness says so, without validation data."""

import json
from pathlib import Path
from typing import Any, Literal

import torch
from typing_extensions import override

from lightning_stiffness import json_lines, loggers
from lightning_stiffness.callbacks.monitor import StiffnessMonitor
from lightning_stiffness.callbacks.namespace import (
    EarlyStopping,
    rank_zero_info,
    rank_zero_warn,
    require_same_namespace,
)
from lightning_stiffness.callbacks.progress import logged_step
from lightning_stiffness.callbacks.run_folder import run_folder
from lightning_stiffness.errors import StiffnessError
from lightning_stiffness.history import History
from lightning_stiffness.stopping import Criterion, Decision, StiffnessDrop


class StiffnessEarlyStopping(EarlyStopping):
    """Stops training when the gradients of samples of the same class no longer agree as well as they did.

    While a network learns what the samples of a class share, a step on one of them helps the others; when it turns to
    single samples, their gradients come apart. This is seen on training data alone, so no validation set is needed. The
    rule is a `criterion`, a function of the readings; by default `StiffnessDrop`. See there for what guards it against
    stopping a network that has not learned yet.

    Works alone, with a StiffnessMonitor of its own, or beside a StiffnessMonitor among the callbacks, whose readings it
    shares. Nothing is decided before `min_epochs` and `min_steps`, and an earlier verdict does not linger: what counts
    is the verdict then. The decision is made from the history alone, so a resumed run decides as if it had not been
    interrupted, by the arguments it is given now. After the run, `decision` holds the verdict with its numbers,
    `<name>_decision.json` beside the logs the same and, if the run was stopped, `stopping_reason_message` the words.

    The first arguments are those of Lightning's EarlyStopping, in its order.

    Args:
        monitor: The watched value, as the monitor logs it. Only the within-class value can be watched.
        min_delta: Share of its peak that the value must lose to count as fallen.
        patience: Epochs (not checks) for which it must stay there. Of a stream of unknown length only whole epochs
            count; with `limit_train_batches` the length is known.
        verbose: Report the verdict after each reading.
        mode: "max": high stiffness is good.
        strict: Raise when a measurement fails, instead of going on without a verdict. Applies to the monitor that it
            brings itself.
        check_finite: Kept for compatibility; a reading that is not finite is skipped by the criterion.
        stopping_threshold: Not supported, must be None.
        divergence_threshold: Not supported, must be None.
        check_on_train_epoch_end: Kept for compatibility; decides after each reading.
        log_rank_zero_only: Report on the first process only.
        warmup: Epochs after the first sign of learning that do not count.
        smoothing: Share of the old value that the moving average keeps over an epoch.
        criterion: Another rule; then `min_delta`, `patience`, `warmup` and `smoothing` are not used.
        source: The monitor whose readings are used, among the Trainer's callbacks or not. Not given: the one of them
            whose name `monitor` begins with, or one of its own.

    Raises:
        StiffnessError: An argument is out of range or not supported.

    Source: ours, after Fort et al., arXiv:1901.09491, section on over-fitting.

    Example:
        >>> from lightning_stiffness import StiffnessEarlyStopping
        >>> StiffnessEarlyStopping(patience=5).criterion.patience
        5
    """

    def __init__(  # noqa: PLR0913  # Lightning's arguments, and the settings of the rule
        self,
        monitor: str = "stiffness/within",
        min_delta: float = 0.05,
        patience: float = 3.0,
        verbose: bool = False,
        mode: Literal["max"] = "max",
        strict: bool = False,
        check_finite: bool = True,
        stopping_threshold: float | None = None,
        divergence_threshold: float | None = None,
        check_on_train_epoch_end: bool | None = None,
        log_rank_zero_only: bool = False,
        *,
        warmup: float = 2.0,
        smoothing: float = 0.5,
        criterion: Criterion | None = None,
        source: StiffnessMonitor | None = None,
    ) -> None:
        """See the class."""
        _require_supported(monitor, mode, stopping_threshold, divergence_threshold)
        super().__init__(
            monitor=monitor,
            min_delta=min_delta,
            patience=patience,  # type: ignore[arg-type]  # Lightning counts checks
            verbose=verbose,
            mode=mode,
            strict=strict,
            check_finite=check_finite,
            check_on_train_epoch_end=check_on_train_epoch_end,
            log_rank_zero_only=log_rank_zero_only,
        )
        drop = StiffnessDrop(min_delta, patience, warmup, smoothing)
        self.criterion: Criterion = drop if criterion is None else criterion
        self.source = source
        self.decision: Decision | None = None
        """The last verdict; None until there is a reading."""
        self._own: StiffnessMonitor | None = None
        self._watched: StiffnessMonitor | None = source
        self._is_driven = False
        self._judged = 0
        self._path: Path | None = None
        self._not_stopped = getattr(self, "stopping_reason", None)

    @property
    def history(self) -> History | None:
        """The readings that are judged; None until training starts."""
        return None if self._watched is None else self._watched.history

    @override
    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        require_same_namespace(trainer)
        super().setup(trainer, pl_module, stage)
        self._watched = watched = self.source or self._listed(trainer) or self._brought()
        _require_spread(watched, self.criterion)
        self._is_driven = not any(callback is watched for callback in trainer.callbacks)
        if self._is_driven:
            watched.setup(trainer, pl_module, stage)

    @override
    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        watched = self._monitor()
        if self._is_driven:
            watched.on_train_start(trainer, pl_module)
        folder = run_folder(trainer, watched.save_dir)
        self._path = None if folder is None else folder / f"{watched.name}_decision.json"
        self.decision, self._judged = None, 0
        self.stopped_epoch, self.stopping_reason_message = 0, None
        self._set_reason(stopped=False)

    @override
    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        watched = self._monitor()
        # A monitor that is listed after this callback has not measured yet; it takes one reading of a step only.
        watched.on_train_batch_start(trainer, pl_module, batch, batch_idx)
        if watched.is_due_at_step(trainer) and len(watched.history or ()) > self._judged:
            self._decide(trainer)

    @override
    def on_before_backward(self, trainer: Any, pl_module: Any, loss: Any) -> None:
        if self._is_driven:
            self._monitor().on_before_backward(trainer, pl_module, loss)

    @override
    def on_after_backward(self, trainer: Any, pl_module: Any) -> None:
        if self._is_driven:
            self._monitor().on_after_backward(trainer, pl_module)

    @override
    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self._is_driven:
            self._monitor().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    @override
    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        if self._is_driven:
            self._monitor().on_exception(trainer, pl_module, exception)

    @override
    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        if self._is_driven:
            self._monitor().on_train_epoch_end(trainer, pl_module)
        self._decide(trainer, at_epoch_end=True)

    @override
    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """Nothing: validation is not needed, and what is decided is decided after a reading."""

    @override
    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self._write(trainer)

    @override
    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        if self._is_driven:
            self._monitor().teardown(trainer, pl_module, stage)

    @override
    def state_dict(self) -> dict[str, Any]:
        """The readings of a monitor that no one else saves, and what was decided; never the arguments."""
        state: dict[str, Any] = {
            "stopped_epoch": self.stopped_epoch,
            "stopping_reason_message": self.stopping_reason_message,
        }
        if self._is_driven:
            state["monitor"] = self._monitor().state_dict()
        return state

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.stopped_epoch = state_dict.get("stopped_epoch", 0)
        self.stopping_reason_message = state_dict.get("stopping_reason_message")
        if self._watched is not None and self._watched.history is None:
            self._watched.load_state_dict(state_dict.get("monitor", {}))

    def _listed(self, trainer: Any) -> StiffnessMonitor | None:
        name = self.monitor.removesuffix("/within")
        monitors = (callback for callback in trainer.callbacks if isinstance(callback, StiffnessMonitor))
        return next((monitor for monitor in monitors if monitor.name == name), None)

    def _brought(self) -> StiffnessMonitor:
        if self._own is None:
            self._own = StiffnessMonitor(name=self.monitor.removesuffix("/within"), strict=self.strict)
        return self._own

    def _monitor(self) -> StiffnessMonitor:
        assert self._watched is not None
        return self._watched

    def _decide(self, trainer: Any, at_epoch_end: bool = False) -> None:
        """Judges the history and tells the trainer; all processes take the same way through here."""
        if trainer.fast_dev_run or self.history is None or self.stopping_reason_message is not None:
            return
        self._judged = len(self.history)
        decision = self.criterion(self.history)
        stop = bool(trainer.strategy.reduce_boolean_decision(decision.stop, all=False))
        self.decision = decision
        self.best_score = torch.tensor(decision.peak)
        if self.verbose:
            self._log_info(trainer, decision.reason, self.log_rank_zero_only)
        if stop and _may_stop(trainer):
            self._stop(trainer, decision, logged_step(trainer, at_epoch_end))

    def _stop(self, trainer: Any, decision: Decision, step: int) -> None:
        trainer.should_stop = True
        self.stopped_epoch = trainer.current_epoch
        self.stopping_reason_message = f"Training stops after {decision.epoch:g} epochs: {decision.reason}"
        self._set_reason(stopped=True)
        rank_zero_info(self.stopping_reason_message)
        if trainer.is_global_zero:
            loggers.log_text(trainer.loggers, f"{self._monitor().name}/decision", self.stopping_reason_message, step)
            self._write(trainer)

    def _set_reason(self, stopped: bool) -> None:
        """Lightning has reasons since 2.6."""
        if self._not_stopped is not None:
            self.stopping_reason = type(self._not_stopped).PATIENCE_EXHAUSTED if stopped else self._not_stopped

    def _write(self, trainer: Any) -> None:
        """The verdict as JSON beside the logs: written whole or not at all."""
        if self._path is None or self.decision is None or not self.history or not trainer.is_global_zero:
            return
        record = {
            **self.decision.as_dict(),
            "stopped": self.stopping_reason_message is not None,
            "step": self.history[self._judged - 1].step,
            "criterion": repr(self.criterion),
        }
        try:
            json_lines.replace(self._path, json.dumps(record, indent=2).encode() + b"\n")
        except OSError as error:
            rank_zero_warn(f"The verdict cannot be written to {self._path}: {error}.")


def _may_stop(trainer: Any) -> bool:
    """Whether `min_epochs` and `min_steps` are over; stopping earlier would only latch the verdict until then."""
    epochs = trainer.fit_loop.epoch_progress.current.processed
    return bool(epochs >= (trainer.min_epochs or 0) and trainer.global_step >= (trainer.min_steps or 0))


def _require_spread(watched: StiffnessMonitor, criterion: Criterion) -> None:
    if watched.reads_batches and isinstance(criterion, StiffnessDrop) and criterion.spread > 0:
        raise StiffnessError(
            "The rule for stopping needs to know how the losses of single samples spread, which readings of training "
            'batches (probe="batch") do not tell. Give the stopper a monitor of its own with a probe, '
            'StiffnessEarlyStopping(source=StiffnessMonitor(name="stiffness_probe")), or pass '
            "criterion=StiffnessDrop(spread=0), which goes without that guard and judges by unpaired errors."
        )


def _require_supported(
    monitor: str, mode: str, stopping_threshold: float | None, divergence_threshold: float | None
) -> None:
    if not monitor.endswith("/within"):
        raise StiffnessError(
            'StiffnessEarlyStopping watches the within-class stiffness, "stiffness/within"; found '
            f"monitor={monitor!r}. Use Lightning's EarlyStopping for other metrics."
        )
    if mode != "max":
        raise StiffnessError(f'Stiffness is good when it is high: mode must be "max", found {mode!r}.')
    if stopping_threshold is not None or divergence_threshold is not None:
        raise StiffnessError(
            "Fixed thresholds do not fit stiffness, whose level differs between networks: stopping_threshold and "
            "divergence_threshold must be None. Pass criterion= for another rule."
        )
