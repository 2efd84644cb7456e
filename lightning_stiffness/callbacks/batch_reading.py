"""Reads stiffness from the training steps themselves: no sample runs forward or backward a second time."""

import contextlib
import time
import warnings
from dataclasses import dataclass, replace
from typing import Any, final

import torch
from torch import Tensor, nn

from lightning_stiffness.batching import batch_size
from lightning_stiffness.callbacks.batch_pool import BatchPool
from lightning_stiffness.callbacks.namespace import rank_zero_info
from lightning_stiffness.callbacks.neutrality import measuring
from lightning_stiffness.callbacks.training_step import Loss, Targets, resolve_loss
from lightning_stiffness.errors import StiffnessError
from lightning_stiffness.gram.live import LiveGram, Rehearsal, rehearsed
from lightning_stiffness.history import ProbeSummary, Reading
from lightning_stiffness.labels import unambiguous_labels_of
from lightning_stiffness.probe import label_entropy
from lightning_stiffness.samples import only_loader
from lightning_stiffness.targets import as_class_targets, targets_of

CHECKED_EVERY = 16  # batches whose parts are compared with the gradient of the batch: the first, and every 16th
_INSTEAD = 'Measure on a probe instead: leave out probe="batch".'


@dataclass(frozen=True)
class BatchRequest:
    """What the user asks for.

    Attributes:
        every_n_batches: Which batches of an epoch are read: the first, and every n-th after it.
        num_classes: Number of classes, or None for what the dataset stores.
        targets: batch -> classes [n], or None.
        loss: (module, batch) -> losses [n] for the rehearsal, or None for the training step's own.
        budget: Bytes.
    """

    every_n_batches: int
    num_classes: int | None
    targets: Targets | None
    loss: Loss | None
    budget: int

    def reader(self, trainer: Any, pl_module: nn.Module) -> "BatchReader":
        """What reads the batches of a run.

        Raises:
            StiffnessError: The run cannot be read in this way; the message says what to do.
        """
        _require_readable(trainer, pl_module)
        stored = torch.zeros(0) if self.targets else _stored_labels(trainer)
        classes = int(stored.max()) + 1 if self.num_classes is None and len(stored) else self.num_classes
        if classes is None:
            raise StiffnessError(
                'With probe="batch", the number of classes must be known before the first batch; found no labels in '
                "the training dataset. Pass num_classes=."
            )
        return BatchReader(pl_module, self, classes, label_entropy(stored.long()))


@dataclass(frozen=True, eq=False)
class _Read:
    """A batch whose backward is hooked."""

    live: LiveGram
    targets: Tensor
    loss: Tensor


