"""Values computed from parameters are known again in the graph of another batch."""

import torch
from torch import nn

from lightning_stiffness.gram.alike import consumers_alike, makes_of
from lightning_stiffness.gram.graph import consumers
from lightning_stiffness.gram.operands import frontier_of


class Normalised(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight, self.head = nn.Parameter(torch.randn(4, 4)), nn.Linear(4, 2)

    def forward(self, x):
        weight = self.weight / self.weight.pow(2).sum()
        return self.head(torch.tanh(x @ weight)).sum(1)


def makes(model):
    parameters = list(model.parameters())
    losses = [model(torch.randn(size, 4)) for size in (8, 5)]
    found = consumers(losses[0], parameters, frontier_of(*losses, parameters))
    return makes_of(found, parameters), parameters, [consumer.node.name() for consumer in found]


def test_they_are_found_again():
    model = Normalised()
    found, parameters, names = makes(model)
    again = consumers_alike(model(torch.randn(3, 4)), parameters, found)
    assert len(found) == 1
    assert [consumer.node.name() for consumer in again] == names
    assert [use.operand is not None for consumer in again for use in consumer.uses].count(True) == 1


def test_under_autocast_too():
    model = Normalised()
    found, parameters, _ = makes(model)
    with torch.autocast("cpu", torch.bfloat16):
        again = consumers_alike(model(torch.randn(3, 4)), parameters, found)
    assert any(use.operand is not None for consumer in again for use in consumer.uses)


def test_a_value_that_is_made_otherwise_is_none():
    model = Normalised()
    found, parameters, _ = makes(model)

    def otherwise(x):
        weight = model.weight / torch.dropout(model.weight.pow(2), 0.5, True).sum()
        return model.head(torch.tanh(x @ weight)).sum(1)

    losses = otherwise(torch.randn(3, 4))
    again, plain = consumers_alike(losses, parameters, found), consumers(losses, parameters)
    assert {consumer.node for consumer in again} == {consumer.node for consumer in plain}
    assert all(use.operand is None for consumer in again for use in consumer.uses)


def test_where_there_are_none_all_is_plain():
    model = nn.Linear(4, 2)
    found, parameters, names = makes(nn.Sequential(model, nn.Flatten(0)))
    assert not found
    losses = model(torch.randn(3, 4)).flatten()
    assert [consumer.node.name() for consumer in consumers_alike(losses, parameters, found)] == names
