"""What cannot be measured is said once and clearly, before the first step; later a run does not die of it."""

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from lightning_stiffness import (
    MixedSamplesError,
    StiffnessDrop,
    StiffnessEarlyStopping,
    StiffnessError,
    StiffnessMonitor,
)
from tests.callbacks.modules import QUIET, Classifier, blobs, loader, trainer

pytestmark = QUIET


def dataset(*tensors, batch_size=10):
    return DataLoader(TensorDataset(*tensors), batch_size=batch_size)


class Autoencoder(Classifier):
    def training_step(self, batch, batch_idx):
        x = batch[0]
        return self(x).square().mean()


class Regression(Classifier):
    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.mse_loss(self(x)[:, 0], y)


class Manual(Classifier):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(super().training_step(batch, batch_idx))
        optimizer.step()


class TwoOptimizers(Manual):
    def configure_optimizers(self):
        return [torch.optim.SGD(self.net[0].parameters(), lr=0.1), torch.optim.SGD(self.net[2].parameters(), lr=0.1)]


class Contrastive(Classifier):
    def training_step(self, batch, batch_idx):
        x, y = batch
        z = F.normalize(self(x), dim=1)
        return F.cross_entropy(z @ z.T / 0.1, torch.arange(len(y)).roll(1))


class Frozen(Classifier):
    def __init__(self):
        super().__init__()
        self.requires_grad_(False)
        self.other = torch.nn.Parameter(torch.zeros(()))

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self(batch[0]), batch[1]) + 0 * self.other

    def on_fit_start(self):
        self.other.requires_grad_(False)


class Bags(Classifier):
    """Tokens of all samples in one tensor, as in torch's tutorial on text."""

    def __init__(self):
        super().__init__()
        self.bag = torch.nn.EmbeddingBag(5, 8)

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self(self.bag(batch["text"], batch["offsets"])), batch["labels"])


def bags(samples):
    y = [label for _, label in samples]
    lengths = torch.tensor([2 + int(label) for label in y])
    offsets = lengths.cumsum(0) - lengths
    return {"labels": torch.stack(y), "text": torch.arange(int(lengths.sum())) % 5, "offsets": offsets}


class Stream(IterableDataset):
    def __init__(self, n):
        self.n = n

    def __iter__(self):
        return iter(zip(*blobs(self.n), strict=True))


X, Y = blobs()
NOT_MEASURABLE = {
    "no targets": (Autoencoder, dataset(X), r"targets=, a callable batch -> \[n\] integers"),
    "regression": (Regression, dataset(X, Y.float()), "Regression values"),
    "manual optimisation": (Manual, dataset(X, Y), "stiffness_step"),
    "two optimizers": (TwoOptimizers, dataset(X, Y), "stiffness_step"),
    "contrastive": (Contrastive, dataset(X, Y), "contrastive"),
    "short stream": (Classifier, DataLoader(Stream(2), batch_size=1), "two samples"),
    "frozen": (Frozen, dataset(X, Y), "frozen|no trainable parameter"),
    "offsets": (Bags, DataLoader(TensorDataset(X, Y), batch_size=10, collate_fn=bags), "EmbeddingBag.*padded tokens"),
    "negative labels": (Classifier, dataset(X, torch.where(Y == 0, -100, Y)), "-100 to 2"),
    "one sample a class": (Classifier, dataset(X[:3], Y[:3]), "two samples"),
}


class Steps(Callback):
    def __init__(self):
        self.count = 0

    def on_train_batch_start(self, *_):
        self.count += 1


@pytest.mark.parametrize("at_start", [True, False])
@pytest.mark.parametrize("case", NOT_MEASURABLE)
def test_what_cannot_work_is_said_before_the_first_step(case, at_start):
    kind, data, message = NOT_MEASURABLE[case]
    steps = Steps()
    with pytest.raises(StiffnessError, match=message) as caught:
        trainer([steps, StiffnessMonitor(probe_size=20, at_start=at_start)]).fit(kind(), data)
    assert steps.count == 0
    assert len(str(caught.value)) < 600


def test_a_loss_that_mixes_samples_has_an_error_of_its_own():
    with pytest.raises(MixedSamplesError):
        trainer([StiffnessMonitor(probe_size=20)]).fit(Contrastive(), dataset(X, Y))


def test_a_stopper_says_the_same():
    with pytest.raises(StiffnessError, match="stiffness_step"):
        trainer([StiffnessEarlyStopping()]).fit(Manual(), dataset(X, Y))


def test_validation_data_are_asked_for():
    with pytest.raises(StiffnessError, match='mode="val" needs a validation dataloader'):
        trainer([StiffnessMonitor(mode="val")]).fit(Classifier(), loader())


def test_names_that_do_not_fit_are_refused_before_the_first_step():
    steps = Steps()
    with pytest.raises(StiffnessError, match="class_names"):
        trainer([steps, StiffnessMonitor(class_names=["a", "b"])]).fit(Classifier(), loader())
    assert steps.count == 0


def test_one_class_only_has_no_between_class_value():
    monitor = StiffnessMonitor(probe_size=20)
    trainer([monitor], max_epochs=1).fit(Classifier(), dataset(X, torch.zeros_like(Y)))
    assert monitor.history.series("between").isnan().all()
    assert monitor.history.series("within").isfinite().all()


def weights_after(module, callbacks=(), **options):
    torch.manual_seed(0)
    run = trainer(callbacks, **options)
    run.fit(module, loader())
    return run, torch.cat([parameter.detach().flatten() for parameter in module.parameters()])


class Diverges(Classifier):
    """Its weights are lost after the first epoch."""

    def on_train_epoch_start(self):
        if self.current_epoch == 1:
            for group in self.optimizers().param_groups:
                group["lr"] = 1e38


