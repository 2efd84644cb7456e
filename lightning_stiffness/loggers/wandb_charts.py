"""What Weights & Biases draws from a history: lines for its charts, and histograms."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final

from torch import Tensor, linspace

from lightning_stiffness.history import History, Reading
from lightning_stiffness.loggers.class_tables import names_of

MOST_POINTS: Final = 150
MOST_LINES: Final = 20


@dataclass
class Lines:
    """Lines of one chart; points that are not finite are left out, and lines without any point.

    Attributes:
        title: of the chart.
        axis: what x is.
        names: one for each line.
        xs: of each line.
        ys: of each line.
    """

    title: str
    axis: str
    names: list[str] = field(default_factory=list)
    xs: list[list[float]] = field(default_factory=list)
    ys: list[list[float]] = field(default_factory=list)

    def add(self, name: str, xs: Sequence[float], ys: Sequence[float]) -> None:
        """One more line."""
        points = [(x, y) for x, y in zip(xs, ys, strict=True) if math.isfinite(y)]
        if points:
            self.names.append(name)
            self.xs.append([x for x, _ in points])
            self.ys.append([y for _, y in points])


def stiffness_lines(history: History) -> Lines:
    """Stiffness within and between classes, each with the limits of a band of 2 standard errors."""
    shown = spread(history)
    epochs = [reading.epoch for reading in shown]
    lines = Lines("Stiffness within and between classes, with 2 standard errors", "epoch")
    for name in ("within", "between"):
        rows = [reading.metrics() for reading in shown]
        for suffix, factor in (("", 0), (" + 2 se", 2), (" - 2 se", -2)):
            values = [row[name] + (factor * row[f"{name}_se"] if factor else 0.0) for row in rows]
            lines.add(name + suffix, epochs, values)
    return lines


def class_lines(history: History) -> Lines:
    """Stiffness within each class; of many classes those that are lowest and highest at the end."""
    shown, names = spread(history), names_of(history.probe)
    last = shown[-1].cosine.matrix.diagonal().tolist()
    order = sorted((label for label, value in enumerate(last) if math.isfinite(value)), key=lambda label: last[label])
    is_part = len(order) > MOST_LINES
    chosen = [*order[: MOST_LINES // 2], *order[-MOST_LINES // 2 :]] if is_part else sorted(order)
    which = f", the {MOST_LINES // 2} lowest and highest" if is_part else ""
    lines = Lines(f"Stiffness within each class{which}", "epoch")
    diagonals = [reading.cosine.matrix.diagonal().tolist() for reading in shown]
    for label in chosen:
        lines.add(names[label], [reading.epoch for reading in shown], [values[label] for values in diagonals])
    return lines


def pair_lines(reading: Reading) -> Lines | None:
    """How the cosines of the pairs spread: the share of pairs in each bin; None for readings without details."""
    lines = Lines(f"Cosines of the pairs, epoch {reading.epoch:.4g}", "cosine of two gradients")
    for name, (counts, edges) in pair_histograms(reading).items():
        centres = [(low + high) / 2 for low, high in pairwise(edges)]
        lines.add(f"{name} classes", centres, [count / max(sum(counts), 1.0) for count in counts])
    return lines if lines.names else None


def pair_histograms(reading: Reading) -> dict[str, tuple[list[float], list[float]]]:
    """Counts and edges of the histograms of pair cosines within and between classes; nothing where there are none."""
    if reading.detail is None:
        return {}
    parts = {"within": reading.detail.within_counts, "between": reading.detail.between_counts}
    return {name: (counts.tolist(), _edges(counts)) for name, counts in parts.items() if counts.sum() > 0}


def spread(history: History, most: int = MOST_POINTS) -> list[Reading]:
    """All readings, or so many at equal distances, with the first and the last."""
    if len(history) <= most:
        return list(history)
    return [history[round(place * (len(history) - 1) / (most - 1))] for place in range(most)]


def _edges(counts: Tensor) -> list[float]:
    edges: list[float] = linspace(-1, 1, len(counts) + 1).tolist()
    return edges
