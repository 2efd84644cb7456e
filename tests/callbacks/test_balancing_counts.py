"""A fit with a balancer on data whose samples, classes or labels are not simply those of a shuffled dataset."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, LightningDataModule
from lightning.pytorch.callbacks import BatchSizeFinder
from torch.utils.data import (
    DataLoader,
    Dataset,
    RandomSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from lightning_stiffness.balanced_loader import ClassRateLoader, make_balanced_loader
from lightning_stiffness.callbacks.balancer import ClassGroupingBalancer
from lightning_stiffness.errors import StiffnessError
from lightning_stiffness.functional.class_rates import inverse_frequency_rates, power_rates
from tests.callbacks.modules import QUIET, Classifier, Validated, blobs, trainer
from tests.test_balanced_loader import TRAINED, Own, imbalanced

pytestmark = QUIET
X, Y = imbalanced().tensors
NOTHING = torch.zeros(1, 3)


def numbered():
    return TensorDataset(X, Y, torch.arange(50).float())


class First(Classifier):
    """Looks at the first two parts of a batch only."""

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self(batch[0]), batch[1])


class Seen(Callback):
    """Which samples are trained on, and their classes."""

    def __init__(self):
        self.labels, self.positions = [], []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.labels += batch[1].tolist()
        self.positions += batch[2].long().tolist() if len(batch) > 2 else []


def fit(loader, module=None, epochs=1, options=None, **settings):
    balancer, seen = ClassGroupingBalancer(**{"max_readings": 0, **settings}), Seen()
    run = trainer([balancer, seen], max_epochs=epochs, **(options or {}))
    run.fit(
        module or First(),
        **({"datamodule": loader} if isinstance(loader, LightningDataModule) else {"train_dataloaders": loader}),
    )
    return balancer, seen, run


def priors(balancer):
    return balancer.natural_probabilities(NOTHING)[0].tolist()


def test_held_out_samples_are_neither_drawn_nor_counted(caplog):
    part = DataLoader(numbered(), batch_size=8, sampler=SubsetRandomSampler(TRAINED))
    for loader, rates in ((part, (20, 10, 3)), (make_balanced_loader(part), (1, 1, 1))):
        balancer, seen, _ = fit(loader, epochs=2)
        assert set(seen.positions) <= set(TRAINED)
        assert balancer.counts.tolist() == [20, 10, 3]
        assert balancer.frequencies.tolist() == pytest.approx([rate / sum(rates) for rate in rates])
        assert priors(balancer) == pytest.approx([20 / 33, 10 / 33, 3 / 33])
    assert caplog.text.count("its own sampler is respected") == 1


@pytest.mark.parametrize(
    ("sampler", "steps"), [(RandomSampler(range(50), num_samples=20), 2), (RandomSampler(range(46)), 5)]
)
def test_a_random_sampler_of_a_part_is_respected(sampler, steps, caplog):
    _, seen, run = fit(DataLoader(numbered(), batch_size=10, sampler=sampler))
    assert run.global_step == steps
    assert max(seen.positions) < len(sampler.data_source)
    assert "its own sampler is respected" in caplog.text


def test_what_an_unknown_sampler_draws_is_learnt():
    own = Own([*range(30), *range(45, 50)] * 2)
    balancer, _, _ = fit(DataLoader(numbered(), batch_size=10, sampler=own))
    drawn = torch.tensor([61.0, 1, 11])
    assert balancer.counts is None
    assert balancer.frequencies.tolist() == pytest.approx((drawn / drawn.sum()).tolist())
    with pytest.warns(UserWarning, match="Samples of each class must be known for natural frequencies.*Pass counts="):
        assert priors(balancer) == pytest.approx(balancer.frequencies.tolist())
    loaded = ClassGroupingBalancer()
    loaded.load_state_dict(balancer.state_dict())
    with pytest.warns(UserWarning, match="Samples of each class must be known"):
        loaded.natural_probabilities(NOTHING)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded.natural_probabilities(NOTHING)  # it was said


def test_classes_that_were_counted_are_the_natural_ones():
    """With labels that only `targets` can read: those given to the loader, and those given as counts."""
    data = TensorDataset(X, F.one_hot(Y, 3).float())

    how = {"targets": lambda batch: batch[1].argmax(1), "num_classes": 3}
    weights = WeightedRandomSampler((1 / torch.bincount(Y))[Y].double(), 50)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        found = [
            fit(make_balanced_loader(DataLoader(data, 10), labels=Y), **how)[0],
            fit(DataLoader(data, 10, sampler=weights), counts=[30, 15, 5], **how)[0],
            fit(DataLoader(data, 10, shuffle=True), counts=[30, 15, 5], **how)[0],
        ]
        for balancer in found:
            assert balancer.counts.tolist() == [30, 15, 5]
            assert priors(balancer) == pytest.approx([0.6, 0.3, 0.1])


class Finds(Validated):
    def __init__(self):
        super().__init__()
        self.batch_size, self.seen = 10, []

    def train_dataloader(self):
        return DataLoader(imbalanced(), self.batch_size, shuffle=True)

    def val_dataloader(self):
        return DataLoader(imbalanced(), 50, shuffle=True)

    def validation_step(self, batch, batch_idx):
        self.seen.append(torch.bincount(batch[1]).tolist())
        return super().validation_step(batch, batch_idx)


@pytest.mark.filterwarnings("ignore:.*has shuffling enabled", "ignore:.*weights_only", "ignore:.*Batch size finder")
@pytest.mark.slow
def test_evaluation_is_untouched_where_the_batch_size_is_sought(tmp_path, caplog):
    balancer, module = ClassGroupingBalancer(max_readings=0, rates=inverse_frequency_rates), Finds()
    finder = BatchSizeFinder(max_trials=1, steps_per_trial=1, init_val=10)
    run = trainer([balancer, finder], max_epochs=1, default_root_dir=tmp_path, enable_checkpointing=True)
    run.fit(module)
    assert isinstance(run.train_dataloader, ClassRateLoader)
    assert not isinstance(run.val_dataloaders, ClassRateLoader)
    assert module.seen
    assert all(counts == [30, 15, 5] for counts in module.seen)
    assert "stays as it is" not in caplog.text


class Growing(LightningDataModule):
    """More labelled samples in each epoch."""

    def train_dataloader(self):
        x, y = blobs(90)
        sizes = ((30, 9, 3), (30, 30, 3))[min(self.trainer.current_epoch, 1)]
        keep = torch.cat([(y == label).nonzero().flatten()[:n] for label, n in enumerate(sizes)])
        return DataLoader(Subset(TensorDataset(x, y), keep.tolist()), 10, shuffle=True)


@pytest.mark.parametrize("sampling", [True, False])
def test_data_that_are_loaded_again_are_counted_again(sampling):
    balancer, _, _ = fit(Growing(), epochs=2, sampling=sampling, options={"reload_dataloaders_every_n_epochs": 1})
    counts = torch.tensor([30, 30, 3])
    assert balancer.counts.tolist() == counts.tolist()
    expected = power_rates(counts) if sampling else counts / counts.sum()
    assert balancer.frequencies.tolist() == pytest.approx(expected.tolist())
    assert priors(balancer) == pytest.approx((counts / counts.sum()).tolist())


class Transformed(Dataset):
    """As those of torchvision: `targets` are what is stored, batches have what a transform makes of it."""

    def __init__(self):
        x, y = blobs(900)
        keep = torch.cat([(y == label).nonzero().flatten()[:n] for label, n in enumerate((300, 60, 20))])
        self.x, self.targets = x[keep], y[keep].tolist()

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, index):
        return self.x[index], 2 - self.targets[index]


@pytest.mark.parametrize("parts", [{}, {"smoothing": 0.0}, {"smoothing": 0.0, "logits": False}])
def test_labels_of_another_order_are_warned_of_once(parts):
    with pytest.warns(UserWarning, match=r"class \d made up .* of the first epoch instead of .*Pass targets=") as found:
        fit(DataLoader(Transformed(), 20, shuffle=True), epochs=2, **parts)
    assert sum("made up" in str(one.message) for one in found) == 1
    plain = make_balanced_loader(DataLoader(Transformed(), 20), labels=2 - torch.tensor(Transformed().targets))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        balancer, _, _ = fit(plain, targets=lambda batch: batch[1], num_classes=3, **parts)
    assert balancer.counts.tolist() == [20, 60, 300]


@pytest.mark.parametrize("settings", [{"num_classes": 4}, {"counts": [30, 15, 5, 1]}])
@pytest.mark.parametrize("sampling", [True, False])
def test_a_class_without_a_sample(settings, sampling):
    """As in a fold of a long tail: it is never drawn, and counts as one sample."""
    loader = DataLoader(imbalanced(), 10, shuffle=True)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*fewer than two samples")
        balancer, seen, _ = fit(
            loader, Classifier(4), sampling=sampling, shift=True, warmup=0, max_readings=1, **settings
        )
    assert set(seen.labels) == {0, 1, 2}
    assert balancer.counts.tolist() == [30, 15, 5, 1]
    assert balancer.offsets.isfinite().all()
    assert balancer.offsets.argmin() == 3
    assert balancer.natural_probabilities(torch.zeros(1, 4))[0].tolist() == pytest.approx(
        [30 / 51, 15 / 51, 5 / 51, 1 / 51]
    )
    assert balancer.readings


def test_mixed_labels_leave_sampling_on():
    def mixed(samples):
        return torch.stack([x for x, _ in samples]), F.one_hot(torch.stack([y for _, y in samples]), 3).float()

    loader = DataLoader(imbalanced(), 10, shuffle=True, collate_fn=mixed)
    with pytest.raises(StiffnessError, match="pass smoothing=0 and shift=False instead"):
        fit(loader)
    balancer = ClassGroupingBalancer(smoothing=0.0, max_readings=0)
    run = trainer([balancer], max_epochs=1)
    run.fit(Classifier(), loader)
    assert isinstance(run.train_dataloader, ClassRateLoader)


def test_before_training_nothing_is_known():
    with pytest.raises(
        StiffnessError, match=r"Call fit first, or load a state from a checkpoint, as after .*ddp_spawn"
    ):
        ClassGroupingBalancer().natural_probabilities(NOTHING)
