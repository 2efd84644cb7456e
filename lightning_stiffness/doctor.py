"""What the engine makes of a model and its data before any training: can it be measured, how, at what cost."""

import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightning_stiffness.batching import take
from lightning_stiffness.callbacks.neutrality import measuring
from lightning_stiffness.callbacks.training_step import resolve_loss, resolve_targets
from lightning_stiffness.diagnosis import Diagnosis, Share
from lightning_stiffness.errors import MixedSamplesError, StiffnessError
from lightning_stiffness.gram import GramEngine
from lightning_stiffness.gram.memory import default_budget
from lightning_stiffness.gram.trainable import trainable
from lightning_stiffness.memory_use import MemoryUse, free_megabytes
from lightning_stiffness.probe import Probe
from lightning_stiffness.sequential_data import SequentialData, is_data, loader_of, transfer_to
from lightning_stiffness.targets import target_place

SAMPLES = 200
PER_CLASS = 10  # samples of each class in a recommended probe
WORTH = 0.1  # of the time of an epoch: what readings may take
TYPICAL_BATCH = 32  # of a data set that comes without a loader
PATIENCE = 5.0  # seconds of repeated measurements


def diagnose(  # noqa: PLR0913  # the settings, each by its name
    module: nn.Module,
    batch: Any,
    *,
    loss: Callable[[Any, Any], Tensor] | None = None,
    targets: Callable[[Any], Tensor] | None = None,
    num_classes: int | None = None,
    samples: int = SAMPLES,
) -> Diagnosis:
    """Measures once, leaving no trace, and says what was found.

    Args:
        module: A LightningModule, or any module with `loss`.
        batch: A batch, a DataLoader, a Dataset or a LightningDataModule (its training data). From data a class-balanced
            probe is drawn.
        loss: As `StiffnessMonitor`.
        targets: As `StiffnessMonitor`.
        num_classes: Number of classes; the largest label + 1 when not given.
        samples: How many are measured at most.

    Returns:
        The diagnosis; if the model cannot be measured, with the problem in place of numbers.

    Raises:
        StiffnessError: The data cannot be read at all.

    Example:
        >>> model = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> def losses(module, batch):
        ...     return nn.functional.cross_entropy(module(batch[0]), batch[1], reduction="none")
        >>> found = diagnose(model, (torch.randn(6, 3), torch.arange(6) % 2), loss=losses)
        >>> found.monitor, found.counts, found.fallback_share
        ('StiffnessMonitor(num_classes=2)', (3, 3), 0.0)
    """
    entries = sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)
    known: dict[str, Any] = {"model": type(module).__name__, "entries": entries, "notes": tuple(_notes(module))}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            with measuring(module):
                for found in _Examination(module, batch, loss, targets, num_classes, samples).steps():
                    known.update(found)
        except StiffnessError as problem:
            known.update(problem=str(problem), mixes=isinstance(problem, MixedSamplesError))
    known["notes"] += tuple(str(one.message) for one in caught if "lightning_stiffness" in one.filename)
    return Diagnosis(**known)


@dataclass(frozen=True)
class _Examination:
    """What is looked at, in turn; each step adds to what is known of a diagnosis."""

    module: nn.Module
    batch: Any
    loss: Callable[[Any, Any], Tensor] | None
    targets: Callable[[Any], Tensor] | None
    num_classes: int | None
    samples: int

    def steps(self) -> Iterator[dict[str, Any]]:
        loss, classes_of = resolve_loss(self.module, self.loss), resolve_targets(self.module, self.targets)
        yield {"losses": _source_of_losses(self.module, self.loss)}
        probe, epoch = self._probe(classes_of)
        yield {
            "samples": len(probe.targets),
            "counts": tuple(torch.bincount(probe.targets, minlength=probe.num_classes).tolist()),
            "targets": _source_of_targets(self.module, self.targets, probe.batch),
        }
        batch = transfer_to(self.module)(probe.batch)
        engine = GramEngine(self.module, loss)
        device = next(iter(trainable(self.module).values())).device
        with MemoryUse(device) as use:
            gram = engine.gram(batch)
        seconds = _seconds(lambda: engine.gram(batch))
        floor = _seconds(lambda: _forward_and_backward(self.module, loss, batch))
        step = _seconds(lambda: _forward_and_backward(self.module, loss, take(batch, slice(0, epoch.batch))))
        size = max(SAMPLES, PER_CLASS * probe.num_classes)
        share = seconds * size / len(probe.targets) / (step * epoch.batches) if epoch.samples else math.nan
        yield {
            "shares": _shares(gram.routes, trainable(self.module)),
            "seconds": seconds,
            "floor_seconds": floor,
            "megabytes": use.megabytes,
            "epoch_share": share,
            "settings": _settings(probe.num_classes, size, share, device),
        }

    def _probe(self, classes_of: Callable[[Any], Tensor]) -> tuple[Probe, "_Epoch"]:
        """The samples, and what an epoch of training on the data has."""
        if not is_data(self.batch):
            some = take(self.batch, slice(0, self.samples))
            return Probe.from_batch(some, targets=classes_of, num_classes=self.num_classes), _Epoch()
        loader = loader_of(self.batch)
        probe = Probe.draw(loader, self.samples, targets=classes_of, num_classes=self.num_classes)
        size = loader.batch_size or 1
        return probe, _Epoch(len(SequentialData(loader)), min(size if size > 1 else TYPICAL_BATCH, len(probe.targets)))


