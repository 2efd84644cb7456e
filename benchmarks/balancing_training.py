"""One training of the benchmark of imbalanced classes, by an ordinary Trainer, and how its network does in the test."""

import logging
import time
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
from balancing_data import Split, loader, split_of
from balancing_methods import METHOD, POSTHOC, Method
from balancing_networks import network
from balancing_settings import BY_NAME, Recipe
from cells import digest
from torch import Tensor
from torch.nn.functional import cross_entropy

from lightning_stiffness.functional.logit_offsets import posthoc_logit_adjustment, probabilities_under_frequencies

VERSION = "2"  # raise it when trainings that are finished no longer count
MATTERS = ("data", "network", "largest", "imbalance", "batch", "profile", "schedule")  # of a setting, to a training
CLIPPED = 1.0  # norm of the gradient: at the rates that suit logit adjustment other methods would diverge
NATURAL = "_natural"
CORRECTED = ("adjusted", "ours")  # also scored after the correction to the natural frequencies


@dataclass(frozen=True)
class Order:
    """A training: setting, recipe, method and seed."""

    setting: str
    method: str
    seed: int
    recipe: Recipe
    data: str | None = None
    is_tuning: bool = False

    @property
    def name(self) -> str:
        """For a file."""
        recipe = self.recipe
        tried = f"-{recipe.rate:g}-{recipe.epochs}-{recipe.weight_decay:g}" if self.is_tuning else ""
        return f"{self.setting}/{self.seed}-{self.method}{tried}"

    @property
    def fingerprint(self) -> str:
        """What its result depends on."""
        contents = {key: value for key, value in asdict(self).items() if key != "data"}
        trained = {key: value for key, value in asdict(BY_NAME[self.setting]).items() if key in MATTERS}
        return digest(VERSION, repr(contents), repr(trained))


class Classifier(L.LightningModule):
    """An ordinary classifier, with what the literature's methods change in its loss."""

    def __init__(self, order: Order, split: Split) -> None:
        """Makes the network from the seed: the first weights are the same for all methods."""
        super().__init__()
        setting = BY_NAME[order.setting]
        self.recipe, self.schedule = order.recipe, setting.schedule
        self.method, self.counts = METHOD[order.method], split.counts
        self.offsets = self.method.offsets(split.counts)
        torch.manual_seed(order.seed)
        self.network = network(setting.network, setting.data, tuple(split.train.inputs.shape[1:]), len(split.counts))
        self.weights: Tensor | None = None

    def on_train_epoch_start(self) -> None:
        """Weights may be those of a later part of training."""
        self.weights = self.method.loss_weights(self.counts, self.current_epoch, self.recipe.epochs)

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> Tensor:
        """Cross-entropy."""
        logits, smoothing = self.network(batch[0]), self.method.smoothing
        adjusted = logits if self.offsets is None else logits + self.offsets
        return cross_entropy(adjusted, batch[1], self.weights, label_smoothing=smoothing)

    def configure_optimizers(self) -> Any:
        """SGD whose learning rate falls to 0, or stays."""
        recipe = self.recipe
        optimizer = torch.optim.SGD(self.parameters(), recipe.rate, momentum=0.9, weight_decay=recipe.weight_decay)
        if self.schedule == "constant":
            return optimizer
        steps = int(self.trainer.estimated_stepping_batches)
        falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": falling, "interval": "step"}}


def quiet_trainer(epochs: int, callbacks: Sequence[L.Callback]) -> L.Trainer:
    """A Trainer that trains and does nothing else."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    names = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    off: dict[str, Any] = dict.fromkeys(names, False)
    return L.Trainer(
        max_epochs=epochs, callbacks=list(callbacks), gradient_clip_val=CLIPPED, accelerator="cpu", devices=1, **off
    )


def train(order: Order) -> dict[str, Any]:
    """Trains to the end; what the network says of the test set, under each name by which the method is reported.

    A training that diverged, so that the logits are not finite, counts as one that cannot tell the classes apart.
    """
    torch.set_num_threads(1)
    setting, method = BY_NAME[order.setting], METHOD[order.method]
    split = split_of(setting, order.seed, Path(order.data) if order.data else None, order.is_tuning)
    module = Classifier(order, split)
    batches = method.loader(loader(split.train, setting.batch, order.seed), order.seed)
    start = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quiet_trainer(order.recipe.epochs, method.callbacks(order.seed)).fit(module, batches)
    seconds = time.process_time() - start
    logits = logits_of(module, split.test.inputs)
    known = variants(method, logits if bool(logits.isfinite().all()) else torch.zeros_like(logits), split.counts)
    found = {name: judged(one, split.test.targets) for name, one in known.items()}
    return {"counts": split.counts.tolist(), "seconds": seconds, "results": found}


@torch.no_grad()
def logits_of(module: Classifier, inputs: Tensor) -> Tensor:
    """Of the test samples, in evaluation mode."""
    module.eval()
    return torch.cat([module.network(part) for part in inputs.split(250)])


def variants(method: Method, logits: Tensor, counts: Tensor) -> dict[str, Tensor]:
    """The logits that a network is judged by, by the names they are reported under."""
    found = {method.name: logits}
    if method.name == "plain":
        found[POSTHOC] = posthoc_logit_adjustment(logits, counts.double())
    if method.name in CORRECTED:
        even = counts.new_ones(len(counts)).double()
        found[method.name + NATURAL] = probabilities_under_frequencies(logits.double(), even, counts.double()).log()
    return found


def judged(logits: Tensor, targets: Tensor) -> dict[str, list[float]]:
    """Of each class: test samples, those predicted rightly, how many were predicted, and the mean loss in nats."""
    classes, predictions = logits.shape[1], logits.argmax(1)
    tested = torch.bincount(targets, minlength=classes)
    losses = cross_entropy(logits.double(), targets, reduction="none")
    means = losses.new_zeros(classes).index_add(0, targets, losses) / tested
    return {
        "tested": tested.tolist(),
        "right": torch.bincount(targets[predictions == targets], minlength=classes).tolist(),
        "predicted": torch.bincount(predictions, minlength=classes).tolist(),
        "loss": [round(loss, 4) for loss in means.tolist()],
    }
