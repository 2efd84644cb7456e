"""Takes a reading: the probe goes through the user's module, and the Gram matrix through the formulas."""

import time
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from lightning_stiffness.batching import batch_size, take
from lightning_stiffness.callbacks.neutrality import measuring
from lightning_stiffness.callbacks.probe_pair import ProbePair
from lightning_stiffness.callbacks.signals.board import SignalBoard
from lightning_stiffness.functional import cosine_pairs, input_distances, sign_pairs, summarise
from lightning_stiffness.gram import Gram, GramEngine
from lightning_stiffness.gram.sharding import whole
from lightning_stiffness.history import Reading
from lightning_stiffness.inputs import input_vectors

REHEARSED = 4  # samples


@dataclass(frozen=True)
class StiffnessReader:
    """Measures one module on one probe, leaving no trace.

    Attributes:
        module: The user's LightningModule.
        engine: The Gram engine on it.
        probes: What is compared; the batch on the module's device is `batch`.
        batch: All samples of the probes, where the module is.
        board: What else is measured on the probe.
    """

    module: nn.Module
    engine: GramEngine
    probes: ProbePair
    batch: Any
    board: SignalBoard

    @property
    def rows(self) -> Any:
        """The samples without the validation samples of cross mode."""
        n = len(self.probes.rows.targets)
        return self.batch if self.probes.columns is None else take(self.batch, slice(0, n))

    @cached_property
    def distances(self) -> Tensor | None:
        """Of the inputs of each pair of samples, as the module gets them; None where inputs have no distance."""
        n = len(self.probes.rows.targets)
        vectors = input_vectors(self.batch, batch_size(self.batch))
        if vectors is None:
            return None
        return input_distances(vectors[:n], vectors if self.probes.columns is None else vectors[n:])

    def rehearse(self) -> None:
        """Measures a few samples, to find out now what cannot work later.

        Raises:
            StiffnessError: As `GramEngine.gram`.
        """
        with measuring(self.module):
            self.engine.gram(take(self.batch, slice(0, REHEARSED)))

    def read(self, step: int, epoch: float) -> Reading:
        """A reading at this step.

        Raises:
            StiffnessError: As `GramEngine.gram`.
        """
        start = time.perf_counter()
        with whole(self.module):  # once for all: a process that fails in between would be waited for
            self.board.before_reading()
            return self._read(step, epoch, start)

    def _read(self, step: int, epoch: float, start: float) -> Reading:
        with measuring(self.module):
            gram = self.engine.gram(self.batch)
        n = len(self.probes.rows.targets)
        matrix, losses = gram.matrix.cpu().double(), gram.losses.cpu().double()[:n]
        pairs = cosine_pairs(matrix)
        spread = losses.std() / n**0.5 if n > 1 else torch.tensor(torch.nan)
        signals = self.board.read(Gram(matrix[:n, :n], losses, gram.routes))
        if self.probes.columns is not None:
            rows = summarise(pairs[:n, :n], self.probes.rows.targets, self.probes.num_classes)
            signals["train_within"] = rows.within
        return Reading(
            step=step,
            epoch=epoch,
            cosine=self.probes.stiffness(pairs),
            sign=self.probes.stiffness(sign_pairs(matrix)),
            loss=float(losses.mean()),
            loss_se=float(spread),
            zero_fraction=float(gram.zero.double().mean()),
            seconds=time.perf_counter() - start,
            signals=signals,
            detail=self.probes.detail(pairs, self.distances),
        )
