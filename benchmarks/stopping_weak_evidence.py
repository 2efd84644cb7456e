"""What each idea makes of a recorded training: the four numbers of the leave-one-out signal, found in another way."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from stopping_weak_training import WINDOW
from torch import Tensor
from torch.nn.functional import cross_entropy

from lightning_stiffness.functional import Exposure, leave_one_out_scores, own_share

NUMBERS = ("leave_one_out_loss", "leave_one_out_error", "leave_one_out_doubt", "leave_one_out_train_loss")
Evidence = list[tuple[float, float, float, float]]  # the numbers, one entry a reading


@dataclass(frozen=True, eq=False)
class Record:
    """A recorded training, see `stopping_weak_training.train`."""

    logits: Mapping[str, Tensor]
    targets: Mapping[str, Tensor]
    ages: Tensor
    readings: list[dict[str, Any]]

    @property
    def samples(self) -> int:
        """Number of training samples."""
        return len(self.targets["train"])


def unseen(logits: Tensor, targets: Tensor, train_loss: float) -> tuple[float, float, float, float]:
    """The numbers of samples that count as unseen, as if each were its own leave-one-out estimate."""
    logits = logits.double()
    loss = float(cross_entropy(logits, targets))
    error = float((logits.argmax(1) != targets).double().mean())
    doubt = 1 - float(logits.softmax(1).gather(1, targets[:, None]).mean())
    return loss, error, doubt, train_loss


def loss_of(logits: Tensor, targets: Tensor) -> float:
    return float(cross_entropy(logits.double(), targets))


# Damping


@dataclass(frozen=True, eq=False)
class Interval:
    """What happened between two readings to the tracked samples, and the kernel at the second."""

    before: Tensor
    logits: Tensor
    targets: Tensor
    residual: Tensor
    curvature: Tensor
    time: float
    steps: int
    kernel: Tensor
    twins: Tensor


def intervals(record: Record, entrywise: bool = False) -> list[Interval]:
    """The intervals between the readings; with Adam's step sizes of entries in the kernel, where they were recorded.

    At the end of a schedule, where the learning rate is 0, there are none.
    """
    found = []
    for before, now in pairwise(record.readings):
        n = len(now["logits"])
        whole = now["kernel"].double()
        kernel = whole[:n, :n]
        twins = (whole[:n, n:] + whole[n:, :n]) / 2 if len(whole) > n else kernel
        if entrywise and now["entrywise"] is not None and now["entrywise"].isfinite().all():
            precise = now["entrywise"].double()
            twins = precise if twins is kernel else twins * float(precise.trace() / kernel.trace())
            kernel = precise
        changes = (now[name] - before[name] for name in ("residual", "curvature", "time", "step"))
        found.append(Interval(before["logits"], now["logits"], now["targets"], *changes, kernel, twins))
    return found


def trace(part: Interval) -> Tensor:
    """One curvature for all logits of a sample, as `own_share` has it: 1 - sum p^2 [n, 1]."""
    return part.curvature[:, None].clamp_min(0)


def classwise(part: Interval) -> Tensor:
    """The diagonal p (1 - p) of each sample's curvature [n, c]."""
    first, last = part.before.softmax(1), part.logits.softmax(1)
    return part.time * (first * (1 - first) + last * (1 - last)) / 2


def followed(parts: list[Interval], samples: int, curvature: Callable[[Interval], Tensor]) -> list[Tensor]:
    """What each sample's own updates have done to its logits, step by step: [n, c] after each interval.

    The difference between training with and without sample i, d, obeys N d' = k_i r_i - K_-i W_-i d, where r_i is its
    residual and W the curvatures: what was put there is undone at the pace of the kernel. Each interval is one step of
    the backward Euler rule, with the kernel and the curvatures of its own. One such step over the whole training, with
    the last kernel and one curvature for all logits, is `own_share`.
    """
    n = len(parts[0].residual)
    identity = torch.eye(n, dtype=torch.float64)
    change = torch.zeros(1, n, n, dtype=torch.float64)  # for each logit, of sample j (row) by sample i (column)
    own = []
    for part in parts:
        weights = curvature(part).T[:, None, :] / n
        damping = torch.linalg.inv(identity + part.kernel * weights)
        put = part.residual.T / samples
        moved = damping @ (change + part.twins * put[:, None, :])
        mine = moved.diagonal(dim1=1, dim2=2) / damping.diagonal(dim1=1, dim2=2).clamp_min(1e-6)
        change = moved + (identity - damping) * mine[:, None, :]  # nobody holds against a sample's own share of d
        own.append(mine.T)
    return own


