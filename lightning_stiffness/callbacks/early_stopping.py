"""StiffnessEarlyStopping: training stops when same-class stiffness says so, without validation data."""

import json
import os
from pathlib import Path
from typing import Any, Literal

import torch
from typing_extensions import override

from lightning_stiffness import loggers
from lightning_stiffness.callbacks.monitor import StiffnessMonitor, logged_step
from lightning_stiffness.callbacks.namespace import EarlyStopping, rank_zero_info, require_same_namespace
from lightning_stiffness.callbacks.run_folder import run_folder
from lightning_stiffness.errors import StiffnessError
from lightning_stiffness.history import History
from lightning_stiffness.stopping import Criterion, Decision, StiffnessDrop


class StiffnessEarlyStopping(EarlyStopping):
    """Stops training when the gradients of samples of the same class no longer agree as well as they did.

    While a network learns what the samples of a class share, a step on one of them helps the others; when it turns to single samples,
    their gradients come apart. This is seen on training data alone, so no validation set is needed. The rule is a `criterion`, a
    function of the readings; by default `StiffnessDrop`. See there for what guards it against stopping a network that has not
    learned yet.

    Works alone, with a StiffnessMonitor of its own, or beside a StiffnessMonitor among the callbacks, whose readings it shares.
    Nothing is decided before `min_epochs` and `min_steps`, and an earlier verdict does not linger: what counts is the verdict then.
    The decision is made from the history alone, so a resumed run decides as if it had not been interrupted, by the arguments it is
    given now. After the run, `decision` holds the verdict with its numbers, `stopping_reason_message` the words, and
    `<name>_decision.json` beside the logs both.

    The first arguments are those of Lightning's EarlyStopping, in its order.

    Args:
        monitor: The watched value, as the monitor logs it. Only the within-class value can be watched.
        min_delta: Share of its peak that the value must lose to count as fallen.
        patience: Epochs (not checks) for which it must stay there.
        verbose: Report the verdict after each reading.
        mode: "max": high stiffness is good.
        strict: Raise when a measurement fails, instead of going on without a verdict. Applies to the monitor that it brings itself.
        check_finite: Kept for compatibility; a reading that is not finite is skipped by the criterion.
        stopping_threshold: Not supported, must be None.
        divergence_threshold: Not supported, must be None.
        check_on_train_epoch_end: Kept for compatibility; decides after each reading.
        log_rank_zero_only: Report on the first process only.
        warmup: Epochs after the first sign of learning that do not count.
        smoothing: Share of the old value that the moving average keeps over an epoch.
        criterion: Another rule; then `min_delta`, `patience`, `warmup` and `smoothing` are not used.
        source: The monitor whose readings are used, when there are several.

    Raises:
        StiffnessError: An argument is out of range or not supported.

    Source: ours, after Fort et al., arXiv:1901.09491, section on over-fitting.

    Example:
        >>> from lightning_stiffness import StiffnessEarlyStopping
        >>> StiffnessEarlyStopping(patience=5).criterion.patience
        5
    """

    def __init__(
        self,
        monitor: str = "stiffness/within",
        min_delta: float = 0.05,
        patience: int = 3,
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
            patience=patience,
            verbose=verbose,
            mode=mode,
            strict=strict,
            check_finite=check_finite,
            check_on_train_epoch_end=check_on_train_epoch_end,
            log_rank_zero_only=log_rank_zero_only,
        )
        self.criterion: Criterion = criterion or StiffnessDrop(min_delta, patience, warmup, smoothing)
        self.source = source
        self.decision: Decision | None = None
        """The last verdict; None until there is a reading."""
        self._own: StiffnessMonitor | None = None
        self._path: Path | None = None

    @property
    def history(self) -> History | None:
        """The readings that are judged; None until training starts."""
        monitor = self._own or self.source
        return None if monitor is None else monitor.history

    @override
    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        require_same_namespace(trainer)
        super().setup(trainer, pl_module, stage)
        name = self.monitor.removesuffix("/within")
        if self.source is None and self._own is None:
            others = [other for other in trainer.callbacks if isinstance(other, StiffnessMonitor)]
            self.source = next((other for other in others if other.name == name), None)
        if self.source is None and self._own is None:
            self._own = StiffnessMonitor(name=name, strict=self.strict)
        if self._own is not None:
            self._own.setup(trainer, pl_module, stage)

    @override
    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        if self._own is not None:
            self._own.on_train_start(trainer, pl_module)
        folder = run_folder(trainer, None if self._monitor() is None else self._monitor().save_dir)
        self._path = None if folder is None else folder / f"{self._monitor().name}_decision.json"

    @override
    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if self._own is not None:
            self._own.on_train_batch_start(trainer, pl_module, batch, batch_idx)
        if self._monitor().is_due_at_step(trainer):
            self._decide(trainer)

    @override
    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        if self._own is not None:
            self._own.on_train_epoch_end(trainer, pl_module)
        self._decide(trainer)

    @override
    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """Nothing: validation is not needed, and what is decided is decided after a reading."""

    @override
    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        if self._own is not None:
            self._own.teardown(trainer, pl_module, stage)

    @override
    def state_dict(self) -> dict[str, Any]:
        """The readings of the monitor it brings itself, and what was decided; never the arguments."""
        state: dict[str, Any] = {
            "stopped_epoch": self.stopped_epoch,
            "stopping_reason_message": self.stopping_reason_message,
        }
        if self._own is not None:
            state["monitor"] = self._own.state_dict()
        return state

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.stopped_epoch = state_dict.get("stopped_epoch", 0)
        self.stopping_reason_message = state_dict.get("stopping_reason_message")
        if self._own is not None:
            self._own.load_state_dict(state_dict.get("monitor", {}))

    def _monitor(self) -> StiffnessMonitor:
        monitor = self._own or self.source
        assert monitor is not None
        return monitor

    def _decide(self, trainer: Any) -> None:
        """Judges the history and tells the trainer; all processes take the same way through here."""
        if trainer.fast_dev_run or self.history is None:
            return
        decision = self.criterion(self.history)
        stop = bool(trainer.strategy.reduce_boolean_decision(decision.stop, all=False))
        self.decision = decision
        self.best_score = torch.tensor(decision.peak)
        if self.verbose:
            self._log_info(trainer, decision.reason, self.log_rank_zero_only)
        if stop and _may_stop(trainer):
            self._stop(trainer, decision)

    def _stop(self, trainer: Any, decision: Decision) -> None:
        trainer.should_stop = True
        self.stopped_epoch = trainer.current_epoch
        self.stopping_reason_message = f"Training stops after {decision.epoch:g} epochs: {decision.reason}"
        reasons = type(getattr(self, "stopping_reason", None))
        if hasattr(reasons, "PATIENCE_EXHAUSTED"):
            self.stopping_reason = reasons.PATIENCE_EXHAUSTED
        rank_zero_info(self.stopping_reason_message)
        if trainer.is_global_zero:
            name = self._monitor().name
            loggers.log_text(trainer.loggers, f"{name}/decision", self.stopping_reason_message, logged_step(trainer))
            self._write(decision, trainer.global_step)

    def _write(self, decision: Decision, step: int) -> None:
        """The verdict as JSON beside the logs: written whole or not at all."""
        if self._path is None:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        record = {**decision.as_dict(), "step": step, "criterion": repr(self.criterion)}
        unfinished = self._path.with_suffix(".tmp")
        unfinished.write_text(json.dumps(record, indent=2) + "\n")
        os.replace(unfinished, self._path)


def _may_stop(trainer: Any) -> bool:
    """Whether `min_epochs` and `min_steps` are over; stopping earlier would only latch the verdict until then."""
    epochs = trainer.current_epoch + (1 if trainer.fit_loop.epoch_loop.batch_progress.is_last_batch else 0)
    return bool(epochs >= (trainer.min_epochs or 0) and trainer.global_step >= (trainer.min_steps or 0))


def _require_supported(
    monitor: str, mode: str, stopping_threshold: float | None, divergence_threshold: float | None
) -> None:
    if not monitor.endswith("/within"):
        raise StiffnessError(
            f'StiffnessEarlyStopping watches the within-class stiffness, "stiffness/within"; found monitor={monitor!r}. '
            "Use Lightning's EarlyStopping for other metrics."
        )
    if mode != "max":
        raise StiffnessError(f'Stiffness is good when it is high: mode must be "max", found {mode!r}.')
    if stopping_threshold is not None or divergence_threshold is not None:
        raise StiffnessError(
            "Fixed thresholds do not fit stiffness, whose level differs between networks: stopping_threshold and "
            "divergence_threshold must be None. Pass criterion= for another rule."
        )
