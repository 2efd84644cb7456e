"""The pictures that a run shows in its loggers while it goes on."""

from collections.abc import Callable
from typing import Final

from matplotlib.figure import Figure

from lightning_stiffness.figures.classes import latest_class_matrix, within_of_each_class
from lightning_stiffness.figures.pairs import has_distances, pair_cosines, stiffness_against_distance
from lightning_stiffness.history import History


def _pair_cosines(history: History) -> Figure | None:
    return None if history[-1].detail is None else pair_cosines(history)


def _distance(history: History) -> Figure | None:
    return stiffness_against_distance(history) if has_distances(history) else None


DASHBOARD: Final[dict[str, Callable[[History], Figure | None]]] = {
    "class_matrix": latest_class_matrix,
    "within_of_each_class": within_of_each_class,
    "pair_cosines": _pair_cosines,
    "stiffness_against_distance": _distance,
}
"""Each picture by its tag; None where a history does not have what it shows."""
