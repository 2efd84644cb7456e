"""Results of the Gram benchmark as JSON, as Markdown tables and as a picture."""

import json
import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cells import REFERENCE_SAMPLES, Cell, Outcome
from gram_results import TARGETS, WHY_MISSED, Results, as_json, bound_of, checks, class_sizes, is_wrong, number
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullFormatter, StrMethodFormatter
from models import ALL_MODELS
from peers import METHODS, WHOLE

FREE_SHARE = 0.9  # of wall-clock time that is processor time on a machine with nothing else to do
NAMES_OF_CLOCKS = {"wall": "wall-clock time", "processor": "processor time"}
INK, FAINT = "#333333", "#d9d9d9"


@dataclass(frozen=True)
class Mark:
    """How a method is drawn."""

    colour: str
    shape: str


MARKS = {
    "ours": Mark("#0072B2", "o"),
    "within": Mark("#005480", "p"),
    "class_cosine": Mark("#56B4E9", "D"),
    "vmap": Mark("#D55E00", "s"),
    "vmap50": Mark("#E69F00", "^"),
    "loop": Mark("#777777", "v"),
    "opacus": Mark("#CC79A7", "P"),
    "backpack": Mark("#009E73", "X"),
    "torchjd": Mark("#000000", "d"),
}


def write(results: Results, folder: Path) -> str:
    """Writes gram_speed.json, gram_speed.md and gram_speed.png to the folder; returns the Markdown."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "gram_speed.json").write_text(json.dumps(as_json(results), indent=1, allow_nan=False) + "\n")
    text = markdown(results)
    (folder / "gram_speed.md").write_text(text)
    figure = draw(results)
    FigureCanvasAgg(figure)
    figure.savefig(folder / "gram_speed.png", dpi=130)
    return text


def markdown(results: Results) -> str:
    """The environment, the targets, a table of ratios for each n, bounds, class cosines, threads, and all cells."""
    parts = ["# Speed of the exact Gram matrix of per-sample gradients", environment_line(results)]
    parts += target_section(results)
    for samples in results.sizes:
        parts += [f"## Time as a multiple of the floor, n = {samples}", ratio_table(results, samples)]
    for samples in results.sizes:
        parts += bound_section(results, samples)
    parts += class_cosine_section(results) + thread_section(results)
    parts += ["## All cells", cell_table(results), *failures(results)]
    return "\n\n".join(parts) + "\n"


def environment_line(results: Results) -> str:
    """What the run was measured on, and how to read its numbers."""
    facts, settings = results.environment, results.settings
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items() if version)
    peaks = "; ".join(f"{value:.0f} GFLOP/s with {count} thread(s)" for count, value in facts["peak_gflops"].items())
    return (
        f"{facts['date']}, {facts['processor']} ({facts['cores']} cores), threads: {results.threads[0]} unless said, "
        f"{versions}. {f'Large float32 products reach {peaks}. ' if peaks else ''}"
        f"Medians of up to {settings['repeats']} repeats (quick calls: more) after the first call (where that takes "
        f"long, it alone), the methods on one batch taking turns; {NAMES_OF_CLOCKS[results.clock]}. Floor: "
        "one forward and one backward of the same batch "
        f"(n > {WHOLE}: in equal parts). Errors and signs are those of {REFERENCE_SAMPLES} samples spread over the "
        "batch, against a loop in double precision. A ratio in *italics* belongs to a wrong answer; `> 9` is the least "
        f"that a call which was left out would take, linear in n from a smaller batch.{busy_note(results)}"
    )


def busy_note(results: Results) -> str:
    """A warning where other work slowed single-threaded measurements down; empty otherwise."""
    measured = [o for cell, o in results.outcomes.items() if o.is_measured and cell.threads == 1]
    busy = [o for o in measured if sum(o.processor_seconds) < FREE_SHARE * sum(o.seconds)]
    if not busy:
        return ""
    return (
        f" In {len(busy)} of {len(measured)} cells other work on the machine took the processor for more than a tenth "
        "of the time: take their wall-clock times with care, or use `--clock processor`."
    )


def table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A Markdown table, the first column to the left and the others to the right."""
    rule = ["---"] + ["---:"] * (len(head) - 1)
    return "\n".join("| " + " | ".join(line) + " |" for line in (head, rule, *lines))


def target_section(results: Results) -> list[str]:
    """Every target beside what was reached."""
    found = checks(results)
    if not found:
        return []
    met = sum(check.verdict == "met" for check in found)
    missed = sum(check.verdict == "missed" for check in found)
    lines = [
        [c.what, c.target, c.reached, f"**{c.verdict}**" if c.verdict == "missed" else c.verdict, c.remark]
        for c in found
    ]
    head = f"{met} of {len(found)} met, {missed} missed, {len(found) - met - missed} not measured."
    reasons = [WHY_MISSED] if missed else []
    return ["## Targets", head, table(["", "target", "reached", "", "beside it"], lines), *reasons]


