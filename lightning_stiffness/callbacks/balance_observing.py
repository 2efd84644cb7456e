"""Watches how a network under a ClassGroupingBalancer treats its classes, and changes nothing."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn
from typing_extensions import override

from lightning_stiffness.balance import BalanceReading, extended, reading_of_record, records_of
from lightning_stiffness.callbacks.agreement import agreed, attempted
from lightning_stiffness.callbacks.balance_advice import for_a_balancer
from lightning_stiffness.callbacks.balance_publishing import BalancePublisher
from lightning_stiffness.callbacks.balance_reading import BalanceReader, Circumstances, lost_by
from lightning_stiffness.callbacks.balance_schedule import ReadingSchedule
from lightning_stiffness.callbacks.balance_validation import Validated, ValidationTally
from lightning_stiffness.callbacks.balancing_loader import known_names
from lightning_stiffness.callbacks.balancing_statistics import absorption
from lightning_stiffness.callbacks.namespace import Callback, rank_zero_warn
from lightning_stiffness.callbacks.progress import epochs_completed, planned_batches
from lightning_stiffness.callbacks.training_step import resolve_targets
from lightning_stiffness.errors import StiffnessError


class BalanceObserver:
    """Takes readings of a run and shows them; all processes have to make one, and to call its methods.

    Args:
        trainer: The Trainer, at the start of training.
        pl_module: The user's LightningModule.
        layer: Its classifier.
        balancer: Whose run it is; its `readings` are extended.
        tried_at: After how many batches the last reading was due, of a run that is taken up again.
        done: How many batches it has seen.
    """

    def __init__(  # noqa: PLR0913  # what a run has
        self,
        trainer: Any,
        pl_module: nn.Module,
        layer: nn.Module,
        balancer: "ObservedBalancing",
        tried_at: int = 0,
        done: int = 0,
    ) -> None:
        """Nothing is measured yet."""
        self._trainer, self._balancer, num_classes = trainer, balancer, len(balancer.sizes)
        targets = resolve_targets(pl_module, balancer.targets)
        self._reader: BalanceReader | None = BalanceReader(
            trainer, pl_module, layer, num_classes, targets, balancer.seed
        )
        self._is_drawn, self._has_warned = False, False
        self._tally = ValidationTally(layer, num_classes, targets, balancer.natural_probabilities, self._report)
        self._validated: Validated | None = None
        self._schedule = ReadingSchedule(
            balancer.max_readings, planned_batches(trainer), trainer.num_training_batches, tried_at
        )
        self._done = done
        self._names = balancer.class_names or known_names(trainer, num_classes)
        self._publisher = BalancePublisher(trainer, balancer.panels, balancer.save_dir, balancer.readings)
        past = balancer.readings[-1].elapsed if balancer.readings else 0.0
        self._began = time.perf_counter() - (past if math.isfinite(past) else 0.0)

    def before_batch(self) -> None:
        """A training batch begins."""
        self._measure_if_due(at_epoch_end=False)
        self._done += 1

    def after_epoch(self) -> None:
        """A training epoch is over, and its validation."""
        self._measure_if_due(at_epoch_end=True)

    def end(self) -> None:
        """Training is over."""
        known = self._balancer.readings
        if not known or known[-1].step != self._trainer.global_step:
            self._measure()
        self._publisher.end(self._balancer.readings)

    def before_validation(self) -> None:
        """Validation begins."""
        self._tally.begin()

    def before_validation_batch(self, batch: Any, loader: int) -> None:
        """A batch of it begins."""
        self._tally.expect(batch, loader)

    def after_validation(self) -> None:
        """Validation is over."""
        strategy = self._trainer.strategy
        self._validated = self._tally.result(
            lambda counts: strategy.reduce(counts.to(strategy.root_device), reduce_op="sum")
        )

    def state_dict(self) -> dict[str, int]:
        """What a run that is taken up again needs to go on."""
        return {"tried_at": self._schedule.tried_at, "done": self._done}

    def remove(self) -> None:
        """Leaves the module as it was."""
        self._tally.remove()

    def _measure_if_due(self, at_epoch_end: bool) -> None:
        if not self._schedule.is_due(self._done, at_epoch_end):
            return
        self._schedule.tried(self._done)
        if agreed(self._trainer, self._schedule.is_affordable(self._elapsed)):
            self._measure(at_epoch_end)

    def _measure(self, at_epoch_end: bool = False) -> None:
        start, before = time.perf_counter(), self._balancer.readings[-1] if self._balancer.readings else None
        reader = self._drawn_reader()
        if reader is None:
            return
        now = self._circumstances(at_epoch_end)
        outcome = agreed(self._trainer, attempted(lambda: reader.read(now, before)))
        seconds = time.perf_counter() - start
        self._schedule.took(seconds)
        if isinstance(outcome, Exception):
            self._report(outcome)
            return
        reading = replace(outcome, seconds=seconds, elapsed=self._elapsed)
        seen, self._validated = self._validated, None
        if seen is not None:
            reading = replace(
                reading,
                lost=lost_by(seen.probabilities),
                absorption=absorption(seen.probabilities),
                recall=seen.recall,
                natural_recall=seen.natural_recall,
            )
        self._balancer.readings = extended(self._balancer.readings, reading)
        self._publisher.publish(self._balancer.readings, at_epoch_end)

    def _drawn_reader(self) -> BalanceReader | None:
        """The reader once it has its probe, which is drawn once; None where there is none, on all processes alike."""
        reader = self._reader
        if reader is not None and not self._is_drawn:
            self._is_drawn = True
            cause = attempted(reader.draw)
            if isinstance(cause, Exception):
                self._reader = None
                self._report(cause)
        return self._reader

    def _circumstances(self, at_epoch_end: bool) -> Circumstances:
        rates = self._balancer.frequencies
        assert rates is not None
        return Circumstances(
            step=self._trainer.global_step,
            epoch=epochs_completed(self._trainer, at_epoch_end),
            counts=self._balancer.sizes,
            rates=rates,
            offsets=self._balancer.offsets,
            class_names=self._names,
        )

    @property
    def _elapsed(self) -> float:
        return time.perf_counter() - self._began

    def _report(self, cause: Exception) -> None:
        if not self._has_warned:
            rank_zero_warn(
                f"How the network treats its classes could not be measured at step {self._trainer.global_step} "
                f"({type(cause).__name__}: {for_a_balancer(str(cause))}). Training goes on; later failures are not "
                "reported. Pass max_readings=0 to measure nothing."
            )
        self._has_warned = True


class ObservedBalancing(Callback):
    """The part of a ClassGroupingBalancer that watches: its readings, and the hooks that only they need.

    Args:
        max_readings: How often it measures, at most.
        panels: Whether readings are shown in loggers.
        class_names: One for each class.
        save_dir: Folder of the file.

    Raises:
        StiffnessError: An argument is out of range.
    """

    seed: int
    targets: Callable[[Any], Any] | None

    def __init__(
        self, max_readings: int, panels: bool, class_names: Sequence[str] | None, save_dir: str | None
    ) -> None:
        """See the class."""
        super().__init__()
        if max_readings < 0:
            raise StiffnessError(f"max_readings must be a number of readings, 0 for none; found {max_readings}.")
        self.max_readings, self.panels, self.save_dir = max_readings, panels, save_dir
        self.class_names = None if class_names is None else tuple(class_names)
        self.readings: list[BalanceReading] = []
        """How the network treats its classes, measured up to `max_readings` times in a run."""
        self._observer: BalanceObserver | None = None
        self._observed = dict[str, int]()

    @property
    def frequencies(self) -> Float[Tensor, "c"] | None:
        """How often each class is drawn."""
        raise NotImplementedError

    @property
    def sizes(self) -> Float[Tensor, "c"]:
        """Samples of each class."""
        raise NotImplementedError

    @property
    def offsets(self) -> Float[Tensor, "c"] | None:
        """What is added to the logits in training."""
        raise NotImplementedError

    def natural_probabilities(self, logits: Float[Tensor, "n c"]) -> Float[Tensor, "n c"]:
        """Probabilities where classes are as frequent as in the training data."""
        raise NotImplementedError

    def forget(self) -> None:
        """A new run begins."""
        self.readings, self._observed = [], {}

    def observe(self, trainer: Any, pl_module: nn.Module, layer: nn.Module | Exception) -> None:
        """Begins to watch, if it is wanted; with a warning where it cannot.

        Args:
            trainer: The Trainer, at the start of training.
            pl_module: The user's LightningModule.
            layer: The classifier, or why there is none.

        Raises:
            StiffnessError: There is not one name for each class.
        """
        classes = len(self.sizes)
        if self.class_names is not None and len(self.class_names) != classes:
            raise StiffnessError(
                f"class_names must have a name for each of {classes} classes, found {len(self.class_names)}."
            )
        if self.max_readings == 0:
            return
        if isinstance(layer, Exception):
            rank_zero_warn(f"How the network treats its classes cannot be measured: {layer} Or pass max_readings=0.")
            return
        self._observer = BalanceObserver(trainer, pl_module, layer, self, **self._observed)

    def end_observing(self) -> None:
        """Leaves the module as it was."""
        if self._observer is not None:
            self._observed = self._observer.state_dict()
            self._observer.remove()
        self._observer = None

    @override
    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        if self._observer is not None:
            self._observer.before_validation()

    @override
    def on_validation_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if self._observer is not None:
            self._observer.before_validation_batch(batch, dataloader_idx)

    @override
    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        if self._observer is not None:
            self._observer.after_validation()

    @override
    def state_dict(self) -> dict[str, Any]:
        """The readings, and where the run stands between two of them."""
        observed = self._observed if self._observer is None else self._observer.state_dict()
        return {"readings": records_of(self.readings), "observed": observed}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.readings = [reading_of_record(record) for record in state_dict.get("readings", ())]
        self._observed = dict(state_dict.get("observed", {}))
