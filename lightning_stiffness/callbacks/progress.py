"""Where a training run stands, in epochs and on the axis of its loggers."""

import math
from typing import Any


def epochs_completed(trainer: Any) -> float:
    """Epochs completed, with the fraction of the running one, also where an epoch is cut short or taken up again.

    While the length of an epoch is not known, as with a stream, the running one counts as nothing until it ends.
    """
    epochs = trainer.fit_loop.epoch_progress.current
    batches = trainer.fit_loop.epoch_loop.batch_progress.current
    if epochs.started == 0:
        return 0.0
    length = trainer.num_training_batches
    if 0 < length < math.inf:
        return float(epochs.started - 1 + min(batches.processed / length, 1.0))
    return float(epochs.processed)


def logged_step(trainer: Any, at_epoch_end: bool = False) -> int:
    """The step that Lightning's own metrics carry in the loggers at this point.

    It differs from `global_step`: it counts once for several optimizers, and at the end of an epoch Lightning logs with
    the number of the last step, not of the next.
    """
    stepped = int(getattr(trainer.fit_loop.epoch_loop, "_batches_that_stepped", trainer.global_step))
    return max(stepped - 1, 0) if at_epoch_end else stepped
