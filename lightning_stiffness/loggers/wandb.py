"""Weights & Biases: definitions of metrics, tables, charts, pictures, an alert at the stop, summaries."""

import io
import math
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any, Final

from matplotlib.figure import Figure
from PIL import Image
from typing_extensions import override

from lightning_stiffness.balance import BalanceReading
from lightning_stiffness.history import History, Reading
from lightning_stiffness.loggers.board import Board, RunCard
from lightning_stiffness.loggers.class_tables import Rows, balance_rows, group_rows, matrix_rows
from lightning_stiffness.loggers.wandb_charts import Lines, class_lines, pair_histograms, pair_lines, stiffness_lines

METRICS: Final = (
    *("within", "within_se", "between", "between_se"),
    *("within_sign", "within_sign_se", "between_sign", "between_sign_se"),
    *("zero_fraction", "loss", "seconds"),
)
LOW_IS_GOOD: Final = ("loss", "error", "doubt", "disparity", "changes")
AGGREGATES: Final[dict[str, Callable[[list[float]], float]]] = {
    "max": max,
    "min": min,
    "mean": lambda values: math.fsum(values) / len(values),
    "last": lambda values: values[-1],
}
GROWTH: Final = 1.5  # from one reading with tables and charts to the next, in numbers of readings, as with pictures
SHARE: Final = 0.05  # of the time of training that they may take
DOTS_PER_INCH: Final = 110


class WandbBoard(Board):
    """Shows a run in Weights & Biases, online or offline.

    Tables and charts come with readings 1, 2, 3, 5, 8, 12 ... and the last, later where they would take more than a
    small share of the time; histograms come with each. All lie under the global step on the logger's own axis, never
    under a step of W&B, and so beside the user's own metrics.
    """

    shows_pictures = True

    def __init__(self, logger: Any, name: str) -> None:
        """Nothing is written yet."""
        super().__init__(logger, name)
        self._defined: set[str] = set()
        self._epochs: dict[int, float] = {}
        self._shown, self._step, self._seconds = 0, 0, 0.0

    @override
    def begin(self, run: RunCard) -> None:
        for key in METRICS:
            self._define(key)
        probe = {"mode": run.probe.mode, "classes": run.probe.num_classes, "samples": len(run.probe.strata)}
        settings = {**run.settings, "probe": probe}
        self.logger.experiment.config.update({f"{self.name}_monitor": settings}, allow_val_change=True)

    @override
    def reading(self, history: History, step: int) -> None:
        reading = history[-1]
        self._step, self._epochs = step, {known.step: known.epoch for known in history}
        for key in reading.metrics():
            self._define(key)
        self._log(self._histograms(reading), step)
        is_dear = self._seconds > SHARE * reading.elapsed  # not where the time is not known
        if len(history) >= math.ceil(GROWTH * self._shown) and not is_dear:
            self._show_panels(history)

    @override
    def picture(self, tag: str, figure: Figure, step: int) -> None:
        file = io.BytesIO()  # wandb's own way imports pyplot and patches matplotlib
        figure.savefig(file, format="png", dpi=DOTS_PER_INCH)
        self._log({tag: _wandb().Image(Image.open(file), caption=_caption(figure, tag))}, step)

    @override
    def text(self, tag: str, text: str, step: int) -> None:
        self.logger.log_text(tag, columns=["step", "text"], data=[[step, text]], step=step)
        self._summarise({f"{tag.removeprefix(f'{self.name}/')}_text": text})

    @override
    def stopped(self, verdict: Mapping[str, Any], text: str, step: int) -> None:
        self._summarise(
            {
                "stopped_epoch": verdict.get("epoch"),
                "stopped_step": verdict.get("step", step),
                "stop_reason": verdict.get("reason"),
                "criterion": verdict.get("criterion"),
                "best_epoch": self._epochs.get(verdict.get("best_step", -1)),
            }
        )
        self.text(f"{self.name}/decision", text, step)
        epoch = verdict.get("epoch")
        when = "" if epoch is None else f" after {epoch:.4g} epochs"
        self.logger.experiment.alert(title=f"Stiffness stops training{when}", text=text, level="INFO")

    @override
    def restored(self, epoch: float, text: str, step: int) -> None:
        super().restored(epoch, text, step)
        self._summarise({"restored_epoch": epoch})

    @override
    def balance(self, readings: Sequence[BalanceReading], step: int) -> None:
        self._log({"classes_table": _table(balance_rows(readings))}, step)

    @override
    def end(self, history: History) -> None:
        if self._shown < len(history):
            self._show_panels(history)
        self._summarise(
            {
                "readings": len(history),
                "measuring_seconds": math.fsum(reading.seconds for reading in history),
                **_without_nan(history),
            }
        )

    def _define(self, key: str) -> None:
        if key in self._defined:
            return
        self._defined.add(key)
        is_tensorboard = getattr(self.logger, "_wandb_init", {}).get("sync_tensorboard")
        axis = "global_step" if is_tensorboard else "trainer/global_step"
        self.logger.experiment.define_metric(self._key(key), step_metric=axis, summary=",".join(_aggregates(key)))

    def _show_panels(self, history: History) -> None:
        """Tables and charts."""
        began = time.perf_counter()
        charts = {
            "within_and_between_chart": stiffness_lines(history),
            "within_each_class_chart": class_lines(history),
            "pair_cosines_chart": pair_lines(history[-1]),
        }
        tables = {"class_matrix_table": matrix_rows(history), "class_groups_table": group_rows(history)}
        drawn = {key: _chart(lines) for key, lines in charts.items() if lines is not None and lines.names}
        self._log({**{key: _table(rows) for key, rows in tables.items()}, **drawn}, self._step)
        self._shown, self._seconds = len(history), self._seconds + time.perf_counter() - began

    def _histograms(self, reading: Reading) -> dict[str, Any]:
        found = pair_histograms(reading)
        return {f"pair_cosines_{name}": _wandb().Histogram(np_histogram=counted) for name, counted in found.items()}

    def _log(self, values: Mapping[str, Any], step: int) -> None:
        """By the logger, which adds its prefix and the step on its axis."""
        if values:
            self.logger.log_metrics({f"{self.name}/{key}": value for key, value in values.items()}, step)

    def _summarise(self, values: Mapping[str, Any]) -> None:
        known = {self._key(key): value for key, value in values.items() if value is not None}
        self.logger.experiment.summary.update(known)

    def _key(self, key: str) -> str:
        """The name that a metric has in the run, after the logger's own prefix."""
        prefix = getattr(self.logger, "_prefix", "")
        return f"{prefix}{self.logger.LOGGER_JOIN_CHAR}{self.name}/{key}" if prefix else f"{self.name}/{key}"


