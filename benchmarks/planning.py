"""What a run measures, what it leaves out, and how long it will take: known before it starts."""

import statistics
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from cells import Cell, Outcome
from models import ALL_MODELS
from peers import METHODS
from sessions import Patience

START_SECONDS = 2.0  # of a process, two being started at once
THREADED = ("floor", "ours", "class_cosine")
THREADED_SAMPLES = 500
Find = Callable[[Cell], Outcome | None]


@dataclass(frozen=True)
class Selection:
    """What the command line asks for; further numbers of threads are measured for our own methods at one n only."""

    models: tuple[str, ...]
    methods: tuple[str, ...]
    samples: tuple[int, ...]
    class_samples: tuple[int, ...]
    threads: tuple[int, ...]

    def cells(self) -> list[Cell]:
        """All cells, model by model, the smallest n first."""
        found = []
        for model in self.models:
            found += [Cell(model, method, n, self.threads[0]) for n in sorted(self.samples) for method in self.methods]
            if "class_cosine" in self.methods:
                further = sorted(set(self.class_samples) - set(self.samples))
                found += [
                    Cell(model, method, n, self.threads[0]) for n in further for method in ("floor", "class_cosine")
                ]
            one = max((n for n in self.samples if n <= THREADED_SAMPLES), default=min(self.samples))
            found += [
                Cell(model, method, one, count)
                for count in self.threads[1:]
                for method in self.methods
                if method in THREADED
            ]
        return found


@dataclass(frozen=True)
class Forecast:
    """Expected seconds of a call, from what is known so far.

    Attributes:
        find: The outcomes of finished cells.
        seconds_per_sample: Of a training step of each model, as its fixture was made.
    """

    find: Find
    seconds_per_sample: Mapping[str, float]

    def seconds(self, cell: Cell) -> float:
        """At least linear in n from the largest smaller n that was measured; else a typical multiple of the floor."""
        known = self.smaller(cell)
        if known is not None and known[1].is_measured:
            return statistics.median(known[1].seconds) * cell.samples / known[0].samples
        method = METHODS[cell.method]
        factor = ALL_MODELS[cell.model].peer_factor if method.kind == "peer" else 1.0
        return self.seconds_per_sample[cell.model] * cell.samples * method.typical * factor

    def smaller(self, cell: Cell) -> tuple[Cell, Outcome] | None:
        """The finished cell of the largest smaller n."""
        for n in sorted(self._sizes(cell), reverse=True):
            smaller = Cell(cell.model, cell.method, n, cell.threads)
            outcome = self.find(smaller)
            if outcome is not None and outcome.status != "skipped":
                return smaller, outcome
        return None

    @staticmethod
    def _sizes(cell: Cell) -> Iterable[int]:
        return (n for n in KNOWN_SIZES if n < cell.samples)

    def settled(self, cell: Cell, patience: Patience) -> Outcome | None:
        """The outcome that needs no measurement: it failed with fewer samples, or it would take too long."""
        known = self.smaller(cell)
        if known is not None and not known[1].is_measured and METHODS[cell.method].kind == "peer":
            return Outcome(known[1].status, f"as with n = {known[0].samples}: {known[1].reason}")
        expected = self.seconds(cell)
        if expected <= patience.longest_of(cell):
            return None
        source = "a typical multiple of the floor" if known is None else f"its time with n = {known[0].samples}"
        reason = f"about {expected:.0f} s or more expected from {source}; see --patience"
        return Outcome("skipped", reason, expected_seconds=expected if known else None)

    def total(self, cells: Iterable[Cell], patience: Patience) -> float:
        """Seconds that the cells will take with their processes, repeats and checks."""
        return sum(self.cost(cell, patience) for cell in cells)

    def cost(self, cell: Cell, patience: Patience) -> float:
        """Seconds of one cell."""
        if self.settled(cell, patience) is not None:
            return 0.0
        call = self.seconds(cell)
        calls = 1 + patience.wanted(cell, call)
        explained = (
            1.5 * self.seconds_per_sample[cell.model] * min(cell.samples, 500) if cell.method == "bound" else 0.0
        )
        return START_SECONDS + calls * max(call, 0.15) + explained


KNOWN_SIZES = tuple(sorted({2**k for k in range(4, 15)} | {100, 200, 500, 1000, 2000, 5000, 10_000}))
