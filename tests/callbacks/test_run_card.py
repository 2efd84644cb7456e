import math
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import LightningDataModule

from lightning_stiffness import StiffnessError, StiffnessMonitor
from lightning_stiffness.callbacks.run_card import registered_hyperparameters, run_card
from tests.callbacks.modules import QUIET, Classifier, loader, trainer
from tests.toy_history import toy_probe

pytestmark = QUIET


@dataclass
class Schedule:
    every_n_epochs: int = 1
    every_n_steps: int = 0
    every_n_batches: int = 10
    signals: tuple[str, ...] = ()


def card(schedule, **changes):
    module = Classifier()
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.01, weight_decay=0.1)
    facts = {"num_training_batches": 6, "optimizers": [optimizer], "max_epochs": 5, "precision": "32", "world_size": 1}
    return run_card(SimpleNamespace(**{**facts, **changes}), module, toy_probe(), schedule)


def test_what_it_says():
    settings = card(Schedule()).settings
    assert settings["measured on"] == "12 training samples, 3 classes"
    assert settings["optimizer"] == "AdamW, learning rate 0.01, weight decay 0.1"
    assert settings["model"] == "Classifier, 147 trainable parameters"
    assert settings["planned"] == "5 epochs"
    assert settings["versions"].startswith("lightning-stiffness 0")


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (Schedule(), "every epoch"),
        (Schedule(3, 20), "every 3 epochs and every 20 steps"),
        (Schedule(0, 0), "before training only"),
    ],
)
def test_when_it_measures(schedule, expected):
    assert card(schedule).settings["readings"] == expected


def test_a_stream_without_end():
    settings = card(Schedule(), num_training_batches=math.inf, max_epochs=-1).settings
    assert settings["batches in an epoch"] == "unknown"
    assert settings["planned"] == "no limit of epochs"


def test_registered_hyperparameters_come_along():
    class Registered(Classifier):
        def __init__(self, width=3):
            super().__init__()
            self.save_hyperparameters()

    trainer = SimpleNamespace(num_training_batches=1, optimizers=[], max_epochs=1, precision="32", world_size=1)
    assert run_card(trainer, Registered(), toy_probe(), Schedule()).hyperparameters == {"width": 3}
    assert card(Schedule()).hyperparameters == {}


def test_what_lightning_will_log_as_hyperparameters():
    class Registered(Classifier):
        def __init__(self, width=3):
            super().__init__()
            self.save_hyperparameters()

    class Data(LightningDataModule):
        def __init__(self, folds=2, logged=True):
            super().__init__()
            self.save_hyperparameters(logger=logged)

    def found(module, data):
        return registered_hyperparameters(SimpleNamespace(datamodule=data), module)

    assert found(Registered(), Data()) == {"width": 3, "folds": 2, "logged": True}
    assert found(Registered(), Data(logged=False)) == {"width": 3}
    assert found(Classifier(), None) == {}


def test_layers_without_a_size_yet_lead_to_one_clear_error():
    class Lazy(Classifier):
        def __init__(self):
            super().__init__()
            self.net = torch.nn.LazyLinear(3)

    with pytest.raises(StiffnessError, match="of a lazy layer that has not seen an input"):
        trainer([StiffnessMonitor(probe_size=15)], max_epochs=1).fit(Lazy(), loader())
