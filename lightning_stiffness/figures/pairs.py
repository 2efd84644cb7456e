"""Single pairs of samples: how their cosines are spread, and how they depend on the distance of the inputs."""

import math
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from lightning_stiffness.errors import StiffnessError
from lightning_stiffness.figures.drawing import BLUE, GREY, INK, STIFFNESS_COLORS, plot_axes, require_readings, styled
from lightning_stiffness.functional.detail import Detail
from lightning_stiffness.functional.distance import DistanceCurve
from lightning_stiffness.history import History


@styled
def pair_cosines(history: History) -> Figure:
    """How the cosines of pairs are spread at the last reading, within and between classes; dashed: at the first.

    Two humps within classes say that some samples are learned against their class, such as those with wrong labels.

    Raises:
        StiffnessError: the history is empty, or its last reading is without details.

    Example:
        >>> import torch
        >>> from lightning_stiffness.functional.detail import pair_detail
        >>> from lightning_stiffness.functional.jackknife import Stiffness
        >>> from lightning_stiffness.history import ProbeSummary, Reading
        >>> targets = torch.tensor([0, 0, 1, 1])
        >>> flat = Stiffness(torch.eye(2), 1.0, 0.1, 0.0, 0.1, torch.ones(4), torch.zeros(4))
        >>> detail = pair_detail(torch.rand(4, 4), targets, targets, num_classes=2)
        >>> history = History(ProbeSummary("train", 2, (0, 0, 1, 1), 0.69))
        >>> history.append(Reading(10, 1.0, flat, flat, 0.7, 0.1, 0.0, 0.5, detail=detail))
        >>> pair_cosines(history).axes[0].get_xlabel()
        'cosine of two gradients'
    """
    last, first = _detail(history), history[0].detail
    figure, axes = plot_axes()
    axes.axvline(0.0, color=GREY, linewidth=0.8, label="zero")
    if first is not None and len(history) > 1:
        _draw_spread(axes, first, f"epoch {history[0].epoch:.4g}", is_last=False)
    _draw_spread(axes, last, f"epoch {history[-1].epoch:.4g}", is_last=True)
    axes.set_title(f"Pairs of samples, epoch {history[-1].epoch:.4g}", pad=8.0)
    axes.set_xlabel("cosine of two gradients")
    axes.set_ylabel("share of the pairs")
    axes.set_ylim(bottom=0.0)
    axes.legend(frameon=False, fontsize=9.0)
    return figure


@styled
def stiffness_against_distance(history: History) -> Figure:
    """Stiffness within classes against the distance of the inputs at the last reading, with the line that fits best.

    Where the line falls to zero inside the data is the critical length: as far as there, a step on one sample helps
    another one of its class.

    Raises:
        StiffnessError: the history is empty, or its last reading has no distances.

    Source: Fort et al., Stiffness, arXiv:1901.09491 (v3), dynamical critical length.

    Example:
        >>> import torch
        >>> from lightning_stiffness.functional.detail import pair_detail
        >>> from lightning_stiffness.functional.jackknife import Stiffness
        >>> from lightning_stiffness.history import ProbeSummary, Reading
        >>> targets = torch.tensor([0, 0, 0])
        >>> flat = Stiffness(torch.eye(1), 1.0, 0.1, 0.0, 0.1, torch.ones(3), torch.zeros(3))
        >>> distances = torch.tensor([[0.0, 0.2, 0.8], [0.2, 0.0, 0.5], [0.8, 0.5, 0.0]])
        >>> detail = pair_detail(0.5 - distances, targets, targets, num_classes=1, distances=distances)
        >>> history = History(ProbeSummary("train", 1, (0, 0, 0), 0.0))
        >>> history.append(Reading(10, 1.0, flat, flat, 0.7, 0.1, 0.0, 0.5, detail=detail))
        >>> stiffness_against_distance(history).axes[0].texts[0].get_text()
        'critical length 0.5'
    """
    curve = _detail(history).distance
    if curve is None or not has_distances(history):
        raise StiffnessError("This picture needs distances of the inputs, but the last reading has none.")
    figure, axes = plot_axes()
    axes.axhline(0.0, color=GREY, linewidth=0.8, label="zero")
    _draw_distance(axes, curve)
    axes.set_title(f"Stiffness against distance, epoch {history[-1].epoch:.4g}", pad=20.0)
    axes.set_xlabel("1 \N{MINUS SIGN} cosine of two inputs; each dot: as many pairs")
    axes.set_ylabel("mean cosine, same class")
    axes.margins(x=0.02, y=0.12)
    return figure


def has_distances(history: History) -> bool:
    """Whether the last reading says how stiffness depends on the distance of the inputs."""
    detail = history[-1].detail if history else None
    return detail is not None and detail.distance is not None and bool(detail.distance.means.isfinite().any())


def _detail(history: History) -> Detail:
    require_readings(history)
    detail = history[-1].detail
    if detail is None:
        raise StiffnessError("This picture needs details of single pairs, but the last reading has none.")
    return detail


def _draw_spread(axes: Axes, detail: Detail, when: str, is_last: bool) -> None:
    counts = {"within": detail.within_counts, "between": detail.between_counts}
    for name, count in counts.items():
        total = float(count.sum())
        if not total:
            continue
        edges = [2 * border / len(count) - 1 for border in range(len(count) + 1)]
        shares, color = (count / total).tolist(), STIFFNESS_COLORS[name]
        label = f"{name}, {when}"
        if is_last:
            axes.stairs(shares, edges, color=color, fill=True, alpha=0.25)
        axes.stairs(shares, edges, color=color, linewidth=1.8 if is_last else 1.0, label=label, **_dashes(is_last))


def _dashes(is_last: bool) -> dict[str, Any]:
    return {} if is_last else {"linestyle": (0, (3, 2))}


def _draw_distance(axes: Axes, curve: DistanceCurve) -> None:
    edges = curve.edges.double()
    _draw_dots(axes, ((edges[1:] + edges[:-1]) / 2).tolist(), curve.means)
    ends = [float(edges[0]), float(edges[-1])]
    if math.isfinite(curve.slope):
        axes.plot(ends, [curve.intercept + curve.slope * end for end in ends], color=INK, linewidth=1.2, label="line")
    length, above = curve.critical_length, axes.get_xaxis_transform()
    if math.isfinite(length):
        axes.axvline(length, color=INK, linewidth=1.2, linestyle=(0, (1, 1.5)), label="critical length")
        place, text, align = (length, 1.0), f"critical length {length:.3g}", "center"
    else:
        place, text, align = (ends[0], 1.0), "no critical length: the line does not cross zero within the data", "left"
    axes.annotate(text, place, (0.0, 4.0), above, "offset points", ha=align, fontsize=9.0)


def _draw_dots(axes: Axes, places: Sequence[float], means: Tensor) -> None:
    axes.plot(places, means.tolist(), "o", color=BLUE, markersize=6.0, label="mean of the pairs")
