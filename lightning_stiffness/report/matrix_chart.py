"""The class matrix as Vega-Lite: a slider and the order of the classes are signals, which the page sets."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import altair as alt

from lightning_stiffness.functional.class_tree import ClassTree
from lightning_stiffness.history import History
from lightning_stiffness.report.drawing import Layer, Spec, spec_of
from lightning_stiffness.report.matrix import SCALE, Frames, Segment, dendrogram, orders
from lightning_stiffness.report.words import class_names, listed, number

MOST_NUMBERS: Final = 12  # classes, up to which the cells show their values
HEAT: Final = 25  # colours from one end of the scale to the other; the page has one variable for each
TREE: Final = 0.24  # width of the dendrogram, as a share of the matrix
STRIP: Final = 0.035  # the same for the colours of the super-classes


def matrix_chart(history: History, shown: Frames, tree: ClassTree) -> Spec:
    """The class matrix of the reading number `frame`, in the order `order`, with the tree of the classes beside it."""
    total = len(shown.classes)
    places = orders(history, shown.classes, tree)
    known = class_names(history.probe)
    names = [known[label] for label in shown.classes]
    groups = history.probe.superclasses
    base = _cells(total)
    longest = max(map(len, names))
    left = -total * STRIP if groups is not None else 0.0
    axes = _axes(total, longest, left)
    layers = [_ground(axes), _rectangles(base, shown.limit, axes)]
    if total <= MOST_NUMBERS:
        layers.append(numbers(base, shown.limit))
    layers.append(_tree(dendrogram(tree), names, total))
    if groups is not None:
        layers += [_strip([groups[label] for label in shown.classes], names), *_borders(places["super"], shown, groups)]
    chart = alt.layer(*layers).add_params(
        alt.param(name="frame", value=len(shown.entries) - 1),
        alt.param(name="order", value="tree"),
        alt.param(name="names", value=names),
        alt.param(name="orders", value=places),
        alt.param(name="ranks", value={order: _inverse(labels) for order, labels in places.items()}),
        alt.param(name="step", value=1),
        alt.param(name="digits", value=10.5),
    )
    spec = spec_of(chart.resolve_scale(color="independent"), _described(total))
    spec["params"].append({"name": "frames", "value": shown.entries})  # Altair would check each of so many numbers
    return spec | {"usermeta": _layout(total, longest, left)}


def matrix_width(total: int, has_groups: bool) -> float:
    """Width of the whole drawing over its height.

    >>> round(matrix_width(10, has_groups=False), 2)
    1.28
    """
    return 1 + (STRIP if has_groups else 0.0) + (TREE + 0.04 if total > 2 else 0.0)


def _described(total: int) -> str:
    return f"Class matrix of {total} classes: mean cosine of the gradients of two samples, one of each class."


def _layout(total: int, longest: int, left: float) -> dict[str, Any]:
    """What the page needs to size it."""
    return {"classes": total, "longest": longest, "ratio": matrix_width(total, left < 0)}


def _cells(total: int) -> Layer:
    """One row for each cell, whose value and place follow the signals."""
    rows = alt.Chart(alt.sequence(0, total * total, as_="cell"))
    return (
        rows.transform_calculate(row=f"floor(datum.cell / {total})", column=f"datum.cell % {total}")
        .transform_calculate(
            value="frames[frame][datum.cell]",
            x="ranks[order][datum.column]",
            y="ranks[order][datum.row]",
            first="names[datum.row]",
            second="names[datum.column]",
        )
        .transform_filter("isValid(datum.value)")
        .transform_calculate(value=f"datum.value / {SCALE}", x2="datum.x + 1", y2="datum.y + 1")
    )


def _axes(total: int, longest: int, left: float) -> dict[str, Any]:
    """Both axes in units of classes; left of the matrix is the strip of super-classes, right of it the tree."""
    right = total * (1.04 + TREE) if total > 2 else total
    return {
        "x": alt.X("x:Q", axis=names_axis("x", longest), scale=alt.Scale(domain=[left, right], nice=False)),
        "y": alt.Y("y:Q", axis=names_axis("y", longest), scale=alt.Scale(domain=[total, 0], nice=False)),
        "total": total,
    }


def _rectangles(base: alt.Chart, limit: float, axes: Mapping[str, Any]) -> Layer:
    gap = 1.0 if axes["total"] <= MOST_NUMBERS * 2 else 0.0
    return base.mark_rect(aria=False, stroke="var(--paper)", strokeWidth=gap).encode(
        x=axes["x"],
        x2="x2:Q",
        y=axes["y"],
        y2="y2:Q",
        color=heat_color("heat", limit),
        tooltip=[
            alt.Tooltip("first:N", title="class"),
            alt.Tooltip("second:N", title="with class"),
            alt.Tooltip("value:Q", title="stiffness", format="+.3f"),
        ],
    )


def heat_color(name: str, limit: float) -> alt.Color:
    """One of the page's colours of that name for each step of the value."""
    colors = [f"var(--{name}-{index})" for index in range(HEAT)]
    return alt.Color("value:Q", scale=alt.Scale(type="quantize", domain=[-limit, limit], range=colors), legend=None)


