"""Results of the scaling benchmark as JSON, as Markdown and as a picture."""

import json
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from cells import Cell, Outcome
from gram_report import MARKS, Mark, table
from gram_results import finite, number
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from models import ALL_MODELS
from peers import METHODS

DRAWN = {"floor": Mark("#333333", "_"), **{name: MARKS[name] for name in ("ours", "class_cosine", "vmap")}}
FITTED = 4  # of the largest points, through which a slope is fitted
LEAST_SECONDS, LEAST_MEGABYTES = 0.02, 20.0  # below, a slope is that of fixed costs

PAPER = """## Cost on paper

n samples, p parameters, t positions of a linear map a -> b (for a convolution: output positions, a = channels in times
the filter's area), c classes. Operations are multiply-adds, of K for the upper triangle alone.

| per-sample gradient of | K | class cosine | memory beside activations |
| --- | --- | --- | --- |
| linear map, one position | n^2 (a + b) / 2: two small Gram matrices | n a b | n (a + b) |
| linear map, t positions | the lesser of n t a b + n^2 a b / 2 and n^2 t^2 (a + b) / 2 | n t a b | 16 MB blocks |
| convolution | n t a b + n^2 a b / 2: explicit, in blocks | n t a b | 16 MB blocks |
| norm, bias, position | n^2 b / 2 | n b | n b |
| embedding, t tokens | pairs of equal tokens: up to n^2 t^2 b / 2 | n t b | n t b |
| any parameter without a rule | n^2 p / 2 beside its vmap | n p | blocks of p |

So K costs O(n p) for forward, backward and explicit gradients and O(n^2 p) for products, with p replaced by widths
where a perceptron allows it; class cosine costs O(n p) throughout and needs the memory of c p sums, whatever n is.
Activations take O(n) memory up to the budget, a quarter of the memory and 4 GiB at most; K itself takes 8 n^2 bytes
(more while it is made). vmap(grad) holds n p numbers."""


@dataclass(frozen=True)
class ScaleResults:
    """Everything that was measured; `large` within a limit of memory."""

    outcomes: dict[Cell, Outcome]
    large: dict[Cell, Outcome]
    environment: dict[str, Any]
    settings: dict[str, Any]
    fixtures: dict[str, dict[str, float]]

    def parameters(self, model: str) -> float:
        """The number p of parameters."""
        return self.fixtures[model]["parameters"]


Quantity = Callable[[Outcome], float]


def seconds(outcome: Outcome) -> float:
    """The fastest call: the least disturbed one."""
    return min(outcome.seconds) if outcome.is_measured else math.nan


def megabytes(outcome: Outcome) -> float:
    """Extra memory."""
    return math.nan if outcome.extra_megabytes is None else outcome.extra_megabytes


@dataclass(frozen=True)
class Series:
    """One method against n, or against p."""

    method: str
    points: tuple[tuple[float, Outcome], ...]

    def values(self, quantity: Quantity) -> list[tuple[float, float]]:
        """Points with a value."""
        found = [(x, quantity(outcome)) for x, outcome in self.points]
        return [(x, y) for x, y in found if y > 0]

    def slope(self, quantity: Quantity, least: float) -> float:
        """Exponent of a power law through the largest points; nan where fixed costs are most of them."""
        found = [point for point in self.values(quantity) if point[1] >= least][-FITTED:]
        if len(found) < 2:
            return math.nan
        x, y = np.log(np.array(found)).T
        return float(np.polyfit(x, y, 1)[0])


def against_n(results: ScaleResults, model: str) -> list[Series]:
    """All methods of a model against n."""
    return [
        Series(
            method, tuple(sorted((cell.samples, o) for cell, o in results.outcomes.items() if _is(cell, model, method)))
        )
        for method in DRAWN
    ]


def _is(cell: Cell, model: str, method: str) -> bool:
    return cell.model == model and cell.method == method


def against_p(results: ScaleResults, model: str) -> list[Series]:
    """All methods of a model of several widths against p."""
    samples = results.settings["width_samples"]
    found = []
    for method in DRAWN:
        points = [
            (results.parameters(cell.model), outcome)
            for cell, outcome in results.outcomes.items()
            if cell.method == method and cell.samples == samples and cell.model.split("_x")[0] == model
        ]
        found.append(Series(method, tuple(sorted(points, key=lambda point: point[0]))))
    return found


