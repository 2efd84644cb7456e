"""Where the files of a run go."""

from pathlib import Path
from typing import Any


def run_folder(trainer: Any, save_dir: str | None) -> Path | None:
    """The folder of this run, where its checkpoints folder is, too; None where nothing should be written.

    Args:
        trainer: The Trainer.
        save_dir: What the user asked for.
    """
    if trainer.fast_dev_run:
        return None
    if save_dir is not None:
        return Path(save_dir)
    if not trainer.loggers:
        return None
    logger = trainer.loggers[0]
    version = logger.version if isinstance(logger.version, str) else f"version_{logger.version}"
    folder = Path(logger.save_dir or trainer.default_root_dir) / str(logger.name) / version
    return Path(trainer.strategy.broadcast(str(folder)))
