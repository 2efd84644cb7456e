"""The loss and the gradients are those of label smoothing, wherever the logits are."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from lightning_stiffness.errors import StiffnessError
from lightning_stiffness.functional.smoothed_labels import smoothed_label_logits


def made(seed, scale, classes, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(6, classes, generator=generator, dtype=dtype)
    return logits.requires_grad_(), torch.randint(0, classes, (6,), generator=generator)


@given(
    seed=st.integers(0, 1000),
    scale=st.sampled_from([0.0, 0.1, 1.0, 10.0, 1e3, 1e5]),
    classes=st.integers(2, 12),
    smoothing=st.sampled_from([1e-6, 0.1, 0.5, 0.99]),
    reduction=st.sampled_from(["none", "mean", "sum"]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_it_is_label_smoothing(seed, scale, classes, smoothing, reduction, dtype):
    logits, targets = made(seed, scale, classes, dtype)
    found = F.cross_entropy(smoothed_label_logits(logits, targets, smoothing), targets, reduction=reduction)
    expected = F.cross_entropy(logits, targets, label_smoothing=smoothing, reduction=reduction)
    bound = 32 * torch.finfo(dtype).eps * max(1.0, scale)  # a logit is no more exact than this
    assert torch.allclose(found, expected, rtol=bound, atol=bound)
    slopes = [torch.autograd.grad(loss.sum(), logits)[0] for loss in (found, expected)]
    assert torch.allclose(*slopes, rtol=0, atol=bound)


def test_weights_of_samples_and_other_losses_of_the_probabilities_see_it_too():
    logits, targets = made(0, 1.0, 4)
    weights = torch.rand(6, dtype=torch.float64)
    losses = F.nll_loss(smoothed_label_logits(logits, targets, 0.2).log_softmax(1), targets, reduction="none")
    expected = F.cross_entropy(logits, targets, label_smoothing=0.2, reduction="none")
    assert torch.allclose(weights @ losses, weights @ expected)


def test_nothing_is_smoothed_by_nothing():
    logits, targets = made(0, 1.0, 4)
    assert smoothed_label_logits(logits, targets, 0.0) is logits


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_type_of_the_logits_stays(dtype):
    logits, targets = made(0, 1.0, 4)
    found = smoothed_label_logits(logits.detach().to(dtype), targets, 0.1)
    assert found.dtype == dtype
    exact = smoothed_label_logits(logits.detach(), targets, 0.1)
    assert torch.allclose(found.double(), exact, atol=0.05)


def test_what_cannot_be_smoothed():
    logits, targets = made(0, 1.0, 4)
    with pytest.raises(StiffnessError, match=r"must be a share of the labels in \[0, 1\), found -0.1"):
        smoothed_label_logits(logits, targets, -0.1)
    with pytest.raises(StiffnessError, match=r"at least two classes, found 1"):
        smoothed_label_logits(logits[:, :1], torch.zeros(6, dtype=torch.long), 0.1)
    with pytest.raises(StiffnessError, match=r"targets must lie in \[0, 4\)"):
        smoothed_label_logits(logits, targets + 4, 0.1)
