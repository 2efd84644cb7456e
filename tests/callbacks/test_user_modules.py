"""The monitor beside modules and data of all kinds, unmodified."""

import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningDataModule
from lightning.pytorch.callbacks import BackboneFinetuning, LearningRateFinder, StochasticWeightAveraging
from torch import nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from lightning_stiffness import StiffnessEarlyStopping, StiffnessMonitor
from tests.callbacks.modules import CLASSES, FEATURES, QUIET, Classifier, blobs, loader, trainer

pytestmark = QUIET


def readings(module: Any, data: Any = None, **options: Any) -> StiffnessMonitor:
    """A short run; every reading must have come, and twice the same value from a net that does not learn."""
    monitor = StiffnessMonitor(**{"probe_size": 15, "strict": True, **options.pop("monitor", {})})
    run = trainer([monitor], **{"max_epochs": 2, **options})
    run.fit(module, loader(shuffle=False) if data is None else data)
    assert [reading.step for reading in monitor.history] == [0, 6, 12]
    within = monitor.history.series("within")
    assert within.isfinite().all()
    assert within.abs().max() <= 1
    return monitor


def assert_equal_to_plain(module: Any, tolerance: float = 1e-4, data: Any = None, **options: Any) -> None:
    """The same loss in another dress gives the same readings."""
    found, expected = readings(module, data, **options), readings(Classifier())
    for name in ("within", "between", "within_se"):
        torch.testing.assert_close(
            found.history.series(name), expected.history.series(name), rtol=tolerance, atol=tolerance
        )


class ReturnsDict(Classifier):
    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        return {"loss": loss, "other": loss.detach()}


class WithoutIndex(Classifier):
    def training_step(self, batch):
        x, y = batch
        return F.cross_entropy(self(x), y)


class PerSample(Classifier):
    def stiffness_step(self, batch):
        x, y = batch
        return F.cross_entropy(self(x), y, reduction="none"), y


class Scaled(Classifier):
    def training_step(self, batch, batch_idx):
        return 1.0 * super().training_step(batch, batch_idx)


@pytest.mark.parametrize("kind", [ReturnsDict, WithoutIndex, PerSample, Scaled])
@pytest.mark.slow
def test_the_form_of_the_step_does_not_matter(kind):
    assert_equal_to_plain(kind())


class Sequences(Classifier):
    """Gets a list with one tensor for each sample, of unequal lengths."""

    def training_step(self, batch, batch_idx):
        sequences, y = batch
        return F.cross_entropy(self(torch.stack([one.mean(0) for one in sequences])), y)


def as_sequences(samples):
    x, y = zip(*samples, strict=True)
    return [one.repeat(2 + int(label), 1) for one, label in zip(x, y, strict=True)], torch.stack(y)


def test_a_list_of_sequences_beside_their_labels():
    assert_equal_to_plain(Sequences(), data=loader(shuffle=False, collate_fn=as_sequences))


def each(module, batch, ignored=0):
    return F.cross_entropy(module(batch[0]), batch[1], reduction="none", ignore_index=ignored)


class BackgroundClass(Classifier):
    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self(batch[0]), batch[1], ignore_index=0)


class ClassOfWeightZero(Classifier):
    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self(batch[0]), batch[1], weight=torch.tensor([0.0, 1.0, 1.0]))


class MaskByHand(Classifier):
    def training_step(self, batch, batch_idx):
        counted = batch[1] != 0
        return (each(self, batch, -100) * counted).sum() / counted.sum()


class MissingLabels(Classifier):
    """Samples of class 0 have no label for the second task."""

    def training_step(self, batch, batch_idx):
        return each(self, batch, -100).mean() + 0.5 * F.cross_entropy(-self(batch[0]), batch[1], ignore_index=0)


def with_missing_labels(module, batch):
    return each(module, batch, -100) + 0.5 * F.cross_entropy(-module(batch[0]), batch[1], None, None, 0, None, "none")


@pytest.mark.filterwarnings("ignore:The loss of training_step could not be split:UserWarning")
@pytest.mark.parametrize("options", [{}, {"probe": blobs()}])
@pytest.mark.parametrize(
    ("kind", "losses"),
    [
        (BackgroundClass, each),
        (ClassOfWeightZero, each),
        (MaskByHand, each),
        (MissingLabels, with_missing_labels),
    ],
)
@pytest.mark.slow
def test_samples_that_a_mean_does_not_count(kind, losses, options):
    found = readings(kind(), monitor=options)
    expected = readings(kind(), monitor={**options, "loss": losses})
    for name in ("within", "between", "zero_fraction"):
        one, other = found.history.series(name), expected.history.series(name)
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    assert found.history.series("zero_fraction")[0] == (0 if kind is MissingLabels else pytest.approx(1 / 3))


def test_functions_that_are_given_for_loss_and_targets():
    x, y = blobs()

    class Manual(Classifier):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch, batch_idx):
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(F.cross_entropy(self(batch["picture"]), batch["kind"]))
            optimizer.step()

    class Pictures(torch.utils.data.Dataset):
        def __len__(self):
            return len(y)

        def __getitem__(self, index):
            return {"picture": x[index], "kind": y[index]}

    given = {
        "loss": lambda module, batch: F.cross_entropy(module(batch["picture"]), batch["kind"], reduction="none"),
        "targets": lambda batch: batch["kind"],
    }
    readings(Manual(), DataLoader(Pictures(), batch_size=10), monitor=given)


