"""One training with all that might tell when to stop where the default is weak, kept to be judged afterwards."""

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
import torch
from stopping_data import SHIFTS, Images, TrainingSet, parts_of, with_noise
from stopping_grid import Setting
from stopping_training import CHUNK, HISTORY, PROBE_SIZE, Classifier, checked, quiet_trainer, scores_of
from torch import Generator, Tensor, nn
from torch.utils.data import DataLoader, Sampler

from lightning_stiffness import StiffnessMonitor
from lightning_stiffness.callbacks.neutrality import measuring
from lightning_stiffness.callbacks.signals import SIGNALS, Scene
from lightning_stiffness.callbacks.signals.leave_one_out import LeaveOneOutSignal
from lightning_stiffness.callbacks.signals.step_sizes import ADAPTIVE, learning_rates, step_sizes
from lightning_stiffness.callbacks.signals.tracked_kernel import DIRECTIONS
from lightning_stiffness.gram import Gram
from lightning_stiffness.gram.explicit import gradient_columns
from lightning_stiffness.gram.logit_gram import Projection
from lightning_stiffness.gram.trainable import trainable

WITHHELD_SHARE, WINDOW = 0.02, 4  # of the samples at any time; epochs
EXTRA_SHARE = 0.1  # unseen samples with labels as wrong as those of training, as many as this share of them
COPIED = 200
ENTRYWISE_EVERY = 8  # readings: all gradients entry by entry are dear
RECORD = "record.pt"


class RotatingSampler(Sampler[int]):
    """All samples in random order but those whose turn it is to be left out, each for a few epochs on end."""

    def __init__(self, count: int, seed: int) -> None:
        """No epoch has begun."""
        self._generator = Generator().manual_seed(seed)
        self._order = torch.randperm(count, generator=self._generator)
        self._begin = max(1, round(WITHHELD_SHARE * count / WINDOW))
        self.epoch = -1

    def ages(self) -> Tensor:
        """For how many epochs each sample has been left out, the one that runs included; 0: it is trained on."""
        ages = torch.zeros(len(self._order), dtype=torch.long)
        for turn in range(max(0, self.epoch - WINDOW + 1), self.epoch + 1):
            places = torch.arange(turn * self._begin, (turn + 1) * self._begin) % len(self._order)
            ages[self._order[places]] = self.epoch - turn + 1
        return ages

    def __len__(self) -> int:
        return len(self._order) - WINDOW * self._begin

    def __iter__(self) -> Iterator[int]:
        self.epoch += 1
        trained = torch.nonzero(self.ages() == 0).flatten()
        order = trained[torch.randperm(len(trained), generator=self._generator)]
        return iter(order[: len(self)].tolist())


class Watcher(L.Callback):
    """Keeps the logits of sets of images after each epoch, and logs the scores of the test set."""

    def __init__(self, images: dict[str, Images], sampler: RotatingSampler) -> None:
        """Takes the sets by their names."""
        self.images, self.sampler = images, sampler
        self.logits: dict[str, list[Tensor]] = {name: [] for name in images}
        self.ages: list[Tensor] = []

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Of the untrained network, too."""
        self._look(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Of the network after each epoch."""
        self._look(trainer, pl_module)

    def _look(self, trainer: Any, pl_module: Any) -> None:
        modes = {module: module.training for module in pl_module.modules()}
        pl_module.eval()
        with torch.no_grad():
            for name, images in self.images.items():
                parts = [pl_module.network(part) for part in images.inputs.split(CHUNK)]
                self.logits[name].append(torch.cat(parts))
        for module, mode in modes.items():
            module.training = mode
        self.ages.append(self.sampler.ages())
        loss, accuracy = scores_of(self.logits["test"][-1], self.images["test"].targets)
        trainer.callback_metrics.update({"test_loss": loss, "test_acc": accuracy})


