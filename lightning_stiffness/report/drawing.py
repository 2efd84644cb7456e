"""What the charts share: their look, axes, colours, marks at epochs, and what a pointer shows."""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, Final, Literal

import altair as alt

from lightning_stiffness.history import History
from lightning_stiffness.report.words import MINUS

Spec = dict[str, Any]
Row = dict[str, Any]
Layer = Any  # what Altair's encode() says that it returns

COLORS: Final = tuple(f"var(--series-{index})" for index in range(1, 9))
FONT: Final = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', sans-serif"
EPOCH: Final = "epoch"
FEW: Final = 40  # readings that still get a dot each


def spec_of(chart: Any, description: str) -> Spec:
    """A chart for the page, which sets its size and its `look`.

    Altair has checked each part when it was made; to check the whole again takes seconds where there is much data.
    """
    found: Spec = chart.properties(description=description, background="transparent").to_dict(validate=False)
    del found["config"]
    return found


def rounded(value: float) -> float | None:
    """A number for a chart, with six digits; None where it is not finite."""
    return float(f"{value:.6g}") if math.isfinite(value) else None


def look() -> Spec:
    """What all charts share, as the config of Vega-Lite."""
    line = {"gridColor": "var(--grid)", "domainColor": "var(--line)", "tickColor": "var(--line)"}
    words = {"labelColor": "var(--muted)", "titleColor": "var(--muted)", "labelFont": FONT, "titleFont": FONT}
    sizes = {"labelFontSize": 11, "titleFontSize": 11, "titleFontWeight": "normal", "titlePadding": 8, "tickSize": 4}
    marks = {"symbolType": "stroke", "symbolStrokeWidth": 3, "symbolSize": 180, "symbolOpacity": 1}
    legend = {"orient": "top", "labelColor": "var(--ink)", "labelFont": FONT, "labelFontSize": 12, "offset": 10}
    # the band of a curve must not make its name pale
    return {
        "font": FONT,
        "view": {"stroke": None},
        "axis": {**line, **words, **sizes},
        "axisY": {"domain": False, "ticks": False, "labelPadding": 6},
        "legend": {**legend, **marks, "labelLimit": 240, "columnPadding": 18},
        "text": {"color": "var(--ink)", "font": FONT},
        "locale": {"number": {"decimal": ".", "thousands": ",", "grouping": [3], "currency": ["", ""], "minus": MINUS}},
    }


def epoch_axis(field: str = EPOCH) -> alt.X:
    """Epochs, from the first to the last reading."""
    axis = alt.Axis(grid=False, labelExpr="format(datum.value, '.6~g')")
    return alt.X(f"{field}:Q", title="epoch", scale=alt.Scale(nice=False, padding=6), axis=axis)


def value_axis(field: str, title: str) -> alt.Y:
    """A number, over the range that it takes."""
    return alt.Y(f"{field}:Q", title=title, scale=alt.Scale(zero=False), axis=alt.Axis(tickCount=6))


def colors_by(colors: Mapping[str, str], field: str, symbol: str = "stroke") -> alt.Color:
    """A colour for each kind of line, with a legend if there is more than one."""
    scale = alt.Scale(domain=list(colors), range=list(colors.values()))
    legend = alt.Legend(title=None, symbolType=symbol) if len(colors) > 1 else None
    return alt.Color(f"{field}:N", scale=scale, legend=legend)


def dots(history: History) -> Any:
    """A dot at each reading, if there are few."""
    return alt.OverlayMarkDef(size=16, filled=True) if len(history) <= FEW else False


def zero_line() -> Layer:
    """Zero stays in sight: its sign is what a stiffness means."""
    return alt.Chart(alt.InlineData([{"zero": 0}])).mark_rule(color="var(--muted)", size=1).encode(y="zero:Q")


def hover(rows: Sequence[Row]) -> Layer:
    """All numbers of a reading, where the pointer is nearer to it than to others.

    A selection with `nearest` would do, but Vega-Lite 6.4 shows words as "undefined" then.
    """
    epochs = [row[EPOCH] for row in rows]
    middles = [(first + second) / 2 for first, second in pairwise(epochs)]
    starts, ends = [*epochs[:1], *middles], [*middles, *epochs[-1:]]
    names = [name for name in rows[0] if name != EPOCH] if rows else []
    safe = [
        {EPOCH: row[EPOCH], "from": start, "to": end, **{f"f{index}": row[name] for index, name in enumerate(names)}}
        for row, start, end in zip(rows, starts, ends, strict=True)
    ]
    hovered = alt.selection_point(on="pointerover", clear="pointerout", empty=False, fields=[EPOCH], name="hovered")
    tips = [alt.Tooltip("epoch:Q", format=".4~g")]
    tips += [alt.Tooltip(f"f{index}:N", title=name) for index, name in enumerate(names)]
    band = alt.Chart(alt.InlineData(safe)).mark_rect(color="var(--ink)", aria=False)
    opacity = alt.condition(hovered, alt.value(0.08), alt.value(0.0))
    return band.encode(x=epoch_axis("from"), x2="to:Q", opacity=opacity, tooltip=tips).add_params(hovered)


def mark_lines(marks: Mapping[str, float]) -> list[Layer]:
    """Dotted lines at epochs."""
    rows = [{EPOCH: rounded(epoch), "words": words} for words, epoch in marks.items()]
    rule = alt.Chart(alt.InlineData(rows)).mark_rule(color="var(--ink)", strokeWidth=1.2, strokeDash=[2, 3])
    return [rule.encode(x=epoch_axis(), tooltip="words:N")] if rows else []


def mark_words(marks: Mapping[str, float], history: History) -> list[Layer]:
    """Words beside the dotted lines, on the side where there is room, one below the other."""
    middle = (history[0].epoch + history[-1].epoch) / 2 if history else 0.0
    layers = []
    for row, (words, epoch) in enumerate(marks.items()):
        side: Literal["left", "right"] = "left" if epoch <= middle else "right"
        shift = 6 if side == "left" else -6
        base = alt.Chart(alt.InlineData([{EPOCH: rounded(epoch), "words": words}]))
        text = base.mark_text(align=side, dx=shift, baseline="top", fontSize=11)
        layers.append(text.encode(x=epoch_axis(), y=alt.value(4 + 15 * row), text="words:N"))
    return layers
