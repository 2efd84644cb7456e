"""Modules that are wrapped for training on several devices or processes."""

import pytest
import torch
from torch import nn

from lightning_stiffness.errors import StiffnessError
from lightning_stiffness.gram import GramEngine
from lightning_stiffness.gram.plain import unwrapped
from tests.gram.wrapped_process import CASES, CLASSES, batch, main, network
from tests.oracle import cross_entropy, loop_gram
from tests.processes import in_processes


def test_data_parallel():
    model = nn.DataParallel(network())
    gram = GramEngine(model, cross_entropy).gram(batch())
    expected, _ = loop_gram(network(), cross_entropy, batch())
    assert (gram.matrix - expected).norm() <= 1e-5 * expected.norm()
    assert set(gram.routes) == {name for name, _ in network().named_parameters()}


def test_wrappers_of_wrappers():
    model = network()
    assert unwrapped(torch.compile(nn.DataParallel(torch.compile(model, backend="eager")), backend="eager")) is model


def test_a_module_of_that_name_is_no_wrapper():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.module = network()

        def forward(self, x):
            return self.module(x) * 2

    model = Own()
    assert unwrapped(model) is model
    assert "module.0.weight" in GramEngine(model, cross_entropy).gram(batch()).routes


def test_a_layer_that_has_seen_no_input():
    model = nn.Sequential(nn.LazyLinear(8), nn.Linear(8, CLASSES))
    with pytest.raises(StiffnessError, match=r"0\.weight of a lazy layer"):
        GramEngine(model, cross_entropy).gram(batch())
    model(batch()[0])
    GramEngine(model, cross_entropy).gram(batch())


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_in_processes(processes, tmp_path):
    """Each process checks itself: see the script."""
    in_processes(main, folder=tmp_path, count=processes)
    for rank in range(processes):
        assert (tmp_path / f"printed{rank}.txt").read_text().count("right") == len(CASES)
