"""The one place that writes to Lightning's loggers; it knows which of them can take what."""

from collections.abc import Mapping, Sequence
from typing import Any


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


def log_text(loggers: Sequence[Any], tag: str, text: str, step: int) -> None:
    """Writes text to every logger that can take it: TensorBoard as a card, W&B as a table."""
    for logger in loggers:
        add_card = getattr(getattr(logger, "experiment", None), "add_text", None)
        if callable(add_card):
            add_card(tag, text, step)
        elif callable(getattr(logger, "log_text", None)):
            logger.log_text(tag, columns=["step", "text"], data=[[step, text]])
