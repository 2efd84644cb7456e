"""Charts of the balance of classes as Vega-Lite: matrices of both levels, takers, recalls, sacrificed classes."""

import math
from collections.abc import Sequence
from typing import Any, Final

import altair as alt
from torch import Tensor

from lightning_stiffness.balance import BalanceReading
from lightning_stiffness.balance_words import class_labels, class_names, shown_classes, takers
from lightning_stiffness.report.drawing import EPOCH, Layer, Spec, colors_by, epoch_axis, rounded, spec_of
from lightning_stiffness.report.matrix_chart import MOST_NUMBERS, heat_color, names_axis, numbers
from lightning_stiffness.report.words import percent

MOST_BARS: Final = 40  # classes with a row each
SHADES: Final = ("fight-24", "fight-20", "fight-16")  # colours of those that take most, second, third
REST: Final = "var(--missing)"
CLEAR, PALE = "var(--between)", "var(--fight-7)"  # classes that are sacrificed, and that may be


def level_chart(reading: BalanceReading, matrix: Tensor, title: str) -> Spec:
    """The class matrix of one level in cluster order, with boxes around the groups."""
    order = list(shown_classes(reading))
    named = class_labels(reading)
    labels = [named[label] for label in order]
    values = matrix[order][:, order]
    limit = max((abs(value) for value in values.flatten().tolist() if math.isfinite(value)), default=1.0) or 1.0
    total = len(order)
    rows = [
        {"x": column, "y": row, "value": rounded(value), "first": labels[row], "second": labels[column]}
        for row, entries in enumerate(values.tolist())
        for column, value in enumerate(entries)
        if math.isfinite(value)
    ]
    base = alt.Chart(alt.InlineData(rows)).transform_calculate(x2="datum.x + 1", y2="datum.y + 1")
    longest, name = max(map(len, labels)), "names[floor(datum.value)]"
    x = alt.X("x:Q", axis=names_axis("x", longest, name), scale=alt.Scale(domain=[0, total], nice=False))
    y = alt.Y("y:Q", axis=names_axis("y", longest, name), scale=alt.Scale(domain=[total, 0], nice=False))
    layers = [_cells(base, x, y, limit), *_boxes(reading, order)]
    if total <= MOST_NUMBERS:
        layers.append(numbers(base, limit, "fight"))
    names = alt.param(name="names", value=labels)
    chart = alt.layer(*layers).add_params(names, alt.param(name="step", value=1), alt.param(name="digits", value=10.5))
    spec = spec_of(chart.resolve_scale(color="independent"), f"{title}: which classes fight and which share.")
    return spec | {"usermeta": {"classes": total, "longest": longest, "ratio": 1}}


def takers_chart(reading: BalanceReading, shown: Sequence[int]) -> Spec:
    """A bar for each of some classes: who takes the probability that it loses."""
    labels, names = class_labels(reading), class_names(reading)
    rows = [row for label in shown for row in _shares(reading, label, labels[label], names)]
    axis = alt.Axis(grid=False, ticks=False, domain=False, labelPadding=8)
    y = alt.Y("label:N", sort=None, title=None, axis=axis)
    base = alt.Chart(alt.InlineData(rows))
    share = alt.Axis(format="%", tickCount=5)
    bar = base.mark_bar(height={"band": 0.75}).encode(
        x=alt.X("start:Q", title="share of the lost probability", scale=alt.Scale(domain=[0, 1]), axis=share),
        x2="end:Q",
        y=y,
        color=alt.Color("color:N", scale=None),
        tooltip=[
            alt.Tooltip("label:N", title="class"),
            alt.Tooltip("lost:N", title="loses"),
            alt.Tooltip("taker:N", title="taken by"),
            alt.Tooltip("share:Q", format=".0%"),
        ],
    )
    words = base.transform_filter("datum.named && datum.share > 0.06").transform_calculate(
        middle="(datum.start + datum.end) / 2"
    )
    text = words.mark_text(fontSize=11, tooltip=None, aria=False).encode(
        x="middle:Q", y=y, text="taker:N", color=alt.Color("on:N", scale=None)
    )
    lost = base.transform_filter("datum.start == 0").mark_text(align="right", dx=-6, fontSize=11, aria=False)
    return spec_of(
        alt.layer(bar, text, lost.encode(x=alt.datum(1), y=y, text="lost:N")), "Who takes whose probability."
    )


