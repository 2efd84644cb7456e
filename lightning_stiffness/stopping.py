"""When to stop: criteria are pure functions of the history, so that a resumed run needs no state of theirs."""

import math
from dataclasses import asdict, dataclass
from typing import Protocol

from lightning_stiffness.errors import StiffnessError
from lightning_stiffness.history import History, Reading

# A loss counts as below chance level when it is lower by this share: a net that has only learned the class frequencies
# sits on the level itself, and drifts around it by less than its tiny standard error suggests.
CLEARLY_BELOW = 0.05
STANDARD_ERRORS = 2.0


@dataclass(frozen=True)
class Decision:
    """What a criterion says after the last reading of a history.

    Attributes:
        stop: whether to stop now. It is made anew at each reading: if the run goes on and the signal recovers, it is
            False again.
        reason: why, or why not, in plain words and numbers.
        signal: the number that is judged; nan as long as there is none.
        threshold: the number below which the signal counts as fallen; nan as long as there is none.
        peak: the highest signal so far; nan as long as there is none.
        epoch: epochs completed at the last reading; nan without readings.
    """

    stop: bool
    reason: str
    signal: float = math.nan
    threshold: float = math.nan
    peak: float = math.nan
    epoch: float = math.nan

    def as_dict(self) -> dict[str, bool | str | float | None]:
        """Return the fields for JSON, with None for nan.

        Example:
            >>> Decision(False, "no readings yet").as_dict()["peak"] is None
            True
        """
        return {
            name: None if isinstance(value, float) and math.isnan(value) else value
            for name, value in asdict(self).items()
        }


class Criterion(Protocol):
    """Anything that turns a history into a decision; a new one is one frozen dataclass with this call."""

    def __call__(self, history: History) -> Decision:
        """Return the decision after the last reading."""
        ...


