"""StiffnessMonitor: within- and between-class stiffness of any classifier while it trains."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from typing_extensions import override

from lightning_stiffness import loggers
from lightning_stiffness.callbacks.agreement import agreed, attempted
from lightning_stiffness.callbacks.namespace import Callback, rank_zero_warn, require_same_namespace
from lightning_stiffness.callbacks.probing import ProbeRequest, on_device
from lightning_stiffness.callbacks.progress import epochs_completed, is_between_epochs, logged_step
from lightning_stiffness.callbacks.reader import Mode, StiffnessReader
from lightning_stiffness.callbacks.run_folder import run_folder
from lightning_stiffness.callbacks.training_step import resolve_loss
from lightning_stiffness.errors import StiffnessError
from lightning_stiffness.gram import GramEngine
from lightning_stiffness.history import History, Reading


class StiffnessMonitor(Callback):
    """Measures stiffness on a fixed, class-balanced probe, and logs it with standard errors.

    Training itself is unchanged, bit by bit.

    Logged to every logger and to `trainer.callback_metrics`, after each measurement: `stiffness/within` and
    `stiffness/between` (mean cosine of two samples' loss gradients, of the same class and of different classes, in
    [-1, 1]; nan where no class has two samples), `stiffness/within_sign` and `stiffness/between_sign` (mean sign of
    their product), the standard error of each (`..._se`), `stiffness/zero_fraction` (samples whose gradient is exactly
    zero and which are left out), `stiffness/loss` (of the probe) and `stiffness/seconds` (what the measurement cost).
    Class matrices are in `history`, which is saved in checkpoints and written beside the logs, for `History.load`.

    A measurement that fails after training has begun warns once and training goes on; one that cannot work at all (no
    class targets, manual optimisation, a contrastive loss) raises a StiffnessError before the first step, which says
    what to pass.

    A resumed run goes on with the history of its checkpoint, by the arguments it is given now; with other samples the
    history starts anew, and a warning says so.

    Under DDP the first process draws the probe and every process measures all of it, since the module may communicate;
    the reading of the first process counts for all.

    Args:
        every_n_epochs: Measure at the end of every n-th training epoch; 0 for never.
        every_n_steps: Measure before every n-th optimizer step, too; 0 for never.
        at_start: Measure before training, too: the class matrix of the untrained network.
        mode: "train" compares training samples, "val" validation samples, "cross" each training with each validation
            sample.
        probe: The samples: a Probe, a DataLoader (all its samples are used) or a batch. Drawn from the dataset of the
            Trainer's dataloader when not given. In cross mode only drawn probes are possible.
        probe_size: How many samples are drawn (of each kind in cross mode); at least two per class.
        num_classes: Number of classes; the largest label + 1 when not given.
        loss: (module, batch) -> losses [n]. Not given: `module.stiffness_step(batch) -> (losses [n], targets [n])` if
            there is one, else the module's own `training_step`, in eval mode and with its logging muted.
        targets: batch -> integer classes [n]. Not given: the second element of the batch, or its "labels", "targets",
            "y" ...
        class_names: One name per class, for pictures.
        superclasses: The super-class of each class, for pictures.
        seed: Of the draw of the probe; the global random state is not used.
        prog_bar: Show `stiffness/within` in the progress bar.
        strict: Raise when a measurement fails during training.
        save_dir: Folder of the history file `<name>.jsonl`, where an older one is replaced. Not given: beside the
            checkpoints of the first logger; without a logger no file.
        budget: Bytes of memory for one measurement, beside the model.
        name: First part of all logged names, and the name of the file.

    Raises:
        StiffnessError: An argument is out of range.

    Source: Fort et al., arXiv:1901.09491 (stiffness); standard errors by jackknife, ours.

    Example:
        >>> from lightning_stiffness import StiffnessMonitor
        >>> StiffnessMonitor(every_n_epochs=2).history is None  # until training starts
        True
    """

    def __init__(  # noqa: PLR0913  # the settings of a callback, each by its name
        self,
        *,
        every_n_epochs: int = 1,
        every_n_steps: int = 0,
        at_start: bool = True,
        mode: Mode = "train",
        probe: Any = None,
        probe_size: int = 200,
        num_classes: int | None = None,
        loss: Callable[[Any, Any], Any] | None = None,
        targets: Callable[[Any], Any] | None = None,
        class_names: Sequence[str] | None = None,
        superclasses: Sequence[int] | None = None,
        seed: int = 0,
        prog_bar: bool = True,
        strict: bool = False,
        save_dir: str | None = None,
        budget: int = 1 << 30,
        name: str = "stiffness",
    ) -> None:
        """See the class."""
        super().__init__()
        _require_schedule(every_n_epochs, every_n_steps)
        _require_mode(mode, probe)
        self.every_n_epochs, self.every_n_steps, self.at_start = every_n_epochs, every_n_steps, at_start
        self.mode: Mode = mode
        self.probe, self.probe_size, self.num_classes, self.seed = probe, probe_size, num_classes, seed
        self.loss, self.targets = loss, targets
        self.class_names = None if class_names is None else tuple(class_names)
        self.superclasses = None if superclasses is None else tuple(superclasses)
        self.prog_bar, self.strict, self.save_dir, self.budget, self.name = prog_bar, strict, save_dir, budget, name
        self.history: History | None = None
        """The readings of this run; None until training starts."""
        self._fingerprint: str | None = None
        self._reader: StiffnessReader | None = None
        self._path: Path | None = None
        self._attempted_step = -1
        self._has_warned = False

    @property
    @override
    def state_key(self) -> str:
        return self._generate_state_key(name=self.name, mode=self.mode)

    @override
    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        require_same_namespace(trainer)
        others = (other for other in trainer.callbacks if isinstance(other, StiffnessMonitor) and other is not self)
        if any(other.name == self.name for other in others):
            raise StiffnessError(
                f"Each StiffnessMonitor must log under its own name, found two named {self.name!r}; pass another one "
                f'to one of them, such as name="{self.name}_val".'
            )
        if stage == "fit" and trainer.global_step == 0:  # a checkpoint is loaded after this
            self.history = self._fingerprint = None

    @override
    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self._attempted_step, self._has_warned = -1, False
        request = ProbeRequest(self.mode, self.probe, self.probe_size, self.num_classes, self.seed)
        probes = request.shared(trainer, pl_module, self.targets)
        engine = GramEngine(pl_module, resolve_loss(pl_module, self.loss), budget=self.budget)
        self._reader = StiffnessReader(
            pl_module, engine, probes, on_device(trainer, pl_module, probes.batch, self.seed)
        )
        self._begin_history(trainer, self._reader)
        if not self.history:
            self._begin_readings(trainer, self._reader)
        elif is_between_epochs(trainer) and self._is_due_after(epochs_completed(trainer)):
            self._measure(trainer)  # a checkpoint that was saved just before the reading

    @override
    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if self.is_due_at_step(trainer):
            self._measure(trainer)

    @override
    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        if self._is_due_after(trainer.current_epoch + 1):
            self._measure(trainer, at_epoch_end=True)

    @override
    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        self._reader = None

    @override
    def state_dict(self) -> dict[str, Any]:
        if self.history is None:
            return {}
        return {"history": self.history.state_dict(), "fingerprint": self._fingerprint}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if not state_dict.get("history"):
            return
        try:
            self.history = History.from_state_dict(state_dict["history"])
            self._fingerprint = state_dict.get("fingerprint")
        except StiffnessError as error:
            rank_zero_warn(f"The stiffness history of the checkpoint cannot be read and starts anew: {error}")

    def is_due_at_step(self, trainer: Any) -> bool:
        """Whether a measurement falls on the coming optimizer step; the same on all processes."""
        return bool(self.every_n_steps) and trainer.global_step % self.every_n_steps == 0 and trainer.global_step > 0

    def _is_due_after(self, epochs: float) -> bool:
        return bool(self.every_n_epochs) and epochs % self.every_n_epochs == 0

    def _begin_history(self, trainer: Any, reader: StiffnessReader) -> None:
        """A new history, or the one of the checkpoint if it is about the same samples."""
        summary, fingerprint = reader.probes.summary(self.class_names, self.superclasses), reader.probes.fingerprint
        past = self.history
        if past and (past.probe.strata != summary.strata or self._fingerprint not in (None, fingerprint)):
            rank_zero_warn("The stiffness probe is another one than in the checkpoint: its history starts anew.")
            past = None
        self.history = History(summary, past.truncated(trainer.global_step) if past else ())
        self._fingerprint = fingerprint
        folder = run_folder(trainer, self.save_dir)
        self._path = folder / f"{self.name}.jsonl" if folder is not None and trainer.is_global_zero else None
        self._write(self.history.save)

    def _begin_readings(self, trainer: Any, reader: StiffnessReader) -> None:
        """Before the first step nothing is lost yet: a setting that cannot work is reported, not passed over."""
        if self.at_start:
            self._measure(trainer, at_start=True)
            return
        outcome = agreed(trainer, attempted(reader.rehearse))
        if isinstance(outcome, Exception):
            self._fail(outcome, trainer.global_step, isinstance(outcome, StiffnessError))

    def _measure(self, trainer: Any, at_start: bool = False, at_epoch_end: bool = False) -> None:
        step, reader = trainer.global_step, self._reader
        known = self.history[-1].step if self.history else -1
        if reader is None or step <= max(known, self._attempted_step) or (trainer.fast_dev_run and self.history):
            return
        self._attempted_step = step
        epoch = epochs_completed(trainer, at_epoch_end)
        outcome = agreed(trainer, attempted(lambda: reader.read(step, epoch)))
        if isinstance(outcome, Exception):
            self._fail(outcome, step, at_start and isinstance(outcome, StiffnessError))
        else:
            self._publish(trainer, outcome, logged_step(trainer, at_epoch_end))

    def _publish(self, trainer: Any, reading: Reading, step: int) -> None:
        assert self.history is not None
        self.history.append(reading)
        values = {f"{self.name}/{key}": value for key, value in reading.metrics().items()}
        trainer.callback_metrics.update({key: torch.tensor(value) for key, value in values.items()})
        if self.prog_bar:
            trainer.progress_bar_metrics[f"{self.name}/within"] = reading.cosine.within
        if trainer.is_global_zero:
            loggers.log_scalars(trainer.loggers, values, step)
            self._write(self.history.append_line)

    def _write(self, how: Callable[[Path], None]) -> None:
        if self._path is None:
            return
        try:
            how(self._path)
        except OSError as error:
            rank_zero_warn(f"The stiffness history cannot be written to {self._path}: {error}. Training goes on.")
            self._path = None

    def _fail(self, cause: Exception, step: int, is_fatal: bool) -> None:
        """A run must not die of a measurement."""
        if is_fatal or self.strict:
            raise cause
        if not self._has_warned:
            rank_zero_warn(
                f"Stiffness could not be measured at step {step} ({type(cause).__name__}: {cause}). Training goes on; "
                "later failures are not reported. Pass strict=True to stop instead."
            )
        self._has_warned = True


def _require_schedule(every_n_epochs: int, every_n_steps: int) -> None:
    if every_n_epochs < 0 or every_n_steps < 0:
        raise StiffnessError(
            f"every_n_epochs and every_n_steps must not be negative, found {every_n_epochs} and {every_n_steps}; 0 "
            "switches one off."
        )


def _require_mode(mode: str, probe: Any) -> None:
    if mode not in ("train", "val", "cross"):
        raise StiffnessError(f'mode must be "train", "val" or "cross", found {mode!r}.')
    if mode == "cross" and probe is not None:
        raise StiffnessError('mode="cross" compares training with validation samples and draws both; leave out probe=.')
