"""What users rely on: the public names, the arguments of the callbacks, and what is imported when."""

import inspect
import subprocess
import sys

import pytest

import lightning_stiffness
from lightning_stiffness import StiffnessEarlyStopping, StiffnessMonitor

NAMES = [
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
MONITOR = {
    "every_n_epochs": 1,
    "every_n_steps": 0,
    "at_start": True,
    "mode": "train",
    "probe": None,
    "every_n_batches": 10,
    "probe_size": 200,
    "num_classes": None,
    "loss": None,
    "targets": None,
    "class_names": None,
    "superclasses": None,
    "signals": (),
    "tracked_size": 200,
    "logits": None,
    "seed": 0,
    "prog_bar": True,
    "panels": True,
    "show_table": True,
    "strict": False,
    "save_dir": None,
    "budget": None,
    "name": "stiffness",
}
STOPPER = {
    "monitor": "stiffness/within",
    "min_delta": 0.05,
    "patience": 3.0,
    "verbose": False,
    "mode": "max",
    "strict": False,
    "check_finite": True,
    "stopping_threshold": None,
    "divergence_threshold": None,
    "check_on_train_epoch_end": None,
    "log_rank_zero_only": False,
    "warmup": 2.0,
    "smoothing": 0.5,
    "criterion": None,
    "source": None,
    "restore": "best",
    "grace_epochs": 0,
    "grace_steps": 0,
}
TORCH_ONLY = ["gram", "functional", "probe", "history", "stopping", "batching", "errors", "loss_head"]


def test_the_public_names():
    assert lightning_stiffness.__all__ == NAMES
    assert dir(lightning_stiffness) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_each_of_them_is_there_and_documented(name):
    value = getattr(lightning_stiffness, name)
    assert name == "__version__" or inspect.getdoc(value)
    scope: dict[str, object] = {}
    exec(f"from lightning_stiffness import {name}", scope)
    assert scope[name] is value


def test_other_names_are_not():
    with pytest.raises(AttributeError, match="has no attribute 'StifnessMonitor'"):
        _ = lightning_stiffness.StifnessMonitor


@pytest.mark.parametrize(("callback", "arguments"), [(StiffnessMonitor, MONITOR), (StiffnessEarlyStopping, STOPPER)])
def test_the_arguments_of_a_callback_and_their_defaults(callback, arguments):
    parameters = inspect.signature(callback).parameters
    assert {name: parameter.default for name, parameter in parameters.items()} == arguments
    assert list(parameters) == list(arguments)
    documented = callback.__doc__.partition("Args:")[2].partition("Raises:")[0]
    assert [line.split(":")[0].strip() for line in documented.splitlines() if line.startswith(" " * 8 + "")
            and not line.startswith(" " * 9) and ":" in line] == list(arguments)  # fmt: skip


@pytest.mark.parametrize("callback", [StiffnessMonitor, StiffnessEarlyStopping])
def test_all_arguments_have_types(callback):
    parameters = inspect.signature(callback).parameters.values()
    assert all(parameter.annotation is not inspect.Parameter.empty for parameter in parameters)


def test_a_monitor_has_no_positional_arguments():
    with pytest.raises(TypeError):
        StiffnessMonitor(2)


@pytest.mark.slow
def test_the_science_needs_torch_only():
    program = f"""
import importlib, sys
import lightning_stiffness
for name in {TORCH_ONLY}:
    importlib.import_module("lightning_stiffness." + name)
from lightning_stiffness import GramEngine, History, Probe, Reading, Decision, StiffnessDrop, StiffnessError
heavy = ["lightning", "pytorch_lightning", "torchmetrics", "matplotlib", "tensorboard", "wandb", "sklearn"]
print([name for name in heavy if name in sys.modules])
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
