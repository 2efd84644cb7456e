"""The errors of the readings, as a balancer tells them."""

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from lightning_stiffness.callbacks.balance_advice import for_a_balancer
from lightning_stiffness.callbacks.step_run import require_usable
from lightning_stiffness.errors import StiffnessError
from lightning_stiffness.probe import Probe
from tests.callbacks.test_step_run import Manual


class Locked(IterableDataset):
    """A stream that cannot be copied."""

    def __init__(self):
        self.items = (item for item in range(3))

    def __iter__(self):
        return self.items


class Unreadable(TensorDataset):
    def __getitem__(self, index):
        raise OSError("no file")


PLAIN = DataLoader(TensorDataset(torch.zeros(4, 2), torch.tensor([0, 0, 1, -1])))


@pytest.mark.parametrize(
    ("work", "kept"),
    [
        (
            lambda: require_usable(Manual()),
            "Define `stiffness_step(self, batch) -> (losses [n], targets [n])` on the module.",
        ),
        (lambda: Probe.draw([PLAIN, PLAIN]), "found 2 in list."),
        (lambda: Probe.draw(DataLoader(Locked())), "cannot pickle 'generator' object."),
        (lambda: Probe.draw(DataLoader(Unreadable(torch.zeros(4, 2)))), "no file. Mend it."),
        (lambda: Probe.draw(PLAIN, 4), "Leave out unlabelled samples, number the classes from 0 (pass targets=)"),
        (lambda: Probe.draw(DataLoader(TensorDataset(torch.zeros(0, 2), torch.zeros(0)))), "found 0."),
    ],
)
def test_no_argument_of_a_monitor_is_named(work, kept):
    with pytest.raises(StiffnessError) as refusal:
        work()
    assert "probe=" in str(refusal.value) or "loss=" in str(refusal.value)
    told = for_a_balancer(str(refusal.value))
    assert "probe=" not in told
    assert "loss=" not in told
    assert kept in told


def test_other_advice_stays():
    message = "Found none. Pass targets=, or a larger num_classes=."
    assert for_a_balancer(message) == message