class RecordedSignal(LeaveOneOutSignal):
    """The leave-one-out signal, whose inner state is kept at each reading."""

    def __init__(self, scene: Scene, readings: list[dict[str, Any]]) -> None:
        """Nothing is kept yet."""
        super().__init__(scene)
        self._readings, self._place = readings, scene
        self._entries: list[Tensor] = []
        self._turn = 0

    def read(self, gram: Gram) -> dict[str, float]:
        """As the signal."""
        found = super().read(gram)
        state = self.state_dict()
        kept = {name: state[name] for name in ("step", "time", "residual", "curvature", "logits")}
        if kept["step"]:
            kept["kernel"] = torch.stack(state["kernel"]["kernels"]).float().mean(0)
            kept["entrywise"] = self._entrywise()
        self._readings.append({**kept, "targets": self._place.tracked.targets, "samples": self._place.tracked.samples})
        return found

    def _entrywise(self) -> Tensor | None:
        """The kernel with Adam's step size of each entry instead of each parameter's mean; None for SGD."""
        self._turn += 1
        if self._entries and self._turn % ENTRYWISE_EVERY:
            return torch.stack(self._entries[-DIRECTIONS:]).mean(0)
        network, optimizers = self._place.module.network, self._place.trainer.optimizers
        names = trainable(network)
        steps = entrywise_steps(optimizers[0], list(names.values()))
        if steps is None or any(isinstance(part, nn.Conv2d) for part in network.modules()):
            return None
        steps = steps / step_sizes(optimizers, names).mean(learning_rates(optimizers))
        projection = Projection(lambda module, batch: module(batch[0]), DIRECTIONS, self._place.settings.seed)
        projection.number = len(self._entries) % DIRECTIONS
        total, start = torch.zeros(()), 0
        with measuring(self._place.module), torch.enable_grad():
            batch = self._place.tracked.batch
            losses = projection(network, batch).detach()
            for columns in gradient_columns(network, projection, batch, losses):
                weighted = columns.float() * steps[start : start + columns.shape[1]].sqrt().float()
                total, start = total + weighted @ weighted.T, start + columns.shape[1]
        self._entries.append(total.float())
        return torch.stack(self._entries[-DIRECTIONS:]).mean(0)


def entrywise_steps(optimizer: torch.optim.Optimizer, parameters: list[Any]) -> Tensor | None:
    """Adam's step per unit of gradient, entry by entry; None for an optimizer that does not adapt."""
    group, found = optimizer.param_groups[0], []
    for parameter in parameters:
        state = optimizer.state.get(parameter, {})
        if ADAPTIVE not in state:
            return None
        squares = state[ADAPTIVE].double() / (1 - group["betas"][1] ** float(state["step"]))
        found.append((group["lr"] / (squares.sqrt() + group["eps"])).flatten())
    return torch.cat(found)


def copies(train: Images, setting: Setting) -> dict[str, Images]:
    """Some training samples, and perturbed copies of them with the same labels."""
    few = train[:COPIED]
    generator = Generator().manual_seed(setting.seed)
    noise = torch.randn(few.inputs.shape, generator=generator)
    shift = SHIFTS[setting.data]
    moves = torch.randint(0, 2, (len(few), 2), generator=generator) * 2 - 1
    moved = [
        image.roll((shift * int(y), shift * int(x)), (-2, -1)) for image, (y, x) in zip(few.inputs, moves, strict=True)
    ]
    others = few.inputs[torch.randperm(len(few), generator=generator)]
    inputs = {
        "noise 0.5": few.inputs + 0.5 * noise,
        "noise 1": few.inputs + noise,
        "shifted": torch.stack(moved),
        "mixed": 0.7 * few.inputs + 0.3 * others,
    }
    return {name: Images(changed, few.targets) for name, changed in inputs.items()}


def train(setting: Setting, data: Path | None, folder: Path) -> None:
    """Trains to the end; writes the history and the record to the folder."""
    torch.set_num_threads(1)
    L.seed_everything(setting.seed, verbose=False)
    parts = parts_of(setting, data, 0.0)
    extra = round(EXTRA_SHARE * setting.n)
    labels = with_noise(parts.test.targets[:extra], setting, Generator().manual_seed(setting.seed))
    images = {
        "test": parts.test[extra:],
        "extra": Images(parts.test.inputs[:extra], labels),
        "train": parts.train,
        **copies(parts.train, setting),
    }
    sampler, readings = RotatingSampler(len(parts.train), setting.seed), []
    watcher = Watcher(images, sampler)
    SIGNALS["recorded"] = lambda scene: RecordedSignal(scene, readings)
    monitor = StiffnessMonitor(
        signals=("recorded",), strict=True, save_dir=str(folder), probe_size=PROBE_SIZE, prog_bar=False, name=HISTORY
    )
    trainer = quiet_trainer(setting, [watcher, monitor])
    loader = DataLoader(TrainingSet(parts.train, setting), setting.batch, sampler=sampler)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(Classifier(setting, tuple(parts.train.inputs.shape[1:])), loader)
    checked(monitor.history, setting)
    record = {
        "logits": {name: torch.stack(each) for name, each in watcher.logits.items()},
        "targets": {name: each.targets for name, each in images.items()},
        "ages": torch.stack(watcher.ages),
        "readings": readings,
    }
    torch.save(record, folder / "record.part")
    (folder / "record.part").replace(folder / RECORD)
