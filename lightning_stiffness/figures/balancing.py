"""How a network under a ClassGroupingBalancer treats its classes: four pictures of its readings."""

import math
import textwrap
from collections.abc import Callable, Sequence
from typing import Final

import torch
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from lightning_stiffness.balance import BalanceReading
from lightning_stiffness.balance_words import (
    absorption_caption,
    class_labels,
    class_names,
    matrices_caption,
    recall_caption,
    sacrificed_caption,
    shown_classes,
    takers,
)
from lightning_stiffness.errors import StiffnessError
from lightning_stiffness.figures.drawing import BLUE, INK, ORANGE, styled
from lightning_stiffness.figures.matrices import draw_matrix, limit_of

COLORS: Final = LinearSegmentedColormap.from_list("fight and share", (ORANGE, "#FFFFFF", BLUE))
SHADES: Final = (BLUE, "#4C9CCB", "#9CC9E3")  # of those that take most, second and third
REST, SPARED, UNKNOWN, PALE = "#D9D9D9", "#DCEAF3", "#FFFFFF", "#F2BF99"
MOST_BARS: Final = 40  # classes with a row each
BAR: Final = 5.6  # inches
LETTER, TEXT = 0.064, 8.5  # inches of a letter, points of a caption
LINE, ROW = 0.155, 0.21  # inches of a line of a caption, and of a class


@styled
def fighting_classes(readings: Sequence[BalanceReading]) -> Figure:
    """Class matrices at the classifier and below it, side by side in one order, with boxes around the groups.

    Raises:
        StiffnessError: There is no reading, or the last one has lost its matrices.
    """
    reading = _last(readings)
    if reading.classifier is None:
        raise StiffnessError("The last reading must have its class matrices, found none. Take the last one of a run.")
    chosen = shown_classes(reading)
    order = list(chosen)
    matrices = {"At the classifier": reading.classifier}
    if reading.features is not None:
        matrices["In the layers below"] = reading.features
    parts = {title: matrix[order][:, order] for title, matrix in matrices.items()}
    limit = limit_of(list(parts.values()))
    side = max(3.6, 0.095 * len(order))
    labels, names = ([kind[label] for label in order] for kind in (class_labels(reading), class_names(reading)))
    left = 0.25 + LETTER * max(map(len, labels))
    bottom = 0.15 + LETTER * max(map(len, names)) if len(order) <= MOST_BARS else 0.1
    width = left + side * len(parts) + 0.35 * (len(parts) - 1) + 0.95
    sheet = _Sheet(width, side, bottom, matrices_caption(reading), top=0.72)
    for index, (title, matrix) in enumerate(parts.items()):
        axes = sheet.axes(left + index * (side + 0.35), side)
        _draw_level(axes, matrix, limit, labels if index == 0 else [], names)
        _draw_boxes(axes, reading.members, order)
        axes.set_title(title)
    scale = sheet.axes(width - 0.8, 0.13, above=max(0.0, side - 4), height=min(4.0, side))
    bar = sheet.figure.colorbar(sheet.figure.axes[-2].images[0], cax=scale, ticks=[-limit, 0, limit])
    bar.ax.set_yticklabels([f"\N{MINUS SIGN}{limit:.2f}\nfight", "0", f"share\n{limit:.2f}"], fontsize=TEXT)
    bar.outline.set_visible(False)
    return sheet.finished(f"Which classes fight, epoch {reading.epoch:.4g}")


@styled
def absorbed_classes(readings: Sequence[BalanceReading]) -> Figure:
    """A bar for each small class: who takes the probability that its samples lose.

    Raises:
        StiffnessError: There is no reading, or no small class.
    """
    reading = _last(readings)
    small = _require_small(reading)[-MOST_BARS:]
    labels, names = class_labels(reading), class_names(reading)
    left = 0.25 + LETTER * max(len(labels[label]) for label in small)
    sheet = _Sheet(left + BAR + 1.0, max(1.2, 0.26 * len(small)), 0.5, absorption_caption(reading))
    axes = sheet.axes(left, BAR)
    for row, label in enumerate(small):
        _draw_takers(axes, row, takers(reading, label), names)
        lost = float(reading.lost[label])
        axes.text(
            1.01, row, "no sample" if math.isnan(lost) else f"loses {100 * lost:.2g} %", va="center", fontsize=8.0
        )
    axes.set_yticks(range(len(small)), [labels[label] for label in small], fontsize=8.5)
    axes.set_ylim(len(small) - 0.4, -0.6)
    axes.set_xlim(0, 1)
    axes.set_xlabel("share of the lost probability")
    left_out = f", the {len(small)} smallest of {len(reading.small)}" if len(small) < len(reading.small) else ""
    return sheet.finished(f"Who takes the small classes' probability{left_out}, epoch {reading.epoch:.4g}")


