"""The estimate beside a real fit: what it adds up, that it resumes exactly, and that it leaves no trace."""

import math

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from lightning_stiffness import StiffnessError, StiffnessMonitor
from lightning_stiffness.callbacks.signals.leave_one_out import LeaveOneOutSignal
from tests.callbacks.modules import QUIET, Classifier, Memoriser, blobs, loader, mislabelled, trainer
from tests.callbacks.signals.tracking import Keep, tracked_batch
from tests.callbacks.test_monitor import assert_same
from tests.callbacks.test_monitor_neutrality import assert_neutral
from tests.unchecked import unchecked_types

pytestmark = [*QUIET, pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before")]


def monitor(**options):
    return StiffnessMonitor(probe_size=15, signals=["leave_one_out"], **options)


class Spy(StiffnessMonitor):
    """Keeps the state of the signal at the end."""

    state = None

    def on_train_end(self, trainer, pl_module):
        self.state = self.state_dict()["signals"]["leave_one_out"]


@pytest.mark.slow
def test_the_scores_of_the_samples_as_they_are_are_their_mean_loss():
    measured, keep = monitor(), Keep()
    trainer([measured, keep], max_epochs=3).fit(Classifier(), loader())
    batch, targets = tracked_batch(measured)
    losses = [torch.nn.functional.cross_entropy(net(batch[0]), targets).item() for net in keep.modules]
    found = measured.history.series("leave_one_out_train_loss").tolist()
    assert math.isnan(found[0])
    assert found[1:] == pytest.approx(losses[1:], rel=1e-5)


class Scheduled(Classifier):
    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=self.rate, momentum=0.5)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


@pytest.mark.slow
@pytest.mark.parametrize("accumulated", [1, 2])
def test_training_time_is_the_sum_of_the_learning_rates_of_the_steps(accumulated):
    spy = Spy(probe_size=15, signals=["leave_one_out"])
    run = trainer([spy], max_epochs=2, accumulate_grad_batches=accumulated)
    run.fit(Scheduled(), loader())
    rates = [0.05 / (1 + step) for step in range(run.global_step)]
    assert run.global_step == 12 // accumulated
    assert spy.state["time"] == pytest.approx(2 * sum(rates))  # over 1 - momentum
    torch.testing.assert_close(spy.state["residual"].sum(1), torch.zeros(60).double(), atol=1e-9, rtol=0)
    assert bool((spy.state["curvature"] <= spy.state["time"] * 2 / 3 + 1e-9).all())  # of three classes


@pytest.mark.slow
def test_memorised_samples_would_be_wrong_without_themselves():
    """Wrong labels are learnt by heart: as it is the net is right about them, leave-one-out says that it is not."""
    measured = StiffnessMonitor(signals=["leave_one_out"])
    data = mislabelled()
    trainer([measured], max_epochs=30).fit(Memoriser(), data)
    last = measured.history[-1].signals
    assert last["leave_one_out_train_loss"] < 0.3
    assert last["leave_one_out_loss"] > 1.0
    assert last["leave_one_out_error"] > 0.15
    assert 0 < last["leave_one_out_doubt"] < 1


@pytest.mark.parametrize("epoch", [1, *(pytest.param(k, marks=pytest.mark.slow) for k in (0, 2, 3))])
def test_it_resumes_exactly(epoch, tmp_path):
    def fit(measured, path=None):
        saving = ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1)
        run = trainer([measured, saving], enable_checkpointing=True, max_epochs=5)
        run.fit(Scheduled(), loader(shuffle=False), ckpt_path=path)

    whole, resumed = monitor(), monitor()
    fit(whole)
    fit(resumed, tmp_path / f"epoch={epoch}.ckpt")
    assert_same(resumed.history, whole.history)
    for name in LeaveOneOutSignal.names:
        assert resumed.history.series(name).tolist() == pytest.approx(whole.history.series(name).tolist(), nan_ok=True)


