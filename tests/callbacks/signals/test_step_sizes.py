"""Step sizes against steps that optimizers really take."""

import pytest
import torch
from torch import nn

from lightning_stiffness.callbacks.signals.step_sizes import learning_rates, step_sizes


def layers():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 3, bias=False))


def test_sgd_moves_by_its_rate_over_one_minus_momentum():
    model = layers()
    groups = [{"params": model[0].parameters(), "lr": 0.1}, {"params": model[1].parameters(), "lr": 0.4}]
    optimizer = torch.optim.SGD(groups, momentum=0.9)
    sizes = step_sizes([optimizer], dict(model.named_parameters()))
    rates = learning_rates([optimizer])
    assert rates == [0.1, 0.4]
    assert sizes.mean(rates) == pytest.approx(10 * (35 * 0.1 + 15 * 0.4) / 50)
    relative = sizes.rates(rates)
    assert relative["1.weight"] / relative["0.weight"] == pytest.approx(4)
    constant = torch.zeros(1, requires_grad=True)
    moved = torch.optim.SGD([constant], lr=0.1, momentum=0.9)
    for _ in range(200):
        constant.grad = torch.ones(1)
        before = constant.detach().clone()
        moved.step()
    assert float(before - constant.detach()) == pytest.approx(
        0.1 * step_sizes([moved], {"w": constant}).scales["w"], rel=1e-3
    )


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW, torch.optim.NAdam, torch.optim.RMSprop])
@pytest.mark.slow
def test_adaptive_steps_are_the_mean_over_the_gradient(kind):
    """Against sum(step * gradient) / sum(gradient^2) of the last of many steps on a constant gradient."""
    parameter = torch.zeros(50, requires_grad=True)
    options = {"weight_decay": 0.0} if kind is torch.optim.AdamW else {}
    optimizer = kind([parameter], lr=0.01, **options)
    gradient = torch.rand(50, generator=torch.Generator().manual_seed(0)) + 0.1
    for _ in range(3000):
        parameter.grad = gradient.clone()
        before = parameter.detach().clone()
        optimizer.step()
    step = before - parameter.detach()
    found = step_sizes([optimizer], {"w": parameter})
    expected = float((step * gradient).sum() / gradient.square().sum())
    assert found.mean([0.01]) == pytest.approx(expected, rel=0.05)


def test_frozen_parameters_and_those_of_no_optimizer_are_left_out():
    model = layers()
    names = {"0.weight": model[0].weight}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    assert list(step_sizes([optimizer], names).scales) == ["0.weight"]
    assert step_sizes([], names).mean([]) == 0.0


def test_several_optimizers_have_their_own_rates():
    model = layers()
    both = [torch.optim.SGD(model[0].parameters(), lr=0.1), torch.optim.SGD(model[1].parameters(), lr=0.2)]
    relative = step_sizes(both, dict(model.named_parameters())).rates(learning_rates(both))
    assert relative["1.weight"] / relative["0.bias"] == pytest.approx(2)


def test_at_learning_rate_zero_all_count_alike():
    model = layers()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    sizes = step_sizes([optimizer], dict(model.named_parameters()))
    assert set(sizes.rates([0.0]).values()) == {1.0}
