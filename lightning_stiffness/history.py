"""What was measured in a run: the only state that is checkpointed, and what everything downstream reads."""

import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, final, overload

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_stiffness import json_lines
from lightning_stiffness.errors import StiffnessError
from lightning_stiffness.functional.jackknife import Stiffness, jackknife_error
from lightning_stiffness.reading import ProbeSummary, Reading, probe_of_record, reading_of_record

__all__ = ["FORMAT", "VERSION", "Change", "History", "ProbeSummary", "Reading"]

FORMAT = "lightning-stiffness history"
VERSION = 2  # 1 had no details of readings


@dataclass(frozen=True)
class Change:
    """Change of a statistic between two readings of the same probe, with its paired standard error (nan: unknown)."""

    value: float
    se: float


@final
class History(Sequence[Reading]):
    """The readings of one run in the order of their steps.

    Args:
        probe: what they were measured on.
        readings: readings to begin with.

    Example:
        >>> flat = Stiffness(torch.eye(2), 1.0, 0.1, 0.0, 0.1, torch.ones(4), torch.zeros(4))
        >>> history = History(ProbeSummary("train", 2, (0, 0, 1, 1), 0.69))
        >>> history.append(Reading(10, 1.0, flat, flat, 0.7, 0.1, 0.0, 0.5))
        >>> history.append(Reading(20, 2.0, flat, flat, 0.6, 0.1, 0.0, 0.5))
        >>> history.series("loss").tolist()
        [0.7, 0.6]
        >>> history
        History(2 readings of a train probe with 2 classes, epoch 1 to 2)
    """

    def __init__(self, probe: ProbeSummary, readings: Iterable[Reading] = ()) -> None:
        self.probe = probe
        self._readings: list[Reading] = []
        self._changes: dict[tuple[int, int], Change] = {}
        for reading in readings:
            self.append(reading)

    def __len__(self) -> int:
        return len(self._readings)

    @overload
    def __getitem__(self, index: int) -> Reading: ...
    @overload
    def __getitem__(self, index: slice) -> "History": ...
    def __getitem__(self, index: int | slice) -> "Reading | History":
        if isinstance(index, slice):
            return History(self.probe, self._readings[index])
        return self._readings[index]

    def __repr__(self) -> str:
        span = f", epoch {self[0].epoch:g} to {self[-1].epoch:g}" if self else ""
        return f"History({len(self)} readings of a {self.probe.mode} probe with {self.probe.num_classes} classes{span})"

    def append(self, reading: Reading) -> None:
        """Add a reading.

        Raises:
            StiffnessError: it does not come after the last reading, or does not have the shape of its probe.
        """
        if self and reading.step <= self[-1].step:
            raise StiffnessError(
                f"A reading must be of a later step than the last one, {self[-1].step}, but is of step {reading.step}. "
                "On resuming, go on from history.truncated(step)."
            )
        for stiffness in (reading.cosine, reading.sign):
            _check_fits(stiffness, self.probe)
        self._readings.append(reading)

    def truncated(self, step: int) -> "History":
        """Return the history up to and with ``step``: what a run that is taken up again from there knows."""
        return History(self.probe, (reading for reading in self if reading.step <= step))

    def series(self, name: str) -> Float[Tensor, " r"]:
        """Return one number of each of the r readings; nan where a reading does not have it.

        Args:
            name: as in `Reading.metrics`, or "epoch" or "step", or the name of a metric that the run logged itself.

        Raises:
            StiffnessError: no reading has a number of that name.
        """
        rows = [{**r.logged, "step": r.step, "epoch": r.epoch, **r.metrics()} for r in self]
        if rows and not any(name in row for row in rows):
            known = dict.fromkeys(key for row in rows for key in row)
            raise StiffnessError(f"There is no series {name!r}; choose one of {', '.join(known)}.")
        return torch.tensor([row.get(name, math.nan) for row in rows], dtype=torch.float64)

    def within_change(self, start: int, stop: int) -> Change:
        """Return by how much the within-class cosine stiffness changed from reading ``start`` to reading ``stop``.

        Both are measured on the same samples, so the standard error is that of the paired difference (see
        `jackknife_error`): about half of what two independent probes would give. Readings of batches share no samples
        that are known: theirs is the error of the difference of two independent values, which is too large rather than
        too small where some samples came twice.

        Example:
            >>> before = Stiffness(torch.eye(2), 0.9, 0.1, 0.0, 0.1, torch.tensor([0.8, 1.0, 0.9, 0.9]), torch.zeros(4))
            >>> after = Stiffness(torch.eye(2), 0.7, 0.1, 0.0, 0.1, torch.tensor([0.7, 0.7, 0.7, 0.7]), torch.zeros(4))
            >>> readings = [Reading(i, i, s, s, 0.7, 0.1, 0.0, 0.5) for i, s in enumerate((before, after))]
            >>> change = History(ProbeSummary("train", 2, (0, 0, 1, 1), 0.69), readings).within_change(0, 1)
            >>> f"{change.value:.2f} +- {change.se:.2f}"
            '-0.20 +- 0.10'
        """
        pair = range(len(self))[start], range(len(self))[stop]
        if pair not in self._changes:  # rules ask for the same ones again at each reading
            self._changes[pair] = self._within_change(*(self[index].cosine for index in pair))
        return self._changes[pair]

    def _within_change(self, first: Stiffness, last: Stiffness) -> Change:
        if not self.probe.strata:
            return Change(last.within - first.within, math.hypot(first.within_se, last.within_se))
        change = last.within_replicates.double() - first.within_replicates.double()
        error = jackknife_error(change, torch.tensor(self.probe.strata, device=change.device))
        return Change(last.within - first.within, error.item())

    def plot(self, decision_epoch: float | None = None) -> tuple[Any, Any]:
        """Draw stiffness within and between classes over the epochs, as `figures.within_and_between` does.

        Args:
            decision_epoch: where to mark a stop.

        Returns:
            The matplotlib Figure and its Axes, as `plot` of a torchmetrics metric does.

        Raises:
            StiffnessError: there is no reading.
        """
        from lightning_stiffness.figures import within_and_between  # noqa: PLC0415 (who only reads needs no matplotlib)

        figure = within_and_between(self, decision_epoch)
        return figure, figure.axes[0]

    def state_dict(self) -> dict[str, Any]:
        """Return the history as plain numbers, strings and tensors, as ``torch.load(weights_only=True)`` accepts."""
        return {"version": VERSION, "probe": asdict(self.probe), "readings": [asdict(reading) for reading in self]}

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> "History":
        """Return the history that gave this `state_dict`, bit for bit, on the CPU; StiffnessError if none did."""
        _check_version(state.get("version"))
        return cls(
            probe_of_record(state.get("probe", {})), [reading_of_record(record) for record in state.get("readings", ())]
        )

    def save(self, path: "str | os.PathLike[str]") -> None:
        """Write the whole history; who reads ``path`` meanwhile, or after a crash, finds the old file or the new."""
        json_lines.replace(Path(path), b"".join([_header(self.probe), *(json_lines.encode(asdict(r)) for r in self)]))

    def append_line(self, path: "str | os.PathLike[str]") -> None:
        """Add the last reading to a file that has all the others; it is on the disk when this returns.

        A file that is missing, empty or ends in a torn line is written anew. A run that is taken up again from an
        earlier step calls `save` once first, since its file may be ahead of it.
        """
        if json_lines.is_extensible(Path(path)):
            json_lines.extend(Path(path), json_lines.encode(asdict(self[-1])))
        else:
            self.save(path)

    @classmethod
    def load(cls, path: "str | os.PathLike[str]") -> "History":
        """Return the history written to ``path``; a torn last line, left by a crash, is not counted.

        Arrays come back in single precision, numbers as they were.

        Raises:
            StiffnessError: it is no history, of a newer version, or damaged before its last line (the line is named).
            FileNotFoundError: there is no such file.
        """
        header, *records = json_lines.read(Path(path)) or [None]
        history = cls(_probe_of_header(header, path))
        for number, record in enumerate(records, start=2):
            with _naming(f"{path}, line {number}"):
                history.append(reading_of_record(record))
        return history


