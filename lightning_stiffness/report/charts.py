"""Charts over epochs as Vega-Lite: stiffness, losses, and several runs. Colours are CSS variables of the page."""

import math
from collections.abc import Mapping, Sequence
from typing import Final

import altair as alt

from lightning_stiffness.history import History, Reading
from lightning_stiffness.report.drawing import (
    COLORS,
    EPOCH,
    Row,
    Spec,
    colors_by,
    dots,
    epoch_axis,
    hover,
    mark_lines,
    mark_words,
    rounded,
    spec_of,
    value_axis,
    zero_line,
)
from lightning_stiffness.report.words import short, with_error

LINE: Final = 2.0  # width of the line of a run
WIDER: Final = 3  # runs whose lines differ in width
WIDENING: Final = 3.0  # of each of them beside the one above it
STIFFNESS: Final = {"within classes": "var(--within)", "between classes": "var(--between)"}


def stiffness_chart(history: History, marks: Mapping[str, float]) -> Spec:
    """Within and between over epochs with bands of two standard errors; the sign, which a switch shows."""
    rows = [row for reading in history for row in _stiffness_rows(reading)]
    base = alt.Chart(alt.InlineData(rows))
    shown = base.transform_filter("show_sign || !datum.sign")
    colors = colors_by(STIFFNESS, "kind")
    band = base.transform_filter("!datum.sign").mark_area(opacity=0.18)
    y = value_axis("value", "stiffness (mean cosine)")
    layers = [
        zero_line(),
        band.encode(x=epoch_axis(), y=alt.Y("low:Q"), y2="high:Q", color=colors),
        shown.mark_line(strokeWidth=2.2, point=dots(history)).encode(
            x=epoch_axis(), y=y, color=colors, strokeDash=_dash("sign"), detail="sign:N"
        ),
        *mark_lines(marks),
        *mark_words(marks, history),
        hover([_stiffness_tip(reading) for reading in history]),
    ]
    chart = alt.layer(*layers).add_params(alt.param(name="show_sign", value=False))
    return spec_of(chart, "Stiffness within and between classes over the epochs of training.")


def lines_chart(history: History, series: Mapping[str, str], unit: str, marks: Mapping[str, float]) -> Spec:
    """Several numbers of a history over epochs.

    Args:
        history: the readings.
        series: names of numbers as in `History.series`, with what they are called in the chart.
        unit: title of the axis.
        marks: epochs to mark, by words.
    """
    columns = {label: history.series(name).tolist() for name, label in series.items()}
    return columns_chart(history, columns, unit, marks)


def columns_chart(
    history: History, columns: Mapping[str, Sequence[float]], unit: str, marks: Mapping[str, float]
) -> Spec:
    """As `lines_chart`, with the values themselves."""
    epochs = [rounded(reading.epoch) for reading in history]
    rows = [
        {EPOCH: epoch, "kind": label, "value": rounded(value)}
        for label, values in columns.items()
        for epoch, value in zip(epochs, values, strict=True)
    ]
    wide = [
        {EPOCH: epoch, **{label: short(values[index]) for label, values in columns.items()}}
        for index, epoch in enumerate(epochs)
    ]
    colors = colors_by(dict(zip(columns, COLORS, strict=False)), "kind")
    line = alt.Chart(alt.InlineData(rows)).mark_line(strokeWidth=2, point=dots(history))
    layers = [line.encode(x=epoch_axis(), y=value_axis("value", unit), color=colors), *mark_lines(marks), hover(wide)]
    return spec_of(alt.layer(*layers), f"{', '.join(columns)} over the epochs of training.")


def runs_chart(histories: Mapping[str, History], name: str, unit: str) -> Spec:
    """One number of several runs over epochs; a click on a name lifts its run."""
    rows = [
        {EPOCH: rounded(reading.epoch), "run": run, "value": rounded(value), "width": width}
        for (run, history), width in zip(histories.items(), _widths(len(histories)), strict=True)
        for reading, value in zip(history, _known_series(history, name), strict=True)
    ]
    picked = alt.selection_point(fields=["run"], bind="legend", name="picked")
    colors = {run: COLORS[index % len(COLORS)] for index, run in enumerate(histories)}
    line = (
        alt.Chart(alt.InlineData(rows))
        .mark_line(point=alt.OverlayMarkDef(size=18, filled=True))
        .encode(
            x=epoch_axis(),
            y=value_axis("value", unit),
            color=colors_by(colors, "run"),
            strokeWidth=alt.StrokeWidth("width:Q", scale=None),
            opacity=alt.condition(picked, alt.value(1.0), alt.value(0.15)),
            tooltip=[
                alt.Tooltip("run:N"),
                alt.Tooltip("epoch:Q", format=".4~g"),
                alt.Tooltip("value:Q", format=".4~g"),
            ],
        )
        .add_params(picked)
    )
    return spec_of(alt.layer(line), f"{unit} of each run over the epochs of training.")


def _widths(lines: int) -> list[float]:
    """Lines that lie below are wider: runs that differ in their end only are one and the same until then."""
    return [LINE + WIDENING * max(0, min(lines, WIDER) - 1 - index) for index in range(lines)]


def _stiffness_rows(reading: Reading) -> list[Row]:
    rows = []
    for sign, stiffness in ((False, reading.cosine), (True, reading.sign)):
        values = ((stiffness.within, stiffness.within_se), (stiffness.between, stiffness.between_se))
        for kind, (value, error) in zip(STIFFNESS, values, strict=True):
            width = 2 * error if math.isfinite(error) else 0.0
            row: Row = {EPOCH: rounded(reading.epoch), "kind": kind, "sign": sign, "value": rounded(value)}
            rows.append({**row, "low": rounded(value - width), "high": rounded(value + width)})
    return rows


def _stiffness_tip(reading: Reading) -> Row:
    return {
        EPOCH: rounded(reading.epoch),
        "step": reading.step,
        "within classes": with_error(reading.cosine.within, reading.cosine.within_se),
        "between classes": with_error(reading.cosine.between, reading.cosine.between_se),
        "within, sign": with_error(reading.sign.within, reading.sign.within_se),
        "between, sign": with_error(reading.sign.between, reading.sign.between_se),
        "loss of the probe": short(reading.loss),
    }


def _known_series(history: History, name: str) -> list[float]:
    return [{**reading.logged, **reading.metrics()}.get(name, math.nan) for reading in history]


def _dash(field: str) -> alt.StrokeDash:
    scale = alt.Scale(domain=[False, True], range=[[1, 0], [5, 4]])
    return alt.StrokeDash(f"{field}:N", scale=scale, legend=None)
