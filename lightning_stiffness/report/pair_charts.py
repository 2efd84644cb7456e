"""Charts of pairs and classes as Vega-Lite: bars, histograms, stiffness against distance."""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Final

import altair as alt

from lightning_stiffness.functional.distance import DistanceCurve
from lightning_stiffness.history import Reading
from lightning_stiffness.report.drawing import Row, Spec, colors_by, rounded, spec_of, value_axis, zero_line
from lightning_stiffness.report.words import short

PAIRS: Final = {"same class": "var(--within)", "different classes": "var(--between)"}


def bars_chart(now: Mapping[str, float], before: Mapping[str, float], labels: tuple[str, str]) -> Spec:
    """Stiffness within each class as bars, and a tick where it was before."""
    rows = [
        {"label": name, "value": rounded(value), "before": rounded(before.get(name, math.nan))}
        for name, value in now.items()
    ]
    base = alt.Chart(alt.InlineData(rows)).encode(
        y=alt.Y("label:N", sort=None, title=None, axis=alt.Axis(grid=False, ticks=False, domain=False, labelPadding=8)),
        tooltip=[
            alt.Tooltip("label:N", title="class"),
            alt.Tooltip("value:Q", title=labels[0], format=".3f"),
            alt.Tooltip("before:Q", title=labels[1], format=".3f"),
        ],
    )
    bar = base.mark_bar(color="var(--within)", cornerRadiusEnd=2, height={"band": 0.62})
    tick = base.mark_tick(color="var(--ink)", thickness=2, height={"band": 0.8})
    layers = [
        bar.encode(x=alt.X("value:Q", title="stiffness within the class", axis=alt.Axis(tickCount=5))),
        tick.encode(x="before:Q"),
    ]
    return spec_of(alt.layer(*layers), "Stiffness within each class, lowest first.")


def histogram_chart(reading: Reading, top: float) -> Spec:
    """Cosines of all pairs of a reading, of the same class and of different ones, each as shares of their own kind."""
    assert reading.detail is not None
    counts = (reading.detail.within_counts.tolist(), reading.detail.between_counts.tolist())
    width = 2 / len(counts[0])
    rows = [
        {"kind": kind, "low": rounded(index * width - 1), "high": rounded((index + 1) * width - 1), "share": share}
        for kind, values in zip(PAIRS, counts, strict=True)
        for index, share in enumerate(shares(values))
    ]
    chart = (
        alt.Chart(alt.InlineData(rows))
        .mark_rect(opacity=0.65)
        .encode(
            x=alt.X(
                "low:Q",
                title="cosine of two gradients",
                scale=alt.Scale(domain=[-1, 1]),
                axis=alt.Axis(grid=False, values=[-1, -0.5, 0, 0.5, 1]),
            ),
            x2="high:Q",
            y=alt.Y(
                "share:Q",
                title="share of pairs",
                stack=None,
                scale=alt.Scale(domain=[0, top]),
                axis=alt.Axis(format="%", tickCount=4),
            ),
            y2=alt.datum(0),
            color=colors_by(PAIRS, "kind", "square"),
            tooltip=[
                alt.Tooltip("kind:N", title="pairs"),
                alt.Tooltip("low:Q", title="from", format=".2f"),
                alt.Tooltip("high:Q", title="to", format=".2f"),
                alt.Tooltip("share:Q", format=".1%"),
            ],
        )
    )
    return spec_of(alt.layer(chart), f"Histogram of the cosines of pairs at epoch {short(reading.epoch)}.")


def shares(counts: Sequence[float]) -> list[float]:
    """Counts as shares of their sum.

    >>> shares([1.0, 3.0]), shares([0.0])
    ([0.25, 0.75], [0.0])
    """
    total = sum(counts) or 1.0
    return [float(f"{entry / total:.4g}") for entry in counts]


def distance_chart(curves: Mapping[str, DistanceCurve]) -> Spec:
    """Stiffness of pairs of the same class against the distance of their inputs, with the straight lines that fit."""
    points = [row for name, curve in curves.items() for row in _distance_points(name, curve)]
    lines = [row for name, curve in curves.items() for row in _distance_line(name, curve)]
    colors = colors_by(dict(zip(curves, ("var(--series-7)", "var(--series-3)", "var(--within)"), strict=False)), "kind")
    x = alt.X("distance:Q", title="distance of the inputs (1 \N{MINUS SIGN} cosine)", scale=alt.Scale(zero=False))
    y = value_axis("value", "mean cosine, same class")
    tips = [
        alt.Tooltip("kind:N", title="reading"),
        alt.Tooltip("distance:Q", format=".3f"),
        alt.Tooltip("value:Q", title="stiffness", format=".3f"),
        alt.Tooltip("pairs:Q"),
    ]
    layers = [
        zero_line(),
        alt.Chart(alt.InlineData(lines)).mark_line(strokeWidth=1.4, strokeDash=[5, 4]).encode(x=x, y=y, color=colors),
        alt.Chart(alt.InlineData(points))
        .mark_circle(size=52, opacity=0.9)
        .encode(x=x, y=y, color=colors, tooltip=tips),
    ]
    return spec_of(alt.layer(*layers), "Stiffness of the same class against the distance of the inputs.")


def _distance_points(name: str, curve: DistanceCurve) -> list[Row]:
    edges = curve.edges.tolist()
    middles = [(low + high) / 2 for low, high in pairwise(edges)]
    found = zip(middles, curve.means.tolist(), curve.counts.tolist(), strict=True)
    return [
        {"kind": name, "distance": rounded(at), "value": rounded(mean), "pairs": round(pairs)}
        for at, mean, pairs in found
        if math.isfinite(at) and math.isfinite(mean)
    ]


def _distance_line(name: str, curve: DistanceCurve) -> list[Row]:
    ends = [float(curve.edges[0]), float(curve.edges[-1])]
    values = [curve.intercept + curve.slope * end for end in ends]
    if not all(map(math.isfinite, (*ends, *values))):
        return []
    pairs = zip(ends, values, strict=True)
    return [{"kind": name, "distance": rounded(end), "value": rounded(value)} for end, value in pairs]
