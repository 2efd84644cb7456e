import random
import warnings
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from lightning_stiffness.callbacks.neutrality import measuring
from lightning_stiffness.callbacks.training_step import TrainingStepLoss
from tests.callbacks.busy import Busy, batch_of


class Measure(Callback):
    """Measures in every hook that has a batch."""

    def __init__(self) -> None:
        self.losses: list[Tensor] = []

    def _measure(self, pl_module: LightningModule) -> None:
        with measuring(pl_module):
            self.losses.append(TrainingStepLoss()(pl_module, batch_of()).detach())

    def on_train_start(self, trainer, pl_module):
        self._measure(pl_module)

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self._measure(pl_module)

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self._measure(pl_module)

    def on_train_epoch_end(self, trainer, pl_module):
        self._measure(pl_module)


class WritesItself(Busy):
    def __init__(self) -> None:
        super().__init__()
        self.inner.speaks = False  # Lightning lets only the outer module log

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        self.logger.log_metrics({"own": float(loss.detach())}, step=self.global_step)
        self.logger.experiment.log_metrics({"direct": 1.0})
        self.trainer.optimizers[0].param_groups[0]["lr"]
        return loss


def fit(path: Any, callbacks: list[Callback]) -> tuple[Trainer, WritesItself, list[Any]]:
    torch.manual_seed(1), random.seed(1), np.random.seed(1)  # noqa: NPY002
    module = WritesItself()
    trainer = Trainer(
        max_epochs=2,
        accumulate_grad_batches=2,
        logger=CSVLogger(path, version=0),
        callbacks=callbacks,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
        accelerator="cpu",
    )
    x, y = batch_of(24)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        warnings.filterwarnings("ignore", message=".*LeafSpec.* is deprecated", category=FutureWarning)
        warnings.filterwarnings("ignore", message=".*in eval mode at the start of training")
        trainer.fit(module, DataLoader(TensorDataset(x, y), batch_size=4, shuffle=True))
    return trainer, module, [torch.get_rng_state().tolist(), random.getstate(), str(np.random.get_state())]  # noqa: NPY002


def held(module: Busy) -> list[Any]:
    state = {name: value.numpy().tobytes() for name, value in module.state_dict().items()}
    gradients = [None if p.grad is None else p.grad.numpy().tobytes() for p in module.parameters()]
    plain = [module.calls, module.nested, list(module.recent), module.seen, module.plain.tolist(), len(module.outputs)]
    metrics = [str(module.scores.compute()), module.accuracy._update_count, module.raw.compute().tolist()]
    return [state, gradients, plain, metrics]


def test_a_fit_is_the_same_to_the_last_bit_and_logs_the_same_lines(tmp_path):
    trainer, module, randomness = fit(tmp_path / "without", [])
    measure = Measure()
    measured_trainer, measured, measured_randomness = fit(tmp_path / "with", [measure])
    assert len(measure.losses) == 1 + 12 + 6 + 2
    assert held(measured) == held(module)
    assert measured_randomness == randomness
    assert str(measured_trainer.logged_metrics) == str(trainer.logged_metrics)
    assert str(measured_trainer.optimizers[0].state_dict()) == str(trainer.optimizers[0].state_dict())
    logs = [next((tmp_path / name).rglob("metrics.csv")).read_text() for name in ("without", "with")]
    assert logs[0] == logs[1]
    assert "own" in logs[0]
    assert isinstance(measured_trainer.logger, CSVLogger)
