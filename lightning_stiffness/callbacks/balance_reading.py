"""Takes a reading of how a network treats its classes: groups that fight, who takes whose probability, progress."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from lightning_stiffness.balance import BalanceReading
from lightning_stiffness.batching import batch_size
from lightning_stiffness.callbacks.balancing_statistics import absorption
from lightning_stiffness.callbacks.neutrality import isolated_random_state, measuring
from lightning_stiffness.callbacks.probing import ProbeRequest, on_device
from lightning_stiffness.callbacks.step_run import output_of, require_usable
from lightning_stiffness.callbacks.training_step import training_precision
from lightning_stiffness.errors import StiffnessError
from lightning_stiffness.functional.class_progress import class_progress, class_progress_error
from lightning_stiffness.functional.tally import class_sums
from lightning_stiffness.gram import CrossGram, Gram, GramEngine
from lightning_stiffness.gram.sharding import whole
from lightning_stiffness.grouping import agreement, class_groups
from lightning_stiffness.levels import (
    CLASSIFIER,
    FEATURES,
    StiffnessLevels,
    chance_at,
    has_bias,
    is_linear,
    level_of,
    levels_of,
    levels_of_grams,
    seen_at,
)

FEWEST, MOST = 100, 200  # samples of a probe, ten of each class between them; four of each where there are many


@dataclass(frozen=True)
class Circumstances:
    """What else is known when a reading is taken.

    Attributes:
        step: Optimizer steps taken.
        epoch: Epochs completed.
        counts: Samples of each class.
        rates: How often each class is drawn.
        offsets: What is added to the logits in training; None for nothing. Smoothing of labels is left out: toward its
            end a smoothed training lowers the confidence in all classes, which is no sacrifice of one to another.
        class_names: One for each class, or None.
    """

    step: int
    epoch: float
    counts: Float[Tensor, "c"]
    rates: Float[Tensor, "c"]
    offsets: Float[Tensor, "c"] | None
    class_names: tuple[str, ...] | None


class HeadLoss:
    """Cross entropy of what the classifier makes of a batch: what stiffness at the classifier is defined for.

    The module's own training step runs, in whatever way it gets to its classifier; what it does behind it, such as a
    weighted loss, plays no part.

    Args:
        layer: The classifier.
        targets: batch -> classes [n].
    """

    def __init__(self, layer: nn.Module, targets: Callable[[Any], Tensor]) -> None:
        """See the class."""
        self._layer, self._targets = layer, targets

    def __call__(self, module: nn.Module, batch: tuple[Any, Tensor]) -> Float[Tensor, "n"]:
        """The losses of the samples.

        Args:
            module: The LightningModule.
            batch: What its training step takes, and what is to be added to the logits of each sample, [n, c].

        Raises:
            StiffnessError: The classifier gives no row for each sample, or the training step cannot be run.
        """
        samples, offsets = batch
        return F.cross_entropy(self._logits(module, samples) + offsets, self._targets(samples), reduction="none")

    def _logits(self, module: Any, samples: Any) -> Tensor:
        seen: list[Any] = []
        handle = self._layer.register_forward_hook(lambda _, inputs, output: seen.append(output))
        size = batch_size(samples)
        try:
            with isolated_random_state(), training_precision(module):
                if callable(getattr(module, "stiffness_step", None)):
                    module.stiffness_step(samples)
                else:
                    require_usable(module)
                    output_of(module, samples)
        finally:
            handle.remove()
        fitting = [value for value in seen if isinstance(value, Tensor) and value.ndim == 2 and len(value) == size]
        if len(seen) != 1 or not fitting:
            raise StiffnessError(
                f"The classifier must be called once in a training step, with a row for each of {size} samples; found "
                f"{len(seen)} calls, {len(fitting)} of them with such rows."
            )
        return fitting[0]


class BalanceReader:
    """Measures one module on a class-balanced probe of its training data, leaving no trace.

    Args:
        trainer: The Trainer.
        module: The user's LightningModule.
        layer: Its classifier.
        num_classes: Number c of classes.
        targets: batch -> classes [n].
        seed: Of the draw of the probe.
    """

    def __init__(  # noqa: PLR0913  # what it measures, and on what
        self,
        trainer: Any,
        module: nn.Module,
        layer: nn.Module,
        num_classes: int,
        targets: Callable[[Any], Tensor],
        seed: int,
    ) -> None:
        """See the class."""
        self._trainer, self._module, self._layer = trainer, module, layer
        self._num_classes, self._targets, self._seed = num_classes, targets, seed
        self._loss = HeadLoss(layer, targets)
        self._engine = GramEngine(module, self._loss)
        self._batch: Any = None

    def draw(self) -> None:
        """Draws the probe: the first process does, for all of them, so all have to call this once.

        Raises:
            StiffnessError: None can be drawn; the message says why, the same one on all processes.
        """
        size = max(FEWEST, min(10 * self._num_classes, MOST), 4 * self._num_classes)
        request = ProbeRequest("train", None, size, self._num_classes, self._seed)
        self._batch = request.shared(self._trainer, self._module, self._targets).batch

    def read(self, now: Circumstances, before: BalanceReading | None) -> BalanceReading:
        """A reading of training samples alone; after `draw`.

        Raises:
            StiffnessError: As `GramEngine.gram`, or as `HeadLoss`.
        """
        with whole(self._module):
            samples = on_device(self._trainer, self._module, self._batch, self._seed)
            return self._read(samples, now, before)

    def _read(self, samples: Any, now: Circumstances, before: BalanceReading | None) -> BalanceReading:
        with measuring(self._module):
            levels, products, logits = self._measured(samples, now)
            groups = class_groups(levels, seed=self._seed)
            means, measured = _class_means(logits, levels.targets)
            progress = class_progress(products, levels.targets, now.rates)
            error = class_progress_error(products, levels.targets, now.rates)
            classifier, features = levels.classifier_matrix, levels.feature_matrix
        return BalanceReading(
            step=now.step,
            epoch=now.epoch,
            counts=now.counts.float().cpu(),
            measured=measured,
            groups=groups.assignment,
            order=groups.order,
            reason=groups.reason,
            agreement=float("nan") if before is None else agreement(before.groups, groups.assignment),
            lost=lost_by(means),
            progress=progress.float().cpu(),
            progress_se=error.float().cpu(),
            classifier=classifier.float().cpu(),
            features=None if features is None else features.float().cpu(),
            absorption=absorption(means),
            class_names=now.class_names,
        )

    def _measured(self, samples: Any, now: Circumstances) -> tuple[StiffnessLevels, Tensor, Tensor]:
        """Both levels, the products of plain with trained gradients, and the logits."""
        targets = self._targets(samples)
        n = len(targets)
        plain = (samples, torch.zeros(n, self._num_classes, device=targets.device))
        inputs, logits = seen_at(self._layer, lambda: self._loss(self._module, plain), n)
        by = level_of(self._engine.module, self._layer)
        found: Gram | CrossGram
        if now.offsets is None:
            found = self._engine.gram(plain, by=by)
        else:  # each sample twice: with the loss that counts, and with the one that is trained
            trained = samples, plain[1] + now.offsets.to(plain[1])
            found = self._engine.cross_gram(plain, trained, by=by, with_first=True)
        parts = {level: part[:, :n] for level, part in found.parts.items()}
        if is_linear(self._layer):
            levels = levels_of(inputs, logits, targets, parts.get(FEATURES), has_bias(self._layer))
        else:
            chance = chance_at(self._engine.module, self._layer, self._loss, plain, (logits, targets))
            levels = levels_of_grams(parts[CLASSIFIER], chance, logits, targets, parts.get(FEATURES))
        return levels, found.matrix[:, -n:], logits


def lost_by(probabilities: Float[Tensor, "c c"]) -> Float[Tensor, "c"]:
    """The probability that each class gives to others, in [0, 1]; nan where its row is.

    >>> lost_by(torch.tensor([[0.75, 0.25], [0.0, 1.0]]))
    tensor([0.2500, 0.0000])
    """
    return (1 - probabilities.diagonal()).clamp(min=0)


def _class_means(logits: Float[Tensor, "n c"], targets: Int[Tensor, "n"]) -> tuple[Tensor, Tensor]:
    """Mean probabilities of the samples of each class, nan without any, and their numbers; on the CPU."""
    probabilities, targets = logits.double().softmax(1), targets.to(logits.device)
    measured = class_sums(torch.ones_like(probabilities[:, 0]), targets, logits.shape[1])
    means = class_sums(probabilities, targets, logits.shape[1]) / measured[:, None]
    return means.float().cpu(), measured.float().cpu()
