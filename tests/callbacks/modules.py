"""Small LightningModules, data and a quiet Trainer for tests that call `Trainer.fit`."""

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset
from torchmetrics.classification import MulticlassAccuracy

FEATURES, CLASSES = 8, 3

# What Lightning warns about although nothing is wrong with a small test.
QUIET = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*is smaller than the logging interval"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.* is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
    pytest.mark.filterwarnings("ignore:The `srun` command is available"),
]


def blobs(n: int = 60, classes: int = CLASSES, noise: float = 1.0, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Points around one centre per class."""
    generator = torch.Generator().manual_seed(seed)
    centres = 2 * torch.randn(classes, FEATURES, generator=torch.Generator().manual_seed(99))
    y = torch.arange(n) % classes
    return centres[y] + noise * torch.randn(n, FEATURES, generator=generator), y


def loader(n: int = 60, batch_size: int = 10, shuffle: bool = True, **options: Any) -> DataLoader[Any]:
    return DataLoader(TensorDataset(*blobs(n)), batch_size=batch_size, shuffle=shuffle, **options)


class Classifier(LightningModule):
    """A plain one, from a fixed start."""

    def __init__(self, classes: int = CLASSES, rate: float = 0.05) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(1)
            self.net = nn.Sequential(nn.Linear(FEATURES, 12), nn.Tanh(), nn.Linear(12, classes))
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x, y = batch
        loss = F.cross_entropy(self(x), y)
        self.log("train_loss", loss, on_step=True, on_epoch=True)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=self.rate, momentum=0.9)


class Validated(Classifier):
    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        self.log("val_loss", F.cross_entropy(self(x), y))


class Rich(Validated):
    """All that a monitor could disturb: dropout, batch norm, a metric, Python state, a schedule, random numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(FEATURES, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Dropout(0.4), nn.Linear(12, CLASSES)
        )
        self.accuracy = MulticlassAccuracy(num_classes=CLASSES)
        self.order: list[Tensor] = []
        self.noise: list[float] = []
        self.calls = 0

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        self.order.append(x[:, 0].clone())
        self.noise.append(random.random() + np.random.rand() + float(torch.rand(())))  # noqa: NPY002
        self.calls += 1
        scores = self(x)
        loss = F.cross_entropy(scores, y)
        self.accuracy(scores, y)
        self.log("accuracy", self.accuracy, on_step=True, on_epoch=True)
        self.log_dict({"train_loss": loss, "batch": float(batch_idx)}, on_step=True, on_epoch=True)
        return loss

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), lr=0.01)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.7)]


class NoisyDataset(Dataset[tuple[Tensor, int]]):
    """Its items are changed with random numbers of torch, numpy and Python, as image transforms do."""

    def __init__(self, n: int = 60) -> None:
        self.x, self.targets = blobs(n)

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        noise = torch.rand(()) + random.random() + np.random.rand()  # noqa: NPY002
        return self.x[index] * (1 + 0.1 * noise.float()), int(self.targets[index])


def trainer(callbacks: Sequence[Callback] = (), **options: Any) -> Trainer:
    settings = {
        "accelerator": "cpu",
        "max_epochs": 2,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        **options,
    }
    return Trainer(callbacks=list(callbacks), **settings)


def mislabelled(n: int = 200, share: float = 0.4, classes: int = 5) -> DataLoader[Any]:
    """Points of which a share has a random class, in the same order in every run: a net ends up memorising them."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(n) % classes
    x = 1.5 * torch.randn(classes, 2 * FEATURES, generator=generator)[y] + torch.randn(
        n, 2 * FEATURES, generator=generator
    )
    wrong = torch.rand(n, generator=generator) < share
    y = torch.where(wrong, torch.randint(0, classes, (n,), generator=generator), y)
    return DataLoader(TensorDataset(x, y), batch_size=32)


class Memoriser(Classifier):
    """Large enough to learn wrong labels by heart in a few epochs."""

    def __init__(self, rate: float = 3e-3) -> None:
        super().__init__(rate=rate)
        with torch.random.fork_rng():
            torch.manual_seed(1)
            self.net = nn.Sequential(
                nn.Linear(2 * FEATURES, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 5)
            )

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=self.rate)
