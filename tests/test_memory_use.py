import time

import pytest
import torch

from lightning_stiffness import memory_use
from lightning_stiffness.memory_use import MemoryUse, free_megabytes

CPU = torch.device("cpu")


def test_what_is_taken_and_given_back_is_seen():
    with MemoryUse(CPU) as use:
        kept = torch.ones(40 << 20)
        while use._peak - use._before < 100 << 20:
            time.sleep(1e-3)  # another thread looks
        del kept
    assert 100 < use.megabytes < 400


def test_nothing_is_nothing():
    with MemoryUse(CPU) as use:
        pass
    assert use.megabytes < 20


def test_an_exception_ends_it():
    with pytest.raises(ZeroDivisionError), MemoryUse(CPU):
        1 / 0  # noqa: B018


def test_where_the_system_does_not_tell(monkeypatch, tmp_path):
    monkeypatch.setattr(memory_use, "_RESIDENT", tmp_path / "none")
    monkeypatch.setattr(memory_use, "_SYSTEM", tmp_path / "none")
    with MemoryUse(CPU) as use:
        pass
    assert use.megabytes >= 0
    assert free_megabytes(CPU) == 1 << 40
