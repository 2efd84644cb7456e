"""The Gram matrix of the logits' gradients against a float64 loop over samples and logits."""

import pytest
import torch
from torch import nn

from lightning_stiffness.errors import MixedSamplesError, StiffnessError
from lightning_stiffness.gram import GramEngine
from lightning_stiffness.gram.logit_gram import directions
from tests import zoo
from tests.oracle import cross_entropy, in_double


def logits_of(module, batch):
    return module(batch[0])


def loop(module, batch, rates=None):
    """K_ij = mean over c of the rate-weighted products of the gradients of z_ic and z_jc."""
    parameters = dict(module.named_parameters())
    rows = []
    for sample in range(len(batch[1])):
        logits = module(batch[0])[sample]
        for value in logits:
            parts = torch.autograd.grad(value, list(parameters.values()), retain_graph=True, allow_unused=True)
            weights = [1.0 if rates is None else rates.get(name, 0.0) for name in parameters]
            rows.append(
                torch.cat(
                    [
                        weight**0.5 * (torch.zeros_like(p) if part is None else part).flatten()
                        for weight, part, p in zip(weights, parts, parameters.values(), strict=True)
                    ]
                )
            )
    each = torch.stack(rows).view(len(batch[1]), -1, rows[0].numel())
    return torch.einsum("icp,jcp->ij", each, each) / each.shape[1]


@pytest.mark.parametrize("name", ["mlp", "cnn", "resnet_with_group_norm", "transformer_encoder", "tied_embedding"])
def test_with_as_many_directions_as_logits_it_is_that_of_a_loop(name):
    specimen = zoo.build(name)
    module, batch = specimen.model.double().eval(), in_double(specimen.batch)
    expected = loop(module, batch)
    found = GramEngine(module, cross_entropy).logit_gram(batch, logits_of, directions=100)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10 * float(expected.abs().max()))


def perceptron():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 6)), (torch.randn(8, 5), torch.arange(8) % 6)


def test_rates_weigh_parameters():
    module, batch = perceptron()
    rates = {"0.weight": 0.5, "0.bias": 2.0, "2.weight": 1.0}  # the last bias does not move
    found = GramEngine(module, cross_entropy).logit_gram(batch, logits_of, directions=6, rates=rates)
    module.double()
    torch.testing.assert_close(found, loop(module, in_double(batch), rates), rtol=1e-5, atol=1e-6)


def test_rates_are_rounded_to_a_quarter_of_an_octave():
    module, batch = perceptron()
    rates = dict.fromkeys(dict(module.named_parameters()), 1.7)
    found = GramEngine(module, cross_entropy).logit_gram(batch, logits_of, directions=6, rates=rates)
    module.double()
    assert 2 ** (-1 / 8) <= float((found / (1.7 * loop(module, in_double(batch)))).mean()) <= 2 ** (1 / 8)


@pytest.mark.slow
def test_few_directions_are_right_on_average():
    module, batch = perceptron()
    engine = GramEngine(module, cross_entropy, check_every=0)
    found = torch.stack([engine.logit_gram(batch, logits_of, directions=2, seed=seed) for seed in range(60)])
    module.double()
    expected = loop(module, in_double(batch))
    error = found.std(0) / 60**0.5
    assert bool(((found.mean(0) - expected).abs() < 5 * error + 1e-6).all())
    assert float(error.mean()) > 1e-4


def test_directions_give_the_unit_matrix_on_average():
    assert torch.equal(directions(4, 4, 0), torch.eye(4))
    few = torch.stack([directions(5, 3, seed) for seed in range(2000)]).flatten(0, 1)
    torch.testing.assert_close(few.T @ few / len(few), torch.eye(5) / 5, rtol=0, atol=0.02)


def test_the_module_is_left_as_it_was():
    module, batch = perceptron()
    before = [p.clone() for p in module.parameters()], torch.get_rng_state()
    GramEngine(module, cross_entropy).logit_gram(batch, logits_of)
    assert all(torch.equal(*pair) for pair in zip(before[0], module.parameters(), strict=True))
    assert torch.equal(before[1], torch.get_rng_state())
    assert all(p.grad is None for p in module.parameters())


@pytest.mark.parametrize("wrong", [lambda m, b: m(b[0]).sum(1), lambda m, b: m(b[0]).argmax(1), lambda m, b: 0])
def test_logits_must_be_a_matrix(wrong):
    module, batch = perceptron()
    with pytest.raises(StiffnessError, match=r"shape \[n, c\]"):
        GramEngine(module, cross_entropy).logit_gram(batch, wrong)


def test_mixed_samples_are_an_error():
    module, batch = perceptron()
    with pytest.raises(MixedSamplesError):
        GramEngine(module, cross_entropy).logit_gram(batch, lambda m, b: m(b[0]) * m(b[0]).mean(0))
