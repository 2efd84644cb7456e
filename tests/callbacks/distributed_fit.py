"""Run by test_distributed, once as a script: a fit in two processes, each of which writes what it saw."""

import json
import sys
import warnings
from pathlib import Path

import torch
from lightning.pytorch import Callback
from lightning.pytorch.loggers import CSVLogger

from lightning_stiffness import Decision, StiffnessDrop, StiffnessEarlyStopping, StiffnessError, StiffnessMonitor
from lightning_stiffness.callbacks.shadow_stopping import ShadowStopping
from tests.callbacks.modules import Classifier, Memoriser, loader, mislabelled, trainer


class FailsOnOneRank(Classifier):
    """Cannot be measured after the first epoch by one of the processes."""

    failing_rank = 0

    def training_step(self, batch, batch_idx):
        if not self.net.training and self.current_epoch >= 1 and self.global_rank == self.failing_rank:
            raise RuntimeError("out of memory, say")
        return super().training_step(batch, batch_idx)


class FailsOnTheOther(FailsOnOneRank):
    failing_rank = 1


class NoTargets(Classifier):
    def training_step(self, batch, batch_idx):
        return super().training_step((batch[0], torch.zeros(len(batch[0]), dtype=torch.long)), batch_idx)


def disagreeing(history):
    """Says stop on one process only."""
    rank = torch.distributed.get_rank()
    return Decision(rank == 1 and len(history) == 3, f"{len(history)} readings on rank {rank}", epoch=history[-1].epoch)


class FirstBatch(Callback):
    """Notes what a process trained on first."""

    batch = None

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.batch = [part.tolist() for part in batch] if self.batch is None else self.batch


CASES = {
    "default": (Memoriser, mislabelled, {}, 30),
    "steps": (Classifier, loader, {"every_n_steps": 2}, 2),
    "fails on 0": (FailsOnOneRank, loader, {}, 3),
    "fails on 1": (FailsOnTheOther, loader, {}, 3),
    "disagree": (Classifier, loader, {}, 6),
    "batches": (
        Classifier,
        lambda: loader(shuffle=False),
        {"probe": "batch", "every_n_batches": 1, "every_n_steps": 1},
        2,
    ),
    "no targets": (
        NoTargets,
        lambda: torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.randn(40, 8)), batch_size=10),
        {},
        2,
    ),
}


def highest(history):
    """Stops by stiffness and holds its peak for the best; on the second process it would hold the last reading."""
    verdict = StiffnessDrop()(history)
    within = history.series("within").tolist()
    index = within.index(max(within)) if torch.distributed.get_rank() == 0 else len(history) - 1
    return Decision(verdict.stop, verdict.reason, best_step=history[index].step, epoch=verdict.epoch)


class Peak(Callback):
    """Notes the weights after each epoch."""

    def __init__(self):
        self.weights = {}

    def on_train_epoch_end(self, trainer, pl_module):
        self.weights[trainer.global_step] = numbers(pl_module)


def numbers(module):
    return [value.double().sum().item() for value in module.state_dict().values()]


def restored(folder: Path) -> None:
    """A run of two processes that ends with the weights of its peak, and what would have stopped it."""
    warnings.simplefilter("ignore")
    stopper = StiffnessEarlyStopping(criterion=highest, source=StiffnessMonitor(probe_size=40), restore="best")
    peak, module = Peak(), Memoriser()
    watching = ShadowStopping([StiffnessDrop()], source=stopper.source)
    run = trainer([stopper, watching, peak], strategy="ddp", devices=2, max_epochs=30, logger=CSVLogger(folder, "logs"))
    run.fit(module, mislabelled())
    found = {
        "epochs": run.current_epoch,
        "step": stopper.restored_step,
        "weights": numbers(module),
        "then": peak.weights[stopper.restored_step],
        "last": peak.weights[run.global_step],
        "shadow": watching.verdicts.as_dict(),
    }
    (folder / f"rank{run.global_rank}.json").write_text(json.dumps(found))


def main(case: str, folder: Path) -> None:
    warnings.simplefilter("ignore")
    kind, data, options, epochs = CASES[case]
    monitor = StiffnessMonitor(probe_size=40, **options)
    criteria = {"disagree": disagreeing, "batches": StiffnessDrop(spread=0)}
    stopper = StiffnessEarlyStopping(criterion=criteria.get(case))
    first = FirstBatch()
    run = trainer(
        [stopper, monitor, first], strategy="ddp", devices=2, max_epochs=epochs, logger=CSVLogger(folder, "logs")
    )
    found = {}
    try:
        run.fit(kind(), data())
    except StiffnessError as error:
        found["error"] = str(error)
    history = monitor.history
    found.update(
        readings=[] if history is None else [[r.step, r.epoch, r.cosine.within, r.loss] for r in history],
        decision=stopper.decision and stopper.decision.as_dict(),
        epochs=run.current_epoch,
        message=stopper.stopping_reason_message,
    )
    (folder / f"batch{run.global_rank}.json").write_text(json.dumps(first.batch))
    (folder / f"rank{run.global_rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
