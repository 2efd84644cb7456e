"""What a ClassGroupingBalancer has measured of its run: plain values, and the file that they are kept in."""

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

from jaxtyping import Float
from torch import Tensor

from lightning_stiffness import json_lines
from lightning_stiffness.errors import StiffnessError

FORMAT: Final = "lightning-stiffness balance"
VERSION: Final = 1
BALANCE: Final = "balancing.jsonl"
"""The name of the file, beside the logs of a run."""
SMALL: Final = 0.75  # of the mean class
MOST_CLASSES: Final = 256  # beyond these, only the last reading keeps its matrices: a million entries each
MATRICES: Final = ("classifier", "features", "absorption")


@dataclass(frozen=True, eq=False)
class BalanceReading:
    """How a network treats its classes, measured once in eval mode, on a class-balanced probe of its training data.

    Attributes:
        step: Optimizer steps taken before it.
        epoch: Epochs completed before it, with fraction.
        counts: Samples of each class in the training data; where nobody knows, of those drawn so far.
        measured: Samples of each class in the probe.
        groups: The group of each class (`grouping.class_groups`): classes that fight at the classifier beyond chance.
        order: All classes, those that merge early side by side.
        reason: Why it is these groups, or none, in a sentence.
        agreement: Adjusted Rand index with the groups of the reading before; nan for the first one.
        lost: The probability that the samples of each class give to other classes, mean, in [0, 1]: of validation
            samples where there are recalls, else of the probe.
        progress: By how much the loss of each class falls in the mean training step (`functional.class_progress`).
        progress_se: Its standard error.
        classifier: Class matrix at the classifier, [c, c]: negative where two classes fight; None where it was dropped.
        features: Class matrix of all other parameters: positive where two classes share what is being learnt; None
            where there are none, or where it was dropped.
        absorption: Who takes the probability of whom, [c, c] (`balancing_statistics.absorption`): in row a and column b
            the share of what a loses that b gets beyond an even split, of the same samples as `lost`; None where it was
            dropped.
        recall: Share of the validation samples of each class that are recognised, in [0, 1], nan for a class without
            any; None where no validation has run since the reading before.
        natural_recall: The same, had the network's logits been moved to the natural class frequencies.
        class_names: One for each class, or None.
        seconds: Time that the measurement took.
        elapsed: Seconds of training until then, over all parts of an interrupted run.
    """

    step: int
    epoch: float
    counts: Float[Tensor, "c"]
    measured: Float[Tensor, "c"]
    groups: tuple[int, ...]
    order: tuple[int, ...]
    reason: str
    agreement: float
    lost: Float[Tensor, "c"]
    progress: Float[Tensor, "c"]
    progress_se: Float[Tensor, "c"]
    classifier: Float[Tensor, "c c"] | None = None
    features: Float[Tensor, "c c"] | None = None
    absorption: Float[Tensor, "c c"] | None = None
    recall: Float[Tensor, "c"] | None = None
    natural_recall: Float[Tensor, "c"] | None = None
    class_names: tuple[str, ...] | None = None
    seconds: float = 0.0
    elapsed: float = math.nan

    @property
    def small(self) -> tuple[int, ...]:
        """Classes with fewer samples than three quarters of the mean class, the largest first."""
        few, counts = (self.counts < SMALL * self.counts.mean()).nonzero().flatten().tolist(), self.counts.tolist()
        return tuple(sorted(few, key=lambda label: (-counts[label], label)))

    @property
    def sacrificed(self) -> tuple[int, ...]:
        """The small classes whose loss the mean training step raises."""
        progress = self.progress.tolist()
        return tuple(label for label in self.small if progress[label] < 0)

    @property
    def clearly_sacrificed(self) -> tuple[int, ...]:
        """Those of them whose progress is below 0 by more than two standard errors."""
        return tuple(k for k in self.sacrificed if float(self.progress[k]) < -2 * float(self.progress_se[k]))

    @property
    def sacrificed_share(self) -> float:
        """Share of the small classes that are sacrificed, of those where it is known; nan where it is of none."""
        return self._share(self.sacrificed)

    @property
    def clearly_sacrificed_share(self) -> float:
        """The same of those that are clearly sacrificed."""
        return self._share(self.clearly_sacrificed)

    def _share(self, labels: Sequence[int]) -> float:
        known = [label for label in self.small if not math.isnan(float(self.progress[label]))]
        return len(labels) / len(known) if known else math.nan

    @property
    def members(self) -> tuple[tuple[int, ...], ...]:
        """The groups of two and more classes, each in the order of the pictures."""
        found: dict[int, list[int]] = {group: [] for group in self.groups}
        for label in self.order:
            found[self.groups[label]].append(label)
        return tuple(tuple(group) for group in found.values() if len(group) > 1)

    def metrics(self) -> dict[str, float]:
        """The numbers worth a curve: sacrificed share, classes in groups, agreement, recalls where they are known."""
        known = {
            "sacrificed": self.sacrificed_share,
            "clearly_sacrificed": self.clearly_sacrificed_share,
            "classes_in_groups": float(sum(map(len, self.members))),
            "group_agreement": self.agreement,
        }
        for name, recall in (("", self.recall), ("_at_natural_frequencies", self.natural_recall)):
            if recall is not None:
                known[f"balanced_accuracy{name}"] = float(recall.nanmean())
                known[f"worst_recall{name}"] = float(recall.nan_to_num(math.inf).min())
        return {name: value for name, value in known.items() if math.isfinite(value)}


