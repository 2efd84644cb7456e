"""StiffnessMonitor: within- and between-class stiffness of any classifier while it trains."""

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from lightning_stiffness import loggers
from lightning_stiffness.callbacks.namespace import Callback, rank_zero_warn, require_same_namespace
from lightning_stiffness.callbacks.neutrality import measuring
from lightning_stiffness.callbacks.reader import Mode, ProbePair, StiffnessReader
from lightning_stiffness.callbacks.run_folder import run_folder
from lightning_stiffness.callbacks.training_step import resolve_loss, resolve_targets
from lightning_stiffness.errors import StiffnessError
from lightning_stiffness.gram import GramEngine
from lightning_stiffness.history import History, Reading
from lightning_stiffness.probe import Probe


class StiffnessMonitor(Callback):
    """Measures stiffness on a fixed, class-balanced probe, and logs it with standard errors. Training itself is unchanged, bit by bit.

    Logged to every logger and to `trainer.callback_metrics`, after each measurement: `stiffness/within` and `stiffness/between` (mean
    cosine of two samples' loss gradients, of the same class and of different classes, in [-1, 1]; nan where no class has two samples),
    `stiffness/within_sign` and `stiffness/between_sign` (mean sign of their product), the standard error of each (`..._se`),
    `stiffness/zero_fraction` (samples whose gradient is exactly zero and which are left out), `stiffness/loss` (of the probe) and
    `stiffness/seconds` (what the measurement cost). Class matrices are in `history`, which is saved in checkpoints and written beside
    the logs.

    A measurement that fails after training has begun warns once and training goes on; one that cannot work at all (no class targets,
    manual optimisation, a contrastive loss) raises a StiffnessError before the first step, which says what to pass.

    Under DDP the first process draws the probe and every process measures all of it: no communication in between.

    Args:
        every_n_epochs: Measure at the end of every n-th training epoch; 0 for never.
        every_n_steps: Measure before every n-th optimizer step, too; 0 for never.
        at_start: Measure before training, too: the class matrix of the untrained network.
        mode: "train" compares training samples, "val" validation samples, "cross" each training with each validation sample.
        probe: The samples: a Probe, a DataLoader (all its samples are used) or a batch. Drawn from the dataset of the Trainer's
            dataloader when not given. In cross mode only drawn probes are possible.
        probe_size: How many samples are drawn (of each kind in cross mode); at least two per class.
        num_classes: Number of classes; the largest label + 1 when not given.
        loss: (module, batch) -> losses [n]. Not given: `module.stiffness_step(batch) -> (losses [n], targets [n])` if there is one,
            else the module's own `training_step`, in eval mode and with its logging muted.
        targets: batch -> integer classes [n]. Not given: the second element of the batch, or its "labels", "targets", "y" ...
        class_names: One name per class, for pictures.
        superclasses: The super-class of each class, for pictures.
        seed: Of the draw of the probe; the global random state is not used.
        prog_bar: Show `stiffness/within` in the progress bar.
        strict: Raise when a measurement fails during training.
        save_dir: Folder of the history file; beside the checkpoints of the first logger when not given, and without a logger no file.
        budget: Bytes of memory for one measurement, beside the model.
        name: First part of all logged names, and the name of the file.

    Source: Fort et al., arXiv:1901.09491 (stiffness); standard errors by jackknife, ours.

    Example:
        >>> from lightning_stiffness import StiffnessMonitor
        >>> StiffnessMonitor(every_n_epochs=2).history is None  # until training starts
        True
    """

    def __init__(
        self,
        *,
        every_n_epochs: int = 1,
        every_n_steps: int = 0,
        at_start: bool = True,
        mode: Mode = "train",
        probe: Any = None,
        probe_size: int = 200,
        num_classes: int | None = None,
        loss: Callable[[Any, Any], Tensor] | None = None,
        targets: Callable[[Any], Tensor] | None = None,
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
        if mode not in ("train", "val", "cross"):
            raise StiffnessError(f'mode must be "train", "val" or "cross", found {mode!r}.')
        if mode == "cross" and probe is not None:
            raise StiffnessError('mode="cross" compares training with validation samples and draws both; leave out probe=.')
        self.every_n_epochs, self.every_n_steps, self.at_start = every_n_epochs, every_n_steps, at_start
        self.mode: Mode = mode
        self.probe, self.probe_size, self.num_classes, self.seed = probe, probe_size, num_classes, seed
        self.loss, self.targets = loss, targets
        self.class_names = None if class_names is None else tuple(class_names)
        self.superclasses = None if superclasses is None else tuple(superclasses)
        self.prog_bar, self.strict, self.save_dir, self.budget, self.name = prog_bar, strict, save_dir, budget, name
        self.history: History | None = None
        """The readings of this run; None until training starts."""
        self._reader: StiffnessReader | None = None
        self._path: Path | None = None
        self._warned = False

    @property
    @override
    def state_key(self) -> str:
        return self._generate_state_key(name=self.name, mode=self.mode)

    @override
    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        require_same_namespace(trainer)
        twins = [
            other
            for other in trainer.callbacks
            if isinstance(other, StiffnessMonitor) and other is not self and other.name == self.name
        ]
        if twins:
            raise StiffnessError(
                f"Each StiffnessMonitor must log under its own name, found two named {self.name!r}; pass "
                f'name="{self.name}_{self.mode}" to one of them.'
            )

    @override
    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self._reader = self._prepared(trainer, pl_module)
        self._begin_history(trainer)
        if self.at_start:
            self._measure(trainer, trainer.current_epoch, first=True)

    @override
    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if self.is_due_at_step(trainer):
            batches = trainer.num_training_batches
            fraction = batch_idx / batches if batches not in (0, float("inf")) else 0.0
            self._measure(trainer, trainer.current_epoch + fraction)

    @override
    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        if self.every_n_epochs and (trainer.current_epoch + 1) % self.every_n_epochs == 0:
            self._measure(trainer, trainer.current_epoch + 1)
            if self.history:
                # Numbers logged here reach the progress bar; the loggers have got them already, with the step they belong to.
                value = self.history[-1].cosine.within
                self.log(f"{self.name}/within", value, prog_bar=self.prog_bar, logger=False, rank_zero_only=True)

    @override
    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        self._reader = None

    @override
    def state_dict(self) -> dict[str, Any]:
        return {} if self.history is None else {"history": self.history.state_dict()}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if "history" in state_dict:
            self.history = History.from_state_dict(state_dict["history"])

    def is_due_at_step(self, trainer: Any) -> bool:
        """Whether a measurement falls on the coming optimizer step; the same on all processes."""
        return bool(self.every_n_steps) and trainer.global_step % self.every_n_steps == 0 and trainer.global_step > 0

    def _prepared(self, trainer: Any, pl_module: Any) -> StiffnessReader:
        """Draws the probe, on the first process for all, and takes it to the device.

        Raises:
            StiffnessError: Something is missing; the message says what to pass.
        """
        outcome = _attempted(lambda: self._draw(trainer, pl_module)) if trainer.is_global_zero else None
        outcome = trainer.strategy.broadcast(outcome)
        if isinstance(outcome, StiffnessError):
            raise outcome
        assert isinstance(outcome, ProbePair)
        if outcome.missing:
            shown = ", ".join(str(target) for target in outcome.missing[:10])
            rank_zero_warn(
                f"{len(outcome.missing)} of {outcome.num_classes} classes have fewer than two samples in the stiffness probe and no "
                f"within-class value: {shown}{' ...' if len(outcome.missing) > 10 else ''}."
            )
        engine = GramEngine(pl_module, resolve_loss(pl_module, self.loss), budget=self.budget)
        with measuring(pl_module):
            batch = trainer.precision_plugin.convert_input(trainer.strategy.batch_to_device(outcome.batch))
        return StiffnessReader(pl_module, engine, outcome, batch)

    def _draw(self, trainer: Any, pl_module: Any) -> ProbePair:
        options = {"targets": resolve_targets(pl_module, self.targets), "num_classes": self.num_classes}
        if isinstance(self.probe, Probe):
            return ProbePair(self.mode, self.probe)
        if isinstance(self.probe, torch.utils.data.DataLoader):
            return ProbePair(self.mode, Probe.from_loader(self.probe, **options))
        if self.probe is not None:
            return ProbePair(self.mode, Probe.from_batch(self.probe, **options))
        drawing = {"size": self.probe_size, "seed": self.seed, **options}
        if self.mode == "train":
            return ProbePair("train", Probe.draw(trainer.train_dataloader, **drawing))
        if not trainer.val_dataloaders:
            raise StiffnessError(f'mode="{self.mode}" needs a validation dataloader, found none; pass one to fit, or use mode="train".')
        validation = Probe.draw(trainer.val_dataloaders, **drawing)
        if self.mode == "val":
            return ProbePair("val", validation)
        return ProbePair("cross", Probe.draw(trainer.train_dataloader, **drawing), validation)

    def _begin_history(self, trainer: Any) -> None:
        """A new history, or the one from the checkpoint if it is about the same probe."""
        assert self._reader is not None
        summary = self._reader.probes.summary(self.class_names, self.superclasses)
        resumed = self.history.truncated(trainer.global_step) if self.history is not None else ()
        if self.history is not None and self.history.probe.strata != summary.strata:
            rank_zero_warn("The stiffness probe is another one than in the checkpoint: its history starts anew.")
            resumed = ()
        self.history = History(summary, resumed)
        folder = run_folder(trainer, self.save_dir)
        self._path = None if folder is None else folder / f"{self.name}.jsonl"
        if self._path is not None and trainer.is_global_zero:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self.history.save(self._path)

    def _measure(self, trainer: Any, epoch: float, first: bool = False) -> None:
        assert self._reader is not None
        assert self.history is not None
        step = trainer.global_step
        if self.history and self.history[-1].step >= step:
            return
        try:
            reading = self._reader.read(step, float(epoch))
        except Exception as cause:
            # Before the first step nothing is lost and a setting is wrong; later a run must not die of a measurement.
            if self.strict or (first and isinstance(cause, StiffnessError)):
                raise
            self._warn(cause, step)
            return
        self.history.append(reading)
        self._publish(trainer, reading)

    def _publish(self, trainer: Any, reading: Reading) -> None:
        values = {f"{self.name}/{key}": value for key, value in reading.metrics().items()}
        trainer.callback_metrics.update({key: torch.tensor(value) for key, value in values.items()})
        if not trainer.is_global_zero:
            return
        loggers.log_scalars(trainer.loggers, values, logged_step(trainer))
        if self._path is not None and self.history is not None:
            self.history.append_line(self._path)

    def _warn(self, cause: Exception, step: int) -> None:
        if not self._warned:
            warnings.warn(
                f"Stiffness could not be measured at step {step} ({type(cause).__name__}: {cause}). Training goes on; later failures "
                "are not reported. Pass strict=True to stop instead.",
                stacklevel=2,
            )
        self._warned = True


def logged_step(trainer: Any) -> int:
    """The step that Lightning's own metrics carry in the loggers; it differs from `global_step` with several optimizers."""
    return int(getattr(trainer.fit_loop.epoch_loop, "_batches_that_stepped", trainer.global_step))


def _attempted(draw: Callable[[], ProbePair]) -> ProbePair | StiffnessError:
    """The probe or the reason why there is none, either of which all processes must learn."""
    try:
        return draw()
    except StiffnessError as error:
        return error


def _require_schedule(every_n_epochs: int, every_n_steps: int) -> None:
    if every_n_epochs < 0 or every_n_steps < 0:
        raise StiffnessError(
            f"every_n_epochs and every_n_steps must not be negative, found {every_n_epochs} and {every_n_steps}; 0 switches one off."
        )
