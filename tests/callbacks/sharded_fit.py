"""Run by test_sharded: a fit in two processes which share the weights out, each of which writes what it saw."""

import json
import math
import warnings
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import ModelParallelStrategy
from torch.utils.data import DataLoader

from lightning_stiffness import StiffnessEarlyStopping, StiffnessError, StiffnessMonitor
from lightning_stiffness.callbacks import balance_schedule
from lightning_stiffness.callbacks.balancer import ClassGroupingBalancer
from lightning_stiffness.gram.sharding import whole
from tests.callbacks.distributed_fit import highest
from tests.callbacks.modules import Classifier, Memoriser, loader, mislabelled, trainer
from tests.test_balanced_loader import imbalanced


def shared_out(kind: type[LightningModule]) -> LightningModule:
    """A module that shares its weights out as users do."""

    class Sharded(kind):
        def configure_model(self):
            from torch.distributed.fsdp import FSDPModule, fully_shard

            if isinstance(self.net, FSDPModule):
                return
            mesh = self.device_mesh["data_parallel"]
            for layer in self.net:
                if list(layer.parameters()):
                    fully_shard(layer, mesh=mesh)
            fully_shard(self.net, mesh=mesh)

    return Sharded()


class Adaptive(Memoriser):
    """Of a state, too, the optimizer's processes have a part each."""

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=0.003)


class Asked(Classifier):
    """Tells its labels only when it runs."""

    def stiffness_step(self, batch):
        return torch.nn.functional.cross_entropy(self.net(batch[0]), batch[1], reduction="none"), batch[1]


def fitted(
    kind: type[LightningModule],
    data: DataLoader[Any],
    callbacks: list[Callback],
    folder: Path,
    sharded: bool = True,
    resume: Path | None = None,
    **options: Any,
) -> dict[str, Any]:
    """All weights at the end, bit for bit, and the number of epochs; or the error that there was."""
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    strategy = ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1) if sharded else "ddp"
    module = shared_out(kind) if sharded else kind()
    run = trainer(callbacks, strategy=strategy, devices=2, **options)
    try:
        run.fit(module, data, ckpt_path=resume, weights_only=False)
    except StiffnessError as error:
        return {"rank": run.global_rank, "error": str(error)}
    with whole(module):
        weights = [value.double().flatten().tolist() for value in module.state_dict().values()]
    return {"rank": run.global_rank, "weights": weights, "epochs": run.current_epoch}


def written(found: dict[str, Any], folder: Path) -> None:
    """Where `seen_by_both` looks."""
    (folder / f"rank{found['rank']}.json").write_text(json.dumps(found))


def readings_of(monitor: StiffnessMonitor) -> list[Any]:
    """What a history says."""
    return [[r.step, r.cosine.within, r.cosine.between, r.loss, *r.signals.values()] for r in monitor.history or ()]


def watched(sharded: bool, folder: Path) -> None:
    """A run which ends with the weights of its peak."""
    stopper = StiffnessEarlyStopping(
        criterion=highest, source=StiffnessMonitor(probe_size=40, signals=("leave_one_out",)), restore="best"
    )
    found = fitted(Adaptive, mislabelled(), [stopper], folder, sharded, max_epochs=12)
    found |= {"readings": readings_of(stopper.source), "restored": stopper.restored_step}
    written(found, folder)


def neutral(with_monitor: bool, folder: Path) -> None:
    """A run with a monitor that measures often, or without."""
    monitors = [StiffnessMonitor(probe_size=40, every_n_steps=1, at_start=True, signals=("leave_one_out",))]
    written(fitted(Adaptive, mislabelled(), monitors if with_monitor else [], folder), folder)


def refused(case: str, folder: Path) -> None:
    """What cannot be measured there."""
    kind, monitor = {
        "batch": (Classifier, StiffnessMonitor(probe="batch", num_classes=3)),
        "asked": (Asked, StiffnessMonitor(probe_size=20)),
    }[case]
    written(fitted(kind, loader(), [monitor], folder), folder)


def balanced(sharded: bool, folder: Path) -> None:
    """A balancer and what it reads, as often as it may, however long that takes."""
    balance_schedule.ALLOWED_SECONDS = math.inf
    torch.manual_seed(0)
    balancer = ClassGroupingBalancer(warmup=0, shift=True)
    data = DataLoader(imbalanced(), batch_size=8, shuffle=True)
    found = fitted(Classifier, data, [balancer], folder, sharded, max_epochs=4)
    found["readings"] = [[r.step, *r.progress.tolist(), *r.classifier.flatten().tolist()] for r in balancer.readings]
    written(found, folder)


def resumed(folder: Path) -> None:
    """A run that ends early and is taken up again, with the best weights kept from before."""

    def stopper() -> StiffnessEarlyStopping:
        source = StiffnessMonitor(probe_size=40, every_n_epochs=1)
        return StiffnessEarlyStopping(criterion=first_reading, source=source, restore="best")

    before, after, whole_run = stopper(), stopper(), stopper()
    keeping = ModelCheckpoint(folder / "checkpoints", save_last=True)
    fitted(Adaptive, mislabelled(), [before, keeping], folder, max_epochs=2, enable_checkpointing=True)
    last = folder / "checkpoints" / "last.ckpt"
    found = fitted(Adaptive, mislabelled(), [after], folder, resume=last, max_epochs=4)
    expected = fitted(Adaptive, mislabelled(), [whole_run], folder, max_epochs=4)
    found |= {"readings": readings_of(after.source), "restored": after.restored_step}
    found |= {"expected": expected["weights"], "expected_readings": readings_of(whole_run.source)}
    written(found, folder)


def first_reading(history):
    """Never stops, and holds the first epoch for the best."""
    from lightning_stiffness import Decision

    step = history[min(1, len(history) - 1)].step
    return Decision(False, "never", best_step=step, epoch=history[-1].epoch)
