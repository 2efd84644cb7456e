import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_stiffness.callbacks.loss_settings import LossSettings, loss_settings_of
from lightning_stiffness.functional.smoothed_labels import smoothed_label_logits

DRAWN, WEIGHT = torch.tensor([0.7, 0.2, 0.1], dtype=torch.float64), torch.tensor([1.0, 2.0, 5.0], dtype=torch.float64)


@pytest.mark.parametrize("own", [0.0, 0.3])
def test_the_met_frequencies_are_those_of_which_the_mean_loss_is_a_cross_entropy(own):
    """The mean loss is least where the softmax is what classes are met with."""
    met = LossSettings(own, WEIGHT).met(DRAWN, 0.3)
    z = met.log().requires_grad_()
    logits, y = z.expand(3, 3), torch.arange(3)
    if not own:
        logits = smoothed_label_logits(logits, y, 0.3)
    losses = F.cross_entropy(logits, y, WEIGHT, reduction="none", label_smoothing=own)
    (gradient,) = torch.autograd.grad((DRAWN * losses).sum(), z)
    assert torch.allclose(gradient, torch.zeros(3, dtype=torch.float64), atol=1e-12)


def test_losses_of_a_module_are_found():
    model = nn.ModuleList([nn.CrossEntropyLoss(), nn.NLLLoss(WEIGHT), nn.CrossEntropyLoss(label_smoothing=0.2)])
    found = loss_settings_of(model, 3)
    assert found.smoothing == 0.2
    assert torch.equal(found.weight, WEIGHT)
    assert loss_settings_of(model, 4).weight is None
    assert loss_settings_of(nn.Linear(2, 2), 2).smoothing == 0


def test_without_weights_the_drawn_are_met():
    assert torch.allclose(LossSettings().met(DRAWN, 0.0), DRAWN)
