"""The kernel of the tracked samples: which direction is measured when, and that a run resumes between two of them."""

import math

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader, TensorDataset

from lightning_stiffness import StiffnessMonitor
from lightning_stiffness.callbacks.signals import tracked_kernel
from lightning_stiffness.callbacks.signals.tracked_kernel import DIRECTIONS, TrackedKernel
from lightning_stiffness.gram import GramEngine
from lightning_stiffness.gram.logit_gram import directions
from tests.callbacks.modules import QUIET, Classifier, blobs, trainer
from tests.callbacks.signals.tracking import Keep, tracked_batch

pytestmark = [*QUIET, pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before")]
CLASSES = 5  # more than directions, so that these are random
EPOCHS = 6


class Spy(StiffnessMonitor):
    """Keeps the state of the signal after each epoch."""

    def __init__(self, **options):
        super().__init__(probe_size=15, signals=["leave_one_out"], **options)
        self.states = []

    def on_train_epoch_end(self, trainer, pl_module):
        super().on_train_epoch_end(trainer, pl_module)
        self.states.append(self.state_dict()["signals"]["leave_one_out"])

    @property
    def kernels(self):
        return [state["kernel"]["kernels"] for state in self.states]


def data(classes=CLASSES):
    return DataLoader(TensorDataset(*blobs(60, classes)), 10)


def fit(callbacks, path=None, classes=CLASSES, **options):
    run = trainer(callbacks, **{"max_epochs": EPOCHS, **options})
    run.fit(Classifier(classes), data(classes), ckpt_path=path)


def saving(folder):
    return ModelCheckpoint(folder, "{epoch}", save_top_k=-1)


def along(net, batch, number):
    """The Gram matrix of the gradients of the logits' sum along one direction."""
    weights = directions(CLASSES, DIRECTIONS, 0)[number]
    return GramEngine(net, lambda module, batch: module(batch[0]) @ weights).gram(batch).matrix.float()


@pytest.mark.slow
def test_each_reading_renews_the_direction_that_was_measured_longest_ago():
    spy, keep = Spy(), Keep()
    fit([spy, keep])
    batch, _ = tracked_batch(spy, data())
    measured_after = [[1], [1, 2], [1, 2, 3], [4, 2, 3], [4, 5, 3], [4, 5, 6]]
    for found, epochs in zip(spy.kernels, measured_after, strict=True):
        for number, (kernel, epoch) in enumerate(zip(found, epochs, strict=True)):
            expected = along(keep.modules[epoch].eval(), batch, number)
            torch.testing.assert_close(kernel, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("classes", "expected"), [(CLASSES, [0, 1, 2, 0, 1]), (DIRECTIONS, [0, 1, 2, 0, 1, 2, 0]), (2, [0, 1, 0, 1, 0, 1])]
)
def test_a_reading_makes_one_pass_and_the_first_one_for_each_axis(classes, expected, monkeypatch):
    made, gram_along = [], tracked_kernel.gram_along
    monkeypatch.setattr(tracked_kernel, "gram_along", lambda *args: made.append(args[-1]) or gram_along(*args))
    fit([Spy()], classes=classes, max_epochs=5)
    assert made == expected


@pytest.mark.parametrize("epoch", [1, *(pytest.param(k, marks=pytest.mark.slow) for k in (0, 2, 3))])
def test_a_run_resumes_bit_for_bit_between_the_directions(epoch, tmp_path):
    whole, resumed = Spy(), Spy()
    fit([whole, saving(tmp_path)], enable_checkpointing=True)
    fit([resumed, saving(tmp_path)], tmp_path / f"epoch={epoch}.ckpt", enable_checkpointing=True)
    for state, expected in zip(resumed.states, whole.states[-len(resumed.states) :], strict=True):
        assert state["kernel"]["next"] == expected["kernel"]["next"]
        assert all(map(torch.equal, state["kernel"]["kernels"], expected["kernel"]["kernels"]))
        assert torch.equal(state["residual"], expected["residual"])


@pytest.mark.slow
def test_a_checkpoint_without_kernels_begins_with_new_ones(tmp_path):
    fit([Spy(), saving(tmp_path)], enable_checkpointing=True, max_epochs=2)
    path = tmp_path / "epoch=0.ckpt"
    checkpoint = torch.load(path, weights_only=False)
    (state,) = (state for key, state in checkpoint["callbacks"].items() if "Spy" in key)
    del state["signals"]["leave_one_out"]["kernel"]
    torch.save(checkpoint, path)
    resumed = Spy()
    fit([resumed, saving(tmp_path)], path, enable_checkpointing=True)
    assert len(resumed.kernels[-1]) == DIRECTIONS
    assert math.isfinite(resumed.history[-1].signals["leave_one_out_loss"])


def test_few_classes_are_measured_along_their_own_axes():
    spy, keep = Spy(), Keep()
    fit([spy, keep], classes=2, max_epochs=1)
    batch, _ = tracked_batch(spy, data(2))
    net = keep.modules[1].eval()
    for number, found in enumerate(spy.kernels[0]):
        gram = GramEngine(net, lambda module, batch, number=number: module(batch[0])[:, number]).gram(batch)
        torch.testing.assert_close(found, gram.matrix.float(), rtol=1e-4, atol=1e-5)
    assert len(spy.kernels[0]) == 2


@pytest.mark.slow
@pytest.mark.parametrize("budget", [None, 5_000])
def test_the_pass_of_the_kernel_is_a_look_at_the_predictions(budget, monkeypatch):
    """Where memory does not suffice for all samples at once they are looked at by themselves, with the same result."""
    met, renew = [], TrackedKernel.renew
    monkeypatch.setattr(TrackedKernel, "renew", lambda *args: met.append(renew(*args)) or met[-1])
    spy, keep = Spy(budget=budget), Keep()
    fit([spy, keep], max_epochs=2)
    assert [logits is None for logits in met] == [budget is not None] * 2
    batch, _ = tracked_batch(spy, data())
    for state, net in zip(spy.states, keep.modules[1:], strict=True):
        torch.testing.assert_close(state["logits"], net(batch[0]).detach().double(), rtol=1e-5, atol=1e-6)
