"""What a user adds to the Trainer."""

from lightning_stiffness.callbacks.early_stopping import StiffnessEarlyStopping
from lightning_stiffness.callbacks.monitor import StiffnessMonitor

__all__ = ["StiffnessEarlyStopping", "StiffnessMonitor"]
