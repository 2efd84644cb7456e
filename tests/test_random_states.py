import functools
import random
from collections import deque
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset

from lightning_stiffness import random_states
from lightning_stiffness.probe import Probe
from lightning_stiffness.random_states import generators_within, isolated_randomness
from lightning_stiffness.sequential_data import SequentialData

OF_THE_FILE = np.random.default_rng(7)


def drawn(generator):
    """One number, whatever the kind of generator."""
    if isinstance(generator, torch.Generator):
        return float(torch.rand(1, generator=generator))
    if isinstance(generator, np.random.BitGenerator):
        return float(np.random.Generator(generator).random())
    return float(generator.random())


KINDS = {
    "numpy": lambda: np.random.default_rng(0),
    "numpy's old": lambda: np.random.RandomState(0),
    "bits": lambda: np.random.PCG64(0),
    "python": lambda: random.Random(0),
    "torch": lambda: torch.Generator().manual_seed(0),
}


class Noisy(Dataset):
    """Samples with noise of the dataset's own."""

    def __init__(self, draw):
        self.draw = draw

    def __len__(self):
        return 12

    def __getitem__(self, index):
        return torch.tensor([self.draw()]), index % 3


class Slotted:
    __slots__ = ("generator",)

    def __init__(self, generator):
        self.generator = generator

    def __call__(self):
        return drawn(self.generator)


def in_a_closure(generator):
    return lambda: drawn(generator)


def in_a_default(generator):
    def draw(own=generator):
        return drawn(own)

    return draw


HOLDERS = {
    "partial": lambda generator: functools.partial(drawn, generator),
    "slot": Slotted,
    "method": lambda generator: Slotted(generator).__call__,
    "closure": in_a_closure,
    "default": in_a_default,
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("holder", HOLDERS)
@pytest.mark.parametrize("read", [lambda loader: Probe.draw(loader, 6), lambda loader: list(SequentialData(loader))])
def test_generators_of_a_dataset_are_put_back(kind, holder, read):
    expected = drawn(KINDS[kind]())
    generator = KINDS[kind]()
    dataset = Noisy(HOLDERS[holder](generator))
    read(DataLoader(ConcatDataset([Subset(dataset, range(12))]), batch_size=3))
    assert drawn(generator) == expected
    assert drawn(generator) != expected


def test_the_reading_itself_is_as_random_as_the_dataset():
    batch = Probe.draw(DataLoader(Noisy(HOLDERS["slot"](np.random.default_rng(0)))), 6).batch
    assert len(set(batch[0].flatten().tolist())) == 6


class OfTheFile(Noisy):
    def __init__(self):
        """Its draws are those of a global variable."""

    def __getitem__(self, index):
        return torch.tensor([OF_THE_FILE.random()]), index % 3


class OfTheClass(OfTheFile):
    own = random.Random(3)


def test_generators_that_code_names_are_found():
    assert generators_within(OfTheFile()) == [OF_THE_FILE]
    assert generators_within(OfTheClass()) == [OfTheClass.own, OF_THE_FILE]


def test_a_generator_of_the_collate_function_is_put_back():
    generator = np.random.default_rng(0)

    def collate(items):
        return torch.tensor([[generator.random()] for _ in items]), torch.tensor([label for _, label in items])

    Probe.draw(DataLoader(Noisy(lambda: 0.0), collate_fn=collate), 6)
    assert generator.random() == np.random.default_rng(0).random()


def test_generators_are_put_back_after_an_error():
    generator = np.random.default_rng(0)
    with pytest.raises(KeyError), isolated_randomness(0, [generator]):
        raise KeyError(generator.random())
    assert generator.random() == np.random.default_rng(0).random()


def test_each_is_found_once_and_cycles_end():
    generator = random.Random(0)
    ring: dict[str, Any] = {"first": generator, "second": deque([generator])}
    ring["self"] = ring
    assert generators_within(ring) == [generator]


def test_samples_and_what_lies_far_off_are_not_looked_into(monkeypatch):
    generator = random.Random(0)
    assert generators_within([generator] * 1001) == []
    nested = [[[generator]]]
    assert generators_within(nested) == [generator]
    monkeypatch.setattr(random_states, "LOOKED_AT", 3)
    assert generators_within(nested) == []


def test_what_cannot_be_looked_into_is_left_out():
    class Closed:
        __slots__ = ("inside",)

        def __getattr__(self, name):
            raise RuntimeError(name)

    generator = random.Random(0)
    assert generators_within([Closed(), generator]) == [generator]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_cuda_random_states_are_put_back():
    torch.rand(1, device="cuda")
    before = torch.cuda.get_rng_state_all()
    with isolated_randomness(0):
        first = torch.rand(4, device="cuda")
    with isolated_randomness(0):
        assert torch.rand(4, device="cuda").equal(first)
    assert all(a.equal(b) for a, b in zip(before, torch.cuda.get_rng_state_all(), strict=True))


def test_cuda_states_are_saved_seeded_and_put_back_when_in_use(monkeypatch):
    calls: list[Any] = []
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_rng_state_all", lambda: ["state"])
    monkeypatch.setattr(torch.cuda, "manual_seed_all", calls.append)
    monkeypatch.setattr(torch.cuda, "set_rng_state_all", calls.append)
    with isolated_randomness(9):
        calls.append("inside")
    assert calls == [9, "inside", ["state"]]


def test_cuda_not_in_use_stays_so(monkeypatch):
    def refuse(*arguments: Any) -> None:
        raise AssertionError("CUDA was touched")

    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    for name in ("get_rng_state_all", "manual_seed_all", "manual_seed", "set_rng_state_all"):
        monkeypatch.setattr(torch.cuda, name, refuse)
    with isolated_randomness(9):
        pass
