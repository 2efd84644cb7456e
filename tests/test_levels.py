"""Both levels against plain gradients, computed one sample at a time."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from lightning_stiffness.errors import StiffnessError
from lightning_stiffness.functional.stiffness import class_matrix, cosine_pairs
from lightning_stiffness.gram import GramEngine
from lightning_stiffness.levels import chance_gram, classifier_gram, is_linear, measure_levels


def losses(module, batch):
    return F.cross_entropy(module(batch[0]), batch[1], reduction="none")


def made(bias=True):
    torch.manual_seed(2)
    module = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 4, bias=bias)).double()
    x = torch.randn(12, 5, dtype=torch.float64)
    return module, (x, torch.arange(12) % 4)


def gradients(module, batch, parameters):
    rows = []
    for k in range(len(batch[0])):
        loss = losses(module, (batch[0][k : k + 1], batch[1][k : k + 1])).sum()
        rows.append(torch.cat([part.flatten() for part in torch.autograd.grad(loss, parameters)]))
    return torch.stack(rows)


@pytest.mark.parametrize("bias", [True, False])
def test_levels_are_those_of_the_gradients(bias):
    module, batch = made(bias)
    levels = measure_levels(GramEngine(module, losses), losses, batch, batch[1], module[2])
    for found, parameters in (
        (levels.classifier, list(module[2].parameters())),
        (levels.features, list(module[0].parameters())),
    ):
        rows = gradients(module, batch, parameters)
        expected = cosine_pairs(rows @ rows.T)
        assert torch.allclose(found, expected, atol=1e-9, equal_nan=True)
    assert torch.equal(levels.classifier_matrix, class_matrix(levels.classifier, batch[1], batch[1], 4))
    assert levels.feature_matrix.shape == (4, 4)


class Scaled(nn.Module):
    """A cosine classifier: no linear layer."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 7, dtype=torch.float64))

    def forward(self, x):
        return 5 * F.normalize(x, dim=1) @ F.normalize(self.weight, dim=1).T


class Lora(nn.Linear):
    def __init__(self):
        super().__init__(7, 4, dtype=torch.float64)
        self.down, self.up = nn.Linear(7, 2, dtype=torch.float64), nn.Linear(2, 4, dtype=torch.float64)
        self.weight.requires_grad_(False)

    def forward(self, x):
        return super().forward(x) + 2 * self.up(self.down(x))


HEADS = {
    "perceptron": lambda: nn.Sequential(nn.Linear(7, 6), nn.Tanh(), nn.Linear(6, 4)).double(),
    "normed": lambda: nn.Sequential(nn.LayerNorm(7), nn.Linear(7, 4)).double(),
    "cosine": Scaled,
    "lora": Lora,
    "weight_norm": lambda: nn.utils.parametrizations.weight_norm(nn.Linear(7, 4).double()),
}


@pytest.mark.parametrize("head", HEADS.values(), ids=HEADS)
def test_heads_of_other_kinds_are_measured_by_their_gradients(head):
    module, batch = made()
    module[2] = head()
    assert not is_linear(module[2])
    levels = measure_levels(GramEngine(module, losses), losses, batch, batch[1], module[2])
    own = [parameter for parameter in module[2].parameters() if parameter.requires_grad]
    rows = gradients(module, batch, own)
    assert torch.allclose(levels.classifier, cosine_pairs(rows @ rows.T), atol=1e-9, equal_nan=True)
    even = []
    for x, y in zip(*batch, strict=True):
        logits = module(x[None])[0]
        lost = 1 - logits.detach().softmax(0)[y]
        error = torch.where(torch.arange(4) == y, -lost, lost / 3)
        even.append(torch.cat([part.flatten() for part in torch.autograd.grad(logits @ error, own)]))
    even = torch.stack(even)
    assert torch.allclose(levels.chance, cosine_pairs(even @ even.T), atol=1e-9, equal_nan=True)
    assert levels.feature_matrix.shape == (4, 4)