def ratio_table(results: Results, samples: int) -> str:
    """Methods down, models across."""
    models = results.named(ALL_MODELS, "model")
    lines = []
    for method in results.named(METHODS, "method"):
        outcomes = [results.find(model, method, samples) for model in models]
        lines.append([METHODS[method].title, *(ratio_text(results, outcome) for outcome in outcomes)])
    return table(["", *(ALL_MODELS[model].title for model in models)], lines)


def ratio_text(results: Results, outcome: Outcome | None) -> str:
    """The ratio, or why there is none."""
    if outcome is None:
        return "-"
    if not outcome.is_measured:
        least = results.least_ratio(outcome)
        return outcome.status if math.isnan(least) else f"> {number(least)}"
    text = number(results.ratio(outcome))
    return f"*{text}*" if is_wrong(outcome) else text


def bound_section(results: Results, samples: int) -> list[str]:
    """How far each model is from what is possible with our products."""
    lines = []
    for model in results.named(ALL_MODELS, "model"):
        bound, ours = bound_of(results, model, samples), results.ratio(results.find(model, "ours", samples))
        if bound is not None:
            values = (bound.before, bound.products, bound.total, ours, ours / bound.total)
            lines.append([ALL_MODELS[model].title, *map(number, values)])
    if not lines:
        return []
    head = ["x floor", "forward + input-backward", "products at peak", "bound", "reached", "reached / bound"]
    text = (
        "What an exact K would cost if its products ran at the measured peak: forward and backward to the first "
        "layer's output (measured), plus the floating point operations that the engine's routes need."
    )
    return [f"## What is possible, n = {samples}", text, table(head, lines)]


def class_cosine_section(results: Results) -> list[str]:
    """Class cosine against n: time and memory."""
    sizes = class_sizes(results)
    lines = []
    for model in results.named(ALL_MODELS, "model"):
        outcomes = [results.find(model, "class_cosine", n) for n in sizes]
        if any(outcomes):
            lines.append([ALL_MODELS[model].title, *(class_cosine_text(results, outcome) for outcome in outcomes)])
    if not lines:
        return []
    return ["## Class cosine: x floor and extra memory", table(["", *(f"n = {n}" for n in sizes)], lines)]


def class_cosine_text(results: Results, outcome: Outcome | None) -> str:
    """Ratio and memory."""
    text = ratio_text(results, outcome)
    if outcome is None or outcome.extra_megabytes is None:
        return text
    return f"{text}, {outcome.extra_megabytes:.0f} MB"


def thread_section(results: Results) -> list[str]:
    """Wall-clock time with each number of threads."""
    first, *more = results.threads
    lines = []
    for cell in results.outcomes:
        if not more or cell.threads != more[0]:
            continue
        outcomes = [results.find(cell.model, cell.method, cell.samples, count) for count in (first, *more)]
        seconds = [statistics.median(o.seconds) if o and o.is_measured else math.nan for o in outcomes]
        factors = [seconds[0] / value for value in seconds[1:]]
        names = [ALL_MODELS[cell.model].title, str(cell.samples), METHODS[cell.method].title]
        lines.append([*names, *(f"{value:.3g}" for value in seconds), *(number(factor, " x") for factor in factors)])
    if not lines:
        return []
    head = [
        "model",
        "n",
        "method",
        *(f"s, {n} thread(s)" for n in (first, *more)),
        *(f"{n} against {first}" for n in more),
    ]
    return ["## Threads", table(head, lines)]


def cell_table(results: Results) -> str:
    """One line a cell."""
    head = ["model", "n", "threads", "method", "seconds", "min-max", "processor s", "x floor", "fastest x floor"]
    head += ["set-up s", "extra MB", "after the first call", "relative error", "largest error", "signs"]
    return table(head, [cell_line(results, cell, outcome) for cell, outcome in results.outcomes.items()])


def cell_line(results: Results, cell: Cell, outcome: Outcome) -> list[str]:
    """The line of a cell; a failed one says so in the place of its time."""
    names = [ALL_MODELS[cell.model].title, str(cell.samples), str(cell.threads), METHODS[cell.method].title]
    if not outcome.is_measured:
        return [*names, outcome.status, "", "", ratio_text(results, outcome).replace(outcome.status, ""), *[""] * 7]
    times = results.times(outcome)
    return [
        *names,
        f"{statistics.median(times):.4g}",
        f"{min(times):.3g}-{max(times):.3g}",
        f"{statistics.median(outcome.processor_seconds):.4g}",
        ratio_text(results, outcome),
        number(results.ratio(outcome, min)),
        set_up(results, cell, outcome),
        "" if outcome.extra_megabytes is None else f"{outcome.extra_megabytes:.0f}",
        "" if outcome.later_megabytes is None or len(times) < 2 else f"{outcome.later_megabytes:.0f}",
        "" if outcome.relative_error is None else f"{outcome.relative_error:.0e}",
        "" if outcome.largest_error is None else f"{outcome.largest_error:.0e}",
        "" if outcome.sign_agreement is None else f"{outcome.sign_agreement:.4f}",
    ]