@pytest.mark.slow
def test_a_net_that_diverges_is_warned_of_once_and_goes_on():
    monitor, stopper = StiffnessMonitor(probe_size=15, every_n_steps=2), StiffnessEarlyStopping()
    with pytest.warns(UserWarning, match="could not be measured") as caught:
        run, weights = weights_after(Diverges(), [monitor, stopper], max_epochs=4)
    found = [str(warning.message) for warning in caught if "could not be measured" in str(warning.message)]
    assert len(found) == 1
    assert "finite" in found[0]
    assert "strict=True" in found[0]
    assert run.current_epoch == 4
    assert torch.equal(weights, weights_after(Diverges(), max_epochs=4)[1]) or weights.isnan().any()
    assert all(reading.epoch <= 1.4 for reading in monitor.history)
    assert not stopper.decision.stop


class Fails(Classifier):
    """Its training step fails when it is measured late, and only then."""

    def training_step(self, batch, batch_idx):
        if not self.net.training and self.current_epoch >= 1:
            raise KeyError("x")
        return super().training_step(batch, batch_idx)


def test_a_step_that_fails_is_warned_of_once_and_training_is_unchanged():
    monitor = StiffnessMonitor(probe_size=15, every_n_steps=2)
    with pytest.warns(UserWarning, match=r"at step 8 \(KeyError: 'x'\)") as caught:
        run, weights = weights_after(Fails(), [monitor], max_epochs=3)
    assert len([warning for warning in caught if "could not be measured" in str(warning.message)]) == 1
    assert torch.equal(weights, weights_after(Classifier(), max_epochs=3)[1])
    assert run.current_epoch == 3
    assert [reading.step for reading in monitor.history] == [0, 2, 4, 6]


def test_a_failure_is_tried_once_a_step_and_readings_come_back():
    calls = []

    class Recovers(Classifier):
        def training_step(self, batch, batch_idx):
            if not self.net.training:
                calls.append(self.trainer.global_step)
                if self.trainer.global_step in (1, 2):
                    raise ValueError("not now")
            return super().training_step(batch, batch_idx)

    monitor = StiffnessMonitor(probe_size=15, every_n_steps=1)
    with pytest.warns(UserWarning, match="not now"):
        trainer(
            [monitor, StiffnessEarlyStopping(criterion=StiffnessDrop())], max_epochs=1, accumulate_grad_batches=2
        ).fit(Recovers(), loader())
    assert [reading.step for reading in monitor.history] == [0, 3]
    assert calls.count(1) == 1


def test_strict_raises_what_went_wrong():
    with pytest.raises(KeyError, match="x"):
        trainer([StiffnessMonitor(probe_size=15, strict=True)], max_epochs=3).fit(Fails(), loader())
    with pytest.raises(StiffnessError, match="finite"):
        trainer([StiffnessMonitor(probe_size=15, strict=True)], max_epochs=3).fit(Diverges(), loader())


@pytest.mark.parametrize("at_start", [True, False])
def test_an_unexpected_failure_at_the_start_is_warned_of(at_start):
    def loss(module, batch):
        raise RuntimeError("a bug")

    monitor = StiffnessMonitor(probe_size=15, loss=loss, at_start=at_start)
    with pytest.warns(UserWarning, match="a bug"):
        run, weights = weights_after(Classifier(), [monitor], max_epochs=2)
    assert run.current_epoch == 2
    assert len(monitor.history) == 0
    assert torch.equal(weights, weights_after(Classifier(), max_epochs=2)[1])


class InTrainModeOnly(Classifier):
    """Returns two outputs in train mode, as Inception does, and one in eval mode."""

    def forward(self, x):
        return (self.net(x), self.net(x)) if self.training else self.net(x)

    def training_step(self, batch, batch_idx):
        first, second, *_ = self(batch[0])
        return F.cross_entropy(first, batch[1]) + 0.4 * F.cross_entropy(second, batch[1])


@pytest.mark.parametrize("at_start", [True, False])
def test_a_step_for_train_mode_is_named_with_the_remedy_and_a_stopper_says_that_it_was_blind(at_start):
    monitor = StiffnessMonitor(probe_size=15, at_start=at_start)
    stopper = StiffnessEarlyStopping(source=monitor, criterion=StiffnessDrop())
    with pytest.warns(UserWarning, match="could not be measured") as caught:
        trainer([monitor, stopper]).fit(InTrainModeOnly(), loader())
    messages = [str(warning.message) for warning in caught]
    (failed,) = [message for message in messages if "could not be measured" in message and "eval mode" in message]
    assert "stiffness_step" in failed
    assert "loss=" in failed
    (blind,) = [message for message in messages if "never judged" in message]
    assert "no readings: Stiffness could not be measured at step 0" in blind
    assert stopper.decision.reason in blind
    assert not stopper.decision.stop


def test_what_is_known_to_be_wrong_has_no_guess_beside_it():
    with pytest.warns(UserWarning, match="finite") as caught:
        weights_after(Diverges(), [StiffnessMonitor(probe_size=15, every_n_steps=2)], max_epochs=4)
    assert not any("eval mode" in str(warning.message) for warning in caught)


def test_a_stopper_whose_monitor_never_measures_says_so():
    monitor = StiffnessMonitor(probe_size=15, at_start=False, every_n_epochs=0)
    stopper = StiffnessEarlyStopping(source=monitor, criterion=StiffnessDrop())
    with pytest.warns(UserWarning, match="never judged this run.*no measurement was due"):
        trainer([monitor, stopper], max_epochs=1).fit(Classifier(), loader())
