"""The one place that writes to Lightning's loggers; it knows which of them can show what.

Numbers go to every logger. What else there is to see goes to a `Board`, of which there is one for each logger.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from lightning_stiffness.loggers.board import Board, RunCard
from lightning_stiffness.loggers.mlflow import MLFlowBoard
from lightning_stiffness.loggers.tensorboard import TensorBoardBoard
from lightning_stiffness.loggers.wandb import WandbBoard

__all__ = ["Board", "RunCard", "boards_of", "log_scalars"]

BOARDS: Final[dict[str, Callable[[Any, str], Board]]] = {
    "MLFlowLogger": MLFlowBoard,
    "TensorBoardLogger": TensorBoardBoard,
    "WandbLogger": WandbBoard,
}
"""By the class of the logger, which `lightning` and `pytorch_lightning` each have their own of; others have `Board`."""


def boards_of(loggers: Sequence[Any], name: str) -> list[Board]:
    """One board for each logger.

    Args:
        loggers: Of Lightning.
        name: First part of all names that are logged.
    """
    return [_kind_of(logger)(logger, name) for logger in loggers]


def log_scalars(loggers: Sequence[Any], values: Mapping[str, float], step: int) -> None:
    """Writes numbers to every logger, and to its file.

    Args:
        loggers: Of Lightning.
        values: By their names.
        step: The one that the loggers use on their axis.
    """
    for logger in loggers:
        logger.log_metrics(dict(values), step=step)
        logger.save()


def _kind_of(logger: Any) -> Callable[[Any, str], Board]:
    """A subclass of a logger is shown as the logger is."""
    kinds = (BOARDS.get(kind.__name__) for kind in type(logger).__mro__)
    return next((kind for kind in kinds if kind is not None), Board)