def names_axis(side: str, longest: int, name: str = "names[orders[order][floor(datum.value)]]") -> alt.Axis:
    """The names of the classes, or every so many of them where there is no room for all."""
    is_turned = side == "x" and longest > 2
    angle = {"labelAngle": -90, "labelAlign": "right", "labelBaseline": "middle"} if is_turned else {"labelAngle": 0}
    return alt.Axis(
        values=alt.ExprRef("sequence(0.5, length(names), step)"),
        tickCount=1000,  # else Vega leaves out values
        labelExpr=name,
        labelOverlap=False,
        grid=False, ticks=False, domain=False, title=None, labelPadding=6, labelColor="var(--ink)",
        **angle,
    )  # fmt: skip


def _ground(axes: Mapping[str, Any]) -> Layer:
    """What is seen where no pair counts."""
    data = alt.InlineData([{"x": 0, "x2": axes["total"], "y": 0, "y2": axes["total"]}])
    square = alt.Chart(data).mark_rect(color="var(--missing)", aria=False, tooltip=None)
    return square.encode(x=axes["x"], x2="x2:Q", y=axes["y"], y2="y2:Q")


def numbers(base: alt.Chart, limit: float, colors: str = "heat") -> Layer:
    """The values of the cells, in colours that can be read on those of the cells."""
    text = base.transform_calculate(
        at_x="datum.x + 0.5",
        at_y="datum.y + 0.5",
        text="replace(replace(format(round(datum.value * 100) / 100 + 0, '.2f'), '0.', '.'), '-', '\N{MINUS SIGN}')",
    )
    return text.mark_text(fontSize=alt.ExprRef("digits"), tooltip=None, aria=False).encode(
        x="at_x:Q", y="at_y:Q", text="text:N", color=heat_color(f"on-{colors}", limit)
    )


def _tree(segments: Sequence[Segment], names: Sequence[str], total: int) -> Layer:
    """The dendrogram, right of the matrix: the farther right, the less stiff two groups of classes are."""
    levels = [level for line in segments for level in (line.stiffness, line.end_stiffness)]
    top, low = max(levels, default=1.0), min(levels, default=0.0)

    def at(stiffness: float) -> float:
        return round(total * (1.02 + TREE * (top - stiffness) / max(top - low, 1e-9)), 4)

    rows = [
        {
            "x": at(line.stiffness),
            "x2": at(line.end_stiffness),
            "y": line.place,
            "y2": line.end_place,
            "members": listed([names[label] for label in line.members], 8),
            "level": number(line.end_stiffness),
        }
        for line in segments
    ]
    shown = alt.Chart(alt.InlineData(rows)).transform_filter("order === 'tree'")
    tips = [alt.Tooltip("members:N", title="classes"), alt.Tooltip("level:N", title="joined at stiffness")]
    rule = shown.mark_rule(color="var(--muted)", strokeWidth=1.2, strokeCap="square", aria=False)
    return rule.encode(x="x:Q", x2="x2:Q", y="y:Q", y2="y2:Q", tooltip=tips)


def _strip(groups: Sequence[int], names: Sequence[str]) -> Layer:
    """A colour for the super-class of each row; eight colours go round."""
    known = sorted(set(groups))
    rows = [
        {"label": index, "name": names[index], "group": f"super-class {group}", "color": known.index(group) % 8 + 1}
        for index, group in enumerate(groups)
    ]
    total = len(groups)
    color = alt.Scale(domain=list(range(1, 9)), range=[f"var(--series-{index})" for index in range(1, 9)])
    placed = (
        alt.Chart(alt.InlineData(rows))
        .transform_calculate(y="ranks[order][datum.label]")
        .transform_calculate(y2="datum.y + 1", x=str(-total * STRIP), x2=str(-total * STRIP * 0.25))
    )
    return placed.mark_rect(aria=False).encode(
        x="x:Q",
        x2="x2:Q",
        y="y:Q",
        y2="y2:Q",
        color=alt.Color("color:N", scale=color, legend=None),
        tooltip=[alt.Tooltip("name:N", title="class"), alt.Tooltip("group:N", title="belongs to")],
    )


def _borders(order: Sequence[int], shown: Frames, groups: Sequence[int]) -> list[Layer]:
    """Frames around the blocks of the super-classes, in their order."""
    total, starts = len(order), [0]
    found = [groups[shown.classes[place]] for place in order]
    starts += [index for index in range(1, total) if found[index] != found[index - 1]]
    rows = [{"low": low, "high": high} for low, high in zip(starts, [*starts[1:], total], strict=True)]
    base = alt.Chart(alt.InlineData(rows)).transform_filter("order === 'super'")
    frame = base.mark_rect(filled=False, color="var(--ink)", strokeWidth=1.4, aria=False)
    return [frame.encode(x="low:Q", x2="high:Q", y="low:Q", y2="high:Q")]


def _inverse(order: Sequence[int]) -> list[int]:
    """The place of each class in an order."""
    return sorted(range(len(order)), key=order.__getitem__)