@dataclass(frozen=True)
class _Epoch:
    """An epoch: its samples, 0 if that is not known, and those of a training batch."""

    samples: int = 0
    batch: int = TYPICAL_BATCH

    @property
    def batches(self) -> float:
        """How many there are."""
        return self.samples / self.batch


def _source_of_losses(module: nn.Module, loss: Any) -> str:
    if loss is not None:
        return "loss=, one for each sample"
    if callable(getattr(module, "stiffness_step", None)):
        return "stiffness_step of the module"
    return "training_step of the module, split into one loss for each sample"


def _source_of_targets(module: nn.Module, targets: Any, batch: Any) -> str:
    if targets is not None:
        return "targets="
    if callable(getattr(module, "stiffness_step", None)):
        return "stiffness_step of the module"
    place = target_place(batch)
    return f"element {place} of the batch" if isinstance(place, int) else f"{place!r} in the batch"


def _shares(routes: Mapping[str, str], parameters: Mapping[str, nn.Parameter]) -> tuple[Share, ...]:
    """Fallbacks first, then by size."""
    names: dict[str, list[str]] = {}
    for name, route in routes.items():
        names.setdefault(route, []).append(name)
    shares = [
        Share(route, tuple(own), sum(parameters[name].numel() for name in own if name in parameters))
        for route, own in names.items()
    ]
    return tuple(sorted(shares, key=lambda share: (not share.is_fallback, -share.entries)))


def _settings(num_classes: int, size: int, epoch_share: float, device: torch.device) -> dict[str, Any]:
    """Recommended arguments, those that are not the default."""
    settings: dict[str, Any] = {"num_classes": num_classes}
    if size > SAMPLES:
        settings["probe_size"] = size
    if epoch_share > WORTH:
        settings["every_n_epochs"] = math.ceil(epoch_share / WORTH)
    free = free_megabytes(device)
    if free << 20 < 2 * default_budget(device):
        settings["budget"] = free // 4 << 20
    return settings


def _notes(module: nn.Module) -> Iterator[str]:
    parts = list(module.modules())
    norms = sum(isinstance(part, nn.modules.batchnorm._BatchNorm) for part in parts)
    if norms:
        yield f"{norms} BatchNorm layers use their running statistics meanwhile, as in eval mode."
    if any(isinstance(part, nn.modules.dropout._DropoutNd) and part.p > 0 for part in parts):
        yield "Dropout is off meanwhile."
    frozen = sum(parameter.numel() for parameter in module.parameters() if not parameter.requires_grad)
    if frozen:
        yield f"{frozen:,} entries of frozen parameters do not count."


def _forward_and_backward(module: nn.Module, loss: Callable[[Any, Any], Tensor], batch: Any) -> None:
    parameters = list(trainable(module).values())
    torch.autograd.grad(loss(module, batch).mean(), parameters, allow_unused=True)


def _seconds(work: Callable[[], object]) -> float:
    """The fastest of a few calls."""
    taken: list[float] = []
    while len(taken) < 3 and sum(taken) < PATIENCE:
        start = time.perf_counter()
        work()
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - start)
    return min(taken)
