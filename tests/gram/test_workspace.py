import torch

from lightning_stiffness.gram.workspace import FRESH, Arena, Workspace


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


def test_an_arena_lends_side_by_side_until_all_is_taken_back():
    arena, like = Arena(10), torch.empty(0)
    first, second = arena.block((2, 2), like), arena.block((3, 2), like)
    first.fill_(1)
    second.fill_(2)
    assert first.tolist() == [[1, 1], [1, 1]]
    assert second.data_ptr() == first.data_ptr() + first.nbytes
    beyond, other = arena.block((1,), like), arena.block((1,), torch.empty(0, dtype=torch.float64))
    assert other.dtype == torch.float64
    arena.take_back()
    assert arena.block((10,), like).data_ptr() == first.data_ptr() != beyond.data_ptr()