@dataclass(frozen=True)
class StiffnessDrop:
    """Stop when within-class cosine stiffness has fallen from its peak and stays there.

    The signal is the exponential moving average of the within-class cosine stiffness. A reading is *below* when

    1. the signal is more than ``drop`` below its highest value so far, which must be positive, and
    2. the reading itself is more than 2 standard errors of the paired change below the reading at that peak. When the
       error is not known (nan), this is taken as given.

    The run stops when it has been below without interruption for ``patience`` epochs: from the first such reading to
    the last, plus the time between the first one and the reading before it, of which at most one epoch counts. Three
    readings, one an epoch, are three epochs; twelve readings, four an epoch, are three epochs as well.

    Stiffness falls while a net learns, too. Therefore nothing counts, neither for the average nor for its peak, before
    the net has learned a good part, and for a while after. A good part: the mean loss of the probe plus 2 standard
    errors is under 95 % of chance level and of the loss of the first reading, whichever is lower, and the losses of its
    samples spread (standard deviation) by at least ``spread`` of their mean, as they do when some samples are known and
    others not; a net on a plateau knows all of them equally little. For a while: for ``warmup`` epochs, or for
    ``warmup_factor`` times as long as it took to get there if that is longer: slow to begin is slow to go on.

    In 66 runs of small nets (digits and MNIST, 0 to 40 % wrong labels, most nets slow and deep) the plain drop stopped
    before 95 % of the best accuracy in 56 %, waiting for a loss below chance alone in 53 %, this rule in 3 % (6 % with
    four readings an epoch). The wait was chosen on these runs; expect somewhat worse elsewhere. A run that learns
    nothing is never stopped.

    Args:
        drop: relative fall from the peak that is allowed, in (0, 1).
        patience: epochs for which the signal has to be below.
        warmup: epochs that do not count after a good part was learned.
        smoothing: share of the old value that the average keeps over one epoch, in [0, 1); 0 does not smooth. Between
            readings that are e epochs apart it is ``smoothing ** e``, so the rule hardly depends on how often it looks.
        chance_loss: loss of a net that has learned nothing; by default the entropy of the probe's labels, which no
            prediction without regard to the input can undercut in cross-entropy. State it for any other loss.
        spread: least spread of the probe's losses over their mean. Set 0 where each sample's loss is itself a mean over
            many positions, as in language modelling, or where more than half of the labels are wrong.
        warmup_factor: the least warm-up as a multiple of the epochs it took to learn a good part.

    Raises:
        StiffnessError: an argument is out of its range.

    Source: stiffness and its fall with over-fitting, Fort et al., arXiv:1901.09491; the rule is ours.

    Example:
        >>> from lightning_stiffness.history import ProbeSummary
        >>> StiffnessDrop()(History(ProbeSummary("train", 2, (0, 0, 1, 1), 0.69))).reason
        'no readings yet'
    """

    drop: float = 0.05
    patience: float = 3.0
    warmup: float = 2.0
    smoothing: float = 0.5
    chance_loss: float | None = None
    spread: float = 0.5
    warmup_factor: float = 1.0

    def __post_init__(self) -> None:
        _require(0 < self.drop < 1, "drop must be in (0, 1)", self.drop)
        _require(0 < self.patience < math.inf, "patience must be a positive number of epochs", self.patience)
        _require(0 <= self.warmup < math.inf, "warmup must be a number of epochs, 0 or more", self.warmup)
        _require(0 <= self.smoothing < 1, "smoothing must be in [0, 1)", self.smoothing)
        _require(0 <= self.spread < math.inf, "spread must be 0 or more", self.spread)
        _require(0 <= self.warmup_factor < math.inf, "warmup_factor must be 0 or more", self.warmup_factor)
        if self.chance_loss is not None:
            _require(math.isfinite(self.chance_loss), "chance_loss must be a finite number or None", self.chance_loss)

    def __call__(self, history: History) -> Decision:
        """Return the decision after the last reading of ``history``."""
        if not history:
            return Decision(False, "no readings yet")
        epoch = history[-1].epoch
        learned = next((reading.epoch for reading in history if not self._unlearned(history, reading)), None)
        if learned is None:
            return Decision(False, self._unlearned(history, history[-1]), epoch=epoch)
        start = learned + max(self.warmup, self.warmup_factor * learned)
        late = [index for index, reading in enumerate(history) if reading.epoch >= start]
        counted = [index for index in late if math.isfinite(history[index].cosine.within)]
        note = _skipped(len(late) - len(counted))
        if not counted:
            reason = (
                f"still warming up: learning began at epoch {_short(learned)}, readings count from {_short(start)} on"
            )
            return Decision(False, reason + note, epoch=epoch)
        return self._judge(history, _trend(history, counted, self.smoothing), note)

    def _unlearned(self, history: History, reading: Reading) -> str:
        """What shows that the net has not learned a good part at this reading; empty if it has."""
        ceiling = self._ceiling(history)
        error = 0.0 if math.isnan(reading.loss_se) else STANDARD_ERRORS * reading.loss_se
        if math.isnan(reading.loss) or math.isnan(ceiling):
            return "no sign of learning can be seen: the probe loss or its chance level is not a number"
        if not reading.loss + error < ceiling:
            return (
                f"nothing learned yet: probe loss {reading.loss:.2f} (up to {reading.loss + error:.2f} with its error) "
                f"is not below {ceiling:.2f}, {_percent(1 - CLEARLY_BELOW)} of chance level or of the first reading"
            )
        if self.spread and not history.probe.strata:
            return (
                "whether most is learned cannot be seen: readings of batches do not tell how the losses of single "
                "samples spread; measure on a probe, or set spread=0 to go without"
            )
        spread = reading.loss_se * _samples(history) ** 0.5 / abs(reading.loss) if reading.loss else math.inf
        if spread < self.spread:
            return (
                f"most is still to be learned: the losses of the probe's samples spread by only {_percent(spread)} of "
                f"their mean {reading.loss:.2f}, not by {_percent(self.spread)}"
            )
        return ""

    def _ceiling(self, history: History) -> float:
        """Below which loss a net has learned something."""
        chance = history.probe.label_entropy if self.chance_loss is None else self.chance_loss
        levels = [level for level in (chance, history[0].loss) if math.isfinite(level)]
        level = min(levels, default=math.nan)
        return level - CLEARLY_BELOW * abs(level)

    def _judge(self, history: History, trend: list["_Point"], note: str) -> Decision:
        last, streak = trend[-1], self._streak(history, trend)
        stop = streak > 0 and streak >= self.patience - 1e-6
        reason = f"within-class stiffness {last.signal:.3f} {self._finding(history, last, streak)}{note}"
        return Decision(stop, reason, last.signal, self._threshold(last), last.peak, history[-1].epoch)

    def _finding(self, history: History, last: "_Point", streak: float) -> str:
        if last.peak <= 0:
            return f"has no positive peak (highest {last.peak:.3f}), so that a relative drop from it means nothing"
        if last.signal == last.peak:
            return "is at its peak"
        peak = f"its peak {last.peak:.3f} (epoch {_short(history[last.peak_index].epoch)})"
        if last.signal >= self._threshold(last):
            return f"is {_percent(1 - last.signal / last.peak)} below {peak}; {_percent(self.drop)} are allowed"
        change = history.within_change(last.peak_index, last.index)
        size = f"{-change.value / change.se:.1f} standard errors" if change.se > 0 else "of unknown standard error"
        if streak == 0:
            return f"is more than {_percent(self.drop)} below {peak}, but the drop is only {size}"
        duration = _short(streak) if streak >= self.patience - 1e-6 else f"{_short(streak)} of {_short(self.patience)}"
        return f"has been more than {_percent(self.drop)} below {peak} for {duration} epochs; the drop is {size}"

    def _threshold(self, point: "_Point") -> float:
        return (1 - self.drop) * point.peak

    def _streak(self, history: History, trend: list["_Point"]) -> float:
        """Epochs for which the signal has been below without interruption."""
        below = 0
        while self._is_below(history, trend[-1 - below]):  # ends at the first point, which is its own peak
            below += 1
        if below == 0:
            return 0.0
        before, first = trend[-1 - below], trend[-below]
        return trend[-1].epoch - first.epoch + min(first.epoch - before.epoch, 1.0)

    def _is_below(self, history: History, point: "_Point") -> bool:
        if point.peak <= 0 or point.signal >= self._threshold(point):
            return False
        change = history.within_change(point.peak_index, point.index)
        return not change.value >= -STANDARD_ERRORS * change.se


