"""Results of the benchmark of wrong labels as a picture: how each ranking fares as training goes on."""

import statistics
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from wrong_labels_report import STOPPED, grouped, standard_error, values

DRAWN = {
    "ours": ("ours", "#0072B2", "o", "-"),
    "ours_mean": ("ours, mean over the readings so far", "#56B4E9", "D", "--"),
    "loss": ("loss (cleanlab, in-sample)", "#D55E00", "s", "-"),
    "folds_confidence": ("cleanlab, 5 folds (5 more trainings)", "#009E73", "^", "--"),
    "alignment": ("alignment with own class alone", "#999999", "v", ":"),
}
INK, FAINT = "#333333", "#d9d9d9"


def draw(cells: Sequence[dict[str, Any]]) -> Figure:
    """One row a data set and network, one panel a share of wrong labels."""
    groups = grouped(cells)
    figure = Figure(figsize=(12, 0.8 + 2.8 * len(groups)), layout="constrained")
    panels = figure.subplots(len(groups), 3, squeeze=False, sharey="row")
    for row, (title, group) in zip(panels, groups.items(), strict=True):
        shares = sorted({cell["setting"]["share"] for cell in group})
        for axes, share in zip(row, shares, strict=False):
            draw_panel(axes, [cell for cell in group if cell["setting"]["share"] == share])
            axes.set_title(f"{title}: {share:.0%} wrong", fontsize=9.5, color=INK)
        for axes in row[len(shares) :]:
            axes.set_axis_off()
        row[0].set_ylabel("wrong labels found, %", color=INK)
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, ncols=len(handles), loc="outside upper center", frameon=False, fontsize=9)
    return figure


def draw_panel(axes: Axes, cells: Sequence[dict[str, Any]]) -> None:
    """Hits against epochs, with standard errors; the early stop as open marks."""
    epochs = [reading["epoch"] for reading in cells[0]["readings"] if reading["name"] != STOPPED]
    stop = statistics.fmean(
        reading["epoch"] for cell in cells for reading in cell["readings"] if reading["name"] == STOPPED
    )
    for method, (label, colour, mark, line) in DRAWN.items():
        points = [values(cells, f"epoch {epoch}", method, "precision") for epoch in epochs]
        measured = [epoch for epoch, numbers in zip(epochs, points, strict=True) if numbers]
        points = [numbers for numbers in points if numbers]
        style = {"color": colour, "marker": mark, "linestyle": line, "markersize": 5, "capsize": 2, "linewidth": 1.5}
        means, errors = [statistics.fmean(one) for one in points], [standard_error(one) for one in points]
        axes.errorbar(measured, means, errors, label=label, **style)
        at_stop = values(cells, STOPPED, method, "precision")
        if at_stop:
            axes.plot([stop], [statistics.fmean(at_stop)], mark, color=colour, markersize=9, markerfacecolor="none")
    axes.axvline(stop, color=FAINT, linewidth=4, zorder=0)
    axes.annotate(
        "early stop", (stop, 0.02), xycoords=("data", "axes fraction"), fontsize=8, color="#777777", ha="center"
    )
    axes.set_xscale("log")
    axes.set_xticks(epochs, [str(epoch) for epoch in epochs])
    axes.set_xticks([], minor=True)
    axes.set_xlabel("epochs of training", color=INK)
    axes.grid(axis="y", color=FAINT, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
