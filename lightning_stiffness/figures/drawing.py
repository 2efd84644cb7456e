"""What the pictures share: colours, style, curves of stiffness with their bands, names beside the ends of lines."""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import Any, ParamSpec

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lightning_stiffness.errors import StiffnessError
from lightning_stiffness.history import History, Reading

# Okabe and Ito's palette: the pairs used together differ for every kind of colour vision, and in grey.
BLUE, ORANGE, GREEN, INK, GREY = "#0072B2", "#D55E00", "#009E73", "#333333", "#737373"
STYLE: dict[Any, Any] = {
    "axes.titlesize": 11.0,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "hatch.color": "white",
    **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), INK),
}
STIFFNESS_COLORS = {"within": BLUE, "between": ORANGE}
COSINE = "mean cosine of two gradients"
LINE = 0.075  # of the height of an axes
Arguments = ParamSpec("Arguments")


def styled(draw: Callable[Arguments, Figure]) -> Callable[Arguments, Figure]:
    """A picture in the style of all of them, whatever matplotlib is set to; its settings stay as they are."""

    @wraps(draw)
    def drawn(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Figure:
        with matplotlib.rc_context(STYLE):
            return draw(*args, **kwargs)

    return drawn


def plot_axes(right: float = 0.15) -> tuple[Figure, Axes]:
    """A figure with axes for curves, with so many inches on the right of them.

    Its margins are fixed: a layout engine draws everything twice, which is dear where pictures come all the time.
    """
    left, width, bottom, height, top = 0.75, 5.1, 0.55, 2.9, 0.45
    whole = (left + width + right, bottom + height + top)
    figure = Figure(figsize=whole)
    return figure, figure.add_axes((left / whole[0], bottom / whole[1], width / whole[0], height / whole[1]))


@dataclass(frozen=True)
class Line:
    """What is written beside the end of a line."""

    name: str
    color: str
    end: float


def draw_stiffness(axes: Axes, history: History, full: History | None = None) -> list[Line]:
    """Draws both curves of a history and, pale, how those of a run that was not stopped went on."""
    axes.axhline(0.0, color=GREY, linewidth=0.8)
    lines = [draw_band(axes, history, name, opacity=1.0) for name in STIFFNESS_COLORS]
    before = 0 if full is None else sum(reading.epoch < history[-1].epoch for reading in full)
    if full is None or before == len(full):
        return lines
    return [draw_band(axes, full[before:], name, opacity=0.4) for name in STIFFNESS_COLORS]


def draw_band(axes: Axes, history: History, name: str, opacity: float) -> Line:
    """Draws one of the curves with a band of 2 standard errors."""
    color = STIFFNESS_COLORS[name]
    epochs, values, errors = (history.series(key) for key in ("epoch", name, f"{name}_se"))
    marker = "o" if len(history) == 1 else ""
    axes.plot(epochs.tolist(), values.tolist(), color=color, linewidth=2.0, alpha=opacity, marker=marker, label=name)
    low, high = (values - 2 * errors).tolist(), (values + 2 * errors).tolist()
    axes.fill_between(epochs.tolist(), low, high, color=color, alpha=0.2 * opacity, linewidth=0)
    return Line(name, color, values.tolist()[-1])


def finish(axes: Axes, title: str, unit: str, lines: list[Line], stop_epoch: float | None) -> None:
    """Titles an axes over epochs, marks the stop and names the lines."""
    axes.set_title(title, pad=20.0)
    axes.set_xlabel("epoch")
    axes.set_ylabel(unit)
    axes.margins(x=0.02)
    if stop_epoch is not None:
        axes.axvline(stop_epoch, color=INK, linewidth=1.2, linestyle=(0, (1, 1.5)), label="stop")
        above, label = axes.get_xaxis_transform(), f"stop, epoch {stop_epoch:.4g}"
        axes.annotate(label, (stop_epoch, 1.0), (0.0, 4.0), above, "offset points", ha="center", fontsize=9.0)
    name_lines(axes, [line for line in lines if math.isfinite(line.end)])


def name_lines(axes: Axes, lines: list[Line]) -> None:
    """Write the names at the ends of the lines, so that no legend can cover data."""
    bottom, top = axes.get_ylim()
    lines = sorted(lines, key=lambda line: line.end)
    for line, place in zip(lines, _spread([(line.end - bottom) / (top - bottom) for line in lines]), strict=True):
        units = ("axes fraction", "offset points")
        axes.annotate(line.name, (1.0, place), (4.0, 0.0), *units, va="center", color=line.color)


def _spread(places: list[float]) -> list[float]:
    """Ascending places as they are, but not closer than a line of text, and not above the axes if there is room."""
    apart = [*itertools.accumulate(places, lambda last, place: max(place, last + LINE))]
    limits = [1.0 - LINE * below for below in reversed(range(len(places)))]
    return [min(place, limit) for place, limit in zip(apart, limits, strict=True)]


def require_readings(readings: Sequence[Reading]) -> None:
    """Raises StiffnessError if there are none."""
    if not readings:
        raise StiffnessError("A picture needs at least one reading, but there is none. Measure first.")