def _aggregates(key: str) -> tuple[str, ...]:
    if key.endswith("_se"):
        return ("last",)
    if key == "seconds":
        return "mean", "last"
    return ("min" if any(word in key for word in LOW_IS_GOOD) else "max"), "last"


def _without_nan(history: History) -> dict[str, dict[str, float]]:
    """Summaries of metrics that were nan once: W&B would take nan for the highest and the lowest of them."""
    summaries = {}
    for key in history[-1].metrics():
        values = history.series(key).tolist()
        known = [value for value in values if math.isfinite(value)]
        if 0 < len(known) < len(values):
            summaries[key] = {kind: AGGREGATES[kind](known) for kind in _aggregates(key)}
    return summaries


def _wandb() -> Any:
    """An optional extra: who has its logger has it."""
    return import_module("wandb")


def _table(rows: Rows) -> Any:
    """The kinds of the columns are told, so that it need not find them out, row by row."""
    return _wandb().Table(columns=list(rows.columns), data=rows.rows, dtype=list(rows.columns.values()))


def _chart(lines: Lines) -> Any:
    return _wandb().plot.line_series(lines.xs, lines.ys, lines.names, title=lines.title, xname=lines.axis)


def _caption(figure: Figure, tag: str) -> str:
    titles = [axes.get_title(place) for axes in figure.axes for place in ("left", "center")]
    return next((title for title in (figure.get_suptitle(), *titles) if title), tag.replace("_", " "))
