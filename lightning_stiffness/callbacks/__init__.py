"""What a user adds to the Trainer."""

from lightning_stiffness.callbacks.balancer import ClassGroupingBalancer
from lightning_stiffness.callbacks.early_stopping import StiffnessEarlyStopping
from lightning_stiffness.callbacks.live_figure import LiveFigure
from lightning_stiffness.callbacks.monitor import StiffnessMonitor
from lightning_stiffness.callbacks.shadow_stopping import ShadowStopping

__all__ = ["ClassGroupingBalancer", "LiveFigure", "ShadowStopping", "StiffnessEarlyStopping", "StiffnessMonitor"]
