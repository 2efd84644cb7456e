"""Train on classes of very different sizes, and treat them alike: plain training against the balancer.

Handwritten digits, 100 of one class down to 5 of another. Balanced accuracy: mean recall of the classes on others.
What the balancer saw: lightning-stiffness report lightning_logs -o page.html
"""

import argparse

import lightning as L
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from lightning_stiffness import ClassGroupingBalancer


class Digits(L.LightningModule):
    """An ordinary classifier, which knows nothing of imbalance."""

    def __init__(self):
        super().__init__()
        self.network = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10))

    def losses(self, batch):
        return cross_entropy(self.network(batch[0]), batch[1], reduction="none")

    def training_step(self, batch, batch_idx):
        return self.losses(batch).mean()

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.losses(batch).mean())

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)
        return [optimizer], [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.trainer.max_epochs)]


def data(seed: int, imbalance: float) -> tuple[TensorDataset, TensorDataset]:
    images, labels = (torch.as_tensor(part) for part in load_digits(return_X_y=True))
    generator = torch.Generator().manual_seed(seed)
    training, unseen = [], []
    for rank, digit in enumerate(torch.randperm(10, generator=generator)):
        found = (labels == digit).nonzero().flatten()
        found = found[torch.randperm(len(found), generator=generator)]
        training.append(found[: max(2, round(100 * imbalance ** (-rank / 9)))])
        unseen.append(found[100:])
    return tuple(TensorDataset(images[k].float() / 16, labels[k]) for k in (torch.cat(training), torch.cat(unseen)))


def fit(training: TensorDataset, unseen: TensorDataset, callbacks: list[L.Callback], seed: int, epochs: int) -> Digits:
    L.seed_everything(seed, verbose=False)
    trainer = L.Trainer(max_epochs=epochs, callbacks=callbacks, accelerator="cpu", enable_progress_bar=False,
                        enable_model_summary=False, logger=False, enable_checkpointing=False)  # fmt: skip
    trainer.fit(module := Digits(), DataLoader(training, batch_size=32, shuffle=True), DataLoader(unseen, 500))
    return module.eval()


def balanced_accuracy(module: Digits, unseen: TensorDataset) -> float:
    right = module.network(unseen.tensors[0]).argmax(1) == unseen.tensors[1]
    return float(torch.stack([right[unseen.tensors[1] == digit].float().mean() for digit in range(10)]).mean())


def main(seeds: int, imbalance: float, epochs: int) -> None:
    for seed in range(seeds):
        training, unseen = data(seed, imbalance)
        plain = fit(training, unseen, [], seed, epochs)
        balancer = ClassGroupingBalancer(seed=seed, save_dir=f"lightning_logs/imbalanced_{seed}")
        module = fit(training, unseen, [balancer], seed, epochs)
        print(f"seed {seed}: balanced accuracy {balanced_accuracy(plain, unseen):.3f} plain, "
              f"{balanced_accuracy(module, unseen):.3f} balanced; sizes {balancer.counts.tolist()}")  # fmt: skip
    print("class matrix of the last layer, digits that fight:", (last := balancer.readings[-1]).members or last.reason)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (("seeds", 2), ("imbalance", 20.0), ("epochs", 40)):
        parser.add_argument(f"--{name}", type=type(default), default=default)
    main(**vars(parser.parse_args()))
