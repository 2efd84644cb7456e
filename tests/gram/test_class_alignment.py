"""Mean cosines of samples with classes, without any pair, against loops of backward passes in float64."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_stiffness.batching import take
from lightning_stiffness.errors import MixedSamplesError, StiffnessError
from lightning_stiffness.functional import class_alignment, cosine_pairs
from lightning_stiffness.gram import GramEngine
from tests.oracle import cross_entropy, loop_gram
from tests.specimens import of_function
from tests.zoo import CLASSES, build

GIVEN = torch.tensor([0, 2, 1, 1, 0, 3, 0, 1, 1, 0, 2, 0])  # one sample of class 3
SPECIMENS = ["mlp", "cnn", "embedding", "tied_embedding", "resnet_with_batch_norm", "transformer_encoder", "lstm"]


def relabelled(batch, labels):
    return batch[0], labels


def in_parts(batch, sizes):
    bounds = torch.tensor([0, *sizes]).cumsum(0).tolist()
    return [take(batch, list(range(a, b))) for a, b in itertools.pairwise(bounds)]


def expected_alignment(model, batch, classes=CLASSES):
    """[n, c] by Python loops."""
    return expected_means(*[loop_gram(model, cross_entropy, batch)[1]] * 2, batch[1], range(classes))


def expected_under_labels(model, batch, classes=CLASSES):
    """Column a by Python loops, for gradients under label a."""
    given = loop_gram(model, cross_entropy, batch)[1]
    columns = []
    for a in range(classes):
        tried = loop_gram(model, cross_entropy, (batch[0], torch.full_like(batch[1], a)))[1]
        columns.append(expected_means(tried, given, batch[1], [a]))
    return torch.cat(columns, 1)


def expected_means(rows, columns, targets, classes):
    result = []
    for i, row in enumerate(rows):
        means = []
        for a in classes:
            cosines = [float(cosine(row, columns[j])) for j in range(len(targets)) if j != i and int(targets[j]) == a]
            counted = [value for value in cosines if not math.isnan(value)]
            means.append(sum(counted) / len(counted) if counted else math.nan)
        result.append(means)
    return torch.tensor(result, dtype=torch.float64)


def cosine(first, second):
    return first @ second / (first.norm() * second.norm())


def batch_of(name):
    specimen = build(name)
    specimen.model.eval()
    return specimen.model, (specimen.inputs, GIVEN)


def assert_close(found, expected):
    assert torch.allclose(found, expected, atol=2e-5, equal_nan=True)


@pytest.mark.parametrize("name", SPECIMENS)
@pytest.mark.parametrize("sizes", [(12,), pytest.param((5, 4, 3), marks=pytest.mark.slow)])
def test_alignment_is_that_of_the_loops(name, sizes):
    model, batch = batch_of(name)
    found = GramEngine(model, cross_entropy).class_alignment(in_parts(batch, sizes), CLASSES)
    assert_close(found.matrix, expected_alignment(model, batch))
    assert torch.equal(found.targets, GIVEN)
    assert found.counts.tolist() == [5, 4, 2, 1]
    assert torch.allclose(found.losses.double(), cross_entropy(model, batch).detach().double(), atol=1e-5)


def test_it_is_that_of_the_matrix_of_pairs():
    model, batch = batch_of("mlp")
    engine = GramEngine(model, cross_entropy)
    pairs = cosine_pairs(engine.gram(batch).matrix)
    found = engine.class_alignment([batch], CLASSES)
    assert_close(found.matrix, class_alignment(pairs, GIVEN, GIVEN, CLASSES))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mlp", "cnn"])
def test_labels_that_are_tried(name):
    model, batch = batch_of(name)
    engine = GramEngine(model, cross_entropy)
    found = engine.class_alignment(in_parts(batch, (7, 5)), CLASSES, relabel=relabelled)
    assert_close(found.matrix, expected_under_labels(model, batch))
    own = torch.arange(len(GIVEN)), GIVEN
    assert_close(found.matrix[own], engine.class_alignment([batch], CLASSES).matrix[own])
    for label in range(CLASSES):
        tried = cross_entropy(model, (batch[0], torch.full_like(GIVEN, label))).detach()
        assert torch.allclose(found.losses[:, label].double(), tried.double(), atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("relabel", [None, relabelled])
def test_sums_beyond_the_budget_take_passes_of_their_own(relabel):
    model, batch = batch_of("mlp")
    whole = GramEngine(model, cross_entropy).class_alignment([batch], CLASSES, relabel=relabel)
    engine = GramEngine(model, cross_entropy, budget=2000)
    assert len(engine._run(engine._measurement(batch), _groups)) > 1
    parts = engine.class_alignment(in_parts(batch, (5, 7)), CLASSES, relabel=relabel)
    assert_close(parts.matrix, whole.matrix)


def _groups(measurement):
    from lightning_stiffness.gram.class_pass import ClassPass

    return ClassPass(measurement).groups(CLASSES)


def test_parameters_of_the_fallback():
    parts = {"head": nn.Linear(8, 4), "scale": nn.Parameter(torch.rand(8) + 0.5)}
    specimen = of_function(lambda self, x: self.head(x * self.scale.cumprod(0)), torch.randn(12, 8), **parts)
    batch = specimen.inputs, GIVEN
    found = GramEngine(specimen.model, cross_entropy).class_alignment(in_parts(batch, (6, 6)), CLASSES)
    assert_close(found.matrix, expected_alignment(specimen.model, batch))


def test_a_batch_whose_gradients_come_in_another_form_sends_all_to_the_fallback():
    model, batch = batch_of("mlp")
    engine = GramEngine(model, cross_entropy)
    parts = in_parts(batch, (8, 4))
    engine._measurement(parts[1]).plan.leave_to_fallback([0], "a test")  # the plan of batches of four
    found = engine.class_alignment(parts, CLASSES)
    assert_close(found.matrix, expected_alignment(model, batch))
    assert all("fallback" in route for route in engine.gram(batch).routes.values())


def test_samples_without_a_gradient_are_nan_and_do_not_count():
    model = nn.Linear(3, 4, bias=False)
    inputs = torch.randn(12, 3)
    inputs[4] = 0  # of class 0
    found = GramEngine(model, cross_entropy).class_alignment([(inputs, GIVEN)], CLASSES)
    assert found.matrix[4].isnan().all()
    assert found.counts.tolist() == [4, 4, 2, 1]
    assert_close(found.matrix, expected_alignment(model, (inputs, GIVEN)))


def test_a_class_of_one_sample_is_nan_for_that_sample_alone():
    model, batch = batch_of("mlp")
    matrix = GramEngine(model, cross_entropy).class_alignment([batch], CLASSES + 1).matrix
    assert matrix[5].isnan().tolist() == [False, False, False, True, True]
    assert not matrix[:5, 3].isnan().any()
    assert matrix[:, 4].isnan().all()


@pytest.mark.slow
def test_a_shuffled_loader_serves_as_long_as_the_sums_fit():
    data = TensorDataset(torch.randn(20, 3), torch.arange(20) % 4)
    model = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 4))
    loader = DataLoader(data, batch_size=6, shuffle=True)
    found = GramEngine(model, cross_entropy).class_alignment(loader, 4)
    assert found.matrix.shape == (20, 4)
    with pytest.raises(StiffnessError, match="shuffle=False"):
        GramEngine(model, cross_entropy, budget=100).class_alignment(loader, 4)


def test_batches_that_can_be_read_once_are_refused():
    model, batch = batch_of("mlp")
    with pytest.raises(StiffnessError, match="read twice, found list_iterator"):
        GramEngine(model, cross_entropy).class_alignment(iter([batch]), CLASSES)
    with pytest.raises(StiffnessError, match="at least one batch"):
        GramEngine(model, cross_entropy).class_alignment([], CLASSES)


def test_targets_must_fit():
    model, batch = batch_of("mlp")
    engine = GramEngine(model, cross_entropy)
    with pytest.raises(StiffnessError, match=r"must lie in \[0, 3\), found 0 to 3"):
        engine.class_alignment([batch], 3)
    with pytest.raises(StiffnessError, match="integers of shape"):
        engine.class_alignment([batch], CLASSES, targets=lambda batch: batch[1].double())


def test_losses_that_compare_samples_are_refused():
    def contrastive(module, batch):
        outputs = module(batch[0])
        return (outputs @ outputs.T).logsumexp(1)

    model, batch = batch_of("mlp")
    with pytest.raises(MixedSamplesError):
        GramEngine(model, contrastive).class_alignment([batch], CLASSES)


@pytest.mark.slow
@settings(max_examples=12)
@given(targets=st.lists(st.integers(0, 2), min_size=2, max_size=9), cut=st.integers(1, 8))
def test_how_the_data_is_cut_into_batches_does_not_matter(targets, cut):
    n, cut = len(targets), min(cut, len(targets) - 1)
    generator = torch.Generator().manual_seed(n)
    batch = torch.randn(n, 3, generator=generator), torch.tensor(targets)
    model = nn.Linear(3, 3)
    whole = GramEngine(model, cross_entropy, check_every=0).class_alignment([batch], 3)
    parts = GramEngine(model, cross_entropy, check_every=0).class_alignment(in_parts(batch, (cut, n - cut)), 3)
    assert_close(parts.matrix, whole.matrix)
    assert_close(whole.matrix, expected_alignment(model, batch, 3))
