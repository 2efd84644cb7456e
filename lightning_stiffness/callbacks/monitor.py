"""StiffnessMonitor: within- and between-class stiffness of any classifier while it trains."""

from collections.abc import Callable, Sequence
from typing import Any

from typing_extensions import override

from lightning_stiffness.callbacks.agreement import agreed, attempted
from lightning_stiffness.callbacks.arguments import require_probe_for_signals, require_samples, require_schedule
from lightning_stiffness.callbacks.batch_pool import BatchPool
from lightning_stiffness.callbacks.batch_reading import BatchReader, BatchRequest, loss_factor
from lightning_stiffness.callbacks.failures import Failures
from lightning_stiffness.callbacks.namespace import Callback, rank_zero_warn, require_same_namespace
from lightning_stiffness.callbacks.probe_pair import Mode
from lightning_stiffness.callbacks.probing import ProbeRequest, on_device
from lightning_stiffness.callbacks.progress import epochs_completed, is_between_epochs
from lightning_stiffness.callbacks.publishing import Publisher, prepare_panels
from lightning_stiffness.callbacks.reader import StiffnessReader
from lightning_stiffness.callbacks.signals import Scene, SignalBoard, require_known
from lightning_stiffness.callbacks.training_step import resolve_loss
from lightning_stiffness.errors import StiffnessError
from lightning_stiffness.gram import GramEngine
from lightning_stiffness.history import History, ProbeSummary


