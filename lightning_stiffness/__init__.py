"""Gradient stiffness for PyTorch Lightning: what a classifier learns, and when it starts to memorise.

Two samples are stiff to each other when a gradient step on one also lowers the loss of the other.

Symbols, here and in the shapes of signatures: n samples (rows), m column samples, c classes, t positions of a sample
(tokens, pixels), p parameters, g_i the gradient of sample i's loss with respect to all trainable parameters, K_ij =
<g_i, g_j> the Gram matrix.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_stiffness.balanced_loader import make_balanced_loader
    from lightning_stiffness.callbacks import (
        ClassGroupingBalancer,
        LiveFigure,
        ShadowStopping,
        StiffnessEarlyStopping,
        StiffnessMonitor,
    )
    from lightning_stiffness.diagnosis import Diagnosis
    from lightning_stiffness.doctor import diagnose
    from lightning_stiffness.errors import MixedSamplesError, StiffnessError
    from lightning_stiffness.gram import GramEngine
    from lightning_stiffness.grouping import class_groups
    from lightning_stiffness.history import History, Reading
    from lightning_stiffness.levels import measure_levels
    from lightning_stiffness.metrics import (
        BetweenClassSignStiffness,
        BetweenClassStiffness,
        CosineStiffness,
        SignStiffness,
        WithinClassSignStiffness,
        WithinClassStiffness,
    )
    from lightning_stiffness.probe import Probe
    from lightning_stiffness.sampling import ClassRateSampler
    from lightning_stiffness.stopping import (
        ConfirmedDrop,
        Decision,
        LeaveOneOut,
        StiffnessDrop,
        StiffnessGap,
        ValidationPatience,
        ValidationScore,
    )
    from lightning_stiffness.wrong_labels import LabelScores, average_scores, score_labels

__version__ = "0.1.0"

_HOME = {
    "make_balanced_loader": "balanced_loader",
    "ClassGroupingBalancer": "callbacks",
    "LiveFigure": "callbacks",
    "ShadowStopping": "callbacks",
    "StiffnessEarlyStopping": "callbacks",
    "StiffnessMonitor": "callbacks",
    "Diagnosis": "diagnosis",
    "diagnose": "doctor",
    "MixedSamplesError": "errors",
    "StiffnessError": "errors",
    "GramEngine": "gram",
    "class_groups": "grouping",
    "History": "history",
    "Reading": "history",
    "measure_levels": "levels",
    "BetweenClassSignStiffness": "metrics",
    "BetweenClassStiffness": "metrics",
    "CosineStiffness": "metrics",
    "SignStiffness": "metrics",
    "WithinClassSignStiffness": "metrics",
    "WithinClassStiffness": "metrics",
    "Probe": "probe",
    "ClassRateSampler": "sampling",
    "ConfirmedDrop": "stopping",
    "Decision": "stopping",
    "LeaveOneOut": "stopping",
    "StiffnessDrop": "stopping",
    "StiffnessGap": "stopping",
    "ValidationPatience": "stopping",
    "ValidationScore": "stopping",
    "LabelScores": "wrong_labels",
    "average_scores": "wrong_labels",
    "score_labels": "wrong_labels",
}

__all__ = [
    "BetweenClassSignStiffness",
    "BetweenClassStiffness",
    "ClassGroupingBalancer",
    "ClassRateSampler",
    "ConfirmedDrop",
    "CosineStiffness",
    "Decision",
    "Diagnosis",
    "GramEngine",
    "History",
    "LabelScores",
    "LeaveOneOut",
    "LiveFigure",
    "MixedSamplesError",
    "Probe",
    "Reading",
    "ShadowStopping",
    "SignStiffness",
    "StiffnessDrop",
    "StiffnessEarlyStopping",
    "StiffnessError",
    "StiffnessGap",
    "StiffnessMonitor",
    "ValidationPatience",
    "ValidationScore",
    "WithinClassSignStiffness",
    "WithinClassStiffness",
    "__version__",
    "average_scores",
    "class_groups",
    "diagnose",
    "make_balanced_loader",
    "measure_levels",
    "score_labels",
]


def __getattr__(name: str) -> Any:
    """Imports a public name when it is first used: the engine must not need Lightning, nor the formulas matplotlib."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    """The public names."""
    return sorted(__all__)
