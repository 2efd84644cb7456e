"""The hooks of a step; what they do in a fit is tested with the callback."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from lightning_stiffness.callbacks.balancing_statistics import ClassStatistics
from lightning_stiffness.callbacks.balancing_step import BalancedClassifier, Step
from lightning_stiffness.errors import StiffnessError
from lightning_stiffness.functional.smoothed_labels import smoothed_label_logits

LABELS = torch.tensor([0, 0, 0, 1])
COUNTS = torch.tensor([30.0, 10.0])


def head(statistics=None):
    torch.manual_seed(0)
    layer = nn.Linear(3, 2)
    return layer, BalancedClassifier("head", layer, 2, statistics)


def test_offsets_are_added_between_begin_and_end_only():
    layer, balanced = head()
    x, offsets = torch.randn(4, 3), torch.tensor([-0.1, -2.0])
    plain = layer(x)
    balanced.begin(Step(offsets))
    assert torch.allclose(layer(x), plain + offsets)
    balanced.end()
    assert torch.equal(layer(x), plain)
    balanced.remove()
    assert not layer._forward_hooks


def test_a_cross_entropy_of_smoothed_logits_is_one_with_smoothed_labels():
    layer, balanced = head()
    x, offsets = torch.randn(4, 3), torch.tensor([-0.1, -2.0])
    expected = F.cross_entropy(layer(x) + offsets, LABELS, label_smoothing=0.3)
    balanced.begin(Step(offsets, LABELS, smoothing=0.3))
    assert torch.allclose(F.cross_entropy(layer(x), LABELS), expected)
    balanced.end()
    balanced.begin(Step(offsets, LABELS, smoothing=0.3))
    with pytest.raises(StiffnessError, match=r"given one row for each of the 4 labels.*smoothing=0"):
        layer(x[:3])
    assert balanced.statistics is None  # nothing but shifts asks for class means


def test_labels_of_the_first_samples_are_no_labels_of_others():
    """As of the unlabelled samples of semi-supervised training, whether or not they are as many."""
    layer, balanced = head()
    x, others, offsets = torch.randn(4, 3), torch.randn(4, 3), torch.tensor([-0.1, -2.0])
    plain = layer(x), layer(others)
    balanced.begin(Step(offsets, LABELS, smoothing=0.3))
    with torch.no_grad():  # labels that the network gives itself
        assert torch.equal(layer(others), plain[1] + offsets)
    smoothed = smoothed_label_logits(plain[0] + offsets, LABELS, 0.3)
    assert torch.equal(layer(x), smoothed)
    with pytest.warns(UserWarning, match="more than once in a training step"):
        assert torch.equal(layer(others), plain[1] + offsets)
    assert torch.equal(layer(others[:3]), plain[1][:3] + offsets)  # warns once
    assert torch.equal(layer(x), smoothed)  # a checkpoint repeats it
    balanced.after_backward()
    again = smoothed_label_logits(plain[1] + offsets, LABELS, 0.3)
    assert torch.equal(layer(others), again)  # the same samples after a step of SAM, say


@pytest.mark.parametrize("is_reentrant", [True, False])
def test_checkpoints_repeat_a_call(is_reentrant):
    layer, balanced = head()
    x = torch.randn(4, 3, requires_grad=True)
    balanced.begin(Step(None, LABELS, smoothing=0.3))
    F.cross_entropy(layer(x), LABELS).backward()
    balanced.end()
    expected = x.grad
    x.grad = None
    balanced.begin(Step(None, LABELS, smoothing=0.3))
    loss = F.cross_entropy(checkpoint(layer, x, use_reentrant=is_reentrant), LABELS)
    if is_reentrant:
        with pytest.raises(StiffnessError, match="found a call in a reentrant checkpoint"):
            loss.backward()
    else:
        loss.backward(retain_graph=True)
        assert torch.equal(x.grad, expected)
        balanced.after_backward()
        loss.backward()
        assert torch.equal(x.grad, 2 * expected)


@pytest.mark.parametrize("by_name", [True, False])
def test_only_the_output_has_to_be_a_matrix_where_nothing_is_shifted(by_name):
    layer = nn.Flatten()
    balanced = BalancedClassifier("head", layer, 2, None)
    balanced.begin(Step(None, LABELS, smoothing=0.3))
    x = torch.randn(4, 2, 1, 1)
    found = layer(input=x) if by_name else layer(x)
    assert torch.equal(found, smoothed_label_logits(x.flatten(1), LABELS, 0.3))
    balanced.begin(Step(None, LABELS, COUNTS))
    with pytest.raises(StiffnessError, match=r"input of the classifier 'head' must be a matrix"):
        layer(x)


def test_the_type_of_the_logits_stays():
    layer, balanced = head()
    layer.bfloat16()
    balanced.begin(Step(torch.tensor([-0.1, -2.0], dtype=torch.float64), LABELS, smoothing=0.1))
    assert layer(torch.randn(4, 3).bfloat16()).dtype == torch.bfloat16


def test_shifts_are_the_same_in_each_call_and_measured_without():
    x, statistics = torch.randn(4, 3), ClassStatistics(2, 3)
    layer, balanced = head(statistics)
    balanced.begin(Step(None, LABELS, COUNTS))
    plain = layer(x)
    balanced.end()
    assert torch.allclose(statistics.probabilities[1], plain[3].softmax(0), atol=1e-6)
    statistics.probabilities[1] = torch.tensor([0.9, 0.1])
    before = statistics.features.clone()
    assert torch.allclose(before[1], x[3])
    balanced.begin(Step(None, LABELS, COUNTS, torch.rand(4, 2)))
    first, second = layer(x), layer(x)
    assert torch.equal(first, second)
    assert torch.equal(first[:3], plain[:3])
    # with two classes an even split is all: nothing is absorbed beyond it, nothing is shifted
    assert torch.equal(first[3], plain[3])
    assert statistics.seen.tolist() == [6, 2]


@pytest.mark.parametrize(("border", "share"), [(1.5, 1.0), (0.75, 0.5), (0.3, 0.0), (-1.0, 0.0)])
def test_a_shift_goes_as_far_as_the_network_can_follow(border, share):
    statistics = ClassStatistics(2, 1)
    statistics.features, statistics.seen = torch.tensor([[3.0], [0.0]]), torch.ones(2)
    layer, balanced = head(statistics)
    layer.weight, layer.bias = nn.Parameter(torch.tensor([[1.0], [0.0]])), nn.Parameter(torch.tensor([-border, 0.0]))
    balanced.begin(Step(None, torch.tensor([1]), COUNTS, torch.tensor([[0.0, 1.0]]), absorbers=False))
    whole = 0.5 * (1 - 10 / 30) * 3.0
    assert float(layer(torch.zeros(1, 1)).detach()[0, 0]) == pytest.approx(share * whole - border)


def test_a_step_without_a_call():
    _, balanced = head()
    balanced.begin(Step(None))
    balanced.end(is_called=False)
    balanced.begin(Step(None))
    with pytest.raises(StiffnessError, match="'head' must be called in its training mode"):
        balanced.end()


def test_a_classifier_that_was_called_may_pause():
    layer, balanced = head()
    balanced.begin(Step(None))
    layer(torch.randn(4, 3))
    balanced.end()
    balanced.begin(Step(None))
    balanced.end()


def test_another_number_of_outputs():
    layer = nn.Linear(3, 4)
    balanced = BalancedClassifier("head", layer, 2, None)
    balanced.begin(Step(None))
    with pytest.raises(StiffnessError, match="each of 2 classes, found 4"):
        layer(torch.randn(4, 3))
