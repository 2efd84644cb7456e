"""One cell of the benchmark of wrong labels: data with flipped labels, trainings, and what every method says of it."""

import copy
import logging
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from cleanlab.filter import find_label_issues
from cleanlab.rank import get_label_quality_scores
from sklearn.metrics import roc_auc_score
from torch import Generator, Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_stiffness import StiffnessEarlyStopping
from lightning_stiffness.wrong_labels import LabelScores, average_scores, score_labels

CLASSES = 10
FOLDS = 5
STOPPED = "stopped"


@dataclass(frozen=True)
class Setting:
    """What is trained.

    Attributes:
        data: "digits" or "mnist".
        network: A name in NETWORKS.
        share: Of the labels, flipped to another class, each alike.
        seed: Of the choice of samples, the flips, the first weights and the order of batches.
        samples: Training samples.
        readings: Epochs after which the fixed training is scored; the last one is its length.
        batch: Samples in a training batch.
        folds: Whether networks are trained without the samples that they judge, too.
    """

    data: str
    network: str
    share: float
    seed: int
    samples: int
    readings: tuple[int, ...]
    batch: int = 32
    folds: bool = True

    @property
    def name(self) -> str:
        """For a file."""
        return f"{self.data}-{self.network}-{round(100 * self.share)}-{self.seed}-{self.samples}"


@dataclass(frozen=True)
class Flipped:
    """Samples with given labels, some of which are wrong."""

    inputs: Tensor
    given: Tensor
    is_wrong: Tensor

    def loader(self, batch: int, seed: int) -> DataLoader[Any]:
        """Shuffled batches."""
        data = TensorDataset(self.inputs, self.given)
        return DataLoader(data, batch, shuffle=True, generator=Generator().manual_seed(seed))


def flipped(setting: Setting, archive: Path | None) -> Flipped:
    """The samples of a cell."""
    inputs, labels = load(setting.data, archive)
    generator = Generator().manual_seed(setting.seed)
    order = torch.randperm(len(inputs), generator=generator)[: setting.samples]
    inputs, labels = inputs[order], labels[order]
    wrong = torch.randperm(len(labels), generator=generator)[: round(setting.share * len(labels))]
    given = labels.clone()
    given[wrong] = (given[wrong] + torch.randint(1, CLASSES, (len(wrong),), generator=generator)) % CLASSES
    return Flipped(inputs, given, given != labels)


def load(data: str, archive: Path | None) -> tuple[Tensor, Tensor]:
    """All images [n, 1, height, width] in [0, 1] and their true labels."""
    if data == "digits":
        from sklearn.datasets import load_digits

        inputs, labels = load_digits(return_X_y=True)
        return torch.as_tensor(inputs, dtype=torch.float32).view(-1, 1, 8, 8) / 16, torch.as_tensor(labels).long()
    assert archive is not None
    arrays = np.load(archive)
    return torch.as_tensor(arrays["x_train"])[:, None] / 255.0, torch.as_tensor(arrays["y_train"]).long()


def perceptron(size: int) -> nn.Module:
    layers = [nn.Linear(size * size, 256), nn.ReLU(), nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, CLASSES)]
    return nn.Sequential(nn.Flatten(), *layers)


def cnn(size: int) -> nn.Module:
    stride = 1 if size < 16 else 2
    layers = [nn.Conv2d(1, 16, 3, stride, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, padding=1), nn.ReLU()]
    side = (size // stride + 1) // 2
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(32 * side * side, CLASSES))


NETWORKS: dict[str, Callable[[int], nn.Module]] = {"perceptron": perceptron, "CNN": cnn}


