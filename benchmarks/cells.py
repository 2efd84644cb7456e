"""Cells of the benchmark: what is measured, what comes of it, and the folder that keeps finished ones."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

REFERENCE_SAMPLES = 128

Status = Literal["measured", "raises", "timeout", "out of memory", "not installed", "skipped"]


@dataclass(frozen=True, order=True)
class Cell:
    """A model, a method, a number of samples, a number of threads."""

    model: str
    method: str
    samples: int
    threads: int = 1

    @property
    def name(self) -> str:
        """A name for files."""
        return f"{self.model}-{self.method}-n{self.samples}-t{self.threads}"


@dataclass(frozen=True)
class FixtureOrder:
    """What `gram_cell.py prepare` makes: a trained model, its probe and the reference K, in one file."""

    model: str
    samples: int
    references: int
    steps: int
    seed: int
    archives: tuple[str, ...]
    threads: int
    path: str


@dataclass(frozen=True)
class CellOrder:
    """What `gram_cell.py measure` measures.

    `memory_limit` bounds the data of the process, `extra_limit` (0: none) its address space beyond what it has when the
    measurement starts; both in bytes. `budget` is that of our engine, in bytes; 0 for its default.
    """

    cell: Cell
    fixture: str
    device: str = "cpu"
    memory_limit: int = 0
    extra_limit: int = 0
    budget: int = 0


@dataclass(frozen=True)
class Outcome:
    """What came of a cell. Seconds have one entry a call; numbers are None where nothing was measured.

    Attributes:
        status: Whether there is a time, or why not.
        reason: In words.
        seconds: Wall-clock time of each call after the first; of the first where it is the only one.
        processor_seconds: The same by the clock of the processor.
        first_seconds: Wall-clock time of the first call.
        first_processor_seconds: The same by the clock of the processor.
        extra_megabytes: Highest resident memory during the calls above what the process held before them.
        later_megabytes: The same without the first call, in which our engine plans and checks itself.
        relative_error: Distance from the reference in the Frobenius norm, over the reference's.
        largest_error: Largest |K_ij - reference| / (|g_i| |g_j|); of class cosines the largest difference.
        sign_agreement: Share of pairs with the reference's sign.
        ties: Pairs that are left out there because no single precision could tell their sign.
        product_flops: Floating point operations of the products, as the engine explains them (bound only).
        expected_seconds: What a skipped call would at least take.
        floor_seconds: The floor's seconds in the same session.
        floor_processor_seconds: The same by the clock of the processor.
    """

    status: Status
    reason: str = ""
    seconds: tuple[float, ...] = ()
    processor_seconds: tuple[float, ...] = ()
    first_seconds: float | None = None
    first_processor_seconds: float | None = None
    extra_megabytes: float | None = None
    later_megabytes: float | None = None
    relative_error: float | None = None
    largest_error: float | None = None
    sign_agreement: float | None = None
    ties: int | None = None
    product_flops: float | None = None
    expected_seconds: float | None = None
    floor_seconds: tuple[float, ...] = ()
    floor_processor_seconds: tuple[float, ...] = ()

    @property
    def is_measured(self) -> bool:
        """Whether there is a time."""
        return self.status == "measured"


def outcome_of(values: dict[str, Any]) -> Outcome:
    """An outcome from JSON."""
    known = {entry.name for entry in fields(Outcome)}
    return Outcome(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items() if k in known})


@dataclass(frozen=True)
class Store:
    """One JSON file a finished cell; one that was measured under another `fingerprint` of its cell does not count."""

    folder: Path
    fingerprint: Callable[[Cell], str]
    fresh: bool = False
    _written: set[str] = field(default_factory=set)

    def _path(self, cell: Cell) -> Path:
        return self.folder / f"{cell.name}.json"

    def find(self, cell: Cell) -> Outcome | None:
        """The outcome of a finished cell."""
        path = self._path(cell)
        if not path.exists() or (self.fresh and cell.name not in self._written):
            return None
        contents = json.loads(path.read_text())
        return outcome_of(contents["outcome"]) if contents["fingerprint"] == self.fingerprint(cell) else None

    def keep(self, cell: Cell, outcome: Outcome) -> None:
        """Writes a finished cell."""
        self.folder.mkdir(parents=True, exist_ok=True)
        contents = {"cell": asdict(cell), "fingerprint": self.fingerprint(cell), "outcome": asdict(outcome)}
        temporary = self._path(cell).with_suffix(".part")
        temporary.write_text(json.dumps(contents, indent=1))
        temporary.replace(self._path(cell))
        self._written.add(cell.name)


def digest(*texts: str) -> str:
    """A short fingerprint of texts."""
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:16]
