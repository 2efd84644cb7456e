"""TensorBoard: custom charts, pictures, histograms, cards."""

from matplotlib.figure import Figure
from typing_extensions import override

from lightning_stiffness.loggers.board import Board


class TensorBoardBoard(Board):
    """Shows a run in TensorBoard."""

    @override
    def picture(self, tag: str, figure: Figure, step: int) -> None:
        self.logger.experiment.add_figure(f"{self.name}/{tag}", figure, step, close=False)