class Classifier(L.LightningModule):
    """Cross entropy and Adam."""

    def __init__(self, network: nn.Module) -> None:
        """Takes the network."""
        super().__init__()
        self.network = network

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> Tensor:
        """One loss."""
        return nn.functional.cross_entropy(self.network(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam with its usual learning rate."""
        return torch.optim.Adam(self.parameters(), 1e-3)


def untrained(setting: Setting, samples: Flipped) -> Classifier:
    """The network with the first weights of the cell."""
    with torch.random.fork_rng():
        torch.manual_seed(setting.seed)
        return Classifier(NETWORKS[setting.network](samples.inputs.shape[-1]))


def fit(setting: Setting, samples: Flipped, rows: Tensor, epochs: Sequence[int]) -> dict[int, Classifier]:
    """Trains on some samples in a plain loop, without a Trainer; copies of the module after these epochs."""
    module, kept = untrained(setting, samples), {}
    optimizer = module.configure_optimizers()
    generator = Generator().manual_seed(setting.seed)
    for epoch in range(1, max(epochs) + 1):
        for batch in rows[torch.randperm(len(rows), generator=generator)].split(setting.batch):
            optimizer.zero_grad()
            module.training_step((samples.inputs[batch], samples.given[batch]), 0).backward()
            optimizer.step()
        if epoch in epochs:
            kept[epoch] = copy.deepcopy(module)
    return kept


def fit_until_stopped(setting: Setting, samples: Flipped) -> tuple[Classifier, int, int | None]:
    """Trains in a Trainer with StiffnessEarlyStopping; the module with the weights that it restores, and their epoch.

    The third value is the epoch of the stop, None if there was none.
    """
    module, stopper = untrained(setting, samples), StiffnessEarlyStopping()
    names = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    trainer = L.Trainer(
        max_epochs=setting.readings[-1], callbacks=[stopper], accelerator="cpu", **dict.fromkeys(names, False)
    )
    trainer.fit(module, samples.loader(setting.batch, setting.seed))
    steps = -(-setting.samples // setting.batch)
    kept = trainer.current_epoch if stopper.restored_step is None else round(stopper.restored_step / steps)
    return module, max(1, kept), trainer.current_epoch if stopper.stopping_reason_message else None


def measured(setting: Setting, archive: Path | None) -> dict[str, Any]:
    """All trainings of a cell with the judgement of every method, ready for JSON."""
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    samples = flipped(setting, archive)
    clock = [time.process_time()]
    stopped, restored, stop = fit_until_stopped(setting, samples)
    clock.append(time.process_time())
    fixed = fit(setting, samples, torch.arange(setting.samples), setting.readings)
    clock.append(time.process_time())
    held = out_of_sample(setting, samples, sorted({*setting.readings, restored})) if setting.folds else {}
    clock.append(time.process_time())
    readings, past = [], []
    for epoch in setting.readings:
        past.append(Reading.of(fixed[epoch], samples))
        readings.append(judged(f"epoch {epoch}", epoch, past, held.get(epoch), samples))
    readings.append(judged(STOPPED, restored, [Reading.of(stopped, samples)], held.get(restored), samples))
    names = "a fit in a Trainer until the stop", "a fit in a plain loop", "five folds in a plain loop"
    return {
        "setting": asdict(setting),
        "stop_epoch": stop,
        "seconds": dict(zip(names, (b - a for a, b in pairwise(clock)), strict=True)),
        "readings": readings,
    }


@dataclass(frozen=True)
class Reading:
    """What one state of the network says of the samples."""

    scores: LabelScores
    probabilities: np.ndarray[Any, Any]

    @classmethod
    def of(cls, module: Classifier, samples: Flipped) -> "Reading":
        """Scores and predicted probabilities."""
        scores = score_labels(module, TensorDataset(samples.inputs, samples.given), num_classes=CLASSES, progress=False)
        return cls(scores, probabilities(module, samples.inputs))


@torch.no_grad()
def probabilities(module: Classifier, inputs: Tensor) -> np.ndarray[Any, Any]:
    logits = torch.cat([module.network(part) for part in inputs.split(1000)])
    found: np.ndarray[Any, Any] = logits.double().softmax(1).numpy()
    return found


def out_of_sample(setting: Setting, samples: Flipped, epochs: Sequence[int]) -> dict[int, np.ndarray[Any, Any]]:
    """Predicted probabilities of each sample by a network that was trained without its fold, after each epoch."""
    order = torch.randperm(len(samples.given), generator=Generator().manual_seed(setting.seed + 1))
    found = {epoch: np.zeros((len(order), CLASSES)) for epoch in epochs}
    for fold in range(FOLDS):
        inside = order[fold::FOLDS]
        others = torch.cat([order[k::FOLDS] for k in range(FOLDS) if k != fold])
        trained = fit(setting, samples, others, epochs)
        for epoch in epochs:
            found[epoch][inside.numpy()] = probabilities(trained[epoch], samples.inputs[inside])
    return found


def judged(
    name: str, epoch: int, readings: Sequence[Reading], held: np.ndarray[Any, Any] | None, samples: Flipped
) -> dict[str, Any]:
    """What every method says after the last of these readings, against what was flipped."""
    last, given, wrong = readings[-1], samples.given.numpy(), samples.is_wrong.numpy()
    inside = last.probabilities
    rankings = {
        "ours": last.scores.score.numpy(),
        "alignment": last.scores.own_alignment.nan_to_num(1.0).numpy(),
        "loss": -last.scores.loss.numpy(),
        "margin": get_label_quality_scores(given, inside, method="normalized_margin"),
    }
    found = {"ours": last.scores.is_issue.numpy(), "cleanlab": find_label_issues(given, inside)}
    if held is not None:
        rankings["folds_confidence"] = get_label_quality_scores(given, held, method="self_confidence")
        rankings["folds_margin"] = get_label_quality_scores(given, held, method="normalized_margin")
        found["folds"] = find_label_issues(given, held)
    if len(readings) > 1:
        mean_loss = torch.stack([reading.scores.loss for reading in readings]).mean(0)
        rankings["ours_mean"] = average_scores([reading.scores for reading in readings]).score.numpy()
        rankings["loss_mean"] = -mean_loss.numpy()
    return {
        "name": name,
        "epoch": epoch,
        "train_loss": float(last.scores.loss.mean()),
        "seconds": last.scores.seconds,
        "rankings": {method: ranked(values, wrong) for method, values in rankings.items()},
        "found": {method: counted(flags, wrong) for method, flags in found.items()},
    }


def ranked(quality: np.ndarray[Any, Any], wrong: np.ndarray[Any, Any]) -> dict[str, float]:
    """ROC-AUC, and the share of wrong labels among as many of the worst as there are; both in [0, 1]."""
    worst = np.argsort(quality, kind="stable")[: wrong.sum()]
    return {"auc": float(roc_auc_score(~wrong, quality)), "precision": float(wrong[worst].mean())}


def counted(flags: np.ndarray[Any, Any], wrong: np.ndarray[Any, Any]) -> dict[str, float]:
    """Of the labels that a method calls wrong: how many, how many of them are, and what share of all that are."""
    hits = int((flags & wrong).sum())
    return {"count": int(flags.sum()), "precision": hits / max(1, int(flags.sum())), "recall": hits / int(wrong.sum())}
