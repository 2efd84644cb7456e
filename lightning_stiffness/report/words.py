"""Numbers and names in print, and what the signals are in plain words."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Final

from lightning_stiffness.balance import BalanceReading
from lightning_stiffness.history import History, ProbeSummary, Reading
from lightning_stiffness.run_files import RunFiles

MINUS, DASH = "\N{MINUS SIGN}", "\N{EN DASH}"
SIGNALS: Final = {
    "leave_one_out_loss": "Estimated loss on unseen samples",
    "leave_one_out_error": "Estimated error on unseen samples",
    "leave_one_out_doubt": "Estimated doubt on unseen samples",
    "leave_one_out_train_loss": "Loss of the samples that are followed",
    "train_within": "Within classes, training against training",
    "gradient_disparity": "Gradient disparity",
    "evidence": "Evidence",
    "prediction_changes": "Share of predictions that change",
    "gradient_weight_alignment": "Gradient-weight alignment",
}
"""The signals of the package by the names that they have in a reading."""
PROBES: Final = {
    "train": "pairs of training samples",
    "val": "pairs of validation samples",
    "cross": "pairs of a training and a validation sample",
    "batch": "pairs of samples of the same training batch",
}


def number(value: float | None, digits: int = 3) -> str:
    """A number with so many decimals; a dash where there is none.

    >>> number(-0.1234), number(float("nan"))
    ('−0.123', '–')
    """
    if value is None or not math.isfinite(value):
        return DASH
    return f"{round(value, digits) + 0.0:.{digits}f}".replace("-", MINUS)


def signed(value: float) -> str:
    """A number with its sign.

    >>> signed(0.1234), signed(-0.1)
    ('+0.123', '−0.100')
    """
    return f"{'+' if value >= 0.0005 else ''}{number(value)}"


def short(value: float | None) -> str:
    """A number with four digits that count; a dash where there is none.

    >>> short(0.000123456), short(24.0)
    ('0.0001235', '24')
    """
    if value is None or not math.isfinite(value):
        return DASH
    return f"{value:.4g}".replace("-", MINUS)


def with_error(value: float, error: float) -> str:
    """A value with twice its standard error, where that is known.

    >>> with_error(0.633, 0.0052), with_error(0.633, float("nan"))
    ('0.633 ± 0.010', '0.633')
    """
    return number(value) if math.isnan(error) or math.isnan(value) else f"{number(value)} ± {number(2 * error)}"


def percent(share: float) -> str:
    """A share in print.

    >>> percent(0.125), percent(float("nan"))
    ('12 %', '–')
    """
    if not math.isfinite(share):
        return DASH
    return f"{100 * share:.0f} %" if abs(share) >= 0.1 else f"{100 * share:.1f} %".replace("-", MINUS)


def duration(seconds: float) -> str:
    """A time in print.

    >>> duration(0.0123), duration(42), duration(4000)
    ('12 ms', '42 s', '1 h 7 min')
    """
    if not math.isfinite(seconds):
        return DASH
    if seconds < 1:
        return f"{1000 * seconds:.0f} ms"
    if seconds < 100:
        return f"{seconds:.3g} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def count(amount: int, noun: str) -> str:
    """So many of something.

    >>> count(1, "reading"), count(1200, "class")
    ('1 reading', '1,200 classes')
    """
    ending = "" if amount == 1 else "es" if noun.endswith("s") else "s"
    return f"{amount:,} {noun}{ending}"


def listed(names: Sequence[str], most: int = 4) -> str:
    """Names in a sentence.

    >>> listed(["cat", "dog", "cow"]), listed(["a", "b", "c", "d", "e", "f"])
    ('cat, dog and cow', 'a, b, c, d and 2 more')
    """
    shown = [*names] if len(names) <= most else [*names[:most], f"{len(names) - most} more"]
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}"


def class_names(probe: ProbeSummary) -> list[str]:
    """A name for each class: its number where it has none, and behind a name that several have."""
    names = [str(name) for name in probe.class_names or range(probe.num_classes)]
    counts = Counter(names)
    return [f"{name} ({label})" if counts[name] > 1 else name for label, name in enumerate(names)]


def run_names(runs: Sequence[RunFiles]) -> list[str]:
    """A name for each run: the parts of its path in which they differ; numbered where those are equal.

    The last folder is the name of a single run.
    """
    paths = [run.path.absolute() for run in runs]
    parts = [
        [*path.parent.parts, *([path.stem] if path.stem not in ("stiffness", "balancing") else [])] for path in paths
    ]
    if len(parts) == 1:
        return ["/".join(parts[0][-2:]) if parts[0][-1] != paths[0].parent.name else parts[0][-1]]
    shared = 0
    while all(len(part) > shared + 1 for part in parts) and len({part[shared] for part in parts}) == 1:
        shared += 1
    return ["/".join(part[shared:]) for part in parts]


def headline(run: RunFiles) -> str:
    """What happened, in one sentence."""
    history, decision = run.history, run.decision
    if not history:
        return balance_headline(run.balance) if run.balance else "Nothing was measured yet."
    if decision is None:
        return f"Measured for {count_epochs(history[-1].epoch)}, with nothing in charge of stopping."
    if not decision.get("stopped"):
        return f"Measured for {count_epochs(history[-1].epoch)} and not stopped.{_restored(decision)}"
    return f"Stopped after {count_epochs(_float(decision.get('epoch')))}.{_restored(decision)}"


def balance_headline(readings: Sequence[BalanceReading]) -> str:
    """What a balancer has found, in one sentence."""
    recalls = [reading.recall for reading in readings if reading.recall is not None]
    known = f", balanced accuracy in validation {percent(float(recalls[-1].nanmean()))}" if recalls else ""
    return f"Trained with balanced classes for {count_epochs(readings[-1].epoch)}{known}."


def count_epochs(epochs: float) -> str:
    """So many epochs.

    >>> count_epochs(1.0), count_epochs(2.5)
    ('1 epoch', '2.5 epochs')
    """
    return f"{short(epochs)} epoch{'' if epochs == 1 else 's'}"


def reasons(run: RunFiles) -> list[str]:
    """Why it stopped or did not, a line each, as the stopper saved it; nothing where none was at work."""
    decision = run.decision or {}
    text = decision.get("explanation") or decision.get("reason") or ""
    lines = [line.strip() for line in str(text).splitlines() if line.strip()]
    return [_sentence(line) for line in (*lines, *_on_the_best(run))]


def readings_of(history: History) -> str:
    """What was measured, in one sentence."""
    probe, amount = history.probe, count(len(history), "reading")
    samples = f" of {count(_row_samples(probe), 'sample')}" if probe.strata else ""
    span = f", epoch {short(history[0].epoch)} to {short(history[-1].epoch)}" if history else ""
    return f"{amount}{samples}, {PROBES[probe.mode]}, {count(probe.num_classes, 'class')}{span}."


def peak(history: History) -> Reading | None:
    """The reading with the highest stiffness within classes; None where none has one."""
    measured = [reading for reading in history if math.isfinite(reading.cosine.within)]
    return max(measured, key=lambda reading: reading.cosine.within, default=None)


def overhead(history: History) -> float:
    """Time that the readings took as a share of the training; nan where it is not known."""
    spent = sum(reading.seconds for reading in history)
    return spent / history[-1].elapsed if history and history[-1].elapsed >= spent > 0 else math.nan


def _row_samples(probe: ProbeSummary) -> int:
    return len(probe.ids) or sum(stratum < probe.num_classes for stratum in probe.strata)


def _restored(decision: Mapping[str, Any]) -> str:
    epoch = decision.get("restored_epoch")
    return "" if epoch is None else f" It ends with the weights of epoch {short(_float(epoch))}."


def _on_the_best(run: RunFiles) -> list[str]:
    """Why the best value that a rule names is below the peak of the curve, where it is."""
    decision, top = run.decision or {}, peak(run.history)
    is_within = decision.get("watched") == "within-class stiffness"
    if not is_within or top is None or not _float(decision.get("best")) < top.cosine.within - 0.005:
        return []
    return ["The rule counts readings after a warm-up, and smooths them: its best is below the peak of the curve"]


def _float(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else math.nan


def _sentence(line: str) -> str:
    text = line[:1].upper() + line[1:]
    return text if text.endswith((".", "!", "?")) else f"{text}."