def recall_chart(reading: BalanceReading) -> Spec:
    """Recall of each class, the largest first: at the natural frequencies, and as the network says it."""
    labels = class_labels(reading)
    order = sorted(range(len(labels)), key=lambda label: (-float(reading.counts[label]), label))
    assert reading.recall is not None
    assert reading.natural_recall is not None
    before, after = reading.natural_recall.tolist(), reading.recall.tolist()
    rows = [
        {
            "place": place,
            "label": labels[label],
            "before": rounded(before[label]),
            "after": rounded(after[label]),
            "color": "var(--within)" if after[label] >= before[label] else "var(--between)",
        }
        for place, label in enumerate(order)
        if math.isfinite(after[label])
    ]
    base = alt.Chart(alt.InlineData(rows))
    scale, color = alt.Scale(domain=[0, 1]), alt.Color("color:N", scale=None)
    if len(order) <= MOST_BARS:
        axis = alt.Axis(grid=True, ticks=False, domain=False, labelPadding=8)
        place: dict[str, Any] = {"y": alt.Y("label:N", sort=None, title=None, axis=axis)}
        value, kind, second = "x", alt.X, "x2"
    else:
        title = f"{len(order):,} classes, from the largest to the smallest"
        place = {"x": alt.X("place:Q", title=title, scale=alt.Scale(nice=False, padding=6), axis=alt.Axis(grid=False))}
        value, kind, second = "y", alt.Y, "y2"  # type: ignore[assignment]
    tips = [
        alt.Tooltip("label:N", title="class"),
        alt.Tooltip("before:Q", title="at natural frequencies", format=".1%"),
        alt.Tooltip("after:Q", title="as the network says it", format=".1%"),
    ]

    def at(field: str) -> dict[str, Any]:
        return {
            **place,
            value: kind(f"{field}:Q", title="recall in validation", scale=scale, axis=alt.Axis(format="%")),
        }

    rule = base.mark_rule(strokeWidth=2).encode(**at("before"), **{second: "after:Q"}, color=color, tooltip=tips)
    ring = base.mark_point(size=60, filled=True, fill="var(--paper)", strokeWidth=1.8, opacity=1)
    dot = base.mark_point(size=60, filled=True, opacity=1)
    layers = [
        rule,
        ring.encode(**at("before"), stroke=color, tooltip=tips),
        dot.encode(**at("after"), color=color, tooltip=tips),
    ]
    return spec_of(alt.layer(*layers), "Recall of each class in validation.")


def share_chart(readings: Sequence[BalanceReading]) -> Spec:
    """Share of the small classes that are sacrificed, over the epochs."""
    kinds = {"all": "sacrificed_share", "beyond two standard errors": "clearly_sacrificed_share"}
    rows = [
        {EPOCH: rounded(one.epoch), "kind": kind, "share": rounded(getattr(one, name))}
        for kind, name in kinds.items()
        for one in readings
    ]
    point = alt.OverlayMarkDef(size=30, filled=True)
    line = alt.Chart(alt.InlineData(rows)).mark_line(strokeWidth=2.2, point=point)
    colors = colors_by(dict(zip(kinds, (PALE, CLEAR), strict=True)), "kind")
    y = alt.Y("share:Q", title="share of the small classes", scale=alt.Scale(domain=[0, 1]), axis=alt.Axis(format="%"))
    tips = [alt.Tooltip("kind:N"), alt.Tooltip("epoch:Q", format=".4~g"), alt.Tooltip("share:Q", format=".0%")]
    chart = line.encode(x=epoch_axis(), y=y, color=colors, tooltip=tips)
    return spec_of(chart, "Share of the small classes that are sacrificed.")


