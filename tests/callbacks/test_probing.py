"""Which samples are measured, and in what form they reach the module."""

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.utilities import CombinedLoader
from torch.utils.data import DataLoader, TensorDataset

from lightning_stiffness import Probe, StiffnessError, StiffnessMonitor
from tests.callbacks.modules import CLASSES, QUIET, Classifier, Validated, blobs, loader, trainer
from tests.callbacks.test_monitor import cross_entropies
from tests.callbacks.test_user_modules import assert_equal_to_plain, readings

pytestmark = QUIET


def test_the_probe_depends_on_the_seed_alone():
    found = []
    for seed, global_seed in ((0, 1), (0, 2), (5, 1)):
        torch.manual_seed(global_seed)
        monitor = StiffnessMonitor(probe_size=15, seed=seed)
        trainer([monitor], max_epochs=1).fit(Classifier(rate=0.0), loader())
        found.append(monitor.history[-1].loss)
    assert found[0] == found[1] != found[2]


@pytest.mark.parametrize("kind", ["probe", "loader", "batch"])
def test_a_given_probe_is_used_as_it_is(kind):
    chosen = loader(12, batch_size=5, shuffle=False)
    given = {"probe": Probe.from_loader(chosen), "loader": chosen, "batch": chosen.dataset.tensors}[kind]
    monitor, module = StiffnessMonitor(probe=given), Classifier()
    trainer([monitor], max_epochs=1).fit(module, loader())
    losses = cross_entropies(module, chosen.dataset.tensors)
    assert monitor.history[-1].loss == pytest.approx(float(losses.mean().detach()), rel=1e-5)
    assert len(monitor.history.probe.strata) == 12


def test_validation_data_that_lightning_loads_later_are_found():
    monitor = StiffnessMonitor(mode="val", probe_size=15)
    run = trainer([monitor], max_epochs=3, num_sanity_val_steps=0, check_val_every_n_epoch=3)
    run.fit(Validated(), loader(), loader(30, shuffle=False))
    assert len(monitor.history) == 4


class Reordered(Classifier):
    """Its batches are (y, x), so that only stiffness_step knows the classes."""

    def training_step(self, batch, batch_idx):
        return super().training_step(batch[::-1], batch_idx)

    def stiffness_step(self, batch):
        assert not self.training
        y, x = batch
        return F.cross_entropy(self(x), y, reduction="none"), y


def test_classes_that_only_stiffness_step_knows():
    x, y = blobs()
    data = DataLoader(TensorDataset(y, x), batch_size=10)
    assert len(readings(Reordered(), data).history) == 3


class InDict(Classifier):
    def training_step(self, batch, batch_idx):
        return super().training_step(batch["a"], batch_idx)


class InDictWithStep(InDict):
    def stiffness_step(self, batch):
        x, y = batch["a"]
        return F.cross_entropy(self(x), y, reduction="none"), y


class InList(Classifier):
    def training_step(self, batch, batch_idx):
        return super().training_step(batch[0], batch_idx)


@pytest.mark.filterwarnings("ignore:Trying to infer the `batch_size` from an ambiguous collection")
@pytest.mark.parametrize(
    ("kind", "data"),
    [
        (InDict, lambda one: {"a": one}),
        (InDict, lambda one: CombinedLoader({"a": one})),
        (InDictWithStep, lambda one: {"a": one}),
        (InList, lambda one: [one]),
    ],
)
@pytest.mark.slow
def test_one_loader_in_a_collection(kind, data):
    assert_equal_to_plain(kind(), data=data(loader(shuffle=False)))


def test_several_loaders_need_a_probe():
    both = {"a": loader(), "b": loader()}
    with pytest.raises(StiffnessError, match=r"found 2 .* Pass probe="):
        trainer([StiffnessMonitor()]).fit(InDict(), both)


class Transferred(Classifier):
    """Normalises in the hooks that batches go through."""

    def on_before_batch_transfer(self, batch, dataloader_idx):
        x, y = batch
        return x * 10, y

    def on_after_batch_transfer(self, batch, dataloader_idx):
        x, y = batch
        return x / 10, y


def test_batches_go_through_the_hooks_of_the_module():
    assert_equal_to_plain(Transferred())


class Augmenting(Classifier):
    def on_after_batch_transfer(self, batch, dataloader_idx):
        x, y = batch
        return x + torch.randn_like(x), y


def test_random_hooks_are_the_same_in_each_run():
    torch.manual_seed(1)
    first = readings(Augmenting(rate=0.0))
    torch.manual_seed(2)
    assert first.history.series("loss").tolist() == readings(Augmenting(rate=0.0)).history.series("loss").tolist()


def test_a_class_of_one_sample_has_no_value_of_its_own():
    x, y = blobs(61)
    y[60] = CLASSES
    monitor = StiffnessMonitor(probe_size=16)
    with pytest.warns(UserWarning, match="1 of 4 classes have fewer than two samples .*: 3"):
        trainer([monitor], max_epochs=1).fit(Classifier(4), DataLoader(TensorDataset(x, y), batch_size=10))
    matrix = monitor.history[-1].cosine.matrix
    assert matrix[3, 3].isnan()
    assert int(matrix.isnan().sum()) == 1
    assert monitor.history.series("within").isfinite().all()


@pytest.mark.parametrize("limit", [{"limit_train_batches": 3}, {"overfit_batches": 3}])
def test_only_samples_that_are_trained_on_are_measured(limit):
    monitor, module, data = StiffnessMonitor(probe_size=60), Classifier(), loader(shuffle=False)
    trainer([monitor], max_epochs=1, **limit).fit(module, data)
    assert len(monitor.history.probe.strata) == 30
    losses = cross_entropies(module, [part[:30] for part in data.dataset.tensors])
    assert monitor.history[-1].loss == pytest.approx(float(losses.mean().detach()), rel=1e-5)