def part_of(part: Interval, n: int) -> Interval:
    """The first n samples alone; they stand for all."""
    rows = {name: getattr(part, name)[:n] for name in ("before", "logits", "targets", "residual", "curvature")}
    kernel = part.kernel[:n, :n]
    return replace(part, **rows, kernel=kernel, twins=kernel if part.twins is part.kernel else part.twins[:n, :n])


def dynamic_shifts(
    parts: list[Interval], samples: int, curvature: Callable[[Interval], Tensor] = classwise
) -> list[Tensor]:
    """`followed`, extrapolated to all samples from those of all tracked and of half of them."""
    n = len(parts[0].residual)
    whole = followed(parts, samples, curvature)
    half = followed([part_of(part, n // 2) for part in parts], samples, curvature)
    shifts = []
    for all_, few in zip(whole, half, strict=True):
        decline = math.log(max(float(all_[: n // 2].norm()), 1e-9) / max(float(few.norm()), 1e-9))
        shifts.append(all_ * math.exp(min(decline, 0.0) * math.log2(max(samples / n, 1.0))))
    return shifts


def present_shifts(parts: list[Interval], samples: int) -> list[Tensor]:
    """What is taken from the logits now: `own_share` times the residuals."""
    residual, curvature, time, shifts = 0.0, 0.0, 0.0, []
    for part in parts:
        residual, curvature, time = residual + part.residual, curvature + part.curvature, time + part.time
        twins = None if part.twins is part.kernel else part.twins
        share = own_share(part.kernel, curvature, time, max(samples, len(part.kernel)), twins)
        shifts.append(share[:, None] * residual / samples)
    return shifts


def sharpness(part: Interval) -> float:
    """The largest eigenvalue of the loss' Gauss-Newton matrix on the tracked samples times the size of a step."""
    weights = (part.curvature / part.time).clamp_min(1e-6).sqrt()
    top = torch.linalg.eigvalsh(part.kernel * weights[:, None] * weights).amax() / len(weights)
    return float(top) * part.time / max(part.steps, 1)


def scored(parts: list[Interval], shifts: list[Tensor]) -> Evidence:
    """The numbers of logits from which the shifts are taken; nan before training."""
    found: Evidence = [(math.nan,) * 4]
    for part, shift in zip(parts, shifts, strict=True):
        n = len(shift)
        exposure = Exposure(shift * n, part.curvature, part.time)
        scores = leave_one_out_scores(part.logits, part.targets, exposure, torch.ones(n).double(), n)
        found.append((scores.loss, scores.error, scores.doubt, scores.train_loss))
    return found


# Withheld samples


def withheld(record: Record, least_age: int = 1, pooled: float = 0.0) -> Evidence:
    """Samples while they are left out, beside those that are not; moving averages that keep the share ``pooled``."""
    found, averages = [], None
    logits, targets = record.logits["train"], record.targets["train"]
    for now, ages in zip(logits, record.ages, strict=True):
        out = ages >= least_age
        numbers = unseen(now[out], targets[out], loss_of(now[ages == 0], targets[ages == 0])) if out.any() else None
        if numbers is None:
            found.append((math.nan,) * 4)
            continue
        new = torch.tensor(numbers, dtype=torch.float64)
        averages = new if averages is None else pooled * averages + (1 - pooled) * new
        found.append(tuple(averages.tolist()))
    return found


def rises(record: Record) -> list[float]:
    """By how much more the losses of samples rise that are left out for the whole window than those of all others."""
    targets = record.targets["train"]
    losses = torch.stack([cross_entropy(now.double(), targets, reduction="none") for now in record.logits["train"]])
    found = []
    for place, ages in enumerate(record.ages):
        out = ages == WINDOW
        if place < WINDOW or not out.any():
            found.append(math.nan)
            continue
        change = losses[place] - losses[place - WINDOW]
        found.append(float(change[out].mean() - change[ages == 0].mean()))
    return found


def predicted_rises(parts: list[Interval], samples: int) -> list[float]:
    """The same as the present estimate predicts it, of the updates of the last window alone."""
    found, curvature, time = [math.nan], 0.0, 0.0
    for place, part in enumerate(parts):
        curvature, time = curvature + part.curvature, time + part.time
        if place + 1 < WINDOW:
            found.append(math.nan)
            continue
        last = parts[place + 1 - WINDOW : place + 1]
        held, span = sum(each.curvature for each in last), sum(each.time for each in last)
        twins = None if part.twins is part.kernel else part.twins
        share = own_share(part.kernel, held, span, max(samples, len(part.kernel)), twins)
        shift = share[:, None] * sum(each.residual for each in last) / samples
        found.append(loss_of(part.logits - shift, part.targets) - loss_of(part.logits, part.targets))
    return found


def calibrated_shifts(record: Record, parts: list[Interval], keep: float = 0.9) -> list[Tensor]:
    """The present shifts times measured over predicted rise of the loss of withheld samples."""
    shifts, measured, predicted = [], 0.0, 0.0
    pairs = list(zip(rises(record), predicted_rises(parts, record.samples), strict=True))[1:]
    for shift, (seen, said) in zip(present_shifts(parts, record.samples), pairs, strict=True):
        if math.isfinite(seen) and math.isfinite(said):
            measured, predicted = keep * measured + seen, keep * predicted + said
        factor = min(max(measured / predicted, 0.1), 2.0) if predicted > 0 else 1.0
        shifts.append(factor * shift)
    return shifts


# Perturbed copies


def perturbed(record: Record, name: str) -> Evidence:
    """Perturbed copies of training samples, beside the samples as they are."""
    targets = record.targets[name]
    plain = record.logits["train"][:, : len(targets)]
    pairs = zip(record.logits[name], plain, strict=True)
    return [unseen(changed, targets, loss_of(same, targets)) for changed, same in pairs]


def extra(record: Record, share: float) -> Evidence:
    """Really unseen samples with labels as wrong as those of training, as many as this share of those."""
    count = max(2, round(share * record.samples))
    targets = record.targets["extra"][:count]
    pairs = zip(record.logits["extra"], record.logits["train"], strict=True)
    return [unseen(now[:count], targets, loss_of(train, record.targets["train"])) for now, train in pairs]


def capped(record: Record, parts: list[Interval]) -> list[Tensor]:
    """The present shifts, but no more than all updates together have done to a sample's logits."""
    start, found = record.readings[0]["logits"], []
    for shift, part in zip(present_shifts(parts, record.samples), parts, strict=True):
        most = (part.logits - start).norm(dim=1) / shift.norm(dim=1).clamp_min(1e-30)
        found.append(shift * most.clamp_max(1)[:, None])
    return found


def by_sharpness(parts: list[Interval], samples: int) -> list[Tensor]:
    """The present shifts over 1 + `sharpness`."""
    pairs = zip(present_shifts(parts, samples), parts, strict=True)
    return [shift / (1 + sharpness(part)) for shift, part in pairs]


Idea = Callable[[Record], Evidence]
Shifts = Callable[[list[Interval], int], list[Tensor]]


def damped(shifts: Shifts, strength: float = 1.0, entrywise: bool = False) -> Idea:
    """Scores of the logits without these shifts, times a strength."""

    def idea(record: Record) -> Evidence:
        parts = intervals(record, entrywise)
        return scored(parts, [strength * shift for shift in shifts(parts, record.samples)])

    return idea


def by_trace(parts: list[Interval], samples: int) -> list[Tensor]:
    """Undone step by step, with one curvature for all logits of a sample."""
    return dynamic_shifts(parts, samples, trace)


def by_class(parts: list[Interval], samples: int) -> list[Tensor]:
    """Undone step by step, with a curvature p (1 - p) for each logit."""
    return dynamic_shifts(parts, samples, classwise)


def with_record(shifts: Callable[[Record, list[Interval]], list[Tensor]]) -> Idea:
    """The same for shifts that need more than the intervals."""

    def idea(record: Record) -> Evidence:
        parts = intervals(record)
        return scored(parts, shifts(record, parts))

    return idea


PRESENT = "the signal as it is"
IDEAS: dict[str, Idea] = {
    PRESENT: damped(present_shifts),
    "half of it": damped(present_shifts, 0.5),
    "undone step by step": damped(by_trace),
    "undone step by step, curvature by class": damped(by_class),
    "half of that": damped(by_class, 0.5),
    "Adam's steps entry by entry": damped(present_shifts, entrywise=True),
    "both": damped(by_class, entrywise=True),
    "over 1 + sharpness of a step": damped(by_sharpness),
    "capped by what all updates did": with_record(capped),
    "2 % withheld in turn": withheld,
    "the same, averaged over 5 epochs": lambda record: withheld(record, 1, 0.8),
    "withheld for 3 epochs, over 10": lambda record: withheld(record, 3, 0.9),
    "the signal, scaled by what withholding does": with_record(calibrated_shifts),
    "copies with noise 0.5": lambda record: perturbed(record, "noise 0.5"),
    "copies with noise 1": lambda record: perturbed(record, "noise 1"),
    "shifted copies": lambda record: perturbed(record, "shifted"),
    "mixed copies": lambda record: perturbed(record, "mixed"),
    "for comparison: 2 % more samples": lambda record: extra(record, 0.02),
    "for comparison: 10 % more samples": lambda record: extra(record, 0.1),
}
