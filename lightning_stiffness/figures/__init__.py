"""One function per picture: a history, a class matrix or a balancer's readings become a matplotlib Figure."""

from lightning_stiffness.figures.balancing import (
    absorbed_classes,
    fighting_classes,
    recall_of_each_class,
    sacrificed_classes,
)
from lightning_stiffness.figures.classes import latest_class_matrix, within_of_each_class
from lightning_stiffness.figures.curves import Curves, training_summary, within_and_between
from lightning_stiffness.figures.matrices import class_matrices, class_matrix
from lightning_stiffness.figures.pairs import pair_cosines, stiffness_against_distance
from lightning_stiffness.figures.stopping import shadow_summary, stopping_signal

__all__ = [
    "Curves",
    "absorbed_classes",
    "class_matrices",
    "class_matrix",
    "fighting_classes",
    "latest_class_matrix",
    "pair_cosines",
    "recall_of_each_class",
    "sacrificed_classes",
    "shadow_summary",
    "stiffness_against_distance",
    "stopping_signal",
    "training_summary",
    "within_and_between",
    "within_of_each_class",
]
