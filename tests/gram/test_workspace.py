import torch

from lightning_stiffness.gram.workspace import FRESH, Workspace


def test_a_block_overwrites_the_one_before():
    workspace, like = Workspace(), torch.empty(0)
    first = workspace.block((4, 3), like)
    second = workspace.block((2, 6), like)
    assert first.data_ptr() == second.data_ptr()
    assert workspace.block((5, 3), like).shape == (5, 3)


def test_another_dtype_has_memory_of_its_own():
    workspace = Workspace()
    assert workspace.block((2,), torch.empty(0)).dtype == torch.float32
    assert workspace.block((2,), torch.empty(0, dtype=torch.float64)).dtype == torch.float64


def test_fresh_blocks_stay():
    like = torch.empty(0)
    first = FRESH.block((3,), like).fill_(1)
    FRESH.block((3,), like).fill_(2)
    assert first.tolist() == [1, 1, 1]
