"""Results of the Gram benchmark as JSON, as Markdown tables and as a picture."""

import json
import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from gram_cell import Outcome
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import StrMethodFormatter
from models import MODELS
from peers import METHODS

Clock = Literal["wall", "processor"]
FREE_SHARE = 0.9  # of wall-clock time that is processor time on a machine with nothing else to do
WRONG = 1e-3  # relative error from which an answer is called wrong
NAMES_OF_CLOCKS = {"wall": "wall-clock time", "processor": "processor time"}
COLOURS = ("#0072B2", "#56B4E9", "#D55E00", "#E69F00", "#999999", "#CC79A7", "#009E73", "#000000")


@dataclass(frozen=True)
class Row:
    """One cell of the benchmark and its outcome."""

    model: str
    method: str
    samples: int
    outcome: Outcome
    load: float  # average number of running processes on the machine before the cell

    @property
    def is_measured(self) -> bool:
        """Whether there is a time."""
        return self.outcome.status == "measured"

    @property
    def is_wrong(self) -> bool:
        """Whether the answer is far from the reference; one that is not finite is."""
        error = self.outcome.relative_error
        return error is not None and not error < WRONG


@dataclass(frozen=True)
class Results:
    """All rows of a run, the clock its tables go by, and what it ran on."""

    rows: Sequence[Row]
    clock: Clock
    environment: dict[str, Any]
    settings: dict[str, Any]
    fixtures: dict[str, dict[str, float]]

    @property
    def sizes(self) -> list[int]:
        """Numbers of samples, ascending."""
        return sorted({row.samples for row in self.rows})

    def named(self, registry: Iterable[str], attribute: str) -> list[str]:
        """The registry's names that occur in the rows, in the order of the registry."""
        present = {getattr(row, attribute) for row in self.rows}
        return [name for name in registry if name in present]

    def row(self, model: str, method: str, samples: int) -> Row | None:
        """The row of a cell, None where it was not asked for."""
        wanted = (model, method, samples)
        return next((row for row in self.rows if (row.model, row.method, row.samples) == wanted), None)

    def times(self, row: Row) -> tuple[float, ...]:
        """Seconds of each repeat by the clock of the run."""
        return row.outcome.seconds if self.clock == "wall" else row.outcome.processor_seconds

    def ratio(self, row: Row) -> float:
        """Median time over the floor's; nan where one of them is missing."""
        floor = self.row(row.model, "floor", row.samples)
        if floor is None or not floor.is_measured or not row.is_measured:
            return math.nan
        return statistics.median(self.times(row)) / statistics.median(self.times(floor))


def write(results: Results, folder: Path) -> str:
    """Write results.json, results.md and results.png to the folder; returns the Markdown."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps(as_json(results), indent=1, allow_nan=False) + "\n")
    text = markdown(results)
    (folder / "results.md").write_text(text)
    figure = draw(results)
    FigureCanvasAgg(figure)
    figure.savefig(folder / "results.png", dpi=150)
    return text


def as_json(results: Results) -> dict[str, Any]:
    """Every number of the run; what is not a finite number becomes None."""
    cells = []
    for row in results.rows:
        numbers = asdict(row) | asdict(row.outcome) | {"ratio_to_floor": results.ratio(row)}
        del numbers["outcome"]
        cells.append({name: finite(value) for name, value in numbers.items()})
    head = {"environment": results.environment, "settings": results.settings, "clock": results.clock}
    return head | {"fixtures": results.fixtures, "cells": cells}


def finite(value: Any) -> Any:
    """None for nan and infinity, which JSON does not know."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def markdown(results: Results) -> str:
    """The environment, a table of ratios for each number of samples, the table of all cells, and what failed."""
    parts = ["# Speed of the exact Gram matrix of per-sample gradients", environment_line(results)]
    for samples in results.sizes:
        parts += [f"## Time as a multiple of the floor, n = {samples}", ratio_table(results, samples)]
    parts += ["## All cells", cell_table(results), *failures(results)]
    return "\n\n".join(parts) + "\n"


def environment_line(results: Results) -> str:
    """What the run was measured on, in two sentences."""
    facts, settings = results.environment, results.settings
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items() if version)
    return (
        f"{facts['date']}, {facts['processor']}, {settings['threads']} thread(s), {versions}. "
        f"Medians of {settings['repeats']} repeats (quick calls: more) after one warm-up, "
        f"{NAMES_OF_CLOCKS[results.clock]}; floor = one forward and one backward of the same batch. "
        "Errors and signs are those of the first 128 samples against a loop in double precision; a ratio in *italics* "
        f"belongs to a wrong answer.{busy_note(results)}"
    )


def busy_note(results: Results) -> str:
    """A warning where other work slowed single-threaded measurements down; empty otherwise."""
    measured = [row for row in results.rows if row.is_measured]
    busy = [row for row in measured if sum(row.outcome.processor_seconds) < FREE_SHARE * sum(row.outcome.seconds)]
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


