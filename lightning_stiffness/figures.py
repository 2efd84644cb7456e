"""One function per picture: a history or a class matrix becomes a matplotlib Figure, which no global state knows."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import Any, ParamSpec

import matplotlib
import torch
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.image import AxesImage
from torch import Tensor

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
CURVE_COLORS = {"test": GREEN, "training": GREY}
COSINE = "mean cosine of two gradients"
MOST_TICKS = 20
MOST_NUMBERS = 12
Arguments = ParamSpec("Arguments")


@dataclass(frozen=True)
class Curves:
    """What a run without stopping went through: equally long, one value for each epoch it was evaluated at."""

    epochs: tuple[float, ...]
    train_loss: tuple[float, ...]
    test_loss: tuple[float, ...]
    test_accuracy: tuple[float, ...]

    def __post_init__(self) -> None:
        lengths = {len(self.epochs), len(self.train_loss), len(self.test_loss), len(self.test_accuracy)}
        if len(lengths) > 1 or 0 in lengths:
            raise StiffnessError(f"Curves must all have the same number of values, at least one, but have {lengths}.")


def _styled(draw: Callable[Arguments, Figure]) -> Callable[Arguments, Figure]:
    @wraps(draw)
    def styled(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Figure:
        with matplotlib.rc_context(STYLE):
            return draw(*args, **kwargs)

    return styled


@_styled
def within_and_between(history: History, decision_epoch: float | None = None) -> Figure:
    """Stiffness within and between classes over the epochs: cosine with bands of 2 standard errors, sign dashed.

    Args:
        history: what to draw.
        decision_epoch: where to mark a stop.

    Raises:
        StiffnessError: the history is empty.

    Example:
        >>> from lightning_stiffness.functional.jackknife import Stiffness
        >>> from lightning_stiffness.history import ProbeSummary, Reading
        >>> flat = Stiffness(torch.eye(2), 1.0, 0.1, 0.0, 0.1, torch.ones(4), torch.zeros(4))
        >>> history = History(ProbeSummary("train", 2, (0, 0, 1, 1), 0.69))
        >>> history.append(Reading(10, 1.0, flat, flat, 0.7, 0.1, 0.0, 0.5))
        >>> within_and_between(history).axes[0].get_ylabel()
        'stiffness'
    """
    _require_readings(history)
    figure = Figure(figsize=(7.5, 4.2), layout="constrained")
    axes = figure.add_subplot()
    lines = _draw_stiffness(axes, history)
    for name, color in STIFFNESS_COLORS.items():
        values = history.series(f"{name}_sign").tolist()
        marker = "." if len(history) == 1 else ""
        axes.plot(history.series("epoch").tolist(), values, "--", color=color, linewidth=1.0, marker=marker)
        lines.append(_Line(f"{name}, sign", color, values[-1]))
    _finish(axes, "Stiffness within and between classes", "stiffness", lines, decision_epoch)
    return figure


@_styled
def class_matrix(
    matrix: Float[Tensor, "c c"], class_names: Sequence[str] | None = None, title: str | None = None
) -> Figure:
    """Heat map of one class matrix: red for classes that help each other, blue for classes that harm each other.

    Colours go to the largest absolute value on either side; entries without a pair (nan) are hatched.

    Raises:
        StiffnessError: the matrix is not square or does not have one name for each class.

    Example:
        >>> class_matrix(torch.eye(2), ("cat", "dog")).axes[0].get_xticklabels()[1].get_text()
        'dog'
    """
    _require_square(matrix, class_names)
    figure = Figure(figsize=(6.0, 5.2), layout="constrained")
    axes = figure.add_subplot()
    image = _draw_matrix(axes, matrix, class_names, _limit([matrix]))
    axes.set_title(title or "Stiffness of the classes")
    _draw_scale(figure, image, [axes], "stiffness")
    return figure


@_styled
def class_matrices(history: History, indices: Sequence[int] | None = None) -> Figure:
    """Class matrices of a few readings side by side in one scale; by default of the first, middle and last.

    Raises:
        StiffnessError: the history is empty, or no reading is chosen.
    """
    chosen = _first_middle_last(len(history)) if indices is None else indices
    _require_readings(history if chosen else ())
    figure = Figure(figsize=(1.2 + 3.6 * len(chosen), 4.0), layout="constrained")
    _draw_matrices(figure, history, {index: f"Epoch {history[index].epoch:.4g}" for index in chosen})
    return figure


@_styled
def training_summary(
    curves: Curves, stopped: History, full: History | None = None, stop_epoch: float | None = None
) -> Figure:
    """The whole story of a run on one page: loss, accuracy, stiffness, and what would have come after the stop.

    Args:
        curves: the run that went on to the end.
        stopped: readings of the run that was stopped; its first, middle and last class matrix are shown.
        full: readings of the run that went on, of which the part after the stop is drawn lightly.
        stop_epoch: where the run was stopped, None if it was not.

    Raises:
        StiffnessError: ``stopped`` is empty.
    """
    _require_readings(stopped)
    figure = Figure(figsize=(13.0, 8.2), layout="constrained")
    figure.suptitle(_headline(curves, stop_epoch), fontsize=14.0, fontweight="bold")
    rows = figure.add_gridspec(2, 1, height_ratios=(1.0, 1.15), hspace=0.06)
    top, bottom = figure.add_subfigure(rows[0]), figure.add_subfigure(rows[1])
    loss, accuracy, stiffness = top.subplots(1, 3)
    losses = {"test": curves.test_loss, "training": curves.train_loss}
    lines = [_draw_curve(loss, curves, values, name, stop_epoch) for name, values in losses.items()]
    _finish(loss, "Loss", "cross-entropy", lines, stop_epoch)
    percent = [100 * share for share in curves.test_accuracy]
    lines = [_draw_curve(accuracy, curves, percent, "test", stop_epoch)]
    _finish(accuracy, "Test accuracy", "per cent", lines, stop_epoch)
    _finish(stiffness, "Stiffness", COSINE, _draw_stiffness(stiffness, stopped, full), stop_epoch)
    indices = _first_middle_last(len(stopped))
    titles = {index: f"Class matrix, epoch {stopped[index].epoch:.4g}" for index in indices}
    if stop_epoch is not None:
        titles[indices[-1]] += " (stop)"
    _draw_matrices(bottom, stopped, titles)
    return figure


@dataclass(frozen=True)
class _Line:
    """What is written beside the end of a line."""

    name: str
    color: str
    end: float


def _draw_stiffness(axes: Axes, history: History, full: History | None = None) -> list[_Line]:
    axes.axhline(0.0, color=GREY, linewidth=0.8)
    lines = [_draw_band(axes, history, name, opacity=1.0) for name in STIFFNESS_COLORS]
    before = 0 if full is None else sum(reading.epoch < history[-1].epoch for reading in full)
    if full is None or before == len(full):
        return lines
    return [_draw_band(axes, full[before:], name, opacity=0.4) for name in STIFFNESS_COLORS]


def _draw_band(axes: Axes, history: History, name: str, opacity: float) -> _Line:
    color = STIFFNESS_COLORS[name]
    epochs, values, errors = (history.series(key) for key in ("epoch", name, f"{name}_se"))
    marker = "o" if len(history) == 1 else ""
    axes.plot(epochs.tolist(), values.tolist(), color=color, linewidth=2.0, alpha=opacity, marker=marker, label=name)
    low, high = (values - 2 * errors).tolist(), (values + 2 * errors).tolist()
    axes.fill_between(epochs.tolist(), low, high, color=color, alpha=0.2 * opacity, linewidth=0)
    return _Line(name, color, values.tolist()[-1])


def _draw_curve(axes: Axes, curves: Curves, values: Sequence[float], name: str, stop_epoch: float | None) -> _Line:
    color = CURVE_COLORS[name]
    begun = len(values) if stop_epoch is None else sum(epoch <= stop_epoch for epoch in curves.epochs)
    for part, opacity in ((slice(0, begun), 1.0), (slice(max(begun - 1, 0), None), 0.4)):
        marker = "o" if len(values) == 1 else ""
        axes.plot(curves.epochs[part], values[part], color=color, linewidth=2.0, alpha=opacity, marker=marker)
    return _Line(name, color, values[-1])


def _finish(axes: Axes, title: str, unit: str, lines: list[_Line], stop_epoch: float | None) -> None:
    axes.set_title(title, pad=20.0)
    axes.set_xlabel("epoch")
    axes.set_ylabel(unit)
    axes.margins(x=0.02)
    if stop_epoch is not None:
        axes.axvline(stop_epoch, color=INK, linewidth=1.2, linestyle=(0, (1, 1.5)), label="stop")
        above, label = axes.get_xaxis_transform(), f"stop, epoch {stop_epoch:.4g}"
        axes.annotate(label, (stop_epoch, 1.0), (0.0, 4.0), above, "offset points", ha="center", fontsize=9.0)
    _name_lines(axes, [line for line in lines if math.isfinite(line.end)])


def _name_lines(axes: Axes, lines: list[_Line]) -> None:
    """Write the names at the ends of the lines, so that no legend can cover data."""
    bottom, top = axes.get_ylim()
    lowest = -math.inf
    for line in sorted(lines, key=lambda line: line.end):
        lowest = max((line.end - bottom) / (top - bottom), lowest + 0.075)
        units = ("axes fraction", "offset points")
        axes.annotate(line.name, (1.0, lowest), (4.0, 0.0), *units, va="center", color=line.color)


def _draw_matrices(figure: Figure | SubFigure, history: History, titles: dict[int, str]) -> None:
    matrices = [history[index].cosine.matrix for index in titles]
    panels = figure.subplots(1, len(matrices), squeeze=False)[0]
    for axes, matrix, title in zip(panels, matrices, titles.values(), strict=True):
        image = _draw_matrix(axes, matrix, history.probe.class_names, _limit(matrices))
        axes.set_title(title)
    _draw_scale(figure, image, list(panels), COSINE)


def _draw_matrix(axes: Axes, matrix: Tensor, class_names: Sequence[str] | None, limit: float) -> AxesImage:
    count = len(matrix)
    axes.patch.set(facecolor="#B8B8B8", hatch="//////")
    image = axes.imshow(matrix.double().cpu().numpy(), cmap="RdBu_r", vmin=-limit, vmax=limit, interpolation="nearest")
    axes.spines[:].set_visible(False)
    names = [str(label) for label in range(count)] if class_names is None else list(class_names)
    ticks = range(0, count, math.ceil(count / MOST_TICKS))
    shown = [names[tick] for tick in ticks]
    size = 9.0 if count <= MOST_NUMBERS else 7.5
    axes.set_xticks(ticks, shown, rotation=90.0 if max(map(len, shown)) > 2 else 0.0, fontsize=size)
    axes.set_yticks(ticks, shown, fontsize=size)
    axes.tick_params(length=0.0)
    if count <= MOST_NUMBERS:
        _write_numbers(axes, matrix, limit)
    return image


def _write_numbers(axes: Axes, matrix: Tensor, limit: float) -> None:
    for row, entries in enumerate(matrix.tolist()):
        for column, entry in enumerate(entries):
            if math.isfinite(entry):
                color = "white" if abs(entry) > 0.6 * limit else INK
                text = f"{round(entry, 2) + 0.0:.2f}".replace("0.", ".").replace("-", "\N{MINUS SIGN}")
                axes.text(column, row, text, ha="center", va="center", color=color, fontsize=6.0)


def _draw_scale(figure: Figure | SubFigure, image: AxesImage, panels: list[Axes], unit: str) -> None:
    figure.colorbar(image, ax=panels, shrink=0.8, pad=0.02, aspect=25, label=unit).outline.set_visible(False)


def _limit(matrices: Sequence[Tensor]) -> float:
    finite = torch.cat([matrix[matrix.isfinite()].double() for matrix in matrices])
    return max(finite.abs().max().item(), 1e-6) if len(finite) else 1.0


def _first_middle_last(count: int) -> list[int]:
    return sorted({0, (count - 1) // 2, count - 1})


def _headline(curves: Curves, stop_epoch: float | None) -> str:
    end, accuracies = curves.epochs[-1], [f"{100 * share:.1f} %" for share in curves.test_accuracy]
    if stop_epoch is None:
        best = accuracies[curves.test_accuracy.index(max(curves.test_accuracy))]
        return f"Not stopped in {end:.4g} epochs: test accuracy {accuracies[-1]} at the end, {best} at best"
    nearest = min(range(len(accuracies)), key=lambda index: abs(curves.epochs[index] - stop_epoch))
    return (
        f"Stopped at epoch {stop_epoch:.4g} of {end:.4g} with a test accuracy of {accuracies[nearest]}; "
        f"going on (pale) would have ended at {accuracies[-1]}"
    )


def _require_readings(readings: Sequence[Reading]) -> None:
    if not readings:
        raise StiffnessError("A picture needs at least one reading, but there is none. Measure first.")


def _require_square(matrix: Tensor, class_names: Sequence[str] | None) -> None:
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or len(matrix) == 0:
        raise StiffnessError(f"A class matrix must have one row and one column a class, but is {tuple(matrix.shape)}.")
    if class_names is not None and len(class_names) != len(matrix):
        raise StiffnessError(f"There must be {len(matrix)} class names, one a class, but there are {len(class_names)}.")
