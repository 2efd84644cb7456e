"""When a ClassGroupingBalancer takes its readings: evenly over the run, as often as their cost allows."""

import math
from typing import Final

SHARE: Final = 0.05  # of the time of training
ALLOWED_SECONDS: Final = 1.0  # that readings may take beyond it, so that short runs have some
FIRST: Final = 100  # batches before the first reading of a run whose length nobody knows


class ReadingSchedule:
    """Readings at equal distances of a run of known length; at doubling distances of others.

    Args:
        most: How many there are at most.
        batches: Length of the run; infinite where it is not known.
        batches_of_epoch: Length of an epoch; infinite likewise.
        tried_at: After how many batches the last one was due, of a run that is taken up again.

    Attributes:
        tried_at: After how many batches the last one was due.
        seconds: What readings have taken.

    >>> schedule = ReadingSchedule(most=5, batches=100, batches_of_epoch=10)
    >>> [done for done in range(0, 101, 10) if schedule.is_due(done, at_epoch_end=True) and schedule.tried(done)]
    [20, 40, 60, 80, 100]
    """

    def __init__(self, most: int, batches: float, batches_of_epoch: float, tried_at: int = 0) -> None:
        """No reading was taken yet, in this part of the run."""
        self._most, self._batches, self.tried_at = most, batches, tried_at
        self._is_within_epochs = not most * batches_of_epoch <= batches < math.inf
        self.seconds, self._expected = 0.0, 0.0

    def is_due(self, done: int, at_epoch_end: bool) -> bool:
        """Whether a reading is due after so many batches.

        Where there are as many epochs as readings, they come at the ends of epochs, when validation has just run.
        """
        if self._most == 0 or not (at_epoch_end or self._is_within_epochs):
            return False
        return self._place(done) > self._place(self.tried_at)

    def tried(self, done: int) -> bool:
        """A reading was due after so many batches, and was taken or passed over; true."""
        self.tried_at = done
        return True

    def is_affordable(self, elapsed: float) -> bool:
        """Whether another reading takes no more than a small share of the time of training.

        Args:
            elapsed: Seconds of training.
        """
        return self.seconds + self._expected <= ALLOWED_SECONDS + SHARE * elapsed

    def took(self, seconds: float) -> None:
        """A reading has taken so long; the next one is expected to take as long."""
        self.seconds, self._expected = self.seconds + seconds, seconds

    def _place(self, done: int) -> int:
        if self._batches < math.inf:
            return int(self._most * done / max(self._batches, 1))
        return max(0, int(math.log2(done / FIRST)) + 1) if done >= FIRST else 0
