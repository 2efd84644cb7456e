"""Passes over a batch: what they add up to does not depend on how they go."""

import torch

from lightning_stiffness.gram import GramEngine, class_pass
from lightning_stiffness.gram.class_pass import ClassPass
from lightning_stiffness.gram.class_sums import ClassSums
from tests.oracle import cross_entropy, loop_gram
from tests.zoo import CLASSES, build

TARGETS = torch.tensor([0, 2, 1, 1, 0, 3, 0, 1, 1, 0, 2, 0])


def passes_of(name, budget=1 << 30):
    specimen = build(name)
    engine = GramEngine(specimen.model, cross_entropy, budget=budget, check_every=0)
    return specimen, ClassPass(engine._measurement(specimen.batch))


def products(passes, group=None):
    sums = ClassSums(CLASSES)
    passes.add(sums, TARGETS, group)
    return passes.multiply(sums, range(CLASSES), group)


def test_products_with_the_sums_are_those_of_the_loops():
    specimen, passes = passes_of("cnn")
    _, gradients = loop_gram(specimen.model, cross_entropy, specimen.batch)
    unit = gradients / gradients.norm(dim=1, keepdim=True)
    members = torch.nn.functional.one_hot(TARGETS, CLASSES).double()
    passed = products(passes)
    cosines = passed.products / passed.norms[:, None]
    assert torch.allclose(cosines, unit @ unit.T @ members, atol=1e-4)
    assert torch.allclose(passed.norms, passes.norms().norms)


def test_explicit_gradients_may_be_formed_for_a_few_samples_at_a_time(monkeypatch):
    _, passes = passes_of("cnn")
    expected = products(passes)
    monkeypatch.setattr(class_pass, "EXPLICIT_BYTES", 1)
    monkeypatch.setattr(class_pass, "FEWEST", 2)
    assert torch.allclose(products(passes).products, expected.products, atol=1e-5)


def test_groups_of_parameters_add_up():
    _, whole = passes_of("mlp")
    _, passes = passes_of("mlp", budget=2000)
    groups = passes.groups(CLASSES)
    assert len(groups) > 1
    squares = sum(passes.norms(group).norms.square() for group in groups)
    assert torch.allclose(squares.sqrt(), whole.norms().norms)