class TakesDict(Classifier):
    def training_step(self, batch, batch_idx):
        return super().training_step((batch["x"], batch["labels"]), batch_idx)


class TakesThree(Classifier):
    def training_step(self, batch, batch_idx):
        x, y, weight = batch
        return (F.cross_entropy(self(x), y, reduction="none") * weight).mean()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Trying to infer the `batch_size` from an ambiguous collection")
def test_batches_of_other_structure():
    x, y = blobs()
    items = [{"x": row, "labels": int(label), "name": str(i)} for i, (row, label) in enumerate(zip(x, y, strict=True))]
    readings(TakesDict(), DataLoader(items, batch_size=10))
    readings(TakesThree(), DataLoader(TensorDataset(x, y, torch.rand(60) + 0.5), batch_size=10))


class Auxiliary(Classifier):
    def __init__(self):
        super().__init__()
        self.second = nn.Linear(FEATURES, CLASSES)

    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.cross_entropy(self(x), y) + 0.3 * F.cross_entropy(self.second(x), y)


def test_a_second_loss_counts():
    readings(Auxiliary())


class Stream(IterableDataset):
    def __iter__(self):
        return iter(zip(*blobs(), strict=True))


class LongStream(Stream):
    def __len__(self):
        return 60


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Your `IterableDataset` has `__len__` defined")
@pytest.mark.parametrize(("kind", "epochs"), [(Stream, [0, 0, 1, 1, 2]), (LongStream, [0, 4 / 6, 1, 8 / 6, 2])])
def test_streams(kind, epochs):
    monitor = StiffnessMonitor(probe_size=15, every_n_steps=4)
    trainer([monitor]).fit(Classifier(), DataLoader(kind(), batch_size=10))
    assert [reading.epoch for reading in monitor.history] == pytest.approx(epochs)


class Data(LightningDataModule):
    def setup(self, stage):
        self.data = TensorDataset(*blobs())

    def train_dataloader(self):
        return DataLoader(self.data, batch_size=10)


def test_data_modules():
    readings(Classifier(), Data())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The fast route disagreed")  # as it may, within the rounding of bf16
@pytest.mark.parametrize(
    ("precision", "tolerance"), [("64-true", 1e-6), ("bf16-mixed", 0.05), ("bf16-true", 0.1), ("32-true", 1e-6)]
)
def test_precisions(precision, tolerance):
    module = Classifier(rate=0.0)
    found, expected = readings(module, precision=precision), readings(Classifier(rate=0.0))
    for name in ("within", "between"):
        torch.testing.assert_close(
            found.history.series(name), expected.history.series(name), rtol=tolerance, atol=tolerance
        )


class Checkpointed(Classifier):
    def forward(self, x):
        return self.net[2](checkpoint(self.net[:2], x, use_reentrant=False))


def test_activation_checkpointing():
    assert_equal_to_plain(Checkpointed())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_compiled_modules():
    assert_equal_to_plain(torch.compile(WithoutIndex(), backend="aot_eager"))


class Unfreezes(Classifier):
    """Trains its last layer first."""

    def __init__(self, rate):
        super().__init__(rate=rate)
        self.net[0].requires_grad_(False)

    def on_train_epoch_start(self):
        if self.current_epoch == 1:
            self.net[0].requires_grad_(True)


def test_layers_that_are_unfrozen_later_count_from_then_on():
    monitor = readings(Unfreezes(rate=0.0), max_epochs=2)
    frozen, thawed = monitor.history.series("within")[1:].tolist()
    assert thawed == pytest.approx(readings(Classifier(rate=0.0)).history[-1].cosine.within, abs=1e-5)
    assert frozen != pytest.approx(thawed, abs=1e-3)


class WithBackbone(Classifier):
    def __init__(self):
        super().__init__()
        self.backbone, self.head = nn.Sequential(nn.Linear(FEATURES, 12), nn.Tanh()), nn.Linear(12, CLASSES)

    def forward(self, x):
        return self.head(self.backbone(x))

    def configure_optimizers(self):
        parameters = [parameter for parameter in self.parameters() if parameter.requires_grad]
        return torch.optim.SGD(parameters, lr=self.rate)


def test_it_gets_along_with_other_callbacks():
    monitor, stopper = StiffnessMonitor(probe_size=15, strict=True), StiffnessEarlyStopping(restore="stop")
    others = [BackboneFinetuning(unfreeze_backbone_at_epoch=1), StochasticWeightAveraging(swa_lrs=0.01)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer([*others, monitor, stopper], max_epochs=4).fit(WithBackbone(), loader())
    assert len(monitor.history) == 5


def test_a_search_for_the_learning_rate_is_not_measured(tmp_path):
    monitor = StiffnessMonitor(probe_size=15, strict=True)
    search = LearningRateFinder(num_training_steps=5, attr_name="rate")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer([search, monitor], enable_checkpointing=True, default_root_dir=tmp_path, max_epochs=2).fit(
            Classifier(), loader()
        )
    assert [reading.step for reading in monitor.history] == [0, 6, 12]
