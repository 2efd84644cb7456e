"""What a run is, in words: for a card in the loggers, and for the page."""

from collections.abc import Mapping
from importlib.metadata import version
from typing import Any, Protocol

from torch import nn
from torch.nn.parameter import is_lazy

from lightning_stiffness.history import ProbeSummary
from lightning_stiffness.loggers import RunCard

KINDS = {
    "train": "training samples",
    "val": "validation samples",
    "cross": "training samples against validation samples",
    "batch": "samples of the training batches",
}


class Schedule(Protocol):
    """The settings of a monitor that say when it measures, and what else."""

    every_n_epochs: int
    every_n_steps: int
    every_n_batches: int
    signals: tuple[str, ...]


def run_card(trainer: Any, pl_module: nn.Module, probe: ProbeSummary, schedule: Schedule) -> RunCard:
    """What is known of a run when it begins; it is asked for before the first step."""
    trained = [parameter for parameter in pl_module.parameters() if parameter.requires_grad]
    size = sum(parameter.numel() for parameter in trained if not is_lazy(parameter))
    batches = trainer.num_training_batches
    settings = {
        "measured on": f"{len(probe.strata) or 'the'} {KINDS[probe.mode]}, {probe.num_classes} classes",
        "readings": _readings(schedule, probe),
        "signals": ", ".join(schedule.signals) or "none",
        "model": f"{type(pl_module).__name__}, {size:,} trainable parameters",
        "optimizer": ", ".join(_optimizer(optimizer) for optimizer in trainer.optimizers) or "none",
        "planned": f"{trainer.max_epochs if (trainer.max_epochs or -1) > 0 else 'no limit of'} epochs",
        "batches in an epoch": int(batches) if batches < float("inf") else "unknown",
        "precision": str(trainer.precision),
        "processes": int(trainer.world_size),
        "versions": ", ".join(f"{name} {version(name)}" for name in ("lightning-stiffness", "torch", "torchmetrics")),
    }
    registered = getattr(pl_module, "hparams", None)
    return RunCard(probe, settings, dict(registered) if isinstance(registered, Mapping) else {})


def registered_hyperparameters(trainer: Any, pl_module: nn.Module) -> dict[str, Any]:
    """What Lightning is going to log as hyperparameters, of the module and of the data module."""
    found: dict[str, Any] = {}
    sources: tuple[Any, ...] = pl_module, trainer.datamodule
    for source in sources:
        if getattr(source, "_log_hyperparams", False):
            found.update(source.hparams_initial)
    return {name: value for name, value in found.items() if name != "_class_path"}


def _readings(schedule: Schedule, probe: ProbeSummary) -> str:
    epochs, steps = schedule.every_n_epochs, schedule.every_n_steps
    times = [f"every {'epoch' if epochs == 1 else f'{epochs} epochs'}"] if epochs else []
    times += [f"every {steps} steps"] if steps else []
    batches = f", from every {schedule.every_n_batches}. batch" if probe.mode == "batch" else ""
    return (" and ".join(times) or "before training only") + batches


def _optimizer(optimizer: Any) -> str:
    rates = sorted({float(group["lr"]) for group in optimizer.param_groups if "lr" in group})
    decays = sorted({float(group.get("weight_decay", 0.0)) for group in optimizer.param_groups} - {0.0})
    text = f"{type(optimizer).__name__}, learning rate {', '.join(f'{rate:.4g}' for rate in rates)}"
    return text + (f", weight decay {', '.join(f'{decay:.4g}' for decay in decays)}" if decays else "")
