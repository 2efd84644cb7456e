"""Modules that are wrapped for training on several devices or processes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from lightning_stiffness.errors import StiffnessError
from lightning_stiffness.gram import GramEngine
from lightning_stiffness.gram.plain import unwrapped
from tests.oracle import cross_entropy, loop_gram

SCRIPT = Path(__file__).with_name("wrapped_process.py")
CLASSES = 4


def network():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, CLASSES))


def batch(n=12):
    return torch.randn(n, 8, generator=torch.Generator().manual_seed(1)), torch.arange(n) % CLASSES


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
    """Each process checks itself, DDP, FSDP and DTensor: see the script."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "WORLD_SIZE": str(processes), "PYTHONPATH": "."}
    running = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), str(rank), str(processes), str(tmp_path / "store")],
            env=environment,
            cwd=SCRIPT.parents[2],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(processes)
    ]
    results = [process.communicate(timeout=240)[0] for process in running]
    for process, output in zip(running, results, strict=True):
        assert process.returncode == 0, output
        assert output.count("right") == 5, output
