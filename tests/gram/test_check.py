"""Faults are put into the engine or the loss one at a time; each must be seen."""

import warnings

import pytest
import torch
from torch import nn

from lightning_stiffness.errors import MixedSamplesError, StiffnessError
from lightning_stiffness.gram import GramEngine
from lightning_stiffness.gram import plans as plans_module
from lightning_stiffness.gram.plan import make_plan
from tests.oracle import cross_entropy, loop_gram
from tests.zoo import CLASSES, build, head, vectors


class BatchCentred(nn.Module):
    def forward(self, x):
        return x - 0.5 * x.mean(0)


def test_no_fault_no_warning():
    specimen = build("transformer_encoder")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        GramEngine(specimen.model, cross_entropy).gram(specimen.batch)


def faulty_plan(fault):
    def plan(*arguments):
        made = make_plan(*arguments)
        fault(made)
        return made

    return plan


def forget_a_parameter(plan):
    """A weight whose use is overlooked: neither a rule nor the fallback takes it."""
    plan.fallback[0] = "overlooked"


def misread_the_batch_axis(plan):
    plan.prefixes = tuple(1 for _ in plan.prefixes)


def lose_cross_terms(plan):
    plan.joint.clear()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("transformer_encoder_time_first", misread_the_batch_axis),
        ("gru", lose_cross_terms),
        ("tied_linear_weights", lose_cross_terms),
        ("tied_embedding", lose_cross_terms),
        ("overlapping_slices", lose_cross_terms),
        ("layers_called_twice", lose_cross_terms),
    ],
)
def test_a_fault_of_the_engine_is_seen_and_mended(name, fault, monkeypatch):
    monkeypatch.setattr(plans_module, "make_plan", faulty_plan(fault))
    specimen = build(name)
    expected, _ = loop_gram(specimen.model, cross_entropy, specimen.batch)
    engine = GramEngine(specimen.model, cross_entropy)
    with pytest.warns(UserWarning, match="disagreed with plain autograd for"):
        gram = engine.gram(specimen.batch)
    assert (gram.matrix - expected).norm() <= 1e-5 * expected.norm()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # once is enough
        again = engine.gram(specimen.batch)
    assert torch.allclose(again.matrix, gram.matrix)


def test_a_wrong_rule_is_seen_by_the_name_of_its_parameters(monkeypatch):
    from lightning_stiffness.gram import rules
    from lightning_stiffness.gram.factors import Explicit

    right = rules.RULES["NativeLayerNormBackward0"]

    def wrong(*arguments):
        return {slots: Explicit(found.dense() * 0.9) for slots, found in right(*arguments).items()}

    monkeypatch.setitem(rules.RULES, "NativeLayerNormBackward0", wrong)
    specimen = build("layer_norm")
    engine = GramEngine(specimen.model, cross_entropy)
    with pytest.warns(UserWarning, match=r"for 1\.weight, 1\.bias; these"):
        gram = engine.gram(specimen.batch)
    expected, _ = loop_gram(specimen.model, cross_entropy, specimen.batch)
    assert (gram.matrix - expected).norm() <= 1e-5 * expected.norm()
    assert gram.routes["1.weight"].startswith("fallback: failed the self-check")
    assert not gram.routes["0.weight"].startswith("fallback")


@pytest.mark.parametrize("where", ["before", "after"])
def test_samples_mixed_by_an_operation_without_parameters(where):
    inner = [BatchCentred(), nn.Linear(8, 8)] if where == "before" else [nn.Linear(8, 8), BatchCentred()]
    model = nn.Sequential(*inner, nn.Tanh(), head())
    with pytest.raises(MixedSamplesError, match="depend on that sample alone"):
        GramEngine(model, cross_entropy).gram((vectors(), torch.arange(12) % CLASSES))


def test_batch_norm_in_training_mode():
    specimen = build("resnet_with_batch_norm")
    with pytest.raises(MixedSamplesError, match=r"BatchNorm in training mode.*module\.eval\(\)"):
        GramEngine(specimen.model.train(), cross_entropy).gram(specimen.batch)


def test_contrastive_loss():
    def contrastive(module, batch):
        z = nn.functional.normalize(module(batch[0]), dim=1)
        return nn.functional.cross_entropy(z @ z.T * 5, torch.arange(len(z)).roll(1), reduction="none")

    specimen = build("mlp")
    with pytest.raises(MixedSamplesError):
        GramEngine(specimen.model, contrastive).gram(specimen.batch)


def test_dropout():
    model = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5), head())
    with pytest.raises(StiffnessError, match=r"same each time.*in training mode: 1\).*eval"):
        GramEngine(model, cross_entropy).gram((vectors(), torch.arange(12) % CLASSES))


def test_a_positive_factor_per_sample_is_no_fault():
    def weighted(module, batch):
        return cross_entropy(module, batch) * torch.linspace(0.1, 3, len(batch[1])) / len(batch[1])

    specimen = build("mlp")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        GramEngine(specimen.model, weighted).gram(specimen.batch)


def test_check_can_be_switched_off(monkeypatch):
    monkeypatch.setattr(plans_module, "make_plan", faulty_plan(lose_cross_terms))
    specimen = build("tied_linear_weights")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        GramEngine(specimen.model, cross_entropy, check_every=0).gram(specimen.batch)


def test_a_few_samples_may_have_another_graph_than_all():
    """Whether the layer takes its bias at once depends on the batch, what it computes does not."""
    model, n = nn.Linear(4, 3), 40
    batch = torch.randn(n, 4), torch.arange(n) % 3, torch.arange(n) == 0

    def losses(module, batch):
        x, y, is_marked = batch
        logits = x @ module.weight.T + module.bias if bool(is_marked.any()) else module(x)
        return nn.functional.cross_entropy(logits, y, reduction="none")

    expected, _ = loop_gram(model, losses, batch)
    for engine in (GramEngine(model, losses), GramEngine(model, losses, check_every=1)):
        for _ in range(3):
            gram = engine.gram(batch)
            torch.testing.assert_close(gram.matrix, expected, rtol=1e-4, atol=1e-6)
        assert engine.class_cosine(batch, batch[1], 3).matrix.isfinite().all()
