"""Each class by itself: which classes are stiff to each other now, and how stiff each one was over the run."""

import math
from collections.abc import Sequence

import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from torch import Tensor

from lightning_stiffness.figures.drawing import GREY, Line, finish, plot_axes, require_readings, styled
from lightning_stiffness.figures.matrices import draw_matrix, limit_of
from lightning_stiffness.functional.class_tree import class_tree
from lightning_stiffness.history import History, ProbeSummary

MOST_IN_GIVEN_ORDER = 25
MOST_LINES = 10
MOST_EPOCHS_NAMED = 12
LONGEST_NAME = 24
NUMBER = 7.5
UNDEFINED = "#B8B8B8"
TEXT, LETTER, ROW = 7.5, 0.078, 0.115  # points of a name; inches of one of its letters, and of its line
TALLEST = 23.0  # inches, a row for each of 200 classes: a picture of 1,000 rows of names took 20 seconds


@styled
def latest_class_matrix(history: History) -> Figure:
    """The class matrix of the last reading; more than 25 classes are ordered, so that stiff ones are neighbours.

    Raises:
        StiffnessError: the history is empty.

    Example:
        >>> import torch
        >>> from lightning_stiffness.functional.jackknife import Stiffness
        >>> from lightning_stiffness.history import ProbeSummary, Reading
        >>> flat = Stiffness(torch.eye(2), 1.0, 0.1, 0.0, 0.1, torch.ones(4), torch.zeros(4))
        >>> history = History(ProbeSummary("train", 2, (0, 0, 1, 1), 0.69))
        >>> history.append(Reading(10, 1.0, flat, flat, 0.7, 0.1, 0.0, 0.5))
        >>> latest_class_matrix(history).axes[0].get_title(loc="left")
        'Stiffness of the classes, epoch 1'
    """
    require_readings(history)
    reading, names = history[-1], names_of(history.probe)
    matrix, title = reading.cosine.matrix, f"Stiffness of the classes, epoch {reading.epoch:.4g}"
    is_small = len(names) <= MOST_IN_GIVEN_ORDER
    if not is_small:
        order = list(class_tree(matrix).order)
        matrix, names = matrix[order][:, order], [names[label] for label in order]
        title += ", stiff ones side by side"
    figure, axes = _canvas(names, width=_side(names), height=_side(names), bottom=0.3)
    image = draw_matrix(axes, matrix, names, limit_of([matrix]), most_ticks=len(names) if is_small else 0)
    for number in axes.texts:
        number.set_fontsize(NUMBER)
    axes.set_title(title + _name_rows(axes, names))
    _draw_scale(figure, image, "red: they help each other\nblue: they harm each other")
    return figure


@styled
def within_of_each_class(history: History) -> Figure:
    """Stiffness within each class over the epochs: a line for each of up to 10 classes, a row for each of more.

    A class whose line falls, while others stay, is one whose samples are learned one by one.

    Raises:
        StiffnessError: the history is empty.

    Example:
        >>> import torch
        >>> from lightning_stiffness.functional.jackknife import Stiffness
        >>> from lightning_stiffness.history import ProbeSummary, Reading
        >>> flat = Stiffness(torch.eye(2), 1.0, 0.1, 0.0, 0.1, torch.ones(4), torch.zeros(4))
        >>> history = History(ProbeSummary("train", 2, (0, 0, 1, 1), 0.69, ("cat", "dog")))
        >>> history.append(Reading(10, 1.0, flat, flat, 0.7, 0.1, 0.0, 0.5))
        >>> [line.get_label() for line in within_of_each_class(history).axes[0].lines]
        ['cat', 'dog']
    """
    require_readings(history)
    names = names_of(history.probe)
    values = torch.stack([reading.cosine.matrix.diagonal().double().cpu() for reading in history])
    if len(names) > MOST_LINES:
        return _class_rows(history, values, names)
    figure, axes = plot_axes(right=0.2 + 1.4 * LETTER * max(map(len, names)))
    if bool((values < 0).any()):
        axes.axhline(0.0, color=GREY, linewidth=0.8, label="zero")
    epochs, lines = history.series("epoch").tolist(), []
    for label, name in enumerate(names):
        series, color = values[:, label].tolist(), to_hex(colormaps["tab10"](label))
        marker = "o" if len(series) == 1 else ""
        axes.plot(epochs, series, color=color, linewidth=1.8, marker=marker, label=name)
        lines.append(Line(name, color, series[-1]))
    finish(axes, "Stiffness within each class", "mean cosine, same class", lines, None)
    return figure


def names_of(probe: ProbeSummary) -> list[str]:
    """A name for each class, short enough for a picture; its number where there is none."""
    names = probe.class_names or tuple(map(str, range(probe.num_classes)))
    return [
        name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}\N{HORIZONTAL ELLIPSIS}" for name in names
    ]


def _class_rows(history: History, values: Tensor, names: Sequence[str]) -> Figure:
    figure, axes = _canvas(names, width=4.6, height=_side(names), bottom=0.55)
    axes.patch.set(facecolor=UNDEFINED, hatch="//////")
    image = axes.imshow(values.T.numpy(), cmap="viridis", aspect="auto", interpolation="nearest")
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0.0)
    axes.set_title("Stiffness within each class" + _name_rows(axes, names))
    axes.set_xlabel("epoch of the reading")
    _name_epochs(axes, history.series("epoch").tolist())
    _draw_scale(figure, image, "mean cosine, same class")
    return figure


def _name_epochs(axes: Axes, epochs: Sequence[float]) -> None:
    places = range(0, len(epochs), math.ceil(len(epochs) / MOST_EPOCHS_NAMED))
    axes.set_xticks(places, [f"{epochs[place]:.4g}" for place in places], fontsize=9.0)


def _canvas(names: Sequence[str], width: float, height: float, bottom: float) -> tuple[Figure, Axes]:
    """A figure with room for names on the left, an axes of this size in inches, and a scale beside it.

    A layout engine would draw all names twice, which is most of what such a picture costs.
    """
    left, right, top = 0.25 + max(map(len, names)) * LETTER, 1.25, 0.35
    bottom = bottom if len(names) > MOST_IN_GIVEN_ORDER else max(bottom, left)
    whole = (left + width + right, bottom + height + top)
    figure = Figure(figsize=whole)
    return figure, figure.add_axes((left / whole[0], bottom / whole[1], width / whole[0], height / whole[1]))


def _side(names: Sequence[str]) -> float:
    return min(max(4.0, ROW * len(names)), TALLEST)


def _name_rows(axes: Axes, names: Sequence[str]) -> str:
    """Names as many as there is room for; what a title has to say of it.

    Ticks are four times as dear as their words, so many names are words alone.
    """
    if len(names) <= MOST_IN_GIVEN_ORDER:
        axes.set_yticks(range(len(names)), names, fontsize=9.0)
        return ""
    axes.set_yticks([])
    step = math.ceil(ROW * len(names) / TALLEST)
    for row, name in list(enumerate(names))[::step]:
        axes.text(-0.008, row, name, transform=axes.get_yaxis_transform(), ha="right", va="center", fontsize=TEXT)
    return "" if step == 1 else f" (one name in {step})"


def _draw_scale(figure: Figure, image: AxesImage, unit: str) -> None:
    place = figure.axes[0].get_position()
    inch, height = 1.0 / figure.get_figwidth(), min(place.height, 4.0 / figure.get_figheight())
    scale = figure.add_axes((place.x1 + 0.12 * inch, place.y1 - height, 0.14 * inch, height))
    figure.colorbar(image, cax=scale, label=unit).outline.set_visible(False)
