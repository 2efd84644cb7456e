"""StiffnessEarlyStopping: training stops when same-class stiffness says so, without validation data."""

import json
from pathlib import Path
from typing import Any, Literal

import torch
from typing_extensions import override

from lightning_stiffness import json_lines
from lightning_stiffness.callbacks.following import MonitorFollower
from lightning_stiffness.callbacks.monitor import StiffnessMonitor
from lightning_stiffness.callbacks.namespace import EarlyStopping, rank_zero_info, rank_zero_warn
from lightning_stiffness.callbacks.progress import epochs_completed, logged_step
from lightning_stiffness.callbacks.restoring import (
    WeightCopies,
    require_last_weights,
    require_whole_weights,
    wanted_steps,
)
from lightning_stiffness.callbacks.run_folder import run_folder
from lightning_stiffness.callbacks.stopper_arguments import (
    Restore,
    require_grace,
    require_restore,
    require_spread,
    require_watchable,
)
from lightning_stiffness.history import History
from lightning_stiffness.stopping import (
    ConfirmedDrop,
    Criterion,
    Decision,
    StiffnessDrop,
    explanation,
    needs_of,
    wishes_of,
)

DEFAULT_RESTORE: Restore = "best"


class StiffnessEarlyStopping(MonitorFollower, EarlyStopping):
    """Stops training when the gradients of samples of the same class no longer agree as well as they did.

    While a network learns what the samples of a class share, a step on one of them helps the others; when it turns to
    single samples, their gradients come apart. This is seen on training data alone, so no validation set is needed. The
    rule is a `criterion`, a function of the readings; by default `ConfirmedDrop`: same-class stiffness has fallen from
    its peak (`StiffnessDrop`; see there for what guards it against stopping a network that has not learned yet), and an
    estimate of what the network would say about training samples that it had not seen (`LeaveOneOut`) has not improved
    for some epochs. Signals that a rule needs are measured for it.

    Works alone, with a StiffnessMonitor of its own, or beside a StiffnessMonitor among the callbacks, whose readings it
    shares. It judges after each reading, within an epoch too (`every_n_steps` of the monitor). No verdict acts before
    `min_epochs`, `min_steps`, `grace_epochs` and `grace_steps`, and an earlier one does not linger: what counts is the
    verdict then. The decision is made from the history alone, so a resumed run decides as if it had not been
    interrupted, by the arguments it is given now; if they say stop, it ends before its next step. After the run,
    `decision` holds the verdict with its numbers, `<name>_decision.json` beside the logs the same and, if the run was
    stopped, `stopping_reason_message` says in three lines what fell, since when, and what that has cost.

    The run ends, also when `max_epochs` comes first, with the weights that the rule holds for the best
    (`decision.best_step`; `StiffnessDrop` alone holds none for better than the last), unless `restore="stop"`. A copy
    of them waits in the memory of the CPU, and in checkpoints, so that a resumed run restores the same. Optimizer and
    schedules stay where they are. A ModelCheckpoint is neither needed nor changed: it saves the weights as they are
    while the run goes on.

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
        smoothing: Share of the old value that the moving average of stiffness keeps over an epoch.
        criterion: Another rule; then `min_delta`, `patience`, `warmup` and `smoothing`, which are those of the fall of
            stiffness, are not used. `ConfirmedDrop(StiffnessDrop(...), LeaveOneOut(...))` sets both parts.
        source: The monitor whose readings are used, among the Trainer's callbacks or not. Not given: the one of them
            whose name `monitor` begins with, or one of its own.
        restore: Which weights the run ends with: "best", those of the reading that the rule holds for the best, or
            "stop", those of the last step. The former not with FSDPStrategy and DeepSpeed, nor beside callbacks that
            average weights.
        grace_epochs: Epochs before which no verdict acts.
        grace_steps: Optimizer steps before which no verdict acts.

    Raises:
        StiffnessError: An argument is out of range or not supported.

    Source: ours, after Fort et al., arXiv:1901.09491, section on over-fitting.

    Example:
        >>> from lightning_stiffness import StiffnessEarlyStopping
        >>> StiffnessEarlyStopping(patience=5).criterion.drop.patience
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
        restore: Restore = DEFAULT_RESTORE,
        grace_epochs: float = 0,
        grace_steps: int = 0,
    ) -> None:
        """See the class."""
        require_watchable(monitor, mode, stopping_threshold, divergence_threshold)
        require_grace(grace_epochs, grace_steps)
        require_restore(restore)
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
        self._follow(monitor.removesuffix("/within"), source, strict)
        drop = StiffnessDrop(min_delta, patience, warmup, smoothing)
        self.criterion: Criterion = ConfirmedDrop(drop) if criterion is None else criterion
        self.restore, self.grace_epochs, self.grace_steps = restore, grace_epochs, grace_steps
        self.decision: Decision | None = None
        """The last verdict; None until there is a reading."""
        self.restored_step: int | None = None
        """The step whose weights the run ended with; None for those of its last step."""
        self._copies = WeightCopies()
        self._judged = 0
        self._path: Path | None = None
        self._not_stopped = getattr(self, "stopping_reason", None)

    @override
    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        require_spread(self._monitor(), self.criterion)
        if self.restore == "best":
            require_whole_weights(trainer)
            require_last_weights(trainer)
        if stage == "fit":
            self.decision, self.restored_step = None, None
            if trainer.global_step == 0:  # a checkpoint is loaded after this
                self._copies.clear()

    @override
    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        super().on_train_start(trainer, pl_module)
        watched = self._monitor()
        folder = run_folder(trainer, watched.save_dir)
        self._path = None if folder is None else folder / f"{watched.name}_decision.json"
        self._judged, self.stopped_epoch, self.stopping_reason_message = 0, 0, None
        self._set_reason(stopped=False)
        self._decide_if_new(trainer)

    @override
    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        super().on_train_epoch_start(trainer, pl_module)
        self._decide_if_new(trainer)  # a monitor that is listed later may have read at the start

    @override
    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        # A monitor that is listed after this callback has not measured yet; it takes one reading of a step only.
        self._monitor().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        self._decide_if_new(trainer)

    @override
    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        super().on_train_epoch_end(trainer, pl_module)
        self._decide(trainer, at_epoch_end=True)

    @override
    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """Nothing: validation is not needed, and what is decided is decided after a reading."""

    @override
    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        super().on_train_end(trainer, pl_module)
        if self.restore == "best" and not trainer.fast_dev_run:
            self._restore(trainer, pl_module)
        self._write(trainer)

    @override
    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        """A run that is taken up again after its last epoch does not train, but ends with the same weights."""
        super().on_fit_end(trainer, pl_module)
        if self.restore == "best" and self.decision is None and self.history and not trainer.fast_dev_run:
            self.decision = self.criterion(self.history)
            self._restore(trainer, pl_module)

    @override
    def state_dict(self) -> dict[str, Any]:
        """What was decided, readings and copies of weights that no one else saves; never the arguments."""
        state: dict[str, Any] = {
            "stopped_epoch": self.stopped_epoch,
            "stopping_reason_message": self.stopping_reason_message,
            **super().state_dict(),
        }
        if self.restore == "best":
            state["weights"] = self._copies.state_dict()
        return state

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.stopped_epoch = state_dict.get("stopped_epoch", 0)
        self.stopping_reason_message = state_dict.get("stopping_reason_message")
        if self.restore == "best":
            self._copies.load_state_dict(state_dict.get("weights", {}))
        super().load_state_dict(state_dict)

    @override
    def _signals(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        return needs_of(self.criterion), wishes_of(self.criterion)

    def _decide_if_new(self, trainer: Any) -> None:
        if len(self.history or ()) > self._judged:
            self._decide(trainer)

    def _decide(self, trainer: Any, at_epoch_end: bool = False) -> None:
        """Judges the history and tells the trainer; all processes take the same way through here."""
        if trainer.fast_dev_run or self.history is None or self.stopping_reason_message is not None:
            return
        self._judged = len(self.history)
        decision = self.criterion(self.history)
        stop = bool(trainer.strategy.reduce_boolean_decision(decision.stop, all=False))
        self.decision = decision
        self.best_score = torch.tensor(decision.best)
        if self.restore == "best" and self.history:
            wanted = wanted_steps(self.criterion, self.history, decision)
            self._copies.keep_reading(trainer, self.history[-1].step, wanted)
        if self.verbose:
            self._log_info(trainer, decision.reason, self.log_rank_zero_only)
        if stop and self._may_stop(trainer, at_epoch_end):
            self._stop(trainer, self.history, decision, logged_step(trainer, at_epoch_end))

    def _may_stop(self, trainer: Any, at_epoch_end: bool) -> bool:
        """Whether the times to wait for are over; stopping earlier would only latch the verdict until then."""
        epochs = trainer.fit_loop.epoch_progress.current.processed
        steps = max(trainer.min_steps or 0, self.grace_steps, 1)
        is_grace = epochs_completed(trainer, at_epoch_end) < self.grace_epochs - 1e-6
        return bool(epochs >= (trainer.min_epochs or 0) and trainer.global_step >= steps and not is_grace)

    def _stop(self, trainer: Any, history: History, decision: Decision, step: int) -> None:
        trainer.should_stop = True
        self.stopped_epoch = trainer.current_epoch
        self.stopping_reason_message = _message(trainer, history, decision)
        self._set_reason(stopped=True)
        rank_zero_info(self.stopping_reason_message)
        if publisher := self._monitor().publisher:
            publisher.stopped(self._record(history, decision), self.stopping_reason_message, step)
        self._write(trainer)

    def _restore(self, trainer: Any, pl_module: Any) -> None:
        best = self.decision.best_step if self.decision else None
        self.restored_step = step = self._copies.restore_agreed(trainer, pl_module, best)
        if step is None:
            return
        text = f"Restored the weights of epoch {self._epoch_of(step):g} (step {step}), which were held for the best."
        rank_zero_info(text)
        if publisher := self._monitor().publisher:
            publisher.restored(self._epoch_of(step), text)

    def _epoch_of(self, step: int) -> float:
        return next(reading.epoch for reading in self.history or () if reading.step == step)

    def _set_reason(self, stopped: bool) -> None:
        """Lightning has reasons since 2.6."""
        if self._not_stopped is not None:
            self.stopping_reason = type(self._not_stopped).PATIENCE_EXHAUSTED if stopped else self._not_stopped

    def _write(self, trainer: Any) -> None:
        """The verdict as JSON beside the logs: written whole or not at all."""
        if self._path is None or self.decision is None or not self.history or not trainer.is_global_zero:
            return
        record = self._record(self.history, self.decision)
        try:
            json_lines.replace(self._path, json.dumps(record, indent=2).encode() + b"\n")
        except OSError as error:
            rank_zero_warn(f"The verdict cannot be written to {self._path}: {error}.")

    def _record(self, history: History, decision: Decision) -> dict[str, Any]:
        return {
            **decision.as_dict(),
            "stopped": self.stopping_reason_message is not None,
            "explanation": self.stopping_reason_message,
            "step": history[self._judged - 1].step,
            "restored_step": self.restored_step,
            "restored_epoch": None if self.restored_step is None else self._epoch_of(self.restored_step),
            "criterion": repr(self.criterion),
        }


def _message(trainer: Any, history: History, decision: Decision) -> str:
    """Three lines: that and why it stops, since when, and what that has cost and spares."""
    limit = trainer.max_epochs if (trainer.max_epochs or -1) > 0 else None
    by = f", by {decision.fired}" if decision.fired else ""
    first, *others = explanation(history, decision, limit)
    return "\n".join((f"Training stops after {decision.epoch:g} epochs{by}. {first}", *others))
