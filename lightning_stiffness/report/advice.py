"""What the numbers of a run mean and what to try, by rules: each is a pure function of the history."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal

from lightning_stiffness.history import History
from lightning_stiffness.report.matrix import class_pairs, within_by_class
from lightning_stiffness.report.words import count_epochs, listed, number, overhead, peak, percent, short
from lightning_stiffness.verdicts import is_high_good, logged_metrics

CLEARLY: Final = 2.0  # standard errors
WORTH_TELLING: Final = 0.05  # relative changes below are left to the curves
HIGH_COST: Final = 0.15
MANY_ZEROS: Final = 0.1
LARGE_ERROR: Final = 0.05
SATURATED: Final = 0.98


@dataclass(frozen=True)
class Advice:
    """One thing that the numbers say.

    Attributes:
        kind: "watch" where something may have to be done, "good" where it need not, "note" for how to read.
        title: it, in a few words.
        meaning: what was found, in numbers, and what that means.
        action: what to try; empty where there is nothing to do.
    """

    kind: Literal["watch", "good", "note"]
    title: str
    meaning: str
    action: str = ""


def advice(history: History) -> list[Advice]:
    """What all rules say of a run, what may have to be done first."""
    found = [said for rule in RULES if (said := rule(history)) is not None]
    return sorted(found, key=lambda said: ("watch", "good", "note").index(said.kind))


def too_few(history: History) -> Advice | None:
    """Fewer than three readings tell no course."""
    if len(history) >= 3:
        return None
    meaning = "With fewer than three readings there is no course to speak of." if history else "There is no reading."
    return Advice("watch", "Too few readings", meaning, "Train for longer, or measure more often (every_n_steps).")


def memorising(history: History) -> Advice | None:
    """Stiffness within classes is clearly below its peak, and the loss has fallen since."""
    top = peak(history)
    if top is None or len(history) < 3 or not _fell(history, list(history).index(top)):
        return None
    last = history[-1]
    share = 1 - last.cosine.within / top.cosine.within
    return Advice(
        "watch",
        "Samples are learned more and more one by one",
        f"A step on one sample helps others of its class less than it did: {number(last.cosine.within)} instead of "
        f"{number(top.cosine.within)} at epoch {short(top.epoch)} ({percent(share)} less), while the loss of the probe "
        f"went from {short(top.loss)} to {short(last.loss)}. Every network does some of that once the common part is "
        "learned, and the best epoch is usually well after the peak; the further it goes, the more of it is "
        "memorising.",
        "When that is enough is what StiffnessEarlyStopping decides. To learn more before: weight decay, augmentation, "
        "more data, a smaller network. Check the labels of the samples that stand out.",
    )


def still_learning(history: History) -> Advice | None:
    """Stiffness within classes is at its highest, and the loss at its lowest, at the end."""
    if len(history) < 3 or peak(history) is not history[-1]:
        return None
    losses = [reading.loss for reading in history]
    if not losses[-1] <= min(losses):
        return None
    meaning = (
        f"Stiffness within classes is highest at the last reading, {number(history[-1].cosine.within)}, and the loss "
        f"of the probe lowest, {short(losses[-1])}. Nothing here says that training has gone on for too long."
    )
    return Advice("good", "Still learning what classes share", meaning, "Training for longer may well help.")


def unseen_worse(history: History) -> Advice | None:
    """A loss that the run logged of unseen data is clearly above its lowest."""
    for name in logged_metrics(history):
        values = history.series(name).tolist()
        known = [(value, reading.epoch) for value, reading in zip(values, history, strict=True) if math.isfinite(value)]
        if "loss" not in name.lower() or is_high_good(name) or not _is_unseen(name) or len(known) < 3:
            continue
        (best, epoch), (last, _) = min(known), known[-1]
        if min(value for value, _ in known[-3:]) > best + WORTH_TELLING * abs(best):
            meaning = (
                f"{name} was lowest at epoch {short(epoch)}, {short(best)}, and is {short(last)} at the end. The "
                "network has become too sure of itself, or worse, on data that it does not learn from."
            )
            return Advice("watch", "It gets worse on unseen data", meaning, "Use weights from around that epoch.")
    return None


def shared(history: History) -> Advice | None:
    """Stiffness between classes is clearly above zero."""
    cosine = history[-1].cosine if history else None
    error = 0.0 if cosine is None or math.isnan(cosine.between_se) else cosine.between_se
    if cosine is None or not cosine.between > max(CLEARLY * error, 0.02):
        return None
    pairs = [f"{pair.first} and {pair.second}" for pair in class_pairs(history, slice(2))]
    meaning = (
        f"On average a step on one class also helps the others: {number(cosine.between)} between classes. They share "
        f"what is being learned, most of all {listed(pairs)}."
    )
    early = "Early in training that is usual. Later it means that classes are not told apart yet"
    return Advice("note", "Different classes learn together", meaning, f"{early}: train on, or look at those classes.")


def lumped(history: History) -> Advice | None:
    """A pair of classes that helps each other about as much as the classes help themselves."""
    if not history or history.probe.num_classes < 3:
        return None
    own = within_by_class(history, -1)
    pairs = [
        pair
        for pair in class_pairs(history, slice(20))
        if pair.stiffness > 0.1
        and pair.stiffness >= 0.5 * min(own.get(pair.first, math.inf), own.get(pair.second, math.inf))
    ]
    if not pairs:
        return None
    names = [f"{pair.first} and {pair.second} ({number(pair.stiffness, 2)})" for pair in pairs]
    meaning = (
        f"What is learned from one of two classes is at least half as good for the other as for one of them itself: "
        f"{listed(names, 3)}."
    )
    action = "Look at examples of both side by side: are their labels consistent, is one a part of the other?"
    return Advice("watch", "Classes that are hardly told apart", meaning, action)


def weak_class(history: History) -> Advice | None:
    """A class whose samples help each other far less than those of other classes do."""
    own = within_by_class(history, -1) if history else {}
    if len(own) < 3:
        return None
    values = list(own.values())
    median = values[len(values) // 2]
    weak = [f"{name} ({number(value, 2)})" for name, value in own.items() if median > 0.05 and value < median / 2]
    if not weak:
        return None
    meaning = (
        f"Samples of {listed(weak)} help each other less than half as much as is usual here (median "
        f"{number(median, 2)}): each is learned by itself."
    )
    action = "Such a class is diverse, has wrong labels, or needs more data."
    return Advice("watch", "A class without much in common", meaning, action)


def usual_start(history: History) -> Advice | None:
    """Values that look striking and are not: near one in the beginning, and a sign that stays at one."""
    signs = [reading.sign.within for reading in history if math.isfinite(reading.sign.within)]
    if not signs or min(signs) < SATURATED:
        return None
    meaning = (
        f"The sign of the product of two gradients of the same class is nearly always positive here (at least "
        f"{number(min(signs), 2)}), as in most runs. It says nothing then; the cosine does."
    )
    return Advice("note", "The sign is saturated", meaning)


def many_zeros(history: History) -> Advice | None:
    """A good part of the samples has no gradient at all."""
    share = history[-1].zero_fraction if history else 0.0
    if not share >= MANY_ZEROS:
        return None
    meaning = f"{percent(share)} of the samples have a gradient of exactly zero and are left out of all numbers."
    action = "Their loss cannot fall any more in this precision, or their path through the network is dead."
    return Advice("watch", "Samples without a gradient", meaning, action)


def large_errors(history: History) -> Advice | None:
    """The standard error is too large to see changes that matter."""
    errors = [r.cosine.within_se for r in history if math.isfinite(r.cosine.within_se)]
    if not errors or sorted(errors)[len(errors) // 2] <= LARGE_ERROR:
        return None
    middle = sorted(errors)[len(errors) // 2]
    meaning = f"The standard error of the stiffness within classes is {number(middle)}: small changes are noise."
    return Advice("watch", "The probe is small", meaning, "Four times the probe_size halves the error.")


def classes_missing(history: History) -> Advice | None:
    """Classes of which no two samples are in the probe."""
    missing = history.probe.num_classes - len(within_by_class(history, -1)) if history else 0
    if missing <= 0:
        return None
    meaning = f"{missing} of {history.probe.num_classes} classes have no pair of samples with a gradient: no value."
    return Advice("note", "Some classes are not measured", meaning, "A larger probe_size holds two of each.")


def high_cost(history: History) -> Advice | None:
    """Measuring takes a good part of the time."""
    share = overhead(history)
    if not share > HIGH_COST:
        return None
    wanted = math.ceil(share / 0.05)
    meaning = f"Readings took {percent(share)} of the time since training began."
    action = f"Measure less often: every_n_epochs={wanted} would bring it to about 5 %. Or a smaller probe_size."
    return Advice("note", "Measuring is dear here", meaning, action)


def generalisation_gap(history: History) -> Advice | None:
    """Training samples help other training samples more than they help validation samples."""
    known = [(reading.signals.get("train_within", math.nan), reading) for reading in history]
    pairs = [(train, reading) for train, reading in known if math.isfinite(train + reading.cosine.within)]
    if len(pairs) < 3:
        return None
    (train, last), error = pairs[-1], pairs[-1][1].cosine.within_se
    gap = train - last.cosine.within
    if not gap > max(CLEARLY * error if math.isfinite(error) else 0.0, 0.02):
        return None
    meaning = (
        f"A step on a training sample helps other training samples of the class ({number(train)}) more than validation "
        f"samples of it ({number(last.cosine.within)})."
    )
    return Advice("watch", "What is learned does not carry over fully", meaning, "Regularise, augment, or stop.")


def batches_are_noisy(history: History) -> Advice | None:
    """Readings of training batches are of other samples each time."""
    if history.probe.mode != "batch":
        return None
    meaning = (
        "Each reading is of other samples, in training mode. Curves are noisier than with a probe, changes have "
        "larger errors, and nothing is known of single samples."
    )
    return Advice("note", "Measured on training batches", meaning)


def no_change(history: History) -> Advice | None:
    """Stiffness is near its peak at the end: nothing to worry about from this side."""
    top = peak(history)
    if top is None or len(history) < 3 or top is history[-1] or _fell(history, list(history).index(top)):
        return None
    last = history[-1].cosine.within
    meaning = (
        f"Stiffness within classes is {number(last)} at the end and was {number(top.cosine.within)} at its best, at "
        f"epoch {short(top.epoch)}: no clear drop in {count_epochs(history[-1].epoch)}."
    )
    return Advice("good", "No sign of memorising", meaning) if math.isfinite(last) else None


def _fell(history: History, start: int) -> bool:
    """Whether stiffness has clearly dropped since a reading while the loss has fallen."""
    if start == len(history) - 1:
        return False
    first, last, change = history[start], history[-1], history.within_change(start, len(history) - 1)
    error = 0.0 if math.isnan(change.se) else change.se
    drop = -change.value
    return drop > max(CLEARLY * error, WORTH_TELLING * first.cosine.within) and last.loss < first.loss


def _is_unseen(name: str) -> bool:
    return any(part in name.lower() for part in ("val", "test"))


RULES: Final[tuple[Callable[[History], Advice | None], ...]] = (
    too_few,
    memorising,
    unseen_worse,
    generalisation_gap,
    lumped,
    weak_class,
    many_zeros,
    large_errors,
    still_learning,
    no_change,
    shared,
    usual_start,
    classes_missing,
    high_cost,
    batches_are_noisy,
)
"""What is asked of every history."""
