"""Histories made of numbers, for tests of what reads them."""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from lightning_stiffness.functional.jackknife import Stiffness, jackknife_error
from lightning_stiffness.history import History, ProbeSummary, Reading
from lightning_stiffness.stopping import Criterion


@dataclass(frozen=True)
class Toy:
    """How a toy history is laid out; every class has `per_class` samples, and `missing` classes have no pairs."""

    num_classes: int = 3
    per_class: int = 4
    checks_per_epoch: float = 1.0
    standard_error: float = 0.01
    missing: tuple[int, ...] = ()
    class_names: tuple[str, ...] | None = None
    superclasses: tuple[int, ...] | None = None


def toy_probe(toy: Toy = Toy()) -> ProbeSummary:
    strata = tuple(label for label in range(toy.num_classes) for _ in range(toy.per_class))
    return ProbeSummary("train", toy.num_classes, strata, math.log(toy.num_classes), toy.class_names, toy.superclasses)


@functools.cache  # most histories of most tests are the same few
def toy_stiffness(within: float, between: float, seed: int, toy: Toy = Toy()) -> Stiffness:
    """A stiffness with these summaries; replicates scatter around them independently for each seed."""
    generator = torch.Generator().manual_seed(seed)
    strata = torch.tensor(toy_probe(toy).strata)
    matrix = between + 0.02 * torch.randn(toy.num_classes, toy.num_classes, generator=generator, dtype=torch.float64)
    matrix = ((matrix + matrix.T) / 2).fill_diagonal_(within)
    for label in toy.missing:
        matrix[label, :] = matrix[:, label] = math.nan
    scatter = torch.randn(2, len(strata), generator=generator, dtype=torch.float64)
    scatter *= toy.standard_error / torch.stack([jackknife_error(row, strata) for row in scatter])[:, None]
    return Stiffness(
        matrix, within, toy.standard_error, between, toy.standard_error, within + scatter[0], between + scatter[1]
    )


def toy_reading(check: int, within: float, loss: float = 1.0, toy: Toy = Toy()) -> Reading:
    """Reading number `check` of a run with ten steps between two readings."""
    between = -within / 5
    cosine = toy_stiffness(within, between, 2 * check, toy)
    sign = toy_stiffness(math.tanh(3 * within), math.tanh(3 * between), 2 * check + 1, toy)
    return Reading(10 * check, check / toy.checks_per_epoch, cosine, sign, loss, 0.02, 0.0, 0.5)


def toy_history(within: Sequence[float], losses: Sequence[float] | None = None, toy: Toy = Toy()) -> History:
    """A history with these values; without losses the loss is at chance level first and far below it ever after."""
    chance = math.log(toy.num_classes)
    losses = [chance, *[chance / 2] * len(within)][: len(within)] if losses is None else losses
    readings = [toy_reading(i, w, loss, toy) for i, (w, loss) in enumerate(zip(within, losses, strict=True))]
    return History(toy_probe(toy), readings)


def overfitting_history(epochs: int = 20, toy: Toy = Toy(num_classes=10)) -> History:
    """A run as they mostly go: stiffness is highest after an epoch and falls from there on, the loss all the time."""
    checks = torch.arange(int(epochs * toy.checks_per_epoch) + 1, dtype=torch.float64) / toy.checks_per_epoch
    within = (0.3 + 0.5 * checks) * torch.exp(-checks / 3) + 0.25
    losses = math.log(toy.num_classes) * torch.exp(-checks / 5)
    return toy_history(within.tolist(), losses.tolist(), toy)


def spreading_history(
    within: Sequence[float], losses: Sequence[float] | None = None, toy: Toy = Toy(), spread: float = 0.2
) -> History:
    """A toy history whose mean losses have this error, relative to themselves: that of a probe with uneven losses."""
    plain = toy_history(within, losses, toy)
    return History(plain.probe, [replace(reading, loss_se=spread * reading.loss) for reading in plain])


def measured_history(
    signals: Mapping[str, Sequence[float]] | None = None,
    logged: Mapping[str, Sequence[float]] | None = None,
    losses: Sequence[float] | None = None,
    toy: Toy = Toy(),
) -> History:
    """A history with these signals and logged metrics, from a reading before training on; None: lacking there."""
    columns = {**(signals or {}), **(logged or {})}
    count = len(losses) if losses is not None else len(next(iter(columns.values())))
    losses = [1.0] * count if losses is None else losses
    readings = [
        replace(toy_reading(i, 0.5, loss, toy), signals=_row(signals, i), logged=_row(logged, i))
        for i, loss in enumerate(losses)
    ]
    return History(toy_probe(toy), readings)


def _row(columns: Mapping[str, Sequence[float]] | None, index: int) -> dict[str, float]:
    return {name: values[index] for name, values in (columns or {}).items() if values[index] is not None}


# Everything that a criterion can read, as functions of the epochs since learning began, from a net that over-fits. Low
# is bad for the two stiffnesses, the alignment and the accuracy.
OVERFITTING: dict[str, Callable[[float], float]] = {
    "within": lambda t: (0.3 + 0.5 * t) * math.exp(-t / 3) + 0.15,
    "train_within": lambda t: (0.3 + 0.5 * t) * math.exp(-t / 3) + 0.25 + 0.001 * t,
    "loss": lambda t: 2.3 * math.exp(-t / 5),
    "leave_one_out_loss": lambda t: 2.3 * math.exp(-t / 4) + 0.08 * t,
    "leave_one_out_train_loss": lambda t: 2.3 * math.exp(-t / 5),
    "leave_one_out_error": lambda t: 0.8 * math.exp(-t / 2) + 0.01 * t,
    "leave_one_out_doubt": lambda t: 0.9 * math.exp(-t / 2) + 0.01 * t,
    "gradient_disparity": lambda t: abs(t - 4) + 1,
    "evidence": lambda t: 0.2 * t - 1.5,
    "prediction_changes": lambda t: math.exp(-t / 2) + 0.02 * t,
    "gradient_weight_alignment": lambda t: t * math.exp(-t / 4),
    "val_loss": lambda t: 2.3 * math.exp(-t / 4) + 0.08 * t,
    "val_acc": lambda t: 0.9 - 0.8 * math.exp(-t / 2) - 0.01 * t,
}


def complete_history(epochs: int, toy: Toy = Toy(num_classes=10), plateau: float = 0.0, speed: float = 1.0) -> History:
    """An over-fitting run with every signal and metric that criteria read; at chance level up to `plateau` epochs."""
    readings = []
    for check in range(int(epochs * toy.checks_per_epoch) + 1):
        since = speed * max(check / toy.checks_per_epoch - plateau, 0.0)
        numbers = {name: curve(since) for name, curve in OVERFITTING.items()}
        within, loss = numbers.pop("within"), numbers.pop("loss")
        logged = {name: numbers.pop(name) for name in ("val_loss", "val_acc")}
        known = {name: number if check else math.nan for name, number in numbers.items()}
        known["train_within"] = numbers["train_within"]
        reading = replace(toy_reading(check, within, loss, toy), loss_se=0.2 * loss, signals=known)
        readings.append(replace(reading, logged=logged if check else {}))
    return History(replace(toy_probe(toy), mode="cross"), readings)


def stops(rule: Criterion, history: History) -> list[float]:
    """Epochs of the readings at which the rule says stop."""
    decisions = [rule(history[: count + 1]) for count in range(len(history))]
    return [decision.epoch for decision in decisions if decision.stop]
