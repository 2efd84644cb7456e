"""A LightningModule whose training step changes all that it can reach."""

import random
from collections import OrderedDict, defaultdict, deque
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torchmetrics import CatMetric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score

from lightning_stiffness.callbacks.neutrality import isolated_random_state

FEATURES, CLASSES = 5, 3


class Meter:
    def __init__(self) -> None:
        self.count = 0


class Inner(LightningModule):
    """A LightningModule inside another, as when one is built from parts that were trained alone."""

    speaks = True

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def training_step(self, batch: Any, batch_idx: int) -> None:
        """Not used."""

    def forward(self, x: Tensor) -> Tensor:
        if self.speaks:
            self.log("inner", x.mean())
        return self.layer(x)


class Busy(LightningModule):
    """Its training step changes all that a training step can be expected to change."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.dropout = nn.Linear(FEATURES, 8), nn.BatchNorm1d(8), nn.Dropout(0.5)
        self.frozen_norm, self.inner, self.last = nn.BatchNorm1d(8).eval(), Inner(), nn.Linear(8, CLASSES)
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))
        self.register_buffer("average", torch.full((3,), float("nan")))
        self.accuracy = MulticlassAccuracy(num_classes=CLASSES)
        self.scores = MetricCollection(
            [MulticlassF1Score(num_classes=CLASSES), MulticlassAccuracy(num_classes=CLASSES)]
        )
        self.raw = CatMetric()
        self.calls, self.outputs, self.state = 0, [], None
        self.nested = {"train": {"losses": [0.0]}, "order": OrderedDict(a=1, b=2)}
        self.recent, self.seen, self.counts = deque([1, 2], maxlen=2), {1}, defaultdict(int)
        self.plain, self.pair, self.gone = torch.zeros(4), (torch.zeros(2), [1]), 1
        self.meter = Meter()

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.inner(self.dropout(self.frozen_norm(self.norm(self.first(x))))))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        logits = self(x)
        loss = F.cross_entropy(logits, y)
        self._change_tensors(loss)
        self._change_metrics(logits, y)
        self._change_python(loss)
        self.log("loss", loss, on_step=True, on_epoch=True)
        self.log_dict({"accuracy": self.accuracy})
        self.print("done", len(y))
        return loss

    def _change_tensors(self, loss: Tensor) -> None:
        self.steps += 1
        self.average = torch.full((3,), float(loss.detach()))
        self.plain.add_(torch.rand(4))
        self.pair[0].mul_(2).add_(1)
        self.register_buffer("late", torch.ones(1))

    def _change_metrics(self, logits: Tensor, y: Tensor) -> None:
        self.accuracy(logits, y)
        self.scores.update(logits, y)
        self.scores.compute()
        self.raw.update(logits.detach())

    def _change_python(self, loss: Tensor) -> None:
        self.calls += 1 + int(random.random() + np.random.rand())  # noqa: NPY002
        self.outputs.append(loss)
        self.state = loss.detach()
        self.nested["train"]["losses"].append(1.0)
        self.nested["order"].pop("a")
        self.nested["order"]["a"] = 1
        self.recent.append(3)
        self.seen.add(2)
        self.counts["new"] += 1
        self.pair[1].clear()
        self.created = True
        if hasattr(self, "gone"):
            del self.gone
        self.first.note = "note"

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)


def batch_of(n: int = 6) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(n)
    return torch.randn(n, FEATURES, generator=generator), torch.arange(n) % CLASSES


def busy() -> Busy:
    with isolated_random_state():
        torch.manual_seed(0)
        module = Busy()
    module.accuracy.update(torch.eye(CLASSES), torch.arange(CLASSES))
    module.raw.update(torch.ones(2))
    return module
