"""Results of the benchmark of imbalanced classes as a picture: differences in each setting, recall by class size."""

import math
import statistics
from collections.abc import Sequence
from typing import Any

from balancing_scores import Estimate, Results, difference, judged, of_kind, pooled, recalls
from balancing_settings import REFERENCE
from matplotlib.axes import Axes
from matplotlib.figure import Figure

DRAWN = {
    "ours": ("ours", "#0072B2", "o"),
    "unsmoothed": ("ours without smoothing", "#56B4E9", "D"),
    "adapted": ("logit adjustment, smoothed labels", "#D55E00", "P"),
    "posthoc": ("post-hoc logit adjustment", "#CC79A7", "v"),
    "deferred": ("deferred re-weighting", "#009E73", "^"),
    "inverse": ("inverse-frequency sampler", "#E69F00", "s"),
    "plain": ("plain training", "#999999", "X"),
}
CURVES = {
    "plain": ("plain training", "#999999"),
    REFERENCE: ("logit adjustment", "#D55E00"),
    "ours": ("ours", "#0072B2"),
}
SHOWN = ("digits-20", "mnist-100", "cifar10-100-cnn")
LOW, HIGH = -7.0, 5.0  # beyond them a mark stands at the edge
INK, FAINT = "#333333", "#d9d9d9"


def draw(results: Results) -> Figure:
    """To the left the differences to logit adjustment, to the right recall of the classes from big to small."""
    rows = judged(results)
    curves = [row for row in rows if row["name"] in SHOWN] or rows[:1]
    figure = Figure(figsize=(14, 1.8 + 0.62 * (len(rows) + 2)), layout="constrained")
    parts: Any = figure.subfigures(1, 2, width_ratios=[1.7, 1])
    draw_differences(parts[0], results)
    panels = parts[1].subplots(len(curves), 1, squeeze=False)
    for axes, row in zip(panels[:, 0], curves, strict=True):
        draw_recalls(axes, row)
    panels[-1, 0].set_xlabel("classes from the biggest to the smallest", color=INK)
    handles, labels = panels[0, 0].get_legend_handles_labels()
    parts[1].legend(handles, labels, ncols=len(labels), loc="outside upper center", frameon=False, fontsize=9)
    return figure


def draw_differences(figure: Any, results: Results) -> None:
    """One line a setting, one mark a method; means of kinds below."""
    axes = figure.subplots()
    rows = judged(results)
    groups = [("mean of images", of_kind(results, "images")), ("mean of all", rows)]
    lines = [(row["title"], {name: difference(row, name) for name in DRAWN}) for row in rows]
    lines += [(title, {name: pooled(some, name) for name in DRAWN}) for title, some in groups if some]
    for place, (_, found) in enumerate(lines):
        for step, (name, estimate) in enumerate(found.items()):
            if estimate is not None:
                draw_mark(axes, place + 0.12 * (step - (len(DRAWN) - 1) / 2), name, estimate)
    axes.axvline(0, color=INK, linewidth=1)
    axes.axhline(len(rows) - 0.5, color=INK, linewidth=0.8)
    for place in range(len(lines)):
        axes.axhline(place - 0.5, color=FAINT, linewidth=0.6, zorder=0)
    axes.set_yticks(range(len(lines)), [title for title, _ in lines])
    axes.set_ylim(len(lines) - 0.5, -0.5)
    axes.set_xlim(LOW - 0.4, HIGH + 0.4)
    axes.set_xlabel("balanced accuracy less that of logit adjustment, points (arrows: beyond the edge)", color=INK)
    axes.grid(axis="x", color=FAINT, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    for label, colour, mark in DRAWN.values():
        axes.plot([], [], mark, color=colour, label=label)
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, ncols=3, loc="outside upper center", frameon=False, fontsize=9)


def draw_mark(axes: Axes, place: float, name: str, estimate: Estimate) -> None:
    """A mean with its standard error; an arrow at the edge where it lies outside."""
    _, colour, mark = DRAWN[name]
    if LOW <= estimate.mean <= HIGH:
        error = 0.0 if math.isnan(estimate.error) else estimate.error
        axes.errorbar([estimate.mean], [place], xerr=[error], fmt=mark, color=colour, markersize=5, linewidth=1.3)
        return
    edge = LOW if estimate.mean < LOW else HIGH
    axes.plot([edge], [place], "<" if edge == LOW else ">", color=colour, markersize=6)
    side = "left" if edge == LOW else "right"
    shift = 5 if edge == LOW else -5
    axes.annotate(
        f"{estimate.mean:+.1f}", (edge, place), (shift, 0), textcoords="offset points", fontsize=7, color=colour,
        ha=side, va="center",
    )  # fmt: skip


def draw_recalls(axes: Axes, row: dict[str, Any]) -> None:
    """Recall of the k-th biggest class, mean over seeds."""
    for name, (label, colour) in CURVES.items():
        found = [ranked(run, row["counts"][seed]) for seed, run in row["runs"].get(name, {}).items()]
        if found:
            heights = [100 * statistics.fmean(one) for one in zip(*found, strict=True)]
            axes.plot(range(1, len(heights) + 1), heights, "o-", color=colour, label=label, markersize=4, linewidth=1.5)
    sizes = sorted(next(iter(row["counts"].values())), reverse=True)
    axes.set_xticks(range(1, len(sizes) + 1), [str(size) for size in sizes])
    axes.set_title(f"{row['title']}: recall, %, by training samples of the class", fontsize=9.5, color=INK)
    axes.grid(axis="y", color=FAINT, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def ranked(run: dict[str, Any], counts: Sequence[int]) -> list[float]:
    """Recalls of the classes, the biggest class first."""
    pairs = sorted(zip(counts, recalls(run), strict=True), key=lambda one: -one[0])
    return [recall for _, recall in pairs]