@styled
def recall_of_each_class(readings: Sequence[BalanceReading]) -> Figure:
    """Recall of each class in validation, with the logits at the natural frequencies and as the network says it.

    Raises:
        StiffnessError: No validation has run.
    """
    reading = with_recall(readings)
    if reading is None or reading.recall is None or reading.natural_recall is None:
        raise StiffnessError("Recalls come from validation, and none has run. Pass a validation dataloader to fit.")
    order = sorted(range(len(reading.counts)), key=lambda label: (-float(reading.counts[label]), label))
    before, after = (values[order].tolist() for values in (reading.natural_recall, reading.recall))
    has_rows = len(order) <= MOST_BARS
    named = class_labels(reading)
    labels = [named[label] for label in order]
    left = 0.25 + LETTER * max(map(len, labels)) if has_rows else 0.75
    height = max(1.6, ROW * len(order)) if has_rows else 2.9
    sheet = _Sheet(left + 6.0 + 0.3, height, 0.55, recall_caption(reading))
    axes = sheet.axes(left, 6.0)
    places = range(len(order))
    colors = [BLUE if now >= was else ORANGE for was, now in zip(before, after, strict=True)]
    lines, dots = (axes.hlines, 26.0) if has_rows else (axes.vlines, 9.0)
    lines(places, before, after, colors=colors, linewidth=2.0 if has_rows else 1.0)
    for values, face in ((before, "white"), (after, colors)):
        xs, ys = (values, places) if has_rows else (places, values)
        axes.scatter(xs, ys, s=dots, facecolors=face, edgecolors=colors, linewidths=1.2, zorder=3)
    _name_recalls(axes, labels, has_rows)
    was, now = (float(values.nanmean()) for values in (reading.natural_recall, reading.recall))
    return sheet.finished(
        f"Recall of each class, epoch {reading.epoch:.4g}: mean {100 * was:.1f} % to {100 * now:.1f} %"
    )


@styled
def sacrificed_classes(readings: Sequence[BalanceReading]) -> Figure:
    """Share of the small classes whose loss the mean training step raises, over the readings, and which ones.

    Raises:
        StiffnessError: There is no reading, or no small class.
    """
    reading = _last(readings)
    small = _require_small(reading)[-MOST_BARS:]
    named = class_labels(reading)
    labels = [named[label] for label in small]
    left = max(0.75, 0.25 + LETTER * max(map(len, labels)))
    rows = ROW * len(small)
    sheet = _Sheet(left + BAR + 0.3, 1.5 + 0.35 + rows, 0.55, sacrificed_caption(reading))
    upper = sheet.axes(left, BAR, above=rows + 0.35, height=1.5)
    for color, kind in ((PALE, "sacrificed_share"), (ORANGE, "clearly_sacrificed_share")):
        shares = [100 * getattr(one, kind) for one in readings]
        upper.plot(range(len(readings)), shares, color=color, linewidth=2.0, marker="o", markersize=4.0)
    upper.set_ylim(-4, 104)
    upper.set_ylabel("per cent")
    lower = sheet.axes(left, BAR, height=rows)
    values = torch.tensor([[_standing(one, label) for one in readings] for label in small])
    colors = ListedColormap([UNKNOWN, SPARED, PALE, ORANGE])
    lower.imshow(values.numpy(), cmap=colors, vmin=-1, vmax=2, aspect="auto", interpolation="nearest")
    lower.set_yticks(range(len(small)), labels, fontsize=8.5)
    lower.spines[:].set_visible(False)
    lower.tick_params(length=0.0)
    _name_epochs((upper, lower), [one.epoch for one in readings])
    left_out = f", below: the {len(small)} smallest" if len(small) < len(reading.small) else ""
    return sheet.finished(f"Sacrificed share of {len(reading.small):,} small classes{left_out}")


def with_recall(readings: Sequence[BalanceReading]) -> BalanceReading | None:
    """The last reading with recalls."""
    return next((reading for reading in reversed(readings) if reading.recall is not None), None)


BALANCE_PICTURES: Final[dict[str, Callable[[Sequence[BalanceReading]], Figure | None]]] = {
    "fighting_classes": fighting_classes,
    "absorbed_classes": lambda readings: absorbed_classes(readings) if readings[-1].small else None,
    "recall_of_each_class": lambda readings: None if with_recall(readings) is None else recall_of_each_class(readings),
    "sacrificed_classes": lambda readings: sacrificed_classes(readings) if readings[-1].small else None,
}
"""Each picture by its tag; None where the readings do not have what it shows."""


