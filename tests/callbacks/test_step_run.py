import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import nn

from lightning_stiffness.callbacks.neutrality import measuring
from lightning_stiffness.callbacks.training_step import TrainingStepLoss, resolve_loss
from lightning_stiffness.errors import StiffnessError
from tests.callbacks.step_oracle import assert_parallel, gradients, naive_gradients, prepared
from tests.callbacks.step_zoo import ZOO, Net, PopsFromTheBatch, plain_batch
from tests.callbacks.step_zoo_slow import SLOW, SameNoiseForAll


@pytest.mark.parametrize("name", ["Net", "BinarySqueezed", "Penalty", "Sum"])
def test_a_batch_of_one_is_the_training_step_itself(name):
    kind, batch_of = {**ZOO, **SLOW}[name]
    module, batch = prepared(kind), batch_of(1)
    with measuring(module):
        losses = TrainingStepLoss()(module, batch)
        assert losses.shape == (1,)
        assert_parallel(gradients(module, losses), naive_gradients(module, batch, 1))


class ReturnsNone(Net):
    def training_step(self, batch, batch_idx):
        return None


class ReturnsText(Net):
    def training_step(self, batch, batch_idx):
        return {"lost": 1}


class OddShape(Net):
    def training_step(self, batch, batch_idx):
        return self(batch[0])


class Detached(Net):
    def training_step(self, batch, batch_idx):
        return super().training_step(batch, batch_idx).detach()


class NotFinite(Net):
    """Of classes 0, 1, 2, 3, 0 the third is lost."""

    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.cross_entropy(torch.where(y[:, None] == 2, torch.nan, self(x)), y)


class Manual(Net):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False


class TakesIterator(Net):
    def training_step(self, dataloader_iter):
        return None


class Missing(LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 2)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (ReturnsNone, r"found None.*stiffness_step"),
        (ReturnsText, r"found dict with \['lost'\]"),
        (OddShape, r"one loss per sample, \[5\]; found shape \[5, 4\].*stiffness_step"),
        (Detached, "gradient"),
        (NotFinite, "nan for sample 2"),
        (Manual, r"automatic_optimization is False.*stiffness_step.*loss=callable"),
        (TakesIterator, r"dataloader_iter.*stiffness_step"),
        (Missing, r"Missing has no training_step.*stiffness_step"),
    ],
)
def test_what_cannot_be_measured_is_said(kind, message):
    module = prepared(kind)
    with measuring(module), pytest.raises(StiffnessError, match=message):
        TrainingStepLoss()(module, plain_batch(5))


@pytest.mark.parametrize("kind", [Manual, TakesIterator, Missing])
def test_what_cannot_be_measured_is_said_before_the_first_batch(kind):
    with pytest.raises(StiffnessError, match="stiffness_step"):
        resolve_loss(prepared(kind))


def test_frozen_modules_are_refused():
    module = prepared(Net).requires_grad_(False)
    with measuring(module), pytest.raises(StiffnessError, match="frozen"):
        TrainingStepLoss()(module, plain_batch(5))


def test_a_step_that_fails_alone_and_in_copies_shows_its_own_error():
    class Fails(Net):
        def training_step(self, batch, batch_idx):
            raise ValueError(f"{len(batch[1])} samples")

    module = prepared(Fails)
    with measuring(module), pytest.raises(ValueError, match=r"^1 samples"):
        TrainingStepLoss()(module, plain_batch(1))


def test_neither_batch_nor_random_state_is_changed():
    module, batch = prepared(PopsFromTheBatch), ZOO["PopsFromTheBatch"][1](5)
    before, state = {name: value.clone() for name, value in batch.items()}, torch.get_rng_state()
    with measuring(module):
        TrainingStepLoss()(module, batch)
        assert torch.equal(torch.get_rng_state(), state)
    assert list(batch) == list(before)
    assert all(torch.equal(batch[name], before[name]) for name in before)


def test_readings_repeat_although_random_numbers_are_drawn():
    module, batch = prepared(SameNoiseForAll), plain_batch(4)
    with measuring(module), pytest.warns(UserWarning, match="random numbers"):
        first, second = TrainingStepLoss()(module, batch), TrainingStepLoss()(module, batch)
    assert torch.equal(first, second)
