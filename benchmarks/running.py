"""Runs cells: what is finished is kept, what is hopeless is left out, and the rest is measured group by group."""

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from cells import Cell, CellOrder, Outcome, Store
from planning import Forecast
from sessions import Group, Patience, in_groups
from tqdm import tqdm

BAR = "{l_bar}{bar}| {n:.0f}/{total:.0f} s expected, {elapsed} so far {postfix}"


def tell(text: str) -> None:
    """A line above the progress bar."""
    tqdm.write(text, file=sys.stderr)


@dataclass(frozen=True)
class Runner:
    """Measures cells.

    Attributes:
        store: Finished cells.
        forecast: What cells will take.
        limits: How often and how long cells are measured.
        order_of: How a cell is measured.
    """

    store: Store
    forecast: Forecast
    limits: Patience
    order_of: Callable[[Cell], CellOrder]

    def announce(self, cells: Sequence[Cell]) -> None:
        """Prints how many cells there are and how long they will take."""
        missing = self._missing(cells)
        settled = [self.forecast.settled(cell, self.limits) for cell in missing]
        left_out = sum(outcome is not None and outcome.status == "skipped" for outcome in settled)
        minutes = self.forecast.total(missing, self.limits) / 60
        tell(
            f"{len(cells)} cells, {len(cells) - len(missing)} of them finished before, {left_out} left out as too "
            f"long; about {minutes:.1f} minutes to go"
        )

    def run(self, cells: Sequence[Cell]) -> Iterator[tuple[Cell, Outcome]]:
        """Measures what is missing and keeps it; all cells with their outcomes, a group at a time."""
        expected = self.forecast.total(self._missing(cells), self.limits)
        with tqdm(total=round(expected, 1), bar_format=BAR, file=sys.stderr, disable=None) as bar:
            for group in in_groups(cells):
                missing = self._missing(group)
                planned = self.forecast.total(missing, self.limits)
                for cell, outcome in self._measure(missing, bar).items():
                    self.store.keep(cell, outcome)
                bar.update(planned)
                for cell in group:
                    yield cell, self.store.find(cell) or Outcome("raises", "the measurement ended without an outcome")

    def _missing(self, cells: Sequence[Cell]) -> list[Cell]:
        return [cell for cell in cells if self.store.find(cell) is None]

    def _measure(self, missing: Sequence[Cell], bar: Any) -> dict[Cell, Outcome]:
        """The missing cells of a group; the floor is measured anew beside them."""
        if not missing:
            return {}
        first = missing[0]
        floor = Cell(first.model, "floor", first.samples, first.threads)
        wanted = [floor, *(cell for cell in missing if cell != floor)]
        settled = {cell: outcome for cell in wanted if (outcome := self.forecast.settled(cell, self.limits))}
        orders = [self.order_of(cell) for cell in wanted if cell not in settled]
        label = f"{first.model} n={first.samples}" + (f" threads={first.threads}" if first.threads > 1 else "")
        done = Group(self.limits).run(orders, lambda text: bar.set_postfix_str(f"{label}: {text}"))
        beside = done.get(floor)
        if beside is not None:
            settled = {
                cell: replace(
                    outcome,
                    floor_seconds=beside.floor_seconds,
                    floor_processor_seconds=beside.floor_processor_seconds,
                )
                for cell, outcome in settled.items()
            }
        return settled | done