class _Sheet:
    """A figure with axes at places in inches, a title above them, and a caption below.

    Args:
        width: Of the whole.
        height: Of the axes.
        bottom: Between axes and caption.
        caption: The words.
        top: Above the axes.
    """

    def __init__(self, width: float, height: float, bottom: float, caption: str, top: float = 0.5) -> None:
        """Nothing is drawn yet."""
        self._caption = textwrap.fill(caption, int((width - 0.3) / LETTER))
        words = LINE * (1 + self._caption.count("\n")) + 0.2
        self._bottom, self._height = words + bottom, height
        self._whole = (width, words + bottom + height + top)
        self.figure = Figure(figsize=self._whole)

    def axes(self, left: float, width: float, above: float = 0.0, height: float | None = None) -> Axes:
        """Axes so many inches from the left, and above the lowest place."""
        whole, tall = self._whole, self._height if height is None else height
        place = (left / whole[0], (self._bottom + above) / whole[1], width / whole[0], tall / whole[1])
        return self.figure.add_axes(place)

    def finished(self, title: str) -> Figure:
        """The figure with its title and its caption."""
        whole = self._whole
        self.figure.suptitle(
            title, x=0.15 / whole[0], y=1 - 0.12 / whole[1], ha="left", va="top", fontsize=12.0, fontweight="bold"
        )
        self.figure.text(0.15 / whole[0], 0.1 / whole[1], self._caption, va="bottom", fontsize=TEXT, linespacing=1.25)
        return self.figure


def _draw_level(axes: Axes, matrix: Tensor, limit: float, labels: list[str], names: list[str]) -> None:
    draw_matrix(axes, matrix, names, limit, most_ticks=0, colors=COLORS)
    if len(names) <= MOST_BARS:
        axes.set_xticks(range(len(names)), names, rotation=90.0 if max(map(len, names)) > 2 else 0.0, fontsize=8.5)
        axes.set_yticks(range(len(labels)), labels, fontsize=8.5)
        return
    axes.set(xticks=[], yticks=[])
    for row, label in enumerate(labels):  # ticks are four times as dear as their words
        axes.text(-0.005, row, label, transform=axes.get_yaxis_transform(), ha="right", va="center", fontsize=6.0)


def _draw_takers(axes: Axes, row: int, found: Sequence[tuple[int, float]], names: Sequence[str]) -> None:
    """One bar; a name that does not fit into its part stands beside the parts."""
    start, beside = 0.0, []
    for shade, (other, share) in zip(SHADES, found, strict=False):
        axes.barh(row, share, left=start, height=0.72, color=shade)
        if share * BAR > LETTER * len(names[other]) + 0.08:
            color = INK if shade == SHADES[-1] else "white"
            axes.text(start + share / 2, row, names[other], ha="center", va="center", color=color, fontsize=8.0)
        else:
            beside.append(names[other])
        start += share
    axes.barh(row, max(1 - start, 0.0), left=start, height=0.72, color=REST)
    if (1 - start) * BAR > LETTER * len(", ".join(beside)) + 0.08:
        axes.text(start + 0.01, row, ", ".join(beside), va="center", fontsize=8.0)


def _draw_boxes(axes: Axes, groups: Sequence[Sequence[int]], order: list[int]) -> None:
    for group in groups:
        places = [order.index(label) for label in group if label in order]
        if len(places) > 1:
            start, length = min(places) - 0.5, len(places)
            axes.add_patch(Rectangle((start, start), length, length, fill=False, edgecolor=INK, linewidth=1.8))


def _name_recalls(axes: Axes, labels: list[str], has_rows: bool) -> None:
    axes.grid(axis="x" if has_rows else "y", color="#E5E5E5", linewidth=0.8)
    axes.set_axisbelow(True)
    if has_rows:
        axes.set_yticks(range(len(labels)), labels, fontsize=8.5)
        axes.set_ylim(len(labels) - 0.4, -0.6)
        axes.set_xlim(-0.03, 1.03)
        axes.set_xlabel("recall in validation; ring: at natural frequencies, dot: as the network says it")
    else:
        axes.set_ylim(-0.03, 1.03)
        axes.set_ylabel("recall in validation")
        axes.set_xlabel(f"{len(labels):,} classes, from the largest to the smallest")


def _name_epochs(panels: Sequence[Axes], epochs: Sequence[float]) -> None:
    places = range(0, len(epochs), math.ceil(len(epochs) / 12))
    for axes in panels:
        axes.set_xlim(-0.5, len(epochs) - 0.5)
        axes.set_xticks(places, [f"{epochs[place]:.4g}" for place in places], fontsize=8.5)
    panels[0].tick_params(labelbottom=False)
    panels[-1].set_xlabel("epoch of the reading")


def _standing(reading: BalanceReading, label: int) -> int:
    """2 where a class is clearly sacrificed, 1 where it may be, 0 where it is not, -1 where it is not known."""
    if math.isnan(float(reading.progress[label])):
        return -1
    return int(label in reading.sacrificed) + int(label in reading.clearly_sacrificed)


def _last(readings: Sequence[BalanceReading]) -> BalanceReading:
    if not readings:
        raise StiffnessError("A picture needs at least one reading, but there is none. Measure first.")
    return readings[-1]


def _require_small(reading: BalanceReading) -> tuple[int, ...]:
    if not reading.small:
        raise StiffnessError(
            "The picture is of small classes, and no class is smaller than three quarters of the mean."
        )
    return reading.small
