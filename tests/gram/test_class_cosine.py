"""Mean cosines between classes by both of their routes."""

import pytest
import torch

from lightning_stiffness.gram import GramEngine, class_cosine, class_pass, class_sums
from tests.oracle import cross_entropy
from tests.zoo import CLASSES, MODELS, build

TARGETS = torch.tensor([0, 2, 1, 1, 0, 3, 0, 1, 1, 0, 2, 0])


def measurement_of(name, budget=1 << 30):
    specimen = build(name)
    engine = GramEngine(specimen.model, cross_entropy, budget=budget, check_every=0)
    return engine._measurement(specimen.batch)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in MODELS if not build(name).fallback][::4])
def test_both_routes_agree(name):
    measurement = measurement_of(name)
    by_sums = class_cosine._BySums(measurement, TARGETS, CLASSES).result()
    by_gram = class_cosine._by_gram(measurement, TARGETS, CLASSES)
    assert torch.allclose(by_sums.matrix, by_gram.matrix, atol=1e-5, equal_nan=True)
    assert torch.equal(by_sums.counts.cpu(), by_gram.counts.cpu())
    assert torch.equal(by_sums.zero, by_gram.zero)
    assert torch.allclose(by_sums.losses, by_gram.losses)


def test_few_samples_of_a_perceptron_go_by_the_gram():
    assert class_cosine._prefers_gram(measurement_of("mlp"), CLASSES)


def test_where_k_does_not_fit_the_budget_it_is_not_formed():
    assert not class_cosine._prefers_gram(measurement_of("mlp", budget=500), CLASSES)


def test_explicit_gradients_are_formed_for_a_few_samples_at_a_time(monkeypatch):
    measurement = measurement_of("cnn")
    expected = class_cosine._BySums(measurement, TARGETS, CLASSES).result()
    monkeypatch.setattr(class_pass, "EXPLICIT_BYTES", 1)
    monkeypatch.setattr(class_pass, "FEWEST", 2)
    found = class_cosine._BySums(measurement, TARGETS, CLASSES).result()
    assert torch.allclose(found.matrix, expected.matrix, atol=1e-5, equal_nan=True)


def test_sums_that_are_kept_and_sums_in_pieces_agree(monkeypatch):
    measurement = measurement_of("mlp")
    expected = class_cosine._BySums(measurement, TARGETS, CLASSES).result()
    monkeypatch.setattr(class_sums, "PIECE", 8)
    monkeypatch.setattr(class_sums, "PIECES_AT_ONCE", 2)
    pieces = class_cosine._BySums(measurement, TARGETS, CLASSES).result()
    monkeypatch.setattr(class_pass, "AT_ONCE", 5)
    monkeypatch.setattr(class_pass, "MOST", 5)  # three chunks
    kept = class_cosine._BySums(measurement, TARGETS, CLASSES).result()
    for found in (pieces, kept):
        assert torch.allclose(found.matrix, expected.matrix, atol=1e-6, equal_nan=True)
        assert torch.allclose(found.losses, expected.losses)
