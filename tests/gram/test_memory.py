"""The budget is a promise about memory, so it is memory that is measured: in processes of their own."""

import os
import subprocess
import sys
import weakref
from pathlib import Path

import pytest
import torch
from torch import nn

from lightning_stiffness.gram import GramEngine
from lightning_stiffness.gram.measurement import Measurement
from lightning_stiffness.gram.memory import default_budget
from lightning_stiffness.gram.rules import rule_of
from tests.oracle import cross_entropy
from tests.zoo import CLASSES, build

SCRIPT = """
import sys, torch
from torch import nn
from lightning_stiffness.gram import GramEngine
torch.set_num_threads(1)
layers = [nn.Conv2d(3, 32, 3, padding=1)]
for _ in range(6):
    layers += [nn.GroupNorm(4, 32), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1)]
model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 4))
x, y = torch.randn(256, 3, 16, 16), torch.arange(256) % 4
loss = lambda module, batch: nn.functional.cross_entropy(module(batch[0]), batch[1], reduction="none")
engine = GramEngine(model, loss, budget=int(sys.argv[1]) << 20)
engine.gram((x[:4], y[:4]))
def status(name):
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(name))
before = status("VmRSS")
open("/proc/self/clear_refs", "w").write("5")
engine.gram((x, y)) if sys.argv[2] == "gram" else engine.class_cosine((x, y), y, 4)
print(status("VmHWM") - before)
"""
# Freed blocks go back to the system at once, so that resident memory is memory in use.
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads Linux's /proc")
@pytest.mark.parametrize("work", ["gram", "class_cosine"])
def test_a_budget_bounds_the_memory(work):
    def extra(budget):
        command = [sys.executable, "-c", SCRIPT, str(budget), work]
        return float(subprocess.run(command, env=ALLOCATOR, capture_output=True, text=True, check=True).stdout)

    free, bounded = extra(4096), extra(32)
    assert free > 1.5 * 32 > bounded  # MB


def test_chunks_keep_no_activations_of_earlier_chunks():
    alive = []

    class Recording(nn.Linear):
        def forward(self, x):
            result = super().forward(x)
            recorded = [reference for reference in alive if reference() is not None]
            assert len(recorded) <= 1  # that of the chunk before may still be held by the loop
            alive.append(weakref.ref(result))
            return result

    model = nn.Sequential(Recording(8, 8), nn.Tanh(), nn.Linear(8, CLASSES))
    engine = GramEngine(model, cross_entropy, budget=500, check_every=0)
    engine.gram(build("mlp").batch)
    assert len(alive) > 8
    engine.class_cosine(build("mlp").batch, build("mlp").batch[1], CLASSES)
    assert all(reference() is None for reference in alive)


CPU = torch.device("cpu")


@pytest.mark.parametrize(("pages", "expected"), [(1 << 20, 1 << 30), (1 << 30, 4 << 30)])
def test_the_budget_is_a_quarter_of_the_memory_and_at_most_four_gigabytes(monkeypatch, pages, expected):
    monkeypatch.setattr(os, "sysconf", {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": pages}.__getitem__)
    assert default_budget(CPU) == expected


def test_where_memory_is_not_known_the_budget_is_one_gigabyte(monkeypatch):
    monkeypatch.delattr(os, "sysconf")
    assert default_budget(CPU) == 1 << 30


OUT_OF_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried to"),
    MemoryError("Unable to allocate 8 GiB"),
]


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=lambda error: type(error).__name__)
def test_out_of_memory_the_engine_takes_smaller_chunks(error, monkeypatch):
    specimen = build("mlp")
    engine = GramEngine(specimen.model, cross_entropy, check_every=0)
    expected = engine.gram(specimen.batch).matrix
    budgets = []
    gram = Measurement.gram

    def limited(measurement, *arguments):
        budgets.append(measurement.budget)
        if len(budgets) < 3:
            raise error
        return gram(measurement, *arguments)

    monkeypatch.setattr(Measurement, "gram", limited)
    assert torch.allclose(engine.gram(specimen.batch).matrix, expected)
    assert budgets == [budgets[0], budgets[0] // 2, budgets[0] // 4]


def test_a_budget_that_is_given_is_kept_to(monkeypatch):
    def full(measurement, *arguments):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Measurement, "gram", full)
    specimen = build("mlp")
    with pytest.raises(torch.OutOfMemoryError):
        GramEngine(specimen.model, cross_entropy, check_every=0, budget=1 << 20).gram(specimen.batch)


@pytest.mark.parametrize("error", OUT_OF_MEMORY[:2], ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("place", ["loss", "rule"])
def test_out_of_memory_is_no_reason_for_another_route(place, error, monkeypatch):
    """A rule that finds no memory must not send its parameters to the fallback, which needs more of it."""
    specimen = build("mlp")
    failed = []

    def fails_once(original):
        def wrapped(*arguments, **named):
            if not failed:
                failed.append(1)
                raise error
            return original(*arguments, **named)

        return wrapped

    engine = GramEngine(specimen.model, cross_entropy, check_every=0)
    expected = engine.gram(specimen.batch)
    if place == "loss":
        monkeypatch.setattr(engine._source, "_loss", fails_once(engine._source._loss))
    else:
        monkeypatch.setattr("lightning_stiffness.gram.collect.rule_of", lambda name: fails_once(rule_of(name)))
    found = engine.gram(specimen.batch)
    assert failed
    assert found.routes == expected.routes
    assert torch.allclose(found.matrix, expected.matrix)
