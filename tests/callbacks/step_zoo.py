"""LightningModules whose losses are split without running samples one by one, named by their quirk."""

import random
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy

FEATURES, CLASSES, POSITIONS = 6, 4, 3
CLASS_WEIGHTS = torch.tensor([0.5, 1.0, 2.0, 4.0], dtype=torch.float64)


class Net(LightningModule):
    """Two layers with dropout and batch norm, and plain cross-entropy; the zoo differs from it in one thing each."""

    outputs = CLASSES

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(FEATURES, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.5))
        self.head = nn.Linear(8, self.outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x, y = batch
        return F.cross_entropy(self(x), y)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def classes(n: int) -> Tensor:
    return torch.arange(n) % CLASSES


def plain_batch(n: int) -> tuple[Tensor, Tensor]:
    return torch.randn(n, FEATURES, dtype=torch.float64, generator=torch.Generator().manual_seed(n)), classes(n)


def binary_batch(n: int) -> tuple[Tensor, Tensor]:
    return plain_batch(n)[0], (classes(n) % 2).double()


def token_batch(n: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(n)
    x = torch.randn(n, POSITIONS, FEATURES, dtype=torch.float64, generator=generator)
    return x, torch.randint(0, CLASSES, (n, POSITIONS), generator=generator)


ZOO: dict[str, tuple[type[LightningModule], Any]] = {}


def separable(batch: Any = plain_batch):
    """Adds a module to the zoo of those whose losses are split without running samples one by one."""

    def add(module: type[LightningModule]) -> type[LightningModule]:
        ZOO[module.__name__] = module, batch
        return module

    return add


separable()(Net)


@separable()
class WeightedModule(Net):
    def training_step(self, batch, batch_idx):
        x, y = batch
        return nn.CrossEntropyLoss(weight=CLASS_WEIGHTS)(self(x), y)


@separable()
class LabelSmoothing(Net):
    def training_step(self, batch):
        x, y = batch
        return F.cross_entropy(self(x), y, label_smoothing=0.1, weight=CLASS_WEIGHTS)


@separable(lambda n: (plain_batch(n)[0], torch.where(classes(n) == 1, -100, classes(n))))
class IgnoreIndex(Net):
    def training_step(self, batch, _):
        x, y = batch
        return F.cross_entropy(self(x), y)


@separable()
class BackgroundClass(Net):
    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.cross_entropy(self(x), y, ignore_index=0)


@separable()
class ClassOfWeightZero(Net):
    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.cross_entropy(self(x), y, weight=torch.where(CLASS_WEIGHTS > 0.5, CLASS_WEIGHTS, 0.0))


@separable()
class MaskByHand(Net):
    def training_step(self, batch, batch_idx):
        x, y = batch
        return (F.cross_entropy(self(x), y, reduction="none") * (y > 0)).sum() / (y > 0).sum()


@separable()
class LogSoftmaxInForward(Net):
    def forward(self, x):
        return F.log_softmax(super().forward(x), dim=1)

    def training_step(self, *args):
        x, y = args[0]
        assert args[1] == 0
        return F.nll_loss(self(x), y)


@separable(binary_batch)
class BinaryColumn(Net):
    outputs = 1

    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.binary_cross_entropy_with_logits(self(x), y[:, None])


@separable(binary_batch)
class BinarySqueezed(Net):
    outputs = 1

    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.binary_cross_entropy_with_logits(self(x).squeeze(), y)


@separable()
class MultiLabel(Net):
    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.binary_cross_entropy_with_logits(self(x), F.one_hot(y, CLASSES).double())


@separable()
class AuxiliaryHead(Net):
    def __init__(self):
        super().__init__()
        self.second = nn.Linear(8, CLASSES)

    def training_step(self, batch, batch_idx):
        x, y = batch
        features = self.body(x)
        return F.cross_entropy(self.head(features), y) + 0.3 * F.cross_entropy(self.second(features), y)


@separable()
class FocalByHand(Net):
    def training_step(self, batch, batch_idx):
        x, y = batch
        entropy = F.cross_entropy(self(x), y, reduction="none")
        return ((1 - torch.exp(-entropy)) ** 2 * entropy).mean()


@separable()
class FunctionOfTheMean(Net):
    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.cross_entropy(self(x), y).exp() / 2


@separable()
class OwnLogSoftmax(Net):
    def training_step(self, batch, batch_idx):
        x, y = batch
        scores = self(x)
        return -(scores - scores.logsumexp(1, keepdim=True))[torch.arange(len(y)), y].mean()


@separable()
class Sum(Net):
    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.cross_entropy(self(x), y, reduction="sum")


@separable()
class SumOverSize(Net):
    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.cross_entropy(self(x), y, reduction="none").sum() / len(y)


@separable()
class NestedMeans(Net):
    def training_step(self, batch, batch_idx):
        x, y = batch
        losses = F.cross_entropy(self(x), y, reduction="none")
        return (losses * 2).mean() + 0.5 * losses.mean()


@separable(token_batch)
class Tokens(Net):
    def forward(self, x):
        return self.head(torch.tanh(self.body[0](x)))

    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.cross_entropy(self(x).flatten(0, 1), y.flatten())


@separable(token_batch)
class TokensInImageOrder(Tokens):
    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.cross_entropy(self(x).transpose(1, 2), y)


@separable(token_batch)
class TokensTimeFirst(Tokens):
    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.cross_entropy(self(x).transpose(0, 1).flatten(0, 1), y.T.flatten())


@separable(token_batch)
class TokensIgnored(Tokens):
    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.cross_entropy(self(x).flatten(0, 1), torch.where(y == 0, -100, y).flatten())


@separable()
class Dictionary(Net):
    def training_step(self, batch, batch_idx):
        x, y = batch
        scores = self(x)
        return {"loss": F.cross_entropy(scores, y), "scores": scores.detach()}


@separable(lambda n: dict(zip(("input", "labels"), plain_batch(n), strict=True)))
class PopsFromTheBatch(Net):
    def training_step(self, batch, batch_idx):
        y = batch.pop("labels")
        return F.cross_entropy(self(batch["input"].mul_(0.5)), y)


@separable()
class AlreadyPerSample(Net):
    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.cross_entropy(self(x), y, reduction="none")


@separable()
class Logs(Net):
    def __init__(self):
        super().__init__()
        self.accuracy = MulticlassAccuracy(num_classes=CLASSES)
        self.seen = []
        self.calls = 0

    def training_step(self, batch, batch_idx):
        x, y = batch
        scores = self(x)
        loss = F.cross_entropy(scores, y)
        self.accuracy(scores, y)
        self.log("accuracy", self.accuracy, prog_bar=True)
        self.log_dict({"loss": loss, "noise": torch.rand(()), "more": random.random() + np.random.rand()})  # noqa: NPY002
        self.print("step", self.calls)
        self.seen.append(loss.detach())
        self.calls += 1
        return loss
