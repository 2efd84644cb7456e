"""The pictures that a run shows in its loggers while it goes on."""

from collections.abc import Callable
from typing import Final

from matplotlib.figure import Figure

from lightning_stiffness.figures.matrices import class_matrix
from lightning_stiffness.history import History


def latest_class_matrix(history: History) -> Figure:
    """The class matrix of the last reading."""
    return class_matrix(
        history[-1].cosine.matrix, history.probe.class_names, f"Stiffness of the classes, epoch {history[-1].epoch:.4g}"
    )


DASHBOARD: Final[dict[str, Callable[[History], Figure | None]]] = {"class_matrix": latest_class_matrix}
"""Each picture by its tag; None where a history does not have what it shows."""
