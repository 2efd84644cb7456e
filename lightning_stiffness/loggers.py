"""The one place that writes to Lightning's loggers; it knows which of them can take what."""

from collections.abc import Mapping, Sequence
from typing import Any


def log_scalars(loggers: Sequence[Any], values: Mapping[str, float], step: int) -> None:
    """Writes numbers to every logger; `step` is the one that the loggers use on their axis."""
    for logger in loggers:
        logger.log_metrics(dict(values), step=step)


def log_text(loggers: Sequence[Any], tag: str, text: str, step: int) -> None:
    """Writes text to every logger that can take it: TensorBoard as a card, W&B as a table."""
    for logger in loggers:
        experiment = getattr(logger, "experiment", None)
        if callable(getattr(experiment, "add_text", None)):
            experiment.add_text(tag, text, step)
        elif callable(getattr(logger, "log_text", None)):
            logger.log_text(tag, columns=["step", "text"], data=[[step, text]])
