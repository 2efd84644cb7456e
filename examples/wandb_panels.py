"""A stiffness dashboard in Weights & Biases: two callbacks and a WandbLogger, nothing else.

Handwritten digits of scikit-learn, 20 % of the labels wrong: the network first learns digits, then mistakes, and is
stopped. The run is offline by default and needs no account; it takes about half a minute.

  python examples/wandb_panels.py                          # then look at it in the terminal: wandb leet
  python examples/wandb_panels.py --online                 # after `wandb login`: the run appears on your server
  python examples/wandb_panels.py --online --workspace ME/stiffness-digits    # and a dashboard of all such runs

What to look for: `stiffness/within` rises, then falls while the loss of the probe goes on falling; in the class matrix
the diagonal pales; the alert and the run's summary say when and why training was stopped.
"""

import argparse

import lightning as L
import torch
from lightning.pytorch.loggers import WandbLogger
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_stiffness import StiffnessEarlyStopping, StiffnessMonitor


class Digits(L.LightningModule):
    """An ordinary classifier, which knows nothing of stiffness."""

    def __init__(self):
        super().__init__()
        self.network = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, 10))

    def training_step(self, batch, batch_idx):
        loss = nn.functional.cross_entropy(self.network(batch[0]), batch[1])
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


def data() -> DataLoader:
    images, labels = (torch.as_tensor(part) for part in load_digits(return_X_y=True))
    wrong = torch.rand(len(labels)) < 0.2
    given = torch.where(wrong, torch.randint(0, 10, labels.shape), labels)
    return DataLoader(TensorDataset(images[:600].float() / 16, given[:600]), batch_size=32, shuffle=True)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=40, help="at most so many; stiffness stops it before")
    parser.add_argument("--online", action="store_true", help="send the run to your W&B server (needs `wandb login`)")
    parser.add_argument("--workspace", metavar="ENTITY/PROJECT", help="also save a dashboard there, with text on how to"
                        " read it; needs pip install 'lightning-stiffness[workspaces]'")  # fmt: skip
    chosen = parser.parse_args()
    if chosen.workspace and "/" not in chosen.workspace:
        parser.error("--workspace must be ENTITY/PROJECT")
    return chosen


def main() -> None:
    chosen = arguments()
    entity, _, project = (chosen.workspace or "/stiffness-digits").partition("/")
    L.seed_everything(0)
    logger = WandbLogger(project=project, entity=entity or None, offline=not chosen.online)
    stopper = StiffnessEarlyStopping()
    callbacks = [StiffnessMonitor(class_names=[str(digit) for digit in range(10)]), stopper]
    trainer = L.Trainer(max_epochs=chosen.epochs, callbacks=callbacks, logger=logger, enable_progress_bar=False)
    trainer.fit(Digits(), data())
    logger.experiment.finish()
    print(stopper.stopping_reason_message)
    print(f"stiffness within classes at the end: {stopper.history[-1].cosine.within:.3f}")
    if chosen.workspace:
        from lightning_stiffness.loggers.wandb_workspace import stiffness_workspace

        stiffness_workspace(entity, project, save=True)


if __name__ == "__main__":
    main()
