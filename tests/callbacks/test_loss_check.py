import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_stiffness.callbacks.loss_check import LogitsCheck
from lightning_stiffness.errors import StiffnessError

LABELS = torch.tensor([0, 1, 2, 0, 1])
SAME = {
    "cross_entropy": lambda z: F.cross_entropy(z, LABELS),
    "smoothed": lambda z: F.cross_entropy(z, LABELS, label_smoothing=0.2),
    "nll_of_softmax": lambda z: F.nll_loss(z.softmax(1).log(), LABELS),
    "logsumexp": lambda z: (z.logsumexp(1) - z[range(5), LABELS]).mean(),
    "focal": lambda z: (F.cross_entropy(z, LABELS, reduction="none") * (1 - z.softmax(1).amax(1)) ** 2).mean(),
    "mixed": lambda z: 0.3 * F.cross_entropy(z, LABELS) + 0.7 * F.cross_entropy(z, LABELS.flip(0)),
    "subset": lambda z: F.cross_entropy(z[2:], LABELS[2:]),
    "two_calls": lambda z: F.cross_entropy(torch.cat([z + 1 + z**2, z]), LABELS.repeat(2)),
    "beside_others": lambda z: F.cross_entropy(2 * z + z**2, LABELS) + F.cross_entropy(z, LABELS),
    "half": lambda z: F.cross_entropy(z.bfloat16(), LABELS),
    "scaled": lambda z: 1024 * F.cross_entropy(z, LABELS, reduction="sum"),
}
OTHER = {
    "temperature": lambda z: F.cross_entropy(z / 2, LABELS),
    "another_layer": lambda z: F.cross_entropy(z.tanh() @ torch.eye(3), LABELS),
    "binary": lambda z: F.binary_cross_entropy_with_logits(z, F.one_hot(LABELS, 3).float()),
}


class Opaque(torch.autograd.Function):
    """A cross entropy that nobody can look into, as in compiled code."""

    @staticmethod
    def forward(ctx, z):
        ctx.save_for_backward(z)
        return F.cross_entropy(z, LABELS)

    @staticmethod
    def backward(ctx, gradient):
        (z,) = ctx.saved_tensors
        return gradient * (z.softmax(1) - F.one_hot(LABELS, 3)) / 5


def checked(loss, is_named=False, weight=None):
    z = 2 * torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    check, output = LogitsCheck("head", is_named), z.requires_grad_() * 1
    check.saw(output)
    found = loss(output)
    check.look(found, weight)
    found.backward()
    check.end()
    return z.grad


@pytest.mark.parametrize("loss", [*SAME.values(), Opaque.apply], ids=[*SAME, "opaque"])
def test_losses_of_the_logits_are_left_alone(loss):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = checked(loss)
    z = (2 * torch.randn(5, 3, generator=torch.Generator().manual_seed(0))).requires_grad_()
    loss(z).backward()
    assert torch.equal(found, z.grad)


@pytest.mark.parametrize("loss", OTHER.values(), ids=OTHER)
def test_losses_of_other_logits_are_not(loss):
    with pytest.raises(StiffnessError, match=r"output of the classifier 'head' must be the logits \[n, c\]"):
        checked(loss)
    with pytest.warns(UserWarning, match="Ignore this if it is meant"):
        checked(loss, is_named=True)


@pytest.mark.parametrize("loss", [lambda z: Opaque.apply(z.tanh()), lambda z: F.multi_margin_loss(z, LABELS)])
def test_where_nothing_can_be_seen_gradients_tell(loss):
    with pytest.warns(UserWarning, match="its gradient in the first step does not look like it"):
        checked(loss)


def test_a_loss_that_does_not_depend_on_the_classifier_says_nothing():
    check, output = LogitsCheck("head", False), torch.randn(5, 3).requires_grad_() * 1
    check.saw(output)
    check.look(F.cross_entropy(torch.randn(5, 3).requires_grad_() * 1, LABELS), None)
    with pytest.raises(StiffnessError, match="softmax is computed of others"):
        check.look(F.cross_entropy(output.tanh(), LABELS), None)


def test_only_the_first_loss_is_looked_at():
    check = LogitsCheck("head", False)
    for loss in (F.cross_entropy, lambda z, y: F.cross_entropy(z.tanh(), y)):
        output = torch.randn(5, 3).requires_grad_() * 1
        check.saw(output)
        check.look(loss(output, LABELS), None)
        check.end()


def test_a_network_that_is_no_more():
    check = LogitsCheck("head", False)
    output = torch.full((5, 3), torch.nan).requires_grad_() * 1
    check.saw(output)
    check.look(F.cross_entropy(output, LABELS), None)


def test_class_weights_are_compared():
    weight = torch.tensor([1.0, 2.0, 5.0])
    loss = nn.CrossEntropyLoss(weight)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        checked(lambda z: loss(z, LABELS), weight=2 * weight)
    with pytest.warns(UserWarning, match=r"found \[0.375, 0.75, 1.875\] in the loss and none in the module"):
        checked(lambda z: loss(z, LABELS))
    with pytest.warns(UserWarning, match=r"in the loss and \[1.0, 1.0, 1.0\] in the module"):
        checked(lambda z: loss(z, LABELS), weight=torch.ones(3))