@pytest.mark.slow
def test_other_samples_than_in_the_checkpoint_are_told_and_training_goes_on(tmp_path):
    saving = ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1)
    first = StiffnessMonitor(probe=blobs(15), signals=["leave_one_out"])
    trainer([first, saving], enable_checkpointing=True, max_epochs=1).fit(Classifier(), loader())
    other = StiffnessMonitor(probe=blobs(15), signals=["leave_one_out"], tracked_size=20)
    run = trainer([other, ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1)], enable_checkpointing=True)
    with pytest.warns(UserWarning, match="samples of the leave-one-out estimate are others"):
        run.fit(Classifier(), loader(), ckpt_path=tmp_path / "epoch=0.ckpt")
    assert run.current_epoch == 2
    assert "leave_one_out_loss" not in other.history[-1].signals


@unchecked_types()  # the checker draws random numbers of Python's to look into dicts
@pytest.mark.slow
def test_training_is_unchanged(tmp_path):
    names = ["leave_one_out", "gradient_disparity", "evidence", "prediction_changes", "gradient_weight_alignment"]
    measured = StiffnessMonitor(probe_size=18, signals=names, tracked_size=30)
    assert_neutral([measured], tmp_path)
    assert math.isfinite(measured.history[-1].signals["leave_one_out_loss"])


class Stream(IterableDataset):
    def __iter__(self):
        return iter(zip(*blobs(), strict=True))


def test_a_stream_is_a_clear_error():
    with pytest.raises(StiffnessError, match="number of training samples, which a stream does not tell"):
        trainer([monitor(num_classes=3)]).fit(Classifier(), DataLoader(Stream(), 10))


@pytest.mark.slow
def test_adam_and_groups_of_rates_are_measured():
    class Mixed(Classifier):
        def configure_optimizers(self):
            groups = [{"params": self.net[0].parameters(), "lr": 1e-3}, {"params": self.net[2].parameters()}]
            return torch.optim.Adam(groups, lr=1e-2)

    measured = monitor()
    trainer([measured], max_epochs=3).fit(Mixed(), loader())
    values = measured.history.series("leave_one_out_loss")[1:]
    assert bool(values.isfinite().all())
    assert bool((values >= measured.history.series("leave_one_out_train_loss")[1:] - 1e-6).all())


def test_few_samples_are_taken_whole():
    measured = monitor(tracked_size=1000)
    data = DataLoader(TensorDataset(*blobs(12)), 4)
    trainer([measured], max_epochs=2).fit(Classifier(), data)
    assert math.isfinite(measured.history[-1].signals["leave_one_out_loss"])


class Shifted(Dataset):
    """Each time an image is read it is moved by random numbers of torch."""

    def __init__(self, strength, n=120):
        self.x, self.targets = mislabelled(n).dataset.tensors
        self.strength = strength

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        return self.x[index] + self.strength * torch.randn(self.x.shape[1:]), self.targets[index]


@pytest.mark.slow
@pytest.mark.parametrize(("strength", "count"), [(0.0, 40), (1.0, 20)])
def test_augmented_samples_are_followed_in_two_variants_each(strength, count):
    spy = Spy(signals=["leave_one_out"], tracked_size=40)
    trainer([spy], max_epochs=2).fit(Memoriser(), DataLoader(Shifted(strength), 32, shuffle=True))
    assert len(spy.state["logits"]) == count


@pytest.mark.slow
def test_under_augmentation_own_visits_count_for_less():
    """A network that sees other noise on each visit memorises less; twins see that, copies of one variant do not."""

    def run(data, **changed):
        measured = StiffnessMonitor(signals=["leave_one_out"], tracked_size=120)
        torch.manual_seed(0)
        trainer([measured], max_epochs=12, **changed).fit(Memoriser(), DataLoader(data, 32, shuffle=True))
        last = measured.history[-1].signals
        return last["leave_one_out_loss"] / last["leave_one_out_train_loss"]

    assert run(Shifted(1.5)) < 0.8 * run(Shifted(0.0))
