"""What the page says of the balance of classes: figures of the readings of a balancer, with their words."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from lightning_stiffness.balance import BalanceReading
from lightning_stiffness.balance_words import (
    HEADINGS,
    absorption_caption,
    class_rows,
    in_words,
    matrices_caption,
    recall_caption,
    sacrificed_caption,
)
from lightning_stiffness.report.balance_charts import (
    MOST_BARS,
    level_chart,
    raster_chart,
    recall_chart,
    share_chart,
    takers_chart,
)
from lightning_stiffness.report.figures import Figure
from lightning_stiffness.report.words import count, duration, short

MOST_ROWS: Final = 200


@dataclass(frozen=True)
class BalanceSection:
    """All that the page says of the balance of classes.

    Attributes:
        described: what was measured, in one sentence.
        lead: where it is measured, and when.
        parts: figures that stand side by side, with the words below them.
        headings: of the table of the classes.
        rows: its rows, the smallest class first.
        note: what is left out of it; empty if nothing.
    """

    described: str
    lead: str
    parts: tuple[tuple[tuple[Figure, ...], str], ...]
    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str

    @property
    def figures(self) -> tuple[Figure, ...]:
        """All of them."""
        return tuple(figure for figures, _ in self.parts for figure in figures)


def balance_section(readings: Sequence[BalanceReading]) -> BalanceSection | None:
    """What the page says; None without a reading."""
    if not readings:
        return None
    last = readings[-1]
    total, rows = len(last.counts), class_rows(last)
    spent = sum(reading.seconds for reading in readings)
    samples = f"{int(last.measured.sum()):,} training samples"
    described = f"{count(len(readings), 'reading')} of {count(total, 'class')}, epoch {short(last.epoch)} at the end."
    lead = (
        f"Measured {count(len(readings), 'time')} in the run ({duration(spent)} in all) on {samples}, an equal share "
        f"of each class, small classes all they have. The charts show the last time, epoch {short(last.epoch)}."
    )
    left = total - MOST_ROWS
    return BalanceSection(
        described,
        lead,
        tuple(
            part for part in (_fighting(last), _absorbed(last), _recalls(readings), _sacrificed(readings)) if part[0]
        ),
        HEADINGS,
        tuple(tuple(map(in_words, row)) for row in rows[:MOST_ROWS]),
        f"{left:,} larger classes are left out." if left > 0 else "",
    )


Part = tuple[tuple[Figure, ...], str]


def _fighting(reading: BalanceReading) -> Part:
    levels = {
        "classifier": ("At the classifier", reading.classifier),
        "features": ("In the layers below", reading.features),
    }
    figures = tuple(
        Figure(f"balance-{key}", title, "", level_chart(reading, matrix, title), "half", 320, is_square=True)
        for key, (title, matrix) in levels.items()
        if matrix is not None
    )
    return figures, matrices_caption(reading)


def _absorbed(reading: BalanceReading) -> Part:
    if not reading.small or reading.absorption is None:
        return (), ""
    shown = reading.small[-MOST_BARS:]
    title = f"Who takes the small classes' probability{_left_out(len(shown), len(reading.small))}"
    figure = Figure("balance-takers", title, "", takers_chart(reading, shown), "full", 70 + 26 * len(shown))
    return (figure,), absorption_caption(reading)


def _recalls(readings: Sequence[BalanceReading]) -> Part:
    reading = next((one for one in reversed(readings) if one.recall is not None), None)
    if reading is None:
        return (), ""
    total = len(reading.counts)
    height = 90 + 19 * total if total <= MOST_BARS else 320
    title = f"Recall of each class, epoch {short(reading.epoch)}"
    return (Figure("balance-recall", title, "", recall_chart(reading), "full", height),), recall_caption(reading)


def _sacrificed(readings: Sequence[BalanceReading]) -> Part:
    reading = readings[-1]
    if not reading.small:
        return (), ""
    shown = reading.small[-MOST_BARS:]
    height = max(200, 90 + 19 * len(shown))
    title = f"Which ones{_left_out(len(shown), len(reading.small))}"
    return (
        Figure(
            "balance-sacrificed",
            "Small classes that are sacrificed",
            "",
            share_chart(readings),
            "half",
            min(height, 320),
        ),
        Figure("balance-raster", title, "", raster_chart(readings, shown), "half", height),
    ), sacrificed_caption(reading)


def _left_out(shown: int, total: int) -> str:
    return f", the {shown} smallest of {total}" if shown < total else ""