@dataclass(frozen=True)
class _Point:
    """The moving average at one reading, and its peak so far."""

    index: int
    epoch: float
    signal: float
    peak: float
    peak_index: int


def _trend(history: History, counted: list[int], smoothing: float) -> list[_Point]:
    within = history[counted[0]].cosine.within
    trend = [_Point(counted[0], history[counted[0]].epoch, within, within, counted[0])]
    for index in counted[1:]:
        last, reading = trend[-1], history[index]
        kept = smoothing ** max(reading.epoch - last.epoch, 0.0)
        signal = kept * last.signal + (1 - kept) * reading.cosine.within
        peak, peak_index = (signal, index) if signal > last.peak else (last.peak, last.peak_index)
        trend.append(_Point(index, reading.epoch, signal, peak, peak_index))
    return trend


def _samples(history: History) -> int:
    """Number of samples whose losses the readings average; in cross mode the row samples."""
    return sum(stratum < history.probe.num_classes for stratum in history.probe.strata)


def _skipped(count: int) -> str:
    return f" ({count} readings without a within-class value are skipped)" if count else ""


def _short(number: float) -> str:
    return f"{number:.2f}".rstrip("0").rstrip(".")


def _percent(share: float) -> str:
    return f"{100 * share:.2g} %"


def _require(holds: bool, requirement: str, found: float) -> None:
    if not holds:
        raise StiffnessError(f"{requirement}, but is {found!r}.")
