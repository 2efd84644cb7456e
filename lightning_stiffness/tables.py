"""A history as a table in the terminal."""

import math
from collections.abc import Sequence

from rich.table import Table

from lightning_stiffness.balance import BalanceReading
from lightning_stiffness.balance_words import HEADINGS, class_rows, in_words
from lightning_stiffness.history import History, Reading

MOST_ROWS = 12
MOST_CLASSES = 30


def readings_table(history: History, most_rows: int = MOST_ROWS, verdict: str = "") -> Table:
    """The readings of a run as a table for `rich.print`: first, last and some in between, at equal distances.

    Values are means with twice their standard error. Cost is the time that readings took, up to then, as a share of
    the training.

    Args:
        history: what to show.
        most_rows: rows of the table, at least 2.
        verdict: a sentence to write below it.

    Source: ours.

    Example:
        >>> from lightning_stiffness.history import ProbeSummary
        >>> readings_table(History(ProbeSummary("train", 2, (0, 0, 1, 1), 0.69))).row_count
        0
    """
    shown = _spread(len(history), max(2, most_rows))
    left_out = len(history) - len(shown)
    title = f"Stiffness, {history.probe.mode} probe" if history.probe.mode != "batch" else "Stiffness, training batches"
    notes = [f"{left_out} readings between are not shown."] if left_out else []
    caption = " ".join([*notes, verdict]).strip()
    table = Table(title=title, title_justify="left", caption=caption or None, caption_justify="left")
    for heading in ("epoch", "within classes", "between classes", "loss of the probe", "cost"):
        table.add_column(heading, justify="right")
    spent = 0.0
    for index, reading in enumerate(history):
        spent += reading.seconds
        if index in shown:
            table.add_row(*_cells(reading, spent))
    return table


def classes_table(readings: Sequence[BalanceReading], most_rows: int = MOST_CLASSES) -> Table:
    """How a balancer's last reading sees each class, as a table for `rich.print`: the smallest of many classes.

    Args:
        readings: Of the balancer, at least one.
        most_rows: Rows of the table.
    """
    rows, reading = class_rows(readings[-1]), readings[-1]
    left_out = f"{len(rows) - most_rows:,} larger classes are not shown." if len(rows) > most_rows else None
    title = f"Classes, {len(readings)} readings of a balancer, the last at epoch {reading.epoch:.4g}"
    table = Table(title=title, title_justify="left", caption=left_out, caption_justify="left")
    for heading in HEADINGS:
        table.add_column(heading, justify="left" if heading in ("class", "taken by") else "right")
    for row in rows[:most_rows]:
        table.add_row(*map(in_words, row))
    return table


def _spread(count: int, most: int) -> set[int]:
    if count <= most:
        return set(range(count))
    return {round(row * (count - 1) / (most - 1)) for row in range(most)}


def _cells(reading: Reading, spent: float) -> Sequence[str]:
    cosine = reading.cosine
    known = reading.elapsed > spent
    return (
        f"{reading.epoch:.4g}",
        _with_error(cosine.within, cosine.within_se),
        _with_error(cosine.between, cosine.between_se),
        f"{reading.loss:.4g}",
        f"{100 * spent / reading.elapsed:.1f} %" if known else f"{spent:.2f} s",
    )


def _with_error(value: float, error: float) -> str:
    if math.isnan(value):
        return "-"
    return f"{value:.3f}" if math.isnan(error) else f"{value:.3f} ± {2 * error:.3f}"
