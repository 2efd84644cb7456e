"""Two callbacks on an unmodified LightningModule: stiffness in the log, and training that stops by itself.

Run it with `python examples/quickstart.py`; it makes its own data and takes a few seconds.
"""

import lightning as L
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_stiffness import StiffnessEarlyStopping, StiffnessMonitor


class Classifier(L.LightningModule):
    """An ordinary classifier, which knows nothing of stiffness."""

    def __init__(self):
        super().__init__()
        self.network = nn.Sequential(nn.Linear(20, 128), nn.ReLU(), nn.Linear(128, 4))

    def training_step(self, batch, batch_idx):
        inputs, labels = batch
        loss = nn.functional.cross_entropy(self.network(inputs), labels)
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=3e-3)


def noisy_clusters(samples: int = 600, classes: int = 4, wrong: float = 0.2) -> TensorDataset:
    centres = torch.randn(classes, 20)
    labels = torch.randint(0, classes, (samples,))
    inputs = centres[labels] + 1.5 * torch.randn(samples, 20)
    given = torch.where(torch.rand(samples) < wrong, torch.randint(0, classes, (samples,)), labels)
    return TensorDataset(inputs, given)


def main() -> None:
    L.seed_everything(0)
    stopper = StiffnessEarlyStopping()
    trainer = L.Trainer(max_epochs=100, callbacks=[StiffnessMonitor(), stopper], accelerator="cpu")
    trainer.fit(Classifier(), DataLoader(noisy_clusters(), batch_size=32, shuffle=True))
    print(stopper.stopping_reason_message)
    for reading in stopper.history:
        within, between = reading.cosine.within, reading.cosine.between
        print(
            f"epoch {reading.epoch:3.0f}: within {within:.3f} +- {reading.cosine.within_se:.3f}, between {between:+.3f}"
        )


if __name__ == "__main__":
    main()
