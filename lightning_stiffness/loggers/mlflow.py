"""MLflow: pictures and texts as artifacts of the run."""

from lightning_stiffness.loggers.board import Board


class MLFlowBoard(Board):
    """Shows a run in MLflow."""