def extended(readings: Sequence[BalanceReading], reading: BalanceReading) -> list[BalanceReading]:
    """The readings with one more; with very many classes, the earlier ones without their matrices."""
    if len(reading.counts) <= MOST_CLASSES:
        return [*readings, reading]
    return [*(replace(past, classifier=None, features=None, absorption=None) for past in readings), reading]


def reading_of_record(record: Mapping[str, Any]) -> BalanceReading:
    """The reading that `dataclasses.asdict` gave this record of, with tensors on the CPU.

    Raises:
        StiffnessError: It describes none.
    """
    try:
        known = {key: _entry(value) for key, value in record.items()}
        optional = (*MATRICES, "recall", "natural_recall", "class_names")  # a file has nan for what is not there
        absent = {key: None for key in optional if isinstance(known.get(key), float)}
        return BalanceReading(**{**known, **absent})
    except TypeError as error:
        raise StiffnessError(f"This is no record of a reading of balance: {error}.") from error


def records_of(readings: Iterable[BalanceReading]) -> list[dict[str, Any]]:
    """The readings as plain numbers, strings and tensors, as checkpoints hold them."""
    return [asdict(reading) for reading in readings]


def save_readings(path: "str | os.PathLike[str]", readings: Sequence[BalanceReading]) -> None:
    """Writes all readings; who reads `path` meanwhile, or after a crash, finds the old file or the new.

    Raises:
        OSError: It cannot be written.
    """
    header = json_lines.encode({"format": FORMAT, "version": VERSION})
    json_lines.replace(Path(path), b"".join([header, *map(json_lines.encode, records_of(readings))]))


def is_balance(path: Path) -> bool:
    """Whether a file says in its first line that it holds such readings."""
    return json_lines.format_of(path) == FORMAT


def load_readings(path: "str | os.PathLike[str]") -> list[BalanceReading]:
    """The readings that were written to `path`, in single precision.

    Raises:
        StiffnessError: It is no file of such readings, of a newer version, or damaged.
        FileNotFoundError: There is no such file.
    """
    header, *records = json_lines.read(Path(path)) or [None]
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise StiffnessError(f"{path}, line 1: readings of balance must begin with their header, but this does not.")
    if not isinstance(header.get("version"), int) or header["version"] > VERSION:
        raise StiffnessError(
            f"{path} must be of version {VERSION} or older, but is of {header.get('version')!r}. Update "
            "lightning-stiffness."
        )
    try:
        return [reading_of_record(record) for record in records]
    except StiffnessError as error:
        raise StiffnessError(f"{path}: {error}") from error


def _entry(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.cpu()
    return tuple(value) if isinstance(value, list) else value
