"""Histories to draw, and what tests ask of a picture."""

import math
from dataclasses import replace

import torch
from matplotlib.figure import Figure

from lightning_stiffness.figures import Curves
from lightning_stiffness.functional.detail import pair_detail
from lightning_stiffness.history import History
from tests.toy_history import Toy, overfitting_history, toy_history

NAMES = tuple(f"class {label}" for label in range(100))
HISTORIES = {
    "ten classes": overfitting_history(8),
    "a hundred classes": overfitting_history(4, Toy(100, 2, class_names=NAMES)),
    "missing classes": overfitting_history(4, Toy(10, missing=(0, 7))),
    "one reading": overfitting_history(0),
    "two readings": overfitting_history(1),
    "nothing defined": toy_history([math.nan] * 3, toy=Toy(missing=(0, 1, 2))),
}
EPOCHS = tuple(map(float, range(9)))
CURVES = Curves(EPOCHS, (2.0,) * 9, (1.5,) * 9, (0.1, 0.5, 0.8, 0.9, 0.875, 0.8, 0.7, 0.6, 0.5))


def rendered(figure):
    """The figure after drawing, which is when matplotlib finds most faults."""
    assert isinstance(figure, Figure)
    figure.draw_without_rendering()
    return figure


def texts(axes):
    return [text.get_text() for text in axes.texts]


def panels_of(figure):
    return {axes.get_title(loc="left"): axes for axes in figure.axes if axes.get_title(loc="left")}


SMALL = Toy(3, 6)


def detailed_history(epochs=4, toy=SMALL, slope=-1.0):
    """A toy history with details: cosines fall with the distance of the inputs, from 0.5 at distance 0."""
    history = overfitting_history(epochs, toy)
    targets = torch.tensor(history.probe.strata)
    generator = torch.Generator().manual_seed(0)
    distances = torch.rand(len(targets), len(targets), generator=generator, dtype=torch.float64)
    pairs = (0.5 + slope * distances).fill_diagonal_(math.nan)
    details = [pair_detail(pairs / (1 + i), targets, targets, toy.num_classes, distances) for i in range(len(history))]
    readings = [replace(reading, detail=detail) for reading, detail in zip(history, details, strict=True)]
    return History(history.probe, readings)