def _check_fits(stiffness: Stiffness, probe: ProbeSummary) -> None:
    classes, replicates = (probe.num_classes, probe.num_classes), (len(probe.strata),)
    found = tuple(stiffness.matrix.shape), tuple(stiffness.within_replicates.shape)
    if found != (classes, replicates):
        raise StiffnessError(
            f"A reading of this probe must have a class matrix of shape {classes} and replicates of shape {replicates}"
            f", but has {found[0]} and {found[1]}. A history belongs to one probe: begin a new one."
        )


def _check_version(version: object) -> None:
    if not isinstance(version, int) or version > VERSION:
        raise StiffnessError(
            f"A history must be of version {VERSION} or older, but this is of {version!r}. Update lightning-stiffness."
        )


def _header(probe: ProbeSummary) -> bytes:
    known = {key: entry for key, entry in asdict(probe).items() if entry is not None}
    return json_lines.encode({"format": FORMAT, "version": VERSION, "probe": known})


def _probe_of_header(header: Any, path: "str | os.PathLike[str]") -> ProbeSummary:
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise StiffnessError(f"{path}, line 1: a history must begin with its header, but this file does not.")
    with _naming(f"{path}, line 1"):
        _check_version(header.get("version"))
        return probe_of_record(header.get("probe", {}))


@contextmanager
def _naming(place: str) -> Iterator[None]:
    try:
        yield
    except StiffnessError as error:
        raise StiffnessError(f"{place}: {error}") from error
