"""What a reading measures, against plain autograd."""

import pytest
import torch
import torch.nn.functional as F

from lightning_stiffness import StiffnessError
from lightning_stiffness.callbacks.balance_reading import BalanceReader, Circumstances, HeadLoss
from lightning_stiffness.callbacks.balancing_statistics import absorption
from lightning_stiffness.callbacks.neutrality import measuring
from lightning_stiffness.functional.stiffness import cosine_stiffness
from lightning_stiffness.targets import targets_of
from tests.callbacks.modules import QUIET, Classifier, Rich, trainer
from tests.callbacks.test_balance_observing import validation
from tests.callbacks.test_balancer import Manual, data
from tests.test_balanced_loader import imbalanced

pytestmark = QUIET
RATES = torch.tensor([0.5, 0.3, 0.2])


def reader_of(module=None):
    """A reader of a module that is attached to a Trainer, as in training."""
    module = module or Classifier()
    run = trainer(max_epochs=0)
    run.fit(module, data(), validation() if isinstance(module, Rich) else None)
    run.fit_loop.setup_data()
    reader = BalanceReader(run, module, module.net[-1], 3, targets_of, 0)
    reader.draw()
    return reader, module


def now(offsets=None):
    return Circumstances(10, 2.0, torch.tensor([30.0, 15, 5]), RATES, offsets, None)


def gradients(module, x, y, offsets, keep):
    rows = []
    for sample in range(len(y)):
        module.zero_grad()
        loss = F.cross_entropy(module(x[sample : sample + 1]) + offsets, y[sample : sample + 1])
        grads = torch.autograd.grad(loss, [p for name, p in module.named_parameters() if keep(name)])
        rows.append(torch.cat([grad.flatten() for grad in grads]).double())
    return torch.stack(rows)


@pytest.mark.parametrize("offsets", [None, RATES.log()])
def test_it_is_what_autograd_says(offsets):
    reader, module = reader_of()
    found = reader.read(now(offsets), None)
    x, y = (
        part[torch.cat([(imbalanced().tensors[1] == k).nonzero().flatten() for k in range(3)])]
        for part in imbalanced().tensors
    )
    head, rest = (lambda name: name.startswith("net.2")), (lambda name: not name.startswith("net.2"))
    own, below = gradients(module, x, y, 0.0, head), gradients(module, x, y, 0.0, rest)
    assert torch.allclose(found.classifier.double(), cosine_stiffness(own @ own.T, y, 3), atol=1e-4)
    assert torch.allclose(found.features.double(), cosine_stiffness(below @ below.T, y, 3), atol=1e-4)
    plain = torch.cat([own, below], 1)
    trained = plain if offsets is None else torch.cat([gradients(module, x, y, offsets, k) for k in (head, rest)], 1)
    products = (plain @ trained.T).fill_diagonal_(torch.nan)
    means = torch.stack([torch.stack([products[y == a][:, y == b].nanmean() for b in range(3)]) for a in range(3)])
    assert torch.allclose(found.progress.double(), means @ RATES.double(), rtol=1e-3, atol=1e-6)
    probabilities = module(x).detach().softmax(1)
    rows = torch.stack([probabilities[y == label].mean(0) for label in range(3)])
    assert torch.allclose(found.lost, 1 - rows.diagonal(), atol=1e-5)
    assert torch.allclose(found.absorption, absorption(rows), atol=1e-4)
    assert found.measured.tolist() == [30, 15, 5]


def test_the_reading_before_is_agreed_with():
    reader, _ = reader_of()
    first = reader.read(now(), None)
    assert reader.read(now(), first).agreement == 1.0


def test_a_module_with_everything_is_measured_in_eval_mode():
    reader, module = reader_of(Rich())
    module.net.train()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    first, second = (reader.read(now(RATES.log()), None) for _ in range(2))
    assert torch.equal(first.classifier, second.classifier)
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())
    assert module.net.training


def test_a_network_that_knows_nothing_has_no_groups():
    reader, module = reader_of()
    torch.nn.init.zeros_(module.net[-1].weight)
    found = reader.read(now(), None)
    assert found.groups == (0, 1, 2)
    assert found.reason.startswith("no groups: ")


def test_a_frozen_body_has_no_feature_level():
    module = Classifier()
    module.net[0].requires_grad_(False)
    found = reader_of(module)[0].read(now(RATES.log()), None)
    assert found.features is None
    assert found.progress.isfinite().all()


class Stiff(Classifier):
    """Its training step cannot be run on a batch, and so it says what to do instead."""

    def training_step(self, batch, batch_idx):
        raise RuntimeError("no")

    def stiffness_step(self, batch):
        return F.cross_entropy(self(batch[0]), batch[1], reduction="none"), batch[1]


def test_a_stiffness_step_is_used_where_there_is_one():
    x, y = imbalanced().tensors
    losses = {}
    for module in (Classifier(), Stiff()):
        with measuring(module):
            losses[type(module)] = HeadLoss(module.net[-1], targets_of)(module, ((x, y), torch.zeros(50, 3)))
    assert torch.equal(losses[Classifier], losses[Stiff])


def test_what_is_added_to_the_logits_counts():
    module, (x, y) = Classifier(), imbalanced().tensors
    offsets = torch.randn(50, 3)
    with measuring(module):
        found = HeadLoss(module.net[-1], targets_of)(module, ((x, y), offsets))
    assert torch.allclose(found, F.cross_entropy(module(x) + offsets, y, reduction="none"))
    assert not module.net[-1]._forward_hooks


def test_manual_optimisation_is_refused_before_it_runs():
    module, (x, y) = Manual(), imbalanced().tensors
    with pytest.raises(StiffnessError, match="updates the weights itself"):
        HeadLoss(module.net[-1], targets_of)(module, ((x, y), torch.zeros(50, 3)))


def test_a_head_of_several_layers_is_measured_by_its_gradients():
    module = Classifier()
    module.net[-1] = torch.nn.Sequential(torch.nn.LayerNorm(12), module.net[-1])
    reader, module = reader_of(module)
    found = reader.read(now(RATES.log()), None)
    x, y = (
        part[torch.cat([(imbalanced().tensors[1] == k).nonzero().flatten() for k in range(3)])]
        for part in imbalanced().tensors
    )
    own = gradients(module, x, y, 0.0, lambda name: name.startswith("net.2"))
    assert torch.allclose(found.classifier.double(), cosine_stiffness(own @ own.T, y, 3), atol=1e-4)