def test_a_head_without_parameters_has_no_level():
    module, batch = made()
    module.append(nn.Flatten())
    with pytest.raises(
        StiffnessError, match="must be a Linear layer or have trainable parameters, found none in Flatten"
    ):
        measure_levels(GramEngine(module, losses), losses, batch, batch[1], module[3])


def test_a_frozen_linear_layer_is_measured_all_the_same():
    module, batch = made()
    expected = measure_levels(GramEngine(module, losses), losses, batch, batch[1], module[2])
    module[2].requires_grad_(False)
    found = measure_levels(GramEngine(module, losses), losses, batch, batch[1], module[2])
    assert torch.allclose(found.classifier, expected.classifier, equal_nan=True)


def test_the_closed_form_is_the_gram_of_the_gradients():
    module, batch = made()
    features = module[:2](batch[0]).detach()
    rows = gradients(module, batch, list(module[2].parameters()))
    found = classifier_gram(module(batch[0]).detach().softmax(1), batch[1], features)
    assert torch.allclose(found, rows @ rows.T, atol=1e-12)


@given(st.integers(2, 5), st.booleans(), st.integers(0, 1000))
def test_chance_is_an_even_split_of_what_is_lost(classes, bias, seed):
    """Against the Gram of probabilities that are split evenly, sample by sample."""
    generator = torch.Generator().manual_seed(seed)
    probabilities = torch.randn(7, classes, generator=generator, dtype=torch.float64).mul(3).softmax(1)
    targets = torch.randint(0, classes, (7,), generator=generator)
    features = torch.randn(7, 3, generator=generator, dtype=torch.float64)
    even = torch.stack(
        [(1 - p[y]).expand(classes) / (classes - 1) for p, y in zip(probabilities, targets, strict=True)]
    )
    even[torch.arange(7), targets] = probabilities[torch.arange(7), targets]
    found = chance_gram(probabilities, targets, features, bias)
    assert torch.allclose(found, classifier_gram(even, targets, features, bias), rtol=1e-12, atol=1e-14)


def test_two_classes_are_always_at_chance():
    torch.manual_seed(0)
    module = nn.Linear(3, 2)
    batch = torch.randn(8, 3), torch.arange(8) % 2
    levels = measure_levels(GramEngine(module, losses), losses, batch, batch[1], module)
    assert torch.allclose(levels.classifier, levels.chance, equal_nan=True, atol=1e-6)
    assert levels.features is None
    assert levels.feature_matrix is None


def test_separation_is_nothing_before_and_much_after_training():
    torch.manual_seed(0)
    module = nn.Linear(4, 4)
    batch = 3 * torch.eye(4).repeat(5, 1), torch.arange(20) % 4
    engine = GramEngine(module, losses)
    before = measure_levels(engine, losses, batch, batch[1], module).separation
    with torch.no_grad():
        module.weight.copy_(2 * torch.eye(4))
    after = measure_levels(engine, losses, batch, batch[1], module).separation
    assert abs(before) < 0.35
    assert after > 0.95


def test_a_layer_that_is_not_called_once():
    module, batch = made()
    for layer in (nn.Linear(7, 4), nn.Flatten(0)):
        with pytest.raises(StiffnessError, match="must be called once, with a row for each of 12 samples"):
            measure_levels(GramEngine(module, losses), losses, batch, batch[1], layer)
    assert not module[2]._forward_hooks


def test_targets_that_are_no_classes():
    with pytest.raises(StiffnessError, match="must lie in"):
        classifier_gram(torch.ones(2, 2) / 2, torch.tensor([0, 2]), torch.ones(2, 1))


def test_one_class_has_no_chance():
    with pytest.raises(StiffnessError, match="At least 2 classes are needed, found 1"):
        chance_gram(torch.ones(3, 1), torch.zeros(3, dtype=torch.long), torch.ones(3, 2))
