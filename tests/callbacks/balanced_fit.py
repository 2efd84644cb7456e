"""Run by test_balanced_distributed: two processes draw classes at given rates, and write what they saw."""

import json
from pathlib import Path

import torch
import torch.distributed as dist
from lightning.pytorch import Callback, Trainer
from torch.utils.data import DataLoader, TensorDataset, WeightedRandomSampler

from lightning_stiffness.balanced_loader import make_balanced_loader
from lightning_stiffness.callbacks.balancer import ClassGroupingBalancer
from tests.callbacks.modules import Classifier, trainer
from tests.test_balanced_loader import imbalanced


class Seen(Callback):
    """Positions of the samples that a process trained on, by epoch."""

    def __init__(self):
        self.epochs = []

    def on_train_epoch_start(self, trainer, pl_module):
        self.epochs.append([])

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.epochs[-1] += batch[2].long().tolist()


class Numbered(Classifier):
    """Its batches hold the positions of their samples, too."""

    def training_step(self, batch, batch_idx):
        return super().training_step(batch[:2], batch_idx)


def numbered():
    x, y = imbalanced().tensors
    data = TensorDataset(x, y, torch.arange(len(y)).float())
    data.targets = y
    return data


def shared(run: Trainer, seen: Seen, folder: Path) -> None:
    """What each process was given, and what the sampler says that it gives."""
    sampler = run.train_dataloader.sampler
    found = {
        "seen": seen.epochs,
        "expected": [sampler.order(epoch)[run.global_rank :: 2].tolist() for epoch in range(2)],
        "kind": type(sampler).__name__,
        "whole": [sampler.order(epoch).tolist() for epoch in range(2)],
    }
    (folder / f"rank{run.global_rank}.json").write_text(json.dumps(found))


def sampled(folder: Path) -> None:
    """A balanced loader of the user's, made before the processes are started."""
    seen = Seen()
    loader = make_balanced_loader(DataLoader(numbered(), batch_size=8, shuffle=True))
    run = trainer([seen], strategy="ddp", devices=2, max_epochs=2)
    run.fit(Numbered(), loader)
    shared(run, seen, folder)


def balanced(shuffle: bool, folder: Path) -> None:
    """A balancer, with a loader that it exchanges or has to learn from."""
    seen, module = Seen(), Numbered()
    balancer = ClassGroupingBalancer(shift=True, warmup=0)
    data = numbered()
    options = {"shuffle": True} if shuffle else {"sampler": WeightedRandomSampler([1.0] * 30 + [4.0] * 20, 50)}
    run = trainer([balancer, seen], strategy="ddp", devices=2, max_epochs=2)
    run.fit(module, DataLoader(data, batch_size=8, **options))
    if shuffle:
        shared(run, seen, folder)
    path = folder / f"rank{run.global_rank}.json"
    found = json.loads(path.read_text()) if shuffle else {"seen": seen.epochs}
    found["weights"] = [value.double().sum().item() for value in module.state_dict().values()]
    found["frequencies"] = balancer.frequencies.tolist()
    found["absorption"] = balancer.absorption.tolist()
    path.write_text(json.dumps(found))


class Halves(Numbered):
    """Validated, too; the second process has labels in its batches that it cannot read."""

    def validation_step(self, batch, batch_idx):
        self(batch[0])


def observed(breaks: bool, folder: Path) -> None:
    """A balancer that takes readings; one process may fail where the other does not."""

    def targets(batch):
        if breaks and dist.is_initialized() and dist.get_rank() == 1 and len(batch[1]) != 8:  # the probe
            raise RuntimeError("no")
        return batch[1]

    options = {"targets": targets, "counts": [30, 15, 5]} if breaks else {}
    balancer = ClassGroupingBalancer(max_readings=2, save_dir=str(folder), **options)
    run = trainer([balancer], strategy="ddp", devices=2, max_epochs=2)
    module = Halves()
    data = numbered()
    run.fit(module, DataLoader(data, batch_size=8, shuffle=True, drop_last=True), DataLoader(data, batch_size=8))
    x, y = data.tensors[:2]
    guesses = module.eval()(x).argmax(1)
    found = {
        "steps": [reading.step for reading in balancer.readings],
        "classifier": [reading.classifier.tolist() for reading in balancer.readings],
        "recall": [None if one.recall is None else one.recall.tolist() for one in balancer.readings],
        "expected": [(guesses[y == label] == label).float().mean().item() for label in range(3)],
        "written": (folder / "balancing.jsonl").exists() if run.global_rank == 0 else None,
    }
    (folder / f"rank{run.global_rank}.json").write_text(json.dumps(found))