def write(results: ScaleResults, folder: Path) -> str:
    """Writes gram_scale.json, .md and, where there is a series, .png to the folder; returns the Markdown."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "gram_scale.json").write_text(json.dumps(as_json(results), indent=1, allow_nan=False) + "\n")
    text = markdown(results)
    (folder / "gram_scale.md").write_text(text)
    if drawn_models(results):
        figure = draw(results)
        FigureCanvasAgg(figure)
        figure.savefig(folder / "gram_scale.png", dpi=130)
    return text


def as_json(results: ScaleResults) -> dict[str, Any]:
    """Every number of the run."""

    def cells(outcomes: dict[Cell, Outcome]) -> list[dict[str, Any]]:
        rows = [asdict(cell) | asdict(outcome) for cell, outcome in outcomes.items()]
        return [{name: finite(value) for name, value in row.items()} for row in rows]

    head = {"environment": results.environment, "settings": results.settings, "fixtures": results.fixtures}
    return head | {"cells": cells(results.outcomes), "large": cells(results.large)}


def markdown(results: ScaleResults) -> str:
    """The environment, the cost on paper, slopes, the large models, blocks within classes, and all cells."""
    parts = ["# Scale of the exact Gram matrix of per-sample gradients", environment_line(results), PAPER]
    parts += slope_section(results) + large_section(results) + within_section(results)
    parts += ["## All cells", cell_table(results)]
    return "\n\n".join(parts) + "\n"


def environment_line(results: ScaleResults) -> str:
    """What the run was measured on."""
    facts = results.environment
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items() if version)
    return (
        f"{facts['date']}, {facts['processor']}, 1 thread, {versions}; large float32 products reach "
        f"{facts['peak_gflops']['1']:.0f} GFLOP/s. The fastest of a few calls, each cell in a process of its own. "
        f"vmap(grad) may take {results.settings['peer_memory']:g} GiB. Floor: one forward and one backward of the same "
        "batch, n > 500 in equal parts."
    )


def drawn_models(results: ScaleResults) -> list[str]:
    """The models with a series."""
    return [name for name in ("mlp", "cnn") if any(cell.model == name for cell in results.outcomes)]


def slope_section(results: ScaleResults) -> list[str]:
    """Exponents of the largest points."""
    lines = []
    for model in drawn_models(results):
        for axis, series in (("n", against_n(results, model)), ("p", against_p(results, model))):
            for one in series:
                if len(one.values(seconds)) > 1:
                    slopes = one.slope(seconds, LEAST_SECONDS), one.slope(megabytes, LEAST_MEGABYTES)
                    largest = one.values(seconds)[-1][0]
                    names = [ALL_MODELS[model].title, METHODS[one.method].title, axis, f"{largest:,.0f}"]
                    lines.append([*names, *(_power(axis, slope) for slope in slopes), _end(one)])
    if not lines:
        return []
    text = (
        f"Exponents of power laws through the {FITTED} largest points above {LEAST_SECONDS} s and "
        f"{LEAST_MEGABYTES:g} MB; a dash where there are not two of them."
    )
    head = ["", "method", "against", "up to", "time", "extra memory", "ends with"]
    return ["## Measured", text, table(head, lines)]


def _power(axis: str, slope: float) -> str:
    return "-" if math.isnan(slope) else f"{axis}^{slope:.2f}"


def _end(series: Series) -> str:
    """Why a series ends before the others."""
    reasons = [outcome.status for _, outcome in series.points if not outcome.is_measured]
    return reasons[0] if reasons else ""


def large_section(results: ScaleResults) -> list[str]:
    """The models whose gradients would not fit."""
    if not results.large:
        return []
    lines = []
    for cell, outcome in results.large.items():
        gradients = 4e-9 * cell.samples * results.parameters(cell.model)
        names = [ALL_MODELS[cell.model].title, f"{results.parameters(cell.model) / 1e6:.1f}M", str(cell.samples)]
        found = (
            [f"{seconds(outcome):.0f}", f"{megabytes(outcome):,.0f}"] if outcome.is_measured else [outcome.status, ""]
        )
        error = "" if outcome.largest_error is None else f"{outcome.largest_error:.0e}"
        lines.append([*names, f"{gradients:.1f}", *found, error])
    text = (
        f"`GramEngine` with a budget of {results.settings['large_budget']:g} GiB in a process whose address space may "
        "grow by no more than 2 GiB (RLIMIT_AS) after model and data are loaded; explicit gradients would take the GB "
        "of the fourth column."
    )
    reasons = [f"{cell.model}: {o.status}: {o.reason}" for cell, o in results.large.items() if not o.is_measured]
    head = ["", "p", "n", "n p in GB", "seconds", "extra MB", "largest error"]
    return ["## Gradients that would not fit", text, table(head, lines), *reasons]


def within_section(results: ScaleResults) -> list[str]:
    """K beside its blocks within classes."""
    lines, reasons = [], set()
    for cell, outcome in results.outcomes.items():
        whole = results.outcomes.get(Cell(cell.model, "ours", cell.samples))
        if cell.method != "within" or whole is None:
            continue
        floor = statistics.median(outcome.floor_seconds) if outcome.floor_seconds else math.nan
        times = [seconds(whole), seconds(outcome)]
        if not outcome.is_measured:
            reasons.add(f"{outcome.status}: {outcome.reason}")
        shown = [f"{time:.3g} ({number(time / floor)} x)" if time > 0 else outcome.status for time in times]
        memory = [f"{megabytes(one):.0f}" for one in (whole, outcome)]
        lines.append([ALL_MODELS[cell.model].title, str(cell.samples), *shown, *memory])
    if not lines:
        return []
    text = (
        "Only pairs within a class: of 10 classes of equal size a tenth of the pairs, hence of the products; "
        "forward, backward and explicit gradients stay. Seconds, and multiples of the floor."
    )
    head = ["", "n", "K", "within classes", "MB", "MB within"]
    return ["## Only the blocks that are asked for", text, table(head, lines), *sorted(reasons)]


def cell_table(results: ScaleResults) -> str:
    """One line a cell."""
    lines = []
    for cell, outcome in results.outcomes.items():
        names = [ALL_MODELS[cell.model].title, f"{results.parameters(cell.model):,.0f}", str(cell.samples)]
        names.append(METHODS[cell.method].title)
        if outcome.is_measured:
            found = [f"{seconds(outcome):.4g}", f"{megabytes(outcome):.0f}", ""]
        else:
            found = [outcome.status, "", outcome.reason]
        lines.append([*names, *found])
    return table(["", "p", "n", "method", "seconds", "extra MB", ""], lines)


def draw(results: ScaleResults) -> Figure:
    """Time above, memory below; models against n and against p."""
    models = drawn_models(results)
    columns = [(model, axis) for axis in ("n", "p") for model in models]
    figure = Figure(figsize=(1.0 + 3.7 * len(columns), 7.2), layout="constrained")
    panels = figure.subplots(2, len(columns), squeeze=False, sharey="row")
    for column, (model, axis) in enumerate(columns):
        series = against_n(results, model) if axis == "n" else against_p(results, model)
        title = ALL_MODELS[model].title
        title += " against n" if axis == "n" else f" against p (n = {results.settings['width_samples']})"
        panels[0, column].set_title(title, fontsize=10)
        draw_panel(panels[0, column], series, seconds, (1, 2) if axis == "n" else (1,))
        draw_panel(panels[1, column], series, megabytes, (1,))
        panels[1, column].set_xlabel("samples n" if axis == "n" else "parameters p")
    panels[0, 0].set_ylabel("seconds (fastest call)")
    panels[1, 0].set_ylabel("extra memory, MB")
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, ncols=5, loc="outside upper center", fontsize=9, frameon=False)
    return figure


def draw_panel(axes: Axes, series: Sequence[Series], quantity: Quantity, powers: Sequence[int]) -> None:
    """Lines on two logarithmic axes, with slopes for comparison; in words why a series had to end."""
    for one in series:
        found = one.values(quantity)
        mark = DRAWN[one.method]
        style = {"color": mark.colour, "marker": mark.shape, "markersize": 5, "linewidth": 1.5}
        axes.plot([x for x, _ in found], [y for _, y in found], label=METHODS[one.method].title, **style)
        ended = [x for x, outcome in one.points if not outcome.is_measured]
        if ended and found:
            note = next(outcome.status for _, outcome in one.points if not outcome.is_measured)
            place = {"textcoords": "offset points", "fontsize": 7, "color": mark.colour, "va": "bottom", "ha": "right"}
            axes.annotate(f"then {note}", found[-1], (-2, 5), **place)
    axes.set_xscale("log")
    axes.set_yscale("log")
    draw_slopes(axes, next((one.values(quantity) for one in series if one.method == "ours"), []), powers)
    axes.xaxis.set_major_locator(LogLocator(base=10))
    axes.xaxis.set_major_formatter(FuncFormatter(short))
    axes.yaxis.set_major_formatter(FuncFormatter(short))
    for direction in (axes.xaxis, axes.yaxis):
        direction.set_minor_formatter(NullFormatter())
    axes.grid(color="#e3e3e3", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def draw_slopes(axes: Axes, ours: Sequence[tuple[float, float]], powers: Sequence[int]) -> None:
    """Thin lines of the given slopes through our last point, over a decade."""
    if len(ours) < 2:
        return
    stop, last = ours[-1]
    start = max(ours[0][0], stop / 10)
    for power in powers:
        first = last * (start / stop) ** power
        label = "slopes 1 and 2" if power == 2 else None
        axes.plot([start, stop], [first, last], color="#888888", linewidth=1.0, linestyle=":", zorder=1, label=label)
        axes.annotate(str(power), (start, first), (-7, -3), textcoords="offset points", fontsize=8, color="#666666")


def short(value: float, _: object = None) -> str:
    """1k, 10k, 1M for thousands and millions."""
    for unit, name in ((1e6, "M"), (1e3, "k")):
        if value >= unit:
            return f"{value / unit:g}{name}"
    return f"{value:g}"
