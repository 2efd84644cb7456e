"""Heat maps of the stiffness of classes to each other."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.colors import Colormap
from matplotlib.figure import Figure, SubFigure
from matplotlib.image import AxesImage
from torch import Tensor

from lightning_stiffness.errors import StiffnessError
from lightning_stiffness.figures.drawing import COSINE, INK, require_readings, styled
from lightning_stiffness.history import History

MOST_TICKS = 20
MOST_NUMBERS = 12


@styled
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
    image = draw_matrix(axes, matrix, class_names, limit_of([matrix]))
    axes.set_title(title or "Stiffness of the classes")
    draw_scale(figure, image, [axes], "stiffness")
    return figure


@styled
def class_matrices(history: History, indices: Sequence[int] | None = None) -> Figure:
    """Class matrices of a few readings side by side in one scale; by default of the first, middle and last.

    Raises:
        StiffnessError: the history is empty, or no reading is chosen.
    """
    chosen = first_middle_last(len(history)) if indices is None else indices
    require_readings(history if chosen else ())
    figure = Figure(figsize=(1.2 + 3.6 * len(chosen), 4.0), layout="constrained")
    draw_matrices(figure, history, {index: f"Epoch {history[index].epoch:.4g}" for index in chosen})
    return figure


def draw_matrices(figure: Figure | SubFigure, history: History, titles: dict[int, str]) -> None:
    """Draws the class matrices of these readings side by side in one scale."""
    matrices = [history[index].cosine.matrix for index in titles]
    panels = figure.subplots(1, len(matrices), squeeze=False)[0]
    for axes, matrix, title in zip(panels, matrices, titles.values(), strict=True):
        image = draw_matrix(axes, matrix, history.probe.class_names, limit_of(matrices))
        axes.set_title(title)
    draw_scale(figure, image, list(panels), COSINE)


def draw_matrix(  # noqa: PLR0913  # what a matrix looks like
    axes: Axes,
    matrix: Tensor,
    class_names: Sequence[str] | None,
    limit: float,
    most_ticks: int = MOST_TICKS,
    colors: str | Colormap = "RdBu_r",
) -> AxesImage:
    """Draws a matrix, one row a class, in colours up to a limit on either side; undefined entries are hatched."""
    count = len(matrix)
    axes.patch.set(facecolor="#B8B8B8", hatch="//////")
    image = axes.imshow(matrix.double().cpu().numpy(), cmap=colors, vmin=-limit, vmax=limit, interpolation="nearest")
    axes.spines[:].set_visible(False)
    names = [str(label) for label in range(count)] if class_names is None else list(class_names)
    ticks = range(0, count, math.ceil(count / most_ticks)) if most_ticks else range(0)
    shown = [names[tick] for tick in ticks]
    size = 9.0 if count <= MOST_NUMBERS else 7.5
    axes.set_xticks(ticks, shown, rotation=90.0 if max(map(len, shown), default=0) > 2 else 0.0, fontsize=size)
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


def draw_scale(figure: Figure | SubFigure, image: AxesImage, panels: list[Axes], unit: str) -> None:
    """Draws the scale of the colours beside panels."""
    figure.colorbar(image, ax=panels, shrink=0.8, pad=0.02, aspect=25, label=unit).outline.set_visible(False)


def limit_of(matrices: Sequence[Tensor]) -> float:
    """The largest absolute entry of all of them."""
    finite = torch.cat([matrix[matrix.isfinite()].double() for matrix in matrices])
    return max(finite.abs().max().item(), 1e-6) if len(finite) else 1.0


def first_middle_last(count: int) -> list[int]:
    """Three places of a sequence of that length, fewer if there are not so many.

    Example:
        >>> first_middle_last(9), first_middle_last(2)
        ([0, 4, 8], [0, 1])
    """
    return sorted({0, (count - 1) // 2, count - 1})


def _require_square(matrix: Tensor, class_names: Sequence[str] | None) -> None:
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or len(matrix) == 0:
        raise StiffnessError(f"A class matrix must have one row and one column a class, but is {tuple(matrix.shape)}.")
    if class_names is not None and len(class_names) != len(matrix):
        raise StiffnessError(f"There must be {len(matrix)} class names, one a class, but there are {len(class_names)}.")