def raster_chart(readings: Sequence[BalanceReading], shown: Sequence[int]) -> Spec:
    """Which small classes are sacrificed at which reading."""
    labels = class_labels(readings[-1])
    rows = [
        {
            "label": labels[label],
            EPOCH: f"{one.epoch:.4g}",
            "progress": rounded(float(one.progress[label])),
            "error": rounded(float(one.progress_se[label])),
            "color": _color(one, label),
        }
        for label in shown
        for one in readings
    ]
    axis = alt.Axis(grid=False, ticks=False, domain=False, labelPadding=8)
    cell = alt.Chart(alt.InlineData(rows)).mark_rect(stroke="var(--paper)", strokeWidth=1)
    tips = [
        alt.Tooltip("label:N", title="class"),
        alt.Tooltip("epoch:N"),
        alt.Tooltip("progress:Q", title="progress of the mean step", format=".3g"),
        alt.Tooltip("error:Q", title="standard error", format=".2g"),
    ]
    return spec_of(
        cell.encode(
            x=alt.X("epoch:O", sort=None, title="epoch of the reading", axis=alt.Axis(labelAngle=0, grid=False)),
            y=alt.Y("label:N", sort=None, title=None, axis=axis),
            color=alt.Color("color:N", scale=None),
            tooltip=tips,
        ),
        "Which small classes are sacrificed at which reading.",
    )


def _color(reading: BalanceReading, label: int) -> str:
    if math.isnan(float(reading.progress[label])):
        return "var(--missing)"
    if label in reading.clearly_sacrificed:
        return CLEAR
    return PALE if label in reading.sacrificed else "var(--fight-15)"


def _shares(reading: BalanceReading, label: int, name: str, names: Sequence[str]) -> list[dict[str, Any]]:
    lost = float(reading.lost[label])
    shared = {"label": name, "lost": "no sample" if math.isnan(lost) else f"loses {percent(lost)}"}
    rows: list[dict[str, Any]] = []
    start = 0.0
    for shade, (other, share) in zip(SHADES, takers(reading, label), strict=False):
        end = start + share
        part = {
            "start": rounded(start),
            "end": rounded(end),
            "share": rounded(share),
            "color": f"var(--{shade})",
            "on": f"var(--on-{shade})",
        }
        rows.append({**shared, **part, "taker": names[other], "named": True})
        start = end
    part = {"start": rounded(start), "end": 1.0, "share": rounded(max(1 - start, 0.0)), "color": REST}
    return [*rows, {**shared, **part, "taker": "all others", "named": False}]


def _cells(base: alt.Chart, x: alt.X, y: alt.Y, limit: float) -> Layer:
    tips = [
        alt.Tooltip("first:N", title="class"),
        alt.Tooltip("second:N", title="with class"),
        alt.Tooltip("value:Q", title="mean cosine", format="+.3f"),
    ]
    cell = base.mark_rect(aria=False)
    return cell.encode(x=x, x2="x2:Q", y=y, y2="y2:Q", color=heat_color("fight", limit), tooltip=tips)


def _boxes(reading: BalanceReading, order: Sequence[int]) -> list[Layer]:
    places = [[order.index(label) for label in group if label in order] for group in reading.members]
    rows = [{"low": min(found), "high": max(found) + 1} for found in places if len(found) > 1]
    if not rows:
        return []
    frame = alt.Chart(alt.InlineData(rows)).mark_rect(filled=False, stroke="var(--ink)", strokeWidth=2, aria=False)
    return [frame.encode(x="low:Q", x2="high:Q", y="low:Q", y2="high:Q")]