def set_up(results: Results, cell: Cell, outcome: Outcome) -> str:
    """First call minus the median of the later ones, for our engine, which plans in its first call."""
    first = outcome.first_seconds if results.clock == "wall" else outcome.first_processor_seconds
    if first is None or METHODS[cell.method].kind != "own":
        return ""
    return f"{first - statistics.median(results.times(outcome)):.3f}"


def failures(results: Results) -> list[str]:
    """The reasons of all cells without a time."""
    lines = [
        f"- {METHODS[cell.method].title}, {ALL_MODELS[cell.model].title}, n = {cell.samples}: "
        f"{outcome.status}: {outcome.reason}"
        for cell, outcome in results.outcomes.items()
        if not outcome.is_measured
    ]
    return ["## Without a time", "\n".join(lines)] if lines else []


def draw(results: Results) -> Figure:
    """One panel for each n: a band a model, a mark a method, time over the floor on a logarithmic scale."""
    sizes = results.sizes or sorted({cell.samples for cell in results.outcomes})
    models = results.named(ALL_MODELS, "model")
    methods = [method for method in results.named(METHODS, "method") if method in MARKS]
    band = 0.135 * (len(methods) + 1)
    figure = Figure(
        figsize=(max(11.0, 3.2 + 4.4 * len(sizes)), 1.7 + max(1.2, band * len(models))), layout="constrained"
    )
    panels = figure.subplots(1, len(sizes), squeeze=False, sharey=True)[0]
    for axes, samples in zip(panels, sizes, strict=True):
        draw_panel(axes, results, samples, methods)
    panels[0].set_yticks(range(len(models)), [ALL_MODELS[model].title for model in models])
    panels[0].set_ylim(len(models) - 0.5, -0.5)
    marks = [
        Line2D([], [], color=MARKS[name].colour, marker=MARKS[name].shape, linestyle="", label=METHODS[name].title)
        for name in methods
    ]
    marks.append(Line2D([], [], color=INK, linewidth=1.2, label="floor: forward + backward"))
    marks.append(Line2D([], [], color=INK, linewidth=1.4, linestyle=":", label="target for K (n = 500)"))
    marks.append(
        Line2D(
            [], [], color="#999999", linewidth=5, alpha=0.5, label="bound: forward + input-backward + products at peak"
        )
    )
    figure.legend(handles=marks, ncols=3, loc="outside upper center", fontsize=8, frameon=False)
    return figure


def draw_panel(axes: Axes, results: Results, samples: int, methods: Sequence[str]) -> None:
    """All models with one n; a method without a time is its reason in words."""
    for place, model in enumerate(results.named(ALL_MODELS, "model")):
        bound = bound_of(results, model, samples)
        if bound is not None:
            axes.fill_betweenx([place - 0.42, place + 0.42], 0.01, bound.total, color="#999999", alpha=0.2, linewidth=0)
        if samples == 500 and model in TARGETS:
            target = TARGETS[model].floors
            axes.plot([target] * 2, [place - 0.42, place + 0.42], color=INK, linestyle=":", linewidth=1.4)
        for index, method in enumerate(methods):
            height = place + 0.84 * ((index + 0.5) / len(methods) - 0.5)
            draw_mark(axes, results, results.find(model, method, samples), (method, height))
    axes.axvline(1.0, color=INK, linewidth=1.2, zorder=1)
    axes.set_xscale("log")
    axes.set_xlim(*limits(results))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.grid(axis="x", color=FAINT, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.set_xlabel("time / floor (logarithmic)")
    axes.set_title(f"n = {samples}", fontsize=10)
    axes.tick_params(axis="y", length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)


def draw_mark(axes: Axes, results: Results, outcome: Outcome | None, at: tuple[str, float]) -> None:
    """A mark with its number; of a call that was left out an empty one at the least that it would take."""
    method, height = at
    if outcome is None:
        return
    mark, ratio = MARKS[method], results.ratio(outcome)
    least = results.least_ratio(outcome)
    text = bar_text(results, outcome)
    if math.isnan(ratio) and math.isnan(least):
        axes.text(1.06, height, f"{METHODS[method].title}: {text}", fontsize=5.5, va="center", color="#777777")
        return
    value = least if math.isnan(ratio) else ratio
    face = "white" if math.isnan(ratio) else mark.colour
    axes.plot([1.0, value], [height, height], color=mark.colour, linewidth=0.7, alpha=0.5)
    axes.plot(value, height, mark.shape, color=mark.colour, markerfacecolor=face, markersize=5)
    axes.annotate(text, (value, height), (5, 0), textcoords="offset points", fontsize=6.5, va="center", color=INK)


def bar_text(results: Results, outcome: Outcome) -> str:
    """What stands at a mark, or in the place of a missing one."""
    text = ratio_text(results, outcome).strip("*")
    return f"{text} wrong" if is_wrong(outcome) else text


def limits(results: Results) -> tuple[float, float]:
    """The range of all ratios, with room for numbers."""
    ratios = [
        value
        for outcome in results.outcomes.values()
        for value in (results.ratio(outcome), results.least_ratio(outcome))
        if math.isfinite(value)
    ]
    return 0.8 * min(0.6, *ratios, 1.0), 2.2 * max(4.0, *ratios, 1.0)
