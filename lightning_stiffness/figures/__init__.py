"""One function per picture: a history or a class matrix becomes a matplotlib Figure, which no global state knows."""

from lightning_stiffness.figures.classes import latest_class_matrix, within_of_each_class
from lightning_stiffness.figures.curves import Curves, training_summary, within_and_between
from lightning_stiffness.figures.matrices import class_matrices, class_matrix
from lightning_stiffness.figures.pairs import pair_cosines, stiffness_against_distance
from lightning_stiffness.figures.stopping import shadow_summary, stopping_signal

__all__ = [
    "Curves",
    "class_matrices",
    "class_matrix",
    "latest_class_matrix",
    "pair_cosines",
    "shadow_summary",
    "stiffness_against_distance",
    "stopping_signal",
    "training_summary",
    "within_and_between",
    "within_of_each_class",
]
