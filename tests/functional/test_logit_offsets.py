import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from lightning_stiffness.errors import StiffnessError
from lightning_stiffness.functional.logit_offsets import (
    balanced_softmax_loss,
    posthoc_logit_adjustment,
    probabilities_under_frequencies,
    smoothed_frequencies,
    training_logit_adjustment,
)
from tests.unchecked import unchecked_types

SEEDS = st.integers(0, 1000)


def made(seed, n=5, c=4):
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(n, c, generator=generator, dtype=torch.float64)
    counts = torch.randint(1, 500, (c,), generator=generator)
    return logits, torch.randint(0, c, (n,), generator=generator), counts


@given(SEEDS)
def test_the_balanced_softmax_is_that_of_plain_loops(seed):
    logits, targets, counts = made(seed)
    expected = []
    for row, target in zip(logits.tolist(), targets.tolist(), strict=True):
        weighted = [n * math.exp(z) for n, z in zip(counts.tolist(), row, strict=True)]
        expected.append(-math.log(weighted[target] / math.fsum(weighted)))
    assert balanced_softmax_loss(logits, targets, counts).tolist() == pytest.approx(expected, rel=1e-9)


@given(SEEDS)
def test_it_is_the_logit_adjusted_loss_at_strength_one(seed):
    logits, targets, counts = made(seed)
    adjusted = logits + training_logit_adjustment(counts.double())
    expected = F.cross_entropy(adjusted, targets, reduction="none")
    assert torch.allclose(balanced_softmax_loss(logits, targets, counts), expected)


@given(SEEDS, st.floats(0, 0.9))
def test_smoothed_labels_take_the_place_of_labels(seed, smoothing):
    """At logits that fit equal class frequencies the smoothed loss is stationary over data in which classes differ."""
    _, _, counts = made(seed)
    frequencies = counts.double() / counts.sum()
    offsets = training_logit_adjustment(counts.double(), smoothing=smoothing).requires_grad_()
    losses = F.cross_entropy(
        offsets.expand(4, -1), torch.arange(4), label_smoothing=smoothing, reduction="none"
    )  # a network that cannot tell classes apart, after what is added
    (slope,) = torch.autograd.grad((frequencies * losses).sum(), offsets)
    assert slope.abs().max() < 1e-12


@given(SEEDS, st.floats(0, 2))
def test_the_correction_after_training_undoes_the_one_in_training(seed, tau):
    logits, _, counts = made(seed)
    adjusted = logits + training_logit_adjustment(counts.double(), tau)
    assert torch.allclose(posthoc_logit_adjustment(adjusted, counts.double(), tau), logits)


@given(SEEDS)
def test_probabilities_follow_the_rule_of_bayes(seed):
    logits, _, counts = made(seed)
    even = torch.ones(4, dtype=torch.float64)
    natural = counts.double() / counts.sum()
    likelihood = logits.softmax(1)  # up to a factor for each sample, under even frequencies
    expected = likelihood * natural / (likelihood * natural).sum(1, keepdim=True)
    found = probabilities_under_frequencies(logits, even, natural)
    assert torch.allclose(found, expected)
    assert torch.allclose(probabilities_under_frequencies(found.log(), natural, even), likelihood)


@pytest.mark.parametrize("frequencies", [[0.5, 0.0], [1.0, -1.0], [math.nan, 1.0], [math.inf, 1.0]])
def test_frequencies_that_are_none(frequencies):
    with pytest.raises(StiffnessError, match="must be positive and finite"):
        training_logit_adjustment(torch.tensor(frequencies))


def test_a_frequency_for_each_logit():
    with unchecked_types(), pytest.raises(StiffnessError, match=r"each of 3 logits, found shape \(2,\)"):
        posthoc_logit_adjustment(torch.zeros(2, 3), torch.tensor([0.5, 0.5]))


def test_targets_that_are_no_classes():
    with pytest.raises(StiffnessError, match="must lie in"):
        balanced_softmax_loss(torch.zeros(1, 2), torch.tensor([2]), torch.tensor([3, 4]))


def test_a_class_without_samples():
    with pytest.raises(StiffnessError, match="found 0 of class 1"):
        balanced_softmax_loss(torch.zeros(1, 2), torch.tensor([0]), torch.tensor([3, 0]))


def test_smoothed_frequencies_of_a_class_that_is_never_drawn():
    found = smoothed_frequencies(torch.tensor([2.0, 2.0, 0.0]), 0.3)
    assert torch.allclose(found, torch.tensor([0.45, 0.45, 0.1]))
    assert torch.allclose(training_logit_adjustment(torch.tensor([2.0, 2.0, 0.0]), smoothing=0.3), found.log())
    for frequencies in ([0.0, 0.0], [-1.0, 2.0]):
        with pytest.raises(StiffnessError, match="must be positive and finite"):
            smoothed_frequencies(torch.tensor(frequencies), 0.3)
