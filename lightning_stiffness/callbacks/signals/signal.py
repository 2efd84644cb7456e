"""What a signal is: further numbers that are measured at each reading, for rules that need them."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from lightning_stiffness.batching import batch_size, take
from lightning_stiffness.callbacks.logits import LogitsOf
from lightning_stiffness.callbacks.neutrality import measuring
from lightning_stiffness.callbacks.probing import ProbeRequest, on_device
from lightning_stiffness.errors import StiffnessError
from lightning_stiffness.gram import Gram, GramEngine
from lightning_stiffness.samples import dataset_length, only_loader
from lightning_stiffness.structure import tensors

FORWARD_SAMPLES = 128  # that go through the network at once


class Settings(Protocol):
    """The settings of a monitor that signals read."""

    tracked_size: int
    seed: int
    targets: Callable[[Any], Any] | None
    logits: Callable[[Any, Any], Any] | None


@dataclass(frozen=True)
class Scene:
    """Where a signal is measured.

    Attributes:
        trainer: The Trainer.
        module: The user's LightningModule.
        engine: The Gram engine on its loss.
        loss: (module, batch) -> losses [n].
        batch: The samples of the probe (in cross mode its training samples), where the module is.
        num_classes: Number c of classes.
        settings: What the user has set on the monitor.
    """

    trainer: Any
    module: nn.Module
    engine: GramEngine
    loss: Callable[[Any, Any], Tensor]
    batch: Any
    num_classes: int
    settings: Settings

    @cached_property
    def tracked(self) -> "Tracked":
        """Training samples drawn with equal chances, the same for all signals."""
        return Tracked.drawn(self)


@dataclass(frozen=True, eq=False)
class Tracked:
    """Training samples whose logits are followed.

    Attributes:
        module: The user's LightningModule.
        batch: The samples, where the module is.
        twins: The same samples under other random numbers, where training augments them; else None.
        targets: Their given labels, on the CPU.
        samples: Number of all training samples; nan where the dataset does not tell.
        fingerprint: Equal for the same samples.
        logits_of: (module, batch) -> logits [n, c].
    """

    module: nn.Module
    batch: Any
    twins: Any
    targets: Int[Tensor, "n"]
    samples: float
    fingerprint: str
    logits_of: Callable[[Any, Any], Tensor]

    @classmethod
    def drawn(cls, scene: Scene) -> "Tracked":
        """From the Trainer's training data; all processes have to call this."""
        first = _read(scene, scene.settings.tracked_size, 0)
        again = _read(scene, scene.settings.tracked_size, 1)
        is_augmented = not _same(first.batch, again.batch)
        if is_augmented:  # two of each are as many as one of twice as many
            first, again = (_read(scene, max(2, scene.settings.tracked_size // 2), variant) for variant in (0, 1))
        return cls(
            module=scene.module,
            batch=first.batch,
            twins=again.batch if is_augmented else None,
            targets=first.targets,
            samples=_training_samples(scene.trainer),
            fingerprint=first.fingerprint,
            logits_of=LogitsOf(scene.loss, scene.num_classes, scene.settings.logits),
        )

    def logits(self) -> Float[Tensor, "n c"]:
        """The logits now, in eval mode, in double precision on the CPU.

        Raises:
            StiffnessError: They cannot be found, or are not finite.
        """
        n = batch_size(self.batch)
        with measuring(self.module), torch.enable_grad():
            parts = [
                self.logits_of(self.module, take(self.batch, slice(start, start + FORWARD_SAMPLES), n)).detach()
                for start in range(0, n, FORWARD_SAMPLES)
            ]
        return finite_logits(torch.cat(parts))


def finite_logits(logits: Tensor) -> Tensor:
    """Logits in double precision on the CPU.

    Raises:
        StiffnessError: Some are not finite.
    """
    found = logits.cpu().double()
    if not bool(found.isfinite().all()):
        raise StiffnessError("The logits of all tracked samples must be finite; some are not.")
    return found


@dataclass(frozen=True, eq=False)
class _Read:
    """Samples on the module's device, as training gets them."""

    batch: Any
    targets: Tensor
    fingerprint: str


def _read(scene: Scene, size: int, variant: int) -> _Read:
    settings = scene.settings
    request = ProbeRequest("train", None, size, scene.num_classes, settings.seed, balanced=False, variant=variant)
    probes = request.shared(scene.trainer, scene.module, settings.targets)
    batch = on_device(scene.trainer, scene.module, probes.batch, settings.seed + variant)
    return _Read(batch, probes.rows.targets, probes.fingerprint)


def _same(first: Any, second: Any) -> bool:
    pairs = zip(tensors(first), tensors(second), strict=True)
    return all(one.shape == other.shape and torch.equal(one, other) for one, other in pairs)


def _training_samples(trainer: Any) -> float:
    try:
        return float(dataset_length(only_loader(trainer.train_dataloader)))
    except StiffnessError:
        return float("nan")


class Signal(Protocol):
    """Measures numbers at each reading.

    A signal is made anew for each run; what it has to remember beyond that is in its state.
    """

    def before_step(self) -> None:
        """Called before each optimizer step, more than once for some."""
        ...

    def before_reading(self) -> None:
        """Called before the network runs for a reading: asks other processes, while none can have failed."""
        ...

    def read(self, gram: Gram) -> dict[str, float]:
        """The numbers now, by their names; ``gram`` is that of the probe."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers and tensors."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from a state; from none if it is that of other samples."""
        ...


class Stateless:
    """A signal that remembers nothing."""

    def before_step(self) -> None:
        """Nothing to do."""

    def before_reading(self) -> None:
        """Nothing to do."""

    def state_dict(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to do."""
