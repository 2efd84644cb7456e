"""Where a training run stands, in epochs and on the axis of its loggers."""

import math
from typing import Any


def epochs_completed(trainer: Any, at_epoch_end: bool = False) -> float:
    """Epochs completed, with the fraction of the running one, also where an epoch is cut short or taken up again.

    While the length of an epoch is not known, as with a stream, the running one counts as nothing until it ends.

    Args:
        trainer: The Trainer, at the start of training or of a batch.
        at_epoch_end: It is at the end of an epoch instead.
    """
    epochs = trainer.fit_loop.epoch_progress.current
    share = _share_of_epoch(trainer)
    if at_epoch_end:
        return float(epochs.processed if share is None else epochs.processed - 1 + share)
    if share == 1:  # a run that is taken up again where an epoch ended, which may not have been counted yet
        return float(max(epochs.processed, epochs.started))
    return float(epochs.processed + (share or 0))


def planned_batches(trainer: Any) -> float:
    """How many batches training takes, if nothing stops it; infinite where nobody knows, as with a stream."""
    steps = trainer.estimated_stepping_batches
    return float(steps * trainer.accumulate_grad_batches) if steps >= 0 else math.inf  # Lightning: -1 for a stream


def is_between_epochs(trainer: Any) -> bool:
    """Whether a run is taken up again from the end of an epoch; for the start of training."""
    return _share_of_epoch(trainer) == 1


def _share_of_epoch(trainer: Any) -> float | None:
    """Share of the batches of an epoch that are done; None if its length is not known."""
    length, done = trainer.num_training_batches, trainer.fit_loop.epoch_loop.batch_progress.current.processed
    return min(done / length, 1.0) if 0 < length < math.inf else None


def logged_step(trainer: Any, at_epoch_end: bool = False) -> int:
    """The step that Lightning's own metrics carry in the loggers at this point.

    It differs from `global_step`: it counts once for several optimizers, and at the end of an epoch Lightning logs with
    the number of the last step, not of the next.
    """
    stepped = int(getattr(trainer.fit_loop.epoch_loop, "_batches_that_stepped", trainer.global_step))
    return max(stepped - 1, 0) if at_epoch_end else stepped