@final
class BatchReader:
    """Takes K of training batches while their backward runs, and pools them until a reading is due.

    Args:
        pl_module: The user's LightningModule.
        request: What is wanted.
        num_classes: Number of classes.
        entropy: Of the labels of the training set, nan if not known.
    """

    def __init__(self, pl_module: nn.Module, request: BatchRequest, num_classes: int, entropy: float) -> None:
        """See the class."""
        self.num_classes = num_classes
        self._pl_module, self._request, self._entropy = pl_module, request, entropy
        self._loss = resolve_loss(pl_module, request.loss)
        self._targets_of = request.targets or targets_of
        self._rehearsal: Rehearsal | None = None
        self._pools, self._bytes = [BatchPool.empty(num_classes)], 0
        self._targets: Tensor | None = None
        self._read: _Read | None = None
        self._spent = 0.0
        self._count = 0
        self._is_full = False

    @property
    def pool(self) -> BatchPool:
        """The batches since the last reading."""
        self._pools = [self._pools[0].joined(self._pools[1:])]
        return self._pools[0]

    @pool.setter
    def pool(self, pool: BatchPool) -> None:
        self._pools, self._bytes, self._is_full = [pool], pool.bytes, False

    @property
    def fingerprint(self) -> str:
        """Equal where readings can stand in one history."""
        return f"batches of {self.num_classes} classes"

    @property
    def has_batch_statistics(self) -> bool:
        """Whether a BatchNorm in training mode mixes the samples of a batch."""
        parts = self._pl_module.modules()
        return any(isinstance(part, nn.modules.batchnorm._BatchNorm) and part.training for part in parts)

    def summary(self, class_names: tuple[str, ...] | None, superclasses: tuple[int, ...] | None) -> ProbeSummary:
        """What a reader of the history has to know."""
        return ProbeSummary("batch", self.num_classes, (), self._entropy, class_names, superclasses)

    def rehearse(self, batch: Any) -> None:
        """Finds out on a few samples of a batch how to read the module, leaving no trace.

        Raises:
            StiffnessError: It cannot be read, or no classes are found.
        """
        self._labels(batch)
        if batch_size(batch) < 2:
            raise StiffnessError(f"A batch must hold two samples to compare, found one. {_INSTEAD}")
        with warnings.catch_warnings(), measuring(self._pl_module):
            warnings.simplefilter("ignore")  # of a slow way to get losses, which is refused here
            self._rehearsal = rehearsed(self._pl_module, self._loss, batch)

    def begin(self, batch: Any, batch_idx: int) -> None:
        """Notes the classes of a batch that is to be read, before the training step can change it.

        Raises:
            StiffnessError: There are none, or they do not fit.
        """
        self.drop()
        if batch_idx % self._request.every_n_batches or self._is_full or batch_size(batch) < 2:
            return
        start = time.perf_counter()
        if self._rehearsal is None or not self._rehearsal.is_about(self._pl_module):
            self.rehearse(batch)
        self._targets = self._labels(batch)
        self._spent = time.perf_counter() - start

    def listen(self, loss: Tensor, factor: float) -> None:
        """Hooks the graph of the batch that was begun; `factor` makes the loss the training step's own again.

        Raises:
            StiffnessError: The graph cannot be read.
        """
        targets, self._targets = self._targets, None  # of several backward passes the first is read
        if targets is None or self._rehearsal is None:
            return
        start = time.perf_counter()
        live = LiveGram(loss, len(targets), self._rehearsal, self._request.budget)
        if self._count % CHECKED_EVERY == 0:
            live.watch_total()
        self._count += 1
        self._read = _Read(live, targets, loss.detach() * factor)
        self._spent += time.perf_counter() - start

    def collect(self) -> None:
        """Adds the batch whose backward is done.

        Raises:
            StiffnessError: It could not be read, or its gradients are not finite.
        """
        read, self._read = self._read, None
        if read is None:
            return
        start = time.perf_counter()
        one = BatchPool.of(read.live.result(), read.targets, float(read.loss.mean()), self.num_classes)
        spent = self._spent + read.live.seconds + time.perf_counter() - start
        self._pools.append(replace(one, seconds=spent))
        self._require_room()

    def drop(self) -> None:
        """Forgets a batch that was begun and takes hooks away that are left, as after an exception."""
        if self._read is not None:
            self._read.live.close()
        self._read = self._targets = None

    def announce(self, name: str) -> None:
        """Says once what is approximate about the readings of that name."""
        if self.has_batch_statistics:
            rank_zero_info(
                f"{name} of training batches under BatchNorm in training mode is an approximation: the statistics of a "
                "batch count as constants, and values can differ much from those of a probe in eval mode."
            )

    def read(self, step: int, epoch: float) -> Reading | None:
        """The reading of all batches since the last one, on all processes; None where there was no batch."""
        pools = _gathered(self.pool)
        self.pool = BatchPool.empty(self.num_classes)
        whole = pools[0].joined(pools[1:])
        return whole.reading(step, epoch) if len(whole.sizes) else None

    def _labels(self, batch: Any) -> Tensor:
        labels = as_class_targets(self._targets_of(batch), batch_size(batch)).clone()
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or high >= self.num_classes:
            raise StiffnessError(
                f"Class targets must lie in [0, {self.num_classes}), found {low} to {high}; pass the right num_classes="
                " or another targets=."
            )
        return labels

    def _require_room(self) -> None:
        self._bytes += self._pools[-1].bytes
        if self._bytes > self._request.budget:
            self._is_full = True
            raise StiffnessError(
                f"The {len(self.pool.targets)} samples since the last reading take more than the budget of "
                f"{self._request.budget} bytes, so the batches up to the next one are left out; pass a larger "
                "every_n_batches= or more readings"
            )


def _stored_labels(trainer: Any) -> Tensor:
    """Those of the training set; none where it does not tell."""
    with contextlib.suppress(StiffnessError):
        stored = unambiguous_labels_of(only_loader(trainer.train_dataloader).dataset)
        if stored is not None and len(stored) and int(stored.min()) >= 0:
            return stored
    return torch.zeros(0, dtype=torch.long)


def _gathered(pool: BatchPool) -> list[BatchPool]:
    """The pools of all processes."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return [pool]
    pools: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(pools, pool)
    return pools


def _require_readable(trainer: Any, pl_module: Any) -> None:
    if not pl_module.automatic_optimization:
        raise StiffnessError(
            f'probe="batch" reads the one backward pass of a training step; {type(pl_module).__name__} optimises '
            f"manually, with as many as it likes (several optimizers, as in a GAN). {_INSTEAD}"
        )
    compiled = [name or type(pl_module).__name__ for name, part in pl_module.named_modules() if _is_compiled(part)]
    if compiled:
        raise StiffnessError(
            f'probe="batch" reads the graph of the training step, and the graph of compiled code cannot be read; '
            f"found torch.compile on {compiled[0]}. Measure on a probe instead, which runs it uncompiled: leave out "
            'probe="batch".'
        )
    kinds = {kind.__name__ for kind in type(trainer.strategy).__mro__}
    if not kinds & {"SingleDeviceStrategy", "DDPStrategy"}:
        raise StiffnessError(
            f'probe="batch" needs whole parameters on each process, on one device or under DDP; found '
            f"{type(trainer.strategy).__name__}. {_INSTEAD}"
        )


def _is_compiled(part: Any) -> bool:
    return (
        type(part).__name__ == "OptimizedModule"
        or getattr(part, "_compiled_call_impl", None) is not None
        or getattr(part, "_compiler_ctx", None) is not None
    )


def loss_factor(trainer: Any) -> float:
    """What turns the loss that backward gets into the one that the training step returned."""
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    return float(trainer.accumulate_grad_batches / (1.0 if scaler is None else scaler.get_scale()))