class StiffnessMonitor(Callback):
    """Measures stiffness on a fixed, class-balanced probe, and logs it with standard errors.

    Training itself is unchanged, bit by bit.

    Logged to every logger and to `trainer.callback_metrics`, after each measurement: `stiffness/within` and
    `stiffness/between` (mean cosine of two samples' loss gradients, of the same class and of different classes, in
    [-1, 1]; nan where no class has two samples), `stiffness/within_sign` and `stiffness/between_sign` (mean sign of
    their product), the standard error of each (`..._se`), `stiffness/zero_fraction` (samples whose gradient is exactly
    zero and which are left out), `stiffness/loss` (of the probe) and `stiffness/seconds` (what the measurement cost).
    Class matrices are in `history`, which is saved in checkpoints and written beside the logs, for `History.load`.

    What cannot work at all (no class targets, manual optimisation, a contrastive loss) raises a StiffnessError before
    the first step, which says what to pass. Other exceptions, and later ones, warn once and training goes on.

    A resumed run goes on with the history of its checkpoint, by the arguments it is given now; with other samples the
    history starts anew, and a warning says so.

    Under DDP the first process draws the probe and every process measures all of it, since the module may communicate;
    the reading of the first process counts for all. Under FSDP2 each gathers all parameters meanwhile.

    With `probe="batch"` there is no probe: stiffness is read from the training steps, while their own backward pass
    runs. Nothing goes forward or backward a second time. A reading is of the batches since the last one, on average
    half an interval old, and only pairs within a batch count. Under DDP the batches of all processes are pooled.

    - Use it where a probe is too dear: large models, readings every few steps. What is measured is the step as it was,
      with augmentation, dropout (each sample under its own mask) and the precision of training.
    - Do not use it to compare readings closely: each is of other samples, so it is noisier, without paired errors.
      Small batches of many classes have few pairs within one. Gradients of fitted samples (losses below 1e-5) are
      rounding noise in single precision, which a probe avoids.
    - Under BatchNorm it is an approximation: samples have no gradients of their own there. Each counts with what flows
      through its activations, the statistics of the batch being constants. In a small CNN, within was 0.70 for 0.86 in
      eval mode at the start, then 0.41 for 0.62, 0.33 for 0.37; between 0.15 for -0.01 once samples were fitted.
    - It is refused where it would be wrong or partial: manual optimisation, torch.compile, activation checkpointing,
      sharded parameters, layers without a rule, penalties on weights inside the training step (with a `stiffness_step`
      or `loss=` that leaves the penalty out they are passed over).

    Args:
        every_n_epochs: Measure at the end of every n-th training epoch; 0 for never.
        every_n_steps: Measure before every n-th `trainer.global_step` (each optimizer counts), too; 0 for never.
        at_start: Measure before training, too: the class matrix of the untrained network. Not with `probe="batch"`.
        mode: "train" compares training samples, "val" validation samples, "cross" each training with each validation
            sample.
        probe: The samples: a Probe, a DataLoader (all its samples are used) or a batch. Drawn from the dataset of the
            Trainer's dataloader when not given. In cross mode only drawn probes are possible. "batch" for the training
            batches themselves, see above.
        every_n_batches: With `probe="batch"`, read the first batch of an epoch and every n-th after it.
        probe_size: How many samples are drawn (of each kind in cross mode); at least two per class.
        num_classes: Number of classes; the largest label + 1 when not given. With `probe="batch"` it must be given
            where the dataset does not store its labels.
        loss: (module, batch) -> losses [n]. Not given: `module.stiffness_step(batch) -> (losses [n], targets [n])` if
            there is one, else the module's own `training_step`, in eval mode and with its logging muted.
        targets: batch -> integer classes [n]. Not given: the second element of the batch, or its "labels", "targets",
            "y" ...
        class_names: One name per class, for pictures.
        superclasses: The super-class of each class, for pictures.
        signals: Further numbers to be measured at each reading, by name, for stopping rules that need them (they ask
            for them by themselves) and for curves: "leave_one_out", "gradient_disparity", "evidence",
            "prediction_changes", "gradient_weight_alignment". Not with `probe="batch"`.
        tracked_size: How many training samples, drawn with equal chances, they follow the predictions of.
        logits: (module, batch) -> logits [n, c], for signals. Not given: what the training step hands to the loss.
        seed: Of the draw of the probe; the global random state is not used.
        prog_bar: Show `stiffness/within` in the progress bar.
        panels: Show more than numbers in TensorBoard, Weights & Biases and MLflow: bands, class matrices, histograms,
            settings; pictures while they take at most 5 % of the time, ever more rarely, and of the last reading.
        show_table: Print a table of the readings after training, where the Trainer has a progress bar.
        strict: Raise when a measurement fails during training.
        save_dir: Folder of the history file `<name>.jsonl`, where an older one is replaced. Not given: beside the
            checkpoints of the first logger; without a logger no file.
        budget: Bytes of memory for one measurement, beside the model. As in `GramEngine` when not given.
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
        every_n_batches: int = 10,
        probe_size: int = 200,
        num_classes: int | None = None,
        loss: Callable[[Any, Any], Any] | None = None,
        targets: Callable[[Any], Any] | None = None,
        class_names: Sequence[str] | None = None,
        superclasses: Sequence[int] | None = None,
        signals: Sequence[str] = (),
        tracked_size: int = 200,
        logits: Callable[[Any, Any], Any] | None = None,
        seed: int = 0,
        prog_bar: bool = True,
        panels: bool = True,
        show_table: bool = True,
        strict: bool = False,
        save_dir: str | None = None,
        budget: int | None = None,
        name: str = "stiffness",
    ) -> None:
        """See the class."""
        super().__init__()
        require_schedule(every_n_epochs, every_n_steps, every_n_batches)
        require_samples(mode, probe)
        require_probe_for_signals(signals, isinstance(probe, str))
        self.every_n_epochs, self.every_n_steps, self.at_start = every_n_epochs, every_n_steps, at_start
        self.mode: Mode = mode
        self.probe, self.probe_size, self.num_classes, self.seed = probe, probe_size, num_classes, seed
        self.loss, self.targets, self.every_n_batches = loss, targets, every_n_batches
        self.class_names = None if class_names is None else tuple(class_names)
        self.superclasses = None if superclasses is None else tuple(superclasses)
        self.signals, self.tracked_size, self.logits = require_known(signals), tracked_size, logits
        self.prog_bar, self.strict, self.save_dir, self.budget, self.name = prog_bar, strict, save_dir, budget, name
        self.panels, self.show_table = panels, show_table
        self.history: History | None = None
        """The readings of this run; None until training starts."""
        self._fingerprint: str | None = None
        self._reader: StiffnessReader | BatchReader | None = None
        self._board: SignalBoard | None = None
        self.publisher: Publisher | None = None
        """What shows this run; None before training."""
        self.failures = Failures(self.strict)
        """What could not be measured in this run."""
        self._wished, self._attempted_step, self._has_begun = tuple[str, ...](), -1, False
        self._pooled, self._signal_states = dict[str, Any](), dict[str, Any]()

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
        if stage == "fit":
            prepare_panels(trainer, pl_module, self)
        if stage == "fit" and trainer.global_step == 0:  # a checkpoint is loaded after this
            self.history = self.publisher = self._fingerprint = None
            self._pooled, self._signal_states = {}, {}

    @override
    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self._attempted_step, self._has_begun, self.failures = -1, False, Failures(self.strict)
        if self.reads_batches:
            self._begin_batches(trainer, pl_module)
        else:
            self._begin_probe(trainer, pl_module)
        if (
            (self.history or self.reads_batches)
            and is_between_epochs(trainer)
            and self._is_due_after(epochs_completed(trainer))
        ):
            self._measure(trainer)  # a checkpoint that was saved just before the reading

    def _begin_probe(self, trainer: Any, pl_module: Any) -> None:
        request = ProbeRequest(self.mode, self.probe, self.probe_size, self.num_classes, self.seed)
        probes = request.shared(trainer, pl_module, self.targets)
        engine = GramEngine(pl_module, loss := resolve_loss(pl_module, self.loss), budget=self.budget)
        batch = on_device(trainer, pl_module, probes.batch, self.seed)
        self._board = SignalBoard(self.signals, self._wished, self.strict)
        self._reader = reader = StiffnessReader(pl_module, engine, probes, batch, self._board)
        scene = Scene(trainer, pl_module, engine, loss, reader.rows, probes.num_classes, self)
        self._board.begin(scene, self._signal_states)
        summary = probes.summary(self.class_names, self.superclasses)
        self._begin_history(trainer, pl_module, summary, probes.fingerprint, reader.rows)
        if not self.history:
            self._begin_readings(trainer, reader)

    def _begin_batches(self, trainer: Any, pl_module: Any) -> None:
        request = BatchRequest(self.every_n_batches, self.num_classes, self.targets, self.loss, self.budget or 1 << 30)
        self._reader = reader = request.reader(trainer, pl_module)
        is_same = self._fingerprint == reader.fingerprint
        summary = reader.summary(self.class_names, self.superclasses)
        self._begin_history(trainer, pl_module, summary, reader.fingerprint)
        if is_same and self._pooled and trainer.is_global_zero:
            reader.pool = BatchPool.from_state_dict(self._pooled)
        self._pooled = {}

    @override
    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if self.is_due_at_step(trainer):
            self._measure(trainer)
        if self._board is not None:
            self._board.before_step()
        reader = self._reader
        if isinstance(reader, BatchReader) and self._has_rehearsed(trainer, reader, batch):
            self.failures.survive(lambda: reader.begin(batch, batch_idx), trainer.global_step)

    @override
    def on_before_backward(self, trainer: Any, pl_module: Any, loss: Any) -> None:
        reader = self._reader
        if isinstance(reader, BatchReader):
            self.failures.survive(lambda: reader.listen(loss, loss_factor(trainer)), trainer.global_step)

    @override
    def on_after_backward(self, trainer: Any, pl_module: Any) -> None:
        if isinstance(self._reader, BatchReader):
            self.failures.survive(self._reader.collect, trainer.global_step)

    @override
    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if isinstance(self._reader, BatchReader):
            self._reader.drop()

    @override
    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        if isinstance(self._reader, BatchReader):
            self._reader.drop()

    @override
    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        if self._is_due_after(trainer.current_epoch + 1):
            self._measure(trainer, at_epoch_end=True)

    @override
    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        if self.publisher is not None:
            self.publisher.end()

    @override
    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        self._reader = self._board = None

    @override
    def state_dict(self) -> dict[str, Any]:
        if self.history is None:
            return {}
        state = {"history": self.history.state_dict(), "fingerprint": self._fingerprint}
        if isinstance(self._reader, BatchReader):
            state["pooled"] = self._reader.pool.state_dict()
        signals = self._board.state_dict() if self._board else {}
        return {**state, "signals": signals} if signals else state

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if not state_dict.get("history"):
            return
        try:
            self.history = History.from_state_dict(state_dict["history"])
            self._fingerprint, self._pooled = state_dict.get("fingerprint"), state_dict.get("pooled", {})
            self._signal_states = state_dict.get("signals", {})
        except StiffnessError as error:
            rank_zero_warn(f"The stiffness history of the checkpoint cannot be read and starts anew: {error}")

    def require_signals(self, names: Sequence[str], wished: Sequence[str] = ()) -> None:
        """Has further signals measured, and ``wished`` ones if they can be; to be called before training starts."""
        self.signals = require_known([*self.signals, *names])
        require_probe_for_signals(self.signals, self.reads_batches)
        self._wished = tuple(name for name in require_known([*self._wished, *wished]) if name not in self.signals)

    @property
    def reads_batches(self) -> bool:
        """Whether the training batches are read, and no probe."""
        return isinstance(self.probe, str)

    def is_due_at_step(self, trainer: Any) -> bool:
        """Whether a measurement falls on the coming optimizer step; the same on all processes."""
        return bool(self.every_n_steps) and trainer.global_step % self.every_n_steps == 0 and trainer.global_step > 0

    def _is_due_after(self, epochs: float) -> bool:
        return bool(self.every_n_epochs) and epochs % self.every_n_epochs == 0

    def _begin_history(
        self, trainer: Any, pl_module: Any, summary: ProbeSummary, fingerprint: str, batch: Any = ()
    ) -> None:
        """A new history, or the one of the checkpoint if it is about the same samples."""
        past = self.history
        if past and (past.probe.strata != summary.strata or self._fingerprint not in (None, fingerprint)):
            rank_zero_warn("The stiffness probe is another one than in the checkpoint: its history starts anew.")
            past = None
        self.history = History(summary, past.truncated(trainer.global_step) if past else ())
        self._fingerprint = fingerprint
        self.publisher = Publisher(trainer, self, self.history)
        self.publisher.begin(pl_module, batch)

    def _begin_readings(self, trainer: Any, reader: StiffnessReader) -> None:
        """Before the first step nothing is lost yet: a setting that cannot work is reported, not passed over."""
        outcome = None if self.at_start else agreed(trainer, attempted(reader.rehearse))
        if self.at_start:
            self._measure(trainer, at_start=True)
        if isinstance(outcome, Exception):
            self.failures.report(outcome, trainer.global_step, isinstance(outcome, StiffnessError))

    def _has_rehearsed(self, trainer: Any, reader: BatchReader, batch: Any) -> bool:
        """Tries the first batch, before a step: a setting that cannot work is reported, not passed over."""
        if self._has_begun:
            return True
        self._has_begun = True
        outcome = agreed(trainer, attempted(lambda: reader.rehearse(batch)))
        if isinstance(outcome, Exception):
            self._reader = None
            self.failures.report(outcome, trainer.global_step, isinstance(outcome, StiffnessError))
            return False
        reader.announce(self.name)
        return True

    def _measure(self, trainer: Any, at_start: bool = False, at_epoch_end: bool = False) -> None:
        step, reader, publisher = trainer.global_step, self._reader, self.publisher
        known = self.history[-1].step if self.history else -1
        is_over = step <= max(known, self._attempted_step) or (trainer.fast_dev_run and self.history)
        if reader is None or publisher is None or is_over:
            return
        self._attempted_step = step
        epoch = epochs_completed(trainer, at_epoch_end)
        outcome = agreed(trainer, attempted(lambda: publisher.completed(reader.read(step, epoch))))
        if isinstance(outcome, Exception):
            self.failures.report(outcome, step, at_start and isinstance(outcome, StiffnessError))
        elif outcome is not None:
            publisher.publish(outcome, at_epoch_end)