def ratio_table(results: Results, samples: int) -> str:
    """Methods down, models across."""
    models = results.named(MODELS, "model")
    lines = []
    for method in results.named(METHODS, "method"):
        rows = [results.row(model, method, samples) for model in models]
        lines.append([METHODS[method].title, *(ratio_text(results, row) for row in rows)])
    return table(["", *(MODELS[model].title for model in models)], lines)


def ratio_text(results: Results, row: Row | None) -> str:
    """The ratio, or why there is none."""
    if row is None:
        return "-"
    if not row.is_measured:
        return row.outcome.status
    ratio = results.ratio(row)
    text = f"{ratio:.2f}" if ratio < 10 else f"{ratio:.0f}"
    return f"*{text}*" if row.is_wrong else text


def bar_text(results: Results, row: Row) -> str:
    """What stands at a bar, or in the place of a missing one."""
    text = ratio_text(results, row).strip("*")
    return f" {text} wrong" if row.is_wrong else f" {text}"


def cell_table(results: Results) -> str:
    """One line a cell."""
    head = ["model", "n", "method", "seconds", "min-max", "x floor", "set-up s", "extra MB", "relative error", "signs"]
    return table(head, [cell_line(results, row) for row in results.rows])


def cell_line(results: Results, row: Row) -> list[str]:
    """The line of a cell; a failed one says so in the place of its time."""
    names = [MODELS[row.model].title, str(row.samples), METHODS[row.method].title]
    outcome = row.outcome
    if not row.is_measured:
        return [*names, outcome.status, "", "", "", "", "", ""]
    times = results.times(row)
    extra = "" if outcome.extra_megabytes is None else f"{outcome.extra_megabytes:.0f}"
    return [
        *names,
        f"{statistics.median(times):.4g}",
        f"{min(times):.3g}-{max(times):.3g}",
        ratio_text(results, row),
        set_up(results, row),
        extra,
        "" if outcome.relative_error is None else f"{outcome.relative_error:.0e}",
        "" if outcome.sign_agreement is None else f"{outcome.sign_agreement:.4f}",
    ]


def set_up(results: Results, row: Row) -> str:
    """First call minus the median of the later ones, for our engine, which plans in its first call."""
    outcome = row.outcome
    first = outcome.first_seconds if results.clock == "wall" else outcome.first_processor_seconds
    if first is None or METHODS[row.method].package != "lightning_stiffness":
        return ""
    return f"{first - statistics.median(results.times(row)):.3f}"


def failures(results: Results) -> list[str]:
    """The reasons of all cells without a time."""
    failed = [row for row in results.rows if not row.is_measured]
    if not failed:
        return []
    lines = [
        f"- {row.method}, {row.model}, n = {row.samples}: {row.outcome.status}: {row.outcome.reason}" for row in failed
    ]
    return ["## Without a time", "\n".join(lines)]


def draw(results: Results) -> Figure:
    """One panel for each number of samples: a group of bars a model, a bar a method, on a logarithmic scale."""
    sizes = results.sizes
    figure = Figure(figsize=(max(10.0, 2.6 * len(results.named(MODELS, "model"))), 3.4 * len(sizes) + 0.9))
    panels = figure.subplots(len(sizes), 1, squeeze=False)[:, 0]
    for axes, samples in zip(panels, sizes, strict=True):
        draw_panel(axes, results, samples)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, ncols=4, loc="upper center", fontsize=8, frameon=False)
    figure.tight_layout(rect=(0, 0, 1, 1 - 0.75 / figure.get_figheight()))
    return figure


def draw_panel(axes: Axes, results: Results, samples: int) -> None:
    """Bars from the floor (1) up or down; a missing one is its reason in words."""
    models = results.named(MODELS, "model")
    methods = [method for method in results.named(METHODS, "method") if method != "floor"]
    width = 0.84 / max(1, len(methods))
    for place, method in enumerate(methods):
        colour = COLOURS[place % len(COLOURS)]
        rows = [results.row(model, method, samples) for model in models]
        positions = [group + (place - (len(methods) - 1) / 2) * width for group in range(len(models))]
        ratios = [math.nan if row is None else results.ratio(row) for row in rows]
        heights = [ratio - 1 for ratio in ratios]
        axes.bar(positions, heights, width * 0.92, bottom=1.0, color=colour, label=METHODS[method].title)
        for position, ratio, row in zip(positions, ratios, rows, strict=True):
            missing = row is not None and not math.isfinite(ratio)
            anchor = 1.0 if missing else max(ratio, 1.0)
            if row is not None:
                text = bar_text(results, row)
                axes.text(position, anchor, text, rotation=90, ha="center", va="bottom", fontsize=7, color="#333333")
    axes.axhline(1.0, color="black", linewidth=0.8)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.set_ylim(top=axes.get_ylim()[1] * 3)
    axes.set_xticks(range(len(models)), [MODELS[model].title for model in models])
    axes.set_ylabel("time / floor (log)")
    axes.set_title(f"n = {samples}", fontsize=10, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
