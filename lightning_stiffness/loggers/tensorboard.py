"""TensorBoard: custom charts, pictures, histograms, cards, and the table of hyperparameters."""

import io
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor
from typing_extensions import override

from lightning_stiffness.history import History, Reading
from lightning_stiffness.loggers.board import Board, RunCard
from lightning_stiffness.loggers.tensorboard_cards import about_card, stopped_card
from lightning_stiffness.loggers.tensorboard_layout import charts

MOST_CLASSES: Final = 25  # that have a curve each
COLORS: Final = 256
COARSE, DENSE = 70, 100  # dots per inch, of pictures up to so many inches and of taller ones
TALL: Final = 7.0


class TensorBoardBoard(Board):
    """Shows a run in TensorBoard.

    Numbers that only charts need have groups of their own, "stiffness_band" and "stiffness_class": TensorBoard sorts
    the charts of a group by name and shows twelve at once, so these would push the main ones off the first page.
    """

    shows_pictures = True

    def __init__(self, logger: Any, name: str) -> None:
        """Nothing is written yet."""
        super().__init__(logger, name)
        self._run: RunCard | None = None
        self._signals: set[str] = set()

    @override
    def prepare(self, hyperparameters: Mapping[str, Any], names: Sequence[str]) -> None:
        """Before Lightning logs hyperparameters: stiffness becomes a column of the table beside them.

        TensorBoard reads the list of columns once, from the first time a run writes one, so this has to be called in
        `setup` or `on_fit_start`, for all monitors of the run. Where Lightning writes no such list by itself, nor is
        one written here.
        """
        if hyperparameters and getattr(self.logger, "_default_hp_metric", False):
            from lightning_stiffness.loggers.tensorboard_events import add_columns  # noqa: PLC0415  # see `_lay_out`

            stiffness = [self._tag(key, f"{name}/") for name in names for key in ("within", "between", "stopped_epoch")]
            add_columns(self.logger.experiment, hyperparameters, [self._tag("hp_metric", ""), *stiffness])

    @override
    def begin(self, run: RunCard) -> None:
        self._run = run
        self._lay_out(run)
        self.text(f"{self.name}/about", about_card(self.name, run), 0)

    @override
    def reading(self, history: History, step: int) -> None:
        reading = history[-1]
        if self._run is not None and not self._signals.issuperset(reading.signals):
            self._signals.update(reading.signals)
            self._lay_out(self._run)
        self.logger.log_metrics({**self._bands(reading), **self._classes(history)}, step)
        if reading.detail is not None:
            self._histogram("within", reading.detail.within_counts, step)
            self._histogram("between", reading.detail.between_counts, step)
        self.logger.experiment.flush()

    @override
    def picture(self, tag: str, figure: Figure, step: int) -> None:
        from lightning_stiffness.loggers.tensorboard_events import add_png  # noqa: PLC0415

        pixels = _drawn(figure)
        add_png(self.logger.experiment, f"{self.name}/{tag}", _png(pixels), pixels.size, step)
        self.logger.experiment.flush()

    @override
    def stopped(self, verdict: Mapping[str, Any], text: str, step: int) -> None:
        self.text(f"{self.name}/decision", stopped_card(verdict, text), step)
        if isinstance(verdict.get("epoch"), int | float):
            self.logger.log_metrics({f"{self.name}/stopped_epoch": float(verdict["epoch"])}, step)
        self.logger.experiment.flush()

    @override
    def end(self, history: History) -> None:
        self.logger.experiment.flush()

    def _lay_out(self, run: RunCard) -> None:
        # Without TensorBoard, or with one that does not fit protobuf, all other loggers have to work.
        from lightning_stiffness.loggers.tensorboard_events import add_layout  # noqa: PLC0415

        shown = charts(self._tag(""), run, self._signals, MOST_CLASSES)
        add_layout(self.logger.experiment, self.name, shown)

    def _tag(self, name: str, group: str | None = None) -> str:
        """A name as the logger writes it, which may have a prefix; of our own group, or of another one."""
        prefix = getattr(self.logger, "_prefix", "")
        tag = f"{self.name}/{name}" if group is None else f"{group}{name}"
        return f"{prefix}-{tag}" if prefix else tag

    def _bands(self, reading: Reading) -> dict[str, float]:
        """Two standard errors on either side; charts with bands have to have them at each step, nan or not."""
        cosine, bands = reading.cosine, {}
        for name, value, error in (
            ("within", cosine.within, cosine.within_se),
            ("between", cosine.between, cosine.between_se),
        ):
            bands[f"{self.name}_band/{name}_low"] = value - 2 * error
            bands[f"{self.name}_band/{name}_high"] = value + 2 * error
        return bands

    def _classes(self, history: History) -> dict[str, float]:
        probe, diagonal = history.probe, history[-1].cosine.matrix.diagonal()
        if probe.num_classes > MOST_CLASSES:
            return {}
        names = probe.class_names or tuple(map(str, range(probe.num_classes)))
        values = zip(names, diagonal.tolist(), strict=True)
        return {f"{self.name}_class/{name}": value for name, value in values if value == value}  # noqa: PLR0124  # nan

    def _histogram(self, name: str, counts: Tensor, step: int) -> None:
        """Counts of equal bins from -1 to 1 as TensorBoard has histograms, without the empty bins at both ends."""
        filled = counts.nonzero().flatten()
        if not len(filled):
            return
        edges = torch.linspace(-1, 1, len(counts) + 1, dtype=torch.float64)
        first, last = int(filled[0]), int(filled[-1]) + 1
        counts, edges = counts[first:last].double(), edges[first : last + 1]
        centres = (edges[1:] + edges[:-1]) / 2
        self.logger.experiment.add_histogram_raw(
            f"{self.name}/pairs_{name}",
            min=float(edges[0]),
            max=float(edges[-1]),
            num=int(counts.sum()),
            sum=float(counts @ centres),
            sum_squares=float(counts @ centres**2),
            bucket_limits=edges[1:].tolist(),
            bucket_counts=counts.tolist(),
            global_step=step,
        )


def _drawn(figure: Figure) -> Image.Image:
    """Half as dear as `savefig`, which draws everything once before to have a layout.

    TensorBoard shows pictures some 400 pixels wide and shrinks wider ones pixel by pixel, so small ones are not larger
    than legible.
    """
    density = figure.dpi
    figure.dpi = DENSE if figure.get_figheight() > TALL else COARSE
    canvas: Any = FigureCanvasAgg(figure)
    canvas.draw()
    figure.dpi = density  # of other loggers
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")


def _png(pixels: Image.Image) -> bytes:
    """A small PNG: 256 colours, of which that of the background is as it was."""
    picture = pixels.quantize(COLORS, Image.Quantize.FASTOCTREE)
    place: Any = picture.getpixel((0, 0))
    background: Any = pixels.getpixel((0, 0))
    palette = picture.getpalette() or []
    palette[3 * place : 3 * place + 3] = background
    picture.putpalette(palette)
    file = io.BytesIO()
    picture.save(file, "png")
    return file.getvalue()
