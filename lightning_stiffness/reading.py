"""One measurement, and what it was made on: plain values, which a history collects."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor

from lightning_stiffness.errors import StiffnessError
from lightning_stiffness.functional.detail import Detail
from lightning_stiffness.functional.distance import DistanceCurve
from lightning_stiffness.functional.jackknife import Stiffness


@dataclass(frozen=True)
class ProbeSummary:
    """What a reader of a history has to know about its probe.

    Attributes:
        mode: which pairs were compared: two training samples, two validation samples, or one of each ("cross"); two
            samples of a training batch, other ones for each reading ("batch").
        num_classes: number of classes c.
        strata: the class of each jackknife replicate; in cross mode those of the columns are offset by ``num_classes``.
            Empty where each reading has other samples: then there are no replicates.
        label_entropy: entropy of the probe's labels in nats, the lowest cross-entropy that a prediction without regard
            to the input can reach; nan when it is not known.
        class_names: one name for each class, or None.
        superclasses: the super-class of each class, or None.
        ids: position in the dataset of each sample of the rows, None where it is not known; empty without a probe.
    """

    mode: Literal["train", "val", "cross", "batch"]
    num_classes: int
    strata: tuple[int, ...]
    label_entropy: float
    class_names: tuple[str, ...] | None = None
    superclasses: tuple[int, ...] | None = None
    ids: tuple[int | None, ...] = ()

    def __post_init__(self) -> None:
        if self.mode not in ("train", "val", "cross", "batch"):
            raise StiffnessError(f"mode must be 'train', 'val', 'cross' or 'batch', but is {self.mode!r}.")
        for name in ("class_names", "superclasses"):
            entries = getattr(self, name)
            if entries is not None and len(entries) != self.num_classes:
                raise StiffnessError(
                    f"{name} must have one entry for each of the {self.num_classes} classes, but has {len(entries)}."
                )


@dataclass(frozen=True, eq=False)
class Reading:
    """One measurement.

    Attributes:
        step: optimizer steps taken before it.
        epoch: epochs completed before it, with fraction.
        cosine: stiffness as the mean cosine of two gradients, in [-1, 1].
        sign: stiffness as the mean sign of the product of two gradients, in [-1, 1].
        loss: mean loss of the probe.
        loss_se: standard error of that mean.
        zero_fraction: share of the probe's samples whose gradient is exactly zero (they are left out), in [0, 1].
        seconds: time the measurement took.
        signals: further numbers that were measured then, by their names, such as those of a leave-one-out estimate.
        logged: what the run itself had logged by then (validation loss, accuracy ...), by its names.
        elapsed: seconds of training until then, the measurements included, over all parts of an interrupted run; nan
            where it is not known.
        detail: what it says of single samples and of the spread of the pairs; None for readings of batches.
    """

    step: int
    epoch: float
    cosine: Stiffness
    sign: Stiffness
    loss: float
    loss_se: float
    zero_fraction: float
    seconds: float
    signals: dict[str, float] = field(default_factory=dict)
    logged: dict[str, float] = field(default_factory=dict)
    elapsed: float = math.nan
    detail: Detail | None = None

    def metrics(self) -> dict[str, float]:
        """Return the numbers worth a curve: stiffness within and between classes with errors, loss, cost, signals.

        A plain name is the cosine, ``_sign`` marks the sign. A value without any counted pair is nan.

        Example:
            >>> import torch
        >>> flat = Stiffness(torch.eye(2), 1.0, 0.1, 0.0, 0.1, torch.ones(4), torch.zeros(4))
            >>> Reading(10, 1.0, flat, flat, 2.2, 0.1, 0.0, 0.5).metrics()["within"]
            1.0
        """
        return {
            "within": self.cosine.within,
            "within_se": self.cosine.within_se,
            "between": self.cosine.between,
            "between_se": self.cosine.between_se,
            "within_sign": self.sign.within,
            "within_sign_se": self.sign.within_se,
            "between_sign": self.sign.between,
            "between_sign_se": self.sign.between_se,
            "zero_fraction": self.zero_fraction,
            "loss": self.loss,
            "seconds": self.seconds,
            **self.signals,
        }


def probe_of_record(record: Mapping[str, Any]) -> ProbeSummary:
    """The probe that `dataclasses.asdict` gave this record of.

    Raises:
        StiffnessError: It describes none.
    """
    fields: dict[str, Any] = {key: tuple(entry) if isinstance(entry, list) else entry for key, entry in record.items()}
    try:
        return ProbeSummary(**fields)
    except TypeError as error:
        raise StiffnessError(f"This does not describe a probe: {error}.") from error


def reading_of_record(record: Mapping[str, Any]) -> Reading:
    """The reading that `dataclasses.asdict` gave this record of, with tensors on the CPU.

    Raises:
        StiffnessError: It describes none.
    """
    try:
        fields = {**record, "cosine": _stiffness(record["cosine"]), "sign": _stiffness(record["sign"])}
        return Reading(**{**fields, "detail": _detail(record.get("detail"))})
    except (AttributeError, KeyError, TypeError) as error:
        raise StiffnessError(f"This is no record of a reading: {error!r}.") from error


def _stiffness(record: Mapping[str, Any]) -> Stiffness:
    return Stiffness(**_on_cpu(record))


def _detail(record: Mapping[str, Any] | None) -> Detail | None:
    if not isinstance(record, Mapping):  # none; a file has nan for it
        return None
    curve = record.get("distance")
    distance = DistanceCurve(**_on_cpu(curve)) if isinstance(curve, Mapping) else None
    classes = {name: record[name].cpu().long() for name in ("rival_class", "opposed_class")}
    return Detail(**{**_on_cpu(record), **classes, "distance": distance})


def _on_cpu(record: Mapping[str, Any]) -> dict[str, Any]:
    return {key: entry.cpu() if isinstance(entry, Tensor) else entry for key, entry in record.items()}
