import copy
import io

import lightning as L
import pytest
import torch
from rich.console import Console
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_stiffness import StiffnessMonitor, doctor
from lightning_stiffness.diagnosis import Diagnosis
from lightning_stiffness.doctor import diagnose
from tests.oracle import cross_entropy


class Classifier(L.LightningModule):
    def __init__(self, *layers):
        super().__init__()
        self.network = nn.Sequential(*layers or (nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)))

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self.network(batch[0]), batch[1])


class Contrastive(Classifier):
    def training_step(self, batch, batch_idx):
        outputs = self.network(batch[0])
        return nn.functional.cross_entropy(outputs @ outputs.T, torch.arange(len(outputs)))


class Manual(Classifier):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False


def batch(size=12):
    return torch.randn(size, 4), torch.arange(size) % 3


def data(size=300, classes=3):
    return TensorDataset(torch.randn(size, 4), torch.arange(size) % classes)


def printed(found, width=100):
    console = Console(file=io.StringIO(), width=width)
    console.print(found)
    return console.file.getvalue()


def test_a_model_that_can_be_measured():
    found = diagnose(Classifier(), batch())
    assert found.is_measurable
    assert found.entries == 4 * 8 + 8 + 8 * 3 + 3 == sum(share.entries for share in found.shares)
    assert found.counts == (4, 4, 4)
    assert found.samples == 12
    assert found.losses.startswith("training_step")
    assert found.targets == "element 1 of the batch"
    assert found.fallback_share == 0
    assert found.seconds > 0
    assert found.floor_seconds > 0
    assert found.megabytes >= 0
    assert isinstance(eval(found.monitor, {"StiffnessMonitor": StiffnessMonitor}), StiffnessMonitor)
    text = printed(found)
    for word in ("Classifier can be measured", "do not mix", "3 classes with 4 samples each", found.monitor):
        assert word in text


@pytest.mark.slow
def test_a_probe_is_drawn_from_data():
    class Data(L.LightningDataModule):
        def train_dataloader(self):
            return DataLoader(data(), 10, shuffle=True)

    for given in (data(), DataLoader(data(), 10), Data()):
        found = diagnose(Classifier(), given, samples=30)
        assert found.counts == (10, 10, 10)
        assert found.epoch_share > 0
    assert "of what an epoch takes" in printed(found)


def test_settings_follow_the_number_of_classes_and_the_cost(monkeypatch):
    module = Classifier(nn.Linear(4, 30))
    seconds = iter([3.0, 0.5, 0.1])  # a reading of 60 samples, their floor, that of a training batch
    monkeypatch.setattr(doctor, "_seconds", lambda work: next(seconds))
    monkeypatch.setattr(doctor, "free_megabytes", lambda device: 1 << 30)
    found = diagnose(module, DataLoader(data(600, 30), 60), samples=60)
    assert found.epoch_share == pytest.approx(3 * 300 / 60 / (0.1 * 600 / 60))
    assert dict(found.settings) == {"num_classes": 30, "probe_size": 300, "every_n_epochs": 150}


def test_a_budget_is_recommended_where_memory_is_short(monkeypatch):
    monkeypatch.setattr(doctor, "free_megabytes", lambda device: 100)
    assert diagnose(Classifier(), batch()).settings["budget"] == 25 << 20


def test_routes_come_with_fallbacks_first():
    class Scaled(Classifier):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.rand(3))

        def training_step(self, batch, batch_idx):
            return nn.functional.cross_entropy(self.network(batch[0]) * torch.special.i0(self.scale), batch[1])

    class Unknown(Classifier):
        def training_step(self, batch, batch_idx):
            weight = self.network[0].weight
            hidden = torch.cdist(batch[0], weight)
            return nn.functional.cross_entropy(self.network[2](hidden), batch[1])

    found = diagnose(Unknown(), batch())
    if found.fallback_share:
        assert found.shares[0].is_fallback
        assert "network.0.weight" in printed(found)
    assert diagnose(Scaled(), batch()).is_measurable


def test_samples_that_mix_are_explained():
    found = diagnose(Contrastive(), batch())
    assert not found.is_measurable
    assert found.mixes
    text = printed(found)
    assert "Contrastive cannot be measured" in text
    assert "depends on the others" in text


@pytest.mark.parametrize(
    ("module", "given", "problem"),
    [
        (Manual(), batch(), "updates the weights itself"),
        (Classifier(), (torch.randn(5, 4), torch.randn(5)), "not class labels"),
        (nn.Linear(4, 3), batch(), "has no training_step"),
        (Classifier(), 3, "A batch must hold a tensor"),
        (Classifier().requires_grad_(False), batch(), "no trainable parameter"),
    ],
)
def test_what_cannot_be_measured_says_why(module, given, problem):
    found = diagnose(module, given)
    assert problem in found.problem
    assert not found.mixes
    assert "cannot be measured" in printed(found)


def test_a_plain_module_with_a_loss():
    found = diagnose(nn.Linear(4, 3), batch(), loss=cross_entropy, targets=lambda batch: batch[1])
    assert (found.losses, found.targets) == ("loss=, one for each sample", "targets=")


def test_a_stiffness_step():
    class Stepped(Classifier):
        def stiffness_step(self, batch):
            return cross_entropy(self.network, batch), batch[1]

    found = diagnose(Stepped(), batch())
    assert found.losses == found.targets == "stiffness_step of the module"


def test_notes_of_layers_that_behave_otherwise():
    layers = (nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3))
    module = Classifier(*layers)
    module.network[0].requires_grad_(False)
    text = printed(diagnose(module, batch()))
    for word in ("1 BatchNorm layers", "Dropout is off", "40 entries of frozen parameters"):
        assert word in text


def test_nothing_is_left_behind():
    module = Classifier(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3))
    given = data()
    before, states = copy.deepcopy(module.state_dict()), torch.get_rng_state()
    diagnose(module, given)
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())
    assert torch.equal(states, torch.get_rng_state())
    assert all(part.training for part in module.modules())


def test_text_of_the_user_is_no_markup():
    assert "[n]" in printed(Diagnosis("Net", 3, problem="losses [n] are wanted"))
