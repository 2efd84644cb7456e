"""Which samples a run is measured on: what the user asks for, drawn by the first process, on the device of each."""

import contextlib
import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_stiffness.callbacks.agreement import agreed, attempted
from lightning_stiffness.callbacks.namespace import rank_zero_warn
from lightning_stiffness.callbacks.neutrality import measuring
from lightning_stiffness.callbacks.probe_pair import Mode, ProbePair
from lightning_stiffness.callbacks.training_step import resolve_targets
from lightning_stiffness.errors import StiffnessError
from lightning_stiffness.gram.sharding import is_sharded
from lightning_stiffness.probe import Probe
from lightning_stiffness.random_states import isolated_randomness

_SHOWN_CLASSES = 10


@dataclass(frozen=True)
class ProbeRequest:
    """What the user asks for.

    Attributes:
        mode: Whose samples.
        given: A Probe, DataLoader or batch, or None to draw from the Trainer's dataloaders.
        size: How many samples are drawn, of each kind in cross mode.
        num_classes: Number of classes, or None.
        seed: Of the draw.
        balanced: Whether classes get equal shares; else all samples have equal chances.
        variant: Of samples that are not balanced: which random numbers they are read under.
    """

    mode: Mode
    given: Any
    size: int
    num_classes: int | None
    seed: int
    balanced: bool = True
    variant: int = 0

    def shared(self, trainer: Any, pl_module: Any, targets: Callable[[Any], Tensor] | None) -> ProbePair:
        """The probe that the first process draws, on all processes.

        Raises:
            StiffnessError: Something is missing; the message says what to pass.
        """
        if self.mode != "train" and self.given is None:
            _load_validation(trainer)

        def draw() -> ProbePair:
            # A stiffness_step that is asked for targets runs the module; one that is sharded is not asked, see there.
            with contextlib.nullcontext() if is_sharded(pl_module) else measuring(pl_module):
                return self._draw(trainer, _targets_on_device(trainer, pl_module, targets))

        probes = agreed(trainer, attempted(draw) if trainer.is_global_zero else None)
        if isinstance(probes, Exception):
            raise probes
        assert probes is not None
        if probes.missing and self.balanced:
            _warn_of_missing(probes)
        return probes

    def _draw(self, trainer: Any, targets: Callable[[Any], Tensor]) -> ProbePair:
        if self.given is not None:
            return ProbePair(self.mode, self._given(targets))
        probes = self._drawn_pair(trainer, targets)
        columns = None if probes.columns is None else _as_training_gets(trainer, probes.columns)
        return ProbePair(probes.mode, _as_training_gets(trainer, probes.rows), columns)

    def _drawn_pair(self, trainer: Any, targets: Callable[[Any], Tensor]) -> ProbePair:
        if self.mode == "train":
            return ProbePair("train", self._drawn_for_training(trainer, targets))
        if not trainer.val_dataloaders:
            raise StiffnessError(
                f'mode="{self.mode}" needs a validation dataloader and a validation_step, found none; pass one to fit, '
                'or use mode="train".'
            )
        validation = self._drawn(trainer.val_dataloaders, targets)
        if self.mode == "val":
            return ProbePair("val", validation)
        return ProbePair("cross", self._drawn_for_training(trainer, targets), validation)

    def _given(self, targets: Callable[[Any], Tensor]) -> Probe:
        if isinstance(self.given, Probe):
            return self.given
        if isinstance(self.given, torch.utils.data.DataLoader):
            return Probe.from_loader(self.given, targets=targets, num_classes=self.num_classes)
        return Probe.from_batch(self.given, targets=targets, num_classes=self.num_classes)

    def _drawn_for_training(self, trainer: Any, targets: Callable[[Any], Tensor]) -> Probe:
        return self._drawn(trainer.train_dataloader, targets, trainer.num_training_batches)

    def _drawn(self, loader: Any, targets: Callable[[Any], Tensor], batches: float = math.inf) -> Probe:
        draw = Probe.draw if self.balanced else functools.partial(Probe.draw_by_chance, variant=self.variant)
        return draw(loader, self.size, seed=self.seed, targets=targets, num_classes=self.num_classes, batches=batches)


def on_device(trainer: Any, pl_module: Any, batch: Any, seed: int) -> Any:
    """A batch where the module is, through the precision and the transfer hooks that Lightning sends batches through.

    A hook that draws random numbers draws the same ones each time, so that a resumed run has the same probe.
    """
    with measuring(pl_module), isolated_randomness(seed):
        batch = trainer.precision_plugin.convert_input(batch)
        batch = pl_module._on_before_batch_transfer(batch, dataloader_idx=0)
        return trainer.strategy.batch_to_device(batch, dataloader_idx=0)


def _targets_on_device(trainer: Any, pl_module: Any, given: Callable[[Any], Tensor] | None) -> Callable[[Any], Tensor]:
    targets = resolve_targets(pl_module, given)
    if given is not None or not callable(getattr(pl_module, "stiffness_step", None)):
        return targets
    if is_sharded(pl_module):
        raise StiffnessError(
            "The labels must be known without running the module where its parameters are shared out among processes: "
            "only the first one draws the probe. Pass targets=, a function batch -> classes [n], to the callback."
        )
    return lambda batch: targets(on_device(trainer, pl_module, _wrapped(trainer, batch), 0))


def _as_training_gets(trainer: Any, probe: Probe) -> Probe:
    return probe.with_batch(_wrapped(trainer, probe.batch))


def _wrapped(trainer: Any, batch: Any) -> Any:
    """The batch in the list or dict of the one training dataloader, if it comes in one: so training_step gets it."""
    loaders = getattr(trainer.train_dataloader, "iterables", trainer.train_dataloader)
    if isinstance(loaders, Mapping) and len(loaders) == 1:
        return dict.fromkeys(loaders, batch)
    return [batch] if isinstance(loaders, list | tuple) and len(loaders) == 1 else batch


def _load_validation(trainer: Any) -> None:
    """Lightning loads the validation data in the first epoch that validates, which need not be the first one."""
    if trainer.val_dataloaders is None:
        trainer.validating = True
        trainer.fit_loop.epoch_loop.val_loop.setup_data()
        trainer.training = True


def _warn_of_missing(probes: ProbePair) -> None:
    shown = ", ".join(str(target) for target in probes.missing[:_SHOWN_CLASSES])
    rank_zero_warn(
        f"{len(probes.missing)} of {probes.num_classes} classes have fewer than two samples in the stiffness probe and "
        f"no within-class value: {shown}{' ...' if len(probes.missing) > _SHOWN_CLASSES else ''}."
    )
