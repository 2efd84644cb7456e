"""Some samples of factors, and factors in the memory of others."""

import torch

from lightning_stiffness.gram.convolution import Convolution, ConvolutionSettings
from lightning_stiffness.gram.embedding import Rows, TiedEmbedding
from lightning_stiffness.gram.factors import Explicit
from lightning_stiffness.gram.outer import Outer
from lightning_stiffness.gram.slicing import compact, form_of, part_of, small, write, zeros_like


def outer(samples, positions=2):
    return Outer(torch.randn(samples, positions, 3), torch.randn(samples, positions, 4), bias=True)


def tied(samples):
    rows = Rows(torch.randint(0, 5, (samples, 2)), torch.randn(samples, 2, 3), 5)
    return TiedEmbedding(rows, Outer(torch.randn(samples, 1, 3), torch.randn(samples, 1, 5)))


def test_parts_make_the_whole_again():
    whole = outer(7)
    again = zeros_like(whole, 7)
    assert not again.joined_blocks().any()
    for rows in (slice(3, 7), slice(0, 3)):
        part = part_of(whole, rows)
        assert part.samples == rows.stop - rows.start
        write(again, rows, part)
    assert torch.equal(again.joined_blocks(), whole.joined_blocks())


def test_factors_inside_factors_are_cut_and_written_too():
    whole = tied(6)
    part = part_of(whole, slice(2, 4))
    assert torch.allclose(part.joined_blocks(), whole.joined_blocks()[2:4])
    again = zeros_like(part, 3)
    write(again, slice(1, 3), part)
    assert torch.allclose(again.joined_blocks()[1:], part.joined_blocks())
    assert not again.joined_blocks()[0].any()


def test_forms_differ_where_numbers_cannot_be_written_over_one_another():
    assert form_of(outer(2)) == form_of(outer(5))
    assert form_of(outer(2)) != form_of(outer(2, positions=3))
    assert form_of(outer(2)) != form_of(Outer(torch.randn(2, 2, 3), torch.randn(2, 2, 4)))
    assert form_of(outer(2)) != form_of(Explicit(torch.randn(2, 16)))
    assert form_of(tied(2)) == form_of(tied(4))


def test_the_smaller_form_is_chosen():
    assert isinstance(small(outer(3, positions=2)), Outer)
    long = outer(3, positions=9)
    assert isinstance(small(long), Explicit)
    assert torch.equal(small(long).joined_blocks(), long.joined_blocks())
    settings = ConvolutionSettings((2, 3, 1), (1,), (0,), (1,), transposed=False, output_padding=(0,), groups=1)
    assert isinstance(small(Convolution(torch.randn(2, 3, 9), torch.randn(2, 2, 9), settings)), Explicit)


def test_a_compact_form_keeps_no_larger_memory_alive():
    whole = torch.randn(100, 2, 3)
    found = compact(Explicit(whole[:4, 0]))
    assert found.gradients.untyped_storage().nbytes() == 4 * 3 * 4
    assert torch.equal(found.gradients, whole[:4, 0])
