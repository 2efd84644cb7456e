"""Weights & Biases without a network, with all its files in one folder."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def offline_wandb(folder: Path, mode: str = "offline") -> Iterator[None]:
    """Within this context new runs are offline, silent, and nowhere but in the folder; afterwards none is open."""
    import wandb

    with pytest.MonkeyPatch.context() as patch:
        for place in ("DATA_DIR", "CACHE_DIR", "CONFIG_DIR"):
            patch.setenv(f"WANDB_{place}", str(folder / place.lower()))
        for name, value in {"MODE": mode, "SILENT": "true", "CONSOLE": "off", "ERROR_REPORTING": "false"}.items():
            patch.setenv(f"WANDB_{name}", value)
        patch.setenv("WANDB__SERVICE_WAIT", "600")  # seconds; a busy machine
        wandb.teardown()  # it reads the environment once
        try:
            yield
        finally:
            wandb.teardown()
