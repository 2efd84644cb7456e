"""The figures of a run as the page shows them: a chart, what it is called, and how to read it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from torch import Tensor

from lightning_stiffness.history import History, Reading
from lightning_stiffness.report.charts import columns_chart, lines_chart, runs_chart, stiffness_chart
from lightning_stiffness.report.drawing import Spec
from lightning_stiffness.report.matrix import superclass_series, within_by_class
from lightning_stiffness.report.pair_charts import bars_chart, distance_chart, histogram_chart, shares
from lightning_stiffness.report.words import SIGNALS, peak, short
from lightning_stiffness.run_files import RunFiles
from lightning_stiffness.verdicts import UNSEEN, is_high_good

MOST_LINES: Final = 8
MOST_BARS: Final = 24
NO_METRIC: Final = ("epoch", "step", "lr")


@dataclass(frozen=True)
class Figure:
    """A chart with its words.

    Attributes:
        key: its name on the page, unique within a run.
        title: what it shows.
        caption: how to read it.
        spec: the chart.
        span: its share of the width of the page.
        height: in pixels.
        is_square: whether it is a matrix, whose spec says in `usermeta` how to size it.
    """

    key: str
    title: str
    caption: str
    spec: Spec
    span: Literal["full", "half", "third"] = "half"
    height: int = 260
    is_square: bool = False


def marks_of(run: RunFiles) -> dict[str, float]:
    """The epochs to mark in curves: of the stop, and of the weights that were restored."""
    decision = run.decision or {}
    known = {"stop": decision.get("epoch") if decision.get("stopped") else None}
    known["weights restored"] = decision.get("restored_epoch")
    return {f"{words}, epoch {short(epoch)}": float(epoch) for words, epoch in known.items() if epoch is not None}


def curve_figures(run: RunFiles) -> list[Figure]:
    """Stiffness, losses, and what else the run logged itself."""
    history, marks = run.history, marks_of(run)
    losses, others = logged_names(history)
    figures = []
    if is_known(history, "within") or is_known(history, "between"):
        caption = (
            "Bands: two standard errors, for another probe of the same size. A high blue line means that a step on one "
            "sample helps its whole class; where it falls, samples are learned one by one."
        )
        spec = stiffness_chart(history, marks)
        figures.append(Figure("stiffness", "Stiffness over training", caption, spec, "full", 340))
    known = {"loss": "loss of the probe"} if is_known(history, "loss") else {}
    known |= {name: name for name in losses[: MOST_LINES - 1]}
    if known:
        caption = "The probe's own loss, and the losses that the run logged."
        spec = lines_chart(history, known, "loss", marks)
        figures.append(Figure("loss", "Loss", caption, spec, "half" if others else "full"))
    if others:
        shown = {name: name for name in others[:MOST_LINES]}
        spec = lines_chart(history, shown, others[0] if len(others) == 1 else "value", marks)
        figures.append(Figure("logged", "What else the run logged", _left_out(others), spec))
    return [*figures, *_cross_figures(history, marks), *_superclass_figures(history, marks)]


def is_known(history: History, name: str) -> bool:
    """Whether any reading has a number of that name."""
    return any(math.isfinite({**r.logged, **r.metrics()}.get(name, math.nan)) for r in history)


def logged_names(history: History) -> tuple[list[str], list[str]]:
    """Names of the losses that a run logged, and of its other metrics, those of unseen data first."""
    names = sorted(
        {name for reading in history for name, value in reading.logged.items() if math.isfinite(value)},
        key=lambda name: (not any(part in name.lower() for part in UNSEEN), name),
    )
    names = [name for name in names if not name.startswith(NO_METRIC)]
    losses = [name for name in names if "loss" in name.lower() and not is_high_good(name)]
    return losses, [name for name in names if name not in losses]


def signal_figures(run: RunFiles) -> list[Figure]:
    """One small chart for each signal that the stopping rules read."""
    history = run.history
    names = dict.fromkeys(name for reading in history for name in reading.signals)
    known = [name for name in names if is_known(history, name)]
    series = {name: {name: SIGNALS.get(name, name)} for name in known if name != "train_within"}
    if series.pop("leave_one_out_train_loss", None) and "leave_one_out_loss" in series:
        series["leave_one_out_loss"] = {"leave_one_out_loss": "estimated", "leave_one_out_train_loss": "trained on"}
    return [
        Figure(
            f"signal-{index}",
            SIGNALS.get(name, name),
            "",
            lines_chart(history, lines, name.replace("_", " "), marks_of(run)),
            "third",
            200,
        )
        for index, (name, lines) in enumerate(series.items())
    ]


def class_figure(history: History) -> Figure | None:
    """Stiffness within each class, now and at the peak; of many classes the lowest and the highest."""
    now, top = within_by_class(history, -1), peak(history)
    if not now or top is None:
        return None
    before = within_by_class(history, list(history).index(top))
    names = list(now)
    if len(names) > MOST_BARS:
        names = [*names[: MOST_BARS // 2], *names[-MOST_BARS // 2 :]]
    labels = (f"epoch {short(history[-1].epoch)}", f"epoch {short(top.epoch)}")
    left = f" The {len(names) // 2} lowest and highest of {len(now)}." if len(names) < len(now) else ""
    caption = f"Bars: now. Ticks: at epoch {short(top.epoch)}, where the mean was highest.{left}"
    spec = bars_chart({name: now[name] for name in names}, before, labels)
    return Figure("classes", "Within each class", caption, spec, "half", 60 + 19 * len(names))


def pair_figures(history: History) -> list[Figure]:
    """Histograms of the cosines of pairs: first, middle and last reading."""
    chosen = _first_middle_last([reading for reading in history if reading.detail is not None])
    tops = [max(shares(counts.tolist())) for r in chosen if r.detail for counts in _counts(r)]
    top = min(1.0, 1.05 * max(tops, default=1.0))
    return [
        Figure(f"pairs-{index}", f"Epoch {short(reading.epoch)}", "", histogram_chart(reading, top), "third", 190)
        for index, reading in enumerate(chosen)
    ]


def distance_figure(history: History) -> Figure | None:
    """Stiffness against the distance of the inputs, with what is known of the critical length."""
    chosen = _first_middle_last([r for r in history if r.detail and r.detail.distance and _is_curve(r)])
    curves = {f"epoch {short(r.epoch)}": r.detail.distance for r in chosen if r.detail and r.detail.distance}
    if not curves:
        return None
    lengths = {name: curve.critical_length for name, curve in curves.items()}
    name, length = list(lengths.items())[-1]
    where = (
        f"At {name} the line reaches zero at a distance of {short(length)}: the critical length."
        if math.isfinite(length)
        else f"At {name} the line does not reach zero within the distances that occur: the critical length lies beyond "
        "the data, and no number is made up for it."
    )
    caption = (
        f"Dots: pairs of the same class, twelfths of equal size. Dashed: the straight line through all pairs. {where}"
    )
    return Figure("distance", "Stiffness against the distance of inputs", caption, distance_chart(curves), "full", 300)


def comparison_figures(histories: Mapping[str, History]) -> list[Figure]:
    """Numbers of several runs in one chart each: stiffness, loss, and what all of them logged."""
    charts = {"within": "Within classes", "between": "Between classes", "loss": "Loss of the probe"}
    names = {**charts, **{name: name for name in _shared_metrics(list(histories.values()))}}
    return [
        Figure(f"compare-{index}", title, "", runs_chart(histories, name, title.lower()), "half", 280)
        for index, (name, title) in enumerate(names.items())
        if any(is_known(history, name) for history in histories.values())
    ]


def _shared_metrics(histories: Sequence[History]) -> list[str]:
    """Metrics of unseen data that more than one run logged."""
    names = [name for history in histories for found in logged_names(history) for name in found]
    unseen = [name for name in dict.fromkeys(names) if any(part in name.lower() for part in UNSEEN)]
    return [name for name in unseen if names.count(name) > 1][:3]


def _cross_figures(history: History, marks: Mapping[str, float]) -> list[Figure]:
    if not is_known(history, "train_within"):
        return []
    series = {"train_within": "training with training", "within": "training with validation"}
    caption = (
        "Where the line of validation samples falls below the other one, what is learned helps unseen samples less."
    )
    spec = lines_chart(history, series, "stiffness within classes", marks)
    return [Figure("cross", "Does it carry over?", caption, spec, "half")]


def _superclass_figures(history: History, marks: Mapping[str, float]) -> list[Figure]:
    columns = superclass_series(history)
    if not any(math.isfinite(value) for values in columns.values() for value in values):
        return []
    caption = "Mean over pairs of different classes: does a class help its relatives more than strangers?"
    spec = columns_chart(history, columns, "stiffness between classes", marks)
    return [Figure("super", "Super-classes", caption, spec, "half")]


def _counts(reading: Reading) -> list[Tensor]:
    return [reading.detail.within_counts, reading.detail.between_counts] if reading.detail else []


def _is_curve(reading: Reading) -> bool:
    curve = reading.detail.distance if reading.detail else None
    return curve is not None and bool(curve.means.isfinite().any())


def _first_middle_last(readings: Sequence[Reading]) -> list[Reading]:
    places = sorted({0, (len(readings) - 1) // 2, len(readings) - 1}) if readings else []
    return [readings[place] for place in places]


def _left_out(names: Sequence[str]) -> str:
    text = "Metrics by their own names, read at the time of each reading."
    return text if len(names) <= MOST_LINES else f"{text} The first {MOST_LINES} of {len(names)}."
