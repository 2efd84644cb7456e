"""Some samples of factors, and chunks of samples as one."""

import torch

from lightning_stiffness.gram.embedding import Rows, TiedEmbedding
from lightning_stiffness.gram.factors import Explicit, Outer
from lightning_stiffness.gram.slicing import part_of, stacked


def outer(samples):
    return Outer(torch.randn(samples, 2, 3), torch.randn(samples, 2, 4), bias=True)


def test_parts_make_the_whole_again():
    whole = outer(7)
    parts = [part_of(whole, slice(0, 3)), part_of(whole, slice(3, 7))]
    assert [part.samples for part in parts] == [3, 4]
    assert torch.equal(stacked(parts).joined_blocks(), whole.joined_blocks())


def test_factors_inside_factors_are_cut_too():
    rows = Rows(torch.randint(0, 5, (6, 2)), torch.randn(6, 2, 3), 5)
    tied = TiedEmbedding(rows, Outer(torch.randn(6, 1, 3), torch.randn(6, 1, 5)))
    part = part_of(tied, slice(2, 4))
    assert torch.allclose(part.joined_blocks(), tied.joined_blocks()[2:4])


def test_chunks_of_different_forms_become_explicit():
    first, second = outer(2), outer(3)
    found = stacked([first, Explicit(second.joined_blocks())])
    assert isinstance(found, Explicit)
    assert found.samples == 5
