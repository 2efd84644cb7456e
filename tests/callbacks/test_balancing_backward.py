"""What a fit makes of the losses is tested with the callback."""

import torch
from torch import nn

from lightning_stiffness.callbacks.balancing_backward import BalancingOfLosses


class Drawn(BalancingOfLosses):
    logits, smoothing, seed, targets = True, 0.0, 0, None
    frequencies = sizes = torch.tensor([0.6, 0.4])


def test_offsets_are_of_what_the_loss_meets():
    balancer = Drawn(None, 2, 0, False, None, None)
    balancer.look_at_losses(nn.CrossEntropyLoss(torch.tensor([1.0, 3.0])))
    assert torch.allclose(balancer.offsets, torch.tensor([1 / 3, 2 / 3]).log())
    balancer.logits = False
    assert balancer.offsets is None


def test_without_a_head_nothing_is_looked_at():
    balancer = Drawn(None, 2, 0, False, None, None)
    balancer.on_before_backward(None, None, None)
    balancer.on_after_backward(None, None)
